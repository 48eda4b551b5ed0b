"""The writer's ops that lease deliveries and give them back untried."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from receiver import health
from receiver.store import Reads
from receiver.store.rates import Starts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from receiver.ids import DeliveryId
    from receiver.records import Delivery, Event, Health
    from receiver.store import Store, Unit
    from receiver.store.rates import Paced
    from receiver.store.rows import Prepared


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim found.

    Attributes:
        leased: deliveries with their events.
        upcoming: when there is more, and the rate allows it; None for nothing in sight.
        health: the destination's; None for one that has none.
        more_asked: there may be more that was asked for by hand.
        together: deliveries with their events that are to go out in one message.
    """

    leased: list[tuple[Delivery, Event]]
    upcoming: datetime | None
    health: Health | None
    more_asked: bool = False
    together: tuple[tuple[Delivery, Event], ...] = ()


TOGETHER = 100
"""Events that one message tells of at most."""


@dataclass(frozen=True)
class Claim(Reads):
    """The op that leases what is due for one destination, as far as its health allows.

    What was asked for by hand comes first, past a pause and an open circuit. Then what was never tried and what is
    tried again, by halves, each oldest due first: a backlog of retries does not starve what is new. Nothing is leased
    before the time that the destination named, nor more than its rate has starts for; they are taken here. Where more
    is due than the window of `coalesce` has starts for, what is due is leased as one: it goes out in one message.

    Attributes:
        has_health: false for the lane of tasks' own callback_urls.
        share: how many of one host a shared lane may hold; None for a lane of its own.
        held: how many each host holds already.
        forced: how many of those asked for by hand it may take, whatever its room.
        again_first: a retry comes first where there is one place; the caller alternates.
        paced: the starts it asks for; None where there is no rate.
        folded_past: the window of `coalesce`; None where each event has a message of its own.
    """

    store: Store
    destination: str
    limit: int
    now: datetime
    lease_until: datetime
    has_health: bool = True
    share: int | None = None
    held: Mapping[str | None, int] = field(default_factory=dict)
    forced: int = 100
    again_first: bool = False
    paced: Paced | None = None
    folded_past: str | None = None

    def apply(self, unit: Unit) -> Claimed:
        """Lease them."""
        state = unit.health(self.destination) if self.has_health else None
        if state is not None and state.state == "open":
            state = unit.own_health(self.destination)  # there is one probe, whoever makes it
        if state is not None and (until := health.held_at(state, self.now)) is not None:
            return Claimed([], until, state)
        if self.paced is None:
            return self._leased(unit, state, self.limit, self.forced)
        starts = Starts.of(unit, self.paced)
        free = starts.free
        alone = None if self.folded_past is None else starts.free_of(self.folded_past)
        claimed = self._leased(unit, state, min(self.limit, free), min(self.forced, free), alone)
        starts.take(len(claimed.leased) + bool(claimed.together))
        waits = claimed.upcoming or (self.now if claimed.more_asked else None)
        more_asked = claimed.more_asked and free > self.forced  # else it waits for the rate, not for a slot
        return replaced(claimed, upcoming=waits and max(waits, starts.next_at), more_asked=more_asked)

    def _leased(self, unit: Unit, state: Health | None, limit: int, forced: int, alone: int | None = None) -> Claimed:
        holding = Counter(self.held)
        together: list[Delivery] = []
        found = self._by_shares(unit, self.store.deliveries.forced, self._here, forced, holding)
        more_asked = len(found) == forced
        if state is None or state.state == "active":
            left = limit - len(found)
            if alone is not None and left > 0 and self._is_due(unit, alone - len(found) + 1):
                together = self._due(unit, TOGETHER, holding)
            else:
                found += self._due(unit, left, holding)
            upcoming = self._upcoming(unit)
        elif state.state == "open":
            upcoming = health.probe_due_at(state, self.now)
            if upcoming is None or upcoming <= self.now:
                upcoming = None
                for delivery in self._due(unit, min(1, limit - len(found)), holding):
                    found.append(delivery)
                    state = health.probe(state, delivery.id, self.lease_until)
                    unit.put_health(state)
                    upcoming = self.lease_until
                upcoming = upcoming or self._upcoming(unit)  # the pause is over, and nothing is due to probe with
        else:
            upcoming = None
        # In order of time, as they are told of.
        as_one = sorted(self._with_events(unit, together), key=lambda leased: leased[1].id)
        return Claimed(self._with_events(unit, found), upcoming, state, more_asked, tuple(as_one))

    def _is_due(self, unit: Unit, count: int) -> bool:
        """Whether so many are due."""
        asked = {**self._here, "now": self.now, "limit": count, "hosts": self.store.dialect.values([])}
        question = self.store.deliveries.due_elsewhere
        return sum(len(unit.select(question, **asked, retried=retried)) for retried in (False, True)) >= count

    @property
    def _here(self) -> dict[str, str]:
        return {"destination": self.destination}

    def _due(self, unit: Unit, limit: int, holding: Counter[str | None]) -> list[Delivery]:
        questions, first = self.store.deliveries, self.again_first

        def some(limit: int, *, retried: bool) -> list[Delivery]:
            asked = {**self._here, "now": self.now, "retried": retried}
            return self._by_shares(unit, questions.due_elsewhere, asked, limit, holding)

        half = (limit + 1) // 2
        new = some(half, retried=first)
        again = some(limit - len(new), retried=not first)
        if len(new) == half:
            new += some(limit - len(new) - len(again), retried=first)
        mixed = [one for pair in zip(new, again, strict=False) for one in pair]
        return mixed + new[len(again) :] + again[len(new) :]

    def _by_shares(
        self, unit: Unit, elsewhere: Prepared, asked: Mapping[str, Any], limit: int, holding: Counter[str | None]
    ) -> list[Delivery]:
        """Of each host its share: one whose backlog is long must not fill the lane before the others are seen."""
        taken: list[Delivery] = []
        while len(taken) < limit:
            full = [host for host, count in holding.items() if self.share is not None and count >= self.share]
            found = unit.deliveries_where(elsewhere, **asked, limit=limit, hosts=self.store.dialect.values(full))
            for delivery in found[: limit - len(taken)]:
                if self.share is None or holding[delivery.callback_host] < self.share:
                    holding[delivery.callback_host] += 1
                    taken.append(self._lease(unit, delivery))
            if len(found) < limit:
                break
        return taken

    def _lease(self, unit: Unit, delivery: Delivery) -> Delivery:
        taken = replace(
            delivery,
            state="leased",
            due_at=None,
            leased_until=self.lease_until,
            lease_token=delivery.lease_token + 1,
        )
        unit.put_delivery(taken)
        unit.leased.append(taken)
        return taken

    def _upcoming(self, unit: Unit) -> datetime | None:
        questions = self.store.deliveries
        dues = [
            questions.next_due_at(unit.select(questions.next_due, **self._here, retried=retried))
            for retried in (False, True)
        ]
        return min(filter(None, dues), default=None)

    def _with_events(self, unit: Unit, leased: list[Delivery]) -> list[tuple[Delivery, Event]]:
        if not leased:
            return []
        asked = self.store.dialect.values(delivery.id for delivery in leased)
        rows = self.store.events.rows.decode(unit.select(self.store.events.of_deliveries, ids=asked))
        events = {event.id: event for event in (*rows, *unit.events)}
        return [(delivery, events[delivery.event_id]) for delivery in leased if delivery.event_id in events]


@dataclass(frozen=True)
class HandBack(Reads):
    """The op that gives leased deliveries back untried: no attempt is spent."""

    deliveries: Sequence[Delivery]
    now: datetime

    @property
    def delivery_ids(self) -> list[DeliveryId]:
        """Those that are given back."""
        return [delivery.id for delivery in self.deliveries]

    def apply(self, unit: Unit) -> int:
        """Stage it; how many were still ours."""
        given = 0
        for mine in self.deliveries:
            delivery = unit.delivery(mine.id)
            if delivery is not None and _is_same_lease(delivery, mine):
                give_back(unit, delivery, self.now)
                given += 1
        return given


def _is_same_lease(delivery: Delivery, mine: Delivery) -> bool:
    """Of a lease whose commit came to nothing the number is another's by now: its end tells them apart."""
    known = mine.lease_token, mine.leased_until
    return delivery.state == "leased" and (delivery.lease_token, delivery.leased_until) == known


def give_back(unit: Unit, delivery: Delivery, now: datetime) -> None:
    """Stage that a leased delivery waits again; where it was its destination's probe another may be made."""
    unit.put_delivery(replace(delivery, state="pending", due_at=now, leased_until=None))
    if unit.health(delivery.destination).probe_id != delivery.id:
        return
    state = unit.own_health(delivery.destination)  # asked again under its lock: another instance may have been first
    if state.probe_id == delivery.id:
        unit.put_health(health.unprobed(state, now))
