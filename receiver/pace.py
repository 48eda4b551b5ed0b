"""A rate such as `10/s`, kept by counting starts. Pure: it is told the time.

A window and no bucket: one that refills lets twice as many through in an unlucky span, and whoever named the limit
counts like the window. What counts is a value, `Pace`; where several processes keep one rate it is a row, and whoever
takes starts from it says by when they will have been made: that is the time they count from. It is rounded up to a
64th of the span, so a value stays small, and nothing is ever free too soon.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

PARTS: Final = 64
AHEAD: Final = timedelta(seconds=10)
"""A start is never granted for longer than this, or one span; one that counts from later is of a clock set back."""
_MS: Final = timedelta(milliseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Runs = tuple[tuple[int, int], ...]
"""Starts by the time they count from: Unix milliseconds and how many, oldest first."""
_RUNS: Final = msgspec.json.Decoder(Runs)


class Rate(msgspec.Struct, frozen=True):
    """So many starts in so long, and the name under which they are counted: `upstream`, `destination:crm`."""

    name: str
    count: float
    per: timedelta


class Pace(msgspec.Struct, frozen=True):
    """Never more than `count` starts in any span of `per` milliseconds, bursts included.

    Attributes:
        runs: what was started.
    """

    count: int
    per: int
    runs: Runs = ()

    @classmethod
    def of(cls, count: float, per: timedelta, starts: str | bytes = "[]") -> Pace:
        """The pace of a rate, and what was started as `starts` kept it; a fraction is one start in a longer span.

        Raises:
            msgspec.DecodeError: this is not what `starts` writes.
        """
        whole = max(1, int(count))
        return cls(whole, max(1, ceil(per * (whole / count) / _MS)), _RUNS.decode(starts))

    @property
    def starts(self) -> str:
        """What was started, as JSON text."""
        return msgspec.json.encode(self.runs).decode()

    def at(self, now: datetime) -> Pace:
        """As it counts from now on: without what is over. What counts from an impossible time is brought nearer."""
        over = _floor(now) - self.per
        runs = tuple([run for run in self.runs if run[0] > over])
        latest = over + self.per + max(self.per, AHEAD // _MS)
        if runs and runs[-1][0] > latest:
            nearer: Counter[int] = Counter()
            for at, count in runs:
                nearer[min(at, latest)] += count
            runs = tuple(nearer.items())
        return Pace(self.count, self.per, runs)

    def free(self, now: datetime) -> int:
        """How many may start now."""
        ms = _floor(now)
        return max(0, self.count - sum([count for at, count in self.runs if at + self.per > ms]))

    def next_at(self, now: datetime) -> datetime:
        """When one may start next."""
        kept = 0
        for at, count in reversed(self.at(now).runs):
            kept += count
            if kept >= self.count:
                return _EPOCH + (at + self.per) * _MS
        return now

    def spend(self, now: datetime, count: int = 1, *, by: datetime | None = None) -> Pace:
        """So many start now, or will have started `by` then."""
        grain = max(1, self.per // PARTS) * _MS
        ms = -((_EPOCH - (by or now)) // grain) * (grain // _MS)
        runs = Counter(dict(self.at(now).runs))
        runs[ms] += count
        return Pace(self.count, self.per, tuple(sorted(runs.items())))


@dataclass
class Haste:
    """By when what is granted now will have been started here: a guess, from how long it took of late.

    Too short a guess loses the starts, since what is late is not begun; too long a one leaves the window unused.

    Attributes:
        lag: seconds from the asking to the start, as they were seen; a slow one is forgotten slowly.
    """

    lag: float = 0.1

    def by(self, rates: Iterable[Rate], now: datetime) -> datetime:
        """By when, as the shortest of some rates has it."""
        per = min(rate.per for rate in rates)
        least, most = min(per.total_seconds() / 16, 0.25), max(per, AHEAD).total_seconds()
        return now + timedelta(seconds=min(max(3 * self.lag, least), most))

    def saw(self, asked_at: datetime, began_at: datetime) -> None:
        """What was asked for then could begin then."""
        self.lag = max((began_at - asked_at).total_seconds(), 0.8 * self.lag)


def _floor(now: datetime) -> int:
    return (now - _EPOCH) // _MS
