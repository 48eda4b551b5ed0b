"""PostgreSQL restarted every few seconds under load, in order or as a crash, and hung up on: nothing is lost.

Two real `receiver serve` processes; the upstream, the consumer and the callers live on in this process. Callers come by
all ways in, and note what they are told. `KILL_SEED` in the environment changes the luck; a failure prints it.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import pytest

from receiver.emulator import EmulatorOptions
from tests import fleet, pg_server, world
from tests.victim import until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

SEED = int(os.environ.get("KILL_SEED", "20261121"))
LENGTH = 60.0 if os.environ.get("CI") else 20.0
"""Seconds of trouble."""
PERIOD = 3.0
"""Seconds between two troubles, on average."""
CALLERS = 8
PAUSE = 0.4
FAULTS = {
    "callback=missing": 0.15,
    "callback=doubled": 0.15,
    "callback=early": 0.1,
    "callback=late": 0.1,
    "submit_delay=0.1": 0.3,
    "fail": 0.2,
}
OPTIONS = EmulatorOptions(
    seed=SEED, render_seconds=0.1, chances=FAULTS, callback_timeout=15.0, callback_retries=5, callback_retry_gap=0.5
)


def _configure(given: dict[str, Any]) -> None:
    given["polling"] |= {"callback_grace": "2s", "interval": "300ms", "max_interval": "1s", "deadline": "120s"}
    given["delivery"] |= {"schedule": ["0s"] + ["200ms"] * 20, "timeout": "2s"}


@pytest.mark.timeout(300)
async def test_restarted_again_and_again_it_loses_nothing(tmp_path: Path, server: pg_server.Server) -> None:
    """What was acknowledged has its effect, and once; who was told 503 has paid nothing; 504 says not to repeat."""
    print(f"KILL_SEED={SEED}")  # noqa: T201 -- pytest shows it where the test fails
    quick = dict.fromkeys("ab", fleet.SHORT)
    async with fleet.fleet(tmp_path, server, "ab", OPTIONS, _configure, prologues=quick) as scene:
        await scene.start()
        ways = (scene.in_api, scene.in_background, scene.drop_in)
        callers = [asyncio.create_task(scene.call(number, "ab", pause=PAUSE, ways=ways)) for number in range(CALLERS)]
        try:
            troubles = await _trouble(scene)
            scene.over = True
            await asyncio.gather(*callers)
            await until(scene.settled, "everything to end", limit=60, every=0.2)
        finally:
            for caller in callers:
                caller.cancel()
        await scene.stop()
        _judge(scene, troubles)


async def _trouble(scene: fleet.Fleet) -> Counter[str]:
    """One trouble after another; how many there were of each."""
    dice, ends, troubles = random.Random(SEED), time.monotonic() + LENGTH, Counter[str]()
    while time.monotonic() < ends:
        await asyncio.sleep(PERIOD * (0.5 + dice.random()))
        kind: Literal["fast", "immediate", "terminate"] = dice.choice(["fast", "immediate", "terminate", "terminate"])
        troubles[kind] += 1
        if kind == "terminate":
            await asyncio.to_thread(scene.server.terminate)
        else:
            await asyncio.to_thread(scene.server.stop, kind)
            await asyncio.sleep(dice.random())
            await asyncio.to_thread(scene.server.start)
    return troubles


def _judge(scene: fleet.Fleet, troubles: Counter[str]) -> None:
    answers = Counter(status for status, _, _ in scene.told.values())
    print(f"{dict(troubles)}; answers {dict(answers)}, callbacks {dict(scene.upstream.ledger.answered)}")  # noqa: T201
    assert scene.cut_off == [], "the service itself was never away"
    tasks = {row[0]: row for row in scene.rows("select id, state, prompt, upstream_id from tasks")}
    by_prompt = {row[2]: row for row in tasks.values()}
    assert len(by_prompt) == len(tasks), "one request, two tasks"
    renders = scene.renders()
    assert scene.upstream.ledger.repeated == []
    assert [prompt for prompt, count in renders.items() if count > 1] == [], "paid twice"
    assert renders.keys() <= by_prompt.keys()
    for prompt, (status, headers, body) in scene.told.items():
        _judge_answer(prompt, status, headers, body, by_prompt, renders)
    assert answers.keys() >= {200, 201, 202, 503}, "not every answer was given"
    _judge_events(scene, tasks)
    for name in scene.instances:
        log = scene.instances[name].config.with_suffix(".log").read_text()
        assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]


def _judge_answer(
    prompt: str, status: int, headers: dict[str, str], body: dict[str, Any], tasks: dict[str, Any], renders: Any
) -> None:
    lower = {name.lower(): value for name, value in headers.items()}
    if status in {200, 201}:
        assert prompt in tasks, f"{prompt}: acknowledged, and gone"
        assert renders[prompt] == 1
    elif status == 202:
        assert prompt in tasks, f"{prompt}: acknowledged, and gone"
        assert renders[prompt] == 1 or tasks[prompt][1] == "lost", f"{prompt}: accepted, and not made: {tasks[prompt]}"
    elif status == 503:
        assert "retry-after" in lower
        assert renders[prompt] == 0, f"{prompt}: paid, and its caller was told that nothing was stored: {body}"
        assert prompt not in tasks or tasks[prompt][1] == "rejected"
    else:
        assert status == 504, f"{prompt}: {status} {body}"
        assert lower["x-should-retry"] == "false"
        assert prompt not in tasks or lower["receiver-task-id"] == tasks[prompt][0]


def _judge_events(scene: fleet.Fleet, tasks: dict[str, Any]) -> None:
    told = Counter(scene.rows("select task_id, type from events"))
    for task_id, state, prompt, _ in tasks.values():
        if state != "rejected":
            assert told[(task_id, f"task.{state}")] == 1, f"{prompt} is {state}"
            assert state in {"succeeded", "failed"}, f"{prompt} is {state}"
    assert scene.rows("select id, state from deliveries where state != 'delivered'") == []
    assert scene.sink.bad == []
    assert {one.id for one in scene.sink.received} == {row[0] for row in scene.rows("select id from events")}
    kept = Counter(row[0] for row in scene.rows(
        "select upstream_id from inbox join tasks on tasks.id = task_id where inbox.via = 'callback'"))  # fmt: skip
    for task in scene.upstream.tasks.values():
        good = sum(1 for sent in task.callbacks if sent.status == 200)
        assert kept[task.id] >= good, f"{task.id}: {good} callbacks answered 200, {kept[task.id]} kept"
    assert scene.upstream.ledger.answered[200] >= 20
    assert {row[1] for row in tasks.values()} <= world.TERMINAL
