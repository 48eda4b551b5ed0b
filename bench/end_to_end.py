"""End to end: callbacks in, one destination, all delivered; of hello on the same core.

    python -m bench.end_to_end
"""

from __future__ import annotations

import asyncio
import statistics
import time

from bench import harness
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
    ratios = []
    for _ in range(REPETITIONS):
        async with harness.hello() as port:
            await closed_loop(port, harness.hello_requests(2_000, port), CONNECTIONS)
            hello = (await closed_loop(port, harness.hello_requests(40_000, port), CONNECTIONS)).rate
        Sink.count = 0
        async with harness.receiver(TASKS, CONFIG.format(port=sink_port)) as (port, callbacks):
            started = time.perf_counter()
            tally = await closed_loop(port, iter(callbacks), CONNECTIONS)
            ends = time.perf_counter() + 120
            while Sink.count < TASKS and time.perf_counter() < ends:
                await asyncio.sleep(0.05)
        assert tally.other == 0, f"{tally.other} callbacks were not answered 200"
        assert Sink.count >= TASKS, f"{Sink.count} of {TASKS} were delivered"
        rate = TASKS / (Sink.last - started)
        ratios.append(rate / hello)
        print(f"hello {hello:8.0f}/s   accepted {tally.rate:7.0f}/s   delivered {rate:7.0f}/s"
              f"   of hello {ratios[-1]:.3f}   delivered twice {Sink.count - TASKS}")  # fmt: skip
    print(f"\n{harness.machine()}\nend to end of hello: median {statistics.median(ratios):.3f}"
          f" ({min(ratios):.3f} to {max(ratios):.3f})")  # fmt: skip
    listener.close()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
