"""How much and at what cost: closed loops of 32 connections, against hello in the same run.

* Durable accept: callbacks into the inbox, the task, the event and one delivery row. Every log line is on,
  `synchronous=FULL`, each 200 after its commit; the delivery is due in an hour, so none is made.
* End to end: all of that, and the delivery made; until the last has arrived.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import harness
from bench.load import Sink, closed_loop, listening
from bench.report import Measured, Row, at_least

if TYPE_CHECKING:
    from bench.load import Tally
    from bench.run import Run

CONNECTIONS = 32
ACCEPTS, DELIVERS, PLAINS = 20_000, 10_000, 1_000
LATER = "[delivery]\nschedule = ['1h']\n" + harness.destination(9)
WIDE = "max_concurrency = 32"


@dataclass(frozen=True)
class Rate:
    """A second's worth, its cost in microseconds of the server's CPU each, and what the load saw."""

    rate: float
    cpu: float
    tally: Tally


async def accepted(served: harness.Served, requests: list[bytes]) -> Rate:
    """A warm-up, and a run of all others."""
    warm = len(requests) // 20
    await closed_loop(served.port, iter(requests[:warm]), CONNECTIONS)
    before = served.cpu()
    tally = await closed_loop(served.port, iter(requests[warm:]), CONNECTIONS)
    assert tally.other == 0, f"{tally.other} requests were not answered 200"
    return Rate(tally.rate, (served.cpu() - before) / tally.ok * 1e6, tally)


async def delivered(served: harness.Served, requests: list[bytes], each: int = 1) -> Rate:
    """All of them, until `each` deliveries of every one have arrived at the sink."""
    Sink.count, wanted = 0, len(requests) * each
    before, started = served.cpu(), time.perf_counter()
    tally = await closed_loop(served.port, iter(requests), CONNECTIONS)
    ends = time.perf_counter() + 180
    while Sink.count < wanted and time.perf_counter() < ends:
        await asyncio.sleep(0.02)
    assert tally.other == 0, f"{tally.other} callbacks were not answered 200"
    assert Sink.count >= wanted, f"{Sink.count} of {wanted} were delivered"
    return Rate(len(requests) / (Sink.last - started), (served.cpu() - before) / len(requests) * 1e6, tally)


async def hello(run: Run) -> Rate:
    """What the machine gives."""
    async with harness.hello() as served:
        return await accepted(served, list(harness.hello_requests(run.size(40_000), served.port)))


async def accept(count: int, database: str | None = None, size: int = 0) -> Rate:
    """Durable accept by a service of its own."""
    async with harness.receiver(count, LATER, database, size=size) as served:
        return await accepted(served, served.callbacks)


async def deliver(count: int, database: str | None = None, size: int = 0, destinations: int = 1) -> Rate:
    """End to end by a service of its own."""
    async with listening(Sink) as port:
        config = "".join(harness.destination(port, f"sink-{number}", WIDE) for number in range(destinations))
        async with harness.receiver(count, config, database, size=size) as served:
            return await delivered(served, served.callbacks, destinations)


async def plain(run: Run) -> Rate:
    """End to end by a shared plain httpx client."""
    async with listening(Sink) as port, harness.asgi(harness.PLAIN, SINK=f"http://127.0.0.1:{port}/hook") as served:
        return await delivered(served, list(harness.hello_requests(run.size(PLAINS), served.port)))


async def measure_accept(run: Run) -> Measured:
    """Durable accept of hello, by turns."""
    hellos, ours = [], []
    for _ in range(run.repetitions):
        hellos.append(await hello(run))
        ours.append(await accept(run.size(ACCEPTS)))
        tell("accept", ours[-1], hellos[-1])
    p99 = statistics.median(one.tally.percentile(0.99) for one in ours)
    also = f"{words(ours)} of hello's {words(hellos)}; p99 {p99:.0f} ms"
    return Measured(
        [
            at_least(
                "durable accept, 32 connections, 1 destination row: of hello", shares(ours, hellos), 0.30, "", also
            ),
            Row("the same by CPU", costs(ours, hellos), None),
        ]
    )


async def measure_end_to_end(run: Run) -> Measured:
    """The whole way of hello, and of a plain client, by turns."""
    hellos, ours, plains = [], [], []
    for _ in range(run.repetitions):
        hellos.append(await hello(run))
        ours.append(await deliver(run.size(DELIVERS)))
        plains.append(await plain(run))
        tell("end to end", ours[-1], hellos[-1])
        tell("plain httpx", plains[-1], hellos[-1])
    return Measured(
        [
            at_least("end to end, 1 destination, all delivered: of hello", shares(ours, hellos), 0.10, "", words(ours)),
            Row("the same by CPU", costs(ours, hellos), None),
            at_least("end to end of a shared plain httpx client", shares(ours, plains), 10, "x", words(plains)),
        ]
    )


def shares(ours: list[Rate], theirs: list[Rate]) -> list[float]:
    """Of their rate, by repetition."""
    return [one.rate / other.rate for one, other in zip(ours, theirs, strict=True)]


def costs(ours: list[Rate], theirs: list[Rate]) -> list[float]:
    """The same by CPU: what theirs costs of what ours does."""
    return [other.cpu / one.cpu for one, other in zip(ours, theirs, strict=True)]


def words(rates: list[Rate]) -> str:
    """The medians."""
    rate, cpu = statistics.median(one.rate for one in rates), statistics.median(one.cpu for one in rates)
    return f"{rate:,.0f}/s at {cpu:,.0f} us"


def tell(what: str, one: Rate, hello_: Rate) -> None:
    """While it runs."""
    print(
        f"  {what:12} {one.rate:7.0f}/s {one.cpu:6.0f} us   hello {hello_.rate:7.0f}/s {hello_.cpu:4.0f} us"
        f"   {one.rate / hello_.rate:.3f} (by CPU {hello_.cpu / one.cpu:.3f})",
        flush=True,
    )
