"""Ending what stays up: a flag that Ctrl-C and SIGTERM set, in place of a KeyboardInterrupt in the middle of things."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from types import TracebackType
    from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LOOK_UP_EVERY: Final = 0.5
"""Seconds after which a wait in the kernel is left for a moment, to see whether a signal came just before it began."""


@contextlib.asynccontextmanager
async def stopped() -> AsyncIterator[asyncio.Event]:
    """An event that is set by the first of these signals; the second one is Python's own again."""
    flag = asyncio.Event()
    loop = asyncio.get_running_loop()

    def release() -> None:
        for number in SIGNALS:
            loop.remove_signal_handler(number)

    def stop() -> None:
        release()
        flag.set()

    for number in SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        yield flag
    finally:
        release()


class Stop:
    """Ctrl-C and SIGTERM without a loop: heard at once while something is waited for, and else at the next wait.

    So nothing is cut off between an answer and the note of it. The second one is heard at once wherever it comes.

    A signal that arrives between Python's last look and the kernel's wait ends no wait, and would be heard when that is
    over, half a minute later perhaps. A timer's signal, which does nothing, ends the wait in its place.
    """

    def __init__(self) -> None:
        """Nothing was asked; nothing is listened for yet."""
        self._was_asked, self._waits = False, False
        self._before: list[Any] = []
        self._tick: Any = None

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._ask) for number in SIGNALS]
        self._tick = signal.signal(signal.SIGALRM, lambda _number, _frame: None)
        signal.setitimer(signal.ITIMER_REAL, LOOK_UP_EVERY, LOOK_UP_EVERY)
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, before in zip((*SIGNALS, signal.SIGALRM), (*self._before, self._tick), strict=True):
            signal.signal(number, before)

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """While this waits, it may be ended.

        Raises:
            KeyboardInterrupt: it was.
        """
        self._waits = True
        try:
            if self._was_asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._waits = False

    def _ask(self, _number: int, _frame: object) -> None:
        again, self._was_asked = self._was_asked, True
        if self._waits or again:
            raise KeyboardInterrupt
