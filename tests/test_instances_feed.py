"""Three writers on one database: the feed misses nothing that they commit, and their retention takes each task once."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from receiver.store import Store, migrations
from receiver.sweep import Prune
from tests.rooms import NOW, Do, a_delivery, a_task, an_event, put, rows_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from receiver.records import Event
    from receiver.store import Unit
    from tests import pg_server

pytestmark = pytest.mark.anyio

SEED = 20261121
BATCHES = 120
"""Commits of each writer."""
PAGE = 7
OLD = 400
"""Tasks past their time; `YOUNG` are not, and `OWED` have a delivery that goes on."""
YOUNG = 20
OWED = 20


@pytest.fixture
async def three(server: pg_server.Server, request: pytest.FixtureRequest) -> AsyncIterator[list[Store]]:
    """Three stores on one new database, each with a writer of its own."""
    url = server.database(request.node.name.removeprefix("test_"))
    await asyncio.to_thread(migrations.upgrade, url)
    async with AsyncExitStack() as stack:
        stores = []
        for _ in range(3):
            store = Store.open(url)
            stack.push_async_callback(store.close)
            stores.append(store)
        yield stores


async def test_a_reader_misses_nothing(three: list[Store]) -> None:
    """Who pages on while three commit sees every event once, in the order of the places: what all readers see."""
    dice, over = random.Random(SEED), asyncio.Event()
    written: set[str] = set()

    async def write(store: Store, dice: random.Random) -> None:
        for _ in range(BATCHES):
            events = [an_event(a_task("succeeded")) for _ in range(dice.randint(1, 5))]
            await asyncio.gather(*(put(store, event) for event in events))
            written.update(event.id for event in events)
            if dice.random() < 0.3:
                await asyncio.sleep(dice.random() * 0.01)

    async def read(store: Store) -> list[Event]:
        seen: list[Event] = []
        while True:
            was_over, after = over.is_set(), seen[-1].seq if seen else 0
            page = await store.read(lambda c: store.events.feed(c, after, PAGE))  # noqa: B023 -- awaited at once
            seen += page
            if was_over and not page:
                return seen

    readers = [asyncio.create_task(read(store)) for store in three]
    await asyncio.gather(*(write(store, random.Random(dice.random())) for store in three))
    over.set()
    for seen in await asyncio.gather(*readers):
        assert {event.id for event in seen} == written
        assert [event.seq for event in seen] == list(range(1, len(written) + 1))


async def test_retention_of_three_takes_each_task_once(three: list[Store]) -> None:
    """All at once, and while one of them works: what is old goes, and no more than that; nobody falls over."""

    def stage(unit: Unit) -> None:
        for number in range(OLD + YOUNG + OWED):
            finished = NOW if number < OLD or number >= OLD + YOUNG else NOW + timedelta(days=2)
            task = replace(a_task("succeeded"), finished_at=finished)
            event = an_event(task)
            state = "pending" if number >= OLD + YOUNG else "delivered"
            unit.add_task(task)
            unit.add_event(event)
            unit.add_delivery(
                a_delivery(event, state=state, due_at=None, finished_at=None if state == "pending" else NOW)
            )

    await three[0].run(Do(stage))

    async def prune(store: Store) -> int:
        gone = 0
        while step := (await store.run(Prune(store, NOW + timedelta(days=1)))).gone:
            gone += step
        return gone

    async def work(store: Store) -> int:
        for _ in range(50):
            task = a_task("succeeded", finished_at=NOW + timedelta(days=2))
            await put(store, task, an_event(task))
        return 0

    assert sum(await asyncio.gather(*map(prune, three), work(three[0]))) == OLD
    for table, kept in (("tasks", YOUNG + OWED + 50), ("events", YOUNG + OWED + 50), ("deliveries", YOUNG + OWED)):
        assert rows_of(three[0], f"select count(*) from {table}") == [(kept,)], table
