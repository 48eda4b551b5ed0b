"""The emulated upstream itself: takes submissions, renders nothing, answers lookups, calls back, and takes notes.

It imports nothing of the receiver: it plays the outside world and has to judge the receiver independently.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.routing import Route as StarletteRoute

from receiver.emulator import checks, control, refusals, shapes
from receiver.emulator import script as scripts
from receiver.emulator import vocabulary as words
from receiver.emulator.callbacks import Caller
from receiver.emulator.exchange import Exchange
from receiver.emulator.ledger import Ledger, Refused
from receiver.emulator.model import PRO, ROUTES, Task, abridged, dice
from receiver.emulator.refusals import Refusal
from receiver.emulator.script import EmulatorOptions, Script

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from starlette.types import Receive, Scope, Send

    from receiver.emulator.model import Route, Sent
    from receiver.emulator.vocabulary import Fault

FEED = "runway/feed"
TASKS = "runwayml/v1/tasks"
_OK = words.fault("ok")


class _Endpoint:
    """An ASGI app that Starlette routes to as it is, without a Request in between."""

    def __init__(self, emulator: Emulator, name: str, handle: Callable[[Exchange, Scope], Awaitable[None]]) -> None:
        self._emulator = emulator
        self._name = name
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ledger = self._emulator.ledger
        ledger.requests += 1
        exchange = Exchange(scope, receive, send, f"2026{ledger.requests:020d}")
        try:
            await self._handle(exchange, scope)
        except Refusal as refusal:
            ledger.refuse(Refused(self._name, refusal.answer.status, refusal.code, refusal.reason))
            await exchange.answer(refusal.answer)


class Emulator:
    """An ASGI app that behaves as CometAPI's Runway routes are documented to.

    Attributes:
        options: what it was made with, as last changed.
        ledger: the notes; `report()` is their plain form.
        tasks: by upstream id, in order of creation.
    """

    def __init__(self, options: EmulatorOptions | None = None) -> None:
        self.options = options or EmulatorOptions()
        self.tasks: dict[str, Task] = {}
        self.ledger = Ledger()
        self._closing = asyncio.Event()
        self._begin()
        self._app = Starlette(routes=self._routes(), lifespan=self._lifespan)
        self._app.router.redirect_slashes = False
        self._app.add_exception_handler(404, control.wrong_path(self))
        self._app.add_exception_handler(405, control.wrong_path(self))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        await self._app(scope, receive, send)

    def report(self) -> dict[str, Any]:
        """What happened since the start or the last reset, as plain JSON."""
        repeated_lookups = {task.id: task.lookups for task in self.tasks.values() if task.lookups}
        return {**self.ledger.report(), "lookups_by_task": repeated_lookups}

    def configure(self, **changes: Any) -> EmulatorOptions:
        """Change options for the tasks to come; a changed `seed` begins its luck anew.

        Raises:
            ValueError: names what is not known or has a bad value; nothing is changed then.
        """
        self.options = scripts.changed(self.options, changes)
        self._base = self.options.script()
        self._submit_chances = self.options.submit_chances()
        self._lookup_chances = self.options.lookup_chances()
        if "seed" in changes:
            self._dice = dice(self.options.seed)
        return self.options

    async def reset(self, options: EmulatorOptions | None = None) -> None:
        """Forget every task and note, stop every callback, and begin the luck anew."""
        await self._caller.close()
        self.options = options or self.options
        self.tasks.clear()
        self.ledger = Ledger()
        self._begin()

    def end(self, task_id: str, *, outcome: words.Outcome | None = None, reason: str | None = None) -> Task:
        """End a render now.

        Raises:
            KeyError: there is no such task.
        """
        task = self.tasks[task_id]
        task.end(time.monotonic(), outcome=outcome, reason=reason)
        return task

    async def call(self, task_id: str, kind: str = "ok", **how: Any) -> Sent:
        """Send one callback of a task now; `how` is that of `Caller.send`.

        Raises:
            KeyError: there is no such task.
            ValueError: it has no callback URL.
        """
        return await self._caller.send(self.tasks[task_id], kind, **how)

    async def idle(self) -> None:
        """Wait until every callback that will come by itself has come."""
        await self._caller.idle()

    async def close(self) -> None:
        """Stop every callback and let go of every caller that hangs."""
        self._closing.set()
        await self._caller.close()

    def _begin(self) -> None:
        self._dice = dice(self.options.seed)
        self._strays = dice(self.options.seed + 1)
        self._base = self.options.script()
        self._submit_chances = self.options.submit_chances()
        self._lookup_chances = self.options.lookup_chances()
        self._tries: Counter[tuple[str, str]] = Counter()
        self._paid: dict[str, str] = {}
        self._newest: list[str] = []
        self._caller = Caller(self.ledger, lambda: self.options, self._another_id)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self.close()

    def _routes(self) -> list[StarletteRoute]:
        found = [
            StarletteRoute(f"/{route}", _Endpoint(self, route, self._submitter(route)), methods=["POST"])
            for route in ROUTES
        ]
        found += [
            StarletteRoute(f"/{FEED}", _Endpoint(self, FEED, self._feed), methods=["POST"]),
            StarletteRoute(f"/{TASKS}/{{id}}", _Endpoint(self, TASKS, self._task), methods=["GET"]),
        ]
        return found + control.routes(self)

    # -- submissions

    def _submitter(self, route: Route) -> Callable[[Exchange, Scope], Awaitable[None]]:
        async def submit(exchange: Exchange, _scope: Scope) -> None:
            self.ledger.submissions[route] += 1
            await self._submit(route, exchange)

        return submit

    async def _submit(self, route: Route, exchange: Exchange) -> None:
        key = exchange.bearer(self.options.keys)
        body = await exchange.json_object()
        findings = checks.submission(route, body, exchange.header(b"x-runway-version"))
        script = self._script(findings.prompt, exchange)
        self.ledger.warn(route, findings.warnings)
        fault = self._submit_fault(route, findings.prompt, script)
        await self._pause(script.submit_delay)
        if fault.kind not in {"ok", "hang"} and not fault.after:
            await self._play(exchange, fault, script)
            return
        if fault.kind == "hang" and not fault.after:
            await self._pause(script.hang_seconds)
            await exchange.answer(refusals.html(504))
            return
        task = self._create(route, key, body, findings, script)
        await self._caller.early(task)
        self._caller.start(task)
        if fault.kind == "hang":
            await self._pause(script.hang_seconds)
        elif fault.kind != "ok":
            await self._play(exchange, fault, script, self._accepted(task))
            return
        await exchange.answer(self._accepted(task))

    def _script(self, prompt: str, exchange: Exchange) -> Script:
        """The options, then the luck of the draw, then what the prompt says."""
        try:
            said = scripts.directive_in(prompt)
        except ValueError as error:
            raise Refusal(
                refusals.e1(400, f"emulator: {error}", exchange.request_id, "invalid_request"),
                code="directive",
                reason=str(error),
            ) from None
        script = self._base
        for overrides, chance in self._submit_chances:
            if self._dice.random() < chance:
                script = scripts.merge(script, overrides)
        return scripts.merge(script, said)

    def _submit_fault(self, route: Route, prompt: str, script: Script) -> Fault:
        fault = words.fault(script.submit)
        if fault.kind == "ok":
            return _OK
        if script.submit_times:
            self._tries[route, prompt] += 1
            if self._tries[route, prompt] > script.submit_times:
                return _OK
        self.ledger.faults[f"submit={fault.word}"] += 1
        return fault

    def _create(
        self, route: Route, key: str, body: Mapping[str, Any], findings: checks.Findings, script: Script
    ) -> Task:
        born_at = time.monotonic()
        outcome = scripts.outcome_of(script)
        early = "early" in words.plan(script.callback)
        task = Task(
            id=str(uuid.UUID(int=self._dice.getrandbits(128), version=4)),
            number=len(self.tasks) + 1,
            route=route,
            key=key,
            prompt=findings.prompt,
            callback_url=findings.callback_url,
            received=abridged(body),
            script=script,
            asset_base=self.options.asset_base,
            created_at=time.time(),
            born_at=born_at,
            seed=self._dice.getrandbits(64),
            outcome=outcome,
            reason=script.reason,
            finish_at=None if outcome == "never" else born_at + (0.0 if early else script.render_seconds),
        )
        self.tasks[task.id] = task
        self._newest = [*self._newest[-1:], task.id]
        self.ledger.created[route] += 1
        self._note_payment(task)
        return task

    def _note_payment(self, task: Task) -> None:
        """A callback URL is one task's own: two tasks under one URL are one task paid twice."""
        url = task.callback_url
        if url is None or url.startswith("https://callback.invalid/"):
            return
        if self._paid.setdefault(url, task.id) != task.id:
            self.ledger.repeated.append(url)

    @staticmethod
    def _accepted(task: Task) -> refusals.Answer:
        if task.route != PRO:
            return refusals.json_answer(200, {"id": task.id})
        shape = task.pick(task.script.submit_shape, words.SUBMIT_SHAPES, 0)
        return refusals.json_answer(200, shapes.SUBMIT[shape](task.view(time.monotonic(), phase="queued")))

    def _another_id(self, task: Task) -> str:
        """Another task's id, of the two newest; where there is none, one that never was."""
        for other in self._newest:
            if other != task.id:
                return other
        return str(uuid.UUID(int=task.dice.getrandbits(128), version=4))

    # -- lookups

    async def _feed(self, exchange: Exchange, _scope: Scope) -> None:
        self.ledger.lookups[FEED] += 1
        key = exchange.bearer(self.options.keys)
        task_id = (await exchange.json_object()).get("task_id")
        if not isinstance(task_id, str) or not task_id:
            raise Refusal(
                refusals.e2(400, "invalid_request", "task_id is required and must be a string"),
                code="invalid_request",
                reason="task_id is required and must be a string",
            )
        await self._lookup(FEED, task_id, key, exchange)

    async def _task(self, exchange: Exchange, scope: Scope) -> None:
        self.ledger.lookups[TASKS] += 1
        key = exchange.bearer(self.options.keys)
        await self._lookup(TASKS, scope["path_params"]["id"], key, exchange)

    async def _lookup(self, route: str, task_id: str, key: str, exchange: Exchange) -> None:
        self.ledger.warn(route, checks.lookup_version(exchange.header(b"x-runway-version")))
        task = self.tasks.get(task_id)
        if task is not None and task.key != key:
            task = None
        script = self._base if task is None else task.script
        if task is not None:
            task.lookups += 1
        await self._pause(script.lookup_delay)
        fault = self._lookup_fault(task, script)
        if fault.kind == "hang":
            await self._pause(script.hang_seconds)
        elif fault.kind not in {"ok", "disagreeing"}:
            await self._play(exchange, fault, script)
            return
        if task is None or self._still_missing(task):
            self.ledger.not_found += task is None
            blog = _lookup_shape_name(route, script) == "blog"
            await exchange.answer(refusals.task_not_exist(as_blog=blog, task_id=task_id))
            return
        await self._show(route, task, exchange, disagrees=fault.kind == "disagreeing")

    def _lookup_fault(self, task: Task | None, script: Script) -> Fault:
        word = script.lookup
        if self._lookup_chances and word == "ok":
            luck = self._strays if task is None else task.dice
            word = next((word for word, chance in self._lookup_chances if luck.random() < chance), word)
        fault = words.fault(word)
        if fault.kind == "ok":
            return _OK
        if task is not None:
            if script.lookup_times and task.faulted >= script.lookup_times:
                return _OK
            task.faulted += 1
        self.ledger.faults[f"lookup={fault.word}"] += 1
        return fault

    @staticmethod
    def _still_missing(task: Task) -> bool:
        script = task.script
        if task.missing < script.missing or time.monotonic() < task.born_at + script.missing_seconds:
            task.missing += 1
            return True
        return False

    async def _show(self, route: str, task: Task, exchange: Exchange, *, disagrees: bool) -> None:
        """Answer a lookup with the task as it stands."""
        now = time.monotonic()
        urlless = task.has_ended(now) and task.outcome == "succeed" and task.urlless < task.script.urlless
        task.urlless += urlless
        view = task.view(now, with_url=not urlless)
        name = _lookup_shape_name(route, task.script)
        names = words.FEED_SHAPES if route == FEED else words.TASKS_SHAPES
        shape = task.pick(name, names, task.lookups)
        if shape == "id-only" and name != shape and view.has_ended:
            shape = "3c"  # by chance alone a render that has ended would seem to go on for ever
        body = shapes.LOOKUP[shape](view)
        if disagrees:
            body = shapes.disagreeing(body)
        await exchange.answer(refusals.json_answer(200, body))
        if view.has_ended and shape != "id-only":
            task.shown.set()

    # -- faults

    async def _play(
        self, exchange: Exchange, fault: Fault, script: Script, accepted: refusals.Answer | None = None
    ) -> None:
        """Answer with a fault; `accepted` is what a task that exists all the same would have been answered."""
        if fault.kind == "reset":
            await exchange.reset()
        elif fault.kind == "cut":
            await exchange.cut(accepted or refusals.UNREADABLE)
        elif fault.kind == "status":
            await exchange.answer(
                refusals.of_fault(fault, request_id=exchange.request_id, retry_after=script.retry_after)
            )
        else:
            await exchange.answer(refusals.BY_WORD[fault.kind])

    async def _pause(self, seconds: float) -> None:
        """So long, or until the emulator closes."""
        if seconds <= 0:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()


def _lookup_shape_name(route: str, script: Script) -> str:
    name = (script.feed_shape if route == FEED else script.tasks_shape) or script.lookup_shape
    if name == words.NEWEST:
        return "3c" if route == FEED else "4.4b"
    return name
