"""A replay's steps on a real store: which deliveries they open, how, in what order, and where they stop."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
from msgspec.structs import replace

from receiver import ids
from receiver.deliver import Replayer
from receiver.deliver import replay as replay_module
from receiver.deliver.ops import reopened
from receiver.deliver.replay import STEP, Cancel
from receiver.errors import Conflict, NotFound
from receiver.ids import ReplayId
from receiver.records import Replay
from receiver.routing import OWN_CALLBACK
from tests import databases
from tests.rooms import PATIENCE, Do, Lines, a_delivery, a_task, an_event, entropy, later, opened, put, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from datetime import datetime
    from pathlib import Path

    from receiver.lifecycle import DeliveryState, Replayed
    from receiver.records import Delivery
    from receiver.store import Store, Unit

pytestmark = [pytest.mark.anyio, pytest.mark.engines]

HOUR = 3600.0
ASKED = later(HOUR)
"""The replayer's clock, unless a test moves it."""
NAMES = ("sink", "other", OWN_CALLBACK)
SPREAD = 0.5
"""Seconds between two deliveries."""


def ended(at: float = 0, state: DeliveryState = "dead", destination: str = "sink", **over: Any) -> Delivery:
    """A delivery that was made so many seconds after `NOW`, tried twice, and has ended unless told."""
    made = later(at)
    given: dict[str, Any] = {"attempt_count": 2, "lease_token": 2, "retried": True, "due_at": None}
    if state == "pending":
        given["due_at"] = made
    elif state == "leased":
        given["leased_until"] = later(2 * HOUR)
    else:
        given["finished_at"] = made
    if destination == OWN_CALLBACK:
        given |= {"callback_url": "https://a.example/", "callback_host": "a.example"}
    given["id"] = ids.delivery_id(round(made.timestamp() * 1000), entropy(16))
    return a_delivery(an_event(a_task()), destination, state=state, created_at=made, **{**given, **over})


def many(count: int, **over: Any) -> list[Delivery]:
    """So many that have ended, one after another."""
    return [ended(number * SPREAD, **over) for number in range(count)]


def ids_of(deliveries: Iterable[Delivery]) -> list[str]:
    """Their ids."""
    return [delivery.id for delivery in deliveries]


def outcome(delivery: Delivery, state: DeliveryState, at: datetime = ASKED) -> Delivery:
    """An opened delivery as its next attempt leaves it."""
    return replace(delivery, state=state, due_at=None, finished_at=at, attempt_count=delivery.attempt_count + 1)


@dataclass
class Room:
    """Replayers on one store, as processes follow one another.

    Attributes:
        now: what their clock says.
        between: called after every step with how many there were, before the next is begun.
    """

    store: Store
    now: datetime = ASKED
    names: Sequence[str] = NAMES
    between: Callable[[int], object] = lambda _steps: None
    log: Lines = field(default_factory=Lines)
    replayer: Replayer = field(init=False)
    _steps: list[asyncio.Future[Replay | None]] = field(default_factory=list)
    _watched: ReplayId | None = None

    def __post_init__(self) -> None:
        """The first one."""
        self.again()

    def again(self) -> None:
        """A new process: it knows nothing but the store."""
        log = cast("Any", self.log)
        self.replayer = Replayer(self.store, list(self.names), log, lambda: self.now, entropy, self._stepped)

    def _stepped(self) -> None:
        watched = self._watched
        assert watched is not None
        self._steps.append(self.store.writer.run(Do(lambda unit: unit.replay(watched))))
        self.between(len(self._steps))

    async def to_end(self, replay: Replay) -> list[Replay]:
        """The replay after each step that is taken until it has ended."""
        self._watched = replay.id
        self._steps.clear()
        loop = asyncio.create_task(self.replayer.run())
        try:
            await self.ended(replay.id, loop)
        finally:
            self.replayer.stop()
            await loop
        seen = await asyncio.gather(*self._steps, return_exceptions=True)
        return [one for one in seen if isinstance(one, Replay)]

    async def for_steps(self, count: int, replay: Replay) -> list[Replay]:
        """The replay after each of so many steps, after which the process stops."""

        def stop(steps: int) -> None:
            if steps == count:
                self.replayer.stop()

        self.between = stop
        try:
            return await self.to_end(replay)
        finally:
            self.between = lambda _steps: None
            self.again()

    async def ended(self, replay_id: ReplayId, loop: asyncio.Task[None]) -> None:
        """Wait until the replay has ended, or whoever takes its steps."""
        async with asyncio.timeout(PATIENCE):
            for _ in itertools.repeat(None):
                if loop.done() or (await self.replay(replay_id)).state != "running":
                    return
                await asyncio.sleep(0.002)

    async def replay(self, replay_id: str) -> Replay:
        """The replay as it is stored."""
        found = await self.store.read(lambda connection: self.store.replays.get(connection, ReplayId(replay_id)))
        assert found is not None
        return found

    def write(self, deliveries: Iterable[Delivery]) -> asyncio.Future[None]:
        """Store deliveries' new states: before the next step, as the writer takes one op after the other."""
        staged = list(deliveries)

        def stage(unit: Unit) -> None:
            for delivery in staged:
                unit.put_delivery(delivery)

        return self.store.writer.run(Do(stage))

    async def all(self) -> list[Delivery]:
        """Every delivery as it is stored, oldest first."""
        page = await self.store.read(lambda connection: self.store.deliveries.page(connection, limit=100_000))
        return page[::-1]

    async def opened(self) -> list[str]:
        """The ids of those that were opened and are not tried yet."""
        return [one.id for one in await self.all() if one.state == "pending" and one.due_at == self.now]


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    """A replayer on a new file."""
    async with opened(tmp_path) as store:
        yield Room(store)


# -- steps -------------------------------------------------------------------------------------------------------------


async def test_steps_are_small_and_the_cursor_goes_with_them(room: Room) -> None:
    """200 a transaction, oldest first; the cursor is the last one's id; the last step ends it."""
    given = many(2 * STEP + 50)
    await put(room.store, *given[::-1])
    replay = await room.replayer.start()
    assert (replay.state, replay.matched, replay.replayed, replay.finished_at) == ("running", 450, 0, None)
    seen = await room.to_end(replay)
    assert [(one.replayed, one.cursor, one.state) for one in seen] == [
        (200, given[199].id, "running"),
        (400, given[399].id, "running"),
        (450, given[449].id, "done"),
    ]
    assert seen[-1].finished_at == room.now
    assert await room.opened() == ids_of(given)
    assert room.log.of("replay.done") == [{"replay_id": replay.id, "matched": 450, "replayed": 450}]


@pytest.mark.parametrize("count", [0, 1, STEP - 1, STEP, STEP + 1])
async def test_none_is_left_where_a_step_is_just_full(room: Room, count: int) -> None:
    """Whatever the number, all are opened and the replay ends."""
    await put(room.store, *many(count))
    replay = await room.replayer.start()
    last = (await room.to_end(replay))[-1]
    assert (last.state, last.matched, last.replayed, len(await room.opened())) == ("done", count, count, count)


async def test_an_opened_delivery_has_a_fresh_budget(room: Room) -> None:
    """Due now, its attempts counted on, its fence kept; held by a pause as any other, since nobody forced it."""
    [given] = many(1)
    await put(room.store, given)
    await room.to_end(await room.replayer.start())
    [found] = await room.all()
    assert found == replace(given, state="pending", due_at=ASKED, budget_from=2, finished_at=None)
    assert (found.retried, found.forced, found.lease_token, found.attempt_count) == (True, False, 2, 2)


async def test_the_next_process_goes_on_from_the_cursor(room: Room) -> None:
    """Two steps in one process, the rest in the next; those opened and dead again meanwhile are not opened twice."""
    given = many(3 * STEP + 1)
    await put(room.store, *given)
    replay = await room.replayer.start()
    seen = await room.for_steps(2, replay)
    assert [one.replayed for one in seen] == [STEP, 2 * STEP]
    assert await room.opened() == ids_of(given[: 2 * STEP])
    await room.write(outcome(one, "dead") for one in given[: 2 * STEP])
    last = (await room.to_end(replay))[-1]
    assert (last.state, last.matched, last.replayed) == ("done", len(given), len(given))
    assert await room.opened() == ids_of(given[2 * STEP :])


async def test_a_step_that_cannot_be_written_whole_leaves_nothing(room: Room) -> None:
    """Where the cursor cannot move, no delivery is open: they are of one transaction."""
    given = many(STEP + 1)
    await put(room.store, *given)
    replay = await room.replayer.start()
    with databases.forbidden(room.store, "UPDATE", "replays"):
        with pytest.raises(room.store.dialect.error, match="forbidden"):
            await room.replayer.run()
        assert await room.all() == given
        assert await room.replay(replay.id) == replay
    assert [one.replayed for one in await room.to_end(replay)] == [STEP, STEP + 1]
    assert await room.opened() == ids_of(given)


async def test_a_replay_outlives_an_outage_of_the_store(room: Room) -> None:
    """While nothing can be committed nothing is opened and it is told; then the steps go on where they were."""
    given = many(2 * STEP + 1)
    await put(room.store, *given)
    replay = await room.replayer.start()
    away = databases.Outage(room.store)
    room.between = lambda steps: away.begin() if steps == 1 else None
    walk = asyncio.create_task(room.to_end(replay))
    await until(lambda: room.log.of("replay.store_unavailable"))
    assert (await room.replay(replay.id)).replayed == STEP
    assert await room.opened() == ids_of(given[:STEP])
    away.end()
    await walk
    assert (await room.replay(replay.id)).replayed == len(given)
    assert await room.opened() == ids_of(given)


# -- what is opened ----------------------------------------------------------------------------------------------------

MOMENTS = (0, 600, 1200)
STATES: tuple[DeliveryState, ...] = ("dead", "delivered", "cancelled", "pending", "leased")
ENDS = ("dead", "delivered", "cancelled")
FILTERS: dict[str, tuple[dict[str, Any], dict[str, Sequence[Any]]]] = {
    "nothing said: all that are dead": ({}, {}),
    "those that were delivered": ({"which": "delivered"}, {"states": ["delivered"]}),
    "all, cancelled ones, too": ({"which": "all"}, {"states": ENDS}),
    "one destination": ({"destination": "other"}, {"names": ["other"]}),
    "tasks' own callback_urls": ({"destination": OWN_CALLBACK}, {"names": [OWN_CALLBACK]}),
    "one that has left the config": ({"destination": "gone", "which": "all"}, {"names": []}),
    "since, with the moment itself": ({"since_at": later(600)}, {"at": [600, 1200]}),
    "since, a moment later": ({"since_at": later(600.001)}, {"at": [1200]}),
    "until, with the moment itself": ({"until_at": later(600)}, {"at": [0, 600]}),
    "until, a moment earlier": ({"until_at": later(599.999)}, {"at": [0]}),
    "since after until": ({"since_at": later(600), "until_at": later(599)}, {"at": []}),
    "everything at once": (
        {"destination": "sink", "since_at": later(1), "until_at": later(600), "which": "all"},
        {"names": ["sink"], "at": [600], "states": ENDS},
    ),
}


@pytest.mark.parametrize("name", FILTERS)
async def test_a_replay_opens_what_its_filter_says(room: Room, name: str) -> None:
    """Ended deliveries of that state and destination, made in that span; whose destination is gone stays as it is."""
    asked, expected = FILTERS[name]
    crowd = {
        (at, state, destination): ended(at, state, destination)
        for at in MOMENTS
        for state in STATES
        for destination in (*NAMES, "gone")
    }
    await put(room.store, *crowd.values())
    replay = await room.replayer.start(**asked)
    await room.to_end(replay)
    wanted = {
        crowd[at, state, destination].id
        for at in expected.get("at", MOMENTS)
        for state in expected.get("states", ["dead"])
        for destination in expected.get("names", NAMES)
    }
    assert set(await room.opened()) == wanted
    replay = await room.replay(replay.id)
    assert (replay.state, replay.matched, replay.replayed) == ("done", len(wanted), len(wanted))
    rest = {delivery.id: delivery for delivery in crowd.values() if delivery.id not in wanted}
    assert {one.id: one for one in await room.all() if one.id in rest} == rest


async def test_a_destination_that_leaves_while_it_runs_is_left_alone(room: Room) -> None:
    """The next process does not know it any more: its deliveries stay dead, the others' are opened."""
    given = many(STEP + 10) + [ended(HOUR / 2 + number, destination="other") for number in range(5)]
    await put(room.store, *given)
    replay = await room.replayer.start()
    await room.for_steps(1, replay)
    room.names = ["other"]
    room.again()
    await room.to_end(replay)
    replay = await room.replay(replay.id)
    assert (replay.state, replay.matched, replay.replayed) == ("done", STEP + 15, STEP + 5)
    assert await room.opened() == ids_of([*given[:STEP], *given[-5:]])


async def test_what_is_made_later_is_not_part_of_it(room: Room) -> None:
    """`until` is at most now: what is made while the replay runs is not opened, even where it ends soon."""
    given = many(STEP + 1)
    await put(room.store, *given)
    replay = await room.replayer.start(until_at=later(9 * HOUR))
    assert replay.until_at == ASKED
    room.now = later(HOUR + 60)
    await put(room.store, ended(HOUR + 1), ended(HOUR, finished_at=ASKED))
    await room.to_end(replay)
    assert len(await room.opened()) == len(given) + 1


@pytest.mark.parametrize(("which", "state"), [("delivered", "delivered"), ("all", "dead"), ("dead", "dead")])
async def test_what_ends_later_is_not_part_of_it(room: Room, which: Replayed, state: DeliveryState) -> None:
    """A delivery that was on its way when the replay was asked for, and ends while it runs, is not sent again."""
    given = many(STEP, state=state)
    on_its_way = [ended(HOUR / 2 + number, "leased") for number in range(3)]
    await put(room.store, *given, *on_its_way)
    replay = await room.replayer.start(which=which)
    room.now = later(HOUR + 60)
    await room.for_steps(1, replay)
    await room.write(outcome(one, state, later(HOUR + 1)) for one in on_its_way)
    [last] = await room.to_end(replay)
    assert last.cursor == on_its_way[-1].id, "they were seen, and left"
    replay = await room.replay(replay.id)
    assert (replay.state, replay.matched, replay.replayed) == ("done", STEP, STEP)
    assert await room.opened() == ids_of(given)


async def test_what_was_redelivered_while_a_step_was_prepared_is_left_to_that(room: Room) -> None:
    """Opened by hand between the search and the step's transaction, it keeps its place past pauses, and counts once."""
    given = many(3)
    await put(room.store, *given)
    replay = await room.replayer.start()

    def clock() -> datetime:
        room.write([reopened(given[1], ASKED, forced=True)])
        return ASKED

    room.replayer.clock = clock
    [last] = await room.to_end(replay)
    assert (last.state, last.matched, last.replayed) == ("done", 3, 2)
    assert [(one.state, one.forced) for one in await room.all()] == [
        ("pending", False),
        ("pending", True),
        ("pending", False),
    ]


async def test_a_replay_of_the_delivered_does_not_feed_on_itself(room: Room) -> None:
    """What it opened is delivered before it ends, step by step: each is sent once more, and only once."""
    given = many(3 * STEP, state="delivered")
    await put(room.store, *given)
    replay = await room.replayer.start(which="delivered")
    room.between = lambda steps: room.write(outcome(one, "delivered") for one in given[: steps * STEP])
    await room.to_end(replay)
    assert (await room.replay(replay.id)).replayed == len(given)
    assert await room.opened() == []
    assert Counter((one.state, one.attempt_count) for one in await room.all()) == {("delivered", 3): len(given)}


async def test_replays_are_taken_one_after_the_other(room: Room) -> None:
    """The older first to its end; what it opened is not opened again by the younger, which opens the rest."""
    given = many(STEP + 1) + [ended(HOUR / 2 + number, destination="other") for number in range(STEP + 1)]
    await put(room.store, *given)
    older = await room.replayer.start(destination="sink")
    room.now = later(HOUR + 1)
    younger = await room.replayer.start()
    assert (older.matched, younger.matched) == (STEP + 1, 2 * STEP + 2)
    seen = await room.to_end(younger)
    assert [one.replayed for one in seen] == [0, 0, STEP, STEP + 1]
    older, younger = await room.replay(older.id), await room.replay(younger.id)
    assert [(one.state, one.replayed) for one in (older, younger)] == [("done", STEP + 1)] * 2
    assert await room.opened() == ids_of(given)


@pytest.mark.engine("sqlite")
async def test_a_small_replay_in_a_large_store_does_not_hold_up_the_writer(room: Room) -> None:
    """What is not of it is not walked through by the one thread that every acknowledgement waits for."""
    given = [*many(20_000, state="delivered"), ended(12_000, "delivered", "other")]
    room.now = later(20_000)
    await put(room.store, *given)
    ticks = itertools.count()
    connection: Any = room.store.writer._connection
    connection.set_progress_handler(lambda: next(ticks) and 0, 1000)
    replay = await room.replayer.start(destination="other", since_at=later(11_000), which="delivered")
    await room.to_end(replay)
    assert await room.opened() == [given[-1].id]
    assert next(ticks) < 20, "thousands of instructions of the engine"


# -- cancelled ---------------------------------------------------------------------------------------------------------


async def test_a_cancelled_replay_stops_and_stays(room: Room) -> None:
    """What it opened goes on, the rest stays dead, and no later process takes it up."""
    given = many(3 * STEP)
    await put(room.store, *given)
    replay = await room.replayer.start()
    await room.for_steps(1, replay)
    room.now = later(HOUR + 5)
    cancelled = await room.replayer.cancel(replay.id)
    assert cancelled == replace(
        replay, state="cancelled", replayed=STEP, cursor=given[STEP - 1].id, finished_at=room.now
    )
    later_one = await room.replayer.start(destination="other")
    await room.to_end(later_one)
    assert await room.replay(replay.id) == cancelled
    assert [one.state for one in await room.all()] == ["pending"] * STEP + ["dead"] * 2 * STEP
    assert room.log.of("replay.cancelled") == [{"replay_id": replay.id, "replayed": STEP}]


async def test_a_cancel_comes_between_two_steps(room: Room) -> None:
    """Asked for while the steps are under way, it holds from the next on: nothing is opened after its answer."""
    given = many(5 * STEP)
    await put(room.store, *given)
    replay = await room.replayer.start()
    answers = []

    def cancel(steps: int) -> None:
        if steps == 2:
            answers.append(asyncio.ensure_future(room.replayer.cancel(replay.id)))

    room.between = cancel
    await room.to_end(replay)
    [cancelled] = await asyncio.gather(*answers)
    assert cancelled.replayed in {2 * STEP, 3 * STEP}
    assert await room.replay(replay.id) == cancelled
    assert await room.opened() == ids_of(given[: cancelled.replayed])


async def test_a_cancel_comes_before_a_step_that_was_prepared(room: Room) -> None:
    """Asked for between the search and the step's transaction, it holds: that step opens nothing."""
    given = many(3)
    await put(room.store, *given)
    replay = await room.replayer.start()
    waits = []

    def clock() -> datetime:
        waits.append(room.store.writer.run(Cancel(replay.id, ASKED)))
        return ASKED

    room.replayer.clock = clock
    assert await room.to_end(replay) == []
    assert (await waits[0]).state == "cancelled"
    assert await room.all() == given


async def test_only_a_running_replay_can_be_cancelled(room: Room) -> None:
    """One that is not there is not found; one that has ended is a conflict, in words, and stays what it is."""
    with pytest.raises(NotFound, match="no replay 'rpl_nobody'"):
        await room.replayer.cancel(ReplayId("rpl_nobody"))
    replay = await room.replayer.start()
    await room.to_end(replay)
    done = await room.replay(replay.id)
    with pytest.raises(Conflict, match="the replay is done already"):
        await room.replayer.cancel(replay.id)
    assert await room.replay(replay.id) == done
    other = await room.replayer.start()
    await room.replayer.cancel(other.id)
    with pytest.raises(Conflict, match="the replay is cancelled already"):
        await room.replayer.cancel(other.id)


# -- the loop ----------------------------------------------------------------------------------------------------------


async def test_a_replay_begins_at_once(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the loop's idle second that starts it, and deliver is told of every step."""
    monkeypatch.setattr(replay_module, "IDLE_FOR", 3600.0)
    woken: list[None] = []
    room.replayer.wake_deliver = lambda: woken.append(None)
    await put(room.store, *many(STEP + 1))
    loop = asyncio.create_task(room.replayer.run())
    try:
        for _ in range(5):
            replay = await room.replayer.start()
            await room.ended(replay.id, loop)
    finally:
        room.replayer.stop()
        await loop
    assert len(woken) == 2 + 4
