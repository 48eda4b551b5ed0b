"""The tests' own ground: a module's world is on the engine that its tests are named for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import databases
from tests.rooms import opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from receiver.store import Store

pytestmark = [pytest.mark.anyio, pytest.mark.engines]


@pytest.fixture(scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    """One for all tests of the module; it names no engine."""
    async with opened(tmp_path_factory.mktemp("store")) as one:
        yield one


async def test_a_module_has_a_world_for_each_engine(store: Store, engine: str) -> None:
    """It is built anew when the engine changes."""
    assert store.dialect.name == engine == databases.now.engine


async def test_it_is_there_for_the_next_test_of_that_engine(store: Store, engine: str) -> None:
    """And until then it is kept."""
    assert store.dialect.name == engine
    assert databases.ask(store.dialect.url, "SELECT count(*) FROM tasks") == [(0,)]


@pytest.mark.engine("sqlite")
def test_a_test_about_one_engine_runs_on_that(engine: str) -> None:
    """Whatever the module's mark."""
    assert engine == "sqlite"
