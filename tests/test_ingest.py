"""One observation, one transaction: what the ops of ingest store, schedule and record."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from receiver.errors import NotFound
from receiver.ingest import Callback, Lane, Polling, Wake
from receiver.ingest.ops import KEPT_BODIES
from receiver.ingest.record import URGENT
from receiver.poll import Claim
from receiver.records import Observation
from receiver.routing import Rule
from tests.rooms import (
    NOW,
    a_task,
    callback,
    deliveries_of,
    events_of,
    later,
    lookup,
    one_batch,
    put,
    rows_of,
    rulebook,
    task_of,
)

if TYPE_CHECKING:
    from datetime import datetime

    from receiver.ingest import Recorded
    from receiver.records import Task
    from receiver.store import Store

pytestmark = [pytest.mark.anyio, pytest.mark.engines]

SUCCESS = '{"task_id":"up-1","status":"3","video_url":"https://x.example/v.mp4"}'
ODD = '{"task_id":"up-2","status":"3","video_url":"https://x.example/v.mp4"}'
PROGRESS = '{"task_id":"up-1","status":"1","progress":"40%"}'


async def put_task(store: Store, state: str = "queued", **over: Any) -> Task:
    """A task that is stored."""
    task = a_task(state, **over)
    await put(store, task)
    return task


# -- callbacks ---------------------------------------------------------------------------------------------------------


async def test_a_success_is_one_event_and_one_delivery(store: Store) -> None:
    """Task, inbox, event and delivery are there together, and the document is the contract's."""
    task = await put_task(store, metadata_json='{"team":"vfx"}', prompt="a cat")
    recorded = await store.run(callback(task.id, SUCCESS, later(9)))
    assert (recorded.verdict, recorded.moved, len(recorded.born.waiting)) == ("accepted", True, 1)
    assert await events_of(store, task.id) == ["task.succeeded"]
    (delivery,) = await deliveries_of(store, task.id)
    assert (delivery.destination, delivery.state, delivery.due_at) == ("sink", "pending", later(9))
    data = orjson.loads(recorded.born.events[0].data_json)
    envelope = data.pop("envelope")
    assert data == {
        "task_id": task.id,
        "upstream_id": "up-1",
        "route": "runway/pro/video2video",
        "state": "succeeded",
        "code": 200,
        "msg": "",
        "via": "callback",
        "confirmed": False,
        "recovered": False,
        "prompt": "a cat",
        "video_url": "https://x.example/v.mp4",
        "poster": None,
        "last_frame": None,
        "failure": None,
        "failure_code": None,
        "metadata": {"team": "vfx"},
        "progress": 100,
        "artifacts": [],
        "created_at": "2026-01-31T12:00:00.000Z",
        "submitted_at": "2026-01-31T12:00:00.000Z",
        "finished_at": "2026-01-31T12:00:09.000Z",
    }
    assert envelope == {"code": 200, "msg": "", "data": orjson.loads(SUCCESS)}


async def test_what_comes_again_is_a_duplicate_and_what_differs_is_late(store: Store) -> None:
    """Neither makes a second event; both are kept raw with their verdict."""
    task = await put_task(store)
    verdicts = [
        (await store.run(callback(task.id, body))).verdict
        for body in (PROGRESS, PROGRESS, SUCCESS, SUCCESS, '{"status":"FAILED"}', PROGRESS)
    ]
    assert verdicts == ["progress", "duplicate", "accepted", "duplicate", "late", "duplicate"]
    assert await events_of(store, task.id) == ["task.running", "task.succeeded"]
    assert rows_of(store, "SELECT verdict FROM inbox ORDER BY id") == [(one,) for one in verdicts]


async def test_a_repeated_body_that_decides_now_is_no_duplicate(store: Store) -> None:
    """The same bytes may come before they can be decided and after: the second time they end the task."""
    task = await put_task(store, "ambiguous")
    body = '{"status":"3","video_url":"https://x.example/v.mp4"}'
    await store.run(callback(task.id, '{"status":"1"}'))
    assert (await store.run(callback(task.id, body))).verdict == "accepted"


async def test_fifty_bodies_are_kept_and_all_are_counted(store: Store) -> None:
    """A leaked URL must not fill the disk."""
    task = await put_task(store)
    async with one_batch(store):
        waiting = [store.writer.run(callback(task.id, f'{{"status":"1","n":{n}}}')) for n in range(KEPT_BODIES + 5)]
    for answer in waiting:
        await answer
    assert (await task_of(store, task.id)).callbacks == KEPT_BODIES + 5
    assert rows_of(store, "SELECT count(*) FROM inbox") == [(KEPT_BODIES,)]
    assert (await store.run(callback(task.id, SUCCESS))).verdict == "accepted"


async def test_a_body_that_makes_no_sense_is_kept_and_asked_about(store: Store) -> None:
    """Raw, flagged, and the task is looked up before all others."""
    task = await put_task(store)
    unreadable = Callback(task.id, b"\xff\x00<html>", "text/html", later(1), rulebook())
    recorded = await store.run(unreadable)
    assert (recorded.verdict, recorded.look) == ("unreadable", True)
    assert (await task_of(store, task.id)).poll_due_at == URGENT
    why = "the body is neither JSON nor a form (content type: text/html)"
    assert rows_of(store, "SELECT raw, detail FROM inbox") == [(b"\xff\x00<html>", why)]


async def test_json_that_tells_of_no_task_is_unreadable(store: Store) -> None:
    """`{}` is no progress: the upstream is asked."""
    task = await put_task(store)
    assert (await store.run(callback(task.id, "{}"))).verdict == "unreadable"
    assert (await task_of(store, task.id)).poll_due_at == URGENT


async def test_an_unreadable_body_wakes_nobody_where_all_is_over(store: Store) -> None:
    """A task that has ended is not looked up again."""
    task = await put_task(store, "succeeded")
    recorded = await store.run(Callback(task.id, b"?", None, NOW, rulebook()))
    assert (recorded.verdict, recorded.look) == ("unreadable", False)
    assert (await task_of(store, task.id)).poll_due_at is None


async def test_an_unknown_task_is_not_found(store: Store) -> None:
    """Pruned or never there: nothing is stored."""
    with pytest.raises(NotFound):
        await store.run(callback("tsk_gone", SUCCESS))
    assert rows_of(store, "SELECT count(*) FROM inbox") == [(0,)]


# -- looking up at once ------------------------------------------------------------------------------------------------


async def test_an_odd_callback_is_looked_up_before_all_others(store: Store) -> None:
    """Longest due first, and nothing is due for longer than this."""
    overdue = await put_task(store, poll_due_at=later(-3600))
    task = await put_task(store)
    assert (await store.run(callback(task.id, ODD, later(1)))).verdict == "odd"
    claimed, _, _ = await store.run(Claim(store, 2, later(1), later(60), rulebook()))
    assert [one.id for one in claimed] == [task.id, overdue.id]


async def test_a_stream_of_odd_callbacks_does_not_put_the_lookup_off(store: Store) -> None:
    """A leaked URL is no lever: the lookup that is due stays due, however many odd bodies come before it is made."""
    task = await put_task(store)
    for n in range(20):
        await store.run(callback(task.id, ODD, later(0.3 * n)))
        assert (await task_of(store, task.id)).poll_due_at == URGENT
    claimed, _, _ = await store.run(Claim(store, 2, later(6), later(60), rulebook()))
    assert [one.id for one in claimed] == [task.id]


async def test_a_stream_of_odd_callbacks_asks_once_a_second(store: Store) -> None:
    """Right after a lookup the next one waits until a second after the last reason to ask."""
    task = await put_task(store)
    await store.run(callback(task.id, ODD, NOW))
    (claimed,), _, _ = await store.run(Claim(store, 2, later(0.1), later(60), rulebook()))
    await store.run(lookup(claimed, Observation("running", "up-1"), later(0.2)))
    await store.run(callback(task.id, ODD, later(0.3)))
    assert (await task_of(store, task.id)).poll_due_at == later(1)
    await store.run(callback(task.id, ODD, later(1.3)))
    assert (await task_of(store, task.id)).poll_due_at == URGENT


async def test_who_asks_while_a_lookup_is_under_way_is_heard(store: Store) -> None:
    """The answer that is on its way may be older than the reason: there is another lookup right after it."""
    task = await put_task(store, poll_due_at=later(60), poll_leased_until=later(60))
    await store.run(callback(task.id, ODD, later(1)))
    assert (await store.run(Claim(store, 2, later(1), later(60), rulebook())))[0] == []
    await store.run(lookup(task, Observation("running", "up-1"), later(2)))
    assert (await task_of(store, task.id)).poll_due_at == later(2)


async def test_a_get_wakes_every_five_seconds_at_most(store: Store) -> None:
    """And `refresh` always."""
    task = await put_task(store)
    assert (await store.run(Wake(task.id, later(1)))).look
    assert not (await store.run(Wake(task.id, later(5.9)))).look
    assert (await store.run(Wake(task.id, later(6)))).look
    assert (await store.run(Wake(task.id, later(6.1), spacing=timedelta(0)))).look
    assert (await task_of(store, task.id)).poll_due_at == later(1)


@pytest.mark.parametrize(("state", "woken"), [("succeeded", False), ("lost", True), ("ambiguous", False)])
async def test_only_what_can_be_asked_is_woken(store: Store, state: str, woken: bool) -> None:
    """Not what has ended, nor what has no id; a lost task may have been found."""
    task = await put_task(store, state)
    assert (await store.run(Wake(task.id, later(1)))).look == woken
    with pytest.raises(NotFound):
        await store.run(Wake(a_task().id, NOW))


# -- lookups and the schedule ------------------------------------------------------------------------------------------


async def looked(store: Store, task: Task, at: datetime, seen: Observation | None = None, **over: Any) -> Recorded:
    """A lookup that was claimed and answered at a time."""
    (claimed,), _, _ = await store.run(Claim(store, 1, at, at + timedelta(seconds=70), rulebook()))
    assert claimed.id == task.id
    return await store.run(lookup(claimed, seen, at, **over))


async def test_lookups_come_further_and_further_apart(store: Store) -> None:
    """The interval times the backoff for each answer, up to the bound."""
    task = await put_task(store, poll_due_at=NOW)
    waits, at = [], NOW
    for _ in range(8):
        due = (await looked(store, task, at, Observation("running", "up-1"))).task.poll_due_at
        assert due is not None
        waits.append(round((due - at).total_seconds(), 3))
        at = due.replace(microsecond=due.microsecond // 1000 * 1000)  # the clock of the service knows no less
    assert waits == [7.5, 11.25, 16.875, 25.312, 37.969, 56.953, 60.0, 60.0]


async def test_the_upstreams_wish_is_heard(store: Store) -> None:
    """`Retry-After` puts the next lookup off."""
    task = await put_task(store, poll_due_at=NOW)
    recorded = await looked(store, task, NOW, answered=False, not_before=timedelta(seconds=300))
    assert recorded.task.poll_due_at == later(300)


MISSING: dict[str, Any] = {"missing": True}


async def lose_it(store: Store, task: Task, answers: str, gap: float = 40.0) -> Task:
    """Lookups, one every `gap` seconds: M for `task_not_exist` from both routes, U for nothing learnt, - for none."""
    for n, answer in enumerate(answers):
        at = later(gap * n)
        recorded = await looked(store, task, at, missing=answer == "M", answered=answer != "-")
        task = recorded.task
        if task.state == "lost":
            break
        await store.run(Wake(task.id, later(gap * (n + 1)), spacing=timedelta(0)))
    return await task_of(store, task.id)


@pytest.mark.parametrize(
    ("answers", "gap", "state"),
    [
        ("MMMM", 40, "queued"),  # four are not five
        ("MMMMM", 40, "lost"),
        ("MMMMM", 20, "queued"),  # 80 s are no grace of 120 s
        ("MMMMMMM", 20, "lost"),
        ("MMM-MM", 40, "lost"),  # no answer is none: it neither counts nor breaks the row
        ("MMMMUM", 40, "queued"),  # not in a row: one of the routes did not say so
        ("MMUMMMMM", 40, "lost"),
    ],
)
async def test_missing_is_believed_after_five_in_a_row(store: Store, answers: str, gap: float, state: str) -> None:
    """Five `task_not_exist` in a row over the grace, of a task that was never shown."""
    task = await put_task(store, callback_expires_at=None, poll_due_at=NOW)
    assert (await lose_it(store, task, answers, gap)).state == state


async def test_whoever_was_shown_once_is_not_lost_by_missing(store: Store) -> None:
    """A callback showed it: it waits for its deadline."""
    task = await put_task(store, callback_expires_at=None, poll_due_at=NOW, shown=True)
    assert (await lose_it(store, task, "MMMMMMMM")).state == "queued"


async def test_a_task_whose_callback_may_come_is_not_lost_by_missing(store: Store) -> None:
    """Its URL is still good."""
    task = await put_task(store, poll_due_at=NOW)
    assert (await lose_it(store, task, "MMMMMMMM")).state == "queued"


async def test_the_deadline_takes_an_answer(store: Store) -> None:
    """Unanswered it postpones; the next answer ends it, once, with one event."""
    task = await put_task(store, poll_due_at=later(25 * 3600))
    at = later(25 * 3600 + 1)
    assert (await looked(store, task, at, answered=False)).task.state == "queued"
    await store.run(Wake(task.id, at, spacing=timedelta(0)))
    assert (await looked(store, task, at, Observation("running", "up-1"))).task.state == "lost"
    assert await events_of(store, task.id) == ["task.running", "task.lost"] or await events_of(store, task.id) == [
        "task.lost"
    ]


async def test_a_success_at_the_deadline_is_no_loss(store: Store) -> None:
    """A lookup past it that says success is the truth; one that lacks the URL yet is asked again, not given up."""
    at = later(26 * 3600)
    for urlless, state in ((False, "succeeded"), (True, "queued")):
        task = await put_task(store, poll_due_at=at)
        url = None if urlless else "https://x.example/v"
        seen = Observation("succeeded", "up-1", oddities=("no-url",) if urlless else (), video_url=url)
        assert (await looked(store, task, at, seen)).task.state == state


async def test_a_success_without_url_ends_after_five_lookups(store: Store) -> None:
    """At the polling interval each, also past the deadline; then it is a success without a video."""
    task = await put_task(store, poll_due_at=later(26 * 3600))
    at, states = later(26 * 3600), []
    seen = Observation("succeeded", "up-1", oddities=("no-url",))
    for _ in range(5):
        recorded = await looked(store, task, at, seen)
        states.append(recorded.task.state)
        if recorded.task.poll_due_at is not None:
            assert recorded.task.poll_due_at - at == timedelta(seconds=5)
            at = recorded.task.poll_due_at
    assert states == ["queued"] * 4 + ["succeeded"]
    assert await events_of(store, task.id) == ["task.succeeded"]


async def test_a_lost_task_comes_back(store: Store) -> None:
    """Our word gives way to the upstream's; the second event says `recovered`."""
    task = await put_task(store, "lost")
    recorded = await store.run(callback(task.id, SUCCESS, later(5)))
    assert orjson.loads(recorded.born.events[0].data_json)["recovered"] is True
    assert (await task_of(store, task.id)).state == "succeeded"
    again = await store.run(callback(task.id, '{"status":"FAILED"}', later(6)))
    assert (again.verdict, again.born.events) == ("late", [])


async def test_a_lost_task_that_lives_is_asked_until_the_truth_is_known(store: Store) -> None:
    """And no longer than any other would be."""
    task = await put_task(store, "lost")
    await store.run(callback(task.id, PROGRESS, later(5)))
    alive = await looked(store, task, later(6), Observation("running", "up-1"))
    assert alive.task.state == "lost"
    assert alive.task.poll_due_at is not None
    past = await looked(store, task, later(26 * 3600), Observation("running", "up-1"))
    assert past.task.poll_due_at is None


async def test_an_ambiguous_task_is_lost_at_its_deadline(store: Store) -> None:
    """Nobody can be asked about it, so the claim itself ends it."""
    task = await put_task(store, "ambiguous", poll_due_at=later(25 * 3600))
    claim = Claim(store, 5, later(25 * 3600), later(26 * 3600), rulebook())
    claimed, (gone,), _ = await store.run(claim)
    assert (claimed, gone.task.id, gone.task.state) == ([], task.id, "lost")
    assert await events_of(store, task.id) == ["task.lost"]


async def test_lookups_keep_the_first_bodies_and_those_that_matter(store: Store) -> None:
    """A task polled for a day does not keep a thousand bodies; the one that ended it is there."""
    task = await put_task(store, poll_due_at=NOW, poll_count=KEPT_BODIES)
    await looked(store, task, NOW, Observation("queued", "up-1"))
    assert rows_of(store, "SELECT count(*) FROM inbox") == [(0,)]
    await store.run(Wake(task.id, later(1), spacing=timedelta(0)))
    await looked(store, task, later(1), Observation("failed", "up-1"))
    assert rows_of(store, "SELECT verdict FROM inbox") == [("accepted",)]


async def test_lookup_of_a_pruned_task_is_not_found(store: Store) -> None:
    """Its row went while the question was out."""
    with pytest.raises(NotFound):
        await store.run(lookup(a_task(), None))


# -- events and deliveries ---------------------------------------------------------------------------------------------


async def test_every_rule_is_a_delivery_or_a_skip(store: Store) -> None:
    """None is forgotten, and the skip says why."""
    rules = rulebook(
        rules=[
            Rule("all", events=("task.*",)),
            Rule("ends"),
            Rule("elsewhere", routes=("runwayml/v1/video_to_video",)),
            Rule("vfx", match=(("metadata.team", ("vfx",)),)),
        ],
        lanes={},
    )
    task = await put_task(store, metadata_json='{"team":"edit"}')
    recorded = await store.run(callback(task.id, SUCCESS, rules=rules))
    assert [one.destination for one in await deliveries_of(store, task.id)] == ["all", "ends"]
    skips = orjson.loads(recorded.born.events[0].skips_json)
    assert [name for name, _ in skips] == ["elsewhere", "vfx"]
    assert all(reason for _, reason in skips)


async def test_only_the_chosen_destinations(store: Store) -> None:
    """The submitter's choice narrows; an empty one means none."""
    rules = rulebook(rules=[Rule("one"), Rule("two")])
    for only, chosen in (('["two"]', ["two"]), ("[]", []), (None, ["one", "two"])):
        task = await put_task(store, only_json=only)
        await store.run(callback(task.id, SUCCESS, rules=rules))
        assert [one.destination for one in await deliveries_of(store, task.id)] == chosen


async def test_what_nobody_asks_for_is_not_even_an_event(store: Store) -> None:
    """Progress and birth are recorded only where a destination wants them; ends always."""
    rules = rulebook(rules=[Rule("ends")])
    task = await put_task(store)
    await store.run(callback(task.id, PROGRESS, rules=rules))
    await store.run(callback(task.id, SUCCESS, rules=rules))
    assert await events_of(store, task.id) == ["task.succeeded"]


async def test_deliveries_are_leased_at_birth_as_far_as_there_is_room(store: Store) -> None:
    """Two places: two are handed over, also of one batch; the third waits in the store."""
    rules = rulebook(room=lambda _name: 2, lanes={"sink": Lane(lease_for=timedelta(seconds=90))})
    tasks = [await put_task(store) for _ in range(3)]
    async with one_batch(store):
        waiting = [store.writer.run(callback(task.id, SUCCESS, later(1), rules)) for task in tasks]
    recorded = [await one for one in waiting]
    assert [len(one.born.leased) for one in recorded] == [1, 1, 0]
    assert [len(one.born.waiting) for one in recorded] == [0, 0, 1]
    delivery, event = recorded[0].born.leased[0]
    assert (delivery.state, delivery.leased_until, delivery.lease_token) == ("leased", later(91), 1)
    assert delivery.event_id == event.id
    assert await deliveries_of(store, tasks[0].id) == [delivery]


async def test_a_first_wait_is_kept(store: Store) -> None:
    """A schedule that does not begin with zero: nothing is handed over, it is due later."""
    rules = rulebook(room=lambda _name: 9, lanes={"sink": Lane(first_wait=timedelta(seconds=5))})
    task = await put_task(store)
    recorded = await store.run(callback(task.id, SUCCESS, NOW, rules))
    assert recorded.born.leased == []
    assert (await deliveries_of(store, task.id))[0].due_at == later(5)


async def test_ids_sort_by_age(store: Store) -> None:
    """Events of one task come back in the order in which they were recorded."""
    task = await put_task(store)
    for n, body in enumerate((PROGRESS, '{"status":"1","progress":"60%"}', SUCCESS)):
        await store.run(callback(task.id, body, later(n)))
    assert await events_of(store, task.id) == ["task.running", "task.progress", "task.succeeded"]


def test_polling_defaults_are_the_contracts() -> None:
    """Contract section 3."""
    polling = Polling()
    given = [polling.callback_grace, polling.interval, polling.max_interval, polling.missing_grace, polling.deadline]
    assert [one.total_seconds() for one in given] == [60, 5, 60, 120, 25 * 3600]
    assert list(itertools.chain([polling.backoff, polling.jitter])) == [1.5, 0.2]


@pytest.mark.parametrize("body", ['{"hello": "world"}', "hello"])
async def test_an_unreadable_callback_shows_all_the_same_that_it_was_taken(store: Store, body: str) -> None:
    """Only the upstream knows the URL: a task that waits to be sent again is not, whatever the body says."""
    waiting = await put_task(store, "pending", upstream_id=None, submit_due_at=later(60))
    sending = await put_task(store, "submitting", upstream_id=None, submit_leased_until=later(60))
    for task in (waiting, sending):
        assert (await store.run(callback(task.id, body))).verdict == "unreadable"
    waiting, sending = await task_of(store, waiting.id), await task_of(store, sending.id)
    assert (waiting.state, waiting.submit_due_at, waiting.shown) == ("ambiguous", None, True)
    assert (sending.state, sending.shown) == ("submitting", True)
