"""However many instances there are, the upstream is asked about each task as often as by one."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from receiver.emulator import EmulatorOptions
from tests import pg_server, world
from tests.test_instances_together import several

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

OUTSTANDING = 24
INTERVAL = 0.5
TIMES = 6
"""Lookups of each task that are waited for."""


def _configure(given: dict[str, Any]) -> None:
    times = {"interval": INTERVAL, "max_interval": INTERVAL, "backoff": 1, "jitter": 0, "callback_grace": INTERVAL}
    given["polling"] |= times
    given["upstream"]["max_concurrency"] = OUTSTANDING


@pytest.mark.parametrize("count", [1, 3])
async def test_instances_do_not_add_up(tmp_path: Path, server: pg_server.Server, count: int) -> None:
    """A task that is looked up every half second by one instance is looked up as often by three."""
    url = server.database(f"polls_{count}")
    options = EmulatorOptions(outcome="never", callback="missing")
    async with several(tmp_path, [url] * count, options, _configure) as instances:
        routes = (world.PRO, world.V2V, world.I2V)
        await asyncio.gather(
            *(instances[i % count].created(routes[i % 3], outcome="never") for i in range(OUTSTANDING))
        )
        tasks = list(instances[0].upstream.tasks.values())
        before, began = {task.id: task.lookups for task in tasks}, time.monotonic()

        def asked() -> list[int]:
            return [task.lookups - before[task.id] for task in tasks]

        async def enough() -> bool:
            return min(asked()) >= TIMES

        await instances[0].eventually(enough)
        took, times = time.monotonic() - began, asked()
    assert len(times) == OUTSTANDING
    assert max(times) <= took / INTERVAL + 1, f"{times} in {took} s"
