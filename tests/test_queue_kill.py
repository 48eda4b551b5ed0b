"""Five thousand queued submissions, an upstream that throttles, SIGKILL in the middle: each is paid once, in order.

A real `receiver serve` accepts them with `Prefer: respond-async`, over many connections and each under an
Idempotency-Key of its own; the emulator lives on in this process and counts. It throttles until all are accepted, and
then in seeded spells, with and without `Retry-After`. The service is killed twice at seeded moments: while it accepts,
and while it sends. What was under way at that kill may have been taken, and is never sent again; all else is taken, in
order of creation. `KILL_SEED` in the environment changes the luck; a failure prints it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
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
MANY = 5_000
CONNECTIONS = 32
AT_ONCE = 8
"""`upstream.max_concurrency`, its default."""
ROUTES = (world.PRO, world.V2V, world.I2V)


def _configure(given: dict[str, Any]) -> None:
    """Nothing is looked up meanwhile; waits are short but where the upstream names longer ones."""
    given["upstream"] |= {"max_concurrency": AT_ONCE, "submit_retry": ["30ms", "60ms"], "timeout": "5s"}
    given["polling"] |= {"callback_grace": "1h", "interval": "1h", "max_interval": "1h", "deadline": "25h"}


@dataclass
class Scene:
    """Everything that outlives the process; `told`: by number, the id a caller was told."""

    victim: Victim
    upstream: Emulator
    dice: random.Random
    database: str
    told: dict[int, str] = field(default_factory=dict)
    cut_off: int = 0
    spells: list[str] = field(default_factory=list)

    def rows(self, question: str) -> list[Any]:
        """Ask the database, beside the process."""
        return databases.ask(self.database, question)

    def taken(self) -> int:
        """How many the upstream has taken."""
        return self.upstream.ledger.created.total()

    def refused(self) -> int:
        """How many it has throttled."""
        return self.upstream.ledger.faults["submit=429"]

    # -- callers ---------------------------------------------------------------------------------------------------

    async def call(self, numbers: range) -> Counter[str]:
        """Submit each of these under its key, again and again until there is an answer; how each was answered."""
        answers: Counter[str] = Counter()
        left = iter(numbers)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as session:
            await asyncio.gather(*(self._caller(session, left, answers) for _ in range(CONNECTIONS)))
        return answers

    async def _caller(self, session: aiohttp.ClientSession, left: Any, answers: Counter[str]) -> None:
        for number in left:
            while True:
                await self.victim.up.wait()
                try:
                    status, replayed, body = await self._post(session, number)
                except (aiohttp.ClientError, ConnectionError):
                    self.cut_off += 1
                    continue
                if status != 409:
                    break
                await asyncio.sleep(0.05)
            assert status in {201, 202}, body  # 201: its first answer was lost with the process, and it is taken
            answers["replayed" if replayed else "new"] += 1
            task_id = orjson.loads(body)["id"]
            assert self.told.setdefault(number, task_id) == task_id, "one key, two tasks"

    async def _post(self, session: aiohttp.ClientSession, number: int) -> tuple[int, bool, bytes]:
        route = ROUTES[number % len(ROUTES)]
        document = {"route": route, "input": world.body_of(route, _prompt(number))}
        headers = {
            "authorization": f"Bearer {world.API_KEY}",
            "content-type": "application/json",
            "prefer": "respond-async",
            "idempotency-key": f"order {number}",
        }
        url = f"{self.victim.url}/api/v1/tasks"
        async with session.post(url, data=orjson.dumps(document), headers=headers) as answer:
            return answer.status, "idempotency-replayed" in answer.headers, await answer.read()

    # -- the upstream's moods --------------------------------------------------------------------------------------

    async def moods(self) -> None:
        """Take some hundreds, throttle some, and so on; counted in submissions, so that no machine is too slow."""
        while True:
            await _reaches(self.taken, self.taken() + self.dice.randint(100, 500))
            spell = self.dice.choice(["", "", "1", "date:1"])
            self.upstream.configure(submit="429", retry_after=spell)
            self.spells.append(spell)
            await _reaches(self.refused, self.refused() + self.dice.randint(3, 20))
            self.upstream.configure(submit="ok", retry_after="")

    async def kill_at(self, count: Callable[[], int], enough: int) -> set[str]:
        """Kill the service when there are so many; the prompts that were under way then."""
        await _reaches(count, enough)
        self.victim.kill()
        assert await self.victim.gone() == -9, self.victim.last_words()
        return {row[0] for row in self.rows("select prompt from tasks where state = 'submitting'")}

    async def no_more(self, which: str, limit: float) -> None:
        """Wait until there is no such task."""

        async def none() -> bool:
            return self.rows(f"select count(*) from tasks where {which}") == [(0,)]

        await until(none, f"no task where {which}", limit=limit, every=0.1)


async def _reaches(count: Callable[[], int], enough: int) -> None:
    async def reached() -> bool:
        return count() >= enough

    await until(reached, f"{enough} of them", limit=60, every=0.002)


def _prompt(number: int) -> str:
    return f"clip {number}"


@asynccontextmanager
async def _scene(folder: Path) -> AsyncIterator[Scene]:
    options = EmulatorOptions(seed=SEED, outcome="never", callback="missing", submit="429", submit_delay=0.002)
    async with world.sink() as sink, running(options) as upstream:
        port, database = free_port(), databases.empty(folder)
        given = world.settings(upstream.base_url, sink.url, port, database)
        _configure(given)
        config = folder / "config.toml"
        config.write_text(tomli_w.dumps(given))
        victim = Victim(config, f"http://127.0.0.1:{port}")
        try:
            yield Scene(victim, upstream.emulator, random.Random(SEED), database)
        finally:
            victim.end()


async def test_five_thousand_queued_are_paid_once_each(tmp_path: Path) -> None:
    """Accepted past a kill, sent past throttling and a kill, asked for again: 5,000 renders at most one of each."""
    print(f"KILL_SEED={SEED}")  # noqa: T201 -- pytest shows it where the test fails
    async with _scene(tmp_path) as scene:
        under_way = await _accept(scene)
        killed_at = await _send(scene, under_way)
        assert await scene.call(range(MANY)) == {"replayed": MANY}, "a key was forgotten"
        await scene.no_more("state = 'submitting'", limit=60)
        _judge(scene, killed_at, under_way)
        scene.victim.kill(signal.SIGTERM)
        assert await scene.victim.gone() == 0, scene.victim.last_words()


async def _accept(scene: Scene) -> set[str]:
    """All are accepted, by a process that is killed meanwhile, and its successor; not one is taken yet."""
    scene.victim.spawn_cold()
    await scene.victim.ready()
    calling = asyncio.create_task(scene.call(range(MANY)))
    under_way = await scene.kill_at(lambda: len(scene.told), scene.dice.randint(MANY // 4, MANY * 3 // 4))
    scene.victim.spawn_cold()
    await scene.victim.ready()
    await calling
    assert scene.cut_off >= 1, "the kill hit nobody"
    assert (scene.taken(), scene.rows("select count(*) from tasks")) == (0, [(MANY,)])
    return under_way


async def _send(scene: Scene, under_way: set[str]) -> float:
    """The upstream takes them in spells, until the queue is empty; when the service was killed in the middle."""
    scene.upstream.configure(submit="ok")
    moods = asyncio.create_task(scene.moods())
    try:
        under_way |= await scene.kill_at(scene.taken, scene.dice.randint(MANY // 4, MANY * 3 // 4))
        killed_at = time.monotonic()
        scene.victim.spawn_cold()
        await scene.victim.ready()
        await scene.no_more("submit_due_at is not null", limit=80)
    finally:
        moods.cancel()
    return killed_at


def _judge(scene: Scene, killed_at: float, under_way: set[str]) -> None:
    states = Counter(dict(scene.rows("select state, count(*) from tasks group by state")))
    renders = Counter(task.prompt for task in scene.upstream.tasks.values())
    unclear = {row[0] for row in scene.rows("select prompt from tasks where state = 'ambiguous'")}
    assert set(scene.told) == set(range(MANY))
    assert states == {"queued": MANY - len(unclear)} | ({"ambiguous": len(unclear)} if unclear else {})
    assert [prompt for prompt, count in renders.items() if count > 1] == [], "paid twice"
    assert renders.keys() | unclear == {_prompt(number) for number in range(MANY)}
    # What was under way at a kill was left alone from then on; nothing else is unclear.
    assert unclear == under_way
    assert len(under_way) <= 2 * AT_ONCE
    after = {task.prompt for task in scene.upstream.tasks.values() if task.born_at > killed_at}
    assert after & under_way == set(), "sent again though it may have been taken"
    assert len(after) >= MANY // 5
    assert len(renders) - len(after) >= MANY // 5
    # The upstream's ids are those of its renders of the same prompt.
    ids = {task.id: task.prompt for task in scene.upstream.tasks.values()}
    for upstream_id, prompt in scene.rows("select upstream_id, prompt from tasks where upstream_id is not null"):
        assert ids[upstream_id] == prompt
    assert len(set(scene.spells)) == 3, "it was not throttled in every way"
    assert scene.refused() >= 3 * len(scene.spells)
    _judge_order(scene, unclear)


def _judge_order(scene: Scene, unclear: set[str]) -> None:
    """When one is taken, all that were created before it on its route have been sent: no more than slots are open."""
    created = [row[0] for row in scene.rows("select prompt from tasks order by created_at, id")]
    place = {prompt: number for number, prompt in enumerate(created)}
    for route in ROUTES:
        waiting = [prompt for prompt in created if _route_of(prompt) == route and prompt not in unclear]
        first = 0
        gone: set[str] = set()
        for task in scene.upstream.tasks.values():
            if task.route != route or task.prompt in unclear:
                continue
            gone.add(task.prompt)
            while first < len(waiting) and waiting[first] in gone:
                first += 1
            passed = [one for one in waiting[first : first + AT_ONCE + 1] if one not in gone]
            older = [one for one in passed if place[one] < place[task.prompt]]
            assert len(older) < AT_ONCE, f"{task.prompt} was taken before {older}"


def _route_of(prompt: str) -> str:
    return ROUTES[int(prompt.split()[1]) % len(ROUTES)]
