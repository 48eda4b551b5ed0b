"""What differs between the engines, and nothing else: connecting, many values at once, errors, who may serve.

An engine is a file here; all have the same members, and `is_shared` tells whether other processes may serve the same
database. The statements themselves are one set, in the rooms above.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union

from receiver.store.dialect.sqlite import SQLite

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from receiver.store.dialect.postgres import Postgres

__all__ = ["Dialect", "Lock", "SQLite", "Session", "open_dialect"]

Dialect: TypeAlias = Union[SQLite, "Postgres"]


class Lock(Protocol):
    """What a serving process holds."""

    def release(self) -> None:
        """Give it back."""
        ...


class Session(Protocol):
    """A driver's connection without transactions of its own: they are begun and ended by statements."""

    @property
    def in_transaction(self) -> bool:
        """Whether one is open."""
        ...

    def execute(self, sql: str, values: Sequence[Any] = ..., /) -> Any:
        """Run one statement; a cursor."""
        ...

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> Any:
        """Run one statement for every row."""
        ...

    def close(self) -> None:
        """Hang up."""
        ...


def open_dialect(url: str) -> Dialect:
    """The engine behind a `database.url` that config has checked: `sqlite:///…`, `postgresql://…` or `postgres://…`.

    Raises:
        StoreUnavailable: its driver is not installed.
    """
    if url.startswith("postgres"):
        from receiver.store.dialect.postgres import Postgres

        return Postgres(url)
    return SQLite(Path(url.removeprefix("sqlite:///").partition("?")[0]))
