"""What an attempt's answer means for its delivery. Pure: time and jitter come in as arguments.

A kind says how an attempt ended (Result); this room alone says what is done next (Decision). Waits are counted from the
end of the attempt before; jitter is only ever added; a destination can only ever move the next try later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from receiver.errors import EgressError, Stage
    from receiver.lifecycle import DeliveryState, ResultKind

MAX_RETRY_AFTER: Final = timedelta(hours=24)
"""No destination can put a delivery off for longer (contract section 5)."""

_SECONDS: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_ZERO: Final = timedelta(0)

# How each stage is told. Every one is transient: names, routes and certificates get mended.
_STAGES: Final[dict[Stage, str]] = {
    "address": "not connected, the address is not allowed",
    "dns": "the name could not be resolved",
    "connect": "no connection",
    "tls": "the TLS handshake failed",
    "send": "the request could not be sent",
    "timeout": "timed out",
    "reset": "the connection broke before an answer",
    "answer": "the answer is no HTTP",
}


@dataclass(frozen=True, slots=True)
class Result:
    """How one attempt ended, in the words of its kind.

    Attributes:
        kind: ok, transient, throttled or permanent.
        reason: why, in words; it is stored and shown.
        retry_after: how long the other side asked to be left alone.
        pause: the destination itself is to be paused (410).
        hold: how long nothing at all may be sent there, also after a success (`X-RateLimit-Remaining: 0`).
    """

    kind: ResultKind
    reason: str
    retry_after: timedelta | None = None
    pause: bool = False
    hold: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done next: `delivered`, `dead`, or `pending` until `due_at`."""

    state: DeliveryState
    due_at: datetime | None
    reason: str


def retry_after(header: str | None, *, now: datetime) -> timedelta | None:
    """What a `Retry-After` header asks for: seconds or an HTTP-date (RFC 9110, 10.2.3); 0 to 24 h, None for garbage."""
    text = (header or "").strip()
    if _SECONDS.fullmatch(text):
        return timedelta(seconds=min(float(text), MAX_RETRY_AFTER.total_seconds()))
    try:
        until = parsedate_to_datetime(text)
        # A date without a zone is GMT: HTTP knows no other.
        wait = (until if until.tzinfo else until.replace(tzinfo=UTC)) - now
    except (ValueError, TypeError, IndexError, OverflowError):  # what the standard library lets out for odd dates
        return None
    return min(max(wait, _ZERO), MAX_RETRY_AFTER)


def from_error(error: EgressError) -> Result:
    """The result of an attempt that got no answer, whatever the kind."""
    return Result("transient", f"{_STAGES[error.stage]}: {error}")


def decide(result: Result, *, attempt: int, schedule: Sequence[timedelta], now: datetime, jitter: float) -> Decision:
    """What becomes of a delivery after an attempt.

    Args:
        result: how the attempt ended.
        attempt: its number within the present budget, from 1 (a redelivery begins a new budget).
        schedule: the waits before attempt 1, 2, …; as many attempts as entries.
        now: when the attempt ended.
        jitter: the share of the wait to add, already drawn; 0.0 for none.

    Raises:
        ValueError: `attempt` is below 1, `jitter` below 0, or `now` naive.
    """
    if attempt < 1 or jitter < 0 or now.utcoffset() is None:
        raise ValueError(f"attempt {attempt} counts from 1, jitter {jitter} is only added, {now!r} must be aware")
    if result.kind == "ok":
        return Decision("delivered", None, result.reason)
    if result.kind == "permanent":
        return Decision("dead", None, f"{result.reason}; it is not tried again")
    if attempt >= len(schedule):
        spent = f"the last of {len(schedule)} attempts" if len(schedule) > 1 else "the only attempt"
        return Decision("dead", None, f"{result.reason}; this was {spent}")
    wait, asked = schedule[attempt] * (1 + jitter), min(result.retry_after or _ZERO, MAX_RETRY_AFTER)
    if asked > wait:
        return Decision("pending", now + asked, f"{result.reason}; tried again in {_words(asked)}, as it asked")
    return Decision("pending", now + wait, f"{result.reason}; tried again in {_words(wait)}")


def _words(wait: timedelta) -> str:
    seconds = wait.total_seconds()
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
