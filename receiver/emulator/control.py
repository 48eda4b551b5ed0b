"""The control plane under `/_emulator/`: what a test in another process asks of the emulator and does to it.

GET  /_emulator/report                 the ledger
GET  /_emulator/tasks                  every task
POST /_emulator/tasks/{id}/callback    {"kind"?, "shape"?, "body"?, "content_type"?, "url"?}: send one now
POST /_emulator/tasks/{id}/end         {"outcome"?, "reason"?}: end the render now
POST /_emulator/options                members of EmulatorOptions, or words: changed for tasks to come
POST /_emulator/reset                  forget everything; {"seed": …} and other options may come with it
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, cast

import orjson
from starlette.responses import Response
from starlette.routing import Route

from receiver.emulator import refusals
from receiver.emulator import vocabulary as words
from receiver.emulator.ledger import Refused
from receiver.emulator.script import changed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from receiver.emulator.app import Emulator
    from receiver.emulator.model import Sent, Task

_CALLBACK_MEMBERS: Final = frozenset({"kind", "shape", "body", "content_type", "url"})
_END_MEMBERS: Final = frozenset({"outcome", "reason"})


def routes(emulator: Emulator) -> list[Route]:
    """The control plane of one emulator."""

    async def report(_request: Request) -> Response:
        return _json(emulator.report())

    async def tasks(_request: Request) -> Response:
        return _json([task_json(task) for task in emulator.tasks.values()])

    async def callback(request: Request) -> Response:
        return _json(asdict(await _call(emulator, request)))

    async def end(request: Request) -> Response:
        said = await _strings(request, _END_MEMBERS)
        outcome = said.get("outcome")
        if outcome not in {None, "succeed", "fail", "cancel"}:
            raise ValueError(f"outcome: {outcome!r} is not one of succeed, fail, cancel")
        ended = emulator.end(
            _task(emulator, request).id, outcome=cast("words.Outcome | None", outcome), reason=said.get("reason")
        )
        return _json(task_json(ended))

    async def options(request: Request) -> Response:
        return _json(asdict(emulator.configure(**await _object(request))))

    async def reset(request: Request) -> Response:
        changes = await _object(request)
        await emulator.reset(changed(emulator.options, changes))
        return _json(asdict(emulator.options))

    return [
        Route("/_emulator/report", report, methods=["GET"]),
        Route("/_emulator/tasks", tasks, methods=["GET"]),
        Route("/_emulator/tasks/{id}/callback", _judged(callback), methods=["POST"]),
        Route("/_emulator/tasks/{id}/end", _judged(end), methods=["POST"]),
        Route("/_emulator/options", _judged(options), methods=["POST"]),
        Route("/_emulator/reset", _judged(reset), methods=["POST"]),
    ]


def wrong_path(emulator: Emulator) -> Callable[[Request, Exception], Awaitable[Response]]:
    """What a path or method that is not known is answered: HTML, not JSON (V6)."""

    async def handle(request: Request, _error: Exception) -> Response:
        reason = f"{request.method} {request.url.path} is no route of this upstream"
        emulator.ledger.refuse(Refused("?", 404, "wrong-path", reason))
        answer = refusals.html(404)
        return Response(answer.body, 404, media_type="text/html")

    return handle


def task_json(task: Task) -> dict[str, Any]:
    """A task as plain JSON; its bearer key stays out."""
    view = task.view(time.monotonic())
    return {
        "id": task.id,
        "number": task.number,
        "route": task.route,
        "phase": view.phase,
        "progress": view.progress,
        "prompt": task.prompt,
        "callback_url": task.callback_url,
        "received": task.received,
        "lookups": task.lookups,
        "callbacks": [asdict(sent) for sent in task.callbacks],
    }


async def _call(emulator: Emulator, request: Request) -> Sent:
    said = await _strings(request, _CALLBACK_MEMBERS)
    kind = said.pop("kind", "ok")
    if kind not in words.CALLBACK_KINDS:
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(words.CALLBACK_KINDS)}")
    shape = said.get("shape")
    if shape is not None and shape not in words.CALLBACK_SHAPES:
        raise ValueError(f"shape: {shape!r} is not one of {', '.join(words.CALLBACK_SHAPES)}")
    body = said.pop("body", None)
    return await emulator.call(_task(emulator, request).id, kind, body=None if body is None else body.encode(), **said)


def _task(emulator: Emulator, request: Request) -> Task:
    return emulator.tasks[request.path_params["id"]]


async def _object(request: Request) -> dict[str, Any]:
    content = await request.body()
    found = orjson.loads(content) if content else {}
    if not isinstance(found, dict):
        raise ValueError("the body must be a JSON object")  # noqa: TRY004 -- the caller's mistake, not a type of ours
    return found


async def _strings(request: Request, members: frozenset[str]) -> dict[str, str]:
    found = await _object(request)
    for name, value in found.items():
        if name not in members:
            raise ValueError(f"unknown member {name!r} (known: {', '.join(sorted(members))})")
        if not isinstance(value, str):
            raise ValueError(f"{name}: must be a string")  # noqa: TRY004 -- likewise
    return found


def _judged(handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """The handler, with its complaints as 400 and an unknown task as 404."""

    async def judged(request: Request) -> Response:
        try:
            return await handle(request)
        except ValueError as error:  # orjson's own is one, too
            return _json({"error": str(error)}, 400)
        except KeyError as error:
            return _json({"error": f"there is no task {error}"}, 404)

    return judged


def _json(body: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")
