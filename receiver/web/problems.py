"""Errors as RFC 9457 problem documents, each with a stable type that leads to a page served by this program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import HTMLResponse, Response

from receiver.errors import InvalidInput, KeyBusy, ReceiverError, StoreUnavailable, Unauthorized, UpstreamRefused
from receiver.web.asgi import written

if TYPE_CHECKING:
    from starlette.requests import Request

TITLES = {
    "not-found": "Not found",
    "invalid-input": "The input is not valid",
    "unauthorized": "A valid API key is needed",
    "forbidden": "This request is not answered here",
    "conflict": "Its state forbids that",
    "too-large": "The body is too large",
    "body-timeout": "The body did not arrive",
    "not-built": "Not in this release",
    "idempotency-key-reused": "The Idempotency-Key was used with another request",
    "idempotency-key-busy": "The first request with this Idempotency-Key is under way",
    "upstream-refused": "The upstream refused the submission",
    "store-unavailable": "The store cannot commit now",
    "method-not-allowed": "Not by this method",
    "stopping": "The service is stopping",
    "internal": "An error of ours",
}
PAGES = {
    "not-found": "There is nothing of that name here, or not any more: finished tasks are kept for `retention.tasks`.",
    "invalid-input": "Each entry of `errors` names a place (`pointer` into the body, or `parameter`) and "
    "what is wrong there. Nothing was stored and nothing was sent.",
    "unauthorized": "Send `Authorization: Bearer <key>` with one of `security.api_keys`.",
    "forbidden": "Without `security.api_keys` the API answers only requests that are plainly local: their Host is "
    "localhost, 127.0.0.1 or [::1], without forwarding headers and without a foreign Origin. Set an API key.",
    "conflict": "The thing exists, and the state it is in forbids what was asked; the detail names the state.",
    "too-large": "Submissions may have `server.max_submission` bytes, all other bodies 1 MiB.",
    "body-timeout": "The body did not arrive within 30 seconds, or the connection broke. Nothing was stored.",
    "not-built": "The contract names this, and this release does not have it yet. Nothing was stored or sent.",
    "idempotency-key-reused": "A key stands for one request, as long as its task is kept. Take a new one for a new "
    "request.",
    "idempotency-key-busy": "The first request with this key has no answer yet. Try again after the time in "
    "`Retry-After`: the answer will be that of the first.",
    "upstream-refused": "The upstream said no and took nothing; its own words are in `upstream`. The task is kept as "
    "`rejected`.",
    "store-unavailable": "The database could not commit. Nothing of this request was stored; try again after the time "
    "in `Retry-After`.",
    "method-not-allowed": "The path exists, the method does not; see `Allow`.",
    "stopping": "The service is shutting down and takes nothing new. Try again after the time in `Retry-After`.",
    "internal": "A fault of this program. The log has the details under the time of the request.",
}


def problem(status: int, code: str, detail: str, *, headers: dict[str, str] | None = None, **more: Any) -> Response:
    """A problem document."""
    document = {"type": f"/docs/problems/{code}", "title": TITLES[code], "status": status, "detail": detail, **more}
    return Response(written(document), status_code=status, media_type="application/problem+json", headers=headers)


def of(error: ReceiverError) -> Response:
    """The problem document of one of our errors."""
    headers: dict[str, str] = {}
    more: dict[str, Any] = {}
    status, code = error.http_status, error.code
    if isinstance(error, StoreUnavailable):
        headers["retry-after"] = "5"
    if isinstance(error, KeyBusy):
        headers["retry-after"] = "1"
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, InvalidInput) and error.flaws:
        more["errors"] = [
            {"detail": flaw.detail}
            | ({"pointer": flaw.pointer} if flaw.pointer is not None else {})
            | ({"parameter": flaw.parameter} if flaw.parameter is not None else {})
            for flaw in error.flaws
        ]
    if isinstance(error, UpstreamRefused):
        status = error.status
        more |= {
            "task_id": error.task_id,
            "upstream": {"status": error.upstream_status, "body": error.upstream_body},
        }
    return problem(status, code if code in TITLES else "internal", str(error), headers=headers, **more)


async def page(request: Request) -> Response:
    """The page behind a problem's type."""
    code = request.path_params["code"]
    if code not in PAGES:
        return problem(404, "not-found", "there is no such kind of problem")
    title = TITLES[code]
    return HTMLResponse(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<h1>{title}</h1><p><code>{code}</code></p><p>{PAGES[code]}</p></html>"
    )
