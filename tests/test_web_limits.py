"""How much a caller may ask, and the id under which he asks: `server.rate_per_key`, wrong keys, `X-Request-Id`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from receiver.web import limits
from receiver.web.limits import Limits, RateLimited
from tests.test_api import is_problem
from tests.world import API_KEY, PATIENCE, body_of, script, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.world import World

OTHER_KEY = "another-key-0123456789"
PRO = "runway/pro/video2video"


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 31, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Now."""
        return self.now

    def pass_by(self, seconds: float) -> None:
        """Time passes."""
        self.now += timedelta(seconds=seconds)


def refused(make: Any) -> RateLimited:
    """The refusal."""
    with pytest.raises(RateLimited) as raised:
        make()
    return raised.value


# -- the counts --------------------------------------------------------------------------------------------------------


def test_a_key_has_its_rate_and_no_other_s() -> None:
    """So many in any window; then `retry_after` says in whole seconds when the next may come, and it is true.

    What is counted is rounded up to a 64th of the window: of ten seconds that is 0.16.
    """
    clock = Clock()
    limit = Limits((3, timedelta(seconds=10)), clock)
    for _ in range(3):
        limit.spend(0)
        clock.pass_by(1)
    limit.spend(1)
    assert refused(lambda: limit.spend(0)).retry_after in {7, 8}
    clock.pass_by(6.5)
    assert refused(lambda: limit.spend(0)).retry_after == 1
    clock.pass_by(0.66)
    limit.spend(0)


def test_a_refused_request_costs_nothing() -> None:
    """Who keeps asking too fast is still heard as often as the rate allows."""
    clock = Clock()
    limit = Limits((1, timedelta(seconds=1)), clock)
    heard = 0
    for _ in range(100):
        try:
            limit.spend(0)
            heard += 1
        except RateLimited:
            clock.pass_by(0.1)
    assert heard >= 9


def test_a_rate_of_very_many_is_as_small_as_any() -> None:
    """What is remembered of a key is bounded, and quick to ask."""
    clock = Clock()
    limit = Limits((1_000_000, timedelta(hours=1)), clock)
    for _ in range(5_000):
        limit.spend(0)
        clock.pass_by(0.7)
    assert len(limit._spent[0].runs) <= 66


def test_without_a_rate_nobody_is_refused() -> None:
    """It is the default."""
    limit = Limits(None, Clock())
    for _ in range(10_000):
        limit.spend(0)


def test_wrong_keys_are_heard_so_often() -> None:
    """Past that no key is heard from there that was not good before: a right guess tells no more than a wrong one."""
    clock = Clock()
    limit = Limits(None, clock)
    count, per = limits.WRONG_KEYS
    limit.check_address("10.0.0.1", 0)
    for _ in range(count):
        limit.check_address("10.0.0.1", None)
    assert refused(lambda: limit.check_address("10.0.0.1", None)).retry_after <= per.total_seconds() + 1
    assert refused(lambda: limit.check_address("10.0.0.1", 1)).retry_after <= per.total_seconds() + 1
    limit.check_address("10.0.0.1", 0)  # it was good from there before
    limit.check_address("10.0.0.2", 1)  # and others are not held to account
    limit.check_address("10.0.0.2", None)
    clock.pass_by(per.total_seconds() * 65 / 64)
    limit.check_address("10.0.0.1", 1)


def test_addresses_do_not_fill_the_memory() -> None:
    """The longest unseen goes first, whether it sent wrong keys or right ones."""
    limit = Limits(None, Clock())
    for n in range(3 * limits.ADDRESSES):
        limit.check_address(f"a{n}", None)
        limit.check_address(f"b{n}", 0)
    assert len(limit._wrong) == len(limit._known) == limits.ADDRESSES
    assert f"a{3 * limits.ADDRESSES - 1}" in limit._wrong
    assert "a0" not in limit._wrong


# -- over the wire -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[World]:
    """A service that hears each key four times an hour."""

    def change(given: dict[str, Any]) -> None:
        given["server"]["rate_per_key"] = "4/h"
        given["security"]["api_keys"] = [OTHER_KEY, API_KEY]

    async with world(tmp_path, change=change) as one:
        yield one


def root(it: World) -> str:
    """Where the service is."""
    return f"http://127.0.0.1:{it.settings['server']['port']}"


@pytest.mark.anyio
async def test_a_key_that_asks_too_much_is_told_when_to_come_again(slow: World) -> None:
    """429 with `Retry-After`, on the API as a problem, on the drop-in routes as the upstream would; nothing is stored.

    Not limited: another key, the metrics, callbacks, and what is open.
    """
    task_id = await slow.created()
    for _ in range(3):
        assert (await slow.api.get("/tasks")).status_code == 200
    answer = await slow.api.post("/tasks", json={"route": PRO, "input": body_of(PRO, script())})
    is_problem(answer, 429, "rate-limited")
    assert 3590 < int(answer.headers["retry-after"]) <= 3660
    answer = await slow.api.post(f"{root(slow)}/{PRO}", json=body_of(PRO, script()))
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "rate-limited"
    assert 3590 < int(answer.headers["retry-after"]) <= 3660
    for path in ("/metrics", "/livez", "/openapi.json", "/docs"):
        assert (await slow.api.get(f"{root(slow)}{path}")).status_code == 200
    assert (await slow.call_back(task_id, {"code": 200, "msg": "", "data": {}})).status_code == 200
    other = await slow.api.get("/tasks", headers={"authorization": f"Bearer {OTHER_KEY}"})
    assert [task["id"] for task in other.json()["data"]] == [task_id]


@pytest.mark.anyio
async def test_nobody_guesses_at_full_speed(slow: World) -> None:
    """After so many wrong keys even the right one is 429 there, unless it was good from there before."""
    assert (await slow.api.get("/tasks")).status_code == 200
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as stranger:

        async def ask(key: str) -> httpx.Response:
            return await stranger.get(f"{root(slow)}/api/v1/tasks", headers={"authorization": f"Bearer {key}"})

        for n in range(limits.WRONG_KEYS[0]):
            is_problem(await ask(f"guess-{n}"), 401, "unauthorized")
        for key in ("one-more", OTHER_KEY):
            answer = await ask(key)
            is_problem(answer, 429, "rate-limited")
            assert 1 <= int(answer.headers["retry-after"]) <= 61
        assert (await stranger.get(f"{root(slow)}/api/v1/tasks")).status_code == 401  # no key is no guess
    assert (await slow.api.get("/tasks")).status_code == 200


@pytest.mark.anyio
async def test_without_keys_all_share_the_rate(tmp_path: Path) -> None:
    """They are all on this machine."""

    def change(given: dict[str, Any]) -> None:
        given["server"]["rate_per_key"] = "2/h"
        del given["security"]["api_keys"]

    async with world(tmp_path, change=change) as one:
        for status in (200, 200, 429):
            assert (await one.api.get("/tasks")).status_code == status


# -- ids of requests ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def it(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One world for all."""
    async with world(tmp_path_factory.mktemp("request_ids")) as one:
        yield one


@pytest.mark.anyio
@pytest.mark.parametrize("given", ["a", "x" * 128, "!~", "req_1", "3f2a:7/1"])
async def test_an_id_of_the_caller_s_comes_back(it: World, given: str) -> None:
    """Where it is 1 to 128 visible ASCII characters."""
    answer = await it.api.get("/tasks", headers={"x-request-id": given})
    assert answer.headers.get_list("x-request-id") == [given]


@pytest.mark.anyio
@pytest.mark.parametrize("given", [b"", b"x" * 129, b"a b", b"a\tb", "clé".encode(), b"\xff"])
async def test_an_unfit_id_is_replaced(it: World, given: bytes) -> None:
    """By a new one, as where there is none; none comes twice."""
    made = [
        (await it.api.get("/tasks", headers=[(b"x-request-id", given)])).headers["x-request-id"],
        (await it.api.get("/tasks")).headers["x-request-id"],
    ]
    assert len(set(made)) == 2
    assert all(one.startswith("req_") and len(one) == 28 for one in made)


@pytest.mark.anyio
async def test_every_answer_has_an_id_but_the_door_s(it: World) -> None:
    """Also errors, other methods, unknown paths, the drop-in routes and the pages."""
    asked = [
        ("GET", "/api/v1/tasks/nobody", 404),
        ("GET", "/api/v1/tasks?limit=0", 422),
        ("DELETE", "/api/v1/tasks", 405),
        ("GET", "/nothing", 404),
        ("GET", "/docs", 200),
        ("GET", "/metrics", 200),
        ("GET", "/readyz", 200),
        ("POST", f"/{PRO}", 400),
        ("GET", "/runwayml/v1/tasks/nobody", 400),
    ]
    for method, path, status in asked:
        answer = await it.api.request(method, f"{root(it)}{path}", headers={"x-request-id": "mine"})
        assert (path, answer.status_code, answer.headers.get_list("x-request-id")) == (path, status, ["mine"])
    for path in ("/callbacks/forged", it.callback_url(await it.created(render=60)).removeprefix(root(it))):
        assert "x-request-id" not in (await it.api.get(f"{root(it)}{path}")).headers


def lines(text: str, event: str) -> list[dict[str, Any]]:
    """The log lines of one name."""
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == event]


@pytest.mark.anyio
async def test_the_log_lines_of_a_request_have_its_id(it: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the request, and none of what it only set off: an attempt belongs to its delivery."""
    headers = {"x-request-id": "this-one"}
    asked = {"route": PRO, "input": body_of(PRO, script(submit="400"))}
    await it.api.post("/tasks", json=asked, headers=headers)
    [said] = lines(capsys.readouterr().err, "task.submit_refused")
    assert said["request_id"] == "this-one"

    it.sink.answers += [500]
    task_id = await it.created(render=30)
    await it.api.post(f"/tasks/{task_id}/cancel", headers=headers)
    await it.eventually(lambda: it.all_delivered(task_id))
    [tried] = lines(capsys.readouterr().err, "delivery.attempted")
    assert tried["task_id"] == task_id
    assert "request_id" not in tried
