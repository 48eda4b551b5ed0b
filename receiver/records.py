"""Stored rows and what is said of them, as frozen structs. No I/O, no decisions.

They are `msgspec.Struct`s rather than dataclasses: a row of thirty columns is made and copied on the hot path, and a
frozen dataclass costs ten times as much there. JSON that is only passed on stays text (`…_json`), as it came.
Times end in `_at` and are aware UTC, to the millisecond.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from receiver.ids import AttemptId, DeliveryId, EventId, ReplayId, TaskId
from receiver.lifecycle import DeliveryState, HealthState, Replayed, ReplayState, ResultKind, Seen, TaskState

Via = Literal["callback", "poll"]
LookupRoute = Literal["feed", "task"]
"""The two lookup routes: `POST /runway/feed` and `GET /runwayml/v1/tasks/{id}`."""
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
        callback_url: the submitter's own, a destination of this task alone; None for none.
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
    callback_url: str | None = None


class Inbox(msgspec.Struct, frozen=True):
    """One observation as it was received: a callback's or a lookup's raw body, and what was made of it.

    Attributes:
        digest: of `raw`, to know a repeated callback by; empty for a task's first callback, and for lookups.
        asked: which lookup route gave it.
    """

    id: str
    task_id: TaskId
    via: Via
    received_at: datetime
    verdict: Verdict
    detail: str
    content_type: str | None
    digest: bytes
    raw: bytes
    asked: LookupRoute | None = None


class Event(msgspec.Struct, frozen=True):
    """An immutable fact about a task; its id is the `webhook-id` of everything that is sent of it.

    Attributes:
        task_id: the task's; the event's own id where it is about none, so that its rows, too, have one key.
        data_json: the `data` member of contract section 5.
        skips_json: `[[destination, reason], …]`: the deliveries that were not made.
        seq: its place in the pull feed, given by the writer in the order of commits.
    """

    id: EventId
    task_id: TaskId
    type: str
    created_at: datetime
    data_json: str
    skips_json: str = "[]"
    seq: int = 0

    @property
    def of_task(self) -> TaskId | None:
        """The task it is about; None for an event about a destination."""
        return self.task_id if self.task_id.startswith("tsk_") else None


class Delivery(msgspec.Struct, frozen=True):
    """One event for one destination.

    Attributes:
        attempt_count: attempts made in all.
        budget_from: attempts that were made before the present budget began (a redelivery begins a new one).
        lease_token: fencing number, one more with every lease; a write under an older one changes nothing.
        due_at: when a pending delivery is to be tried.
        leased_until: past this a leased delivery has lost its worker.
        retried: it was tried before, or opened again; new work is not starved by these.
        forced: somebody asked for it by hand: tried at once, even past a pause or an open circuit.
        callback_url: where it goes, if it goes to its task's own callback_url (destination `@callback`).
        callback_host: the host in it: of the slots that all such URLs share, one host gets a few.
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
    retried: bool = False
    forced: bool = False
    callback_url: str | None = None
    callback_host: str | None = None

    @property
    def of_task(self) -> TaskId | None:
        """The task its event is about; None for an event about a destination."""
        return self.task_id if self.task_id.startswith("tsk_") else None


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


class Health(msgspec.Struct, frozen=True):
    """How a destination does. One that never failed has no row.

    Attributes:
        consecutive_failures: attempts that failed since the last that did not.
        last_error: the last failure, in words.
        opened_at: since when its circuit is open; None while it is not.
        opens: how often in this outage; each doubles the pause.
        next_try_at: when an open circuit's probe may be made.
        probe_id: the delivery that is the probe; `probe_until` is how long it may take.
        announced: its outage has been told of, so its end is to be told, too.
        reason: why it is paused.
        missing_since_at: since when it is not in the configuration, and something still waits for it.
        held_until: it asked to be left alone until then; nothing at all is sent before, not even by hand.
    """

    name: str
    state: HealthState = "active"
    consecutive_failures: int = 0
    last_error: str | None = None
    last_error_at: datetime | None = None
    opened_at: datetime | None = None
    opens: int = 0
    next_try_at: datetime | None = None
    probe_id: DeliveryId | None = None
    probe_until: datetime | None = None
    announced: bool = False
    reason: str | None = None
    missing_since_at: datetime | None = None
    held_until: datetime | None = None


class Window(msgspec.Struct, frozen=True):
    """What was started under a rate, by all processes together.

    Attributes:
        name: whose rate: `upstream`, `destination:crm`.
        starts: what still counts, as `pace.Pace.starts` writes it.
    """

    name: str
    starts: str


class Replay(msgspec.Struct, frozen=True):
    """Many ended deliveries opened again, step by step.

    Attributes:
        destination: only this one's; None for all.
        since_at, until_at: when the deliveries were made; None for no lower bound.
        matched: how many there were when it began.
        replayed: how many have been opened again.
        cursor: the id of the last one; all before it are done.
    """

    id: ReplayId
    state: ReplayState
    destination: str | None
    which: Replayed
    since_at: datetime | None
    until_at: datetime
    matched: int
    created_at: datetime
    replayed: int = 0
    cursor: str = ""
    finished_at: datetime | None = None


class Repeat(msgspec.Struct, frozen=True):
    """An Idempotency-Key and what it was answered, kept as long as its task.

    Attributes:
        id: the digest of the key.
        request: the digest of what was asked under it.
        status: of the answer, with its content type and body; None while there is none.
    """

    id: str
    task_id: TaskId
    created_at: datetime
    request: str
    status: int | None = None
    content_type: str | None = None
    body: bytes | None = None
