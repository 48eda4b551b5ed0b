"""The drop-in routes as rows (contract 4.2): the paths, and what the document says of them. gateway.py answers them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from receiver.upstream import ROUTES
from receiver.web import shapes
from receiver.web.bodies import IDEMPOTENCY_KEY
from receiver.web.table import JSON, Answer, Body, Operation, Parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from receiver.web.table import Handler

FEED: Final = "/runway/feed"
TASK: Final = "/runwayml/v1/tasks/{id}"
_NAMES: Final = {
    "runway/pro/video2video": "dropInVideo2Video",
    "runwayml/v1/video_to_video": "dropInVideoToVideo",
    "runwayml/v1/image_to_video": "dropInImageToVideo",
}
_VERSION: Final = Parameter(
    "X-Runway-Version", {"type": "string", "pattern": "^[!-~]{1,100}$"}, "Wins over the configured one.", where="header"
)
_TASK_ID: Final = {"Receiver-Task-Id": "The id of our task."}
_SUBMIT: Final = """\
The upstream's own request, its own answer. Nothing in it is checked, filled in or changed but `callback_url`: yours
becomes a destination of this one task, ours takes its place. It never queues.
"""


def _ours(*statuses: int) -> list[Answer]:
    """Errors of ours, in the upstream's shape."""
    said = {
        401: "No valid API key of this service.",
        403: "No API key is configured, and the request is not plainly local.",
        408: "The body did not arrive within 30 seconds.",
        409: "The first request with this Idempotency-Key is under way.",
        413: "The body is too large.",
        422: "The callback_url or a header cannot be used, or the Idempotency-Key was used with another request.",
        429: "More requests than `server.rate_per_key` allows; or the upstream's own.",
        503: "The upstream is unreachable, no slot was free within 10 s, or the store is away. Nothing was taken.",
        504: "It may have been taken, and no answer tells: do not repeat it (`x-should-retry: false`).",
    }
    retry = {"Retry-After": "Seconds."}
    return [
        Answer(status, said[status], shapes.UpstreamError, headers=retry if status in {429, 503} else {})
        for status in statuses
    ]


def table(submit: Callable[[str], Handler], feed: Handler, task: Handler) -> list[Operation]:
    """The rows: `submit` makes the handler of a route, by its name; the handlers see to the key themselves."""
    whatever = Answer("default", "The upstream's own answer, as it came.", media="*/*", headers=_TASK_ID)
    lookup: Sequence[Answer] = [whatever, *_ours(401, 403, 503)]
    submissions = [
        Operation(
            method="POST",
            path=f"/{route}",
            handler=submit(route),
            name=_NAMES[route],
            tag="drop-in",
            summary=f"Submit as to the upstream: {route}",
            says=_SUBMIT,
            asks=[IDEMPOTENCY_KEY, _VERSION],
            takes=Body(None, "The upstream's own body.", media=(JSON,)),
            answers=[whatever, *_ours(401, 403, 504)],
            access="own",
        )
        for route in ROUTES
    ]
    return [
        *submissions,
        Operation(
            method="POST",
            path=FEED,
            handler=feed,
            name="dropInFeed",
            tag="drop-in",
            summary="Look a task up, as at the upstream",
            takes=Body(None, "The upstream's own body.", example={"task_id": "3c2e…"}),
            answers=lookup,
            access="own",
        ),
        Operation(
            method="GET",
            path=TASK,
            handler=task,
            name="dropInTask",
            tag="drop-in",
            summary="Look a task up, as at the upstream",
            asks=[_VERSION],
            answers=lookup,
            access="own",
        ),
    ]
