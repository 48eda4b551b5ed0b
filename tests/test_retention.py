"""Retention: what is old goes with all that hangs on it, in bounded steps; what must stay is passed over till later."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from receiver import sweep
from receiver.ingest import Born, record_operator
from receiver.records import Inbox
from receiver.routing import Rule
from receiver.store.rows import to_ms
from receiver.sweep import Prune
from tests import databases
from tests.plans import walked
from tests.rooms import (
    NOW,
    Do,
    Lines,
    a_delivery,
    a_task,
    an_attempt,
    an_event,
    later,
    put,
    rows_of,
    rulebook,
    sweeper,
)

if TYPE_CHECKING:
    from datetime import datetime

    from receiver.records import Delivery, Event, Task
    from receiver.store import Store, Unit

pytestmark = [pytest.mark.anyio, pytest.mark.engines]


async def old_task(store: Store, delivered: str | None = "delivered", **over: Any) -> Task:
    """A task of long ago with one row in every table."""
    at = NOW - timedelta(days=40)
    task = a_task("succeeded", **{"created_at": at, "finished_at": at, **over})
    event = an_event(task)
    await put(store, task, event)

    def stage(unit: Unit) -> None:
        unit.add_payload(task.id, b"x")
        unit.add_inbox(Inbox(f"obs_{task.id}", task.id, "poll", at, "accepted", "", None, b"", b"{}"))
        if delivered is not None:
            ended = delivered in {"delivered", "dead", "cancelled"}
            one = a_delivery(
                event,
                state=delivered,
                due_at=at if delivered == "pending" else None,
                leased_until=at if delivered == "leased" else None,
                finished_at=at if ended else None,
            )
            unit.add_delivery(one)
            unit.add_attempt(an_attempt(one, at=at))

    await store.run(Do(stage))
    return task


TABLES = ("tasks", "payloads", "inbox", "events", "deliveries", "attempts")


def counts(store: Store) -> list[int]:
    """Rows of each table."""
    return [rows_of(store, f"SELECT count(*) FROM {table}")[0][0] for table in TABLES]


async def pruned(store: Store, before: datetime) -> int:
    """How many a step of retention takes."""
    return (await store.run(Prune(store, before))).gone


async def test_what_is_old_goes_with_all_that_hangs_on_it(store: Store) -> None:
    """Every table; and what is young stays whole."""
    await old_task(store)
    young = await old_task(store, created_at=later(-60), finished_at=later(-60))
    assert await pruned(store, NOW - timedelta(days=30)) == 1
    assert counts(store) == [1] * 6
    assert rows_of(store, "SELECT id FROM tasks") == [(young.id,)]
    assert await pruned(store, NOW - timedelta(days=30)) == 0


@pytest.mark.parametrize("state", ["pending", "leased"])
async def test_what_is_still_to_be_delivered_stays(store: Store, state: str) -> None:
    """However old: no event is dropped for its age."""
    await old_task(store, state)
    assert await pruned(store, NOW) == 0
    assert counts(store) == [1] * 6


@pytest.mark.parametrize(
    "over",
    [
        {"state": "queued", "finished_at": None},
        {"state": "ambiguous", "finished_at": None},
        {"finished_at": later(-60)},  # long ago begun, just ended
    ],
)
async def test_what_has_not_ended_or_only_now_stays(store: Store, over: dict[str, Any]) -> None:
    """Age counts from the end."""
    at = NOW - timedelta(days=40)
    await put(store, a_task(**{"state": "succeeded", "created_at": at, "finished_at": at, **over}))
    assert await pruned(store, NOW - timedelta(days=30)) == 0


async def test_events_of_no_task_go_too(store: Store) -> None:
    """By their own age, once delivered, with their deliveries and attempts; those that are younger stay."""
    old, young, going = NOW - timedelta(days=31), NOW - timedelta(days=1), NOW - timedelta(days=32)
    made = {}
    for at, state in ((old, "delivered"), (young, "delivered"), (going, "pending")):
        born = Born()
        rules = rulebook(rules=[Rule("sink", events=("destination.paused",))])
        op = Do(partial(record_operator, kind="destination.paused", rules=rules, now=at, into=born, reason="x"))
        await store.run(op)
        [event], [delivery] = born.events, born.waiting
        assert (event.of_task, delivery.of_task, str(event.task_id)) == (None, None, str(event.id))
        ended = replace(delivery, state=state, due_at=at if state == "pending" else None)
        await store.run(Do(lambda unit, ended=ended: unit.put_delivery(ended)))  # type: ignore[misc]
        made[at] = event.id
    assert await pruned(store, NOW - timedelta(days=30)) == 1
    left = {one for (one,) in rows_of(store, "SELECT id FROM events")}
    assert left == {made[young], made[going]}
    assert len(rows_of(store, "SELECT 1 FROM deliveries")) == 2


async def held_tasks(store: Store, count: int) -> list[Delivery]:
    """Old tasks, a second apart, whose deliveries wait."""
    made = []
    rows: list[Task | Event | Delivery] = []
    for number in range(count):
        at = NOW - timedelta(days=40) + timedelta(seconds=number)
        task = a_task("succeeded", created_at=at, finished_at=at)
        event = an_event(task)
        made.append(a_delivery(event))
        rows += [task, event, made[-1]]
    await put(store, *rows)
    return made


async def test_what_must_stay_is_passed_over_in_bounded_steps(store: Store) -> None:
    """However many wait for a destination: no step looks at more than its share, and what is behind them is reached."""
    await held_tasks(store, 2 * sweep.STEP + 7)
    free = await old_task(store, created_at=later(-35 * 86400), finished_at=later(-35 * 86400))
    place, steps = sweep.BEGIN, []
    for _ in range(4):
        gone, looked, place = await store.run(Prune(store, NOW - timedelta(days=30), place))
        steps.append((gone, looked))
    # Those of one millisecond are looked at again: they might be more than a step.
    assert steps == [(0, sweep.STEP), (0, sweep.STEP), (1, 10), (0, 0)]
    assert place.tasks == to_ms(free.created_at)


async def test_what_had_to_stay_goes_with_the_next_look_back(store: Store) -> None:
    """In between retention only goes on: what grows old is taken at once, what was passed over waits for its turn."""
    [first, second] = await held_tasks(store, 2)
    log, now = Lines(), [NOW]
    loop = sweeper(store, log, now)
    await loop.round()
    for one in (first, second):
        await store.run(Do(lambda unit, one=one: unit.put_delivery(replace(one, state="dead", due_at=None))))  # type: ignore[misc]
    fresh = await old_task(store, created_at=later(-30 * 86400), finished_at=later(-30 * 86400))
    now[0] = later(1)
    await loop.round()
    left = {task_id for (task_id,) in rows_of(store, "SELECT id FROM tasks")}
    assert first.task_id in left
    assert fresh.id not in left
    now[0] = NOW + sweep.LOOK_BACK_EVERY
    await loop.round()
    assert rows_of(store, "SELECT count(*) FROM tasks") == [(0,)]


async def test_a_look_back_comes_after_the_whole_way(store: Store) -> None:
    """However long that takes: what lies behind very many that must stay is reached, if each step takes its time."""
    await held_tasks(store, 2 * sweep.STEP)
    free = await old_task(store, created_at=later(-35 * 86400), finished_at=later(-35 * 86400))
    now = [NOW]
    loop = sweeper(store, Lines(), now)
    for _ in range(3):
        await loop.round()
        now[0] += sweep.LOOK_BACK_EVERY
    assert rows_of(store, f"SELECT 1 FROM tasks WHERE id = '{free.id}'") == []


async def test_a_clock_set_back_does_not_stop_retention(store: Store) -> None:
    """What was passed over while it was ahead is looked at again by the time it tells now."""
    [first, _] = await held_tasks(store, 2)
    now = [later(86400 * 365)]
    loop = sweeper(store, Lines(), now)
    await loop.round()
    await store.run(Do(lambda unit: unit.put_delivery(replace(first, state="dead", due_at=None))))
    now[0] = NOW
    await loop.round()
    assert rows_of(store, f"SELECT 1 FROM tasks WHERE id = '{first.task_id}'") == []


async def test_held_in_one_millisecond_do_not_stop_retention(store: Store) -> None:
    """More than a step of them, made at once: the place moves past them all the same."""
    at = NOW - timedelta(days=40)
    tasks = [a_task("succeeded", created_at=at, finished_at=at) for _ in range(sweep.STEP + 1)]
    events = [an_event(task) for task in tasks]
    await put(store, *tasks, *events, *(a_delivery(event) for event in events))
    await old_task(store, created_at=later(-35 * 86400), finished_at=later(-35 * 86400))
    loop = sweeper(store, Lines(), [NOW])
    assert [await loop.round() for _ in range(3)] == [True, True, False]
    assert rows_of(store, "SELECT count(*) FROM tasks") == [(sweep.STEP + 1,)]


async def test_retention_goes_in_steps(store: Store) -> None:
    """Each takes a bounded number; a full step means there is more, and the loop goes on at once."""
    at = NOW - timedelta(days=40)
    await put(store, *(a_task("rejected", created_at=at, finished_at=at) for _ in range(sweep.STEP + 3)))
    log = Lines()
    loop = sweeper(store, log, [NOW])
    assert await loop.round() is True
    assert rows_of(store, "SELECT count(*) FROM tasks") == [(3,)]
    assert await loop.round() is False
    assert [line["count"] for line in log.of("tasks.pruned")] == [sweep.STEP, 3]


# -- plans -------------------------------------------------------------------------------------------------------------

MANY = 20_000
"""Ended tasks beside which PostgreSQL, asked by one question, would rather read all deliveries than look each up."""


def fill(url: str) -> None:
    """So many tasks, each with an event and two deliveries, as in life: ids in the order of time, rows with words."""
    numbers, at, key = f"generate_series(1, {MANY}) AS n", f"{to_ms(NOW)} - n * 1000", "lpad(n::text, 26, '0')"
    owner = f"CASE WHEN n % 4 = 0 THEN 'evt_' ELSE 'tsk_' END || {key}"  # some events are of no task
    tasks = f"'tsk_' || {key}, 'r', 'succeeded', {at}, {at}, repeat('x', 500), '{{}}' FROM {numbers}"
    events = f"'evt_' || {key}, {owner}, 't', {at}, repeat('x', 900), '[]', n FROM {numbers}"
    two = "(VALUES ('a'), ('b')) AS named(d)"
    deliveries = f"'dlv_' || {key} || d, 'evt_' || {key}, {owner}, d, 'delivered', {at} FROM {numbers}, {two}"
    for columns, rows in (
        ("tasks (id, route, state, created_at, finished_at, input_json, metadata_json)", tasks),
        ("events (id, task_id, type, created_at, data_json, skips_json, seq)", events),
        (
            "deliveries (id, event_id, task_id, destination, state, created_at)",
            deliveries,
        ),
    ):
        databases.change(url, f"INSERT INTO {columns} SELECT {rows}")
    databases.change(url, "ANALYZE")


@pytest.mark.engine("postgresql")
@pytest.mark.parametrize("plan", ["force_generic_plan", "force_custom_plan"])
async def test_a_step_reads_no_table_in_whole(store: Store, plan: str) -> None:
    """Of its own will, with what it knows of a history: whether the planner is told the values or not."""
    fill(store.dialect.url)
    ask, ids = store.prune, [f"tsk_{n:026}" for n in range(1, sweep.STEP)]
    given: dict[str, Any] = {"since": 0, "before": NOW, "limit": sweep.STEP, "ids": store.dialect.values(ids)}
    for statement in (ask.old, ask.of_no_task, ask.held, ask.free, ask.states, *ask.deletes):
        read = walked(store.dialect.url, statement.sql, statement.values(**given), plan)
        assert not read & {"tasks", "events", "deliveries"}, statement.sql
