"""A whole world for journeys: the emulator, a real service on a real database, and a sink that checks signatures.

Everything speaks over real sockets on loopback, in the test's own loop; only the upstream is played. A prompt scripts
the emulator (`receiver.emulator`), so one world serves many tests; each task has a prompt of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import svix.webhooks
import tomli_w
from standardwebhooks import Webhook

from receiver import app, config
from receiver.emulator import Emulator, EmulatorOptions, RunningEmulator, directive, running
from tests import databases
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from pathlib import Path

    from receiver.emulator import Task
    from receiver.emulator.vocabulary import Outcome
    from receiver.wire import HttpRequest, HttpResponse

PRO = "runway/pro/video2video"
V2V = "runwayml/v1/video_to_video"
I2V = "runwayml/v1/image_to_video"
ROUTES = (PRO, V2V, I2V)
SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
API_KEY = "test-key-0123456789"
SIGNING_KEY = "a signing key of this test, 32+ characters"
TERMINAL = {"succeeded", "failed", "cancelled", "lost", "rejected"}
PATIENCE = 50.0
"""Seconds before a journey that does not arrive is called broken; none takes a tenth of it, alone on a machine."""

_numbers = itertools.count(1)


@dataclass
class Received:
    """One webhook as the sink got it, verified by two independent libraries; `at` is monotonic."""

    id: str
    type: str
    data: dict[str, Any]
    body: bytes
    headers: dict[str, str]
    at: float


@dataclass
class Sink:
    """A consumer: answers as told (200 unless), and keeps what it verified.

    Attributes:
        answers: statuses for the next requests, with headers where they matter; None hangs.
        received: what it verified; `bad` is what it could not.
        arrived: called with every webhook before it is answered.
    """

    answers: list[int | tuple[int, dict[str, str]] | None] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    url: str = ""
    arrived: Callable[[Received], None] = lambda _one: None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _handlers: set[asyncio.Task[None]] = field(default_factory=set)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speak HTTP/1.1, one request after another, until the sink closes."""
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self._handlers.discard(handler)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self._keep(headers, body)
        answer = self.answers.pop(0) if self.answers else 200
        if answer is None:
            await reader.read()  # nothing more comes: this ends when the other side hangs up
            return False
        status, extra = (answer, {}) if isinstance(answer, int) else answer
        fields = "".join(f"{name}: {value}\r\n" for name, value in extra.items())
        writer.write(f"HTTP/1.1 {status} Said\r\n{fields}content-length: 2\r\n\r\nok".encode())
        await writer.drain()
        return True

    def _keep(self, headers: dict[str, str], body: bytes) -> None:
        try:
            document = Webhook(SECRET).verify(body, headers)
            svix.webhooks.Webhook(SECRET).verify(body, headers)
        except Exception as error:  # noqa: BLE001 -- whatever a library says against it
            self.bad.append(repr(error))
            return
        kind, data = document.get("type", ""), document["data"]  # the format `envelope` has no type
        one = Received(headers["webhook-id"], kind, data, body, headers, time.monotonic())
        self.received.append(one)
        self.arrived(one)
        self._changed.set()

    def of(self, task_id: str) -> list[Received]:
        """What arrived about one task."""
        return [one for one in self.received if one.data["task_id"] == task_id]

    async def until(self, enough: Callable[[], bool]) -> None:
        """Wait until `enough` holds, looking at every arrival."""
        async with asyncio.timeout(PATIENCE):
            while not enough():
                self._changed.clear()
                await self._changed.wait()

    async def close(self) -> None:
        """Let go of every connection."""
        for handler in list(self._handlers):
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)


@asynccontextmanager
async def sink() -> AsyncIterator[Sink]:
    """A sink that listens."""
    opened = Sink()
    listener = await asyncio.start_server(opened.handle, "127.0.0.1", 0)
    opened.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/hook"
    try:
        yield opened
    finally:
        listener.close()
        await opened.close()


def destination(name: str, url: str, **more: Any) -> dict[str, Any]:
    """A destination of kind `webhook` on loopback."""
    return {"name": name, "kind": "webhook", "url": url, "secrets": [SECRET], "allow_private": True, **more}


def settings(emulator_url: str, sink_url: str, port: int, database: str) -> dict[str, Any]:
    """A configuration with short times; a test changes what it is about."""
    return {
        "server": {"public_url": f"http://127.0.0.1:{port}", "port": port},
        "database": {"url": database},
        "security": {"signing_keys": [SIGNING_KEY], "api_keys": [API_KEY]},
        "upstream": {
            "base_url": emulator_url,
            "api_key": "upstream-key",
            "timeout": "4s",
            "submit_retry": ["50ms", "100ms"],
        },
        "polling": {
            "callback_grace": "30s",
            "interval": "50ms",
            "max_interval": "200ms",
            "missing_grace": "300ms",
            "deadline": "60s",
        },
        "delivery": {"schedule": ["0s", "50ms", "100ms", "200ms"], "jitter": 0, "timeout": "6s"},
        "logging": {"format": "json", "level": "error"},
        "destinations": [destination("sink", sink_url)],
    }


def body_of(route: str, prompt: str) -> dict[str, Any]:
    """The required members of a route's input."""
    bodies = {
        PRO: {"video": "https://example.com/in.mp4", "prompt": prompt},
        V2V: {"videoUri": "https://example.com/in.mp4", "promptText": prompt},
        I2V: {"promptImage": "https://example.com/in.png", "promptText": prompt},
    }
    return bodies[route]


def script(**words: Any) -> str:
    """A prompt of its own, with what the emulator is to do."""
    return f"clip {next(_numbers)} {directive(**{'render': 0.02, **words})}"


@dataclass
class World:
    """The parts, and the few things a journey does with them."""

    emulator: RunningEmulator
    sink: Sink
    settings: dict[str, Any]
    folder: Path
    api: httpx.AsyncClient
    service: app.Service | None = None
    _serving: asyncio.Task[None] | None = None
    _server: app.Server | None = None

    @property
    def upstream(self) -> Emulator:
        """The emulator itself."""
        return self.emulator.emulator

    # -- the service -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the service as `receiver serve` does, and wait until it answers and has looked at its queue.

        What comes before that look goes by the queue, and a test would be told 202 where it is about something else.
        """
        path = self.folder / "config.toml"
        path.write_text(tomli_w.dumps(self.settings))
        loaded = config.load(path, {})
        self.service = await app.Service.start(loaded)
        self._server = server = app.Server(self.service, host="127.0.0.1", port=loaded.server.port)
        self._serving = asyncio.create_task(server.serve())
        gates = self.service.submitter.gates

        async def started() -> bool:
            # A queue that has filled all slots looks no further until one is free.
            return server.started and (not gates.unseen or gates.sending == gates.max_concurrency)

        await self.eventually(started)

    def begin_stop(self) -> None:
        """What SIGTERM does."""
        assert self._server is not None
        self._server.should_exit = True

    async def stop(self) -> None:
        """Stop it as SIGTERM does, and wait until it is gone."""
        if self._serving is None or self.service is None:
            return
        self.begin_stop()
        await self._serving
        await self.service.close()
        self._serving = None

    async def restart(self) -> None:
        """Stop it and start it on the same file."""
        await self.stop()
        await self.start()

    # -- tasks -----------------------------------------------------------------------------------------------------

    async def submit(self, route: str = PRO, prompt: str = "a cat", **more: Any) -> httpx.Response:
        """`POST /tasks` with the route's required members."""
        return await self.api.post("/tasks", json={"route": route, "input": body_of(route, prompt), **more})

    async def created(self, route: str = PRO, *, status: int = 201, **words: Any) -> str:
        """Submit a task that is scripted with `words`; its id."""
        answer = await self.submit(route, script(**words))
        assert answer.status_code == status, answer.text
        return str(answer.json()["id"])

    async def taken(self, route: str = PRO, *, outcome: Outcome = "succeed", **words: Any) -> str:
        """As `created`, but its render ends, and its callbacks begin, only now that its caller has the answer.

        A callback may come while the answer is being stored, and is then kept until it is: another verdict.
        """
        task_id = await self.created(route, outcome="never", **words)
        self.upstream.end((await self.rendering(task_id)).id, outcome=outcome)
        return task_id

    async def task(self, task_id: str) -> dict[str, Any]:
        """A task now."""
        return dict((await self.api.get(f"/tasks/{task_id}")).json())

    async def state(self, task_id: str) -> str:
        """A task's state now."""
        return str((await self.task(task_id))["state"])

    async def ended(self, task_id: str) -> dict[str, Any]:
        """The task once it is terminal."""
        async with asyncio.timeout(PATIENCE):
            while True:
                task = (await self.api.get(f"/tasks/{task_id}", params={"wait": "5s"})).json()
                if task["state"] in TERMINAL:
                    return dict(task)

    async def refresh(self, task_id: str) -> dict[str, Any]:
        """`POST /tasks/{id}/refresh`."""
        return dict((await self.api.post(f"/tasks/{task_id}/refresh")).json())

    async def timeline(self, task_id: str, kind: str | None = None) -> list[dict[str, Any]]:
        """A task's way, or the items of one kind."""
        items = (await self.api.get(f"/tasks/{task_id}/timeline")).json()["data"]
        return [item for item in items if kind is None or item["kind"] == kind]

    async def verdicts(self, task_id: str) -> list[str]:
        """What was made of each callback, in order."""
        return [item["verdict"] for item in await self.timeline(task_id, "observation")]

    async def observed(self, task_id: str, count: int) -> list[str]:
        """The verdicts, once so many callbacks have come."""

        async def enough() -> bool:
            return len(await self.verdicts(task_id)) >= count

        await self.eventually(enough)
        return await self.verdicts(task_id)

    async def whole(self, task_id: str, kind: str = "task.succeeded", *, events: int = 1) -> Received:
        """The webhook of the (last) terminal event; the way to it is checked to have been as promised.

        That is: the task is terminal; it has `events` terminal events, each delivered to the sink exactly once under
        its own id, and the last is of `kind`; the upstream was never made to render it twice.
        """
        await self.ended(task_id)
        received = [one for one in await self.arrived(task_id, events) if is_terminal(one.type)]
        await self.eventually(lambda: self.all_delivered(task_id))
        task, items = await self.task(task_id), await self.timeline(task_id)
        recorded = [item["event_id"] for item in items if item["kind"] == "event" and is_terminal(item["type"])]
        assert [one.id for one in received] == recorded, show(items)
        assert len(recorded) == events, show(items)
        last = received[-1]
        assert last.type == kind == f"task.{task['state']}", show(items)
        # Every member that the API shows of the task, too, says the same there.
        assert last.data == {name: task.get(name, value) for name, value in last.data.items()}, show(items)
        assert len(self.renders(task)) <= 1, show(items)
        return last

    async def all_delivered(self, task_id: str) -> bool:
        """Every delivery of a task has arrived."""
        return all(item["state"] == "delivered" for item in await self.timeline(task_id, "delivery"))

    # -- the others ------------------------------------------------------------------------------------------------

    def renders(self, task: dict[str, Any]) -> list[Task]:
        """What the upstream was made to render for a task: paid for, each of them."""
        prompt = task["input"].get("prompt") or task["input"].get("promptText")
        return [one for one in self.upstream.tasks.values() if one.prompt == prompt]

    async def rendering(self, task_id: str) -> Task:
        """The upstream's one task for one of ours, once it is there."""

        async def there() -> bool:
            return bool(self.renders(await self.task(task_id)))

        await self.eventually(there)
        [one] = self.renders(await self.task(task_id))
        return one

    async def called(self, task_id: str, count: int = 1) -> list[int | None]:
        """How the upstream's callbacks of a task were answered, once so many were: it hears that after all others."""
        render = await self.rendering(task_id)

        async def enough() -> bool:
            return len(render.callbacks) >= count

        await self.eventually(enough)
        return [sent.status for sent in render.callbacks]

    async def arrived(self, task_id: str, count: int = 1) -> list[Received]:
        """What the sink got about a task, once it is so many; all of it verified."""
        await self.sink.until(lambda: len(self.sink.of(task_id)) >= count)
        assert self.sink.bad == []
        return self.sink.of(task_id)

    async def eventually(self, holds: Callable[[], Awaitable[Any]]) -> None:
        """Wait until an awaitable question answers yes."""
        async with asyncio.timeout(PATIENCE):
            while True:
                if await holds():
                    return
                await asyncio.sleep(0.01)

    async def ready(self) -> tuple[int, list[str]]:
        """`GET /readyz`: the status and the reasons."""
        answer = await self.api.get(f"http://127.0.0.1:{self.settings['server']['port']}/readyz")
        return answer.status_code, answer.json()["reasons"]

    def callback_url(self, task_id: str, *, good_for: float = 3600) -> str:
        """A callback URL of a task, as the service mints it."""
        return callback_url_of(self.settings, task_id, good_for=good_for)

    async def call_back(self, task_id: str, body: Any, **more: Any) -> httpx.Response:
        """Send a callback by hand: a dictionary as JSON, bytes as they are."""
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as stranger:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await stranger.post(self.callback_url(task_id), content=content, **more)


@asynccontextmanager
async def begun(here: World) -> AsyncIterator[list[float]]:
    """When each submission began, in Unix seconds: how long its way to the upstream takes is no part of a rate."""
    assert here.service is not None
    egress = here.service.submitter.sender.egress
    submit, at = egress.submit, list[float]()

    def noted(request: HttpRequest, *, timeout: float) -> Coroutine[Any, Any, HttpResponse]:
        at.append(app.clock().timestamp())
        return submit(request, timeout=timeout)

    egress.submit = noted  # type: ignore[method-assign]
    yield at


def is_terminal(event_type: str) -> bool:
    """The event tells of a task's end."""
    return event_type.removeprefix("task.") in TERMINAL


def callback_url_of(given: dict[str, Any], task_id: str, *, good_for: float = 3600) -> str:
    """A callback URL as the service mints it, good for so many seconds from now."""
    from datetime import timedelta

    from receiver import signing
    from receiver.ids import TaskId

    expires = app.clock() + timedelta(seconds=good_for)
    token = signing.mint(given["security"]["signing_keys"], TaskId(task_id), expires)
    return f"http://127.0.0.1:{given['server']['port']}/callbacks/{token}"


@asynccontextmanager
async def world(
    folder: Path,
    *,
    emulator: EmulatorOptions | None = None,
    change: Callable[[dict[str, Any]], None] = lambda _settings: None,
) -> AsyncIterator[World]:
    """Build a world, start it, and take it down."""
    async with sink() as consumer, running(emulator or EmulatorOptions()) as upstream:
        port = free_port()
        given = settings(upstream.base_url, consumer.url, port, databases.new(folder))
        change(given)
        base = f"http://127.0.0.1:{port}/api/v1"
        async with httpx.AsyncClient(
            base_url=base, headers={"authorization": f"Bearer {API_KEY}"}, timeout=PATIENCE, trust_env=False
        ) as api:
            built = World(upstream, consumer, given, folder, api)
            await built.start()
            try:
                yield built
            finally:
                await built.stop()


def show(items: list[dict[str, Any]]) -> str:
    """A timeline in an assertion's message."""
    return json.dumps(items, indent=1)
