"""What the API answers, as models (contract 4.3, 5).

Only the document is made of them: answers are written by views.py, and the tests hold the two against one another.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from receiver.lifecycle import DeliveryState, HealthState, ReplayState, ResultKind, TaskState
from receiver.records import Verdict, Via
from receiver.routing import EVENT_TYPES

At = Annotated[str, Field(json_schema_extra={"format": "date-time", "examples": ["2026-01-31T12:00:00.000Z"]})]
"""A time: UTC, to the millisecond."""


class Shape(BaseModel):
    """A document: every member is always there, null where there is nothing to say."""

    model_config = ConfigDict(use_attribute_docstrings=True)


# -- tasks -------------------------------------------------------------------------------------------------------------


class Task(Shape):
    """One generation, from its submission to its end."""

    id: str
    """Ours: `tsk_…`."""
    upstream_id: str | None
    """The upstream's own id; null until its answer is in."""
    route: str
    state: TaskState
    """`pending` (not yet sent), `submitting`, `ambiguous` (may have been sent), `queued`, `running`; then one of the
    terminal ones: `succeeded failed cancelled lost rejected`."""
    progress: Annotated[int, Field(ge=0, le=100)] | None
    """Percent."""
    input: dict[str, Any]
    """What was sent upstream, defaults filled in; a data URI reads `data:video/mp4;… (N bytes, sha256 …)`."""
    metadata: dict[str, Any]
    """As it was submitted."""
    video_url: str | None
    poster: str | None
    last_frame: str | None
    failure: str | None
    """The upstream's reason, in words."""
    failure_code: str | None
    code: int | None
    """200 for a success; else the upstream's own number where it gave one."""
    msg: str
    """The upstream's words; empty where there are none."""
    via: Via | None
    """How its end was learnt."""
    created_at: At
    submitted_at: At | None
    finished_at: At | None


# -- what goes out -----------------------------------------------------------------------------------------------------


class SentRequest(Shape):
    """What was sent, secrets masked."""

    url: str
    headers: dict[str, str]


class GivenResponse(Shape):
    """What came back; of the body the first 16 KiB."""

    status: int
    headers: dict[str, str]
    body: str


class Attempt(Shape):
    """One try of a delivery."""

    number: Annotated[int, Field(ge=1)]
    """From 1, going on over redeliveries."""
    started_at: At
    duration_ms: Annotated[int, Field(ge=0)]
    redelivery: bool
    """Somebody asked for it by hand."""
    request: SentRequest
    response: GivenResponse | None
    """Null where nothing came back."""
    error: str | None
    """Why nothing came back."""
    result: ResultKind
    reason: str
    """Why this was decided, in words."""
    next_at: At | None
    """When it is tried again; null for not at all."""


class Delivery(Shape):
    """One event for one destination, with its attempts."""

    id: str
    event_id: str
    """Also the `webhook-id` of every attempt."""
    task_id: str | None
    """Null for an event about no task."""
    destination: str
    """`@callback` is the task's own callback_url."""
    state: DeliveryState
    attempt_count: Annotated[int, Field(ge=0)]
    due_at: At | None
    created_at: At
    finished_at: At | None
    attempts: list[Attempt]


class Destination(Shape):
    """A configured receiver, and how it does."""

    name: str
    kind: str
    state: HealthState
    """`open`: its circuit is open after failures, one probe at a time is made; `paused`: held."""
    consecutive_failures: Annotated[int, Field(ge=0)]
    last_error: str | None
    next_try_at: At | None
    """When the next probe of an open circuit may be made, or the wait that it asked for is over."""
    reason: str | None
    """Why it is paused."""


class Replay(Shape):
    """Many ended deliveries opened again, step by step."""

    id: str
    state: ReplayState
    matched: Annotated[int, Field(ge=0)]
    """How many there were when it began."""
    replayed: Annotated[int, Field(ge=0)]
    """How many have been opened again so far."""


class Envelope(Shape):
    """What the upstream says of a task, in the one shape that a destination of format `envelope` gets as its body."""

    code: int
    """200 exactly when the task succeeded."""
    msg: str
    data: dict[str, Any]
    """The object in which the status was read, as it came."""


class Artifact(Shape):
    """A copy of a render."""

    kind: Literal["video", "poster", "last_frame"]
    url: str
    sha256: str
    bytes: Annotated[int, Field(ge=0)]
    content_type: str
    stored_at: At


class TaskData(Shape):
    """Of an event about a task: the task as it then was."""

    task_id: str
    upstream_id: str | None
    route: str
    state: TaskState
    code: int
    """200 exactly when the task succeeded; else the upstream's own number where it gave one, else 500."""
    msg: str
    via: Via | None
    confirmed: bool
    """A lookup said it."""
    recovered: bool
    """It was `lost` before, and the truth was learnt afterwards."""
    prompt: str | None
    video_url: str | None
    poster: str | None
    last_frame: str | None
    failure: str | None
    failure_code: str | None
    metadata: dict[str, Any]
    progress: Annotated[int, Field(ge=0, le=100)] | None
    artifacts: list[Artifact]
    """Empty where the archive is off."""
    created_at: At
    submitted_at: At | None
    finished_at: At | None
    envelope: Envelope


class OperatorData(Shape):
    """Of an event about this service's own work; null where it does not apply."""

    task_id: str | None
    destination: str | None
    delivery_id: str | None
    event_id: str | None
    consecutive_failures: int | None
    reason: str


EventType = Annotated[str, Field(json_schema_extra={"enum": sorted(EVENT_TYPES)})]


class Webhook(Shape):
    """What a destination of kind `webhook` and format `standard` gets."""

    type: EventType
    timestamp: At
    data: TaskData | OperatorData


class Event(Webhook):
    """An immutable fact, as a webhook of format `standard` says it, and its id."""

    id: str
    """`evt_…`; the `webhook-id` of all its deliveries."""


# -- a task's way ------------------------------------------------------------------------------------------------------


class Submission(Shape):
    """The task was accepted; how its submission went."""

    at: At
    kind: Literal["submission"]
    state: Literal["pending"]
    route: str
    submit_attempts: Annotated[int, Field(ge=0)]
    """How often it was sent and surely not taken."""
    submitted_at: At | None
    upstream_id: str | None


class Observed(Shape):
    """What a body said of the task, and what was made of it."""

    at: At
    id: str
    via: Via
    verdict: Verdict
    detail: str
    content_type: str | None
    raw: str
    """The body as it came."""


class Observation(Observed):
    """A callback."""

    kind: Literal["observation"]


class Poll(Observed):
    """A lookup's answer."""

    kind: Literal["poll"]


class EventRecorded(Shape):
    """An event was recorded."""

    at: At
    kind: Literal["event"]
    event_id: str
    type: str


class Skip(Shape):
    """A destination that does not get the event, and why."""

    at: At
    kind: Literal["skip"]
    event_id: str
    destination: str
    reason: str


class DeliveryMade(Shape):
    """A delivery, as it is now."""

    at: At
    kind: Literal["delivery"]
    delivery_id: str
    event_id: str
    destination: str
    state: DeliveryState
    attempt_count: Annotated[int, Field(ge=0)]
    due_at: At | None


class AttemptMade(Attempt):
    """An attempt of a delivery."""

    at: At
    kind: Literal["attempt"]
    delivery_id: str
    destination: str | None


TimelineItem = Annotated[
    Submission | Observation | Poll | EventRecorded | Skip | DeliveryMade | AttemptMade, Field(discriminator="kind")
]


# -- pages -------------------------------------------------------------------------------------------------------------


class Timeline(Shape):
    """A task's way, in order: one page."""

    data: list[TimelineItem]
    next_cursor: None


class Listed(Shape):
    """A page, newest first."""

    next_cursor: str | None
    """Give it as `cursor` for the next page; null on the last."""


class TaskPage(Listed):
    """Tasks, newest first."""

    data: list[Task]


class DeliveryPage(Listed):
    """Deliveries, newest first."""

    data: list[Delivery]


class ReplayPage(Listed):
    """Replays, newest first."""

    data: list[Replay]


class DestinationPage(Listed):
    """Destinations, by name."""

    data: list[Destination]


class EventPage(Shape):
    """Events, oldest first, without gaps."""

    data: list[Event]
    next_cursor: str
    """Give it as `after` for what follows; never null, and it stays good."""


# -- the rest ----------------------------------------------------------------------------------------------------------


class Received(Shape):
    """The observation is on disk."""

    received: Literal[True]


class Live(Shape):
    """The process runs."""

    status: Literal["live"]


class Ready(Shape):
    """Whether all is there that the service needs, and if not, why."""

    status: Literal["ready", "unready"]
    reasons: list[str]
