"""Starts of a rate, taken inside an op's own transaction: what is granted is committed with what it was granted for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from receiver.pace import Pace
from receiver.records import Window

if TYPE_CHECKING:
    from datetime import datetime

    from receiver.pace import Rate
    from receiver.store.unit import Unit


@dataclass(frozen=True)
class Paced:
    """What asks for starts, and by when they will have been made; later than that nothing may begin."""

    rate: Rate
    now: datetime
    by: datetime


@dataclass
class Starts:
    """What a rate has left, in this transaction."""

    unit: Unit
    paced: Paced
    pace: Pace

    @classmethod
    def of(cls, unit: Unit, paced: Paced) -> Starts:
        """Ask the row, which no other transaction has until this one ends."""
        row = unit.window(paced.rate.name)
        starts = "[]" if row is None else row.starts
        pace = Pace.of(paced.rate.count, paced.rate.per, starts)
        found = cls(unit, paced, pace.at(paced.now))
        if found.pace.runs[-1:] != pace.runs[-1:]:  # of a clock set back: brought nearer once, not again and again
            found._put()
        return found

    @property
    def free(self) -> int:
        """How many there are."""
        return self.pace.free(self.paced.now)

    @property
    def next_at(self) -> datetime:
        """When there is one."""
        return self.pace.next_at(self.paced.now)

    def take(self, count: int) -> None:
        """So many are made."""
        if count:
            self.pace = self.pace.spend(self.paced.now, count, by=self.paced.by)
            self._put()

    def _put(self) -> None:
        self.unit.put_window(Window(self.paced.rate.name, self.pace.starts))
