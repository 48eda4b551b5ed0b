"""The two clients are one: the same questions, the same reading of answers; and the iterators of both."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any

import pytest

from receiver.client import CONNECTIONS, ApiProblem, AsyncClient, Client, Question, Unreachable
from receiver.client.outbox import Outbox
from receiver.client.tasks import Tasks
from tests.test_client import answer, serving
from tests.world import API_KEY, world

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.test_client import Answer

CALLS: dict[str, Callable[[Any], Any]] = {
    "submit": lambda c: c.submit("r", {"a": 1}, metadata={"b": 2}, in_background=True, idempotency_key="my key"),
    "task": lambda c: c.task("t/1", wait=1.5),
    "page": lambda c: c.page(state=["lost"], limit=3),
    "tasks": lambda c: c.tasks(route="r"),
    "timeline": lambda c: c.timeline("t"),
    "refresh": lambda c: c.refresh("t"),
    "cancel": lambda c: c.cancel("t"),
    "adopt": lambda c: c.adopt("t", "u"),
    "wait": lambda c: c.wait("t", timeout=5),
    "delivery_page": lambda c: c.delivery_page(destination="d"),
    "deliveries": lambda c: c.deliveries(state=["dead"]),
    "delivery": lambda c: c.delivery("d"),
    "redeliver": lambda c: c.redeliver("d"),
    "wait_for_attempt": lambda c: c.wait_for_attempt("d", after=0),
    "start_replay": lambda c: c.start_replay(since="2h"),
    "replay_page": lambda c: c.replay_page(),
    "replays": lambda c: c.replays(),
    "replay": lambda c: c.replay("r"),
    "cancel_replay": lambda c: c.cancel_replay("r"),
    "wait_for_replay": lambda c: c.wait_for_replay("r"),
    "destinations": lambda c: c.destinations(),
    "test_destination": lambda c: c.test_destination("d"),
    "pause_destination": lambda c: c.pause_destination("d"),
    "resume_destination": lambda c: c.resume_destination("d"),
    "event_page": lambda c: c.event_page(after="3"),
    "events": lambda c: c.events(after="3", follow=False),
}
ENDED = {"state": "done", "attempt_count": 1, "data": [{"id": 1}], "next_cursor": None}
PAGES = [
    answer({"data": [{"id": 1}, {"id": 2}], "next_cursor": "2"}),
    answer({"data": [{"id": 3}], "next_cursor": "3"}),
    answer({"data": [], "next_cursor": "3"}),
]
STOPPING = answer({"type": "/docs/problems/stopping", "detail": "stopping"}, 503)


def by_one(call: Callable[[Any], Any], *answers: Answer) -> tuple[Any, Any]:
    """What the blocking client gives for a call, and what it asked."""
    with serving(*answers) as (url, asked), Client(url, "key") as client:
        found = call(client)
        found = list(found) if hasattr(found, "__next__") else found
    return found, _plain(asked)


def by_the_other(call: Callable[[Any], Any], *answers: Answer) -> tuple[Any, Any]:
    """The same of the one that is awaited."""

    async def main(url: str) -> Any:
        async with AsyncClient(url, "key") as client:
            found = call(client)
            return [one async for one in found] if hasattr(found, "__anext__") else await found

    with serving(*answers) as (url, asked):
        return asyncio.run(main(url)), _plain(asked)


def _plain(asked: Any) -> Any:
    return [(method, path, headers | {"host": ""}, body) for method, path, headers, body in asked]


def test_every_method_is_in_the_table() -> None:
    """A new question is asked by both, too."""
    methods = {name for part in (Tasks, Outbox) for name in vars(part) if not name.startswith("_")}
    assert methods == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_both_clients_ask_the_same_and_read_the_same(name: str) -> None:
    """Method, path, query, headers and body, and what comes of the answer."""
    said = answer({**ENDED, "state": "succeeded"} if name == "wait" else ENDED)
    last = answer({"data": [], "next_cursor": "9"}) if name == "events" else said
    found, asked = by_one(CALLS[name], said, last)
    assert (found, asked) == by_the_other(CALLS[name], said, last)
    assert asked
    assert asked[0][2]["authorization"] == "Bearer key"
    assert found == ([{"id": 1}] if isinstance(found, list) else found)


@pytest.mark.parametrize("by", [by_one, by_the_other])
def test_errors_come_out_of_both(by: Callable[..., Any]) -> None:
    """A problem with its words and its Retry-After; no usable answer as Unreachable; nothing is asked twice."""
    problem = answer({"type": "/docs/problems/rate-limited", "detail": "slow down"}, 429, Retry_After="7")
    with pytest.raises(ApiProblem, match="slow down") as caught:
        by(CALLS["submit"], problem)
    assert (caught.value.status, caught.value.retry_after) == (429, 7.0)
    for later in ("Wed, 21 Oct 2026 07:28:00 GMT", "-1", "nan", "1e9"):
        with pytest.raises(ApiProblem) as caught:
            by(CALLS["submit"], answer({"type": "x"}, 503, Retry_After=later))
        assert caught.value.retry_after is None
    with pytest.raises(Unreachable) as away:
        by(CALLS["submit"], (0, {}, b""))
    assert away.value.sent is True


@pytest.mark.parametrize("by", [by_one, by_the_other])
def test_waiting_bears_with_a_service_that_restarts(by: Callable[..., Any]) -> None:
    """Within its patience; every look is shown."""
    seen: list[str] = []
    found, asked = by(
        lambda client: client.wait("t", patience=30, seen=lambda task: seen.append(task["state"])),
        answer({"state": "running"}),
        (0, {}, b""),
        STOPPING,
        answer({"state": "failed"}),
    )
    assert (found, seen, len(asked)) == ({"state": "failed"}, ["running", "failed"], 4)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(("url", "key"), [("127.0.0.1:8000", None), ("http://127.0.0.1:1", "a\nb")])
def test_what_is_no_url_and_no_key_is_told_by_both(kind: Any, url: str, key: str | None) -> None:
    """A ValueError, before anything is sent."""
    with pytest.raises(ValueError, match=r"URL|key"):
        kind(url, key)


@pytest.mark.parametrize("key", ["", " a", "a ", "ä", "a\n", "x" * 256])
def test_an_idempotency_key_that_no_header_carries_is_told(key: str) -> None:
    """A ValueError, and nothing was sent: without its key the submission would be another one."""
    with serving(answer({})) as (url, asked), Client(url) as client, pytest.raises(ValueError, match="1 to 255"):
        client.submit("r", {}, idempotency_key=key)
    assert asked == []


def test_anything_can_be_asked() -> None:
    """`send` puts a question of one's own, and gives the whole answer."""
    with serving(answer({"id": 1}, 202, Idempotency_Replayed="true")) as (url, _), Client(url) as client:
        found = client.send(Question("POST", "/tasks", body={}, headers={"prefer": "respond-async"}))
    assert (found.status, found.headers["idempotency-replayed"], found.document) == (202, "true", {"id": 1})


# -- the feed ----------------------------------------------------------------------------------------------------------


def test_the_feed_is_followed_page_by_page_and_its_cursor_says_where_to_go_on() -> None:
    """The cursor is the page's beginning while a page is handed out, and its end with the last of it: none is lost."""
    with serving(*PAGES) as (url, asked), Client(url) as client:
        events = client.events(limit=2, wait=0.5)
        assert events.cursor is None
        cursors = [(next(events)["id"], events.cursor) for _ in range(3)]
    assert cursors == [(1, None), (2, "2"), (3, "3")]
    assert [path for _, path, _, _ in asked] == [
        "/api/v1/events?limit=2&wait=0.500s",
        "/api/v1/events?after=2&limit=2&wait=0.500s",
    ]


def test_the_feed_without_following_ends_with_what_there_is() -> None:
    """It waits for nothing, ends at the first empty page, and has the cursor of the end, also where it is empty."""
    with serving(*PAGES) as (url, asked), Client(url) as client:
        events = client.events(follow=False, after="0")
        assert [event["id"] for event in events] == [1, 2, 3]
        assert events.cursor == "3"
        assert not any("wait" in path for _, path, _, _ in asked)
    with serving(PAGES[-1]) as (url, _), Client(url) as client:
        events = client.events(follow=False)
        assert (list(events), events.cursor) == ([], "3")


@pytest.mark.parametrize("by", [by_one, by_the_other])
def test_the_feed_waits_for_a_service_that_is_away_as_long_as_it_was_told(by: Callable[..., Any]) -> None:
    """With patience it goes on where it was; without it the error comes at once, and the cursor is still good."""
    call: Callable[[Any], Any] = lambda client: client.events(follow=False, patience=math.inf)  # noqa: E731 -- a row
    found, asked = by(call, PAGES[0], (0, {}, b""), STOPPING, *PAGES[1:])
    assert [event["id"] for event in found] == [1, 2, 3]
    assert [path.partition("after=")[2] for _, path, _, _ in asked] == ["", "2", "2", "2", "3"]
    with serving(PAGES[0], STOPPING) as (url, _), Client(url) as client:
        events = client.events(follow=False)
        assert [next(events)["id"], next(events)["id"]] == [1, 2]
        with pytest.raises(ApiProblem):
            next(events)
        assert events.cursor == "2"


@pytest.mark.anyio
async def test_an_await_that_is_cut_off_loses_nothing() -> None:
    """A timeout around `anext` cancels the question; the next one asks it again, and the iterator goes on."""
    with serving(*PAGES) as (url, asked):
        async with AsyncClient(url) as client:
            events = client.events()
            first = await anext(events)
            second = await anext(events)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await anext(events)
            third = await anext(events)
    assert [first["id"], second["id"], third["id"]] == [1, 2, 3]
    assert all("after=2" in path for _, path, _, _ in asked[1:])


@pytest.mark.anyio
async def test_a_real_service_is_submitted_to_waited_for_and_followed(tmp_path: Path) -> None:
    """Over real sockets: a key that is repeated, a wait, the task's event from the feed, and a cursor that goes on."""
    async with world(tmp_path) as at:
        url = f"http://127.0.0.1:{at.settings['server']['port']}"
        async with AsyncClient(url, API_KEY) as client:
            clip = {"video": "https://example.com/in.mp4", "prompt": "a [emulator: render=0.02]"}
            task = await client.submit("runway/pro/video2video", clip, idempotency_key="order 17")
            again = await client.submit("runway/pro/video2video", clip, idempotency_key="order 17")
            assert again["id"] == task["id"]
            ended = await client.wait(task["id"], timeout=20)
            assert ended["state"] == "succeeded"
            events = client.events(wait=5)
            event = await anext(events)
            while event["data"]["task_id"] != task["id"]:
                event = await anext(events)
            assert event["type"] == "task.succeeded"
            other = await client.submit("runway/pro/video2video", clip)
            went_on = client.events(after=events.cursor)
            assert (await anext(went_on))["data"]["task_id"] == other["id"]
            await client.wait(other["id"], timeout=20)
            assert [one["id"] async for one in client.tasks()] == [other["id"], task["id"]]
            assert [one["name"] for one in await client.destinations()] == ["sink"]
            assert (await client.timeline(task["id"]))[0]["kind"] == "submission"
        assert len(at.upstream.tasks) == 2


@pytest.mark.anyio
async def test_more_at_once_than_there_are_connections_wait_their_turn() -> None:
    """Three hundred questions over one client: each is answered, over far fewer connections."""
    is_open, most = 0, 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal is_open, most
        is_open += 1
        most = max(most, is_open)
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                number = (await reader.readuntil(b"\r\n\r\n")).split()[1].rpartition(b"/")[2]
                writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n{"n":%b}' % (6 + len(number), number))
                await writer.drain()
        is_open -= 1
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=300)
    async with AsyncClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        found = await asyncio.gather(*[client.task(str(n)) for n in range(300)])
    server.close()
    assert found == [{"n": n} for n in range(300)]
    assert 1 < most < 2 * CONNECTIONS  # one that is closed here is seen to be a little later there
