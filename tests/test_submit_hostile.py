"""What a hostile review of issue 5 found: each of these paid twice, lost a render, or stuck."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from receiver import app, ids
from receiver.records import Task
from receiver.submit import asked_under, through
from receiver.submit.ops import Accept
from receiver.upstream import ROUTES
from tests import databases
from tests.world import API_KEY, PRO, V2V, World, script, world
from tests.world import body_of as least_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.engines]
FEED = "runway/feed"


def body_of(route: str, prompt: str) -> dict[str, Any]:
    """A whole body."""
    return ROUTES[route].fill(least_of(route, prompt), seed=7) | ({"callback_url": None} if route == PRO else {})


def _caller(here: World) -> httpx.AsyncClient:
    base = f"http://127.0.0.1:{here.settings['server']['port']}"
    return httpx.AsyncClient(base_url=base, headers={"authorization": f"Bearer {API_KEY}"}, timeout=20)


def _submissions(here: World) -> int:
    return sum(here.upstream.ledger.submissions.values())


def _with(**upstream: Any) -> Callable[[dict[str, Any]], None]:
    def change(given: dict[str, Any]) -> None:
        given["upstream"] |= upstream
        given["polling"] |= {"interval": "30s", "max_interval": "30s"}

    return change


@asynccontextmanager
async def _played(
    answer: Callable[[str, bytes], tuple[str, bytes, int]], go_on: asyncio.Event | None = None
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """An upstream that says what it is told to: status, body, and by how much its length is wrong.

    Where `go_on` is given it says nothing before that is set.
    """
    bodies: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
            bodies.append(await reader.readexactly(length))
            if go_on is not None:
                await go_on.wait()
            status, body, more = answer(head, bodies[-1])
            fields = (
                f"content-type: application/json\r\nconnection: close\r\ncontent-length: {len(body) + more}\r\n\r\n"
            )
            writer.write(f"HTTP/1.1 {status}\r\n{fields}".encode() + body)
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", bodies
    finally:
        listener.close()


async def test_a_refusal_after_a_callback_must_not_be_repeated(tmp_path: Path) -> None:
    """The upstream has called back, so it renders: a 400, 409 or 500 passed on would invite to submit it again."""
    async with world(tmp_path, change=_with()) as here, _caller(here) as door:
        for fault in ("400-after", "500-invalid-after"):
            answer = await door.post(f"/{PRO}", json=body_of(PRO, script(submit=fault, callback="early")))
            assert (answer.status_code, answer.headers.get("x-should-retry")) == (504, "false"), answer.text
            assert (await here.task(answer.headers["receiver-task-id"]))["state"] != "rejected"


async def test_a_repeat_needs_no_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all slots taken a repeat hears the first answer, and not that nothing was taken."""
    monkeypatch.setattr(through, "SLOT_FOR", 0.2)
    async with world(tmp_path, change=_with(max_concurrency=1, timeout="5s")) as here, _caller(here) as door:
        headers = {"idempotency-key": "one"}
        body = body_of(V2V, script())
        first = await door.post(f"/{V2V}", json=body, headers=headers)
        assert first.status_code == 200
        slow = asyncio.create_task(door.post(f"/{V2V}", json=body_of(V2V, script(submit="hang", hang=1.5))))

        async def sending() -> bool:
            return _submissions(here) == 2

        await here.eventually(sending)
        again = await door.post(f"/{V2V}", json=body, headers=headers)
        assert (again.status_code, again.content) == (200, first.content), again.text
        await slow


async def test_a_caller_does_not_hang_while_the_store_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that gives up repeats by itself: before that it hears 504; the paid id is stored all the same."""
    monkeypatch.setattr(through, "STORED_FOR", 0.1, raising=False)
    away: list[databases.Outage] = []

    def play(_head: str, _body: bytes) -> tuple[str, bytes, int]:
        away[0].begin()  # before it is answered
        return "200 OK", b'{"id": "up-1"}', 0

    async with (
        _played(play) as (url, bodies),
        world(tmp_path, change=_with(timeout="2s", base_url=url)) as here,
        _caller(here) as door,
    ):
        assert here.service is not None
        away.append(databases.Outage(here.service.store))
        try:
            answer = await door.post(f"/{V2V}", json=body_of(V2V, script()))
        finally:
            away[0].end()
        assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")
        assert len(bodies) == 1

        async def stored() -> bool:
            return (await here.task(answer.headers["receiver-task-id"]))["upstream_id"] is not None

        await here.eventually(stored)


async def test_nothing_is_sent_once_it_stops(tmp_path: Path) -> None:
    """A caller who waits for a slot when SIGTERM comes is told to come again; its submission is not begun."""
    go_on = asyncio.Event()

    def play(_head: str, _body: bytes) -> tuple[str, bytes, int]:
        return "200 OK", b'{"id": "up-1"}', 0

    async with (
        _played(play, go_on) as (url, bodies),
        world(tmp_path, change=_with(max_concurrency=1, timeout="20s", base_url=url)) as here,
        _caller(here) as door,
    ):
        slow = asyncio.create_task(door.post(f"/{V2V}", json=body_of(V2V, script())))

        async def sent() -> bool:
            return len(bodies) == 1

        await here.eventually(sent)
        waiting = asyncio.create_task(door.post(f"/{V2V}", json=body_of(V2V, script())))

        async def waits() -> bool:
            assert here.service is not None
            return bool(here.service.submitter.gates._changed)

        await here.eventually(waits)
        stopping = asyncio.create_task(here.stop())
        assert (await waiting).status_code == 503
        go_on.set()
        assert (await slow).status_code == 200
        await stopping
        assert len(bodies) == 1


async def test_a_question_for_two_tasks_ends_neither(tmp_path: Path) -> None:
    """Some upstreams read members whatever their case: the answer is about another task than the one we read."""
    done = b'{"id": "up-2", "status": "SUCCEEDED", "output": ["https://x.example/other.mp4"]}'

    def play(head: str, _body: bytes) -> tuple[str, bytes, int]:
        waits = b'{"id": "up-1", "status": "RUNNING"}'
        return "200 OK", (done if "/runway/feed" in head else waits), 0

    async with _played(play) as (url, _), world(tmp_path, change=_with(base_url=url)) as here, _caller(here) as door:
        made = await door.post(f"/{V2V}", json=body_of(V2V, script()))
        answer = await door.post(f"/{FEED}", content=b'{"task_id": "up-1", "Task_ID": "up-2"}')
        assert answer.content == done
        assert (await here.task(made.headers["receiver-task-id"]))["state"] in {"queued", "running"}


async def test_asking_fast_does_not_use_up_the_tries_for_a_url(tmp_path: Path) -> None:
    """A success without a URL is one after five lookups at the polling interval, not after five quick ones."""
    async with world(tmp_path, change=_with()) as here, _caller(here) as door:
        made = await door.post(f"/{V2V}", json=body_of(V2V, script(urlless=50)))
        task_id = made.headers["receiver-task-id"]
        for _ in range(8):
            answer = await door.get(f"/runwayml/v1/tasks/{made.json()['id']}")
            assert answer.status_code == 200
        assert (await here.task(task_id))["state"] in {"queued", "running"}


@pytest.mark.parametrize("odd", [b'"\xff"', b"1e999", b'"\\ud800"', b"[" * 400 + b"]" * 400])
async def test_a_callback_url_that_is_none(tmp_path: Path, odd: bytes) -> None:
    """It is refused in the upstream's shape, whatever stands there."""
    async with world(tmp_path, change=_with()) as here, _caller(here) as door:
        answer = await door.post(f"/{PRO}", content=b'{"callback_url": ' + odd + b', "prompt": "x"}')
        assert (answer.status_code, answer.json().get("error", {}).get("param")) == (422, "callback_url"), answer.text
        assert _submissions(here) == 0


@pytest.mark.parametrize("route", [PRO, V2V])
async def test_half_a_character_does_not_let_a_callback_url_through(tmp_path: Path, route: str) -> None:
    """JavaScript cuts text between surrogates and sends it as an escape; our callback is in place all the same."""

    def play(_head: str, _body: bytes) -> tuple[str, bytes, int]:
        return "200 OK", b'{"code": 200, "data": {"task_id": "up-1"}, "id": "up-1"}', 0

    def change(given: dict[str, Any]) -> None:
        given["security"]["allow_private_callbacks"] = True

    async with _played(play) as (url, bodies):

        def there(given: dict[str, Any]) -> None:
            _with(base_url=url)(given)
            change(given)

        async with world(tmp_path, change=there) as here, _caller(here) as door:
            raw = b' {"prompt" : "cut \\ud83d", "n": 1.0e2,"callback_url":"http://127.0.0.1:9/mine" , "b":[1, "]}"]} '
            answer = await door.post(f"/{route}", content=raw)
            assert answer.status_code == 200, answer.text
            sent = bodies[0]
            assert b"/mine" not in sent
            for part in (b'"cut \\ud83d"', b"1.0e2", b'[1, "]}"]'):
                assert part in sent
            if route == PRO:
                assert json.loads(sent)["callback_url"].startswith(here.settings["server"]["public_url"])


async def test_half_an_answer_is_no_answer(tmp_path: Path) -> None:
    """A lookup that breaks off is a 503, which clients repeat; not a 200 with half a document."""

    def play(_head: str, _body: bytes) -> tuple[str, bytes, int]:
        return "200 OK", b'{"id": "up-1", "sta', 10

    async with _played(play) as (url, _), world(tmp_path, change=_with(base_url=url)) as here, _caller(here) as door:
        assert (await door.get("/runwayml/v1/tasks/up-1")).status_code == 503


async def test_a_key_whose_process_died_before_it_was_forgotten(tmp_path: Path) -> None:
    """It stands for what was surely not taken: the repeat after the next is sent, and not told 503 for ever."""
    async with world(tmp_path, change=_with()) as here, _caller(here) as door:
        body = json.dumps(body_of(V2V, script())).encode()
        asked = asked_under("dead", f"/{V2V}", body)
        now = app.clock()
        task = Task(
            id=ids.task_id(int(now.timestamp() * 1000), bytes(16)),
            route=V2V,
            state="rejected",
            created_at=now,
            finished_at=now,
            input_json="{}",
        )
        assert here.service is not None
        await here.service.store.run(Accept(task, None, asked))
        codes = [
            (await door.post(f"/{V2V}", content=body, headers={"idempotency-key": "dead"})).status_code for _ in "12"
        ]
        assert codes == [503, 200]


async def test_the_queue_gets_its_slot(tmp_path: Path) -> None:
    """However many drop-in callers crowd another route, what is queued is sent."""
    async with world(tmp_path, change=_with(max_concurrency=1, timeout="5s")) as here, _caller(here) as door:

        async def crowd() -> None:
            while True:
                await door.post(f"/{V2V}", json=body_of(V2V, script(submit_delay=0.05)))

        callers = [asyncio.create_task(crowd()) for _ in range(6)]

        async def crowded() -> bool:
            return _submissions(here) > 4

        await here.eventually(crowded)
        made = await here.api.post(
            "/tasks", json={"route": PRO, "input": least_of(PRO, script())}, headers={"prefer": "respond-async"}
        )
        before = _submissions(here)

        async def taken() -> bool:
            return (await here.task(made.json()["id"]))["upstream_id"] is not None

        try:
            await here.eventually(taken)
            routes: list[str] = [task.route for task in here.upstream.tasks.values()]
            assert routes.index(PRO) < before + 10, "callers come and go, and the queue waits"
        finally:
            for one in callers:
                one.cancel()
            await asyncio.gather(*callers, return_exceptions=True)


async def test_an_upstream_that_repeats_our_key(tmp_path: Path) -> None:
    """Its refusal comes through without it, also when replayed."""

    def play(head: str, _body: bytes) -> tuple[str, bytes, int]:
        key = head.partition("authorization: bearer ")[2].partition("\r\n")[0]
        return "401 No", json.dumps({"error": {"message": f"Incorrect API key: {key}"}}).encode(), 0

    async with _played(play) as (url, _), world(tmp_path, change=_with(base_url=url)) as here, _caller(here) as door:
        for _ in range(2):
            answer = await door.post(f"/{V2V}", json=body_of(V2V, "x"), headers={"idempotency-key": "k"})
            assert answer.status_code == 401
            assert "Incorrect API key" in answer.text
            assert "upstream-key" not in answer.text


@pytest.mark.parametrize("name", ["..", "%2e%2e", "."])
async def test_a_lookup_stays_on_its_path(tmp_path: Path, name: str) -> None:
    """An id of dots is another path to those who read it next: nothing is asked."""
    async with (
        _played(lambda *_: ("200 OK", b"{}", 0)) as (url, asked),
        world(tmp_path, change=_with(base_url=url)) as here,
    ):
        port = here.settings["server"]["port"]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"GET /runwayml/v1/tasks/{name} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {API_KEY}\r\n"
        writer.write(f"{head}connection: close\r\n\r\n".encode())
        assert b" 404 " in (await reader.read()).split(b"\r\n")[0]
        writer.close()
        assert asked == []
