"""What each writer of a shared database committed last."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What changes."""
    op.create_table(
        "writers",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("batch", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        comment="what each writer of a shared database committed last",
    )
