"""The states of a task and of a delivery, and the tables of their transitions. Nothing else.

States are plain strings under `Literal` types: they go into rows, JSON and log lines as they are, and
`assert_never` still finds the `match` that forgot one.
"""

from __future__ import annotations

from typing import Final, Literal

TaskState = Literal[
    "pending",  # not yet sent
    "submitting",  # being sent right now
    "ambiguous",  # may have been sent; a callback can still adopt it
    "queued",
    "running",
    "succeeded",
    "failed",
    "cancelled",
    "lost",
    "rejected",
]
Seen = Literal[
    "queued",
    "running",
    "succeeded",
    "failed",
    "cancelled",
    "missing",  # the upstream says it has no such task
    "unknown",  # a word no table knows, or no word at all: never terminal
]
ResultKind = Literal["ok", "transient", "throttled", "permanent"]
"""How an attempt ended (glossary: result)."""
DeliveryState = Literal["pending", "leased", "delivered", "dead", "cancelled"]
HealthState = Literal["active", "open", "paused"]
"""Of a destination: tried as ever; its circuit is open, one probe at a time; held by hand or because it is gone."""
ReplayState = Literal["running", "done", "cancelled"]
Replayed = Literal["dead", "delivered", "all"]
"""Which ended deliveries a replay opens again; `all` are these two and the cancelled ones."""

TASK_STATES: Final[tuple[TaskState, ...]] = (
    "pending",
    "submitting",
    "ambiguous",
    "queued",
    "running",
    "succeeded",
    "failed",
    "cancelled",
    "lost",
    "rejected",
)
UNSENT: Final[frozenset[TaskState]] = frozenset({"pending", "submitting", "ambiguous"})
"""No answer of the upstream has been taken as this task's birth yet."""
OPEN: Final[frozenset[TaskState]] = UNSENT | {"queued", "running"}
TERMINAL: Final[frozenset[TaskState]] = frozenset(TASK_STATES) - OPEN
TERMINAL_SEEN: Final[frozenset[Seen]] = frozenset({"succeeded", "failed", "cancelled"})
DELIVERY_STATES: Final[tuple[DeliveryState, ...]] = ("pending", "leased", "delivered", "dead", "cancelled")
DELIVERY_ENDED: Final[frozenset[DeliveryState]] = frozenset({"delivered", "dead", "cancelled"})

# What an observation makes of a task whose birth is known. A pair that is not here changes nothing: it is a
# duplicate, late, out of order, or mere progress. `lost` is our own word, so the truth may still replace it.
_ADVANCE: Final[dict[tuple[TaskState, Seen], TaskState]] = {
    ("ambiguous", "queued"): "queued",
    ("ambiguous", "running"): "running",
    ("ambiguous", "succeeded"): "succeeded",
    ("ambiguous", "failed"): "failed",
    ("ambiguous", "cancelled"): "cancelled",
    ("queued", "running"): "running",
    ("queued", "succeeded"): "succeeded",
    ("queued", "failed"): "failed",
    ("queued", "cancelled"): "cancelled",
    ("running", "succeeded"): "succeeded",
    ("running", "failed"): "failed",
    ("running", "cancelled"): "cancelled",
    ("lost", "succeeded"): "succeeded",
    ("lost", "failed"): "failed",
    ("lost", "cancelled"): "cancelled",
}


def advance(current: TaskState, seen: Seen) -> TaskState | None:
    """The state that `seen` moves a task to, or None where it moves nothing.

    `pending` and `submitting` never move here: what is seen before the submission's answer is kept until it is in.
    """
    return _ADVANCE.get((current, seen))
