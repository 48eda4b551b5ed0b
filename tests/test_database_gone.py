"""The database is gone, and the service is told to stop: it ends in time, and well."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from receiver.emulator import EmulatorOptions
from tests import fleet, pg_server
from tests.pg_proxy import proxy
from tests.victim import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

WITHIN = 10.0
"""Seconds from SIGTERM to the exit (app/service.py)."""


@pytest.fixture(scope="module")
def server() -> Iterator[pg_server.Server]:
    """A server for this module."""
    with pg_server.server() as made:
        yield made


@pytest.mark.parametrize("mute", [False, True], ids=["refused", "unheard"])
async def test_sigterm_while_it_is_gone(tmp_path: Path, server: pg_server.Server, *, mute: bool) -> None:
    """Whether connections are refused or nobody answers at all: exit code 0, within ten seconds."""
    with proxy(server.url("postgres")) as between:

        def change(given: dict[str, Any]) -> None:
            given["database"]["url"] = between.url

        async with fleet.fleet(tmp_path, server, "a", EmulatorOptions(seed=mute), change) as scene:
            await scene.start()
            callers = [asyncio.create_task(scene.call(number, "a", pause=0.1)) for number in range(3)]

            async def told() -> bool:
                return len(scene.told) >= 10

            await until(told, "ten answers")
            between.go_away(mute=mute)
            one = scene.instances["a"]

            async def noticed() -> bool:
                return between.refused >= 1 or mute

            await until(noticed, "the service to notice")
            await asyncio.sleep(1)
            one.kill(signal.SIGTERM)
            began = time.monotonic()
            assert await one.gone() == 0, one.last_words()
            took = time.monotonic() - began
            for caller in callers:
                caller.cancel()
            assert took < WITHIN, one.last_words()
