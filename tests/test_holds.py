"""A destination that answers with a wait is not called again before it is over: by no process and no hand."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from msgspec.structs import replace as changed

from receiver.app import clock
from receiver.deliver import Claim
from receiver.deliver.ops import Attempted, Together
from receiver.deliver.trying import STORE_RETRY_FOR
from receiver.destinations import webhook
from receiver.destinations.base import Kind
from receiver.destinations.webhook import WebhookOptions
from receiver.errors import Conflict
from receiver.health import Terms
from receiver.ingest import Born, record_operator
from receiver.records import Health
from receiver.retry import Decision, Result
from receiver.routing import Rule
from receiver.store import Store
from receiver.wire import HttpRequest
from tests import databases
from tests.deliver_room import Standing, running, to
from tests.platforms import Asked, Platform, served
from tests.rooms import (
    NOW,
    PATIENCE,
    Do,
    a_delivery,
    a_task,
    an_attempt,
    an_event,
    delivery_of,
    on_disk,
    put,
    rulebook,
    until,
)
from tests.world import Sink, sink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from receiver.destinations.base import Steps
    from receiver.records import Delivery, Event
    from receiver.store import Unit

pytestmark = [pytest.mark.anyio, pytest.mark.engines]
HOUR = timedelta(hours=1)


@pytest.fixture
async def target() -> AsyncIterator[Sink]:
    """A consumer."""
    async with sink() as one:
        yield one


def said(seconds: str) -> tuple[int, dict[str, str]]:
    """A 429 that names its wait."""
    return 429, {"retry-after": seconds}


async def test_nothing_is_sent_before_the_time_it_named(store: Store, target: Sink) -> None:
    """Eight wait in memory and one is asked for by hand: all of them go back untried, and out when it is over."""
    target.answers[:], standing = [said("60")], Standing()
    async with running(store, to(target.url, max_concurrency=1), time=standing) as room:
        made = await room.given(count=7)
        await until(lambda: target.received)
        (late,) = await room.given(state="dead", due_at=None, attempt_count=3)
        await room.deliverer.redeliver(late.id)
        lane = room.deliverer._lanes["sink"]
        await until(lambda: lane.held_until is not None)
        assert (list(lane.waiting), room.deliverer.room("sink")) == ([], 0)
        for seconds in (0, 59.999):
            standing.now += timedelta(seconds=seconds)
            room.deliverer.wake("sink")
            await until(lambda: not lane.due and not room.deliverer._claiming.locked())
            for delivery in [*made, late]:
                await room.until(delivery, "pending")
            assert len(target.received) == 1
        standing.now += timedelta(milliseconds=1)
        room.deliverer.wake("sink")
        for delivery in [*made, late]:
            await room.until(delivery, "delivered")
        assert sum(len(room.attempts(delivery)) for delivery in [*made, late]) == 8 + 1


async def test_a_wait_holds_over_processes_and_restarts(tmp_path: Path, target: Sink) -> None:
    """It is a row: who did not hear it asks before it claims, and a new process hands nothing over."""
    url = databases.new(tmp_path)
    one, two = Store.open(url), Store.open(url)
    target.answers[:] = [said("3600")]
    try:
        async with running(one, to(target.url)) as room:
            await room.given()
            await until(lambda: target.received)
            state = await held(room.store)
        async with running(two, to(target.url)) as other:
            (delivery,) = await other.given(forced=True)
            await until(lambda: other.deliverer._lanes["sink"].held_until is not None)
            assert other.deliverer.room("sink") == 0
            assert other.deliverer._lanes["sink"].held_until == state.held_until
            other.deliverer.take([(changed(delivery, state="leased", lease_token=1), an_event(a_task()))])
            assert not other.deliverer._lanes["sink"].waiting
            resumed = await other.deliverer.resume("sink")
            assert resumed.held_until == state.held_until
            assert (await delivery_of(two, delivery.id)).state == "pending"
    finally:
        await asyncio.gather(one.close(), two.close())
    assert len(target.received) == 1


async def held(store: Store) -> Health:
    """Its health, once it is held."""
    async with asyncio.timeout(PATIENCE):
        while True:
            state = (await store.read(store.health.all)).get("sink")
            if state is not None and state.held_until is not None:
                return state
            await asyncio.sleep(0.005)


async def test_a_claim_leases_nothing_of_one_that_is_held(store: Store) -> None:
    """Not what was asked for by hand, and no probe; then all of it as ever."""
    now, event = clock(), an_event(a_task("succeeded"))
    await put(store, event, a_delivery(event, due_at=now), a_delivery(event, due_at=now, forced=True))
    until_ = (now + HOUR).replace(microsecond=0)
    for state in (Health("sink", held_until=until_), Health("sink", "open", next_try_at=now, held_until=until_)):
        await store.run(Do(partial(_put, state)))
        found = await store.run(Claim(store, "sink", 8, now, now + HOUR))
        assert (found.leased, found.upcoming) == ([], until_)
    assert len((await store.run(Claim(store, "sink", 8, until_, until_ + HOUR))).leased) == 2


def _put(state: Health, unit: Unit) -> None:
    unit.put_health(state)


async def test_a_test_does_not_call_it_either(store: Store, target: Sink) -> None:
    """It says until when; and a wait that a test is told holds all that is really to be sent."""
    target.answers[:] = [said("3600")]
    async with running(store, to(target.url)) as room:
        assert (await room.deliverer.test("sink")).result == "throttled"
        with pytest.raises(Conflict, match="nothing was sent to sink: it asked to be left alone, and may be called"):
            await room.deliverer.test("sink")
        (delivery,) = await room.given()
        await until(lambda: not room.deliverer._lanes["sink"].due)
        assert (await delivery_of(store, delivery.id)).state == "pending"
        assert (await held(store)).consecutive_failures == 0
    assert len(target.received) == 1


async def test_a_word_that_comes_late_does_not_end_a_wait(store: Store, target: Sink) -> None:
    """A claim's answer from before the 429 is heard after it; what waits in memory goes back, whoever asked for it."""
    async with running(store, to(target.url)) as room:
        lane = room.deliverer._lanes["sink"]
        await until(lambda: lane.state == "active")
        event = an_event(a_task("succeeded"))
        lane.waiting.append((a_delivery(event, forced=True), event))
        room.deliverer._heard(lane, Health("sink", held_until=clock() + HOUR))
        assert not lane.waiting
        assert len(room.deliverer._back) == 1
        room.deliverer._heard(lane, Health("sink"))
        assert lane.is_left_alone(clock())
        lane.waiting.append((a_delivery(event), event))
        assert lane.next(clock()) == ()
        assert lane.next(clock() + HOUR) != ()


async def test_a_wait_holds_before_it_is_stored(store: Store, target: Sink) -> None:
    """The writer is busy when it is told to wait: what is born then, and a test by hand, do not go out all the same."""
    gate, busy = threading.Event(), []
    target.arrived = lambda _one: busy.append(asyncio.create_task(store.run(Do(lambda _unit: gate.wait(PATIENCE)))))
    target.answers[:] = [said("3600")]
    async with running(store, to(target.url)) as room:
        lane = room.deliverer._lanes["sink"]
        await room.given()
        try:
            await until(lambda: lane.held_until is not None)
            event = an_event(a_task("succeeded"))
            room.deliverer.take([(a_delivery(event, state="leased", lease_token=1), event)])
            assert (room.deliverer.room("sink"), list(lane.waiting)) == (0, [])
            assert await room.health() is None
        finally:
            gate.set()
        await asyncio.gather(*busy)
        with pytest.raises(Conflict, match="asked to be left alone"):
            await room.deliverer.test("sink")
    assert len(target.received) == 1


async def test_a_full_lane_hears_what_another_instance_was_told(tmp_path: Path, target: Sink) -> None:
    """It has no room to claim, and asks all the same: what waits in its memory goes back before it is tried."""
    url = databases.new(tmp_path)
    one, two = Store.open(url), Store.open(url)
    target.answers[:] = [None]
    try:
        async with running(two, to(target.url, max_concurrency=1, timeout=60.0)) as room:
            await room.given(count=4)
            lane = room.deliverer._lanes["sink"]
            await until(lambda: len(lane.waiting) == 3 and not lane.is_low)
            await target.until(lambda: len(target.received) == 1)
            await one.run(Do(partial(_put, Health("sink", held_until=clock() + HOUR))))
            await until(lambda: not lane.waiting)
            assert lane.is_left_alone(clock())
    finally:
        await asyncio.gather(one.close(), two.close())
    assert len(target.received) == 1


async def test_a_wait_is_kept_where_the_lease_was_lost(store: Store, target: Sink) -> None:
    """Another has the delivery by now, and nothing is written of it; but what the destination asked for is its own."""
    target.arrived = lambda _one: on_disk(store, "UPDATE deliveries SET lease_token = 7")
    target.answers[:] = [said("3600")]
    async with running(store, to(target.url)) as room:
        (delivery,) = await room.given()
        state = await held(store)
        assert (state.state, state.consecutive_failures) == ("active", 0)
        assert room.attempts(delivery) == []
        found = await delivery_of(store, delivery.id)
        assert (found.state, found.lease_token, found.attempt_count) == ("leased", 7, 0)
    assert len(target.received) == 1


async def test_a_wait_is_kept_of_a_group_that_lost_its_leases(store: Store) -> None:
    """Of one, or of all: it is one wait, and whoever still has his lease counts the failure once."""
    throttled = Result("throttled", "too many", retry_after=HOUR)
    for name, lost in (("one", 1), ("all", 3)):
        events = [an_event(a_task("succeeded")) for _ in range(3)]
        leased = [a_delivery(event, name, state="leased", lease_token=1) for event in events]
        stale = [changed(one, lease_token=2) for one in leased[:lost]]
        await put(store, *events, *stale, *leased[lost:])
        ops = [attempted(*pair, throttled) for pair in zip(leased, events, strict=True)]
        tried = await store.run(Together(ops))
        assert [one.held for one in tried] == [False] * lost + [True] * (3 - lost)
        state = (await store.read(store.health.all))[name]
        assert state.held_until == NOW + HOUR
        assert state.consecutive_failures == (lost < 3)


def attempted(delivery: Delivery, event: Event, result: Result) -> Attempted:
    """An attempt that was made, and is to be tried again."""
    made = an_attempt(delivery, result)
    decision = Decision("pending", NOW + HOUR, result.reason)
    return Attempted(delivery, event, made, result, decision, NOW, Terms(failures=9), rulebook(rules=[]))


async def test_a_wait_is_kept_once_the_store_is_back(store: Store, target: Sink) -> None:
    """It is away for longer than the delivery was leased: what was answered is lost then, and the wait is not."""
    away = databases.Outage(store)
    target.arrived = lambda _one: away.begin()
    target.answers[:] = [said("3600")]
    event, standing = an_event(a_task("succeeded")), Standing()
    leased = a_delivery(event, state="leased", due_at=None, lease_token=1, leased_until=standing() + HOUR / 2)
    await put(store, event, leased)
    try:
        async with running(store, to(target.url), time=standing) as room:
            lane = room.deliverer._lanes["sink"]
            await until(lambda: lane.state == "active")
            room.deliverer.take([(leased, event)])
            await until(lambda: lane.held_until is not None and store.writer.failure is not None)
            standing.now += HOUR * 2 / 3
            over = time.monotonic() + 2 * STORE_RETRY_FOR.total_seconds()
            await until(lambda: time.monotonic() > over)
            assert len(room.deliverer._trying) == 1
            away.end()
            await held(store)
    finally:
        away.end()
    assert len(target.received) == 1


@pytest.mark.parametrize("state", [Health("ops", held_until=clock() + HOUR), Health("ops", "paused")])
async def test_nothing_is_handed_over_that_another_instance_knows_to_be_held(store: Store, state: Health) -> None:
    """It is asked in the transaction that makes the delivery; an instance that is alone was told itself."""
    rules = rulebook(rules=[Rule("ops", events=("delivery.dead",))], lanes={}, room=lambda _name: 8)
    born = Born()
    await store.run(Do(partial(_put, state)))
    await store.run(Do(lambda unit: record_operator(unit, "delivery.dead", rules, clock(), born, reason="said")))
    assert len(born.waiting) == store.dialect.is_shared
    assert len(born.leased) == (not store.dialect.is_shared)


class _Slow(Platform):
    """Its first answer comes when it is let go; the second thing it is told is too much."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        """In two requests."""
        self.asked.append(Asked(request.method, request.path, {}, {}, b""))
        self._changed.set()
        if len(self.asked) == 1:
            await self.go_on.wait()
        return web.Response(status=429 if request.path == "/two" else 200, headers={"retry-after": "3600"})


def _in_two(_event: Event, options: WebhookOptions, **_given: Any) -> Steps:
    yield HttpRequest("POST", f"{options.url}/one")
    return webhook.judge((yield HttpRequest("POST", f"{options.url}/two")), now=clock())


async def test_who_asked_to_be_left_alone_is_not_told_the_rest_of_another_message_either(store: Store) -> None:
    """Of a message in several requests, what was not yet made when it answered so is made when it is over."""
    async with served(_Slow()) as platform:
        kind = Kind("two", WebhookOptions, _in_two, steps=2)
        async with running(store, to(platform.base, kind=kind)) as room:
            (slow,) = await room.given()
            await platform.until(lambda: len(platform.asked) == 1)
            await room.given()
            await until(lambda: room.deliverer._lanes["sink"].held_until is not None)
            platform.go_on.set()
            await room.until(slow, "pending")
            assert room.attempts(slow) == [(1, "throttled")]
    assert [one.path for one in platform.asked] == ["/one", "/one", "/two"]
