"""Journeys of submissions: taken, refused, throttled, ambiguous. What may have been sent is never sent twice."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.world import I2V, PRO, V2V, World, script, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Any

pytestmark = [pytest.mark.anyio, pytest.mark.engines]

AMBIGUOUS = ["hang-after", "reset-after", "500-after", "503-html-after", "408-after", "unreadable-after", "empty-after",
             "scalar-after", "no-id-after", "cut-after"]  # fmt: skip
"""Every way to leave open whether the upstream took it; here it did."""


def _short(given: dict[str, Any]) -> None:
    given["upstream"]["timeout"] = "1s"


@pytest.fixture(scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world that awaits a submission's answer for 1 s, and polls after 30 s where a callback may come."""
    async with world(tmp_path_factory.mktemp("submission"), change=_short) as built:
        yield built


# -- ambiguous -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", AMBIGUOUS)
async def test_an_ambiguous_submission_is_adopted_by_its_callback(here: World, fault: str) -> None:
    """202 `ambiguous`; the callback's id is adopted and looked up first; one creation, one end."""
    answer = await here.submit(PRO, script(submit=fault, hang=60, outcome="never"))
    assert (answer.status_code, answer.json()["state"]) == (202, "ambiguous"), answer.text
    task_id = answer.json()["id"]
    here.upstream.end((await here.rendering(task_id)).id)  # only now: after the submission was given up
    got = await here.whole(task_id)
    assert (got.data["via"], got.data["confirmed"]) == ("poll", True)
    assert got.data["upstream_id"] == (await here.rendering(task_id)).id
    assert await here.verdicts(task_id) == ["odd"]


@pytest.mark.parametrize("fault", ["hang", "reset", "500", "unreadable"])
async def test_an_ambiguous_submission_is_never_repeated(here: World, fault: str) -> None:
    """Not even where the upstream had not taken it: nobody can know."""
    before = here.upstream.ledger.submissions.total()
    task_id = await here.created(PRO, status=202, submit=fault, hang=2)
    other = await here.created(PRO)
    await here.whole(other)
    assert await here.state(task_id) == "ambiguous"
    assert here.upstream.ledger.submissions.total() == before + 2


async def test_a_callback_that_comes_before_the_submission_breaks_off(here: World) -> None:
    """Early, and then no answer: what was kept names the id, so it was taken (201); the id is looked up."""
    task_id = await here.created(PRO, status=201, submit="reset-after", callback="early")
    got = await here.whole(task_id)
    assert got.data["confirmed"] is True


async def test_a_callback_without_an_id_is_believed_where_nobody_can_be_asked(here: World) -> None:
    """Ambiguous, and the body names no id: there is nothing to look up, so it is the truth."""
    task_id = await here.taken(PRO, status=202, submit="reset-after", callback="no-id")
    got = await here.whole(task_id)
    assert (got.data["via"], got.data["confirmed"], got.data["upstream_id"]) == ("callback", False, None)
    assert got.data["video_url"].endswith(".mp4")


async def test_progress_adopts_an_ambiguous_submission_too(here: World) -> None:
    """Any callback that names the id gives it; the task then lives like any other."""
    task_id = await here.taken(PRO, status=202, submit="reset-after", callback="progress+ok", render=3600)
    await here.whole(task_id)
    assert (await here.observed(task_id, 2))[0] == "progress"


async def test_an_ambiguous_submission_is_adopted_by_hand(here: World) -> None:
    """An operator who found the id at the upstream gives it; it is looked up at once."""
    task_id = await here.created(V2V, status=202, submit="500-after")
    render = await here.rendering(task_id)
    answer = await here.api.post(f"/tasks/{task_id}/adopt", json={"upstream_id": render.id})
    assert (answer.status_code, answer.json()["upstream_id"]) == (200, render.id)
    await here.whole(task_id)
    again = await here.api.post(f"/tasks/{task_id}/adopt", json={"upstream_id": render.id})
    assert again.status_code == 409


async def test_an_ambiguous_submission_that_nobody_hears_of_is_lost(tmp_path: Path) -> None:
    """Without an id there is nobody to ask: lost at the deadline, and still recovered by a late callback."""

    def change(given: dict[str, Any]) -> None:
        _short(given)
        given["polling"]["deadline"] = "500ms"

    async with world(tmp_path, change=change) as brief:
        task_id = await brief.created(PRO, status=202, submit="reset-after", callback="missing")
        await brief.whole(task_id, "task.lost")
        task = await brief.task(task_id)
        lived = datetime.fromisoformat(task["finished_at"]) - datetime.fromisoformat(task["created_at"])
        assert lived.total_seconds() >= 0.5
        await brief.upstream.call((await brief.rendering(task_id)).id)
        got = await brief.whole(task_id, "task.succeeded", events=2)
        assert got.data["recovered"] is True


# -- throttled -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["429", "429-e2", "429-e4", "429-empty"])
async def test_a_throttled_submission_waits_and_is_sent_again(here: World, fault: str) -> None:
    """202 `pending`, in whatever dress the 429 came; sent again until it is taken; one creation."""
    answer = await here.submit(PRO, script(submit=fault, submit_times=2))
    assert (answer.status_code, answer.json()["state"]) == (202, "pending"), answer.text
    await here.whole(answer.json()["id"])
    assert await here.ready() == (200, [])


@pytest.mark.parametrize("when", ["1", "date:2"])
async def test_it_is_never_sent_before_retry_after(here: World, when: str) -> None:
    """`Retry-After`, in seconds or as a date, is waited for."""
    task_id = await here.created(V2V, status=202, submit="429", submit_times=1, retry_after=when)
    await here.whole(task_id)
    task = await here.task(task_id)
    waited = datetime.fromisoformat(task["submitted_at"]) - datetime.fromisoformat(task["created_at"])
    assert waited.total_seconds() >= 0.95


async def test_one_gate_a_route_in_order_of_creation(tmp_path: Path) -> None:
    """Behind a throttled task its route waits, in order of creation; another route is not held up."""
    async with world(tmp_path) as here:
        prompts = [script(submit="429", submit_times=1, retry_after="3600"), script(), script()]
        ids = []
        for prompt in prompts:
            answer = await here.submit(I2V, prompt)
            assert (answer.status_code, answer.json()["state"]) == (202, "pending"), answer.text
            ids.append(answer.json()["id"])
        status, reasons = await here.ready()
        assert status == 503
        assert I2V in reasons[0]
        await here.whole(await here.created(V2V))
        assert [await here.state(one) for one in ids] == ["pending"] * 3
        assert here.service is not None
        here.service.submitter.gates.max_concurrency = 1  # two who are sent at once may pass each other on the way
        _two_hours_later(here)
        for one in ids:
            await here.whole(one)
        taken = [task.prompt for task in here.upstream.tasks.values() if task.prompt in prompts]
        assert taken == prompts


def _two_hours_later(here: World) -> None:
    """All that submissions wait for is over: a wait in real time would be over too soon, or keep the test waiting."""
    assert here.service is not None
    sender, poller = here.service.submitter.sender, here.service.poller
    clock = sender.clock
    sender.clock = sender.gates.clock = poller.clock = lambda: clock() + timedelta(hours=2)
    sender.gates.freed.set()


async def test_respond_async_is_taken_at_once(here: World) -> None:
    """`Prefer: respond-async`: 202 `pending` at once, then sent; the refusal of such a one is an event."""
    headers = {"prefer": "respond-async"}
    document = {"route": V2V, "input": {"videoUri": "https://example.com/in.mp4", "promptText": script()}}
    answer = await here.api.post("/tasks", json=document, headers=headers)
    assert (answer.status_code, answer.json()["state"]) == (202, "pending")
    await here.whole(answer.json()["id"])
    document["input"] = {"videoUri": "https://example.com/in.mp4", "promptText": script(submit="400")}
    answer = await here.api.post("/tasks", json=document, headers=headers)
    got = await here.whole(answer.json()["id"], "task.rejected")
    assert got.data["upstream_id"] is None


async def test_a_submission_that_is_never_taken_is_rejected_at_its_deadline(tmp_path: Path) -> None:
    """Throttled past `submit_deadline`: rejected, with an event, since its caller was told 202; all is well then."""

    def change(given: dict[str, Any]) -> None:
        given["upstream"] |= {"submit_deadline": "400ms", "submit_retry": ["50ms"]}

    async with world(tmp_path, change=change) as brief:
        task_id = await brief.created(PRO, status=202, submit="429")
        got = await brief.whole(task_id, "task.rejected")
        assert "submit_deadline" in got.data["msg"]
        assert brief.upstream.tasks == {}

        async def calm() -> bool:
            return await brief.ready() == (200, [])

        await brief.eventually(calm)


async def test_an_upstream_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """Nothing listens there: surely not sent, so it is durably queued, and sent once somebody does."""

    def change(given: dict[str, Any]) -> None:
        given["upstream"]["base_url"] = "http://127.0.0.1:1"

    async with world(tmp_path, change=change) as away:
        answer = await away.submit(PRO, script())
        assert (answer.status_code, answer.json()["state"]) == (202, "pending"), answer.text
        away.settings["upstream"]["base_url"] = away.emulator.base_url
        await away.restart()
        await away.whole(answer.json()["id"])


# -- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status"),
    [("400", 400), ("400-e4", 400), ("403", 403), ("code", 422), ("301", 422), ("500-invalid", 422)],
)
async def test_a_refused_submission(here: World, fault: str, status: int) -> None:
    """A problem with the upstream's own words; the task is kept as `rejected`; no event, its caller has the refusal."""
    answer = await here.submit(PRO, script(submit=fault))
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert problem["type"] == "/docs/problems/upstream-refused"
    assert problem["upstream"]["body"]
    task = await here.task(problem["task_id"])
    assert task["state"] == "rejected"
    kinds = [item["kind"] for item in await here.timeline(problem["task_id"])]
    assert "event" not in kinds
    assert here.renders(task) == []


async def test_a_refusal_of_our_account(tmp_path: Path) -> None:
    """401 is about our key: 502 to the caller, the queue waits and says why, and goes on with the first one taken."""

    def change(given: dict[str, Any]) -> None:
        given["upstream"]["submit_retry"] = ["50ms", "1h"]  # by itself it is not well again within this test

    async with world(tmp_path, change=change) as barred:
        answer = await barred.submit(PRO, script(submit="401"))
        assert (answer.status_code, answer.json()["upstream"]["status"]) == (502, 401)
        status, reasons = await barred.ready()
        assert status == 503
        assert "account" in reasons[0]
        await barred.whole(await barred.created(PRO))
        assert await barred.ready() == (200, [])


async def test_readiness_does_not_hang_on_a_refusal_of_long_ago(tmp_path: Path) -> None:
    """Nothing waits for the account any more: a service that is not asked anything must become ready by itself."""

    def change(given: dict[str, Any]) -> None:
        given["upstream"]["submit_retry"] = ["50ms"]

    async with world(tmp_path, change=change) as barred:
        assert (await barred.submit(PRO, script(submit="401"))).status_code == 502

        async def calm() -> bool:
            return await barred.ready() == (200, [])

        await barred.eventually(calm)


async def test_a_queued_submission_waits_out_a_refusal_of_our_account(here: World) -> None:
    """Its caller was told 202: a bad key is mended and then it is sent; it is not rejected for it."""
    document = {"route": V2V, "input": {"videoUri": "https://example.com/in.mp4", "promptText": script(
        submit="401", submit_times=1)}}  # fmt: skip
    answer = await here.api.post("/tasks", json=document, headers={"prefer": "respond-async"})
    await here.whole(answer.json()["id"])


async def test_a_caller_who_waited_in_the_queue_is_told_what_is_so(tmp_path: Path) -> None:
    """Sent meanwhile and not answered yet, it is not called `pending`: that would mean that nothing was sent."""

    def change(given: dict[str, Any]) -> None:
        given["upstream"] |= {"max_concurrency": 1, "timeout": "3s"}

    async with world(tmp_path, change=change) as one:
        first = asyncio.create_task(one.submit(PRO, script(submit_delay=0.4)))  # and its slot is the second's
        await one.eventually(partial(_is_sending, one))
        second = await one.submit(PRO, script(submit="hang"))
        assert (second.status_code, second.json()["state"]) in {(202, "submitting"), (202, "ambiguous")}
        assert (await first).status_code == 201


async def _is_sending(one: World) -> bool:
    assert one.service is not None
    return one.service.submitter.gates.sending == 1


# -- by hand, and many ------------------------------------------------------------------------------------------------


async def test_a_cancelled_task_is_not_tracked_any_more(here: World) -> None:
    """200 and `task.cancelled`; what the upstream says later is late."""
    task_id = await here.created(PRO, outcome="never", callback="missing")
    answer = await here.api.post(f"/tasks/{task_id}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    await here.whole(task_id, "task.cancelled")
    assert (await here.api.post(f"/tasks/{task_id}/cancel")).status_code == 409
    render = await here.rendering(task_id)
    here.upstream.end(render.id)
    assert (await here.upstream.call(render.id)).status == 200
    assert await here.verdicts(task_id) == ["late"]
    await here.whole(task_id, "task.cancelled")


async def test_a_pending_task_that_is_cancelled_is_never_sent(tmp_path: Path) -> None:
    """Cancelled while it waits: the upstream never hears of it; its gate still opens only after `Retry-After`."""
    async with world(tmp_path) as here:
        task_id = await here.created(PRO, status=202, submit="429", submit_times=1, retry_after="3600")
        assert (await here.api.post(f"/tasks/{task_id}/cancel")).status_code == 200
        await here.whole(task_id, "task.cancelled")
        behind = await here.created(PRO, status=202)
        assert await here.state(behind) == "pending"
        _two_hours_later(here)
        await here.whole(behind)
        assert await here.ready() == (200, [])
        assert here.renders(await here.task(task_id)) == []


async def test_many_at_once_are_each_sent_once(tmp_path: Path) -> None:
    """More than may be sent at once: the rest waits its turn, each is taken once, each ends."""

    def change(given: dict[str, Any]) -> None:
        given["upstream"]["timeout"] = "20s"

    async with world(tmp_path, change=change) as here:
        prompts = [(route, script(submit_delay=0.02)) for route in (PRO, V2V, I2V) * 20]
        answers = await asyncio.gather(*(here.submit(route, prompt) for route, prompt in prompts))
        assert {answer.status_code for answer in answers} <= {201, 202}
        for answer in answers:
            await here.whole(answer.json()["id"])
