"""A route that the upstream throttles has one gate for all instances: its oldest task, and nobody passes it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from receiver.emulator import EmulatorOptions
from tests import world
from tests.test_instances_together import several

if TYPE_CHECKING:
    from pathlib import Path

    from tests import pg_server

pytestmark = pytest.mark.anyio

QUEUED = 40
TRIES = 10
"""Submissions of the oldest that are waited for."""


def _configure(given: dict[str, Any]) -> None:
    given["upstream"]["submit_retry"] = ["200ms"]


@pytest.mark.parametrize("count", [1, 3])
async def test_the_oldest_is_tried_and_no_other(tmp_path: Path, server: pg_server.Server, count: int) -> None:
    """What was sent before anybody knew of the throttle was sent once; from then on there is one that asks again."""
    database = f"gate_{count}"
    url = server.database(database)
    async with several(tmp_path, [url] * count, EmulatorOptions(submit="429"), _configure) as instances:

        async def queue(number: int) -> None:
            document = {"route": world.PRO, "input": world.body_of(world.PRO, f"clip {number}")}
            headers = {"prefer": "respond-async"}
            answer = await instances[number % count].api.post("/tasks", json=document, headers=headers)
            assert answer.status_code == 202

        await asyncio.gather(*map(queue, range(QUEUED)))

        async def enough() -> bool:
            return bool(server.ask("select max(submit_attempts) from tasks", database=database)[0][0] >= TRIES)

        await instances[0].eventually(enough)
    again = server.ask("select submit_attempts from tasks where submit_attempts > 2", database=database)
    assert len(again) == 1, again
