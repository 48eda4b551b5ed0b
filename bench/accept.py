"""Durable accept: callbacks into the inbox, the task, the event and one delivery row, at 32 connections, of hello.

    python -m bench.accept

Every log line is on, `synchronous=FULL`, each 200 after its commit; the delivery is due in an hour, so none is made.
"""

from __future__ import annotations

import statistics

from bench import harness
from bench.load import Tally, closed_loop

REPETITIONS, TASKS, CONNECTIONS = 3, 20_000, 32
CONFIG = """
[delivery]
schedule = ["1h"]
[[destinations]]
name = "sink"
kind = "webhook"
url = "http://127.0.0.1:9/hook"
secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
allow_private = true
"""


async def measure(served: harness.Served, requests: list[bytes]) -> tuple[Tally, float]:
    """A warm-up and a run: what the load saw, and the server's CPU for a request, in microseconds."""
    await closed_loop(served.port, iter(requests[:1000]), CONNECTIONS)
    before = served.cpu()
    tally = await closed_loop(served.port, iter(requests[1000:]), CONNECTIONS)
    assert tally.other == 0, f"{tally.other} requests were not answered 200"
    return tally, (served.cpu() - before) / tally.ok * 1e6


async def main() -> None:
    """Measure hello and accept by turns."""
    harness.on_load_core()
    ratios, by_cpu = [], []
    for _ in range(REPETITIONS):
        async with harness.hello() as served:
            hello, hello_cpu = await measure(served, list(harness.hello_requests(40_000, served.port)))
        async with harness.receiver(TASKS, CONFIG) as served:
            accept, accept_cpu = await measure(served, served.callbacks)
        ratios.append(accept.rate / hello.rate)
        by_cpu.append(hello_cpu / accept_cpu)
        print(
            f"hello {hello.rate:7.0f}/s {hello_cpu:5.0f} us   accept {accept.rate:7.0f}/s {accept_cpu:5.0f} us"
            f"   of hello {ratios[-1]:.3f} (by CPU {by_cpu[-1]:.3f})"
            f"   p50 {accept.percentile(0.5):.1f} ms  p99 {accept.percentile(0.99):.1f} ms"
        )
    print(
        f"\n{harness.machine()}\ndurable accept of hello: median {statistics.median(ratios):.3f}"
        f" ({min(ratios):.3f} to {max(ratios):.3f}); by CPU {statistics.median(by_cpu):.3f}"
    )


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
