"""A rate is a row: it holds over processes and restarts, and what has no rate pays nothing for it."""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace as changed

from receiver.app import clock
from receiver.deliver import Claim
from receiver.errors import Conflict
from receiver.pace import Pace, Rate
from receiver.store import Store
from receiver.store.rates import Paced
from receiver.submit import Gates
from receiver.submit.ops import Accept
from receiver.submit.ops import Claim as ClaimTasks
from receiver.submit.repeats import Asked
from tests import databases
from tests.deliver_room import Standing, running, to
from tests.rooms import (
    NOW,
    PRO,
    Do,
    a_delivery,
    a_task,
    an_event,
    callback,
    delivery_of,
    later,
    one_batch,
    put,
    rows_of,
    rulebook,
    task_of,
    until,
)
from tests.world import Sink, script, sink, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime
    from pathlib import Path
    from typing import Any

    from receiver.ids import DeliveryId
    from receiver.records import Delivery, Task
    from receiver.store import Unit

pytestmark = [pytest.mark.anyio, pytest.mark.engines]
SECOND = timedelta(seconds=1)
THREE = Rate("destination:sink", 3, SECOND)


@asynccontextmanager
async def two_on_one(folder: Path) -> AsyncIterator[tuple[Store, Store]]:
    """Two processes' stores on one database: each has a writer of its own."""
    url = databases.new(folder)
    stores = Store.open(url), Store.open(url)
    try:
        yield stores
    finally:
        for store in stores:
            await store.close()


def paced(now: datetime, rate: Rate = THREE) -> Paced:
    """Starts that are asked for and made now."""
    return Paced((rate,), now, now)


async def due(store: Store, count: int, **over: Any) -> list[Delivery]:
    """Deliveries that are due."""
    made = []
    for _ in range(count):
        event = an_event(a_task("succeeded"))
        made.append(a_delivery(event, **{"due_at": NOW, **over}))
        await put(store, event, made[-1])
    return made


def claim(store: Store, at: datetime, limit: int = 8) -> Claim:
    """A claim under a rate of three a second."""
    return Claim(store, "sink", limit, at, at + 60 * SECOND, paced=paced(at))


# -- deliveries --------------------------------------------------------------------------------------------------------


async def test_a_claim_leases_no_more_than_there_are_starts(store: Store) -> None:
    """And says when there is one again; what nobody waits for has no such time."""
    await due(store, 5)
    first = await store.run(claim(store, NOW, limit=2))
    assert (len(first.leased), first.upcoming) == (2, NOW)  # there is a start left, and no place
    second = await store.run(claim(store, later(0.1)))
    assert len(second.leased) == 1
    assert second.upcoming is not None
    assert later(1) <= second.upcoming <= later(1.02)
    third = await store.run(claim(store, later(0.5)))
    assert (third.leased, third.upcoming) == ([], second.upcoming)
    assert len((await store.run(claim(store, second.upcoming))).leased) == 2
    assert (await store.run(claim(store, later(3)))).upcoming is None


async def test_what_is_asked_for_by_hand_has_its_turn_of_the_rate(store: Store) -> None:
    """It comes first, past a pause; but whoever named the limit does not know whose hand it was."""
    await due(store, 4, retried=True)
    asked = await due(store, 4, forced=True)
    first = await store.run(claim(store, NOW))
    assert {one.id for one, _ in first.leased} <= {one.id for one in asked}
    assert (len(first.leased), first.more_asked) == (3, False)
    assert first.upcoming is not None
    second = await store.run(claim(store, first.upcoming))
    assert [one.forced for one, _ in second.leased].count(True) == 1
    assert len(second.leased) == 3


async def test_a_start_is_taken_once_however_often_the_op_is_run(store: Store) -> None:
    """Another op spoils the batch, and each is run again: nothing was leased or counted twice."""
    await due(store, 5)

    def spoil(unit: Unit) -> None:
        unit.changes += 1
        raise Conflict("too late to say so")

    async with one_batch(store):
        spoilt = store.writer.run(Do(spoil))
        claims = [store.writer.run(claim(store, NOW, limit=1)) for _ in range(2)]
    with pytest.raises(Conflict):
        await spoilt
    assert [len((await one).leased) for one in claims] == [1, 1]
    ((starts,),) = rows_of(store, "SELECT starts FROM rates WHERE name = 'destination:sink'")
    assert Pace.of(3, SECOND, starts).free(NOW) == 1


async def test_a_clock_set_back_is_noted_once(store: Store) -> None:
    """Else the time from which it counts would move on with the clock, and never come."""
    await due(store, 5)
    assert len((await store.run(claim(store, later(3600)))).leased) == 3
    found = await store.run(claim(store, NOW))
    assert found.leased == []
    assert found.upcoming is not None
    assert found.upcoming <= later(11.1)
    assert len((await store.run(claim(store, found.upcoming))).leased) == 2


async def test_a_rate_holds_over_processes(tmp_path: Path) -> None:
    """Two of them send what one may: every delivery once, and in no span more than the rate says."""
    per = timedelta(milliseconds=400)
    async with two_on_one(tmp_path) as (one, two), sink() as target:
        there = to(target.url, rate=(5, per))
        async with running(one, there) as room, running(two, there) as other:
            made = await room.given(count=20)
            made += await other.given(count=10)
            for delivery in made:
                assert (await room.until(delivery, "delivered")).attempt_count == 1
        holds(one, target, 30, 5, per)


def holds(store: Store, target: Sink, arrived: int, count: int, per: timedelta) -> None:
    """So many arrived, each once, and never more than `count` were started in a span."""
    assert len(target.received) == len({one.id for one in target.received}) == arrived
    at = [started for (started,) in rows_of(store, "SELECT started_at FROM attempts ORDER BY started_at")]
    assert len(at) == arrived
    least = per.total_seconds() * 1000
    assert [n for n in range(arrived - count) if at[n + count] - at[n] < least] == [], at


async def test_a_restart_remembers_what_was_sent(store: Store, tmp_path: Path) -> None:
    """At one an hour the next process waits for the hour to be over."""
    async with sink() as target:
        there = to(target.url, rate=(1, timedelta(hours=1)))
        async with running(store, there, time=Standing()) as room:
            made = await room.given(count=2)
            await until(lambda: any(map(room.attempts, made)))
        async with running(store, there) as room:
            await until(lambda: room.deliverer._lanes["sink"].state is not None)
            due_at = room.deliverer._lanes["sink"].due_at
            assert due_at is not None
            assert due_at > clock() + timedelta(minutes=55)
            assert len(target.received) == 1
        assert sorted([(await delivery_of(store, one.id)).state for one in made]) == ["delivered", "pending"]


async def test_what_is_granted_and_comes_too_late_is_not_begun(store: Store) -> None:
    """The store was slow: the starts are lost, the deliveries given back untried, and the next time more is allowed."""
    per, standing = timedelta(milliseconds=300), Standing()
    async with sink() as target, running(store, to(target.url, rate=(3, per)), time=standing) as room:
        lane = room.deliverer._lanes["sink"]
        await until(lambda: lane.state is not None and not lane.due)
        made = await room.given(count=3, due_at=clock() + timedelta(hours=1))
        room.deliverer._look_at = math.inf  # one claim is asked for, and no other comes before it
        await until(lambda: not lane.due and not room.deliverer._claiming.locked())
        lag = lane.haste.lag
        async with one_batch(store):
            stored = [store.writer.run(Do(partial(_make_due, one.id))) for one in made]
            room.deliverer.wake("sink")
            await until(lambda: store.writer.waiting == len(made) + 1)
            standing.now += timedelta(milliseconds=500)
        await asyncio.gather(*stored)
        await until(lambda: lane.haste.lag > lag)
        assert target.received == []
        standing.now += timedelta(seconds=5)  # the starts that were lost are over, too
        room.deliverer.wake("sink")
        for delivery in made:
            assert (await room.until(delivery, "delivered")).attempt_count == 1
        assert {(await delivery_of(store, one.id)).lease_token for one in made} == {2}
        holds(store, target, 3, 3, per)


def _make_due(delivery_id: DeliveryId, unit: Unit) -> None:
    delivery = unit.delivery(delivery_id)
    assert delivery is not None
    unit.put_delivery(changed(delivery, due_at=NOW))


async def test_a_rated_destination_hands_nothing_over_at_birth(store: Store) -> None:
    """What is born knows nothing of the rate; it is claimed."""
    async with sink() as target, running(store, to(target.url, rate=(5, SECOND)), to(target.url, "free")) as room:
        await until(lambda: room.deliverer.room("free") > 0)
        assert room.deliverer.room("sink") == 0


async def test_a_test_takes_a_start_too(store: Store) -> None:
    """Where there is none it says when there will be, and nothing is sent."""
    async with sink() as target, running(store, to(target.url, rate=(1, timedelta(hours=1)))) as room:
        assert (await room.deliverer.test("sink")).result == "ok"
        with pytest.raises(
            Conflict, match=r"nothing was sent to sink: its rate is used up, and may be called again at"
        ):
            await room.deliverer.test("sink")
        assert len(target.received) == 1


# -- submissions -------------------------------------------------------------------------------------------------------


def accept(task: Task, at: datetime = NOW, **over: Any) -> Accept:
    """A submission that is sent at once, under a rate of three a second."""
    return replace(Accept(task, None, None, paced(at, Rate("upstream", 3, SECOND))), **over)


async def test_who_is_sent_at_once_takes_a_start_or_goes_to_the_queue(store: Store) -> None:
    """One that had to wait was never under way: no sender, no first try, and it is due."""
    tasks = [a_task("submitting") for _ in range(4)]
    accepted = [await store.run(accept(task)) for task in tasks]
    assert [one.task and one.task.state for one in accepted] == ["submitting"] * 3 + ["pending"]
    assert accepted[-1].paced_until is not None
    assert later(1) <= accepted[-1].paced_until <= later(1.02)
    waits = await task_of(store, tasks[-1].id)
    assert (waits.submit_due_at, waits.submit_leased_until, waits.submit_first_at, waits.deferred) == (
        *(NOW, None, None),
        True,
    )
    paced_ = paced(accepted[-1].paced_until, Rate("upstream", 3, SECOND))
    claimed = await store.run(ClaimTasks(store, PRO, 8, paced_.now, later(60), paced_))
    assert [task.id for task, _ in claimed.tasks] == [waits.id]


async def test_who_cannot_wait_is_not_stored(store: Store) -> None:
    """Nor is its Idempotency-Key; a repeat of one that is known needs no start."""
    for _ in range(3):
        await store.run(accept(a_task("submitting")))
    task, asked = a_task("submitting"), Asked("k" * 64, "r" * 64)
    refused = await store.run(accept(task, asked=asked, may_wait=False))
    assert (refused.task, refused.known) == (None, None)
    assert refused.paced_until is not None
    assert rows_of(store, f"SELECT 1 FROM tasks WHERE id = '{task.id}' UNION ALL SELECT 1 FROM repeats") == []
    assert (await store.run(accept(task, refused.paced_until, asked=asked, may_wait=False))).task is not None
    assert (await store.run(accept(a_task(), asked=asked))).known is not None


async def test_a_claim_of_submissions_keeps_to_the_rate(store: Store) -> None:
    """It says until when the queue waits for the rate, so that this is not taken for a throttled route."""
    await put(store, *(a_task("pending", created_at=later(-n)) for n in range(5)))
    paced_ = paced(NOW, Rate("upstream", 3, SECOND))
    claim_ = ClaimTasks(store, PRO, 8, NOW, later(60), paced_)
    found, none = await store.run(claim_), await store.run(claim_)
    assert (len(found.tasks), none.tasks) == (3, [])
    assert found.paced_until == none.paced_until
    assert found.paced_until is not None
    at = found.paced_until
    rest = await store.run(replace(claim_, now=at, paced=replace(paced_, now=at, by=at)))
    assert (len(rest.tasks), rest.due, rest.paced_until) == (2, None, None)
    assert (await store.run(replace(claim_, limit=1, now=later(9)))).paced_until is None


async def test_the_rate_of_submissions_holds_over_processes(tmp_path: Path) -> None:
    """However many come at once to how many of them."""
    async with two_on_one(tmp_path) as stores:
        ops = [(store, accept(a_task("submitting"))) for store in stores for _ in range(20)]
        accepted = await asyncio.gather(*(store.run(op) for store, op in ops))
        assert [one.task is not None and one.task.state for one in accepted].count("submitting") == 3


async def test_what_is_stored_too_late_is_not_sent(tmp_path: Path) -> None:
    """The start that was granted with it is over: it goes to the queue, surely not taken, and is sent once."""

    def rated(given: dict[str, Any]) -> None:
        given["upstream"]["rate"] = "2/s"

    async with world(tmp_path, change=rated) as here:
        assert here.service is not None
        store, haste = here.service.store, here.service.submitter.gates.haste
        await until(lambda: not here.service or not here.service.submitter.gates.unseen)
        haste.lag, gates = 0.01, here.service.submitter.gates
        async with one_batch(store):
            asking = asyncio.create_task(here.submit(PRO, script()))
            await until(lambda: gates.sending == 1)  # it has asked for its start
            began = clock()
            await until(lambda: clock() - began > timedelta(milliseconds=600))
        answer = await asking
        assert (answer.status_code, answer.json()["state"]) == (202, "pending")
        assert haste.lag > 0.5
        await here.ended(answer.json()["id"])
        assert here.upstream.ledger.submissions.total() == 1


def test_the_rate_makes_callers_and_the_queue_take_turns() -> None:
    """Who passed the queue last lets it go first where it waits for the rate; nobody asks before the hint."""
    now = [NOW]
    gates = Gates(lambda: now[0], 8, [SECOND], Rate("upstream", 3, SECOND), backlog=set(), unseen=set())
    assert gates.may_pass(PRO)
    gates.begin(PRO)
    gates.paced_until(later(1))
    gates.want(PRO, wants=True)
    assert (gates.free(), gates.next_by_rate(), gates.may_pass(PRO)) == (0, later(1), False)
    now[0] = later(1)
    assert (gates.free(), gates.next_by_rate(), gates.may_pass(PRO)) == (7, None, False)
    gates.begin(PRO, queued=True)
    assert gates.may_pass(PRO)


# -- what has no rate --------------------------------------------------------------------------------------------------


class Listening:
    """A connection whose statements are noted; one that is made for many rows is one."""

    def __init__(self, connection: Any) -> None:
        self._heard = connection
        self.said: list[str] = []

    def __getattr__(self, name: str) -> Any:
        """Whatever else it has."""
        return getattr(self._heard, name)

    def execute(self, sql: str, *values: Any) -> Any:
        """Note it, and pass it on."""
        self.said.append(sql)
        return self._heard.execute(sql, *values)

    def executemany(self, sql: str, rows: Any) -> Any:
        """Note it, and pass it on."""
        self.said.append(sql)
        return self._heard.executemany(sql, rows)


async def test_without_a_rate_nothing_is_asked_of_it(store: Store) -> None:
    """A batch of accepts, callbacks and births costs the statements it did, and none about rates.

    Where there are other instances, one tells what they were told by a destination, before anything is handed over.
    """
    tasks = [a_task() for _ in range(3)]
    await put(store, *tasks)
    rules, done = rulebook(room=lambda _name: 8), '{"status":"3","video_url":"https://x.example/v"}'
    listening: Any = Listening(store.writer._connection)
    async with one_batch(store):
        store.writer._connection = listening  # the batch after the one that holds the writer up
        waiting: list[Any] = [store.writer.run(Accept(a_task("submitting"), None)) for _ in range(3)]
        waiting += [store.writer.run(callback(task.id, done, rules=rules)) for task in tasks]
    await asyncio.gather(*waiting)
    said = [f"{sql.split()[0]} {_table(sql)}".strip() for sql in listening.said]
    assert sorted(one for one in said if not one.endswith("writers")) == sorted([
        *("BEGIN", "SELECT tasks", "INSERT tasks", "UPDATE tasks", "INSERT inbox"),
        *("UPDATE counters", "INSERT events", "INSERT deliveries", "COMMIT"),
        *(("SELECT destinations",) if store.dialect.is_shared else ()),
    ])  # fmt: skip


def _table(sql: str) -> str:
    for word in ("FROM ", "INTO ", "UPDATE "):
        if word in sql:
            return sql.split(word, 1)[1].split(maxsplit=1)[0].removeprefix("receiver.")
    return ""
