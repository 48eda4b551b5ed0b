"""An event is known by its task and its id: one index less to write for each (scale.md: the key a shard wants).

As 0006 it is older than the first release, and makes no index without its table's lock.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What changes."""
    op.drop_index("events_by_task", "events")
    if op.get_bind().dialect.name == "sqlite":  # it cannot give a table another key
        _write_anew()
    else:
        op.drop_constraint("events_pkey", "events")
        op.create_primary_key("events_pkey", "events", ["task_id", "id"])


def _write_anew() -> None:
    op.rename_table("events", "events_before")
    op.create_table(
        "events",
        sa.Column("task_id", sa.String(length=40), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("type", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("data_json", sa.Text(), nullable=False),
        sa.Column("skips_json", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "id"),
    )
    columns = "task_id, id, type, created_at, data_json, skips_json, seq"
    op.execute(f"INSERT INTO events ({columns}) SELECT {columns} FROM events_before ORDER BY seq")  # noqa: S608 -- ours
    op.drop_table("events_before")
    op.create_index("events_in_order", "events", ["seq"], unique=False)
    op.create_index("events_of_no_task", "events", ["created_at"], unique=False, sqlite_where=sa.text("task_id = id"))
