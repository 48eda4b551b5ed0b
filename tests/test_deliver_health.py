"""What holds deliveries back (a circuit, a pause, a rate) spends no attempt; what is asked for by hand goes past it."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace as changed

from receiver.app import clock
from receiver.deliver import Claim, HandBack
from receiver.deliver.lanes import Lane
from receiver.errors import Conflict, NotFound
from receiver.health import Terms
from receiver.ids import DeliveryId
from receiver.records import Health
from receiver.routing import OWN_CALLBACK, Rule
from receiver.sweep import Rescue
from tests.deliver_room import Standing, running, to
from tests.rooms import Do, a_delivery, a_task, an_event, delivery_of, put, rows_of, rulebook, until
from tests.world import Sink, sink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from receiver.store import Store, Unit
    from tests.world import Received

pytestmark = [pytest.mark.anyio, pytest.mark.engines]

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
LONG = [timedelta(0), *[timedelta(milliseconds=20)] * 50]
SHORT = Terms(failures=2, pause=timedelta(milliseconds=150))


@pytest.fixture
async def target() -> AsyncIterator[Sink]:
    """A consumer."""
    async with sink() as one:
        yield one


# -- circuits ----------------------------------------------------------------------------------------------------------


async def test_an_outage_costs_a_probe_at_a_time(store: Store, target: Sink) -> None:
    """Two failures open the circuit: from then on one attempt a pause, whatever waits; then all of it goes out."""
    target.answers[:] = [500] * 4
    rules = rulebook(rules=[Rule("ops", events=("destination.failing", "destination.recovered"))])
    seen: list[Any] = []

    def look(_one: Received) -> None:
        if len(target.received) == 3:  # the first probe, which is not answered yet
            asked = "SELECT state, consecutive_failures, last_error FROM destinations WHERE name = 'sink'"
            seen.extend(rows_of(store, asked))

    target.arrived = look
    async with running(store, to(target.url, schedule=LONG, terms=SHORT, max_concurrency=1), rules=rules) as room:
        made = await room.given(count=30)
        for delivery in made:
            await room.until(delivery, "delivered")
        assert seen == [("open", 2, "it answered 500")]
        spent = sum(len(room.attempts(delivery)) for delivery in made)
        assert spent == 30 + 4
        state = await room.is_in_state("active")
        assert (state.consecutive_failures, state.opens) == (0, 0)
        told = rows_of(store, "SELECT type, data_json FROM events WHERE type LIKE 'destination.%' ORDER BY seq")
        assert [kind for kind, _ in told] == ["destination.failing", "destination.recovered"]
        assert '"consecutive_failures":2' in told[0][1]
        assert [line["destination"] for line in room.log.of("destination.failing")] == ["sink"]
        starts = [at for (at,) in rows_of(store, "SELECT started_at FROM attempts ORDER BY started_at")]
        assert starts[2] - starts[1] >= 140
        assert starts[3] - starts[2] >= 290  # doubled


async def test_what_waits_in_memory_goes_back_untried(store: Store, target: Sink) -> None:
    """When the circuit opens, those in the lane are given back: their leases do not run out in memory."""
    target.answers[:] = [500] * 99
    terms = Terms(failures=1, pause=timedelta(minutes=5))
    async with running(store, to(target.url, schedule=LONG, terms=terms, max_concurrency=1)) as room:
        made = await room.given(count=8)
        await room.is_in_state("open")
        await until(lambda: not room.deliverer._lanes["sink"].waiting and not room.deliverer._trying)
        for delivery in made:
            now = await room.until(delivery, "pending")
            assert now.attempt_count == len(room.attempts(delivery))
        assert len(rows_of(store, "SELECT 1 FROM attempts")) == 1
        assert room.deliverer.room("sink") == 0


async def test_a_circuit_survives_a_restart(store: Store, target: Sink) -> None:
    """It is a row: a new process waits as the old one did, and hands nothing over at birth before it knows."""
    now = clock()
    shut = Health("sink", "open", 5, "it answered 500", now, now, 1, now + timedelta(minutes=5), announced=True)
    await store.run(Do(lambda unit: unit.put_health(shut)))
    async with running(store, to(target.url, terms=SHORT)) as room:
        assert room.deliverer.room("sink") == 0
        (delivery,) = await room.given()
        await until(lambda: room.deliverer._lanes["sink"].state == "open")
        room.deliverer.take([(changed(delivery, state="leased", lease_token=1), an_event(a_task()))])
        assert not room.deliverer._lanes["sink"].waiting
        assert target.received == []
        resumed = await room.deliverer.resume("sink")
        assert resumed.state == "active"
        await room.until(delivery, "delivered")


async def test_a_probe_that_was_lost_makes_room_for_another(store: Store) -> None:
    """Given back by a stop, or taken back from a process that died: the next may be made at once."""
    now = clock()
    for free in ("hand-back", "rescue"):
        event = an_event(a_task("succeeded"))
        delivery = a_delivery(event, state="leased", due_at=None, lease_token=1, leased_until=now, attempt_count=1)
        probed = Health("sink", "open", 5, "x", now, now, 2, now, delivery.id, now + timedelta(minutes=2))
        await put(store, a_task("succeeded"), event, delivery)
        await store.run(Do(partial(_put_health, probed)))
        await store.run(HandBack([delivery], now) if free == "hand-back" else Rescue(store, now))
        state = (await store.read(store.health.all))["sink"]
        assert (state.probe_id, state.probe_until, state.next_try_at) == (None, None, now), free


def _put_health(health: Health, unit: Unit) -> None:
    unit.put_health(health)


async def test_claims_keep_to_the_health(store: Store) -> None:
    """Paused: only what was asked for by hand. Open: that, and one probe once its time has come."""
    now, event = clock(), an_event(a_task("succeeded"))
    waiting = [a_delivery(event, due_at=now - timedelta(seconds=n)) for n in range(3)]
    asked = a_delivery(event, due_at=now, forced=True)
    await put(store, a_task("succeeded"), event, *waiting, asked)
    lease = now + timedelta(seconds=60)

    async def claimed(health: Health) -> tuple[set[str], Any]:
        await store.run(Do(lambda unit: unit.put_health(health)))
        found = await store.run(Claim(store, "sink", 10, now, lease))
        await store.run(HandBack([one for one, _ in found.leased], now))
        return {one.id for one, _ in found.leased}, found.upcoming

    assert await claimed(Health("sink", "paused", reason="by hand")) == ({asked.id}, None)
    later = now + timedelta(seconds=5)
    assert await claimed(Health("sink", "open", next_try_at=later)) == ({asked.id}, later)
    probe, upcoming = await claimed(Health("sink", "open", next_try_at=now))
    assert len(probe) == 2
    assert probe > {asked.id}
    assert upcoming == lease
    busy = Health("sink", "open", next_try_at=now, probe_id=DeliveryId("dlv_x"), probe_until=later)
    assert await claimed(busy) == ({asked.id}, later)
    assert len((await claimed(Health("sink")))[0]) == 4


# -- pauses and redeliveries -------------------------------------------------------------------------------------------


async def test_a_pause_holds_everything_and_spends_nothing(store: Store, target: Sink) -> None:
    """What is under way ends; what waits, and what comes, stands pending until it is resumed."""
    async with running(store, to(target.url)) as room:
        held = await room.deliverer.pause("sink")
        assert (held.state, held.reason) == ("paused", "paused by hand")
        made = await room.given(count=3)
        await until(lambda: not room.deliverer._lanes["sink"].due)
        assert [(await delivery_of(store, one.id)).state for one in made] == ["pending"] * 3
        assert target.received == []
        await room.deliverer.resume("sink")
        for one in made:
            assert (await room.until(one, "delivered")).attempt_count == 1


@pytest.mark.parametrize("state", ["pending", "dead", "delivered", "cancelled"])
async def test_a_redelivery_goes_past_a_pause(store: Store, target: Sink, state: str) -> None:
    """At once, the same row and webhook-id, a fresh budget; numbers go on, and it is marked."""
    ended = state != "pending"
    async with running(store, to(target.url)) as room:
        await room.deliverer.pause("sink")
        (delivery,) = await room.given(
            state=state,
            attempt_count=3,
            due_at=None if ended else clock() + timedelta(hours=1),
            finished_at=clock() if ended else None,
        )
        opened_again = await room.deliverer.redeliver(delivery.id)
        assert (opened_again.state, opened_again.id, opened_again.budget_from) == ("pending", delivery.id, 3)
        now = await room.until(delivery, "delivered")
        assert (now.attempt_count, now.forced) == (4, False)
        assert rows_of(store, "SELECT number, redelivery FROM attempts") == [(4, 1)]
        assert [one.id for one in target.received] == [delivery.event_id]
        assert (await room.health()).state == "paused"  # type: ignore[union-attr]


async def test_a_redelivery_that_fails_waits_like_the_rest(store: Store, target: Sink) -> None:
    """Only the first try goes past the pause; what follows from the schedule is held."""
    target.answers[:] = [500]
    async with running(store, to(target.url)) as room:
        await room.deliverer.pause("sink")
        (delivery,) = await room.given(state="dead", attempt_count=2, due_at=None)
        await room.deliverer.redeliver(delivery.id)
        await until(lambda: len(room.attempts(delivery)) == 1)
        now = await room.until(delivery, "pending")
        assert (now.attempt_count, now.forced, now.budget_from) == (3, False, 2)
        assert len(target.received) == 1


async def test_what_cannot_be_redelivered_says_why(store: Store, target: Sink) -> None:
    """Nothing of that name, one that is being tried, one whose destination has left."""
    async with running(store, to(target.url)) as room:
        with pytest.raises(NotFound, match="there is no delivery 'dlv_none'"):
            await room.deliverer.redeliver(DeliveryId("dlv_none"))
        (busy,) = await room.given(state="leased", due_at=None, leased_until=clock() + timedelta(hours=1))
        with pytest.raises(Conflict, match="being tried right now"):
            await room.deliverer.redeliver(busy.id)
        (gone,) = await room.given("elsewhere", state="dead", due_at=None)
        with pytest.raises(Conflict, match="not in the configuration"):
            await room.deliverer.redeliver(gone.id)
        for name in ("nobody", OWN_CALLBACK):
            with pytest.raises(NotFound, match="started with: sink"):
                await room.deliverer.pause(name)


async def test_a_test_is_sent_whatever_the_health(store: Store, target: Sink) -> None:
    """A sample, now, past a pause; nothing of it is stored, and the health is as it was."""
    target.answers[:] = [200, 500]
    async with running(store, to(target.url)) as room:
        await room.deliverer.pause("sink")
        good, bad = await room.deliverer.test("sink"), await room.deliverer.test("sink")
        assert [(one.number, one.result) for one in (good, bad)] == [(1, "ok"), (1, "transient")]
        assert [one.data["metadata"] for one in target.received] == [{"sample": True}] * 2
        assert rows_of(store, "SELECT 1 FROM attempts UNION ALL SELECT 1 FROM deliveries") == []
        assert (await room.health()).consecutive_failures == 0  # type: ignore[union-attr]


# -- rates and fairness ------------------------------------------------------------------------------------------------


async def test_a_rate_is_kept_and_spends_nothing(store: Store, target: Sink) -> None:
    """Ten at three in 300 ms take more than 900 ms; each is tried once."""
    async with running(store, to(target.url, rate=(3, timedelta(milliseconds=300)))) as room:
        made = await room.given(count=10)
        for delivery in made:
            assert (await room.until(delivery, "delivered")).attempt_count == 1
    assert len(target.received) == 10
    at = [started for (started,) in rows_of(store, "SELECT started_at FROM attempts ORDER BY started_at")]
    assert all(at[n + 3] - at[n] >= 300 for n in range(7)), at


async def test_nobody_waits_for_the_rate_of_another(store: Store, target: Sink) -> None:
    """One has no start for an hour to come, and one delivery that waits for it."""
    async with sink() as free:
        rated = to(target.url, rate=(1, timedelta(hours=1)))
        async with running(store, rated, to(free.url, "free"), time=Standing()) as room:
            await room.given(count=2)
            await target.until(lambda: len(target.received) == 1)
            (other,) = await room.given("free")
            await room.until(other, "delivered")
    assert len(target.received) == 1


async def test_new_work_is_not_starved_by_retries(store: Store) -> None:
    """Of a claim, half goes to what was never tried, however long the others are due; neither leaves room unused."""
    now, event = clock(), an_event(a_task("succeeded"))
    again = [a_delivery(event, due_at=now - timedelta(hours=1), retried=True, attempt_count=1) for _ in range(50)]
    new = [a_delivery(event, due_at=now) for _ in range(4)]
    await put(store, a_task("succeeded"), event, *again, *new)

    async def claim() -> list[bool]:
        return [one.retried for one, _ in (await store.run(Claim(store, "sink", 6, now, now))).leased]

    assert await claim() == [False, True, False, True, False, True]
    assert await claim() == [False, True, True, True, True, True]
    assert await claim() == [True] * 6


async def test_the_urls_of_tasks_share_slots_four_a_host(store: Store, target: Sink) -> None:
    """One host that hangs takes four of the sixteen, however much waits for it; another's goes out at once."""
    own = to("http://127.0.0.1:1", OWN_CALLBACK, max_concurrency=16, per_host=4, terms=None, timeout=5.0)
    async with sink() as slow:
        slow.answers[:] = [None] * 99
        async with running(store, own) as room:
            where: dict[str, Any] = {"callback_url": slow.url + "/x", "callback_host": "slow.example"}
            await room.given(OWN_CALLBACK, count=80, **where)
            await room.busy(4)
            where = {"callback_url": target.url + "/y", "callback_host": "fast.example"}
            made = await room.given(OWN_CALLBACK, count=12, **where)
            for delivery in made:
                await room.until(delivery, "delivered")
            await room.busy(4)
    assert len(target.received) == 12


def test_the_hosts_of_a_lane_are_not_remembered() -> None:
    """They are chosen by strangers: what has ended leaves nothing behind."""
    lane = Lane(replace(to("http://x.example"), per_host=4))
    event = an_event(a_task())
    for n in range(50):
        delivery = a_delivery(event, callback_host=f"h{n}.example")
        lane.begin(delivery)
        lane.end(delivery)
    assert not lane._busy_hosts


async def test_a_claim_that_fails_alone_leaves_the_others_theirs(store: Store, target: Sink) -> None:
    """What the other lanes claimed in that round is under way all the same."""
    async with running(store, to(target.url), to(target.url, "other", per_host=4)) as room:
        await until(lambda: room.deliverer.room("other") > 0)
        no_host: Any = object()  # no statement takes that
        room.deliverer._lanes["other"].held_by_host = lambda: Counter({no_host: 99})  # type: ignore[method-assign]
        (delivery,) = await room.given()
        room.deliverer.wake()
        await room.until(delivery, "delivered")


async def test_waiting_costs_nothing_between_rounds(store: Store, target: Sink) -> None:
    """A paused destination with work does not make the loop spin."""
    async with running(store, to(target.url)) as room:
        await room.deliverer.pause("sink")
        await room.given(count=5)
        await until(lambda: not room.deliverer._lanes["sink"].due)
        before = store.writer.commits
        await asyncio.wait([asyncio.ensure_future(asyncio.sleep(0.3))])
        assert store.writer.commits - before <= 3
