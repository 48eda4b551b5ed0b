"""The index by the upstream's id, in parts by the time of creation (schema.py says why).

It is made in the transaction, and the old one goes at once: there has been no release whose tables have a history, nor
one that looks for the old one. What comes after a release follows docs/decisions.md.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What changes."""
    taken = sa.text("upstream_id IS NOT NULL")
    op.create_index(
        "tasks_of_upstream",
        "tasks",
        [sa.column("created_at", sa.BigInteger).bitwise_rshift(sa.literal_column("24", sa.Integer)), "upstream_id"],
        sqlite_where=taken,
        postgresql_where=taken,
    )
    op.drop_index("tasks_by_upstream_id", "tasks")
