"""The databases that tests work on: the engine of this moment, and new databases of it with the schema in them.

A test file with the mark `engines` runs once on each engine (conftest.py); all others run on SQLite. What harnesses
need they get here, so that no test says which engine it is on, unless it is about that engine: those have the mark
`engine("sqlite")` or `engine("postgresql")`.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from alembic import command
from alembic.config import Config

from receiver.store import migrations
from receiver.store.dialect import open_dialect
from tests import postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

    from receiver.store import Store

ENGINES = ("sqlite", "postgresql")


@dataclass
class Moment:
    """The engine of this moment, and the databases that were made on the server and are still there."""

    engine: str = "sqlite"
    made: list[str] = field(default_factory=list)
    count: int = 0
    server: postgres.Server | None = None


now = Moment()


def need() -> None:
    """There must be a PostgreSQL: without one a test is skipped, and fails in CI."""
    if postgres.programs() is None:
        if os.environ.get("CI"):
            raise FileNotFoundError(f"no PostgreSQL, and CI runs every test; to install it: {postgres.INSTALL}")
        pytest.skip(f"no PostgreSQL on this machine; to install it: {postgres.INSTALL}")


def use(engine: str) -> None:
    """Work on this engine from now on."""
    if engine == "postgresql":
        need()
    now.engine = engine


def new(folder: Path) -> str:
    """The URL of a new database with the schema in it; `folder` is where a file would be."""
    if now.engine == "postgresql":
        return _on_server("CREATE DATABASE {name} TEMPLATE {schema} STRATEGY wal_log", schema=_schema())
    shutil.copy(_file_with_schema(), folder / "receiver.db")
    return empty(folder)


def empty(folder: Path) -> str:
    """The URL of a database with nothing in it."""
    if now.engine == "postgresql":
        return _on_server("CREATE DATABASE {name}")
    return f"sqlite:///{folder / 'receiver.db'}"


def older(url: str, revision: str, *statements: str) -> None:
    """Bring an empty database up to an older schema only, and run these statements on it."""
    dialect = open_dialect(url)
    dialect.prepare()
    engine, config = dialect.engine(writes=True), Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def twin(url: str, folder: Path) -> str:
    """The URL of a new copy of a file that nobody works on."""
    now.count += 1
    copy = folder / f"twin_{now.count}.db"
    shutil.copy(_path(url), copy)
    return f"sqlite:///{copy}"


def ask(url: str, question: str) -> list[Any]:
    """What a connection of its own reads; it changes nothing, not even what a killed process left."""
    beside: Any
    if url.startswith("postgresql"):
        beside = open_dialect(url).connect()
    else:
        beside = sqlite3.connect(f"file:{_path(url)}?mode=ro", uri=True)
    with closing(beside):
        found: list[Any] = beside.execute(question).fetchall()
        return found


def change(url: str, statement: str, *values: Any) -> None:
    """Change the database behind everybody's back; `?` stands for a value on every engine."""
    dialect = open_dialect(url)
    beside: Any = dialect.connect()
    with closing(beside):
        beside.execute(statement.replace("?", "%s") if dialect.is_shared else statement, values)


def is_sound(url: str) -> bool:
    """No page of the file is damaged."""
    return ask(url, "PRAGMA integrity_check") == [("ok",)]


class Outage:
    """A database that can be read and where nothing can be committed, from `begin` to `end`."""

    def __init__(self, store: Store) -> None:
        """The database of this store, for all its processes."""
        self._store = store
        self._beside: Any = None

    def begin(self) -> None:
        """SQLite: somebody else has the lock. PostgreSQL: the sessions are gone, and new ones are read only."""
        if self._store.dialect.is_shared:
            self._on_server("ALTER DATABASE {name} SET default_transaction_read_only = on")
            return
        self._store.writer._connection.execute("PRAGMA busy_timeout=10")
        self._beside = self._store.dialect.connect()
        self._beside.execute("BEGIN IMMEDIATE")

    def end(self) -> None:
        """All is as before; a second end is none."""
        if self._store.dialect.is_shared:
            self._on_server("ALTER DATABASE {name} RESET default_transaction_read_only")
        elif self._beside is not None:
            self._beside.execute("ROLLBACK")
            self._beside.close()
            self._beside = None

    def _on_server(self, statement: str) -> None:
        name = _name(self._store.dialect.url)
        server().run(statement, name=name)
        server().run(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'")


@contextmanager
def outage(store: Store) -> Iterator[None]:
    """One around the block."""
    away = Outage(store)
    away.begin()
    try:
        yield
    finally:
        away.end()


def trouble(store: Store, words: str) -> Exception:
    """What the driver raises where the engine itself is in trouble."""
    return psycopg.OperationalError(words) if store.dialect.is_shared else sqlite3.OperationalError(words)


@contextmanager
def forbidden(store: Store, what: str, table: str) -> Iterator[None]:
    """`what` (an UPDATE, say) of this table fails with an error of the statement that says "forbidden"."""
    when = f"CREATE TRIGGER forbids BEFORE {what} ON {table}"
    if store.dialect.is_shared:
        body = "BEGIN RAISE EXCEPTION 'forbidden'; END"
        make = [f"CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS '{body.replace(chr(39), chr(39) * 2)}'"]
        make.append(f"{when} FOR EACH ROW EXECUTE FUNCTION forbid()")
        undo = [f"DROP TRIGGER forbids ON {table}", "DROP FUNCTION forbid"]
    else:
        make, undo = [f"{when} BEGIN SELECT RAISE(ABORT, 'forbidden'); END"], ["DROP TRIGGER forbids"]
    beside: Any = store.dialect.connect()
    with closing(beside):
        for statement in make:
            beside.execute(statement)
        try:
            yield
        finally:
            for statement in undo:
                beside.execute(statement)


def server() -> postgres.Server:
    """The server of this process, started when it is first asked for."""
    if now.server is None:
        now.server = postgres.launch()
    return now.server


def drop(*, keep: int = 0) -> None:
    """Drop what was made on the server since it was `keep` databases."""
    while len(now.made) > keep:
        server().run("DROP DATABASE {name} WITH (FORCE)", name=now.made.pop())


def end() -> None:
    """Nothing runs after this."""
    if now.server is not None:
        now.server.remove()
        now.server = None


def _on_server(statement: str, **names: str) -> str:
    now.count += 1
    name = f"test_{now.count}"
    server().run(statement, name=name, **names)
    now.made.append(name)
    return server().url(name)


def _name(url: str) -> str:
    return url.rpartition("/")[2]


def _path(url: str) -> str:
    return url.removeprefix("sqlite:///")


@cache
def _schema() -> str:
    server().run("CREATE DATABASE {name}", name="with_schema")
    migrations.upgrade(server().url("with_schema"))
    return "with_schema"


@cache
def _file_with_schema() -> Path:
    path = Path(tempfile.mkdtemp(prefix="receiver-test-")) / "template.db"
    migrations.upgrade(f"sqlite:///{path}")
    return path
