"""SIGKILL between any two steps, and start again: nothing is lost, nothing is paid twice, nothing is told twice.

A real `receiver serve` works on a SQLite file while the upstream and the consumer live on in this process. It is
killed at seeded moments: by chance, and where it hurts (a submission sent and not answered, a callback just answered, a
webhook received and not answered, a caller just told, the service just starting). Beside the consumer that is well
there is one that is so only now and then, so that its circuit opens again and again, and one that is paused from before
the first task until after the last kill: neither loses an event, and the pause outlives every kill. `KILL_SEED` in the
environment changes the luck; a failure prints it. On PostgreSQL a start takes nothing back, since others may be at
work: what a kill leaves there is in test_instances.py.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
from collections import Counter, defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import tomli_w

from receiver.emulator import Emulator, EmulatorOptions, running
from tests import databases, world
from tests.ports import free_port
from tests.victim import Victim, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]  # what is waited for has a limit of its own, each

SEED = int(os.environ.get("KILL_SEED", "20261121"))
KILLS = 26
WORKERS = 6
PAUSE = 0.15
"""Seconds a caller rests between two submissions, at most."""
FAULTS = {
    "callback=missing": 0.15,
    "callback=doubled": 0.15,
    "callback=early": 0.1,
    "callback=late": 0.1,
    "callback=reordered": 0.05,
    "callback=tampered-id": 0.05,
    "submit_delay=0.05": 0.25,
    "fail": 0.2,
}


def _configure(given: dict[str, Any]) -> None:
    given["polling"] |= {"callback_grace": "300ms", "interval": "100ms", "max_interval": "300ms", "deadline": "4s"}
    given["delivery"]["schedule"] = ["0s"] + ["100ms"] * 20
    given["logging"]["level"] = "info"


def _troubled(url: str) -> dict[str, Any]:
    """A destination whose circuit opens soon; its schedule is longer than any run."""
    return world.destination(
        "troubled", url, circuit_failures=3, circuit_pause="150ms", schedule=["0s"] + ["50ms"] * 2000
    )


@dataclass
class Scene:
    """Everything that outlives the process.

    Attributes:
        opened: since when the circuit of `troubled` was open, at each kill.
        leased: of each kill, the events that were leased for `sink` at it.
    """

    victim: Victim
    upstream: Emulator
    sink: world.Sink
    troubled: world.Sink
    held: world.Sink
    dice: random.Random
    database: str
    acknowledged: dict[str, str] = field(default_factory=dict)
    unanswered: list[str] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    leased: list[set[str]] = field(default_factory=list)
    over: bool = False

    def rows(self, question: str) -> list[Any]:
        """Ask the database, beside the process."""
        return databases.ask(self.database, question)

    async def turn(self, name: str, way: str) -> None:
        """Pause or resume a destination."""
        headers = {"authorization": f"Bearer {world.API_KEY}"}
        async with httpx.AsyncClient(trust_env=False, timeout=20, headers=headers) as client:
            answer = await client.post(f"{self.victim.url}/api/v1/destinations/{name}/{way}")
        assert answer.status_code == 200, answer.text

    def health(self, name: str) -> Any:
        """A destination's state and since when its circuit is open."""
        return self.rows(f"select state, opened_at from destinations where name = '{name}'")

    # -- callers ---------------------------------------------------------------------------------------------------

    async def call(self, worker: int) -> None:
        """One caller: submits on all routes in turn, never the same thing twice, and notes what it was told."""
        dice = random.Random(SEED + worker)
        headers = {"authorization": f"Bearer {world.API_KEY}"}
        number = 0
        while not self.over:
            await self.victim.up.wait()
            route, prompt = (world.PRO, world.V2V, world.I2V)[number % 3], f"clip {worker}-{number}"
            number += 1
            document = {"route": route, "input": world.body_of(route, prompt)}
            try:
                async with httpx.AsyncClient(trust_env=False, timeout=20, headers=headers) as client:
                    answer = await client.post(f"{self.victim.url}/api/v1/tasks", json=document)
            except httpx.TransportError:
                self.unanswered.append(prompt)
                continue
            assert answer.status_code in {201, 202}, answer.text
            self.acknowledged[answer.json()["id"]] = prompt
            await asyncio.sleep(dice.random() * PAUSE)

    # -- moments ---------------------------------------------------------------------------------------------------

    async def by_chance(self) -> None:
        """Any moment."""
        await asyncio.sleep(self.dice.random())
        self.victim.kill()

    async def in_a_submission(self) -> None:
        """The upstream has the request, and has not answered."""
        await self._more(self.upstream.ledger.submissions.total)

    async def after_a_creation(self) -> None:
        """The upstream has made the task, and its answer is on the way."""
        await self._more(self.upstream.ledger.created.total)

    async def after_a_callback(self) -> None:
        """A callback was answered 200 this moment."""
        await self._more(lambda: self.upstream.ledger.answered[200])

    async def after_a_lookup(self) -> None:
        """A lookup was asked."""
        await self._more(self.upstream.ledger.lookups.total)

    async def after_an_answer(self) -> None:
        """A caller was told that its task is taken."""
        await self._more(lambda: len(self.acknowledged))

    async def in_an_attempt(self) -> None:
        """The consumer has the webhook, and has not answered."""
        struck = asyncio.Event()

        def strike(_one: world.Received) -> None:
            if not struck.is_set():
                self.victim.kill()
                struck.set()

        self.sink.arrived = strike
        async with asyncio.timeout(20):
            await struck.wait()
        self.sink.arrived = lambda _one: None

    async def with_an_open_circuit(self) -> None:
        """The circuit of the troubled destination is open."""

        async def is_open() -> bool:
            return bool(self.health("troubled")) and self.health("troubled")[0][0] == "open"

        await until(is_open, "the circuit to open", every=0.005)
        self.victim.kill()

    async def _more(self, count: Callable[[], int]) -> None:
        enough = count() + self.dice.randint(1, 5)

        async def grown() -> bool:
            return count() >= enough

        await until(grown, "another one", every=0.001)
        self.victim.kill()


@asynccontextmanager
async def _scene(folder: Path) -> AsyncIterator[Scene]:
    options = EmulatorOptions(seed=SEED, render_seconds=0.1, chances=FAULTS)
    async with world.sink() as sink, world.sink() as troubled, world.sink() as held, running(options) as upstream:
        port, database = free_port(), databases.empty(folder)
        given = world.settings(upstream.base_url, sink.url, port, database)
        _configure(given)
        given["destinations"] += [_troubled(troubled.url), world.destination("held", held.url)]
        config = folder / "config.toml"
        config.write_text(tomli_w.dumps(given))
        victim = Victim(config, f"http://127.0.0.1:{port}")
        scene = Scene(victim, upstream.emulator, sink, troubled, held, random.Random(SEED), database)
        try:
            yield scene
        finally:
            victim.end()


async def test_killed_at_any_moment_it_loses_nothing(tmp_path: Path) -> None:
    """Every acknowledged task ends, in one event, delivered; no render is paid twice; no answered callback is gone."""
    print(f"KILL_SEED={SEED}")  # noqa: T201 -- pytest shows it where the test fails
    async with _scene(tmp_path) as scene:
        await _trouble(scene)
        callers = [asyncio.create_task(scene.call(number)) for number in range(WORKERS)]
        try:
            await _rampage(scene)
            scene.over = True
            await asyncio.gather(*callers)
            await _relief(scene)
            await until(lambda: _settled(scene), "everything to end")
        finally:
            for caller in callers:
                caller.cancel()
        scene.victim.kill(signal.SIGTERM)
        assert await scene.victim.gone() == 0, scene.victim.last_words()
        _judge(scene)


async def _trouble(scene: Scene) -> None:
    """One destination is paused, by a process that is killed as soon as it has said so; another fails mostly."""
    scene.victim.spawn_cold()
    await scene.victim.ready()
    await scene.turn("held", "pause")
    scene.victim.kill()
    assert await scene.victim.gone() == -9, scene.victim.last_words()
    spells = itertools.cycle([500] * 4 + [200] * 12)
    scene.troubled.arrived = lambda _one: scene.troubled.answers.append(200 if scene.over else next(spells))


async def _relief(scene: Scene) -> None:
    """The trouble is over: what was kept for them is sent."""
    assert scene.health("held") == [("paused", None)]
    assert (scene.held.received, scene.held.bad) == ([], []), "it was paused before there was anything to tell"
    await scene.turn("held", "resume")
    await scene.turn("troubled", "resume")  # by itself it would be probed, but after up to twice the time it was open


async def _rampage(scene: Scene) -> None:
    """Start it and kill it, again and again; it runs when this returns."""
    moments = itertools.cycle(
        [
            scene.by_chance,
            scene.in_a_submission,
            scene.in_an_attempt,
            scene.after_a_callback,
            scene.after_a_creation,
            scene.after_a_lookup,
            scene.after_an_answer,
            scene.with_an_open_circuit,
        ]
    )
    for number in range(KILLS):
        scene.victim.spawn() if number else scene.victim.spawn_cold()
        if number % 8 == 7:
            await asyncio.sleep(scene.dice.random() * 0.3)  # while it starts
            scene.victim.kill()
        else:
            await scene.victim.ready()
            await next(moments)()
        assert await scene.victim.gone() == -9, scene.victim.last_words()
        scene.opened += [since for state, since in scene.health("troubled") if state == "open"]
        leased = "select event_id from deliveries where destination = 'sink' and state = 'leased'"
        scene.leased.append({event_id for (event_id,) in scene.rows(leased)})
    scene.victim.spawn_cold()
    await scene.victim.ready()


async def _settled(scene: Scene) -> bool:
    [[open_tasks]] = scene.rows(
        "select count(*) from tasks where state not in ('succeeded','failed','cancelled','lost','rejected')"
    )
    [[open_deliveries]] = scene.rows("select count(*) from deliveries where state in ('pending', 'leased')")
    return not open_tasks and not open_deliveries


def _judge(scene: Scene) -> None:
    tasks = {row[0]: row for row in scene.rows("select id, state, upstream_id, input_json from tasks")}
    assert len(scene.victim.kills) >= 20
    assert len(scene.acknowledged) >= KILLS
    assert scene.acknowledged.keys() <= tasks.keys(), "acknowledged, and gone"
    _judge_ends(scene, tasks)
    _judge_payments(scene)
    _judge_callbacks(scene)
    _judge_webhooks(scene)
    _judge_troubled(scene)
    _judge_log(scene)
    assert databases.is_sound(scene.database)


def _judge_ends(scene: Scene, tasks: dict[str, Any]) -> None:
    """Each task has one terminal event, of the state it is in; only what has no id was given up."""
    told = defaultdict(list)
    for task_id, kind in scene.rows("select task_id, type from events"):
        told[task_id].append(kind)
    for task_id, state, upstream_id, _ in tasks.values():
        assert told[task_id] == [f"task.{state}"], f"{task_id} is {state}: {told[task_id]}"
        assert state in {"succeeded", "failed"} or (state == "lost" and upstream_id is None), f"{task_id} is {state}"
    lost = [task_id for task_id, state, *_ in tasks.values() if state == "lost"]
    assert len(lost) <= len(scene.victim.kills) * WORKERS, "more than were under way at a kill"


def _judge_payments(scene: Scene) -> None:
    """No submission was made twice, whatever became of its sender; and none that was not stored before."""
    assert scene.upstream.ledger.repeated == []
    renders = Counter(task.prompt for task in scene.upstream.tasks.values())
    twice = [prompt for prompt, count in renders.items() if count > 1]
    assert twice == []
    stored = {row[0] for row in scene.rows("select prompt from tasks")}
    assert renders.keys() <= stored, "rendered, and no row knows of it"
    assert stored <= set(scene.acknowledged.values()) | set(scene.unanswered)


def _judge_callbacks(scene: Scene) -> None:
    """What was answered 200 is in the inbox."""
    kept = dict(scene.rows("select upstream_id, count(*) from inbox join tasks on tasks.id = task_id "
                           "where inbox.via = 'callback' group by task_id"))  # fmt: skip
    answered = 0
    for task in scene.upstream.tasks.values():
        good = sum(1 for sent in task.callbacks if sent.status == 200)
        answered += good
        assert kept.get(task.id, 0) >= good, f"{task.id}: {good} callbacks answered 200, {kept.get(task.id, 0)} kept"
    assert answered >= 10, "too few to prove anything"


def _judge_webhooks(scene: Scene) -> None:
    """Each event came; again only where a kill hit the attempt; and nothing came that is not on disk."""
    assert scene.sink.bad == []
    assert scene.rows("select id, state from deliveries where state != 'delivered'") == []
    events = {row[0] for row in scene.rows("select id from events")}
    came = Counter(one.id for one in scene.sink.received)
    assert came.keys() == events
    hit = Counter(event_id for leased in scene.leased for event_id in leased)
    for event_id, count in came.items():
        assert count <= 1 + hit[event_id], f"{event_id} came {count} times; it was leased at {hit[event_id]} kills"
    assert came.total() > len(came), "no kill hit an attempt, though some were aimed at one"


def _judge_troubled(scene: Scene) -> None:
    """Who was away has everything; no attempt was spent while a pause or an open circuit held it."""
    events = {row[0] for row in scene.rows("select id from events")}
    assert len(scene.opened) >= 3, "no circuit was open at a kill, though some kills waited for that"
    assert (scene.held.bad, scene.troubled.bad) == ([], [])
    assert Counter(one.id for one in scene.held.received) == Counter(events), "each once: no kill came after the pause"
    assert {one.id for one in scene.troubled.received} == events
    spent = "select max(attempt_count) from deliveries where destination = 'held'"
    assert scene.rows(spent) == [(1,)]
    unfinished = "select count(*) from destinations where state != 'active' or opened_at is not null"
    assert scene.rows(unfinished) == [(0,)]


def _judge_log(scene: Scene) -> None:
    """Every line of every life, at level info: no callback token in it, and no key."""
    log = scene.victim.config.with_suffix(".log").read_text()
    tokens = [str(task.callback_url).rpartition("/")[2] for task in scene.upstream.tasks.values() if task.callback_url]
    assert tokens
    assert log.count("callback.received") >= 10
    assert [token for token in tokens if token in log] == []
    assert [
        secret for secret in (world.API_KEY, world.SECRET, world.SIGNING_KEY, "upstream-key") if secret in log
    ] == []
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
