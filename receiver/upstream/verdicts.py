"""What an answer of the upstream means: a verdict on a submission, and one on a lookup. Pure and total.

The law: contract 4.3 for submissions, contract 1 for lookups. What may have been taken is never called refused.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import msgspec

from receiver import envelope as envelopes
from receiver.errors import EnvelopeError
from receiver.records import Observation
from receiver.upstream.reading import has_word, is_about_question, observe
from receiver.upstream.words import ACCOUNT_WORDS, INVALID_REQUEST, is_error, number, word

if TYPE_CHECKING:
    from receiver.envelope import Envelope
    from receiver.wire import HttpResponse

MAX_RETRY_AFTER = 24 * 3600.0
_MAX_REASON = 1_000
_MAX_HEADER = 64
_MAX_ERROR_WORD = 200

OK, REDIRECT, CLIENT_ERROR, SERVER_ERROR, END = 200, 300, 400, 500, 600
UNAUTHORIZED, FORBIDDEN, TIMED_OUT, UNPROCESSABLE, THROTTLED, BAD_GATEWAY = 401, 403, 408, 422, 429, 502


class Taken(msgspec.Struct, frozen=True):
    """The upstream took it; `observation` is what the answer says beyond the id, if it has a status at all."""

    upstream_id: str
    observation: Observation | None


class Refused(msgspec.Struct, frozen=True):
    """The upstream said no, and nothing was taken.

    Attributes:
        status: what our caller is answered.
        reason: the upstream's words.
        account: it is about our key or our quota, not about this task: queued submissions wait.
    """

    status: int
    reason: str
    account: bool


class NotTaken(msgspec.Struct, frozen=True):
    """Surely not taken, and may be sent again, not before `retry_after` seconds where the upstream named them."""

    reason: str
    retry_after: float | None


class Ambiguous(msgspec.Struct, frozen=True):
    """It may have been taken, and no answer tells: never sent again by itself."""

    reason: str


Submission = Taken | Refused | NotTaken | Ambiguous


class Shown(msgspec.Struct, frozen=True):
    """The upstream answered with a word on the task that a table knows."""

    observation: Observation


class Missing(msgspec.Struct, frozen=True):
    """`task_not_exist`, wherever it stood and with whatever HTTP status."""


class Unusable(msgspec.Struct, frozen=True):
    """Answered, and yet nothing was learnt: the other lookup route may know more.

    It counts as an answer where the deadline asks for one. `observation` is what little there is: a body that only
    names the task shows that the upstream has it; None where the body says nothing of a task.
    """

    reason: str
    status: int
    observation: Observation | None


class Unanswered(msgspec.Struct, frozen=True):
    """No answer to the question: try again later, not before `retry_after` seconds; it postpones the deadline."""

    reason: str
    status: int
    retry_after: float | None


Looked = Shown | Missing | Unusable | Unanswered


def judge_submission(response: HttpResponse, *, now: datetime) -> Submission:
    """Sorts a submission's answer as contract 4.3 does. A 2xx other than 200 is treated like 200.

    Not taken is only 429 here; what failed before anything was sent never becomes a response. A body that broke off is
    unreadable, however much of it could be read: its id may be half an id.
    """
    status, seen = response.status, _read(response)
    if OK <= status < REDIRECT:
        return _judge_ok(status, seen)
    reason = _reason(status, seen)
    if status == THROTTLED:
        return NotTaken(reason, retry_after(response, now=now))
    account = status == UNAUTHORIZED or (status == FORBIDDEN and _is_about_account(seen))
    if account:
        return Refused(BAD_GATEWAY, reason, account=True)
    if CLIENT_ERROR <= status < SERVER_ERROR and status != TIMED_OUT:
        return Refused(status, reason, account=False)
    malformed = status == SERVER_ERROR and seen is not None and word(seen.code) == INVALID_REQUEST
    if malformed or REDIRECT <= status < CLIENT_ERROR:
        return Refused(UNPROCESSABLE, reason, account=False)
    words = f": {seen.msg[:_MAX_REASON]}" if seen is not None and seen.msg else ""
    return Ambiguous(f"HTTP {status}{words}")


def judge_lookup(response: HttpResponse, *, now: datetime) -> Looked:
    """Sorts a lookup's answer.

    Unanswered are 401, 403, 408, 429, 5xx, redirects, and 2xx bodies that cannot be read: the upstream, or what stands
    before it, did not get to the question. Any other 4xx is an answer (an outage that postponed the deadline would keep
    a task open for ever) but says nothing of the task, whatever words its body has: unusable. So is an error envelope
    under a 200: `get_task_failed` is about the question, and must not end a task.
    """
    status, seen = response.status, _read(response)
    observation = observe(seen) if seen is not None else None
    if observation is not None and observation.seen == "missing":
        return Missing()
    reason = _reason(status, seen)
    if CLIENT_ERROR <= status < SERVER_ERROR and status not in {UNAUTHORIZED, FORBIDDEN, TIMED_OUT, THROTTLED}:
        return Unusable(reason, status, None)
    if not OK <= status < REDIRECT:
        return Unanswered(reason, status, retry_after(response, now=now))
    if seen is None or observation is None:
        return Unanswered(f"HTTP {status} with an unreadable body", status, None)
    if is_about_question(seen, observation):
        return Unusable(reason, status, None)
    return _judge_words(status, seen, observation)


def retry_after(response: HttpResponse, *, now: datetime) -> float | None:
    """Seconds to wait by `Retry-After` (RFC 9110 10.2.3: seconds or a date), 24 h at most; None for none or garbage."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:_MAX_HEADER]), MAX_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(value[:_MAX_HEADER])
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max((moment - now).total_seconds(), 0.0), MAX_RETRY_AFTER)


def upstream_code(response: HttpResponse) -> int | None:
    """The upstream's own number in an answer, where it gave one."""
    seen = _read(response)
    return None if seen is None else number(seen.code)


def _read(response: HttpResponse) -> Envelope | None:
    if response.truncated:
        return None
    try:
        return envelopes.parse(response.body, response.headers.get("content-type"))
    except EnvelopeError:
        return None


def _judge_ok(status: int, seen: Envelope | None) -> Submission:
    if seen is None:
        return Ambiguous(f"HTTP {status} with an unreadable body")
    if is_error(seen.code):
        return Refused(UNPROCESSABLE, _reason(status, seen), account=False)
    observation = observe(seen)
    if observation.upstream_id is None:
        words = f": {seen.msg[:_MAX_REASON]}" if seen.msg else ""
        return Ambiguous(f"HTTP {status} without a task id{words}")
    return Taken(observation.upstream_id, observation if has_word(seen) else None)


def _judge_words(status: int, seen: Envelope, observation: Observation) -> Looked:
    if observation.seen != "unknown" and has_word(seen):
        return Shown(observation)
    if not has_word(seen):
        known = observation if observation.upstream_id else None
        return Unusable(f"HTTP {status} without a status", status, known)
    disagrees = "disagreement" in observation.oddities
    return Unusable("status and state disagree" if disagrees else "a status no table knows", status, observation)


def _reason(status: int, seen: Envelope | None) -> str:
    return (seen.msg[:_MAX_REASON] if seen is not None else "") or f"HTTP {status}"


def _is_about_account(seen: Envelope | None) -> bool:
    """A 403 whose error `code` or `type` speaks of quota or balance."""
    if seen is None:
        return False
    error = seen.levels[0].get("error")
    kinds = (seen.code, error.get("type") if type(error) is dict else None, seen.levels[0].get("type"))
    words = [kind[:_MAX_ERROR_WORD].lower() for kind in kinds if isinstance(kind, str)]
    return any(part in text for part in ACCOUNT_WORDS for text in words)
