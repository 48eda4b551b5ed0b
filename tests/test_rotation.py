"""Rotation of signing secrets by overlap: the consumer has one secret at a time, and can verify all that comes."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import svix.webhooks
from standardwebhooks import Webhook

from tests.world import PATIENCE, PRO, Received, Sink, World, body_of, destination, script, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.engines]

OLD = "whsec_" + "b2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xk"
NEW = "whsec_" + "bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3"
NEXT = "whsec_" + "bmV4dG5leHRuZXh0bmV4dG5leHRuZXh0bmV4"
STEPS: list[tuple[list[str], str]] = [
    ([OLD], OLD),
    ([OLD, NEW], OLD),
    ([OLD, NEW], NEW),
    ([NEW], NEW),
    ([NEW, NEXT], NEW),
    ([NEW, NEXT], NEXT),
    ([NEXT], NEXT),
]
"""What the service signs with, and what the consumer verifies with; only one of them changes at a time."""


@dataclass
class Consumer(Sink):
    """A consumer that knows one secret, and answers 401 to what that does not verify, as a careful one does."""

    secret: str = OLD

    def _keep(self, headers: dict[str, str], body: bytes) -> None:
        try:
            document = Webhook(self.secret).verify(body, headers)
            svix.webhooks.Webhook(self.secret).verify(body, headers)
        except Exception as error:  # noqa: BLE001 -- whatever a library says against it
            self.bad.append(f"{headers['webhook-id']}: {error!r}")
            self.answers.insert(0, 401)
            return
        kind = document.get("type", "envelope")
        one = Received(headers["webhook-id"], kind, document["data"], body, headers, time.monotonic())
        self.received.append(one)
        self.arrived(one)
        self._changed.set()

    def copies(self, event_id: str) -> list[Received]:
        """What arrived of one event."""
        return [one for one in self.received if one.id == event_id]


@asynccontextmanager
async def consumer() -> AsyncIterator[Consumer]:
    """A consumer that listens."""
    opened = Consumer()
    listener = await asyncio.start_server(opened.handle, "127.0.0.1", 0)
    opened.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/hook"
    try:
        yield opened
    finally:
        listener.close()
        await opened.close()


def as_destination(given: dict[str, Any], secrets: list[str]) -> None:
    """The consumer is a destination with secrets of its own."""
    given["destinations"][0]["secrets"] = secrets


def as_callback(given: dict[str, Any], secrets: list[str]) -> None:
    """The consumer is a task's own callback_url."""
    given["security"]["callback_secrets"] = secrets


def made(to: Consumer, secrets: list[str], sign: Any) -> Any:
    """A change of the settings: the consumer is the only destination, or every task's own callback_url."""

    def change(given: dict[str, Any]) -> None:
        own = sign is as_callback
        given["destinations"] = [] if own else [destination("consumer", to.url)]
        given["security"]["allow_private_callbacks"] = True
        given["delivery"]["schedule"] = ["0s", "1100ms", "100ms", "100ms", "100ms", "200ms", "200ms"]
        given["polling"]["callback_grace"] = "500ms"  # what the upstream calls while the service restarts is looked up
        sign(given, secrets)

    return change


async def submitted(here: World, to: Consumer, sign: Any) -> str:
    """A task that the consumer will hear of, asked for again while the service is away."""
    own = {"callback_url": to.url} if sign is as_callback else {}
    body = {"route": PRO, "input": body_of(PRO, script()), **own}
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                answer = await here.api.post("/tasks", json=body)
            except httpx.TransportError:
                await asyncio.sleep(0.02)
                continue
            if answer.status_code == 503:  # it is stopping
                continue
            assert answer.status_code in {201, 202}, answer.text
            return str(answer.json()["id"])


async def event_of(here: World, task_id: str) -> str:
    """The id of a task's terminal event, once it is delivered."""
    await here.ended(task_id)
    await here.eventually(lambda: here.all_delivered(task_id))
    [event] = [item for item in await here.timeline(task_id, "event") if item["type"] == "task.succeeded"]
    return str(event["event_id"])


@pytest.mark.parametrize("sign", [as_destination, as_callback])
async def test_rotation_by_overlap_has_no_gap(tmp_path: Path, sign: Any) -> None:
    """Two rotations under traffic that never stops: each delivery verifies at its first try."""
    async with consumer() as to, world(tmp_path, change=made(to, [OLD], sign)) as here:
        tasks: list[str] = []
        stop = asyncio.Event()

        async def traffic() -> None:
            while not stop.is_set():
                tasks.append(await submitted(here, to, sign))

        sending = asyncio.create_task(traffic())
        signs = [OLD]
        for secrets, secret in STEPS:
            if secrets != signs:
                sign(here.settings, secrets)
                await here.restart()
                signs = secrets
            to.secret = secret
            count = len(to.received) + 3
            await to.until(lambda count=count: len(to.received) >= count)  # type: ignore[misc]
        stop.set()
        await sending
        for event_id, task_id in [(await event_of(here, one), one) for one in tasks]:
            assert len({one.body for one in to.copies(event_id)}) == 1
            attempts = await here.timeline(task_id, "attempt")
            assert [one["result"] for one in attempts] == ["ok"]
        assert to.bad == []
        assert len(tasks) >= 3 * len(STEPS)
        assert {len(one.headers["webhook-signature"].split()) for one in to.received} == {1, 2}


@pytest.mark.parametrize("sign", [as_destination, as_callback])
async def test_a_retry_across_a_rotation_is_signed_with_the_new_secrets(tmp_path: Path, sign: Any) -> None:
    """Its first try was signed with the old one; the next has the same id and bytes, and its own time and signature."""
    async with consumer() as to, world(tmp_path, change=made(to, [OLD], sign)) as here:
        to.answers[:] = [500]
        task_id = await submitted(here, to, sign)
        await to.until(lambda: len(to.received) == 1)
        sign(here.settings, [OLD, NEW])
        await here.restart()
        to.secret = NEW
        event_id = await event_of(here, task_id)
        first, second = to.copies(event_id)
        assert to.bad == []
        assert first.body == second.body
        assert int(first.headers["webhook-timestamp"]) < int(second.headers["webhook-timestamp"])
        signatures = first.headers["webhook-signature"].split() + second.headers["webhook-signature"].split()
        assert len(signatures) == len(set(signatures)) == 3
        attempts = await here.timeline(task_id, "attempt")
        assert [one["result"] for one in attempts] == ["transient", "ok"]
        assert {one["request"]["headers"]["webhook-id"] for one in attempts} == {event_id}


async def test_without_overlap_there_is_a_gap_that_retries_bridge(tmp_path: Path) -> None:
    """The consumer refuses what it cannot verify; when it has the new secret, the same event arrives."""
    async with consumer() as to, world(tmp_path, change=made(to, [NEW], as_destination)) as here:
        task_id = await submitted(here, to, as_destination)

        async def refused() -> bool:
            return bool(to.bad)

        await here.eventually(refused)
        to.secret = NEW
        event_id = await event_of(here, task_id)
        assert len(to.copies(event_id)) == 1
        attempts = await here.timeline(task_id, "attempt")
        assert [(one["response"]["status"], one["result"]) for one in attempts] == [(401, "transient"), (200, "ok")]


async def test_every_secret_signs_oldest_first(tmp_path: Path) -> None:
    """One signature for each, in the order of the configuration; each secret verifies its own alone."""
    async with consumer() as to, world(tmp_path, change=made(to, [OLD, NEW], as_destination)) as here:
        await event_of(here, await submitted(here, to, as_destination))
        [one] = to.received
        signatures = one.headers["webhook-signature"].split()
        assert len(signatures) == 2
        for secret, signature in zip((OLD, NEW), signatures, strict=True):
            alone = {**one.headers, "webhook-signature": signature}
            Webhook(secret).verify(one.body, alone)
            svix.webhooks.Webhook(secret).verify(one.body, alone)
        with pytest.raises(svix.webhooks.WebhookVerificationError):
            svix.webhooks.Webhook(NEXT).verify(one.body, one.headers)


async def test_what_is_sent_again_by_hand_is_signed_with_the_new_secrets(tmp_path: Path) -> None:
    """Redelivered, and replayed, long after the old secret has gone: the same id and bytes, signed afresh each time."""
    async with consumer() as to, world(tmp_path, change=made(to, [OLD], as_destination)) as here:
        event_id = await event_of(here, await submitted(here, to, as_destination))
        as_destination(here.settings, [NEW])
        await here.restart()
        to.secret = NEW
        [delivery] = (await here.api.get("/deliveries")).json()["data"]
        again = await here.api.post(f"/deliveries/{delivery['id']}/redeliver")
        await to.until(lambda: len(to.copies(event_id)) == 2)
        await here.eventually(lambda: here.all_delivered(delivery["task_id"]))
        replay = await here.api.post("/replays", json={"state": "delivered"})
        await to.until(lambda: len(to.copies(event_id)) == 3)
        await here.eventually(lambda: here.all_delivered(delivery["task_id"]))
        assert (again.status_code, replay.status_code) == (202, 202)
        assert to.bad == []
        assert len({one.body for one in to.copies(event_id)}) == 1
        attempts = (await here.api.get(f"/deliveries/{delivery['id']}")).json()["attempts"]
        assert [(one["number"], one["result"]) for one in attempts] == [(1, "ok"), (2, "ok"), (3, "ok")]
        assert [one["redelivery"] for one in attempts] == [False, True, True]
        for one, copy in zip(attempts, to.copies(event_id), strict=True):
            stamp = int(datetime.fromisoformat(one["started_at"]).timestamp())
            assert one["request"]["headers"]["webhook-timestamp"] == copy.headers["webhook-timestamp"] == str(stamp)
