"""Journeys through the drop-in routes: the upstream's own bodies both ways, and what the caller gains by it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from receiver.emulator import directive
from receiver.upstream import ROUTES
from tests.world import API_KEY, I2V, PRO, SECRET, V2V, World, begun, script, sink, world
from tests.world import body_of as least_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.engines]
FEED = "runway/feed"


def body_of(route: str, prompt: str) -> dict[str, Any]:
    """A whole body: nothing is filled in here."""
    return ROUTES[route].fill(least_of(route, prompt), seed=7) | ({"callback_url": None} if route == PRO else {})


def change(given: dict[str, Any]) -> None:
    """Callers' own callback_urls may be on loopback, and are signed."""
    given["security"] |= {"callback_secrets": [SECRET], "allow_private_callbacks": True}


@pytest.fixture(scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world."""
    async with world(tmp_path_factory.mktemp("gateway"), change=change) as built:
        yield built


@pytest.fixture(scope="module")
async def door(here: World) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of the upstream who has changed the base URL, and nothing else."""
    async with _caller(here) as client:
        yield client


def _caller(here: World) -> httpx.AsyncClient:
    base = f"http://127.0.0.1:{here.settings['server']['port']}"
    return httpx.AsyncClient(base_url=base, headers={"authorization": f"Bearer {API_KEY}"}, timeout=20)


def _submissions(here: World) -> int:
    """How many have come to the upstream, whatever became of them."""
    return sum(here.upstream.ledger.submissions.values())


async def _taken(door: httpx.AsyncClient, route: str, body: Any, **headers: str) -> tuple[httpx.Response, str]:
    """Submit; the answer and the upstream's id in it."""
    answer = await door.post(f"/{route}", json=body, headers=headers)
    document = answer.json()
    return answer, str(document["data"]["task_id"] if route == PRO else document["id"])


# -- submissions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [PRO, V2V, I2V])
async def test_a_submission_goes_through_and_gains_everything(here: World, door: httpx.AsyncClient, route: str) -> None:
    """The upstream's answer with our task's id; the task ends, its event goes out, and the caller's URL hears of it."""
    async with sink() as own:
        prompt = script()
        body = {**body_of(route, prompt), "callback_url": f"{own.url}?of=mine"}
        answer, upstream_id = await _taken(door, route, body)
        assert answer.status_code == 200
        task_id = answer.headers["receiver-task-id"]
        await here.whole(task_id)
        await own.until(lambda: bool(own.received))
        task = await here.task(task_id)
        assert (task["upstream_id"], task["route"], task["state"]) == (upstream_id, route, "succeeded")
        [event] = [one for one in await here.arrived(task_id, 1) if one.type == "task.succeeded"]
        assert json.loads(own.received[0].body) == event.data["envelope"]
        [rendered] = here.renders(task)
        assert rendered.id == upstream_id


@pytest.mark.parametrize("route", [PRO, V2V])
@pytest.mark.parametrize("own", ["", '"callback_url": null, ', '"callback_url":"http://127.0.0.1:9/mine" , '])
async def test_nothing_in_it_is_changed_but_callback_url(tmp_path: Path, route: str, own: str) -> None:
    """Every value keeps its bytes, also those no parser would write again; nothing is filled in; so the answer."""
    odd = '{"a": 1.0e2, "b":  [1,2 ], "big": 123456789012345678901234567890, "c": "\\u00e9\\/"}'
    raw = f'{{"prompt": "x\\u00e9", {own}"odd": {odd}, "n":-0.0}}'
    said = b'{"code": 200,  "msg":"\xc3\xa9", "data": {"task_id": "up-1"}, "id": "up-1" }'
    async with _raw_upstream(said) as (url, requests):

        def there(given: dict[str, Any]) -> None:
            change(given)
            given["upstream"]["base_url"] = url

        async with world(tmp_path, change=there) as here, _caller(here) as door:
            headers = {"content-type": "application/json; charset=utf-8", "x-runway-version": "2025-01-01"}
            answer = await door.post(f"/{route}?a=1&b=%20x", content=raw, headers=headers)
            assert (answer.status_code, answer.content) == (200, said)
            assert answer.headers["content-type"] == "application/json; x=y"
            head, sent = requests[0]
            assert head.startswith(f"post /{route}?a=1&b=%20x http/1.1\r\n")
            assert "\r\nx-runway-version: 2025-01-01\r\n" in head
            assert "\r\ncontent-type: application/json; charset=utf-8\r\n" in head
            assert "\r\nauthorization: bearer upstream-key\r\n" in head
            assert API_KEY not in head
            if route == V2V:
                # Without a callback_url there is nothing to change, so not even a space is; with one, it alone goes.
                assert sent == raw if not own else json.loads(sent) == _without(raw)
                assert "callback_url" not in sent
            else:
                assert json.loads(sent).pop("callback_url").startswith(here.settings["server"]["public_url"])
            assert odd in sent
            assert '"x\\u00e9"' in sent
            assert "-0.0" in sent


def _without(raw: str) -> dict[str, Any]:
    return {name: value for name, value in json.loads(raw).items() if name != "callback_url"}


@asynccontextmanager
async def _raw_upstream(said: bytes) -> AsyncIterator[tuple[str, list[tuple[str, str]]]]:
    """An upstream that keeps what it gets, byte for byte, and always says the same."""
    requests: list[tuple[str, str]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
            requests.append((head, (await reader.readexactly(length)).decode()))
            kind = b"HTTP/1.1 200 OK\r\ncontent-type: application/json; x=y\r\n"
            writer.write(kind + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(said) + said)
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", requests
    finally:
        listener.close()


@pytest.mark.parametrize("route", [PRO, V2V])
@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'"text"', b"null", b"{}"])
async def test_what_is_no_submission_is_for_the_upstream_to_refuse(
    here: World, door: httpx.AsyncClient, route: str, body: bytes
) -> None:
    """It goes there as it is, and its refusal comes back as it came; the task is kept as rejected, without an event."""
    answer = await door.post(f"/{route}", content=body)
    assert 400 <= answer.status_code < 600
    task_id = answer.headers["receiver-task-id"]
    assert (await here.task(task_id))["state"] == "rejected"
    assert await here.timeline(task_id, "event") == []


async def test_a_refusal_is_passed_on_as_it_came(here: World, door: httpx.AsyncClient) -> None:
    """Status, body and content type, a 429 with its Retry-After included: nothing is queued."""
    for fault in ("400", "429", "403", "500-invalid"):
        answer = await door.post(f"/{V2V}", json=body_of(V2V, script(submit=fault)))
        assert answer.status_code == int(fault[:3]), answer.text
        assert (await here.task(answer.headers["receiver-task-id"]))["state"] == "rejected"
        await here.eventually(lambda: _gate_is_open(here))


async def _gate_is_open(here: World) -> bool:
    assert here.service is not None
    return all(here.service.submitter.gates.may_pass(route) for route in (PRO, V2V, I2V))


@pytest.mark.parametrize("fault", ["reset", "500", "unreadable", "empty"])
async def test_an_ambiguous_submission_must_not_be_repeated(here: World, door: httpx.AsyncClient, fault: str) -> None:
    """504 with `x-should-retry: false`, in the upstream's shape; the task is ambiguous and is not sent again."""
    before = _submissions(here)
    answer = await door.post(f"/{PRO}", json=body_of(PRO, script(submit=fault)))
    assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "submission-ambiguous"
    assert (await here.task(answer.headers["receiver-task-id"]))["state"] in {"ambiguous", "queued", "succeeded"}
    assert _submissions(here) == before + 1


async def test_our_own_errors_have_the_upstreams_shape(here: World, door: httpx.AsyncClient) -> None:
    """A wrong key, a callback_url nothing can be sent to, a bad Idempotency-Key: nothing goes upstream."""
    before = here.upstream.ledger.requests
    good = body_of(PRO, script())
    wrong = await door.post(f"/{PRO}", json=good, headers={"authorization": "Bearer nobody"})
    url = await door.post(f"/{PRO}", json={**good, "callback_url": "ftp://example.com"})
    text = await door.post(f"/{PRO}", json={**good, "callback_url": 5})
    key = await door.post(f"/{PRO}", json=good, headers={"idempotency-key": "x" * 300})
    assert [one.status_code for one in (wrong, url, text, key)] == [401, 422, 422, 422]
    for answer in (wrong, url, text, key):
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert url.json()["error"]["param"] == "callback_url"
    assert here.upstream.ledger.requests == before


# -- lookups -----------------------------------------------------------------------------------------------------------


async def _ask(door: httpx.AsyncClient, route: str, upstream_id: str) -> httpx.Response:
    if route == PRO:
        return await door.post(f"/{FEED}", json={"task_id": upstream_id})
    return await door.get(f"/runwayml/v1/tasks/{upstream_id}")


@pytest.mark.parametrize("route", [PRO, V2V])
async def test_a_lookup_is_an_observation(here: World, door: httpx.AsyncClient, route: str) -> None:
    """While the task is open the upstream answers, and what it says ends the task here, too."""
    answer, upstream_id = await _taken(door, route, body_of(route, script(callback="missing", render=0.3)))
    task_id = answer.headers["receiver-task-id"]
    async with asyncio.timeout(15):
        while (await here.task(task_id))["state"] != "succeeded":
            looked = await _ask(door, route, upstream_id)
            assert looked.status_code == 200
            assert looked.headers["receiver-task-id"] == task_id
    await here.whole(task_id)


@pytest.mark.parametrize("route", [PRO, V2V])
async def test_an_ended_task_is_answered_from_the_store(here: World, door: httpx.AsyncClient, route: str) -> None:
    """In the upstream's own words, without asking it: the same status and link."""
    answer, upstream_id = await _taken(door, route, body_of(route, script()))
    task_id = answer.headers["receiver-task-id"]
    task = await here.ended(task_id)
    before = here.upstream.ledger.requests
    looked = await _ask(door, route, upstream_id)
    assert here.upstream.ledger.requests == before
    assert looked.status_code == 200
    assert task["video_url"] in looked.text
    if route == V2V:
        assert looked.json()["status"] == "SUCCEEDED"
    else:
        assert looked.json()["data"]["task_id"] == upstream_id


async def test_after_twelve_hours_a_lookup_renews(here: World, door: httpx.AsyncClient) -> None:
    """The upstream is asked again, since links expire; where it fails, the store stands in."""
    answer, upstream_id = await _taken(door, V2V, body_of(V2V, script()))
    task_id = answer.headers["receiver-task-id"]
    await here.ended(task_id)
    assert here.service is not None
    here.service.relay.clock = _tomorrow(here.service.relay.clock)
    try:
        before = here.upstream.ledger.requests
        assert (await _ask(door, V2V, upstream_id)).json()["status"] == "SUCCEEDED"
        assert here.upstream.ledger.requests == before + 1
    finally:
        here.service.relay.clock = here.service.poller.clock


def _tomorrow(clock: Any) -> Any:
    from datetime import timedelta

    return lambda: clock() + timedelta(hours=13)


async def test_what_is_not_ours_is_the_upstreams_to_answer(door: httpx.AsyncClient) -> None:
    """An unknown id, and a question that makes no sense, go through as they are."""
    for answer in (
        await _ask(door, PRO, "nobody-knows"),
        await _ask(door, V2V, "nobody-knows"),
        await door.post(f"/{FEED}", content=b"{"),
    ):
        assert 400 <= answer.status_code < 500
        assert "receiver-task-id" not in answer.headers


# -- Idempotency-Key ---------------------------------------------------------------------------------------------------


async def test_fifty_at_once_make_one_submission(here: World, door: httpx.AsyncClient) -> None:
    """Under one key one is sent; the others hear that it is under way, or its answer, and later all hear that."""
    for path, body in (
        ("/api/v1/tasks", {"route": PRO, "input": least_of(PRO, script())}),
        (f"/{PRO}", body_of(PRO, script())),
    ):
        headers = {"idempotency-key": f"fifty {path}"}
        before = _submissions(here)
        answers = await asyncio.gather(*(door.post(path, json=body, headers=headers) for _ in range(50)))
        good = [one for one in answers if one.status_code in {200, 201}]
        busy = [one for one in answers if one.status_code == 409]
        assert len(good) >= 1
        assert len(good) + len(busy) == 50, {one.status_code for one in answers}
        assert all("retry-after" in one.headers for one in busy)
        again = await door.post(path, json=body, headers=headers)
        assert again.headers["idempotency-replayed"] == "true"
        assert {one.content for one in good} == {again.content}
        assert again.status_code == good[0].status_code
        assert _submissions(here) == before + 1


async def test_a_key_stands_for_one_request(here: World, door: httpx.AsyncClient) -> None:
    """Another body is a 422, whichever way it comes in; the same document written otherwise is the same."""
    headers = {"idempotency-key": "one request"}
    first = {"route": PRO, "input": least_of(PRO, script())}
    made = await door.post("/api/v1/tasks", json=first, headers=headers)
    assert made.status_code == 201
    turned = json.dumps(dict(reversed(first.items())), indent=3)
    same = await door.post("/api/v1/tasks", content=turned, headers=headers)
    assert (same.status_code, same.headers["idempotency-replayed"]) == (201, "true")
    assert same.headers["location"] == made.headers["location"]
    other = await door.post("/api/v1/tasks", json={**first, "metadata": {"a": 1}}, headers=headers)
    assert other.status_code == 422
    assert other.json()["type"].endswith("idempotency-key-reused")
    dropped = await door.post(f"/{PRO}", json=body_of(PRO, script()), headers=headers)
    assert (dropped.status_code, dropped.json()["error"]["code"]) == (422, "idempotency-key-reused")


async def test_a_refusal_is_the_answer_of_its_key(here: World, door: httpx.AsyncClient) -> None:
    """It is not asked again; a throttled one is forgotten, since it may, and should, come again."""
    refused = {"route": PRO, "input": least_of(PRO, script(submit="400"))}
    for _ in range(2):
        answer = await door.post("/api/v1/tasks", json=refused, headers={"idempotency-key": "refused"})
        assert answer.status_code == 400
    assert answer.headers["idempotency-replayed"] == "true"
    body = body_of(V2V, script(submit="429"))
    headers = {"idempotency-key": "throttled"}
    assert (await door.post(f"/{V2V}", json=body, headers=headers)).status_code == 429
    await here.eventually(lambda: _gate_is_open(here))
    again = await door.post(f"/{V2V}", json=body, headers=headers)
    assert "idempotency-replayed" not in again.headers


async def test_a_repeat_of_an_ambiguous_one_is_not_sent(here: World, door: httpx.AsyncClient) -> None:
    """It hears the same 504, and that it must not be repeated."""
    prompt, before = script(submit="reset"), _submissions(here)
    for _ in range(2):
        answer = await door.post(f"/{PRO}", json=body_of(PRO, prompt), headers={"idempotency-key": "unclear"})
        assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")
    assert answer.headers["idempotency-replayed"] == "true"
    assert _submissions(here) == before + 1


# -- away, and full ----------------------------------------------------------------------------------------------------


async def test_an_upstream_that_is_away(tmp_path: Path) -> None:
    """503 with Retry-After, the task kept as rejected without an event; a lookup likewise."""

    def nowhere(given: dict[str, Any]) -> None:
        given["upstream"]["base_url"] = "http://127.0.0.1:9"

    async with world(tmp_path, change=nowhere) as here, _caller(here) as door:
        headers = {"idempotency-key": "away"}
        for _ in range(2):
            answer = await door.post(f"/{V2V}", json=body_of(V2V, script()), headers=headers)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            headers = {"idempotency-key": "away 2"}
        task_id = answer.headers["receiver-task-id"]
        assert (await here.task(task_id))["state"] == "rejected"
        assert await here.timeline(task_id, "event") == []
        looked = await _ask(door, V2V, "any-id")
        assert (looked.status_code, looked.json()["error"]["code"]) == (503, "upstream-unavailable")


async def test_no_free_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After ten seconds (here less) of waiting for a slot: 503, and nothing was sent."""
    from receiver.submit import through

    monkeypatch.setattr(through, "SLOT_FOR", 0.2)

    def narrow(given: dict[str, Any]) -> None:
        given["upstream"] |= {"max_concurrency": 1, "timeout": "30s"}

    async with world(tmp_path, change=narrow) as here, _caller(here) as door:
        slow = asyncio.create_task(door.post(f"/{V2V}", json=body_of(V2V, f"x {directive(submit='hang', hang=60)}")))
        await here.eventually(lambda: _is_sending(here))
        answer = await door.post(f"/{V2V}", json=body_of(V2V, script()))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "upstream-unavailable")
        assert here.upstream.ledger.requests == 1
        await here.upstream.close()  # it lets go of whoever hangs
        await slow


async def _is_sending(here: World) -> bool:
    return here.upstream.ledger.requests == 1


async def test_the_rate_of_submissions_holds(tmp_path: Path) -> None:
    """`upstream.rate`: never more in a span than it says, however many come at once; all are taken."""

    def paced(given: dict[str, Any]) -> None:
        given["upstream"]["rate"] = "5/s"

    async with world(tmp_path, change=paced) as here, begun(here) as at:
        made = await asyncio.gather(*(here.submit(PRO, script()) for _ in range(14)))
        assert {one.status_code for one in made} <= {201, 202}
        for one in made:
            await here.ended(one.json()["id"])
        assert len(here.upstream.tasks) == len(at) == 14
        assert all(at[n + 5] - at[n] >= 1 for n in range(9)), at
