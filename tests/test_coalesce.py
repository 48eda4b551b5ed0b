"""Past the threshold that the operator set, what is due goes out together: one message, and an attempt for each."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from msgspec.structs import replace as changed

from receiver.deliver import Claim
from receiver.deliver.claims import TOGETHER
from receiver.deliver.lanes import Lane
from receiver.deliver.ops import Attempted, Together
from receiver.destinations import webhook
from receiver.destinations.base import Kind
from receiver.health import Terms
from receiver.pace import Rate
from receiver.retry import Decision, Result
from receiver.routing import Rule
from receiver.store.rates import Paced
from tests.deliver_room import Room, Standing, running, to
from tests.rooms import (
    NOW,
    a_delivery,
    a_task,
    an_attempt,
    an_event,
    delivery_of,
    later,
    put,
    rows_of,
    rulebook,
    until,
)
from tests.world import Sink, sink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from receiver.destinations.base import Steps
    from receiver.destinations.webhook import WebhookOptions
    from receiver.records import Delivery, Event
    from receiver.store import Store

pytestmark = pytest.mark.anyio
SECOND = timedelta(seconds=1)


def summary(events: Sequence[Event], options: WebhookOptions, *, now: datetime, home: str | None = None) -> Steps:
    """One POST that names the events it tells of, signed as the sink wants it."""
    told = {"task_id": "many", "ids": [event.id for event in events], "home": home}
    last = changed(events[-1], type="summary", data_json=orjson.dumps(told).decode())
    return webhook.flow(last, options, now=now, home=home)


CHAT = replace(webhook.KIND, name="chat", summary=summary)


@pytest.fixture
async def target() -> AsyncIterator[Sink]:
    """A consumer."""
    async with sink() as one:
        yield one


def chat(target: Sink, coalesce: tuple[float, timedelta], **over: Any) -> Any:
    """A destination whose events are folded."""
    return to(target.url, kind=CHAT, coalesce=coalesce, **over)


async def due_at_once(room: Room, count: int) -> list[Delivery]:
    """So many that are due at one moment."""
    made: list[Delivery] = []
    rows: list[Event | Delivery] = []
    for _ in range(count):
        event = an_event(a_task("succeeded"))
        made.append(a_delivery(event, due_at=room.deliverer.clock()))
        rows += [event, made[-1]]
    await put(room.store, *rows)
    room.deliverer.wake("sink")
    return made


def told(target: Sink) -> tuple[list[str], list[str]]:
    """The events that arrived in a message of their own, and those that arrived together."""
    alone = [one.id for one in target.received if one.type != "summary"]
    return alone, [name for one in target.received if one.type == "summary" for name in one.data["ids"]]


async def test_a_burst_is_one_message(store: Store, target: Sink) -> None:
    """Each of its deliveries has an attempt of its own, and is delivered by it."""
    one = chat(target, (3, timedelta(hours=1)), home="https://home.example")
    async with running(store, one, time=Standing()) as room:
        made = await due_at_once(room, 30)
        for delivery in made:
            now = await room.until(delivery, "delivered")
            assert (now.attempt_count, room.attempts(delivery)) == (1, [(1, "ok")])
        assert len(room.log.of("delivery.attempted")) == 30
    assert told(target) == ([], sorted(one.event_id for one in made))
    assert [one.data["home"] for one in target.received] == ["https://home.example"]
    assert len(rows_of(store, "SELECT DISTINCT request_json, started_at FROM attempts")) == 1


async def test_up_to_the_threshold_each_has_a_message_of_its_own(store: Store, target: Sink) -> None:
    """Also where the last of the window is used; past it what comes waits for the window, and goes out together."""
    standing = Standing()
    async with running(store, chat(target, (3, 60 * SECOND)), time=standing) as room:
        made = await due_at_once(room, 3)
        for delivery in made:
            await room.until(delivery, "delivered")
        alone, together = told(target)
        assert (sorted(alone), together) == (sorted(one.event_id for one in made), [])
        more = await due_at_once(room, 8)
        lane = room.deliverer._lanes["sink"]
        await until(lambda: lane.due_at is not None and not lane.due)
        assert lane.due_at is not None
        assert lane.due_at - standing.now >= 60 * SECOND
        assert len(target.received) == 3
        standing.now = lane.due_at
        room.deliverer.wake("sink")
        for delivery in more:
            await room.until(delivery, "delivered")
    assert told(target)[1] == sorted(one.event_id for one in more)
    assert len(target.received) == 4


async def test_a_summary_that_fails_is_tried_again(store: Store, target: Sink) -> None:
    """All of it by its schedule, and it counts once for the destination's health."""
    target.answers[:] = [500]
    one = chat(target, (1, timedelta(milliseconds=50)), terms=Terms(failures=3))
    async with running(store, one) as room:
        made = await due_at_once(room, 12)
        for delivery in made:
            assert (await room.until(delivery, "delivered")).attempt_count == 2
        state = await room.health()
        assert state is not None
        assert (state.state, state.consecutive_failures) == ("active", 0)
        assert room.log.of("destination.failing") == []
    assert [one.type for one in target.received] == ["summary"] * 2


async def test_what_was_asked_for_by_hand_has_a_message_of_its_own(store: Store, target: Sink) -> None:
    """Somebody waits for just that one."""
    async with running(store, chat(target, (2, timedelta(hours=1))), time=Standing()) as room:
        await room.deliverer.pause("sink")
        rest = await due_at_once(room, 5)
        (asked,) = await room.given(state="dead", due_at=None, attempt_count=1)
        await room.deliverer.redeliver(asked.id)
        await room.until(asked, "delivered")
        await room.deliverer.resume("sink")
        for delivery in rest:
            await room.until(delivery, "delivered")
    assert told(target) == ([asked.event_id], sorted(one.event_id for one in rest))


async def test_a_stop_gives_the_whole_group_back(store: Store, target: Sink) -> None:
    """None of it is leased to a process that is gone."""
    target.answers[:] = [None]
    async with running(store, chat(target, (1, timedelta(hours=1)), timeout=20.0), time=Standing()) as room:
        made = await due_at_once(room, 6)
        await until(lambda: target.received)
    for delivery in made:
        now = await delivery_of(store, delivery.id)
        assert (now.state, now.attempt_count) == ("pending", 0)


# -- the ops -----------------------------------------------------------------------------------------------------------


async def a_claim(store: Store, count: int, *rates: Rate, limit: int = 8, due: int = 0) -> Any:
    """What is claimed of so many due, under these windows."""
    for _ in range(due):
        event = an_event(a_task("succeeded"))
        await put(store, event, a_delivery(event, due_at=later(-1)))
    paced = Paced(rates or (Rate("coalesce:sink", count, SECOND),), NOW, NOW)
    claim = Claim(store, "sink", limit, NOW, later(60), paced=paced, folded_past="coalesce:sink")
    return await store.run(claim)


async def test_a_group_takes_one_start_and_is_bounded(store: Store) -> None:
    """What is more than it may hold waits for the next start."""
    events = [an_event(a_task("succeeded")) for _ in range(TOGETHER + 20)]
    await put(store, *events, *(a_delivery(event, due_at=later(-1)) for event in events))
    first = await a_claim(store, 2)
    assert (first.leased, len(first.together), first.upcoming) == ([], TOGETHER, NOW)
    second = await a_claim(store, 2)
    assert (second.leased, len(second.together), second.upcoming) == ([], 20, None)
    assert [event.id for _, event in first.together] == sorted(event.id for _, event in first.together)


async def test_a_rate_alone_folds_nothing(store: Store) -> None:
    """A burst below the threshold waits for its turns; only past the threshold it is one message."""
    rates = Rate("destination:sink", 1, SECOND), Rate("coalesce:sink", 5, SECOND)
    found = await a_claim(store, 0, *rates, due=4)
    assert (len(found.leased), found.together) == (1, ())
    assert found.upcoming is not None
    assert found.upcoming >= later(1)
    named = dict(rows_of(store, "SELECT name, starts FROM rates"))
    assert named["destination:sink"] == named["coalesce:sink"] != "[]"


def attempted(delivery: Delivery, event: Event, state: Any = "delivered") -> Attempted:
    """An attempt that was made."""
    result = Result("ok" if state == "delivered" else "transient", "said so")
    made = an_attempt(delivery, result)
    rules = rulebook(rules=[Rule("ops", events=("delivery.dead",))])
    return Attempted(delivery, event, made, result, Decision(state, None, "said so"), NOW, Terms(failures=9), rules)


async def test_each_of_a_group_is_written_under_its_own_lease(store: Store) -> None:
    """One that was rescued meanwhile is left as it is; the destination's health counts the others once."""
    events = [an_event(a_task("succeeded")) for _ in range(3)]
    leased = [a_delivery(one, state="leased", due_at=None, lease_token=1, leased_until=later(60)) for one in events]
    await put(store, *events, changed(leased[0], lease_token=2), *leased[1:])
    ops = [attempted(delivery, event, "dead") for delivery, event in zip(leased, events, strict=True)]
    tried = await store.run(Together(ops))
    assert [one.held for one in tried] == [False, True, True]
    assert [(await delivery_of(store, one.id)).state for one in leased] == ["leased", "dead", "dead"]
    assert [len(one.born.events) for one in tried] == [0, 1, 1]
    assert (await store.read(store.health.all))["sink"].consecutive_failures == 1


async def test_a_kind_that_asks_too_often_is_stopped(store: Store, target: Sink) -> None:
    """Its lease is for so many requests; more of them would outlive it, and go out twice."""

    def endless(event: Event, options: WebhookOptions, *, now: datetime, home: str | None = None) -> Steps:
        while True:
            yield next(webhook.flow(event, options, now=now, home=home))

    kind = Kind("endless", webhook.WebhookOptions, endless, steps=3)
    async with running(store, to(target.url, kind=kind, schedule=[timedelta(0)])) as room:
        (delivery,) = await room.given()
        await room.until(delivery, "dead")
        ((reason,),) = rows_of(store, "SELECT reason FROM attempts")
    assert reason.startswith("a fault of the kind endless: more than its 3 requests")
    assert len(target.received) == 3


def test_a_group_that_waits_goes_back_like_the_rest() -> None:
    """When its destination is paused meanwhile, and at a stop."""
    event = an_event(a_task("succeeded"))
    for take_out in (lambda lane: lane.put_back(None, NOW), Lane.drain):
        lane = Lane(to("http://x.example", coalesce=(1, SECOND)))
        lane.together = tuple((a_delivery(event), event) for _ in range(3))
        assert (lane.room, lane.is_low) == (0, False)
        assert len(take_out(lane)) == 3
        assert (lane.has_waiting, lane.room) == (False, 8)


def test_a_lease_is_long_enough_for_all_steps() -> None:
    """For those ahead in memory and for itself, each with as many requests as its kind may make."""
    one = to("http://x.example", timeout=10.0)
    three = replace(one, kind=replace(CHAT, steps=3))
    assert (one.attempt_for, three.attempt_for) == (10 * SECOND, 50 * SECOND)
    assert (one.lease_for, three.lease_for) == (90 * SECOND, 330 * SECOND)
