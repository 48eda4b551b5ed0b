"""The stage for the emulator's tests: one emulator, a client of it, and a real receiver of its callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
from aiohttp import web

from receiver.emulator import EmulatorOptions, directive, running
from tests.rooms import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from receiver.emulator import Emulator

PRO = "/runway/pro/video2video"
V2V = "/runwayml/v1/video_to_video"
I2V = "/runwayml/v1/image_to_video"
HEADERS = {"authorization": "Bearer key-one", "x-runway-version": "2024-11-06"}
JSON = {"content-type": "application/json"}
URLS = ("video_url", "poster", "last_frame")


@dataclass
class Call:
    """One callback as it arrived."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body.decode("utf-8-sig"))


@dataclass
class Sink:
    """Receives callbacks, and answers them with `statuses` in turn, then 200."""

    base_url: str = ""
    calls: list[Call] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def take(self, request: web.Request) -> web.Response:
        """Receive one."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        call = Call(request.method, request.path, request.query_string, headers, await request.read())
        async with self.changed:
            self.calls.append(call)
            self.changed.notify_all()
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200)

    async def wait(self, count: int = 1) -> list[Call]:
        """All calls, once there are so many."""
        async with asyncio.timeout(PATIENCE), self.changed:
            await self.changed.wait_for(lambda: len(self.calls) >= count)
        return self.calls


@dataclass
class Stage:
    """An emulator, a client of it, and a sink for its callbacks."""

    client: httpx.AsyncClient
    sink: Sink
    emulator: Emulator

    def body(self, route: str, prompt: str, /, **over: Any) -> dict[str, Any]:
        """A submission that a strict upstream takes without a warning of its own kind, with members put over it."""
        bodies: dict[str, dict[str, Any]] = {
            PRO: {
                "callback_url": f"{self.sink.base_url}/callbacks/tokenAtoken",
                "video": "http://cdn.example.com/in.mp4",
                "model": "gen4",
                "prompt": prompt,
                "options": {"structure_transformation": 0.5, "flip": True, "seconds": 5},
            },
            V2V: {
                "videoUri": "https://cdn.example.com/in.mp4",
                "promptText": prompt,
                "seed": 1,
                "model": "gen4_aleph",
                "references": [],
                "ratio": "1280:720",
                "contentModeration": {"publicFigureThreshold": "auto"},
            },
            I2V: {"promptImage": "https://cdn.example.com/in.png", "model": "gen3a_turbo", "promptText": prompt},
        }
        return bodies[route] | over

    async def submit(self, route: str = PRO, prompt: str = "", **words: Any) -> httpx.Response:
        """Submit with a directive of these words."""
        text = f"{prompt} {directive(**words)}" if words else prompt or "a cat"
        return await self.client.post(route, json=self.body(route, text))

    async def create(self, route: str = PRO, **words: Any) -> str:
        """Submit, and the id of the task."""
        answer = (await self.submit(route, **words)).json()
        return str(answer["id"] if route != PRO else answer["data"]["task_id"])

    async def feed(self, task_id: str) -> httpx.Response:
        """The reverse lookup."""
        return await self.client.post("/runway/feed", json={"task_id": task_id})

    async def task(self, task_id: str) -> httpx.Response:
        """The official lookup."""
        return await self.client.get(f"/runwayml/v1/tasks/{task_id}")

    async def sweep(self) -> None:
        """Begin anew: renders end at once, hangs are short."""
        await self.emulator.reset(EmulatorOptions(render_seconds=0.0, hang_seconds=0.05))
        self.sink.calls.clear()
        self.sink.statuses.clear()


@contextlib.asynccontextmanager
async def built() -> AsyncIterator[Stage]:
    """One emulator, client and sink, good for a whole module."""
    sink = Sink()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", sink.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sink.base_url = "http://{}:{}".format(*runner.addresses[0])
    try:
        async with (
            running() as upstream,
            httpx.AsyncClient(base_url=upstream.base_url, headers=HEADERS, trust_env=False) as client,
        ):
            yield Stage(client, sink, upstream.emulator)
    finally:
        await runner.cleanup()
