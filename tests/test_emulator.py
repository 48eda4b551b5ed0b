"""The emulator over real sockets: every route, shape and fault, as a client and a callback's receiver meet them."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import httpx
import pytest
from aiohttp import web

from receiver.emulator import EmulatorOptions, directive, running
from receiver.emulator.vocabulary import CALLBACK_SHAPES, LOOKUP_SHAPES, SUBMIT_SHAPES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from receiver.emulator import Emulator

pytestmark = pytest.mark.anyio

PRO = "/runway/pro/video2video"
V2V = "/runwayml/v1/video_to_video"
I2V = "/runwayml/v1/image_to_video"
HEADERS = {"authorization": "Bearer key-one", "x-runway-version": "2024-11-06"}
JSON = {"content-type": "application/json"}
URLS = ("video_url", "poster", "last_frame")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Call:
    """One callback as it arrived."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body.decode("utf-8-sig"))


@dataclass
class Sink:
    """Receives callbacks, and answers them with `statuses` in turn, then 200."""

    base_url: str = ""
    calls: list[Call] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def take(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        call = Call(request.method, request.path, request.query_string, headers, await request.read())
        async with self.changed:
            self.calls.append(call)
            self.changed.notify_all()
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200)

    async def wait(self, count: int = 1) -> list[Call]:
        async with asyncio.timeout(5), self.changed:
            await self.changed.wait_for(lambda: len(self.calls) >= count)
        return self.calls


@dataclass
class Stage:
    """An emulator, a client of it, and a sink for its callbacks."""

    client: httpx.AsyncClient
    sink: Sink
    emulator: Emulator

    def body(self, route: str, prompt: str, **over: Any) -> dict[str, Any]:
        bodies: dict[str, dict[str, Any]] = {
            PRO: {
                "callback_url": f"{self.sink.base_url}/callbacks/tokenAtoken",
                "video": "http://cdn.example.com/in.mp4",
                "model": "gen4",
                "prompt": prompt,
                "options": {"structure_transformation": 0.5, "flip": True, "seconds": 5},
            },
            V2V: {
                "videoUri": "https://cdn.example.com/in.mp4",
                "promptText": prompt,
                "seed": 1,
                "model": "gen4_aleph",
                "references": [],
                "ratio": "1280:720",
                "contentModeration": {"publicFigureThreshold": "auto"},
            },
            I2V: {"promptImage": "https://cdn.example.com/in.png", "model": "gen3a_turbo", "promptText": prompt},
        }
        return bodies[route] | over

    async def submit(self, route: str = PRO, prompt: str = "", **words: object) -> httpx.Response:
        text = f"{prompt} {directive(**words)}" if words else prompt or "a cat"
        return await self.client.post(route, json=self.body(route, text))

    async def create(self, route: str = PRO, **words: object) -> str:
        answer = (await self.submit(route, **words)).json()
        return str(answer["id"] if route != PRO else answer["data"]["task_id"])

    async def feed(self, task_id: str) -> httpx.Response:
        return await self.client.post("/runway/feed", json={"task_id": task_id})

    async def task(self, task_id: str) -> httpx.Response:
        return await self.client.get(f"/runwayml/v1/tasks/{task_id}")


@pytest.fixture(scope="module")
async def theatre() -> AsyncIterator[Stage]:
    sink = Sink()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", sink.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    sink.base_url = "http://{}:{}".format(*runner.addresses[0])
    async with (
        running() as upstream,
        httpx.AsyncClient(base_url=upstream.base_url, headers=HEADERS, trust_env=False) as client,
    ):
        yield Stage(client, sink, upstream.emulator)
    await runner.cleanup()


@pytest.fixture
async def stage(theatre: Stage) -> Stage:
    await theatre.emulator.reset(EmulatorOptions(render_seconds=0.0, hang_seconds=0.05))
    theatre.sink.calls.clear()
    theatre.sink.statuses.clear()
    return theatre


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


async def plan(stage: Stage, callback: str, count: int, **words: object) -> list[Call]:
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
    """Progress words that lead the plan are sent during the render, in order."""
    calls = await plan(stage, "queued+progress+ok", 3, render=0.06)
    assert [call.json["status"] for call in calls] == ["0", "1", "3"]


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
    assert stage.sink.calls == []
    assert (await stage.feed(task_id)).json()["status"] == "SUCCESS"
    assert len(await stage.sink.wait()) == 1


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


# -- faults of submissions

STATUS_FAULTS = {
    "429": (429, "rate_limit_exceeded"),
    "429-e2": (429, '"data":null'),
    "429-empty": (429, ""),
    "500": (500, "upstream_error"),
    "500-invalid": (500, '"code":"invalid_request"'),
    "503": (503, "service_unavailable"),
    "524-html": (524, "<html>"),
    "400-e4": (400, '{"error":"'),
    "401": (401, "comet_api_error"),
    "301": (301, "<html>"),
    "code": (200, '"code":1002'),
    "unreadable": (200, "<html>"),
    "empty": (200, ""),
    "scalar": (200, '"ok"'),
    "no-id": (200, '"data":{}'),
    "hang": (504, "<html>"),
}


@pytest.mark.parametrize("word", STATUS_FAULTS)
@pytest.mark.parametrize("after", ["", "-after"])
async def test_every_submit_fault_answers_so_and_creates_only_after(stage: Stage, word: str, after: str) -> None:
    """A fault is answered as documented; no task exists, unless it strikes after the task was made."""
    answer = await stage.submit(submit=word + after)
    status, text = STATUS_FAULTS[word] if word + after != "hang-after" else (200, '"task_id"')
    assert answer.status_code == status
    assert text in answer.text
    assert bool(answer.content) == bool(text)
    assert len(stage.emulator.tasks) == bool(after)
    assert stage.emulator.report()["faults"] == {f"submit={word}{after}": 1}
    if word == "301":
        assert answer.headers["location"]


@pytest.mark.parametrize("after", ["", "-after"])
async def test_resets_and_cut_answers_break_the_connection(stage: Stage, after: str) -> None:
    """`reset` gives no answer but a reset, `cut` half of one; the task exists only with `-after`."""
    with pytest.raises(httpx.ReadError):
        await stage.submit(submit="reset" + after)
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        await stage.submit(submit="cut" + after)
    assert len(stage.emulator.tasks) == 2 * bool(after)
    if after:
        assert len(await stage.sink.wait(2)) == 2


async def test_reset_is_a_real_reset(stage: Stage) -> None:
    """The client's socket sees ECONNRESET, not a polite end of stream."""
    reader, writer = await asyncio.open_connection(stage.client.base_url.host, stage.client.base_url.port)
    body = json.dumps(stage.body(PRO, directive(submit="reset"))).encode()
    head = "".join(f"{name}: {value}\r\n" for name, value in (HEADERS | JSON).items())
    writer.write(f"POST {PRO} HTTP/1.1\r\nhost: x\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_retry_after_comes_as_seconds_or_as_a_date(stage: Stage) -> None:
    """`retry_after` puts the header on a status fault; without it there is none."""
    assert "retry-after" not in (await stage.submit(submit="429")).headers
    assert (await stage.submit(submit="429", retry_after=7)).headers["retry-after"] == "7"
    assert (await stage.submit(submit="429", retry_after="date:7")).headers["retry-after"].endswith(" GMT")


async def test_submit_times_ends_the_fault(stage: Stage) -> None:
    """`submit_times=2` hits the first two submissions of that prompt, and no other prompt's count."""
    statuses = [(await stage.submit(submit="429", submit_times=2)).status_code for _ in range(3)]
    assert statuses == [429, 429, 200]
    assert (await stage.submit(prompt="another", submit="429", submit_times=2)).status_code == 429


# -- faults of lookups


@pytest.mark.parametrize(
    ("word", "status", "text"),
    [
        ("429", 429, "rate_limit_exceeded"), ("429-empty", 429, ""), ("500", 500, "upstream_error"),
        ("401", 401, "Invalid token"), ("502-html", 502, "<html>"), ("unreadable", 200, "<html>"), ("empty", 200, ""),
        ("scalar", 200, '"ok"'), ("null", 200, '"data":null'), ("hang", 200, "SUCC"), ("disagreeing", 200, '"state"'),
    ],
)  # fmt: skip
async def test_every_lookup_fault_strikes_both_routes_and_ends(stage: Stage, word: str, status: int, text: str) -> None:
    """A fault strikes the first `lookup_times` lookups of a task, on either route, and then the truth is told."""
    task_id = await stage.create(lookup=word, lookup_times=2)
    for answer in (await stage.feed(task_id), await stage.task(task_id)):
        assert answer.status_code == status
        assert text in answer.text
        assert bool(answer.content) == bool(text)
    assert (await stage.task(task_id)).json()["status"] == "SUCCEEDED"
    assert "state" not in (await stage.feed(task_id)).json()


@pytest.mark.parametrize("word", ["reset", "cut"])
async def test_lookups_can_break_the_connection(stage: Stage, word: str) -> None:
    """`lookup=reset` and `lookup=cut` break off, and the next lookup is answered."""
    task_id = await stage.create(lookup=word, lookup_times=1)
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        await stage.feed(task_id)
    assert (await stage.feed(task_id)).status_code == 200


async def test_task_not_exist_at_first_by_count_and_by_time(stage: Stage) -> None:
    """`missing` counts lookups of both routes together; `missing_for` lasts so long; it is HTTP 400 and E2."""
    task_id = await stage.create(missing=2)
    for answer in (await stage.feed(task_id), await stage.task(task_id)):
        assert answer.status_code == 400
        assert answer.json() == {"code": "task_not_exist", "message": "task_not_exist", "data": None}
    assert (await stage.task(task_id)).json()["status"] == "SUCCEEDED"
    fresh = await stage.create(missing_for=1000)
    assert (await stage.feed(fresh)).json()["code"] == "task_not_exist"
    blog = await stage.create(missing=1, lookup_shape="blog")
    answer = await stage.task(blog)
    assert (answer.status_code, answer.json()["status"]) == (200, "task_not_exist")


async def test_urlless_lookups_get_their_url_later(stage: Stage) -> None:
    """`urlless=1` shows a success without a URL once."""
    task_id = await stage.create(urlless=1)
    assert (await stage.task(task_id)).json()["output"] == []
    assert len((await stage.task(task_id)).json()["output"]) == 1


async def test_a_stopping_emulator_lets_go_of_those_who_hang() -> None:
    """Shutdown neither waits for a hang of a minute nor for a callback that is due in an hour."""
    begun = time.monotonic()
    async with running(EmulatorOptions(hang_seconds=60, callback_delay=3600, render_seconds=0)) as upstream:
        async with httpx.AsyncClient(base_url=upstream.base_url, headers=HEADERS, trust_env=False) as client:
            body = {"promptImage": "https://x.example/i.png", "model": "gen3a_turbo"}
            pro = Stage(client, Sink("http://127.0.0.1:1"), upstream.emulator).body(PRO, "a cat")
            assert (await client.post(PRO, json=pro)).status_code == 200
            body["promptText"] = directive(submit="hang-after")
            hanging = asyncio.create_task(client.post(I2V, json=body))
            while len(upstream.emulator.tasks) < 2:
                await asyncio.sleep(0)
            await upstream.emulator.close()
            assert (await hanging).status_code == 200
    assert time.monotonic() - begun < 10
