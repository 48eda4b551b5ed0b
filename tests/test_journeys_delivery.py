"""Journeys of deliveries: destinations that fail, heal, hang, ask for patience, or are gone."""

from __future__ import annotations

import asyncio
import itertools
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from receiver.emulator import directive
from tests.world import PRO, World, body_of, destination, script, sink, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Any

pytestmark = [pytest.mark.anyio, pytest.mark.engines]


@pytest.fixture(scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world whose one destination is tried four times."""
    async with world(tmp_path_factory.mktemp("delivery")) as built:
        yield built
        assert built.sink.answers == []


async def _delivery(here: World, task_id: str, state: str) -> dict[str, Any]:
    """The one delivery of a task, once it is in that state."""

    async def there() -> bool:
        return [item["state"] for item in await here.timeline(task_id, "delivery")] == [state]

    await here.eventually(there)
    [delivery] = await here.timeline(task_id, "delivery")
    return delivery


async def test_a_destination_that_fails_and_heals(here: World) -> None:
    """Tried again from its row until it is taken: the same `webhook-id`, a fresh timestamp and signature each time."""
    here.sink.answers[:] = [500, 404, 302]
    task_id = await here.created()
    await here.arrived(task_id, 4)
    await _delivery(here, task_id, "delivered")
    got = await here.arrived(task_id, 4)
    assert len(got) == 4
    assert len({one.id for one in got}) == 1
    assert len({one.body for one in got}) == 1
    attempts = await here.timeline(task_id, "attempt")
    assert [(one["number"], one["result"]) for one in attempts] == [
        (1, "transient"), (2, "transient"), (3, "transient"), (4, "ok")]  # fmt: skip
    assert [one["response"]["status"] for one in attempts] == [500, 404, 302, 200]
    waits = [
        (datetime.fromisoformat(then["started_at"]) - datetime.fromisoformat(before["started_at"])).total_seconds()
        for before, then in itertools.pairwise(attempts)
    ]
    assert all(wait >= least for wait, least in zip(waits, (0.05, 0.1, 0.2), strict=True)), waits


async def test_a_retry_is_signed_afresh(here: World) -> None:
    """The timestamp of an attempt is the attempt's, so a consumer's tolerance holds however late it comes."""
    here.sink.answers[:] = [(503, {"retry-after": "1"})]
    task_id = await here.created()
    first, second = await here.arrived(task_id, 2)
    assert second.at - first.at >= 0.99
    assert int(second.headers["webhook-timestamp"]) > int(first.headers["webhook-timestamp"])
    assert second.headers["webhook-signature"] != first.headers["webhook-signature"]
    await _delivery(here, task_id, "delivered")
    assert [one["result"] for one in await here.timeline(task_id, "attempt")] == ["throttled", "ok"]


async def test_a_destination_that_never_heals(here: World) -> None:
    """As many attempts as the schedule has entries, and then `dead`, visibly; the task itself is as it is."""
    here.sink.answers[:] = [500] * 4
    task_id = await here.created()
    delivery = await _delivery(here, task_id, "dead")
    assert delivery["attempt_count"] == 4
    attempts = await here.timeline(task_id, "attempt")
    assert attempts[-1]["next_at"] is None
    assert "last of 4" in attempts[-1]["reason"]
    assert await here.state(task_id) == "succeeded"


@pytest.mark.parametrize("answer", [410, (400, {"webhook-delivery": "abort-message"})], ids=["410", "abort"])
async def test_a_destination_that_says_stop(here: World, answer: Any) -> None:
    """410, and `webhook-delivery: abort-message`, end the delivery at once."""
    here.sink.answers[:] = [answer]
    task_id = await here.created()
    delivery = await _delivery(here, task_id, "dead")
    assert delivery["attempt_count"] == 1
    assert here.service is not None
    await here.service.deliverer.resume("sink")  # 410 has paused it


async def test_any_2xx_is_success(here: World) -> None:
    """204 and 299 are as good as 200."""
    here.sink.answers[:] = [299]
    await here.whole(await here.created())


async def test_a_destination_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    """One hangs with all its slots taken; the other gets everything at once; what broke off is tried again."""
    async with sink() as slow:
        slow.answers[:] = [None] * 2

        def change(given: dict[str, Any]) -> None:
            given["destinations"].append(destination("slow", slow.url, max_concurrency=2, timeout="60s"))

        async with world(tmp_path, change=change) as here:
            answers = await asyncio.gather(*(here.submit(PRO, script()) for _ in range(8)))
            ids = [answer.json()["id"] for answer in answers]
            for task_id in ids:
                await here.arrived(task_id)
            await slow.until(lambda: len(slow.received) >= 2)
            assert len(slow.received) == 2  # both slots still hang: the others' way was not through them
            await slow.close()  # what hangs there: who comes after them is let in
            for task_id in ids:
                await slow.until(lambda one=task_id: bool(slow.of(one)))  # type: ignore[misc]
            for task_id in ids:
                await here.eventually(lambda one=task_id: here.all_delivered(one))  # type: ignore[misc]
            assert len(slow.received) == 10


async def test_a_destination_that_nobody_listens_at(tmp_path: Path) -> None:
    """Connection refused is a failed attempt like any other, with its reason in words."""

    def change(given: dict[str, Any]) -> None:
        given["destinations"][0]["url"] = "http://127.0.0.1:1/hook"
        given["delivery"]["schedule"] = ["0s", "0s"]

    async with world(tmp_path, change=change) as here:
        task_id = await here.created()
        await _delivery(here, task_id, "dead")
        attempts = await here.timeline(task_id, "attempt")
        assert [one["response"] for one in attempts] == [None, None]
        assert "no connection" in attempts[0]["error"]


async def test_who_gets_what(tmp_path: Path) -> None:
    """Filters by route, by metadata and by the submitter's choice; whoever gets nothing is told of with the reason."""
    async with sink() as vfx, sink() as other:

        def change(given: dict[str, Any]) -> None:
            given["destinations"] += [
                destination("vfx", vfx.url, match={"metadata.team": "vfx"}),
                destination("other", other.url, routes=["runwayml/v1/image_to_video"]),
            ]

        async with world(tmp_path, change=change) as here:
            answer = await here.submit(PRO, script(), metadata={"team": "vfx", "n": 1})
            got = await here.whole(answer.json()["id"])
            assert got.data["metadata"] == {"team": "vfx", "n": 1}
            await vfx.until(lambda: len(vfx.received) == 1)
            skipped = await here.timeline(answer.json()["id"], "skip")
            assert [item["destination"] for item in skipped] == ["other"]
            assert skipped[0]["reason"]
            answer = await here.submit(PRO, script(), metadata={"team": "vfx"}, destinations=["vfx"])
            await vfx.until(lambda: len(vfx.received) == 2)
            assert here.sink.of(answer.json()["id"]) == []
            assert other.received == []


async def test_the_event_says_what_the_api_says(here: World) -> None:
    """The prompt and the times come through; the timestamp is the event's, in UTC to the millisecond."""
    prompt = f"a cat {directive(render=0.02)}"
    answer = await here.api.post("/tasks", json={"route": PRO, "input": body_of(PRO, prompt)})
    got = await here.whole(answer.json()["id"])
    task = await here.task(answer.json()["id"])
    assert got.data["prompt"] == prompt
    assert got.data["finished_at"] == task["finished_at"]
    assert task["finished_at"].endswith("Z")
