"""One attempt of what was leased for it: through egress, decided, one guarded write, one wide line each."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from receiver import ids, retry
from receiver.deliver.attempts import attempt, recorded, tell
from receiver.deliver.ops import Attempted, Together
from receiver.destinations.sample import sample_event
from receiver.errors import StoreUnavailable
from receiver.records import Delivery
from receiver.retry import Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from receiver.deliver.attempts import Outcome
    from receiver.deliver.heeding import Heeding
    from receiver.deliver.lanes import Destination, Leased
    from receiver.deliver.ops import Tried
    from receiver.egress import Egress
    from receiver.ingest import After, Rulebook
    from receiver.records import Attempt
    from receiver.retry import Result
    from receiver.store import Store

STORE_RETRY_FOR = timedelta(seconds=0.5)
"""Between tries to write what an attempt became."""


class Ended(NamedTuple):
    """What became of a delivery whose lease still held."""

    delivery: Delivery
    decision: Decision
    tried: Tried


@dataclass
class Trier:
    """Makes attempts, and keeps what came of them."""

    store: Store
    egress: Egress
    rules: Rulebook
    after: After
    clock: Callable[[], datetime]

    async def run(
        self, destination: Destination, leased: Sequence[Leased], started: datetime, heeding: Heeding
    ) -> list[Ended]:
        """Try what was leased, together where it is several; those whose lease still held."""
        outcome = await attempt(self.egress, destination, leased, started, self.after.log, heeding.is_free)
        ended, draw = self.clock(), self.rules.draw()
        held_until = heeding.heed(outcome.result, ended)  # before it is stored: others are about to begin
        ops = [self._op(destination, one, outcome, started, ended, draw) for one in leased]
        tried: list[Tried] | None = None
        try:
            until = max(filter(None, (leased[0][0].leased_until, held_until)), default=None)
            tried = await self._stored(Together(ops), until)
            if held_until is not None:
                self.after.held(destination.name)
        finally:
            for place, op in enumerate(ops):
                stored = tried is not None and tried[place].held
                tell(self.after, op.delivery, op.attempt, op.decision, outcome.response, stored=stored)
        return [Ended(op.delivery, op.decision, one) for op, one in zip(ops, tried, strict=True) if one.held]

    def _op(
        self,
        destination: Destination,
        leased: Leased,
        outcome: Outcome,
        started: datetime,
        ended: datetime,
        draw: float,
    ) -> Attempted:
        delivery, event = leased
        decision = retry.decide(
            outcome.result,
            attempt=delivery.attempt_count + 1 - delivery.budget_from,
            schedule=destination.schedule,
            now=ended,
            jitter=destination.jitter * draw,
        )
        attempt_id = ids.attempt_id(int(started.timestamp() * 1000), self.rules.entropy(ids.ENTROPY_BYTES))
        made = recorded(attempt_id, *(destination, delivery, outcome, decision), started_at=started, ended_at=ended)
        return Attempted(delivery, event, made, outcome.result, decision, ended, destination.terms, self.rules)

    async def _stored(self, op: Together, until: datetime | None) -> list[Tried]:
        """Write, and again while the lease holds, or the wait does: what is not written is sent a second time."""
        while True:
            try:
                return await self.store.run(op)
            except StoreUnavailable:
                if until is None or self.clock() + STORE_RETRY_FOR >= until:
                    raise
            await asyncio.sleep(STORE_RETRY_FOR.total_seconds())


async def sample(trier: Trier, destination: Destination, heeding: Heeding) -> tuple[Attempt, Result]:
    """Send a sample event; the attempt, which belongs to no delivery and is not stored, and what the answer means."""
    started, entropy = trier.clock(), trier.rules.entropy
    ms = int(started.timestamp() * 1000)
    event = sample_event(event_id=ids.event_id(ms, entropy(ids.ENTROPY_BYTES)), now=started)
    delivery = Delivery(
        id=ids.delivery_id(ms, entropy(ids.ENTROPY_BYTES)),
        event_id=event.id,
        task_id=event.task_id,
        destination=destination.name,
        state="leased",
        created_at=started,
        due_at=None,
    )
    outcome = await attempt(trier.egress, destination, [(delivery, event)], started, trier.after.log, heeding.is_free)
    ended = trier.clock()
    heeding.heed(outcome.result, ended)
    decision = Decision("delivered" if outcome.result.kind == "ok" else "dead", None, outcome.result.reason)
    attempt_id = ids.attempt_id(ms, entropy(ids.ENTROPY_BYTES))
    made = recorded(attempt_id, *(destination, delivery, outcome, decision), started_at=started, ended_at=ended)
    return made, outcome.result
