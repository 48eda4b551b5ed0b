"""The sweep: dead leases back, dead senders disowned, homeless deliveries cancelled, and old tasks gone in steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from receiver import sweep
from receiver.errors import StoreUnavailable
from receiver.records import Health, Refusal
from receiver.submit.ops import Accept
from receiver.sweep import Disown, Evict, FreePolls, NoteRefusals, Refusals, Rescue
from tests.rooms import (
    NOW,
    Do,
    Lines,
    a_delivery,
    a_task,
    an_event,
    callback,
    delivery_of,
    entropy,
    events_of,
    later,
    put,
    rows_of,
    rulebook,
    sweeper,
    task_of,
)

if TYPE_CHECKING:
    from receiver.records import Delivery
    from receiver.store import Store

pytestmark = [pytest.mark.anyio, pytest.mark.engines]


async def delivery(store: Store, destination: str = "sink", **over: Any) -> Delivery:
    """A delivery of an ended task, stored with all that belongs to it."""
    task = a_task("succeeded")
    event = an_event(task)
    one = a_delivery(event, destination, **over)
    await put(store, task, event, one)
    return one


# -- leases ------------------------------------------------------------------------------------------------------------


async def test_an_expired_lease_is_taken_back(store: Store) -> None:
    """Due at once, its token as it was: whoever had it writes nothing more, since the next lease is another."""
    gone = await delivery(store, state="leased", due_at=None, leased_until=later(-1), lease_token=4, attempt_count=2)
    alive = await delivery(store, state="leased", due_at=None, leased_until=later(1), lease_token=4)
    rescued = await store.run(Rescue(store, NOW))
    assert [one.id for one in rescued] == [gone.id]
    row = await delivery_of(store, gone.id)
    assert (row.state, row.due_at, row.leased_until, row.lease_token, row.attempt_count) == ("pending", NOW, None, 4, 2)
    assert await delivery_of(store, alive.id) == alive


async def test_a_round_does_its_work_though_nobody_can_be_asked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers may be out of connections while the writer has one: dead leases are taken back all the same."""

    async def unanswered() -> int:
        raise StoreUnavailable("too many clients already")

    monkeypatch.setattr(store, "end_stopped", unanswered)
    gone = await delivery(store, state="leased", due_at=None, leased_until=later(-1))
    with pytest.raises(StoreUnavailable):
        await sweeper(store, Lines(), [NOW]).round()
    assert (await delivery_of(store, gone.id)).state == "pending"


async def test_a_start_takes_back_everything(store: Store) -> None:
    """One process a file: whatever is leased, sent or asked at its start belongs to a dead one, in any number."""
    many = sweep.STEP + 5
    tasks = [a_task("submitting", submit_leased_until=later(900)) for _ in range(many)]
    polled = a_task(poll_due_at=later(900), poll_leased_until=later(900))
    event = an_event(tasks[0])
    held = [a_delivery(event, state="leased", due_at=None, leased_until=later(900)) for _ in range(many)]
    await put(store, *tasks, polled, event, *held)
    log, woken = Lines(), []
    await sweeper(store, log, [NOW], wake_deliver=lambda: woken.append(1)).recover()
    assert rows_of(store, "SELECT state, count(*) FROM deliveries GROUP BY state") == [("pending", many)]
    assert rows_of(store, "SELECT state, count(*) FROM tasks GROUP BY state") == [("ambiguous", many), ("queued", 1)]
    assert (await task_of(store, polled.id)).poll_due_at == NOW
    assert (len(log.of("lease.rescued")), len(log.of("task.submit_ambiguous"))) == (many, many)
    assert woken


async def test_freed_polls_are_those_that_were_claimed(store: Store) -> None:
    """What is due by itself keeps its time, what has ended stays ended."""
    claimed = a_task(poll_due_at=later(70), poll_leased_until=later(70))
    waiting, ended = a_task(poll_due_at=later(50)), a_task("succeeded")
    await put(store, claimed, waiting, ended)
    assert await store.run(FreePolls(store, NOW)) == 1
    freed = await task_of(store, claimed.id)
    assert (freed.poll_due_at, freed.poll_leased_until) == (NOW, None)
    assert (await task_of(store, waiting.id)).poll_due_at == later(50)
    assert (await task_of(store, ended.id)).poll_due_at is None


# -- senders -----------------------------------------------------------------------------------------------------------


async def test_a_task_that_lost_its_sender_is_ambiguous(store: Store) -> None:
    """It may have been sent: never `pending` again. Its whole body is not needed any more, whatever becomes of it."""
    task = a_task("submitting", submit_leased_until=later(-1))
    living = a_task("submitting", submit_leased_until=later(1))
    await store.run(Accept(task, b"x" * 1000))
    await store.run(Accept(living, b"y"))
    (recorded,) = await store.run(Disown(store, NOW, rulebook()))
    assert (recorded.task.id, recorded.task.state) == (task.id, "ambiguous")
    assert recorded.task.poll_due_at == later(25 * 3600)
    assert (await task_of(store, living.id)).state == "submitting"
    assert rows_of(store, "SELECT task_id FROM payloads") == [(living.id,)]


async def test_a_disowned_task_is_decided_by_what_was_kept(store: Store) -> None:
    """An early callback told its id, or its end."""
    named, nameless = a_task("submitting", submit_leased_until=later(-1)), a_task("submitting")
    await put(store, named, nameless)
    await store.run(callback(named.id, '{"task_id":"up-5","status":"3","video_url":"https://x.example/v"}'))
    await store.run(callback(nameless.id, '{"status":"2","fail_reason":"no"}'))
    await store.run(Disown(store, NOW, rulebook(), all_of_them=True))
    adopted = await task_of(store, named.id)
    assert (adopted.state, adopted.upstream_id) == ("queued", "up-5")
    assert (await task_of(store, nameless.id)).state == "failed"
    assert await events_of(store, nameless.id) == ["task.failed"]


MISSED = Do(lambda unit: unit.put_health(Health("gone", missing_since_at=later(-25 * 3600))))
"""The destination was first found missing a day ago."""

# -- homeless deliveries -----------------------------------------------------------------------------------------------


async def test_a_delivery_whose_destination_has_left_is_cancelled_after_a_day(store: Store) -> None:
    """A day from when it was first found missing, however long it waited before; not one that is leased."""
    old = {"due_at": later(-72 * 3600)}
    gone, here = await delivery(store, "gone", **old), await delivery(store, "sink", **old)
    leased = await delivery(store, "gone", state="leased", due_at=None, leased_until=later(5))
    for at in (NOW, later(24 * 3600 - 1)):
        assert await store.run(Evict(store, ["sink"], at)) == []
    cancelled = await store.run(Evict(store, ["sink"], later(24 * 3600)))
    assert [one.id for one in cancelled] == [gone.id]
    assert (await delivery_of(store, gone.id)).finished_at == later(24 * 3600)
    states = [(await delivery_of(store, one.id)).state for one in (gone, here, leased)]
    assert states == ["cancelled", "pending", "leased"]


async def test_a_destination_that_comes_back_is_given_its_day_again(store: Store) -> None:
    """Removed by mistake and put back: what waits for it goes out, and the clock begins anew should it leave again."""
    waits = await delivery(store, "moved", due_at=NOW)
    for at, names in ((NOW, []), (later(23 * 3600), ["moved"]), (later(25 * 3600), []), (later(48 * 3600), [])):
        assert await store.run(Evict(store, names, at)) == []
    assert [one.id for one in await store.run(Evict(store, [], later(49 * 3600)))] == [waits.id]


# -- refusals ----------------------------------------------------------------------------------------------------------


async def test_the_last_thousand_refusals_are_kept(store: Store) -> None:
    """More are counted, and dropped."""
    refusals = Refusals(entropy)
    for n in range(sweep.KEPT_REFUSALS + 50):
        refusals.note("forged", "POST", n, later(n))
    assert refusals.counts["forged"] == sweep.KEPT_REFUSALS + 50
    drained = refusals.drain()
    assert len(drained) == sweep.KEPT_REFUSALS
    assert refusals.drain() == []
    await store.run(NoteRefusals(store, drained))
    more = [Refusal(f"ref_z{n:02}", later(9999), "expired", "PUT", 0) for n in range(10)]
    await store.run(NoteRefusals(store, more))
    ((count, newest, oldest),) = rows_of(store, "SELECT count(*), max(id), min(size) FROM refusals WHERE size > 0")
    assert count + 10 == sweep.KEPT_REFUSALS
    assert newest < "ref_z"
    assert oldest == 60  # of 1,050 the first 50 never came in, ten more made room
    rows = await store.read(lambda connection: store.events.refused(connection, 3))
    assert [row.id for row in rows] == ["ref_z09", "ref_z08", "ref_z07"]


async def test_a_method_from_outside_is_cut(store: Store) -> None:
    """It is a stranger's word, and the column is short."""
    refusals = Refusals(entropy)
    refusals.note("forged", "X" * 500, 1, NOW)
    assert refusals.drain()[0].method == "X" * 10


# -- the round ---------------------------------------------------------------------------------------------------------


async def test_a_round_does_one_of_everything(store: Store) -> None:
    """And says each in the log."""
    log, woken = Lines(), []
    loop = sweeper(store, log, [NOW], wake_deliver=lambda: woken.append(1))
    gone = await delivery(store, state="leased", due_at=None, leased_until=later(-1))
    homeless = await delivery(store, "gone", due_at=later(-25 * 3600))
    await store.run(MISSED)
    task = a_task("submitting", submit_leased_until=later(-1))
    await put(store, task)
    loop.refusals.note("expired", "POST", 3, NOW)
    assert await loop.round() is False
    assert [line["delivery_id"] for line in log.of("lease.rescued")] == [gone.id]
    assert [line["delivery_id"] for line in log.of("delivery.cancelled")] == [homeless.id]
    assert [line["task_id"] for line in log.of("task.submit_ambiguous")] == [task.id]
    assert rows_of(store, "SELECT reason, size FROM refusals") == [("expired", 3)]
    assert woken == [1]


async def test_homeless_deliveries_are_looked_for_once_a_minute(store: Store) -> None:
    """That reads all that is pending, and nobody waits for it: a backlog must not be read every second."""
    log, now = Lines(), [NOW]
    loop = sweeper(store, log, now)
    await loop.round()
    await delivery(store, "gone", due_at=later(-25 * 3600))
    await store.run(MISSED)
    now[0] = later(1)
    await loop.round()
    assert log.of("delivery.cancelled") == []
    now[0] = later(61)
    await loop.round()
    assert len(log.of("delivery.cancelled")) == 1
