"""What all tests share: asynchronous ones run on asyncio, the loop that the service runs on."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Of the widest scope, so that one world can serve all tests of a module."""
    return "asyncio"
