"""Speed as wide ratios only; figures are `python -m bench`'s. And that none of it was bought with durability."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest
from starlette.middleware.base import BaseHTTPMiddleware

from receiver.deliver import Claim
from receiver.poll import Claim as PollClaim
from receiver.store.schema import metadata
from receiver.submit.ops import Accept
from tests.rooms import NOW, PATIENCE, Do, a_delivery, a_task, an_event, later, on_disk, opened, put, rulebook
from tests.world import world

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from receiver.records import Delivery, Task
    from receiver.store import Store, Unit

pytestmark = [pytest.mark.anyio, pytest.mark.engines]

FINISHED = 100_000


class Held:
    """The writer's connection, where one statement waits, as on a slow disk, and then fails if it is to."""

    def __init__(self, real: Any, *, at: str = "COMMIT", fails: bool = False) -> None:
        self._real, self._at, self._fails = real, at, fails
        self.reached, self.go_on = threading.Event(), threading.Event()

    def execute(self, sql: str, *values: Any) -> Any:
        """Run it; that one once it may."""
        if sql == self._at:
            self.reached.set()
            self.go_on.wait(PATIENCE)
            if self._fails:
                raise sqlite3.OperationalError("disk I/O error")
        return self._real.execute(sql, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def test_a_2xx_waits_for_the_disk(tmp_path: Path) -> None:
    """Neither a callback nor a submission is answered while its COMMIT has not returned; both are, right after."""
    async with world(tmp_path) as it, httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as http:
        assert it.service is not None
        task_id = await it.created(render=3600, callback="missing")
        body = {"task_id": (await it.task(task_id))["upstream_id"], "status": "3", "video_url": "https://x.example/v"}
        writer = it.service.store.writer
        held = writer._connection = cast("Any", Held(writer._connection))
        asked = [
            asyncio.create_task(http.post(it.callback_url(task_id), json=body)),
            asyncio.create_task(it.submit(prompt="a dog")),
        ]
        try:
            await asyncio.to_thread(held.reached.wait, PATIENCE)
            done, _ = await asyncio.wait(asked, timeout=0.3)
            assert done == set()
            assert await it.state(task_id) == "queued"
        finally:
            held.go_on.set()
        assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200, 201]
        assert await it.state(task_id) == "succeeded"


async def test_group_commit_is_faster_than_a_commit_each(tmp_path: Path) -> None:
    """What waits together costs less than half of what comes one after the other, on any disk."""
    async with opened(tmp_path) as store:

        async def alone() -> None:
            for _ in range(200):
                await store.run(Accept(a_task(), None))

        async def together() -> None:
            await asyncio.gather(*(store.run(Accept(a_task(), None)) for _ in range(200)))

        single, group = [], []
        for _ in range(3):
            single.append(await _took(alone()))
            group.append(await _took(together()))
        assert min(group) < min(single) / 2, (single, group)


@pytest.mark.parametrize("what", ["deliveries", "lookups"])
async def test_a_claim_costs_the_same_beside_a_history(tmp_path: Path, what: str) -> None:
    """With 100,000 that are finished it takes at most three times what it takes with none, asked by turns."""
    timed = _claims if what == "deliveries" else _lookups
    async with AsyncExitStack() as stack:
        sides = []
        for finished in (0, FINISHED):
            (folder := tmp_path / str(finished)).mkdir()
            store = await stack.enter_async_context(opened(folder))
            task = a_task("succeeded", finished_at=NOW)
            await put(store, task, a_delivery(an_event(task), state="delivered", due_at=None, finished_at=NOW))
            _multiply(store, "deliveries" if what == "deliveries" else "tasks", finished)
            sides.append((await timed(store), list[float]()))
        for _ in range(20):
            for claim, took in sides:
                took.append(await claim())
    none, beside = (min(took) for _, took in sides)
    assert beside < 3 * none, (beside, none)


def _multiply(store: Store, table: str, count: int) -> None:
    """Copies of its one row."""
    columns = [column.name for column in metadata.tables[table].columns if column.name != "id"]
    numbers = f"numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})"
    chosen = f"SELECT 'copy_' || CAST(1000000 + n AS VARCHAR(7)), {', '.join(columns)} FROM {table}, numbers"
    if count:
        on_disk(store, f"INSERT INTO {table} (id, {', '.join(columns)}) WITH RECURSIVE {numbers} {chosen}")


async def _claims(store: Store) -> Callable[[], Awaitable[float]]:
    event = an_event(a_task("succeeded"))
    await put(store, event)

    def claim(unit: Unit) -> int:
        return len(Claim(store, "sink", 20, later(1), later(60)).apply(unit).leased)

    return partial(_timed, store, claim, lambda: a_delivery(event))


async def _lookups(store: Store) -> Callable[[], Awaitable[float]]:
    def claim(unit: Unit) -> int:
        return len(PollClaim(store, 20, later(61), later(120), rulebook()).apply(unit)[0])

    return partial(_timed, store, claim, a_task)


async def _timed(store: Store, claim: Callable[[Unit], int], make: Callable[[], Task | Delivery]) -> float:
    """The seconds of a claim of twenty new ones, on the writer's thread."""

    def timed(unit: Unit) -> float:
        started = time.perf_counter()
        assert claim(unit) == 20
        unit.flush()
        return time.perf_counter() - started

    await put(store, *(make() for _ in range(20)))
    return await store.run(Do(timed))


async def test_no_middleware_stands_before_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`BaseHTTPMiddleware` costs 500 us a request: none is made, whatever is asked for."""
    made: list[type] = []
    plain = BaseHTTPMiddleware.__init__

    def noted(self: BaseHTTPMiddleware, *given: Any, **named: Any) -> None:
        made.append(type(self))
        plain(self, *given, **named)

    monkeypatch.setattr(BaseHTTPMiddleware, "__init__", noted)
    async with world(tmp_path) as it:
        assert (await it.submit()).status_code in {201, 202}
    assert made == []


async def _took(work: Any) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started
