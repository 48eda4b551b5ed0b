"""Staging what a judgement changes: the task, the event, its deliveries. One transaction, by law."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
import orjson
from msgspec.structs import replace

from receiver import health, ids, routing
from receiver.ids import TaskId
from receiver.ingest.judge import Polling
from receiver.records import Delivery, Event, Task, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from receiver.ingest.judge import Confirm, Judgement
    from receiver.routing import Match, Rule
    from receiver.store import Unit

UNDECIDED = frozenset({"pending", "submitting"})
"""States in which the whole body of a submission may still be needed."""
ODD_SPACING = timedelta(seconds=1)
"""An odd body is looked up at once; a stream of them at most this often, so that a leaked URL is no lever."""
URGENT = datetime(1970, 1, 1, tzinfo=UTC)
"""Due before everything else: lookups are made longest due first, so an odd callback's comes before all."""
_MILLISECONDS = tuple(f".{number:03d}Z" for number in range(1000))
"""How a stamp ends; a number is formatted in 0.2 us, and looked up in 0.03."""


@dataclass(frozen=True)
class Lane:
    """What ingest must know of a destination to give a delivery its first due time and lease."""

    first_wait: timedelta = timedelta(0)
    lease_for: timedelta = timedelta(seconds=60)


_NO_LANE = Lane()
_SPOKEN_OF = "it was thought to be not taken, and yet the upstream has called back"


@dataclass(frozen=True)
class Rulebook:
    """What ingest decides by; made once from the configuration.

    Attributes:
        room: how many deliveries of a destination may be handed over in memory now; read on the writer's thread.
        entropy: random bytes for ids.
        draw: a number from 0 up to 1, for jitter.
    """

    rules: Sequence[Rule]
    lanes: Mapping[str, Lane]
    room: Callable[[str], int]
    entropy: Callable[[int], bytes]
    draw: Callable[[], float]
    polling: Polling = field(default_factory=Polling)
    confirm: Confirm = "odd"


class Born(msgspec.Struct):
    """The events an op recorded and their deliveries, for those who act after the commit.

    Attributes:
        leased: deliveries leased at birth, with their event.
        waiting: deliveries that were born pending.
    """

    events: list[Event] = []
    leased: list[tuple[Delivery, Event]] = []
    waiting: list[Delivery] = []


class Recorded(msgspec.Struct):
    """What an op made of a task, for those who act after the commit.

    Attributes:
        look: the poller has something to do before its next round.
    """

    task: Task
    verdict: Verdict | None = None
    detail: str = ""
    born: Born = msgspec.field(default_factory=Born)
    look: bool = False
    moved: bool = False


def record(
    unit: Unit,
    task: Task,
    kind: str,
    rules: Rulebook,
    now: datetime,
    into: Born,
    data_json: str | None = None,
) -> None:
    """Stage the event `kind` of `task` and its deliveries; optional kinds only where some destination asks for them."""
    if kind not in routing.TERMINAL_EVENTS and not routing.wanted(kind, rules.rules):
        return
    only = frozenset(orjson.loads(task.only_json)) if task.only_json is not None else None
    event = _event(task.id, kind, event_data(task, data_json), rules, now)
    skips = _deliver(unit, event, routing.match(event, rules.rules, route=task.route, only=only), rules, into)
    if task.callback_url is not None:
        if kind in routing.TERMINAL_EVENTS:
            _bear(unit, event, _own_callback(event, task.callback_url, rules), rules, into)
        else:
            skips.append((routing.OWN_CALLBACK, f"events: it gets the terminal ones, this is {kind}"))
    _stage(unit, event, skips, into)


def record_operator(
    unit: Unit,
    kind: str,
    rules: Rulebook,
    now: datetime,
    into: Born,
    *,
    task: Task | None = None,
    destination: str | None = None,
    delivery: Delivery | None = None,
    consecutive_failures: int | None = None,
    reason: str,
) -> None:
    """Stage an operator event (contract section 5) and its deliveries, where some destination names it."""
    if not routing.wanted(kind, rules.rules):
        return
    data = {
        "task_id": task.id if task else None,
        "destination": destination,
        "delivery_id": delivery.id if delivery else None,
        "event_id": delivery.event_id if delivery else None,
        "consecutive_failures": consecutive_failures,
        "reason": reason,
    }
    event = _event(task.id if task else None, kind, orjson.dumps(data).decode(), rules, now)
    matches = routing.match(event, rules.rules, route=task.route if task else None)
    _stage(unit, event, _deliver(unit, event, matches, rules, into), into)


def _event(task_id: TaskId | None, kind: str, data_json: str, rules: Rulebook, now: datetime) -> Event:
    ms = int(now.timestamp() * 1000)
    event_id = ids.event_id(ms, rules.entropy(ids.ENTROPY_BYTES))
    return Event(id=event_id, task_id=task_id or TaskId(event_id), type=kind, created_at=now, data_json=data_json)


def _deliver(unit: Unit, event: Event, matches: Sequence[Match], rules: Rulebook, into: Born) -> list[tuple[str, str]]:
    """Bear a delivery for each match; the others, with their reasons."""
    skips: list[tuple[str, str]] = []
    for match in matches:
        if match.chosen:
            _bear(unit, event, _delivery(event, match.destination, rules), rules, into)
        else:
            skips.append((match.destination, match.reason))
    return skips


def _stage(unit: Unit, event: Event, skips: list[tuple[str, str]], into: Born) -> None:
    event = replace(event, skips_json=orjson.dumps(skips).decode()) if skips else event
    unit.add_event(event)
    into.events.append(event)


def _delivery(event: Event, name: str, rules: Rulebook) -> Delivery:
    now = event.created_at
    return Delivery(
        id=ids.delivery_id(int(now.timestamp() * 1000), rules.entropy(ids.ENTROPY_BYTES)),
        event_id=event.id,
        task_id=event.task_id,
        destination=name,
        state="pending",
        created_at=now,
        due_at=now + rules.lanes.get(name, _NO_LANE).first_wait,
    )


def _own_callback(event: Event, url: str, rules: Rulebook) -> Delivery:
    host = (urlsplit(url).hostname or "")[:255]
    return replace(_delivery(event, routing.OWN_CALLBACK, rules), callback_url=url, callback_host=host)


def _bear(unit: Unit, event: Event, delivery: Delivery, rules: Rulebook, into: Born) -> None:
    """Stage a new delivery, leased at birth where its worker has room, so that nobody must find it again."""
    name, now = delivery.destination, event.created_at
    is_due = delivery.due_at is not None and delivery.due_at <= now
    if is_due and unit.handed(name) < rules.room(name) and not _is_held(unit, name, now):
        lease = now + rules.lanes.get(name, _NO_LANE).lease_for
        delivery = replace(delivery, state="leased", due_at=None, lease_token=1, leased_until=lease)
        unit.hand(delivery)
        into.leased.append((delivery, event))
    else:
        into.waiting.append(delivery)
    unit.add_delivery(delivery)


def _is_held(unit: Unit, name: str, now: datetime) -> bool:
    """Whether another instance knows why nothing may be sent there; our own has no room then, and need not ask."""
    if not unit.is_shared:
        return False
    state = unit.health(name)
    return state.state != "active" or health.held_at(state, now) is not None


def event_data(task: Task, data_json: str | None = None) -> str:
    """The `data` member of contract section 5, as JSON text."""
    data = orjson.Fragment(data_json) if data_json else {"task_id": task.upstream_id}
    code = task.code if task.code is not None else (200 if task.state == "succeeded" else 500)
    document: dict[str, Any] = {
        "task_id": task.id,
        "upstream_id": task.upstream_id,
        "route": task.route,
        "state": task.state,
        "code": code,
        "msg": task.msg,
        "via": task.via,
        "confirmed": task.confirmed,
        "recovered": task.recovered,
        "prompt": task.prompt,
        "video_url": task.video_url,
        "poster": task.poster,
        "last_frame": task.last_frame,
        "failure": task.failure,
        "failure_code": task.failure_code,
        "metadata": orjson.Fragment(task.metadata_json),
        "progress": task.progress,
        "artifacts": [],
        "created_at": stamp(task.created_at),
        "submitted_at": stamp(task.submitted_at),
        "finished_at": stamp(task.finished_at),
        "envelope": {"code": code, "msg": task.msg, "data": data},
    }
    return orjson.dumps(document).decode()


def stamp(at: datetime | None) -> str | None:
    """A time as it stands in every document: `2026-01-31T12:00:00.000Z`."""
    return None if at is None else f"{_second(at.timestamp() // 1)}{_MILLISECONDS[at.microsecond // 1000]}"


@lru_cache(maxsize=4096)
def _second(second: float) -> str:
    """A stamp up to its second; what is made and what ends now share few (0.45 us a stamp; isoformat takes 1.2)."""
    return datetime.fromtimestamp(second, UTC).isoformat()[:19]


def settle(unit: Unit, before: Task, judged: Judgement, rules: Rulebook, now: datetime, into: Recorded) -> Task:
    """Stage what a judgement changes, with the events that follow from it."""
    task = judged.task
    if judged.look == "at once" and task.upstream_id is not None:
        task = hurry(task, now)
        into.look = True
    if task.state == "ambiguous" and task.poll_due_at is None:
        # Nobody can be asked about it; past this it is lost.
        task = replace(task, poll_due_at=(task.submit_first_at or task.created_at) + rules.polling.deadline)
    into.task = task
    if task is not before:
        unit.put_task(task)
    if before.state in UNDECIDED and task.state not in UNDECIDED:
        unit.drop_payload(task.id)
    if task.state == "ambiguous" != before.state:
        record_operator(unit, "task.ambiguous", rules, now, into.born, task=task, reason=judged.detail or _SPOKEN_OF)
    if judged.moved:
        into.moved = True
        record(unit, task, f"task.{task.state}", rules, now, into.born, judged.data_json)
    elif judged.progressed:
        record(unit, task, "task.progress", rules, now, into.born, judged.data_json)
    return task


def hurry(task: Task, now: datetime) -> Task:
    """Have the task looked up before all others; a stream of reasons to do so counts at most once a second."""
    if task.woken_at is not None and now - task.woken_at < ODD_SPACING:
        # Never later than it is due already: a stream of odd bodies must not put off the lookup that decides them.
        soon = task.woken_at + ODD_SPACING
        return replace(task, poll_due_at=soon if task.poll_due_at is None else min(task.poll_due_at, soon))
    return replace(task, poll_due_at=URGENT, woken_at=now)
