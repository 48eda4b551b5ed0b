"""A COMMIT whose answer is lost: carried out or not, whoever waits for it is told nothing wrong.

A real service in this process, on a real server, with a proxy between them that strikes just before a COMMIT or just
after it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pytest

from receiver.store import writer
from receiver.upstream import ROUTES
from tests import pg_server, world
from tests.pg_proxy import Proxy, proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import httpx

pytestmark = pytest.mark.anyio

MOMENTS = pytest.mark.parametrize("moment", ["before", "after"])
WAYS = pytest.mark.parametrize("way", ["api", "background", "drop-in"])


@dataclass
class Stage:
    """A world, what stands between it and its database, and the database itself."""

    world: world.World
    proxy: Proxy
    server: pg_server.Server
    database: str

    def rows(self, question: str, *values: Any) -> list[Any]:
        """Ask the database past the proxy."""
        return self.server.ask(question, values, database=self.database)

    async def submit(self, way: str, prompt: str) -> httpx.Response:
        """Submit by one of the ways in."""
        if way == "drop-in":
            base = f"http://127.0.0.1:{self.world.settings['server']['port']}"
            body = ROUTES[world.PRO].fill(world.body_of(world.PRO, prompt), seed=7)
            return await self.world.api.post(f"{base}/{world.PRO}", json=body)
        headers = {"prefer": "respond-async"} if way == "background" else {}
        document = {"route": world.PRO, "input": world.body_of(world.PRO, prompt)}
        return await self.world.api.post("/tasks", json=document, headers=headers)

    def paid(self, prompt: str) -> int:
        """How many renders there are of a prompt."""
        return sum(1 for task in self.world.upstream.tasks.values() if task.prompt == prompt)

    async def task_of(self, prompt: str) -> str:
        """The one task with that prompt, once it has ended."""
        [[task_id]] = self.rows("select id from tasks where prompt = %s", prompt)
        await self.world.ended(task_id)
        return str(task_id)


@pytest.fixture(scope="module", autouse=True)
def _impatient() -> Iterator[None]:
    """Give up after a second and a half: no setting makes it less than eight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "UNSURE_FOR", 1.5)
        yield


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory, server: pg_server.Server) -> AsyncIterator[Stage]:
    """A stage for all tests of this module."""
    async with _stage(tmp_path_factory.mktemp("stage"), server, "commits") as made:
        yield made


@asynccontextmanager
async def _stage(folder: Path, server: pg_server.Server, database: str) -> AsyncIterator[Stage]:
    with proxy(server.database(database)) as between:

        def change(given: dict[str, Any]) -> None:
            given["database"]["url"] = between.url
            given["polling"]["deadline"] = "3s"
            given["upstream"] |= {"timeout": "1s", "submit_retry": ["1s"]}

        async with world.world(folder, change=change) as made:
            yield Stage(made, between, server, database)


@WAYS
@MOMENTS
async def test_a_submission_is_made_once(stage: Stage, way: str, moment: Literal["before", "after"]) -> None:
    """Whether the server has done it or not: the caller is told of the one task, and it is paid for once."""
    prompt = world.script(callback="ok") + f" {way} {moment}"
    stage.proxy.arm(moment, prompt)
    answer = await stage.submit(way, prompt)
    assert stage.proxy.words is None, "the COMMIT was not hit"
    assert answer.status_code == {"api": 201, "background": 202, "drop-in": 200}[way], answer.text
    task_id = await stage.task_of(prompt)
    await stage.world.whole(task_id)
    assert stage.paid(prompt) == 1


async def test_what_was_on_its_way_all_the_while_comes_too_late(stage: Stage) -> None:
    """What the network held back and then delivers is refused, once the transaction was taken for not done."""
    prompt = world.script(callback="ok")
    stage.proxy.arm("late", prompt)
    answer = await stage.submit("api", prompt)
    said = await asyncio.to_thread(stage.proxy.release)
    stage.proxy.come_back()
    assert (answer.status_code, b"COMMIT" in said) == (503, False)
    assert stage.rows("select id from tasks where prompt = %s", prompt) == []
    assert stage.paid(prompt) == 0


@MOMENTS
@WAYS
async def test_nobody_is_told_wrong_while_it_stays_away(
    stage: Stage, way: str, moment: Literal["before", "after"]
) -> None:
    """504 that is not to be repeated, with the id of a task that is there or is not, and is not paid for unseen."""
    prompt = world.script(callback="ok") + f" away {way} {moment}"
    stage.proxy.arm(moment, prompt, away=True)
    answer = await stage.submit(way, prompt)
    assert stage.paid(prompt) == 0
    stage.proxy.come_back()
    assert answer.status_code == 504, answer.text
    assert answer.headers["x-should-retry"] == "false"
    [found] = [stage.rows("select id from tasks where prompt = %s", prompt)]
    told = answer.headers["receiver-task-id"]
    assert found == ([(told,)] if moment == "after" else [])
    if found:
        task = await stage.world.ended(told)
        assert task["state"] == ("rejected" if way == "drop-in" else "succeeded")
        assert stage.paid(prompt) == (0 if way == "drop-in" else 1)


@MOMENTS
async def test_a_callback_nobody_can_tell_of_is_to_come_again(stage: Stage, moment: Literal["before", "after"]) -> None:
    """503; and once it comes again there is one observation that counts, and one event."""
    task_id = await stage.world.created(render=60, callback="missing")
    task = await stage.world.task(task_id)
    words = f"the mark of {moment}, and away"
    body = {"task_id": task["upstream_id"], "status": "FAILED", "failure": words}
    stage.proxy.arm(moment, words, away=True)
    answer = await stage.world.call_back(task_id, body)
    stage.proxy.come_back()
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)

    async def taken() -> bool:
        return (await stage.world.call_back(task_id, body)).status_code == 200

    await stage.world.eventually(taken)
    assert await stage.world.verdicts(task_id) == ["accepted"] + ["duplicate"] * (moment == "after")
    assert stage.rows("select type from events where task_id = %s", task_id) == [("task.failed",)]
    # Also where it was born leased to one who never heard of it.
    await stage.world.whole(task_id, "task.failed")


@MOMENTS
async def test_what_the_queue_claimed_is_sent_all_the_same(stage: Stage, moment: Literal["before", "after"]) -> None:
    """The queue never hears whether its claim stands: nothing was sent, so the task is sent later, and once."""
    prompt = world.script(submit="429", submit_times=1) + f" queued {moment}"
    [task_id] = [(await stage.submit("api", prompt)).json()["id"]]
    stage.proxy.arm(moment, task_id, away=True)  # the next that bears the id is the claim, a second later

    async def hit() -> bool:
        return stage.proxy.words is None

    await stage.world.eventually(hit)
    await asyncio.sleep(3)
    stage.proxy.come_back()
    task = await stage.world.ended(task_id)
    assert (task["state"], stage.paid(prompt)) == ("succeeded", 1)


async def test_a_silent_database_is_gone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections stand and nobody answers: who waits is told 503 when the time is over, and all goes on afterwards."""
    task_id = await stage.world.created(render=60, callback="missing")
    task = await stage.world.task(task_id)
    assert stage.world.service is not None
    with monkeypatch.context() as patch:
        patch.setattr(stage.world.service.store.dialect, "_patience", 1.0)  # 35 s
        stage.proxy.go_away(mute=True)
        body = {"task_id": task["upstream_id"], "status": "FAILED", "failure": "no"}
        answer = await stage.world.call_back(task_id, body)
        stage.proxy.come_back()
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)

    async def taken() -> bool:
        return (await stage.world.call_back(task_id, body)).status_code == 200

    await stage.world.eventually(taken)
    await stage.world.whole(task_id, "task.failed")


@MOMENTS
async def test_a_callback_is_kept_once(stage: Stage, moment: Literal["before", "after"]) -> None:
    """200, one observation, one event."""
    task_id = await stage.world.created(render=60, callback="missing")
    task = await stage.world.task(task_id)
    words = f"the mark of {moment}"
    stage.proxy.arm(moment, words)
    body = {"task_id": task["upstream_id"], "status": "FAILED", "failure": words}
    answer = await stage.world.call_back(task_id, body)
    assert stage.proxy.words is None, "the COMMIT was not hit"
    assert answer.status_code == 200
    assert await stage.world.verdicts(task_id) == ["accepted"]
    await stage.world.whole(task_id, "task.failed")
