"""Errors as RFC 9457 problem documents, each with a stable type that leads to a page served by this program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import Response

from receiver.errors import (
    AnswerUnknown,
    InvalidInput,
    KeyBusy,
    ReceiverError,
    StoreUnavailable,
    Unauthorized,
    UpstreamRefused,
)
from receiver.web.asgi import written
from receiver.web.limits import RateLimited

MEDIA = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem.

    Attributes:
        status: what is answered; of `upstream-refused` the status is the upstream's own where that is a 4xx.
        says: what it means and what to do, for its page; words in backticks are names.
        headers: that come with it.
    """

    status: int
    title: str
    says: str
    headers: tuple[str, ...] = ()


KINDS: Final[dict[str, Kind]] = {
    "not-found": Kind(
        404,
        "Not found",
        "There is nothing of that name here, or not any more: finished tasks are kept for `retention.tasks`.",
    ),
    "invalid-input": Kind(
        422,
        "The input is not valid",
        "Each entry of `errors` names a place (`pointer` into the body, or `parameter`) and what is wrong there. "
        "Nothing was stored and nothing was sent.",
    ),
    "unauthorized": Kind(
        401,
        "A valid API key is needed",
        "Send `Authorization: Bearer <key>` with one of `security.api_keys`.",
        ("WWW-Authenticate",),
    ),
    "forbidden": Kind(
        403,
        "This request is not answered here",
        "Without `security.api_keys` the API answers only requests that are plainly local: their Host is localhost, "
        "127.0.0.1 or [::1], without forwarding headers and without a foreign Origin. Set an API key.",
    ),
    "rate-limited": Kind(
        429,
        "Too many requests",
        "More requests came with this API key than `server.rate_per_key` allows, or too many with a wrong key from "
        "this address. Nothing was done; try again after the time in `Retry-After`.",
        ("Retry-After",),
    ),
    "conflict": Kind(
        409,
        "Its state forbids that",
        "The thing exists, and the state it is in forbids what was asked; the detail names the state.",
    ),
    "too-large": Kind(
        413,
        "The body is too large",
        "Submissions may have `server.max_submission` bytes, all other bodies 1 MiB.",
    ),
    "body-timeout": Kind(
        408,
        "The body did not arrive",
        "The body did not arrive within 30 seconds, or the connection broke. Nothing was stored.",
    ),
    "idempotency-key-reused": Kind(
        422,
        "The Idempotency-Key was used with another request",
        "A key stands for one request, as long as its task is kept. Take a new one for a new request.",
    ),
    "idempotency-key-busy": Kind(
        409,
        "The first request with this Idempotency-Key is under way",
        "The first request with this key has no answer yet. Try again after the time in `Retry-After`: the answer will "
        "be that of the first.",
        ("Retry-After",),
    ),
    "upstream-refused": Kind(
        422,
        "The upstream refused the submission",
        "The upstream said no and took nothing; its own words are in `upstream`. The task is kept as `rejected`. The "
        "status is the upstream's own where that is a 4xx; what is about this service's account is a 502.",
    ),
    "store-unavailable": Kind(
        503,
        "The store cannot commit now",
        "The database could not commit. Nothing of this request was stored; try again after the time in `Retry-After`.",
        ("Retry-After",),
    ),
    "submission-ambiguous": Kind(
        504,
        "Nobody can tell whether it was stored",
        "The database went away in the middle of a commit. The task may be there, and is then sent later: ask for it "
        "by the id in `Receiver-Task-Id`, or repeat the request under the same Idempotency-Key. Without one, do not "
        "repeat it: it could be paid twice.",
        ("X-Should-Retry", "Receiver-Task-Id"),
    ),
    "method-not-allowed": Kind(
        405,
        "Not by this method",
        "The path exists, the method does not; see `Allow`.",
        ("Allow",),
    ),
    "internal": Kind(
        500,
        "An error of ours",
        "A fault of this program. The log has the details, under the `X-Request-Id` of the answer.",
    ),
}
"""Every kind; the name is the end of its type, and of the path of its page."""


def problem(status: int, code: str, detail: str, *, headers: dict[str, str] | None = None, **more: Any) -> Response:
    """A problem document."""
    document = {
        "type": f"/docs/problems/{code}",
        "title": KINDS[code].title,
        "status": status,
        "detail": detail,
        **more,
    }
    return Response(written(document), status_code=status, media_type=MEDIA, headers=headers)


def headers_of(error: ReceiverError) -> dict[str, str]:
    """The headers that an error of ours comes with, whatever shape its document has."""
    match error:
        case Unauthorized():
            return {"www-authenticate": "Bearer"}
        case StoreUnavailable():
            return {"retry-after": "5"}
        case AnswerUnknown():
            return {"x-should-retry": "false", "receiver-task-id": error.task_id}
        case KeyBusy():
            return {"retry-after": "1"}
        case RateLimited():
            return {"retry-after": str(error.retry_after)}
        case _:
            return {}


def of(error: ReceiverError) -> Response:
    """The problem document of one of our errors."""
    more: dict[str, Any] = {}
    status, code = error.http_status, error.code
    if isinstance(error, InvalidInput) and error.flaws:
        more["errors"] = [
            {"detail": flaw.detail}
            | ({"pointer": flaw.pointer} if flaw.pointer is not None else {})
            | ({"parameter": flaw.parameter} if flaw.parameter is not None else {})
            for flaw in error.flaws
        ]
    if isinstance(error, AnswerUnknown):
        more["task_id"] = error.task_id
    if isinstance(error, UpstreamRefused):
        status = error.status
        more |= {
            "task_id": error.task_id,
            "upstream": {"status": error.upstream_status, "body": error.upstream_body},
        }
    words = error.outside if isinstance(error, StoreUnavailable) else str(error)
    return problem(status, code if code in KINDS else "internal", words, headers=headers_of(error), **more)
