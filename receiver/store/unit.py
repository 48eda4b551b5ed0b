"""One batch's transaction: the rows read so far and the rows to write. Only the writer's thread uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select

from receiver import records
from receiver.store import schema
from receiver.store.rows import Prepared, Rows, Update

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from receiver.ids import DeliveryId, TaskId
    from receiver.records import Attempt, Delivery, Event, Inbox, Refusal, Task
    from receiver.store.dialect import Dialect


class Statements:
    """The fixed statements of the hot path, compiled once for an engine."""

    def __init__(self, dialect: Dialect) -> None:
        """Compile them."""
        core = dialect.core
        self.dialect = dialect
        self.tasks = Rows(records.Task, schema.tasks, core)
        self.inbox = Rows(records.Inbox, schema.inbox, core)
        self.events = Rows(records.Event, schema.events, core)
        self.deliveries = Rows(records.Delivery, schema.deliveries, core)
        self.attempts = Rows(records.Attempt, schema.attempts, core)
        self.refusals = Rows(records.Refusal, schema.refusals, core)
        self.tasks_by_id = Prepared(select(*self.tasks.columns).where(dialect.among(schema.tasks.c.id, "ids")), core)
        self.deliveries_by_id = Prepared(
            select(*self.deliveries.columns).where(dialect.among(schema.deliveries.c.id, "ids")), core
        )
        inbox = schema.inbox.c
        self.digest_known = Prepared(
            select(inbox.verdict)
            .where(
                inbox.task_id == bindparam("task_id"),
                inbox.digest == bindparam("digest"),
                inbox.via == bindparam("via"),
            )
            .limit(1),
            core,
        )
        payloads = schema.payloads
        self.payload_add = Prepared(
            payloads.insert().values(task_id=bindparam("task_id"), body=bindparam("body")), core
        )
        self.payload_drop = Prepared(payloads.delete().where(payloads.c.task_id == bindparam("task_id_")), core)


class Unit:
    """What the ops of one batch read and change.

    Attributes:
        changes: counts what was staged, so that the writer can tell an op that changed nothing.
    """

    def __init__(self, connection: sqlite3.Connection, statements: Statements) -> None:
        """Begin with nothing read and nothing staged."""
        self._connection = connection
        self._statements = statements
        self.changes = 0
        self._tasks: dict[str, Task | None] = {}
        self._deliveries: dict[str, Delivery | None] = {}
        self._new_tasks: dict[str, Task] = {}
        self._changed_tasks: dict[str, tuple[Task, Task]] = {}
        self._new_deliveries: dict[str, Delivery] = {}
        self._changed_deliveries: dict[str, tuple[Delivery, Delivery]] = {}
        self._inbox: list[Inbox] = []
        self._digests: set[tuple[str, str, bytes]] = set()
        self._events: list[Event] = []
        self._attempts: list[Attempt] = []
        self._refusals: list[Refusal] = []
        self._payloads: list[tuple[str, bytes]] = []
        self._dropped: list[tuple[str]] = []
        self._handed: dict[str, int] = {}

    def read_ahead(self, task_ids: Sequence[TaskId], delivery_ids: Sequence[DeliveryId]) -> None:
        """Read the rows the batch will want, one statement a table.

        Only those that are not known yet: a row on disk is older than what was staged and is still to be written.
        """
        statements = self._statements
        tasks = [one for one in task_ids if one not in self._tasks]
        if tasks:
            self._tasks.update(dict.fromkeys(tasks))
            for task in self._many(statements.tasks, statements.tasks_by_id, tasks):
                self._tasks[task.id] = task
        deliveries = [one for one in delivery_ids if one not in self._deliveries]
        if deliveries:
            self._deliveries.update(dict.fromkeys(deliveries))
            for delivery in self._many(statements.deliveries, statements.deliveries_by_id, deliveries):
                self._deliveries[delivery.id] = delivery

    def _many(self, rows: Rows[Any], prepared: Prepared, ids: Any) -> list[Any]:
        found = self._connection.execute(prepared.sql, prepared.values(ids=self._statements.dialect.ids(ids)))
        return rows.decode_all(found)

    # -- tasks ---------------------------------------------------------------------------------------------------

    def task(self, task_id: TaskId) -> Task | None:
        """The task as this transaction sees it."""
        if task_id not in self._tasks:
            self.read_ahead([task_id], [])
        return self._tasks[task_id]

    def add_task(self, task: Task) -> None:
        """Stage a new task."""
        self.changes += 1
        self._tasks[task.id] = self._new_tasks[task.id] = task

    def put_task(self, task: Task) -> None:
        """Stage a task's new state."""
        self.changes += 1
        if task.id in self._new_tasks:
            self._new_tasks[task.id] = task
        elif (before := self.task(task.id)) is not None:
            staged = self._changed_tasks.get(task.id)
            self._changed_tasks[task.id] = (staged[0] if staged else before, task)
        self._tasks[task.id] = task

    def add_payload(self, task_id: TaskId, body: bytes) -> None:
        """Keep the whole body of a submission until it is decided."""
        self.changes += 1
        self._payloads.append((task_id, body))

    def drop_payload(self, task_id: TaskId) -> None:
        """The submission is decided: its body is not needed any more."""
        self.changes += 1
        self._dropped.append((task_id,))

    # -- what was said -------------------------------------------------------------------------------------------

    def is_known(self, task_id: TaskId, via: str, digest: bytes) -> bool:
        """Whether the same bytes have been kept for this task before."""
        if (task_id, via, digest) in self._digests:
            return True
        known = self._statements.digest_known
        row = self._connection.execute(known.sql, known.values(task_id=task_id, digest=digest, via=via)).fetchone()
        return row is not None

    def add_inbox(self, row: Inbox) -> None:
        """Stage a raw observation."""
        self.changes += 1
        self._digests.add((row.task_id, row.via, row.digest))
        self._inbox.append(row)

    def add_event(self, event: Event) -> None:
        """Stage an event."""
        self.changes += 1
        self._events.append(event)

    def add_refusal(self, refusal: Refusal) -> None:
        """Stage a refused callback."""
        self.changes += 1
        self._refusals.append(refusal)

    # -- deliveries ----------------------------------------------------------------------------------------------

    def delivery(self, delivery_id: DeliveryId) -> Delivery | None:
        """The delivery as this transaction sees it."""
        if delivery_id not in self._deliveries:
            self.read_ahead([], [delivery_id])
        return self._deliveries[delivery_id]

    def add_delivery(self, delivery: Delivery) -> None:
        """Stage a new delivery."""
        self.changes += 1
        self._deliveries[delivery.id] = self._new_deliveries[delivery.id] = delivery

    def handed(self, destination: str) -> int:
        """How many deliveries this batch hands to the destination's worker."""
        return self._handed.get(destination, 0)

    def hand(self, destination: str) -> None:
        """Count one more."""
        self._handed[destination] = self._handed.get(destination, 0) + 1

    def put_delivery(self, delivery: Delivery) -> None:
        """Stage a delivery's new state."""
        self.changes += 1
        if delivery.id in self._new_deliveries:
            self._new_deliveries[delivery.id] = delivery
        elif (before := self.delivery(delivery.id)) is not None:
            staged = self._changed_deliveries.get(delivery.id)
            self._changed_deliveries[delivery.id] = (staged[0] if staged else before, delivery)
        self._deliveries[delivery.id] = delivery

    def add_attempt(self, attempt: Attempt) -> None:
        """Stage an attempt."""
        self.changes += 1
        self._attempts.append(attempt)

    # -- the database --------------------------------------------------------------------------------------------

    def select(self, prepared: Prepared, **named: Any) -> list[Any]:
        """Rows of a question that must see what was staged so far: that is written first."""
        self.flush()
        return self._connection.execute(prepared.sql, prepared.values(**named)).fetchall()

    def execute(self, prepared: Prepared, **named: Any) -> int:
        """A statement that changes rows by itself; how many. What was read before is forgotten."""
        self.flush()
        self.changes += 1
        self._tasks.clear()
        self._deliveries.clear()
        return self._connection.execute(prepared.sql, prepared.values(**named)).rowcount

    def tasks_where(self, prepared: Prepared, **named: Any) -> list[Task]:
        """Tasks that a question finds; they are then known to this unit."""
        tasks = self._statements.tasks.decode_all(self.select(prepared, **named))
        self._tasks.update({task.id: task for task in tasks})
        return tasks

    def deliveries_where(self, prepared: Prepared, **named: Any) -> list[Delivery]:
        """Deliveries that a question finds; they are then known to this unit."""
        deliveries = self._statements.deliveries.decode_all(self.select(prepared, **named))
        self._deliveries.update({delivery.id: delivery for delivery in deliveries})
        return deliveries

    def flush(self) -> None:
        """Write what is staged: one executemany a table and kind."""
        s = self._statements
        self._write(s.tasks.insert.sql, s.tasks.encode, self._new_tasks)
        self._update(s.tasks, self._changed_tasks)
        self._write(s.inbox.insert.sql, s.inbox.encode, self._inbox)
        self._write(s.events.insert.sql, s.events.encode, self._events)
        self._write(s.deliveries.insert.sql, s.deliveries.encode, self._new_deliveries)
        self._update(s.deliveries, self._changed_deliveries)
        self._write(s.attempts.insert.sql, s.attempts.encode, self._attempts)
        self._write(s.refusals.insert.sql, s.refusals.encode, self._refusals)
        self._write(s.payload_add.sql, tuple, self._payloads)
        self._write(s.payload_drop.sql, tuple, self._dropped)

    def _write(self, sql: str, encode: Any, staged: Any) -> None:
        if staged:
            rows = staged.values() if isinstance(staged, dict) else staged
            self._connection.executemany(sql, [encode(row) for row in rows])
            staged.clear()

    def _update(self, rows: Rows[Any], staged: dict[str, tuple[Any, Any]]) -> None:
        """One executemany for each set of columns that changed; most of a batch changes the same."""
        if not staged:
            return
        alike: dict[str, tuple[Update, list[Any]]] = {}
        for before, after in staged.values():
            update = rows.update(before, after)
            alike.setdefault(update.sql, (update, []))[1].append(after)
        for update, records_ in alike.values():
            self._connection.executemany(update.sql, [update.encode(one) for one in records_])
        staged.clear()
