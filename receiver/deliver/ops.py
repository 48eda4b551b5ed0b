"""The writer's ops of a delivery: leased, tried, given back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from receiver.store import Reads

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from receiver.ids import DeliveryId
    from receiver.records import Attempt, Delivery, Event
    from receiver.retry import Decision
    from receiver.store import Store, Unit


@dataclass(frozen=True)
class Claim(Reads):
    """The op that leases what is due for one destination, oldest due first."""

    store: Store
    destination: str
    limit: int
    now: datetime
    lease_until: datetime

    def apply(self, unit: Unit) -> tuple[list[tuple[Delivery, Event]], datetime | None]:
        """The leased deliveries with their events, and when the next is due."""
        questions = self.store.deliveries
        leased = []
        for delivery in unit.deliveries_where(
            questions.due, destination=self.destination, now=self.now, limit=self.limit
        ):
            taken = replace(
                delivery,
                state="leased",
                due_at=None,
                leased_until=self.lease_until,
                lease_token=delivery.lease_token + 1,
            )
            unit.put_delivery(taken)
            leased.append(taken)
        upcoming = questions.next_due_at(unit.select(questions.next_due, destination=self.destination))
        if not leased:
            return [], upcoming
        asked = self.store.dialect.ids(delivery.event_id for delivery in leased)
        rows = self.store.events.rows.decode_all(unit.select(self.store.events.by_id, ids=asked))
        events = {event.id: event for event in rows}
        return [(delivery, events[delivery.event_id]) for delivery in leased], upcoming


@dataclass(slots=True)
class Attempted(Reads):
    """The op that writes an attempt and its decision: one guarded write; under a stale lease it changes nothing."""

    delivery: Delivery
    attempt: Attempt
    decision: Decision
    at: datetime

    @property
    def delivery_ids(self) -> tuple[DeliveryId, ...]:
        """The delivery that was tried."""
        return (self.delivery.id,)

    def apply(self, unit: Unit) -> bool:
        """Stage it; whether the lease still held."""
        before = unit.delivery(self.delivery.id)
        if before is None or before.state != "leased" or before.lease_token != self.delivery.lease_token:
            return False
        ended = self.decision.state != "pending"
        unit.put_delivery(
            replace(
                before,
                state=self.decision.state,
                attempt_count=self.attempt.number,
                leased_until=None,
                due_at=None if ended else self.decision.due_at,
                finished_at=self.at if ended else None,
            )
        )
        unit.add_attempt(self.attempt)
        return True


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
        return given
