"""A destination's lane: what waits for its slots in this process, how much may, and how fast."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from receiver.health import held
from receiver.pace import Haste, Rate
from receiver.records import Health

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from receiver.destinations.base import Kind, Options
    from receiver.health import Terms
    from receiver.ids import DeliveryId
    from receiver.lifecycle import HealthState
    from receiver.records import Delivery, Event
    from receiver.retry import Result
    from receiver.store.rates import Paced

HANDED_PER_SLOT = 4
"""Deliveries that may wait in memory for each slot of a lane; more stay in the store until there is room."""

Leased = tuple["Delivery", "Event"]


@dataclass(frozen=True)
class Destination:
    """A configured receiver, as deliver needs it. Durations of attempts are seconds.

    Attributes:
        terms: when its circuit opens; None for one without health: tasks' own callback_urls, which share a lane.
        rate: so many attempts in so long; None for as many as there are.
        coalesce: past so many in so long, what is due goes out together, in one message; None for never.
        per_host: slots of one host, where many share the lane.
        home: this service's public URL, where it has one; kinds name it.
    """

    name: str
    kind: Kind
    options: Options
    schedule: Sequence[timedelta]
    jitter: float
    timeout: float
    max_concurrency: int
    allow_private: bool
    terms: Terms | None = None
    rate: tuple[float, timedelta] | None = None
    coalesce: tuple[float, timedelta] | None = None
    per_host: int | None = None
    home: str | None = None

    @cached_property
    def attempt_for(self) -> timedelta:
        """The longest an attempt takes: its requests, and between them asking whether to go on."""
        return timedelta(seconds=self.timeout * (2 * self.kind.steps - 1))

    @property
    def lease_for(self) -> timedelta:
        """Long enough for those ahead in memory and for itself; whole milliseconds, as it is stored and known again."""
        milliseconds = (HANDED_PER_SLOT + 2) * self.attempt_for // timedelta(milliseconds=1)
        return timedelta(seconds=30, milliseconds=milliseconds)

    @property
    def is_paced(self) -> bool:
        """Whether each attempt needs a start, which is the database's to give."""
        return self.rate is not None or self.coalesce is not None

    @property
    def windows(self) -> tuple[Rate, ...]:
        """What its attempts are counted by, under the names by which all processes count them."""
        named = ((f"destination:{self.name}", self.rate), (self.folded_past, self.coalesce))
        return tuple(Rate(name, *given) for name, given in named if given is not None)

    @property
    def folded_past(self) -> str:
        """The window past which what is due goes out together."""
        return f"coalesce:{self.name}"

    @property
    def share(self) -> int | None:
        """How many of one host a shared lane may hold in memory; None where the lane is one receiver's own."""
        return None if self.per_host is None else self.per_host * HANDED_PER_SLOT

    def options_for(self, delivery: Delivery) -> Options:
        """What the kind's flow is told: of a task's own callback_url, where it is."""
        if delivery.callback_url is None:
            return self.options
        return self.options.model_copy(update={"url": delivery.callback_url})


@dataclass(eq=False)
class Lane:
    """One destination's deliveries in this process: those that wait in memory, and those under way.

    Attributes:
        state: the destination's health as it was last heard; None until it was first asked for.
        due: there may be something to claim.
        asked: somebody asked for a delivery by hand: it is claimed even where there is no room.
        due_at: when there will be.
        more: there was more than could be taken: to be claimed when one of its own ends.
        more_asked: as `more`, of those asked for by hand.
        again_first: whose turn it is where only one can be taken: a retry's, or new work's.
        held_until: it asked to be left alone until then.
        haste: how soon what is claimed here can be begun; for one with a rate.
        granted: what the starts were asked with that those who wait were granted; None where there is no rate.
        together: those that wait to go out in one message.
    """

    destination: Destination
    state: HealthState | None = None
    waiting: deque[Leased] = field(default_factory=deque)
    busy: int = 0
    due: bool = True
    due_at: datetime | None = None
    asked: bool = False
    more: bool = False
    more_asked: bool = False
    again_first: bool = False
    held_until: datetime | None = None
    haste: Haste = field(default_factory=Haste)
    granted: Paced | None = None
    together: tuple[Leased, ...] = ()
    _busy_hosts: Counter[str | None] = field(default_factory=Counter)

    @property
    def has_own_slots(self) -> bool:
        """Whether its slots come on top of `delivery.max_concurrency`, since many share them."""
        return self.destination.per_host is not None

    @property
    def capacity(self) -> int:
        """How many it may hold in this process, those under way included."""
        return self.destination.max_concurrency * HANDED_PER_SLOT

    @property
    def is_low(self) -> bool:
        """Claiming in larger steps costs less: not before half of the room is free."""
        return self.room > (0 if self.destination.is_paced else self.capacity // 2)

    @property
    def has_waiting(self) -> bool:
        """Whether something waits in memory."""
        return bool(self.waiting or self.together)

    @property
    def room(self) -> int:
        """How many more it may take; a start that was granted does not wait for a slot."""
        if self.destination.is_paced:
            return 0 if self.has_waiting else max(0, self.destination.max_concurrency - self.busy)
        return max(0, self.capacity - len(self.waiting) - self.busy)

    @property
    def has_older(self) -> bool:
        """Something waits in the store that the lane will not take yet; what is born must not pass it by."""
        return self.more or (self.due and not self.is_low)

    @property
    def forced_room(self) -> int:
        """How many more of those asked for by hand it may take, past its room."""
        return max(0, self.capacity - sum(1 for delivery, _ in self.waiting if delivery.forced))

    def is_held(self, now: datetime) -> bool:
        """Whether its health forbids what would be claimed now: a birth is no reason to ask the store about it."""
        probe_waits = self.state == "open" and self.due_at is not None and self.due_at > now
        return self.is_left_alone(now) or (not self.asked and (self.state == "paused" or probe_waits))

    def is_left_alone(self, now: datetime) -> bool:
        """Whether it asked for that: nothing at all is begun."""
        return self.held_until is not None and self.held_until > now

    def hear(self, health: Health) -> None:
        """Its health is this; what it asked for before is only ever over by time, whoever's word comes late."""
        self.state = health.state
        if health.held_until is not None:
            self.held_until = max(health.held_until, self.held_until or health.held_until)

    def heed(self, result: Result, at: datetime) -> list[Delivery]:
        """What it asked for holds at once, however long that takes to be stored; those that go back untried for it."""
        until = held(Health(self.destination.name), result, at).held_until
        if until is None or self.destination.terms is None:
            return []
        self.held_until = max(until, self.held_until or until)
        self.wake_at(self.held_until)
        return self.put_back(None, at)

    def wake_at(self, at: datetime) -> None:
        """It is due then at the latest."""
        self.due_at = at if self.due_at is None else min(self.due_at, at)

    def held_by_host(self) -> Counter[str | None]:
        """How many of a shared lane each host holds, those that wait included."""
        if self.destination.per_host is None:
            return Counter()
        return self._busy_hosts + Counter(delivery.callback_host for delivery, _ in self.waiting)

    def is_crowded(self, delivery: Delivery) -> bool:
        """Whether its host has its share of a shared lane already."""
        share = self.destination.share
        return share is not None and self.held_by_host()[delivery.callback_host] >= share

    def next(self, now: datetime) -> tuple[Leased, ...]:
        """What is to be tried now in one attempt, taken out: mostly one, and none where each must wait."""
        if self.busy >= self.destination.max_concurrency or self.is_left_alone(now):
            return ()
        if self.together:
            together, self.together = self.together, ()
            return together
        place, by = 0, now + self.destination.attempt_for
        while place < len(self.waiting):
            delivery, event = self.waiting[place]
            if delivery.leased_until is not None and delivery.leased_until < by:
                del self.waiting[place]  # it waited too long: the sweep gives it back
            elif self._is_full(delivery.callback_host):
                place += 1
            else:
                del self.waiting[place]
                return ((delivery, event),)
        return ()

    def _is_full(self, host: str | None) -> bool:
        per_host = self.destination.per_host
        return per_host is not None and self._busy_hosts[host] >= per_host

    def begin(self, delivery: Delivery) -> None:
        """One is under way."""
        self.busy += 1
        if self.destination.per_host is not None:
            self._busy_hosts[delivery.callback_host] += 1

    def end(self, delivery: Delivery) -> None:
        """One is no longer under way."""
        self.busy -= 1
        if self.destination.per_host is not None:
            self._busy_hosts[delivery.callback_host] -= 1
            self._busy_hosts += Counter()  # lets go of those at zero: hosts are chosen by strangers

    def put_back(self, probe: DeliveryId | None, now: datetime) -> list[Delivery]:
        """Take out what may not be tried: all but the probe and those asked for by hand, and these, too, if need be."""
        goes = [self.is_left_alone(now) or not (one.forced or one.id == probe) for one, _ in self.waiting]
        back = [one for (one, _), gone in zip(self.waiting, goes, strict=True) if gone]
        self.waiting = deque(one for one, gone in zip(self.waiting, goes, strict=True) if not gone)
        back += [one for one, _ in self.together]
        self.together = ()
        return back

    def drain(self) -> list[Delivery]:
        """Take out all that wait."""
        back = [one for one, _ in (*self.waiting, *self.together)]
        self.waiting, self.together = deque(), ()
        return back
