"""A running deliverer on a real store, for the tests of its lanes, its claims and its destinations' health."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from receiver.app import clock
from receiver.deliver import Deliverer, Destination
from receiver.destinations.webhook import KIND, WebhookOptions
from receiver.egress import Egress
from receiver.health import Terms
from receiver.ingest import After
from tests.rooms import PATIENCE, Lines, a_delivery, a_task, an_event, delivery_of, put, rows_of, rulebook, until
from tests.world import SECRET

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

    from receiver.ingest import Rulebook
    from receiver.records import Delivery, Health
    from receiver.store import Store


def to(url: str, name: str = "sink", **over: Any) -> Destination:
    """A webhook destination with short times."""
    destination = Destination(
        name=name,
        kind=KIND,
        options=WebhookOptions(url=url, secrets=(SECRET,)),
        schedule=[timedelta(milliseconds=ms) for ms in (0, 30, 60)],
        jitter=0.0,
        timeout=30.0,
        max_concurrency=8,
        allow_private=True,
        terms=Terms(failures=1000),
    )
    return replace(destination, **over)


class Standing:
    """A clock that is moved by hand: no start that was granted, and no wait, is over for want of a processor."""

    def __init__(self) -> None:
        """It is now."""
        self.now = clock()

    def __call__(self) -> datetime:
        """The time."""
        return self.now


@dataclass
class Room:
    """A running deliverer."""

    deliverer: Deliverer
    store: Store
    log: Lines

    async def given(self, destination: str = "sink", count: int = 1, **over: Any) -> list[Delivery]:
        """Deliveries that are due, stored; the deliverer is told."""
        made = []
        for _ in range(count):
            task = a_task("succeeded")
            event = an_event(task)
            delivery = a_delivery(event, destination, **{"due_at": self.deliverer.clock(), **over})
            await put(self.store, task, event, delivery)
            made.append(delivery)
        self.deliverer.wake(destination)
        return made

    async def until(self, delivery: Delivery, state: str) -> Delivery:
        """The delivery once it is in that state."""
        async with asyncio.timeout(PATIENCE):
            while True:
                now = await delivery_of(self.store, delivery.id)
                if now.state == state:
                    return now
                await asyncio.sleep(0.005)

    async def busy(self, count: int) -> None:
        """Wait until so many attempts are under way."""
        await until(lambda: len(self.deliverer._trying) == count)

    async def health(self, name: str = "sink") -> Health | None:
        """A destination's health as it is stored."""
        return (await self.store.read(self.store.health.all)).get(name)

    async def is_in_state(self, state: str, name: str = "sink") -> Health:
        """Its health, once it is in that state."""
        async with asyncio.timeout(PATIENCE):
            while True:
                now = await self.health(name)
                if now is not None and now.state == state:
                    return now
                await asyncio.sleep(0.005)

    def attempts(self, delivery: Delivery) -> list[Any]:
        """Its attempts: number, result."""
        question = f"SELECT number, result FROM attempts WHERE delivery_id = '{delivery.id}' ORDER BY number"
        return rows_of(self.store, question)


@asynccontextmanager
async def running(
    store: Store,
    *destinations: Destination,
    max_concurrency: int = 64,
    rules: Rulebook | None = None,
    time: Callable[[], datetime] = clock,
) -> AsyncIterator[Room]:
    """A deliverer on this store, until the end of the block; `time` is its clock."""
    egress, log = Egress(base_url="http://127.0.0.1:1", headers={}), Lines()
    after = After(cast("Any", log))
    deliverer = Deliverer(
        store=store,
        egress=egress,
        destinations={one.name: one for one in destinations},
        rules=rules or rulebook(rules=[]),
        after=after,
        clock=time,
        max_concurrency=max_concurrency,
    )
    after.take, after.deliver = deliverer.take, deliverer.wake
    loop = asyncio.create_task(deliverer.run())
    try:
        yield Room(deliverer, store, log)
    finally:
        await deliverer.stop(0.0)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        await egress.aclose()
