"""Questions about events and the inbox (what was observed, as it was received)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, bindparam, func, literal_column, select

from receiver.records import Event, Inbox, Refusal
from receiver.store.rows import Prepared, Rows
from receiver.store.schema import deliveries, events, inbox, refusals

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from receiver.ids import TaskId
    from receiver.records import LookupRoute
    from receiver.store.dialect import Dialect

COLUMNS = [events.c[name] for name in Event.__struct_fields__]
INBOX_COLUMNS = [inbox.c[name] for name in Inbox.__struct_fields__]
REFUSAL_COLUMNS = [refusals.c[name] for name in Refusal.__struct_fields__]


class EventQuestions:
    """Statements about events and observations, compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        """Compile them."""
        self.rows = Rows(Event, events, dialect.core)
        self.inbox_rows = Rows(Inbox, inbox, dialect.core)
        self.refusal_rows = Rows(Refusal, refusals, dialect.core)
        theirs = and_(events.c.task_id == deliveries.c.task_id, events.c.id == deliveries.c.event_id)
        self.of_deliveries = Prepared(
            select(*COLUMNS).join_from(deliveries, events, theirs).where(dialect.among(deliveries.c.id, "ids")),
            dialect.core,
        )
        kept = select(refusals.c.id).order_by(refusals.c.id.desc()).limit(bindparam("limit")).subquery()
        self.trim_refusals = Prepared(refusals.delete().where(refusals.c.id.not_in(select(kept.c.id))), dialect.core)

    def of_task(self, connection: Connection, task_id: TaskId) -> list[Event]:
        """A task's events, oldest first."""
        question = select(*COLUMNS).where(events.c.task_id == task_id).order_by(events.c.id)
        return self.rows.decode(connection.execute(question))

    def feed(self, connection: Connection, after: int, limit: int) -> list[Event]:
        """The events that follow a place in the feed, in the order of their commits."""
        question = select(*COLUMNS).where(events.c.seq > after).order_by(events.c.seq).limit(limit)
        return self.rows.decode(connection.execute(question))

    def observations_of_task(self, connection: Connection, task_id: TaskId) -> list[Inbox]:
        """Every observation kept of a task, oldest first."""
        question = select(*INBOX_COLUMNS).where(inbox.c.task_id == task_id).order_by(inbox.c.id)
        return self.inbox_rows.decode(connection.execute(question))

    def answers(self, connection: Connection, task_id: TaskId, route: LookupRoute) -> list[Inbox]:
        """What that lookup route said of a task since it ended, newest first; few."""
        c = inbox.c
        question = (
            select(*INBOX_COLUMNS)
            .where(c.task_id == task_id, c.asked == route, c.verdict.in_(["accepted", "late"]))
            .order_by(c.id.desc())
            .limit(10)
        )
        return self.inbox_rows.decode(connection.execute(question))

    def refused(self, connection: Connection, limit: int) -> list[Refusal]:
        """The last refused callbacks, newest first."""
        question = select(*REFUSAL_COLUMNS).order_by(refusals.c.id.desc()).limit(limit)
        return self.refusal_rows.decode(connection.execute(question))

    def count(self, connection: Connection) -> int:
        """How many events there are."""
        return connection.execute(select(func.count(literal_column("1"))).select_from(events)).scalar_one()
