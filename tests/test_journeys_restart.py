"""Journeys with a restart in the middle: whatever stage a task is in, the next process takes it from there."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from receiver import app
from receiver.app import service
from tests.world import I2V, PRO, V2V, body_of, script, world

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

pytestmark = [pytest.mark.anyio, pytest.mark.engines]


def _eager(given: dict[str, Any]) -> None:
    given["polling"]["callback_grace"] = "50ms"


async def test_between_the_submission_and_its_callback(tmp_path: Path) -> None:
    """The callback comes to the next process, whose keys are the same: it finds its task."""
    async with world(tmp_path) as here:
        task_id = await here.created(PRO, outcome="never", callback="ok")
        render = await here.rendering(task_id)
        await here.restart()
        here.upstream.end(render.id)
        got = await here.whole(task_id)
        assert got.data["via"] == "callback"


async def test_a_callback_that_came_while_nobody_listened(tmp_path: Path) -> None:
    """Lost for good, since the upstream promises no second try; polling finds the end after the restart."""
    async with world(tmp_path, change=_eager) as here:
        task_id = await here.created(PRO, outcome="never", callback="ok")
        render = await here.rendering(task_id)
        await here.stop()
        here.upstream.end(render.id)
        await here.upstream.idle()
        assert [sent.status for sent in render.callbacks] == [None]
        await here.start()
        got = await here.whole(task_id)
        assert got.data["via"] == "poll"


@pytest.mark.parametrize("route", [PRO, V2V, I2V])
async def test_while_it_is_polled(tmp_path: Path, route: str) -> None:
    """A lookup under way is let go, and asked again by the next process."""
    async with world(tmp_path, change=_eager) as here:
        task_id = await here.created(route, callback="missing", lookup="hang", lookup_times=1, hang=60)

        async def asked() -> bool:
            return (await here.rendering(task_id)).lookups > 0

        await here.eventually(asked)
        await here.restart()
        await here.whole(task_id)


async def test_while_it_waits_to_be_sent(tmp_path: Path) -> None:
    """A throttled submission is in the database: the next process sends it, in order, once."""
    async with world(tmp_path) as here:
        ids = [await here.created(V2V, status=202, submit="429", submit_times=1, retry_after="1")]
        document = {"route": V2V, "input": body_of(V2V, script())}
        behind = await here.api.post("/tasks", json=document, headers={"prefer": "respond-async"})
        ids.append(behind.json()["id"])
        await here.restart()
        for task_id in ids:
            await here.whole(task_id)
        prompts = [(await here.task(task_id))["input"]["promptText"] for task_id in ids]
        assert [task.prompt for task in here.upstream.tasks.values()] == prompts


async def test_between_two_attempts(tmp_path: Path) -> None:
    """A failed delivery waits in its row: the next process makes the next attempt, under the same `webhook-id`."""

    def change(given: dict[str, Any]) -> None:
        given["delivery"]["schedule"] = ["0s", "500ms"]

    async with world(tmp_path, change=change) as here:
        here.sink.answers[:] = [500]
        task_id = await here.created()
        await here.arrived(task_id)
        await here.restart()
        first, second = await here.arrived(task_id, 2)
        assert first.id == second.id
        attempts = await here.timeline(task_id, "attempt")
        assert [one["number"] for one in attempts] == list(range(1, len(attempts) + 1))


async def test_a_hanging_submission_is_awaited_on_stop(tmp_path: Path) -> None:
    """SIGTERM while the upstream ponders: its answer is a paid id, so it is awaited, told and stored."""
    async with world(tmp_path) as here:
        prompt = script(submit_delay=1, callback="missing")
        asking = asyncio.create_task(here.submit(PRO, prompt))

        async def sent() -> bool:
            return here.upstream.ledger.submissions.total() == 1

        await here.eventually(sent)
        await here.stop()
        answer = await asking
        assert answer.status_code == 201, answer.text
        [render] = here.upstream.tasks.values()
        here.settings["polling"]["callback_grace"] = "50ms"
        await here.start()
        task = await here.task(answer.json()["id"])
        assert (task["state"], task["upstream_id"]) == ("queued", render.id)


async def test_a_submission_that_hangs_past_its_timeout_is_ambiguous_after_the_stop(tmp_path: Path) -> None:
    """Awaited to `upstream.timeout` and no longer; what then is not known is never sent again."""

    def change(given: dict[str, Any]) -> None:
        given["upstream"]["timeout"] = "500ms"

    async with world(tmp_path, change=change) as here:
        asking = asyncio.create_task(here.submit(PRO, script(submit="hang-after", hang=60, callback="missing")))

        async def sent() -> bool:
            return len(here.upstream.tasks) == 1

        await here.eventually(sent)
        began = time.monotonic()
        await here.stop()
        assert time.monotonic() - began < 15
        answer = await asking
        assert (answer.status_code, answer.json()["state"]) == (202, "ambiguous")
        await here.start()
        [render] = here.upstream.tasks.values()
        await here.upstream.call(render.id)
        await here.whole(answer.json()["id"])
        assert here.upstream.ledger.submissions.total() == 1


async def test_a_hanging_attempt_is_handed_back_on_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A destination hangs: the stop does not wait for it longer than it drains; the next process delivers."""
    monkeypatch.setattr(service, "DRAIN_FOR", 0.3)

    def change(given: dict[str, Any]) -> None:
        given["delivery"]["timeout"] = "60s"

    async with world(tmp_path, change=change) as here:
        here.sink.answers[:] = [None]
        task_id = await here.created()
        await here.arrived(task_id)
        began = time.monotonic()
        await here.stop()
        assert time.monotonic() - began < 15
        await here.start()
        first, second = await here.arrived(task_id, 2)
        assert first.id == second.id
        await here.eventually(lambda: here.all_delivered(task_id))
        [delivery] = await here.timeline(task_id, "delivery")
        assert delivery["attempt_count"] == 1  # what was handed back spent no attempt


async def test_who_waits_is_let_go_on_stop(tmp_path: Path) -> None:
    """A caller that waits for a task's end gets the task as it is, and holds nothing up."""
    async with world(tmp_path) as here:
        task_id = await here.created(PRO, outcome="never", callback="missing")
        waiting = asyncio.create_task(here.api.get(f"/tasks/{task_id}", params={"wait": "60s"}))

        async def waits() -> bool:
            assert here.service is not None
            return bool(here.service.after._waiting)

        await here.eventually(waits)
        began = time.monotonic()
        await here.stop()
        assert time.monotonic() - began < 15
        assert (await waiting).json()["state"] == "queued"


@pytest.mark.engine("sqlite")
async def test_a_second_process_on_the_same_file_is_refused(tmp_path: Path) -> None:
    """One file, one serving process: the second says who has it, and touches nothing."""
    from receiver import config
    from receiver.errors import StoreUnavailable

    async with world(tmp_path) as here:
        with pytest.raises(StoreUnavailable, match="already serves"):
            await app.Service.start(config.load(here.folder / "config.toml", {}))
        await here.whole(await here.created())
