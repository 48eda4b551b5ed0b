"""The number of a writer's last batch, kept in a row of its own and moved by every batch's transaction.

After a COMMIT that got no answer the row says whether it was carried out. Whoever asks waits for its lock, should the
server still be at it. And where it was not carried out it never will be, however late the network brings it: the answer
"no" closes the row, and a transaction that meets a closed row fails. Plain rows do on every engine what PostgreSQL has
functions of its own for.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, case
from sqlalchemy.dialects.postgresql import insert

from receiver.store.rows import Prepared
from receiver.store.schema import writers

if TYPE_CHECKING:
    from receiver.store.dialect import Dialect, Session

CLOSED = -1


class Marks:
    """One writer's."""

    def __init__(self, dialect: Dialect) -> None:
        """Nothing is written yet: a row that is not there is as good as one that stands at nought."""
        self.writer = secrets.token_hex(16)
        """Its name; nobody else moves the row, and after a batch that was given up neither does this one."""
        self._batch = 0
        c = writers.c
        given: dict[str, Any] = {"id": bindparam("writer"), "batch": bindparam("batch"), "at": bindparam("at")}
        row = insert(writers).values(given)
        # A closed row makes it NULL, which the column refuses: the transaction fails.
        moved = {"batch": case((c.batch != CLOSED, row.excluded.batch)), "at": row.excluded.at}
        self._put = Prepared(row.on_conflict_do_update(index_elements=[c.id], set_=moved), dialect.core)
        done = case((c.batch == bindparam("mine"), c.batch), else_=CLOSED)
        asked = row.on_conflict_do_update(index_elements=[c.id], set_={"batch": done}).returning(c.batch)
        self._ask = Prepared(asked, dialect.core)

    def put(self, connection: Session) -> None:
        """Count one more batch, in its transaction."""
        self._batch += 1
        connection.execute(self._put.sql, self._put.values(batch=self._batch, at=_ms(), writer=self.writer))

    def stands(self, connection: Session) -> bool:
        """Whether the last batch was committed; where it was not, it cannot be any more.

        Raises:
            Exception: the driver's, where it cannot be told now.
        """
        values = self._ask.values(batch=CLOSED, at=_ms(), writer=self.writer, mine=self._batch)
        (found,) = connection.execute(self._ask.sql, values).fetchone()
        if found == self._batch:
            return True
        self.leave()
        return False

    def leave(self) -> None:
        """Take another row: a server that hangs keeps this one locked, and may yet carry out what moves it."""
        self.writer = secrets.token_hex(16)


def _ms() -> int:
    """This machine's time: only good for telling, weeks later, that a writer is gone."""
    return time.time_ns() // 1_000_000
