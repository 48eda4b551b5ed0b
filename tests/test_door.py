"""The callback door over real sockets (contract 4.1): who gets in, what is answered, and that it waits for the disk."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receiver import poll, signing, sweep
from receiver.app import clock
from receiver.errors import TooLarge
from receiver.ids import TaskId
from receiver.ingest import Callback
from receiver.submit import ops
from receiver.upstream.reading import read_callback
from receiver.web import asgi
from receiver.web.callbacks import LONG
from tests import databases
from tests.rooms import PATIENCE, a_task, later, opened, put, rows_of, rulebook, task_of, until
from tests.world import callback_url_of, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from receiver.records import Observation
    from receiver.store import Store
    from tests.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.engines]

RECEIVED = {"received": True}
IDLE = (sweep.Rescue, sweep.Disown, sweep.Evict, sweep.Prune, sweep.NoteRefusals, poll.Claim, ops.Claim)
"""What the loops ask of the store every second, whoever comes."""


@pytest.fixture(scope="module")
async def it(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One world for all: each test has tasks of its own."""
    async with world(tmp_path_factory.mktemp("door")) as one:
        yield one


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """The upstream's client: no key."""
    async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
        yield client


async def rendering(it: World) -> tuple[str, str, str]:
    """A task whose own callback never comes: its id, the URL, the upstream's id."""
    task_id = await it.created(render=3600, callback="missing")
    return task_id, it.callback_url(task_id), str((await it.task(task_id))["upstream_id"])


def success(upstream_id: str) -> dict[str, str]:
    """A good body."""
    return {"task_id": upstream_id, "status": "3", "video_url": "https://cdn.example.com/v.mp4"}


# -- who gets in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("tail", ["", "/", "/status", "?x=1", "/a/b?c=/d", "/?", "?"])
async def test_a_good_token_is_let_in_whatever_is_appended(
    it: World, http: httpx.AsyncClient, method: str, tail: str
) -> None:
    """Some upstreams append."""
    task_id, url, upstream_id = await rendering(it)
    answer = await http.request(method, url + tail, json=success(upstream_id))
    assert (answer.status_code, answer.json()) == (200, RECEIVED)
    assert await it.state(task_id) == "succeeded"


async def test_the_path_of_the_public_url_is_a_way_in(tmp_path: Path, http: httpx.AsyncClient) -> None:
    """A proxy may pass it on or take it off."""

    def change(given: dict[str, Any]) -> None:
        given["server"]["public_url"] += "/hooks/"

    async with world(tmp_path, change=change) as there:
        port = there.settings["server"]["port"]
        for base in (f"http://127.0.0.1:{port}/hooks", f"http://127.0.0.1:{port}"):
            task_id = await there.created(render=3600, callback="missing")
            token = there.callback_url(task_id).rpartition("/")[2]
            answer = await http.post(
                f"{base}/callbacks/{token}", json=success((await there.task(task_id))["upstream_id"])
            )
            assert answer.status_code == 200
            assert await there.state(task_id) == "succeeded"
        task_id = await there.created()
        await there.whole(task_id)  # the upstream was given a URL that works


async def test_all_others_are_told_the_same(it: World, http: httpx.AsyncClient) -> None:
    """Forged, altered, expired, of an unknown task, of nobody: one body, 404, and each recorded with its reason."""
    assert it.service is not None
    task_id, url, _ = await rendering(it)
    base, _, token = url.rpartition("/")
    unknown = signing.mint(["x" * 40], TaskId(task_id), later(9e8))
    altered = token[:-1] + ("A" if token[-1] != "A" else "B")
    tokens = {
        "forged": [altered, unknown, token[:-3], token.replace(".", "..", 1)],
        "expired": [callback_url_of(it.settings, task_id, good_for=-1).rpartition("/")[2]],
        "unknown task": [callback_url_of(it.settings, "tsk_" + "0" * 26).rpartition("/")[2]],
        "malformed": ["", "x", "é", "x" * 3000, "%00"],
    }
    before = it.service.sweeper.refusals.counts.copy()
    bodies, count = set(), 0
    for method in ("POST", "PUT", "GET"):
        for one in [one for several in tokens.values() for one in several]:
            answer = await http.request(method, f"{base}/{one}", content=b"{}" if method in {"POST", "PUT"} else None)
            assert answer.status_code == 404, (method, one)
            assert answer.headers["content-type"] == "application/problem+json"
            bodies.add(answer.content)
            count += 1
    assert len(bodies) == 1
    refused = it.service.sweeper.refusals.counts - before
    assert sum(refused.values()) == count
    assert set(refused) <= {*tokens}
    assert refused["expired"] == refused["unknown task"] == 3
    assert await it.state(task_id) == "queued"
    store = it.service.store
    await until(lambda: rows_of(store, "SELECT count(*) FROM refusals")[0][0] >= count)
    kept = json.dumps(rows_of(store, "SELECT * FROM refusals"))
    assert all(one not in kept for one in (token, altered, unknown))


async def test_asking_with_a_good_token_changes_nothing_and_wakes(it: World, http: httpx.AsyncClient) -> None:
    """GET says received, HEAD says nothing; the poller looks."""
    task_id, url, _ = await rendering(it)
    assert it.service is not None
    for method, content in (("GET", b'{"received":true}'), ("HEAD", b"")):
        answer = await http.request(method, url)
        assert (answer.status_code, answer.content) == (200, content)
    await until_polled(it, task_id)
    assert await it.state(task_id) in {"queued", "running"}
    assert (await task_of(it.service.store, task_id)).woken_at is not None
    assert await it.verdicts(task_id) == []


async def test_other_methods_are_told_which(it: World, http: httpx.AsyncClient) -> None:
    """405 to who has a good token."""
    _, url, _ = await rendering(it)
    answer = await http.delete(url)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST, PUT, GET, HEAD")


# -- bodies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe\x00", b"<html>502</html>", b"[]", b"null", b"{" * 5000, b'{"status":', b"a=b&c", b"1e999"]
)
async def test_what_makes_no_sense_is_kept_and_received(it: World, http: httpx.AsyncClient, body: bytes) -> None:
    """200: the token is good. Raw in the timeline, flagged, and the task is looked up."""
    task_id, url, _ = await rendering(it)
    answer = await http.post(url, content=body)
    assert (answer.status_code, answer.json()) == (200, RECEIVED)
    (seen,) = await it.timeline(task_id, "observation")
    assert seen["verdict"] == "unreadable"
    assert seen["raw"] == body.decode("utf-8", errors="replace")
    await until_polled(it, task_id)


async def until_polled(it: World, task_id: str) -> None:
    """Wait until the task has been looked up."""

    async def polled() -> bool:
        return bool(await it.timeline(task_id, "poll"))

    await it.eventually(polled)


async def test_gzip_is_undone(it: World, http: httpx.AsyncClient) -> None:
    """And where a sender only says so, the body is taken as it is."""
    for content in (True, False):
        task_id, url, upstream_id = await rendering(it)
        body = json.dumps(success(upstream_id)).encode()
        packed = gzip.compress(body) if content else body
        answer = await http.post(url, content=packed, headers={"content-encoding": "gzip"})
        assert answer.status_code == 200
        assert await it.state(task_id) == "succeeded"


async def pieces(piece: bytes, count: int) -> AsyncIterator[bytes]:
    """A chunked body."""
    for _ in range(count):
        yield piece


async def test_a_long_body_is_read_by_itself(
    it: World, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the door: a batch of bodies that take long to read would hold up every other write. Short ones are cheaper."""
    where: dict[int, str] = {}

    def noted(body: bytes, content_type: str | None) -> Observation:
        where[len(body)] = threading.current_thread().name
        return read_callback(body, content_type)

    monkeypatch.setattr("receiver.ingest.ops.read_callback", noted)
    for size in (LONG, LONG + 1):
        task_id, url, upstream_id = await rendering(it)
        body = json.dumps(success(upstream_id)).encode().ljust(size)
        assert (await http.post(url, content=body)).status_code == 200
        assert await it.state(task_id) == "succeeded"
    assert (where[LONG], where[LONG + 1]) == ("store-writer", threading.current_thread().name)


@pytest.mark.parametrize("way", ["declared", "chunked", "gzip"])
async def test_too_much_is_413_and_the_task_is_asked_about(it: World, http: httpx.AsyncClient, way: str) -> None:
    """Over 1 MiB, while reading, inflated too."""
    task_id, url, _ = await rendering(it)
    large = b" " * (1024 * 1024 + 1)
    content: Any = {"declared": large, "chunked": pieces(b" " * 65_536, 17), "gzip": gzip.compress(large)}[way]
    headers = {"content-encoding": "gzip"} if way == "gzip" else {}
    answer = await http.post(url, content=content, headers=headers)
    assert answer.status_code == 413
    await until_polled(it, task_id)
    (seen,) = await it.timeline(task_id, "observation")
    assert (seen["verdict"], seen["raw"]) == ("unreadable", "")


async def test_a_mebibyte_is_taken(it: World, http: httpx.AsyncClient) -> None:
    """The cap is the last size that goes in; one call of many pieces as well as one piece."""
    task_id, url, upstream_id = await rendering(it)
    body = json.dumps(success(upstream_id)).encode()
    exactly = body + b" " * (1024 * 1024 - len(body))
    assert (await http.post(url, content=exactly)).status_code == 200
    assert await it.state(task_id) == "succeeded"


@pytest.mark.parametrize("sent", [b"", b'{"task_id"'])
async def test_a_body_that_does_not_come_is_let_go(it: World, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """A sender that declares a body and stands still, before its first byte or after, does not hold a connection."""
    task_id, url, _ = await rendering(it)
    monkeypatch.setattr(asgi, "BODY_FOR", 0.1)  # from now on: it is for all bodies
    parts = httpx.URL(url)
    reader, writer = await asyncio.open_connection(parts.host, parts.port)
    writer.write(f"POST {parts.path} HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n".encode() + sent)
    await writer.drain()
    async with asyncio.timeout(PATIENCE):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    writer.close()
    await until_polled(it, task_id)


def test_a_bomb_is_not_unpacked() -> None:
    """A kilobyte that inflates to gigabytes costs no more than the cap."""
    bomb = gzip.compress(b"\0" * 64 * 1024 * 1024)
    tracemalloc.start()
    with pytest.raises(TooLarge):
        asgi.inflate(bomb, 1024 * 1024)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 1024 * 1024


def test_parts_of_a_gzip_body_are_few() -> None:
    """Each costs a copy of the rest: a body of thousands of empty ones is not taken apart, a few are joined."""
    assert asgi.inflate(gzip.compress(b"one ") + gzip.compress(b"two"), 100) == b"one two"
    many = gzip.compress(b"") * 50_000
    assert asgi.inflate(many, 2 * 1024 * 1024) is many


# -- the disk ----------------------------------------------------------------------------------------------------------


async def test_received_means_on_disk(it: World, http: httpx.AsyncClient) -> None:
    """The store cannot commit: 503 with `Retry-After`, for callback and GET; once it can, the same body counts."""
    assert it.service is not None
    task_id, url, upstream_id = await rendering(it)
    store = it.service.store
    with databases.outage(store):
        for answer in (await http.post(url, json=success(upstream_id)), await http.get(url)):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
        assert await it.state(task_id) == "queued"
    assert (await http.post(url, json=success(upstream_id))).status_code == 200
    assert await it.verdicts(task_id) == ["accepted"]


async def test_many_at_once_are_each_answered_after_a_commit(
    it: World, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty tasks, three bodies each, all together: one event each, and no more commits than callbacks."""
    assert it.service is not None
    there = [await rendering(it) for _ in range(20)]
    writer, background = it.service.store.writer, 0
    run, before = writer.run, writer.commits

    def counted(op: Any) -> Any:
        nonlocal background
        background += isinstance(op, IDLE)
        return run(op)

    monkeypatch.setattr(writer, "run", counted)
    answers = await asyncio.gather(
        *(http.post(url, json=success(upstream_id)) for _, url, upstream_id in there for _ in range(3))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert writer.commits - before - background < len(answers) + 60  # with the deliveries' own
    for task_id, _, _ in there:
        assert sorted(await it.verdicts(task_id)) == ["accepted", "duplicate", "duplicate"]
        assert len(await it.timeline(task_id, "event")) == 1


# -- whatever comes ----------------------------------------------------------------------------------------------------


words = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.sampled_from(["0", "1", "2", "3", "SUCCESS", "FAILED", "task_not_exist", "up-1", "https://x.example/v"]),
)
names = st.sampled_from(
    ["task_id", "id", "status", "state", "code", "msg", "data", "video_url", "progress", "output", "fail_reason", "x"]
)
documents = st.recursive(
    st.dictionaries(names, words, max_size=6),
    lambda inner: st.dictionaries(names, st.one_of(words, inner, st.lists(inner, max_size=2)), max_size=6),
    max_leaves=12,
)
bodies = st.one_of(
    st.binary(max_size=200),
    documents.map(lambda one: json.dumps(one).encode()),
    documents.map(lambda one: json.dumps(one, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    st.dictionaries(names, st.text(max_size=9), max_size=5).map(
        lambda one: "&".join(f"{name}={value}" for name, value in one.items()).encode("utf-8", "surrogatepass")
    ),
)
STATES = ["pending", "submitting", "ambiguous", "queued", "running", "succeeded", "lost", "rejected"]


@pytest.fixture(scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    """An open store on a new file."""
    async with opened(tmp_path_factory.mktemp("whatever")) as one:
        yield one


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    several=st.lists(
        st.tuples(bodies, st.sampled_from([None, "application/json", "text/html", "\xff\x00"])), max_size=4
    ),
    state=st.sampled_from(STATES),
)
async def test_no_body_is_too_odd_to_be_stored(store: Store, several: list[tuple[bytes, str]], state: str) -> None:
    """Whatever stands in it and whatever the task is: it is committed, and the inbox has it as it came."""
    task = a_task(state, created_at=clock())
    await put(store, task)
    for body, content_type in several:
        await store.run(Callback(task.id, body, content_type, clock(), rulebook()))
    kept = rows_of(store, f"SELECT raw FROM inbox WHERE task_id = '{task.id}' ORDER BY id")
    assert sorted(raw for (raw,) in kept) == sorted(body for body, _ in several)
    assert (await task_of(store, task.id)).callbacks == len(several)
