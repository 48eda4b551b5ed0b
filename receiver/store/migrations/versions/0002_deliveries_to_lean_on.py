"""Health of destinations, replays, tasks' own callback URLs, and the order of the pull feed."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What changes."""
    op.add_column("tasks", sa.Column("callback_url", sa.Text(), nullable=True))

    op.add_column("events", sa.Column("seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.execute(
        "UPDATE events SET seq = n.place"
        " FROM (SELECT id, row_number() OVER (ORDER BY id) AS place FROM events) AS n WHERE n.id = events.id"
    )
    op.execute("INSERT INTO counters (name, value) SELECT 'event_seq', coalesce(max(seq), 0) FROM events")
    op.create_index("events_in_order", "events", ["seq"], unique=False)
    of_no_task = sa.text("task_id = id")
    op.create_index(
        "events_of_no_task",
        "events",
        ["created_at"],
        unique=False,
        sqlite_where=of_no_task,
        postgresql_where=of_no_task,
    )

    for name in ("retried", "forced"):
        op.add_column("deliveries", sa.Column(name, sa.Boolean(), server_default=sa.text("(false)"), nullable=False))
    op.add_column("deliveries", sa.Column("callback_url", sa.Text(), nullable=True))
    op.add_column("deliveries", sa.Column("callback_host", sa.String(length=255), nullable=True))
    op.execute("UPDATE deliveries SET retried = (attempt_count > 0) WHERE state = 'pending'")
    op.drop_index("deliveries_due", "deliveries")
    pending = sa.text("state = 'pending'")
    op.create_index(
        "deliveries_due",
        "deliveries",
        ["destination", "retried", "due_at", "callback_host"],
        unique=False,
        sqlite_where=pending,
        postgresql_where=pending,
    )
    by_hand = sa.text("state = 'pending' AND forced = 1")
    op.create_index(
        "deliveries_forced",
        "deliveries",
        ["destination"],
        unique=False,
        sqlite_where=by_hand,
        postgresql_where=sa.text("state = 'pending' AND forced"),
    )
    undelivered = sa.text("state IN ('dead', 'cancelled')")
    op.create_index(
        "deliveries_undelivered",
        "deliveries",
        ["state", "id"],
        unique=False,
        sqlite_where=undelivered,
        postgresql_where=undelivered,
    )

    op.create_table(
        "destinations",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("consecutive_failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("last_error_at", sa.BigInteger(), nullable=True),
        sa.Column("opened_at", sa.BigInteger(), nullable=True),
        sa.Column("opens", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_try_at", sa.BigInteger(), nullable=True),
        sa.Column("probe_id", sa.String(length=40), nullable=True),
        sa.Column("probe_until", sa.BigInteger(), nullable=True),
        sa.Column("announced", sa.Boolean(), server_default=sa.text("(false)"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("missing_since_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
        comment="the health of those that ever failed or were paused",
    )
    op.create_table(
        "replays",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("destination", sa.String(length=100), nullable=True),
        sa.Column("which", sa.String(length=12), nullable=False),
        sa.Column("since_at", sa.BigInteger(), nullable=True),
        sa.Column("until_at", sa.BigInteger(), nullable=False),
        sa.Column("matched", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("replayed", sa.BigInteger(), nullable=False),
        sa.Column("cursor", sa.String(length=40), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    running = sa.text("state = 'running'")
    op.create_index("replays_running", "replays", ["id"], unique=False, sqlite_where=running, postgresql_where=running)
