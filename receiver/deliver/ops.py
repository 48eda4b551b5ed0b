"""The writer's ops of a delivery: tried, opened again; and of its destination: held, resumed, asked for a turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import TYPE_CHECKING

from msgspec.structs import replace

from receiver import health, routing
from receiver.errors import Conflict, NotFound
from receiver.ingest import Born, record_operator
from receiver.store import Reads
from receiver.store.rates import Starts

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from receiver.health import Change, Terms
    from receiver.ids import DeliveryId
    from receiver.ingest import Rulebook
    from receiver.records import Attempt, Delivery, Event, Health
    from receiver.retry import Decision, Result
    from receiver.store import Unit
    from receiver.store.rates import Paced


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

    Under a stale lease it changes nothing but one thing, which is the destination's and not the delivery's: until when
    it asked to be left alone.
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
            if self.terms is not None:
                _heed(unit, self.delivery.destination, self.result, self.at)
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
class Together(Reads):
    """The op that writes the attempts that were made in one: for the destination's health they are one."""

    attempts: Sequence[Attempted]

    @property
    def delivery_ids(self) -> list[DeliveryId]:
        """The deliveries that were tried."""
        return [one.delivery.id for one in self.attempts]

    def apply(self, unit: Unit) -> list[Tried]:
        """Stage them, each under its own lease."""
        tried: list[Tried] = []
        for one in self.attempts:
            counted = any(before.held for before in tried)
            tried.append((replaced(one, terms=None) if counted else one).apply(unit))
        return tried


LEFT_ALONE = "it asked to be left alone"


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
            return Knocked(until, LEFT_ALONE)
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
        return _heed(unit, self.name, self.result, self.now)


def _heed(unit: Unit, name: str, result: Result, at: datetime) -> Health:
    before = unit.health(name)
    if health.held(before, result, at) is before:  # only who changes it must have it to himself
        return before
    state = health.held(unit.own_health(name), result, at)
    unit.put_health(state)
    return state


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
