"""What differs between the engines, and nothing else: connecting, asking for many ids at once, telling errors apart.

SQLite runs in WAL mode with `synchronous=FULL`: an answer given after COMMIT survives a power cut, and readers never
wait for the writer. The one writer thread begins with `BEGIN IMMEDIATE`, so two processes cannot both read and then
both write.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import bindparam, create_engine, event, func, select
from sqlalchemy.dialects import sqlite

from receiver.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import ColumnElement, Connection, Engine
    from sqlalchemy.engine.interfaces import Dialect as CoreDialect

BUSY_FOR_MS = 5_000
"""How long a statement waits for another process's lock."""

_PRAGMAS = (
    "PRAGMA page_size=8192",  # for a new file: an event with its envelope fills half of a smaller page
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    f"PRAGMA busy_timeout={BUSY_FOR_MS}",
    "PRAGMA wal_autocheckpoint=1000",
    "PRAGMA journal_size_limit=67108864",
    "PRAGMA cache_size=-32000",
    "PRAGMA temp_store=MEMORY",
)


class SQLite:
    """The embedded engine: one file, one serving process."""

    name = "sqlite"
    error: type[Exception] = sqlite3.Error
    """What the driver raises by itself."""
    core: CoreDialect = sqlite.dialect(paramstyle="qmark")

    def __init__(self, path: Path) -> None:
        """`path`: the database file; its folder must exist."""
        self.path = path

    @property
    def url(self) -> str:
        """The URL as SQLAlchemy wants it."""
        return f"sqlite:///{self.path}"

    def connect(self) -> sqlite3.Connection:
        """A connection without implicit transactions.

        Raises:
            StoreUnavailable: the file cannot be opened.
        """
        try:
            # Prompts and inputs are nobody else's business; the files beside it take its mode.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            for pragma in _PRAGMAS:
                connection.execute(pragma)
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"cannot open the database {self.path}: {error}") from error
        return connection

    def engine(self, begin: str = "BEGIN") -> Engine:
        """A Core engine for migrations and for questions that are not on the hot path.

        Transactions are begun by `begin`, not by the driver: that would leave the DDL of a migration outside of them,
        and let each statement of one question see another moment.
        """
        engine = create_engine(self.url)

        @event.listens_for(engine, "connect")
        def _prepare(connection: sqlite3.Connection, _record: Any) -> None:
            connection.isolation_level = None
            for pragma in _PRAGMAS:
                connection.execute(pragma)

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        return engine

    begin = "BEGIN IMMEDIATE"

    @staticmethod
    def among(column: ColumnElement[str], name: str) -> ColumnElement[bool]:
        """`column IN (…)` with all ids in ONE parameter called `name`, so the statement is compiled once."""
        listed = func.json_each(bindparam(name)).table_valued("value")
        return column.in_(select(listed.c.value))

    @staticmethod
    def ids(ids: Iterable[str]) -> str:
        """The ids as the value of that parameter."""
        return orjson.dumps(list(ids)).decode()

    @staticmethod
    def is_outage(error: BaseException) -> bool:
        """Whether the engine itself cannot work now (disk full, locked, I/O error), as against a faulty statement."""
        # A damaged file is a plain DatabaseError; its subclasses but this one are about a statement or its values.
        return isinstance(error, sqlite3.OperationalError | StoreUnavailable) or type(error) is sqlite3.DatabaseError

    def claim_for_serving(self) -> ServeLock:
        """Take the lock that only a serving process holds; readers and commands work beside it.

        Raises:
            StoreUnavailable: another process serves this file.
        """
        return ServeLock(Path(f"{self.path}.lock"))


class ServeLock:
    """An advisory lock on a file beside the database; the kernel frees it when its process dies."""

    def __init__(self, path: Path) -> None:
        """Take it, or say who has it."""
        try:
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+")
        except OSError as error:
            raise StoreUnavailable(f"cannot make the lock file {path} beside the database: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise StoreUnavailable(
                f"another `receiver serve` (process {holder}) already serves {path.with_suffix('')}: "
                "stop it first, or give this one its own database.url"
            ) from error
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Give it back."""
        self._file.close()


Dialect = SQLite


def open_dialect(url: str) -> Dialect:
    """The engine behind a `database.url` that config has checked (`sqlite:///relative` or `sqlite:////absolute`)."""
    return SQLite(Path(url.removeprefix("sqlite:///").partition("?")[0]))
