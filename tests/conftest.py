"""What all tests share: asynchronous ones run on asyncio, the loop that the service runs on."""

import signal

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Of the widest scope, so that one world can serve all tests of a module."""
    return "asyncio"


# A shell that starts the tests in the background lets them, and so every process they start, ignore Ctrl-C; some tests
# are about Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
