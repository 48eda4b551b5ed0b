"""A whole world for journeys: the emulator, a real service on a real SQLite file, and a sink that checks signatures.

Everything speaks over real sockets on loopback, in the test's own loop; only the upstream is played.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import svix.webhooks
import tomli_w
from standardwebhooks import Webhook

from receiver import app, config
from receiver.emulator import EmulatorOptions, RunningEmulator, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
API_KEY = "test-key-0123456789"
SIGNING_KEY = "a signing key of this test, 32+ characters"
TERMINAL = {"succeeded", "failed", "cancelled", "lost", "rejected"}
PATIENCE = 20.0
"""Seconds before a journey that does not arrive is called broken; none takes a tenth of it."""


@dataclass
class Received:
    """One webhook as the sink got it, verified by two independent libraries."""

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
        answers: statuses for the next requests; None hangs.
        bad: what did not verify.
    """

    answers: list[int | None] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    url: str = ""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speak HTTP/1.1, one request after another."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")[1:-2]
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self._keep(headers, body)
                answer = self.answers.pop(0) if self.answers else 200
                if answer is None:
                    await asyncio.sleep(3600)
                writer.write(f"HTTP/1.1 {answer} Said\r\ncontent-length: 2\r\n\r\nok".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _keep(self, headers: dict[str, str], body: bytes) -> None:
        try:
            document = Webhook(SECRET).verify(body, headers)
            svix.webhooks.Webhook(SECRET).verify(body, headers)
        except Exception as error:  # noqa: BLE001 -- whatever a library says against it
            self.bad.append(repr(error))
            return
        self.received.append(
            Received(headers["webhook-id"], document["type"], document["data"], body, headers, time.monotonic())
        )
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


def settings(emulator_url: str, sink_url: str, port: int, database: Path) -> dict[str, Any]:
    """A configuration with short times; a test changes what it is about."""
    return {
        "server": {"public_url": f"http://127.0.0.1:{port}", "port": port},
        "database": {"url": f"sqlite:///{database}"},
        "security": {"signing_keys": [SIGNING_KEY], "api_keys": [API_KEY]},
        "upstream": {
            "base_url": emulator_url,
            "api_key": "upstream-key",
            "timeout": "2s",
            "submit_retry": ["50ms", "100ms"],
        },
        "polling": {
            "callback_grace": "30s",
            "interval": "50ms",
            "max_interval": "200ms",
            "missing_grace": "300ms",
            "deadline": "60s",
        },
        "delivery": {"schedule": ["0s", "50ms", "100ms", "200ms"], "jitter": 0, "timeout": "2s"},
        "logging": {"format": "json", "level": "warning"},
        "destinations": [
            {"name": "sink", "kind": "webhook", "url": sink_url, "secrets": [SECRET], "allow_private": True}
        ],
    }


@dataclass
class World:
    """The parts, and the few things a journey does with them."""

    emulator: RunningEmulator
    sink: Sink
    settings: dict[str, Any]
    folder: Path
    api: httpx.AsyncClient
    _serving: asyncio.Task[None] | None = None
    service: app.Service | None = None

    async def start(self) -> None:
        """Start the service as `receiver serve` does, and wait until it answers."""
        path = self.folder / "config.toml"
        path.write_text(tomli_w.dumps(self.settings))
        loaded = config.load(path, {})
        self.service = await app.Service.start(loaded)
        server = app.Server(self.service, host="127.0.0.1", port=loaded.server.port)
        self._serving = asyncio.create_task(server.serve())
        self._server = server
        async with asyncio.timeout(PATIENCE):
            while not server.started:
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Stop it as SIGTERM does."""
        if self._serving is None or self.service is None:
            return
        self._server.should_exit = True
        await self._serving
        await self.service.close()
        self._serving = None

    async def submit(self, route: str = "runway/pro/video2video", prompt: str = "a cat", **more: Any) -> httpx.Response:
        """`POST /tasks` with the route's required members."""
        inputs = {
            "runway/pro/video2video": {"video": "https://example.com/in.mp4", "prompt": prompt},
            "runwayml/v1/video_to_video": {"videoUri": "https://example.com/in.mp4", "promptText": prompt},
            "runwayml/v1/image_to_video": {"promptImage": "https://example.com/in.png", "promptText": prompt},
        }
        return await self.api.post("/tasks", json={"route": route, "input": inputs[route], **more})

    async def ended(self, task_id: str) -> dict[str, Any]:
        """The task once it is terminal."""
        async with asyncio.timeout(PATIENCE):
            while True:
                task = (await self.api.get(f"/tasks/{task_id}", params={"wait": "5s"})).json()
                if task["state"] in TERMINAL:
                    return dict(task)

    async def state(self, task_id: str) -> str:
        """A task's state now."""
        return str((await self.api.get(f"/tasks/{task_id}")).json()["state"])

    async def timeline(self, task_id: str, kind: str | None = None) -> list[dict[str, Any]]:
        """A task's way, or the items of one kind."""
        items = (await self.api.get(f"/tasks/{task_id}/timeline")).json()["data"]
        return [item for item in items if kind is None or item["kind"] == kind]

    async def eventually(self, holds: Callable[[], Any]) -> None:
        """Wait until an awaitable question answers yes."""
        async with asyncio.timeout(PATIENCE):
            while not await holds():
                await asyncio.sleep(0.01)

    async def arrived(self, task_id: str, count: int = 1) -> list[Received]:
        """What the sink got about a task, once it is so many; all of it verified."""
        await self.sink.until(lambda: len(self.sink.of(task_id)) >= count)
        assert self.sink.bad == []
        return self.sink.of(task_id)

    def callback_url(self, task_id: str) -> str:
        """The callback URL that the upstream was given for a task."""
        return callback_url_of(self.settings, task_id)


def callback_url_of(given: dict[str, Any], task_id: str, *, good_for: float = 3600) -> str:
    """A callback URL as the service mints it."""
    from datetime import timedelta

    from receiver import signing
    from receiver.ids import TaskId

    expires = app.clock() + timedelta(seconds=good_for)
    token = signing.mint(given["security"]["signing_keys"], TaskId(task_id), expires)
    return f"http://127.0.0.1:{given['server']['port']}/callbacks/{token}"


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def world(
    folder: Path,
    *,
    emulator: EmulatorOptions | None = None,
    change: Callable[[dict[str, Any]], None] = lambda _settings: None,
) -> AsyncIterator[World]:
    """Build a world, start it, and take it down."""
    sink = Sink()
    listener = await asyncio.start_server(sink.handle, "127.0.0.1", 0)
    sink.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/hook"
    try:
        async with running(emulator or EmulatorOptions()) as upstream:
            port = free_port()
            given = settings(upstream.base_url, sink.url, port, folder / "receiver.db")
            change(given)
            base = f"http://127.0.0.1:{port}/api/v1"
            async with httpx.AsyncClient(
                base_url=base, headers={"authorization": f"Bearer {API_KEY}"}, timeout=PATIENCE, trust_env=False
            ) as api:
                built = World(upstream, sink, given, folder, api)
                await built.start()
                try:
                    yield built
                finally:
                    await built.stop()
    finally:
        listener.close()


def show(items: list[dict[str, Any]]) -> str:
    """A timeline in an assertion's message."""
    return json.dumps(items, indent=1)
