"""The drop-in routes (contract 4.2): change the base URL, keep your code. Translates, decides nothing.

The upstream's own bodies and statuses go through as they came, with `Receiver-Task-Id` added. Our own errors have the
upstream's shape, `{"error": {"message", "type", "param", "code"}}`. Client libraries repeat a POST by themselves after
a 5xx; `x-should-retry: false` tells those that honour it where a repeat could be paid twice.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
from starlette.responses import Response

from receiver.errors import (
    AnsweredBefore,
    AnswerUnknown,
    InvalidInput,
    KeyBusy,
    NotFound,
    ReceiverError,
    StoreUnavailable,
    Unauthorized,
    UpstreamAway,
)
from receiver.ids import TaskId
from receiver.logs import redact
from receiver.submit import Given, asked_under, forget, holding, keep_answer
from receiver.upstream import ROUTES
from receiver.upstream.base import task_request, usable_id
from receiver.web import dropin
from receiver.web.asgi import masked, read_body
from receiver.web.limits import RateLimited
from receiver.wire import HttpRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request

    from receiver.records import Task
    from receiver.relay import Relay, Relayed
    from receiver.store import Store
    from receiver.submit import Asked, Through
    from receiver.web.guard import Guard
    from receiver.web.table import Operation
    from receiver.wire import HttpResponse

    Handler = Callable[[Request], Awaitable[Response]]

MAX_BODY = 1024 * 1024
MAX_QUERY = 4096
NO_REPEAT = {"x-should-retry": "false"}
_GOES_BACK = ("retry-after", "retry-after-ms", "x-should-retry")
"""What client libraries go by."""


@dataclass
class Gateway:
    """The handlers, and what they translate for."""

    store: Store
    through: Through
    relay: Relay
    guard: Guard
    max_submission: int

    def table(self) -> list[Operation]:
        """The route table."""
        guarded = self._guarded
        return dropin.table(lambda name: guarded(self._submitting(name)), guarded(self.feed), guarded(self.task))

    def _guarded(self, handler: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            try:
                self.guard.check(request)
                return await handler(request)
            except ReceiverError as error:
                return problem(error)

        return handle

    # -- submissions -----------------------------------------------------------------------------------------------

    def _submitting(self, route: str) -> Handler:
        async def submit(request: Request) -> Response:
            return await self._submit(route, request)

        return submit

    async def _submit(self, route: str, request: Request) -> Response:
        body = await read_body(request.scope, request.receive, self.max_submission)
        query = _query(request)
        asked = asked_under(request.headers.get("idempotency-key"), f"/{route}{query}", body)
        with holding(self.through.sender.held, asked):
            try:
                passed = await self.through.submit(route, Given(body, _headers(request), query), asked)
            except AnsweredBefore as known:
                return await self._again(route, known, asked)
            except AnswerUnknown as error:
                answer = problem(error)
                with suppress(StoreUnavailable):
                    kind, said = answer.media_type, bytes(answer.body)
                    await keep_answer(self.store, asked, error.task_id, answer.status_code, kind, said)
                return answer
        return _as_it_came(passed.response, passed.task_id)

    async def _again(self, route: str, known: AnsweredBefore, asked: Asked | None) -> Response:
        """A repeat under its Idempotency-Key: the first answer's bytes; where none were kept, what the task tells."""
        replayed = {"idempotency-replayed": "true", "receiver-task-id": known.task_id}
        if known.status is not None:
            kind = {"content-type": known.content_type} if known.content_type else {}
            no_repeat = NO_REPEAT if known.status == AnswerUnknown.http_status else {}
            return Response(_unsecret(known.status, known.body), known.status, {**kind, **replayed, **no_repeat})
        task = await self.store.read(lambda connection: self.store.tasks.get(connection, TaskId(known.task_id)))
        if task is not None and task.state == "rejected":  # nothing was taken: it may, and should, come again
            await forget(self.store, asked, known.task_id)
        return _from_task(route, task, replayed)

    # -- lookups ---------------------------------------------------------------------------------------------------

    async def feed(self, request: Request) -> Response:
        """`POST /runway/feed`."""
        body = await read_body(request.scope, request.receive, MAX_BODY)
        try:
            named = usable_id(msgspec.json.decode(body, type=_Feed).task_id)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            named = None  # the upstream will say what is wrong with it
        question = HttpRequest("POST", dropin.FEED + _query(request), _headers(request), body)
        return _relayed(await self.relay.look_up("feed", named, question))

    async def task(self, request: Request) -> Response:
        """`GET /runwayml/v1/tasks/{id}`."""
        upstream_id: str = request.path_params["id"]
        if not upstream_id.strip("."):
            raise NotFound("this is no id")  # on its way it would be read as another path
        asked = task_request(upstream_id)
        headers = {name: value for name, value in _headers(request).items() if name != "content-type"}
        question = HttpRequest(asked.method, asked.url + _query(request), headers)
        return _relayed(await self.relay.look_up("task", usable_id(upstream_id), question))


class _Feed(msgspec.Struct):
    task_id: str | None = None


# -- translating ---------------------------------------------------------------------------------------------------


def _headers(request: Request) -> dict[str, str]:
    """What of a caller's headers goes on: the kind of its body, and its version of the upstream's language."""
    kept = {"content-type": request.headers.get("content-type", "application/json")[:200]}
    version = request.headers.get("x-runway-version", "").strip()
    if version:
        kept["x-runway-version"] = version[:100]
    if not all(value.isascii() and value.isprintable() for value in kept.values()):
        raise InvalidInput("content-type and x-runway-version are plain ASCII on one line")
    return kept


def _query(request: Request) -> str:
    """What stands behind the path, as it came."""
    query = request.scope["query_string"].decode("latin-1")
    if len(query) > MAX_QUERY or not (query.isascii() and query.isprintable()):
        raise InvalidInput(f"the query is not plain ASCII, or has more than {MAX_QUERY} characters")
    return f"?{query}" if query else ""


def _as_it_came(response: HttpResponse, task_id: str | None) -> Response:
    headers = {name: response.headers[name] for name in _GOES_BACK if name in response.headers}
    if task_id is not None:
        headers["receiver-task-id"] = task_id
    answer = Response(_unsecret(response.status, response.body), response.status, headers)
    if "content-type" in response.headers:
        answer.headers["content-type"] = response.headers["content-type"]
    return answer


def _unsecret(status: int, body: bytes) -> bytes:
    """The body as it came; of an error one without our key or a callback token, which some upstreams repeat."""
    if status < 300:  # noqa: PLR2004 -- 2xx
        return body
    text = body.decode("utf-8", "surrogateescape")
    clean = redact(text)
    return body if clean == text else clean.encode("utf-8", "surrogateescape")


def _relayed(relayed: Relayed) -> Response:
    return _as_it_came(relayed.response, relayed.task_id)


def _from_task(route: str, task: Task | None, headers: Mapping[str, str]) -> Response:
    """What a task tells of a submission whose answer was lost with the process that had it."""
    if task is None or task.upstream_id is None:
        if task is not None and task.state == "rejected":
            return problem(UpstreamAway(task.msg, task.id, 1.0), headers)
        return problem(AnswerUnknown("it may have been taken, do not repeat it", headers["receiver-task-id"]), headers)
    taken: dict[str, Any] = {"id": task.upstream_id}
    if ROUTES[route].feed_first:
        taken = {"code": 200, "msg": "success", "data": {"task_id": task.upstream_id}}
    return Response(orjson.dumps(taken), 200, dict(headers), "application/json")


def problem(error: ReceiverError, more: Mapping[str, str] | None = None) -> Response:
    """An error of ours in the upstream's shape (upstream.md 1.1, E1)."""
    headers = dict(more or {})
    param, said = "", str(error)
    match error:
        case UpstreamAway():
            headers["retry-after"] = str(max(1, round(error.retry_after)))
        case AnswerUnknown():
            headers |= NO_REPEAT
        case StoreUnavailable():
            headers["retry-after"], said = "5", error.outside
        case RateLimited():
            headers["retry-after"] = str(error.retry_after)
        case KeyBusy():
            headers["retry-after"] = "1"
        case Unauthorized():
            headers["www-authenticate"] = "Bearer"
        case InvalidInput() if error.flaws and error.flaws[0].pointer:
            param = error.flaws[0].pointer.rpartition("/")[2]
    task_id = getattr(error, "task_id", None)
    if task_id:
        headers["receiver-task-id"] = task_id
    words = {"message": said, "type": "receiver_error", "param": param, "code": error.code}
    body = masked(orjson.dumps({"error": words}))
    return Response(body, error.http_status, headers, "application/json")
