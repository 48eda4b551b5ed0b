"""What no busy neighbour disturbs: instructions a request in the server's own code, counted by valgrind's callgrind.

The kernel's are not counted, nor what waiting for memory costs: this finds out where the work is and whether a change
has made it less, and the goal table says what that is worth. The same program gives nearly the same figure; how many
callbacks share a commit still depends on the moment.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from itertools import islice
from typing import TYPE_CHECKING

from bench import harness
from bench.load import closed_loop
from bench.rates import CONNECTIONS, LATER
from bench.report import Measured, Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.run import Run

WARM, COUNTED = 500, 1_500


async def measure_instructions(run: Run) -> Measured:
    """Hello's and durable accept's, thousands each."""
    if shutil.which("callgrind_control") is None:
        raise SystemExit("instructions are counted by valgrind, which is not here: apt-get install valgrind")
    hellos, ours = [], []
    for _ in range(run.repetitions):
        with counting(run.folder / "hello") as count:
            async with harness.hello() as served:
                await count(served, list(harness.hello_requests(WARM + run.size(COUNTED), served.port)))
        hellos.append(count.each)
        with counting(run.folder / "accept") as count:
            async with harness.receiver(WARM + run.size(COUNTED), LATER) as served:
                await count(served, served.callbacks)
        ours.append(count.each)
        print(f"  hello {hellos[-1]:.0f}k, accept {ours[-1]:.0f}k", flush=True)
    return Measured(
        [
            Row("instructions of hello, kernel apart", hellos, None, "k"),
            Row("instructions of a durable accept, kernel apart", ours, None, "k"),
            Row("of them hello's", [one / other for one, other in zip(hellos, ours, strict=True)], None),
        ]
    )


class Count:
    """Thousands of instructions for each request; known once the server has ended."""

    def __init__(self, out: Path) -> None:
        self._out, self._requests = out, 0

    async def __call__(self, served: harness.Served, requests: list[bytes]) -> None:
        """A warm-up, and then all others, counted."""
        some = iter(requests)
        await closed_loop(served.port, islice(some, WARM), CONNECTIONS)
        subprocess.run(["callgrind_control", "--instr=on", str(served.pid)], check=True, capture_output=True)
        tally = await closed_loop(served.port, some, CONNECTIONS)
        subprocess.run(["callgrind_control", "--instr=off", str(served.pid)], check=True, capture_output=True)
        assert tally.other == 0, f"{tally.other} requests were not answered 200"
        self._requests = tally.ok

    @property
    def each(self) -> float:
        """Of the last part that callgrind has written."""
        found = re.findall(r"^(?:summary|totals): (\d+)", self._out.read_text(), re.MULTILINE)
        return int(found[-1]) / self._requests / 1000


@contextlib.contextmanager
def counting(out: Path) -> Iterator[Count]:
    """Servers that are started inside count nothing until they are told to."""
    with harness.under("valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"):
        yield Count(out)
