"""One run of the bench: how often, how large, and the databases that are built once for all of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench import harness, history

if TYPE_CHECKING:
    from pathlib import Path

    from bench.history import Row


@dataclass
class Run:
    """What all parts are told.

    Attributes:
        scale: of all sizes; 1 for the record, less to see that it works.
        folder: for what is built; it goes with the run.
    """

    repetitions: int
    scale: float
    folder: Path
    _made: dict[str, str] = field(default_factory=dict)
    _one: dict[str, list[Row]] = field(default_factory=dict)

    def size(self, count: int) -> int:
        """So many, at this scale."""
        return max(20, round(count * self.scale))

    async def with_history(self, count: int) -> str | None:
        """The URL of a database with so many finished tasks; None for none: each repetition has a new file."""
        if count == 0:
            return None
        url = self._url(f"finished-{count}")
        if url not in self._made:
            seconds = history.build(url, self.size(count), await self.one())
            self._made[url] = url
            print(f"  built {self.size(count)} finished tasks in {seconds:.0f} s", flush=True)
        return url

    async def one(self) -> dict[str, list[Row]]:
        """The rows that are multiplied."""
        if not self._one:
            self._one = await history.one()
        return self._one

    async def with_outstanding(self, count: int) -> str | None:
        """Likewise, with so many submitted tasks that nobody has called back yet."""
        if count == 0:
            return None
        url = self._url(f"outstanding-{count}")
        if url not in self._made:
            await harness.prepare(url, self.size(count))
            self._made[url] = url
        return url

    def _url(self, name: str) -> str:
        return f"sqlite:///{self.folder}/{name}.db"
