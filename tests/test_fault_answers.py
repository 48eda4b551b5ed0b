"""What an answer makes of the next try, through a whole service: Retry-After, redirects, and the ends of a delivery."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from receiver.app import clock
from tests.fault_cases import LONG, Case
from tests.fault_proxy import Close, Fault, Hang, Reset, Say, Take, answered
from tests.fault_stage import HIDDEN, JITTER, WAITS, at, end_of, faulty, meet
from tests.world import PRO, World, destination, script, world

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

NONE = timedelta(0)
DAY = timedelta(hours=24)
THEN = clock().replace(microsecond=0) + timedelta(hours=3)
"""A moment that HTTP-dates can say."""
ZONED = THEN.astimezone(UTC)
LATER = ZONED.strftime("%a, %d %b %Y %H:%M:%S GMT")
ASCTIME = ZONED.strftime("%a %b %d %H:%M:%S %Y")


def answers(status: int, *headers: str, body: bytes = b"no") -> Fault:
    """The request is taken and answered so."""
    return (Take(), Say(answered(status, *headers, body=body)), Close())


# -- Retry-After -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """An answer with a Retry-After, and what it asks for: a wait, a moment, or nothing that is heard."""

    status: int
    value: str
    wait: timedelta | datetime = NONE

    @property
    def id(self) -> str:
        """For the list of tests, which is the same in every process: no time of day in it."""
        return f"{self.status}-{'then' if self.value in {LATER, ASCTIME} else self.value[:32]}"


def seconds(count: float) -> timedelta:
    """So many."""
    return timedelta(seconds=count)


ASKS = [
    *(Ask(status, "20", seconds(20)) for status in (408, 425, 429, 503)),
    *(Ask(status, LATER, THEN) for status in (408, 425, 429, 503)),
    *(Ask(status, "3600") for status in (300, 302, 307, 400, 401, 404, 409, 422, 500, 501, 502, 504)),
    *(Ask(status, LATER) for status in (302, 404, 500, 502, 504)),
    Ask(503, "1", seconds(1)),
    Ask(429, " 7 ", seconds(7)),
    Ask(503, "0"),
    Ask(503, "00000000000000000000030", seconds(30)),
    Ask(503, "86399", seconds(86_399)),
    Ask(503, "86400", DAY),
    Ask(503, "86401", DAY),
    Ask(429, "9" * 400, DAY),
    Ask(503, "Fri, 31 Dec 2100 23:59:59 GMT", DAY),
    Ask(503, "Friday, 31-Dec-99 23:59:59 GMT"),
    Ask(503, ASCTIME, THEN),  # asctime's way, which HTTP still allows
    Ask(503, "Wed, 21 Oct 2015 07:28:00 GMT"),
    Ask(429, "Sun, 06 Nov 1994 08:49:37 GMT"),
    Ask(503, "Fri, 99 Dec 2100 23:59:59 GMT"),
    Ask(503, "Fri, 31 Dec 99999 23:59:59 GMT"),
    *(Ask(503, value) for value in ("", "soon", "-5", "+5", "1e3", "0x10", "5 s", "5;6", "NaN", "inf", "٢", "1_000")),
    Ask(429, "Mon"),
]
asks = pytest.mark.parametrize("number", range(len(ASKS)), ids=[ask.id for ask in ASKS])


@dataclass(frozen=True)
class Tried:
    """The first attempt of a delivery, and the delivery as it is then."""

    attempt: dict[str, Any]
    delivery: dict[str, Any]


async def first_try(here: World, name: str) -> Tried:
    """Submit a task for one destination, and wait for its first attempt."""
    answer = await here.submit(PRO, script(), destinations=[name])
    task_id = answer.json()["id"]

    items: dict[str, Any] = {}

    async def tried() -> bool:
        items.update((item["kind"], item) for item in await here.timeline(task_id))
        return "attempt" in items

    await here.eventually(tried)
    return Tried(items["attempt"], items["delivery"])  # of one look: at another the next try may have been made


@pytest.fixture(scope="module")
async def asked(anyio_backend: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Tried]:
    """Every answer given once, to a destination of its own; the wait after it is 5 s where nothing is asked."""
    cases = [
        Case(f"ask-{number}", "", answers(ask.status, f"retry-after: {ask.value}")) for number, ask in enumerate(ASKS)
    ]
    async with faulty(tmp_path_factory.mktemp("asks"), cases, schedule=["0s", "5s"]) as (here, _):
        gate = asyncio.Semaphore(16)

        async def one(case: Case) -> Tried:
            async with gate:
                return await first_try(here, case.name)

        return list(await asyncio.gather(*map(one, cases)))


@asks
def test_retry_after_only_ever_moves_the_next_try_later(number: int, asked: list[Tried]) -> None:
    """Seconds or a date, on the four statuses that may ask, 24 h at most; all else is not heard."""
    ask, tried = ASKS[number], asked[number]
    attempt, end, base = tried.attempt, end_of(tried.attempt), seconds(5)
    due, duration = at(attempt["next_at"]), timedelta(milliseconds=attempt["duration_ms"])
    assert attempt["response"]["status"] == ask.status
    assert attempt["result"] == ("throttled" if ask.status in {408, 425, 429, 503} else "transient")
    assert due >= end + base
    if isinstance(ask.wait, datetime):
        assert ask.wait <= due <= ask.wait + duration + seconds(0.001)
    elif ask.wait > base * (1 + JITTER):
        assert due == end + ask.wait
    else:
        assert due <= end + base * (1 + JITTER)
    heard = isinstance(ask.wait, datetime) or ask.wait > base * (1 + JITTER)
    assert ("as it asked" in attempt["reason"]) == heard
    assert tried.delivery["state"] == "pending"
    assert tried.delivery["due_at"] == attempt["next_at"]


# -- redirects ---------------------------------------------------------------------------------------------------------

REDIRECTS = [(status, where) for status in (301, 302, 303, 307, 308) for where in ("absolute", "relative", "none")]


async def test_a_redirect_is_a_failure_and_never_followed(tmp_path: Path) -> None:
    """Whatever it leads to sees no connection; the row tells how to mend it."""
    cases = [Case(f"to-{status}-{where}", "") for status, where in REDIRECTS] + [Case("elsewhere", "")]
    async with faulty(tmp_path, cases) as (here, between):
        elsewhere = between["elsewhere"]
        lines = {"absolute": f"location: http://127.0.0.1:{elsewhere.port}/x", "relative": "location: /x"}
        for (status, where), case in zip(REDIRECTS, cases, strict=False):
            between[case.name].script[:] = [answers(status, *([lines[where]] if where in lines else []))]
        met = await asyncio.gather(*(meet(here, case.name, between[case.name]) for case in cases[:-1]))
        assert elsewhere.connections == 0
    for (status, _), one in zip(REDIRECTS, met, strict=True):
        assert [try_["result"] for try_ in one.attempts] == ["transient", "ok"]
        assert one.attempts[0]["response"]["status"] == status
        assert one.attempts[0]["reason"].startswith(f"it answered {status}: a redirect is never followed")
        assert "hook" in one.attempts[1]["request"]["url"]


# -- ends --------------------------------------------------------------------------------------------------------------

BROKEN = b"HTTP/1.1 410 Gone\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n"
ABORT = "webhook-delivery: abort-message"
STOPS: list[tuple[str, Fault, str]] = [
    ("gone", answers(410), "it answered 410"),
    ("gone-later", answers(410, "retry-after: 5"), "it answered 410"),
    ("gone-and-broken", (Take(), Say(BROKEN), Hang()), "it answered 410"),
    *((f"abort-{code}", answers(code, ABORT), f"it answered {code} and {ABORT}") for code in (400, 404, 500, 503, 302)),
    ("abort-in-capitals", answers(429, "Webhook-Delivery: ABORT-Message", "retry-after: 5"), "it answered 429 and"),
]
SPENT: list[tuple[str, Fault, str]] = [
    ("spent-reset", (Take(), Reset()), "the connection broke before an answer"),
    ("spent-garbage", (Take(), Say(b"SSH-2.0-OpenSSH_9.2\r\n"), Close()), "the answer is no HTTP"),
    ("spent-hang", (Hang(),), "timed out: no answer within 1 s"),
    ("spent-500", answers(500), "it answered 500"),
    ("spent-503", answers(503, "retry-after: 0"), "it answered 503"),
    ("spent-404", answers(404), "it answered 404"),
]


async def test_an_answer_that_says_stop_ends_it_at_once(tmp_path: Path) -> None:
    """410, and `webhook-delivery: abort-message` with any failure: dead after one attempt, and it says so."""
    cases = [Case(name, "", fault) for name, fault, _ in STOPS]
    async with faulty(tmp_path, cases) as (here, between):
        met = await asyncio.gather(*(meet(here, case.name, between[case.name], copies=0) for case in cases))
        paused = {name: (await here.api.get(f"/destinations/{name}")).json()["state"] for name, _, _ in STOPS}
    for (name, _, words), one in zip(STOPS, met, strict=True):
        assert (one.delivery["state"], one.delivery["attempt_count"], one.delivery["due_at"]) == ("dead", 1, None), name
        [attempt] = one.attempts
        assert (attempt["result"], attempt["next_at"]) == ("permanent", None)
        assert attempt["reason"].startswith(words)
        assert attempt["reason"].endswith("it is not tried again")
        assert paused[name] == ("paused" if name.startswith("gone") else "active")


async def test_a_schedule_that_is_spent_ends_it(tmp_path: Path) -> None:
    """As many attempts as entries, each wait as the table says, and then dead with the last reason."""
    cases = [Case(name, "", timeout=1.0 if fault == (Hang(),) else LONG) for name, fault, _ in SPENT]
    async with faulty(tmp_path, cases) as (here, between):
        for name, fault, _ in SPENT:
            between[name].script[:] = [fault] * (len(WAITS) + 1)
        met = await asyncio.gather(*(meet(here, case.name, between[case.name], copies=0) for case in cases))
        assert {len(proxy.script) for proxy in between.values()} == {1}
    for (_, _, words), one in zip(SPENT, met, strict=True):
        assert (one.delivery["state"], one.delivery["attempt_count"]) == ("dead", len(WAITS))
        for before, after in itertools.pairwise(one.attempts):
            wait = WAITS[before["number"]]
            assert end_of(before) + wait <= at(before["next_at"]) <= end_of(before) + wait * (1 + JITTER)
            assert at(before["next_at"]) <= at(after["started_at"])
        assert {try_["reason"].startswith(words) for try_ in one.attempts} == {True}
        assert one.attempts[-1]["reason"].endswith(f"this was the last of {len(WAITS)} attempts")
        assert one.attempts[-1]["next_at"] is None


async def test_410_pauses_the_destination_and_nothing_is_spent_meanwhile(tmp_path: Path) -> None:
    """What comes next waits untried, and goes out when it is resumed; what was dead stays dead."""
    async with faulty(tmp_path, [Case("gone", "", answers(410)), Case("well", "")]) as (here, between):
        dead = await meet(here, "gone", between["gone"], copies=0)
        shown = (await here.api.get("/destinations/gone")).json()
        assert (shown["state"], shown["next_try_at"]) == ("paused", None)
        assert "410" in shown["last_error"]
        answer = await here.submit(PRO, script(), destinations=["gone"])
        await here.ended(answer.json()["id"])
        await meet(here, "well", between["well"])  # what comes later to another has long gone out
        [waiting] = await here.timeline(answer.json()["id"], "delivery")
        assert (waiting["state"], waiting["attempt_count"], between["gone"].connections) == ("pending", 0, 1)
        await here.api.post("/destinations/gone/resume")
        await here.arrived(answer.json()["id"])
        await here.eventually(lambda: here.all_delivered(answer.json()["id"]))
        assert [one["number"] for one in await here.timeline(answer.json()["id"], "attempt")] == [1]
        [still] = await here.timeline(dead.task_id, "delivery")
        assert still["state"] == "dead"


# -- nothing to connect to ---------------------------------------------------------------------------------------------


async def test_what_cannot_be_connected_is_told(tmp_path: Path) -> None:
    """A name without an address, and an address without leave: each in words, neither with the URL's secret."""

    def change(given: dict[str, Any]) -> None:
        here = given["destinations"].pop()["url"]
        own = {"schedule": ["0s"], "timeout": "20s"}
        given["destinations"] += [
            destination("nowhere", f"http://nothing.invalid/{HIDDEN}?key={HIDDEN}", **own),
            destination("inside", f"{here}?key={HIDDEN}", **own | {"allow_private": False}),
        ]

    async with world(tmp_path, change=change) as here:
        nowhere, inside = await asyncio.gather(*(first_try(here, name) for name in ("nowhere", "inside")))
        assert here.sink.received == []
    assert nowhere.attempt["error"].startswith("the name could not be resolved: nothing.invalid: ")
    assert inside.attempt["error"].startswith("not connected, the address is not allowed: 127.0.0.1 is loopback")
    for one in (nowhere, inside):
        assert (one.attempt["result"], one.attempt["response"], one.delivery["state"]) == ("transient", None, "dead")
        assert HIDDEN not in one.attempt["error"] + one.attempt["reason"]
