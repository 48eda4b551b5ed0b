"""The pull feed over real sockets: ordered, without gaps, resumable, and quick for whoever waits (contract 4.3)."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from receiver.web import answers
from tests.rooms import PATIENCE, a_task, an_event, on_disk, put, until
from tests.test_api import flaws, is_problem
from tests.world import SECRET, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx

    from receiver.records import Event
    from tests.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.engines]


@pytest.fixture(scope="module")
async def it(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One world for all: each test begins where the feed ends."""
    async with world(tmp_path_factory.mktemp("feed")) as one:
        yield one


async def feed(it: World, **params: Any) -> dict[str, Any]:
    """One page."""
    answer = await it.api.get("/events", params=params)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def end_of(it: World) -> str:
    """The cursor that nothing follows yet."""
    page = await feed(it, limit=200)
    while page["data"]:
        page = await feed(it, limit=200, after=page["next_cursor"])
    return str(page["next_cursor"])


async def stored(it: World, count: int, **over: Any) -> list[str]:
    """So many events, each with a number in its data; their ids in order."""
    assert it.service is not None
    task = a_task()
    events: list[Event] = [
        replace(an_event(task), **{"data_json": json.dumps({"task_id": task.id, "number": n}), **over})
        for n in range(count)
    ]
    await put(it.service.store, *events)
    return [event.id for event in events]


async def test_an_item_says_what_the_webhook_said(it: World) -> None:
    """The same id, type, time and data, and no other member."""
    after = await end_of(it)
    task_id = await it.created()
    webhook = await it.whole(task_id)
    [item] = (await feed(it, after=after))["data"]
    assert list(item) == ["id", "type", "timestamp", "data"]
    assert item["id"] == webhook.id
    assert {name: item[name] for name in ("type", "timestamp", "data")} == json.loads(webhook.body)


@pytest.mark.parametrize("limit", [1, 2, 7, 25, 26, 59, 60, 61, 200])
async def test_pages_lead_to_the_end_in_order(it: World, limit: int) -> None:
    """By cursor and by link, each event once; at the end the cursor stays, and what comes then follows it."""
    begin = await end_of(it)
    made = await stored(it, 60)
    for follow in ("cursor", "link"):
        found: list[str] = []
        after = begin
        answer = await it.api.get("/events", params={"after": after, "limit": limit})
        while page := answer.json()["data"]:
            assert len(page) <= limit
            found += [item["id"] for item in page]
            after = answer.json()["next_cursor"]
            url, _, rel = answer.headers["link"].partition("; ")
            assert rel == 'rel="next"'
            if follow == "link":
                answer = await it.api.get(str(it.api.base_url.join(url.strip("<>"))))
            else:
                answer = await it.api.get("/events", params={"after": after, "limit": limit})
        assert found == made
        assert answer.json()["next_cursor"] == after
    [more] = await stored(it, 1)
    assert [item["id"] for item in (await feed(it, after=after))["data"]] == [more]


async def test_a_page_has_fifty_unless_told(it: World) -> None:
    """And without `after` it begins with the oldest that is kept."""
    await stored(it, 51)
    assert len((await feed(it))["data"]) == 50
    begin = (await feed(it, limit=1))["data"]
    assert (await feed(it, after="0", limit=1))["data"] == begin
    # What was first is pruned: the feed begins with the next, and a cursor before it stays good.
    assert it.service is not None
    [first, second] = (await feed(it, limit=2))["data"]
    on_disk(it.service.store, "DELETE FROM events WHERE id = ?", first["id"])
    assert (await feed(it, limit=1))["data"] == [second]
    assert (await feed(it, limit=1, after="0"))["data"] == [second]


async def test_a_feed_without_events_has_a_cursor(tmp_path: Path) -> None:
    """Never null: the start, or what was given."""
    async with world(tmp_path) as empty:
        page = await feed(empty)
        assert page["data"] == []
        assert page["next_cursor"] is not None
        assert (await feed(empty, after=page["next_cursor"])) == page
        assert (await feed(empty, after="17"))["next_cursor"] == "17"
        made = await stored(empty, 3)
        assert [item["id"] for item in (await feed(empty, after=page["next_cursor"]))["data"]] == made


async def test_a_large_page_ends_early_and_leads_on(it: World) -> None:
    """Somebody else's words may be long; nothing is left out, and one that is larger than a page has a page."""
    begin = await end_of(it)
    large = json.dumps({"words": "x" * (answers.PAGE_BYTES // 3)})
    made = await stored(it, 7, data_json=large)
    made += await stored(it, 1, data_json=json.dumps({"words": "x" * (answers.PAGE_BYTES + 1)}))
    made += await stored(it, 1)
    pages: list[list[str]] = []
    page = await feed(it, after=begin, limit=200)
    while page["data"]:
        pages.append([item["id"] for item in page["data"]])
        page = await feed(it, after=page["next_cursor"], limit=200)
    assert [one for some in pages for one in some] == made
    assert [len(some) for some in pages] == [3, 3, 2, 1]


async def test_what_is_deep_or_wide_passes_as_it_came(it: World) -> None:
    """Numbers of any length, letters of any script; secrets are masked, in names, too."""
    begin = await end_of(it)
    deep = "[" * 200 + "]" * 200
    data = f'{{"deep":{deep},"number":123456789012345678901234567890,"text":"\\u0000☃"}}'
    await stored(it, 1, data_json=data)
    answer = await it.api.get("/events", params={"after": begin})
    assert data in answer.text
    begin = await end_of(it)
    await stored(it, 1, data_json=json.dumps({f"key {SECRET}": [f"value {SECRET}"], "deep": json.loads(deep)}))
    padding = "x" * 100_000
    await stored(it, 1, data_json=json.dumps({f"key {SECRET}": {"padding": padding, "value": SECRET}}))
    answer = await it.api.get("/events", params={"after": begin})
    assert SECRET not in answer.text
    assert [sorted(item["data"]) for item in answer.json()["data"]] == [["deep", "key ***"], ["key ***"]]
    assert answer.json()["data"][1]["data"]["key ***"]["padding"] == padding


async def test_who_waits_is_answered_with_the_event(it: World) -> None:
    """Long before its time is over, and where it is over with an empty page."""
    assert it.service is not None
    after = await end_of(it)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert (await feed(it, after=after, wait="200ms")) == {"data": [], "next_cursor": after}
    assert 0.2 <= loop.time() - began < PATIENCE
    task_id = await it.created(render=30)
    readers = it.service.after._readers
    waiting = [asyncio.create_task(feed(it, after=after, wait="60")) for _ in range(10)]
    await until(lambda: len(readers) == 10)
    # They hold nothing that others need to read.
    assert (await it.api.get("/tasks")).status_code == 200
    await it.api.post(f"/tasks/{task_id}/cancel")
    async with asyncio.timeout(PATIENCE):
        pages = await asyncio.gather(*waiting)
    assert [[item["type"] for item in page["data"]] for page in pages] == [["task.cancelled"]] * 10
    # And where there is something already, nobody waits.
    async with asyncio.timeout(PATIENCE):
        assert (await feed(it, after=after, wait="60"))["data"] == pages[0]["data"]
    assert not readers


async def test_an_event_of_another_process_is_seen_soon(it: World) -> None:
    """Nobody here is told of it: who waits looks again every now and then."""
    after = await end_of(it)
    assert it.service is not None
    waiting = asyncio.create_task(feed(it, after=after, wait="60s"))
    readers = it.service.after._readers
    await until(lambda: len(readers) == 1)
    [made] = await stored(it, 1)
    async with asyncio.timeout(PATIENCE):
        assert [item["id"] for item in (await waiting)["data"]] == [made]


async def test_a_stop_keeps_nobody_waiting(tmp_path: Path) -> None:
    """An empty page with the same cursor, at once."""
    async with world(tmp_path) as one:
        assert one.service is not None
        readers = one.service.after._readers
        waiting = asyncio.create_task(feed(one, after="7", wait="60s"))
        await until(lambda: len(readers) == 1)
        one.begin_stop()
        async with asyncio.timeout(PATIENCE):
            assert (await waiting) == {"data": [], "next_cursor": "7"}


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        *[
            (f"after={after}", "after")
            for after in (
                *("", "-1", "+1", "1.0", "01", "1e3", "x", "%00", "1%00", "%20", "1%20", "%D9%A3", "null", "0x1"),
                *("9223372036854775808", "9" * 19, "9" * 5000, "evt_01kdyx3mzrtq0s9a5kjw3hc9zp"),
            )
        ],
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=0000000200999", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("wait=soon", "wait"),
        ("wait=-1", "wait"),
        ("wait=%D9%A3s", "wait"),
        ("cursor=1", "cursor"),
        ("since=2h", "since"),
    ],
)
async def test_a_parameter_that_makes_no_sense_is_named(it: World, query: str, parameter: str) -> None:
    """422, never a 500 and never a guess."""
    answer = await it.api.get(f"/events?{query}")
    is_problem(answer, 422, "invalid-input")
    assert flaws(answer) == [(None, parameter)]


async def test_a_place_far_ahead_is_one_that_nothing_follows(it: World) -> None:
    """The largest there can be is no error."""
    page = await feed(it, after=str(2**63 - 1))
    assert page == {"data": [], "next_cursor": str(2**63 - 1)}


async def test_the_feed_is_guarded_and_reads_only(it: World) -> None:
    """401 without a key, 405 by another method, HEAD without a body."""
    answer: httpx.Response = await it.api.get("/events", headers={"authorization": "Bearer wrong"})
    is_problem(answer, 401, "unauthorized")
    is_problem(await it.api.post("/events"), 405, "method-not-allowed")
    answer = await it.api.head("/events")
    assert (answer.status_code, answer.content) == (200, b"")
