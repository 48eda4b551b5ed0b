"""Three instances on one database under load: one dies, one is stopped past its leases and goes on, clocks are wrong.

Real `receiver serve` processes; the upstream, the consumer and the callers live on in this process. `b` is killed and
`c` is stopped just when the consumer has a webhook of theirs and has not answered; `c` goes on after its leases have
run out and the last one left has done its work. `a` believes that it is three hours later, and `c` three hours earlier.
`KILL_SEED` in the environment changes the luck; a failure prints it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from receiver.emulator import EmulatorOptions
from tests import fleet, pg_server, world
from tests.victim import until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

SEED = int(os.environ.get("KILL_SEED", "20261121"))
MANY = 300
"""Tasks that are accepted at least."""
CALLERS = 9
PAUSE = 0.1
IN_FLIGHT_FOR = 2.0
"""Seconds an attempt may be under way before the kill or the stop that hit it."""
HOURS = {"a": +3, "b": 0, "c": -3}
"""How wrong the clock of each is; what they say goes by the database's."""
FAULTS = {
    "callback=missing": 0.15,
    "callback=doubled": 0.15,
    "callback=early": 0.1,
    "callback=late": 0.1,
    "callback=tampered-id": 0.05,
    "submit_delay=0.3": 0.4,
    "fail": 0.2,
}
OPTIONS = EmulatorOptions(
    seed=SEED, render_seconds=0.1, chances=FAULTS, callback_timeout=1.0, callback_retries=3, callback_retry_gap=0.2
)


def _configure(given: dict[str, Any]) -> None:
    given["polling"] |= {"callback_grace": "500ms", "interval": "200ms", "max_interval": "500ms", "deadline": "15s"}
    given["delivery"] |= {"schedule": ["0s"] + ["200ms"] * 20, "timeout": "2s"}
    given["upstream"]["timeout"] = "2s"


@dataclass
class Blows:
    """What was done to whom, and when (monotonic, and by the clock), and what the database held before `c` went on."""

    at: dict[str, float] = field(default_factory=dict)
    clock: dict[str, float] = field(default_factory=dict)
    before: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def hit(self, one: world.Received) -> bool:
        """Whether the attempt it came by was under way at a blow, however much later it was heard or said."""
        name = one.headers["x-instance"]
        if name not in self.at:
            return False
        begun = int(one.headers["webhook-timestamp"]) <= self.clock[name] + 1  # as well as a clock is known by another
        return begun and one.at >= self.at[name] - IN_FLIGHT_FOR


@pytest.mark.timeout(300)
async def test_one_dies_and_one_comes_back_from_the_dead(tmp_path: Path, server: pg_server.Server) -> None:
    """One terminal event a task, every delivery arrives, doubled are those in flight; stale writes change nothing."""
    print(f"KILL_SEED={SEED}")  # noqa: T201 -- pytest shows it where the test fails
    clocks = {name: (fleet.shifted(hours) if hours else "") + fleet.SHORT for name, hours in HOURS.items()}
    async with fleet.fleet(tmp_path, server, "abc", OPTIONS, _configure, prologues=clocks) as scene:
        await scene.start()
        blows, living = Blows(), ["a", "b", "c"]
        callers = [asyncio.create_task(scene.call(number, living, pause=PAUSE)) for number in range(CALLERS)]
        try:
            await _told(scene, MANY // 4)
            await _strike(scene, blows, living, "b", signal.SIGKILL)
            await _told(scene, MANY // 2)
            await _strike(scene, blows, living, "c", signal.SIGSTOP)
            await _told(scene, MANY)
            scene.over = True
            await until(lambda: _left_by_the_dead(scene), "leases to run out", every=0.1)
            blows.before = _ended_rows(scene)
            scene.instances["c"].kill(signal.SIGCONT)
            await asyncio.gather(*callers)
            await until(lambda: _came_to_nothing(scene), "a stale write", every=0.1)
            await until(scene.settled, "everything to end", every=0.1)
        finally:
            for caller in callers:
                caller.cancel()
        assert await scene.instances["b"].gone() == -9
        scene.instances["c"].up.set()
        await scene.stop()
        _judge(scene, blows)


async def _told(scene: fleet.Fleet, enough: int) -> None:
    async def reached() -> bool:
        return len(scene.told) >= enough

    await until(reached, f"{enough} answers", limit=60)


async def _strike(scene: fleet.Fleet, blows: Blows, living: list[str], name: str, number: int) -> None:
    """Hit an instance while an attempt of its own is under way."""
    struck = asyncio.Event()

    def strike(one: world.Received) -> None:
        if not struck.is_set() and one.headers["x-instance"] == name:
            scene.instances[name].kill(number)
            blows.at[name], blows.clock[name] = time.monotonic(), time.time()
            struck.set()

    scene.sink.arrived = strike
    async with asyncio.timeout(20):
        await struck.wait()
    living.remove(name)


async def _left_by_the_dead(scene: fleet.Fleet) -> bool:
    """Nobody holds anything any more: what the dead held was taken from them, and done by the last one."""
    found = await asyncio.to_thread(
        scene.rows,
        "select (select count(*) from deliveries where state in ('pending', 'leased')),"
        "(select count(*) from tasks where submit_leased_until is not null or poll_leased_until is not null)",
    )
    return bool(found == [(0, 0)])


async def _came_to_nothing(scene: fleet.Fleet) -> bool:
    return any(not line["stored"] for line in scene.log("c", "delivery.attempted"))


def _ended_rows(scene: fleet.Fleet) -> dict[str, dict[str, dict[str, Any]]]:
    """By table and id, the rows that nobody has a reason to change; that something was said again is counted."""
    asked = {
        "tasks": "finished_at is not null and state != 'lost'",
        "deliveries": "finished_at is not null",
        "attempts": "true",
        "events": "true",
    }
    counts = "'{callbacks,poll_count,polled_at}'::text[]"
    found = {
        table: scene.rows(f"select to_jsonb(t) - {counts} from {table} t where {which}")
        for table, which in asked.items()
    }
    return {table: {row["id"]: row for (row,) in rows} for table, rows in found.items()}


def _judge(scene: fleet.Fleet, blows: Blows) -> None:
    _judge_tasks(scene)
    after = _ended_rows(scene)
    for table, rows in blows.before.items():
        assert len(rows) >= MANY // 2
        changed = [
            {name: (row[name], after[table][key][name]) for name in row if row[name] != after[table][key][name]}
            for key, row in rows.items()
            if after[table][key] != row
        ]
        assert changed == [], f"a stale write changed {table}"
    twice = scene.rows("select delivery_id, number from attempts group by 1, 2 having count(*) > 1")
    assert twice == [], "two attempts have one number"
    doubled = _judge_webhooks(scene, blows)
    rescued = sum(len(scene.log(name, "lease.rescued")) for name in scene.instances)
    print(f"{len(scene.told)} told, {len(scene.cut_off)} cut off, {rescued} rescued, {doubled} doubled")  # noqa: T201
    for name in scene.instances:
        log = scene.instances[name].config.with_suffix(".log").read_text()
        assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]


def _judge_tasks(scene: fleet.Fleet) -> None:
    """Each has one terminal event, of the state it is in, and was paid for once."""
    tasks = {row[0]: row for row in scene.rows("select id, state, upstream_id, prompt, recovered from tasks")}
    told = defaultdict(list)
    for task_id, kind in scene.rows("select task_id, type from events"):
        told[task_id].append(kind)
    for task_id, state, upstream_id, prompt, recovered in tasks.values():
        # What the one that was stopped past the deadline alone knew is the truth, and replaces our own word.
        late = ["task.lost"] if recovered and scene.told_by.get(prompt) == "c" else []
        assert told[task_id] == [*late, f"task.{state}"], f"{task_id} is {state}: {told[task_id]}"
        assert state in {"succeeded", "failed"} or (state == "lost" and upstream_id is None), f"{task_id} is {state}"
    assert {status for status, _, _ in scene.told.values()} <= {201, 202}
    assert {body["id"] for _, _, body in scene.told.values()} <= tasks.keys()
    assert scene.upstream.ledger.repeated == []
    assert [prompt for prompt, count in scene.renders().items() if count > 1] == [], "paid twice"
    assert scene.renders().keys() <= {row[3] for row in tasks.values()}
    states = {prompt: body["state"] for prompt, (_, _, body) in scene.told.items()}
    unclear = {prompt for prompt, state in states.items() if state == "ambiguous"}
    # The one that was stopped past the deadline tells its caller that the task has been lost meanwhile.
    unclear |= {prompt for prompt, state in states.items() if state == "lost" and scene.told_by[prompt] == "c"}
    lost = {row[3] for row in tasks.values() if row[1] == "lost"}
    assert lost <= unclear | set(scene.cut_off), "lost, and not under way at a blow"


def _judge_webhooks(scene: fleet.Fleet, blows: Blows) -> int:
    """Each event came; again only where a blow hit the attempt. How many came again."""
    assert scene.sink.bad == []
    assert scene.rows("select id, state from deliveries where state != 'delivered'") == []
    came = defaultdict(list)
    for one in scene.sink.received:
        came[one.id].append(one)
    assert came.keys() == {row[0] for row in scene.rows("select id from events")}
    doubled = 0
    for event_id, times in came.items():
        for first, again in itertools.pairwise(times):
            names = [one.headers["x-instance"] for one in (first, again)]
            doubled += 1
            # What was stopped with its request in hand sends it when it goes on, after the one that took its place.
            hit = blows.hit(first) or blows.hit(again)
            assert hit, f"{event_id} of {names} came again {again.at - first.at:.3f} s later: {blows.at}, {first.at}"
    assert doubled >= 2, "both blows were aimed at an attempt"
    assert set(Counter(one.headers["x-instance"] for one in scene.sink.received)) == {"a", "b", "c"}
    return doubled
