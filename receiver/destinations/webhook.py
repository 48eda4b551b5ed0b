"""The kind `webhook`: one signed POST per Standard Webhooks 1.0.0, and how its answer is judged.

The body is put together around the event's stored JSON, so it is the same bytes in every attempt; only the moment and
the signature are fresh. Any 2xx is success, whatever its body does. An answer that asks to stop (410, or the header
`webhook-delivery: abort-message`) ends the delivery. Everything else is tried again on the schedule, other 4xx
included: receivers get deployed and mended.
"""

from __future__ import annotations

import re
from datetime import UTC
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from pydantic import AfterValidator, Field

from receiver import __version__, retry, signing
from receiver.destinations.base import Kind, Options, Steps, http_url
from receiver.errors import SecretError
from receiver.retry import Result
from receiver.wire import HttpRequest

if TYPE_CHECKING:
    from datetime import datetime

    from receiver.records import Event
    from receiver.wire import HttpResponse

_USER_AGENT: Final = f"receiver/{__version__}"
_CONTENT_TYPES: Final = {
    "standard": "application/json",
    "envelope": "application/json",
    "cloudevents": "application/cloudevents+json",
}
_THROTTLED: Final = frozenset({408, 425, 429, 503})
_GONE: Final = 410
_NO_HOME: Final = "/receiver"

_RESERVED: Final = frozenset(
    {
        *("host", "user-agent", "accept-encoding", "expect", "date", "via"),
        *("content-type", "content-length", "content-encoding"),
        *("connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-connection"),
    }
)
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2: a token
_HEADER_VALUE: Final = re.compile(r"(?:[!-~](?:[\t -~]*[!-~])?)?")


def _checked_secrets(secrets: tuple[str, ...]) -> tuple[str, ...]:
    for number, secret in enumerate(secrets, 1):
        try:
            signing.check_secret(secret)
        except SecretError as error:
            raise ValueError(f"secret {number}: {error}") from None
    return secrets


def _checked_headers(headers: dict[str, str]) -> dict[str, str]:
    seen: set[str] = set()
    for name, value in headers.items():
        lower = name.lower()
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no header name: letters, digits and - are wanted")
        if lower in _RESERVED or lower.startswith("webhook-"):
            raise ValueError(f"the header {name} is set by this program")
        if lower in seen:
            raise ValueError(f"the header {name} stands there twice")
        if not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"the value of {name} is not plain ASCII on one line, without spaces around it")
        seen.add(lower)
    return headers


class WebhookOptions(Options):
    """The keys of kind `webhook` (contract section 3)."""

    url: Annotated[str, AfterValidator(http_url)]
    secrets: Annotated[tuple[str, ...], AfterValidator(_checked_secrets)] = ()
    headers: Annotated[dict[str, str], AfterValidator(_checked_headers)] = Field(default_factory=dict)
    format: Literal["standard", "envelope", "cloudevents"] = "standard"


def flow(event: Event, options: WebhookOptions, *, now: datetime, home: str | None = None) -> Steps:
    """One POST. `home` is what a CloudEvent names as its source.

    Raises:
        ValueError: `now` is naive.
    """
    if now.utcoffset() is None:
        raise ValueError(f"{now!r} has no time zone: times here are aware")
    body = _body(event, options.format, home or _NO_HOME)
    headers = {
        **options.headers,
        "webhook-id": event.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "content-type": _CONTENT_TYPES[options.format],
        "user-agent": _USER_AGENT,
    }
    if options.secrets:
        headers["webhook-signature"] = signing.sign(options.secrets, event.id, now, body)
    response = yield HttpRequest("POST", options.url, headers, body)
    return judge(response, now=now)


def judge(response: HttpResponse, *, now: datetime) -> Result:
    """What an answer means; the reason names its status."""
    status = response.status
    answered = f"it answered {status}"
    if response.is_success:
        return Result("ok", f"{answered}, its body broke off or was long" if response.truncated else answered)
    if status == _GONE:
        return Result("permanent", f"{answered}: it is gone, and paused", pause=True)
    if response.headers.get("webhook-delivery", "").strip().lower() == "abort-message":
        return Result("permanent", f"{answered} and webhook-delivery: abort-message")
    if status in _THROTTLED:
        wait = retry.retry_after(response.headers.get("retry-after"), now=now)
        return Result("throttled", answered if wait is None else f"{answered} with Retry-After", retry_after=wait)
    if status // 100 == 3:  # noqa: PLR2004 -- the class of redirects
        return Result("transient", f"{answered}: a redirect is never followed, set the URL to where it leads")
    return Result("transient", answered)


class _Envelope(msgspec.Struct):
    """The one member of an event's data that the format `envelope` sends; its bytes are not touched."""

    envelope: msgspec.Raw = msgspec.Raw(b"")


def _body(event: Event, form: Literal["standard", "envelope", "cloudevents"], source: str) -> bytes:
    at = event.created_at.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
    if form == "standard":
        return f'{{"type":"{event.type}","timestamp":"{at}","data":{event.data_json}}}'.encode()
    if form == "cloudevents":
        head = {"specversion": "1.0", "id": event.id, "type": event.type, "source": source}
        head |= {"subject": event.of_task} if event.of_task else {}  # it must not be empty (CloudEvents 1.0, 3.1)
        head |= {"time": at, "datacontenttype": "application/json"}
        return msgspec.json.encode(head)[:-1] + f',"data":{event.data_json}}}'.encode()
    envelope = bytes(msgspec.json.decode(event.data_json, type=_Envelope).envelope)
    # An operator event has no envelope: it tells of no task object. It must not look like a success.
    return envelope or f'{{"code":500,"msg":"{event.type}","data":{event.data_json}}}'.encode()


KIND: Final = Kind("webhook", WebhookOptions, flow, secrets={"secrets": True})
