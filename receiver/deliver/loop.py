"""The loop that claims, the slots, and the attempts; decisions are `retry`'s, writes are `ops`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import orjson

from receiver import ids, retry
from receiver.deliver.lanes import Lane
from receiver.deliver.ops import Attempted, Claim, HandBack
from receiver.errors import EgressError, StoreUnavailable
from receiver.records import Attempt
from receiver.retry import Result
from receiver.wire import HttpRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from receiver.deliver.lanes import Destination
    from receiver.egress import Egress
    from receiver.logs import Logger
    from receiver.records import Delivery, Event
    from receiver.retry import Decision
    from receiver.store import Store
    from receiver.wire import HttpResponse

KEPT_BYTES = 16 * 1024
"""What is kept of an answer (contract 4.3)."""
IDLE_FOR = 1.0
STORE_RETRY_FOR = timedelta(seconds=0.5)
"""Between tries to write what an attempt became."""


@dataclass
class Deliverer:
    """The lanes, the loop that claims, and the attempts.

    Attributes:
        max_concurrency: attempts at once in all; every destination keeps one slot even then.
        entropy, draw: random bytes for ids, and a number from 0 up to 1 for jitter.
    """

    store: Store
    egress: Egress
    destinations: Mapping[str, Destination]
    log: Logger
    clock: Callable[[], datetime]
    entropy: Callable[[int], bytes]
    draw: Callable[[], float]
    max_concurrency: int
    _lanes: dict[str, Lane] = field(init=False)
    _busy: int = 0
    _trying: dict[asyncio.Task[None], Delivery] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False

    def __post_init__(self) -> None:
        """Open a lane for every destination."""
        self._lanes = {name: Lane(destination) for name, destination in self.destinations.items()}

    def room(self, destination: str) -> int:
        """How many more may be handed over now; read from the writer's thread, so it is a hint and not a promise."""
        lane = self._lanes.get(destination)
        return 0 if lane is None or self._stopping else lane.room

    def wake(self, destination: str | None = None, due_at: datetime | None = None) -> None:
        """Something is due: for one destination or for any, now or at a time."""
        for name in self._lanes if destination is None else (destination,):
            lane = self._lanes.get(name)
            if lane is None:
                continue
            if due_at is None or due_at <= self.clock():
                lane.due = True
            elif lane.due_at is None or due_at < lane.due_at:
                lane.due_at = due_at
            else:
                continue
            self._wake.set()

    def take(self, leased: Sequence[tuple[Delivery, Event]]) -> None:
        """Deliveries that were leased at birth."""
        for delivery, event in leased:
            self._lanes[delivery.destination].waiting.append((delivery, event))
        self._start()

    async def run(self) -> None:
        """Claim what is due and keep the slots busy, for ever."""
        while not self._stopping:
            wait = IDLE_FOR
            try:
                wait = await self._round()
            except StoreUnavailable as error:
                self.log.error("deliver.store_unavailable", error=str(error))
            try:
                await asyncio.wait_for(self._wake.wait(), wait)
            except TimeoutError:
                for lane in self._lanes.values():
                    lane.due = True
            self._wake.clear()

    async def _round(self) -> float:
        """One claim for every lane with room; seconds until the next is due."""
        now = self.clock()
        lanes = [lane for lane in self._lanes.values() if lane.due and lane.is_low]
        claims = await asyncio.gather(
            *(
                self.store.run(
                    Claim(self.store, lane.destination.name, lane.room, now, now + lane.destination.lease_for)
                )
                for lane in lanes
            )
        )
        for lane, (leased, upcoming) in zip(lanes, claims, strict=True):
            lane.due = False
            lane.due_at = upcoming
            lane.waiting.extend(leased)
        self._start()
        dues = [lane.due_at for lane in self._lanes.values() if lane.due_at is not None and lane.is_low]
        if not dues:
            return IDLE_FOR
        soonest = (min(dues) - self.clock()).total_seconds()
        if soonest <= 0:
            for lane in self._lanes.values():
                lane.due = lane.due or (lane.due_at is not None and lane.due_at <= now)
        return min(max(soonest, 0.01), IDLE_FOR)

    def _start(self) -> None:
        """Begin attempts while there are slots: round by round over the lanes, so that none is starved."""
        if self._stopping:
            return
        started = True
        while started:
            started = False
            for lane in self._lanes.values():
                if lane.waiting and self._has_slot(lane):
                    delivery, event = lane.waiting.popleft()
                    self._begin(lane, delivery, event)
                    started = True

    def _has_slot(self, lane: Lane) -> bool:
        if lane.busy >= lane.destination.max_concurrency:
            return False
        return lane.busy == 0 or self._busy < self.max_concurrency

    def _begin(self, lane: Lane, delivery: Delivery, event: Event) -> None:
        lane.busy += 1
        self._busy += 1
        trying = asyncio.create_task(self._attempt(lane.destination, delivery, event))
        self._trying[trying] = delivery

        def ended(task: asyncio.Task[None]) -> None:
            lane.busy -= 1
            self._busy -= 1
            self._trying.pop(task, None)
            if not task.cancelled() and (error := task.exception()) is not None:
                self.log.error("delivery.failed", delivery_id=delivery.id, error=repr(error))
            lane.due = lane.due or (lane.due_at is not None and lane.due_at <= self.clock())
            if lane.due and lane.is_low:
                self._wake.set()
            self._start()

        trying.add_done_callback(ended)

    async def _attempt(self, destination: Destination, delivery: Delivery, event: Event) -> None:
        """One try: the flow through egress, the decision, one guarded write, one wide line."""
        started = self.clock()
        if (
            delivery.leased_until is not None
            and started + timedelta(seconds=destination.timeout) > delivery.leased_until
        ):
            return  # it waited too long in memory; the sweep gives it back, and no attempt is spent
        request, response, result = await self._flow(destination, event, started)
        ended = self.clock()
        number = delivery.attempt_count + 1
        decision = retry.decide(
            result,
            attempt=number - delivery.budget_from,
            schedule=destination.schedule,
            now=ended,
            jitter=destination.jitter * self.draw(),
        )
        attempt = Attempt(
            id=ids.attempt_id(int(started.timestamp() * 1000), self.entropy(10)),
            delivery_id=delivery.id,
            task_id=delivery.task_id,
            number=number,
            started_at=started,
            duration_ms=round((ended - started).total_seconds() * 1000),
            redelivery=delivery.budget_from > 0,
            request_json=_request_json(request, destination),
            response_json=_response_json(response),
            error=None if response is not None else result.reason,
            result=result.kind,
            reason=decision.reason,
            next_at=decision.due_at if decision.state == "pending" else None,
        )
        await self._write(delivery, attempt, decision, ended, response)

    async def _flow(
        self, destination: Destination, event: Event, now: datetime
    ) -> tuple[HttpRequest, HttpResponse | None, Result]:
        """Run the kind's generator: each request out, each answer in, until it returns what they mean.

        A fault of ours is an attempt that failed: a delivery that only raised would come back for ever.
        """
        request, response = HttpRequest("", ""), None
        try:
            steps = destination.kind.flow(event, destination.options, now=now)
            request = next(steps)
            while True:
                response = await self.egress.deliver(
                    request, timeout=destination.timeout, allow_private=destination.allow_private
                )
                request = steps.send(response)
        except StopIteration as done:
            return request, response, done.value
        except EgressError as error:
            return request, None, retry.from_error(error)
        except Exception as error:  # noqa: BLE001 -- see above
            self.log.error("delivery.failed", event_id=event.id, destination=destination.name, error=repr(error))
            fault = f"a fault of the kind {destination.kind.name} ({type(error).__name__}); the log has more"
            return request, None, Result("transient", fault)

    async def _write(
        self, delivery: Delivery, attempt: Attempt, decision: Decision, at: datetime, response: HttpResponse | None
    ) -> None:
        held, stored = False, False
        try:
            held = await self._stored(Attempted(delivery, attempt, decision, at))
            stored = True
        finally:
            # One wide line for every attempt, also where the store was away: it was made all the same.
            line: dict[str, Any] = {
                "task_id": delivery.task_id,
                "event_id": delivery.event_id,
                "delivery_id": delivery.id,
                "destination": delivery.destination,
                "attempt": attempt.number,
                "result": attempt.result,
                "status": response.status if response else None,
                "duration_ms": attempt.duration_ms,
                "state": decision.state,
                "reason": attempt.reason,
                "next_at": _text(attempt.next_at),
                "stored": stored and held,
            }
            (self.log.info if attempt.result == "ok" else self.log.warning)("delivery.attempted", **line)
        if held and decision.state == "dead":
            self.log.error(
                "delivery.dead",
                task_id=delivery.task_id,
                event_id=delivery.event_id,
                delivery_id=delivery.id,
                destination=delivery.destination,
                reason=decision.reason,
            )
        lane = self._lanes.get(delivery.destination)
        if held and decision.state == "pending" and decision.due_at is not None and lane is not None:
            lane.due_at = min(lane.due_at or decision.due_at, decision.due_at)
            self._wake.set()

    async def _stored(self, op: Attempted) -> bool:
        """Write, and again while the lease holds: what is not written is sent a second time."""
        lease = op.delivery.leased_until
        while True:
            try:
                return await self.store.run(op)
            except StoreUnavailable:
                if lease is None or self.clock() + STORE_RETRY_FOR >= lease:
                    raise
            await asyncio.sleep(STORE_RETRY_FOR.total_seconds())

    async def stop(self, seconds: float) -> None:
        """Start nothing new; attempts under way have `seconds` to finish; all that is leased then is given back."""
        self._stopping = True
        self._wake.set()
        if self._trying:
            await asyncio.wait(set(self._trying), timeout=seconds)
        # Only now: commits that were under way when the stop began may have handed over more.
        back = [delivery for lane in self._lanes.values() for delivery, _ in lane.waiting]
        for lane in self._lanes.values():
            lane.waiting.clear()
        back += list(self._trying.values())
        unfinished = set(self._trying)
        for trying in unfinished:
            trying.cancel()
        if unfinished:
            await asyncio.wait(unfinished)
        try:
            await self.store.run(HandBack(back, self.clock()))
        except StoreUnavailable as error:  # the leases run out by themselves
            self.log.error("deliver.store_unavailable", error=str(error))


def _text(at: datetime | None) -> str | None:
    return None if at is None else f"{at.isoformat(timespec='milliseconds')[:23]}Z"


def _request_json(request: HttpRequest, destination: Destination) -> str:
    shown = destination.kind.masked(request)
    return orjson.dumps({"url": shown.url, "headers": dict(shown.headers)}).decode()


def _response_json(response: HttpResponse | None) -> str | None:
    if response is None:
        return None
    body = response.body[:KEPT_BYTES].decode("utf-8", errors="replace")
    return orjson.dumps({"status": response.status, "headers": dict(response.headers), "body": body}).decode()
