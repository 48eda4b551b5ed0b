"""The one writer: group commit, answers only after it, faults that stay alone, outages, and fenced writes."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from msgspec.structs import replace
from starlette.requests import Request

from receiver.deliver import Attempted, Claim, HandBack
from receiver.errors import Conflict, NotFound, StoreUnavailable
from receiver.health import Terms
from receiver.ids import AttemptId
from receiver.poll import Claim as PollClaim
from receiver.records import Attempt, Observation
from receiver.retry import Decision, Result
from receiver.store import Reads, Store, teller, writer
from receiver.store.dialect import sqlite as sqlite_dialect
from receiver.submit import Asked
from receiver.submit.ops import Accept
from receiver.submit.repeats import Forget, KeepAnswer
from receiver.web.health import Health
from tests import databases
from tests.rooms import (
    NOW,
    PATIENCE,
    Do,
    a_delivery,
    a_task,
    an_event,
    callback,
    deliveries_of,
    delivery_of,
    events_of,
    later,
    lookup,
    one_batch,
    opened,
    put,
    rows_of,
    rulebook,
    task_of,
    until,
)
from tests.test_speed import Held

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from receiver.records import Delivery
    from receiver.store import Unit
    from receiver.store.dialect.postgres import PostgresSession

pytestmark = [pytest.mark.anyio, pytest.mark.engines]

CHECKPOINT = "PRAGMA wal_checkpoint(PASSIVE)"


class Hindered:
    """The writer's connection, with a hook before each statement."""

    def __init__(self, real: sqlite3.Connection, before: Any) -> None:
        self._real = real
        self._before = before

    def execute(self, sql: str, *parameters: Any) -> Any:
        """Run it, after the hook."""
        self._before(sql)
        return self._real.execute(sql, *parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def hinder(store: Store, before: Any) -> None:
    """Put a hook before the writer's statements."""
    store.writer._connection = cast("Any", Hindered(cast("sqlite3.Connection", store.writer._connection), before))


# -- group commit ------------------------------------------------------------------------------------------------------


async def test_what_waits_shares_one_commit(store: Store) -> None:
    """300 ops that wait together are one COMMIT, and every one of them is on disk."""
    commits: list[str] = []
    async with one_batch(store):
        hinder(store, lambda sql: commits.append(sql) if sql == "COMMIT" else None)
        waiting = [store.writer.run(Accept(a_task(), None)) for _ in range(300)]
    await asyncio.gather(*waiting)
    assert len(commits) <= 2  # the batch that was held up, and this one
    assert rows_of(store, "SELECT count(*) FROM tasks") == [(300,)]


async def test_a_batch_has_an_end(store: Store) -> None:
    """More than MAX_BATCH ops are more than one transaction, so the first does not wait for all."""
    before = store.writer.commits
    async with one_batch(store):
        waiting = [store.writer.run(Accept(a_task(), None)) for _ in range(writer.MAX_BATCH + 1)]
    await asyncio.gather(*waiting)
    assert store.writer.commits - before == 3  # the one that was held up, a full one, the rest


async def test_nobody_is_woken_before_the_commit(store: Store) -> None:
    """While COMMIT has not returned, the answer waits and no other connection sees the row; afterwards both do."""
    reached, go_on = threading.Event(), threading.Event()

    def slow(sql: str) -> None:
        if sql == "COMMIT":
            reached.set()
            go_on.wait(PATIENCE)

    hinder(store, slow)
    answer = store.writer.run(Accept(a_task(), None))
    await asyncio.to_thread(reached.wait, PATIENCE)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not answer.done()
    assert rows_of(store, "SELECT count(*) FROM tasks") == [(0,)]
    go_on.set()
    await answer
    assert rows_of(store, "SELECT count(*) FROM tasks") == [(1,)]


async def test_a_commit_that_fails_wakes_nobody_with_good_news(store: Store) -> None:
    """Should COMMIT itself fail, the waiter is told so, and nothing of it is on disk."""
    state = {"fail": True}

    def fail(sql: str) -> None:
        if sql == "COMMIT" and state["fail"]:
            raise databases.trouble(store, "disk I/O error")

    hinder(store, fail)
    with pytest.raises(StoreUnavailable, match="disk I/O error"):
        await store.run(Accept(a_task(), None))
    assert rows_of(store, "SELECT count(*) FROM tasks") == [(0,)]
    state["fail"] = False
    await store.run(Accept(a_task(), None))
    assert rows_of(store, "SELECT count(*) FROM tasks") == [(1,)]


@pytest.mark.engine("postgresql")
async def test_a_session_is_durable(store: Store) -> None:
    """Where the server's own default is not: the test server's is off."""
    assert rows_of(store, "SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'") == [("off",)]
    assert store.writer._connection.execute("SHOW synchronous_commit").fetchone() == ("on",)


@pytest.mark.engine("sqlite")
async def test_the_connection_is_durable(store: Store) -> None:
    """WAL and synchronous=FULL (2) hold on the very connection that commits."""
    assert store.writer._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store.writer._connection.execute("PRAGMA synchronous").fetchone() == (2,)


# -- what ops of one batch see of one another --------------------------------------------------------------------------


async def test_a_task_and_its_callback_in_one_batch(store: Store) -> None:
    """An early callback in the batch that makes its task finds it."""
    task = a_task("submitting")
    async with one_batch(store):
        accepted = store.writer.run(Accept(task, None))
        told = store.writer.run(callback(task.id, '{"task_id":"up-1","status":"3","video_url":"https://x.example/v"}'))
    await accepted
    assert (await told).verdict == "progress"  # kept until the submission's answer is in
    assert (await task_of(store, task.id)).held_json is not None


class Noted(Reads):
    """An op that notes what is asked of it, and whether a transaction is open then."""

    def __init__(self, store: Store, notes: list[str], name: str, fault: Exception | None = None) -> None:
        self._store, self._notes, self._name, self._fault = store, notes, name, fault

    def prepare(self) -> None:
        """Note it; the fault is found here."""
        assert not self._store.writer._connection.in_transaction
        self._notes.append(f"{self._name} prepares")
        if self._fault is not None:
            raise self._fault

    def apply(self, _unit: Unit) -> None:
        """Note it."""
        self._notes.append(f"{self._name} decides")


@pytest.mark.engine("sqlite")
async def test_all_prepare_before_the_first_decides(store: Store) -> None:
    """And before the transaction: a body that takes long to read keeps nobody from the database."""
    notes: list[str] = []
    async with one_batch(store):
        waiting = [store.writer.run(Noted(store, notes, name)) for name in "ab"]
    await asyncio.gather(*waiting)
    assert notes == ["a prepares", "b prepares", "a decides", "b decides"]


async def test_a_commit_takes_as_long_as_the_database(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the metric tells of a disk does not count the reading of bodies."""
    clock, took = [0.0], list[float]()

    class Slow(Reads):
        def prepare(self) -> None:
            clock[0] += 7

        def apply(self, _unit: Unit) -> None:
            clock[0] += 1

    monkeypatch.setattr(writer, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    store.writer.committed = lambda _ops, seconds: took.append(seconds)
    await store.run(Slow())
    assert took == [1]


async def test_two_terminal_callbacks_in_one_batch_are_one_event(store: Store) -> None:
    """The second sees what the first staged: late, no event."""
    task = a_task()
    await put(store, task)
    async with one_batch(store):
        first = store.writer.run(callback(task.id, '{"task_id":"up-1","status":"3","video_url":"https://x.example/v"}'))
        second = store.writer.run(callback(task.id, '{"task_id":"up-1","status":"FAILED"}'))
    assert [(await first).verdict, (await second).verdict] == ["accepted", "late"]
    assert await events_of(store, task.id) == ["task.succeeded"]


async def test_what_is_staged_outlives_a_row_that_is_read_late(store: Store) -> None:
    """A task read in the middle of a batch must not bring back the old row of one that was changed before it.

    This happens where a statement that changes rows by itself (retention) cleared what was read ahead.
    """
    task, other = a_task(), a_task()
    await put(store, task, other)
    success = '{"task_id":"up-1","status":"3","video_url":"https://x.example/v"}'
    sweep = Do(lambda unit: unit.execute(store.tasks.polls_freed, now_=NOW))
    async with one_batch(store):
        swept = store.writer.run(sweep)
        first = store.writer.run(callback(task.id, success))
        between = store.writer.run(callback(other.id, success))
        again = store.writer.run(callback(task.id, '{"task_id":"up-1","status":"FAILED"}'))
    await asyncio.gather(swept, between)
    assert [(await first).verdict, (await again).verdict] == ["accepted", "late"]
    assert await events_of(store, task.id) == ["task.succeeded"]
    assert (await task_of(store, task.id)).state == "succeeded"


async def test_deliveries_that_are_staged_outlive_one_that_is_read_late(store: Store) -> None:
    """The same of deliveries: a second write under one lease changes nothing, whatever was read between."""
    mine, other = await leased(store), await leased(store)
    sweep = Do(lambda unit: unit.execute(store.tasks.polls_freed, now_=NOW))
    async with one_batch(store):
        swept = store.writer.run(sweep)
        first = store.writer.run(attempted(mine, "delivered"))
        between = store.writer.run(attempted(other, "delivered"))
        again = store.writer.run(HandBack([mine], NOW))
    await asyncio.gather(swept, between)
    assert ((await first).held, await again) == (True, 0)
    assert (await delivery_of(store, mine.id)).state == "delivered"


async def test_a_claim_sees_what_its_batch_staged(store: Store) -> None:
    """A delivery born in a batch is claimed by a claim of that batch, and by one only."""
    task = a_task()
    await put(store, task)
    claim = Claim(store, "sink", 10, later(1), later(60))
    async with one_batch(store):
        told = store.writer.run(callback(task.id, '{"task_id":"up-1","status":"3","video_url":"https://x.example/v"}'))
        first, second = store.writer.run(claim), store.writer.run(claim)
    await told
    leased_by_first = (await first).leased
    leased_by_second = (await second).leased
    assert [delivery.task_id for delivery, _ in leased_by_first] == [task.id]
    assert leased_by_second == []
    assert leased_by_first[0][1].type == "task.succeeded"


async def test_a_lookup_is_claimed_once(store: Store) -> None:
    """Two claims in one batch do not both ask about a task."""
    task = a_task(poll_due_at=NOW)
    await put(store, task)
    claim = PollClaim(store, 10, later(1), later(60), rulebook())
    async with one_batch(store):
        first, second = store.writer.run(claim), store.writer.run(claim)
    assert [one.id for one in (await first)[0]] == [task.id]
    assert (await second)[0] == []


# -- faults ------------------------------------------------------------------------------------------------------------


async def test_a_faulty_op_fails_alone(store: Store) -> None:
    """Those beside it in the batch are committed, each once; the faulty one hears its own error."""
    good, twin = a_task(), a_task()

    def boom(unit: Unit) -> None:
        unit.add_task(a_task())
        raise ValueError("a fault of ours")

    async with one_batch(store):
        waiting = [
            store.writer.run(Accept(good, None)),
            store.writer.run(Do(boom)),
            store.writer.run(Accept(twin, None)),
            store.writer.run(Accept(twin, None)),  # its key is taken
        ]
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    taken = "StoreUnavailable" if store.dialect.is_shared else "IntegrityError"  # there another instance may be at it
    assert [type(answer).__name__ for answer in answers] == ["Accepted", "ValueError", "Accepted", taken]
    assert rows_of(store, "SELECT count(*) FROM tasks") == [(2,)]


@pytest.mark.engine("sqlite")
@pytest.mark.parametrize("broken", [False, True])
async def test_one_that_cannot_prepare_fails_alone(store: Store, broken: bool) -> None:
    """Those beside it are committed, also where the connection is to be replaced first: the fault is no outage."""
    task, notes, before = a_task(), list[str](), store.writer._connection
    async with one_batch(store):
        store.writer._broken = broken
        faulty = store.writer.run(Noted(store, notes, "a", ValueError("a fault of ours")))
        good = store.writer.run(Accept(task, None))
    with pytest.raises(ValueError, match="a fault of ours"):
        await faulty
    await good
    assert await task_of(store, task.id) == task
    assert "a decides" not in notes
    assert (store.writer._connection is not before) == broken
    if broken:
        before.close()


async def test_an_answer_that_is_an_error_spoils_nothing(store: Store) -> None:
    """NotFound and Conflict before any change leave the batch as it is: one commit for all."""

    def refuse(_unit: Unit) -> None:
        raise Conflict("not now")

    before = store.writer.commits
    async with one_batch(store):
        waiting = [store.writer.run(Accept(a_task(), None)), store.writer.run(Do(refuse))]
        waiting.append(store.writer.run(callback("tsk_nobody", "{}")))
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["Accepted", "Conflict", "NotFound"]
    assert store.writer.commits - before == 2


async def test_an_error_after_a_change_undoes_the_change(store: Store) -> None:
    """An op that breaks the rule and refuses after it staged something leaves nothing of it."""

    def half(unit: Unit) -> None:
        unit.add_task(a_task())
        raise NotFound("too late to say so")

    async with one_batch(store):
        good, bad = store.writer.run(Accept(a_task(), None)), store.writer.run(Do(half))
    await good
    with pytest.raises(NotFound):
        await bad
    assert rows_of(store, "SELECT count(*) FROM tasks") == [(1,)]


# -- outages -----------------------------------------------------------------------------------------------------------


async def works_again(store: Store) -> None:
    """The next op is committed, and nothing of those that failed is there."""
    await store.run(Accept(a_task(), None))
    assert store.writer.failure is None
    assert rows_of(store, "SELECT count(*) FROM tasks") == [(1,)]


async def test_a_database_that_cannot_commit_is_an_outage_and_ends(store: Store) -> None:
    """While another process holds the lock, or the server is a standby, all are refused; afterwards all is well."""
    async with one_batch(store):
        pass
    with databases.outage(store):
        waiting = [store.writer.run(Accept(a_task(), None)) for _ in range(3)]
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoreUnavailable] * 3
    await works_again(store)


@pytest.mark.engine("sqlite")
@pytest.mark.parametrize("way", ["a read-only file system", "a file that cannot grow"])
async def test_a_file_that_cannot_be_written_is_an_outage_and_ends(store: Store, way: str) -> None:
    """All are refused, and the transaction leaves nothing half done."""
    connection = store.writer._connection
    [(pages,)] = connection.execute("PRAGMA page_count")
    limit, free = {
        "a read-only file system": ("query_only=ON", "query_only=OFF"),
        "a file that cannot grow": (f"max_page_count={pages}", "max_page_count=1000000"),
    }[way]
    async with one_batch(store):
        connection.execute(f"PRAGMA {limit}")
        waiting = [store.writer.run(Accept(a_task(), b"x" * 200_000)) for _ in range(3)]
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 3
    assert store.writer.failure
    connection.execute(f"PRAGMA {free}")
    await works_again(store)


@pytest.mark.engine("sqlite")
async def test_a_full_disk_is_an_outage_and_ends(store: Store) -> None:
    """The kernel refuses to let any file grow; after that the same connection goes on."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        async with one_batch(store):
            waiting = [store.writer.run(Accept(a_task(), b"x" * 100_000)) for _ in range(3)]
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
        answers = await asyncio.gather(*waiting, return_exceptions=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 3
    await works_again(store)


@pytest.mark.engine("sqlite")
async def test_a_full_disk_is_no_readiness(store: Store) -> None:
    """A commit that writes nothing succeeds on a full disk, so the probe of `/readyz` writes."""
    health = Health(store, list)
    request = Request({"type": "http", "method": "GET", "path": "/readyz", "headers": []})
    assert (await health.ready(request)).status_code == 200
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
        answer = await health.ready(request)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert answer.status_code == 503
    assert b"cannot commit" in bytes(answer.body)
    for _ in range(3):
        assert (await health.ready(request)).status_code == 200
    assert rows_of(store, "SELECT count(*) FROM counters WHERE name = 'probe'") == [(1,)]


@pytest.mark.engine("sqlite")
async def test_a_corrupt_page_is_an_outage(store: Store) -> None:
    """`database disk image is malformed` is no fault of the op: the caller is told to try again, not that it erred."""

    def fail(sql: str) -> None:
        if sql == "COMMIT":
            raise sqlite3.DatabaseError("database disk image is malformed")

    hinder(store, fail)
    with pytest.raises(StoreUnavailable, match="malformed"):
        await store.run(Accept(a_task(), None))


async def test_a_connection_that_cannot_roll_back_is_replaced(store: Store) -> None:
    """Even where no new one can be had at once; until then everything is refused as an outage, not as a fault."""
    working = store.dialect.connect
    away = {"file": True}

    def connect() -> sqlite3.Connection | PostgresSession:
        if away["file"]:
            raise StoreUnavailable("cannot open the database")
        return working()

    def fail(sql: str) -> None:
        if sql in {"COMMIT", "ROLLBACK"}:
            raise databases.trouble(store, "disk I/O error")

    store.dialect.connect = connect  # type: ignore[method-assign, assignment]
    hinder(store, fail)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await store.run(Accept(a_task(), None))
    away["file"] = False
    await works_again(store)


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    """What waited when it was closed is committed; what comes later is refused."""
    async with opened(tmp_path) as store:
        async with one_batch(store):
            waiting = store.writer.run(Accept(a_task(), None))
            closing = asyncio.create_task(store.close())
            await asyncio.sleep(0)
        await waiting
        await closing
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.run(Accept(a_task(), None))
        with pytest.raises(StoreUnavailable):
            await store.read(lambda connection: store.tasks.get(connection, a_task().id))
        assert rows_of(store, "SELECT count(*) FROM tasks") == [(1,)]


async def test_waiting_ops_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that stands still must not fill the memory: past MAX_WAITING the next one is refused at once."""
    monkeypatch.setattr(writer, "MAX_WAITING", 2)
    async with one_batch(store):
        waiting = [store.writer.run(Accept(a_task(), None)) for _ in range(2)]
        with pytest.raises(StoreUnavailable, match="waiting for the disk"):
            store.writer.run(Accept(a_task(), None))
    await asyncio.gather(*waiting)


async def test_who_was_answered_together_is_stored_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first who comes back is kept waiting until the last has come, and no longer."""
    async with one_batch(store):
        waiting = [store.writer.run(Accept(a_task(), None)) for _ in range(3)]
    await asyncio.gather(*waiting)
    monkeypatch.setattr(writer, "GATHER_FOR", PATIENCE)
    monkeypatch.setattr(writer, "GATHER_STEP", PATIENCE)
    commits = store.writer.commits
    async with asyncio.timeout(PATIENCE / 2):
        waiting = [store.writer.run(Accept(a_task(), None))]
        await until(lambda: store.writer.waiting == 0)
        waiting += [store.writer.run(Accept(a_task(), None)) for _ in range(2)]
        await asyncio.gather(*waiting)
    assert store.writer.commits == commits + 1


async def test_who_goes_away_takes_nothing_back(store: Store) -> None:
    """A cancelled waiter's op is committed all the same, and nobody trips over its answer."""
    async with one_batch(store):
        waiting = asyncio.create_task(store.run(Accept(a_task(), None)))
        await asyncio.sleep(0)
        waiting.cancel()
        other = asyncio.create_task(store.run(Accept(a_task(), None)))
        await asyncio.sleep(0)
    await other
    assert rows_of(store, "SELECT count(*) FROM tasks") == [(2,)]


# -- what is left for later --------------------------------------------------------------------------------------------


async def _told(store: Store, count: int) -> list[str]:
    """What is heard of so many ops in one batch, once each of them was told of its commit."""
    heard: list[str] = []

    def done(_value: Any, error: BaseException | None) -> Callable[[], None]:
        heard.append(f"told {error}")
        return lambda: heard.append("after")

    async with one_batch(store):
        for _ in range(count):
            store.soon(Accept(a_task(), None), done)
    await until(lambda: heard.count("told None") == count)
    return heard


async def test_what_a_crowd_leaves_is_done_while_the_next_commit_waits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is waited for in any case; whoever waits is not."""
    monkeypatch.setattr(teller, "LEFT_FOR", 3600.0)
    heard = await _told(store, teller.CROWD)
    held = store.writer._connection = cast("Any", Held(store.writer._connection))
    try:
        waiting = asyncio.create_task(store.run(Accept(a_task(), None)))
        assert await asyncio.to_thread(held.reached.wait, PATIENCE)
        await until(lambda: "after" in heard)
        assert heard == ["told None"] * teller.CROWD + ["after"] * teller.CROWD
        assert not waiting.done()
    finally:
        held.go_on.set()
    await waiting


async def test_what_is_left_is_done_without_another_commit(store: Store) -> None:
    """After a moment, whoever comes or not."""
    heard = await _told(store, teller.CROWD)
    await until(lambda: heard.count("after") == teller.CROWD)


async def test_few_leave_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone callback's delivery begins at once."""
    monkeypatch.setattr(teller, "LEFT_FOR", 3600.0)
    heard = await _told(store, teller.CROWD - 1)
    await until(lambda: heard.count("after") == teller.CROWD - 1)


async def test_a_stop_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was left is done when it begins, and what comes then at once."""
    monkeypatch.setattr(teller, "LEFT_FOR", 3600.0)
    heard = await _told(store, teller.CROWD)
    store.hurry()
    assert heard.count("after") == teller.CROWD
    heard = await _told(store, teller.CROWD)
    await until(lambda: heard.count("after") == teller.CROWD)


# -- the WAL -----------------------------------------------------------------------------------------------------------


@pytest.mark.engine("sqlite")
@pytest.mark.parametrize("fails", [False, True])
async def test_nobody_waits_for_the_wal_to_be_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """It is done once all are answered; where it cannot be, nothing is lost and the next is answered as well."""
    monkeypatch.setattr(sqlite_dialect, "_CHECKPOINT_PAGES", 1)
    async with opened(tmp_path) as store:
        slow = store.writer._connection = cast("Any", Held(store.writer._connection, at=CHECKPOINT, fails=fails))
        try:
            await store.run(Accept(a_task(), None))
            assert await asyncio.to_thread(slow.reached.wait, PATIENCE)
        finally:
            slow.go_on.set()
        await store.run(Accept(a_task(), None))
        assert rows_of(store, "SELECT count(*) FROM tasks") == [(2,)]


@pytest.mark.engine("sqlite")
async def test_the_wal_stays_small(tmp_path: Path) -> None:
    """However small the commits are, it is copied before SQLite would do so within one of them."""
    async with opened(tmp_path) as store:
        for _ in range(500):
            await store.run(Accept(a_task(), None))
        assert _wal_of(tmp_path) < 1_500 * 8192


def _wal_of(folder: Path) -> int:
    """Bytes of the WAL there."""
    (wal,) = folder.glob("*-wal")
    return wal.stat().st_size


# -- fencing -----------------------------------------------------------------------------------------------------------


async def leased(store: Store) -> Delivery:
    """A delivery that is leased, with its task and event."""
    task = a_task("succeeded")
    event = an_event(task)
    delivery = a_delivery(event, state="leased", due_at=None, leased_until=later(60), lease_token=7)
    await put(store, task, event, delivery)
    return delivery


def attempted(delivery: Delivery, state: str) -> Attempted:
    """The write of an attempt."""
    attempt = Attempt(
        id=AttemptId("att_1"),
        delivery_id=delivery.id,
        task_id=delivery.task_id,
        number=delivery.attempt_count + 1,
        started_at=NOW,
        duration_ms=5,
        redelivery=False,
        request_json="{}",
        response_json=None,
        error=None,
        result="ok",
        reason="",
        next_at=None,
    )
    decision = Decision(cast("Any", state), later(5) if state == "pending" else None, "")
    event = an_event(a_task("succeeded"))
    return Attempted(delivery, event, attempt, Result("ok", ""), decision, NOW, Terms(), rulebook())


@pytest.mark.parametrize("stale", [{"lease_token": 6}, {"lease_token": 8}])
async def test_a_stale_lease_writes_nothing(store: Store, stale: dict[str, int]) -> None:
    """Neither an attempt nor a hand-back under another token changes the delivery, and no attempt is kept."""
    delivery = await leased(store)
    old = replace(delivery, **stale)
    assert not (await store.run(attempted(old, "dead"))).held
    assert await store.run(HandBack([old], NOW)) == 0
    assert await delivery_of(store, delivery.id) == delivery
    assert rows_of(store, "SELECT count(*) FROM attempts") == [(0,)]


async def test_a_lease_writes_once(store: Store) -> None:
    """The second write under the same lease changes nothing: the first one ended it."""
    delivery = await leased(store)
    assert (await store.run(attempted(delivery, "pending"))).held
    assert not (await store.run(attempted(delivery, "dead"))).held
    stored = await delivery_of(store, delivery.id)
    assert (stored.state, stored.attempt_count, stored.due_at, stored.leased_until) == ("pending", 1, later(5), None)
    assert rows_of(store, "SELECT count(*) FROM attempts") == [(1,)]


async def test_a_hand_back_spends_no_attempt(store: Store) -> None:
    """It is due at once, and its count is as before."""
    delivery = await leased(store)
    assert await store.run(HandBack([delivery], later(1))) == 1
    stored = await delivery_of(store, delivery.id)
    assert (stored.state, stored.attempt_count, stored.due_at, stored.lease_token) == ("pending", 0, later(1), 7)


async def test_a_lease_that_came_to_nothing_is_given_back_by_nobody(store: Store) -> None:
    """Its commit was lost, and another instance's claim has its number: that one is at work on the delivery."""
    delivery = await leased(store)
    lost = replace(delivery, leased_until=later(1))
    assert await store.run(HandBack([lost], later(1))) == 0
    assert await delivery_of(store, delivery.id) == delivery


async def test_a_lookup_that_outlived_its_lease_leaves_the_schedule(store: Store) -> None:
    """It still tells the truth, but when the next lookup is due is the business of the one that followed it."""
    task = a_task(poll_due_at=later(90), poll_leased_until=later(90))
    await put(store, task)
    stale = lookup(task, Observation("running", upstream_id="up-1"), at=later(70), lease=later(60))
    recorded = await store.run(stale)
    stored = await task_of(store, task.id)
    assert recorded.task.state == stored.state == "running"
    assert (stored.poll_due_at, stored.poll_leased_until) == (later(90), later(90))


async def test_a_lookup_that_outlived_its_lease_may_still_end_the_task(store: Store) -> None:
    """A terminal word is the truth whoever brings it, and it comes once."""
    task = a_task(poll_due_at=later(90), poll_leased_until=later(90))
    await put(store, task)
    seen = Observation("succeeded", upstream_id="up-1", video_url="https://x.example/v")
    await store.run(lookup(task, seen, at=later(70), lease=later(60)))
    await store.run(lookup(task, seen, at=later(71)))
    stored = await task_of(store, task.id)
    assert (stored.state, stored.poll_due_at, stored.poll_leased_until) == ("succeeded", None, None)
    assert await events_of(store, task.id) == ["task.succeeded"]
    assert len(await deliveries_of(store, task.id)) == 1


async def test_a_late_word_about_a_key_is_not_for_the_task_that_has_it_now(store: Store) -> None:
    """Its first task was rejected and the key forgotten; another was taken under it, and must not be paid again."""
    asked, first, second = Asked("k" * 64, "r" * 64), a_task("rejected"), a_task()
    assert (await store.run(Accept(first, None, asked))).known is None
    await store.run(Forget(asked.key, first.id))
    assert (await store.run(Accept(second, None, asked))).known is None
    await store.run(Forget(asked.key, first.id))
    await store.run(KeepAnswer(asked.key, first.id, 429, None, b"come again"))
    known = (await store.run(Accept(a_task(), None, asked))).known
    assert known is not None
    assert (known.task_id, known.status) == (second.id, None)
    await store.run(KeepAnswer(asked.key, second.id, 200, None, b"taken"))
    await store.run(KeepAnswer(asked.key, second.id, 504, None, b"later"))
    again = (await store.run(Accept(a_task(), None, asked))).known
    assert again is not None
    assert (again.status, again.body) == (200, b"taken")
