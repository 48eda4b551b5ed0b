"""Questions about deliveries and their attempts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, func, literal_column, or_, select

from receiver.records import Attempt, Delivery
from receiver.store.rows import SKIP, Prepared, Rows, from_ms, to_ms
from receiver.store.schema import attempts, deliveries

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection

    from receiver.ids import DeliveryId, TaskId
    from receiver.lifecycle import DeliveryState, Replayed
    from receiver.store.dialect import Dialect

COLUMNS = [deliveries.c[name] for name in Delivery.__struct_fields__]
ATTEMPT_COLUMNS = [attempts.c[name] for name in Attempt.__struct_fields__]

# The words stand in the statement itself: a planner uses a partial index only where it can see its condition.
_PENDING = deliveries.c.state == literal_column("'pending'")
_LEASED = deliveries.c.state == literal_column("'leased'")
_UNDELIVERED = deliveries.c.state.in_([literal_column("'dead'"), literal_column("'cancelled'")])
_REPLAYED: dict[Replayed, tuple[str, ...]] = {
    "dead": ("dead",),
    "delivered": ("delivered",),
    "all": ("dead", "delivered", "cancelled"),
}


class DeliveryQuestions:
    """Statements about deliveries, compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        """Compile them."""
        core, c = dialect.core, deliveries.c
        self.rows = Rows(Delivery, deliveries, core)
        self.attempt_rows = Rows(Attempt, attempts, core)
        limit: Any = bindparam("limit")
        here = [_PENDING, c.destination == bindparam("destination"), c.retried == bindparam("retried")]
        due = [*here, c.due_at <= bindparam("now")]
        # For the destination that many hosts share: those that have their share of the lane already are left out.
        elsewhere = dialect.not_among(c.callback_host, "hosts")
        self.due_elsewhere = Prepared(
            select(*COLUMNS).where(*due, elsewhere).order_by(c.due_at).limit(limit).with_for_update(**SKIP), core
        )
        self.forced = Prepared(
            select(*COLUMNS)
            .where(_PENDING, c.forced, c.destination == bindparam("destination"), elsewhere)
            .limit(limit)
            .with_for_update(**SKIP),
            core,
        )
        self.next_due = Prepared(select(c.due_at).where(*here).order_by(c.due_at).limit(1), core)
        self.workers_gone = Prepared(
            select(*COLUMNS)
            .where(_LEASED, c.leased_until <= bindparam("now"))
            .order_by(c.leased_until)
            .limit(limit)
            .with_for_update(**SKIP),
            core,
        )
        self.leased = Prepared(select(*COLUMNS).where(_LEASED).limit(limit), core)
        self.homeless_names = Prepared(
            select(c.destination).distinct().where(_PENDING, dialect.not_among(c.destination, "names")), core
        )
        self.homeless = Prepared(
            select(*COLUMNS)
            .where(_PENDING, c.destination == bindparam("destination"))
            .limit(limit)
            .with_for_update(**SKIP),
            core,
        )
        self.to_replay = {
            which: Prepared(
                select(*COLUMNS)
                .where(
                    *_ended(which),
                    c.id > bindparam("cursor"),
                    c.created_at >= bindparam("since"),
                    c.created_at <= bindparam("until"),
                    dialect.among(c.destination, "names"),
                )
                .order_by(c.id)
                .limit(limit),
                core,
            )
            for which in _REPLAYED
        }

    def get(self, connection: Connection, delivery_id: DeliveryId) -> Delivery | None:
        """One delivery."""
        found = self.rows.decode(connection.execute(select(*COLUMNS).where(deliveries.c.id == delivery_id)))
        return found[0] if found else None

    def page(
        self,
        connection: Connection,
        *,
        states: Sequence[DeliveryState] = (),
        destination: str | None = None,
        task_id: TaskId | None = None,
        before: DeliveryId | None = None,
        limit: int,
    ) -> list[Delivery]:
        """Deliveries, newest first, from the one after `before`."""
        c = deliveries.c
        question = select(*COLUMNS).order_by(c.id.desc()).limit(limit)
        if states:
            question = question.where(or_(*[_in_state(state) for state in states]))
        if destination is not None:
            question = question.where(c.destination == destination)
        if task_id is not None:
            question = question.where(c.task_id == task_id)
        if before is not None:
            question = question.where(c.id < before)
        return self.rows.decode(connection.execute(question))

    def matched(
        self,
        connection: Connection,
        *,
        which: Replayed,
        names: Sequence[str],
        since_at: datetime | None,
        until_at: datetime,
    ) -> int:
        """How many ended deliveries a replay would open again."""
        c = deliveries.c
        question = select(func.count()).where(*_ended(which), c.destination.in_(names), c.created_at <= to_ms(until_at))
        if since_at is not None:
            question = question.where(c.created_at >= to_ms(since_at))
        return connection.execute(question).scalar_one()

    def counts(self, connection: Connection) -> dict[tuple[str, str], int]:
        """How many deliveries of each destination are in each state that has an index: all but the finished ones."""
        c = deliveries.c
        found: dict[tuple[str, str], int] = {}
        for state, here in (("pending", _PENDING), ("leased", _LEASED), ("dead", _in_state("dead"))):
            question = select(c.destination, func.count(literal_column("1"))).where(here).group_by(c.destination)
            found |= {(row[0], state): row[1] for row in connection.execute(question)}
        return found

    def of_task(self, connection: Connection, task_id: TaskId) -> list[Delivery]:
        """The deliveries of a task's events, oldest first."""
        question = select(*COLUMNS).where(deliveries.c.task_id == task_id).order_by(deliveries.c.id)
        return self.rows.decode(connection.execute(question))

    def attempts_of_task(self, connection: Connection, task_id: TaskId) -> list[Attempt]:
        """All attempts made for a task, oldest first."""
        question = select(*ATTEMPT_COLUMNS).where(attempts.c.task_id == task_id).order_by(attempts.c.started_at)
        return self.attempt_rows.decode(connection.execute(question))

    def attempts_of(self, connection: Connection, given: Sequence[Delivery]) -> dict[DeliveryId, list[Attempt]]:
        """The attempts of some deliveries, oldest first."""
        c = attempts.c
        question = (
            select(*ATTEMPT_COLUMNS)
            .where(c.task_id.in_({one.task_id for one in given}), c.delivery_id.in_([one.id for one in given]))
            .order_by(c.delivery_id, c.number)
        )
        found: dict[DeliveryId, list[Attempt]] = {one.id: [] for one in given}
        for attempt in self.attempt_rows.decode(connection.execute(question)):
            found[attempt.delivery_id].append(attempt)
        return found

    def next_due_at(self, rows: list[Any]) -> datetime | None:
        """The time in the answer of `next_due`."""
        return from_ms(rows[0][0]) if rows else None


def _ended(which: Replayed) -> list[ColumnElement[bool]]:
    """What a replay opens again. Those that were not delivered stand in an index of their own."""
    return [or_(*[_in_state(state) for state in _REPLAYED[which]])]


def _in_state(state: str) -> ColumnElement[bool]:
    here = deliveries.c.state == literal_column(f"'{state}'")
    return and_(here, _UNDELIVERED) if state in {"dead", "cancelled"} else here
