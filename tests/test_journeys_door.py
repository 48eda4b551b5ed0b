"""Journeys through the callback door: methods, sizes, encodings, strangers. A good token is heard, others never are."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest

from tests.world import PATIENCE, PRO, World, callback_url_of, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Any

pytestmark = [pytest.mark.anyio, pytest.mark.engines]
MIB = 1024 * 1024
RECEIVED = {"received": True}


@pytest.fixture(scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world that asks nothing by itself for 30 s, nor again for as long."""

    def change(given: dict[str, Any]) -> None:
        given["polling"] |= {"interval": "30s", "max_interval": "30s"}

    async with world(tmp_path_factory.mktemp("door"), change=change) as built:
        yield built


@pytest.fixture
async def stranger() -> AsyncIterator[httpx.AsyncClient]:
    """Somebody who knows nothing but a URL."""
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        yield client


async def _open(here: World) -> tuple[str, bytes]:
    """A task that waits for its callback, and the body of a success."""
    task_id = await here.created(PRO, outcome="never", callback="missing")
    render = await here.rendering(task_id)
    here.upstream.end(render.id)
    body = {"task_id": render.id, "status": "3", "video_url": f"https://example.com/{render.id}.mp4"}
    return task_id, json.dumps(body).encode()


async def _raw(url: str, head: str, *pieces: bytes) -> int:
    """The status that answers one request, written as it stands here."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\n{head}\r\n\r\n".encode())
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        return int(answer.split()[1])
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("suffix", ["", "/callback", "/", "?x=y", "/callback?uuid=1&x=/y", "/a/b/c"])
async def test_a_good_token_is_heard(here: World, stranger: httpx.AsyncClient, method: str, suffix: str) -> None:
    """By POST and by PUT, with anything appended after a slash or a question mark."""
    task_id, body = await _open(here)
    answer = await stranger.request(method, here.callback_url(task_id) + suffix, content=body)
    assert (answer.status_code, answer.json()) == (200, RECEIVED)
    got = await here.whole(task_id)
    assert got.data["via"] == "callback"


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", "", "a"]
)
async def test_the_content_type_is_no_law(here: World, stranger: httpx.AsyncClient, content_type: str) -> None:
    """JSON is read as JSON, whatever it is called."""
    task_id, body = await _open(here)
    await stranger.post(here.callback_url(task_id), content=body, headers={"content-type": content_type})
    assert (await here.whole(task_id)).data["via"] == "callback"


async def test_gzip_is_undone(here: World, stranger: httpx.AsyncClient) -> None:
    """`Content-Encoding: gzip`; the raw body that is kept is what was inside."""
    task_id, body = await _open(here)
    headers = {"content-encoding": "gzip"}
    answer = await stranger.post(here.callback_url(task_id), content=gzip.compress(body), headers=headers)
    assert answer.status_code == 200
    await here.whole(task_id)
    [seen] = await here.timeline(task_id, "observation")
    assert seen["raw"] == body.decode()


@pytest.mark.parametrize("how", ["declared", "chunked", "gzip"])
async def test_a_body_that_is_too_large(here: World, how: str) -> None:
    """413 over 1 MiB, also where it comes in chunks or swells up; the task is asked about at once."""
    task_id, _ = await _open(here)
    url = here.callback_url(task_id)
    if how == "declared":
        status = await _raw(url, f"content-length: {5 * MIB}", b'{"a": "')
    elif how == "chunked":
        chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
        status = await _raw(url, "transfer-encoding: chunked", *[chunk] * 17)
    else:
        bomb = gzip.compress(b" " * (3 * MIB))
        status = await _raw(url, f"content-encoding: gzip\r\ncontent-length: {len(bomb)}", bomb)
    assert status == 413
    got = await here.whole(task_id)
    assert got.data["via"] == "poll"
    assert await here.verdicts(task_id) == ["unreadable"]


async def test_a_client_that_writes_on_gets_its_413(here: World, stranger: httpx.AsyncClient) -> None:
    """A whole body of 3 MiB sent by an ordinary client: it gets the answer, and no reset in its face."""
    task_id, _ = await _open(here)
    answer = await stranger.post(here.callback_url(task_id), content=b"a" * (3 * MIB))
    assert answer.status_code == 413
    await here.whole(task_id)


async def test_just_small_enough(here: World, stranger: httpx.AsyncClient) -> None:
    """1 MiB to the byte is taken."""
    task_id, body = await _open(here)
    answer = await stranger.post(here.callback_url(task_id), content=body + b" " * (MIB - len(body)))
    assert answer.status_code == 200
    assert (await here.whole(task_id)).data["via"] == "callback"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_knock_changes_nothing_and_wakes_the_poller(
    here: World, stranger: httpx.AsyncClient, method: str
) -> None:
    """200; nothing is recorded; the lookup it sets off finds the end. Knocking on brings no more lookups."""
    task_id = await here.created(PRO, outcome="never", callback="missing")
    for _ in range(5):
        assert (await stranger.request(method, here.callback_url(task_id))).status_code == 200

    async def looked_up() -> bool:
        return bool(await here.timeline(task_id, "poll"))

    await here.eventually(looked_up)
    assert await here.verdicts(task_id) == []
    assert (await here.rendering(task_id)).lookups == 1
    await here.api.post(f"/tasks/{task_id}/cancel")


async def test_another_method_is_not_allowed(here: World, stranger: httpx.AsyncClient) -> None:
    """405, and which ones are."""
    task_id = await here.created(PRO, outcome="never", callback="missing")
    answer = await stranger.delete(here.callback_url(task_id))
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"POST", "PUT", "GET", "HEAD"}
    await here.api.post(f"/tasks/{task_id}/cancel")


async def test_every_refusal_is_the_same_404(here: World, stranger: httpx.AsyncClient) -> None:
    """Forged, altered, expired, of an unknown task, none at all: one body for all; each recorded with its reason."""
    task_id, body = await _open(here)
    good = here.callback_url(task_id)
    other_key = {**here.settings, "security": {"signing_keys": ["another signing key, of 32+ characters"]}}
    urls = {
        "forged": callback_url_of(other_key, task_id),
        "altered": good[:-1] + ("A" if good[-1] != "A" else "B"),
        "expired": here.callback_url(task_id, good_for=-1),
        "unknown": here.callback_url("tsk_01kc0000000000000000000000"),
        "malformed": good.rpartition("/")[0] + "/nothing",
        "empty": good.rpartition("/")[0] + "/",
        "prefixed": good.replace("/callbacks/", "/callbacks/x"),
    }
    answers = {name: await stranger.post(url, content=body) for name, url in urls.items()}
    assert {answer.status_code for answer in answers.values()} == {404}
    assert len({(answer.content, answer.headers["content-type"]) for answer in answers.values()}) == 1
    got = [await stranger.get(url) for url in urls.values()]
    assert {(answer.status_code, answer.content) for answer in got} == {(404, answers["forged"].content)}
    heads = [await stranger.head(url) for url in urls.values()]
    assert {(answer.status_code, answer.content) for answer in heads} == {(404, b"")}
    await _noted(here, {"forged": 6, "expired": 3, "unknown task": 3, "malformed": 9})
    assert await here.verdicts(task_id) == []
    assert await here.state(task_id) != "succeeded"


async def _noted(here: World, reasons: dict[str, int]) -> None:
    service = here.service
    assert service is not None

    async def noted() -> bool:
        refused = await service.store.read(lambda connection: service.store.events.refused(connection, 100))
        return Counter(one.reason for one in refused) == reasons

    await here.eventually(noted)


async def test_fifty_bodies_are_kept_and_more_are_counted(here: World, stranger: httpx.AsyncClient) -> None:
    """A stream of callbacks fills no disk; and past the cap a terminal one still ends its task."""
    task_id, body = await _open(here)
    url = here.callback_url(task_id)
    for number in range(60):
        progress = json.dumps({"status": "1", "progress": number}).encode()
        assert (await stranger.post(url, content=progress)).status_code == 200
    assert (await stranger.post(url, content=body)).status_code == 200
    got = await here.whole(task_id)
    assert got.data["via"] == "callback"
    assert len(await here.timeline(task_id, "observation")) == 50
    service = here.service
    assert service is not None
    stored = await service.store.read(lambda connection: service.store.tasks.get(connection, task_id))  # type: ignore[arg-type]
    assert stored is not None
    assert stored.callbacks == 61


async def test_a_flood_of_the_same_callback_ends_it_once(here: World, stranger: httpx.AsyncClient) -> None:
    """A hundred at once: each answered 200, one accepted, one event."""
    task_id, body = await _open(here)
    url = here.callback_url(task_id)
    answers = await asyncio.gather(*(stranger.post(url, content=body) for _ in range(100)))
    assert {answer.status_code for answer in answers} == {200}
    await here.whole(task_id)
    verdicts = Counter(await here.verdicts(task_id))
    assert verdicts == {"accepted": 1, "duplicate": 49}


async def test_an_expired_url_is_a_404_and_polling_finds_the_task(tmp_path: Path) -> None:
    """The URL the upstream was given is good for `callback_ttl` and no longer."""

    def change(given: dict[str, Any]) -> None:
        given["security"]["callback_ttl"] = "200ms"
        given["polling"]["callback_grace"] = "50ms"

    async with world(tmp_path, change=change) as brief:
        task_id = await brief.created(PRO, render=0.1, callback_delay=0.3)
        got = await brief.whole(task_id)
        assert got.data["via"] == "poll"
        await brief.upstream.idle()
        assert [sent.status for sent in (await brief.rendering(task_id)).callbacks] == [404]


async def test_an_old_signing_key_still_opens_the_door(tmp_path: Path) -> None:
    """Keys are rotated by appending: URLs minted with the one before stay good."""
    async with world(tmp_path) as here:
        task_id, body = await _open(here)
        url = here.callback_url(task_id)
        here.settings["security"]["signing_keys"].append("a newer signing key of this test, 32+ characters")
        await here.restart()
        assert here.callback_url(task_id).rpartition(".")[2] != url.rpartition(".")[2]
        async with httpx.AsyncClient(trust_env=False) as stranger:
            assert (await stranger.post(url, content=body)).status_code == 200
        await here.whole(task_id)


async def test_a_public_url_with_a_path(tmp_path: Path) -> None:
    """Behind a proxy that passes the path on: callbacks are found under it too."""

    def change(given: dict[str, Any]) -> None:
        given["server"]["public_url"] += "/video/hooks/"

    async with world(tmp_path, change=change) as here:
        task_id = await here.created()
        got = await here.whole(task_id)
        assert got.data["via"] == "callback"
        assert "/video/hooks/callbacks/" in str((await here.rendering(task_id)).callback_url)


async def test_without_a_public_url_everything_is_polled(tmp_path: Path) -> None:
    """The route that insists on a callback is given one that leads nowhere."""

    def change(given: dict[str, Any]) -> None:
        del given["server"]["public_url"]

    async with world(tmp_path, change=change) as here:
        task_id = await here.created()
        got = await here.whole(task_id)
        assert got.data["via"] == "poll"
        assert (await here.rendering(task_id)).callback_url == "https://callback.invalid/none"


async def test_no_token_is_ever_shown(here: World) -> None:
    """Neither in the task nor in its timeline (nor in a line of the log: see the kill test)."""
    task_id, body = await _open(here)
    await here.call_back(task_id, body)
    await here.whole(task_id)
    token = str((await here.rendering(task_id)).callback_url).rpartition("/")[2]
    shown = json.dumps([await here.task(task_id), await here.timeline(task_id)])
    assert token not in shown
    assert token.rpartition(".")[2] not in shown
