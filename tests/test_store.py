"""The store: every hot statement by an index, one serving process a file, and rows that come back as they went."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from msgspec import NODEFAULT
from msgspec.structs import asdict, fields, replace

from receiver.errors import StoreUnavailable
from receiver.ids import AttemptId, DeliveryId, TaskId
from receiver.records import Attempt, Delivery, Health, Inbox, Refusal, Task
from receiver.store import schema
from receiver.store.dialect import SQLite, open_dialect
from receiver.store.rows import Rows, from_ms, to_ms
from tests import databases
from tests.plans import plan
from tests.rooms import (
    NOW,
    Do,
    a_delivery,
    a_task,
    an_event,
    deliveries_of,
    delivery_of,
    later,
    put,
    rows_of,
    task_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Connection

    from receiver.store import Store
    from receiver.store.rows import Prepared, Write

pytestmark = [pytest.mark.anyio, pytest.mark.engines]


# -- indexes -----------------------------------------------------------------------------------------------------------


def statements(store: Store) -> dict[str, Prepared | Write]:
    """Every prepared statement of the store, by the room that holds it and its name."""
    found = {}
    rooms = (store.tasks, store.deliveries, store.events, store.health, store.replays, store.prune, store._statements)
    for room in rooms:
        for name, value in vars(room).items():
            several = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
            for n, one in enumerate(several):
                if hasattr(one, "sql"):
                    found[f"{type(room).__name__}.{name}{n or ''}"] = one
                elif isinstance(one, Rows):
                    columns = tuple(field for field in one._fields if field not in one._keys)
                    found[f"{type(room).__name__}.{name}.update"] = one._updating(columns)
    return found


BOUNDED = {
    "ReplayQuestions.running": "a partial index of what is running, oldest first",
    "Statements.every_health": "at most as many as there are destinations",
    "EventQuestions.trim_refusals": "at most the kept refusals and one sweep's",
    "DeliveryQuestions.leased": "a partial index of what is leased, and all of it is wanted",
    "DeliveryQuestions.homeless_names": "the partial index of what is pending, once a minute",
    "PruneQuestions.writers_gone": "a row for each process of the last weeks, once a minute, of a shared database",
    "TaskQuestions.next_poll": "the first row of its index",
    "TaskQuestions.senders": "a partial index of what is being sent, and all of it is wanted",
}
"""Statements that read all of something that is small by itself."""
SMALL = {"refusals", "anon_1", "destinations", "writers"}
"""Tables that may be read in whole."""


async def test_no_hot_statement_scans_a_table(store: Store) -> None:
    """Each is answered by an index, so its cost does not grow with what is done."""
    known = statements(store)
    assert len(known) > 20
    for name, prepared in known.items():
        walks = plan(store.dialect.url, prepared.sql).walks
        if name in BOUNDED:
            assert not [(table, index) for table, index in walks if not index and table not in SMALL], (name, walks)
        else:
            assert not walks, (name, prepared.sql, walks)


async def test_no_hot_statement_sorts(store: Store) -> None:
    """The order comes from the index, also where only a few are wanted."""
    for name, prepared in statements(store).items():
        if "ORDER BY" in prepared.sql:
            assert not plan(store.dialect.url, prepared.sql).sorts, name


async def asked(store: Store, question: Callable[[Connection], object]) -> list[str]:
    """The statements of a question to the readers, as the engine gets them."""
    seen: list[str] = []

    def ask(connection: Connection) -> None:
        @sqlalchemy.event.listens_for(connection, "before_cursor_execute")
        def note(_connection: Any, _cursor: Any, sql: str, *_more: Any) -> None:
            seen.append(re.sub(r"%\(\w+\)", "%", sql))

        question(connection)

    await store.read(ask)
    return [sql for sql in seen if sql.startswith("SELECT")]


async def test_a_page_of_tasks_comes_from_an_index(store: Store) -> None:
    """With and without filters: what is listed costs what is shown."""

    def pages(connection: Connection) -> None:
        for states in ((), ("queued",), ("queued", "failed")):
            for before in (None, (NOW, "tsk_x")):
                store.tasks.listed(connection, states=states, before=before, limit=50)

    questions = await asked(store, pages)
    assert len(questions) == 6
    for sql in questions:
        assert plan(store.dialect.url, sql).walks <= {("tasks", "tasks_listed")}, sql


# -- the upstream's ids ------------------------------------------------------------------------------------------------


async def test_an_upstreams_id_is_found_by_an_index(store: Store) -> None:
    """However long the history: each statement goes to a place of an index."""
    old = a_task("succeeded", upstream_id="up-old", created_at=NOW - timedelta(days=40))
    await put(store, old, a_task())
    questions = await asked(store, lambda connection: store.tasks.by_upstream_id(connection, "up-none"))
    assert (
        len(questions) == 5
    )  # when the newest was made, and a day; when the one before that, and more; nothing is left
    for sql in questions:
        assert not plan(store.dialect.url, sql).walks, sql


@pytest.mark.parametrize("hours", [0, 3, 5, 23, 25, 80, 24 * 30, 24 * 365 * 30])
async def test_an_upstreams_id_is_found_however_old_it_is(store: Store, hours: int) -> None:
    """Part by part of its index, past times in which nothing was made."""
    task = a_task("succeeded", upstream_id="up-x", created_at=NOW - timedelta(hours=hours))
    await put(store, task, *(a_task(created_at=NOW - timedelta(hours=at)) for at in (0, 1, 6, 50, 24 * 20)))
    assert await store.read(lambda connection: store.tasks.by_upstream_id(connection, "up-x")) == task
    assert await store.read(lambda connection: store.tasks.by_upstream_id(connection, "up-y")) is None


async def test_of_several_with_an_upstreams_id_the_newest_is_meant(store: Store) -> None:
    """Whether they share a part of the index, or a question, or neither."""
    for minutes in (60 * 24 * 90, 60 * 30, 60 * 5, 2, 1):
        task = a_task(upstream_id="up-x", created_at=NOW - timedelta(minutes=minutes))
        await put(store, task)
        assert await store.read(lambda connection: store.tasks.by_upstream_id(connection, "up-x")) == task


# -- rows --------------------------------------------------------------------------------------------------------------


async def test_what_an_insert_leaves_out_the_table_fills_the_same_way(store: Store) -> None:
    """A column that holds what it holds by itself is not written: the record comes back all the same."""
    task = Task(TaskId("tsk_1"), "runway/pro/video2video", "pending", NOW, "{}")
    event = an_event(task)
    delivery = Delivery(DeliveryId("dlv_1"), event.id, task.id, "sink", "pending", NOW, NOW)
    health = Health("sink")
    statements = store._statements
    made: list[tuple[Rows[Any], Any]] = [
        (statements.tasks, task),
        (statements.deliveries, delivery),
        (statements.destinations, health),
    ]
    for rows, record in made:
        by_itself = {field for field, absent in zip(rows._fields, rows._absent, strict=True) if absent is not NODEFAULT}
        assert len(by_itself) > 8
        assert not any(re.search(rf"\b{name}\b", rows.insert(record).sql) for name in by_itself)

    await put(store, task, event, delivery)
    await store.run(Do(lambda unit: unit.put_health(health)))

    assert await task_of(store, task.id) == task
    assert await delivery_of(store, delivery.id) == delivery
    assert await store.run(Do(lambda unit: unit.every_health())) == [health]


async def test_every_column_comes_back_as_it_went(store: Store) -> None:
    """A task with something in every field, written, changed and read again."""
    full: dict[str, Any] = {}
    for n, field in enumerate(fields(Task)):
        column = schema.tasks.c[field.name]
        kind = column.type.python_type
        timed = field.name.endswith(("_at", "_until"))
        plain: dict[type, Any] = {str: f"{field.name} ü ☃", int: n, bool: True}
        full[field.name] = later(n) + timedelta(milliseconds=7) if timed else plain[kind]
    task = Task(**{**full, "state": "queued", "via": "poll", "metadata_json": "{}"})
    await put(store, task)
    assert asdict(await task_of(store, task.id)) == asdict(task)
    blank = replace(a_task(), id=task.id)
    await store.run(Do(lambda unit: unit.put_task(blank)))
    assert await task_of(store, task.id) == blank


def test_every_record_fits_its_table() -> None:
    """The fields of a record are the columns of its table, and no more."""
    from receiver.records import Delivery, Event

    for record, table in (
        (Task, schema.tasks),
        (Inbox, schema.inbox),
        (Event, schema.events),
        (Delivery, schema.deliveries),
        (Attempt, schema.attempts),
        (Refusal, schema.refusals),
    ):
        assert {field.name for field in fields(record)} == set(table.c.keys()), record


def test_times_are_milliseconds() -> None:
    """What is below is dropped, before 1970 too, and zones do not matter."""
    assert from_ms(to_ms(NOW)) == NOW
    assert to_ms(NOW + timedelta(microseconds=999)) == to_ms(NOW)
    assert from_ms(to_ms(from_ms(-1))) == from_ms(-1)


async def test_readers_see_what_is_committed(store: Store) -> None:
    """Deliveries, attempts and events of a task, oldest first."""
    task = a_task("succeeded")
    event = an_event(task)
    delivery = a_delivery(event)
    attempt = Attempt(
        AttemptId("att_1"), delivery.id, task.id, 1, NOW, 3, False, "{}", None, "no connection", "transient", "", None
    )
    await put(store, task, event, delivery)
    await store.run(Do(lambda unit: unit.add_attempt(attempt)))
    assert await deliveries_of(store, task.id) == [delivery]
    assert await store.read(lambda connection: store.deliveries.attempts_of_task(connection, task.id)) == [attempt]
    assert await store.read(store.tasks.counts) == {"succeeded": 1}
    assert await store.read(store.events.count) == 1
    assert await delivery_of(store, delivery.id) == delivery


async def test_a_reader_never_waits_for_the_writer(store: Store) -> None:
    """While a transaction is open, what was committed before can be read."""
    task = a_task()
    await put(store, task)
    other = store.dialect.connect()
    other.execute(store.dialect.begin)
    other.execute("DELETE FROM tasks")
    assert (await task_of(store, task.id)).id == task.id
    other.execute("ROLLBACK")
    other.close()


async def test_one_question_sees_one_moment(store: Store) -> None:
    """A timeline is four statements; what is committed between them does not show in the last ones only."""
    task = a_task()
    await put(store, task)

    def ask(connection: Any) -> tuple[int, int]:
        first = len(store.tasks.listed(connection, limit=10))
        with closing(store.dialect.connect()) as other:
            other.execute("DELETE FROM tasks")
        return first, len(store.tasks.listed(connection, limit=10))

    assert await store.read(ask) == (1, 1)
    assert rows_of(store, "SELECT count(*) FROM tasks") == [(0,)]


# -- opening -----------------------------------------------------------------------------------------------------------


@pytest.mark.engine("sqlite")
def test_a_database_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    """A folder that is not there, a folder in its place, a file that is no database: one error, with the path."""
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "text.db").write_bytes(b"this is no database, and longer than a header of one hundred bytes" * 9)
    for name in ("nowhere/receiver.db", "folder.db", "text.db"):
        with pytest.raises(StoreUnavailable, match=name.replace("/", ".")):
            open_dialect(f"sqlite:///{tmp_path / name}").connect()


@pytest.mark.engine("sqlite")
def test_a_lock_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    """The folder of the database is not there: no traceback, but the path."""
    with pytest.raises(StoreUnavailable, match="nowhere"):
        open_dialect(f"sqlite:///{tmp_path / 'nowhere' / 'receiver.db'}").claim_for_serving()


@pytest.mark.engine("sqlite")
def test_urls_are_paths() -> None:
    """Three slashes: relative; four: absolute."""
    assert open_dialect("sqlite:///receiver.db").url == "sqlite:///receiver.db"
    assert open_dialect("sqlite:////var/lib/receiver.db?mode=x").url == "sqlite:////var/lib/receiver.db"
    assert open_dialect("sqlite:////var/lib/r.db").url == "sqlite:////var/lib/r.db"


@pytest.mark.engine("sqlite")
def test_one_process_serves_a_file(tmp_path: Path) -> None:
    """The second is refused with the number of the first; when that is killed, the lock is free."""
    url = databases.new(tmp_path)
    script = (
        "import sys\nfrom receiver.store.dialect import open_dialect\n"
        f"lock = open_dialect({url!r}).claim_for_serving()\nprint('locked', flush=True)\nsys.stdin.read()\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(StoreUnavailable, match=rf"{holder.pid}.*receiver\.db: stop it first"):
            open_dialect(url).claim_for_serving()
        with pytest.raises(StoreUnavailable):  # nor does asking twice take it
            open_dialect(url).claim_for_serving()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    lock = open_dialect(url).claim_for_serving()
    assert (tmp_path / "receiver.db.lock").read_text() == f"{os.getpid()}\n"
    with pytest.raises(StoreUnavailable, match=str(os.getpid())):
        open_dialect(url).claim_for_serving()
    lock.release()
    open_dialect(url).claim_for_serving().release()


@pytest.mark.engine("sqlite")
def test_a_file_is_one_by_whatever_link_it_is_named(tmp_path: Path) -> None:
    """Two links to one file are one file to serve."""
    url = databases.new(tmp_path)
    (tmp_path / "link.db").symlink_to(tmp_path / "receiver.db")
    lock = open_dialect(url).claim_for_serving()
    with pytest.raises(StoreUnavailable, match="already serves"):
        open_dialect(f"sqlite:///{tmp_path / 'link.db'}").claim_for_serving()
    lock.release()


@pytest.mark.engine("sqlite")
def test_a_look_at_a_file_drops_no_lock_that_this_process_has_on_it(tmp_path: Path) -> None:
    """To close a file that SQLite has open drops its locks; then another process could take the WAL from under it."""
    url = databases.new(tmp_path)
    with closing(open_dialect(url).connect()) as ours:
        ours.execute("INSERT INTO counters VALUES ('kept', 1)")
        open_dialect(url).connect().close()
        script = f"from receiver.store.dialect import open_dialect\nopen_dialect({url!r}).connect().close()"
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
        assert (tmp_path / "receiver.db-wal").exists()


@pytest.mark.engine("sqlite")
def test_outages_are_told_from_faults() -> None:
    """Locked, full, damaged: try again. A wrong value: never."""
    import sqlite3

    for outage in (sqlite3.OperationalError("database is locked"), sqlite3.DatabaseError("malformed")):
        assert SQLite.is_outage(outage)
    for fault in (sqlite3.IntegrityError("UNIQUE"), sqlite3.InterfaceError("type"), ValueError("x"), OverflowError()):
        assert not SQLite.is_outage(fault)
