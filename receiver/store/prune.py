"""Retention's statements: terminal tasks past their age, in small steps, with all that hangs on them; and a probe.

What is old is found by an index alone, and what must stay is asked by keys. A NOT EXISTS in one question would be less,
but PostgreSQL makes a join of it that reads all deliveries there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import bindparam, literal_column, select

from receiver.store.rows import SKIP, Prepared
from receiver.store.schema import attempts, counters, deliveries, events, inbox, payloads, repeats, tasks, writers

if TYPE_CHECKING:
    from receiver.store.dialect import Dialect


class PruneQuestions:
    """Statements compiled once; a step looks at no more than `limit` tasks, from a place where the last one ended."""

    def __init__(self, dialect: Dialect) -> None:
        """Compile them."""
        self.old = Prepared(
            select(tasks.c.id, tasks.c.created_at)
            # What has ended, and only that, has a `finished_at`; a condition on the state would draw the planner away
            # from the index that is in order, and every step would sort all that is old.
            .where(tasks.c.created_at >= bindparam("since"), tasks.c.created_at < bindparam("before"))
            .where(tasks.c.finished_at < bindparam("before"))
            .order_by(tasks.c.created_at)
            .limit(bindparam("limit")),
            dialect.core,
        )
        self.of_no_task = Prepared(
            select(events.c.task_id, events.c.created_at)
            .where(events.c.task_id == events.c.id)
            .where(events.c.created_at >= bindparam("since"), events.c.created_at < bindparam("before"))
            .order_by(events.c.created_at)
            .limit(bindparam("limit"))
            .with_for_update(**SKIP),
            dialect.core,
        )
        of_them = dialect.among(deliveries.c.task_id, "ids")
        going = deliveries.c.state.in_([literal_column("'pending'"), literal_column("'leased'")])
        self.held = Prepared(select(deliveries.c.task_id).distinct().where(of_them, going), dialect.core)
        # Not locked before, so that to pass over what is held writes nothing; and so it may have moved on since.
        self.free = Prepared(
            select(tasks.c.id)
            .where(dialect.among(tasks.c.id, "ids"), tasks.c.finished_at < bindparam("before"))
            .with_for_update(**SKIP),
            dialect.core,
        )
        # All of them, and locked: what is being opened again at this moment still looks ended.
        self.states = Prepared(
            select(deliveries.c.task_id, deliveries.c.state).where(of_them).with_for_update(), dialect.core
        )
        self.writers_gone = Prepared(writers.delete().where(writers.c.at < bindparam("before")), dialect.core)
        self.deletes = [
            Prepared(table.delete().where(dialect.among(column, "ids")), dialect.core)
            for table, column in (
                (attempts, attempts.c.task_id),
                (deliveries, deliveries.c.task_id),
                (events, events.c.task_id),
                (inbox, inbox.c.task_id),
                (payloads, payloads.c.task_id),
                (repeats, repeats.c.task_id),
                (tasks, tasks.c.id),
            )
        ]


def probe(dialect: Dialect) -> tuple[Prepared, Prepared]:
    """Statements that put a row of no meaning in the place of another: a commit of nothing proves nothing."""
    mine = counters.c.name == literal_column("'probe'")
    row = counters.insert().values(name=literal_column("'probe'"), value=literal_column("1"))
    return Prepared(counters.delete().where(mine), dialect.core), Prepared(row, dialect.core)
