"""The writer's ops of a delivery: leased, tried, given back, opened again; and of its destination: held, resumed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from receiver import health, routing
from receiver.errors import Conflict, NotFound
from receiver.ingest import Born, record_operator
from receiver.store import Reads
from receiver.store.rates import Starts

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from receiver.health import Change, Terms
    from receiver.ids import DeliveryId
    from receiver.ingest import Rulebook
    from receiver.records import Attempt, Delivery, Event, Health
    from receiver.retry import Decision, Result
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
    """

    leased: list[tuple[Delivery, Event]]
    upcoming: datetime | None
    health: Health | None
    more_asked: bool = False


@dataclass(frozen=True)
class Claim(Reads):
    """The op that leases what is due for one destination, as far as its health allows.

    What was asked for by hand comes first, past a pause and an open circuit. Then what was never tried and what is
    tried again, by halves, each oldest due first: a backlog of retries does not starve what is new. Nothing is leased
    before the time that the destination named, nor more than its rate has starts for; they are taken here.

    Attributes:
        has_health: false for the lane of tasks' own callback_urls.
        share: how many of one host a shared lane may hold; None for a lane of its own.
        held: how many each host holds already.
        forced: how many of those asked for by hand it may take, whatever its room.
        again_first: a retry comes first where there is one place; the caller alternates.
        paced: the starts it asks for; None where there is no rate.
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
        claimed = self._leased(unit, state, min(self.limit, free), min(self.forced, free))
        starts.take(len(claimed.leased))
        waits = claimed.upcoming or (self.now if claimed.more_asked else None)
        more_asked = claimed.more_asked and free > self.forced  # else it waits for the rate, not for a slot
        return replaced(claimed, upcoming=waits and max(waits, starts.next_at), more_asked=more_asked)

    def _leased(self, unit: Unit, state: Health | None, limit: int, forced: int) -> Claimed:
        holding = Counter(self.held)
        found = self._by_shares(unit, self.store.deliveries.forced, self._here, forced, holding)
        more_asked = len(found) == forced
        if state is None or state.state == "active":
            found += self._due(unit, limit - len(found), holding)
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
        return Claimed(self._with_events(unit, found), upcoming, state, more_asked)

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
        asked = self.store.dialect.values(delivery.event_id for delivery in leased)
        rows = self.store.events.rows.decode_all(unit.select(self.store.events.by_id, ids=asked))
        events = {event.id: event for event in rows}
        return [(delivery, events[delivery.event_id]) for delivery in leased if delivery.event_id in events]


@dataclass(slots=True)
class Tried:
    """What an attempt's result came to.

    Attributes:
        held: the lease still held; else nothing was written.
        change: what it made of the destination's health; None where it has none.
        born: operator events that follow.
    """

    held: bool
    change: Change | None = None
    born: Born = field(default_factory=Born)


@dataclass(slots=True)
class Attempted(Reads):
    """The op that writes an attempt, its decision and the destination's health: one guarded write.

    Under a stale lease it changes nothing.
    """

    delivery: Delivery
    event: Event
    attempt: Attempt
    result: Result
    decision: Decision
    at: datetime
    terms: Terms | None
    rules: Rulebook

    @property
    def delivery_ids(self) -> tuple[DeliveryId, ...]:
        """The delivery that was tried."""
        return (self.delivery.id,)

    def apply(self, unit: Unit) -> Tried:
        """Stage it."""
        before = unit.delivery(self.delivery.id)
        if before is None or before.state != "leased" or before.lease_token != self.delivery.lease_token:
            return Tried(held=False)
        ended = self.decision.state != "pending"
        unit.put_delivery(
            replace(
                before,
                state=self.decision.state,
                attempt_count=self.attempt.number,
                leased_until=None,
                due_at=None if ended else self.decision.due_at,
                finished_at=self.at if ended else None,
                retried=True,
                forced=False,
            )
        )
        unit.add_attempt(self.attempt)
        tried = Tried(held=True)
        quiet = self.event.type in routing.OPERATOR_EVENTS  # their own deliveries cause none
        if self.terms is not None:
            tried.change = self._health(unit, self.terms, tried.born, quiet=quiet)
        if self.decision.state == "dead" and not quiet:
            record_operator(
                unit,
                "delivery.dead",
                self.rules,
                self.at,
                tried.born,
                task=unit.task(before.task_id),
                destination=before.destination,
                delivery=before,
                reason=self.decision.reason,
            )
        return tried

    def _health(self, unit: Unit, terms: Terms, born: Born, *, quiet: bool) -> Change:
        def of(before: Health) -> Change:
            mine = self.delivery.id
            return health.after_attempt(before, self.result, terms, delivery_id=mine, now=self.at, quiet=quiet)

        before = unit.health(self.delivery.destination)
        if of(before).health is not before:  # only who changes it must have it to himself
            before = unit.own_health(before.name)
        change = of(before)
        _put(unit, before, change, self.rules, self.at, born)
        return change


def _put(unit: Unit, before: Health, change: Change, rules: Rulebook, at: datetime, born: Born) -> None:
    if change.health is not before:
        unit.put_health(change.health)
    if change.told is not None:
        failures = max(before.consecutive_failures, change.health.consecutive_failures)
        record_operator(
            unit,
            change.told,
            rules,
            at,
            born,
            destination=before.name,
            consecutive_failures=failures,
            reason=change.reason,
        )


@dataclass(frozen=True)
class Knocked:
    """Whether something may be sent now that is no delivery; `until` is when else, with the reason in words."""

    until: datetime | None = None
    reason: str = ""


@dataclass(frozen=True)
class Knock(Reads):
    """The op that asks whether a destination may be called now, and takes a start of its rate."""

    name: str
    now: datetime
    paced: Paced | None

    def apply(self, unit: Unit) -> Knocked:
        """Ask, and stage the start."""
        if (until := health.held_at(unit.health(self.name), self.now)) is not None:
            return Knocked(until, "it asked to be left alone")
        if self.paced is not None:
            starts = Starts.of(unit, self.paced)
            if not starts.free:
                return Knocked(starts.next_at, "its rate is used up")
            starts.take(1)
        return Knocked()


@dataclass(frozen=True)
class Heed(Reads):
    """The op that keeps until when a destination asked to be left alone, where no attempt is stored that says so."""

    name: str
    result: Result
    now: datetime

    def apply(self, unit: Unit) -> Health:
        """Stage it; its health as it then is."""
        before = unit.own_health(self.name)
        state = health.held(before, self.result, self.now)
        if state is not before:
            unit.put_health(state)
        return state


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
            if delivery is not None and delivery.state == "leased" and delivery.lease_token == mine.lease_token:
                unit.put_delivery(replace(delivery, state="pending", due_at=self.now, leased_until=None))
                given += 1
                state = unit.health(delivery.destination)
                if state.probe_id == delivery.id:
                    unit.put_health(health.unprobed(unit.own_health(state.name), self.now))
        return given


@dataclass(frozen=True)
class Redeliver(Reads):
    """The op that opens a delivery again, by hand: a fresh budget, tried at once, past whatever holds others."""

    delivery_id: DeliveryId
    names: Collection[str]
    now: datetime

    @property
    def delivery_ids(self) -> tuple[DeliveryId, ...]:
        """The delivery."""
        return (self.delivery_id,)

    def apply(self, unit: Unit) -> Delivery:
        """Stage it.

        Raises:
            NotFound: there is no such delivery.
            Conflict: it is being tried right now, or its destination is not configured (any more).
        """
        before = unit.delivery(self.delivery_id)
        if before is None:
            raise NotFound(f"there is no delivery {self.delivery_id[:60]!r}")
        if before.state == "leased":
            raise Conflict("the delivery is leased: it is being tried right now")
        if before.destination not in self.names:
            raise Conflict(f"its destination {before.destination!r} is not in the configuration: nothing can be sent")
        opened = reopened(before, self.now, forced=True)
        unit.put_delivery(opened)
        return opened


def reopened(delivery: Delivery, now: datetime, *, forced: bool = False) -> Delivery:
    """The same row with a fresh budget; its attempts go on being counted."""
    return replace(
        delivery,
        state="pending",
        due_at=now,
        leased_until=None,
        finished_at=None,
        budget_from=delivery.attempt_count,
        retried=True,
        forced=forced,
    )


@dataclass(slots=True)
class Turned:
    """What a hand made of a destination's health."""

    change: Change
    born: Born = field(default_factory=Born)


@dataclass(frozen=True)
class Turn(Reads):
    """The op that pauses a destination by hand, or resumes it."""

    name: str
    on: bool
    now: datetime
    rules: Rulebook

    def apply(self, unit: Unit) -> Turned:
        """Stage it."""
        before = unit.own_health(self.name)
        change = health.resume(before, "resumed by hand") if self.on else health.hold(before, "paused by hand")
        turned = Turned(change)
        _put(unit, before, change, self.rules, self.now, turned.born)
        return turned
