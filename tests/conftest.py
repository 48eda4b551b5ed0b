"""What all tests share: asynchronous ones run on asyncio, the loop that the service runs on; and the engines."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests import databases, pg_server
from tests.rooms import opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator
    from pathlib import Path

    from receiver.store import Store


# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")

_ends: list[Callable[[Callable[[], object]], None]] = []
"""Of the engine of this moment: what to call before it ends."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Of the widest scope, so that one world can serve all tests of a module."""
    return "asyncio"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the mark `engines` is made once for each engine, one with `engine(name)` for that one."""
    [wanted] = [mark.args for mark in metafunc.definition.iter_markers("engine")] or [()]
    if wanted or metafunc.definition.get_closest_marker("engines"):
        metafunc.parametrize("engine", wanted or databases.ENGINES, indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine that the tests of this moment work on, before any world of the module is built."""
    name: str = getattr(request, "param", "sqlite")
    databases.use(name)
    _ends.append(request.addfinalizer)
    yield name
    _ends.pop()
    databases.drop()
    databases.use("sqlite")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An open store on a new database."""
    async with opened(tmp_path) as one:
        yield one


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """What a module shares ends with the engine that it was made on: the tests of the other have their own."""
    made = yield
    if fixturedef.scope == "module" and fixturedef.argname != "engine":
        _ends[-1](partial(fixturedef.finish, request))  # type: ignore[arg-type]
    return made


@pytest.fixture(autouse=True)
def _own_databases(engine: str) -> Iterator[None]:
    """What a test makes for itself on a server is gone after it."""
    there = len(databases.now.made)
    yield
    databases.drop(keep=there)


@pytest.fixture(scope="module")
def server() -> Iterator[pg_server.Server]:
    """A PostgreSQL of this module's own, which it may stop and start."""
    with pg_server.server() as made:
        yield made


@pytest.fixture(scope="session", autouse=True)
def _server() -> Iterator[None]:
    """The server that some tests started is stopped."""
    yield
    databases.end()


# A shell that starts the tests in the background lets them, and so every process they start, ignore Ctrl-C; some tests
# are about Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
