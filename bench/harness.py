"""Servers under measurement, each alone on the first core; the load and the sink have the second."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from receiver import ids, signing
from receiver.records import Task
from receiver.store import Store, migrations
from receiver.submit.ops import Accept

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SERVER_CORE, LOAD_CORE = 0, max(0, (os.cpu_count() or 1) - 1)
KEY = "a signing key for measurements, 32+"
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


@dataclass(frozen=True)
class Served:
    """A server under measurement, and the requests prepared for it."""

    port: int
    pid: int
    callbacks: list[bytes]

    def cpu(self) -> float:
        """Seconds of CPU it has used; unlike a rate, the same whatever else the machine does."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """One line about where this ran."""
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _pinned(command: list[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a server on its core."""
    with log.open("wb") as out:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdout=out,
            stderr=out,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),  # noqa: PLW1509 -- one thread here
        )


async def _answers(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise SystemExit(f"the server ended at once:\n{log.read_text()}")
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.05)
    raise SystemExit("the server did not come up")


@contextlib.asynccontextmanager
async def hello() -> AsyncIterator[Served]:
    """A raw ASGI hello under uvicorn."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        (folder / "hello.py").write_text(HELLO)
        command = [
            sys.executable,
            "-m",
            "uvicorn",
            "hello:app",
            "--port",
            str(port),
            "--log-level",
            "warning",
            "--no-access-log",
        ]
        process = _pinned(command, folder, folder / "log")
        try:
            await _answers(port, process, folder / "log")
            yield Served(port, process.pid, [])
        finally:
            process.terminate()
            process.wait()


@contextlib.asynccontextmanager
async def receiver(tasks: int, config: str, database: str | None = None) -> AsyncIterator[Served]:
    """The installed program with `tasks` submitted tasks waiting for their callback, in a new file or in `database`."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        database = database or f"sqlite:///{folder}/receiver.db"
        callbacks = await prepare(database, tasks, port)
        (folder / "config.toml").write_text(
            f'[server]\npublic_url = "http://127.0.0.1:{port}"\nport = {port}\n[database]\nurl = "{database}"\n'
            f'[security]\nsigning_keys = ["{KEY}"]\napi_keys = ["k"]\n[upstream]\nbase_url = "http://127.0.0.1:1"\n'
            f'api_key = "k"\n[logging]\nformat = "json"\nlevel = "info"\n{config}'
        )
        process = _pinned([sys.executable, "-m", "receiver", "serve"], folder, folder / "log")
        try:
            await _answers(port, process, folder / "log")
            yield Served(port, process.pid, callbacks)
        finally:
            process.terminate()
            process.wait()


async def prepare(database: str, count: int, port: int) -> list[bytes]:
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
            id=ids.task_id(int(now.timestamp() * 1000) + number, os.urandom(10)),
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
        body = orjson.dumps(callback(task.upstream_id or ""))
        wire.append(
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
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


def hello_requests(count: int, port: int) -> Iterator[bytes]:
    """The same requests to the hello app."""
    body = orjson.dumps(callback("up-" + "0" * 32))
    request = (
        f"POST /callbacks/{'x' * 90} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return iter([request] * count)


def on_load_core() -> None:
    """Keep this process off the servers' core."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {LOAD_CORE})
