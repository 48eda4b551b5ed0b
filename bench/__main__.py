"""Every row of the goal table, measured: `python -m bench`. What else there is: `--help`."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from bench import harness, plots, report
from bench.growth import measure_growth
from bench.instances import measure_instances
from bench.instructions import measure_instructions
from bench.isolation import measure_isolation
from bench.latency import measure_latency
from bench.rates import measure_accept, measure_end_to_end
from bench.run import Run
from bench.start import measure_start
from bench.state import measure_fan_out, measure_history, measure_outstanding

PARTS = {
    "accept": measure_accept,
    "end-to-end": measure_end_to_end,
    "latency": measure_latency,
    "history": measure_history,
    "outstanding": measure_outstanding,
    "isolation": measure_isolation,
    "start": measure_start,
    "growth": measure_growth,
    "fan-out": measure_fan_out,
    "instances": measure_instances,
}
"""The goal table from the top; the last two have no goal, and only figures to know."""
ASKED_FOR = {"instructions": measure_instructions}
"""Not among all: it wants valgrind, and counts what the others time."""
KNOWN = PARTS | ASKED_FOR


def main() -> None:
    """Measure what is asked for, print it, and write it where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"of {', '.join(KNOWN)}; default: all but the last",
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes; 0.01 shows in a minute that it works")
    parser.add_argument("--json", type=Path, help="write all values here")
    parser.add_argument(
        "--write", action="store_true", help="put tables and plots into docs/; the goal table if all of it was measured"
    )
    given = parser.parse_args()
    unknown = [part for part in given.parts if part not in KNOWN]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(KNOWN)}")
    if given.write and given.scale != 1:
        parser.error("--write is for the sizes that the documents tell of: --scale 1")
    measured = uvloop.run(measure(given.parts or list(PARTS), given.repetitions, given.scale, given.json))
    if given.write:
        report.rewrite(measured.blocks)
        for plot in measured.plots:
            print(plots.draw(plot, report.DOCS / "plots"))


async def measure(parts: list[str], repetitions: int, scale: float, path: Path | None) -> report.Measured:
    """All of it."""
    harness.on_load_core()
    began, before = datetime.now(UTC), os.getloadavg()[0]  # noqa: TID251 -- a measurement has no other clock
    found = report.Measured()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        run = Run(repetitions, scale, Path(folder))
        for part in parts:
            started = time.perf_counter()
            print(f"{part}:", flush=True)
            some = await KNOWN[part](run)
            found.add(some)
            print(f"  {time.perf_counter() - started:.0f} s", flush=True)
    line = report.where(repetitions, began, (before, os.getloadavg()[0]))
    found.blocks = {name: f"{line}\n\n{block}" for name, block in found.blocks.items()}
    if found.rows:
        goals = f"{line}\n\n{report.table(found.rows)}"
        print(f"\n{goals}")
        if set(PARTS) - set(parts) <= {"fan-out", "instances"}:  # else it would lose rows
            found.blocks["goals"] = goals
    if path is not None:
        report.keep(path, found, line)
    return found


if __name__ == "__main__":
    main()
