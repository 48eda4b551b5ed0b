"""What was started under each rate, by all processes together; and until when a destination asked to be left alone."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What changes."""
    op.add_column("destinations", sa.Column("held_until", sa.BigInteger(), nullable=True))
    op.create_table(
        "rates",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("starts", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        comment="what was started under each rate, by all processes together",
    )
