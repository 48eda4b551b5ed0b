"""How long: callbacks in an open loop, each at its scheduled time whether those before it were answered or not.

A delivery has arrived when its request is whole at the destination. Spans are taken from two moments: from the accepted
callback (its 200 is read), and from the time the callback was due to be sent, in which a stall of the service cannot
hide.
"""

from __future__ import annotations

import asyncio
import re
import socket
import statistics
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from bench import harness
from bench.load import Consumer, Tally, listening, open_loop
from bench.report import Measured, Row, at_most

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from bench.run import Run

RATE, WARM_UP, SLICE = 100.0, 200, 200
OK: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
OUT: Final = b"HTTP/1.1 500 Out\r\ncontent-length: 3\r\n\r\nout"
THREE: Final[Mapping[str, bytes | None]] = {"one": OK, "two": OK, "three": OK}
REFUSING: Final = "refusing"
_UPSTREAM_ID: Final = re.compile(rb'"upstream_id":"up-(\d+)"')


@dataclass
class Consumers:
    """Destinations: where they listen, and when which of them got which delivery first."""

    ports: dict[str, int] = field(default_factory=dict)
    arrived: dict[str, dict[int, float]] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)

    def take(self, name: str, request: bytes) -> None:
        """One request, whole."""
        self.seen[name] = self.seen.get(name, 0) + 1
        if found := _UPSTREAM_ID.search(request):
            self.arrived[name].setdefault(int(found[1]), time.perf_counter())

    def config(self, names: Sequence[str]) -> str:
        """These, with the default settings of delivery."""
        return "".join(harness.destination(self.ports[name], name) for name in names)


@asynccontextmanager
async def consumers(answers: Mapping[str, bytes | None]) -> AsyncIterator[Consumers]:
    """One for every answer (None: it never comes), and a port that refuses as long as it is held."""
    async with AsyncExitStack() as stack:
        opened = Consumers()
        for name, answer in answers.items():
            opened.arrived[name] = {}
            opened.ports[name] = await stack.enter_async_context(
                listening(partial(Consumer, answer, partial(opened.take, name)))
            )
        held = stack.enter_context(socket.socket())
        held.bind(("127.0.0.1", 0))
        opened.ports[REFUSING] = held.getsockname()[1]
        yield opened


@dataclass
class Span:
    """How long something took, over a phase, in milliseconds."""

    took: list[float]

    def at(self, share: float) -> float:
        """A percentile of the whole phase."""
        return Tally(latencies=self.took).percentile(share)

    @property
    def sliced_p99(self) -> float:
        """The median of the p99 of every two seconds: a burst of the machine's other work spoils that of the whole."""
        slices = [self.took[start : start + SLICE] for start in range(0, len(self.took), SLICE)]
        return statistics.median(Span(one).at(0.99) for one in slices)

    def line(self) -> str:
        """For people: p50, p99, sliced p99, the longest."""
        return f"{self.at(0.5):6.2f} {self.at(0.99):6.2f} {self.sliced_p99:6.2f} {self.at(1):5.0f}"


@dataclass
class Phase:
    """What one phase measured.

    Attributes:
        answered: from due to be sent to the 200.
        accepted: from the 200 to the delivery's arrival.
        due: from due to be sent to that arrival.
        cpu: microseconds a callback.
    """

    answered: Span
    accepted: Span
    due: Span
    cpu: float
    rss: float
    seen: dict[str, int]

    def line(self) -> str:
        """For people."""
        return f"{self.accepted.line()}   {self.due.line()}   {self.cpu:5.0f} us   {self.seen}"


async def phase(served: harness.Served, around: Consumers, watched: Sequence[str]) -> Phase:
    """Send all callbacks, and wait until those that are watched have them all."""
    count, before = len(served.callbacks), served.cpu()
    schedule = await open_loop(served.port, served.callbacks, RATE)
    ends = time.perf_counter() + 30
    while any(len(around.arrived[name]) < count for name in watched) and time.perf_counter() < ends:
        await asyncio.sleep(0.02)
    cpu, rss = (served.cpu() - before) / count * 1e6, served.rss()
    assert schedule.other == 0, f"{schedule.other} callbacks were not answered 200"
    for name in watched:
        assert len(around.arrived[name]) == count, f"{len(around.arrived[name])} of {count} reached {name}"
    counted = range(min(WARM_UP, count // 4), count)
    arrived = [(one, around.arrived[name][one]) for one in counted for name in watched]
    return Phase(
        Span([schedule.answered[one] - schedule.due[one] for one in counted]),
        Span([at - schedule.answered[one] for one, at in arrived]),
        Span([at - schedule.due[one] for one, at in arrived]),
        cpu,
        rss,
        dict(around.seen),
    )


async def alone(count: int, database: str | None = None) -> Phase:
    """A service of its own with three destinations, under load."""
    async with consumers(THREE) as around, harness.receiver(count, around.config(list(THREE)), database) as served:
        return await phase(served, around, list(THREE))


def rows(phases: list[Phase], where: str = "") -> list[Row]:
    """Of the goal table."""
    due = statistics.median(one.due.at(0.99) for one in phases)
    what = f"accepted -> delivered at 100/s, 3 destinations{where}"
    return [
        at_most(f"{what}: p50", [one.accepted.at(0.5) for one in phases], 5, " ms"),
        at_most(
            f"{what}: p99", [one.accepted.at(0.99) for one in phases], 25, " ms", f"from due to be sent {due:.1f} ms"
        ),
    ]


async def measure_latency(run: Run) -> Measured:
    """Accepted to delivered."""
    phases = []
    for _ in range(run.repetitions):
        phases.append(await alone(run.size(2200)))
        print(f"  {phases[-1].line()}", flush=True)
    return Measured(rows(phases))
