"""PostgreSQL, and what speaks its protocol: any number of instances on one database.

Tables live in the schema `receiver`. What an instance reads to decide on it locks until its commit, claims pass over
what another has locked, and a session that stops in the middle of a transaction is thrown out by the server, so that
an instance that hangs holds nobody up for longer than `IDLE_FOR`.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit, urlunsplit

from sqlalchemy import ARRAY, Text, all_, any_, bindparam, create_engine
from sqlalchemy.dialects.postgresql import psycopg as core_psycopg
from sqlalchemy.pool import QueuePool

from receiver.errors import StoreUnavailable

try:
    import psycopg
    from psycopg.types.string import StrDumper
except ImportError as error:
    raise StoreUnavailable(
        "database.url names PostgreSQL, and its driver is not installed: pip install 'callback-receiver[postgres]'"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import ColumnElement, Connection, Engine
    from sqlalchemy.engine.interfaces import Dialect as CoreDialect

# It warns of the rest of a pipeline whenever a statement in it failed, and that is told by the statement's own error.
logging.getLogger("psycopg").setLevel(logging.ERROR)

SCHEMA: Final = "receiver"
CONNECT_FOR: Final = 5
"""Seconds to connect."""
IDLE_FOR: Final = "5s"
"""How long a transaction may do nothing: an instance that was stopped in the middle of one must not hold its locks."""
LOCKED_FOR: Final = "10s"
STATEMENT_FOR: Final = "30s"
READERS: Final = 4

_KEEPALIVE: Final[dict[str, Any]] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""A server that is gone without a word is known to be within seconds, not hours."""
_SETTINGS: Final = (
    f"SET search_path TO {SCHEMA}",
    f"SET idle_in_transaction_session_timeout = '{IDLE_FOR}'",
    f"SET lock_timeout = '{LOCKED_FOR}'",
    f"SET statement_timeout = '{STATEMENT_FOR}'",
    # An acknowledgement means durable, whatever the role's or the database's default is.
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
)
_FIRST: Final = (
    f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}",
    "CREATE TABLE IF NOT EXISTS migrating (name varchar(10) PRIMARY KEY)",
    "INSERT INTO migrating VALUES ('one') ON CONFLICT DO NOTHING",
)
"""A lock that is a row holds on every engine that speaks this protocol; an advisory lock does not."""
_PASSING: Final = frozenset({"40001", "40P01", "23505"})
"""Serialization failure, deadlock, and a row that another instance has just made."""
_NOT_NOW: Final = frozenset({"25006", "53100", "53200", "53300", "58030", "57P01", "57P02", "57P03"})
"""Read only (a standby), disk full, out of memory, too many connections, I/O error, shutting down or starting."""


class _Text(StrDumper):
    """A NUL character, which no text here can hold, becomes the sign for what cannot be shown."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\0", "\ufffd") if "\0" in obj else obj)


class PostgresSession:
    """A psycopg connection with the few methods that sqlite3's has by itself."""

    __slots__ = ("connection",)

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        """Wrap it."""
        self.connection = connection

    @property
    def in_transaction(self) -> bool:
        """Whether one is open."""
        return self.connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> psycopg.Cursor[Any]:
        """Run one statement."""
        return self.connection.execute(sql, values or None)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> None:
        """Run one statement for every row, without waiting for each."""
        self.connection.cursor().executemany(sql, rows)

    def fileno(self) -> int:
        """What can be waited on for news."""
        return self.connection.fileno()

    def heard(self) -> list[str]:
        """The payloads of the news that have come in."""
        return [notice.payload for notice in self.connection.notifies(timeout=0)]

    def close(self) -> None:
        """Hang up."""
        self.connection.close()


class _Anybody:
    """The lock of an engine that many may serve."""

    def release(self) -> None:
        """Nothing was taken."""


class Postgres:
    """One database behind a URL of libpq."""

    name = "postgresql"
    is_shared: Literal[True] = True
    error: type[Exception] = psycopg.Error
    core: CoreDialect = core_psycopg.dialect(paramstyle="format")  # type: ignore[no-untyped-call]
    begin = "BEGIN"
    readers = READERS

    def __init__(self, url: str) -> None:
        """`url`: as libpq takes it, parameters included (`?sslmode=verify-full`)."""
        self._url = url

    @property
    def url(self) -> str:
        """Where it is, without password and parameters."""
        parts = urlsplit(self._url)
        host = parts.netloc.rpartition("@")[2]
        user = parts.username
        return urlunsplit(("postgresql", f"{user}@{host}" if user else host, parts.path, "", ""))

    def exists(self) -> bool:
        """A database that is not there is told of by who connects."""
        return True

    def prepare(self) -> None:
        """Make the schema and the row that migrations lock; whoever comes second finds them there.

        Raises:
            StoreUnavailable: they cannot be made.
        """
        connection = self.driver(autocommit=True)
        try:
            for statement in _FIRST:
                try:
                    connection.execute(statement)
                except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateObject):  # another made it just now
                    continue
        except psycopg.Error as error:
            raise StoreUnavailable(f"cannot prepare the database {self.url}: {_words(error)}") from error
        finally:
            connection.close()

    def hold(self, connection: Connection) -> None:
        """Lock the row; whoever migrates at the same time waits for our end, and finds nothing left to do."""
        connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.exec_driver_sql("SELECT name FROM migrating FOR UPDATE")

    def connect(self) -> PostgresSession:
        """A connection without implicit transactions.

        Raises:
            StoreUnavailable: there is none.
        """
        return PostgresSession(self.driver(autocommit=True))

    def driver(self, *, autocommit: bool) -> psycopg.Connection[Any]:
        """A psycopg connection, prepared.

        Raises:
            StoreUnavailable: there is none.
        """
        try:
            connection = psycopg.connect(
                self._url, autocommit=True, connect_timeout=CONNECT_FOR, application_name="receiver", **_KEEPALIVE
            )
        except psycopg.Error as error:
            raise StoreUnavailable(f"cannot open the database {self.url}: {_words(error)}") from error
        try:
            connection.adapters.register_dumper(str, _Text)
            connection.execute("; ".join(_SETTINGS))
            connection.autocommit = autocommit
        except psycopg.Error as error:
            connection.close()
            raise StoreUnavailable(f"cannot use the database {self.url}: {_words(error)}") from error
        return connection

    def engine(self, *, writes: bool = False) -> Engine:
        """A Core engine; a question sees one moment, as on SQLite."""
        return create_engine(
            "postgresql+psycopg://",
            creator=lambda: self.driver(autocommit=False),
            poolclass=QueuePool,
            pool_size=READERS,
            max_overflow=0,
            pool_pre_ping=True,
            isolation_level="READ COMMITTED" if writes else "REPEATABLE READ",
        )

    @staticmethod
    def among(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """`column = ANY (…)`."""
        return column == any_(bindparam(name, type_=ARRAY(Text)))

    @staticmethod
    def not_among(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """`column <> ALL (…)`."""
        return column != all_(bindparam(name, type_=ARRAY(Text)))

    @staticmethod
    def values(values: Iterable[str | None]) -> list[str | None]:
        """An array; in order, so that two instances lock the same rows the same way round."""
        return sorted(values, key=lambda value: value or "")

    @staticmethod
    def is_outage(error: BaseException) -> bool:
        """Whether the server cannot work now, or cannot be reached."""
        if isinstance(error, psycopg.Error) and error.sqlstate is not None:
            return isinstance(error, psycopg.OperationalError) or error.sqlstate in _NOT_NOW
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | StoreUnavailable)

    @staticmethod
    def is_passing(error: BaseException) -> bool:
        """Whether another instance was in the way."""
        return isinstance(error, psycopg.Error) and error.sqlstate in _PASSING

    @staticmethod
    @contextmanager
    def pipeline(connection: Any) -> Iterator[None]:
        """All statements in here go out together: one way to the server for a batch."""
        with connection.connection.pipeline():
            yield

    def claim_for_serving(self) -> _Anybody:
        """Anybody may."""
        return _Anybody()


def _words(error: psycopg.Error) -> str:
    return " ".join(str(error).split())
