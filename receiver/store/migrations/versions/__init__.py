"""The migrations, oldest first; files whose numbers Alembic orders."""
