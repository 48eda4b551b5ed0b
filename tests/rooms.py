"""What the tests of the core rooms share: an open store, tasks, rules, and ops of one line.

The store is the real one on a real database; only the clock and the dice are the test's.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from msgspec.structs import replace

from receiver import ids
from receiver.ids import DeliveryId, TaskId
from receiver.ingest import After, Callback, Lane, Lookup, Polling, Rulebook
from receiver.records import Attempt, Delivery, Event, Observation, Task
from receiver.retry import Result
from receiver.routing import Rule
from receiver.store import Reads, Store
from receiver.sweep import Refusals, Sweeper
from tests import databases

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from receiver.store import Unit

PRO = "runway/pro/video2video"
V2V = "runwayml/v1/video_to_video"
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
PATIENCE = 30.0
OK = Result("ok", "said so")

_numbers = itertools.count(1)


def entropy(size: int) -> bytes:
    """Bytes that never come twice, and in order."""
    number = next(_numbers)  # five bits to a byte, which is what ids take of each
    return bytes([number >> 5 * place & 31 for place in range(size - 1, -1, -1)])


def later(seconds: float) -> datetime:
    """So many seconds after `NOW`."""
    return NOW + timedelta(seconds=seconds)


def a_task(state: str = "queued", **over: Any) -> Task:
    """A task of the pro route in some state, as its way there leaves it."""
    unsent = state in {"pending", "submitting", "ambiguous"}
    task = Task(
        id=ids.task_id(int(NOW.timestamp() * 1000), entropy(16)),
        route=PRO,
        state=state,  # type: ignore[arg-type]
        created_at=NOW,
        input_json='{"prompt":"a cat"}',
        callback_expires_at=later(48 * 3600),
        upstream_id=None if unsent else "up-1",
        submitted_at=None if unsent else NOW,
        submit_first_at=None if state == "pending" else NOW,
        submit_due_at=NOW if state == "pending" else None,
        submit_leased_until=later(60) if state == "submitting" else None,
        poll_due_at=later(60) if state in {"queued", "running"} else None,
        finished_at=NOW if state in {"succeeded", "failed", "cancelled", "lost", "rejected"} else None,
    )
    return replace(task, **over)


def an_event(task: Task, kind: str = "task.succeeded") -> Event:
    """An event of a task."""
    return Event(
        id=ids.event_id(int(NOW.timestamp() * 1000), entropy(16)),
        task_id=task.id,
        type=kind,
        created_at=NOW,
        data_json=f'{{"task_id":"{task.id}"}}',
    )


def a_delivery(event: Event, destination: str = "sink", **over: Any) -> Delivery:
    """A pending delivery that is due."""
    delivery = Delivery(
        id=ids.delivery_id(int(NOW.timestamp() * 1000), entropy(16)),
        event_id=event.id,
        task_id=event.task_id,
        destination=destination,
        state="pending",
        created_at=NOW,
        due_at=NOW,
    )
    return replace(delivery, **over)


def an_attempt(delivery: Delivery, result: Result = OK, at: datetime = NOW) -> Attempt:
    """The first of a delivery, which ended so."""
    return Attempt(
        *("att_" + delivery.id, delivery.id, delivery.task_id, 1, at, 5),  # type: ignore[arg-type]
        redelivery=False,
        request_json="{}",
        response_json=None,
        error=None,
        result=result.kind,
        reason=result.reason,
        next_at=None,
    )


def rulebook(**over: Any) -> Rulebook:
    """One destination that asks for everything; nothing is handed over in memory unless told."""
    given: dict[str, Any] = {
        "rules": [Rule("sink", events=("task.*",))],
        "lanes": {"sink": Lane()},
        "room": lambda _name: 0,
        "entropy": entropy,
        "draw": lambda: 0.0,
        "polling": Polling(),
        "confirm": "odd",
    }
    return Rulebook(**{**given, **over})


def callback(task_id: str, body: bytes | str, at: datetime = NOW, rules: Rulebook | None = None) -> Callback:
    """The op of a callback with this body, as the door makes it."""
    raw = body.encode() if isinstance(body, str) else body
    return Callback(TaskId(task_id), raw, "application/json", at, rules or rulebook())


def lookup(task: Task, seen: Observation | None, at: datetime = NOW, **over: Any) -> Lookup:
    """The op of a lookup's answer, made under the task's present claim."""
    given: dict[str, Any] = {
        "task_id": task.id,
        "upstream_id": task.upstream_id,
        "lease": task.poll_leased_until or at,
        "seen": seen,
        "missing": False,
        "answered": True,
        "detail": "",
        "raw": b"{}",
        "content_type": "application/json",
        "at": at,
        "rules": rulebook(),
    }
    return Lookup(**{**given, **over})


@dataclass(frozen=True)
class Do(Reads):
    """An op that does one thing."""

    what: Callable[[Unit], Any]
    task_ids: Sequence[TaskId] = ()
    delivery_ids: Sequence[DeliveryId] = ()

    def apply(self, unit: Unit) -> Any:
        """Do it."""
        return self.what(unit)


@dataclass
class Lines:
    """A log that keeps its lines."""

    lines: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def info(self, event: str, **fields: Any) -> None:
        """A line."""
        self.lines.append(("info", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        """A line."""
        self.lines.append(("warning", event, fields))

    def error(self, event: str, **fields: Any) -> None:
        """A line."""
        self.lines.append(("error", event, fields))

    def of(self, event: str) -> list[dict[str, Any]]:
        """The lines of one name."""
        return [fields for _, name, fields in self.lines if name == event]


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Store]:
    """An open store on a new database."""
    store = Store.open(databases.new(folder))
    try:
        yield store
    finally:
        await store.close()


async def put(store: Store, *rows: Task | Event | Delivery) -> None:
    """Rows, as they are."""

    def stage(unit: Unit) -> None:
        for row in rows:
            if isinstance(row, Task):
                unit.add_task(row)
            elif isinstance(row, Event):
                unit.add_event(row)
            else:
                unit.add_delivery(row)

    await store.run(Do(stage))


async def task_of(store: Store, task_id: str) -> Task:
    """The task as it is stored."""
    found = await store.read(lambda connection: store.tasks.get(connection, TaskId(task_id)))
    assert found is not None
    return found


async def delivery_of(store: Store, delivery_id: str) -> Delivery:
    """The delivery as it is stored."""
    found = await store.run(Do(lambda unit: unit.delivery(DeliveryId(delivery_id))))
    assert isinstance(found, Delivery)
    return found


async def events_of(store: Store, task_id: str) -> list[str]:
    """The types of a task's events, oldest first."""
    rows = await store.read(lambda connection: store.events.of_task(connection, TaskId(task_id)))
    return [row.type for row in rows]


async def deliveries_of(store: Store, task_id: str) -> list[Delivery]:
    """The deliveries of a task's events."""
    return await store.read(lambda connection: store.deliveries.of_task(connection, TaskId(task_id)))


def rows_of(store: Store, sql: str) -> list[Any]:
    """What a connection of its own sees on disk."""
    return databases.ask(store.dialect.url, sql)


def on_disk(store: Store, sql: str, *values: Any) -> None:
    """Change the database behind everybody's back; `?` stands for a value on every engine."""
    databases.change(store.dialect.url, sql, *values)


@asynccontextmanager
async def one_batch(store: Store) -> AsyncIterator[None]:
    """Ops that are given inside become one batch: the writer's thread is held up until the end."""
    begun, go_on = threading.Event(), threading.Event()

    def hold(_unit: Unit) -> None:
        begun.set()
        go_on.wait(PATIENCE)

    held = store.writer.run(Do(hold))
    await asyncio.to_thread(begun.wait, PATIENCE)
    try:
        yield
    finally:
        go_on.set()
        await held


def sweeper(store: Store, log: Lines, now: list[datetime], **over: Any) -> Sweeper:
    """A sweeper whose clock is the test's."""
    given: dict[str, Any] = {
        "store": store,
        "rules": rulebook(),
        "refusals": Refusals(entropy),
        "after": After(cast("Any", log)),
        "log": log,
        "clock": lambda: now[0],
        "destinations": ["sink"],
        "keep_for": timedelta(days=30),
        "wake_deliver": lambda: None,
    }
    return Sweeper(**{**given, **over})


async def until(holds: Callable[[], Any]) -> None:
    """Wait until something is so; what never comes is a failure, not a sleep."""
    async with asyncio.timeout(PATIENCE):
        for _ in itertools.repeat(None):
            if holds():
                return
            await asyncio.sleep(0.005)
