"""Journeys of the official `runwayml` SDK through the drop-in routes: nothing of its code changes but `base_url`.

It is an independent client: what it makes of an answer is the measure of "keep your code". It speaks to the upstream
itself, too, to show that the gateway changes nothing of what it makes of the older wrapper shapes. Its waits between
two looks (six seconds) and between two tries are made short; that is all that is changed in it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

import pytest
import runwayml
from runwayml import AsyncRunwayML, RunwayML
from runwayml.lib import polling
from runwayml.lib.polling import TaskFailedError, TaskTimeoutError

from receiver.emulator import EmulatorOptions, running
from tests.ports import free_port
from tests.world import API_KEY, I2V, SECRET, V2V, World, script, sink, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.engines]
Way = Literal["sync", "async"]
WAYS: list[Way] = ["sync", "async"]
UPSTREAM_KEY = "upstream-key"
SHAPES = ["4.4a", "4.4b", "blog", "3a", "3b", "3b-historic", "3b-new", "3c", "id-only"]
"""Every documented dress of a lookup's answer, also those of the other lookup route."""
WRAPPED = {
    "2a": {"code": 200, "msg": "成功", "data": {"task_id": "up-1", "status": "0", "video_url": None}, "exec_time": 0},
    "2b": {"code": 200, "msg": "成功", "data": {"task_id": "up-1"}, "exec_time": 0.67573},
    "2c": {"code": 200, "message": "", "msg": "success", "data": {"task_id": "up-1"}},
    "3b": {"code": "success", "message": "", "data": {"task_id": "up-1", "status": "QUEUED", "data": {"id": "up-1"}}},
}
"""Wrappers that a gateway may put around a submission's answer (upstream.md 2 and 3b)."""
UNDERSTOOD = {"4.4b"}
"""Those in which the SDK sees that a task has ended."""


@pytest.fixture(autouse=True)
def _haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "POLL_TIME", 0.1)
    monkeypatch.setattr(polling, "POLL_JITTER", 0.02)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def change(given: dict[str, Any]) -> None:
    """Callers' own callback_urls may be on loopback, and are signed; an id may be unknown upstream for a while."""
    given["security"] |= {"callback_secrets": [SECRET], "allow_private_callbacks": True}
    given["polling"]["missing_grace"] = "20s"


@pytest.fixture(scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world."""
    async with world(tmp_path_factory.mktemp("sdk"), change=change) as built:
        yield built


class Sdk:
    """The SDK, sync (in a thread) or async, against the gateway or against the upstream itself."""

    def __init__(self, way: Way, base_url: str, api_key: str, **more: Any) -> None:
        make: Any = RunwayML if way == "sync" else AsyncRunwayML
        self.way = way
        self.client = make(base_url=f"{base_url}/runwayml", api_key=api_key, **more)

    async def do(self, what: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Call one of its methods."""
        if self.way == "sync":
            return await asyncio.to_thread(what, *given, **named)
        return await what(*given, **named)

    async def create(self, route: str, prompt: str, **more: Any) -> Any:
        """Create a task as its users do; `more` is what they may add."""
        if route == V2V:
            kept = {"content_moderation": {"public_figure_threshold": "auto"}, "ratio": "1280:720", "seed": 7}
            named: dict[str, Any] = {"model": "gen4_aleph", "video_uri": "https://example.com/in.mp4", **kept}
            create = self.client.video_to_video.create
        else:
            named = {"model": "gen3a_turbo", "prompt_image": "https://example.com/in.png", "ratio": "1280:768"}
            create = self.client.image_to_video.create
        return await self.do(create, **named, prompt_text=prompt, **more)

    async def wait(self, task: Any, seconds: float = 15) -> Any:
        """`wait_for_task_output`."""
        return await self.do(task.wait_for_task_output, timeout=seconds)

    async def look(self, task_id: str) -> Any:
        """`tasks.retrieve`."""
        return await self.do(self.client.tasks.retrieve, task_id)

    async def raw_look(self, task_id: str) -> Any:
        """`tasks.retrieve` with the answer itself."""
        return await self.do(self.client.tasks.with_raw_response.retrieve, task_id)

    async def raw_create(self, prompt: str, **more: Any) -> Any:
        """`image_to_video.create` with the answer itself."""
        named = {"model": "gen3a_turbo", "prompt_image": "https://example.com/in.png", "ratio": "1280:768"}
        return await self.do(self.client.image_to_video.with_raw_response.create, prompt_text=prompt, **named, **more)

    async def task_in(self, raw: Any) -> Any:
        """What it makes of an answer."""
        return raw.parse() if self.way == "sync" else await raw.parse()

    async def parsed(self, raw: Any) -> tuple[str, Any, Any, dict[str, Any]]:
        """The kind of object it makes of an answer, that one's status and id, and all it found."""
        task = await self.task_in(raw)
        kind = type(task).__name__
        return kind, getattr(task, "status", None), getattr(task, "id", None), task.to_dict()


@asynccontextmanager
async def _sdk(way: Way, base_url: str, api_key: str, **more: Any) -> AsyncIterator[Sdk]:
    sdk = Sdk(way, base_url, api_key, **more)
    try:
        yield sdk
    finally:
        await sdk.do(sdk.client.close)


def through(here: World, way: Way = "async", **more: Any) -> Any:
    """The SDK with our base URL and one of our keys."""
    return _sdk(way, f"http://127.0.0.1:{here.settings['server']['port']}", API_KEY, **more)


def direct(here: World, way: Way = "async", **more: Any) -> Any:
    """The SDK as it was before, with the key that the service has: it sees the same tasks."""
    return _sdk(way, here.emulator.base_url, UPSTREAM_KEY, **more)


async def ours(here: World, upstream_id: str) -> str:
    """Our id of the task that the upstream knows by this one."""
    [task_id] = [one["id"] for one in await _tasks(here) if one["upstream_id"] == upstream_id]
    return str(task_id)


async def _tasks(here: World) -> list[dict[str, Any]]:
    return list((await here.api.get("/tasks", params={"limit": 200})).json()["data"])


def _submissions(here: World) -> int:
    """How many have come to the upstream, whatever became of them."""
    return here.upstream.ledger.submissions.total()


def _renders(here: World, prompt: str) -> int:
    return sum(1 for one in here.upstream.tasks.values() if one.prompt == prompt)


# -- create and wait ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("route", [V2V, I2V])
async def test_it_creates_waits_and_gets_the_output(here: World, way: Way, route: str) -> None:
    """`create(…).wait_for_task_output()` returns the output; we saw the same end, and its event went out."""
    prompt = script(render=0.3)
    async with through(here, way) as sdk:
        task = await sdk.create(route, prompt)
        done = await sdk.wait(task)
    [rendered] = [one for one in here.upstream.tasks.values() if one.prompt == prompt]
    assert (task.id, done.id, done.status) == (rendered.id, rendered.id, "SUCCEEDED")
    got = await here.whole(await ours(here, task.id))
    assert done.output == [got.data["video_url"]]
    assert got.data["route"] == route


@pytest.mark.parametrize("way", WAYS)
async def test_a_failure_is_raised(here: World, way: Way) -> None:
    """`TaskFailedError` with the upstream's own words and code."""
    async with through(here, way) as sdk:
        task = await sdk.create(V2V, script(outcome="fail", reason="too dark", render=0.2))
        with pytest.raises(TaskFailedError) as raised:
            await sdk.wait(task)
    details: Any = raised.value.task_details
    assert (details.status, details.failure) == ("FAILED", "too dark")
    got = await here.whole(await ours(here, task.id), "task.failed")
    assert (got.data["failure"], got.data["failure_code"]) == (details.failure, details.to_dict()["failureCode"])


@pytest.mark.parametrize("way", WAYS)
async def test_a_timeout_is_raised_and_nothing_is_lost(here: World, way: Way) -> None:
    """`TaskTimeoutError` for the caller; here the task goes on, and its end is told."""
    async with through(here, way) as sdk:
        task = await sdk.create(I2V, script(outcome="never"))
        with pytest.raises(TaskTimeoutError) as raised:
            await sdk.wait(task, 0.25)
        assert raised.value.task_details.status == "RUNNING"
        task_id = await ours(here, task.id)
        assert await here.state(task_id) in {"queued", "running"}
        here.upstream.end(task.id, outcome="succeed")
        await here.whole(task_id)
        assert (await sdk.wait(await sdk.look(task.id))).status == "SUCCEEDED"


@pytest.mark.parametrize("way", WAYS)
async def test_a_cancelled_render_is_what_it_is_without_us(here: World, way: Way) -> None:
    """The async client raises `TaskFailedError`; the sync one (5.24.0) does not know CANCELLED, and looks on."""
    error: type[TaskTimeoutError | TaskFailedError] = TaskTimeoutError if way == "sync" else TaskFailedError
    for at in (through, direct):
        async with at(here, way) as sdk:
            task = await sdk.create(V2V, script(outcome="cancel"))
            with pytest.raises(error) as raised:
                await sdk.wait(task, 0.5)
            told: Any = raised.value
            assert told.task_details.status == "CANCELLED"


@pytest.mark.parametrize("way", WAYS)
async def test_its_own_callback_url_and_the_id_of_our_task(here: World, way: Way) -> None:
    """`callback_url` by `extra_body` hears of the end; it is not sent upstream, and neither is the caller's key."""
    prompt = script(render=0.1)
    async with sink() as own, through(here, way) as sdk:
        raw = await sdk.raw_create(prompt, extra_body={"callback_url": own.url, "watermark": False})
        task = await sdk.task_in(raw)
        task_id = raw.headers["receiver-task-id"]
        sent = raw.http_request
        assert sent.url.path == f"/{I2V}"
        assert sent.headers["x-runway-version"] == "2024-11-06"
        assert sent.headers["authorization"] == f"Bearer {API_KEY}"
        assert "idempotency-key" not in sent.headers
        assert (await sdk.wait(task)).status == "SUCCEEDED"
        await here.whole(task_id)
        await own.until(lambda: bool(own.received))
    [rendered] = [one for one in here.upstream.tasks.values() if one.prompt == prompt]
    assert (rendered.key, "callback_url" in rendered.received) == (UPSTREAM_KEY, False)
    assert rendered.received["watermark"] is False
    assert rendered.id in own.received[0].body.decode()


# -- the upstream's shapes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
async def test_a_look_is_the_same_in_every_shape(here: World, way: Way, shape: str) -> None:
    """Open, succeeded, failed: byte for byte what the upstream says itself, and so the SDK makes the same of it."""
    async with through(here, way) as sdk, direct(here, way) as plain:
        for outcome, status in (("never", "RUNNING"), ("succeed", "SUCCEEDED"), ("fail", "FAILED")):
            task = await sdk.create(V2V, script(outcome=outcome, tasks_shape=shape, render=0.05))
            task_id = await ours(here, task.id)
            if outcome != "never":
                await here.ended(task_id)
            seen, meant = await sdk.raw_look(task.id), await plain.raw_look(task.id)
            assert seen.http_response.content == meant.http_response.content
            assert seen.headers["content-type"] == meant.headers["content-type"]
            assert seen.headers["receiver-task-id"] == task_id
            assert await sdk.parsed(seen) == await plain.parsed(meant)
            assert ((await sdk.parsed(seen))[1] == status) == (shape in UNDERSTOOD)
            if outcome == "never":
                here.upstream.end(task.id, outcome="succeed")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
async def test_waiting_ends_the_same_in_every_shape(here: World, way: Way, shape: str) -> None:
    """Where it knows the shape, with the output or the failure; else it waits until its timeout, as without us.

    What it gains there: we do know the shape, and the end is told to every destination all the same.
    """
    async with through(here, way) as sdk, direct(here, way) as plain:
        for outcome, event, known in (
            ("succeed", "task.succeeded", "SUCCEEDED"),
            ("fail", "task.failed", "TaskFailedError"),
        ):
            prompts = [script(outcome=outcome, tasks_shape=shape, render=0.02) for _ in range(2)]
            tasks = [await one.create(V2V, prompt) for one, prompt in zip((sdk, plain), prompts, strict=True)]
            ended = await asyncio.gather(*(_waited(one, task) for one, task in zip((sdk, plain), tasks, strict=True)))
            assert ended == [known if shape in UNDERSTOOD else "TaskTimeoutError"] * 2
            await here.whole(await ours(here, tasks[0].id), event)


async def _waited(sdk: Sdk, task: Any) -> str:
    """What waiting for a task that has ended comes to: a status, or an error."""
    try:
        return str((await sdk.wait(task, 0.15)).status)
    except (TaskFailedError, TaskTimeoutError) as error:
        return type(error).__name__


@pytest.mark.parametrize("way", WAYS)
async def test_a_task_that_is_not_visible_yet_is_refused_as_without_us(here: World, way: Way) -> None:
    """`task_not_exist` under a 400: `BadRequestError`, with the upstream's own body; the task lives on."""
    async with through(here, way) as sdk, direct(here, way) as plain:
        task = await sdk.create(V2V, script(missing=1000, render=0.02))
        said = []
        for one in (sdk, plain):
            with pytest.raises(runwayml.BadRequestError) as raised:
                await one.look(task.id)
            said.append(raised.value.response.content)
        assert said[0] == said[1]
        render = here.upstream.tasks[task.id]
        render.script = dataclasses.replace(render.script, missing=0)
        assert (await here.ended(await ours(here, task.id)))["state"] == "succeeded"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", sorted(WRAPPED))
async def test_a_wrapped_answer_to_a_submission(tmp_path: Path, way: Way, shape: str) -> None:
    """The reverse wrapper around a submission's answer: the SDK finds no id in it, with us as without us.

    We do: the task is tracked, and the answer's header has our id of it.
    """
    said = json.dumps(WRAPPED[shape], ensure_ascii=False).encode()
    async with _saying(said) as url:

        def there(given: dict[str, Any]) -> None:
            given["upstream"]["base_url"] = url

        async with world(tmp_path, change=there) as odd, through(odd, way) as sdk, _sdk(way, url, "k") as plain:
            for one in (sdk, plain):
                raw = await one.raw_create("a cat")
                assert raw.http_response.content == said
                assert (await one.parsed(raw))[2] is None
                if one is sdk:
                    task = await odd.task(raw.headers["receiver-task-id"])
                    assert (task["state"], task["upstream_id"]) == ("queued", "up-1")


@asynccontextmanager
async def _saying(body: bytes) -> AsyncIterator[str]:
    """An upstream that always says the same."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0))
            kind = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
            writer.write(kind + b"content-length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()


# -- its own repeats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", ["reset", "reset-after", "500-after", "503-html", "unreadable"])
async def test_it_does_not_repeat_what_may_have_been_taken(here: World, way: Way, fault: str) -> None:
    """504 with `x-should-retry: false`: one submission, though it repeats twice by default."""
    prompt, before = script(submit=fault, outcome="never"), _submissions(here)
    async with through(here, way) as sdk:
        with pytest.raises(runwayml.InternalServerError) as raised:
            await sdk.create(V2V, prompt)
    assert raised.value.status_code == 504
    assert raised.value.body["error"]["code"] == "submission-ambiguous"  # type: ignore[index]
    assert _submissions(here) == before + 1
    assert await here.state(raised.value.response.headers["receiver-task-id"]) == "ambiguous"


async def test_without_us_it_pays_thrice(here: World) -> None:
    """Why that matters: the same answer of the upstream itself is repeated, and each repeat is a render."""
    prompt = script(submit="500-after", outcome="never")
    async with direct(here) as plain:
        with pytest.raises(runwayml.InternalServerError):
            await plain.create(V2V, prompt)
    assert _renders(here, prompt) == 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("retry_after", ["", "1"])
async def test_it_repeats_a_429_by_itself(here: World, way: Way, retry_after: str) -> None:
    """Passed on as it came, with its Retry-After: it comes again; each try is one submission and one task of ours."""
    said = {"retry_after": retry_after} if retry_after else {}
    prompt, before = script(submit="429", submit_times=2, **said), _submissions(here)
    async with through(here, way) as sdk:
        task = await sdk.create(I2V, prompt)
        assert (await sdk.wait(task)).status == "SUCCEEDED"
    assert (_submissions(here), _renders(here, prompt)) == (before + 3, 1)
    states = [one["state"] for one in await _tasks(here) if one["input"].get("promptText") == prompt]
    assert sorted(states) == ["rejected", "rejected", "succeeded"]


@pytest.mark.parametrize("way", WAYS)
async def test_a_429_that_stays_is_raised(here: World, way: Way) -> None:
    """After its two repeats: `RateLimitError` with the upstream's words; three submissions, none taken."""
    prompt, before = script(submit="429"), _submissions(here)
    async with through(here, way) as sdk:
        with pytest.raises(runwayml.RateLimitError):
            await sdk.create(V2V, prompt)
    assert (_submissions(here), _renders(here, prompt)) == (before + 3, 0)


@pytest.mark.parametrize("way", WAYS)
async def test_a_refusal_is_raised_once(here: World, way: Way) -> None:
    """A 400 is `BadRequestError` with the upstream's body, and is not repeated."""
    before = _submissions(here)
    async with through(here, way) as sdk:
        with pytest.raises(runwayml.BadRequestError):
            await sdk.create(V2V, script(submit="400"))
    assert _submissions(here) == before + 1


@pytest.mark.parametrize("way", WAYS)
async def test_an_upstream_that_comes_back_is_reached_by_its_repeats(tmp_path: Path, way: Way) -> None:
    """Away: our 503 with Retry-After, and the SDK comes again; nothing had been sent; one submission in the end.

    It may come as often as it takes until the upstream is there.
    """
    port = free_port()

    def nowhere(given: dict[str, Any]) -> None:
        given["upstream"]["base_url"] = f"http://127.0.0.1:{port}"

    async with world(tmp_path, change=nowhere) as away, through(away, way, max_retries=20) as sdk:
        creating = asyncio.create_task(sdk.create(V2V, script()))

        async def was_told() -> bool:
            return "rejected" in [one["state"] for one in await _tasks(away)]

        await away.eventually(was_told)
        async with running(EmulatorOptions(), port=port) as back:
            task = await creating
            assert (await sdk.wait(task)).status == "SUCCEEDED"
            assert back.emulator.ledger.submissions.total() == 1
            states = [one["state"] for one in await _tasks(away)]
            assert states.count("rejected") == len(states) - 1


@pytest.mark.parametrize("way", WAYS)
async def test_an_upstream_that_stays_away_is_raised(tmp_path: Path, way: Way) -> None:
    """Three tries, then `InternalServerError` 503; three tasks kept as rejected, and nobody was told of an end."""

    def nowhere(given: dict[str, Any]) -> None:
        given["upstream"]["base_url"] = "http://127.0.0.1:9"

    async with world(tmp_path, change=nowhere) as away, through(away, way) as sdk:
        with pytest.raises(runwayml.InternalServerError) as raised:
            await sdk.create(V2V, script())
        assert raised.value.status_code == 503
        assert [one["state"] for one in await _tasks(away)] == ["rejected"] * 3
        assert away.sink.received == []


@pytest.mark.parametrize("way", WAYS)
async def test_an_idempotency_key_makes_its_repeats_safe(here: World, way: Way) -> None:
    """Its own timeout makes it repeat a POST that is being taken. Under a key of the caller: one render, its id."""
    prompt, before = script(submit_delay=0.8), _submissions(here)
    async with through(here, way, timeout=0.5, max_retries=10) as sdk:
        named = {"extra_headers": {"Idempotency-Key": f"order 66 {way}"}}
        task = await sdk.create(V2V, prompt, **named)
        again = await sdk.create(V2V, prompt, **named)
        assert (await sdk.wait(task)).status == "SUCCEEDED"
    assert (again.id, _submissions(here), _renders(here, prompt)) == (task.id, before + 1, 1)


async def test_without_a_key_its_timeout_pays_twice(here: World) -> None:
    """Why a caller should name one: nothing tells a repeat from a second wish."""
    prompt = script(submit_delay=0.8, outcome="never")
    async with through(here, timeout=0.5, max_retries=1) as sdk:
        with pytest.raises(runwayml.APITimeoutError):
            await sdk.create(V2V, prompt)

    async def twice() -> bool:
        return _renders(here, prompt) == 2

    await here.eventually(twice)


@pytest.mark.parametrize("way", WAYS)
async def test_a_key_of_an_ambiguous_one_is_never_sent_again(here: World, way: Way) -> None:
    """The caller's own repeat hears the same 504 at once, and that it must not be repeated."""
    prompt, before = script(submit="reset", outcome="never"), _submissions(here)
    async with through(here, way) as sdk:
        for _ in range(2):
            with pytest.raises(runwayml.InternalServerError) as raised:
                await sdk.create(V2V, prompt, extra_headers={"Idempotency-Key": f"unclear {way}"})
            assert raised.value.status_code == 504
    assert raised.value.response.headers["idempotency-replayed"] == "true"
    assert _submissions(here) == before + 1


@pytest.mark.parametrize("way", WAYS)
async def test_a_wrong_key_of_ours(here: World, way: Way) -> None:
    """`AuthenticationError`, once, and nothing goes upstream."""
    ledger = here.upstream.ledger
    before = _submissions(here), ledger.not_found
    base = f"http://127.0.0.1:{here.settings['server']['port']}"
    async with _sdk(way, base, "nobody") as sdk:
        with pytest.raises(runwayml.AuthenticationError):
            await sdk.create(V2V, script())
        with pytest.raises(runwayml.AuthenticationError):
            await sdk.look("any-id")
    assert (_submissions(here), ledger.not_found) == before
