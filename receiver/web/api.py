"""The API under `/api/v1` (contract 4.3): translates between HTTP and the verbs, decides nothing."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response

from receiver import lifecycle
from receiver.errors import AnsweredBefore, Flaw, InvalidInput, NotFound, StoreUnavailable, UpstreamRefused
from receiver.ids import TaskId
from receiver.ingest import Wake
from receiver.submit import Adopt, Cancel, asked_under, holding, keep_answer
from receiver.upstream import ROUTES
from receiver.upstream.base import usable_id
from receiver.web import problems, requests, shapes, table, views
from receiver.web.answers import Page, answered
from receiver.web.bodies import EXAMPLE, IDEMPOTENCY_KEY, PREFER, SUBMIT, AdoptBody, SubmitBody
from receiver.web.requests import RECHECK_FOR
from receiver.web.table import API, PROBLEM_DOCUMENT, Answer, Body, Operation, Parameter

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from receiver.ingest import After, Rulebook
    from receiver.records import Task
    from receiver.store import Store
    from receiver.submit import Submitter
    from receiver.web.guard import Guard

MAX_DEPTH = 100
"""Levels of `input` and of `metadata`; what stands deeper could be read, and not be written again."""


ACCEPTED = {
    "Location": "The task's path.",
    "Idempotency-Replayed": "`true`, where this is the answer to a request before.",
}
OF_TASK = {
    **table.leads("/id", "showTask", "showTimeline", "refreshTask", "cancelTask", "adoptTask"),
    **table.leads("/id", "listDeliveries", by="task"),
}
_LATEST = 253_402_300_799_999
"""Milliseconds: the end of the year 9999."""
CURSOR = re.compile(r"[0-9]{1,15}-tsk_[0-9a-hjkmnp-tv-z]{26}")


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

    def table(self) -> list[Operation]:
        """The route table."""
        row = partial(Operation, tag="tasks")
        one = f"{API}/tasks/{{id}}"
        return [
            row(
                method="POST",
                path=f"{API}/tasks",
                handler=self.submit,
                name="submitTask",
                summary="Submit a task",
                says=SUBMIT,
                asks=[IDEMPOTENCY_KEY, PREFER],
                takes=Body(SubmitBody, "The route, and the upstream's own body for it.", example=EXAMPLE),
                answers=[
                    Answer(201, "The upstream took it.", shapes.Task, headers=ACCEPTED, links=OF_TASK),
                    Answer(202, "`pending`, or `ambiguous`: see above.", shapes.Task, headers=ACCEPTED, links=OF_TASK),
                    Answer("4XX", "The upstream's own refusal, as the problem `upstream-refused`.", *PROBLEM_DOCUMENT),
                    Answer(502, "It refused for this service's account: `upstream-refused`, too.", *PROBLEM_DOCUMENT),
                ],
                problems=[
                    *("idempotency-key-busy", "too-large", "body-timeout"),
                    *("invalid-input", "idempotency-key-reused", "upstream-refused", "submission-ambiguous"),
                ],
            ),
            row(
                method="GET",
                path=f"{API}/tasks",
                handler=self.list_tasks,
                name="listTasks",
                summary="List tasks",
                says="Newest first.",
                asks=[
                    table.some_of(lifecycle.TASK_STATES),
                    Parameter("route", {"type": "string"}, "Only those of one upstream route."),
                    table.SINCE,
                    table.LIMIT,
                    table.cursor({"type": "string", "pattern": f"^{CURSOR.pattern}$"}),
                ],
                answers=[Answer(200, "A page.", shapes.TaskPage, headers=table.NEXT)],
                problems=["invalid-input"],
            ),
            row(
                method="GET",
                path=one,
                handler=self.show,
                name="showTask",
                summary="Show a task",
                says="With `wait`, once it is terminal, or as it is when that time is over.",
                asks=[table.WAIT],
                answers=[Answer(200, "The task.", shapes.Task, links=OF_TASK)],
                problems=["not-found", "invalid-input"],
            ),
            row(
                method="GET",
                path=f"{one}/timeline",
                handler=self.timeline,
                name="showTimeline",
                summary="Show a task's way",
                says="Every observation with its raw body, lookup, event, delivery and attempt, in order.",
                answers=[Answer(200, "All of it: there is one page.", shapes.Timeline)],
                problems=["not-found"],
            ),
            row(
                method="POST",
                path=f"{one}/refresh",
                handler=self.refresh,
                name="refreshTask",
                summary="Look a task up now",
                answers=[Answer(200, "The task after the lookup.", shapes.Task)],
                problems=["not-found"],
            ),
            row(
                method="POST",
                path=f"{one}/cancel",
                handler=self.cancel,
                name="cancelTask",
                summary="Stop tracking a task",
                says="It ends as `cancelled`, and its event goes out. The upstream is not told: it has no way to be.",
                answers=[Answer(200, "The task.", shapes.Task)],
                problems=["not-found", "conflict"],
            ),
            row(
                method="POST",
                path=f"{one}/adopt",
                handler=self.adopt,
                name="adoptTask",
                summary="Give a task its upstream id by hand",
                says="For an `ambiguous` or `lost` task whose id you know from elsewhere.",
                takes=Body(AdoptBody, "The upstream's id.", example={"upstream_id": "3c2e…"}),
                answers=[Answer(200, "The task; it is looked up at once.", shapes.Task)],
                problems=["not-found", "conflict", "too-large", "body-timeout", "invalid-input"],
            ),
        ]

    # -- tasks -----------------------------------------------------------------------------------------------------

    async def submit(self, request: Request) -> Response:
        """`POST /tasks`."""
        raw = await requests.json_of(request, self.max_submission)
        body = requests.modelled(SubmitBody, raw)
        requests.refuse(self._flaws(body))
        # The same body is the same document, however it is written.
        same = orjson.dumps(raw, option=orjson.OPT_SORT_KEYS)
        asked = asked_under(request.headers.get("idempotency-key"), "/api/v1/tasks", same)
        with holding(self.submitter.sender.held, asked):
            try:
                task = await self.submitter.accept(
                    body.route,
                    body.input,
                    metadata=body.metadata,
                    only=body.destinations,
                    callback_url=body.callback_url,
                    asked=asked,
                    in_background="respond-async" in _preferences(request),
                )
                task_id = str(task.id)
                response = _refused(task) if task.state == "rejected" else await _accepted(task)
            except AnsweredBefore as known:
                return await self._again(known)
            except UpstreamRefused as error:
                task_id, response = error.task_id, problems.of(error)
            with suppress(StoreUnavailable):  # what became of it counts more than the copy of its answer
                kind, said = response.media_type, bytes(response.body)
                await keep_answer(self.store, asked, task_id, response.status_code, kind, said)
        return response

    async def _again(self, known: AnsweredBefore) -> Response:
        """A repeat under its Idempotency-Key: the first answer; where none was kept, the task as it is."""
        if known.status is not None:
            headers = {"location": f"/api/v1/tasks/{known.task_id}"} if known.status < 300 else {}  # noqa: PLR2004 -- 2xx
            response = Response(known.body, known.status, headers, known.content_type)
        else:
            task = await self._get(TaskId(known.task_id))
            response = _refused(task) if task.state == "rejected" else await _accepted(task)
        response.headers["idempotency-replayed"] = "true"
        return response

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
                    Flaw(
                        f"there is no destination {name[:80]!r}; the service started with: {known}",
                        f"/destinations/{number}",
                    )
                )
        return flaws

    async def list_tasks(self, request: Request) -> Response:
        """`GET /tasks`."""
        requests.known(request, {"state", "route", "since", "limit", "cursor"})
        limit = requests.limit(request)
        states = requests.states(request, lifecycle.TASK_STATES)
        since = requests.since(request, self.clock())
        route, before = request.query_params.get("route"), _cursor(request)
        rows = await self.store.read(
            lambda connection: self.store.tasks.listed(
                connection, states=states, route=route, since=since, before=before, limit=limit + 1
            )
        )
        page = Page()
        await page.add(views.task(row) for row in rows[:limit])
        return page.response(request, _cursor_of(rows[len(page) - 1]) if len(rows) > len(page) else None)

    async def show(self, request: Request) -> Response:
        """`GET /tasks/{id}`, waiting for a terminal state where asked to."""
        requests.known(request, {"wait"})
        wait = requests.wait(request)
        task = await self._task(request)
        if wait > 0:
            task = await self._until(task, wait, lambda now: now.state in lifecycle.TERMINAL)
        return await answered(views.task(task))

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

        return await answered({"data": await store.read(ask), "next_cursor": None})

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
        return await answered(views.task(task))

    async def cancel(self, request: Request) -> Response:
        """`POST /tasks/{id}/cancel`: stop tracking it."""
        return await self._decide(request, lambda task_id: Cancel(task_id, self.clock(), self.rules))

    async def adopt(self, request: Request) -> Response:
        """`POST /tasks/{id}/adopt`: give an ambiguous or lost task its id by hand."""
        body = requests.modelled(AdoptBody, await requests.json_of(request))
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
        return await answered(views.task(recorded.task))

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


def _refused(task: Task) -> Response:
    """What a task tells of a refusal whose answer was lost with the process that had it."""
    status = UpstreamRefused.http_status
    return problems.of(UpstreamRefused(task.msg, status=status, upstream_status=0, upstream_body="", task_id=task.id))


async def _accepted(task: Task) -> Response:
    headers = {"location": f"/api/v1/tasks/{task.id}"}
    return await answered(views.task(task), 201 if task.upstream_id is not None else 202, headers)


# -- translating ---------------------------------------------------------------------------------------------------


def _unfit(value: Any, depth: int = 0) -> str | None:
    """Why a part of a body could not be passed on as it came; None where it can."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return "a whole number here has more than 64 bits"
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if parts and depth >= MAX_DEPTH:
        return f"it is nested deeper than {MAX_DEPTH} levels"
    return next((why for part in parts if (why := _unfit(part, depth + 1))), None)


def _preferences(request: Request) -> set[str]:
    return {one.partition("=")[0].strip().lower() for one in request.headers.get("prefer", "").split(",")}


def _cursor_of(row: Task) -> str:
    return f"{round(row.created_at.timestamp() * 1000)}-{row.id}"


def _cursor(request: Request) -> tuple[datetime, str] | None:
    text = request.query_params.get("cursor")
    if text is None:
        return None
    if not CURSOR.fullmatch(text):
        raise requests.no_cursor("cursor")
    ms, _, last = text.partition("-")
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=min(int(ms), _LATEST)), last
