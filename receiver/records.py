"""Stored rows and what is said of them, as frozen structs. No I/O, no decisions.

They are `msgspec.Struct`s rather than dataclasses: a row of thirty columns is made and copied on the hot path, and a
frozen dataclass costs ten times as much there. JSON that is only passed on stays text (`…_json`), as it came.
Times end in `_at` and are aware UTC, to the millisecond.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from receiver.ids import AttemptId, DeliveryId, EventId, TaskId
from receiver.lifecycle import DeliveryState, ResultKind, Seen, TaskState

Via = Literal["callback", "poll"]
Verdict = Literal["accepted", "duplicate", "late", "progress", "odd", "unreadable"]
Oddity = Literal[
    "other-id",  # the body names another task id than the recorded one
    "disagreement",  # `status` and `state` say different things
    "bare-code",  # an error code with no status at all
    "no-url",  # a success without a usable URL
]


class Observation(msgspec.Struct, frozen=True):
    """What one body says of a task. It does not say who sent it, nor whether it is believed.

    Attributes:
        seen: the canonical status.
        upstream_id: the id the body names, if it names one.
        oddities: what about it is odd in itself (`other-id` needs the task, and is judged in ingest).
        progress: 0 to 100.
        video_url: set only for a success, and only an http(s) URL.
        failure: the upstream's reason in words, for a failure or a cancellation.
        code: the upstream's own number where it gave one.
        msg: its words; "" where there are none.
        prompt: as it stands in the body.
        data_json: the object in which the status was read, as JSON, as it came; None where there is no object.
    """

    seen: Seen
    upstream_id: str | None = None
    oddities: tuple[Oddity, ...] = ()
    progress: int | None = None
    video_url: str | None = None
    poster: str | None = None
    last_frame: str | None = None
    failure: str | None = None
    failure_code: str | None = None
    code: int | None = None
    msg: str = ""
    prompt: str | None = None
    data_json: str | None = None


class Task(msgspec.Struct, frozen=True):
    """One generation, from submission to its terminal state.

    Attributes:
        input_json: the upstream's own body without callback_url, data URIs abridged; fixed at birth.
        only_json: names of the destinations the submitter chose, as a JSON list; None for all.
        callback_expires_at: how long its callback URL is good; None where it has none and is polled from the start.
        deferred: its submitter was told 202; a rejection is therefore an event.
        submit_attempts: how often it was sent and surely not taken.
        submit_due_at: when a pending task may be sent; None while it is not pending.
        submit_leased_until: past this a `submitting` task has lost its sender.
        held_json: a terminal Observation that waits for the submission's answer.
        poll_due_at: when it is looked up next; None for never.
        poll_leased_until: a lookup is under way until then; past it another may start.
        poll_count: lookups that were answered.
        shown: some callback or lookup has shown that the upstream has it.
        missing_count: `task_not_exist` in a row, from both lookup routes.
        urlless_count: lookups that said success without a URL.
        callbacks: bodies received so far.
    """

    id: TaskId
    route: str
    state: TaskState
    created_at: datetime
    input_json: str
    metadata_json: str = "{}"
    only_json: str | None = None
    callback_expires_at: datetime | None = None
    upstream_id: str | None = None
    progress: int | None = None
    prompt: str | None = None
    code: int | None = None
    msg: str = ""
    video_url: str | None = None
    poster: str | None = None
    last_frame: str | None = None
    failure: str | None = None
    failure_code: str | None = None
    via: Via | None = None
    confirmed: bool = False
    recovered: bool = False
    submitted_at: datetime | None = None
    finished_at: datetime | None = None
    deferred: bool = False
    submit_attempts: int = 0
    submit_first_at: datetime | None = None
    submit_due_at: datetime | None = None
    submit_leased_until: datetime | None = None
    held_json: str | None = None
    poll_due_at: datetime | None = None
    poll_leased_until: datetime | None = None
    poll_count: int = 0
    polled_at: datetime | None = None
    shown: bool = False
    missing_count: int = 0
    missing_since_at: datetime | None = None
    urlless_count: int = 0
    callbacks: int = 0
    woken_at: datetime | None = None


class Inbox(msgspec.Struct, frozen=True):
    """One observation as it was received: a callback's or a lookup's raw body, and what was made of it."""

    id: str
    task_id: TaskId
    via: Via
    received_at: datetime
    verdict: Verdict
    detail: str
    content_type: str | None
    digest: bytes
    raw: bytes


class Event(msgspec.Struct, frozen=True):
    """An immutable fact about a task; its id is the `webhook-id` of everything that is sent of it.

    Attributes:
        data_json: the `data` member of contract section 5.
        skips_json: `[[destination, reason], …]`: the deliveries that were not made.
    """

    id: EventId
    task_id: TaskId
    type: str
    created_at: datetime
    data_json: str
    skips_json: str = "[]"


class Delivery(msgspec.Struct, frozen=True):
    """One event for one destination.

    Attributes:
        attempt_count: attempts made in all.
        budget_from: attempts that were made before the present budget began (a redelivery begins a new one).
        lease_token: fencing number, one more with every lease; a write under an older one changes nothing.
        due_at: when a pending delivery is to be tried.
        leased_until: past this a leased delivery has lost its worker.
    """

    id: DeliveryId
    event_id: EventId
    task_id: TaskId
    destination: str
    state: DeliveryState
    created_at: datetime
    due_at: datetime | None
    attempt_count: int = 0
    budget_from: int = 0
    lease_token: int = 0
    leased_until: datetime | None = None
    finished_at: datetime | None = None


class Attempt(msgspec.Struct, frozen=True):
    """One try of a delivery: what was sent, what came back, what was decided and why.

    Attributes:
        request_json: `{"url", "headers"}`, secrets masked.
        response_json: `{"status", "headers", "body"}`, or None where nothing came back.
        error: what went wrong, in words.
        next_at: when the next try is due; None where there is none.
    """

    id: AttemptId
    delivery_id: DeliveryId
    task_id: TaskId
    number: int
    started_at: datetime
    duration_ms: int
    redelivery: bool
    request_json: str
    response_json: str | None
    error: str | None
    result: ResultKind
    reason: str
    next_at: datetime | None


class Refusal(msgspec.Struct, frozen=True):
    """A callback that was refused at the door; the token itself is never kept."""

    id: str
    at: datetime
    reason: str
    method: str
    size: int
