"""Durable accept: callbacks into the inbox, the task, the event and one delivery row, at 32 connections, of hello.

    python -m bench.accept

Every log line is on, `synchronous=FULL`, each 200 after its commit; the delivery is due in an hour, so none is made.
"""

from __future__ import annotations

import asyncio
import statistics

from bench import harness
from bench.load import closed_loop

REPETITIONS, TASKS, CONNECTIONS = 3, 30_000, 32
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


async def main() -> None:
    """Measure hello and accept by turns."""
    harness.on_load_core()
    hellos, accepts = [], []
    for _ in range(REPETITIONS):
        async with harness.hello() as port:
            await closed_loop(port, harness.hello_requests(2_000, port), CONNECTIONS)
            hellos.append((await closed_loop(port, harness.hello_requests(40_000, port), CONNECTIONS)).rate)
        async with harness.receiver(TASKS, CONFIG) as (port, callbacks):
            await closed_loop(port, iter(callbacks[:1000]), CONNECTIONS)
            tally = await closed_loop(port, iter(callbacks[1000:]), CONNECTIONS)
        assert tally.other == 0, f"{tally.other} callbacks were not answered 200"
        accepts.append(tally.rate)
        print(f"hello {hellos[-1]:8.0f}/s   accept {tally.rate:8.0f}/s   of hello {tally.rate / hellos[-1]:.3f}"
              f"   p50 {tally.percentile(0.5):.1f} ms  p99 {tally.percentile(0.99):.1f} ms")  # fmt: skip
    ratios = [a / h for a, h in zip(accepts, hellos, strict=True)]
    print(f"\n{harness.machine()}\ndurable accept of hello: median {statistics.median(ratios):.3f}"
          f" ({min(ratios):.3f} to {max(ratios):.3f})")  # fmt: skip


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
