"""Ports for services that are started again and again on the same one.

Law: each process of a test run has a range of its own, below those that the system gives to outgoing connections: what
is free stays free while the service is down.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from socketserver import TCPServer

FIRST, PORTS, PROCESSES = 20_000, 1_500, 8
"""Linux gives outgoing connections 32768 and up."""


_next = itertools.count(random.randrange(PORTS))


def free_port() -> int:
    """A port nobody has, and nobody was given lately: whoever was may not listen yet."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % PROCESSES
    first = FIRST + PORTS * process
    while True:
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", first + next(_next) % PORTS))
            return int(probe.getsockname()[1])


@contextmanager
def serving(server: TCPServer) -> Iterator[str]:
    """A server of the standard library, in a thread of its own: its URL over plain HTTP."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
