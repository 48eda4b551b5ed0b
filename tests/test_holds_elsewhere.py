"""Two instances on one database: once one of them was told to wait, the other makes no call either, whatever it holds.

Here they tell one another nothing (there is no herald), and none looks once a second by itself: what it has in memory,
or is about to be given, it must ask about before each call. So nothing depends on who is quicker; and their clock
stands still until the platform's wait is over, so that it is not over before what is to be held by it was begun.
"""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from receiver.app import clock
from receiver.destinations import webhook
from receiver.destinations.base import Kind
from receiver.destinations.webhook import WebhookOptions
from receiver.errors import Conflict, StoreUnavailable
from receiver.store import Store
from receiver.wire import HttpRequest
from tests import databases
from tests.deliver_room import Room, Standing, running, to
from tests.pg_proxy import proxy
from tests.platforms import Platform, Said, Shown, served
from tests.rooms import PATIENCE, Do, a_delivery, a_task, an_event, delivery_of, one_batch, opened, put, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from aiohttp import web

    from receiver.deliver import Deliverer, Destination
    from receiver.destinations.base import Steps
    from receiver.records import Attempt, Delivery, Event
    from receiver.store import Unit
    from tests.platforms import Asked

pytestmark = [pytest.mark.anyio, pytest.mark.engine("postgresql")]
WAIT = 0.7
"""Seconds that the platform asks for."""
SECOND = timedelta(seconds=1)
BLOCKED = "SELECT pid FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"


class Strict(Platform):
    """Takes everything; what is posted to `/slow` is answered when `go_on` is set, and `/slower` likewise."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on, self.go_on_too = asyncio.Event(), asyncio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        """Take one request."""
        answer = await super().handle(request)
        if gate := {"/slow": self.go_on, "/slower": self.go_on_too}.get(request.path):
            await gate.wait()
        return answer

    def throttled(self, wait: float) -> Said:
        """As every webhook may say it."""
        return Said(429, b"", {"retry-after": str(wait)}, wait)

    def take(self, asked: Asked) -> tuple[Said, Shown]:
        """Anything."""
        return Said(), Shown(asked.path)


@pytest.fixture
async def platform() -> AsyncIterator[Strict]:
    """The platform."""
    async with served(Strict()) as one:
        yield one
        one.go_on.set()
        one.go_on_too.set()


@asynccontextmanager
async def two(
    folder: Path, here: Destination, *there: Destination, max_concurrency: int = 64
) -> AsyncIterator[tuple[Room, Room]]:
    """Two deliverers, each with a store of its own on one database; they look at nothing by themselves."""
    url = databases.new(folder)
    stores, standing = (Store.open(url), Store.open(url)), Standing()
    try:
        async with (
            running(stores[0], here, time=standing) as a,
            running(stores[1], *there, max_concurrency=max_concurrency, time=standing) as b,
        ):
            # What they claimed at their start is heard: a claim still under way would see what is made from here on.
            await until(lambda: is_idle(a) and is_idle(b))
            a.deliverer._look_at = b.deliverer._look_at = math.inf
            yield a, b
    finally:
        await asyncio.gather(*(store.close() for store in stores))


def is_idle(room: Room) -> bool:
    """It has looked at every lane, and its round is over."""
    lanes = room.deliverer._lanes.values()
    return not room.deliverer._claiming.locked() and all(lane.state is not None and not lane.due for lane in lanes)


async def told(room: Room, platform: Strict) -> Delivery:
    """This instance is told to wait, and that is committed; by what it tried to deliver."""
    platform.script.append(platform.throttled(WAIT))
    before = room.deliverer.clock() - SECOND  # before all that waits: it is the one who is answered so
    (first,) = await room.given(due_at=before)
    await until(lambda: room.attempts(first) == [(1, "throttled")])
    return first


async def ended_well(room: Room, made: Sequence[Delivery], platform: Strict) -> None:
    """The wait is over: all of them arrive, with one attempt each, and nobody came too early."""
    standing = room.deliverer.clock
    assert isinstance(standing, Standing)
    await until(lambda: time.monotonic() > platform._quiet_until)
    standing.now += WAIT * SECOND
    room.deliverer._look_at = 0.0
    for delivery in made:
        assert (await room.until(delivery, "delivered")).attempt_count == 1
        assert room.attempts(delivery) == [(1, "ok")]
    assert platform.early == []


async def test_what_waits_in_the_memory_of_another_waits_on(tmp_path: Path, platform: Strict) -> None:
    """Leased there and waiting for a slot, also where a hand asked for it: it goes back, and costs no attempt."""
    there = to(f"{platform.base}/slower"), to(f"{platform.base}/slow", "other")
    async with two(tmp_path, to(f"{platform.base}/a"), *there, max_concurrency=2) as (a, b):
        (slow,) = await b.given("other")
        (slower,) = await b.given()
        await platform.until(lambda: len(platform.asked) == 2)
        made = await b.given(count=2)
        lane = b.deliverer._lanes["sink"]
        lane.asked = True
        made += await b.given(forced=True)
        # Not only heard of: a claim that is still to come would take what the other is to be answered for.
        await until(lambda: len(lane.waiting) == 3 and is_idle(b))
        first = await told(a, platform)
        assert lane.held_until is None, "it was told"
        platform.go_on.set()  # what the other destination answers frees a slot
        await b.until(slow, "delivered")
        await until(lambda: not lane.waiting or len(platform.asked) > 3)
        assert len(platform.asked) == 3
        platform.go_on_too.set()
        await ended_well(b, [slower, *made], platform)
        assert (await b.until(first, "delivered")).attempt_count == 2
    assert len(platform.asked) == 3 + 4


def _summary(events: Sequence[Event], options: WebhookOptions, **given: Any) -> Steps:
    return webhook.flow(events[-1], options, **given)


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"rate": (100, SECOND)},
        {"kind": replace(webhook.KIND, name="chat", summary=_summary), "coalesce": (2, 60 * SECOND)},
    ],
    ids=["webhook", "paced", "folded"],
)
async def test_a_claim_under_way_is_asked_about(tmp_path: Path, platform: Strict, over: dict[str, Any]) -> None:
    """It had seen a destination that was well; the other's 429 is committed before it is."""
    async with two(tmp_path, to(f"{platform.base}/a"), to(f"{platform.base}/b", **over)) as (a, b):
        if "coalesce" in over:
            (first,) = await b.given()
            await b.until(first, "delivered")
        made = [await due(b.store, b.deliverer.clock()) for _ in range(3)]
        async with under_way(b):
            await told(a, platform)
        await until(lambda: b.deliverer._lanes["sink"].held_until is not None)
        await ended_well(b, made, platform)


async def due(store: Store, at: datetime) -> Delivery:
    """A delivery that is due, and nobody was told of."""
    event = an_event(a_task("succeeded"))
    delivery = a_delivery(event, due_at=at)
    await put(store, event, delivery)
    return delivery


@asynccontextmanager
async def under_way(room: Room, ask: Callable[[Deliverer], Any] = lambda deliverer: deliverer.wake("sink")) -> Any:
    """What the deliverer does then has read its rows, and commits after the block: the same batch is held up."""
    read, go_on = threading.Event(), threading.Event()

    def stay(unit: Unit) -> None:
        # However long that takes, the server does not end the transaction: others would have what it locked.
        unit._connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        read.set()
        go_on.wait(PATIENCE)

    async with one_batch(room.store):
        ask(room.deliverer)
        await until(lambda: room.store.writer.waiting)
        staying = room.store.writer.run(Do(stay))
    await asyncio.to_thread(read.wait, PATIENCE)
    try:
        yield
    finally:
        go_on.set()
        await staying


async def test_a_test_under_way_is_not_sent(tmp_path: Path, platform: Strict) -> None:
    """By hand, and allowed by what was committed then: it says until when instead."""
    async with two(tmp_path, to(f"{platform.base}/a"), to(f"{platform.base}/b")) as (a, b):
        testing: list[asyncio.Task[Attempt]] = []
        async with under_way(b, lambda deliverer: testing.append(asyncio.create_task(deliverer.test("sink")))):
            await told(a, platform)
        with pytest.raises(Conflict, match="nothing was sent to sink: it asked to be left alone"):
            await testing[0]
    assert len(platform.asked) == 1


def _in_two(_event: Event, options: WebhookOptions, **_given: Any) -> Steps:
    yield HttpRequest("POST", options.url)
    return webhook.judge((yield HttpRequest("POST", options.url)), now=clock())


async def test_the_rest_of_a_message_is_not_said_either(tmp_path: Path, platform: Strict) -> None:
    """Of one in several requests, each is asked about."""
    kind = Kind("two", WebhookOptions, _in_two, steps=2)
    async with two(tmp_path, to(f"{platform.base}/a"), to(f"{platform.base}/slow", kind=kind)) as (a, b):
        (slow,) = await b.given()
        await platform.until(lambda: len(platform.asked) == 1)
        await told(a, platform)
        platform.go_on.set()
        await b.until(slow, "pending")
        assert b.attempts(slow) == [(1, "throttled")]
        assert len(platform.asked) == 2
    assert platform.early == []


async def test_no_attempt_outlives_its_lease_for_a_database_that_is_silent(tmp_path: Path, platform: Strict) -> None:
    """The rest of a message is not said then, and not said late; nor is anything begun."""
    kind = Kind("two", WebhookOptions, _in_two, steps=2)
    destination = to(f"{platform.base}/slow", kind=kind, timeout=1.0, schedule=[timedelta(0), 600 * SECOND])
    silent = threading.Event()
    async with opened(tmp_path) as store, running(store, destination) as room:
        assert store.holds is not None
        (first,) = await room.given()
        await platform.until(lambda: len(platform.asked) == 1)
        store.holds._thread.submit(silent.wait)  # as where its connection says nothing
        try:
            platform.go_on.set()
            await until(lambda: room.attempts(first) == [(1, "transient")])  # or it waited for as long as we
            ((took,),) = databases.ask(store.dialect.url, "SELECT duration_ms FROM attempts")
            assert took <= destination.attempt_for / timedelta(milliseconds=1)
            (second,) = await room.given()
            await until(lambda: room.log.of("deliver.store_unavailable"))
        finally:
            silent.set()
        assert len(platform.asked) == 1
        assert (await room.until(second, "delivered")).attempt_count == 1


async def test_a_slow_answer_does_not_waste_every_start(tmp_path: Path, platform: Strict) -> None:
    """A start that was granted is over before the database has said whether to: the next are granted for longer."""
    over = threading.Event()
    destination = to(f"{platform.base}/a", rate=(20, SECOND))
    async with opened(tmp_path) as store, running(store, destination) as room:
        (first,) = await room.given()
        await room.until(first, "delivered")
        assert store.holds is not None
        asks = store.holds._thread

        def slowly() -> None:
            if not over.wait(0.4):
                asks.submit(slowly)

        asks.submit(slowly)
        try:
            made = await room.given(count=8)
            for delivery in made:
                await room.until(delivery, "delivered")
        finally:
            over.set()


async def test_nothing_goes_out_while_nobody_can_be_asked(tmp_path: Path, platform: Strict) -> None:
    """The database is away: what is leased is given back when it is there again, and goes out then."""
    with proxy(databases.new(tmp_path)) as between:
        store = Store.open(between.url)
        try:
            async with running(store, to(f"{platform.base}/a")) as room:
                event = an_event(a_task("succeeded"))
                lease = clock() + 600 * SECOND
                leased = a_delivery(event, state="leased", due_at=None, lease_token=1, leased_until=lease)
                await put(store, event, leased)
                await until(lambda: room.deliverer._lanes["sink"].state == "active")
                between.go_away()
                room.deliverer.take([(leased, event)])
                await until(lambda: room.deliverer._back)
                told = [one["error"] for one in room.log.of("deliver.store_unavailable")]
                assert any("cannot ask who is to be left alone" in one for one in told), told
                assert platform.asked == []
                between.come_back()
                assert (await room.until(leased, "delivered")).attempt_count == 1
        finally:
            await store.close()
    assert len(platform.asked) == 1


async def test_a_stop_begins_no_call_that_was_only_asked_about(tmp_path: Path, platform: Strict) -> None:
    """The answer comes while the service stops: what was leased goes back, for another to make at once."""
    async with opened(tmp_path) as store, running(store, to(f"{platform.base}/a")) as room:
        event = an_event(a_task("succeeded"))
        lease = clock() + 600 * SECOND
        leased = a_delivery(event, state="leased", due_at=None, lease_token=1, leased_until=lease)
        await put(store, event, leased)
        await until(lambda: room.deliverer._lanes["sink"].state == "active")
        room.deliverer._look_at = math.inf
        with closing(store.dialect.connect()) as beside:
            beside.execute("BEGIN")
            beside.execute("LOCK TABLE destinations")
            room.deliverer.take([(leased, event)])
            await until(lambda: databases.ask(store.dialect.url, BLOCKED))
            stopping = asyncio.create_task(room.deliverer.stop(10.0))
            await asyncio.sleep(0)
        await stopping
        found = await delivery_of(store, leased.id)
        assert (found.state, found.attempt_count) == ("pending", 0)
    assert platform.asked == []


async def test_those_who_ask_at_once_ask_together(tmp_path: Path) -> None:
    """Who comes while a question is under way has the next, all of them one; it sees what was committed before it."""
    async with opened(tmp_path) as store:
        beside: Any = store.dialect.connect()
        beside.execute("BEGIN")
        beside.execute("LOCK TABLE destinations")
        first = asyncio.create_task(store.held(clock()))
        await until(lambda: databases.ask(store.dialect.url, BLOCKED))
        late = [asyncio.create_task(store.held(clock())) for _ in range(20)]
        await asyncio.sleep(0)
        later = 4_102_444_800_000
        beside.execute(f"INSERT INTO destinations (name, state, held_until) VALUES ('sink', 'active', {later})")
        beside.execute("COMMIT")
        beside.close()
        answers = await asyncio.gather(*late)
        assert answers[0].keys() == {"sink"}
        assert all(answer is answers[0] for answer in answers)
        assert await first is not answers[0]


async def test_a_connection_that_died_is_nobodys_concern(tmp_path: Path) -> None:
    """It was idle when the server ended it: the question is asked on a new one."""
    async with opened(tmp_path) as store:
        assert store.holds is not None
        assert await store.held(clock()) == {}
        session = store.holds._session
        assert session is not None
        databases.ask(store.dialect.url, f"SELECT pg_terminate_backend({session.connection.info.backend_pid}, 5000)")
        assert await store.held(clock()) == {}
        assert store.holds._session is not session


async def test_who_stops_asking_takes_the_answer_from_nobody(tmp_path: Path) -> None:
    """One of those who ask together is cancelled."""
    async with opened(tmp_path) as store:
        one, other = (asyncio.create_task(store.held(clock())) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        assert await other == {}
        assert one.cancelled()


async def test_an_answer_that_nobody_waits_for_is_nobodys_concern(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All who asked were cancelled, and then the database did not answer: no line is written of it."""
    async with opened(tmp_path) as store:
        await store.held(clock())
        assert store.holds is not None
        with closing(store.dialect.connect()) as beside:
            beside.execute("BEGIN")
            beside.execute("LOCK TABLE destinations")
            asking = [asyncio.create_task(store.held(clock()))]
            await until(lambda: databases.ask(store.dialect.url, BLOCKED))
            asking.append(asyncio.create_task(store.held(clock())))
            await asyncio.sleep(0)
            for one in asking:
                one.cancel()
            await asyncio.wait(asking)
            ending = asyncio.create_task(store.holds.close())
            await asyncio.sleep(0)
            for (pid,) in databases.ask(store.dialect.url, BLOCKED):
                databases.ask(store.dialect.url, f"SELECT pg_terminate_backend({pid}, 5000)")
            async with asyncio.timeout(5):  # while the table is locked: a store that is closed asks nobody again
                await ending
        store.holds = None
    gc.collect()
    await asyncio.sleep(0)
    assert caplog.records == []


async def test_a_store_that_is_closed_answers_nobody(tmp_path: Path) -> None:
    """Whoever asks then does not call."""
    async with opened(tmp_path) as store:
        await store.held(clock())
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        await store.held(clock())
