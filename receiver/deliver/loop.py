"""The loop that claims, the slots, the attempts. Decisions are `retry`'s, health is `health`'s, writes are `ops`."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from receiver.deliver.claims import Claim, HandBack
from receiver.deliver.heeding import Heeding
from receiver.deliver.lanes import Lane
from receiver.deliver.ops import LEFT_ALONE, Heed, Knock, Knocked, Redeliver, Turn
from receiver.deliver.trying import Trier, sample
from receiver.errors import Conflict, NotFound, StoreUnavailable
from receiver.records import Health
from receiver.store.rates import Paced

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from receiver.deliver.lanes import Destination, Leased
    from receiver.deliver.ops import Tried
    from receiver.egress import Egress
    from receiver.ids import DeliveryId
    from receiver.ingest import After, Rulebook
    from receiver.records import Attempt, Delivery, Event
    from receiver.retry import Decision
    from receiver.store import Store

IDLE_FOR = 1.0


@dataclass
class Deliverer:
    """The lanes, the loop that claims, and the attempts.

    Attributes:
        max_concurrency: attempts at once in all; every destination keeps one slot even then, and the lanes that many
            share have slots of their own.
    """

    store: Store
    egress: Egress
    destinations: Mapping[str, Destination]
    rules: Rulebook
    after: After
    clock: Callable[[], datetime]
    max_concurrency: int
    _lanes: dict[str, Lane] = field(init=False)
    _busy: int = 0
    _trying: dict[asyncio.Task[None], list[Delivery]] = field(default_factory=dict)
    _back: list[Delivery] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False
    _turns: list[Lane] = field(init=False)
    _look_at: float = 0.0
    _claiming: asyncio.Lock = field(default_factory=asyncio.Lock)
    _trier: Trier = field(init=False)

    def __post_init__(self) -> None:
        """Open a lane for every destination."""
        self._lanes = {name: Lane(destination) for name, destination in self.destinations.items()}
        self._turns = list(self._lanes.values())
        self._trier = Trier(self.store, self.egress, self.rules, self.after, self.clock)

    def room(self, destination: str) -> int:
        """How many more may be handed over now; read from the writer's thread, so it is a hint and not a promise."""
        lane = self._lanes.get(destination)
        if lane is None or self._stopping or lane.state != "active" or lane.has_older or lane.destination.is_paced:
            return 0
        return 0 if self._is_left_alone(lane) else lane.room

    def wake(self, destination: str | None = None, due_at: datetime | None = None) -> None:
        """Something is due: for one destination or for any, now or at a time."""
        now = self.clock()
        for name in self._lanes if destination is None else (destination,):
            lane = self._lanes.get(name)
            if lane is None or (due_at is not None and lane.is_held(now)):
                continue
            if due_at is None or due_at <= now:
                lane.due = True
            elif lane.due_at is None or due_at < lane.due_at:
                lane.due_at = due_at
            else:
                continue
            self._wake.set()

    def take(self, leased: Sequence[tuple[Delivery, Event]]) -> None:
        """Deliveries that were leased at birth."""
        for delivery, event in leased:
            lane = self._lanes[delivery.destination]
            if lane.state == "active" and not (self._is_left_alone(lane) or lane.is_crowded(delivery)):
                lane.waiting.append((delivery, event))
            else:  # it was paused, or its circuit opened, while they were born; or one host would fill a shared lane
                lane.more = True
                self.give_back([delivery])
        self._start()

    # -- by hand ---------------------------------------------------------------------------------------------------

    async def redeliver(self, delivery_id: DeliveryId) -> Delivery:
        """Open a delivery again and try it at once, even past a pause or an open circuit.

        Raises:
            NotFound, Conflict: see `ops.Redeliver`.
        """
        delivery = await self.store.run(Redeliver(delivery_id, self.destinations.keys(), self.clock()))
        self.after.log.info(
            "delivery.reopened",
            task_id=delivery.of_task,
            event_id=delivery.event_id,
            delivery_id=delivery.id,
            destination=delivery.destination,
        )
        self._lanes[delivery.destination].asked = True
        self.wake(delivery.destination)
        return delivery

    async def pause(self, name: str) -> Health:
        """Try nothing of a destination until it is resumed; what is under way ends.

        Raises:
            NotFound: it is not configured.
        """
        return await self._turn(name, on=False)

    async def resume(self, name: str) -> Health:
        """Try a destination again at once.

        Raises:
            NotFound: it is not configured.
        """
        return await self._turn(name, on=True)

    async def _turn(self, name: str, *, on: bool) -> Health:
        self._with_health(name)
        turned = await self.store.run(Turn(name, on, self.clock(), self.rules))
        self._told(turned.change.told or turned.change.logged, name, turned.change.reason)
        self.after.born(turned.born)
        self._heard(self._lanes[name], turned.change.health)
        return turned.change.health

    async def test(self, name: str) -> Attempt:
        """Send a sample event now, past a pause and an open circuit; the attempt, which is not stored.

        Raises:
            NotFound: it is not configured.
            Conflict: it asked to be left alone, or its rate is used up; nothing was sent.
        """
        destination, lane, now = self._with_health(name), self._lanes[name], self.clock()
        knocked = await self.store.run(Knock(name, now, self._paced(lane, now)))
        if not await self._heeding(lane).is_free():  # it said so while we asked
            knocked = Knocked(lane.held_until, LEFT_ALONE)
        if knocked.until is not None:
            again = f"{knocked.until.isoformat(timespec='seconds')[:19]}Z"
            raise Conflict(f"nothing was sent to {name}: {knocked.reason}, and may be called again at {again}")
        made, result = await sample(self._trier, destination, self._heeding(lane))
        self.after.log.info("destination.tested", destination=name, result=made.result, reason=made.reason)
        if result.kind != "ok" or result.hold is not None:
            self._heard(lane, await self.store.run(Heed(name, result, self.clock())))
            self.after.held(name)
        return made

    def _with_health(self, name: str) -> Destination:
        destination = self.destinations.get(name)
        if destination is None or destination.terms is None:
            known = ", ".join(sorted(one.name for one in self.destinations.values() if one.terms is not None))
            raise NotFound(f"there is no destination {name[:80]!r}; the service started with: {known or 'none'}")
        return destination

    # -- claiming --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Claim what is due and keep the slots busy, for ever."""
        while not self._stopping:
            wait = IDLE_FOR
            try:
                async with self._claiming:
                    wait = await self._round()
            except StoreUnavailable as error:
                self.after.log.error("deliver.store_unavailable", error=str(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait)
            self._wake.clear()

    async def _round(self) -> float:
        """One claim for every lane with room; seconds until the next is due."""
        await self._put_back()
        now = self.clock()
        is_time = self._look(now)  # then a lane that is full asks, too: what another instance was told, it hears so
        lanes = [lane for lane in self._lanes.values() if lane.asked or (lane.due and (lane.is_low or is_time))]
        for lane in lanes:  # before the claims: what is said while they are under way is said of what they miss
            lane.due = lane.asked = lane.more = lane.more_asked = False
            lane.due_at = None
        asked = [self._claimed(lane, self._claim(lane, now)) for lane in lanes]
        failures = await asyncio.gather(*asked, return_exceptions=True)
        self._start()
        for failure in filter(None, failures):  # only now: what the other lanes claimed is under way
            raise failure
        now, lanes = self.clock(), [*self._lanes.values()]
        # A full one's time counts until it comes: the lane is due then, and the end of an attempt finds it so.
        dues = [lane.due_at for lane in lanes if lane.due_at is not None and (lane.is_low or lane.due_at > now)]
        soonest = (min(dues) - now).total_seconds() if dues else IDLE_FOR
        return min(max(soonest, 0.01), IDLE_FOR)

    def _look(self, now: datetime) -> bool:
        """Which lanes are due now; all of them once in `IDLE_FOR`, however busy some are, should a wake be lost."""
        at = asyncio.get_running_loop().time()
        is_time = at >= self._look_at
        if is_time:
            self._look_at = at + IDLE_FOR
        for lane in self._lanes.values():
            lane.due = lane.due or is_time or (lane.due_at is not None and lane.due_at <= now)
        return is_time

    def _claim(self, lane: Lane, now: datetime) -> Claim:
        destination = lane.destination
        free = lane.room
        if destination.is_paced:  # a start that was granted does not wait for a slot
            free = min(free, max(self.max_concurrency - self._busy, 0 if lane.busy else 1))
        return Claim(
            self.store,
            destination.name,
            free,
            now,
            now + destination.lease_for,
            has_health=destination.terms is not None,
            share=destination.share,
            held=lane.held_by_host(),
            forced=free if destination.is_paced else lane.forced_room,
            again_first=lane.again_first,
            paced=self._paced(lane, now),
            folded_past=None if destination.coalesce is None else destination.folded_past,
        )

    def _paced(self, lane: Lane, now: datetime) -> Paced | None:
        rates = lane.destination.windows
        return Paced(rates, now, lane.haste.by(rates, now)) if rates else None

    async def _claimed(self, lane: Lane, claim: Claim) -> None:
        """Heard of at once, in the order of what shares the commit: a pause, say, that stands behind it."""
        now = claim.now
        try:
            claimed = await self.store.run(claim)
        except Exception:
            lane.due = lane.asked = True
            raise
        if claim.paced is not None and (claimed.leased or claimed.together):
            lane.granted, lane.together = claim.paced, claimed.together
        lane.again_first ^= bool(claimed.leased)
        lane.more_asked = lane.more_asked or claimed.more_asked
        if claimed.upcoming is not None and claimed.upcoming <= now:
            lane.more = True  # due, and not taken: for want of room, of the rate, of its host's share
        elif claimed.upcoming is not None:
            lane.wake_at(claimed.upcoming)
        lane.waiting.extendleft(one for one in reversed(claimed.leased) if one[0].forced)
        lane.waiting.extend(one for one in claimed.leased if not one[0].forced)
        self._heard(lane, claimed.health or Health(lane.destination.name))

    def _heard(self, lane: Lane, health: Health) -> None:
        """A destination's health is this now: what waits in memory goes on, or goes back untried."""
        was, now = lane.state, self.clock()
        lane.hear(health)
        if lane.is_left_alone(now):
            lane.wake_at(lane.held_until or now)
        if health.state != "active" or lane.is_left_alone(now):
            self.give_back(lane.put_back(health.probe_id, now))
        if health.state != was and was is not None:
            lane.due = True
            self._wake.set()

    def give_back(self, deliveries: list[Delivery]) -> None:
        """These go back untried, soon."""
        if deliveries:
            self._back += deliveries
            self._wake.set()

    async def _put_back(self) -> None:
        if back := self._back.copy():
            await self.store.run(HandBack(back, self.clock()))
            del self._back[: len(back)]

    # -- trying ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Begin attempts while there are slots: round by round over the lanes, so that none is starved."""
        if self._stopping:
            return
        started, now = True, self.clock()
        while started:
            started = False
            for lane in tuple(self._turns):
                if lane.has_waiting and self._has_slot(lane) and (leased := lane.next(now)):
                    self._begin(lane, leased)
                    self._turns.remove(lane)  # whoever had a slot comes last for the next
                    self._turns.append(lane)
                    started = True

    def _has_slot(self, lane: Lane) -> bool:
        return lane.has_own_slots or lane.busy == 0 or self._busy < self.max_concurrency

    def _begin(self, lane: Lane, leased: tuple[Leased, ...]) -> None:
        delivery = leased[0][0]
        lane.begin(delivery)
        self._busy += not lane.has_own_slots
        # Whoever set this off, an API request perhaps, it is not of that: nor are those that follow on it.
        trying = asyncio.create_task(self._attempt(lane, leased, lane.granted), context=Context())
        self._trying[trying] = [one for one, _ in leased]

        def ended(task: asyncio.Task[None]) -> None:
            lane.end(delivery)
            self._busy -= not lane.has_own_slots
            self._trying.pop(task, None)
            if not task.cancelled() and (error := task.exception()) is not None:
                self.after.log.error("delivery.failed", delivery_id=delivery.id, error=repr(error))
            lane.asked = lane.asked or lane.more_asked
            lane.due = lane.due or lane.more or (lane.due_at is not None and lane.due_at <= self.clock())
            if lane.asked or (lane.due and lane.is_low):
                self._wake.set()
            self._start()

        trying.add_done_callback(ended, context=Context())

    async def _attempt(self, lane: Lane, leased: tuple[Leased, ...], granted: Paced | None) -> None:
        heeding = self._heeding(lane)
        may_begin = await heeding.may_begin()
        started, destination, lease = self.clock(), lane.destination, leased[0][0].leased_until
        if granted is not None and may_begin:
            lane.haste.saw(granted.now, started)
        if lease is not None and started + destination.attempt_for > lease:
            return  # it waited too long in memory; the sweep gives it back, and no attempt is spent
        if self._stopping or not may_begin or (granted is not None and started > granted.by):
            lane.due = True  # we stop, it asked for that just now, or the start that was granted is over
            self.give_back([delivery for delivery, _ in leased])
            return
        for delivery, decision, tried in await self._trier.run(destination, leased, started, heeding):
            self._settle(lane, delivery, decision, tried)

    def _is_left_alone(self, lane: Lane) -> bool:
        return lane.held_until is not None and lane.is_left_alone(self.clock())

    def _heeding(self, lane: Lane) -> Heeding:
        return Heeding(lane, self.store, self.clock, self.after.log, self._heard, self.give_back)

    def _settle(self, lane: Lane, delivery: Delivery, decision: Decision, tried: Tried) -> None:
        if decision.state == "dead":
            self.after.log.error(
                "delivery.dead",
                task_id=delivery.of_task,
                event_id=delivery.event_id,
                delivery_id=delivery.id,
                destination=delivery.destination,
                reason=decision.reason,
            )
        if tried.change is not None:
            self._told(tried.change.told or tried.change.logged, delivery.destination, tried.change.reason)
            self._heard(lane, tried.change.health)
        self.after.born(tried.born)
        due_at = decision.due_at
        if lane.state != "active" and tried.change is not None:
            due_at = tried.change.health.next_try_at
        if due_at is not None:
            lane.wake_at(due_at)
            self._wake.set()

    def _told(self, told: str | None, name: str, reason: str) -> None:
        if told is not None:
            log = self.after.log
            (log.info if told == "destination.recovered" else log.error)(told, destination=name, reason=reason)

    async def stop(self, seconds: float) -> None:
        """Start nothing new; attempts under way have `seconds` to finish; all that is leased then is given back."""
        self._stopping = True
        self._wake.set()
        if self._trying:
            await asyncio.wait(set(self._trying), timeout=seconds)
        unfinished = dict(self._trying)
        back = [delivery for leased in unfinished.values() for delivery in leased]
        for trying in unfinished:
            trying.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        try:
            async with self._claiming:  # what is being claimed is given back, too
                # At least once, and until there is no more: commits before this one may have handed over others.
                await self.store.run(HandBack(back + self._untried(), self.clock()))
                while back := self._untried():
                    await self.store.run(HandBack(back, self.clock()))
        except StoreUnavailable as error:  # the leases run out by themselves
            self.after.log.error("deliver.store_unavailable", error=str(error))

    def _untried(self) -> list[Delivery]:
        """What is leased and only waits in memory, taken out of it."""
        back, self._back = self._back, []
        return back + [delivery for lane in self._lanes.values() for delivery in lane.drain()]
