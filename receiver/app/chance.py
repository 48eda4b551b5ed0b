"""The one clock and the one source of random bytes."""

from __future__ import annotations

import os
import time
from collections import deque
from datetime import UTC, datetime

from receiver.ids import ENTROPY_BYTES


def clock() -> datetime:
    """Now, in UTC, to the millisecond: what is stored and read again is the same time."""
    # 0.5 us instead of 1.2 for `now` and `replace`. A double holds the millisecond exactly enough until the year 2242.
    return datetime.fromtimestamp(time.time_ns() // 1_000_000 / 1000, UTC)


class Entropy:
    """Random bytes of the operating system, by the page: ids want sixteen at a time, and a call costs more."""

    def __init__(self) -> None:
        """Nothing drawn yet."""
        # Threads share it without a lock: a piece that is popped is nobody else's, and a page too many does no harm.
        self._pieces: deque[bytes] = deque()

    def __call__(self, count: int) -> bytes:
        """Bytes that nobody else gets."""
        if count != ENTROPY_BYTES:
            return os.urandom(count)
        while True:
            try:
                return self._pieces.pop()
            except IndexError:
                page = os.urandom(400 * ENTROPY_BYTES)
                self._pieces.extend([page[at : at + ENTROPY_BYTES] for at in range(0, len(page), ENTROPY_BYTES)])
