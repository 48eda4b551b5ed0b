"""Schema migrations, run by Alembic: `upgrade` brings a database up to date, `look` says what it is to this release.

A release may serve a database that a newer one has migrated, so that instances can be replaced one by one: a migration
says by `serves_from` which is the oldest revision whose release can still serve what it leaves behind, and that word
stands in the database (`schema_floor`), where the older release finds it. A migration that says nothing shuts them out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import column, inspect, select, table
from sqlalchemy.exc import SQLAlchemyError

from receiver.errors import StoreUnavailable
from receiver.store.dialect import open_dialect
from receiver.store.schema import counters

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

    from receiver.store.dialect import Dialect

_HERE: Final = Path(__file__).parent
_VERSION: Final = table("alembic_version", column("version_num"))
"""Alembic's word of where a database is."""
FLOOR: Final = "schema_floor"
"""The counter that holds a newer schema's oldest good revision."""


class Schema(NamedTuple):
    """What a database's schema is to this release.

    Attributes:
        at: its revision; None where there is none yet.
        head: the newest revision that this release knows.
        is_newer: whether a newer release made it.
        fits: whether this release may serve it.
    """

    at: str | None
    head: str
    is_newer: bool
    fits: bool

    @property
    def words(self) -> str:
        """What it is, after the database's name."""
        if self.at == self.head:
            return f"is up to date: schema {self.at}"
        if self.at is None:
            return "has no schema yet"
        if not self.is_newer:
            return f"is at schema {self.at}, and this release wants {self.head}"
        whose = "was made by a newer release, and this one" if self.fits else "which this release does not know: it"
        may = f"(up to {self.head}) may serve it" if self.fits else "was made by a newer one"
        return f"is at schema {self.at}, {whose} {may}"


class Upgrade(NamedTuple):
    """What `upgrade` found and did.

    Attributes:
        before: the revision that was there.
        schema: what is there now.
        copy: the copy of the database that was made before; None where none was needed, or where copies are the
            operator's own matter (PostgreSQL).
    """

    before: str | None
    schema: Schema
    copy: Path | None = None


def upgrade(url: str) -> Upgrade:
    """Bring the database at `url` up to date. One that is newer and may be served is left as it is.

    Raises:
        StoreUnavailable: it cannot be opened, copied or written, or it was made by a newer release that lets no older
            one in; nothing was changed.
    """
    found = look(url)
    if found.fits:  # nobody waits for a lock then, and a user who may only read and write rows will do
        return Upgrade(found.at, found)
    dialect = open_dialect(url)
    dialect.prepare()
    engine = dialect.engine(writes=True)
    try:
        with engine.begin() as connection:
            dialect.hold(connection)  # before the look that counts: two at once would both create
            return bring(connection, dialect)
    except (SQLAlchemyError, dialect.error) as error:
        raise _failed(error, dialect, "cannot migrate") from error
    finally:
        engine.dispose()


def bring(connection: Connection, dialect: Dialect) -> Upgrade:
    """The same in a transaction that is open, and whose lock is held; the caller commits.

    Raises:
        StoreUnavailable: as above.
    """
    config, schema = _config(), _look(connection)
    if schema.is_newer and not schema.fits:
        raise StoreUnavailable(f"the database {schema.words}")
    if schema.fits:
        return Upgrade(schema.at, schema)
    copy = None if schema.at is None else dialect.set_aside(f"before-{schema.head}")
    try:
        from alembic import command  # a third of a second, which a start that finds all done does without

        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        _mark(connection, config)
    except BaseException:
        if copy is not None:
            copy.unlink()  # nothing was migrated, and a service that is started again and again would fill the disk
        raise
    return Upgrade(schema.at, _look(connection), copy)


def look(url: str) -> Schema:
    """What the database at `url` is; one that is not there is not made.

    Raises:
        StoreUnavailable: it cannot be read.
    """
    dialect = open_dialect(url)
    if not dialect.exists():
        return Schema(None, head(), is_newer=False, fits=False)
    engine = dialect.engine()
    try:
        dialect.connect().close()
        with engine.connect() as connection:
            return _look(connection)
    except (SQLAlchemyError, dialect.error) as error:
        raise _failed(error, dialect, "cannot read") from error
    finally:
        engine.dispose()


def head() -> str:
    """The newest revision this release knows."""
    return known()[-1]


def current(url: str) -> str | None:
    """The revision the database is at; None for an empty one."""
    return look(url).at


def known() -> list[str]:
    """All revisions of this release, oldest first: they stand one on the other, and their files bear their numbers."""
    return sorted(path.name[:4] for path in (_HERE / "versions").glob("[0-9]*.py"))


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _look(connection: Connection) -> Schema:
    revisions = known()
    at = connection.execute(select(_VERSION)).scalar() if inspect(connection).has_table(_VERSION.name) else None
    if at is None or at in revisions:
        return Schema(at, revisions[-1], is_newer=False, fits=at == revisions[-1])
    floor = connection.execute(select(counters.c.value).where(counters.c.name == FLOOR)).scalar()
    return Schema(at, revisions[-1], is_newer=True, fits=floor is not None and int(revisions[-1]) >= floor)


def _mark(connection: Connection, config: Config) -> None:
    """Write down who else may serve what is there now."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(config)
    floor = getattr(scripts.get_revision("head").module, "serves_from", None)
    connection.execute(counters.delete().where(counters.c.name == FLOOR))
    if floor is not None:
        connection.execute(counters.insert().values(name=FLOOR, value=int(floor)))


def _failed(error: Exception, dialect: Dialect, what: str) -> StoreUnavailable:
    origin = getattr(error, "orig", None) or error  # without the statement, and Core's advice
    if dialect.is_shared and isinstance(origin, dialect.error):
        return dialect.told(origin, what)
    return StoreUnavailable(f"{what} the database {dialect.url}: {' '.join(str(origin).split())}")
