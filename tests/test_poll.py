"""The poller: what the two lookup routes say together, and claims that are known again."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from receiver.app import clock
from receiver.egress import Egress
from receiver.errors import StoreUnsure
from receiver.ids import TaskId
from receiver.ingest import After
from receiver.poll import Poller
from receiver.upstream.base import Missing, Shown, Unanswered, Unusable
from tests import databases
from tests.rooms import PATIENCE, Lines, a_task, one_batch, put, rulebook, task_of, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from receiver.store import Store

pytestmark = [pytest.mark.anyio, pytest.mark.engines]

MISSING = (400, '{"code":"task_not_exist","message":"task_not_exist","data":null}')
NOTHING = (404, '{"error":{"message":"no such route","type":"comet_api_error"}}')
BROKEN = (500, '{"error":{"message":"upstream error","type":"comet_api_error"}}')
KEYLESS = (401, '{"error":{"message":"bad key","type":"comet_api_error"}}')
NAMED = (200, '{"task_id":"up-1"}')
RUNNING = (200, '{"id":"up-1","status":"RUNNING"}')


@asynccontextmanager
async def upstream(
    feed: tuple[int, str], tasks: tuple[int, str], go_on: asyncio.Event | None = None
) -> AsyncIterator[tuple[str, list[str]]]:
    """An upstream whose two lookup routes say these, where told once that is set; its URL, and the paths it heard."""
    asked: list[str] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
        await reader.readexactly(length)
        path = head.split(" ")[1]
        asked.append(path)
        if go_on is not None:
            await go_on.wait()
        status, body = feed if path.endswith("/feed") else tasks
        fields = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close"
        writer.write(f"HTTP/1.1 {status} Said\r\n{fields}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


@asynccontextmanager
async def poller(store: Store, base_url: str, *, limit: float = PATIENCE) -> AsyncIterator[Poller]:
    """A poller that asks there."""
    egress, log = Egress(base_url=base_url, headers={}), Lines()
    one = Poller(
        store=store,
        egress=egress,
        rules=rulebook(),
        after=After(cast("Any", log)),
        log=cast("Any", log),
        clock=clock,
        timeout=limit,
        max_concurrency=8,
    )
    try:
        yield one
    finally:
        await one.stop()
        await egress.aclose()


@pytest.mark.parametrize(
    ("feed", "tasks", "kind"),
    [
        (RUNNING, MISSING, Shown),
        (MISSING, RUNNING, Shown),
        (NOTHING, RUNNING, Shown),
        (BROKEN, RUNNING, Shown),
        (MISSING, MISSING, Missing),
        (MISSING, NAMED, Unusable),
        (NAMED, MISSING, Unusable),
        (NOTHING, MISSING, Unusable),  # one of the two did not say so
        (MISSING, NOTHING, Unusable),
        (BROKEN, MISSING, Unanswered),
        (MISSING, BROKEN, Unanswered),
        (NOTHING, BROKEN, Unanswered),
        (KEYLESS, RUNNING, Unanswered),  # the other route would only say the same
    ],
)
async def test_two_routes_are_one_answer(
    store: Store, feed: tuple[int, str], tasks: tuple[int, str], kind: type
) -> None:
    """Whoever shows the task is right; missing is only what both call missing; no answer leaves the question open."""
    async with upstream(feed, tasks) as (url, asked), poller(store, url) as one:
        looked, _, _ = await one._ask(a_task())
        assert type(looked) is kind
        assert asked == (
            ["/runway/feed"] if feed in {RUNNING, KEYLESS} else ["/runway/feed", "/runwayml/v1/tasks/up-1"]
        )


async def test_a_timeout_of_odd_length_keeps_the_schedule(store: Store) -> None:
    """Times are stored to the millisecond: a claim with more digits than that must still be known as ours."""
    now = clock()
    task = a_task(created_at=now, submitted_at=now, poll_due_at=now)
    await put(store, task)
    async with upstream(RUNNING, RUNNING) as (url, _), poller(store, url, limit=31.23456) as one:
        await one._round()
        await until(lambda: not one._asking)
    after = await task_of(store, task.id)
    assert (after.state, after.poll_leased_until) == ("running", None)
    assert after.poll_due_at is not None
    assert (after.poll_due_at - now).total_seconds() < 2 * 31, "the end of its claim"


async def test_a_stop_gives_back_what_it_does_not_ask(store: Store) -> None:
    """Claimed before the stop or by a commit that was under way: due at once, for whoever is there."""
    now = clock()
    tasks = [a_task(id=TaskId(f"tsk_{n}"), created_at=now, submitted_at=now, poll_due_at=now) for n in range(2)]
    asked = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()  # until the other side hangs up
        writer.close()

    server = await asyncio.start_server(never, "127.0.0.1", 0)
    async with server, poller(store, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as one:
        await put(store, tasks[0])
        asking = asyncio.create_task(one.run())
        await asked.wait()
        await put(store, tasks[1])
        async with one_batch(store):
            one.wake()
            await until(lambda: store.writer.waiting)  # its claim
            stopping = asyncio.create_task(one.stop())
        await stopping
        await asking
    for task in tasks:
        left = await task_of(store, task.id)
        assert (left.state, left.poll_leased_until, left.poll_count) == ("queued", None, 0)
        assert left.poll_due_at is not None
        assert left.poll_due_at <= clock()


async def test_a_stop_waits_for_what_an_answer_says(store: Store) -> None:
    """It is being stored: what that makes is leased for somebody here, and nobody else would hear of it before that."""
    now = clock()
    task = a_task(created_at=now, submitted_at=now, poll_due_at=now)
    await put(store, task)
    taken: list[TaskId | None] = []
    go_on = asyncio.Event()
    async with upstream(RUNNING, RUNNING, go_on) as (url, _), poller(store, url) as one:
        one.rules = rulebook(room=lambda _name: 1)
        one.after.take = lambda leased: taken.extend(delivery.of_task for delivery, _ in leased)
        await one._round()
        async with one_batch(store):
            go_on.set()
            await until(lambda: store.writer.waiting)  # the answer
            stopping = asyncio.create_task(one.stop())
            await asyncio.sleep(0.05)
        await stopping
    assert (await task_of(store, task.id)).state == "running"
    assert taken == [task.id]


async def test_an_answer_that_was_not_stored_is_asked_for_at_once(store: Store) -> None:
    """The store was away for a moment: once it is back nobody waits for the end of the claim's lease."""
    now = clock()
    task = a_task(created_at=now, submitted_at=now, poll_due_at=now)
    await put(store, task)
    go_on = asyncio.Event()
    async with upstream(RUNNING, RUNNING, go_on) as (url, asked), poller(store, url) as one:
        await one._round()
        await until(lambda: asked)
        with databases.outage(store):
            go_on.set()
            await until(lambda: not one._asking)
        await one._round()
        await until(lambda: not one._asking)
    assert (await task_of(store, task.id)).state == "running"


async def test_a_claim_that_nobody_can_tell_of_is_given_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stood after all: what it leased is asked about once the store is back, not once its lease has ended."""
    now = clock()
    task = a_task(created_at=now, submitted_at=now, poll_due_at=now)
    await put(store, task)
    run = store.run

    async def unsure(op: Any) -> Any:
        await run(op)
        raise StoreUnsure("the database went away in a COMMIT")

    async with upstream(RUNNING, RUNNING) as (url, _), poller(store, url) as one:
        with monkeypatch.context() as away:
            away.setattr(store, "run", unsure)
            with pytest.raises(StoreUnsure):
                await one._round()
        await one._round()
        await until(lambda: not one._asking)
    assert (await task_of(store, task.id)).state == "running"
