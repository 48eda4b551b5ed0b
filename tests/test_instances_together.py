"""Two instances on one database: one key at once, one probe of an open circuit, and what one hears of the other.

Both live in this process, on a real server; what stands between one of them and the database can be cut.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from receiver.emulator import Emulator, EmulatorOptions, running
from receiver.upstream import ROUTES
from receiver.web import api, feed
from tests import pg_server, world
from tests.pg_proxy import Proxy, proxy
from tests.ports import free_port
from tests.victim import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from tests.world import World

pytestmark = pytest.mark.anyio

AT_ONCE = 50
PAUSE = 0.4
"""Seconds of a circuit's first pause."""
SOON = 1.0
"""Seconds within which one instance hears of another's commit; it takes a tenth of that."""


@asynccontextmanager
async def several(
    folder: Path,
    urls: Sequence[str],
    options: EmulatorOptions,
    change: Callable[[dict[str, Any]], None] = lambda _settings: None,
) -> AsyncIterator[list[World]]:
    """As many instances as there are URLs of the one database, with one upstream and one consumer."""
    async with world.sink() as sink, running(options) as upstream, AsyncExitStack() as stack:
        made = []
        for number, url in enumerate(urls):
            port, own = free_port(), folder / str(number)
            own.mkdir()
            given = world.settings(upstream.base_url, sink.url, port, url)
            change(given)
            client = await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=f"http://127.0.0.1:{port}/api/v1", timeout=60, trust_env=False,
                    headers={"authorization": f"Bearer {world.API_KEY}"},
                )
            )  # fmt: skip
            one = world.World(upstream, sink, given, own, client)
            await one.start()
            stack.push_async_callback(one.stop)
            made.append(one)
        yield made


@dataclass
class Pair:
    """Two of them; `between` is a proxy between the second and the database."""

    a: World
    b: World
    between: Proxy

    @property
    def upstream(self) -> Emulator:
        """The one upstream."""
        return self.a.upstream


@pytest.fixture(scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory, server: pg_server.Server) -> AsyncIterator[Pair]:
    """Two instances for all tests of this module that leave them well."""
    url = server.database("pair")
    with proxy(url) as between:
        async with several(tmp_path_factory.mktemp("pair"), [url, between.url], EmulatorOptions()) as (a, b):
            yield Pair(a, b, between)


@pytest.mark.parametrize("way", ["api", "drop-in"])
async def test_fifty_requests_of_one_key_are_one_submission(pair: Pair, way: str) -> None:
    """Spread over both instances at the same time: one task, one render, one answer for all."""
    prompt, headers = world.script(submit_delay=0.3), {"idempotency-key": f"one for {way}"}
    body: dict[str, Any] = world.body_of(world.PRO, prompt)

    async def ask(number: int) -> httpx.Response:
        one = (pair.a, pair.b)[number % 2]
        if way == "api":
            return await one.api.post("/tasks", json={"route": world.PRO, "input": body}, headers=headers)
        url = f"http://127.0.0.1:{one.settings['server']['port']}/{world.PRO}"
        return await one.api.post(url, json=ROUTES[world.PRO].fill(dict(body), seed=7), headers=headers)

    answers = await asyncio.gather(*map(ask, range(AT_ONCE)))
    statuses = Counter(answer.status_code for answer in answers)
    good = 201 if way == "api" else 200
    assert statuses.keys() <= {good, 409}, statuses
    assert statuses[409] >= 1, "the first was answered before the others came"
    late = [await ask(number) for number in range(4)]
    assert {answer.status_code for answer in late} == {good}
    assert {answer.headers.get("idempotency-replayed") for answer in late} == {"true"}
    # Between the answer and its stored copy the other instance answers from the task: the same id, in its own bytes.
    documents = [answer.json() for answer in (*answers, *late) if answer.status_code == good]
    assert len({one["id"] if way == "api" else one["data"]["task_id"] for one in documents}) == 1
    assert sum(1 for task in pair.upstream.tasks.values() if task.prompt == prompt) == 1


async def test_an_open_circuit_has_one_probe(tmp_path: Path, server: pg_server.Server) -> None:
    """After each pause one attempt is made, by whichever instance; and the end of it is known to both."""

    def change(given: dict[str, Any]) -> None:
        given["destinations"][0] |= {"circuit_failures": 3, "circuit_pause": PAUSE}
        given["delivery"]["schedule"] = ["0s"] + ["50ms"] * 300

    url = server.database("circuit")
    async with several(tmp_path, [url, url], EmulatorOptions(), change) as (a, b):
        a.sink.arrived = lambda _one: a.sink.answers.append(500)
        tasks = await asyncio.gather(*(one.created() for one in (a, b) * 5))

        def health() -> tuple[str, int, int]:
            asked = "select state, coalesce(opened_at, 0), opens from destinations where name = 'sink'"
            found = server.ask(asked, database="circuit")
            return found[0] if found else ("active", 0, 0)

        async def probed() -> bool:
            return health()[2] >= 4

        await a.eventually(probed)
        _, opened_at, _ = health()
        a.sink.arrived = lambda _one: None
        a.sink.answers.clear()
        for task_id in tasks:
            await a.arrived(task_id)
        await a.eventually(lambda: a.all_delivered(tasks[-1]))
        probes = server.ask(
            "select started_at from attempts where result != 'ok' and started_at >= %s order by started_at",
            (opened_at + PAUSE * 1000,),
            database="circuit",
        )
    gaps = [later[0] - sooner[0] for sooner, later in itertools.pairwise(probes)]
    assert len(probes) in {3, 4}, probes  # the last may have been answered when the sink was well again
    assert all(gap >= 2 ** (number + 1) * PAUSE * 1000 for number, gap in enumerate(gaps)), gaps


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits looks for himself only once in a minute: what is heard before came as news."""
    monkeypatch.setattr(api, "RECHECK_FOR", 60.0)
    monkeypatch.setattr(feed, "RECHECK_FOR", 60.0)


async def _heard(pair: Pair) -> tuple[float, float]:
    """How long after `a` has answered a callback those hear of it who wait at `b`: for the task, and for the feed."""
    task_id = await pair.a.created(render=60, callback="missing")
    upstream_id = (await pair.a.task(task_id))["upstream_id"]
    place = (await pair.b.api.get("/events", params={"limit": 200})).json()["next_cursor"]

    async def told(path: str, **params: Any) -> tuple[float, Any]:
        answer = (await pair.b.api.get(path, params={"wait": "30s", **params})).json()
        return time.monotonic(), answer

    waiting = [
        asyncio.create_task(told(f"/tasks/{task_id}")),
        asyncio.create_task(told("/events", after=place)),
    ]

    async def both_wait() -> bool:
        assert pair.b.service is not None
        after = pair.b.service.after
        return bool(after._waiting.get(task_id)) and bool(after._readers)

    await pair.b.eventually(both_wait)
    answer = await pair.a.call_back(task_id, {"task_id": upstream_id, "status": "FAILED", "failure": "no"})
    answered = time.monotonic()
    assert answer.status_code == 200
    (task_at, task), (feed_at, page) = await asyncio.gather(*waiting)
    assert task["state"] == "failed"
    assert [item["data"]["task_id"] for item in page["data"]] == [task_id]
    return task_at - answered, feed_at - answered


@pytest.mark.usefixtures("patient")
async def test_news_of_one_are_heard_by_those_who_wait_at_another(pair: Pair) -> None:
    """`?wait` and the feed's long poll at one instance end at once when another commits: nobody had to look."""
    took = sorted([await _heard(pair) for _ in range(5)])[2]
    assert max(took) < SOON, took


async def test_without_news_a_look_finds_it(pair: Pair) -> None:
    """With the listening connection cut off, the same within two looks; and with it back, at once again."""
    assert pair.between.deafen() == 1
    took = await _heard(pair)
    assert 0 < max(took) < 4, took
    pair.between.is_deaf = False


async def test_an_outage_is_not_hammered_at(pair: Pair) -> None:
    """While the database is away each part tries again once a second or so, also with news that could not be told."""
    assert pair.b.service is not None
    herald = pair.b.service.store.herald
    assert herald is not None
    pair.between.go_away()
    began, before = time.monotonic(), pair.between.refused

    async def tried_for_long() -> bool:
        herald.tell(["tsk_x"], [], events=False)
        return time.monotonic() - began >= 3 and pair.between.refused - before >= 3

    await until(tried_for_long, "each to try again", every=0.1)
    took, refused = time.monotonic() - began, pair.between.refused - before
    pair.between.come_back()
    assert refused <= 20 * took, f"{refused} in {took:.1f} s"
    await pair.b.created()
