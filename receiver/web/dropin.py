"""The drop-in routes as rows (contract 4.2): the paths, and what the document says of them. gateway.py answers them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from receiver.upstream import ROUTES
from receiver.web import error_shapes
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
_SUBMIT: Final = """\
The upstream's own request, its own answer. Nothing in it is checked, filled in or changed but `callback_url`: yours
becomes a destination of this one task, ours takes its place. It never queues.
"""


_WHATEVER: Final = Answer(
    "default",
    "The upstream's own answer, as it came. Or an error of this service, in the upstream's shape: 408 and 413 (the "
    "body), 409 and 422 (the Idempotency-Key, the callback_url), 429 and 503 with `Retry-After` (nothing was taken).",
    media="*/*",
    headers={"Receiver-Task-Id": "The id of our task."},
)
_NO_KEY: Final = Answer(401, "No valid API key of this service.", error_shapes.UpstreamError)
_NOT_LOCAL: Final = Answer(403, "No key is configured, and it is not plainly local.", error_shapes.UpstreamError)
_UNKNOWN: Final = Answer(
    504,
    "It may have been taken, and no answer tells: do not repeat it.",
    error_shapes.UpstreamError,
    headers={"X-Should-Retry": "`false`", "Receiver-Task-Id": "The id of our task."},
)


def table(submit: Callable[[str], Handler], feed: Handler, task: Handler) -> list[Operation]:
    """The rows: `submit` makes the handler of a route, by its name; the handlers see to the key themselves."""
    lookup: Sequence[Answer] = [_WHATEVER, _NO_KEY, _NOT_LOCAL]
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
            answers=[*lookup, _UNKNOWN],
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
