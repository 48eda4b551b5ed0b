"""Deliveries, replays and destinations over real sockets: what is shown, taken and refused (contract 4.3)."""

from __future__ import annotations

import asyncio
import itertools
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from receiver import ids
from receiver.app import clock
from receiver.records import Attempt, Replay
from receiver.web import answers, views
from tests.rooms import Do, a_delivery, a_task, an_event, entropy, on_disk, put
from tests.test_api import flaws, is_problem
from tests.world import SECRET, destination, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx

    from receiver.records import Delivery
    from receiver.store import Unit
    from tests.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.engines]

MEMBERS = [
    "id",
    "event_id",
    "task_id",
    "destination",
    "state",
    "attempt_count",
    "due_at",
    "created_at",
    "finished_at",
    "attempts",
]
ATTEMPT = [
    "number",
    "started_at",
    "duration_ms",
    "redelivery",
    "request",
    "response",
    "error",
    "result",
    "reason",
    "next_at",
]
DESTINATION = ["name", "kind", "state", "consecutive_failures", "last_error", "next_try_at", "reason"]

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
async def it(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One world for all: each test has tasks, or a destination that left the config, of its own."""

    def change(given: dict[str, Any]) -> None:
        url = given["destinations"][0]["url"]
        given["destinations"] += [
            destination("aside", url, events=["task.rejected"]),
            destination("another", url, events=["task.rejected"]),
        ]

    async with world(tmp_path_factory.mktemp("outbox"), change=change) as one:
        yield one


def gone() -> str:
    """The name of a destination that has left the config, different each time."""
    return f"gone-{next(_numbers)}"


def an_attempt(delivery: Delivery, number: int = 1, **over: Any) -> Attempt:
    """A failed try."""
    attempt = Attempt(
        id=ids.attempt_id(int(delivery.created_at.timestamp() * 1000), entropy(16)),
        delivery_id=delivery.id,
        task_id=delivery.task_id,
        number=number,
        started_at=delivery.created_at + timedelta(seconds=number),
        duration_ms=12,
        redelivery=False,
        request_json='{"url":"https://x.example/hook","headers":{"webhook-id":"evt_x"}}',
        response_json='{"status":500,"headers":{},"body":"no"}',
        error=None,
        result="transient",
        reason="it answered 500",
        next_at=None,
    )
    return replace(attempt, **over)


async def dead(
    it: World, count: int, name: str, *, tries: int = 1, said: dict[str, Any] | None = None, **over: Any
) -> list[Delivery]:
    """So many dead deliveries of a destination, newest first, each with attempts that were answered so."""
    assert it.service is not None
    now = clock()
    row = {"state": "dead", "due_at": None, "finished_at": now, "created_at": now, "attempt_count": tries, **over}
    made = [a_delivery(an_event(a_task()), name, **row) for _ in range(count)]
    answered = {} if said is None else {"response_json": json.dumps(said)}
    attempts = [an_attempt(one, number, **answered) for one in made for number in range(1, tries + 1)]

    def stage(unit: Unit) -> None:
        for one in attempts:
            unit.add_attempt(one)

    await put(it.service.store, *made)
    await it.service.store.run(Do(stage))
    return made[::-1]


async def listed(it: World, path: str = "/deliveries", **params: Any) -> list[dict[str, Any]]:
    """Every item of a list, page by page, by the links."""
    answer = await it.api.get(path, params=params)
    found: list[dict[str, Any]] = []
    while True:
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += page["data"]
        assert (page["next_cursor"] is None) == ("link" not in answer.headers)
        if page["next_cursor"] is None:
            return found
        url, _, rel = answer.headers["link"].partition("; ")
        assert rel == 'rel="next"'
        answer = await it.api.get(str(it.api.base_url.join(url.strip("<>"))))


async def the_delivery(it: World, task_id: str) -> dict[str, Any]:
    """The one delivery of a task."""
    [one] = await listed(it, task=task_id)
    return one


# -- deliveries --------------------------------------------------------------------------------------------------------


async def test_a_delivery_has_the_members_of_the_contract(it: World) -> None:
    """In the list as by itself, with what was sent and what came back."""
    task_id = await it.created()
    webhook = await it.whole(task_id)
    one = await the_delivery(it, task_id)
    assert list(one) == MEMBERS
    assert (await it.api.get(f"/deliveries/{one['id']}")).json() == one
    assert (one["event_id"], one["task_id"], one["destination"]) == (webhook.id, task_id, "sink")
    assert (one["state"], one["attempt_count"], one["due_at"]) == ("delivered", 1, None)
    [attempt] = one["attempts"]
    assert list(attempt) == ATTEMPT
    assert attempt["request"]["headers"]["webhook-id"] == webhook.id
    assert attempt["response"] == {"status": 200, "headers": {"content-length": "2"}, "body": "ok"}
    assert (attempt["number"], attempt["result"], attempt["redelivery"]) == (1, "ok", False)
    assert SECRET not in json.dumps(one)


@pytest.mark.parametrize("limit", [1, 2, 7, 25, 26, 59, 60, 200])
async def test_pages_of_deliveries_lead_to_the_end(it: World, limit: int) -> None:
    """Newest first, without gaps or repeats, also where all were made at one moment; fifty unless told."""
    name = gone()
    made = [one.id for one in await dead(it, 60, name)]
    assert [one["id"] for one in await listed(it, destination=name, limit=limit)] == made
    params: dict[str, Any] = {"destination": name, "limit": limit}
    answer = (await it.api.get("/deliveries", params=params)).json()
    found = [one["id"] for one in answer["data"]]
    assert len(found) == min(limit, 60)
    while answer["next_cursor"] is not None:
        answer = (await it.api.get("/deliveries", params={**params, "cursor": answer["next_cursor"]})).json()
        found += [one["id"] for one in answer["data"]]
    assert found == made
    assert len((await it.api.get("/deliveries", params={"destination": name})).json()["data"]) == 50


async def test_filters_narrow(it: World) -> None:
    """State (one or several), destination (also one that has left the config), task; together they narrow more."""
    name = gone()
    far = clock() + timedelta(days=1)
    made = await dead(it, 4, name)
    [waiting] = await dead(it, 1, name, state="pending", due_at=far, finished_at=None)
    [sent] = await dead(it, 1, name, state="delivered")

    async def found(**params: Any) -> set[str]:
        return {one["id"] for one in await listed(it, destination=name, **params)}

    everything = {one.id for one in (*made, waiting, sent)}
    assert await found() == everything
    assert await found(state="dead") == {one.id for one in made}
    assert await found(state="pending") == {waiting.id}
    assert (
        await found(state="pending,delivered") == await found(state=["delivered", "pending"]) == {waiting.id, sent.id}
    )
    assert await found(state="pending,leased,delivered,dead,cancelled") == everything
    assert await found(state="leased") == set()
    assert await found(state="dead", task=made[0].task_id) == {made[0].id}
    assert await found(state="delivered", task=made[0].task_id) == set()
    for nothing in ("nobody", "\x00", "x" * 5000, "' OR 1=1 --", "%", "☃", "@callback"):
        assert await listed(it, destination=nothing) == []
        assert await listed(it, task=nothing) == []


async def test_a_large_page_ends_early_and_leads_on(it: World) -> None:
    """Answers of destinations may be long, and longer as JSON; nothing is left out."""
    name = gone()
    made = await dead(it, 60, name, tries=4, said={"status": 500, "headers": {}, "body": "\x00" * 16 * 1024})
    answer = await it.api.get("/deliveries", params={"destination": name, "limit": 200})
    first = answer.json()["data"]
    assert 1 < len(first) < 60
    assert answers.PAGE_BYTES <= len(answer.content) < answers.PAGE_BYTES + len(json.dumps(first[0])) + 1000
    found = await listed(it, destination=name, limit=200)
    assert [one["id"] for one in found] == [one.id for one in made]
    assert all(len(one["attempts"]) == 4 for one in found)


def test_an_attempt_that_came_after_the_row_was_read_is_left_out() -> None:
    """Row and attempts are two reads: what is shown agrees with itself."""
    row = a_delivery(an_event(a_task()), attempt_count=1)
    attempts = [an_attempt(row, 1), an_attempt(row, 2)]
    assert [one["number"] for one in views.delivery(row, attempts)["attempts"]] == [1]


async def test_secrets_in_answers_of_destinations_are_masked(it: World) -> None:
    """Also in the names of headers, also where the document is large."""
    name = gone()
    said = {"status": 500, "headers": {f"x-{SECRET}": SECRET}, "body": f"you sent {SECRET}"}
    made = await dead(it, 1, name, said=said)
    made += await dead(it, 1, name, said={**said, "body": f"you sent {SECRET} " + "x" * 200_000})
    paths = [f"/deliveries?destination={name}", *[f"/deliveries/{one.id}" for one in made]]
    for path in paths:
        answer = await it.api.get(path)
        assert answer.status_code == 200
        assert "***" in answer.text
        assert SECRET not in answer.text


async def test_redelivering_opens_the_same_row_again(it: World) -> None:
    """202 with the delivery; the same webhook-id, the next number, marked."""
    task_id = await it.created()
    webhook = await it.whole(task_id)
    before = await the_delivery(it, task_id)
    answer = await it.api.post(f"/deliveries/{before['id']}/redeliver")
    assert answer.status_code == 202, answer.text
    opened = answer.json()
    assert list(opened) == MEMBERS
    assert opened["id"] == before["id"]
    assert opened["state"] in {"pending", "leased"}
    assert opened["finished_at"] is None
    assert opened["attempts"] == before["attempts"]

    async def delivered_again() -> bool:
        one = await the_delivery(it, task_id)
        return bool(one["state"] == "delivered" and one["attempt_count"] == 2)

    await it.eventually(delivered_again)
    after = await the_delivery(it, task_id)
    assert [(one["number"], one["redelivery"]) for one in after["attempts"]] == [(1, False), (2, True)]
    assert [one.id for one in await it.arrived(task_id, 2)] == [webhook.id] * 2


async def test_what_cannot_be_redelivered_is_a_conflict(it: World) -> None:
    """Under way, or for a destination that is not configured any more: 409 in words, and nothing changes."""
    [lost] = await dead(it, 1, gone())
    document = is_problem(await it.api.post(f"/deliveries/{lost.id}/redeliver"), 409, "conflict")
    assert lost.destination in document["detail"]
    it.sink.answers = [None]
    task_id = await it.created()
    await it.arrived(task_id)
    one = await the_delivery(it, task_id)
    assert one["state"] == "leased"
    is_problem(await it.api.post(f"/deliveries/{one['id']}/redeliver"), 409, "conflict")
    await it.sink.close()  # it lets go of what hangs
    await it.eventually(lambda: it.all_delivered(task_id))
    assert (await the_delivery(it, task_id))["attempt_count"] == 2


# -- replays -----------------------------------------------------------------------------------------------------------


async def replayed(it: World, answer: httpx.Response) -> dict[str, Any]:
    """The replay of a 202, once it has ended."""
    assert answer.status_code == 202, answer.text
    replay = answer.json()
    assert answer.headers["location"] == f"/api/v1/replays/{replay['id']}"
    assert list(replay) == ["id", "state", "matched", "replayed"]
    assert replay["id"].startswith("rpl_")

    async def done() -> bool:
        return bool((await it.api.get(f"/replays/{replay['id']}")).json()["state"] != "running")

    await it.eventually(done)
    return dict((await it.api.get(f"/replays/{replay['id']}")).json())


async def a_dead_task(it: World) -> str:
    """A task whose delivery the sink ended."""
    it.sink.answers = [(500, {"webhook-delivery": "abort-message"})]
    task_id = await it.created()

    async def ended() -> bool:
        return [one["state"] for one in await it.timeline(task_id, "delivery")] == ["dead"]

    await it.eventually(ended)
    return task_id


@pytest.mark.parametrize("body", [b"", b" \r\n", b"{}", b'{"state":"dead"}', b'{"destination":"sink","since":"1h"}'])
async def test_a_replay_delivers_what_is_dead(it: World, body: bytes) -> None:
    """Without members all dead ones; each arrives under its old id."""
    task_id = await a_dead_task(it)
    replay = await replayed(it, await it.api.post("/replays", content=body))
    assert (replay["state"], replay["matched"], replay["replayed"]) == ("done", 1, 1)
    await it.eventually(lambda: it.all_delivered(task_id))
    first, second = await it.arrived(task_id, 2)
    assert first.id == second.id


async def test_a_replay_takes_what_its_filter_says(it: World) -> None:
    """By destination, time and state: what is outside of it stays as it is."""
    task_id = await a_dead_task(it)
    one = await the_delivery(it, task_id)
    made_at = one["created_at"]
    for outside in (
        {"destination": "aside"},
        {"since": "0s"},
        {"until": "1h"},
        {"until": "2026-01-31"},
        {"since": "2025-01-01T00:00:00Z", "until": "2026-01-31T12:00:00+05:30"},
        {"state": "delivered", "since": made_at, "until": made_at},
    ):
        replay = await replayed(it, await it.api.post("/replays", json=outside))
        assert (replay["state"], replay["matched"]) == ("done", 0), outside
    assert await the_delivery(it, task_id) == one
    for number, inside in enumerate(
        (
            {"since": made_at, "until": made_at},
            {"state": "all", "since": made_at, "until": "2999-01-01T00:00:00Z"},
            {"state": "delivered", "since": made_at, "destination": "sink"},
        ),
        2,
    ):
        replay = await replayed(it, await it.api.post("/replays", json=inside))
        assert (replay["matched"], replay["replayed"]) == (1, 1), inside

        async def again(count: int = number) -> bool:
            now = await the_delivery(it, task_id)
            return bool(now["state"] == "delivered" and now["attempt_count"] == count)

        await it.eventually(again)


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (b"null", [""]),
        (b"[]", [""]),
        (b"{", [""]),
        (b"\xff", [""]),
        (b"[" * 5000, [""]),
        ({"extra": 1}, ["/extra"]),
        ({"limit": 1}, ["/limit"]),
        ({"destination": 1}, ["/destination"]),
        ({"destination": ["sink"]}, ["/destination"]),
        ({"destination": "nobody"}, ["/destination"]),
        ({"destination": "Sink"}, ["/destination"]),
        ({"destination": "sink\x00"}, ["/destination"]),
        ({"destination": ""}, ["/destination"]),
        ({"destination": "x" * 100_000}, ["/destination"]),
        ({"state": "pending"}, ["/state"]),
        ({"state": "cancelled"}, ["/state"]),
        ({"state": None}, ["/state"]),
        ({"state": ["dead"]}, ["/state"]),
        ({"since": 3600}, ["/since"]),
        ({"since": True}, ["/since"]),
        ({"since": ""}, ["/since"]),
        ({"since": "yesterday"}, ["/since"]),
        ({"since": "-2h"}, ["/since"]),
        ({"since": "9999999999d"}, ["/since"]),
        ({"since": "9" * 5000}, ["/since"]),
        ({"since": "٣h"}, ["/since"]),
        ({"since": "2026-01-31\x00"}, ["/since"]),
        ({"since": "0001-01-01T00:00:00+23:59"}, ["/since"]),
        ({"until": "9999-12-31T23:59:59-23:59"}, ["/until"]),
        ({"until": "tomorrow"}, ["/until"]),
        ({"since": "1h", "until": "2h"}, ["/since"]),
        ({"since": "2026-02-01", "until": "2026-01-31"}, ["/since"]),
        ({"since": "2999-01-01"}, ["/since"]),
        ({"since": "2999-01-01", "until": "2999-02-01"}, ["/since"]),
        ({"since": "x", "until": "y", "destination": "z"}, ["/since", "/until", "/destination"]),
    ],
)
async def test_a_replay_that_makes_no_sense_is_refused(it: World, body: Any, pointers: list[str]) -> None:
    """422 with a pointer to each mistake, and no replay begins."""
    before = await listed(it, "/replays")
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = await it.api.post("/replays", content=content)
    document = is_problem(answer, 422, "invalid-input")
    assert [one["pointer"] for one in document["errors"]] == pointers
    assert all(one["detail"] for one in document["errors"])
    assert len(answer.content) < 2000
    assert await listed(it, "/replays") == before


async def test_a_destination_that_a_replay_cannot_name_is_told_with_those_it_can(it: World) -> None:
    """The words help."""
    answer = await it.api.post("/replays", json={"destination": "snik"})
    assert "'snik'" in answer.json()["detail"]
    assert "sink" in answer.json()["detail"].replace("snik", "")


async def test_replays_are_listed_newest_first(it: World) -> None:
    """By pages, like all lists; each as it is by itself."""
    assert it.service is not None
    now = clock()
    made = [
        Replay(
            id=ids.replay_id(int(now.timestamp() * 1000) + number, entropy(16)),
            state="done",
            destination=None,
            which="dead",
            since_at=None,
            until_at=now,
            matched=number,
            replayed=number,
            created_at=now,
            finished_at=now,
        )
        for number in range(7)
    ]

    def stage(unit: Unit) -> None:
        for one in made:
            unit.put_replay(one)

    await it.service.store.run(Do(stage))
    for limit in (1, 3, 200):
        found = await listed(it, "/replays", limit=limit)
        assert [one["id"] for one in found[:7]] == [one.id for one in reversed(made)]
        assert found == sorted(found, key=lambda one: str(one["id"]), reverse=True)
    assert (await it.api.get(f"/replays/{made[3].id}")).json() == {
        "id": made[3].id,
        "state": "done",
        "matched": 3,
        "replayed": 3,
    }


async def test_only_a_running_replay_can_be_cancelled(tmp_path: Path) -> None:
    """200 while it runs, 409 once it has ended, and the state in words; a cancelled one takes no further step."""
    async with world(tmp_path) as one:
        done = await replayed(one, await one.api.post("/replays"))
        document = is_problem(await one.api.post(f"/replays/{done['id']}/cancel"), 409, "conflict")
        assert "done" in document["detail"]
        assert one.service is not None
        [steps] = [loop for loop in one.service._loops if loop.get_name() == "replay"]
        steps.cancel()
        await asyncio.wait([steps])
        made = await dead(one, 3, "sink")
        started = (await one.api.post("/replays", json={"destination": "sink"})).json()
        assert (started["state"], started["matched"], started["replayed"]) == ("running", 3, 0)
        answer = await one.api.post(f"/replays/{started['id']}/cancel")
        assert (answer.status_code, answer.json()) == (200, {**started, "state": "cancelled"})
        assert (await one.api.get(f"/replays/{started['id']}")).json() == answer.json()
        document = is_problem(await one.api.post(f"/replays/{started['id']}/cancel"), 409, "conflict")
        assert "cancelled" in document["detail"]
        await one.restart()
        await replayed(one, await one.api.post("/replays", json={"destination": "sink", "since": "0s"}))
        assert [found["state"] for found in await listed(one, destination="sink")] == ["dead"] * len(made)


# -- destinations ------------------------------------------------------------------------------------------------------


async def test_destinations_are_those_of_the_config(it: World) -> None:
    """By name; by itself each is the same; tasks' own callback URLs are none."""
    found = await listed(it, "/destinations")
    assert [one["name"] for one in found] == ["another", "aside", "sink"]
    assert await listed(it, "/destinations", limit=1) == await listed(it, "/destinations", limit=2) == found
    assert [list(one) for one in found] == [DESTINATION] * 3
    for one in found:
        assert (await it.api.get(f"/destinations/{one['name']}")).json() == one
    assert found[1] == {
        "name": "aside",
        "kind": "webhook",
        "state": "active",
        "consecutive_failures": 0,
        "last_error": None,
        "next_try_at": None,
        "reason": None,
    }


async def test_a_paused_destination_waits_until_it_is_resumed(it: World) -> None:
    """200 with the destination, each time, also when it is paused already; nothing is lost."""
    for _ in range(2):
        answer = await it.api.post("/destinations/sink/pause")
        assert answer.status_code == 200, answer.text
        assert (answer.json()["state"], answer.json()["next_try_at"]) == ("paused", None)
        assert answer.json()["reason"]
        assert (await it.api.get("/destinations/sink")).json() == answer.json()
    task_id = await it.created()
    await it.ended(task_id)
    one = await the_delivery(it, task_id)
    assert (one["state"], one["attempts"]) == ("pending", [])
    for _ in range(2):
        answer = await it.api.post("/destinations/sink/resume")
        assert (answer.status_code, answer.json()["state"], answer.json()["reason"]) == (200, "active", None)
        assert (await it.api.get("/destinations/sink")).json()["state"] == "active"
    await it.whole(task_id)


async def test_a_failing_destination_says_why(it: World) -> None:
    """Failures in a row and the last error in words; a success ends the row."""
    it.sink.answers = [500, 503]
    task_id = await it.created()
    await it.arrived(task_id, 2)

    async def failed_twice() -> bool:
        return bool((await it.api.get("/destinations/sink")).json()["last_error"] == "it answered 503")

    await it.eventually(failed_twice)
    await it.eventually(lambda: it.all_delivered(task_id))
    one = (await it.api.get("/destinations/sink")).json()
    assert (one["state"], one["consecutive_failures"]) == ("active", 0)


async def test_a_test_is_really_sent(it: World) -> None:
    """Signed, at once, even past a pause; the answer is the attempt, and nothing is stored of it."""
    await it.api.post("/destinations/aside/pause")
    before = len(it.sink.received)
    deliveries = await listed(it)
    answer = await it.api.post("/destinations/aside/test")
    assert answer.status_code == 200, answer.text
    attempt = answer.json()
    assert list(attempt) == ATTEMPT
    assert (attempt["number"], attempt["result"], attempt["response"]["status"]) == (1, "ok", 200)
    [received] = it.sink.received[before:]
    assert received.type == "task.succeeded"
    assert attempt["request"]["headers"]["webhook-id"] == received.id
    it.sink.answers = [404]
    attempt = (await it.api.post("/destinations/aside/test")).json()
    assert (attempt["result"], attempt["reason"]) == ("transient", "it answered 404")
    assert await listed(it) == deliveries
    one = (await it.api.get("/destinations/aside")).json()
    assert (one["state"], one["consecutive_failures"], one["last_error"]) == ("paused", 0, None)
    await it.api.post("/destinations/aside/resume")


# -- what makes no sense, and who may ask ------------------------------------------------------------------------------

A_DELIVERY = "dlv_01kdyx3mzrtq0s9a5kjw3hc9zp"
A_REPLAY = "rpl_01kdyx3mzrtq0s9a5kjw3hc9zp"


def cursors(path: str, *good: str) -> list[tuple[str, str, str]]:
    """Cursors that this list never gave."""
    one = good[0]
    bad = (
        "",
        "x",
        "1",
        "-1",
        "%00",
        "%FF",
        "%E2%98%83",
        "*",
        one.upper(),
        one + "x",
        one[:-1],
        one + "%0A",
        "9" * 5000,
    )
    return [(path, f"cursor={text}", "cursor") for text in (*bad, *good[1:])]


@pytest.mark.parametrize(
    ("path", "query", "parameter"),
    [
        *[
            (path, f"limit={limit}", "limit")
            for path in ("/deliveries", "/replays", "/destinations")
            for limit in ("0", "201", "-1", "", "ten", "1.0", "%D9%A3", "1%00", "0000000200999", "9" * 5000)
        ],
        *[(path, "page=2", "page") for path in ("/deliveries", "/replays", "/destinations")],
        *[(path, "Limit=2", "Limit") for path in ("/deliveries", "/replays", "/destinations")],
        *cursors("/deliveries", A_DELIVERY, A_REPLAY, "dlv_01kdyx3mzrtq0s9a5kjw3hc9zu"),
        *cursors("/replays", A_REPLAY, A_DELIVERY),
        *[("/destinations", f"cursor={text}", "cursor") for text in ("", "%00", "Sink", "%E2%98%83", "x" * 5000)],
        ("/deliveries", "state=done", "state"),
        ("/deliveries", "state=dead,done", "state"),
        ("/deliveries", "state=Dead", "state"),
        ("/deliveries", "state=dead%00", "state"),
        ("/deliveries", "state=" + "x" * 5000, "state"),
        ("/deliveries", "since=2h", "since"),
        ("/replays", "state=done", "state"),
        ("/destinations", "state=paused", "state"),
    ],
)
async def test_a_parameter_that_makes_no_sense_is_named(it: World, path: str, query: str, parameter: str) -> None:
    """422, never a 500 and never a guess; of a long one the answer repeats little."""
    answer = await it.api.get(f"{path}?{query}")
    is_problem(answer, 422, "invalid-input")
    assert flaws(answer) == [(None, parameter)]
    assert len(answer.content) < 1000


async def test_a_cursor_of_a_row_that_is_gone_stays_good(it: World) -> None:
    """It is a place, not a row."""
    name = gone()
    made = await dead(it, 3, name)
    assert it.service is not None
    on_disk(it.service.store, "DELETE FROM deliveries WHERE id = ?", made[1].id)
    found = await listed(it, destination=name, cursor=made[1].id)
    assert [one["id"] for one in found] == [made[2].id]


PATHS = [
    ("GET", "/deliveries/{}"),
    ("POST", "/deliveries/{}/redeliver"),
    ("GET", "/replays/{}"),
    ("POST", "/replays/{}/cancel"),
    ("GET", "/destinations/{}"),
    ("POST", "/destinations/{}/pause"),
    ("POST", "/destinations/{}/resume"),
    ("POST", "/destinations/{}/test"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_what_is_not_there_is_not_found(it: World, method: str, path: str) -> None:
    """Whatever stands in the id; and the one destination that is nobody's."""
    for name in (
        *(A_DELIVERY, A_REPLAY, "nobody", "SINK", "sink%00", "sink%0A", "%00", "%FF", "x" * 5000, "tsk_%2e%2e"),
        *("@callback", "%40callback", "-1", "%D9%A3", "9" * 5000, "%20", "'"),
    ):
        answer = await it.api.request(method, path.format(name))
        is_problem(answer, 404, "not-found")
        assert len(answer.content) < 1000


@pytest.mark.parametrize(
    ("method", "path"),
    [*PATHS, ("GET", "/deliveries"), ("GET", "/replays"), ("POST", "/replays"), ("GET", "/destinations")],
)
async def test_without_a_key_nothing_is_answered(it: World, method: str, path: str) -> None:
    """401, whether the thing is there or not, and nothing is done."""
    answer = await it.api.request(method, path.format("sink"), headers={"authorization": "Bearer wrong"})
    is_problem(answer, 401, "unauthorized")
    assert (await it.api.get("/destinations/sink")).json()["state"] == "active"


async def test_methods(it: World) -> None:
    """405 with `Allow`; HEAD is a GET without a body."""
    for method, path, allowed in (
        ("DELETE", "/deliveries", {"GET", "HEAD"}),
        ("POST", "/deliveries/x", {"GET", "HEAD"}),
        ("GET", "/deliveries/x/redeliver", {"POST"}),
        ("DELETE", "/replays", {"GET", "HEAD", "POST"}),
        ("GET", "/replays/x/cancel", {"POST"}),
        ("POST", "/destinations", {"GET", "HEAD"}),
        ("PUT", "/destinations/sink", {"GET", "HEAD"}),
        ("GET", "/destinations/sink/pause", {"POST"}),
    ):
        answer = await it.api.request(method, path)
        is_problem(answer, 405, "method-not-allowed")
        assert {one.strip() for one in answer.headers["allow"].split(",")} == allowed
    for path in ("/deliveries", "/replays", "/destinations", "/destinations/sink"):
        answer = await it.api.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["content-length"]) > 2


async def test_a_large_body_is_refused(it: World) -> None:
    """1 MiB, as for all but submissions."""
    answer = await it.api.post("/replays", content=b" " * (1024 * 1024 + 1))
    is_problem(answer, 413, "too-large")


async def test_a_large_list_does_not_hold_up_the_door(it: World) -> None:
    """While megabytes of strangers' words are searched for secrets, small questions are answered."""
    name = gone()
    nasty = ("lorem@ipsum bearer x. " * 800)[: 16 * 1024]
    await dead(it, answers.STEP, name, tries=6, said={"status": 500, "headers": {}, "body": nasty})
    url = f"http://127.0.0.1:{it.settings['server']['port']}/livez"
    loop = asyncio.get_running_loop()
    parts: list[float] = []
    while len(parts) < 5 and min(parts, default=1) >= 0.5:  # the best of some: others on this machine hold it up, too
        answered_at = [loop.time()]
        large = asyncio.create_task(it.api.get("/deliveries", params={"destination": name, "limit": 200}))
        while not large.done():
            assert (await it.api.get(url)).status_code == 200
            answered_at.append(loop.time())
        assert len((await large).json()["data"]) == answers.STEP
        longest = max(later - earlier for earlier, later in itertools.pairwise(answered_at))
        parts.append(longest / (answered_at[-1] - answered_at[0]))
    assert min(parts) < 0.5, parts
