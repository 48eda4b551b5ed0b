"""The API over real sockets: who may use it, what it takes and says, and that nothing is half done (contract 4.3)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from receiver.app import clock
from receiver.web import problems
from tests import databases
from tests.rooms import NOW, a_task, put, rows_of, until
from tests.world import API_KEY, I2V, PATIENCE, PRO, V2V, body_of, script, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.engines]

OTHER_KEY = "another-key-0123456789"


@pytest.fixture(scope="module")
async def it(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One world for all: each test has tasks of its own."""

    def change(given: dict[str, Any]) -> None:
        given["security"]["api_keys"] = [OTHER_KEY, API_KEY]

    async with world(tmp_path_factory.mktemp("api"), change=change) as one:
        yield one


def flaws(answer: httpx.Response) -> list[tuple[str | None, str | None]]:
    """Pointer and parameter of each error."""
    return [(one.get("pointer"), one.get("parameter")) for one in answer.json()["errors"]]


def is_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document, which is what RFC 9457 and the contract want."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert (document["type"], document["status"]) == (f"/docs/problems/{code}", status)
    assert document["title"]
    assert document["detail"]
    return document


# -- who may use it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer wrong", f"Basic {API_KEY}", API_KEY, f"Bearer {API_KEY}x", "Bearer clé"],
)
async def test_without_a_key_nothing_is_answered(it: World, authorization: str | None) -> None:
    """401 with the way to do it right, on every path of the API; nothing is stored."""
    fields = [] if authorization is None else [(b"authorization", authorization.encode("latin-1"))]
    async with httpx.AsyncClient(base_url=it.api.base_url, headers=fields, trust_env=False) as stranger:
        for method, path in (("GET", "/tasks"), ("POST", "/tasks"), ("GET", "/tasks/x"), ("POST", "/tasks/x/cancel")):
            answer = await stranger.request(method, path)
            is_problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("authorization", [f"Bearer {OTHER_KEY}", f"bearer {API_KEY}", f"Bearer  {API_KEY}"])
async def test_every_key_opens(it: World, authorization: str) -> None:
    """Each of `api_keys`, whatever the case of the scheme, from any host."""
    headers = {"authorization": authorization, "host": "hooks.example.com", "x-forwarded-for": "10.0.0.1"}
    assert (await it.api.get("/tasks", headers=headers)).status_code == 200


@pytest.fixture(scope="module")
async def keyless(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world without keys."""

    def change(given: dict[str, Any]) -> None:
        del given["security"]["api_keys"]

    async with world(tmp_path_factory.mktemp("keyless"), change=change) as one:
        del one.api.headers["authorization"]
        yield one


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:9"])
async def test_without_keys_local_requests_are_answered(keyless: World, host: str) -> None:
    """Also from a page of this very host."""
    assert (await keyless.api.get("/tasks", headers={"host": host})).status_code == 200
    origin = {"host": host, "origin": "http://localhost:3000"}
    assert (await keyless.api.get("/tasks", headers=origin)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},  # a name that was rebound to 127.0.0.1
        {"host": "localhost.evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "0.0.0.0"},
        {"host": "[::1"},
        {"host": "[::2]"},
        {"host": "localhost@evil.example"},
        {"x-forwarded-for": "127.0.0.1"},
        {"x-forwarded-host": "localhost"},
        {"x-forwarded-port": "80"},
        {"forwarded": "for=127.0.0.1"},
        {"x-real-ip": "127.0.0.1"},
        {"via": "1.1 proxy"},
        {"cf-connecting-ip": "1.2.3.4"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost.evil.example"},
        {"origin": "file://"},
        {"origin": ""},
    ],
)
async def test_without_keys_all_others_are_not(keyless: World, headers: dict[str, str]) -> None:
    """403 before anything is read, and nothing is stored."""
    answer = await keyless.api.get("/tasks", headers=headers)
    document = is_problem(answer, 403, "forbidden")
    assert "security.api_keys" in document["detail"]
    body = {"route": PRO, "input": body_of(PRO, "x")}
    assert (await keyless.api.post("/tasks", json=body, headers=headers)).status_code == 403
    assert keyless.service is not None
    assert rows_of(keyless.service.store, "SELECT count(*) FROM tasks") == [(0,)]


async def test_health_is_open(it: World) -> None:
    """Without a key, on any host."""
    base = f"http://127.0.0.1:{it.settings['server']['port']}"
    async with httpx.AsyncClient(base_url=base, trust_env=False) as stranger:
        for path, body in (("/livez", {"status": "live"}), ("/readyz", {"status": "ready", "reasons": []})):
            answer = await stranger.get(path, headers={"host": "x.example"})
            assert (answer.status_code, answer.json()) == (200, body)


# -- strict bodies -----------------------------------------------------------------------------------------------------

GOOD = json.dumps({"route": PRO, "input": body_of(PRO, "x")})
DEEP = "[" * 300 + "]" * 300


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (b"", [""]),
        (b"\xff\xfe{}", [""]),
        (b"{", [""]),
        (b"null", [""]),
        (b"[]", [""]),
        (b'"text"', [""]),
        (b"{}", ["/route", "/input"]),
        (GOOD.replace('"x"', "NaN").encode(), [""]),
        (GOOD.replace('"x"', '"\\ud800"').encode(), [""]),
        (GOOD.replace('"x"', '"\xff"').encode("latin-1"), [""]),
        (GOOD[:-1] + ', "extra": 1}', ["/extra"]),
        (GOOD[:-1] + ', "a/b~c": 1}', ["/a~1b~0c"]),
        (GOOD.replace(f'"{PRO}"', "1"), ["/route"]),
        (GOOD.replace(f'"{PRO}"', "true"), ["/route"]),
        (GOOD.replace(PRO, "runway/nothing"), ["/route"]),
        ({"route": PRO, "input": []}, ["/input"]),
        ({"route": PRO, "input": "{}"}, ["/input"]),
        ({"route": PRO, "input": None}, ["/input"]),
        ({"route": PRO, "input": {}}, ["/input/video", "/input/prompt"]),
        ({"route": PRO, "input": {"video": "", "prompt": None}}, ["/input/video", "/input/prompt"]),
        ({"route": V2V, "input": {"video": "https://x.example/a"}}, ["/input/videoUri", "/input/promptText"]),
        ({"route": I2V, "input": {"promptText": "x"}}, ["/input/promptImage"]),
        ({"route": PRO, "input": {**body_of(PRO, "x"), "callback_url": "https://x.example"}}, ["/input/callback_url"]),
        ({"route": PRO, "input": body_of(PRO, "x"), "metadata": []}, ["/metadata"]),
        ({"route": PRO, "input": body_of(PRO, "x"), "metadata": "{}"}, ["/metadata"]),
        ({"route": PRO, "input": body_of(PRO, "x"), "destinations": "sink"}, ["/destinations"]),
        ({"route": PRO, "input": body_of(PRO, "x"), "destinations": ["sink", 1]}, ["/destinations/1"]),
        ({"route": PRO, "input": body_of(PRO, "x"), "destinations": ["sink", "snik"]}, ["/destinations/1"]),
        ({"route": PRO, "input": body_of(PRO, "x"), "callback_url": 1}, ["/callback_url"]),
        ({"route": PRO, "input": body_of(PRO, "x"), "destinations": ["@callback"]}, ["/destinations/0"]),
        *[
            ({"route": PRO, "input": body_of(PRO, "x"), "callback_url": url}, ["/callback_url"])
            for url in (
                *("", " ", "x", "//x.example/", "ftp://x.example/", "file:///etc/passwd", "https://", "https:///hook"),
                *("http://127.0.0.1/", "http://10.1.2.3:80/", "https://[::1]/", "http://[::ffff:10.0.0.1]/"),
                *("http://169.254.169.254/latest", "http://2130706433/", "http://0x7f.1/", "http://127.1/"),
                *("http://0/", "http://[64:ff9b::a9fe:a9fe]/", "http://user@192.168.0.1/", "http://x.example:99999/"),
                *("http://x.example/\n", "http://x.example/\x00", "http://x .example/", "http://" + "x" * 9000),
            )
        ],
        (GOOD.replace('"x"', DEEP), ["/input"]),
        (GOOD[:-1] + f', "metadata": {{"a": {DEEP}}}}}', ["/metadata"]),
        (GOOD[:-1] + f', "metadata": {"[" * 5000 + "]" * 5000}}}', [""]),
        (GOOD.replace('"x"', '"x", "seed": 1000000000000000000000000'), ["/input"]),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_stored(it: World, body: Any, pointers: list[str]) -> None:
    """422 with a pointer to each mistake; no row, no request upstream."""
    assert it.service is not None
    before = rows_of(it.service.store, "SELECT count(*) FROM tasks"), it.upstream.ledger.requests
    content = json.dumps(body) if isinstance(body, dict) else body
    answer = await it.api.post("/tasks", content=content, headers={"content-type": "application/json"})
    document = is_problem(answer, 422, "invalid-input")
    assert [one["pointer"] for one in document["errors"]] == pointers
    assert all(one["detail"] for one in document["errors"])
    assert (rows_of(it.service.store, "SELECT count(*) FROM tasks"), it.upstream.ledger.requests) == before


async def test_of_a_member_that_stands_twice_the_last_counts(it: World) -> None:
    """As in every common parser; what is stored is what is sent."""
    body = GOOD.replace('"prompt": "x"', f'"prompt": "x", "prompt": "{script()}"')
    answer = await it.api.post("/tasks", content=body)
    assert answer.status_code == 201
    assert answer.json()["input"]["prompt"].startswith("clip")
    assert len(it.renders(answer.json())) == 1


async def test_a_body_has_a_cap(tmp_path: Path) -> None:
    """Submissions `max_submission`, all others 1 MiB; declared or in pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 60_000

    def change(given: dict[str, Any]) -> None:
        given["server"]["max_submission"] = "2MiB"

    async with world(tmp_path, change=change) as small:
        for content in (b" " * (2 * 1024 * 1024 + 1), pieces()):
            is_problem(await small.api.post("/tasks", content=content), 413, "too-large")
        answer = await small.api.post("/tasks/x/adopt", content=b" " * (1024 * 1024 + 1))
        is_problem(answer, 413, "too-large")
        assert (await small.submit(prompt=script())).status_code == 201


# -- answers -----------------------------------------------------------------------------------------------------------

MEMBERS = [
    "id",
    "upstream_id",
    "route",
    "state",
    "progress",
    "input",
    "metadata",
    "video_url",
    "poster",
    "last_frame",
    "failure",
    "failure_code",
    "code",
    "msg",
    "via",
    "created_at",
    "submitted_at",
    "finished_at",
]


async def test_a_task_has_the_members_of_the_contract(it: World) -> None:
    """All of them, always, and no more; defaults are filled in."""
    prompt = script(outcome="never")  # until the answer is here: else it may tell of the end already
    answer = await it.submit(prompt=prompt, metadata={"team": "vfx", "n": [1, None]}, destinations=["sink"])
    assert answer.status_code == 201
    task = answer.json()
    assert answer.headers["location"] == f"/api/v1/tasks/{task['id']}"
    assert list(task) == MEMBERS
    assert (task["state"], task["metadata"]) == ("queued", {"team": "vfx", "n": [1, None]})
    assert task["input"]["options"] == {"structure_transformation": 0.5, "seconds": 5}
    assert list(await it.task(task["id"])) == MEMBERS
    it.upstream.end(task["upstream_id"])
    ended = await it.ended(task["id"])
    assert (ended["state"], ended["progress"], ended["code"], ended["failure"]) == ("succeeded", 100, 200, None)
    assert ended["created_at"].endswith("Z")
    assert ended["created_at"] <= ended["submitted_at"] <= ended["finished_at"]


async def test_a_refusal_has_the_upstreams_own_words(it: World) -> None:
    """Its status where that is 4xx; the task is kept."""
    answer = await it.submit(prompt=script(submit="400"))
    document = is_problem(answer, 400, "upstream-refused")
    assert document["upstream"]["status"] == 400
    assert json.loads(document["upstream"]["body"])["error"]["message"] in document["detail"]
    assert await it.state(document["task_id"]) == "rejected"


async def test_a_data_uri_is_shown_abridged_and_kept_no_longer_than_needed(it: World) -> None:
    """The upstream got every byte; afterwards a line tells what it was, and the store has nothing of it."""
    video = b"\x00\x01video" * 40_000
    uri = "data:video/mp4;base64," + base64.b64encode(video).decode()
    shown = f"data:video/mp4;… ({len(video)} bytes, sha256 {hashlib.sha256(video).hexdigest()})"
    prompt = script(render=30)
    answer = await it.api.post("/tasks", json={"route": V2V, "input": {"videoUri": uri, "promptText": prompt}})
    assert answer.status_code == 201, answer.text
    task = answer.json()
    assert task["input"]["videoUri"] == shown
    assert (await it.task(task["id"]))["input"]["videoUri"] == shown
    (received,) = it.renders(task)
    assert str(len(uri)) in json.dumps(received.received)  # the emulator abridges, too, and says how long it was
    assert it.service is not None
    assert rows_of(it.service.store, "SELECT count(*) FROM payloads") == [(0,)]
    assert uri[100:200] not in json.dumps(await it.timeline(task["id"]))
    await it.api.post(f"/tasks/{task['id']}/cancel")


# -- lists -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def listed(it: World) -> list[str]:
    """Eleven lost tasks of another year, most of one moment; newest first."""
    tasks = [
        a_task(
            "lost",
            route=I2V if n % 2 else V2V,
            created_at=NOW - timedelta(days=9, seconds=n // 6),
            finished_at=clock(),  # else retention takes them before they are listed
        )
        for n in range(11)
    ]
    assert it.service is not None
    await put(it.service.store, *tasks)
    return [task.id for task in sorted(tasks, key=lambda task: (task.created_at, task.id), reverse=True)]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 10, 11, 200])
async def test_pages_lead_to_the_end_without_gaps_or_repeats(it: World, listed: list[str], limit: int) -> None:
    """By cursor and by link, also where many were made at one moment."""
    for follow in ("cursor", "link"):
        found: list[str] = []
        answer = await it.api.get("/tasks", params={"state": "lost", "limit": limit})
        while True:
            page = answer.json()
            assert len(page["data"]) <= limit
            found += [task["id"] for task in page["data"]]
            assert (page["next_cursor"] is None) == ("link" not in answer.headers)
            if page["next_cursor"] is None:
                break
            if follow == "link":
                url, _, rel = answer.headers["link"].partition("; ")
                assert rel == 'rel="next"'
                answer = await it.api.get(str(it.api.base_url.join(url.strip("<>"))))
            else:
                params = {"state": "lost", "limit": limit, "cursor": page["next_cursor"]}
                answer = await it.api.get("/tasks", params=params)
        assert found == listed


async def test_filters_narrow(it: World, listed: list[str]) -> None:
    """State (one or several), route, and a time or a span back from now."""

    async def ids(**params: Any) -> list[str]:
        answer = await it.api.get("/tasks", params={"limit": 200, **params})
        assert answer.status_code == 200, answer.text
        return [task["id"] for task in answer.json()["data"]]

    assert await ids(state="lost,lost") == listed
    assert set(listed) < set(await ids(state=["lost", "succeeded", "queued", "rejected", "cancelled"]))
    odd = await ids(state="lost", route=I2V)
    assert len(odd) == 5
    assert set(odd) | set(await ids(state="lost", route=V2V)) == set(listed)
    assert await ids(state="lost", route="runway/nothing") == []
    first = (NOW - timedelta(days=9)).isoformat()
    assert await ids(state="lost", since=first) == listed[:6]
    assert await ids(state="lost", since=first.replace("+00:00", "Z")) == listed[:6]
    assert await ids(state="lost", since="2h") == []
    assert set(listed) <= set(await ids(state="lost", since="3650d"))


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=-1", "limit"),
        ("limit=", "limit"),
        ("limit=ten", "limit"),
        ("limit=1.0", "limit"),
        ("limit=%D9%A3", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("limit=0000000200999", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("state=done", "state"),
        ("state=lost,done", "state"),
        ("since=yesterday", "since"),
        ("since=", "since"),
        ("since=%D9%A3h", "since"),
        ("since=99999999999d", "since"),
        ("since=9999999d", "since"),
        ("since=0001-01-01T00:00:00%2B23:59", "since"),
        ("since=9999-12-31T23:59:59-23:59", "since"),
        ("cursor=x", "cursor"),
        ("cursor=%E2%98%83", "cursor"),
        ("cursor=" + base64.urlsafe_b64encode(b"0001-01-01T00:00:00+23:59|x").decode(), "cursor"),
        ("cursor=" + base64.urlsafe_b64encode(b"2026-01-01|\xff").decode(), "cursor"),
        ("page=2", "page"),
        ("Limit=2", "Limit"),
    ],
)
async def test_a_parameter_that_makes_no_sense_is_named(it: World, query: str, parameter: str) -> None:
    """422, never a 500 and never a guess."""
    answer = await it.api.get(f"/tasks?{query}")
    is_problem(answer, 422, "invalid-input")
    assert flaws(answer) == [(None, parameter)]


# -- one task ----------------------------------------------------------------------------------------------------------


async def test_waiting_ends_with_the_task(it: World) -> None:
    """Terminal: at once. Not yet: as soon as it is, or when the time is over, with the task as it then is."""
    slow = await it.created(render=30)
    loop = asyncio.get_running_loop()
    began = loop.time()
    answer = await it.api.get(f"/tasks/{slow}", params={"wait": "200ms"})
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")
    assert loop.time() - began >= 0.2
    waiting = asyncio.create_task(it.api.get(f"/tasks/{slow}", params={"wait": "60"}))
    assert it.service is not None
    await until(lambda: it.service is not None and it.service.after._waiting)
    await it.api.post(f"/tasks/{slow}/cancel")
    assert (await waiting).json()["state"] == "cancelled"
    assert (await it.api.get(f"/tasks/{slow}", params={"wait": "60s"})).json()["state"] == "cancelled"


@pytest.mark.parametrize("wait", ["x", "", "-1", "1y", "99999999999d", "1e9", "30 s s", "٣s", "9" * 5000])
async def test_a_wait_that_makes_no_sense_is_named(it: World, wait: str) -> None:
    """As any other parameter."""
    answer = await it.api.get("/tasks/tsk_x", params={"wait": wait})
    is_problem(answer, 422, "invalid-input")
    assert flaws(answer) == [(None, "wait")]


async def test_refresh_asks_now(it: World) -> None:
    """The callback never comes, the first lookup is far away; the answer is what the upstream says."""
    task_id = await it.created(callback="missing")
    async with asyncio.timeout(PATIENCE):
        while (task := await it.refresh(task_id))["state"] != "succeeded":
            assert task["id"] == task_id
    assert task["via"] == "poll"


async def test_cancel_and_adopt_know_the_states(it: World) -> None:
    """200 once with an event; 409 with the state named where it is too late, or the wrong task."""
    task_id = await it.created(render=30)
    is_problem(await it.api.post(f"/tasks/{task_id}/adopt", json={"upstream_id": "x"}), 409, "conflict")
    answer = await it.api.post(f"/tasks/{task_id}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert (await it.arrived(task_id))[0].type == "task.cancelled"
    document = is_problem(await it.api.post(f"/tasks/{task_id}/cancel"), 409, "conflict")
    assert "cancelled" in document["detail"]
    assert (await it.refresh(task_id))["state"] == "cancelled"


async def test_adopting_finds_a_paid_render(it: World) -> None:
    """Ambiguous: its id is given by hand, looked up, and the task goes its way."""
    answer = await it.submit(prompt=script(submit="reset-after", callback="missing"))
    assert (answer.status_code, answer.json()["state"]) == (202, "ambiguous")
    task_id = answer.json()["id"]
    render = await it.rendering(task_id)
    answer = await it.api.post(f"/tasks/{task_id}/adopt", json={"upstream_id": render.id})
    assert answer.status_code == 200
    assert answer.json()["upstream_id"] == render.id
    await it.whole(task_id)


@pytest.mark.parametrize(
    "body",
    [{}, {"upstream_id": 1}, {"upstream_id": ""}, {"upstream_id": " "}, {"upstream_id": "x" * 256}, []]
    + [{"upstream_id": text} for text in ("a\nb", "a\x00b", "\x7f", "..", "a\u202eb")]
    + [{"upstream_id": "x", "more": 1}],
)
async def test_an_id_that_cannot_be_one_is_refused(it: World, body: Any) -> None:
    """It would end in a URL and in logs."""
    answer = await it.api.post("/tasks/tsk_x/adopt", json=body)
    is_problem(answer, 422, "invalid-input")


async def test_what_is_not_there_is_not_found(it: World) -> None:
    """On every path of a task, whatever stands in the id."""
    for task_id in ("tsk_nobody", "x" * 300, "%00", "%FF", "tsk_%2e%2e"):
        for method, rest in (("GET", ""), ("GET", "/timeline"), ("POST", "/refresh"), ("POST", "/cancel")):
            answer = await it.api.request(method, f"/tasks/{task_id}{rest}")
            is_problem(answer, 404, "not-found")
    is_problem(await it.api.post("/tasks/tsk_nobody/adopt", json={"upstream_id": "x"}), 404, "not-found")
    for path in ("/nothing", "/tasks/x/y/z"):
        is_problem(await it.api.get(path), 404, "not-found")


async def test_methods(it: World) -> None:
    """405 with `Allow`; HEAD is a GET without a body."""
    for method, path, allowed in (
        ("DELETE", "/tasks", {"GET", "HEAD", "POST"}),
        ("POST", "/tasks/x", {"GET", "HEAD"}),
        ("GET", "/tasks/x/cancel", {"POST"}),
    ):
        answer = await it.api.request(method, path)
        is_problem(answer, 405, "method-not-allowed")
        assert {one.strip() for one in answer.headers["allow"].split(",")} == allowed
    task_id = await it.created()
    for path in ("/tasks", f"/tasks/{task_id}", f"/tasks/{task_id}/timeline"):
        answer = await it.api.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["content-length"]) > 2
    await it.ended(task_id)


async def test_every_problem_has_a_page(it: World) -> None:
    """The type leads somewhere, and every code has a title."""
    base = f"http://127.0.0.1:{it.settings['server']['port']}"
    for code, kind in problems.KINDS.items():
        answer = await it.api.get(f"{base}/docs/problems/{code}")
        assert answer.status_code == 200
        assert kind.title in answer.text
    is_problem(await it.api.get(f"{base}/docs/problems/nothing"), 404, "not-found")


async def test_a_timeline_tells_the_way(it: World) -> None:
    """Submission, observation with its raw body, event, delivery, attempt: in that order."""
    task_id = await it.taken()
    await it.whole(task_id)
    items = await it.timeline(task_id)
    assert [item["kind"] for item in items] == ["submission", "observation", "event", "delivery", "attempt"]
    assert items[1]["verdict"] == "accepted"
    assert json.loads(items[1]["raw"])["task_id"] == (await it.task(task_id))["upstream_id"]
    assert items[4]["response"] == {"status": 200, "headers": {"content-length": "2"}, "body": "ok"}
    assert [item["at"] for item in items] == sorted(item["at"] for item in items)


async def test_a_callback_token_is_shown_nowhere(it: World) -> None:
    """An upstream that repeats our callback URL, in a callback or in a refusal, does not put it into our answers."""
    task_id = await it.created(render=30)
    url = it.callback_url(task_id)
    token = url.rpartition("/")[2]
    body = {"task_id": (await it.task(task_id))["upstream_id"], "status": "1", "callback_url": url, "msg": f"to {url}"}
    for content in (json.dumps(body), json.dumps(body).replace("/", "\\/")):
        assert (await it.api.post(url, content=content)).status_code == 200
    text = (await it.api.get(f"/tasks/{task_id}/timeline")).text
    assert "callbacks" in text
    assert token not in text
    await it.api.post(f"/tasks/{task_id}/cancel")


# -- the store is away -------------------------------------------------------------------------------------------------


async def test_a_store_that_cannot_commit_is_503(it: World) -> None:
    """With `Retry-After`; nothing was stored and nothing sent; reading goes on, and afterwards all is as before."""
    assert it.service is not None
    store = it.service.store
    task_id = await it.created(render=30)
    with databases.outage(store):
        before = it.upstream.ledger.requests
        for answer in (
            await it.submit(prompt=script()),
            await it.api.post(f"/tasks/{task_id}/cancel"),
            await it.api.post(f"/tasks/{task_id}/refresh"),
        ):
            is_problem(answer, 503, "store-unavailable")
            assert int(answer.headers["retry-after"]) > 0
        assert it.upstream.ledger.requests == before
        assert await it.state(task_id) == "queued"
        ready = await it.api.get(f"http://127.0.0.1:{it.settings['server']['port']}/readyz")
        assert ready.status_code == 503
        assert "cannot commit" in ready.json()["reasons"][0]
    ready = await it.api.get(f"http://127.0.0.1:{it.settings['server']['port']}/readyz")
    assert ready.status_code == 200
    assert (await it.api.post(f"/tasks/{task_id}/cancel")).status_code == 200
