"""Deliveries against a hostile reviewer: wakes that were lost, loops that span, backlogs that starved others."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from receiver import health
from receiver.app import clock
from receiver.deliver import Claim, loop
from receiver.health import Terms
from receiver.ids import DeliveryId
from receiver.ingest import Born
from receiver.ingest.record import record
from receiver.records import Health
from receiver.retry import Result
from receiver.routing import OWN_CALLBACK, Rule
from tests.deliver_room import Room, running, to
from tests.rooms import (
    NOW,
    PATIENCE,
    Do,
    a_delivery,
    a_task,
    an_event,
    delivery_of,
    one_batch,
    put,
    rows_of,
    rulebook,
    until,
)
from tests.world import Sink, sink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from receiver.records import Delivery
    from receiver.store import Store, Unit

pytestmark = [pytest.mark.anyio, pytest.mark.engines]
FAR = [timedelta(0), timedelta(hours=1), timedelta(hours=1)]


@pytest.fixture
async def target() -> AsyncIterator[Sink]:
    """A consumer."""
    async with sink() as one:
        yield one


@asynccontextmanager
async def noise(room: Room, name: str) -> AsyncIterator[None]:
    """Another lane is woken all the time, as one with a rate and steady work is."""

    async def wake() -> None:
        while True:
            room.deliverer.wake(name)
            await asyncio.sleep(0.05)

    waking = asyncio.create_task(wake())
    try:
        yield
    finally:
        waking.cancel()
        await asyncio.gather(waking, return_exceptions=True)


async def is_in(store: Store, delivery: Delivery, state: str) -> bool:
    """Whether it gets into a state; what never comes is waited for as long as anything is."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        if (await delivery_of(store, delivery.id)).state == state:
            return True
        await asyncio.sleep(0.02)
    return False


async def commits_a_second(store: Store) -> float:
    """How many transactions are made in a second; on a busy machine that second may be a long one."""
    before, began = store.writer.commits, time.monotonic()
    await asyncio.sleep(1.0)
    return (store.writer.commits - before) / (time.monotonic() - began)


async def all_delivered(store: Store) -> None:
    """Wait until nothing else is left."""
    await until(lambda: rows_of(store, "SELECT 1 FROM deliveries WHERE state <> 'delivered' LIMIT 1") == [])


async def many(store: Store, count: int, destination: str, **over: Any) -> list[Delivery]:
    """Due deliveries of one event, stored at once."""
    event = an_event(a_task("succeeded"))
    made = [a_delivery(event, destination, **{"due_at": clock(), **over}) for _ in range(count)]
    await put(store, event, *made)
    return made


# 1 -- wakes that are lost -------------------------------------------------------------------------------------------


async def test_a_wake_during_a_claim_is_not_lost(store: Store, target: Sink) -> None:
    """What is committed behind a claim in the same batch is found, also while other lanes are woken all the time."""
    async with running(store, to(target.url), to("http://127.0.0.1:1", "noise")) as room:
        await until(lambda: room.deliverer.room("sink") > 0)
        task = a_task("succeeded")
        event = an_event(task)
        delivery = a_delivery(event, due_at=clock())

        async def committed() -> None:
            await put(store, task, event, delivery)
            room.deliverer.wake("sink")  # what After.born does

        async with one_batch(store):
            room.deliverer.wake("sink")
            await until(lambda: store.writer._queue.qsize() >= 1)  # the claim
            storing = asyncio.create_task(committed())
            await until(lambda: store.writer._queue.qsize() >= 2)
        async with noise(room, "noise"):
            await storing
            assert await is_in(store, delivery, "delivered"), "due, its lane idle, and never claimed"


async def test_a_redelivery_during_a_claim_is_tried_at_once(store: Store, target: Sink) -> None:
    """`asked` is not forgotten where it is said while a claim is under way."""
    async with running(store, to(target.url), to("http://127.0.0.1:1", "noise")) as room:
        await until(lambda: room.deliverer.room("sink") > 0)
        await room.deliverer.pause("sink")
        (delivery,) = await room.given(state="dead", attempt_count=3, due_at=None)
        await until(lambda: not room.deliverer._lanes["sink"].due)
        async with one_batch(store):
            room.deliverer.wake("sink")
            await until(lambda: store.writer._queue.qsize() >= 1)  # the claim
            asking = asyncio.create_task(room.deliverer.redeliver(delivery.id))
            await until(lambda: store.writer._queue.qsize() >= 2)
        async with noise(room, "noise"):
            await asking
            assert await is_in(store, delivery, "delivered"), "asked for by hand, and never claimed"


async def test_a_retry_that_is_decided_during_a_claim_is_made(store: Store, target: Sink) -> None:
    """The due time that an attempt set is not overwritten by a claim that was made before it."""
    target.answers[:] = [500]
    one = to(target.url, schedule=[timedelta(0), timedelta(milliseconds=300), timedelta(hours=1)])
    async with running(store, one, to("http://127.0.0.1:1", "noise")) as room:
        await until(lambda: room.deliverer.room("sink") > 0)
        reached, go_on = asyncio.Event(), asyncio.Event()
        stored = room.deliverer._trier._stored

        async def slowly(op: Any, until: Any) -> Any:  # only to order the two ops; what they do is theirs
            reached.set()
            await go_on.wait()
            return await stored(op, until)

        room.deliverer._trier._stored = slowly  # type: ignore[method-assign]
        (delivery,) = await room.given()
        await reached.wait()
        async with one_batch(store):
            room.deliverer.wake("sink")
            await until(lambda: store.writer._queue.qsize() >= 1)  # the claim
            go_on.set()
            await until(lambda: store.writer._queue.qsize() >= 2)  # the attempt
        async with noise(room, "noise"):
            assert await is_in(store, delivery, "delivered"), "its retry is due, and never made"


async def test_more_than_a_hundred_asked_for_are_all_tried(store: Store, target: Sink) -> None:
    """A claim takes a hundred; the rest follow, also of a paused destination while other lanes are busy."""
    async with running(store, to(target.url), to("http://127.0.0.1:1", "noise")) as room, noise(room, "noise"):
        await until(lambda: room.deliverer.room("sink") > 0)
        await room.deliverer.pause("sink")
        await many(store, 150, "sink", forced=True, retried=True)
        room.deliverer._lanes["sink"].asked = True
        room.deliverer.wake("sink")
        await all_delivered(store)


async def test_what_is_given_back_by_a_crowded_lane_is_claimed_again(store: Store, target: Sink) -> None:
    """A birth that a shared lane has no place for goes back, and is found again once there is place."""
    own = to("http://127.0.0.1:1", OWN_CALLBACK, max_concurrency=16, per_host=1, terms=None)
    async with running(store, own, to("http://127.0.0.1:1", "noise")) as room, noise(room, "noise"):
        await until(lambda: room.deliverer.room(OWN_CALLBACK) > 0)
        where: dict[str, Any] = {"callback_url": target.url, "callback_host": "one.example"}
        lease = clock() + timedelta(seconds=60)
        event = an_event(a_task("succeeded"))
        born = [
            a_delivery(event, OWN_CALLBACK, state="leased", lease_token=1, leased_until=lease, due_at=None, **where)
            for _ in range(6)
        ]
        await put(store, event, *born)
        room.deliverer.take([(one, event) for one in born])  # its share is four
        await all_delivered(store)


@pytest.mark.parametrize("told", ["once", "of each"])
async def test_a_start_that_comes_while_every_slot_is_taken_is_not_slept_over(
    store: Store, target: Sink, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """A rate grants the next start before there is a slot: nobody waits for the look that is made in any case."""
    monkeypatch.setattr(loop, "IDLE_FOR", 1000.0)
    one = to(target.url, max_concurrency=1, rate=(2, timedelta(milliseconds=400)))
    async with running(store, one) as room:
        deliverer = room.deliverer
        for _ in range(12):
            if told == "of each":
                (delivery,) = await many(store, 1, "sink")
                deliverer.after.deliver("sink", delivery.due_at)
                await asyncio.sleep(0.15)
            else:
                await many(store, 1, "sink")
        deliverer.wake("sink")
        await all_delivered(store)


# 2 -- loops that burn -----------------------------------------------------------------------------------------------


async def test_an_open_circuit_with_nothing_due_does_not_spin(store: Store, target: Sink) -> None:
    """The pause is over and nothing is due: one look a second, not a hundred, and no others' looks with it."""
    target.answers[:] = [500] * 99
    others = [to("http://127.0.0.1:1", f"other-{n}") for n in range(9)]
    sink_ = to(target.url, schedule=FAR, terms=Terms(failures=1, pause=timedelta(milliseconds=50)))
    async with running(store, sink_, *others) as room:
        await room.given()
        await room.is_in_state("open")
        await asyncio.sleep(0.3)
        commits = await commits_a_second(store)
        assert commits < 20, f"{commits} transactions in a second of nothing"


async def test_a_host_that_hangs_does_not_make_its_lane_spin(store: Store) -> None:
    """One host has its share, and thousands wait behind it: nothing to do until one of its slots is free."""
    own = to("http://127.0.0.1:1", OWN_CALLBACK, max_concurrency=16, per_host=4, terms=None, timeout=20.0)
    async with sink() as slow:
        slow.answers[:] = [None] * 99
        async with running(store, own) as room:
            await many(store, 5000, OWN_CALLBACK, callback_url=slow.url, callback_host="slow.example")
            room.deliverer.wake(OWN_CALLBACK)
            await room.busy(4)
            await asyncio.sleep(0.3)
            commits = await commits_a_second(store)
            assert commits < 10, f"{commits} transactions in a second, each with a look at all 5000"


async def test_a_slow_destination_with_a_small_rate_does_not_spin(store: Store) -> None:
    """Its slots are taken, one waits for the rate that is free: nothing to do until a slot is."""
    async with sink() as slow:
        slow.answers[:] = [None] * 99
        one = to(slow.url, max_concurrency=2, rate=(1, timedelta(milliseconds=100)), timeout=20.0)
        async with running(store, one) as room:
            await many(store, 50, "sink")
            room.deliverer.wake("sink")
            await room.busy(2)
            await asyncio.sleep(0.5)
            commits = await commits_a_second(store)
            assert commits < 10, f"{commits} transactions in a second"


async def test_a_rate_does_not_make_all_other_lanes_claim(store: Store, target: Sink) -> None:
    """A lane whose next is due in 20 ms wakes itself, not forty others."""
    others = [to("http://127.0.0.1:1", f"other-{n}") for n in range(40)]
    async with running(store, to(target.url, rate=(1, timedelta(milliseconds=20))), *others) as room:
        await many(store, 500, "sink")
        room.deliverer.wake("sink")
        await until(lambda: len(target.received) > 5)
        claims = 0
        run = store.writer.run

        def counted(op: Any) -> Any:
            nonlocal claims
            claims += isinstance(op, Claim)
            return run(op)

        store.writer.run = counted  # type: ignore[method-assign]
        began = time.monotonic()
        await asyncio.sleep(1.0)
        claims_a_second = claims / (time.monotonic() - began)
        assert claims_a_second < 250, f"{claims_a_second} claims in a second, for one lane that has work"


# 3 -- starvation ----------------------------------------------------------------------------------------------------


async def test_births_do_not_starve_what_waits_in_the_store(store: Store) -> None:
    """A lane that is never half empty still takes what is due: new results must not pass by older ones for ever."""
    task = a_task("succeeded")
    await put(store, task)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                await reader.readexactly(int(head.split("content-length:")[1].split()[0]))
                await asyncio.sleep(0.02)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
    rooms: list[Room] = []
    rules = rulebook(rules=[Rule("sink")], room=lambda name: rooms[0].deliverer.room(name) if rooms else 0)
    async with running(store, to(url, max_concurrency=2), rules=rules) as room:
        rooms.append(room)
        await until(lambda: room.deliverer.room("sink") > 0)

        async def bear() -> None:
            while True:

                def one(unit: Unit) -> Born:
                    born = Born()
                    record(unit, task, "task.succeeded", rules, clock(), born)
                    return born

                if room.deliverer.room("sink") > 0:
                    room.deliverer.after.born(await store.run(Do(one)))
                else:
                    await asyncio.sleep(0.001)

        bearing = asyncio.create_task(bear())
        try:
            await until(lambda: room.deliverer.room("sink") <= 1)
            event = an_event(task)
            old = a_delivery(event, due_at=clock() - timedelta(hours=1), attempt_count=1, retried=True)
            await put(store, event, old)
            room.deliverer.wake("sink")
            assert await is_in(store, old, "delivered"), "due for an hour, passed by all that is born"
        finally:
            bearing.cancel()
            await asyncio.gather(bearing, return_exceptions=True)
            listener.close()


async def test_of_a_rate_retries_get_their_half(store: Store, target: Sink) -> None:
    """Where the rate frees one place at a time, new work does not take each of them."""
    async with running(store, to(target.url, rate=(1, timedelta(milliseconds=30)))) as room:
        again = await many(store, 5, "sink", retried=True, attempt_count=1, due_at=clock() - timedelta(hours=9))
        await many(store, 60, "sink")
        room.deliverer.wake("sink")
        await until(lambda: len(target.received) >= 20)
        states = [(await delivery_of(store, one.id)).state for one in again]
        assert states.count("delivered") >= 3, (
            f"of twenty sent {states.count('delivered')} are retries, due for nine hours"
        )


async def test_forced_ones_to_a_hanging_host_leave_the_others_their_slots(store: Store, target: Sink) -> None:
    """A hundred redeliveries to one caller's host must not fill the lane that all callers share."""
    own = to("http://127.0.0.1:1", OWN_CALLBACK, max_concurrency=16, per_host=4, terms=None, timeout=20.0)
    async with sink() as slow:
        slow.answers[:] = [None] * 999
        async with running(store, own) as room:
            await until(lambda: room.deliverer.room(OWN_CALLBACK) > 0)
            await many(
                store, 100, OWN_CALLBACK, callback_url=slow.url, callback_host="slow.example", forced=True, retried=True
            )
            room.deliverer._lanes[OWN_CALLBACK].asked = True
            room.deliverer.wake(OWN_CALLBACK)
            await room.busy(4)
            (other,) = await room.given(OWN_CALLBACK, callback_url=target.url, callback_host="fast.example")
            assert await is_in(store, other, "delivered"), "one host's redeliveries hold up every other caller"


async def test_the_first_lanes_do_not_take_every_free_slot(store: Store) -> None:
    """Two lanes with the same work and the same speed share the slots; the order in the config is no rank."""
    done = {"a": 0, "b": 0}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                await reader.readexactly(int(head.lower().split("content-length:")[1].split()[0]))
                await asyncio.sleep(0.02)
                done[head[6]] += 1
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
    async with running(store, to(f"{url}a", "a"), to(f"{url}b", "b"), max_concurrency=8) as room:
        await many(store, 400, "a")
        await many(store, 400, "b")
        room.deliverer.wake()
        await until(lambda: done["a"] >= 150)
        listener.close()
        assert done["b"] >= 75, done


# 4 -- rates ---------------------------------------------------------------------------------------------------------


# 5 -- what is told --------------------------------------------------------------------------------------------------


def test_an_outage_whose_tenth_failure_is_an_operator_event_is_told() -> None:
    """Its own failures cause none, but the next failure of a result must tell of the open circuit."""
    gone, terms, bad = Health("sink"), Terms(failures=3), Result("transient", "it answered 500")
    told = []
    for n in range(8):
        quiet = n == 2  # the third failure happens to be of a `delivery.dead`
        change = health.after_attempt(
            gone, bad, terms, delivery_id=DeliveryId(f"dlv_{n}"), now=NOW + timedelta(seconds=n), quiet=quiet
        )
        gone = change.health
        told.append(change.told)
    assert gone.state == "open"
    assert told.count("destination.failing") == 1, told


async def test_a_pause_by_an_operator_events_410_is_logged(store: Store, target: Sink) -> None:
    """From then on nothing at all is sent there, for ever: somebody must be able to see when and why."""
    target.answers[:] = [410]
    async with running(store, to(target.url)) as room:
        task = a_task("succeeded")
        event = an_event(task, "delivery.dead")
        await put(store, task, event, a_delivery(event, due_at=clock()))
        room.deliverer.wake("sink")
        await room.is_in_state("paused")
        await until(lambda: room.log.of("destination.paused"))


def test_a_circuit_pauses_an_hour_at_most() -> None:
    """Contract 3: doubling up to 1h. A Retry-After puts off its own delivery, not every other for a day."""
    bad = Result("throttled", "it answered 503 with Retry-After", retry_after=timedelta(hours=24))
    change = health.after_attempt(
        Health("sink"), bad, Terms(failures=1), delivery_id=DeliveryId("dlv_1"), now=NOW, quiet=False
    )
    assert change.health.next_try_at is not None
    assert change.health.next_try_at - NOW <= timedelta(hours=1)


# 6 -- retention -----------------------------------------------------------------------------------------------------


# 7 -- a row that should not be --------------------------------------------------------------------------------------


async def test_a_delivery_without_its_event_does_not_stop_its_lane(store: Store, target: Sink) -> None:
    """One row that is broken (a restored backup, surgery by hand) is one row, not a destination and its neighbours."""
    async with running(store, to(target.url)) as room:
        await until(lambda: room.deliverer.room("sink") > 0)
        orphan = a_delivery(an_event(a_task("succeeded")), due_at=clock() - timedelta(hours=1))
        await put(store, orphan)
        (good,) = await room.given()
        assert await is_in(store, good, "delivered"), "its lane cannot claim anything any more"
