"""Journeys of what goes out beside the ordinary: tasks' own callback_urls, formats, operator events, the pull feed."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from receiver.emulator import directive
from tests.world import PATIENCE, PRO, SECRET, V2V, Sink, World, destination, script, sink, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.engines]

OPERATOR = ["task.ambiguous", "destination.*", "delivery.dead"]


@asynccontextmanager
async def with_operator(folder: Path, **delivery: Any) -> AsyncIterator[tuple[World, Sink]]:
    """A world in which a second destination asks for the operator events and nothing else."""
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(sink())

        def change(given: dict[str, Any]) -> None:
            given["delivery"] |= {"schedule": ["0s", "30ms"], **delivery}
            given["destinations"].append(destination("ops", operator.url, events=OPERATOR))

        yield await stack.enter_async_context(world(folder, change=change)), operator


# -- tasks' own callback_urls ------------------------------------------------------------------------------------------


async def test_a_task_has_a_destination_of_its_own(tmp_path: Path) -> None:
    """The terminal event alone, as the envelope, signed with `callback_secrets`; retried, and in the timeline."""

    def change(given: dict[str, Any]) -> None:
        given["security"] |= {"callback_secrets": [SECRET], "allow_private_callbacks": True}
        given["destinations"][0]["events"] = ["task.*"]

    async with world(tmp_path, change=change) as here, sink() as own:
        own.answers[:] = [500]
        answer = await here.submit(V2V, script(), callback_url=f"{own.url}?key=hidden-value")
        assert answer.status_code == 201, answer.text
        task_id = answer.json()["id"]
        await here.ended(task_id)
        await own.until(lambda: len(own.received) == 2)
        await here.eventually(lambda: here.all_delivered(task_id))
        first, second = own.received
        assert (first.id, first.body) == (second.id, second.body)
        assert own.bad == []
        event = next(one for one in await here.arrived(task_id, 1) if one.type == "task.succeeded")
        assert json.loads(first.body) == event.data["envelope"]
        assert set(json.loads(first.body)) == {"code", "msg", "data"}
        assert first.id == event.id
        items = await here.timeline(task_id)
        [mine] = [one for one in items if one["kind"] == "delivery" and one["destination"] == "@callback"]
        assert (mine["state"], mine["attempt_count"]) == ("delivered", 2)
        assert "hidden-value" not in json.dumps(items)
        skips = [one["reason"] for one in items if one["kind"] == "skip" and one["destination"] == "@callback"]
        assert skips
        assert all("it gets the terminal ones" in reason for reason in skips)
        again = await here.api.post(f"/deliveries/{mine['delivery_id']}/redeliver")
        assert again.status_code == 202, again.text
        await own.until(lambda: len(own.received) == 3)
        assert own.received[2].id == first.id


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://127.0.0.1/x", "loopback"),
        ("http://2130706433/", "loopback"),
        ("http://0x7f.1/", "loopback"),
        ("http://[::ffff:10.0.0.1]:8080/", "private"),
        ("http://169.254.169.254/latest/meta-data", "metadata"),
        ("ftp://example.com/x", "beginning with https://"),
        ("//example.com/x", "beginning with https://"),
        ("https://user:secret@example.com/", "do not belong in the URL"),
        ("https://example.com/" + "x" * 9000, "8192 are taken"),
        ("", "absolute URL"),
    ],
)
async def test_a_callback_url_that_leads_nowhere_is_refused(here: World, url: str, words: str) -> None:
    """Before anything is stored or sent, with a pointer; a private name is only seen when it is resolved."""
    before = here.upstream.ledger.requests
    answer = await here.submit(PRO, script(), callback_url=url)
    problem = answer.json()
    assert (answer.status_code, problem["errors"][0]["pointer"]) == (422, "/callback_url")
    assert words in problem["detail"]
    assert "secret" not in answer.text
    assert here.upstream.ledger.requests == before


async def test_a_name_that_resolves_to_a_private_address_is_a_failure(here: World) -> None:
    """Like any other, with its words; nothing is connected, and the other destinations get theirs."""
    async with sink() as own:
        url = own.url.replace("127.0.0.1", "localhost")
        task_id = (await here.submit(PRO, script(), callback_url=url)).json()["id"]
        await here.arrived(task_id, 1)

        async def tried() -> bool:
            return any("localhost resolves to a private address" in (one["error"] or "") for one in await _tries())

        async def _tries() -> list[dict[str, Any]]:
            return await here.timeline(task_id, "attempt")

        await here.eventually(tried)
        assert own.received == []


@pytest.fixture(scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world without leave for private callback_urls."""
    async with world(tmp_path_factory.mktemp("outbox")) as built:
        yield built


# -- formats -----------------------------------------------------------------------------------------------------------


async def test_every_format_over_the_wire(tmp_path: Path) -> None:
    """`standard`, `envelope`, `cloudevents`: the same id, each body as the contract shows it, each signed."""
    async with sink() as plain, sink() as cloud:

        def change(given: dict[str, Any]) -> None:
            given["destinations"] += [
                destination("plain", plain.url, format="envelope"),
                destination("cloud", cloud.url, format="cloudevents"),
            ]

        async with world(tmp_path, change=change) as here:
            event = await here.whole(await here.created())
            await plain.until(lambda: bool(plain.received))
            await cloud.until(lambda: bool(cloud.received))
            home = here.settings["server"]["public_url"]
    assert json.loads(plain.received[0].body) == event.data["envelope"]
    document = json.loads(cloud.received[0].body)
    assert document.pop("data") == event.data
    assert document == {
        "specversion": "1.0",
        "id": event.id,
        "type": "task.succeeded",
        "source": home,
        "subject": event.data["task_id"],
        "time": json.loads(event.body)["timestamp"],
        "datacontenttype": "application/json",
    }
    assert {plain.received[0].id, cloud.received[0].id} == {event.id}
    assert cloud.received[0].headers["content-type"] == "application/cloudevents+json"


# -- operator events ---------------------------------------------------------------------------------------------------


async def test_an_outage_is_told_once_and_its_end(tmp_path: Path) -> None:
    """`destination.failing` when the circuit opens, `delivery.dead` for each that died, `destination.recovered`."""
    async with with_operator(tmp_path, circuit_failures=3, circuit_pause="100ms") as (here, operator):
        here.sink.answers[:] = [500] * 4
        for _ in range(2):
            await here.created()
        await operator.until(lambda: len([one for one in operator.received if one.type == "delivery.dead"]) == 2)
        await here.whole(await here.created())
        await operator.until(lambda: any(one.type == "destination.recovered" for one in operator.received))
        told = {one.type: one.data for one in operator.received}
        assert sorted(one.type for one in operator.received) == [
            "delivery.dead",
            "delivery.dead",
            "destination.failing",
            "destination.recovered",
        ]
        assert told["destination.failing"] == {
            "task_id": None,
            "destination": "sink",
            "delivery_id": None,
            "event_id": None,
            "consecutive_failures": 3,
            "reason": "3 failures in a row, the last: it answered 500",
        }
        dead = told["delivery.dead"]
        assert dead["destination"] == "sink"
        assert dead["delivery_id"].startswith("dlv_")
        assert dead["event_id"].startswith("evt_")
        assert dead["task_id"].startswith("tsk_")
        assert "this was the last of 2 attempts" in dead["reason"]
        assert operator.bad == []


async def test_the_deliveries_of_operator_events_cause_none(tmp_path: Path) -> None:
    """Where the operator's own destination is down, nothing is told of it, and nothing comes of it."""
    async with with_operator(tmp_path, circuit_failures=2, circuit_pause="50ms") as (here, operator):
        operator.answers[:] = [500] * 99
        here.sink.answers[:] = [500] * 2
        await here.created()

        async def dead() -> bool:
            page = (await here.api.get("/deliveries", params={"destination": "ops", "state": "dead"})).json()["data"]
            return len(page) >= 2

        await here.eventually(dead)
        kinds = [one["type"] for one in (await here.api.get("/events")).json()["data"]]
        assert sorted(kinds) == ["delivery.dead", "destination.failing", "task.succeeded"]
        shown = (await here.api.get("/destinations/ops")).json()
        assert shown["consecutive_failures"] >= 2


async def test_a_pause_is_told_whoever_made_it(tmp_path: Path) -> None:
    """By hand, and by the destination's own 410; resumed, it is told, too."""
    async with with_operator(tmp_path) as (here, operator):
        assert (await here.api.post("/destinations/sink/pause")).json()["state"] == "paused"
        task_id = await here.created()
        await here.ended(task_id)
        await operator.until(lambda: len(operator.received) == 1)
        assert [one["state"] for one in await here.timeline(task_id, "delivery")] == ["pending"]
        here.sink.answers[:] = [410]
        await here.api.post("/destinations/sink/resume")
        await operator.until(lambda: len(operator.received) == 4)
        told = sorted(operator.received, key=lambda one: one.id)  # as they were made: each comes on a way of its own
        kinds = [one.type for one in told]
        assert kinds[:2] == ["destination.paused", "destination.recovered"]
        assert sorted(kinds[2:]) == ["delivery.dead", "destination.paused"]
        assert [one.data["reason"] for one in told[:2]] == ["paused by hand", "resumed by hand"]
        assert (await here.api.get("/destinations/sink")).json()["state"] == "paused"


async def test_an_ambiguous_submission_is_told(tmp_path: Path) -> None:
    """With the task's id and why; it is not among `task.*`."""
    async with with_operator(tmp_path) as (here, operator):
        answer = await here.submit(PRO, f"a cat {directive(submit='reset-after')}")
        task_id = answer.json()["id"]
        await operator.until(lambda: bool(operator.received))
        [told] = operator.received
        assert (told.type, told.data["task_id"], told.data["destination"]) == ("task.ambiguous", task_id, None)
        assert told.data["reason"]


# -- the feed ----------------------------------------------------------------------------------------------------------


async def test_the_feed_is_whole_and_in_order_while_events_come(tmp_path: Path) -> None:
    """A reader that follows the cursor, over a restart, sees every event once, in one order."""
    async with world(tmp_path) as here:
        seen: list[str] = []
        cursor: str | None = None

        async def follow(count: int) -> None:
            nonlocal cursor
            while len(seen) < count:
                asked: dict[str, Any] = {"wait": "5s", "limit": 3} | ({"after": cursor} if cursor else {})
                page = (await here.api.get("/events", params=asked)).json()
                seen.extend(item["id"] for item in page["data"])
                cursor = page["next_cursor"]

        async with asyncio.timeout(PATIENCE):
            reading = asyncio.create_task(follow(10))
            made = await asyncio.gather(*(here.created() for _ in range(10)))
            await reading
            await here.restart()
            made += await asyncio.gather(*(here.created() for _ in range(5)))
            await follow(15)
        assert len(set(seen)) == len(seen) == 15
        everything = (await here.api.get("/events", params={"limit": 200})).json()["data"]
        assert [item["id"] for item in everything] == seen
        assert {item["data"]["task_id"] for item in everything} == set(made)
