"""Idempotency-Keys, and which lookup route an answer came from."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What changes."""
    op.add_column("inbox", sa.Column("asked", sa.String(length=8), nullable=True))
    op.create_table(
        "repeats",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("task_id", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("request", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("content_type", sa.Text(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        comment="Idempotency-Keys and what they were answered; they go with their task",
    )
    op.create_index("repeats_by_task", "repeats", ["task_id"], unique=False)
