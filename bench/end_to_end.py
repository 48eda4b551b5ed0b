"""End to end: callbacks in, one destination, all delivered, of hello: `python -m bench.end_to_end`."""

from __future__ import annotations

import asyncio
import statistics
import time

from bench import harness
from bench.accept import measure
from bench.load import Sink, closed_loop

REPETITIONS, TASKS, CONNECTIONS = 3, 10_000, 32
CONFIG = """
[[destinations]]
name = "sink"
kind = "webhook"
url = "http://127.0.0.1:{port}/hook"
secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
allow_private = true
max_concurrency = 32
"""


async def main() -> None:
    """Measure hello and the whole way by turns."""
    harness.on_load_core()
    listener = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
    sink_port = listener.sockets[0].getsockname()[1]
    ratios: list[float] = []
    by_cpu: list[float] = []
    for _ in range(REPETITIONS):
        async with harness.hello() as served:
            hello_tally, hello_cpu = await measure(served, list(harness.hello_requests(40_000, served.port)))
        hello = hello_tally.rate
        Sink.count = 0
        async with harness.receiver(TASKS, CONFIG.format(port=sink_port)) as served:
            before, started = served.cpu(), time.perf_counter()
            tally = await closed_loop(served.port, iter(served.callbacks), CONNECTIONS)
            ends = time.perf_counter() + 120
            while Sink.count < TASKS and time.perf_counter() < ends:
                await asyncio.sleep(0.05)
            cpu = (served.cpu() - before) / TASKS * 1e6
        assert tally.other == 0, f"{tally.other} callbacks were not answered 200"
        assert Sink.count >= TASKS, f"{Sink.count} of {TASKS} were delivered"
        rate = TASKS / (Sink.last - started)
        ratios.append(rate / hello)
        by_cpu.append(hello_cpu / cpu)
        print(
            f"hello {hello:7.0f}/s {hello_cpu:5.0f} us   accepted {tally.rate:6.0f}/s"
            f"   delivered {rate:6.0f}/s {cpu:5.0f} us   of hello {ratios[-1]:.3f} (by CPU {by_cpu[-1]:.3f})"
            f"   delivered twice {Sink.count - TASKS}"
        )
    print(
        f"\n{harness.machine()}\nend to end of hello: median {statistics.median(ratios):.3f}"
        f" ({min(ratios):.3f} to {max(ratios):.3f}); by CPU {statistics.median(by_cpu):.3f}"
    )
    listener.close()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
