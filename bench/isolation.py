"""One slow or dead destination delays no other: a healthy one's p99 beside three that are not, of its p99 alone.

    python -m bench.isolation

Callbacks come at 100/s, each at its scheduled time. Beside the healthy destination stand one that accepts and never
answers, one that answers 500 at once, and one that refuses connections; all with the default delivery settings, the
timeout of the hanging one included. Alone and beside take turns in one run, each with a service and a database of its
own. Two spans are shown: from the accepted callback (its 200 is read) to the delivery's arrival, and from the time the
callback was due to be sent to that arrival, in which a stall of the service cannot hide. A burst of the machine's other
work spoils the p99 of a whole phase, so the p99 of every two seconds is taken too, and the median of these shown.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import statistics
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bench import harness
from bench.load import Consumer, Tally, open_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REPETITIONS, CALLBACKS, RATE, WARM_UP, SLICE = 5, 4200, 100.0, 200, 200
"""Forty-two seconds a phase, more than twice the timeout of an attempt; the first two are not counted."""
DESTINATION: Final = """
[[destinations]]
name = "{name}"
kind = "webhook"
url = "http://127.0.0.1:{port}/hook"
secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
allow_private = true
"""
_UPSTREAM_ID: Final = re.compile(rb'"upstream_id":"up-(\d+)"')


@dataclass
class Consumers:
    """The destinations: where they listen, when the healthy one got which delivery, and what the others saw."""

    ports: dict[str, int] = field(default_factory=dict)
    arrived: dict[int, float] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)

    def take(self, name: str, request: bytes) -> None:
        """One request, whole."""
        self.seen[name] = self.seen.get(name, 0) + 1
        if name == "healthy" and (found := _UPSTREAM_ID.search(request)):
            self.arrived.setdefault(int(found[1]), time.perf_counter())


ANSWERS: Final = {
    "healthy": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "hanging": None,
    "failing": b"HTTP/1.1 500 Out\r\ncontent-length: 3\r\n\r\nout",
}


@asynccontextmanager
async def consumers() -> AsyncIterator[Consumers]:
    """Three that listen, and a port that refuses as long as it is held."""
    loop, opened = asyncio.get_running_loop(), Consumers()
    listeners = []
    for name, answer in ANSWERS.items():
        listener = await loop.create_server(
            lambda name=name, answer=answer: Consumer(answer, lambda request: opened.take(name, request)),  # type: ignore[misc]
            "127.0.0.1",
            0,
        )
        listeners.append(listener)
        opened.ports[name] = listener.sockets[0].getsockname()[1]
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        opened.ports["refusing"] = held.getsockname()[1]
        yield opened
    for listener in listeners:
        listener.close()


@dataclass
class Span:
    """One of the two spans, over a phase; milliseconds."""

    latencies: list[float]

    @property
    def p99(self) -> float:
        """Of the whole phase."""
        return Tally(latencies=self.latencies).percentile(0.99)

    @property
    def sliced_p99(self) -> float:
        """The median of the slices' own."""
        starts = range(0, len(self.latencies), SLICE)
        return statistics.median(
            Tally(latencies=self.latencies[start : start + SLICE]).percentile(0.99) for start in starts
        )

    def line(self) -> str:
        """For people."""
        whole = Tally(latencies=self.latencies)
        return f"{whole.percentile(0.5):6.2f} {self.p99:6.2f} {self.sliced_p99:6.2f} {whole.percentile(1):5.0f}"


@dataclass
class Phase:
    """What one phase measured."""

    accepted: Span
    due: Span
    cpu: float
    seen: dict[str, int]

    def line(self) -> str:
        """For people."""
        return f"{self.accepted.line()}   {self.due.line()}   {self.cpu:5.0f} us   {self.seen}"


async def phase(names: list[str]) -> Phase:
    """A fresh service with these destinations, under load."""
    async with consumers() as around:
        config = "".join(DESTINATION.format(name=name, port=around.ports[name]) for name in names)
        async with harness.receiver(CALLBACKS, config) as served:
            before = served.cpu()
            schedule = await open_loop(served.port, served.callbacks, RATE)
            ends = time.perf_counter() + 30
            while len(around.arrived) < CALLBACKS and time.perf_counter() < ends:
                await asyncio.sleep(0.02)
            cpu = (served.cpu() - before) / CALLBACKS * 1e6
    assert schedule.other == 0, f"{schedule.other} callbacks were not answered 200"
    assert len(around.arrived) == CALLBACKS, f"{len(around.arrived)} of {CALLBACKS} reached the healthy one"
    counted = range(WARM_UP, CALLBACKS)
    return Phase(
        Span([around.arrived[one] - schedule.answered[one] for one in counted]),
        Span([around.arrived[one] - schedule.due[one] for one in counted]),
        cpu,
        dict(around.seen),
    )


async def main() -> None:
    """Measure alone and beside by turns."""
    harness.on_load_core()
    print(f"{harness.machine()}; load before {os.getloadavg()[0]:.2f}")
    print("        accepted->delivered, ms       due->delivered, ms            CPU a callback, requests that came")
    print("           p50    p99 sliced   max      p50    p99 sliced   max")
    alone, beside = [], []
    for _ in range(REPETITIONS):
        alone.append(await phase(["healthy"]))
        print(f"alone   {alone[-1].line()}", flush=True)
        beside.append(await phase(["hanging", "failing", "refusing", "healthy"]))
        print(f"beside  {beside[-1].line()}", flush=True)
    print(f"\n{harness.machine()}; load after {os.getloadavg()[0]:.2f}\np99 of the healthy one, beside of alone:")
    tell("accepted->delivered        ", [one.accepted.p99 for one in alone], [one.accepted.p99 for one in beside])
    tell("accepted->delivered, sliced", [p.accepted.sliced_p99 for p in alone], [p.accepted.sliced_p99 for p in beside])
    tell("due->delivered             ", [one.due.p99 for one in alone], [one.due.p99 for one in beside])
    tell("due->delivered, sliced     ", [p.due.sliced_p99 for p in alone], [p.due.sliced_p99 for p in beside])


def tell(what: str, alone: list[float], beside: list[float]) -> None:
    """One line: the ratios, and how noisy it was."""
    ratios = [b / a for a, b in zip(alone, beside, strict=True)]
    print(
        f"  {what}  median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f});"
        f" alone {min(alone):.1f} to {max(alone):.1f} ms, beside {min(beside):.1f} to {max(beside):.1f} ms"
    )


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
