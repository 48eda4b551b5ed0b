"""The API under `/api/v1` (contract 4.3): translates between HTTP and the verbs, decides nothing."""

from __future__ import annotations

import asyncio
import base64
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.responses import Response
from starlette.routing import Route

from receiver import lifecycle
from receiver.errors import Flaw, InvalidInput, NotBuilt, NotFound, ReceiverError
from receiver.ids import TaskId
from receiver.ingest import Wake, stamp
from receiver.submit import Adopt, Cancel
from receiver.upstream import ROUTES
from receiver.upstream.base import usable_id
from receiver.web import problems, views
from receiver.web.asgi import read_body, written

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request

    from receiver.ingest import After, Rulebook
    from receiver.records import Task
    from receiver.store import Store
    from receiver.submit import Submitter
    from receiver.web.guard import Guard

MAX_BODY = 1024 * 1024
MAX_WAIT = 60.0
MAX_DEPTH = 100
"""Levels of `input` and of `metadata`; what stands deeper could be read, and not be written again."""
DEFAULT_LIMIT, MAX_LIMIT = 50, 200
RECHECK_FOR = 1.0
"""Seconds between looks at a task somebody waits for: another process may have moved it."""
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


M = TypeVar("M", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SubmitBody(_Strict):
    """The body of `POST /tasks`."""

    route: str
    input: dict[str, Any]
    metadata: dict[str, Any] | None = None
    destinations: list[str] | None = None
    callback_url: str | None = None


class AdoptBody(_Strict):
    """The body of `POST /tasks/{id}/adopt`."""

    upstream_id: str


@dataclass
class Api:
    """The handlers, and what they translate for."""

    store: Store
    submitter: Submitter
    rules: Rulebook
    after: After
    guard: Guard
    clock: Callable[[], datetime]
    max_submission: int
    destinations: frozenset[str]
    lookup_for: float

    def routes(self) -> list[Route]:
        """The route table."""
        table: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("POST", "/tasks", self.submit),
            ("GET", "/tasks", self.list_tasks),
            ("GET", "/tasks/{id}", self.show),
            ("GET", "/tasks/{id}/timeline", self.timeline),
            ("POST", "/tasks/{id}/refresh", self.refresh),
            ("POST", "/tasks/{id}/cancel", self.cancel),
            ("POST", "/tasks/{id}/adopt", self.adopt),
        ]
        by_path: dict[str, dict[str, Callable[[Request], Awaitable[Response]]]] = {}
        for method, path, handler in table:
            by_path.setdefault(path, {})[method] = handler
        return [
            Route(f"/api/v1{path}", self._guarded(handlers), methods=[*handlers]) for path, handlers in by_path.items()
        ]

    def _guarded(self, handlers: Mapping[str, Callable[[Request], Awaitable[Response]]]) -> Any:
        async def handle(request: Request) -> Response:
            method = "GET" if request.method == "HEAD" else request.method
            try:
                self.guard.check(request)
                return await handlers[method](request)
            except ReceiverError as error:
                return problems.of(error)

        return handle

    # -- tasks -----------------------------------------------------------------------------------------------------

    async def submit(self, request: Request) -> Response:
        """`POST /tasks`."""
        if "idempotency-key" in request.headers:
            # Ignoring it would let a repeat be paid twice.
            raise NotBuilt("Idempotency-Key is not built yet in this release; leave it out, and do not repeat a POST")
        raw = await _json(request, self.max_submission)
        body = _model(SubmitBody, raw)
        flaws = self._flaws(body)
        if flaws:
            raise InvalidInput("; ".join(flaw.detail for flaw in flaws), flaws)
        if body.callback_url is not None:
            raise NotBuilt("a task's own callback_url is not built yet in this release; use [[destinations]]")
        task = await self.submitter.accept(
            body.route,
            body.input,
            metadata=body.metadata,
            only=body.destinations,
            in_background="respond-async" in _preferences(request),
        )
        headers = {"location": f"/api/v1/tasks/{task.id}"}
        return _json_response(views.task(task), 201 if task.upstream_id is not None else 202, headers)

    def _flaws(self, body: SubmitBody) -> list[Flaw]:
        flaws = []
        if body.route not in ROUTES:
            flaws.append(Flaw(f"there is no route {body.route[:80]!r}; there are {', '.join(ROUTES)}", "/route"))
        elif "callback_url" in body.input:
            flaws.append(
                Flaw("callback_url does not belong in input: this program puts its own there", "/input/callback_url")
            )
        for pointer, part in (("/input", body.input), ("/metadata", body.metadata)):
            if (why := _unfit(part)) is not None:
                flaws.append(Flaw(f"{pointer[1:]}: {why}", pointer))
        for number, name in enumerate(body.destinations or ()):
            if name not in self.destinations:
                known = ", ".join(sorted(self.destinations)) or "none"
                flaws.append(
                    Flaw(f"there is no destination {name[:80]!r}; configured: {known}", f"/destinations/{number}")
                )
        return flaws

    async def list_tasks(self, request: Request) -> Response:
        """`GET /tasks`."""
        _known(request, {"state", "route", "since", "limit", "cursor"})
        query = request.query_params
        states = [s for value in query.getlist("state") for s in value.split(",") if s]
        for state in states:
            if state not in lifecycle.TASK_STATES:
                raise _bad("state", f"there is no state {state[:40]!r}; there are {', '.join(lifecycle.TASK_STATES)}")
        limit = _limit(query.get("limit"))
        since = _since(query.get("since"), self.clock())
        before = _cursor(query.get("cursor"))
        rows = await self.store.read(
            lambda connection: self.store.tasks.listed(
                connection,
                states=[s for s in lifecycle.TASK_STATES if s in states],
                route=query.get("route"),
                since=since,
                before=before,
                limit=limit + 1,
            )
        )
        page = rows[:limit]
        after = _cursor_of(page[-1]) if len(rows) > limit else None
        headers = {}
        if after is not None:
            again = [(name, value) for name, value in query.multi_items() if name != "cursor"]
            headers["link"] = f'</api/v1/tasks?{urlencode([*again, ("cursor", after)])}>; rel="next"'
        return _json_response({"data": [views.task(row) for row in page], "next_cursor": after}, 200, headers)

    async def show(self, request: Request) -> Response:
        """`GET /tasks/{id}`, waiting for a terminal state where asked to."""
        _known(request, {"wait"})
        wait = _wait(request.query_params.get("wait"))
        task = await self._task(request)
        if wait > 0:
            task = await self._until(task, wait, lambda now: now.state in lifecycle.TERMINAL)
        return _json_response(views.task(task))

    async def timeline(self, request: Request) -> Response:
        """`GET /tasks/{id}/timeline`."""
        task = await self._task(request)
        store = self.store

        def ask(connection: Any) -> list[dict[str, Any]]:
            return views.timeline(
                task,
                store.events.observations_of_task(connection, task.id),
                store.events.of_task(connection, task.id),
                store.deliveries.of_task(connection, task.id),
                store.deliveries.attempts_of_task(connection, task.id),
            )

        return _json_response({"data": await store.read(ask), "next_cursor": None})

    async def refresh(self, request: Request) -> Response:
        """`POST /tasks/{id}/refresh`: a lookup now; the task as it is after it."""
        task = await self._task(request)
        asked_at = self.clock()
        recorded = await self.store.run(Wake(task.id, asked_at, spacing=timedelta(0)))
        self.after(recorded)
        if recorded.look:
            task = await self._until(
                task, self.lookup_for, lambda now: now.polled_at is not None and now.polled_at >= asked_at
            )
        return _json_response(views.task(task))

    async def cancel(self, request: Request) -> Response:
        """`POST /tasks/{id}/cancel`: stop tracking it."""
        return await self._decide(request, lambda task_id: Cancel(task_id, self.clock(), self.rules))

    async def adopt(self, request: Request) -> Response:
        """`POST /tasks/{id}/adopt`: give an ambiguous or lost task its id by hand."""
        body = _model(AdoptBody, await _json(request, MAX_BODY))
        upstream_id = usable_id(body.upstream_id)
        if upstream_id is None:
            raise InvalidInput(
                "upstream_id is none that an upstream could have given",
                [Flaw("1 to 255 printable characters are wanted", "/upstream_id")],
            )
        return await self._decide(request, lambda task_id: Adopt(task_id, upstream_id, self.clock(), self.rules))

    async def _decide(self, request: Request, op: Callable[[TaskId], Any]) -> Response:
        recorded = await self.store.run(op(TaskId(request.path_params["id"])))
        self.after(recorded)
        return _json_response(views.task(recorded.task))

    async def _task(self, request: Request) -> Task:
        return await self._get(TaskId(request.path_params["id"]))

    async def _get(self, task_id: TaskId) -> Task:
        task = await self.store.read(lambda connection: self.store.tasks.get(connection, task_id))
        if task is None:
            raise NotFound(f"there is no task {task_id[:60]!r}")
        return task

    async def _until(self, task: Task, seconds: float, enough: Callable[[Task], bool]) -> Task:
        """The task once `enough` holds, or as it is when the time is over or the service stops."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        while not enough(task):
            left = ends - loop.time()
            if left <= 0 or self.after.stopping:
                break
            await self.after.changed(task.id, min(left, RECHECK_FOR))
            task = await self._get(task.id)
        return task


# -- translating ---------------------------------------------------------------------------------------------------


def _json_response(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(written(document), status, headers, "application/json")


async def _json(request: Request, cap: int) -> Any:
    body = await read_body(request.scope, request.receive, cap)
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}", [Flaw(str(error), "")]) from None


def _unfit(value: Any, depth: int = 0) -> str | None:
    """Why a part of a body could not be passed on as it came; None where it can."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return "a whole number here has more than 64 bits"
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if parts and depth >= MAX_DEPTH:
        return f"it is nested deeper than {MAX_DEPTH} levels"
    return next((why for part in parts if (why := _unfit(part, depth + 1))), None)


def _model(model: type[M], raw: Any) -> M:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        flaws = [
            Flaw(one["msg"], "".join(f"/{_escaped(str(part))}" for part in one["loc"]))
            for one in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        words = "; ".join(f"{flaw.pointer or 'the body'}: {flaw.detail}" for flaw in flaws)
        raise InvalidInput(words, flaws) from None


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")


def _preferences(request: Request) -> set[str]:
    return {one.partition("=")[0].strip().lower() for one in request.headers.get("prefer", "").split(",")}


def _bad(parameter: str, detail: str) -> InvalidInput:
    return InvalidInput(f"{parameter}: {detail}", [Flaw(detail, parameter=parameter)])


def _known(request: Request, names: set[str]) -> None:
    for name in request.query_params:
        if name not in names:
            raise _bad(name[:60], f"there is no such parameter; there are {', '.join(sorted(names))}")


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= MAX_LIMIT:
        raise _bad("limit", f"a number from 1 to {MAX_LIMIT} is wanted")
    return int(text)


def _wait(text: str | None) -> float:
    """Seconds to wait; more than the most is taken for the most."""
    if text is None:
        return 0.0
    return min(_span(text, "wait").total_seconds(), MAX_WAIT)


def _span(text: str, parameter: str) -> timedelta:
    found = _SPAN.fullmatch(text.strip())
    if found is None or len(text) > 12:  # noqa: PLR2004 -- a year in milliseconds has 11 digits
        raise _bad(parameter, 'a duration such as "30s", "5m" or "2h" is wanted')
    try:
        return timedelta(seconds=float(found[1]) * _UNITS[found[2]])
    except OverflowError:
        raise _bad(parameter, "it is longer than time itself") from None


def _since(text: str | None, now: datetime) -> datetime | None:
    """A moment (ISO 8601, UTC where it names no zone), or a duration counted back from now."""
    if text is None:
        return None
    try:
        if _SPAN.fullmatch(text.strip()):
            return now - _span(text, "since")
        at = datetime.fromisoformat(text.strip().replace(" ", "+"))
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _bad("since", 'a time such as "2026-01-31T12:00:00Z" or a duration such as "2h" is wanted') from None


def _cursor_of(row: Task) -> str:
    return base64.urlsafe_b64encode(f"{stamp(row.created_at)}|{row.id}".encode()).decode().rstrip("=")


def _cursor(text: str | None) -> tuple[datetime, str] | None:
    if text is None:
        return None
    try:
        at, _, last = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode().partition("|")
        return datetime.fromisoformat(at).astimezone(UTC), last
    except (ValueError, OverflowError):
        raise _bad("cursor", "it is none of ours; take `next_cursor` from the page before") from None
