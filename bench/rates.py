"""How much and at what cost: closed loops of 32 connections, against hello in the same run.

Both servers are up at once, and have their requests by turns of half a second each: the speed of a virtual machine's
core changes from one second to the next by as much as two, and what it does, it does to both.

* Durable accept: callbacks into the inbox, the task, the event and one delivery row. Every log line is on,
  `synchronous=FULL`, each 200 after its commit; the delivery is due in an hour, so none is made.
* End to end: all of that, and the delivery made; until the last has arrived.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import harness
from bench.load import Sink, Tally, closed_loop, listening
from bench.report import Measured, Row, at_least

if TYPE_CHECKING:
    from bench.run import Run

CONNECTIONS = 32
TURNS = 10
HELLOS, ACCEPTS, DELIVERS, PLAINS = 100_000, 20_000, 10_000, 1_000
LATER = "[delivery]\nschedule = ['1h']\n" + harness.destination(9)
WIDE = "max_concurrency = 32"


@dataclass(frozen=True)
class Rate:
    """So many in so many seconds, the seconds of the server's CPU that they took, and what the load saw."""

    count: int
    seconds: float
    busy: float
    tally: Tally

    @property
    def rate(self) -> float:
        """A second's worth."""
        return self.count / self.seconds

    @property
    def cpu(self) -> float:
        """What each cost, in microseconds of the server's CPU."""
        return self.busy / self.count * 1e6


Measure = Callable[[harness.Served, list[bytes]], Awaitable[Rate]]


async def answered(served: harness.Served, requests: list[bytes]) -> Rate:
    """All of them, each answered 200."""
    before = served.cpu()
    tally = await closed_loop(served.port, iter(requests), CONNECTIONS)
    assert tally.other == 0, f"{tally.other} requests were not answered 200"
    return Rate(tally.ok, tally.seconds, served.cpu() - before, tally)


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
    return Rate(len(requests), Sink.last - started, served.cpu() - before, tally)


async def by_turns(*sides: tuple[Measure, harness.Served, list[bytes]]) -> list[Rate]:
    """What each side does in all, after a warm-up, a few of its requests at a time."""
    for measure, served, requests in sides:
        await measure(served, requests[: len(requests) // 20])
    seen: list[list[Rate]] = [[] for _ in sides]
    for turn in range(TURNS):
        for (measure, served, requests), rates in zip(sides, seen, strict=True):
            timed = requests[len(requests) // 20 :]
            part = timed[len(timed) * turn // TURNS : len(timed) * (turn + 1) // TURNS]
            rates.append(await measure(served, part))
    return [_whole(rates) for rates in seen]


def _whole(rates: list[Rate]) -> Rate:
    latencies = [one for rate in rates for one in rate.tally.latencies]
    count, seconds = sum(rate.count for rate in rates), sum(rate.seconds for rate in rates)
    return Rate(count, seconds, sum(rate.busy for rate in rates), Tally(count, 0, seconds, latencies))


async def accept(count: int, database: str | None = None, size: int = 0) -> Rate:
    """Durable accept by a service of its own, after a warm-up."""
    async with harness.receiver(count, LATER, database, size=size) as served:
        warm = count // 20
        await answered(served, served.callbacks[:warm])
        return await answered(served, served.callbacks[warm:])


async def deliver(count: int, database: str | None = None, size: int = 0, destinations: int = 1) -> Rate:
    """End to end by a service of its own."""
    async with listening(Sink) as port:
        config = "".join(harness.destination(port, f"sink-{number}", WIDE) for number in range(destinations))
        async with harness.receiver(count, config, database, size=size) as served:
            return await delivered(served, served.callbacks, destinations)


async def measure_accept(run: Run) -> Measured:
    """Durable accept of hello, by turns."""
    hellos, ours = [], []
    for _ in range(run.repetitions):
        async with harness.hello() as hello, harness.receiver(run.size(ACCEPTS), LATER) as served:
            asked = list(harness.hello_requests(run.size(HELLOS), hello.port))
            theirs, our = await by_turns((answered, hello, asked), (answered, served, served.callbacks))
        hellos.append(theirs)
        ours.append(our)
        tell("accept", our, theirs)
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
        async with (
            listening(Sink) as sink,
            harness.hello() as hello,
            harness.receiver(run.size(DELIVERS), harness.destination(sink, "sink", WIDE)) as served,
            harness.asgi(harness.PLAIN, SINK=f"http://127.0.0.1:{sink}/hook") as plain,
        ):
            theirs, our, plainly = await by_turns(
                (answered, hello, list(harness.hello_requests(run.size(HELLOS), hello.port))),
                (delivered, served, served.callbacks),
                (delivered, plain, list(harness.hello_requests(run.size(PLAINS), plain.port))),
            )
        hellos.append(theirs)
        ours.append(our)
        plains.append(plainly)
        tell("end to end", our, theirs)
        tell("plain httpx", plainly, theirs)
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
