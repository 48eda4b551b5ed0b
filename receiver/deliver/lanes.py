"""A destination's lane: what waits for its slots in this process, and how much may."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from receiver.destinations.base import Kind, Options
    from receiver.records import Delivery, Event

HANDED_PER_SLOT = 4
"""Deliveries that may wait in memory for each slot of a lane; more stay in the store until there is room."""


@dataclass(frozen=True)
class Destination:
    """A configured receiver, as deliver needs it. Durations of attempts are seconds."""

    name: str
    kind: Kind
    options: Options
    schedule: Sequence[timedelta]
    jitter: float
    timeout: float
    max_concurrency: int
    allow_private: bool

    @property
    def lease_for(self) -> timedelta:
        """Long enough for those ahead in memory and for itself."""
        return timedelta(seconds=(HANDED_PER_SLOT + 2) * self.timeout + 30)


@dataclass
class Lane:
    """One destination's deliveries in this process: those that wait in memory, and those under way."""

    destination: Destination
    waiting: deque[tuple[Delivery, Event]] = field(default_factory=deque)
    busy: int = 0
    due: bool = True
    due_at: datetime | None = None

    @property
    def capacity(self) -> int:
        """How many it may hold in this process, those under way included."""
        return self.destination.max_concurrency * HANDED_PER_SLOT

    @property
    def is_low(self) -> bool:
        """Claiming in larger steps costs less: not before half of the room is free."""
        return self.room > self.capacity // 2

    @property
    def room(self) -> int:
        """How many more it may hold now."""
        return max(0, self.capacity - len(self.waiting) - self.busy)
