"""The callback door as the document shows it (contract 4.1).

The Front finds the way there by the prefix, so the rows have no handler.
"""

from __future__ import annotations

from receiver.web import error_shapes, shapes
from receiver.web.table import Answer, Body, Operation

_SAYS = """\
Also under the path of `server.public_url`, and with anything appended after a `/` or a `?`. Up to 1 MiB, inflated;
`Content-Encoding: gzip` is undone. A body that cannot be understood is kept raw, and the task is looked up at once.
"""
_NO_TOKEN = Answer(
    404,
    "The token is forged, altered, expired or of an unknown task: one answer for all of them.",
    error_shapes.Problem,
    "application/problem+json",
)
_AWAY = Answer(
    503,
    "The store cannot commit now.",
    error_shapes.Problem,
    "application/problem+json",
    headers={"Retry-After": "Seconds."},
)
_KEPT = Answer(
    200, "The observation is on disk; also for duplicates, late ones and what is unreadable.", shapes.Received
)
_BODY = Body(
    None,
    "The upstream's envelope, in whatever shape it has today.",
    required=False,
    media=("application/json", "application/x-www-form-urlencoded", "text/plain"),
)


def table() -> list[Operation]:
    """Its rows."""
    taken = [
        _KEPT,
        _NO_TOKEN,
        Answer(408, "The body did not arrive within 30 seconds.", media=""),
        Answer(413, "The body is too large; the task is looked up at once.", media=""),
        _AWAY,
    ]
    return [
        *(
            Operation(
                method=method,
                path="/callbacks/{token}",
                handler=None,
                name=name,
                tag="callbacks",
                summary="Call back",
                says=_SAYS,
                takes=_BODY,
                answers=taken,
                access="open",
            )
            for method, name in (("POST", "callBack"), ("PUT", "callBackByPut"))
        ),
        Operation(
            method="GET",
            path="/callbacks/{token}",
            handler=None,
            name="knock",
            tag="callbacks",
            summary="Try a callback URL",
            says="Changes nothing, and has the task looked up, at most every 5 seconds.",
            answers=[
                Answer(200, "The token is good.", shapes.Received),
                _NO_TOKEN,
                Answer(503, "The store cannot commit now.", media="", headers={"Retry-After": "Seconds."}),
            ],
            access="open",
        ),
    ]
