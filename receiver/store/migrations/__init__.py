"""Schema migrations, run by Alembic: `upgrade` brings a database up to date, `behind` says whether it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from receiver.errors import StoreUnavailable
from receiver.store.dialect import open_dialect

if TYPE_CHECKING:
    from sqlalchemy import Connection


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def upgrade(url: str) -> str:
    """Bring the database at `url` up to date; the revision it is then at.

    Raises:
        StoreUnavailable: it cannot be opened, or it was made by a newer release.
    """
    dialect = open_dialect(url)
    dialect.prepare()
    engine = dialect.engine(writes=True)
    config = _config()
    try:
        with engine.begin() as connection:
            dialect.hold(connection)  # before the first look: two at once would both create
            known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
            current = _current(connection)
            if current is not None and current not in known:
                raise StoreUnavailable(
                    f"the database is at schema {current}, which this release does not know: it was made by a newer one"
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        return head()
    finally:
        engine.dispose()


def head() -> str:
    """The newest revision this release knows."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def current(url: str) -> str | None:
    """The revision the database is at; None for an empty one."""
    dialect = open_dialect(url)
    dialect.connect().close()
    engine = dialect.engine()
    try:
        with engine.connect() as connection:
            return _current(connection)
    finally:
        engine.dispose()


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
