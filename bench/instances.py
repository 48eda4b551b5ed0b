"""What one machine carries, and what 1, 2 and 4 `receiver serve` on one PostgreSQL carry.

All share this machine's cores with the load, the sink and the database server (Debian's, as it comes, fsync on), so the
rates say little about machines of their own. What does is the CPU of each callback: that of the instances, which goes
with them, and that of the server, which is the one that all share.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import harness, postgres
from bench.load import Sink, Tally, closed_loop, listening
from bench.rates import LATER, WIDE
from bench.report import Measured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.postgres import Server
    from bench.run import Run

CONNECTIONS = 64
COUNTS = (1, 2, 4)
TASKS = 8000


@dataclass(frozen=True)
class Carried:
    """Callbacks a second, and microseconds of CPU for each: of the instances together, and of the server.

    Attributes:
        p99: of the answer, in milliseconds.
        twice: deliveries that came more than once.
    """

    rate: float
    instances: float
    server: float
    p99: float
    twice: int = 0


async def carry(count: int, tasks: int, server: Server | None, *, deliver: bool) -> Carried:
    """So many instances on one new database, each with its share of the load; without a server, one SQLite file."""
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(listening(Sink))
        config = harness.destination(port, more=WIDE) if deliver else LATER
        if server is None:
            one = await stack.enter_async_context(harness.receiver(tasks, config, core=None))
            served, callbacks = [one], one.callbacks
        else:
            url = server.database(f"carried_{time.time_ns()}")
            callbacks = await harness.prepare(url, tasks)
            served = [await stack.enter_async_context(harness.fresh(config, url, core=None)) for _ in range(count)]
        return await _load(served, callbacks, server, deliver=deliver)


async def _load(
    served: Sequence[harness.Served], callbacks: Sequence[bytes], server: Server | None, *, deliver: bool
) -> Carried:
    """All callbacks, by turns to each; a tenth to warm up."""
    Sink.count, warm = 0, len(callbacks) // 10
    await _send(served, callbacks[:warm])
    await _arrived(warm if deliver else 0)
    before = sum(one.cpu() for one in served), server.cpu() if server else 0.0
    started, counted = time.perf_counter(), len(callbacks) - warm
    tallies = await _send(served, callbacks[warm:])
    ended = time.perf_counter()
    if deliver:
        await _arrived(len(callbacks))
        ended = Sink.last
    after = sum(one.cpu() for one in served), server.cpu() if server else 0.0
    assert not sum(tally.other for tally in tallies), "some callbacks were not answered 200"
    took = Tally(latencies=[one for tally in tallies for one in tally.latencies])
    return Carried(
        counted / (ended - started),
        (after[0] - before[0]) / counted * 1e6,
        (after[1] - before[1]) / counted * 1e6,
        took.percentile(0.99),
        Sink.count - len(callbacks) if deliver else 0,
    )


async def _send(served: Sequence[harness.Served], callbacks: Sequence[bytes]) -> list[Tally]:
    return await asyncio.gather(
        *(
            closed_loop(one.port, iter(callbacks[number :: len(served)]), CONNECTIONS // len(served))
            for number, one in enumerate(served)
        )
    )


async def _arrived(count: int) -> None:
    ends = time.perf_counter() + 180
    while Sink.count < count:
        assert time.perf_counter() < ends, f"{Sink.count} of {count} were delivered"
        await asyncio.sleep(0.02)


def line(what: str, found: list[Carried]) -> str:
    """The medians, as a row of a table."""

    def middle(name: str) -> float:
        return statistics.median([float(getattr(one, name)) for one in found])

    rates = [one.rate for one in found]
    return (
        f"| {what} | {middle('rate'):,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | {middle('instances'):,.0f} |"
        f" {middle('server'):,.0f} | {middle('p99'):.0f} | {max(one.twice for one in found)} |"
    )


async def measure_instances(run: Run) -> Measured:
    """All of it, by turns."""
    shared = [(f"{count}, PostgreSQL", count, True) for count in COUNTS]
    cases = [("one, SQLite", 1, False), *(shared if postgres.is_there() else [])]
    found: dict[tuple[str, bool], list[Carried]] = {}
    with ExitStack() as stack:
        server = stack.enter_context(postgres.server()) if postgres.is_there() else None
        for _ in range(run.repetitions):
            for what, count, is_shared in cases:
                for deliver in (False, True):
                    one = await carry(count, run.size(TASKS), server if is_shared else None, deliver=deliver)
                    found.setdefault((what, deliver), []).append(one)
                    print(f"  {line(what, [one])} {'delivered' if deliver else 'accepted'}", flush=True)
        lines = [f"PostgreSQL {server.version()}, {CONNECTIONS} connections in all." if server else "No PostgreSQL."]
    for deliver, title in ((False, "accepted"), (True, "delivered to 1 destination")):
        lines += [
            f"\n| {title} | callbacks/s | CPU of instances, us | CPU of server, us | p99 of the 200, ms | twice |"
        ]
        lines += ["|---|---|---|---|---|---|", *(line(what, found[what, deliver]) for what, _, _ in cases)]
    print("\n".join(lines))
    return Measured(blocks={"instances": "\n".join(lines)})
