"""The composition root: from a configuration to a running service. Only cli imports it.

Here is the one clock and the one source of chance; everything else is told the time and given its dice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from receiver.app import process
from receiver.app.chance import Entropy, clock
from receiver.app.server import Server
from receiver.app.service import Service
from receiver.errors import StoreUnavailable
from receiver.store.dialect.sqlite import take_fewer_locks

if TYPE_CHECKING:
    from receiver.config import Config

__all__ = ["Entropy", "Server", "Service", "StoreUnavailable", "clock", "serve"]


async def serve(config: Config, *, host: str | None = None, port: int | None = None) -> None:
    """Run the service until SIGTERM or SIGINT.

    Raises:
        StoreUnavailable, ConfigError: it cannot start; see `Service.start`.
    """
    process.keep_what_is_freed()
    take_fewer_locks()
    service = await Service.start(config)
    process.give_way()
    try:
        here = config.server
        await Server(service, host=host or here.host, port=here.port if port is None else port).serve()
    finally:
        if not service._stopping:  # noqa: SLF001 -- the server did not come up: its port is taken
            await service.drain()
        await service.close()
