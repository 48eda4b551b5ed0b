"""Questions about tasks. The claims run inside the writer's transaction, the rest on a reader's connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, func, literal_column, null, or_, select, tuple_

from receiver.records import Task
from receiver.store.rows import SKIP, Prepared, Rows, from_ms, to_ms
from receiver.store.schema import PERIOD_BITS, payloads, period, tasks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from receiver.ids import TaskId
    from receiver.lifecycle import TaskState
    from receiver.store.dialect import Dialect

PARTS, MOST_PARTS = 6, 384
"""Parts of the index by the upstream's id that are asked at once: at first, and at most."""
_NEVER = 2**63 - 1
COLUMNS = [tasks.c[name] for name in Task.__struct_fields__]


class TaskQuestions:
    """Statements about tasks, compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        """Compile them."""
        core, c = dialect.core, tasks.c
        self.rows = Rows(Task, tasks, core)
        now: Any = bindparam("now")
        limit: Any = bindparam("limit")
        free = or_(c.poll_leased_until.is_(None), c.poll_leased_until <= now)
        self.polls_due = Prepared(
            select(*COLUMNS)
            .where(c.poll_due_at <= now, free)
            .order_by(c.poll_due_at)
            .limit(limit)
            .with_for_update(**SKIP),
            core,
        )
        self.next_poll = Prepared(
            select(c.poll_due_at).where(c.poll_due_at.is_not(None), free).order_by(c.poll_due_at).limit(1), core
        )
        unsent = and_(c.submit_due_at.is_not(None), c.route == bindparam("route"))
        # Whoever else looks waits for this one's end: to pass over what it holds would be to pass the route's gate.
        self.unsent = Prepared(
            select(*COLUMNS).where(unsent).order_by(c.created_at, c.id).limit(limit).with_for_update(), core
        )
        probing = and_(c.submit_leased_until > now, c.submit_attempts > 0, c.route == bindparam("route"))
        self.probes = Prepared(select(c.id).where(probing).limit(1), core)
        self.senders_gone = Prepared(
            select(*COLUMNS)
            .where(c.submit_leased_until <= now)
            .order_by(c.submit_leased_until)
            .limit(limit)
            .with_for_update(**SKIP),
            core,
        )
        self.senders = Prepared(select(*COLUMNS).where(c.submit_leased_until.is_not(None)).limit(limit), core)
        self.payload = Prepared(select(payloads.c.body).where(payloads.c.task_id == bindparam("task_id")), core)
        self.polls_freed = Prepared(
            tasks.update()
            .where(c.poll_due_at.is_not(None), c.poll_leased_until.is_not(None))
            .values(poll_due_at=bindparam("now_"), poll_leased_until=null()),
            core,
        )

    def get(self, connection: Connection, task_id: TaskId) -> Task | None:
        """One task."""
        row = connection.execute(select(*COLUMNS).where(tasks.c.id == task_id)).first()
        return self.rows.decode([row])[0] if row else None

    def by_upstream_id(self, connection: Connection, upstream_id: str) -> Task | None:
        """The task that the upstream calls so; of several the newest.

        The index by these ids is in parts by time (schema.py). It is asked from the newest part backwards, for a day
        first and for more each time; times in which nothing was made are left out.
        """
        c, before, many = tasks.c, _NEVER, PARTS
        # By its part first: else a planner may walk all tasks in order of their creation, to meet the newest soon.
        in_order = (period.desc(), c.created_at.desc())
        while True:
            newest = select(c.created_at).where(c.created_at < before).order_by(c.created_at.desc()).limit(1)
            last = connection.execute(newest).scalar()
            if last is None:
                return None
            first = (last >> PERIOD_BITS) - many + 1
            named = and_(period.in_(range(first, first + many)), c.upstream_id == upstream_id)
            row = connection.execute(select(*COLUMNS).where(named).order_by(*in_order).limit(1)).first()
            if row is not None:
                return self.rows.decode([row])[0]
            before, many = first << PERIOD_BITS, min(8 * many, MOST_PARTS)

    def listed(
        self,
        connection: Connection,
        *,
        states: Sequence[TaskState] = (),
        route: str | None = None,
        since: datetime | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int,
    ) -> list[Task]:
        """Tasks, newest first; `before` is the place (created_at, id) where the last page ended."""
        c = tasks.c
        question = select(*COLUMNS).order_by(c.created_at.desc(), c.id.desc()).limit(limit)
        if states:
            question = question.where(c.state.in_(states))
        if route is not None:
            question = question.where(c.route == route)
        if since is not None:
            question = question.where(c.created_at >= to_ms(since))
        if before is not None:
            question = question.where(tuple_(c.created_at, c.id) < (to_ms(before[0]), before[1]))
        return self.rows.decode(connection.execute(question))

    def counts(self, connection: Connection) -> dict[str, int]:
        """How many tasks are in each state."""
        question = select(tasks.c.state, func.count(literal_column("1"))).group_by(tasks.c.state)
        return {row[0]: row[1] for row in connection.execute(question)}

    def next_poll_at(self, rows: list[Any]) -> datetime | None:
        """The time in the answer of `next_poll`."""
        return from_ms(rows[0][0]) if rows else None
