"""uvicorn, stopping by our order."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from receiver.app import service as rooms
from receiver.app.protocol import Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from receiver.app.service import Service


class Server(uvicorn.Server):
    """uvicorn, stopping by our order: take nothing new, await paid answers, give back the rest, and be gone.

    uvicorn's own way kills the process by the signal it was stopped with, before the store is closed, and cancels
    requests by one time limit for all. Here a request that waits for a submission's answer may take as long as that.
    """

    def __init__(self, service: Service, *, host: str, port: int) -> None:
        """One process, no access log (it would hold the callback tokens), no trust in forwarding headers."""
        super().__init__(
            uvicorn.Config(
                service.front,
                host=host,
                port=port,
                workers=1,
                http=Protocol,
                ws="none",
                access_log=False,
                log_config=None,
                lifespan="off",
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=30,
            )
        )
        self._service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT, and afterwards return as from any other call."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        service, listening = self._service, [s.getsockname() for server in self.servers for s in server.sockets]
        service.after.log.info(
            "service.started",
            listening=[f"{address[0]}:{address[1]}" for address in listening],
            public_url=service.config.server.public_url,
            database=service.store.dialect.name,
            destinations=sorted(destination.name for destination in service.config.destinations),
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain the service while the connections are closed."""
        watch = asyncio.create_task(self._hurry())
        drain = asyncio.create_task(self._service.drain())
        await super().shutdown(sockets)
        await drain
        watch.cancel()

    async def _hurry(self) -> None:
        """After the drain time, wait for nothing but answers that are paid for."""
        await asyncio.sleep(rooms.DRAIN_FOR)
        await self._service.submitter.sender.settled()
        await asyncio.sleep(0.5)  # their callers get the answer
        for request in list(self.server_state.tasks):
            request.cancel()
        self.force_exit = True
