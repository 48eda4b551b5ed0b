"""Servers under measurement, each alone on the first core; the load and the sinks have the second."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from receiver import ids, signing
from receiver.records import Task
from receiver.store import Store, migrations
from receiver.submit.ops import Accept

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

SERVER_CORE, LOAD_CORE = 0, max(0, (os.cpu_count() or 1) - 1)
KEY = "a signing key for measurements, 32+"
KB = 1024
HELLO = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-type", b"application/json"), (b"content-length", b"17")]})
    await send({"type": "http.response.body", "body": b'{"received":true}'})
"""


DESTINATION = """
[[destinations]]
name = "{name}"
kind = "webhook"
url = "http://127.0.0.1:{port}/hook"
secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
allow_private = true
{more}
"""
PLAIN = """
import asyncio, os, httpx

client = httpx.AsyncClient(timeout=15, trust_env=False)
queue, workers = asyncio.Queue(), []

async def deliver():
    while True:
        body = await queue.get()
        await client.post(os.environ["SINK"], content=body, headers={"content-type": "application/json"})

async def app(scope, receive, send):
    if not workers:
        workers.extend(asyncio.create_task(deliver()) for _ in range(32))
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body", False)
    queue.put_nowait(body)
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-type", b"application/json"), (b"content-length", b"17")]})
    await send({"type": "http.response.body", "body": b'{"received":true}'})
"""
"""What is written in an afternoon: a shared plain httpx client behind a queue. It stores and signs nothing."""


@dataclass(frozen=True)
class Served:
    """A server under measurement, and the requests prepared for it."""

    port: int
    pid: int
    callbacks: list[bytes]
    ready_for: float = 0.0

    def cpu(self) -> float:
        """Seconds of CPU it has used; unlike a rate, the same whatever else the machine does."""
        return cpu_of(self.pid)

    def rss(self) -> float:
        """Megabytes of memory it has."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) / KB


def cpu_of(pid: int, *, children: bool = False) -> float:
    """Seconds of CPU a process has used, and where asked those that its children had used when they ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if children else 13])) / os.sysconf("SC_CLK_TCK")


def destination(port: int, name: str = "sink", more: str = "") -> str:
    """Of a configuration: one that listens there."""
    return DESTINATION.format(name=name, port=port, more=more)


def machine() -> str:
    """One line about where this ran."""
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def versions() -> dict[str, str]:
    """What was measured, and what it stands on."""
    named = ("callback-receiver", "uvicorn", "uvloop", "httptools", "aiohttp", "httpx", "sqlalchemy", "psycopg")
    return {"sqlite": sqlite3.sqlite_version} | {name: metadata.version(name) for name in named}


def fsync_ms() -> float:
    """What it costs to have a page on the disk, where databases are made: the median."""
    took = []
    with tempfile.TemporaryFile() as file:
        for _ in range(100):
            file.write(b"x" * 4096)
            file.flush()
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - started)
    return sorted(took)[50] * 1000


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_under: list[str] = []


@contextlib.contextmanager
def under(*command: str) -> Iterator[None]:
    """Servers that are started inside are started by this command, which has the same process id."""
    _under[:] = command
    try:
        yield
    finally:
        _under.clear()


@contextlib.asynccontextmanager
async def _process(
    command: list[str], folder: Path, port: int, *, core: int | None = SERVER_CORE, env: dict[str, str] | None = None
) -> AsyncIterator[Served]:
    """A server on its core (None: on any), once it answers."""
    log, started = folder / f"log-{port}", time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*_under, sys.executable, "-m", *command],
            cwd=folder,
            stdout=out,
            stderr=out,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), **(env or {})},
        )
    if core is not None:
        os.sched_setaffinity(process.pid, {core})  # before it has a second thread
    else:
        os.sched_setaffinity(process.pid, range(os.cpu_count() or 1))
    try:
        await _answers(port, process, log)
        yield Served(port, process.pid, [], time.perf_counter() - started)
    finally:
        process.terminate()
        process.wait()


async def _answers(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise SystemExit(f"the server ended at once:\n{log.read_text()}")
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.01)
    raise SystemExit("the server did not come up")


@contextlib.asynccontextmanager
async def asgi(source: str, **env: str) -> AsyncIterator[Served]:
    """A raw ASGI application under uvicorn."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        (folder / "one.py").write_text(source)
        command = ["uvicorn", "one:app", "--port", str(port), "--log-level", "warning", "--no-access-log"]
        async with _process(command, folder, port, env=env) as served:
            yield served


def hello() -> contextlib.AbstractAsyncContextManager[Served]:
    """A raw ASGI hello under uvicorn."""
    return asgi(HELLO)


@contextlib.asynccontextmanager
async def fresh(config: str, database: str | None = None, *, core: int | None = SERVER_CORE) -> AsyncIterator[Served]:
    """The installed program, on a database that it has to make unless one is named."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        (folder / "config.toml").write_text(
            f'[server]\npublic_url = "http://127.0.0.1:{port}"\nport = {port}\n'
            f'[database]\nurl = "{database or "sqlite:///receiver.db"}"\n'
            f'[security]\nsigning_keys = ["{KEY}"]\napi_keys = ["k"]\n[upstream]\nbase_url = "http://127.0.0.1:1"\n'
            f'api_key = "k"\n[logging]\nformat = "json"\nlevel = "info"\n{config}'
        )
        async with _process(["receiver", "serve"], folder, port, core=core) as served:
            yield served


@contextlib.asynccontextmanager
async def receiver(
    tasks: int, config: str, database: str | None = None, *, size: int = 0, core: int | None = SERVER_CORE
) -> AsyncIterator[Served]:
    """The installed program, and `tasks` submitted tasks that wait for a callback of `size` bytes or 1.1 KB.

    `database` is the URL of one that is there; else it is made.
    """
    with tempfile.TemporaryDirectory() as name:
        url = database or f"sqlite:///{name}/receiver.db"
        callbacks = await prepare(url, tasks, size)
        async with fresh(config, url, core=core) as served:
            yield replace(served, callbacks=callbacks)


async def prepare(database: str, count: int, size: int = 0) -> list[bytes]:
    """Store tasks as a submission leaves them, and make the callback of each as bytes on the wire."""
    migrations.upgrade(database)
    store = Store.open(database)
    now = datetime.now(UTC)  # noqa: TID251 -- a measurement has no other clock
    later = now + timedelta(hours=48)
    wire = []
    inputs = {"video": "https://example.com/in.mp4", "prompt": "a cat in the rain", "model": "gen4"}
    given = orjson.dumps(inputs).decode()
    waiting = []
    for number in range(count):
        task = Task(
            id=ids.task_id(int(now.timestamp() * 1000) + number, os.urandom(16)),
            route="runway/pro/video2video",
            state="queued",
            created_at=now,
            input_json=given,
            callback_expires_at=later,
            upstream_id=f"up-{number:032d}",
            submitted_at=now,
            prompt="a cat in the rain",
            poll_due_at=later,
        )
        waiting.append(store.run(Accept(task, None)))
        path = f"/callbacks/{signing.mint([KEY], task.id, later)}"
        body = callback_body(task.upstream_id or "", size)
        wire.append(
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        if len(waiting) == 2000:
            await asyncio.gather(*waiting)
            waiting.clear()
    await asyncio.gather(*waiting)
    await store.close()
    return wire


def callback(upstream_id: str) -> dict[str, Any]:
    """A flat success of about 1.1 KB, the documented shape."""
    base = f"https://cdn.example.com/attachments/video/runway/20261121/{upstream_id}"
    return {
        "task_id": upstream_id,
        "status": "3",
        "state": "succeeded",
        "prompt": "a cat in the rain " * 10,
        "prompt_en": "a cat in the rain " * 10,
        "video_url": f"{base}.mp4",
        "poster": f"{base}.png",
        "last_frame": f"{base}-last.png",
        "msg": None,
        "point": "320",
        "refund": "0",
        "create_time": "1728622596",
        "update_time": "1728622955",
    }


def callback_body(upstream_id: str, size: int) -> bytes:
    """It as JSON, padded by a member that nobody knows; at most the mebibyte that is taken."""
    body = orjson.dumps(callback(upstream_id))
    return body[:-1] + b',"more":"' + b"x" * (size - len(body) - 10) + b'"}' if size > len(body) + 10 else body


def hello_requests(count: int, port: int) -> Iterator[bytes]:
    """The same requests to the hello app."""
    body = orjson.dumps(callback("up-" + "0" * 32))
    request = (
        f"POST /callbacks/{'x' * 90} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return iter([request] * count)


def children_of(pid: int) -> list[int]:
    """The processes that it has now."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def on_cores(cores: Iterable[int] | None = None) -> Iterator[None]:
    """What is started inside runs on these, or where it likes."""
    kept = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, kept)


def on_load_core() -> None:
    """Keep this process off the servers' core."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {LOAD_CORE})
