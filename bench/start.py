"""From nothing to ready: a cold start on an empty folder, the memory of doing nothing, and the command line's help."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from bench import harness
from bench.report import Measured, Row, at_most

if TYPE_CHECKING:
    from bench.run import Run

SETTLE_FOR = 3.0
HEAVY = ("sqlalchemy", "alembic", "aiohttp", "httpx", "uvicorn", "starlette")


async def measure_start(run: Run) -> Measured:
    """Each as often as anything else."""
    ready, again, idle, helped = [], [], [], []
    for _ in range(run.repetitions):
        async with harness.fresh(harness.destination(9)) as served:
            ready.append(served.ready_for)
            await asyncio.sleep(SETTLE_FOR)
            idle.append(served.rss())
        async with harness.receiver(0, harness.destination(9)) as served:
            again.append(served.ready_for)
        helped.append(_help())
    print(f"  {ready} s, {idle} MB, {helped} s", flush=True)
    return Measured(
        [
            at_most("cold start: ready, the database still to be made", ready, 3, " s"),
            at_most("the same, with a database", again, 3, " s"),
            at_most("idle memory", idle, 120, " MB"),
            Row("`receiver --help`", helped, None, " s", also=f"imports {', '.join(_heavy()) or 'nothing heavy'}"),
        ]
    )


def _help() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "receiver", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _heavy() -> list[str]:
    """What of the heavy libraries it imports."""
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "receiver", "--help"], check=True, capture_output=True, text=True
    ).stderr
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in told.splitlines()}
    return [name for name in HEAVY if name in imported]
