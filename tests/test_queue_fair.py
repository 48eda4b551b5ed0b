"""What a long queue must not do to others: other routes have their turn, and the limits hold for all ways in."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from receiver.app import clock
from receiver.submit import Gates, through
from receiver.upstream import ROUTES
from tests.rooms import a_task, one_batch, put, until
from tests.world import API_KEY, I2V, PATIENCE, PRO, V2V, World, begun, body_of, script, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.engines]
AT_ONCE = 4


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cannot queue waits for a slot as long as the test does: on a slow machine its turn comes late."""
    monkeypatch.setattr(through, "SLOT_FOR", PATIENCE)


@dataclass
class Counting:
    """An upstream that takes all, each after a while, and notes what is under way.

    Attributes:
        came: routes in the order in which submissions came.
        most: the most that were under way at once.
    """

    slow: float = 0.03
    came: list[str] = field(default_factory=list)
    under_way: int = 0
    most: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one submission after another."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = head.lower().partition("content-length: ")[2].partition("\r\n")[0]
                await reader.readexactly(int(length))
                self.came.append(head.split(" ")[1].strip("/"))
                self.under_way += 1
                self.most = max(self.most, self.under_way)
                await asyncio.sleep(self.slow)
                self.under_way -= 1
                up = f"up-{len(self.came)}-{id(writer)}"
                said = json.dumps({"code": 200, "msg": "", "id": up, "data": {"task_id": up}}).encode()
                kind = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(said)
                writer.write(kind + said)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def _stage(folder: Path, **upstream: Any) -> AsyncIterator[tuple[Counting, World]]:
    counting = Counting()
    listener = await asyncio.start_server(counting.handle, "127.0.0.1", 0)

    def there(given: dict[str, Any]) -> None:
        given["upstream"] |= {"base_url": f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", **upstream}
        given["polling"] |= {"callback_grace": "1h", "interval": "1h", "max_interval": "1h", "deadline": "25h"}

    try:
        async with world(folder, change=there) as here:
            yield counting, here
    finally:
        listener.close()


async def _queue(here: World, route: str, number: int) -> httpx.Response:
    document = {"route": route, "input": body_of(route, f"queued {number}")}
    return await here.api.post("/tasks", json=document, headers={"prefer": "respond-async"})


async def test_a_long_queue_of_one_route_leaves_others_their_turn(tmp_path: Path) -> None:
    """A hundred wait on each of two routes: both go on side by side, not one after the other."""
    async with _stage(tmp_path, max_concurrency=AT_ONCE) as (counting, here):
        assert here.service is not None
        gates = here.service.submitter.gates
        gates.max_concurrency = 0
        for route in (PRO, I2V):
            made = await asyncio.gather(*(_queue(here, route, number) for number in range(100)))
            assert {one.status_code for one in made} == {202}
        gates.max_concurrency = AT_ONCE
        await here.eventually(lambda: _came(counting, 200))
    half = counting.came[:100]
    assert 35 <= half.count(I2V) <= 65, f"{half.count(PRO)} of {PRO} first, {half.count(I2V)} of {I2V}"


async def _came(counting: Counting, many: int) -> bool:
    return len(counting.came) >= many


async def test_the_limit_holds_for_all_ways_in_together(tmp_path: Path) -> None:
    """A queue, and callers of two other routes and ways who come all the time: never more under way than it says."""
    async with _stage(tmp_path, max_concurrency=AT_ONCE) as (counting, here), _door(here) as door:
        counting.slow = 0.005
        made = await asyncio.gather(*(_queue(here, V2V, number) for number in range(150)))
        assert {one.status_code for one in made} == {202}

        async def direct() -> None:
            while not await _empty(here):
                assert (await here.submit(PRO, "direct")).status_code in {201, 202}

        async def dropped() -> None:
            while not await _empty(here):
                assert (await door.post(f"/{I2V}", json=body_of(I2V, "dropped"))).status_code == 200

        await asyncio.gather(*(direct() for _ in range(3)), *(dropped() for _ in range(3)))
        assert counting.most == AT_ONCE


async def test_a_look_that_expects_nothing_takes_no_slot_that_was_given_away(tmp_path: Path) -> None:
    """It finds what another instance put there, while those who come take every slot that it keeps nothing of."""
    async with _stage(tmp_path, max_concurrency=AT_ONCE) as (counting, here):
        assert here.service is not None
        store, submitter = here.service.store, here.service.submitter
        counting.slow = 0.5
        queued = [a_task("pending", route=V2V, input_json=json.dumps(body_of(V2V, f"{n}"))) for n in range(AT_ONCE)]
        async with submitter._claiming:  # between two rounds of the queue
            await put(store, *queued)
            submitter._turns.sort(key=lambda route: route != V2V)
        async with one_batch(store):
            submitter.gates.freed.set()
            await until(lambda: store.writer.waiting)  # a look
            coming = [asyncio.create_task(here.submit(PRO, f"direct {n}")) for n in range(AT_ONCE)]
            await until(lambda: submitter.gates.sending == AT_ONCE)
        await asyncio.gather(*coming)
        await here.eventually(lambda: _empty(here))
        assert counting.most == AT_ONCE


async def test_the_rate_holds_for_all_ways_in_together(tmp_path: Path) -> None:
    """Likewise `rate`: in no span of a second more than it says."""
    paced = _stage(tmp_path, max_concurrency=64, rate="40/s")
    async with paced as (counting, here), _door(here) as door, begun(here) as at:

        async def dropped(number: int) -> httpx.Response:
            while True:
                answer = await door.post(f"/{I2V}", json=body_of(I2V, f"dropped {number}"))
                if answer.status_code != 503:  # else the store was so slow that its start was over: nothing was sent
                    return answer

        answers = await asyncio.gather(
            *(_queue(here, V2V, number) for number in range(60)),
            *(here.submit(PRO, f"direct {number}") for number in range(30)),
            *(dropped(number) for number in range(30)),
        )
        assert [one.text for one in answers if one.status_code not in {200, 201, 202}] == []
        await here.eventually(lambda: _came(counting, 120))
        assert len(at) == 120
        assert [n for n in range(len(at) - 40) if at[n + 40] - at[n] < 1] == []


async def test_callers_who_come_all_the_time_do_not_hold_up_what_waits(tmp_path: Path) -> None:
    """Where all slots are asked for, a queue and those who pass it get them by turns."""
    async with _stage(tmp_path, max_concurrency=2) as (counting, here), _door(here) as door:
        await asyncio.gather(*(_queue(here, V2V, number) for number in range(40)))

        async def dropped() -> None:
            while counting.came.count(V2V) < 40:
                assert (await door.post(f"/{I2V}", json=body_of(I2V, "dropped"))).status_code == 200

        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(dropped() for _ in range(6)))
        first = counting.came.index(I2V)
        while_both = counting.came[first : len(counting.came) - 1 - counting.came[::-1].index(V2V)]
        assert len(while_both) >= 40
        assert 0.35 <= while_both.count(I2V) / len(while_both) <= 0.65, counting.came


async def test_one_that_was_under_way_does_not_open_a_throttled_gate(tmp_path: Path) -> None:
    """Taken, but sent before another was told `Retry-After`: nothing of that route is sent before that."""
    async with world(tmp_path) as here, _door(here) as door:

        async def drop(**words: Any) -> httpx.Response:
            return await door.post(f"/{V2V}", json=ROUTES[V2V].fill(body_of(V2V, script(**words)), seed=7))

        slow = asyncio.create_task(drop(submit_delay=0.5))
        await here.eventually(lambda: _submitted(here, 1))
        throttled_at = asyncio.get_running_loop().time()  # or later: its answer may take a while to be here
        assert (await drop(submit="429", retry_after="2")).status_code == 429
        assert (await slow).status_code == 200
        assert (await drop()).status_code == 200
        assert asyncio.get_running_loop().time() - throttled_at > 1.9


async def _submitted(here: World, many: int) -> bool:
    return bool(here.upstream.ledger.submissions.total() == many)


def _door(here: World) -> httpx.AsyncClient:
    base = f"http://127.0.0.1:{here.settings['server']['port']}"
    headers = {"authorization": f"Bearer {API_KEY}"}
    return httpx.AsyncClient(base_url=base, headers=headers, timeout=PATIENCE, trust_env=False)


async def _empty(here: World) -> bool:
    return not (await here.api.get("/tasks", params={"state": "pending"})).json()["data"]


def test_who_cannot_wait_in_the_queue_does_not_wait_for_it() -> None:
    """A drop-in caller never queues: a backlog that only waits for its turn is no reason to refuse him."""
    gates = Gates(clock, 2, [timedelta(seconds=1)], backlog={PRO})
    assert not gates.may_pass(PRO, queued=False)  # nobody has looked yet whether it is throttled
    gates.unseen.clear()
    assert not gates.may_pass(PRO)
    assert gates.may_pass(PRO, queued=False)
    gates.stop()
    assert not gates.may_pass(PRO, queued=False)


def test_a_throttle_that_stands_in_the_store_holds_after_a_restart() -> None:
    """The oldest must wait: nothing else of its route is sent, and then one goes alone."""
    gates, until = Gates(clock, 2, [timedelta(seconds=1)], backlog={PRO}), clock() + timedelta(hours=1)
    gates.unseen.clear()
    gates.close(PRO, until)
    assert gates.closed_until(PRO) == until
    assert not gates.may_pass(PRO, queued=False)
    assert gates.may_pass(V2V)
    gates.close(PRO, clock())
    assert gates.closed_until(PRO) == until
