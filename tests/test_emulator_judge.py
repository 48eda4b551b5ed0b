"""The emulator as a judge: what it refuses and frowns at, its notes, its control plane, its luck and its words."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from receiver.emulator import EmulatorOptions, running
from tests.emulator_stage import HEADERS, I2V, PRO, V2V, built
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.emulator_stage import Stage

pytestmark = pytest.mark.anyio

GONE = object()


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


# -- strictness


@pytest.mark.parametrize(
    ("route", "over", "says"),
    [
        (PRO, {"callback_url": GONE}, '"code":"callback_url_empty"'),
        (PRO, {"callback_url": ""}, '"code":"callback_url_empty"'),
        (PRO, {"callback_url": 5}, '"code":"callback_url_empty"'),
        (PRO, {"callback_url": "ftp://x.example/y"}, '"code":"callback_url_empty"'),
        (PRO, {"callback_url": "/relative"}, '"code":"callback_url_empty"'),
        (PRO, {"callback_url": "http://[half"}, '"code":"callback_url_empty"'),
        (PRO, {"video": GONE}, "video is required"),
        (PRO, {"video": "in.mp4"}, "video must be an http(s) URL"),
        (PRO, {"model": GONE}, "model is required"),
        (PRO, {"prompt": 7}, "prompt is required and must be a string"),
        (PRO, {"options": GONE}, "options is required"),
        (PRO, {"options": {"seconds": "5"}}, "options.seconds must be an integer"),
        (PRO, {"options": {"flip": "yes"}}, "options.flip must be a boolean"),
        (PRO, {"options": {"structure_transformation": "0.5"}}, "structure_transformation must be a number"),
        (V2V, {"videoUri": GONE}, "videoUri is required"),
        (V2V, {"videoUri": "http://cdn.example.com/in.mp4"}, "videoUri must be an https URL"),
        (V2V, {"promptText": GONE}, "promptText is required"),
        (V2V, {"promptText": "😀" * 501}, "at most 1000 UTF-16 units"),
        (V2V, {"seed": 4294967296}, "seed must be an integer in 0..4294967295"),
        (V2V, {"seed": True}, "seed must be an integer"),
        (V2V, {"ratio": "1280x720"}, "must be written with a colon"),
        (V2V, {"references": {}}, "references must be an array"),
        (V2V, {"references": [{}]}, "references[0] must be"),
        (V2V, {"contentModeration": {}}, "contentModeration must be"),
        (I2V, {"promptImage": GONE}, "promptImage is required"),
        (I2V, {"promptImage": "in.png"}, "promptImage must be an https URL"),
        (I2V, {"model": 3}, "model is required and must be a string"),
        (I2V, {"promptText": "x" * 1001}, "promptText must be a string of at most 1000"),
        (I2V, {"duration": "5"}, "duration must be an integer"),
        (I2V, {"watermark": 1}, "watermark must be a boolean"),
    ],
)
async def test_what_the_schema_forbids_is_refused_and_noted(
    stage: Stage, route: str, over: dict[str, Any], says: str
) -> None:
    """A submission against the schema is a 400 in its route's error shape, makes no task, and is in the report."""
    body = {name: value for name, value in stage.body(route, "a cat", **over).items() if value is not GONE}
    answer = await stage.client.post(route, json=body)
    assert answer.status_code == 400
    assert says in answer.text
    if route == PRO:
        assert set(answer.json()) == {"code", "message", "data"}
    else:
        assert isinstance(answer.json()["error"], str)
    report = stage.emulator.report()
    assert (report["tasks"], report["refused_count"], report["created"]) == (0, 1, {})
    assert report["refused"][0]["route"] == route[1:]


@pytest.mark.parametrize(
    ("route", "over", "code"),
    [
        (PRO, {"options": {}}, "seconds-missing"),
        (PRO, {"options": {"seconds": 5, "structure_transformation": 1.5}}, "structure_transformation-range"),
        (PRO, {"callback_url": "https://hooks.example.com/" + "t" * 512}, "callback-url-long"),
        (PRO, {"callback_url": "https://10.0.0.8/t"}, "callback-url-private"),
        (PRO, {"callback_url": "https://hooks.example.com:8443/t"}, "callback-url-port"),
        (PRO, {"callback_url": "http://hooks.example.com/t"}, "callback-url-http"),
        (PRO, {"model": "gen9"}, "model-unknown"),
        (PRO, {"colour": "red"}, "unknown-member"),
        (V2V, {"callback_url": "https://hooks.example.com/t"}, "unknown-member"),
        (V2V, {"seed": GONE}, "seed-missing"),
        (V2V, {"references": [{"type": "image", "uri": "https://x.example/1.png"}] * 2}, "references-many"),
        (I2V, {"seed": 4294967295}, "seed-range"),
        (I2V, {"promptText": "x" * 513}, "promptText-long"),
        (I2V, {"duration": 7}, "duration-odd"),
        (I2V, {"promptImage": "http://cdn.example.com/in.png"}, "media-http"),
    ],
)
async def test_what_documents_only_advise_is_taken_with_a_warning(
    stage: Stage, route: str, over: dict[str, Any], code: str
) -> None:
    """Where documents contradict one another or only advise, the task is made and the report warns."""
    stage.emulator.configure(callback="missing")
    public = {"callback_url": "https://hooks.example.com/t"} if route == PRO else {}
    body = stage.body(route, "a cat", **{**public, **over})
    answer = await stage.client.post(route, json={name: value for name, value in body.items() if value is not GONE})
    assert answer.status_code == 200
    report = stage.emulator.report()
    assert (report["warned"], report["warnings"][0]["route"]) == ({code: 1}, route[1:])


async def test_a_clean_submission_from_a_public_service_earns_no_warning(stage: Stage) -> None:
    """The requests the documents ask for are taken without a word."""
    stage.emulator.configure(callback="missing")
    await stage.client.post(PRO, json=stage.body(PRO, "a cat", callback_url="https://hooks.example.com/callbacks/t"))
    await stage.client.post(V2V, json=stage.body(V2V, "a cat"))
    task_id = (await stage.client.post(I2V, json=stage.body(I2V, "a cat"))).json()["id"]
    await stage.feed(task_id)
    await stage.task(task_id)
    report = stage.emulator.report()
    assert (report["warned"], report["refused_count"], report["tasks"]) == ({}, 0, 3)


async def test_the_version_header_is_required_where_the_schema_says_so(stage: Stage) -> None:
    """Without X-Runway-Version the official create routes refuse; the others take it and warn."""
    key = {"authorization": "Bearer key-one"}
    async with httpx.AsyncClient(base_url=stage.client.base_url, headers=key, trust_env=False) as client:
        for route in (V2V, I2V):
            refused = await client.post(route, json=stage.body(route, "a cat"))
            assert (refused.status_code, "X-Runway-Version" in refused.text) == (400, True)
        made = await client.post(PRO, json=stage.body(PRO, "a cat"))
        await client.post("/runway/feed", json={"task_id": made.json()["data"]["task_id"]})
    report = stage.emulator.report()
    assert (report["refusals"], report["warned"]["version-missing"]) == ({"version-missing": 2}, 2)


@pytest.mark.parametrize("value", ["", "Basic a2V5", "Bearer", "Bearer other", "key-one"])
async def test_a_bad_bearer_is_401_on_every_route(stage: Stage, value: str) -> None:
    """Without a known key every route answers E1, and nothing is made."""
    stage.emulator.configure(keys=["key-one"])
    task_id = await stage.create()
    headers = {"authorization": value}
    answers = [await stage.client.post(r, json=stage.body(r, "a cat"), headers=headers) for r in (PRO, V2V, I2V)]
    answers.append(await stage.client.post("/runway/feed", json={"task_id": task_id}, headers=headers))
    answers.append(await stage.client.get(f"/runwayml/v1/tasks/{task_id}", headers=headers))
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["type"]) == (401, "comet_api_error")
        assert "(request id: " in answer.json()["error"]["message"]
    assert stage.emulator.report()["tasks"] == 1


@pytest.mark.parametrize(
    ("content", "content_type"),
    [(b"{", "application/json"), (b"[]", "application/json"), (b"", "application/json"), (b"{}", "text/plain")],
)
@pytest.mark.parametrize("route", [PRO, V2V, I2V, "/runway/feed"])
async def test_only_json_objects_are_read(stage: Stage, route: str, content: bytes, content_type: str) -> None:
    """Another content type, broken JSON or no object is E1 with code invalid_request."""
    answer = await stage.client.post(route, content=content, headers={"content-type": content_type})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


async def test_ids_are_visible_to_their_own_key_only(stage: Stage) -> None:
    """Another key's task, and one that never was, are both task_not_exist with HTTP 400."""
    task_id = await stage.create()
    other = {"authorization": "Bearer key-two"}
    answers = [
        await stage.client.get(f"/runwayml/v1/tasks/{task_id}", headers=other),
        await stage.client.post("/runway/feed", json={"task_id": task_id}, headers=other),
        await stage.task("no-such-task"),
    ]
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(400, "task_not_exist")] * 3
    assert (await stage.client.post("/runway/feed", json={})).json()["code"] == "invalid_request"


async def test_a_wrong_path_is_html(stage: Stage) -> None:
    """An unknown path or method is answered HTML, as vendors' edges do, and noted."""
    for answer in (await stage.client.get("/v1/nothing"), await stage.client.get(PRO)):
        assert (answer.status_code, answer.text[:6]) == (404, "<html>")
    assert stage.emulator.report()["refusals"] == {"wrong-path": 2}


async def test_a_task_paid_twice_is_noted(stage: Stage) -> None:
    """Two tasks under one callback URL are a repeated submission; the report names the URL."""
    await stage.create()
    assert stage.emulator.report()["repeated"] == []
    await stage.create()
    assert stage.emulator.report()["repeated"] == [f"{stage.sink.base_url}/callbacks/tokenAtoken"]


# -- the control plane


async def test_control_plane_reports_and_lists(stage: Stage) -> None:
    """The report and the tasks are there over HTTP, the bearer key is not."""
    task_id = await stage.create()
    await stage.feed(task_id)
    await stage.emulator.idle()
    report = (await stage.client.get("/_emulator/report")).json()
    assert report == json.loads(json.dumps(stage.emulator.report()))
    assert (report["created"], report["lookups_by_task"]) == ({PRO[1:]: 1}, {task_id: 1})
    listed = await stage.client.get("/_emulator/tasks")
    assert [(task["id"], task["phase"], task["received"]["model"]) for task in listed.json()] == [
        (task_id, "succeeded", "gen4"),
    ]
    assert listed.json()[0]["callbacks"] == [{"kind": "ok", "shape": "flat", "status": 200, "error": None}]
    assert "key-one" not in listed.text


async def test_control_plane_sends_callbacks_of_any_kind_shape_or_body(stage: Stage) -> None:
    """One callback now: as a kind and a shape, or with a body word for word; it answers with the receiver's status."""
    task_id = await stage.create(outcome="never", callback="missing")
    path = f"/_emulator/tasks/{task_id}/callback"
    stage.sink.statuses[:] = [404]
    sent = await stage.client.post(path, json={"kind": "progress", "shape": "enveloped"})
    assert sent.json() == {"kind": "progress", "shape": "enveloped", "status": 404, "error": None}
    assert stage.sink.calls[-1].json["data"]["status"] == "1"
    await stage.client.post(path, json={"body": "héllo", "content_type": "text/html"})
    assert (stage.sink.calls[-1].body, stage.sink.calls[-1].headers["content-type"]) == ("héllo".encode(), "text/html")
    await stage.client.post(path, json={"url": f"{stage.sink.base_url}/elsewhere"})
    assert stage.sink.calls[-1].path == "/elsewhere"


async def test_control_plane_ends_changes_and_resets(stage: Stage) -> None:
    """A render is ended by hand, options change for tasks to come, and a reset forgets everything."""
    task_id = await stage.create(outcome="never", callback="missing")
    ended = await stage.client.post(f"/_emulator/tasks/{task_id}/end", json={"outcome": "fail", "reason": "enough"})
    assert ended.json()["phase"] == "failed"
    assert (await stage.task(task_id)).json()["failure"] == "enough"
    changed = await stage.client.post("/_emulator/options", json={"lookup_shape": "3b", "render": 5})
    assert (changed.json()["lookup_shape"], changed.json()["render_seconds"]) == ("3b", 5)
    assert (await stage.feed(await stage.create())).json()["data"]["status"] == "QUEUED"
    await stage.client.post("/_emulator/reset", json={"seed": 4})
    assert (stage.emulator.tasks, stage.emulator.options.seed) == ({}, 4)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("options", {"lookup_shap": "3b"}, "unknown word 'lookup_shap'"),
        ("options", {"lookup_shape": "3z"}, "'3z' is not one of"),
        ("options", {"chances": {"callback=missing": 2}}, "between 0 and 1"),
        ("options", {"chances": {"callback=nothing": 0.5}}, "'nothing' is no callback"),
        ("options", {"keys": "one"}, "keys: a list of strings"),
        ("options", [], "must be a JSON object"),
        ("reset", {"render": -1}, "'-1' is no number of seconds"),
        ("tasks/none/end", {"outcome": "never"}, "'never' is not one of"),
        ("tasks/none/callback", {"kind": "odd"}, "'odd' is not one of"),
        ("tasks/none/callback", {"shape": "odd"}, "'odd' is not one of"),
        ("tasks/none/callback", {"colour": "red"}, "unknown member 'colour'"),
        ("tasks/none/callback", {"body": 5}, "body: must be a string"),
    ],
)
async def test_control_plane_names_what_it_does_not_know(stage: Stage, path: str, body: Any, says: str) -> None:
    """A mistake is a 400 that names it, and changes nothing."""
    before = stage.emulator.options
    answer = await stage.client.post(f"/_emulator/{path}", json=body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]
    assert stage.emulator.options == before
    assert (await stage.client.post("/_emulator/tasks/none/end", json={})).status_code == 404


# -- luck


async def history(seed: int) -> list[Any]:
    """What a client sees of an emulator whose every choice is left to luck."""
    chances = {"submit=429": 0.2, "fail": 0.5, "lookup=500": 0.3, "missing=1": 0.3}
    options = EmulatorOptions(
        seed=seed, render_seconds=0, submit_shape="random", lookup_shape="random", callback="missing", chances=chances
    )
    seen: list[Any] = []
    async with (
        running(options) as upstream,
        httpx.AsyncClient(base_url=upstream.base_url, headers=HEADERS, trust_env=False) as client,
    ):
        body = {"callback_url": "https://hooks.example.com/t", "video": "https://x.example/v.mp4", "model": "gen4"}
        for _ in range(20):
            answer = await client.post(PRO, json={**body, "prompt": "a cat", "options": {"seconds": 5}})
            seen.append((answer.status_code, sorted(answer.json())))
        for task_id in list(upstream.emulator.tasks):
            answer = await client.post("/runway/feed", json={"task_id": task_id})
            seen.append((task_id, answer.status_code, sorted(answer.json())))
    return seen


async def test_the_same_seed_gives_the_same_play() -> None:
    """Ids, shapes and faults repeat for a seed and an order of requests; another seed gives another play."""
    first, again, other = [await history(seed) for seed in (7, 7, 8)]
    assert first == again
    assert first != other
    assert len({json.dumps(line[-1]) for line in first}) > 4


async def test_cycle_takes_the_shapes_in_turn(stage: Stage) -> None:
    """`cycle` shows every shape of the route within as many lookups."""
    task_id = await stage.create(lookup_shape="cycle", outcome="never", callback="missing")
    shown = {json.dumps(sorted((await stage.feed(task_id)).json())) for _ in range(4)}
    assert len(shown) == 4


async def test_a_directive_beats_chance_and_chance_beats_options(stage: Stage) -> None:
    """Options are the ground, chances go over them, a prompt's directive over both."""
    stage.emulator.configure(outcome="never", callback="missing", chances={"fail": 1.0})
    assert (await stage.task(await stage.create())).json()["status"] == "FAILED"
    assert (await stage.task(await stage.create(outcome="succeed"))).json()["status"] == "SUCCEEDED"


# -- words


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fale", "unknown word 'fale'"),
        ("colour=red", "unknown word 'colour'"),
        ("callback=lost", "'lost' is no callback"),
        ("callback=", "'' is no callback"),
        ("render=soon", "'soon' is no number of seconds"),
        ("submit=799", "'799' is no fault"),
        ("submit=null", "'null' is no fault here"),
        ("lookup=reset-after", "'reset-after' is no fault here"),
        ("submit=ok-after", "'ok-after' is no fault here"),
        ("fail; succeed", "'outcome' is said twice"),
        ("=3", "has no word before its ="),
    ],
)
async def test_an_unknown_word_in_a_prompt_is_refused_by_name(stage: Stage, text: str, says: str) -> None:
    """A directive is strict: what is not known is answered 400, named, and no task is made."""
    answer = await stage.submit(prompt=f"a cat [emulator: {text}]")
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
    assert stage.emulator.report()["refusals"] == {"directive": 1}


# -- running


async def test_running_leaves_signals_alone() -> None:
    """Inside another's loop the emulator takes no signal handlers."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    async with running():
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


async def test_running_on_a_taken_port_is_an_error() -> None:
    """A port that is taken is an OSError, not a hang."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            async with running(port=taken.getsockname()[1]):
                pass


def test_serve_runs_until_it_is_told_to_stop() -> None:
    """`serve` answers on its port as a process of its own, and ends by SIGTERM."""
    port = free_port()
    code = f"from receiver.emulator import EmulatorOptions, serve; serve(EmulatorOptions(), port={port})"
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "WEB_CONCURRENCY": "4"}) as process:
        try:
            transport = httpx.HTTPTransport(retries=8)
            with httpx.Client(transport=transport, trust_env=False, base_url=f"http://127.0.0.1:{port}") as client:
                assert client.get("/_emulator/report").json()["tasks"] == 0
        finally:
            process.terminate()
        assert process.wait(10) in {0, -signal.SIGTERM}
