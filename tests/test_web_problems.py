"""Every kind of problem, made to happen: its document, its status, its headers (RFC 9457, contract 4.3)."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from receiver.errors import StoreUnsure
from receiver.metrics import Metrics
from receiver.web import Front, asgi, problems
from receiver.web.guard import Guard
from receiver.web.table import Answer, Operation
from tests import databases
from tests.test_api import is_problem
from tests.world import API_KEY, PATIENCE, PRO, body_of, script, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from starlette.requests import Request
    from starlette.responses import Response

    from tests.world import World

    Producer = Callable[[World, pytest.MonkeyPatch], Awaitable[httpx.Response]]

pytestmark = [pytest.mark.anyio, pytest.mark.engines]


@pytest.fixture(scope="module")
async def it(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One world for all."""
    async with world(tmp_path_factory.mktemp("problems")) as one:
        yield one


@pytest.fixture(scope="module")
async def slow(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world that hears a key once an hour, and, without a key configured, only what is plainly local."""

    def change(given: dict[str, Any]) -> None:
        given["server"]["rate_per_key"] = "1/h"
        del given["security"]["api_keys"]

    async with world(tmp_path_factory.mktemp("slow"), change=change) as one:
        yield one


async def not_found(it: World, _patch: pytest.MonkeyPatch) -> httpx.Response:
    """A task that is none."""
    return await it.api.get("/tasks/tsk_nobody")


async def invalid_input(it: World, _patch: pytest.MonkeyPatch) -> httpx.Response:
    """A page of nothing."""
    return await it.api.get("/tasks?limit=0")


async def unauthorized(it: World, _patch: pytest.MonkeyPatch) -> httpx.Response:
    """A wrong key."""
    return await it.api.get("/tasks", headers={"authorization": "Bearer wrong"})


async def conflict(it: World, _patch: pytest.MonkeyPatch) -> httpx.Response:
    """A task that has ended is not cancelled."""
    task_id = await it.created()
    await it.ended(task_id)
    return await it.api.post(f"/tasks/{task_id}/cancel")


async def too_large(it: World, _patch: pytest.MonkeyPatch) -> httpx.Response:
    """A mebibyte and one."""
    return await it.api.post("/replays", content=b" " * (1024 * 1024 + 1))


async def body_timeout(it: World, patch: pytest.MonkeyPatch) -> httpx.Response:
    """A body that is announced and does not come."""
    patch.setattr(asgi, "BODY_FOR", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", it.settings["server"]["port"])
    fields = f"host: x\r\nauthorization: Bearer {API_KEY}\r\ncontent-length: 500\r\nconnection: close"
    writer.write(f"POST /api/v1/replays HTTP/1.1\r\n{fields}\r\n\r\n".encode())
    async with asyncio.timeout(PATIENCE):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status, *lines = head.decode().split("\r\n")
    headers = [line.partition(": ")[::2] for line in lines]
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)


async def key_reused(it: World, _patch: pytest.MonkeyPatch) -> httpx.Response:
    """Two requests under one key."""
    headers = {"idempotency-key": "reused"}
    for _ in range(2):
        answer = await it.api.post("/tasks", json={"route": PRO, "input": body_of(PRO, script())}, headers=headers)
    return answer


async def key_busy(it: World, patch: pytest.MonkeyPatch) -> httpx.Response:
    """The same request again while the first has no answer."""
    go_on = asyncio.Event()

    async def until_told(seconds: float) -> None:
        if seconds:
            await go_on.wait()

    patch.setattr(it.upstream, "_pause", until_told)
    asked = {"route": PRO, "input": body_of(PRO, script(submit_delay=1))}
    headers = {"idempotency-key": "busy"}
    first = asyncio.create_task(it.api.post("/tasks", json=asked, headers=headers))
    before = it.upstream.ledger.requests

    async def sent() -> bool:
        assert not first.done(), first.result().text
        return it.upstream.ledger.requests > before

    await it.eventually(sent)
    second = await it.api.post("/tasks", json=asked, headers=headers)
    go_on.set()
    assert (await first).status_code == 201
    return second


async def upstream_refused(it: World, _patch: pytest.MonkeyPatch) -> httpx.Response:
    """With the upstream's own words."""
    answer = await it.submit(prompt=script(submit="400"))
    document = answer.json()
    assert (document["upstream"]["status"], document["status"]) == (400, 400)
    assert await it.state(document["task_id"]) == "rejected"
    return answer


async def store_unavailable(it: World, _patch: pytest.MonkeyPatch) -> httpx.Response:
    """Somebody else holds the database."""
    with held(it):
        return await it.submit(prompt=script())


async def submission_ambiguous(it: World, patch: pytest.MonkeyPatch) -> httpx.Response:
    """The database went away in the middle of a commit; on SQLite nothing else can play that."""
    assert it.service is not None

    async def unsure(_op: Any) -> Any:
        raise StoreUnsure("away")

    with patch.context() as away:
        away.setattr(it.service.store, "run", unsure)
        return await it.submit(prompt=script())


@contextmanager
def held(it: World) -> Iterator[None]:
    """Nothing can be committed."""
    assert it.service is not None
    with databases.outage(it.service.store):
        yield


async def method_not_allowed(it: World, _patch: pytest.MonkeyPatch) -> httpx.Response:
    """A list is not deleted."""
    return await it.api.delete("/tasks")


async def internal(it: World, _patch: pytest.MonkeyPatch) -> httpx.Response:
    """A handler that falls over: what it says stays in the log, and it is counted."""

    async def fall(_request: Request) -> Response:
        raise RuntimeError("a secret of ours")

    assert it.service is not None
    row = Operation(
        method="GET",
        path="/fall",
        handler=fall,
        name="fall",
        tag="operation",
        summary="Fall",
        answers=[Answer(200, "")],
    )
    counted = Metrics()
    front = Front(
        it.service.front._door,
        [row],
        guard=Guard([API_KEY]),
        public_path="",
        new_id=lambda: "made",
        count=counted.requests.add,
    )
    transport = httpx.ASGITransport(front, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://here", headers=it.api.headers) as inside:
        answer = await inside.get("/fall")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "made"
    assert counted.requests.values == {("GET", "/fall", "500"): 1}
    return answer


async def rate_limited(slow: World, _patch: pytest.MonkeyPatch) -> httpx.Response:
    """The second in an hour."""
    await slow.api.get("/tasks")
    return await slow.api.get("/tasks")


async def forbidden(slow: World, _patch: pytest.MonkeyPatch) -> httpx.Response:
    """Through a proxy, where no key is configured."""
    return await slow.api.get("/tasks", headers={"x-forwarded-for": "192.0.2.1"})


PRODUCERS: dict[str, Producer] = {
    "not-found": not_found,
    "invalid-input": invalid_input,
    "unauthorized": unauthorized,
    "conflict": conflict,
    "too-large": too_large,
    "body-timeout": body_timeout,
    "idempotency-key-reused": key_reused,
    "idempotency-key-busy": key_busy,
    "upstream-refused": upstream_refused,
    "store-unavailable": store_unavailable,
    "submission-ambiguous": submission_ambiguous,
    "method-not-allowed": method_not_allowed,
    "internal": internal,
}
OF_SLOW: dict[str, Producer] = {"rate-limited": rate_limited, "forbidden": forbidden}


def test_no_kind_is_left_out() -> None:
    """Each has a test that reads its document."""
    assert {*PRODUCERS, *OF_SLOW} == set(problems.KINDS)


def is_of_kind(answer: httpx.Response, code: str) -> None:
    """The document of that kind, with the status and the headers that the document of the API names."""
    kind = problems.KINDS[code]
    status = answer.json()["status"] if code == "upstream-refused" else kind.status
    document = is_problem(answer, status, code)
    assert document["title"] == kind.title
    assert all(name in answer.headers for name in kind.headers)
    assert answer.headers["x-request-id"]
    if "Retry-After" in kind.headers:
        assert int(answer.headers["retry-after"]) > 0
    assert json.loads(answer.content) == document


@pytest.mark.parametrize("code", sorted(PRODUCERS))
async def test_a_problem_is_told_as_documented(it: World, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Its type, title, status and headers."""
    is_of_kind(await PRODUCERS[code](it, monkeypatch), code)


@pytest.mark.parametrize("code", sorted(OF_SLOW))
async def test_a_limit_is_told_as_documented(slow: World, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Likewise, of a service that hears little."""
    is_of_kind(await OF_SLOW[code](slow, monkeypatch), code)
