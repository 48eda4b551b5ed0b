"""What a callback costs beside what is in the store already, and by how many want it and how large it is."""

from __future__ import annotations

import asyncio
import statistics
from typing import TYPE_CHECKING

from bench import harness, history, latency, rates
from bench.report import Measured, Panel, Plot, at_least, at_most

if TYPE_CHECKING:
    from bench.run import Run

FINISHED = {"0": 0, "100k": 100_000, "1M": 1_000_000}
OUTSTANDING = {"0": 0, "10k": 10_000, "100k": 100_000}
DESTINATIONS = {"1": 4000, "3": 2000, "10": 600, "50": 150}
"""How many callbacks are made for so many destinations."""
SIZES = {"1 KB": (0, 4000), "64 KB": (65_536, 800), "1 MB": (1_048_000, 60)}
"""Bytes, and how many callbacks of them."""
IDLE_FOR = 10.0
"""Seconds."""
CPU_ACCEPT, CPU_ALL = "accept, us of CPU a callback", "end to end, us of CPU a callback"


async def measure_history(run: Run) -> Measured:
    """Accept, end to end and latency with a million finished tasks, and what it costs to do nothing then."""
    accepts: dict[str, list[rates.Rate]] = {place: [] for place in FINISHED}
    whole: dict[str, list[rates.Rate]] = {place: [] for place in FINISHED}
    phases, idle = [], []
    for _ in range(run.repetitions):
        for place, count in FINISHED.items():
            url = await run.with_history(count)
            accepts[place].append(await rates.accept(run.size(10_000), url))
            _cleaned(url)
            whole[place].append(await rates.deliver(run.size(5_000), url))
            _cleaned(url)
            _tell(f"{place} finished", accepts[place], whole[place])
        phases.append(await latency.alone(run.size(2000), url))
        _cleaned(url)
        print(f"  {phases[-1].line()}", flush=True)
        idle.append(await _idle(url))
    at = " with 1M finished tasks"
    return Measured(
        [
            at_least(
                f"accept{at} of empty", rates.shares(accepts["1M"], accepts["0"]), 0.7, "", rates.words(accepts["1M"])
            ),
            at_least(
                f"end to end{at} of empty", rates.shares(whole["1M"], whole["0"]), 0.7, "", rates.words(whole["1M"])
            ),
            *latency.rows(phases, f",{at}"),
            at_most(f"idle CPU{at}", idle, 3, " %"),
        ],
        [_costs("history", "Finished tasks in the store", {CPU_ACCEPT: accepts, CPU_ALL: whole})],
    )


def _cleaned(url: str | None) -> None:
    if url is not None:
        history.reset(url)


async def _idle(url: str | None) -> float:
    """Percent of a core."""
    async with harness.receiver(0, harness.destination(9), url) as served:
        await asyncio.sleep(3)
        before = served.cpu()
        await asyncio.sleep(IDLE_FOR)
        return (served.cpu() - before) / IDLE_FOR * 100


async def measure_outstanding(run: Run) -> Measured:
    """Memory and the latency of accept beside tasks that wait."""
    phases: dict[str, list[latency.Phase]] = {place: [] for place in OUTSTANDING}
    for _ in range(run.repetitions):
        for place, count in OUTSTANDING.items():
            phases[place].append(await latency.alone(run.size(1200), await run.with_outstanding(count)))
            one = phases[place][-1]
            print(f"  {place:>5} outstanding: {one.rss:.0f} MB, answered {one.answered.line()}", flush=True)
    many, none = phases["100k"], phases["0"]
    p99 = [statistics.median(one.answered.at(0.99) for one in some) for some in (many, none)]
    median = [one.answered.at(0.5) / other.answered.at(0.5) for one, other in zip(many, none, strict=True)]
    also, more = (
        f"p99 {p99[0]:.1f} ms, with none {p99[1]:.1f} ms",
        [a.rss - b.rss for a, b in zip(many, none, strict=True)],
    )
    panels = {
        "MB of memory": [[one.rss for one in some] for some in phases.values()],
        "accept, p50 in ms": [[one.answered.at(0.5) for one in some] for some in phases.values()],
        "accept, p99 in ms": [[one.answered.at(0.99) for one in some] for some in phases.values()],
    }
    return Measured(
        [
            at_most("100k outstanding tasks: memory more than with none", more, 60, " MB"),
            at_most("the same: accept latency at 100/s, p50 of none", median, 1.25, "x", also),
        ],
        [Plot("outstanding", "Outstanding tasks", list(OUTSTANDING), [Panel(*one) for one in panels.items()])],
    )


async def measure_fan_out(run: Run) -> Measured:
    """What destinations and bytes cost."""
    fans: dict[str, list[rates.Rate]] = {place: [] for place in DESTINATIONS}
    accepts: dict[str, list[rates.Rate]] = {place: [] for place in SIZES}
    whole: dict[str, list[rates.Rate]] = {place: [] for place in SIZES}
    for _ in range(run.repetitions):
        for place, count in DESTINATIONS.items():
            fans[place].append(await rates.deliver(run.size(count), destinations=int(place)))
            print(f"  {place:>5} destinations: {rates.words(fans[place][-1:])}", flush=True)
        for place, (size, count) in SIZES.items():
            accepts[place].append(await rates.accept(run.size(count), size=size))
            whole[place].append(await rates.deliver(run.size(count), size=size))
            _tell(place, accepts[place], whole[place])
    each = [[one.cpu / int(place) for one in some] for place, some in fans.items()]
    fan = _costs("destinations", "Destinations of every callback", {CPU_ALL: fans})
    fan.panels.append(Panel("end to end, us of CPU a delivery", each))
    return Measured([], [fan, _costs("sizes", "Size of a callback", {CPU_ACCEPT: accepts, CPU_ALL: whole})])


def _tell(place: str, accepts: list[rates.Rate], whole: list[rates.Rate]) -> None:
    print(f"  {place:>14}: accept {rates.words(accepts[-1:])}, end to end {rates.words(whole[-1:])}", flush=True)


def _costs(name: str, title: str, panels: dict[str, dict[str, list[rates.Rate]]]) -> Plot:
    drawn = [Panel(what, [[one.cpu for one in some] for some in found.values()]) for what, found in panels.items()]
    return Plot(name, title, list(next(iter(panels.values()))), drawn)
