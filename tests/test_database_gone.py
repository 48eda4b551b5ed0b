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
    from pathlib import Path

pytestmark = pytest.mark.anyio

WITHIN = 10.0
"""Seconds from SIGTERM to the exit (app/service.py)."""


@pytest.mark.parametrize("mute", [False, True], ids=["refused", "unheard"])
async def test_sigterm_while_it_is_gone(tmp_path: Path, server: pg_server.Server, *, mute: bool) -> None:
    """Whether connections are refused or nobody answers at all: exit code 0, within ten seconds."""
    with proxy(server.url("postgres")) as between:

        def change(given: dict[str, Any]) -> None:
            given["database"]["url"] = between.url

        async with fleet.fleet(tmp_path, server, "a", EmulatorOptions(seed=mute), change) as scene:
            await scene.start()
            caller = asyncio.create_task(scene.call(0, "a", pause=0.1))

            async def told() -> bool:
                return len(scene.told) >= 3

            await until(told, "three answers")
            scene.over = True
            await caller  # with an answer in hand that is paid for and not stored, it would wait for the database
            between.go_away(mute=mute)
            one = scene.instances["a"]

            seen = "store_unavailable"

            async def noticed() -> bool:
                return mute or seen in one.last_words()

            await until(noticed, "the service to notice")
            one.kill(signal.SIGTERM)
            began = time.monotonic()
            assert await one.gone() == 0, one.last_words()
            took = time.monotonic() - began
            assert took < WITHIN, one.last_words()
