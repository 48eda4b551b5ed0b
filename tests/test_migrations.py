"""Migrations: they make exactly the schema of the code, again and again, whole or not at all."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from alembic import op
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from receiver.store import migrations
from receiver.store.dialect import open_dialect, sqlite
from receiver.store.schema import metadata


def url_of(folder: Path) -> str:
    """A file that is not there yet."""
    return f"sqlite:///{folder / 'receiver.db'}"


def tables(url: str) -> set[str]:
    """The tables that are there."""
    with closing(open_dialect(url).connect()) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


@pytest.mark.filterwarnings("ignore:.*expression-based index")
def test_migrations_make_exactly_the_schema(tmp_path: Path) -> None:
    """Tables, columns, types, defaults and indexes: nothing is missing and nothing is left over."""
    url = url_of(tmp_path)
    migrations.upgrade(url)
    engine = open_dialect(url).engine()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_indexes_are_the_same_to_the_letter(tmp_path: Path) -> None:
    """Autogenerate compares neither conditions nor expressions, so this does, on the file against the code."""
    made, wanted = url_of(tmp_path), f"sqlite:///{tmp_path / 'wanted.db'}"
    migrations.upgrade(made)
    engine = open_dialect(wanted).engine()
    metadata.create_all(engine)
    engine.dispose()
    question = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name"
    with closing(open_dialect(made).connect()) as one, closing(open_dialect(wanted).connect()) as two:
        there = one.execute(question).fetchall()
        assert there == two.execute(question).fetchall()
    assert {name for name, _ in there} == {one.name for table in metadata.tables.values() for one in table.indexes}
    assert sum(" WHERE " in sql for _, sql in there) >= 5


def test_files_are_numbered_as_their_migrations() -> None:
    """A start that finds all done reads the numbers off the files: they are Alembic's own chain, oldest first."""
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    chain = [(script.revision, Path(script.path).name[:4]) for script in scripts.walk_revisions()][::-1]
    assert [number for _, number in chain] == [revision for revision, _ in chain] == migrations.known()


def test_a_start_that_finds_all_done_does_without_alembic(tmp_path: Path) -> None:
    """Nor does a service without chat load Jinja: together half a second of a start."""
    url = url_of(tmp_path)
    migrations.upgrade(url)
    code = (
        "import sys, receiver.app\nfrom receiver.store import migrations\n"
        f"assert migrations.upgrade({url!r}).schema.fits\nprint(sorted({{'alembic', 'jinja2'}} & sys.modules.keys()))"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "[]"


def test_an_upgrade_can_be_repeated(tmp_path: Path) -> None:
    """The second one changes nothing, and what is stored stays."""
    url = url_of(tmp_path)
    assert migrations.current(url) is None
    assert migrations.upgrade(url).schema.at == migrations.head() == migrations.current(url)
    with closing(open_dialect(url).connect()) as connection:
        connection.execute("INSERT INTO counters (name, value) VALUES ('kept', 1)")
    migrations.upgrade(url)
    with closing(open_dialect(url).connect()) as connection:
        assert connection.execute("SELECT value FROM counters WHERE name = 'kept'").fetchall() == [(1,)]


def test_an_upgrade_that_dies_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole or not at all: the next start begins where this one did, and is not stopped by half a schema."""
    url = url_of(tmp_path)
    create = op.create_table
    made: list[str] = []

    def die(name: str, *columns: object, **more: object) -> object:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(name)
        return create(name, *columns, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(op, "create_table", die)
    with pytest.raises(KeyboardInterrupt):
        migrations.upgrade(url)
    monkeypatch.undo()
    assert tables(url) == set()
    migrations.upgrade(url)
    assert tables(url) == {*metadata.tables, "alembic_version"}


def test_what_a_migration_keeps_aside_is_no_memory(tmp_path: Path) -> None:
    """A table that is dropped or written anew may be larger than the memory: SQLite keeps it in a file meanwhile."""
    url = url_of(tmp_path)
    migrations.upgrade(url)
    for writes, kept in ((True, 1), (False, 2)):  # FILE, MEMORY
        engine = open_dialect(url).engine(writes=writes)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA temp_store").scalar() == kept
        engine.dispose()


def test_an_upgrade_waits_for_another(tmp_path: Path) -> None:
    """It takes the write lock before it looks, so two at once do not both create the tables."""
    url = url_of(tmp_path)
    dialect = open_dialect(url)
    statements: list[str] = []
    with closing(dialect.connect()) as connection:
        connection.execute("CREATE TABLE unrelated (x)")
    real = sqlite3.connect

    class Traced(sqlite3.Connection):
        def __init__(self, *given: object, **more: object) -> None:
            super().__init__(*given, **more)  # type: ignore[arg-type]
            self.set_trace_callback(statements.append)

    def connect(*given: object, **more: object) -> sqlite3.Connection:
        return real(*given, **{**more, "factory": Traced})  # type: ignore[call-overload, no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect)
        patch.setattr("sqlite3.dbapi2.connect", connect)
        migrations.upgrade(url)
    begins = [n for n, sql in enumerate(statements) if sql.startswith("BEGIN")]
    creates = [n for n, sql in enumerate(statements) if "CREATE TABLE" in sql]
    commits = [n for n, sql in enumerate(statements) if sql.startswith("COMMIT")]
    assert statements[begins[-1]] == "BEGIN IMMEDIATE"
    assert begins[-1] < creates[0] <= creates[-1] < commits[0]
    assert len(commits) == 1


def test_a_migration_waits_for_another_however_long_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file is copied and written anew under its lock: longer than any statement waits for one."""
    monkeypatch.setattr(sqlite, "_PRAGMAS", (*sqlite._PRAGMAS, "PRAGMA busy_timeout=50"))
    url = url_of(tmp_path)
    dialect = open_dialect(url)
    dialect.prepare()
    with closing(dialect.connect()) as another:
        another.execute("BEGIN IMMEDIATE")
        ends = threading.Timer(0.5, another.execute, ["ROLLBACK"])
        ends.start()
        assert migrations.upgrade(url).schema.fits
        ends.join()
