"""Things as the API shows them (contract 4.3): pure functions from records to JSON-ready documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from receiver.health import next_at
from receiver.ingest import stamp

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from receiver.deliver import Destination
    from receiver.records import Attempt, Delivery, Event, Health, Inbox, Replay, Task


def task(row: Task) -> dict[str, Any]:
    """A task."""
    return {
        "id": row.id,
        "upstream_id": row.upstream_id,
        "route": row.route,
        "state": row.state,
        "progress": row.progress,
        "input": orjson.Fragment(row.input_json),
        "metadata": orjson.Fragment(row.metadata_json),
        "video_url": row.video_url,
        "poster": row.poster,
        "last_frame": row.last_frame,
        "failure": row.failure,
        "failure_code": row.failure_code,
        "code": row.code,
        "msg": row.msg,
        "via": row.via,
        "created_at": stamp(row.created_at),
        "submitted_at": stamp(row.submitted_at),
        "finished_at": stamp(row.finished_at),
    }


def attempt(row: Attempt) -> dict[str, Any]:
    """One attempt."""
    return {
        "number": row.number,
        "started_at": stamp(row.started_at),
        "duration_ms": row.duration_ms,
        "redelivery": row.redelivery,
        "request": orjson.Fragment(row.request_json),
        "response": None if row.response_json is None else orjson.Fragment(row.response_json),
        "error": row.error,
        "result": row.result,
        "reason": row.reason,
        "next_at": stamp(row.next_at),
    }


def delivery(row: Delivery, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """A delivery with its attempts; those that were made after `row` was read are left out, so that all agrees."""
    return {
        "id": row.id,
        "event_id": row.event_id,
        "task_id": row.of_task,
        "destination": row.destination,
        "state": row.state,
        "attempt_count": row.attempt_count,
        "due_at": stamp(row.due_at),
        "created_at": stamp(row.created_at),
        "finished_at": stamp(row.finished_at),
        "attempts": [attempt(one) for one in attempts if one.number <= row.attempt_count],
    }


def destination(row: Destination, health: Health, now: datetime) -> dict[str, Any]:
    """A destination and how it does."""
    return {
        "name": row.name,
        "kind": row.kind.name,
        "state": health.state,
        "consecutive_failures": health.consecutive_failures,
        "last_error": health.last_error,
        "next_try_at": stamp(next_at(health, now)),
        "reason": health.reason if health.state == "paused" else None,
    }


def replay(row: Replay) -> dict[str, Any]:
    """A replay and how far it is."""
    return {"id": row.id, "state": row.state, "matched": row.matched, "replayed": row.replayed}


def event(row: Event) -> dict[str, Any]:
    """An event as the pull feed gives it: what a webhook of format `standard` says, and its id."""
    return {
        "id": row.id,
        "type": row.type,
        "timestamp": stamp(row.created_at),
        "data": orjson.Fragment(row.data_json),
    }


def timeline(
    row: Task,
    observations: Sequence[Inbox],
    events: Sequence[Event],
    deliveries: Sequence[Delivery],
    attempts: Sequence[Attempt],
) -> list[dict[str, Any]]:
    """A task's way, in order of time; of one moment in the order of cause and effect."""
    items: list[tuple[Any, int, dict[str, Any]]] = []

    def add(at: Any, rank: int, kind: str, **what: Any) -> None:
        items.append((at, rank, {"at": stamp(at), "kind": kind, **what}))

    add(
        row.created_at,
        0,
        "submission",
        state="pending",
        route=row.route,
        submit_attempts=row.submit_attempts,
        submitted_at=stamp(row.submitted_at),
        upstream_id=row.upstream_id,
    )
    for seen in observations:
        # What came too late, or again, did not cause the event of the same millisecond.
        add(
            seen.received_at,
            6 if seen.verdict in {"late", "duplicate"} else 1,
            "observation" if seen.via == "callback" else "poll",
            id=seen.id,
            via=seen.via,
            verdict=seen.verdict,
            detail=seen.detail,
            content_type=seen.content_type,
            raw=seen.raw.decode("utf-8", errors="replace"),
        )
    for fact in events:
        add(fact.created_at, 2, "event", event_id=fact.id, type=fact.type)
        for name, reason in orjson.loads(fact.skips_json):
            add(fact.created_at, 3, "skip", event_id=fact.id, destination=name, reason=reason)
    destinations = {one.id: one.destination for one in deliveries}
    for one in deliveries:
        add(
            one.created_at,
            4,
            "delivery",
            delivery_id=one.id,
            event_id=one.event_id,
            destination=one.destination,
            state=one.state,
            attempt_count=one.attempt_count,
            due_at=stamp(one.due_at),
        )
    for tried in attempts:
        add(
            tried.started_at,
            5,
            "attempt",
            delivery_id=tried.delivery_id,
            destination=destinations.get(tried.delivery_id),
            **attempt(tried),
        )
    items.sort(key=lambda item: item[:2])
    return [item for _, _, item in items]
