"""SQLite: one file and one serving process.

WAL mode with `synchronous=FULL`: an answer given after COMMIT survives a power cut, and readers never wait for the
writer. The one writer thread begins with `BEGIN IMMEDIATE`, so two processes cannot both read and then both write.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import fcntl
import operator
import os
import sqlite3
import time
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson
from sqlalchemy import bindparam, create_engine, event, func, literal_column, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import OperationalError

from receiver.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import ColumnElement, Connection, Engine, Select
    from sqlalchemy.engine.interfaces import Dialect as CoreDialect

BUSY_FOR_MS = 5_000
"""How long a statement waits for another process's lock."""
MIGRATING_FOR = 600.0
"""Seconds: how long a migration waits for another: a large file is copied, and perhaps written anew, under its lock."""

_PRAGMAS = (
    "PRAGMA page_size=8192",  # for a new file: an event with its envelope fills half of a smaller page
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    f"PRAGMA busy_timeout={BUSY_FOR_MS}",
    "PRAGMA wal_autocheckpoint=4000",  # large rows get that far before `tidy` sees to it
    "PRAGMA journal_size_limit=67108864",
    "PRAGMA cache_size=-32000",
    "PRAGMA temp_store=MEMORY",
)

# The driver looks for an adapter of every cell that is no number and no text; where none is registered it asks the cell
# itself for two methods that it does not have, which costs 2,000 instructions and not 600.
sqlite3.register_adapter(type(None), {None: None}.get)
sqlite3.register_adapter(bytes, operator.itemgetter(slice(None)))

_CHECKPOINT_PAGES = 1000
_COMMIT_PAGES, _ROWS_A_PAGE = 16, 4
"""About as many a COMMIT writes whatever is in it, and about as many rows share one of the others."""

_MULTITHREAD, _MEMSTATUS = 2, 9
"""sqlite3.h: SQLITE_CONFIG_MULTITHREAD, SQLITE_CONFIG_MEMSTATUS."""


def take_fewer_locks() -> None:
    """Have the library take no lock for each cell, and none to keep count of its memory (hundreds a callback).

    A connection is then only safe with one thread at a time, which all of ours are: the writer has its own, the pool
    lends the others. To be called before this process has opened any database, since the library is set up anew. A
    library that is part of the interpreter is left as it is.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(_sqlite3.__file__)
        library.sqlite3_shutdown()
        library.sqlite3_config.argtypes = [ctypes.c_int]  # what follows is variadic, which some machines pass otherwise
        library.sqlite3_config(_MULTITHREAD)
        library.sqlite3_config(_MEMSTATUS, ctypes.c_int(0))
        library.sqlite3_initialize()


class SQLite:
    """The embedded engine: one file, one serving process."""

    name = "sqlite"
    is_shared: Literal[False] = False
    error: type[Exception] = sqlite3.Error
    core: CoreDialect = sqlite.dialect(paramstyle="qmark")
    begin = "BEGIN IMMEDIATE"
    readers = 2

    def __init__(self, path: Path) -> None:
        """`path`: the database file; its folder must exist."""
        self.path = path
        self._pages = 0

    @property
    def url(self) -> str:
        """The URL as SQLAlchemy wants it."""
        return f"sqlite:///{self.path}"

    def prepare(self) -> None:
        """Make the file."""
        self.connect().close()

    def hurry(self) -> None:
        """Nothing to do: a disk is waited for."""

    def hold(self, _connection: Connection) -> None:
        """Nothing to do: `BEGIN IMMEDIATE` has the file's one write lock."""

    def set_aside(self, name: str) -> Path:
        """Copy the file as it is now to one beside it, `<file>.<name>`, which is made anew, never written over.

        To be called under the write lock, which keeps everybody from changing the file meanwhile; what is in its WAL is
        in the copy too.

        Raises:
            StoreUnavailable: it cannot be copied whole; there is no copy then.
        """
        names = (f"{self.path}.{name}{nth}" for nth in ("", *(f"-{number}" for number in range(2, 100))))
        copy = next(path for path in map(Path, names) if not path.exists())
        part = Path(f"{copy}.part")
        try:
            part.unlink(missing_ok=True)
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            with closing(sqlite3.connect(self.path)) as ours, closing(sqlite3.connect(part)) as theirs:
                ours.backup(theirs)
            part.rename(copy)
            _sync(copy.parent)
        except (sqlite3.Error, OSError) as error:
            part.unlink(missing_ok=True)
            size = f"{self.path.stat().st_size / 1024**2:.0f} MiB"
            raise StoreUnavailable(
                f"nothing was migrated: {self.path} ({size}) cannot be copied to {copy} before: {error}"
            ) from error
        return copy

    def connect(self) -> sqlite3.Connection:
        """A connection without implicit transactions.

        Raises:
            StoreUnavailable: the file cannot be opened.
        """
        try:
            # Prompts and inputs are nobody else's business; the files beside it take its mode.
            # One that is there is never opened but by SQLite: to close it would drop all locks this process has on it.
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            for pragma in _PRAGMAS:
                connection.execute(pragma)
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"cannot open the database {self.path}: {error}") from error
        return connection

    def exists(self) -> bool:
        """Whether there is a file to look at: looking must not make one."""
        return self.path.exists()

    def engine(self, *, writes: bool = False) -> Engine:
        """A Core engine; transactions are begun by us, not by the driver.

        That would leave the DDL of a migration outside of them, and let each statement of a question see another
        moment.
        """
        begin = self.begin if writes else "BEGIN"
        engine = create_engine(self.url)

        @event.listens_for(engine, "connect")
        def _prepare(connection: sqlite3.Connection, _record: Any) -> None:
            connection.isolation_level = None
            for pragma in _PRAGMAS:
                connection.execute(pragma)
            if writes:  # a table that is dropped is kept aside until then, and may be larger than the memory
                connection.execute("PRAGMA temp_store=FILE")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            ends = time.monotonic() + MIGRATING_FOR
            while True:
                try:
                    connection.exec_driver_sql(begin)
                except OperationalError as error:  # between two tries a Ctrl-C is heard
                    is_busy = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
                    if not (writes and is_busy and time.monotonic() < ends):
                        raise
                else:
                    return

        return engine

    @staticmethod
    def among(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """`column IN (…)`."""
        return column.in_(_listed(name))

    @staticmethod
    def not_among(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """`column NOT IN (…)`."""
        return column.not_in(_listed(name))

    @staticmethod
    def values(values: Iterable[str | None]) -> str:
        """The values of that parameter."""
        return orjson.dumps(list(values)).decode()

    @staticmethod
    def is_outage(error: BaseException) -> bool:
        """Whether the engine itself cannot work now (disk full, locked, I/O error), as against a faulty statement."""
        # A damaged file is a plain DatabaseError; its subclasses but this one are about a statement or its values.
        return isinstance(error, sqlite3.OperationalError | StoreUnavailable) or type(error) is sqlite3.DatabaseError

    @staticmethod
    def is_passing(_error: BaseException) -> bool:
        """Whether the same ops may well succeed at once: no, nobody else writes."""
        return False

    @staticmethod
    def unblock(_session: Any, _error: BaseException) -> bool:
        """Nobody is thrown out: a process that dies lets go of its locks."""
        return False

    def tidy(self, connection: Any, changes: int) -> None:
        """Copy what was committed from the WAL into the file once it is much; `changes` rows have come since last time.

        In a COMMIT, where SQLite does it by itself, whoever waits for that would wait for this, 5 to 10 ms. What goes
        wrong here costs nothing: what is in the WAL is durable, and is copied the next time.
        """
        self._pages += _COMMIT_PAGES + changes // _ROWS_A_PAGE
        if self._pages >= _CHECKPOINT_PAGES:
            self._pages = 0
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    @staticmethod
    def pipeline(_connection: Any) -> AbstractContextManager[Any]:
        """Nothing to save: a statement is a call, not a way over a network."""
        return nullcontext()

    def claim_for_serving(self) -> ServeLock:
        """Take the lock that only a serving process holds; readers and commands work beside it.

        Raises:
            StoreUnavailable: another process serves this file.
        """
        return ServeLock(Path(f"{self.path.resolve()}.lock"))  # whatever links lead to it


def _sync(folder: Path) -> None:
    """A new name in a folder is there after a power cut only once the folder was written."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _listed(name: str) -> Select[Any]:
    return select(literal_column("value")).select_from(func.json_each(bindparam(name)).table_valued("value"))


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
                f"a `receiver serve` (process {holder}) already serves {path.with_suffix('')}: stop it first, or name "
                "another file in database.url"
            ) from error
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Give it back."""
        self._file.close()
