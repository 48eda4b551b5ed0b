"""What was measured: rows beside their goals, plots, and where both are written."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench import harness

DOCS = Path(__file__).parent.parent / "docs"
PAGES = (DOCS / "performance.md", DOCS / "scale.md")


@dataclass(frozen=True)
class Row:
    """One line of the goal table.

    Attributes:
        values: one for each repetition; their median is the measure.
        limit: the goal; None where there is only a figure to know.
        at_most: whether the goal is an upper one.
        also: what else belongs to it, in words.
    """

    what: str
    values: list[float]
    limit: float | None
    unit: str = ""
    at_most: bool = True
    also: str = ""

    @property
    def goal(self) -> str:
        """In words."""
        return "" if self.limit is None else f"{'<=' if self.at_most else '>='} {self.limit:g}{self.unit}"

    @property
    def measured(self) -> str:
        """The median and the spread."""
        low, middle, high = min(self.values), statistics.median(self.values), max(self.values)
        return f"{number(middle)}{self.unit} ({number(low)} to {number(high)})"

    @property
    def met(self) -> str:
        """Whether the median keeps to the goal."""
        if self.limit is None:
            return ""
        middle = statistics.median(self.values)
        return "yes" if (middle <= self.limit if self.at_most else middle >= self.limit) else "**no**"


def at_most(what: str, values: list[float], limit: float, unit: str = "", also: str = "") -> Row:
    """A goal that is an upper one."""
    return Row(what, values, limit, unit, also=also)


def at_least(what: str, values: list[float], limit: float, unit: str = "", also: str = "") -> Row:
    """A goal that is a lower one."""
    return Row(what, values, limit, unit, at_most=False, also=also)


@dataclass(frozen=True)
class Panel:
    """One quantity over the places of a plot: for each the values of all repetitions."""

    title: str
    values: list[list[float]]


@dataclass(frozen=True)
class Plot:
    """Panels side by side; `name` is its file."""

    name: str
    title: str
    places: list[str]
    panels: list[Panel]


@dataclass
class Measured:
    """What a part of the bench found.

    Attributes:
        blocks: what stands between the marks of that name in the documents, as Markdown.
    """

    rows: list[Row] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    blocks: dict[str, str] = field(default_factory=dict)

    def add(self, other: Measured) -> None:
        """What another part found."""
        self.rows += other.rows
        self.plots += other.plots
        self.blocks |= other.blocks


def number(value: float) -> str:
    """With three figures."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: list[Row]) -> str:
    """As Markdown."""
    lines = ["| what | goal | measured, median (spread) | met |", "|---|---|---|---|"]
    for row in rows:
        also = f"; {row.also}" if row.also else ""
        lines.append(f"| {row.what} | {row.goal} | {row.measured}{also} | {row.met} |")
    return "\n".join(lines)


def where(repetitions: int, began: datetime, load: tuple[float, float]) -> str:
    """One line about the run."""
    versions = ", ".join(f"{name} {version}" for name, version in harness.versions().items())
    return (
        f"{began:%Y-%m-%d}, {harness.machine()}, an fsync {harness.fsync_ms():.2f} ms; {repetitions} repetitions;"
        f" load {load[0]:.1f} before, {load[1]:.1f} after; {versions}."
    )


def keep(path: Path, measured: Measured, line: str) -> None:
    """All values, with where they come from."""
    document = {
        "where": line,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),  # noqa: TID251 -- a measurement has no other clock
        "cpus": os.cpu_count(),
        "versions": harness.versions(),
        "rows": [
            asdict(row) | {"goal": row.goal, "met": row.met == "yes" if row.met else None} for row in measured.rows
        ],
        "plots": [asdict(plot) for plot in measured.plots],
        "tables": measured.blocks,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def rewrite(blocks: dict[str, str]) -> None:
    """Put each between its marks; what was not measured stays as it is."""
    for page in PAGES:
        text = page.read_text()
        for name, block in blocks.items():
            begin, end = f"<!-- bench: {name} -->\n", f"\n<!-- bench: end of {name} -->"
            before, found, rest = text.partition(begin)
            if found:
                text = f"{before}{begin}{block}{end}{rest.partition(end)[2]}"
        page.write_text(text)
