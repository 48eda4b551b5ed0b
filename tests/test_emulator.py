"""The emulator over real sockets: every route, every shape and every kind of callback."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest

from receiver.emulator.vocabulary import CALLBACK_SHAPES, LOOKUP_SHAPES, SUBMIT_SHAPES
from tests.emulator_stage import I2V, PRO, V2V, Call, built

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.emulator_stage import Stage


pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Uvicorn runs on asyncio."""
    return "asyncio"


@pytest.fixture(scope="module")
async def theatre() -> AsyncIterator[Stage]:
    """One stage for all tests here."""
    async with built() as stage:
        yield stage


@pytest.fixture
async def stage(theatre: Stage) -> Stage:
    """The stage, swept."""
    await theatre.sweep()
    return theatre


URLS = ("video_url", "poster", "last_frame")


# -- the happy path of each route


async def test_pro_route_goes_from_submission_to_callback_and_lookup(stage: Stage) -> None:
    """A pro submission is answered as 2c, called back flat, and both lookups show the same URL."""
    answer = (await stage.submit()).json()
    assert answer == {"code": 200, "message": "", "msg": "success", "data": {"task_id": answer["data"]["task_id"]}}
    task_id = answer["data"]["task_id"]
    [call] = await stage.sink.wait()
    assert (call.method, call.path, call.json["task_id"]) == ("POST", "/callbacks/tokenAtoken", task_id)
    assert (call.json["status"], call.json["refund"], call.json["msg"]) == ("3", "0", None)
    fed, flat = (await stage.feed(task_id)).json(), (await stage.task(task_id)).json()
    assert fed["status"] == "SUCCESS"
    assert flat["status"] == "SUCCEEDED"
    assert flat["output"] == [fed["result_url"]] == [call.json["video_url"]]


@pytest.mark.parametrize("route", [V2V, I2V])
async def test_official_routes_answer_an_id_and_never_call_back(stage: Stage, route: str) -> None:
    """An official submission is answered {"id"}, its lookups show the end, and nothing is called back."""
    answer = await stage.submit(route)
    assert list(answer.json()) == ["id"]
    found = (await stage.task(answer.json()["id"])).json()
    assert found["status"] == "SUCCEEDED"
    assert found["createdAt"].endswith("Z")
    await stage.emulator.idle()
    assert stage.sink.calls == []


async def test_a_failed_render_is_refunded_and_says_why(stage: Stage) -> None:
    """A scripted failure shows status 2, refund 1 and the reason, in callback and lookup."""
    task_id = await stage.create(outcome="fail", reason="the cat moved")
    [call] = await stage.sink.wait()
    assert [call.json[name] for name in ("status", "refund", "msg", *URLS)] == ["2", "1", "the cat moved", *[None] * 3]
    flat = (await stage.task(task_id)).json()
    assert (flat["status"], flat["failure"]) == ("FAILED", "the cat moved")
    fed = (await stage.feed(task_id)).json()
    assert (fed["status"], fed["progress"], fed["result_url"]) == ("FAILURE", "100%", "the cat moved")


async def test_a_render_goes_through_queued_and_running(stage: Stage) -> None:
    """Before its end a task is PENDING, then RUNNING with progress; one that never ends can be ended by hand."""
    queued = await stage.create(render=1000)
    assert (await stage.task(queued)).json()["status"] == "PENDING"
    task_id = await stage.create(outcome="never")
    assert (await stage.task(task_id)).json() | {"createdAt": ""} == {
        "id": task_id, "status": "RUNNING", "createdAt": "", "progress": 0.5,
    }  # fmt: skip
    stage.emulator.end(task_id, outcome="cancel")
    assert (await stage.task(task_id)).json()["status"] == "CANCELLED"
    [call] = await stage.sink.wait()
    assert call.json["status"] == "cancelled"


# -- shapes


@pytest.mark.parametrize("shape", SUBMIT_SHAPES)
async def test_every_submit_shape_carries_the_id(stage: Stage, shape: str) -> None:
    """2a has the whole object with status "0", 2b and 2c the id alone; `exec_time` and `message` tell them apart."""
    body = (await stage.submit(submit_shape=shape)).json()
    assert body["code"] == 200
    assert body["data"]["task_id"] in stage.emulator.tasks
    assert ("exec_time" in body, "message" in body) == (shape != "2c", shape == "2c")
    assert body["data"].get("status") == ("0" if shape == "2a" else None)


@pytest.mark.parametrize("shape", LOOKUP_SHAPES)
@pytest.mark.parametrize("outcome", ["succeed", "fail", "cancel", "never"])
async def test_every_lookup_shape_speaks_its_dialect_on_both_routes(stage: Stage, shape: str, outcome: str) -> None:
    """Each shape says each outcome in its own words, and both lookups answer alike."""
    task_id = await stage.create(outcome=outcome, lookup_shape=shape, callback="missing")
    body = (await stage.feed(task_id)).json()
    assert body == (await stage.task(task_id)).json()
    words = {
        "3a": ("3", "2", "cancelled", "1"),
        "4.4b": ("SUCCEEDED", "FAILED", "CANCELLED", "RUNNING"),
        "blog": ("succeeded", "failed", "cancelled", "running"),
        "id-only": (None,) * 4,
    }.get(shape, ("SUCCESS", "FAILURE", "CANCELLED", "IN_PROGRESS"))
    level = body["data"] if shape in {"3a", "3b", "3b-historic", "3b-new", "4.4a"} else body
    assert level.get("status") == words[("succeed", "fail", "cancel", "never").index(outcome)]
    assert task_id in {level.get("task_id"), level.get("id")}
    has_url = "https://runwaycdn.example.com/" in json.dumps(body)
    assert has_url == (outcome == "succeed" and shape != "id-only")


async def test_wrapper_has_a_nested_object_with_an_offset(stage: Stage) -> None:
    """3b nests the provider's object, whose createdAt bears +08:00, and its times are whole numbers."""
    row = (await stage.feed(await stage.create(V2V, lookup_shape="3b"))).json()["data"]
    assert row["data"]["createdAt"].endswith("+08:00")
    assert row["data"]["output"][0].endswith(".mp4")
    assert isinstance(row["submit_time"], int)
    assert isinstance(row["finish_time"], int)


async def test_newer_row_has_an_integer_id_and_old_ones_hide_the_url_in_fail_reason(stage: Stage) -> None:
    """Traps 6.1, 6.2 and 8.2: a row number as id, the reason as result_url, the URL as fail_reason."""
    new = (await stage.feed(await stage.create(outcome="fail", lookup_shape="3b-new", reason="no"))).json()["data"]
    assert (new["id"], new["result_url"]) == (1, "no")
    old = (await stage.feed(await stage.create(lookup_shape="3b-historic"))).json()["data"]
    assert (old["status"], old["fail_reason"][:8]) == ("SUCCESS", "https://")


async def test_feed_and_tasks_can_wear_different_shapes(stage: Stage) -> None:
    """`feed_shape` and `tasks_shape` are set apart, so that one route is of no use and the other is."""
    task_id = await stage.create(feed_shape="id-only", tasks_shape="3a")
    assert (await stage.feed(task_id)).json() == {"task_id": task_id}
    assert (await stage.task(task_id)).json()["data"]["state"] == "succeeded"


@pytest.mark.parametrize("shape", CALLBACK_SHAPES)
@pytest.mark.parametrize("outcome", ["succeed", "fail"])
async def test_every_callback_shape_tells_the_outcome(stage: Stage, shape: str, outcome: str) -> None:
    """Each shape names the task, and bears the URL exactly when the render succeeded."""
    task_id = await stage.create(outcome=outcome, callback_shape=shape)
    [call] = await stage.sink.wait()
    raw = gzip.decompress(call.body) if call.body.startswith(b"\x1f\x8b") else call.body
    assert task_id in raw.decode()
    assert (b"runwaycdn.example.com" in raw) == (outcome == "succeed")
    types = {"form": "application/x-www-form-urlencoded", "text": "text/plain; charset=utf-8"}
    assert call.headers["content-type"] == types.get(shape, "application/json")
    assert raw.startswith(b"\xef\xbb\xbf") == (shape == "bom")
    assert ("content-encoding" in call.headers) == (shape == "gzip")
    if shape == "form":
        assert parse_qs(raw.decode())["status"] == ["3" if outcome == "succeed" else "2"]
    if shape == "integers":
        assert json.loads(raw)["status"] == (3 if outcome == "succeed" else 2)


# -- kinds of callbacks


async def plan(stage: Stage, callback: str, count: int, **words: Any) -> list[Call]:
    """The callbacks of one task with such a plan, once there are so many and no more will come."""
    await stage.create(callback=callback, **words)
    await stage.sink.wait(count)
    await stage.emulator.idle()
    assert len(stage.sink.calls) == count
    return stage.sink.calls


async def test_missing_callbacks_do_not_come(stage: Stage) -> None:
    """`missing` sends nothing at all."""
    assert await plan(stage, "missing", 0) == []


async def test_doubled_callbacks_are_equal(stage: Stage) -> None:
    """`doubled` sends the same bytes twice."""
    first, second = await plan(stage, "doubled", 2)
    assert first.body == second.body


async def test_reordered_callbacks_go_back_in_time(stage: Stage) -> None:
    """`reordered` sends the end first and progress after it."""
    assert [call.json["status"] for call in await plan(stage, "reordered", 2)] == ["3", "1"]


async def test_progress_callbacks_come_before_the_end(stage: Stage) -> None:
    """Progress words that lead the plan are sent while the render goes on, the end when it is over."""
    task_id = await stage.create(callback="queued+progress+ok", outcome="never", render=0.02)
    assert [call.json["status"] for call in await stage.sink.wait(2)] == ["0", "1"]
    stage.emulator.end(task_id)
    assert [call.json["status"] for call in await stage.sink.wait(3)] == ["0", "1", "3"]


async def test_early_callback_arrives_before_the_answer(stage: Stage) -> None:
    """`early` is received before the submission is answered, and the lookups agree with it."""
    answer = await stage.submit(callback="early", render=1000)
    [call] = stage.sink.calls
    assert call.json["task_id"] == answer.json()["data"]["task_id"]
    assert (await stage.task(call.json["task_id"])).json()["status"] == "SUCCEEDED"


async def test_late_callback_follows_the_lookup_that_showed_the_end(stage: Stage) -> None:
    """`late` waits for a lookup to show the end; a lookup that does not show it does not release it."""
    task_id = await stage.create(callback="late", missing=1)
    await stage.feed(task_id)
    other = await stage.create()
    assert [call.json["task_id"] for call in await stage.sink.wait()] == [other]
    assert (await stage.feed(task_id)).json()["status"] == "SUCCESS"
    assert [call.json["task_id"] for call in await stage.sink.wait(2)] == [other, task_id]


async def test_tampered_id_names_another_task(stage: Stage) -> None:
    """`tampered-id` bears a task's id that is not this one's: an existing one's where there is one."""
    other = await stage.create(callback="missing")
    [call] = await plan(stage, "tampered-id", 1)
    assert call.json["task_id"] == other


async def test_tampered_token_alters_the_last_segment_only(stage: Stage) -> None:
    """`tampered-token` keeps length and path but for one letter in the middle of the token."""
    [call] = await plan(stage, "tampered-token", 1)
    assert call.path.startswith("/callbacks/token")
    assert call.path != "/callbacks/tokenAtoken"
    assert len(call.path) == len("/callbacks/tokenAtoken")


async def test_malformed_callback_is_no_json(stage: Stage) -> None:
    """`malformed` claims JSON and is none."""
    [call] = await plan(stage, "malformed", 1)
    assert call.headers["content-type"] == "application/json"
    with pytest.raises(ValueError, match=r"."):
        json.loads(call.body)


@pytest.mark.parametrize("shape", ["flat", "enveloped", "3b"])
async def test_disagreeing_callback_contradicts_itself(stage: Stage, shape: str) -> None:
    """`disagreeing` has `status` and `state` at one level say different ends."""
    [call] = await plan(stage, "disagreeing", 1, callback_shape=shape)
    level = call.json if shape == "flat" else call.json["data"]
    assert (level["status"], level["state"]) == ("SUCCESS" if shape == "3b" else "3", "failed")


async def test_no_url_no_id_and_opposite_callbacks(stage: Stage) -> None:
    """A success without URLs, a body without ids, and the end that did not happen."""
    bare, nameless, opposite = await plan(stage, "no-url+no-id+opposite", 3)
    assert [bare.json[name] for name in ("status", *URLS)] == ["3", None, None, None]
    assert "task_id" not in nameless.json
    assert (opposite.json["status"], opposite.json["video_url"]) == ("2", None)


async def test_probe_and_appended_callbacks(stage: Stage) -> None:
    """Siblings' habits: a GET with the id in the query, and a path and query behind the URL."""
    probe, appended = await plan(stage, "probe+appended", 2)
    assert (probe.method, probe.path, probe.query[:5]) == ("GET", "/callbacks/tokenAtoken", "uuid=")
    assert (appended.method, appended.path) == ("POST", "/callbacks/tokenAtoken/callback")


async def test_callbacks_are_repeated_only_when_asked(stage: Stage) -> None:
    """A 503 is not repeated by itself; with `callback_retries` it is, until a 2xx."""
    stage.sink.statuses[:] = [503]
    assert len(await plan(stage, "ok", 1)) == 1
    stage.sink.calls.clear()
    stage.sink.statuses[:] = [503, 500]
    await plan(stage, "ok", 3, callback_retries=5, callback_retry_gap=0)
    assert stage.emulator.report()["callbacks"]["answered"] == {"503": 2, "500": 1, "200": 1}


async def test_unreachable_receivers_are_noted(stage: Stage) -> None:
    """A refused connection and a name under .invalid are noted as unanswered."""
    for url in ("http://127.0.0.1:1/x", "https://callback.invalid/none"):
        await stage.client.post(PRO, json=stage.body(PRO, "a cat", callback_url=url))
    await stage.emulator.idle()
    assert stage.emulator.report()["callbacks"]["unanswered"] == {"ConnectError": 1, "unresolvable": 1}
