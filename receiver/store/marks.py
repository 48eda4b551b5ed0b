"""The number of a writer's last batch, kept in a row of its own and moved by every batch's transaction.

After a COMMIT that got no answer the row says whether it was carried out. It is asked for with its lock, which the
transaction held: should the server still be at it, the answer waits for the end. Plain rows do on every engine what
PostgreSQL has functions of its own for.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select

from receiver.store.rows import Prepared
from receiver.store.schema import writers

if TYPE_CHECKING:
    from receiver.store.dialect import Dialect, Session


class Marks:
    """One writer's."""

    def __init__(self, dialect: Dialect, connection: Session) -> None:
        """Put the row there, so that there is something to lock."""
        mine = writers.c.id == bindparam("writer")
        self.writer = secrets.token_hex(16)
        """Its name; a fresh one for every process, so that nobody else moves the row."""
        self._batch = 0
        row: dict[str, Any] = {name: bindparam(f"{name}_") for name in ("id", "batch", "at")}
        add = Prepared(writers.insert().values(row), dialect.core)
        moved = {name: row[name] for name in ("batch", "at")}
        self._put = Prepared(writers.update().values(moved).where(mine), dialect.core)
        self._get = Prepared(select(writers.c.batch).where(mine).with_for_update(), dialect.core)
        connection.execute(add.sql, add.values(id_=self.writer, batch_=0, at_=_ms()))

    def put(self, connection: Session) -> None:
        """Count one more batch, in its transaction."""
        self._batch += 1
        connection.execute(self._put.sql, self._put.values(batch_=self._batch, at_=_ms(), writer=self.writer))

    def stands(self, connection: Session) -> bool:
        """Whether the last batch was committed.

        Raises:
            Exception: the driver's, where it cannot be told now.
        """
        connection.execute("BEGIN")
        row = connection.execute(self._get.sql, self._get.values(writer=self.writer)).fetchone()
        connection.execute("ROLLBACK")
        return row is not None and row[0] == self._batch


def _ms() -> int:
    """This machine's time: only good for telling, weeks later, that a writer is gone."""
    return time.time_ns() // 1_000_000
