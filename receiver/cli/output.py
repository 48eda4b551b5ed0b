"""What the command line prints, and with which code it ends. Answers go to stdout, errors and hints to stderr.

Colour and width follow the terminal: `NO_COLOR` and a missing TTY are rich's to honour. Text from elsewhere is never
read as markup, and control characters in it never reach the terminal.
"""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from receiver.errors import ConfigError, ReceiverError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

DONE, FAILED, USAGE, UNREACHABLE = 0, 1, 2, 3
"""The exit codes (contract 2)."""
PLAIN_WIDTH: Final = 240
"""Columns where there is no terminal: no id and no URL is ever broken there."""

_CODES: Final = {"invalid-input": USAGE, "unreachable": UNREACHABLE, "store-unavailable": UNREACHABLE}
_PROBLEM_CODES: Final = {
    "invalid-input": USAGE,
    "unauthorized": USAGE,
    "forbidden": USAGE,
    "store-unavailable": UNREACHABLE,
}
_HINTS: Final = {
    "unauthorized": "Set $RECEIVER_API_KEY to one of the service's security.api_keys, or name its config by --config.",
    "unreachable": "Is it running (`receiver serve`)? Another one is named by --url, $RECEIVER_URL or --config.",
    "too-large": "The service takes bodies up to its server.max_submission.",
}
STATE_STYLES: Final = {
    "pending": "dim",
    "submitting": "dim",
    "ambiguous": "magenta",
    "queued": "blue",
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "lost": "red",
    "rejected": "red",
    # of a delivery, a destination, a replay
    "leased": "cyan",
    "delivered": "green",
    "dead": "red",
    "active": "green",
    "open": "red",
    "paused": "yellow",
    "done": "green",
}


class Failed(ReceiverError):
    """The thing asked for failed; the words say what and, where there is one, the way on."""

    code = "failed"


@lru_cache
def out() -> Console:
    """Where answers go."""
    return _console(stderr=False)


@lru_cache
def err() -> Console:
    """Where errors and hints go."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def say(*parts: str | Text, style: str = "", console: Console | None = None) -> None:
    """One line; on a terminal it flows, nothing is cut."""
    from rich.text import Text

    line = Text(style=style)
    for part in parts:
        line.append(clean(part) if isinstance(part, str) else part)
    (console or out()).print(line, soft_wrap=True)


def hint(text: str) -> None:
    """A line for the reader, out of the way of the answer."""
    say(text, style="dim", console=err())


def document(value: Any) -> None:
    """A JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def styled(text: str, style: str) -> Text:
    """Cleaned text in a style."""
    from rich.text import Text

    return Text(clean(text), style=style)


def state(name: str) -> Text:
    """A state in its colour."""
    return styled(name, STATE_STYLES.get(name, ""))


def table(*columns: str) -> Table:
    """An empty table without lines around it; where it is too wide, its last column is folded."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        made.add_column(name, no_wrap=name != columns[-1], overflow="fold")
    return made


def rows(lines: Sequence[Sequence[str | Text]], *, indent: int = 2, console: Console | None = None) -> None:
    """Lines in columns: on a terminal the last column is folded to fit, elsewhere every line stays one line."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    where = console or out()
    cells = [[Text(clean(cell)) if isinstance(cell, str) else cell for cell in line] for line in lines]
    if where.is_terminal:
        grid = Table.grid(padding=(0, 2, 0, 0))
        for number in range(len(cells[0]) if cells else 0):
            grid.add_column(no_wrap=number < len(cells[0]) - 1, overflow="fold")
        for line in cells:
            grid.add_row(*line)
        where.print(Padding(grid, (0, 0, 0, indent)))
        return
    widths = [max(cell.cell_len for cell in column) for column in zip(*cells, strict=True)]
    for line in cells:
        for cell, width in zip(line[:-1], widths, strict=False):
            cell.pad_right(width - cell.cell_len)
        where.print(Text(" " * indent) + Text("  ").join(line), soft_wrap=True)


def clean(text: str) -> str:
    """Text from elsewhere, without what a terminal would obey."""
    return "".join([char if char.isprintable() or char == "\n" else "\ufffd" for char in text])


def short(text: str, most: int = 60) -> str:
    """At most so many characters of one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def report(error: ReceiverError) -> int:
    """Say on stderr what went wrong and how to mend it; the exit code."""
    if isinstance(error, ConfigError):
        for line in error.problems:  # as editors read them: file:line: key: reason
            say(line, console=err())
        return USAGE
    problem: dict[str, Any] = getattr(error, "problem", {})
    kind = str(getattr(error, "kind", ""))
    say(styled("error: ", "bold red"), str(error), console=err())
    flaws = problem.get("errors") or []
    for flaw in flaws:
        place = str(flaw.get("pointer") or flaw.get("parameter") or "")
        if len(flaws) > 1 or place.rpartition("/")[2] not in str(error):
            say(f"       {place}: {flaw.get('detail', '')}", console=err())
    upstream = problem.get("upstream")
    if upstream:
        say(
            f"       the upstream answered {upstream.get('status')}: {short(str(upstream.get('body')), 400)}",
            console=err(),
        )
    if problem.get("task_id"):
        hint(f"The task is kept as `rejected`: receiver tasks show {problem['task_id']}")
    if (kind or error.code) in _HINTS:
        hint(_HINTS[kind or error.code])
    for note in getattr(error, "__notes__", ()):
        hint(note)
    return _PROBLEM_CODES.get(kind, FAILED) if problem else _CODES.get(error.code, FAILED)
