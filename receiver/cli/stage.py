"""The demo's stage: emulator, receiver and sink on loopback in one process, in a folder that is thrown away afterwards.

The receiver is the real one: its config is a file read by `config.load`, its database a SQLite file, its sockets real.
Only its signals are left to the demo.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import shutil
import socket
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from receiver import app, config, logs
from receiver.cli.output import Failed
from receiver.cli.sink import Sink
from receiver.emulator import EmulatorOptions, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from receiver.emulator import Emulator

HOST = "127.0.0.1"

_CONFIG = """\
# Written by `receiver demo`. It may be used by the other commands while the demo stays up.
[server]
public_url = "{receiver}"
host = "{host}"
port = {port}

[database]
url = "sqlite:///demo.db"

[security]
signing_keys = ["{signing_key}"]
api_keys = ["{api_key}"]

[upstream]
base_url = "{emulator}"
api_key = "the-emulator-takes-any-key"

[polling]
# Short, so that nobody has to wait for long.
callback_grace = "3s"
interval = "400ms"
max_interval = "2s"

[logging]
format = "json"

[[destinations]]
name = "sink"
kind = "webhook"
url = "{sink}/webhooks"
secrets = ["{secret}"]
allow_private = true
"""


@dataclass(frozen=True)
class Stage:
    """What is up.

    Attributes:
        folder: config, database and log; gone when the demo ends, unless `keep` is called.
        emulator_url, receiver_url, sink_url: where they listen, without a slash at the end.
        api_key: the receiver's.
    """

    folder: Path
    emulator_url: str
    receiver_url: str
    sink_url: str
    api_key: str
    sink: Sink
    emulator: Emulator

    @property
    def config_path(self) -> Path:
        """The config the receiver was started with."""
        return self.folder / "config.toml"

    @property
    def log_path(self) -> Path:
        """Where the receiver's log lines go."""
        return self.folder / "receiver.log"


class _NoSignals(uvicorn.Server):
    """A server that leaves the signals alone."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Receiver(_NoSignals, app.Server):
    """The real server, its signals left to the demo."""


@contextlib.asynccontextmanager
async def stage(port: int) -> AsyncIterator[Stage]:
    """Everything, up and connected; the receiver on `port`, 0 for a free one.

    Raises:
        Failed: the port cannot be had.
    """
    folder = Path(tempfile.mkdtemp(prefix="receiver-demo-"))
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        door, sink_door = stack.enter_context(_listener(port)), stack.enter_context(_listener(0))
        emulator = await stack.enter_async_context(running(EmulatorOptions(seed=secrets.randbits(32))))
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        sink = Sink(secret)
        up = Stage(
            folder, emulator.base_url, _url(door), _url(sink_door), secrets.token_urlsafe(24), sink, emulator.emulator
        )
        _write_config(up, secret)
        settings = config.load(up.config_path, {})
        log = stack.enter_context(up.log_path.open("ab"))
        logs.configure(settings.logging.format, settings.logging.level, log)
        stack.callback(logs.configure, "console", "error", sys.stderr.buffer)
        await stack.enter_async_context(_up(_NoSignals(_config(sink)), sink_door))
        await stack.enter_async_context(_receiver(settings, door))
        yield up


def _write_config(up: Stage, secret: str) -> None:
    text = _CONFIG.format(
        receiver=up.receiver_url,
        host=HOST,
        port=up.receiver_url.rpartition(":")[2],
        signing_key=secrets.token_urlsafe(32),
        api_key=up.api_key,
        emulator=up.emulator_url,
        sink=up.sink_url,
        secret=secret,
    )
    up.config_path.touch(mode=0o600)
    up.config_path.write_text(text, encoding="utf-8")


@contextlib.asynccontextmanager
async def _receiver(settings: config.Config, door: socket.socket) -> AsyncIterator[None]:
    service = await app.Service.start(settings)
    server = _Receiver(service, host=HOST, port=door.getsockname()[1])
    try:
        async with _up(server, door):
            yield
    finally:
        await service.close()


@contextlib.asynccontextmanager
async def _up(server: uvicorn.Server, door: socket.socket) -> AsyncIterator[None]:
    """A server behind a socket that is bound already, from its start to its graceful end."""
    serving = asyncio.create_task(server.serve(sockets=[door]))
    try:
        while not server.started:
            if serving.done():
                serving.result()
                raise Failed("a server of the demo did not start")
            await asyncio.sleep(0.005)
        yield
    finally:
        server.should_exit = True
        await serving


def _config(sink: Sink) -> uvicorn.Config:
    return uvicorn.Config(
        sink, workers=1, access_log=False, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=2
    )


@contextmanager
def _listener(port: int) -> Iterator[socket.socket]:
    # With the protocol left out asyncio does not know it for TCP, leaves Nagle on, and every answer waits 40 ms.
    door = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((HOST, port))
        except OSError as error:
            raise Failed(f"cannot listen on {HOST}:{port}: {error.strerror}; choose another --port") from None
        yield door
    finally:
        door.close()


def _url(door: socket.socket) -> str:
    return f"http://{HOST}:{door.getsockname()[1]}"
