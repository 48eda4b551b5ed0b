"""Ending what stays up: a flag that Ctrl-C and SIGTERM set, in place of a KeyboardInterrupt in the middle of things."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
