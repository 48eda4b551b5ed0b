"""One batch's transaction: the rows read so far and the rows to write. Only the writer's thread uses it."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
from msgspec.structs import replace
from sqlalchemy import and_, bindparam, func, literal_column, or_, select

from receiver import records
from receiver.store import schema
from receiver.store.rows import Prepared, Rows, Write

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from receiver.ids import DeliveryId, ReplayId, TaskId
    from receiver.records import Attempt, Delivery, Event, Health, Inbox, Refusal, Repeat, Replay, Task, Window
    from receiver.store.dialect import Dialect, Session

R = TypeVar("R", bound=msgspec.Struct)

EVENT_SEQ = "event_seq"
"""The counter that orders the pull feed. It outlives the events, so no place is given twice."""


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
        self.tasks_by_id = Prepared(
            select(*self.tasks.columns).where(dialect.among(schema.tasks.c.id, "ids")).with_for_update(), core
        )
        self.deliveries_by_id = Prepared(
            select(*self.deliveries.columns).where(dialect.among(schema.deliveries.c.id, "ids")).with_for_update(), core
        )
        inbox = schema.inbox.c
        of_task = and_(inbox.task_id == bindparam("task_id"), inbox.via == literal_column("'callback'"))
        as_it_is = and_(func.length(inbox.digest) == literal_column("0"), inbox.raw == bindparam("raw"))
        is_alike = or_(inbox.digest == bindparam("digest"), as_it_is)
        self.body_known = Prepared(select(inbox.verdict).where(of_task, is_alike).limit(1), core)
        self.destinations = Rows(records.Health, schema.destinations, core)
        self.every_health = Prepared(select(*self.destinations.columns), core)
        own = schema.destinations.c.name == bindparam("name")
        self.own_health = Prepared(select(*self.destinations.columns).where(own).with_for_update(), core)
        self.rates = Rows(records.Window, schema.rates, core)
        rated = dialect.among(schema.rates.c.name, "ids")
        self.rates_by_name = Prepared(select(*self.rates.columns).where(rated).with_for_update(), core)
        self.replays = Rows(records.Replay, schema.replays, core)
        self.replays_by_id = Prepared(
            select(*self.replays.columns).where(dialect.among(schema.replays.c.id, "ids")).with_for_update(), core
        )
        self.repeats = Rows(records.Repeat, schema.repeats, core)
        self.repeats_by_id = Prepared(
            select(*self.repeats.columns).where(dialect.among(schema.repeats.c.id, "ids")).with_for_update(), core
        )
        self.repeat_drop = Prepared(schema.repeats.delete().where(schema.repeats.c.id == bindparam("key")), core)
        self.seq = Prepared(
            schema.counters.update()
            .values(value=schema.counters.c.value + bindparam("count"))
            .where(schema.counters.c.name == literal_column(f"'{EVENT_SEQ}'"))
            .returning(schema.counters.c.value),
            core,
        )
        payloads = schema.payloads
        self.payload_add = Prepared(
            payloads.insert().values(task_id=bindparam("task_id"), body=bindparam("body")), core
        )
        self.payload_drop = Prepared(payloads.delete().where(payloads.c.task_id == bindparam("task_id_")), core)


class _Table(Generic[R]):
    """One table's rows as this transaction sees them: read, new and changed."""

    __slots__ = ("changed", "key", "known", "new", "rows")

    def __init__(self, rows: Rows[R]) -> None:
        self.rows = rows
        self.key = attrgetter(rows.key)
        self.known: dict[str, R | None] = {}
        self.new: dict[str, R] = {}
        self.changed: dict[str, tuple[R, R]] = {}

    def learn(self, records_: Iterable[R]) -> None:
        """Rows as they are on disk."""
        self.known.update({self.key(record): record for record in records_})

    def add(self, record: R) -> None:
        """Stage a new row."""
        key = self.key(record)
        self.known[key] = self.new[key] = record

    def put(self, record: R) -> None:
        """Stage a row's new state; one that is not there (any more) stays away."""
        key = self.key(record)
        if key in self.new:
            self.new[key] = record
        elif (before := self.known.get(key)) is not None:
            staged = self.changed.get(key)
            self.changed[key] = (staged[0] if staged else before, record)
        else:
            return
        self.known[key] = record


class Unit:
    """What the ops of one batch read and change.

    Attributes:
        changes: counts what was staged, so that the writer can tell an op that changed nothing.
        events: those that were staged; no question finds them.
        leased: deliveries that were leased here.
        is_shared: other instances change what is here, too.
    """

    def __init__(self, connection: Session, statements: Statements) -> None:
        """Begin with nothing read and nothing staged."""
        self._connection, self._statements = connection, statements
        self.changes, self.is_shared = 0, statements.dialect.is_shared
        self._tasks = _Table(statements.tasks)
        self._deliveries = _Table(statements.deliveries)
        self._health: _Table[Health] | None = None
        self._owned: set[str] = set()
        self._rates = _Table(statements.rates)
        self._replays = _Table(statements.replays)
        self._repeats = _Table(statements.repeats)
        self._inbox: list[Inbox] = []
        self.events: list[Event] = []
        self.leased: list[Delivery] = []
        self._attempts: list[Attempt] = []
        self._refusals: list[Refusal] = []
        self._payloads: list[tuple[str, bytes]] = []
        self._dropped: list[tuple[str]] = []
        self._handed: dict[str, int] = {}

    def read_ahead(self, task_ids: Sequence[TaskId], delivery_ids: Sequence[DeliveryId]) -> None:
        """Read the rows the batch will want, one statement a table."""
        self._read(self._tasks, self._statements.tasks_by_id, task_ids)
        self._read(self._deliveries, self._statements.deliveries_by_id, delivery_ids)

    def _read(self, table: _Table[Any], prepared: Prepared, ids: Sequence[str]) -> None:
        """Only those that are not known yet: a row on disk is older than what was staged and is still to be written."""
        new = [one for one in ids if one not in table.known]
        if new:
            table.known.update(dict.fromkeys(new))
            found = self._connection.execute(prepared.sql, prepared.values(ids=self._statements.dialect.values(new)))
            table.learn(table.rows.decode(found))

    # -- tasks ---------------------------------------------------------------------------------------------------

    def task(self, task_id: TaskId) -> Task | None:
        """The task as this transaction sees it."""
        if task_id not in self._tasks.known:
            self.read_ahead([task_id], [])
        return self._tasks.known[task_id]

    def add_task(self, task: Task) -> None:
        """Stage a new task."""
        self.changes += 1
        self._tasks.add(task)

    def put_task(self, task: Task) -> None:
        """Stage a task's new state."""
        self.changes += 1
        self.task(task.id)
        self._tasks.put(task)

    def add_payload(self, task_id: TaskId, body: bytes) -> None:
        """Keep the whole body of a submission until it is decided."""
        self.changes += 1
        self._payloads.append((task_id, body))

    def drop_payload(self, task_id: TaskId) -> None:
        """The submission is decided: its body is not needed any more."""
        self.changes += 1
        self._dropped.append((task_id,))

    # -- what was said -------------------------------------------------------------------------------------------

    def is_known(self, task_id: TaskId, digest: bytes, raw: bytes) -> bool:
        """Whether a callback of the same bytes has been kept for this task before."""
        here = [kept for kept in self._inbox if kept.task_id == task_id and kept.via == "callback"]
        if any(kept.digest == digest if kept.digest else kept.raw == raw for kept in here):
            return True
        known = self._statements.body_known
        named = known.values(task_id=task_id, digest=digest, raw=raw)
        return self._connection.execute(known.sql, named).fetchone() is not None

    def add_inbox(self, row: Inbox) -> None:
        """Stage a raw observation."""
        self.changes += 1
        self._inbox.append(row)

    def add_event(self, event: Event) -> None:
        """Stage an event."""
        self.changes += 1
        self.events.append(event)

    def add_refusal(self, refusal: Refusal) -> None:
        """Stage a refused callback."""
        self.changes += 1
        self._refusals.append(refusal)

    # -- deliveries ----------------------------------------------------------------------------------------------

    def delivery(self, delivery_id: DeliveryId) -> Delivery | None:
        """The delivery as this transaction sees it."""
        if delivery_id not in self._deliveries.known:
            self.read_ahead([], [delivery_id])
        return self._deliveries.known[delivery_id]

    def add_delivery(self, delivery: Delivery) -> None:
        """Stage a new delivery."""
        self.changes += 1
        self._deliveries.add(delivery)

    def put_delivery(self, delivery: Delivery) -> None:
        """Stage a delivery's new state."""
        self.changes += 1
        self.delivery(delivery.id)
        self._deliveries.put(delivery)

    def handed(self, destination: str) -> int:
        """How many deliveries this batch hands to the destination's worker."""
        return self._handed.get(destination, 0)

    def hand(self, delivery: Delivery) -> None:
        """Count one more, which was leased for that."""
        self.leased.append(delivery)
        self._handed[delivery.destination] = self.handed(delivery.destination) + 1

    def add_attempt(self, attempt: Attempt) -> None:
        """Stage an attempt."""
        self.changes += 1
        self._attempts.append(attempt)

    def _healths(self) -> _Table[Health]:
        """Read for all of them at once, since they are few."""
        if self._health is None:
            statements = self._statements
            self._health = _Table(statements.destinations)
            found = self._connection.execute(statements.every_health.sql)
            self._health.learn(statements.destinations.decode(found))
        return self._health

    def health(self, name: str) -> Health:
        """A destination's health."""
        return self._healths().known.get(name) or records.Health(name)

    def own_health(self, name: str) -> Health:
        """A destination's health for one who will change it: nobody else does until the commit."""
        health = self.health(name)
        if not self.is_shared or health.name in self._owned:
            return health
        self._owned.add(name)
        own = self._statements.own_health
        found = self._connection.execute(own.sql, own.values(name=name))
        self._healths().learn(self._statements.destinations.decode(found))
        return self.health(name)

    def every_health(self) -> list[Health]:
        """Of all that have a row."""
        return [health for health in self._healths().known.values() if health is not None]

    def put_health(self, health: Health) -> None:
        """Stage a destination's health."""
        self.changes += 1
        table = self._healths()
        (table.put if health.name in table.known else table.add)(health)

    def window(self, name: str) -> Window | None:
        """What was started under a rate; the row is this transaction's until it ends."""
        self._read(self._rates, self._statements.rates_by_name, [name])
        return self._rates.known[name]

    def put_window(self, window: Window) -> None:
        """Stage what was started under a rate, new or changed."""
        self.changes += 1
        (self._rates.put if self.window(window.name) else self._rates.add)(window)

    def replay(self, replay_id: ReplayId) -> Replay | None:
        """The replay as this transaction sees it."""
        self._read(self._replays, self._statements.replays_by_id, [replay_id])
        return self._replays.known[replay_id]

    def put_replay(self, replay: Replay) -> None:
        """Stage a replay, new or changed."""
        self.changes += 1
        (self._replays.put if self.replay(replay.id) else self._replays.add)(replay)

    def repeat(self, key: str) -> Repeat | None:
        """What is known of an Idempotency-Key."""
        self._read(self._repeats, self._statements.repeats_by_id, [key])
        return self._repeats.known[key]

    def put_repeat(self, repeat: Repeat) -> None:
        """Stage what is known of an Idempotency-Key, new or changed."""
        self.changes += 1
        (self._repeats.put if self.repeat(repeat.id) else self._repeats.add)(repeat)

    def drop_repeat(self, key: str) -> None:
        """Forget an Idempotency-Key."""
        self.execute(self._statements.repeat_drop, key=key)

    # -- the database --------------------------------------------------------------------------------------------

    def select(self, prepared: Prepared, **named: Any) -> list[Any]:
        """Rows of a question that must see what was staged so far: that is written first."""
        self.flush(last=False)
        return list(self._connection.execute(prepared.sql, prepared.values(**named)))

    def execute(self, prepared: Prepared, **named: Any) -> int:
        """A statement that changes rows by itself; how many. What was read before is forgotten."""
        self.flush(last=False)
        self.changes += 1
        self._health = None
        for table in (self._tasks, self._deliveries, self._rates, self._replays, self._repeats):
            table.known.clear()
        changed: int = self._connection.execute(prepared.sql, prepared.values(**named)).rowcount
        return changed

    def tasks_where(self, prepared: Prepared, **named: Any) -> list[Task]:
        """Tasks that a question finds; they are then known to this unit."""
        tasks = self._statements.tasks.decode(self.select(prepared, **named))
        self._tasks.learn(tasks)
        return tasks

    def deliveries_where(self, prepared: Prepared, **named: Any) -> list[Delivery]:
        """Deliveries that a question finds; they are then known to this unit."""
        deliveries = self._statements.deliveries.decode(self.select(prepared, **named))
        self._deliveries.learn(deliveries)
        return deliveries

    def flush(self, *, last: bool = True) -> None:
        """Write what is staged: one executemany a table and kind; events, whose places others wait for, at the end."""
        s = self._statements
        self._save(self._tasks)
        self._insert(s.inbox, self._inbox)
        self._save(self._deliveries)
        self._insert(s.attempts, self._attempts)
        self._insert(s.refusals, self._refusals)
        self._write(s.payload_add.sql, self._payloads)
        self._write(s.payload_drop.sql, self._dropped)
        for table in (self._rates, self._replays, self._repeats, self._health):
            if table is not None:
                self._save(table)
        if last and self.events:
            self._in_order()
            self._insert(s.events, self.events)

    def _in_order(self) -> None:
        """Give the staged events their places in the feed: the counter moves in the same transaction.

        Whoever else wants places waits for its end, so that the feed shows nothing past a commit that is under way.
        """
        seq = self._statements.seq
        (last,) = self._connection.execute(seq.sql, seq.values(count=len(self.events))).fetchone()
        self.events = [replace(event, seq=at) for at, event in enumerate(self.events, last - len(self.events) + 1)]

    def _save(self, table: _Table[Any]) -> None:
        rows = table.rows
        self._write_alike([(rows.insert(one), one) for one in table.new.values()])
        self._write_alike([(rows.update(before, after), after) for before, after in table.changed.values()])
        table.new.clear()
        table.changed.clear()

    def _insert(self, rows: Rows[R], staged: list[R]) -> None:
        self._write_alike([(rows.insert(one), one) for one in staged])
        staged.clear()

    def _write(self, sql: str, staged: list[Any]) -> None:
        if staged:
            self._connection.executemany(sql, staged)
            staged.clear()

    def _write_alike(self, staged: Iterable[tuple[Write, Any]]) -> None:
        """One executemany for each set of columns; most of a batch has the same."""
        alike: dict[str, tuple[Write, list[Any]]] = {}
        for write, record in staged:
            alike.setdefault(write.sql, (write, []))[1].append(record)
        for write, records_ in alike.values():
            self._connection.executemany(write.sql, write.encode(records_))
