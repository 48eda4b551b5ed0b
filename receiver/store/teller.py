"""Telling those who wait for a commit, on the loop; and what is done about it once all of them have heard.

While a COMMIT waits for the disk there is nobody to be heard: a crowd, whose next requests make one commit, has sent
them all. What was left of its last one is done then; otherwise the core would stand idle for a tenth of the time.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

CROWD = 8
"""From so many on what is done about a batch, beyond its answers, is left for the wait of the next COMMIT."""
LEFT_FOR = 0.01
"""Seconds it is left at most."""
A_FEW = 4
_give_turn: Callable[[], None] = getattr(os, "sched_yield", lambda: None)


class Teller:
    """Tells batch by batch."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell on `loop`."""
        self._loop = loop
        self._left: list[Callable[[], Any]] = []
        self._is_hurried = False

    def tell(self, calls: Sequence[Callable[[], Any]]) -> None:
        """Have all of a batch told; on the writer's thread."""
        self._soon(partial(self._tell, calls))

    def use_the_wait(self) -> None:
        """Have what was left done now, since a COMMIT will wait; on the writer's thread."""
        if self._left:
            self._soon(self._catch_up)

    def hurry(self) -> None:
        """The service stops: nothing is left for later; on the loop."""
        self._is_hurried = True
        self._catch_up()

    def _soon(self, call: Callable[[], Any]) -> None:
        with suppress(RuntimeError):  # the loop is closed: the process goes down, and what is committed is committed
            self._loop.call_soon_threadsafe(call)

    def _tell(self, calls: Sequence[Callable[[], Any]]) -> None:
        later = self._call(calls)
        if not later:
            return
        self._left += later
        # Behind those who wait by a future: a pause that shares the commit is heard before a callback is handed on.
        if len(calls) < CROWD or self._is_hurried:
            self._loop.call_soon(self._catch_up)
        else:
            self._loop.call_later(LEFT_FOR, self._catch_up)

    def _catch_up(self) -> None:
        """Do what was left, a few at a time: in between goes the writer, if the disk has answered it."""
        left, self._left = self._left, []
        for at in range(0, len(left), A_FEW):
            if at:
                _give_turn()
            self._call(left[at : at + A_FEW])

    def _call(self, calls: Sequence[Callable[[], Any]]) -> list[Callable[[], Any]]:
        """Call each, whatever becomes of the others; what they returned."""
        returned = []
        for call in calls:
            try:
                returned.append(call())
            except Exception as fault:  # noqa: BLE001 -- see above
                self._loop.call_exception_handler({"message": "told of a commit, and failed", "exception": fault})
        return [one for one in returned if one is not None]
