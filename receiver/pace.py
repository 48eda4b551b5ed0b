"""A rate such as `10/s`, kept by counting starts. Pure: it is told the time.

A window and no bucket: one that refills lets twice as many through in an unlucky span, and whoever named the limit
counts like the window.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime, timedelta


class Pace:
    """Never more than so many starts in any span of that length, bursts included."""

    def __init__(self, count: float, per: timedelta) -> None:
        """Nothing started yet; a fraction of an attempt is one attempt in a longer span."""
        whole = max(1, int(count))
        self._per = per * (whole / count)
        self._starts: deque[datetime] = deque(maxlen=whole)

    def free(self, now: datetime) -> int:
        """How many may start now."""
        # By place, not by walking: `room` asks from the writer's thread, while the loop spends.
        starts = self._starts
        return (starts.maxlen or 1) - bisect_right(starts, now) + bisect_right(starts, now - self._per)

    def next_at(self, now: datetime) -> datetime:
        """When one may start next."""
        return now if self.free(now) > 0 else self._starts[0] + self._per

    def spend(self, now: datetime) -> None:
        """One starts."""
        if self._starts and self._starts[-1] > now:  # the clock was set back: they would count until it is there again
            self._starts = deque(maxlen=self._starts.maxlen)
        self._starts.append(now)
