"""Stores of several instances on one PostgreSQL: who waits for whom, who decides on what, a server that goes silent."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import threading
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from receiver import sweep
from receiver.deliver import Claim, Redeliver
from receiver.errors import StoreUnavailable, StoreUnsure
from receiver.ids import TaskId
from receiver.pace import Rate
from receiver.store import Store, migrations, writer
from receiver.store.dialect import postgres
from receiver.store.rates import Paced, Starts
from receiver.sweep import Prune
from tests import databases
from tests.rooms import (
    NOW,
    PATIENCE,
    Do,
    Lines,
    a_delivery,
    a_task,
    an_event,
    later,
    one_batch,
    opened,
    put,
    rows_of,
    sweeper,
    task_of,
)
from tests.victim import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from sqlalchemy import Connection

    from receiver.records import Delivery
    from receiver.store import Op, Unit

pytestmark = [pytest.mark.anyio, pytest.mark.engine("postgresql")]

BLOCKED = "SELECT pid FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
RATE = Paced((Rate("upstream", 1000, timedelta(seconds=1)),), NOW, NOW)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Store, Store]]:
    """Two stores on one new database, each with a writer of its own."""
    url = databases.new(tmp_path)
    async with AsyncExitStack() as stack:
        stores = Store.open(url), Store.open(url)
        for store in stores:
            stack.push_async_callback(store.close)
        yield stores


async def test_an_instance_stopped_within_its_pipeline_holds_nobody_up(pair: tuple[Store, Store]) -> None:
    """The server takes it for at work: whoever waits for its locks ends it. What it was at is done again."""
    one, other = pair
    marks = one.writer._marks
    assert marks is not None
    put_, stopped, go_on = marks.put, threading.Event(), threading.Event()

    def stops(connection: Any) -> None:  # what was staged is sent, COMMIT is not
        marks.put = put_  # type: ignore[method-assign]
        stopped.set()
        go_on.wait(PATIENCE)
        put_(connection)

    marks.put = stops  # type: ignore[method-assign]
    its = an_event(a_task())
    first = one.writer.run(Do(lambda unit: unit.add_event(its)))
    try:
        assert await asyncio.to_thread(stopped.wait, PATIENCE)
        await other.run(Do(lambda unit: unit.add_event(an_event(a_task()))))
        assert rows_of(one, f"SELECT 1 FROM events WHERE id = '{its.id}'") == []
    finally:
        go_on.set()
    await first
    assert len(rows_of(one, f"SELECT 1 FROM events WHERE id = '{its.id}'")) == 1


@pytest.mark.parametrize("at", ["within its pipeline", "after a part of it", "between two statements"])
async def test_what_a_stopped_instance_holds_is_taken_from_it_though_nobody_waits(
    pair: tuple[Store, Store], at: str
) -> None:
    """Claims and the sweep pass over what another has locked; it is freed all the same, and what was held goes on."""
    one, other = pair
    task = a_task("submitting", submit_leased_until=later(-1))
    await put(one, task)
    marks = one.writer._marks
    assert marks is not None
    put_, stopped, go_on = marks.put, threading.Event(), threading.Event()

    def stop() -> None:
        stopped.set()
        go_on.wait(PATIENCE)

    def within(connection: Any) -> None:
        marks.put = put_  # type: ignore[method-assign]
        if at == "after a part of it":
            connection.connection._pipeline.sync()
            connection.connection.pgconn.send_flush_request()
            connection.connection.pgconn.flush()
        stop()
        put_(connection)

    def between(unit: Unit) -> None:
        unit.put_task(replace(task, prompt="its own"))
        if at == "between two statements" and not stopped.is_set():
            stop()

    if at != "between two statements":
        marks.put = within  # type: ignore[method-assign]
    log, now = Lines(), [NOW]
    sweeps = sweeper(other, log, now)
    first = one.writer.run(Do(between))
    try:
        assert await asyncio.to_thread(stopped.wait, PATIENCE)

        async def freed() -> bool:
            now[0] += sweep.END_EVERY
            await sweeps.round()
            return (await task_of(other, task.id)).state == "ambiguous"

        await until(freed, "the task to be nobody's")
        # Between two statements the server sees to it by itself, at about the same time.
        assert at == "between two statements" or [line["count"] for line in log.of("session.ended")] == [1]
    finally:
        go_on.set()
    await first


async def test_a_place_in_the_feed_is_taken_when_nothing_else_is_wanted(pair: tuple[Store, Store]) -> None:
    """An event that is staged before a question keeps no other instance waiting, and no two wait for one another."""
    one, other = pair
    await one.run(Do(lambda unit: Starts.of(unit, RATE).take(1)))
    asked, taken = threading.Event(), threading.Event()

    def born_then_paced(unit: Unit) -> None:
        unit.add_event(an_event(a_task()))
        unit.select(one.replays.running, limit=1)
        asked.set()
        assert taken.wait(PATIENCE)
        Starts.of(unit, RATE).take(1)

    def paced_then_born(unit: Unit) -> None:
        Starts.of(unit, RATE).take(1)
        taken.set()
        unit.add_event(an_event(a_task()))

    first = one.writer.run(Do(born_then_paced))
    assert await asyncio.to_thread(asked.wait, PATIENCE)
    await asyncio.gather(first, other.run(Do(paced_then_born)))
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    await one.close()  # a session tells of its deadlocks when it ends
    await other.close()
    assert databases.ask(one.dialect.url, deadlocks) == [(0,)]


@contextmanager
def silenced(pid: int) -> Iterator[None]:
    """The server's process behind a session is stopped: the machine takes what is sent, and nothing comes back."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def impatient(store: Store) -> None:
    """It waits a second for an answer, not a minute."""
    dialect: Any = store.dialect
    dialect._patience = 1.0


async def test_a_server_that_goes_silent_is_left(pair: tuple[Store, Store]) -> None:
    """Who gets no answer at all hangs up and asks again: the writer, the readers, and who listens for news."""
    store, other = pair
    impatient(store)
    herald = store.herald
    assert herald is not None
    assert herald._session is not None
    sessions: Any = [store.writer._connection, herald._session]
    task = a_task()
    await put(other, task)
    with ExitStack() as silence:
        for session in sessions:
            silence.enter_context(silenced(session.connection.info.backend_pid))
        async with asyncio.timeout(PATIENCE):
            await put(store, replace(task, id=TaskId("tsk_2")))

            async def connected_again() -> bool:
                return herald._session not in {None, sessions[1]}

            await until(connected_again, "the herald to connect again")
            assert await store.read(lambda connection: store.tasks.get(connection, task.id)) == task
    assert await store.read(store.tasks.counts) == {"queued": 2}


async def test_a_reader_gets_away_from_a_silent_server(pair: tuple[Store, Store]) -> None:
    """A question that stays without an answer ends, and the next one is asked on another connection."""
    store, _ = pair
    impatient(store)

    def ask(connection: Connection) -> Any:
        driver: Any = connection.connection.driver_connection
        with silenced(driver.info.backend_pid):
            return store.tasks.counts(connection)

    async with asyncio.timeout(PATIENCE):
        with pytest.raises(StoreUnavailable, match="no answer"):
            await store.read(ask)
        assert await store.read(store.tasks.counts) == {}


@pytest.fixture
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for a lock, or for what became of a COMMIT."""
    monkeypatch.setattr(writer, "UNSURE_FOR", 0.1)
    short = [one.replace(postgres.LOCKED_FOR, "300ms") for one in postgres._SETTINGS]
    monkeypatch.setattr(postgres, "_SETTINGS", short)


@asynccontextmanager
async def unsure(store: Store, op: Op[Any]) -> AsyncIterator[None]:
    """The op's COMMIT is lost, and the server still hangs in it."""
    assert store.writer._marks is not None
    with closing(store.dialect.connect()) as hanging:
        hanging.execute("BEGIN")
        hanging.execute("SELECT * FROM writers WHERE id = %s FOR UPDATE", [store.writer._marks.writer])
        lost = store.writer.run(op)
        blocked = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"

        async def ended() -> bool:
            return bool(hanging.execute(blocked).fetchall())

        await until(ended, "the batch to wait for the row")
        with pytest.raises(StoreUnsure):
            await lost
        yield


@pytest.mark.usefixtures("_brief")
async def test_after_a_batch_that_nobody_can_tell_of_others_are_committed(tmp_path: Path) -> None:
    """A server that still hangs in the lost COMMIT has the writer's row: what comes next does not wait for it."""
    async with opened(tmp_path) as store:
        await put(store, a_task())
        async with unsure(store, Do(lambda unit: unit.add_task(a_task()))):
            await put(store, a_task())
        assert await store.read(store.tasks.counts) == {"queued": 2}


@pytest.mark.usefixtures("_brief")
async def test_what_was_leased_unheard_is_told_of(tmp_path: Path) -> None:
    """Whoever claimed it never hears of it: it is for the deliverer to give back, whether it stands or not."""
    async with opened(tmp_path) as store:
        task = a_task("succeeded")
        event = an_event(task)
        delivery = a_delivery(event)
        await put(store, task, event, delivery)
        unheard: list[Delivery] = []
        store.writer.unheard = unheard.extend
        async with unsure(store, Claim(store, "sink", 1, later(1), later(60))):
            assert [(one.id, one.lease_token, one.leased_until) for one in unheard] == [(delivery.id, 1, later(60))]


async def test_what_is_opened_again_is_not_pruned(pair: tuple[Store, Store]) -> None:
    """A redelivery that another instance commits while retention looks at its task keeps the task."""
    one, other = pair
    task = a_task("succeeded")
    event = an_event(task)
    delivery = a_delivery(event, state="delivered", due_at=None, finished_at=NOW)
    await put(one, task, event, delivery)
    staged, looked = threading.Event(), threading.Event()

    def opens(unit: Unit) -> None:
        Redeliver(delivery.id, {"sink"}, later(1)).apply(unit)
        unit.flush()
        staged.set()
        assert looked.wait(PATIENCE)

    opening = one.writer.run(Do(opens))
    assert await asyncio.to_thread(staged.wait, PATIENCE)
    pruning = other.writer.run(Prune(other, later(60)))

    async def waits() -> bool:
        return bool(databases.ask(one.dialect.url, BLOCKED))

    await until(waits, "retention to wait")
    looked.set()
    await asyncio.gather(opening, pruning)
    kept = await one.read(lambda connection: one.deliveries.get(connection, delivery.id))
    assert kept is not None
    assert kept.state == "pending"
    assert await one.read(lambda connection: one.tasks.get(connection, task.id)) == task


async def test_what_another_works_on_is_not_waited_for(pair: tuple[Store, Store]) -> None:
    """Retention passes over a task that a callback has locked, takes the others, and finds it young afterwards."""
    one, other = pair
    busy, free = a_task("lost"), a_task("lost")
    await put(one, busy, free)
    staged, looked = threading.Event(), threading.Event()

    def recovers(unit: Unit) -> None:
        unit.put_task(replace(busy, state="succeeded", finished_at=later(90)))
        unit.flush()
        staged.set()
        assert looked.wait(PATIENCE)

    recovering = one.writer.run(Do(recovers))
    assert await asyncio.to_thread(staged.wait, PATIENCE)
    async with asyncio.timeout(PATIENCE):
        assert (await other.run(Prune(other, later(60)))).gone == 1
    looked.set()
    await recovering
    assert (await other.run(Prune(other, later(60)))).gone == 0
    assert databases.ask(one.dialect.url, "SELECT id FROM tasks") == [(busy.id,)]


async def test_news_are_heard_past_a_thousand_descriptors(pair: tuple[Store, Store]) -> None:
    """The connection for news may have any number: `select` knows none past 1023."""
    _, other = pair
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    heard = asyncio.Event()
    with ExitStack() as full:
        full.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            full.callback(os.close, os.open("/dev/null", os.O_RDONLY))
        late = Store.open(f"postgresql://{other.dialect.url.partition('://')[2]}")
        try:
            assert late.herald is not None
            assert other.herald is not None
            late.herald.heard = lambda news: heard.set() if news.tasks == {"tsk_1"} else None
            other.herald.tell(["tsk_1"], [], events=False)
            await asyncio.wait_for(heard.wait(), PATIENCE)
        finally:
            await late.close()


async def test_a_servers_own_default_isolation_changes_nothing(tmp_path: Path) -> None:
    """Batches are READ COMMITTED whatever the database's default is: else who waited for a row would start again."""
    url = databases.new(tmp_path)
    name = url.rpartition("/")[2]
    databases.change(url, f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    store = Store.open(url)
    try:
        level = await store.run(Do(lambda unit: unit._connection.execute("SHOW transaction_isolation").fetchone()))
    finally:
        await store.close()
    assert level == ("read committed",)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_a_database_of_another_encoding(encoding: str) -> None:
    """One that keeps bytes as they come will do; one that cannot hold every character is refused before it is used."""
    name = f"encoded_{encoding.lower()}"
    made = f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    databases.server().run(made)
    url = databases.server().url(name)
    try:
        if encoding == "LATIN1":
            with pytest.raises(StoreUnavailable, match="encoded in LATIN1"):
                migrations.upgrade(url)
            return
        migrations.upgrade(url)
        store = Store.open(url)
        try:
            task = a_task(prompt="a cat, \u732b")
            await put(store, task)
            assert await store.read(lambda connection: store.tasks.get(connection, task.id)) == task
        finally:
            await store.close()
    finally:
        databases.server().run(f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_server_that_goes_away_is_not_knocked_at_for_each(pair: tuple[Store, Store]) -> None:
    """Ops that are tried one by one because one is at fault do not each wait for a server that is gone by then."""
    store, _ = pair
    knocked: list[socket.socket] = []
    dialect: Any = store.dialect
    with closing(socket.create_server(("127.0.0.1", 0))) as door:

        def knock() -> None:
            with suppress(OSError):
                while True:
                    knocked.append(door.accept()[0])
                    knocked[-1].close()

        threading.Thread(target=knock, daemon=True).start()
        there = dialect._url

        def goes(_unit: Unit) -> None:
            session: Any = store.writer._connection
            if goes in tried:
                dialect._url = f"postgresql://postgres@127.0.0.1:{door.getsockname()[1]}/x?sslmode=disable"
                session.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            tried.append(goes)
            raise ValueError("a fault of ours")

        tried: list[Any] = []
        async with one_batch(store):
            waiting = [store.writer.run(Do(goes))]
            waiting += [store.writer.run(Do(lambda unit: unit.add_task(a_task()))) for _ in range(10)]
        told = await asyncio.gather(*waiting, return_exceptions=True)
        dialect._url = there
        door.shutdown(socket.SHUT_RDWR)
    assert {type(one) for one in told} == {StoreUnavailable}
    assert len(knocked) <= 4
    await put(store, a_task())
    assert await store.read(store.tasks.counts) == {"queued": 1}
