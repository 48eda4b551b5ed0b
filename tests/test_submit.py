"""Submissions: stored before they are sent, never sent twice, sorted by their answer, one gate a route."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest
from msgspec.structs import replace

from receiver import app
from receiver.errors import Conflict, NotFound
from receiver.ingest import After
from receiver.ingest.record import URGENT
from receiver.records import Observation
from receiver.store import ReadsTask
from receiver.submit import Gates, Sender
from receiver.submit.ops import Accept, Adopt, Answered, Cancel, Claim, Terms
from receiver.sweep import Disown
from receiver.upstream.base import Ambiguous, NotTaken, Refused, Taken
from tests import databases
from tests.rooms import (
    NOW,
    PRO,
    V2V,
    Lines,
    a_task,
    callback,
    events_of,
    later,
    lookup,
    on_disk,
    one_batch,
    put,
    rows_of,
    rulebook,
    task_of,
    until,
)
from tests.world import script, world

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from receiver.ingest import Recorded
    from receiver.records import Task
    from receiver.store import Store
    from receiver.upstream.base import Submission
    from tests.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.engines]

TERMS = Terms(
    signing_keys=("k" * 32,),
    callback_base="https://hooks.example.com",
    callback_ttl=timedelta(hours=48),
    timeout=30.0,
    max_concurrency=8,
    retry=[timedelta(seconds=s) for s in (1, 2, 5)],
    deadline=timedelta(hours=6),
)
SUCCESS = '{"task_id":"up-1","status":"3","video_url":"https://x.example/v.mp4"}'
NAMELESS = '{"status":"3","video_url":"https://x.example/v.mp4"}'


async def sent(store: Store, **over: Any) -> Task:
    """A task that is being sent, with its body."""
    task = a_task("submitting", **over)
    await store.run(Accept(task, b'{"video":"data:video/mp4;base64,AAAA"}'))
    return task


async def answered(store: Store, task: Task, answer: Submission, at: datetime = NOW) -> Recorded:
    """The upstream's answer, stored."""
    return await store.run(Answered(task, answer, None, at, TERMS, rulebook()))


def payloads(store: Store) -> int:
    """How many whole bodies are kept."""
    return int(rows_of(store, "SELECT count(*) FROM payloads")[0][0])


# -- what an answer makes of a task ------------------------------------------------------------------------------------


async def test_taken(store: Store) -> None:
    """Queued under its id, looked up after the grace; the whole body is not needed any more."""
    task = await sent(store)
    after = (await answered(store, task, Taken("up-9", None), later(2))).task
    assert (after.state, after.upstream_id, after.submitted_at) == ("queued", "up-9", later(2))
    assert (after.poll_due_at, after.submit_leased_until, payloads(store)) == (later(62), None, 0)
    assert await events_of(store, task.id) == ["task.queued"]


async def test_refused(store: Store) -> None:
    """Rejected; an event only where the caller was told 202 and has no refusal in hand."""
    for deferred, events in ((False, []), (True, ["task.rejected"])):
        task = await sent(store, deferred=deferred)
        after = (await answered(store, task, Refused(400, "bad ratio", account=False))).task
        assert (after.state, after.msg, after.failure, after.code) == ("rejected", "bad ratio", "bad ratio", 500)
        assert await events_of(store, task.id) == events
    assert payloads(store) == 0


async def test_refused_for_our_account(store: Store) -> None:
    """A queued one waits for the last wait of `submit_retry`; who waits for the answer hears it."""
    queued = (await answered(store, await sent(store, deferred=True), Refused(502, "no quota", account=True))).task
    assert (queued.state, queued.submit_due_at, queued.submit_attempts) == ("pending", later(5), 1)
    direct = (await answered(store, await sent(store), Refused(502, "no quota", account=True))).task
    assert direct.state == "rejected"


@pytest.mark.parametrize(
    ("attempts", "wish", "wait"), [(0, None, 1), (1, None, 2), (2, None, 5), (9, None, 5), (0, 60.0, 60), (9, 1.0, 5)]
)
async def test_not_taken(store: Store, attempts: int, wish: float | None, wait: int) -> None:
    """Sent again after its wait, never before `Retry-After`; its body is kept and its submitter will get an event."""
    task = await sent(store, submit_attempts=attempts)
    after = (await answered(store, task, NotTaken("429", wish))).task
    assert (after.state, after.submit_due_at, after.submit_leased_until) == ("pending", later(wait), None)
    assert (after.submit_attempts, after.deferred, payloads(store)) == (attempts + 1, True, 1)


async def test_not_taken_for_too_long(store: Store) -> None:
    """`submit_deadline` counts from the first try; what would be tried after it is rejected, with an event."""
    task = await sent(store, submit_first_at=later(-6 * 3600 + 1))
    after = (await answered(store, task, NotTaken("429", None))).task
    assert (after.state, after.submit_due_at) == ("rejected", None)
    assert "submit_deadline" in after.msg
    assert await events_of(store, task.id) == ["task.rejected"]
    assert payloads(store) == 0


async def test_ambiguous(store: Store) -> None:
    """Never sent again; lost at the deadline unless a callback or a person tells its id."""
    task = await sent(store)
    after = (await answered(store, task, Ambiguous("hang"))).task
    assert (after.state, after.poll_due_at, after.submit_due_at) == ("ambiguous", later(25 * 3600), None)
    assert payloads(store) == 0


@pytest.mark.parametrize(
    ("body", "answer", "state", "upstream_id", "due"),
    [
        (SUCCESS, Taken("up-1", None), "succeeded", "up-1", None),
        (SUCCESS, Taken("up-2", None), "queued", "up-2", URGENT),
        (NAMELESS, Taken("up-1", None), "succeeded", "up-1", None),
        (SUCCESS, Ambiguous("hang"), "queued", "up-1", URGENT),
        (NAMELESS, Ambiguous("hang"), "succeeded", None, None),
        (SUCCESS, NotTaken("429", None), "queued", "up-1", URGENT),
        (NAMELESS, Refused(400, "no", account=False), "succeeded", None, None),
        ('{"status":"1"}', NotTaken("429", None), "ambiguous", None, later(25 * 3600)),
        ('{"status":"1"}', Refused(400, "no", account=False), "ambiguous", None, later(25 * 3600)),
        ('{"status":"1"}', Taken("up-1", None), "queued", "up-1", later(61)),
    ],
)
async def test_a_callback_before_the_answer(
    store: Store, body: str, answer: Submission, state: str, upstream_id: str | None, due: datetime | None
) -> None:
    """It is decided with the answer; where the upstream spoke of the task, no answer makes it be sent again."""
    task = await sent(store)
    await store.run(callback(task.id, body))
    after = (await answered(store, task, answer, later(1))).task
    assert (after.state, after.upstream_id, after.poll_due_at, after.held_json) == (state, upstream_id, due, None)
    assert payloads(store) == 0
    ends = [kind for kind in await events_of(store, task.id) if kind != "task.queued"]
    assert ends == (["task.succeeded"] if state == "succeeded" else [])
    assert after.submit_due_at is None


async def test_the_answer_of_a_sender_that_was_given_up(store: Store) -> None:
    """It was called ambiguous meanwhile; that the upstream took it is still the truth, and its id is paid for."""
    task = await sent(store)
    await store.run(Disown(store, later(61), rulebook()))
    assert (await task_of(store, task.id)).state == "ambiguous"
    assert (await answered(store, task, NotTaken("429", None))).task.state == "ambiguous"
    after = (await answered(store, task, Taken("up-9", None), later(70))).task
    assert (after.state, after.upstream_id) == ("queued", "up-9")


async def test_an_answer_that_comes_too_late_changes_nothing(store: Store) -> None:
    """Somebody cancelled it meanwhile, or a callback gave it its id."""
    for state in ("cancelled", "queued", "succeeded"):
        task = await sent(store)
        now = replace(a_task(state), id=task.id)
        await store.run(_Put(now))
        after = (await answered(store, task, Taken("up-9", None))).task
        assert (after.state, after.upstream_id) == (state, "up-1")


class _Put(ReadsTask):
    """The op that puts a task as it is."""

    def __init__(self, task: Task) -> None:
        self.task, self.task_id = task, task.id

    def apply(self, unit: Any) -> None:
        """Stage it."""
        unit.put_task(self.task)


# -- the queue is the table --------------------------------------------------------------------------------------------


async def test_what_waits_is_claimed_in_order_up_to_the_first_that_must_wait(store: Store) -> None:
    """The oldest is the gate: those behind it do not overtake it, other routes are not held up."""
    tasks = [a_task("pending", created_at=later(n), submit_due_at=later(30 if n == 2 else 0)) for n in range(4)]
    other = a_task("pending", route=V2V)
    await put(store, *tasks, other)
    claim = Claim(store, PRO, 8, later(10), later(70))
    claimed, due, _ = await store.run(claim)
    assert [task.id for task, _ in claimed] == [tasks[0].id, tasks[1].id]
    assert due == later(30)
    assert [task.id for task, _ in (await store.run(dataclasses.replace(claim, route=V2V)))[0]] == [other.id]


async def test_a_claim_takes_the_whole_body_and_a_lease(store: Store) -> None:
    """What the row abridges is sent whole; the first try is noted once."""
    task = a_task("pending", submit_first_at=None)
    await store.run(Accept(task, b'{"whole":true}'))
    ((claimed, body),), due, _ = await store.run(Claim(store, PRO, 1, later(10), later(70)))
    assert (claimed.state, claimed.submit_leased_until, claimed.submit_first_at) == ("submitting", later(70), later(10))
    assert (body, due) == (b'{"whole":true}', None)
    assert (await store.run(Claim(store, PRO, 1, later(10), later(70))))[0] == []


async def test_a_claim_that_came_to_nothing_puts_nothing_back(store: Store) -> None:
    """Two instances looked in the same millisecond, and the COMMIT of one was lost: what the other sends stays sent."""
    draws, stands = iter([0.1, 0.2]), a_task("pending")
    await put(store, stands)
    log, gates = cast("Any", Lines()), Gates(lambda: NOW, 8, TERMS.retry)
    rules = rulebook(draw=lambda: next(draws))
    sender = Sender(store, cast("Any", None), rules, TERMS, After(log), log, lambda: NOW, gates)
    withdrawn = replace(stands, state="submitting", submit_due_at=None, submit_leased_until=sender.lease(NOW))
    [[sending, _]], *_ = await store.run(Claim(store, PRO, 1, NOW, sender.lease(NOW)))
    sender.withdraw(withdrawn)
    await asyncio.gather(*sender._withdrawing)
    assert await task_of(store, stands.id) == sending


async def test_one_task_is_claimed_by_one(store: Store) -> None:
    """Two claims in one batch do not both send it: it would be paid twice."""
    await put(store, a_task("pending"))
    claim = Claim(store, PRO, 8, later(1), later(60))
    async with one_batch(store):
        first, second = store.writer.run(claim), store.writer.run(claim)
    assert [len((await one)[0]) for one in (first, second)] == [1, 0]


async def test_a_limit_leaves_the_rest_due(store: Store) -> None:
    """The claim says that there is more."""
    await put(store, *(a_task("pending", created_at=later(n)) for n in range(3)))
    claimed, due, _ = await store.run(Claim(store, PRO, 2, later(10), later(60)))
    assert (len(claimed), due) == (2, NOW)


# -- by hand -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["pending", "ambiguous", "queued", "running"])
async def test_what_waits_or_renders_can_be_cancelled(store: Store, state: str) -> None:
    """Once, with its event; nothing of it is due any more."""
    task = a_task(state)
    await store.run(Accept(task, b"body"))
    after = (await store.run(Cancel(task.id, later(1), rulebook()))).task
    assert (after.state, after.poll_due_at, after.submit_due_at) == ("cancelled", None, None)
    assert await events_of(store, task.id) == ["task.cancelled"]
    assert payloads(store) == 0
    with pytest.raises(Conflict, match="cancelled"):
        await store.run(Cancel(task.id, later(2), rulebook()))


@pytest.mark.parametrize("state", ["submitting", "succeeded", "lost", "rejected"])
async def test_the_rest_cannot(store: Store, state: str) -> None:
    """It is on its way, or over."""
    task = a_task(state)
    await put(store, task)
    with pytest.raises(Conflict, match=state):
        await store.run(Cancel(task.id, later(1), rulebook()))
    with pytest.raises(NotFound):
        await store.run(Cancel(a_task().id, NOW, rulebook()))


@pytest.mark.parametrize(("state", "after"), [("ambiguous", "queued"), ("lost", "lost")])
async def test_an_id_by_hand(store: Store, state: str, after: str) -> None:
    """It is looked up at once; a lost one stays lost until the upstream says more."""
    task = a_task(state, upstream_id=None)
    await put(store, task)
    recorded = await store.run(Adopt(task.id, "up-7", later(1), rulebook()))
    assert (recorded.task.state, recorded.task.upstream_id, recorded.look) == (after, "up-7", True)
    assert recorded.task.poll_due_at == URGENT


async def test_an_answer_about_the_old_id_says_nothing(store: Store) -> None:
    """It was asked for before the task was given another id by hand, and came after that."""
    task = a_task("lost", upstream_id="up-1")
    await put(store, task)
    under_way = lookup(task, Observation("succeeded", "up-1", video_url="https://x.example/v.mp4"), later(2))
    await store.run(Adopt(task.id, "up-7", later(1), rulebook()))
    assert not (await store.run(under_way)).moved
    assert (await task_of(store, task.id)).state == "lost"
    assert await events_of(store, task.id) == []


@pytest.mark.parametrize("state", ["pending", "submitting", "queued", "running", "succeeded", "rejected"])
async def test_no_other_task_is_given_an_id(store: Store, state: str) -> None:
    """409: it has one, or will."""
    task = a_task(state)
    await put(store, task)
    with pytest.raises(Conflict, match=state):
        await store.run(Adopt(task.id, "up-7", NOW, rulebook()))
    with pytest.raises(NotFound):
        await store.run(Adopt(a_task().id, "up-7", NOW, rulebook()))


# -- through the service -----------------------------------------------------------------------------------------------


def with_upstream(**settings: Any) -> Callable[[dict[str, Any]], None]:
    """A change of `[upstream]`."""
    return lambda given: given["upstream"].update(settings)


async def test_a_timeout_of_odd_length_loses_no_answer(tmp_path: Path) -> None:
    """Times are stored to the millisecond; a lease with more digits than that must still be known as ours."""
    async with world(tmp_path, change=with_upstream(timeout=21.23456)) as it:
        answer = await it.submit()
        assert (answer.status_code, answer.json()["state"]) == (201, "queued")


async def test_a_refusal_in_the_queue_is_told_to_who_waits_for_it(tmp_path: Path) -> None:
    """No slot is free, so it stands in the queue; its caller still hears the upstream's own words, not a 202."""
    async with world(tmp_path, change=with_upstream(max_concurrency=1)) as it:
        first = asyncio.create_task(it.submit(prompt=script(submit_delay=0.3)))
        await it.eventually(lambda: _some(it))
        refused = await it.submit(prompt=script(submit="400"))
        assert refused.status_code == 400, refused.text
        assert refused.json()["type"] == "/docs/problems/upstream-refused"
        assert refused.json()["upstream"]["status"] == 400
        assert (await first).status_code == 201
        assert await it.state(refused.json()["task_id"]) == "rejected"


async def _some(it: World) -> bool:
    assert it.service is not None
    return bool(it.service.submitter.sender._sending)


async def test_a_throttled_route_waits_behind_its_oldest(tmp_path: Path) -> None:
    """One is put back; those after it are queued, go in order of creation once it is taken, and other routes go on."""
    async with world(tmp_path, change=with_upstream(submit_retry=["1h"])) as it:
        first = await it.submit(prompt=script(submit="429", submit_times=2))
        assert (first.status_code, first.json()["state"]) == (202, "pending")
        behind = [await it.submit(prompt=script()) for _ in range(3)]
        assert [one.status_code for one in behind] == [202] * 3
        assert (await it.submit(V2V)).status_code == 201
        ready = await it.api.get(f"http://127.0.0.1:{it.settings['server']['port']}/readyz")
        assert (ready.status_code, "wait" in ready.text) == (503, True)
        ids = [one.json()["id"] for one in (first, *behind)]
        await the_hour_is_over(it)
        await it.eventually(lambda: tries(it, ids[0], 2))
        assert [await it.state(task_id) for task_id in ids] == ["pending"] * 4
        await the_hour_is_over(it)
        for task_id in ids:
            await it.ended(task_id)
        times = [(await it.task(task_id))["submitted_at"] for task_id in ids]
        assert times == sorted(times)
        assert [len(it.renders(await it.task(task_id))) for task_id in ids] == [1] * 4
        ready = await it.api.get(f"http://127.0.0.1:{it.settings['server']['port']}/readyz")
        assert ready.status_code == 200, ready.text


async def the_hour_is_over(it: World) -> None:
    """What a 429 made wait for an hour may be sent now."""
    assert it.service is not None
    store, gates = it.service.store, it.service.submitter.gates
    gate = gates._gates[PRO]
    await until(lambda: gate.until is not None and not gate.probing)  # its answer is heard, not only stored
    on_disk(store, "UPDATE tasks SET submit_due_at = 1 WHERE state = 'pending'")
    gate.until = app.clock()
    gates.freed.set()


async def tries(it: World, task_id: str, count: int) -> bool:
    """It was sent so often, and put back."""
    assert it.service is not None
    found = rows_of(it.service.store, f"SELECT submit_attempts, state FROM tasks WHERE id = '{task_id}'")
    return found == [(count, "pending")]


async def test_nothing_that_waits_is_no_trouble(tmp_path: Path) -> None:
    """The one that was throttled is cancelled: the service is ready again."""
    async with world(tmp_path, change=with_upstream(submit_retry=["1h"])) as it:
        task_id = (await it.submit(prompt=script(submit="429"))).json()["id"]
        url = f"http://127.0.0.1:{it.settings['server']['port']}/readyz"
        assert (await it.api.get(url)).status_code == 503
        assert (await it.api.post(f"/tasks/{task_id}/cancel")).status_code == 200
        await the_hour_is_over(it)

        async def ready() -> bool:
            return (await it.api.get(url)).status_code == 200

        await it.eventually(ready)


async def test_a_queue_outlives_a_restart(tmp_path: Path) -> None:
    """What waits is a row: the next process sends it, once."""
    async with world(tmp_path, change=with_upstream(submit_retry=["200ms"])) as it:
        task_id = (await it.submit(prompt=script(submit="429", submit_times=1))).json()["id"]
        await it.restart()
        await it.whole(task_id)


async def test_respond_async_is_at_once(tmp_path: Path) -> None:
    """202 `pending`, whatever the upstream would say; then it goes its way."""
    async with world(tmp_path) as it:
        answer = await it.api.post(
            "/tasks",
            json={"route": PRO, "input": {"video": "https://e.example/a.mp4", "prompt": script(submit_delay=0.3)}},
            headers={"prefer": "respond-async, wait=10"},
        )
        assert (answer.status_code, answer.json()["state"]) == (202, "pending")
        await it.whole(answer.json()["id"])


async def test_an_answer_outlives_an_outage_of_the_store(tmp_path: Path) -> None:
    """The upstream took it while the database was away: its id is stored as soon as that is back."""
    async with world(tmp_path) as it:
        assert it.service is not None
        writer = it.service.store.writer
        submitting = asyncio.create_task(it.submit(prompt=script(submit_delay=0.2)))
        await it.eventually(lambda: _some(it))

        async def failed() -> bool:
            return writer.failure is not None

        with databases.outage(it.service.store):
            await it.eventually(failed)
            await it.eventually(lambda: _taken(it))
        answer = await submitting
        assert answer.status_code == 201, answer.text
        await it.whole(answer.json()["id"])


async def _taken(it: World) -> bool:
    return bool(it.upstream.tasks)
