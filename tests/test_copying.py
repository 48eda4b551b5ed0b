"""`receiver db copy`: all of a stopped SQLite installation is in PostgreSQL afterwards, or nothing is."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from receiver.errors import Conflict, NotFound, StoreUnavailable
from receiver.store import copying, migrations
from receiver.store.dialect import SQLite, open_dialect
from receiver.store.dialect.postgres import Postgres
from receiver.store.schema import metadata
from tests import databases
from tests.cli_world import environment, receiver
from tests.rooms import a_delivery, a_task, an_event, opened, put

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ODD = "Grüße 🎬 \u202e\ttab\nline \\N \\. \"quoted\" 'so' \x01 e\u0301"
"""What a copy could trip over: the signs of COPY's own text form among them."""


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Postgres]:
    """An empty database on the server of the tests."""
    databases.use("postgresql")
    yield Postgres(databases.empty(tmp_path))
    databases.drop()
    databases.use("sqlite")


@pytest.fixture
def source(tmp_path: Path) -> SQLite:
    """A stopped installation: every table has a row, every kind of value is somewhere, and nothing where it may be."""
    folder = tmp_path / "source"
    folder.mkdir()
    databases.use("sqlite")
    asyncio.run(_filled(folder))
    dialect = SQLite(folder / "receiver.db")
    with closing(dialect.connect()) as connection:
        connection.execute("INSERT INTO payloads VALUES ('tsk_1', ?)", (bytes(range(256)),))
        connection.execute("INSERT INTO writers VALUES ('a process that is gone', 7, 1)")
        for table in metadata.sorted_tables:
            if connection.execute(f"SELECT count(*) FROM {table.name}").fetchone() == (0,):
                needed = [column for column in table.columns if not column.nullable and column.server_default is None]
                values = [b"\0\xff" if str(column.type) == "BLOB" else "1" for column in needed]
                names, marks = ", ".join(column.name for column in needed), ", ".join("?" for _ in needed)
                connection.execute(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", values)
    return dialect


async def _filled(folder: Path) -> None:
    async with opened(folder) as store:
        task = a_task("succeeded", prompt=ODD, confirmed=True, code=2**62, msg="")
        event = an_event(task)
        await put(store, task, event, a_delivery(event, state="delivered"), a_task("pending"))


def rows(place: SQLite | Postgres, table: str) -> list[tuple[Any, ...]]:
    """A table's rows, as a question of our code would read them."""
    engine = place.engine()
    with engine.connect() as connection:
        found = connection.execute(metadata.tables[table].select()).fetchall()
    engine.dispose()
    return sorted(map(tuple, found), key=repr)


def there(place: Postgres) -> list[str]:
    """The tables in the target, in whatever schema."""
    with psycopg.connect(place._url) as connection:
        asked = "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname NOT LIKE ALL(%s) ORDER BY 1"
        return [name for (name,) in connection.execute(asked, [["pg_%", "information_schema"]])]


def refused(source: SQLite, target: Postgres, words: str, error: type[Exception] = Conflict) -> None:
    """It is refused with these words, and the target is as it was."""
    before = there(target)
    with pytest.raises(error, match=words):
        copying.copy(source, target)
    assert there(target) == before


def test_every_row_is_the_same_on_the_other_side(source: SQLite, target: Postgres) -> None:
    """By our own reading of both, and by counts and checksums; only the marks of dead writers stay behind."""
    told = copying.copy(source, target)
    assert migrations.look(target._url).fits
    assert [one.table for one in told.tables] == sorted(set(metadata.tables) - {"writers"})
    for one in told.tables:
        found = rows(target, one.table)
        assert found == rows(source, one.table)
        assert one.rows == len(found) > 0
    assert len({one.checksum for one in told.tables}) == len(told.tables)
    assert (told.replaced, told.aside) == (0, None)
    assert rows(target, "writers") == []


def test_a_checksum_tells_values_apart_and_not_their_order() -> None:
    """Text from bytes, a number from its digits, nothing from emptiness; rows may come in any order."""
    table = metadata.tables["tasks"]
    values: list[Any] = ["1", b"1", 1, None, "", b"", True, "true"]
    sums = {copying._count(table, [[value]]).checksum for value in values}
    assert len(sums) == len(values)
    assert copying._count(table, [[1], [2]]) == copying._count(table, [[2], [1]])
    assert copying._count(table, [[1], [1]]) != copying._count(table, [[2], [2]])
    assert copying._count(table, [["a", "bc"]]) != copying._count(table, [["ab", "c"]])


def test_a_nul_character_is_replaced_and_told_of(source: SQLite, target: Postgres) -> None:
    """PostgreSQL cannot hold one in text; in bytes it stays."""
    with closing(source.connect()) as connection:
        connection.execute("UPDATE tasks SET prompt = ?, msg = ?", ("a\0b\0", "\0"))
    told = copying.copy(source, target)
    assert told.replaced == 4
    assert {(row[10], row[12]) for row in rows(target, "tasks")} == {("a\ufffdb\ufffd", "\ufffd")}
    assert (bytes(range(256)),) in [row[1:] for row in rows(target, "payloads")]


def test_a_copy_that_is_not_the_same_is_undone(source: SQLite, target: Postgres) -> None:
    """A trigger at the target that changes a value, or drops a row: it is found, and nothing stays."""
    migrations.upgrade(target._url)
    for body in ("NEW.msg := 'changed'; RETURN NEW;", "RETURN NULL;"):
        with psycopg.connect(target._url, options="-csearch_path=receiver") as connection:
            connection.execute(
                f"CREATE OR REPLACE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$"
            )
            connection.execute(
                "CREATE OR REPLACE TRIGGER spoils BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION spoil()"
            )
        refused(source, target, r"the copy of tasks is not the same: 2 rows .* nothing was copied")
        assert all(rows(target, name) == [] for name in metadata.tables if name != "counters")
        assert rows(target, "counters") == [("event_seq", 0)]


def test_what_does_not_fit_is_named_and_undone(source: SQLite, target: Postgres) -> None:
    """SQLite does not count characters: the table, the row and the column, but not the value."""
    with closing(source.connect()) as connection:
        connection.execute("UPDATE tasks SET route = ?", ("x" * 99,))
    refused(source, target, "does not fit into .* too long .* COPY tasks, line 1, column route$")
    assert there(target) == []


def test_a_target_that_has_anything_is_refused(source: SQLite, target: Postgres) -> None:
    """What is there is named and stays; one that was only made ready, or served nothing yet, is empty."""
    migrations.upgrade(target._url)
    with closing(target.connect()) as connection:
        connection.execute("INSERT INTO writers VALUES ('another', 1, 1)")
        connection.execute("INSERT INTO refusals VALUES ('r', 1, 'forged', 'POST', 1)")
        connection.execute("INSERT INTO payloads VALUES ('tsk_2', '')")
    refused(source, target, r"is not empty.*payloads \(1\), refusals \(1\)\nName an empty database")
    with closing(target.connect()) as connection:
        connection.execute("DELETE FROM refusals")
        connection.execute("DELETE FROM payloads")
        connection.execute("UPDATE counters SET value = 3")
    refused(source, target, r"is not empty.*counters \(1\)\n")
    with closing(target.connect()) as connection:
        connection.execute("UPDATE counters SET value = 0")
    copying.copy(source, target)
    refused(source, target, r"is not empty.*tasks \(2\)\n")
    assert rows(target, "tasks") == rows(source, "tasks")


def test_a_source_that_is_served_is_refused(source: SQLite, target: Postgres) -> None:
    """It takes the lock of `serve`, and gives it back."""
    lock = source.claim_for_serving()
    refused(source, target, "already serves")
    lock.release()
    copying.copy(source, target)
    source.claim_for_serving().release()


def test_a_source_that_is_not_there_is_not_made(tmp_path: Path, target: Postgres) -> None:
    """It is told, and no file appears."""
    refused(SQLite(tmp_path / "nothing.db"), target, "there is no database", NotFound)
    assert list(tmp_path.glob("nothing*")) == []


def test_a_source_of_an_older_release_is_brought_up_to_date_first(source: SQLite, target: Postgres) -> None:
    """After its own copy was made; a newer one is left to the newer release."""
    with closing(source.connect()) as connection:
        connection.execute("CREATE INDEX events_by_task ON events (task_id)")
        connection.execute("UPDATE alembic_version SET version_num = '0006'")
    told = copying.copy(source, target)
    assert told.aside == source.path.with_name(f"receiver.db.before-{migrations.head()}")
    with closing(source.connect()) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9000'")
        connection.execute("INSERT INTO counters VALUES ('schema_floor', 1)")
    refused(source, target, "but not copy it: run that release")


def test_a_source_that_is_damaged_is_told(source: SQLite, target: Postgres) -> None:
    """Half of it is there: what SQLite says, and nothing at the target."""
    with closing(source.connect()) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with source.path.open("r+b") as file:
        file.seek(16384)
        file.write(b"\xff" * 60_000)
    refused(source, target, "malformed|not a database", StoreUnavailable)
    assert there(target) == []


def test_a_copy_that_is_killed_leaves_nothing(source: SQLite, target: Postgres) -> None:
    """SIGKILL in the middle: the target is empty, the source is whole and unlocked, and a second run succeeds."""
    with psycopg.connect(target._url, autocommit=True) as beside:
        migrations.upgrade(target._url)
        # An open transaction that has read a table keeps its lock from the copy, which waits in the middle of its own.
        beside.execute("BEGIN; SELECT * FROM receiver.tasks")
        code = (
            "from receiver.store import copying\nfrom receiver.store.dialect import open_dialect as at\n"
            f"copying.copy(at({source.url!r}), at({target._url!r}))"
        )
        process = subprocess.Popen([sys.executable, "-c", code], env=environment(), stderr=subprocess.PIPE)
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        with psycopg.connect(target._url, autocommit=True) as watching:
            while watching.execute(waiting).fetchone() == (0,):
                assert process.poll() is None
            process.kill()
            process.communicate(timeout=10)
            beside.execute("ROLLBACK")
            while watching.execute(waiting).fetchone() != (0,):
                pass
    assert rows(target, "tasks") == []
    copying.copy(source, target)
    assert len(rows(target, "tasks")) == 2


# -- the command -------------------------------------------------------------------------------------------------------


def copied(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`receiver db copy` of the database in this folder."""
    env = {"RECEIVER_DATABASE__URL": f"sqlite:///{folder / 'receiver.db'}"}
    return receiver("db", "copy", *arguments, cwd=folder, env=env)


def test_the_command_counts_verifies_and_says_what_is_next(source: SQLite, target: Postgres) -> None:
    """0: a line for each table, and what to do; 1 for the second time. The password is nowhere."""
    url = target._url.replace("postgres@", "postgres:SEKRIT@", 1)
    folder = source.path.parent
    done = copied(folder, "--to", url)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines() if line.startswith("tasks")] == [["tasks", "2"]]
    for words in ("Copied and verified", "Set database.url", "Never serve"):
        assert words in done.stdout
    again = copied(folder, "--to", url, "--json")
    assert (again.returncode, again.stdout) == (1, "")
    assert "is not empty" in again.stderr
    assert "SEKRIT" not in done.stdout + done.stderr + again.stderr


def test_the_command_as_json(source: SQLite, target: Postgres) -> None:
    """The same for a program."""
    done = copied(source.path.parent, "--to", target._url, "--json")
    document = json.loads(done.stdout)
    assert document["tables"]["tasks"]["rows"] == 2
    assert set(document) == {"from", "to", "tables", "replaced_nul", "copy"}
    assert (document["from"], document["copy"], document["replaced_nul"]) == (source.url, None, 0)


@pytest.mark.parametrize(
    ("to", "code", "words"),
    [
        ("sqlite:///other.db", 2, "a URL of PostgreSQL is wanted"),
        ("postgresql://me:SEK/RIT@host/db", 2, "write @ / ? #"),
        ("mysql://me:SEKRIT@host/db", 2, "a URL of PostgreSQL is wanted"),
        ("postgresql://me:SEKRIT@127.0.0.1:1/db", 3, "nothing answers there"),
    ],
)
def test_a_target_that_is_none_is_told_without_its_password(source: SQLite, to: str, code: int, words: str) -> None:
    """2 for a URL that is none, 3 for a server that is not there."""
    ended = copied(source.path.parent, "--to", to)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert words in " ".join(ended.stderr.replace("│", " ").split())
    assert not {"SEKRIT", "SEK", "RIT"} & set(
        ended.stderr.replace(":", " ").replace("@", " ").replace("/", " ").split()
    )


def test_what_is_on_postgresql_already_is_not_copied(tmp_path: Path) -> None:
    """1, and where it is."""
    env = {"RECEIVER_DATABASE__URL": "postgresql://me:SEKRIT@127.0.0.1:1/db"}
    ended = receiver("db", "copy", "--to", "postgresql://127.0.0.1:1/other", cwd=tmp_path, env=env)
    assert (ended.returncode, "is PostgreSQL already (postgresql://me@127.0.0.1:1/db)" in ended.stderr) == (1, True)


def test_two_engines_are_asked_alike() -> None:
    """The type that a column is copied as follows the schema: a new kind of column must be given one here."""
    kinds = {str(column.type).partition("(")[0] for table in metadata.sorted_tables for column in table.columns}
    assert kinds == {"VARCHAR", "TEXT", "BIGINT", "INTEGER", "BOOLEAN", "BLOB"}
    assert open_dialect("sqlite:///x.db").name == "sqlite"
    assert sqlite3.sqlite_version_info >= (3, 35)
