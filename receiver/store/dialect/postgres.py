"""PostgreSQL, and what speaks its protocol: any number of instances on one database.

Tables live in the schema `receiver`. What an instance reads to decide on it locks until its commit, claims pass over
what another has locked, and a session that stops in the middle of a transaction is thrown out by the server after
`IDLE_FOR`. One that stops in the middle of a pipeline the server takes for at work: whoever has waited for its locks in
vain, for `LOCKED_FOR`, throws it out, and so does the sweep, since claims wait for nobody.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit, urlunsplit

from sqlalchemy import ARRAY, Text, all_, any_, bindparam, create_engine
from sqlalchemy.dialects.postgresql import psycopg as core_psycopg
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.pool import QueuePool

from receiver.errors import StoreUnavailable

try:
    import psycopg
    from psycopg.types.string import StrDumper
except ImportError as error:
    raise StoreUnavailable(
        "database.url names PostgreSQL, and its driver is not installed: pip install 'callback-receiver[postgres]'"
    ) from error

from receiver.store.dialect.words import told

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

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
SILENT_FOR: Final = 35.0
"""Seconds without an answer after which a connection is given up: a server that hangs, or a pooler before one that is
gone, holds it open and says nothing. Longer than any statement may take."""
HURRIED_FOR: Final = 2.0
"""The same once the service stops."""
OLDEST: Final = 11
"""The first version that adds a column with a default without writing the table anew: migrations are made while others
serve. What the statements use is older (SKIP LOCKED, ON CONFLICT: 9.5; a limit on idle transactions: 9.6)."""

SERVING: Final = "receiver"
"""What sessions of serving instances are called; those that migrate or copy, and may take as long as that, are not."""
_STOPPED: Final = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user AND application_name = %s
AND state <> 'idle' AND wait_event = 'ClientRead' AND state_change < clock_timestamp() - %s::interval
"""
"""Sessions that have waited for the rest of a transaction for so long. The server's own limit counts only while nothing
has come since its last answer: what has come of a pipeline stops its clock, were it but a Flush."""

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
    "CREATE TABLE IF NOT EXISTS migrating (name varchar(10) PRIMARY KEY)",
    "INSERT INTO migrating VALUES ('one') ON CONFLICT DO NOTHING",
)
"""A lock that is a row holds on every engine that speaks this protocol; an advisory lock does not."""
_DURABLE: Final = {
    "server_version": "",
    "fsync": "fsync is off: a power cut can lose, or destroy, what was acknowledged; turn it on",
    "full_page_writes": "full_page_writes is off: a power cut can destroy pages, unless the disk never tears one",
    "synchronous_commit": "synchronous_commit is off by default; this program turns it on for itself",
}
"""Settings to look at, and what to say of each that is off."""
_PASSING: Final = frozenset({"40001", "40P01", "23505"})
"""Serialization failure, deadlock, and a row that another instance has just made."""
_NOT_NOW: Final = frozenset({"25006", "53100", "53200", "53300", "58030", "57P01", "57P02", "57P03"})
"""Read only (a standby), disk full, out of memory, too many connections, I/O error, shutting down or starting."""

_ENCODINGS: Final = frozenset({"UTF8", "SQL_ASCII", None})
"""What holds every character; SQL_ASCII keeps bytes as they come."""


class _Text(StrDumper):
    """A NUL character, which no text here can hold, becomes the sign for what cannot be shown."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\0", "\ufffd") if "\0" in obj else obj)


class _Impatient(psycopg.Connection[Any]):
    """A connection that does not wait for ever; `patience` says how many seconds."""

    patience: Callable[[], float] = staticmethod(lambda: SILENT_FOR)

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        return super().wait(self._limited(gen), *args, **kwargs)

    def _limited(self, gen: Any) -> Generator[Any, Any, Any]:
        began = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() - began > (patience := self.patience()):
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"no answer for {patience:.0f} seconds")
                wanted = gen.send(ready)
        except StopIteration as done:
            return done.value


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
    begin = "BEGIN ISOLATION LEVEL READ COMMITTED"
    readers = READERS

    def __init__(self, url: str) -> None:
        """`url`: as libpq takes it, parameters included (`?sslmode=verify-full`)."""
        self._url = url
        self._patience = SILENT_FOR

    def hurry(self) -> None:
        """The service stops: from now on a database that is silent is soon taken for gone."""
        self._patience = HURRIED_FOR

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
            for statement in self.first(connection):
                try:
                    connection.execute(statement)
                except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateObject):  # another made it just now
                    continue
        except psycopg.Error as error:
            raise self.told(error, "cannot prepare") from error
        finally:
            connection.close()

    @staticmethod
    def first(connection: psycopg.Connection[Any]) -> Iterator[str]:
        """What makes the schema and the row that migrations lock, where they are not there yet."""
        # IF NOT EXISTS asks for the right to make it all the same, and who was given a schema needs no such right.
        there = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [SCHEMA]).fetchone()
        if there is None:
            yield f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"
        yield from _FIRST

    def told(self, error: Exception, what: str) -> StoreUnavailable:
        """What the driver said, in words: `what` could not be done."""
        return told(error, self.url, what)

    def set_aside(self, _name: str) -> None:
        """No copy: backups of a server are its operator's matter."""

    def about(self) -> tuple[str, list[str]]:
        """The server's version, and what about it is not as durable as an acknowledgement should be.

        Raises:
            StoreUnavailable: it cannot be asked, or cannot be written to.
        """
        connection = self.driver(autocommit=True)
        try:
            asked = "SELECT name, setting, reset_val FROM pg_settings WHERE name = ANY(%s)"
            found = {name: rest for name, *rest in connection.execute(asked, [list(_DURABLE)])}
            if connection.execute("SHOW transaction_read_only").fetchone() == ("on",):
                raise psycopg.errors.ReadOnlySqlTransaction("read-only transaction")
        except psycopg.Error as error:
            raise self.told(error, "cannot use") from error
        finally:
            connection.close()
        version = found.pop("server_version")[0]
        return version, [_DURABLE[name] for name, (now, set_to) in sorted(found.items()) if "off" in {now, set_to}]

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
        return PostgresSession(self.driver(autocommit=True, patient=False))

    def driver(self, *, autocommit: bool, patient: bool = True) -> psycopg.Connection[Any]:
        """A psycopg connection, prepared; a `patient` one waits for an answer as long as it takes.

        Raises:
            StoreUnavailable: there is none.
        """
        seconds = min(CONNECT_FOR, int(self._patience))
        try:
            connection = _Impatient.connect(
                self._url,
                client_encoding="UTF8",
                autocommit=True,
                connect_timeout=seconds,
                application_name=f"{SERVING} maintenance" if patient else SERVING,
                **_KEEPALIVE,
            )
        except psycopg.Error as error:
            raise self.told(error, "cannot open") from error
        try:
            connection.patience = (lambda: math.inf) if patient else (lambda: self._patience)
            self._check(connection.info)
            connection.adapters.register_dumper(str, _Text)
            connection.execute("; ".join(_SETTINGS))
            connection.autocommit = autocommit
        except psycopg.Error as error:
            connection.close()
            raise self.told(error, "cannot use") from error
        except StoreUnavailable:
            connection.close()
            raise
        return connection

    def _check(self, info: psycopg.ConnectionInfo) -> None:
        if info.server_version < OLDEST * 10_000:
            named = info.parameter_status("server_version")
            raise StoreUnavailable(f"the database {self.url} is PostgreSQL {named}; {OLDEST} or newer is wanted")
        encoding = info.parameter_status("server_encoding")
        if encoding not in _ENCODINGS:
            raise StoreUnavailable(
                f"the database {self.url} is encoded in {encoding}, which lacks characters: make it with UTF8"
            )

    def engine(self, *, writes: bool = False) -> Engine:
        """A Core engine; a question sees one moment, as on SQLite."""
        return create_engine(
            "postgresql+psycopg://",
            creator=lambda: self.driver(autocommit=False, patient=writes),
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
    def unblock(session: Any, error: BaseException) -> bool:
        """Where a lock was waited for in vain: throw out who was stopped while it held some; whether there was any."""
        if not isinstance(error, psycopg.errors.LockNotAvailable):
            return False
        try:
            (ended,) = session.execute(_STOPPED, [SERVING, IDLE_FOR]).fetchone() or (0,)
        except psycopg.Error:  # an engine that only speaks the protocol
            return False
        return bool(ended)

    @staticmethod
    def end_stopped(connection: Connection) -> int:
        """Throw out who was stopped in the middle of a pipeline, wanted or not; how many."""
        try:
            return int(connection.exec_driver_sql(_STOPPED, (SERVING, IDLE_FOR)).scalar_one())
        except ProgrammingError:  # an engine that only speaks the protocol
            return 0

    @staticmethod
    def tidy(_connection: Any, _changes: int) -> None:
        """Nothing to do: the server sees to it."""

    @staticmethod
    @contextmanager
    def pipeline(connection: Any) -> Iterator[None]:
        """All statements in here go out together: one way to the server for a batch."""
        with connection.connection.pipeline():
            yield

    def claim_for_serving(self) -> _Anybody:
        """Anybody may."""
        return _Anybody()
