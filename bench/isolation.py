"""One slow or dead destination delays no other: a healthy one's p99 beside three that are not, of its p99 alone.

Beside the healthy destination stand one that accepts and never answers, one that answers 500 at once, and one that
refuses connections; all with the default delivery settings, the timeout of the hanging one included. Alone and beside
take turns in one run, each with a service and a database of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench import harness
from bench.latency import OK, OUT, REFUSING, Phase, consumers, phase
from bench.report import Measured, at_most

if TYPE_CHECKING:
    from bench.run import Run

CALLBACKS: Final = 3200
"""Thirty-two seconds a phase, more than twice the timeout of an attempt; the first two are not counted."""
ANSWERS: Final = {"healthy": OK, "hanging": None, "failing": OUT}


async def _with(names: list[str], count: int) -> Phase:
    async with consumers(ANSWERS) as around, harness.receiver(count, around.config(names)) as served:
        return await phase(served, around, ["healthy"])


async def measure_isolation(run: Run) -> Measured:
    """Alone and beside, by turns."""
    ratios: dict[str, list[float]] = {"accepted": [], "sliced": [], "due": []}
    print("          accepted->delivered, ms       due->delivered, ms            CPU a callback, requests that came")
    print("             p50    p99 sliced   max      p50    p99 sliced   max")
    for _ in range(run.repetitions):
        alone = await _with(["healthy"], run.size(CALLBACKS))
        print(f"  alone   {alone.line()}", flush=True)
        beside = await _with([*ANSWERS, REFUSING], run.size(CALLBACKS))
        print(f"  beside  {beside.line()}", flush=True)
        ratios["accepted"].append(beside.accepted.at(0.99) / alone.accepted.at(0.99))
        ratios["sliced"].append(beside.accepted.sliced_p99 / alone.accepted.sliced_p99)
        ratios["due"].append(beside.due.at(0.99) / alone.due.at(0.99))
    what = "one destination hanging, one failing, one refusing: the healthy one's p99 beside of alone"
    return Measured(
        [
            at_most(f"{what}, accepted -> delivered", ratios["accepted"], 2, "x"),
            at_most("the same, median of every 2 s", ratios["sliced"], 2, "x"),
            at_most("the same, from due to be sent", ratios["due"], 2, "x"),
        ]
    )
