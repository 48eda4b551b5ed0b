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
    """What asks for starts, of which rates, and by when they will have been made; nothing may begin later than that."""

    rates: tuple[Rate, ...]
    now: datetime
    by: datetime


@dataclass
class Starts:
    """What some rates have left, in this transaction; a start is one of each of them."""

    unit: Unit
    paced: Paced
    paces: dict[str, Pace]

    @classmethod
    def of(cls, unit: Unit, paced: Paced) -> Starts:
        """Ask the rows, which no other transaction has until this one ends."""
        found = cls(unit, paced, {})
        for rate in paced.rates:
            row = unit.window(rate.name)
            stored = Pace.of(rate.count, rate.per, "[]" if row is None else row.starts)
            pace = stored.at(paced.now)
            found.paces[rate.name] = pace
            if pace.runs[-1:] != stored.runs[-1:]:  # of a clock set back: brought nearer once, not again and again
                unit.put_window(Window(rate.name, pace.starts))
        return found

    @property
    def free(self) -> int:
        """How many there are."""
        return min(map(self.free_of, self.paces))

    def free_of(self, name: str) -> int:
        """How many one of the rates has."""
        return self.paces[name].free(self.paced.now)

    @property
    def next_at(self) -> datetime:
        """When there is one."""
        return max(pace.next_at(self.paced.now) for pace in self.paces.values())

    def take(self, count: int) -> None:
        """So many are made."""
        for name, pace in self.paces.items() if count else ():
            self.paces[name] = pace.spend(self.paced.now, count, by=self.paced.by)
            self.unit.put_window(Window(name, self.paces[name].starts))
