"""The loop behind the others: whoever died left a lease that has run out, and what is old enough goes.

It decides nothing about tasks that live: it gives back what nobody works on, calls `ambiguous` what lost its sender,
cancels deliveries whose destination has left the config, and prunes in steps too small to be felt.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from receiver import ids
from receiver.deliver.claims import give_back
from receiver.errors import StoreUnavailable
from receiver.ingest import Recorded
from receiver.records import Refusal
from receiver.store import Reads
from receiver.submit import ambiguous

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from receiver.ingest import After, Rulebook
    from receiver.logs import Logger
    from receiver.records import Delivery
    from receiver.store import Store, Unit

STEP = 200
"""Rows of one sweep: a step is one small op between others."""
KEPT_REFUSALS = 1000
SENDER_GONE = "its sender ended before the answer"
HOMELESS_FOR = timedelta(hours=24)
"""How long a delivery waits for its destination to come back into the config (contract section 5)."""
WRITER_FOR = timedelta(days=30)
"""After so long without a write a writer's mark is nobody's any more."""
EVICT_EVERY = timedelta(minutes=1)
"""Looking for them reads the index of all that is pending."""
END_EVERY = timedelta(seconds=5)
"""How often it is asked who was stopped while it held rows of a shared database: each of several asks for itself."""
LOOK_BACK_EVERY = timedelta(minutes=10)
"""How often retention begins anew with the oldest: what had to stay when it was looked at may have been delivered. In
between it only goes on, so that however much waits for a destination is not looked at every second; and it goes through
to the end first, however long that takes, or nothing behind very much would ever go. The place is in memory: an
instance that starts begins anew, and each of several looks for itself."""


@dataclass(frozen=True)
class Rescue(Reads):
    """The op that takes back expired leases of deliveries; `all_of_them` where no other process can hold one."""

    store: Store
    now: datetime
    all_of_them: bool = False

    def apply(self, unit: Unit) -> list[Delivery]:
        """Those that were taken back."""
        questions = self.store.deliveries
        gone = (
            unit.deliveries_where(questions.leased, limit=STEP)
            if self.all_of_them
            else unit.deliveries_where(questions.workers_gone, now=self.now, limit=STEP)
        )
        for delivery in gone:
            give_back(unit, delivery, self.now)
        return gone


@dataclass(frozen=True)
class Disown(Reads):
    """The op that makes `ambiguous` what lost its sender: it may have been sent, so it is never sent again."""

    store: Store
    now: datetime
    rules: Rulebook
    all_of_them: bool = False

    def apply(self, unit: Unit) -> list[Recorded]:
        """What became of them."""
        questions = self.store.tasks
        gone = (
            unit.tasks_where(questions.senders, limit=STEP)
            if self.all_of_them
            else unit.tasks_where(questions.senders_gone, now=self.now, limit=STEP)
        )
        into = [Recorded(task) for task in gone]
        for task, recorded in zip(gone, into, strict=True):
            ambiguous(unit, task, self.rules, self.now, recorded, SENDER_GONE)
            unit.drop_payload(task.id)
        return into


@dataclass(frozen=True)
class FreePolls(Reads):
    """The op that makes due now what a process that is gone had claimed for a lookup (one process a file only)."""

    store: Store
    now: datetime

    def apply(self, unit: Unit) -> int:
        """How many."""
        return unit.execute(self.store.tasks.polls_freed, now_=self.now)


@dataclass(frozen=True)
class Evict(Reads):
    """The op that cancels deliveries nobody will ever make: their destination is not in the config any more."""

    store: Store
    names: Sequence[str]
    now: datetime

    def apply(self, unit: Unit) -> list[Delivery]:
        """Those that were cancelled; a name is given time from when it was first found missing."""
        questions = self.store.deliveries
        missing = {row[0] for row in unit.select(questions.homeless_names, names=self.store.dialect.values(self.names))}
        for state in unit.every_health():
            if state.missing_since_at is not None and state.name not in missing:
                unit.put_health(replace(unit.own_health(state.name), missing_since_at=None))
        gone: list[Delivery] = []
        for name in sorted(missing):
            state = unit.health(name)
            if state.missing_since_at is None:
                unit.put_health(replace(unit.own_health(name), missing_since_at=self.now))
            elif state.missing_since_at <= self.now - HOMELESS_FOR:
                gone += unit.deliveries_where(questions.homeless, destination=name, limit=STEP - len(gone))
        for delivery in gone:
            unit.put_delivery(replace(delivery, state="cancelled", due_at=None, finished_at=self.now))
        if self.store.dialect.is_shared:
            unit.execute(self.store.prune.writers_gone, before=self.now - WRITER_FOR)
        return gone


class Place(NamedTuple):
    """How far retention has come: when the last was made that it looked at, in Unix milliseconds."""

    tasks: int = 0
    events: int = 0


BEGIN = Place()


class Pruned(NamedTuple):
    """What a step of retention did.

    Attributes:
        gone: how many tasks, and events of none, went.
        looked: how many of either it looked at; `STEP`, and there is more.
        place: where the next one goes on.
    """

    gone: int
    looked: int
    place: Place


@dataclass(frozen=True)
class Prune(Reads):
    """The op of one small step of retention: terminal tasks past their age, and events of none, once delivered.

    Attributes:
        place: where it begins. What is before it was looked at, and had to stay.
    """

    store: Store
    before: datetime
    place: Place = BEGIN

    def apply(self, unit: Unit) -> Pruned:
        """Take what may go of the oldest from `place` on."""
        ask, values = self.store.prune, self.store.dialect.values
        tasks = unit.select(ask.old, since=self.place.tasks, before=self.before, limit=STEP)
        events = unit.select(ask.of_no_task, since=self.place.events, before=self.before, limit=STEP)
        ids_ = {row[0] for row in (*tasks, *events)}
        held = {row[0] for row in unit.select(ask.held, ids=values(ids_))} if ids_ else set()
        gone = ids_ - held
        if gone and self.store.dialect.is_shared:
            gone = self._own(unit, gone, {row[0] for row in events})
        if gone:
            for statement in ask.deletes:
                unit.execute(statement, ids=values(gone))
        place = Place(_beyond(tasks, held, self.place.tasks), _beyond(events, held, self.place.events))
        return Pruned(len(gone), max(len(tasks), len(events)), place)

    def _own(self, unit: Unit, ids_: set[str], events: set[str]) -> set[str]:
        """Those that nobody else works on, or opens again, from now on."""
        ask, values = self.store.prune, self.store.dialect.values
        free = {row[0] for row in unit.select(ask.free, ids=values(ids_ - events), before=self.before)}
        own = free | (ids_ & events)
        states = unit.select(ask.states, ids=values(own)) if own else []
        return own - {task_id for task_id, state in states if state in {"pending", "leased"}}


def _beyond(rows: Sequence[Any], held: set[str], place: int) -> int:
    """Where to go on. Of more than a step that were made in one millisecond the rest waits, if some must stay."""
    if not rows:
        return place
    last: int = rows[-1][1]
    stuck = len(rows) == STEP and last == place and not held.isdisjoint(row[0] for row in rows)
    return last + 1 if stuck else last


def _is_over(began_at: datetime | None, span: timedelta, now: datetime) -> bool:
    """Whether it began so long ago, or not at all; or at a time that is still to come: the clock was set back."""
    return began_at is None or not began_at <= now < began_at + span


@dataclass(frozen=True)
class NoteRefusals(Reads):
    """The op that keeps the last refused callbacks, written together and off the hot path."""

    store: Store
    refusals: Sequence[Refusal]

    def apply(self, unit: Unit) -> None:
        """Stage them and drop the oldest."""
        for refusal in self.refusals:
            unit.add_refusal(refusal)
        unit.execute(self.store.events.trim_refusals, limit=KEPT_REFUSALS)


@dataclass
class Refusals:
    """Refused callbacks since the last sweep: bounded in memory, counted in full."""

    entropy: Callable[[int], bytes]
    counts: Counter[str] = field(default_factory=Counter)
    _new: deque[Refusal] = field(default_factory=lambda: deque(maxlen=KEPT_REFUSALS))

    def note(self, reason: str, method: str, size: int, at: datetime) -> None:
        """One more. No token and no part of one comes in here."""
        self.counts[reason] += 1
        refusal_id = "ref_" + ids.write(int(at.timestamp() * 1000), self.entropy(ids.ENTROPY_BYTES))
        self._new.append(Refusal(id=refusal_id, at=at, reason=reason, method=method[:10], size=size))

    def drain(self) -> list[Refusal]:
        """Those not yet written."""
        drained = list(self._new)
        self._new.clear()
        return drained


@dataclass
class Sweeper:
    """The loop. One round a second; retention goes on at once while a step finds a full one."""

    store: Store
    rules: Rulebook
    refusals: Refusals
    after: After
    log: Logger
    clock: Callable[[], datetime]
    destinations: Sequence[str]
    keep_for: timedelta
    wake_deliver: Callable[[], None]
    every: float = 1.0
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _evicted_at: datetime | None = None
    _ended_at: datetime | None = None
    _looked_back_at: datetime | None = None
    _is_through: bool = True
    _place: Place = BEGIN

    async def recover(self) -> None:
        """At start, where no other process can work on this database: every lease in it is a dead one's."""
        now = self.clock()
        while rescued := await self.store.run(Rescue(self.store, now, all_of_them=True)):
            self._told(rescued)
        while disowned := await self.store.run(Disown(self.store, now, self.rules, all_of_them=True)):
            self._tell(disowned)
        await self.store.run(FreePolls(self.store, now))

    async def run(self) -> None:
        """Sweep, for ever."""
        while not self._stop.is_set():
            full = False
            try:
                full = await self.round()
            except StoreUnavailable as error:
                self.log.error("sweep.store_unavailable", error=str(error))
            try:
                await asyncio.wait_for(self._stop.wait(), 0.05 if full else self.every)
            except TimeoutError:
                continue

    async def round(self) -> bool:
        """One of everything; whether some step was a full one, so that there is more."""
        now = self.clock()
        rescued = await self.store.run(Rescue(self.store, now))
        self._told(rescued)
        disowned = await self.store.run(Disown(self.store, now, self.rules))
        self._tell(disowned)
        if _is_over(self._evicted_at, EVICT_EVERY, now):
            await self._evict(now)
        looked = await self._prune(now)
        refused = self.refusals.drain()
        if refused:
            await self.store.run(NoteRefusals(self.store, refused))
        if _is_over(self._ended_at, END_EVERY, now):  # the last: readers may be out of connections, the writer has one
            await self._end_stopped(now)
        return max(len(rescued), len(disowned), looked) >= STEP

    async def _end_stopped(self, now: datetime) -> None:
        ended = await self.store.end_stopped()
        self._ended_at = now
        if ended:
            self.log.warning("session.ended", count=ended, reason="an instance stopped in the middle of a transaction")

    async def _prune(self, now: datetime) -> int:
        """A step from where the last one ended; how many it looked at."""
        if self._is_through and _is_over(self._looked_back_at, LOOK_BACK_EVERY, now):
            self._looked_back_at, self._place = now, BEGIN
        pruned = await self.store.run(Prune(self.store, now - self.keep_for, self._place))
        self._place, self._is_through = pruned.place, pruned.looked < STEP
        if pruned.gone:
            self.log.info("tasks.pruned", count=pruned.gone)
        return pruned.looked

    async def _evict(self, now: datetime) -> None:
        gone = await self.store.run(Evict(self.store, self.destinations, now))
        self._evicted_at = now if len(gone) < STEP else None
        for delivery in gone:
            self.log.warning(
                "delivery.cancelled",
                task_id=delivery.of_task,
                event_id=delivery.event_id,
                delivery_id=delivery.id,
                destination=delivery.destination,
                reason="its destination has left the config",
            )

    def _told(self, rescued: list[Delivery]) -> None:
        for delivery in rescued:
            self.log.warning(
                "lease.rescued",
                task_id=delivery.of_task,
                event_id=delivery.event_id,
                delivery_id=delivery.id,
                destination=delivery.destination,
            )
        if rescued:
            self.wake_deliver()

    def _tell(self, disowned: list[Recorded]) -> None:
        for recorded in disowned:
            self.log.warning(
                "task.submit_ambiguous",
                task_id=recorded.task.id,
                upstream_id=recorded.task.upstream_id,
                reason=SENDER_GONE,
            )
            self.after(recorded)

    def stop(self) -> None:
        """End the loop."""
        self._stop.set()
