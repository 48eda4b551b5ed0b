"""Journeys of callbacks on the pro route: however they come, a task ends in one terminal event, delivered, signed."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from receiver.emulator.vocabulary import CALLBACK_SHAPES
from tests.world import World, show, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any

    from receiver.emulator.vocabulary import Outcome

pytestmark = [pytest.mark.anyio, pytest.mark.engines]
ENDS = {"succeed": "task.succeeded", "fail": "task.failed", "cancel": "task.cancelled"}


@pytest.fixture(scope="module")
async def patient(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world that asks nothing by itself for 30 s: what ends here, ended by a callback, or by what one set off."""
    async with world(tmp_path_factory.mktemp("patient")) as built:
        yield built


def _eager(given: dict[str, Any]) -> None:
    given["polling"]["callback_grace"] = "100ms"


@pytest.fixture(scope="module")
async def eager(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world that begins to poll after a tenth of a second."""
    async with world(tmp_path_factory.mktemp("eager"), change=_eager) as built:
        yield built


async def test_a_callback_ends_a_task(patient: World) -> None:
    """The plain way: submitted, called back, one event, delivered; nothing was asked on the way."""
    task_id = await patient.created()
    got = await patient.whole(task_id)
    assert got.data["via"] == "callback"
    assert got.data["confirmed"] is False
    assert got.data["recovered"] is False
    assert got.data["video_url"].endswith(".mp4")
    assert got.data["envelope"]["code"] == 200
    assert got.data["envelope"]["data"]["task_id"] == got.data["upstream_id"]
    assert (await patient.rendering(task_id)).lookups == 0


async def test_a_callback_before_the_submissions_answer(patient: World) -> None:
    """An early callback finds its task, is kept, and ends it as soon as the answer is in."""
    task_id = await patient.created(callback="early")
    got = await patient.whole(task_id)
    assert got.data["via"] == "callback"
    [callback] = await patient.timeline(task_id, "observation")
    assert callback["at"] <= (await patient.task(task_id))["submitted_at"]


async def test_an_early_callback_that_is_odd_is_looked_up(patient: World) -> None:
    """What is kept until the answer is in is judged then like any other: an odd one by a lookup."""
    task_id = await patient.created(callback="early", callback_shape="kie", outcome="fail")
    got = await patient.whole(task_id, "task.failed")
    assert got.data["confirmed"] is True


async def test_a_late_callback_changes_nothing(patient: World) -> None:
    """A poll won; the callback that comes after it is recorded as late, and nothing is forwarded twice."""
    task_id = await patient.created(callback="late", render=0)
    await patient.refresh(task_id)
    got = await patient.whole(task_id)
    assert got.data["via"] == "poll"
    assert await patient.observed(task_id, 1) == ["late"]
    await patient.whole(task_id)


async def test_a_doubled_callback_is_forwarded_once(patient: World) -> None:
    """The same body again is a duplicate: kept, answered, and no second event."""
    task_id = await patient.taken(callback="doubled")
    assert await patient.observed(task_id, 2) == ["accepted", "duplicate"]
    await patient.whole(task_id)
    assert await patient.called(task_id, 2) == [200, 200]


async def test_progress_after_the_end_changes_nothing(patient: World) -> None:
    """Reordered callbacks: the running that comes after the success takes nothing back."""
    task_id = await patient.taken(callback="reordered")
    assert await patient.observed(task_id, 2) == ["accepted", "late"]
    await patient.whole(task_id)


async def test_the_first_of_two_opposite_ends_wins(patient: World) -> None:
    """Success, then failure: the failure is recorded as late and forwarded to nobody."""
    task_id = await patient.taken(callback="ok+opposite")
    assert await patient.observed(task_id, 2) == ["accepted", "late"]
    await patient.whole(task_id, "task.succeeded")


async def test_the_first_of_two_opposite_ends_wins_even_where_it_is_wrong(patient: World) -> None:
    """A terminal word is believed as it comes; which came first decides, not which is nicer."""
    task_id = await patient.taken(callback="opposite+ok")
    assert await patient.observed(task_id, 2) == ["accepted", "late"]
    await patient.whole(task_id, "task.failed")


async def test_a_callback_that_never_comes(eager: World) -> None:
    """The callback is lost; polling finds the end."""
    task_id = await eager.created(callback="missing")
    got = await eager.whole(task_id)
    assert (got.data["via"], got.data["confirmed"]) == ("poll", True)
    assert await eager.verdicts(task_id) == []


async def test_another_tasks_id_is_looked_up(patient: World) -> None:
    """The token says which task it is; a body that names another id is not believed, the lookup decides."""
    task_id = await patient.taken(callback="tampered-id", outcome="fail")
    got = await patient.whole(task_id, "task.failed")
    assert (got.data["via"], got.data["confirmed"]) == ("poll", True)
    assert await patient.verdicts(task_id) == ["odd"]
    assert got.data["upstream_id"] == (await patient.rendering(task_id)).id


async def test_a_forged_token_is_refused_and_polling_finds_the_task(eager: World) -> None:
    """One letter of the token changed: 404, recorded with its reason and without the token; the task ends by poll."""
    task_id = await eager.created(callback="tampered-token")
    got = await eager.whole(task_id)
    assert got.data["via"] == "poll"
    assert await eager.called(task_id) == [404]
    service = eager.service
    assert service is not None

    async def noted() -> bool:
        refused = await service.store.read(lambda connection: service.store.events.refused(connection, 10))
        return [one.reason for one in refused] == ["forged"]

    await eager.eventually(noted)
    assert await eager.verdicts(task_id) == []


async def test_a_malformed_body_is_kept_and_looked_up(patient: World) -> None:
    """What cannot be understood but bears a good token is answered 200, kept raw, flagged, and the task is polled."""
    task_id = await patient.taken(callback="malformed")
    got = await patient.whole(task_id)
    assert got.data["via"] == "poll"
    [seen] = await patient.timeline(task_id, "observation")
    assert seen["verdict"] == "unreadable"
    assert seen["raw"].startswith('{"task_id": "')
    assert await patient.called(task_id) == [200]


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"42", b'"succeeded"', b"{}", b"\xff\xfe\x00", b"<html>503</html>", b'{"hello": "world"}'],
    ids=repr,
)
async def test_a_body_that_tells_of_no_task(patient: World, body: bytes) -> None:
    """Whatever stands in it: 200, kept raw, flagged `unreadable`, and the task is looked up at once."""
    task_id = await patient.created(callback="missing", render=0)
    answer = await patient.call_back(task_id, body)
    assert (answer.status_code, answer.json()) == (200, {"received": True})
    assert await patient.verdicts(task_id) == ["unreadable"]
    got = await patient.whole(task_id)
    assert got.data["via"] == "poll"


@pytest.mark.parametrize("outcome", ["succeed", "fail"])
async def test_status_and_state_that_disagree_are_looked_up(patient: World, outcome: Outcome) -> None:
    """Neither word of a body that contradicts itself is believed; the lookup decides."""
    task_id = await patient.taken(callback="disagreeing", callback_shape="enveloped", outcome=outcome)
    got = await patient.whole(task_id, ENDS[outcome])
    assert (got.data["via"], got.data["confirmed"]) == ("poll", True)
    assert await patient.verdicts(task_id) == ["odd"]


async def test_a_success_without_a_url_that_the_lookup_has(patient: World) -> None:
    """The callback forgot the URL; the lookup it sets off has it."""
    task_id = await patient.created(callback="no-url")
    got = await patient.whole(task_id)
    assert got.data["video_url"].endswith(".mp4")
    assert (await patient.rendering(task_id)).lookups == 1


async def test_a_success_whose_url_appears_on_the_second_lookup(patient: World) -> None:
    """A success is asked again, at the polling interval, until it has its URL."""
    task_id = await patient.created(callback="no-url", urlless=1)
    got = await patient.whole(task_id)
    assert got.data["video_url"].endswith(".mp4")
    assert (await patient.rendering(task_id)).lookups == 2


async def test_a_success_that_never_gets_a_url(patient: World) -> None:
    """After five lookups without one, a success without a URL is the truth."""
    task_id = await patient.created(callback="no-url", urlless=100)
    got = await patient.whole(task_id)
    assert got.data["video_url"] is None
    assert got.data["envelope"]["code"] == 200
    assert (await patient.rendering(task_id)).lookups == 5


async def test_a_callback_without_an_id_is_believed(patient: World) -> None:
    """A missing id is not odd: the token says which task it is."""
    task_id = await patient.taken(callback="no-id")
    got = await patient.whole(task_id)
    assert got.data["via"] == "callback"
    assert await patient.verdicts(task_id) == ["accepted"]


async def test_something_appended_to_the_url(patient: World) -> None:
    """Some upstreams append a path and a query; the task is found all the same."""
    task_id = await patient.created(callback="appended")
    got = await patient.whole(task_id)
    assert got.data["via"] == "callback"


async def test_a_get_on_the_callback_url_wakes_the_poller(patient: World) -> None:
    """An upstream that only knocks (GET) is answered 200; the knock says nothing, the lookup it sets off does."""
    task_id = await patient.created(callback="probe")
    got = await patient.whole(task_id)
    assert got.data["via"] == "poll"
    assert await patient.verdicts(task_id) == []


@pytest.mark.parametrize(("shape", "outcome"), list(itertools.product(CALLBACK_SHAPES, ENDS)))
async def test_every_shape_of_callback(patient: World, shape: str, outcome: str) -> None:
    """Each documented dress of a callback, with each end: read alike, forwarded alike."""
    task_id = await patient.created(callback_shape=shape, outcome=outcome, reason="too dark")
    got = await patient.whole(task_id, ENDS[outcome])
    assert (got.data["code"] == 200) is (outcome == "succeed")
    if outcome == "succeed":
        assert got.data["video_url"].endswith(".mp4"), show(await patient.timeline(task_id))
        assert got.data["failure"] is None
    else:
        assert got.data["video_url"] is None
    if outcome == "fail":
        assert (got.data["failure"], got.data["msg"]) == ("too dark", "too dark")
