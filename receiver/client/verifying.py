"""Is this webhook ours? The signature of Standard Webhooks 1.0.0, checked; and what it says, in any of the formats.

The law: nothing of a webhook is believed before its signature is, made by one of the given secrets over the very bytes
that came. Signatures are compared as text, in constant time: base64 has spare bits. It is total: SecretError is about
your secrets, Unverified about what came, and nothing else comes out.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import orjson

from receiver import signing
from receiver.errors import ReceiverError, SecretError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TOLERANCE: Final = timedelta(minutes=5)
"""How old, or how far ahead, a signature may be (Standard Webhooks 1.0.0, "Verifying timestamps", leaves it open)."""

Flaw = Literal["missing", "malformed", "forged", "stale", "unreadable"]
Format = Literal["standard", "envelope", "cloudevents"]

_TIMESTAMP: Final = re.compile(r"[0-9]{1,11}")
_NEEDED: Final = ("webhook-id", "webhook-timestamp", "webhook-signature")


class Headers(Protocol):
    """Anything with `items()`: a dict, and what frameworks have in its place."""

    def items(self) -> Iterable[tuple[Any, Any]]:
        """Names and values, as text or as bytes."""


class Unverified(ReceiverError):
    """What came is not to be believed; answer 400 and drop it.

    Attributes:
        flaw: `missing` (a header), `malformed` (the timestamp), `forged` (no secret made the signature), `stale` (well
            signed, but too long ago or ahead of the clock), `unreadable` (well signed, but none of the formats).
    """

    http_status = 400
    code = "unverified"

    def __init__(self, detail: str, flaw: Flaw) -> None:
        super().__init__(detail)
        self.flaw = flaw


@dataclass(frozen=True, slots=True)
class Event:
    """A webhook that was verified.

    Attributes:
        id: the webhook-id: the same in every attempt and replay, so drop one that you have seen before.
        type: `task.succeeded`, …; None in the format `envelope`, which has no word for it.
        data: what the event is about; in the format `envelope` the upstream's own task object.
        timestamp: when it happened; None in the format `envelope`.
        sent_at: when this attempt was signed.
        format: in which it came.
        document: the whole body.
    """

    id: str
    type: str | None
    data: Any
    timestamp: datetime | None
    sent_at: datetime
    format: Format
    document: dict[str, Any]


def verify(
    headers: Headers | Iterable[tuple[Any, Any]],
    body: bytes | str,
    secrets: str | Sequence[str],
    *,
    tolerance: timedelta | float = TOLERANCE,
    now: datetime | None = None,
) -> Event:
    """The event of a webhook that one of the secrets signed.

    Args:
        headers: of the request, in any case; a mapping, or pairs.
        body: as it came, before any parsing.
        secrets: `whsec_…`, one or several; any of them will do (for a rotation, the old one and the new one).
        tolerance: how old, or how far ahead of `now`, the signature may be; a number is of seconds.
        now: aware; the clock's time unless given.

    Raises:
        Unverified: it is not to be believed.
        SecretError: there is no secret, or one is none.
        ValueError: `now` is naive.
    """
    keys = _keys(secrets)
    if now is not None and now.utcoffset() is None:
        raise ValueError(f"{now!r} has no time zone: times here are aware")
    given = _given(headers)
    missing = [name for name in _NEEDED if not given.get(name)]
    if missing:
        why = ": it is not signed; has its destination `secrets`?" if missing == ["webhook-signature"] else ""
        raise Unverified(f"the request has no header {' and no '.join(missing)}{why}", "missing")
    event_id, stamp, signatures = (given[name] for name in _NEEDED)
    if not _TIMESTAMP.fullmatch(stamp):
        raise Unverified("webhook-timestamp is no number of seconds", "malformed")
    raw = _bytes(body) if isinstance(body, str) else bytes(body)
    if not _is_signed(keys, _bytes(f"{event_id}.{stamp}.") + raw, signatures):
        raise Unverified(
            "none of the secrets made this signature: it is forged, the secret is another, or the body was changed on "
            "its way (it must be the bytes that came, not a document that was written again)",
            "forged",
        )
    sent_at = datetime.fromtimestamp(int(stamp), UTC)
    within = tolerance if isinstance(tolerance, timedelta) else timedelta(seconds=tolerance)
    _check_age(sent_at, within, now or datetime.fromtimestamp(time.time(), UTC))
    return _read(event_id, sent_at, raw)


def _keys(secrets: str | Sequence[str]) -> list[bytes]:
    listed = [secrets] if isinstance(secrets, str) else list(secrets)
    if not listed:
        raise SecretError("there is no secret to verify by")
    for secret in listed:
        signing.check_secret(secret)
    return [base64.b64decode(secret.removeprefix("whsec_") + "==") for secret in listed]


def _given(headers: Headers | Iterable[tuple[Any, Any]]) -> dict[str, str]:
    """The headers with their names in lower case; a signature that stands there twice counts as a list of both."""
    pairs = headers.items() if hasattr(headers, "items") else headers
    found: dict[str, str] = {}
    for name, value in pairs:
        lower, words = _text(name).lower(), _text(value).strip()
        found[lower] = f"{found[lower]} {words}" if lower == "webhook-signature" and lower in found else words
    return found


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # what is no text is no signature either, and no crash


def _is_signed(keys: list[bytes], message: bytes, signatures: str) -> bool:
    made = [b"v1," + base64.b64encode(hmac.new(key, message, hashlib.sha256).digest()) for key in keys]
    given = [_bytes(one) for one in signatures.split()]
    # Every pair is compared: the time it takes does not show which it was.
    return sum(hmac.compare_digest(mine, theirs) for mine in made for theirs in given) > 0


def _check_age(sent_at: datetime, tolerance: timedelta, now: datetime) -> None:
    age = now - sent_at
    if abs(age) > tolerance:
        seconds = abs(age.total_seconds())
        where = "ago" if age > timedelta(0) else "ahead of this clock"
        raise Unverified(
            f"it is well signed, but was sent {seconds:.0f} s {where}, and {tolerance.total_seconds():.0f} s are "
            "tolerated: it is a recording that is played again, or one of the clocks is wrong",
            "stale",
        )


def _read(event_id: str, sent_at: datetime, raw: bytes) -> Event:
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        document = None
    match document:
        case {"specversion": str(), "type": str(kind), "time": str(at), "data": data}:
            form: Format = "cloudevents"
        case {"type": str(kind), "timestamp": str(at), "data": data}:
            form = "standard"
        case {"code": int(), "msg": str(), "data": data}:
            return Event(event_id, None, data, None, sent_at, "envelope", document)
        case _:
            raise Unverified("it is well signed, and its body is none of the formats", "unreadable")
    try:
        timestamp = datetime.fromisoformat(at)
    except ValueError:
        raise Unverified("it is well signed, and its time is none", "unreadable") from None
    return Event(event_id, kind, data, timestamp, sent_at, form, document)
