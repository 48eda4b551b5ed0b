"""A replay of ten thousand dead deliveries survives SIGKILL: each is delivered, none is skipped, nothing is paid for.

A real `receiver serve` works on a SQLite file that was filled beforehand, while the upstream and a consumer that checks
every signature live on in this process. Around what is replayed stand deliveries that are nobody's business: they must
be the same, in every column, afterwards. `REPLAY_SEED` in the environment changes the luck; a failure prints it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import tomli_w

from receiver import ids
from receiver.app import clock
from receiver.emulator import Emulator, EmulatorOptions, running
from receiver.records import Attempt, Delivery, Event, Task
from receiver.routing import OWN_CALLBACK
from receiver.store import Store
from tests import databases, world
from tests.ports import free_port
from tests.rooms import Do, a_task, entropy
from tests.victim import Victim, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from receiver.store import Unit

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]  # what is waited for has a limit of its own, each

SEED = int(os.environ.get("REPLAY_SEED", "20261121"))
MANY, SOME = 10_000, 1_000
BYSTANDERS = 10
"""Of each sort."""
SLOTS = 8
"""Attempts at once: as many may come twice for each kill, and no more."""
STEPPED = 200
PATIENCE = 60.0
"""Seconds; ten thousand deliveries take about ten."""
AT_ONCE = 1_000
MS = timedelta(milliseconds=1)

Rows = tuple[Task, Event, Delivery, Attempt | None]


@dataclass(frozen=True)
class Window:
    """When what is to be replayed was made; both ends are in it."""

    since_at: datetime
    until_at: datetime


def _row(at: datetime, state: str = "dead", destination: str = "sink", **over: Any) -> Rows:
    """A delivery that was tried once, with all that stands around it."""
    ms = round(at.timestamp() * 1000)
    task = a_task("succeeded", id=ids.task_id(ms, entropy(16)), created_at=at, submitted_at=at, finished_at=at)
    event = Event(ids.event_id(ms, entropy(16)), task.id, "task.succeeded", at, f'{{"task_id":"{task.id}"}}')
    given: dict[str, Any] = {
        "attempt_count": 1,
        "due_at": at + timedelta(days=1) if state == "pending" else None,
        "finished_at": None if state == "pending" else at,
        "retried": True,
    }
    delivery = Delivery(
        id=ids.delivery_id(ms, entropy(16)),
        event_id=event.id,
        task_id=task.id,
        destination=destination,
        state=state,  # type: ignore[arg-type]
        created_at=at,
        **{**given, **over},
    )
    attempt = Attempt(
        id=ids.attempt_id(ms, entropy(16)),
        delivery_id=delivery.id,
        task_id=task.id,
        number=1,
        started_at=at,
        duration_ms=3,
        redelivery=False,
        request_json='{"url":"http://127.0.0.1/hook","headers":{}}',
        response_json=None,
        error="refused",
        result="transient",
        reason="refused",
        next_at=None,
    )
    return task, event, delivery, attempt


def _bystanders(window: Window) -> Iterator[Rows]:
    """What no replay of the window's dead deliveries to `sink` may touch."""
    inside = window.since_at + (window.until_at - window.since_at) / 2
    for _ in range(BYSTANDERS):
        yield _row(window.since_at - MS)
        yield _row(window.until_at + MS)
        yield _row(window.since_at - timedelta(hours=30))
        for state in ("delivered", "cancelled", "pending"):
            yield _row(inside, state)
        yield _row(inside, destination="other")
        yield _row(inside, destination="gone-from-the-config")
        yield _row(inside, destination=OWN_CALLBACK, callback_url="http://127.0.0.1:1/", callback_host="127.0.0.1")


def _dead(window: Window, count: int) -> Iterator[Rows]:
    """What is replayed, spread over the window, both its ends included."""
    step = (window.until_at - window.since_at) / (count - 1)
    for number in range(count):
        at = window.since_at + step * number
        yield _row(at.replace(microsecond=at.microsecond // 1000 * 1000))


def _stage(unit: Unit, rows: list[Rows]) -> None:
    for task, event, delivery, attempt in rows:
        unit.add_task(task)
        unit.add_event(event)
        unit.add_delivery(delivery)
        if attempt is not None:
            unit.add_attempt(attempt)


async def _fill(database: str, window: Window, count: int) -> None:
    """So many dead deliveries, and the bystanders among them."""
    store = Store.open(database)
    rows = [*_dead(window, count), *_bystanders(window)]
    random.Random(SEED).shuffle(rows)
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        await store.run(Do(lambda unit, part=part: _stage(unit, part)))  # type: ignore[misc]
    await store.close()


@dataclass
class Scene:
    """Everything that outlives the process. `leased`: of each kill, the events that were leased at it."""

    victim: Victim
    upstream: Emulator
    sink: world.Sink
    given: dict[str, Any]
    folder: Path
    window: Window
    wanted: set[str] = field(default_factory=set)
    others: list[Any] = field(default_factory=list)
    leased: list[set[str]] = field(default_factory=list)
    database: str = ""
    _filled: dict[int, str] = field(default_factory=dict)
    _log_from: int = 0

    def rows(self, question: str) -> list[Any]:
        """Ask the database, beside the process."""
        return databases.ask(self.database, question)

    @property
    def mine(self) -> str:
        """The window, as a condition."""
        return (
            f"destination = 'sink' and created_at between {_ms(self.window.since_at)} and {_ms(self.window.until_at)}"
        )

    async def begin(self, count: int, state: str = "dead") -> None:
        """A new store with so many deliveries that are to be replayed; the process runs on it."""
        self.victim.quell()
        if count not in self._filled:
            self._filled[count] = databases.twin(databases.new(self.folder), self.folder)
            await _fill(self._filled[count], self.window, count)
        self.database = databases.twin(self._filled[count], self.folder)
        self.given["database"]["url"] = self.database
        self.victim.config.write_text(tomli_w.dumps(self.given))
        if state != "dead":
            turned = f"case state when 'dead' then '{state}' when '{state}' then 'dead' else state end"
            databases.change(self.database, f"update deliveries set state = {turned} where {self.mine}")
        self.sink.received.clear()
        self.sink.arrived = lambda _one: None
        self.leased.clear()
        self.wanted = {
            row[0] for row in self.rows(f"select event_id from deliveries where {self.mine} and state = '{state}'")
        }
        assert len(self.wanted) == count
        self.others = self.rest()
        assert len(self.others) == BYSTANDERS * 9
        log = self.victim.config.with_suffix(".log")
        self._log_from = log.stat().st_size if log.exists() else 0
        self.victim.spawn()
        await self.victim.ready()

    def rest(self) -> list[Any]:
        """The deliveries that are not to be replayed, whole."""
        found = self.rows("select event_id, * from deliveries order by id")
        return [row for row in found if row[0] not in self.wanted]

    # -- the API ---------------------------------------------------------------------------------------------------

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """One request."""
        headers = {"authorization": f"Bearer {world.API_KEY}"}
        async with httpx.AsyncClient(trust_env=False, timeout=20, headers=headers) as client:
            return await client.request(method, f"{self.victim.url}/api/v1{path}", **more)

    async def replay(self, **more: str) -> str:
        """Ask for the replay of the window's deliveries to `sink`, the dead ones unless told; its id."""
        since, to = self.window.since_at.isoformat(), self.window.until_at.isoformat()
        answer = await self.ask("POST", "/replays", json={"destination": "sink", "since": since, "until": to, **more})
        assert answer.status_code == 202, answer.text
        assert answer.json()["matched"] == len(self.wanted)
        return str(answer.json()["id"])

    # -- moments ---------------------------------------------------------------------------------------------------

    def replayed(self) -> int:
        """How many the replay has opened again."""
        return int(self.rows("select replayed from replays")[0][0])

    async def opened(self, count: int) -> None:
        """Wait until so many are opened."""

        async def enough() -> bool:
            return self.replayed() >= count

        await until(enough, f"{count} to be opened", every=0.001)

    async def kill_when(self, holds: Callable[[], bool]) -> None:
        """Kill it at an arrival, before that is answered: the first at which something holds."""
        struck = asyncio.Event()

        def strike(_one: world.Received) -> None:
            if not struck.is_set() and holds():
                self.victim.kill()
                struck.set()

        self.sink.arrived = strike
        async with asyncio.timeout(PATIENCE):
            await struck.wait()
        self.sink.arrived = lambda _one: None

    async def kill_after(self, seconds: float) -> None:
        """Kill it at no special moment."""
        await asyncio.sleep(seconds)
        self.victim.kill()

    async def again(self) -> None:
        """It was killed: note what was leased, and start it on what it left. Nobody asks it to go on."""
        assert await self.victim.gone() == -signal.SIGKILL, self.victim.last_words()
        self.leased.append({row[0] for row in self.rows("select event_id from deliveries where state = 'leased'")})
        self.victim.spawn()
        await self.victim.ready()

    async def finished(self, replay_id: str) -> None:
        """Wait until the replay is done and all it opened has ended."""

        async def done() -> bool:
            [[state]] = self.rows(f"select state from replays where id = '{replay_id}'")
            going = self.rows("select 1 from deliveries where state in ('pending', 'leased') and due_at is null or "
                              f"state = 'pending' and due_at < {_ms(clock()) + 3_600_000} limit 1")  # fmt: skip
            return state != "running" and not going

        await until(done, "the replay and its deliveries to end", limit=PATIENCE, every=0.05)

    # -- the judgement ---------------------------------------------------------------------------------------------

    async def judge(self, replay_id: str) -> None:
        """All arrived, each once but for what a kill hit; nothing else moved, and the upstream was never asked."""
        answer = await self.ask("GET", f"/replays/{replay_id}")
        count = len(self.wanted)
        assert answer.json() == {"id": replay_id, "state": "done", "matched": count, "replayed": count}
        came = Counter(one.id for one in self.sink.received)
        assert came.keys() == self.wanted, "the ids are those of the events, and all of them came"
        self.judge_repeats(came)
        self.judge_attempts(self.wanted)
        self.judge_rest()

    def judge_repeats(self, came: Counter[str]) -> None:
        """What came again was under way at a kill; at most one slot's worth for each kill."""
        again = {event_id: count for event_id, count in came.items() if count > 1}
        hit = Counter(event_id for leased in self.leased for event_id in leased)
        for event_id, count in again.items():
            assert count <= 1 + hit[event_id], f"{event_id} came {count} times; it was leased at {hit[event_id]} kills"
        assert sum(again.values()) - len(again) <= SLOTS * len(self.leased), again
        print(f"came again: {len(again)} of {len(came)}, {len(self.leased)} kills")  # noqa: T201 -- for `pytest -s`

    def judge_attempts(self, events: set[str]) -> None:
        """Each was tried once more, with success, and that attempt bears the mark."""
        tried = self.rows("select event_id, number, redelivery, result, attempt_count, d.state from deliveries d "
                          "join attempts a on a.task_id = d.task_id and a.delivery_id = d.id "
                          "where destination = 'sink' and number > 1")  # fmt: skip
        assert len(tried) == len(events)
        assert {row[0] for row in tried} == events
        assert {row[1:] for row in tried} == {(2, 1, "ok", 2, "delivered")}

    def judge_rest(self) -> None:
        """Nothing else happened, to anybody."""
        assert self.sink.bad == []
        assert self.rest() == self.others
        ledger = self.upstream.ledger
        assert (ledger.submissions.total(), ledger.created.total(), ledger.lookups.total()) == (0, 0, 0)
        assert databases.is_sound(self.database)
        log = self.victim.config.with_suffix(".log").read_bytes()[self._log_from :].decode()
        assert log.count('"replay.started"') <= 1  # the kill may come before that turn's lines are written
        assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
        assert '"level":"error"' not in log


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


@asynccontextmanager
async def _set_up(folder: Path) -> AsyncIterator[Scene]:
    async with world.sink() as sink, running(EmulatorOptions()) as upstream:
        port = free_port()
        given = world.settings(upstream.base_url, sink.url, port, "")
        given["logging"]["level"] = "info"
        given["delivery"]["schedule"] = ["0s"] + ["100ms"] * 20
        given["destinations"] = [world.destination(name, sink.url, max_concurrency=SLOTS) for name in ("sink", "other")]
        config = folder / "config.toml"
        victim = Victim(config, f"http://127.0.0.1:{port}")
        now = clock()
        window = Window(now - timedelta(hours=3), now - timedelta(hours=1))
        try:
            yield Scene(victim, upstream.emulator, sink, given, folder, window)
        finally:
            victim.end()


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """One for all tests, since what it starts from costs seconds; each test calls `begin`."""
    async with _set_up(tmp_path_factory.mktemp("replay")) as made:
        yield made


async def test_ten_thousand_dead_deliveries_are_replayed_past_kills(scene: Scene) -> None:
    """10,000 dead deliveries are replayed after a SIGKILL in the middle, each delivered, none skipped.

    It is killed twice: while the replay is still opening them, and when it has told the consumer of some thousands.
    """
    print(f"REPLAY_SEED={SEED}")  # noqa: T201 -- pytest shows it where the test fails
    dice = random.Random(SEED)
    await scene.begin(MANY)
    replay_id = await scene.replay()
    await scene.opened(dice.randrange(1, MANY // 4))
    scene.victim.kill()
    left = scene.rows("select state, replayed from replays")
    assert left[0][0] == "running", f"the kill came too late to prove anything: {left}"
    await scene.again()
    most = dice.randrange(MANY // 3, MANY * 2 // 3)
    await scene.kill_when(lambda: len(scene.sink.received) >= most)
    await scene.again()
    await scene.finished(replay_id)
    await scene.judge(replay_id)


MOMENTS: dict[str, Callable[[Scene, random.Random], Any]] = {
    "as soon as it is answered": lambda scene, _: scene.kill_after(0),
    "between two steps": lambda scene, dice: _opened_and_killed(scene, dice.randrange(1, SOME)),
    "at any moment": lambda scene, dice: scene.kill_after(dice.random()),
    "in an attempt": lambda scene, dice: _killed_at_arrival(scene, dice.randrange(1, SOME - 50)),
}


async def _opened_and_killed(scene: Scene, count: int) -> None:
    await scene.opened(count)
    scene.victim.kill()


async def _killed_at_arrival(scene: Scene, number: int) -> None:
    await scene.kill_when(lambda: len(scene.sink.received) >= number)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_replay_survives_a_kill(scene: Scene, moment: str) -> None:
    """Whenever the kill comes, the next process finds where the replay was and brings it to its end."""
    print(f"REPLAY_SEED={SEED}")  # noqa: T201 -- pytest shows it where the test fails
    await scene.begin(SOME)
    replay_id = await scene.replay()
    await MOMENTS[moment](scene, random.Random(f"{SEED} {moment}"))
    await scene.again()
    await scene.finished(replay_id)
    await scene.judge(replay_id)


async def test_a_replay_of_the_delivered_survives_a_kill(scene: Scene) -> None:
    """What it has delivered again looks like what it has not come to yet: each is sent once more, and only once."""
    print(f"REPLAY_SEED={SEED}")  # noqa: T201 -- pytest shows it where the test fails
    await scene.begin(SOME, "delivered")
    replay_id = await scene.replay(state="delivered")
    await _killed_at_arrival(scene, random.Random(SEED).randrange(STEPPED, SOME // 2))
    await scene.again()
    await scene.finished(replay_id)
    await scene.judge(replay_id)


async def test_a_cancelled_replay_stays_where_it_is(scene: Scene) -> None:
    """Cancelled in the middle: what it opened is delivered, the rest stays dead, also after a kill."""
    await scene.begin(MANY)
    replay_id = await scene.replay()
    await scene.opened(STEPPED)
    answer = await scene.ask("POST", f"/replays/{replay_id}/cancel")
    assert answer.status_code == 200, answer.text
    cancelled = answer.json()
    assert (cancelled["state"], cancelled["matched"]) == ("cancelled", MANY)
    assert STEPPED <= cancelled["replayed"] < MANY
    assert cancelled["replayed"] % STEPPED == 0
    scene.victim.kill()
    await scene.again()
    await scene.finished(replay_id)
    assert (await scene.ask("GET", f"/replays/{replay_id}")).json() == cancelled
    came = Counter(one.id for one in scene.sink.received)
    assert came.keys() <= scene.wanted
    assert len(came) == cancelled["replayed"]
    [[dead]] = scene.rows(
        f"select count(*) from deliveries where {scene.mine} and state = 'dead' and attempt_count = 1"
    )
    assert dead == MANY - cancelled["replayed"]
    scene.judge_repeats(came)
    scene.judge_attempts(set(came))
    scene.judge_rest()
