"""The two ways into the callback door: whole at once, past uvicorn's parser, and uvicorn's. Nobody can tell them apart.

A request that is sent in one piece goes the one way, the same request in two pieces the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
import re
import socket
import struct
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvloop

from receiver import signing
from receiver.app.protocol import Protocol
from receiver.errors import StoreUnavailable
from receiver.ingest import Callback
from receiver.web import callbacks
from tests import databases
from tests.rooms import PATIENCE, one_batch, task_of, until
from tests.world import PRO, body_of, callback_url_of, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from tests.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.engines]

GOOD = (200, b'{"received":true}')


@pytest.fixture(scope="module")
async def it(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One world for all: each test has tasks of its own."""
    async with world(tmp_path_factory.mktemp("protocol")) as one:
        yield one


class Wire:
    """A connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, it: World) -> Wire:
        """A new one."""
        return cls(*await asyncio.open_connection("127.0.0.1", it.settings["server"]["port"]))

    async def say(self, *pieces: bytes, apart: float = 0.05) -> None:
        """Each piece alone: what is sent together arrives together, on loopback."""
        for n, piece in enumerate(pieces):
            if n:
                await asyncio.sleep(apart)
            self.writer.write(piece)
            await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next whole answer."""
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.strip().split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in lines)
            body = await self.reader.readexactly(int(fields.get("content-length", 0)))
        return int(status.split()[1]), fields, body

    async def ended(self) -> bytes:
        """All that is still to come, until the other side closes."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()


def request(url: str, body: bytes = b"{}", *fields: str, method: str = "POST", version: str = "1.1") -> bytes:
    """A request as it is on the wire."""
    head = [f"{method} {httpx.URL(url).raw_path.decode()} HTTP/{version}", "host: x", *fields]
    if not any(field.startswith("transfer-encoding") for field in fields):
        head.append(f"content-length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


async def rendering(it: World) -> tuple[str, str, bytes]:
    """A task whose own callback never comes: its id, the URL, a good body."""
    task_id = await it.created(render=3600, callback="missing")
    upstream_id = str((await it.task(task_id))["upstream_id"])
    body = {"task_id": upstream_id, "status": "3", "video_url": "https://cdn.example.com/v.mp4"}
    return task_id, it.callback_url(task_id), json.dumps(body).encode()


@contextlib.contextmanager
def faults() -> Iterator[list[str]]:
    """What the loop is told of meanwhile; the test's own loop would fail for it."""
    heard: list[str] = []
    loop = asyncio.get_running_loop()
    ours = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: heard.append(str(context.get("exception", context))))
    try:
        yield heard
    finally:
        loop.set_exception_handler(ours)


async def waits(it: World, task_id: str) -> bool:
    """Whether its one delivery is nobody's."""
    return [one["state"] for one in await it.timeline(task_id, "delivery")] == ["pending"]


def chunked(body: bytes) -> bytes:
    """A body in two chunks, with a trailer."""
    half = len(body) // 2
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:])) + b"0\r\nx-y: z\r\n\r\n"


def halves(sent: bytes) -> Sequence[bytes]:
    """Cut within the body."""
    return sent[:-2], sent[-2:]


SHAPES: dict[str, tuple[dict[str, Any], Any, int]] = {
    "plain": ({}, bytes, 200),
    "put": ({"method": "PUT"}, bytes, 200),
    "closing": ({"fields": ["connection: close"]}, bytes, 200),
    "1.0": ({"version": "1.0"}, bytes, 200),
    "1.0 kept": ({"version": "1.0", "fields": ["connection: keep-alive"]}, bytes, 200),
    "chunked": ({"fields": ["transfer-encoding: chunked"]}, chunked, 200),
    "gzip": ({"fields": ["content-encoding: gzip"]}, gzip.compress, 200),
    "odd type": ({"fields": ["content-type: text/é"]}, bytes, 200),
    "upgrade": (
        {"fields": ["connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMA"]},
        bytes,
        200,
    ),
    "upgrade, then close": ({"fields": ["connection: close, upgrade", "upgrade: websocket"]}, bytes, 200),
    "upgrade, chunked": ({"fields": ["connection: upgrade", "upgrade: x", "transfer-encoding: chunked"]}, chunked, 200),
    "upgrade, said twice": ({"fields": ["connection: upgrade", "upgrade: x", "connection: keep-alive"]}, bytes, 200),
    "no callback": ({"method": "PATCH"}, bytes, 405),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_both_ways_answer_alike(it: World, shape: str) -> None:
    """Status, fields and body are the same, the connection stays or goes alike, and the task is told the same."""
    given, packed, status = SHAPES[shape]
    more = {name: value for name, value in given.items() if name != "fields"}
    seen = []
    for cut in (lambda sent: [sent], halves):
        task_id, url, body = await rendering(it)
        wire = await Wire.to(it)
        await wire.say(*cut(request(url, packed(body), *given.get("fields", []), **more)))
        answer = await wire.answer()
        kept = answer[1].get("connection") != "close"
        if kept:
            await wire.say(request(url, b"", method="GET"))
            assert (await wire.answer())[0] == 200
        else:
            assert await wire.ended() == b""
        wire.writer.close()
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d gmt", answer[1].pop("date"))
        state, told = await it.state(task_id), [one["type"] for one in await it.timeline(task_id, "event")]
        seen.append((answer, kept, state, told, await it.verdicts(task_id)))
    assert seen[0] == seen[1]
    assert seen[0][0][0] == status
    if status == 200:
        assert seen[0][2:] == ("succeeded", ["task.succeeded"], ["accepted"])


async def test_who_would_rather_speak_another_protocol_is_answered_in_this_one(it: World) -> None:
    """Java's client asks every plain server for HTTP/2: its submissions are read, and it is spoken to as it comes."""
    wish = ["connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMA"]
    port = it.settings["server"]["port"]
    base = f"http://127.0.0.1:{port}"
    asked = json.dumps({"route": PRO, "input": body_of(PRO, "a cat")}).encode()
    submission = request(
        f"{base}/api/v1/tasks",
        asked,
        *wish,
        "authorization: Bearer " + it.settings["security"]["api_keys"][0],
        "content-type: application/json",
    )
    head, _, body = submission.partition(b"\r\n\r\n")
    for cut in ([submission], [submission[:40], submission[40:]], [head + b"\r\n\r\n", body], halves(submission)):
        wire = await Wire.to(it)
        await wire.say(*cut)
        status, _, told = await wire.answer()
        assert status in {201, 202}, told
        await wire.say(request(f"{base}/livez", b"", *wish, method="GET"))
        assert (await wire.answer())[0] == 200
        wire.writer.close()


async def test_wishes_behind_one_another_are_many_requests(it: World) -> None:
    """A thousand in one piece: each is read anew by itself, and answered in its turn."""
    one = request("http://x/livez", b"", "connection: upgrade", "upgrade: h2c", method="GET")
    wire = await Wire.to(it)
    await wire.say(one * 1000)
    assert {(await wire.answer())[0] for _ in range(1000)} == {200}
    wire.writer.close()


async def test_a_tunnel_is_not_dug(it: World) -> None:
    """CONNECT is answered as any method that is not known, and the connection goes on or ends, but never hangs."""
    wire = await Wire.to(it)
    await wire.say(b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n\r\n")
    assert (await wire.answer())[0] >= 400
    wire.writer.close()


async def test_a_whole_callback_needs_no_task(it: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hooks of uvicorn are where they were: the long way is not gone. A body in two pieces does go it."""
    task_id, url, body = await rendering(it)
    went = []
    long = callbacks.CallbackDoor.__call__

    async def watched(self: Any, *args: Any) -> None:
        went.append(args[0]["method"])
        await long(self, *args)

    monkeypatch.setattr(callbacks.CallbackDoor, "__call__", watched)
    wire = await Wire.to(it)
    await wire.say(request(url, body))
    assert (await wire.answer())[::2] == GOOD
    assert went == []
    await wire.say(*halves(request(url, body)))
    assert (await wire.answer())[::2] == GOOD
    wire.writer.close()
    assert went == ["POST"]
    assert await it.verdicts(task_id) == ["accepted", "duplicate"]


async def test_what_comes_together_is_answered_in_order(it: World) -> None:
    """Callbacks, a question and nonsense behind one another in one piece: each its own answer, none twice."""
    tasks = [await rendering(it) for _ in range(3)]
    base = tasks[0][1].rpartition("/callbacks/")[0]
    wire = await Wire.to(it)
    await wire.say(
        request(tasks[0][1], tasks[0][2])
        + request(f"{base}/livez", b"", method="GET")
        + request(tasks[1][1], tasks[1][2])
        + request(f"{base}/nothing", b"", method="GET")
        + request(tasks[2][1], tasks[2][2])
    )
    assert [(await wire.answer())[0] for _ in range(5)] == [200, 200, 200, 404, 200]
    await wire.say(b"NONSENSE\r\n\r\n")
    assert (await wire.answer())[0] == 400
    assert await wire.ended() == b""
    wire.writer.close()
    for task_id, _, _ in tasks:
        assert await it.verdicts(task_id) == ["accepted"]


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_comes_in_whatever_pieces_is_answered_in_its_turn(it: World, seed: int) -> None:
    """Pipelines of callbacks and questions, with wishes and without, chunked or not, cut anywhere: one answer each."""
    assert it.service is not None
    dice = random.Random(seed)
    tasks = [await rendering(it) for _ in range(3)]
    sent: Counter[str] = Counter()

    def one() -> tuple[bytes, int]:
        fields = []
        if dice.random() < 0.4:
            fields = [f"connection: {dice.choice(['upgrade', 'keep-alive, Upgrade'])}", "upgrade: h2c"]
        if dice.random() < 0.3:
            path, status = dice.choice([("livez", 200), ("nothing", 404)])
            return request(f"http://x/{path}", b"", *fields, method="GET"), status
        task_id, url, body = dice.choice(tasks)
        sent[task_id] += 1
        body = body.ljust(dice.choice([0, 500, 70_000]))
        if dice.random() < 0.3:
            return request(url, chunked(body), "transfer-encoding: chunked", *fields), 200
        return request(url, body, *fields), 200

    async def connection() -> None:
        requests = [one() for _ in range(dice.randint(1, 5))]
        data = b"".join(each for each, _ in requests)
        cuts = sorted(dice.randint(0, len(data)) for _ in range(dice.choice([0, 1, 4])))
        wire = await Wire.to(it)
        said = asyncio.create_task(wire.say(*(data[a:b] for a, b in pairwise([0, *cuts, len(data)])), apart=0.002))
        assert [(await wire.answer())[0] for _ in requests] == [status for _, status in requests]
        await said
        wire.writer.write_eof()
        assert await wire.ended() == b""
        wire.writer.close()

    await asyncio.gather(*(connection() for _ in range(40)))
    for task_id, _, _ in tasks:
        assert (await task_of(it.service.store, task_id)).callbacks == sent[task_id]
        assert "unreadable" not in await it.verdicts(task_id)


async def test_what_comes_while_one_is_taken_waits_for_its_turn(it: World) -> None:
    """A sender that does not wait for its answer, in pieces of any size: read once the first is answered, in order."""
    assert it._server is not None
    assert it.service is not None
    tasks = [await rendering(it) for _ in range(3)]
    wire, requests = await Wire.to(it), it._server.server_state.tasks
    async with one_batch(it.service.store):
        await wire.say(request(*tasks[0][1:]))
        await until(lambda: len(requests) == 1)
        second = request(*tasks[1][1:])
        await wire.say(second[:20], second[20:] + request(*tasks[2][1:]) + request("http://x/livez", method="GET"))
        assert len(requests) == 1
    assert [(await wire.answer())[0] for _ in range(4)] == [200, 200, 200, 200]
    for task_id, _, _ in tasks:
        assert await it.verdicts(task_id) == ["accepted"]
    wire.writer.write_eof()
    assert await wire.ended() == b""
    wire.writer.close()


@contextlib.contextmanager
def nothing_stored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Callbacks that were taken cannot be committed."""

    def fails(*_: object) -> None:
        raise StoreUnavailable("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Callback, "apply", fails)
        yield


async def test_what_cannot_be_committed_holds_up_nobody_behind_it(it: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """503, then answers to what came meanwhile on the same connection, the last of it in two pieces."""
    assert it._server is not None
    assert it.service is not None
    task_id, url, body = await rendering(it)
    wire, requests, again = await Wire.to(it), it._server.server_state.tasks, request(url, body)
    with nothing_stored(monkeypatch):
        async with one_batch(it.service.store):
            await wire.say(again)
            await until(lambda: len(requests) == 1)
            await wire.say(request("http://x/livez", method="GET") + again[:30])
        assert [(await wire.answer())[0] for _ in range(2)] == [503, 200]
    await wire.say(again[30:])
    assert (await wire.answer())[::2] == GOOD
    wire.writer.close()
    assert await it.verdicts(task_id) == ["accepted"]


async def test_what_cannot_be_committed_is_counted_though_its_sender_is_gone(
    it: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is answered, nothing is raised, nothing stays counted as held; the operator hears of it."""
    assert it._server is not None
    assert it.service is not None
    task_id, url, body = await rendering(it)
    requests, counted = it._server.server_state.tasks, it.service.after.metrics.callbacks.values
    before, door = counted["unstored"], it.service.front._door
    with faults() as heard, nothing_stored(monkeypatch):
        async with one_batch(it.service.store):
            wire = await Wire.to(it)
            await wire.say(request(url, body))
            await until(lambda: len(requests) == 1)
            wire.writer.transport.abort()
        await until(lambda: counted["unstored"] > before and not requests)
    assert heard == []
    assert door.held == 0
    assert await it.verdicts(task_id) == []


async def test_who_may_not_come_in_is_refused_alike(it: World) -> None:
    """A forged token and one of no task: the same 404 by both ways."""
    task_id, url, body = await rendering(it)
    for bad in (url[:-1] + ("A" if url[-1] != "A" else "B"), callback_url_of(it.settings, "tsk_" + "0" * 26)):
        answers = []
        for cut in (lambda sent: [sent], halves):
            wire = await Wire.to(it)
            await wire.say(*cut(request(bad, body)))
            answers.append(await wire.answer())
            answers[-1][1].pop("date")
            assert await wire.ended() == b""
            wire.writer.close()
        assert answers[0] == answers[1]
        assert answers[0][0] == 404
    assert await it.verdicts(task_id) == []


async def test_a_continue_is_said_first(it: World) -> None:
    """`Expect: 100-continue`, though the body is there already."""
    _, url, body = await rendering(it)
    wire = await Wire.to(it)
    await wire.say(request(url, body, "expect: 100-continue"))
    assert (await wire.answer())[0] == 100
    assert (await wire.answer())[::2] == GOOD
    wire.writer.close()


async def test_what_is_not_committed_is_503(it: World) -> None:
    """The store is out, and then it is not: the same connection hears both."""
    assert it.service is not None
    task_id, url, body = await rendering(it)
    wire = await Wire.to(it)
    with databases.outage(it.service.store):
        await wire.say(request(url, body))
        status, fields, _ = await wire.answer()
        assert (status, fields["retry-after"]) == (503, "5")
    await wire.say(request(url, body))
    assert (await wire.answer())[::2] == GOOD
    wire.writer.close()
    assert await it.verdicts(task_id) == ["accepted"]


@pytest.mark.parametrize("where", ["take", "soon", "accepted"])
async def test_a_fault_of_ours_is_no_silence(
    it: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """Whatever goes wrong in the door before the commit, the sender hears of it and sends again; after it, we do."""
    assert it.service is not None
    task_id, url, body = await rendering(it)

    def fails(*_: object, **_named: object) -> None:
        raise ArithmeticError("a fault of ours")

    with faults() as heard, monkeypatch.context() as patched:
        if where == "soon":
            # The long way is asked, which has another word with the store.
            patched.setattr(it.service.store, "soon", fails)
        elif where == "accepted":
            patched.setattr(callbacks.CallbackDoor, "accepted", fails)
        else:
            patched.setattr(signing, "read", fails)
        wire = await Wire.to(it)
        await wire.say(request(url, body))
        assert (await wire.answer())[0] == (500 if where == "take" else 200)
        wire.writer.close()
    assert heard == ["a fault of ours"] * (where == "accepted")
    assert ("a fault of ours" in caplog.text) == (where == "take")
    wire = await Wire.to(it)
    await wire.say(request(url, body))
    assert (await wire.answer())[::2] == GOOD
    wire.writer.close()
    assert (await it.verdicts(task_id))[0] == "accepted"


async def test_a_store_that_takes_no_more_is_503(it: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused at once is answered by the long way, with its reason."""
    assert it.service is not None
    _, url, body = await rendering(it)

    def full(*_: object) -> None:
        raise StoreUnavailable("too many wait")

    with monkeypatch.context() as patched:
        patched.setattr(it.service.store.writer, "soon", full)
        wire = await Wire.to(it)
        await wire.say(request(url, body))
        assert (await wire.answer())[0] == 503
    wire.writer.close()


@pytest.mark.parametrize("fields", [(), ("content-encoding: identity",)], ids=["short", "long"])
async def test_callbacks_that_wait_do_not_fill_the_memory(
    it: World, monkeypatch: pytest.MonkeyPatch, fields: tuple[str, ...]
) -> None:
    """While nothing is committed only so many bytes are taken, by either way; then all is as before."""
    assert it.service is not None
    first, url, body = await rendering(it)
    second, other_url, other_body = await rendering(it)
    door = it.service.front._door
    one, other = await Wire.to(it), await Wire.to(it)
    monkeypatch.setattr(callbacks, "MAX_HELD", len(body) - 1)
    async with one_batch(it.service.store):
        await one.say(request(url, body, *fields))
        await until(lambda: door.held > 0)
        await other.say(request(other_url, other_body, *fields))
        status, told, _ = await other.answer()
        assert (status, told["retry-after"]) == (503, "5")
    assert (await one.answer())[::2] == GOOD
    await until(lambda: door.held == 0)
    await other.say(request(other_url, other_body, *fields))
    assert (await other.answer())[::2] == GOOD
    for wire, task_id in ((one, first), (other, second)):
        wire.writer.close()
        assert await it.verdicts(task_id) == ["accepted"]


def test_nonsense_behind_a_callback_takes_nothing_from_it(tmp_path: Path) -> None:
    """Good, and in the same piece what is no HTTP: it is kept, the connection closed, nothing raised in the loop.

    That is uvloop, as it is for `serve`: it says so where something is written to a connection that is closed.
    """

    async def scene() -> None:
        async with world(tmp_path) as it:
            await nonsense_behind(it)

    uvloop.run(scene())


async def nonsense_behind(it: World) -> None:
    """The scene."""
    assert it.service is not None
    task_id, url, body = await rendering(it)
    with faults() as raised:
        wire = await Wire.to(it)
        async with one_batch(it.service.store):
            await wire.say(request(url, body) + request(url, b"zz\r\nfoo", "transfer-encoding: chunked"))
            assert (await wire.answer())[0] == 400
        assert await wire.ended() == b""
        await it.whole(task_id)
    wire.writer.close()
    assert await it.verdicts(task_id) == ["accepted"]
    assert raised == []


def test_who_goes_away_from_several_makes_no_noise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A request that goes uvicorn's way, another behind it, and nobody who reads either answer."""

    async def scene() -> None:
        async with world(tmp_path) as it:
            assert it.service is not None
            task_id, url, body = await rendering(it)
            assert it._server is not None
            state, whole = it._server.server_state, request(url, body)
            async with one_batch(it.service.store):
                wire = await Wire.to(it)
                await wire.say(whole[:-5], whole[-5:] + whole + whole)
                await until(lambda: len(state.tasks) == 1)
                wire.writer.transport.abort()
            await until(lambda: state.total_requests > 1 and not state.tasks)
            await it.whole(task_id)

    uvloop.run(scene())
    assert [one.getMessage() for one in caplog.records] == []


@pytest.mark.parametrize(
    "cut", [lambda sent: [sent], lambda sent: sent.partition(b"\r\n\r\n")[::2]], ids=["one", "two"]
)
async def test_a_body_that_breaks_off_is_noted(it: World, cut: Any) -> None:
    """A token that is good and a body that is no HTTP: 400, and the timeline has it."""
    task_id, url, _ = await rendering(it)
    wire = await Wire.to(it)
    head, *rest = cut(request(url, b"zz\r\nfoo", "transfer-encoding: chunked"))
    await wire.say(head + b"\r\n\r\n" if rest else head, *rest)
    assert (await wire.answer())[0] == 400
    wire.writer.close()

    async def noted() -> bool:
        return await it.verdicts(task_id) == ["unreadable"]

    await it.eventually(noted)


@pytest.mark.parametrize("cut", [lambda sent: [sent], halves], ids=["whole", "halves"])
async def test_a_connection_that_is_kept_keeps_no_body(it: World, cut: Any) -> None:
    """It may be idle for half a minute, and there may be thousands."""
    _, url, body = await rendering(it)
    wire = await Wire.to(it)
    await wire.say(*cut(request(url, body)))
    assert (await wire.answer())[::2] == GOOD
    assert it._server is not None
    kept = [one for one in it._server.server_state.connections if isinstance(one, Protocol)]
    assert len(kept) > 0
    for one in kept:
        held: list[Any] = [one._taken, one._head, one._behind, one._data, getattr(one.cycle, "body", b"")]
        assert not any(held)
    wire.writer.close()


async def connected(it: World, idle_for: float) -> tuple[Wire, Protocol]:
    """A connection that may be idle for so many seconds, and its other end."""
    assert it._server is not None
    connections = it._server.server_state.connections
    before = set(connections)
    wire = await Wire.to(it)
    await until(lambda: set(connections) - before)
    (ours,) = [one for one in connections if one not in before and isinstance(one, Protocol)]
    ours.timeout_keep_alive = idle_for  # type: ignore[assignment] # it is not asked for in whole seconds alone
    await wire.say(request("http://x/livez", method="GET"))
    assert (await wire.answer())[0] == 200
    return wire, ours


async def test_a_connection_that_is_used_is_kept_and_one_that_is_not_is_closed(it: World) -> None:
    """A commit that takes longer than an idle connection is kept, callbacks close on one another; then nothing."""
    assert it.service is not None
    _, url, body = await rendering(it)
    wire, _ = await connected(it, 0.5)
    for _ in range(4):
        await wire.say(request(url, body))
        assert (await wire.answer())[::2] == GOOD
        await asyncio.sleep(0.2)
    async with one_batch(it.service.store):
        await wire.say(request(url, body))
        await asyncio.sleep(1.0)
    assert (await wire.answer())[::2] == GOOD
    assert await wire.ended() == b""
    wire.writer.close()


async def test_a_connection_that_was_reset_leaves_no_timer(it: World) -> None:
    """It would keep the connection for as long as it runs."""
    wire, ours = await connected(it, 30.0)
    assert ours.timeout_keep_alive_task is not None
    wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.writer.transport.abort()
    await until(lambda: ours.timeout_keep_alive_task is None)


async def test_who_goes_away_is_heard_all_the_same(it: World) -> None:
    """The connection is gone before the commit: the callback is kept, and nobody is answered."""
    assert it.service is not None
    task_id, url, body = await rendering(it)
    assert it._server is not None
    requests = it._server.server_state.tasks
    async with one_batch(it.service.store):
        wire = await Wire.to(it)
        await wire.say(request(url, body))
        await until(lambda: len(requests) == 1)
        wire.writer.transport.abort()
    await it.whole(task_id)
    assert await it.verdicts(task_id) == ["accepted"]


async def test_who_is_let_go_is_heard_all_the_same(it: World) -> None:
    """A stop that waits no longer closes the connection without an answer; what was taken is committed."""
    assert it.service is not None
    assert it._server is not None
    task_id, url, body = await rendering(it)
    requests = it._server.server_state.tasks
    async with one_batch(it.service.store):
        wire = await Wire.to(it)
        await wire.say(request(url, body))
        await until(lambda: len(requests) == 1)
        for waiting in list(requests):
            waiting.cancel()
        assert await wire.ended() == b""
        assert len(requests) == 1  # whoever counts them counts what is not committed yet
        wire.writer.close()
    await it.whole(task_id)
    await until(lambda: not requests)
    assert await it.verdicts(task_id) == ["accepted"]


async def test_what_a_batch_says_of_a_destination_is_heard_before_its_callbacks_are_handed_on(tmp_path: Path) -> None:
    """A pause shares the commit of a callback behind it: the delivery that was leased there is given back."""
    async with world(tmp_path) as it:
        assert it.service is not None
        first, url, body = await rendering(it)
        wire, deliverer = await Wire.to(it), it.service.deliverer
        await wire.say(request(url, body))
        assert (await wire.answer())[::2] == GOOD
        await it.whole(first)  # its destination does well, and is known to
        task_id, url, body = await rendering(it)
        async with one_batch(it.service.store):
            writer = it.service.store.writer
            others = writer.waiting
            pausing = asyncio.create_task(deliverer.pause("sink"))
            await until(lambda: writer.waiting > others)
            await wire.say(request(url, body))
            await until(lambda: writer.waiting > others + 1)
        assert (await pausing).state == "paused"
        assert (await wire.answer())[::2] == GOOD
        await it.eventually(lambda: waits(it, task_id))
        assert it.sink.of(task_id) == []
        wire.writer.close()


async def test_what_is_committed_goes_on_without_its_answer(it: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that fails is a fault of ours: we hear of it, the sender is let go, the event is delivered."""
    assert it.service is not None
    task_id, url, body = await rendering(it)

    def fails(*_: object, **_named: object) -> None:
        raise OSError("no way out")

    wire = await Wire.to(it)
    with faults() as heard, monkeypatch.context() as patched:
        patched.setattr(Protocol, "_write_good", fails)
        await wire.say(request(url, body))
        with contextlib.suppress(ConnectionError):
            assert await wire.ended() == b""
    assert heard == ["no way out"]
    wire.writer.close()
    await it.whole(task_id)


@pytest.mark.parametrize("behind", ["callback", "halves", "question"])
async def test_a_stop_waits_for_what_came_behind_what_was_taken(it: World, behind: str) -> None:
    """As far as it was read: each is answered, the last with the word that the connection closes."""
    first, second = await rendering(it), await rendering(it)
    assert it.service is not None
    assert it._server is not None
    wire, requests = await Wire.to(it), it._server.server_state.tasks
    follows = request("http://x/livez", method="GET") if behind == "question" else request(*second[1:])
    connections = [one for one in it._server.server_state.connections if isinstance(one, Protocol)]
    async with one_batch(it.service.store):
        await wire.say(request(*first[1:]))
        service = it.service
        await until(lambda: len(requests) == 1)
        (taken,) = [one for one in connections if one._taken is not None]
        pieces = halves(follows) if behind == "halves" else [follows]
        await wire.say(*pieces)
        await until(lambda: len(taken._behind) >= len(pieces[0]))
        it.begin_stop()
        await until(lambda: service._stopping)
    answers = [await wire.answer(), await wire.answer()]
    assert [one[0] for one in answers] == [200, 200]
    assert [one[1].get("connection") for one in answers] == [None, "close"]
    assert await wire.ended() == b""
    wire.writer.close()
    await it.restart()
    assert await it.verdicts(first[0]) == ["accepted"]
    assert await it.verdicts(second[0]) == ([] if behind == "question" else ["accepted"])


@pytest.mark.parametrize("status", [200, 503])
async def test_a_stop_waits_for_what_was_taken(it: World, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """A callback that waits for its commit when the stop comes is answered, and its connection closed."""
    task_id, url, body = await rendering(it)
    assert it.service is not None
    assert it._server is not None
    wire, requests = await Wire.to(it), it._server.server_state.tasks
    with nothing_stored(monkeypatch) if status != 200 else contextlib.nullcontext():
        async with one_batch(it.service.store):
            await wire.say(request(url, body))
            service = it.service
            await until(lambda: len(requests) == 1)  # the writer may be asked by others
            it.begin_stop()
            await until(lambda: service._stopping)  # the connections have heard of it before
        answer = await wire.answer()
    assert answer[0] == status
    assert answer[1]["connection"] == "close"
    assert await wire.ended() == b""
    wire.writer.close()
    await it.restart()
    assert await it.verdicts(task_id) == (["accepted"] if status == 200 else [])
