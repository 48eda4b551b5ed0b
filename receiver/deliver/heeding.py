"""What a destination asked for is asked before each call, and heeded after each answer.

Where other instances share the database one of them may have been told to leave it alone, and its word may not have
come here yet. So the row is asked just before the call; what is on its way by the time that the row is committed
nobody calls back. A process that is alone holds the truth in its memory.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from receiver import health
from receiver.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from receiver.deliver.lanes import Lane
    from receiver.logs import Logger
    from receiver.records import Delivery, Health
    from receiver.retry import Result
    from receiver.store import Store


@dataclass(frozen=True, slots=True)
class Heeding:
    """What an attempt asks of its lane, and tells it.

    Attributes:
        heard: told what another instance made of the destination's health.
        give_back: told which deliveries go back untried.
    """

    lane: Lane
    store: Store
    clock: Callable[[], datetime]
    log: Logger
    heard: Callable[[Lane, Health], None]
    give_back: Callable[[list[Delivery]], None]

    async def is_free(self) -> bool:
        """Whether the destination may be called now.

        Raises:
            StoreUnavailable: that cannot be known, or not in the time that a request may take: a lease would end.
        """
        destination = self.lane.destination
        if destination.terms is not None and self.store.holds is not None:
            try:
                async with asyncio.timeout(destination.timeout):
                    held = await self.store.held(self.clock())
            except TimeoutError as error:
                raise StoreUnavailable("nobody said in time who is to be left alone") from error
            found = held.get(destination.name)
            if found is not None and health.held_at(found, self.clock()) is not None:
                self.heard(self.lane, found)
        return self.lane.held_until is None or not self.lane.is_left_alone(self.clock())

    async def may_begin(self) -> bool:
        """Whether an attempt may: what cannot be known is taken for a no, and asked about again."""
        try:
            return await self.is_free()
        except StoreUnavailable as error:
            self.log.error("deliver.store_unavailable", destination=self.lane.destination.name, error=str(error))
            return False

    def heed(self, result: Result, at: datetime) -> datetime | None:
        """What it answered holds at once, before it is stored; until when it is to be left alone, if it is."""
        self.give_back(self.lane.heed(result, at))
        return self.lane.held_until if self.lane.is_left_alone(at) else None
