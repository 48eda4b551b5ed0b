"""Stores of several instances on one PostgreSQL: who waits for whom, who decides on what, a server that goes silent."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from receiver.pace import Rate
from receiver.store import Store
from receiver.store.rates import Paced, Starts
from tests import databases
from tests.rooms import NOW, PATIENCE, Do, a_task, an_event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from receiver.store import Unit

pytestmark = [pytest.mark.anyio, pytest.mark.engine("postgresql")]

RATE = Paced((Rate("upstream", 1000, timedelta(seconds=1)),), NOW, NOW)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Store, Store]]:
    """Two stores on one new database, each with a writer of its own."""
    url = databases.new(tmp_path)
    async with AsyncExitStack() as stack:
        stores = Store.open(url), Store.open(url)
        for store in stores:
            stack.push_async_callback(store.close)
        yield stores


async def test_a_place_in_the_feed_is_taken_when_nothing_else_is_wanted(pair: tuple[Store, Store]) -> None:
    """An event that is staged before a question keeps no other instance waiting, and no two wait for one another."""
    one, other = pair
    await one.run(Do(lambda unit: Starts.of(unit, RATE).take(1)))
    asked, taken = threading.Event(), threading.Event()

    def born_then_paced(unit: Unit) -> None:
        unit.add_event(an_event(a_task()))
        unit.select(one.replays.running, limit=1)
        asked.set()
        assert taken.wait(PATIENCE)
        Starts.of(unit, RATE).take(1)

    def paced_then_born(unit: Unit) -> None:
        Starts.of(unit, RATE).take(1)
        taken.set()
        unit.add_event(an_event(a_task()))

    first = one.writer.run(Do(born_then_paced))
    assert await asyncio.to_thread(asked.wait, PATIENCE)
    await asyncio.gather(first, other.run(Do(paced_then_born)))
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    await one.close()  # a session tells of its deadlocks when it ends
    await other.close()
    assert databases.ask(one.dialect.url, deadlocks) == [(0,)]
