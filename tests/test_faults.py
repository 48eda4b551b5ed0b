"""Every fault between the program and a real receiver: what the row says, and when the next try is.

One run of a whole service for each event loop: a destination for each row of the table, its proxy in front of the one
real receiver, a task for each. The tests read what was stored of them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import svix.webhooks
from standardwebhooks import Webhook

from tests.fault_cases import BROKE, LONG, RECEIVED, SHORT, Case, all_cases
from tests.fault_proxy import Close, Endless, Hang, Relay, Reset, Say, Step, Take, answered
from tests.fault_stage import CERTIFICATES, HIDDEN, JITTER, WAITS, Met, at, end_of, faulty, meet
from tests.world import SECRET

pytestmark = pytest.mark.anyio

AT_ONCE = 24
SLACK = timedelta(seconds=1.5)
"""What a busy machine may add to an attempt's time."""
CASES = all_cases(CERTIFICATES)
every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both loops: they differ in what a broken connection is to them. The program is served by uvloop."""
    return "asyncio", {"use_uvloop": request.param}


@dataclass(frozen=True)
class Left:
    """What was there before all of them, and what is there when every proxy has gone."""

    before: dict[str, int]
    after: dict[str, int]
    open: dict[str, int]
    bad: list[str]


def counted(ports: set[int], database: Path) -> dict[str, int]:
    """Tasks, descriptors that are neither socket nor database, and connections of this process to these ports."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing itself is closed by now
            links.append(str(entry.readlink()))
    inodes = {link.removeprefix("socket:[").removesuffix("]") for link in links}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    to = [row for row in rows if row[9] in inodes and int(row[2].split(":")[1], 16) in ports]
    files = [link for link in links if not link.startswith(("socket:", str(database)))]
    return {"tasks": len(asyncio.all_tasks()), "files": len(files), "connections": len(to)}


@pytest.fixture(scope="module")
async def run(anyio_backend: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Met], Left]:
    """Every case met, a few at a time; and what is left behind when all is quiet again."""
    gate, met = asyncio.Semaphore(AT_ONCE), dict[str, Met]()
    async with faulty(tmp_path_factory.mktemp("faults"), CASES) as (here, between):
        ports = {proxy.port for proxy in between.values()}
        before = counted(ports, here.folder)

        async def one(case: Case) -> None:
            async with gate:
                met[case.name] = await meet(here, case.name, between[case.name], copies=case.copies)

        # Those that have little time first, and by themselves: the others keep the loop busy.
        for hurried in (True, False):
            async with asyncio.TaskGroup() as group:
                for case in CASES:
                    if (case.timeout == SHORT) is hurried:
                        group.create_task(one(case))

        async def alone() -> bool:
            return max(proxy.open for proxy in between.values()) <= 1

        await here.eventually(alone)  # one that talks with pauses hears only then that nobody listens
        opened = {name: proxy.open for name, proxy in between.items()}
        await asyncio.gather(*(proxy.close() for proxy in between.values()))

        async def quiet() -> bool:
            now = counted(ports, here.folder)
            return all(now[what] <= before[what] for what in before)

        async with asyncio.timeout(5):
            await here.eventually(quiet)
        return met, Left(before, counted(ports, here.folder), opened, here.sink.bad)


# -- the table ---------------------------------------------------------------------------------------------------------


@every_case
def test_the_row_says_what_happened(case: Case, run: tuple[dict[str, Met], Left]) -> None:
    """In words, with the status where one came and the error where none did; and no longer than its timeout."""
    first = run[0][case.name].attempts[0]
    assert (first["result"], (first["response"] or {}).get("status")) == (case.result, case.status), first["reason"]
    assert first["reason"].startswith(case.words)
    assert case.more in first["reason"]
    if case.status is None:
        assert first["response"] is None
        assert first["reason"].startswith(first["error"])
    else:
        assert first["error"] is None
    assert timedelta(milliseconds=first["duration_ms"]) <= timedelta(seconds=min(case.timeout, LONG / 2)) + SLACK
    assert HIDDEN not in json.dumps(run[0][case.name].attempts)


@every_case
def test_the_next_try_is_where_the_table_says(case: Case, run: tuple[dict[str, Met], Left]) -> None:
    """Counted from the end of the attempt before, jitter only added; what is delivered has none."""
    attempts = run[0][case.name].attempts
    assert [one["number"] for one in attempts] == list(range(1, len(attempts) + 1))
    for before, after in itertools.pairwise(attempts):
        wait = WAITS[before["number"]]
        assert end_of(before) + wait <= at(before["next_at"]) <= end_of(before) + wait * (1 + JITTER)
        assert at(after["started_at"]) >= at(before["next_at"])
    assert attempts[-1]["next_at"] is None
    assert attempts[-1]["result"] == "ok"


@every_case
def test_it_arrives_once_the_fault_is_gone(case: Case, run: tuple[dict[str, Met], Left]) -> None:
    """Exactly: the same id and bytes each time, and every attempt's time and signature its own, verified twice over."""
    met = run[0][case.name]
    assert met.delivery["state"] == "delivered"
    more = len(met.attempts) - (1 if case.result == "ok" else 2)  # a busy machine can miss a short timeout again
    assert case.copies <= len(met.received) <= case.copies + more
    for one in met.attempts:
        headers = one["request"]["headers"]
        assert headers["webhook-id"] == met.delivery["event_id"]
        assert int(headers["webhook-timestamp"]) == int(at(one["started_at"]).timestamp())
        for body in {copy.body for copy in met.received}:
            Webhook(SECRET).verify(body, headers)
            svix.webhooks.Webhook(SECRET).verify(body, headers)
    assert len({copy.body for copy in met.received}) == min(len(met.received), 1)


def test_jitter_is_added(run: tuple[dict[str, Met], Left]) -> None:
    """Not the same to all of them, or it would be none."""
    added = {
        at(one["next_at"]) - end_of(one) - WAITS[one["number"]]
        for met in run[0].values()
        for one in met.attempts
        if one["next_at"] is not None
    }
    assert min(added) >= timedelta(0)
    assert len(added) > 5


def test_nothing_is_left_behind(run: tuple[dict[str, Met], Left]) -> None:
    """No task, no file, no connection; and while the other side was there, none but the one that is kept for later."""
    left = run[1]
    assert all(left.after[what] <= left.before[what] for what in left.before), left
    assert left.after["connections"] == 0
    assert max(left.open.values()) <= 1
    assert left.bad == []


# -- what one fault does to the others ---------------------------------------------------------------------------------


async def test_a_slot_is_free_when_the_time_is_up(tmp_path: Path) -> None:
    """Five that would take for ever have one slot between them: each begins as the one before it ends."""
    forever = [
        (Hang(),),
        (Take(), Hang()),
        (Take(), Say(b"HTTP/1.1 200 OK\r\n"), Endless(b"x: y\r\n", SHORT / 5)),
        (Take(), Endless(b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.002)),
        (Take(), Say(b"HTTP/1.1 500 No\r\n\r\n"), Endless(b"x", SHORT / 5)),
    ]
    case = Case("narrow", "", timeout=SHORT / 2)
    async with faulty(tmp_path, [case], max_concurrency=1, schedule=["0s"]) as (here, between):
        proxy = between["narrow"]
        proxy.script[:] = forever
        met = await asyncio.gather(*(meet(here, "narrow", proxy, copies=0) for _ in forever))
        assert len((await meet(here, "narrow", proxy)).received) == 1
    attempts = sorted((one for each in met for one in each.attempts), key=lambda one: str(one["started_at"]))
    assert [one["result"] for one in attempts] == ["transient"] * len(forever)
    for before, after in itertools.pairwise(attempts):
        assert end_of(before) <= at(after["started_at"]) <= end_of(before) + SLACK
    for one in attempts:
        assert timedelta(milliseconds=one["duration_ms"]) <= timedelta(seconds=SHORT) + SLACK


async def test_an_answer_too_many_delivers_nothing(tmp_path: Path) -> None:
    """A second 200 behind the first is no answer to the next event, which would then be lost without a trace."""
    case = Case("twice", "", (Relay(answer=RECEIVED), Say(answered(200)), Hang()))
    async with faulty(tmp_path, [case]) as (here, between):
        first = await meet(here, "twice", between["twice"])
        second = await meet(here, "twice", between["twice"])
        assert [len(met.received) for met in (first, second)] == [1, 1]
        assert between["twice"].connections == 2


async def test_a_kept_connection_that_breaks_is_an_attempt_like_any_other(tmp_path: Path) -> None:
    """It answered one event and resets within the next: that one is tried again, on a new connection."""
    case = Case("kept", "", (Relay(answer=RECEIVED + 10), Reset()))
    async with faulty(tmp_path, [case]) as (here, between):
        first = await meet(here, "kept", between["kept"])
        second = await meet(here, "kept", between["kept"])
    assert [one["result"] for one in first.attempts] == ["ok"]
    assert [one["result"] for one in second.attempts] == ["transient", "ok"]
    assert second.attempts[0]["error"].startswith(BROKE)
    assert [len(met.received) for met in (first, second)] == [1, 2]
    assert between["kept"].connections == 2


@pytest.mark.parametrize("end", [Close(), Reset()])
async def test_a_kept_connection_that_ends_while_nothing_is_asked_costs_no_attempt(tmp_path: Path, end: Step) -> None:
    """As a server does that keeps it for a shorter time than we would."""
    case = Case("idle", "", (Relay(answer=RECEIVED), end))
    async with faulty(tmp_path, [case]) as (here, between):
        for count in (1, 2):
            met = await meet(here, "idle", between["idle"])
            assert [one["result"] for one in met.attempts] == ["ok"]
            assert (len(met.received), between["idle"].connections) == (1, count)
