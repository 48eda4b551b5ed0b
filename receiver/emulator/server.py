"""Running an emulator under uvicorn: alone until a signal, or inside the caller's loop on a free loopback port.

Uvicorn hides the transport from its app, so the protocol here offers it one extension: reset this connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from receiver.emulator.app import Emulator
from receiver.emulator.exchange import ABORT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from receiver.emulator.script import EmulatorOptions

_GRACE = 2
_LINGER_NONE = struct.pack("ii", 1, 0)


class _Resettable(HttpToolsProtocol):
    """Uvicorn's own protocol, which lets the app reset the connection."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: dict[str, Any] = {ABORT: self._reset}
        self.scope["extensions"] = extensions

    def _reset(self) -> None:
        """Close with RST: the caller sees a reset, not a polite end of stream."""
        handle = self.transport.get_extra_info("socket")
        if handle is not None:
            # uvloop's handle takes no options; a duplicate of its descriptor names the same connection.
            with socket.socket(fileno=os.dup(handle.fileno())) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self.transport.abort()


class _Server(uvicorn.Server):
    """A server that lets go of its callers before it waits for them."""

    def __init__(self, config: uvicorn.Config, emulator: Emulator, *, takes_signals: bool) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self._emulator = emulator
        self._takes_signals = takes_signals

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._emulator.close()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if not self._takes_signals:
            yield
            return
        with super().capture_signals():
            yield


def _config(emulator: Emulator, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        emulator,
        host=host,
        port=port,
        http=_Resettable,
        ws="none",
        lifespan="on",
        workers=1,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE,
    )


def serve(options: EmulatorOptions | None = None, *, host: str = "127.0.0.1", port: int) -> None:
    """Run an emulator until SIGINT or SIGTERM."""
    emulator = Emulator(options)
    server = _Server(_config(emulator, host, port), emulator, takes_signals=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()


@dataclass(frozen=True, slots=True)
class RunningEmulator:
    """An emulator that listens.

    Attributes:
        base_url: without a slash at its end.
    """

    base_url: str
    emulator: Emulator


@contextlib.asynccontextmanager
async def running(
    options: EmulatorOptions | None = None, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[RunningEmulator]:
    """An emulator in the current loop, on a free port unless one is named; it leaves signals alone.

    Raises:
        OSError: the port is taken.
    """
    emulator = Emulator(options)
    server = _Server(_config(emulator, host, port), emulator, takes_signals=False)
    # With the protocol left out asyncio does not know it for TCP, leaves Nagle on, and every answer waits 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        job = asyncio.create_task(server.serve(sockets=[listener]))
        up = asyncio.create_task(server.up.wait())
        await asyncio.wait({job, up}, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if job.done():
            job.result()
            raise OSError("the emulator did not start")
        try:
            yield RunningEmulator(f"http://{host}:{listener.getsockname()[1]}", emulator)
        finally:
            server.should_exit = True
            await job
    finally:
        listener.close()
