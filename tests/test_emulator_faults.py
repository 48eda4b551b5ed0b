"""The emulator's faults over real sockets: what a client meets when a submission or a lookup goes wrong."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from receiver.emulator import EmulatorOptions, directive, running
from tests.emulator_stage import HEADERS, I2V, PRO, Sink, Stage, built

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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
    head = "".join(f"{name}: {value}\r\n" for name, value in {**HEADERS, "content-type": "application/json"}.items())
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
    options = EmulatorOptions(hang_seconds=60, callback_delay=3600, render_seconds=0)
    async with (
        running(options) as upstream,
        httpx.AsyncClient(base_url=upstream.base_url, headers=HEADERS, trust_env=False) as client,
    ):
        stage = Stage(client, Sink("http://127.0.0.1:1"), upstream.emulator)
        assert (await stage.submit()).status_code == 200
        hanging = asyncio.create_task(stage.submit(I2V, submit="hang-after"))
        asking = asyncio.create_task(stage.submit(submit_delay=60))
        while upstream.emulator.report()["submissions"] != {PRO[1:]: 2, I2V[1:]: 1}:
            await stage.task("none")
        await upstream.emulator.close()
        assert {(await hanging).status_code, (await asking).status_code} == {200}
    assert time.monotonic() - begun < options.hang_seconds
