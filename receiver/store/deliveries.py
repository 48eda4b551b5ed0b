"""Questions about deliveries and their attempts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, literal_column, select

from receiver.records import Attempt, Delivery
from receiver.store.rows import Prepared, Rows, from_ms
from receiver.store.schema import attempts, deliveries

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

    from receiver.ids import TaskId
    from receiver.store.dialect import Dialect

COLUMNS = [deliveries.c[name] for name in Delivery.__struct_fields__]
ATTEMPT_COLUMNS = [attempts.c[name] for name in Attempt.__struct_fields__]

# The words stand in the statement itself: a planner uses a partial index only where it can see its condition.
_PENDING = deliveries.c.state == literal_column("'pending'")
_LEASED = deliveries.c.state == literal_column("'leased'")


class DeliveryQuestions:
    """Statements about deliveries, compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        """Compile them."""
        core, c = dialect.core, deliveries.c
        self.rows = Rows(Delivery, deliveries, core)
        self.attempt_rows = Rows(Attempt, attempts, core)
        here = c.destination == bindparam("destination")
        limit: Any = bindparam("limit")
        self.due = Prepared(
            select(*COLUMNS).where(_PENDING, here, c.due_at <= bindparam("now")).order_by(c.due_at).limit(limit), core
        )
        self.next_due = Prepared(select(c.due_at).where(_PENDING, here).order_by(c.due_at).limit(1), core)
        self.workers_gone = Prepared(
            select(*COLUMNS).where(_LEASED, c.leased_until <= bindparam("now")).order_by(c.leased_until).limit(limit),
            core,
        )
        self.leased = Prepared(select(*COLUMNS).where(_LEASED).limit(limit), core)
        self.homeless = Prepared(
            select(*COLUMNS)
            .where(
                _PENDING,
                c.destination.not_in(select(literal_column("value")).select_from(_names())),
                c.due_at <= bindparam("before"),
            )
            .limit(limit),
            core,
        )

    def of_task(self, connection: Connection, task_id: TaskId) -> list[Delivery]:
        """The deliveries of a task's events, oldest first."""
        question = select(*COLUMNS).where(deliveries.c.task_id == task_id).order_by(deliveries.c.id)
        return self.rows.decode_all(connection.execute(question))

    def attempts_of_task(self, connection: Connection, task_id: TaskId) -> list[Attempt]:
        """All attempts made for a task, oldest first."""
        question = select(*ATTEMPT_COLUMNS).where(attempts.c.task_id == task_id).order_by(attempts.c.started_at)
        return self.attempt_rows.decode_all(connection.execute(question))

    def next_due_at(self, rows: list[Any]) -> datetime | None:
        """The time in the answer of `next_due`."""
        return from_ms(rows[0][0]) if rows else None


def _names() -> Any:
    from sqlalchemy import func

    return func.json_each(bindparam("names")).table_valued("value")
