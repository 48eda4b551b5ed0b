"""The deliverer: a lane for every destination, slots, leases, and the one guarded write after each attempt."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import orjson
import pytest
from msgspec.structs import replace as changed

from receiver.app import clock
from receiver.deliver import Claim
from receiver.destinations.base import Kind, Options, Steps
from receiver.destinations.webhook import WebhookOptions
from receiver.wire import HttpRequest
from tests import databases
from tests.deliver_room import running, to
from tests.rooms import (
    PATIENCE,
    a_delivery,
    a_task,
    an_event,
    deliveries_of,
    delivery_of,
    on_disk,
    one_batch,
    put,
    rows_of,
    until,
)
from tests.world import Sink, sink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from receiver.records import Delivery, Event
    from receiver.store import Store

pytestmark = [pytest.mark.anyio, pytest.mark.engines]


@pytest.fixture
async def target() -> AsyncIterator[Sink]:
    """A consumer."""
    async with sink() as one:
        yield one


# -- lanes and slots ---------------------------------------------------------------------------------------------------


async def test_what_is_due_is_delivered(store: Store, target: Sink) -> None:
    """Signed, once, under its event's id; the attempt is kept with what was answered."""
    async with running(store, to(target.url)) as room:
        (delivery,) = await room.given()
        done = await room.until(delivery, "delivered")
        assert (done.attempt_count, done.leased_until, done.due_at) == (1, None, None)
        assert [one.id for one in target.received] == [delivery.event_id]
        assert room.attempts(delivery) == [(1, "ok")]
        (line,) = room.log.of("delivery.attempted")
        assert (line["result"], line["status"], line["stored"]) == ("ok", 200, True)
        ((request, response),) = rows_of(store, "SELECT request_json, response_json FROM attempts")
        assert orjson.loads(request)["headers"]["webhook-id"] == delivery.event_id
        assert orjson.loads(response)["body"] == "ok"


async def test_a_slow_destination_delays_nobody(store: Store, target: Sink) -> None:
    """One hangs with all its slots and a queue behind them; another's deliveries all arrive meanwhile."""
    async with sink() as slow:
        slow.answers.extend([None] * 50)
        async with running(store, to(slow.url, "slow", max_concurrency=2), to(target.url)) as room:
            waiting = await room.given("slow", 20)
            await room.busy(2)
            for delivery in await room.given("sink", 20):
                await room.until(delivery, "delivered")
            await slow.until(lambda: len(slow.received) == 2)
            assert {(await delivery_of(store, one.id)).attempt_count for one in waiting} == {0}


async def test_a_destination_has_so_many_slots_and_no_more(store: Store, target: Sink) -> None:
    """What waits behind them waits in memory as far as there is room, and the rest in the store."""
    target.answers.extend([None] * 50)
    async with running(store, to(target.url, max_concurrency=3)) as room:
        async with one_batch(store):
            pass
        waiting = await room.given("sink", 30)
        await room.busy(3)
        await target.until(lambda: len(target.received) == 3)
        lane = room.deliverer._lanes["sink"]
        # A claim of the idle second may have come before all of them were there: another fills the lane.
        await until(lambda: lane.room == 0)
        assert lane.busy == 3
        assert len(lane.waiting) + lane.busy <= lane.capacity == 12
        states = [(await delivery_of(store, one.id)).state for one in waiting]
        assert states.count("leased") == len(lane.waiting) + 3


async def test_every_destination_keeps_a_slot(store: Store, target: Sink) -> None:
    """All slots are taken by others that hang; one of its own is left to each."""
    async with sink() as slow:
        slow.answers.extend([None] * 50)
        destinations = (to(slow.url, "one"), to(slow.url, "two"), to(target.url))
        async with running(store, *destinations, max_concurrency=2) as room:
            await room.given("one", 5)
            await room.busy(2)
            await room.given("two", 5)
            await room.busy(3)
            for delivery in await room.given("sink", 5):
                await room.until(delivery, "delivered")
            lanes = room.deliverer._lanes
            await until(lambda: {name: lane.busy for name, lane in lanes.items()} == {"one": 2, "two": 1, "sink": 0})


async def test_what_was_leased_at_birth_needs_no_claim(store: Store, target: Sink) -> None:
    """It is handed over in memory, with its event."""
    async with running(store, to(target.url)) as room:
        await until(lambda: room.deliverer._lanes["sink"].state == "active")
        task = a_task("succeeded")
        event = an_event(task)
        delivery = a_delivery(
            event, state="leased", due_at=None, lease_token=1, leased_until=clock() + timedelta(seconds=60)
        )
        await put(store, task, event, delivery)
        room.deliverer.take([(delivery, event)])
        assert (await room.until(delivery, "delivered")).lease_token == 1
        assert room.attempts(delivery) == [(1, "ok")]


async def test_room_is_what_the_lane_can_hold(store: Store, target: Sink) -> None:
    """None for a destination that is not there."""
    async with running(store, to(target.url, max_concurrency=2)) as room:
        await until(lambda: room.deliverer.room("sink") == 8)
        assert room.deliverer.room("elsewhere") == 0
    assert room.deliverer.room("sink") == 0


# -- leases ------------------------------------------------------------------------------------------------------------


async def test_no_attempt_is_made_that_its_lease_does_not_cover(store: Store, target: Sink) -> None:
    """It waited too long in memory: nothing is sent and nothing spent; the sweep gives it back."""
    async with running(store, to(target.url)) as room:
        await until(lambda: room.deliverer._lanes["sink"].state == "active")  # else it is given back for that
        (delivery,) = await room.given(state="leased", due_at=None, leased_until=clock() + timedelta(seconds=1))
        event = an_event(a_task(id=delivery.task_id))
        room.deliverer.take([(delivery, changed(event, id=delivery.event_id))])
        await room.busy(0)
        assert await delivery_of(store, delivery.id) == delivery
        assert (target.received, room.attempts(delivery)) == ([], [])


async def test_a_stop_gives_back_what_waits_and_what_does_not_end(store: Store, target: Sink) -> None:
    """No attempt is spent, and the next process finds all of it due."""
    target.answers.extend([None] * 50)
    async with running(store, to(target.url, max_concurrency=2)) as room:
        waiting = await room.given("sink", 6)
        await room.busy(2)
        await target.until(lambda: len(target.received) == 2)
    rows = [await delivery_of(store, one.id) for one in waiting]
    assert {(row.state, row.attempt_count) for row in rows} == {("pending", 0)}
    assert all(row.due_at is not None and row.due_at <= clock() for row in rows)
    target.answers.clear()
    async with running(store, to(target.url)) as room:
        for delivery in waiting:
            await room.until(delivery, "delivered")


async def test_a_stop_lets_attempts_end(store: Store, target: Sink) -> None:
    """What is answered in time is written, and not given back."""
    stops: list[asyncio.Task[None]] = []
    async with running(store, to(target.url)) as room:
        # The stop begins while the request is with the destination and not yet answered.
        target.arrived = lambda _one: stops.append(asyncio.create_task(room.deliverer.stop(PATIENCE)))
        (delivery,) = await room.given()
        await target.until(lambda: bool(stops))
        await stops[0]
        assert (await delivery_of(store, delivery.id)).state == "delivered"
        assert (len(target.received), room.attempts(delivery)) == (1, [(1, "ok")])


async def test_what_is_handed_over_during_a_stop_is_given_back(store: Store, target: Sink) -> None:
    """Its commit was under way when the stop began: it is not left to its lease."""
    target.answers.append(None)
    async with running(store, to(target.url)) as room:
        await room.given()
        await room.busy(1)
        stopping = asyncio.create_task(room.deliverer.stop(0.1))
        await asyncio.sleep(0)
        (late,) = await room.given(state="leased", due_at=None, leased_until=clock() + timedelta(seconds=60))
        room.deliverer.take([(late, an_event(a_task(id=late.task_id)))])
        await stopping
        assert (await delivery_of(store, late.id)).state == "pending"


async def test_what_the_last_batch_hands_over_is_given_back(store: Store, target: Sink) -> None:
    """It comes while the stop gives back what it knows of: where others may be at work no start rescues it."""
    async with running(store, to(target.url)) as room:
        (late,) = await room.given(state="leased", due_at=None, leased_until=clock() + timedelta(seconds=60))
        await until(lambda: not room.deliverer._claiming.locked())
        async with one_batch(store):
            stopping = asyncio.create_task(room.deliverer.stop(0.0))
            await until(lambda: store.writer.waiting)
            room.deliverer.take([(late, an_event(a_task(id=late.task_id)))])
        await stopping
        assert (await delivery_of(store, late.id)).state == "pending"


async def test_what_a_claim_of_the_last_batch_leased_is_given_back(store: Store, target: Sink) -> None:
    """A round hears of its claims only after the stop has heard of its own op, and nobody would look again."""
    async with running(store, to(target.url)) as room:
        await until(lambda: room.deliverer.room("sink") > 0 and not room.deliverer._lanes["sink"].due)
        async with one_batch(store):
            storing = asyncio.create_task(room.given())
            await until(lambda: store.writer.waiting)
            room.deliverer.wake()
            await until(lambda: store.writer.waiting == 2)  # the claim
            stopping = asyncio.create_task(room.deliverer.stop(0.0))
            await asyncio.sleep(0.05)
        [late] = await storing
        await stopping
        assert (await delivery_of(store, late.id)).state == "pending"
        assert target.received == []


async def test_a_pause_holds_what_its_own_batch_claimed(store: Store, target: Sink) -> None:
    """A claim that stands before it in one commit is heard of before it, or the lane would be thought active again."""
    async with running(store, to(target.url)) as room:
        lane = room.deliverer._lanes["sink"]
        await until(lambda: room.deliverer.room("sink") > 0 and not lane.due)
        async with one_batch(store):
            storing = asyncio.create_task(room.given())
            await until(lambda: store.writer.waiting)
            room.deliverer.wake()
            await until(lambda: store.writer.waiting == 2)  # the claim
            pausing = asyncio.create_task(room.deliverer.pause("sink"))
            await until(lambda: store.writer.waiting == 3)
        [late] = await storing
        await pausing
        await until(lambda: not room.deliverer._claiming.locked())
        assert lane.state == "paused"
        await room.until(late, "pending")
        assert target.received == []


async def test_a_stop_outlives_an_outage(store: Store, target: Sink) -> None:
    """The store is away: what could not be given back is said, and the leases run out by themselves."""
    target.answers.append(None)
    async with running(store, to(target.url)) as room:
        (delivery,) = await room.given()
        await room.busy(1)
        with databases.outage(store):
            await room.deliverer.stop(0.0)
        assert room.log.of("deliver.store_unavailable")
        assert (await delivery_of(store, delivery.id)).state == "leased"


# -- attempts ----------------------------------------------------------------------------------------------------------


async def test_retries_follow_the_schedule_in_the_rows(store: Store, target: Sink) -> None:
    """Each attempt is one more row, the next is due by the schedule, and a new process goes on where this ended."""
    target.answers.extend([500, 503])
    slow = [timedelta(0), timedelta(milliseconds=40), timedelta(seconds=30)]
    async with running(store, to(target.url, schedule=slow)) as room:
        (delivery,) = await room.given()
        await until(lambda: len(room.attempts(delivery)) == 2)
        assert (await delivery_of(store, delivery.id)).state == "pending"
        assert room.attempts(delivery) == [(1, "transient"), (2, "throttled")]
        ((_, first), (next_at, second)) = rows_of(
            store, "SELECT next_at, next_at - started_at - duration_ms FROM attempts ORDER BY number"
        )
        assert (first, second) == (40, 30_000)
        assert rows_of(store, "SELECT due_at FROM deliveries") == [(next_at,)]
    await asyncio.to_thread(make_due, store, delivery)
    async with running(store, to(target.url, schedule=slow)) as room:
        assert (await room.until(delivery, "delivered")).attempt_count == 3
    assert {one.id for one in target.received} == {delivery.event_id}


def make_due(store: Store, delivery: Delivery) -> None:
    """As if its time had come."""
    on_disk(store, "UPDATE deliveries SET due_at = 1 WHERE id = ?", delivery.id)


async def test_the_last_attempt_ends_it(store: Store, target: Sink) -> None:
    """As many attempts as the schedule has entries; then it is dead, visibly."""
    target.answers.extend([500] * 9)
    async with running(store, to(target.url)) as room:
        (delivery,) = await room.given()
        done = await room.until(delivery, "dead")
        assert (done.attempt_count, done.due_at, len(target.received)) == (3, None, 3)
        assert done.finished_at is not None
        (line,) = room.log.of("delivery.dead")
        assert "last of 3" in line["reason"]


async def test_a_redelivery_has_a_budget_of_its_own(store: Store, target: Sink) -> None:
    """Numbers go on; the schedule begins anew."""
    target.answers.extend([500] * 2)
    async with running(store, to(target.url)) as room:
        (delivery,) = await room.given(attempt_count=3, budget_from=3)
        assert (await room.until(delivery, "delivered")).attempt_count == 6
        assert [number for number, _ in room.attempts(delivery)] == [4, 5, 6]
        assert rows_of(store, "SELECT DISTINCT redelivery FROM attempts") == [(1,)]


async def test_an_outage_of_the_store_sends_nothing_twice(store: Store, target: Sink) -> None:
    """The answer came while the database was away: it is written when that is back, under the lease it has."""
    async with running(store, to(target.url)) as room:
        away = databases.Outage(store)
        target.arrived = lambda _one: away.begin()
        (delivery,) = await room.given()
        await target.until(lambda: bool(target.received))
        await until(lambda: store.writer.failure is not None)
        target.arrived = lambda _one: None
        away.end()
        await room.until(delivery, "delivered")
        assert (len(target.received), room.attempts(delivery)) == (1, [(1, "ok")])


def _broken_flow(event: Event, options: Options, *, now: object, home: object) -> Steps:
    raise RuntimeError("a fault of this kind")
    yield


def _breaks_later(event: Event, options: WebhookOptions, *, now: object, home: object) -> Steps:
    yield HttpRequest("POST", options.url, {}, b"{}")
    raise RuntimeError("a fault of this kind")


@pytest.mark.parametrize("flow", [_broken_flow, _breaks_later])
async def test_a_fault_of_a_kind_is_an_attempt(store: Store, target: Sink, flow: Callable[..., Steps]) -> None:
    """A flow that raises must not come back for ever without a trace: it is spent, told, and ends dead."""
    destination = to(target.url, kind=Kind("broken", Options, flow), options=WebhookOptions(url=target.url))
    async with running(store, destination) as room:
        (delivery,) = await room.given()
        assert (await room.until(delivery, "dead")).attempt_count == 3
        ((reason,),) = rows_of(store, "SELECT DISTINCT error FROM attempts")
        assert "RuntimeError" in reason
        assert "a fault of this kind" in room.log.of("delivery.failed")[0]["error"]


# -- claims ------------------------------------------------------------------------------------------------------------


async def test_a_claim_is_of_one_destination_and_oldest_due_first(store: Store) -> None:
    """Not what is due later, nor what another has; and it says when there is more."""
    now = clock()
    task = a_task("succeeded")
    event = an_event(task)
    dues = [a_delivery(event, due_at=now - timedelta(seconds=n)) for n in (1, 3, 2)]
    ahead = a_delivery(event, due_at=now + timedelta(seconds=9))
    other = a_delivery(event, "other", due_at=now - timedelta(seconds=9))
    held = a_delivery(event, state="leased", due_at=None, leased_until=now + timedelta(seconds=9))
    await put(store, task, event, *dues, ahead, other, held)
    lease = now + timedelta(seconds=60)
    claimed = await store.run(Claim(store, "sink", 2, now, lease))
    leased, upcoming = claimed.leased, claimed.upcoming
    assert [delivery.id for delivery, _ in leased] == [dues[1].id, dues[2].id]
    assert {(one.state, one.leased_until, one.lease_token, one.due_at) for one, _ in leased} == {
        ("leased", lease, 1, None)
    }
    assert all(one.id == event.id for _, one in leased)
    assert upcoming == dues[0].due_at
    assert await deliveries_of(store, task.id) != []
