"""What all lists of the API have in common on the command line: pages, a limit, a table or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from receiver.cli import output

if TYPE_CHECKING:
    from collections.abc import Callable

Document = dict[str, Any]

PAGE: Final = 200
"""The largest page the API gives."""


def gather(page: Callable[[int, str | None], Document], limit: int, cursor: str | None) -> Document:
    """At most `limit` items as one page; `page` asks for so many from a cursor on."""
    found: list[Document] = []
    while True:
        got = page(min(PAGE, limit - len(found)), cursor)
        found += got["data"]
        cursor = got["next_cursor"]
        if cursor is None or len(found) >= limit:
            return {"data": found, "next_cursor": cursor}


def show(found: Document, table: Callable[[list[Document]], None], *, limit: int, nothing: str, json: bool) -> None:
    """Print what was gathered: as JSON, or by `table`; `nothing` is what to say where there is nothing."""
    if json:
        output.document(found)
        return
    if not found["data"]:
        output.hint(nothing)
        return
    table(found["data"])
    if found["next_cursor"] is not None:
        output.hint(f"There are more than these {limit}: --limit {limit * 4}")
