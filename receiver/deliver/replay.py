"""Replays: many ended deliveries opened again, as a job that survives the process.

A step opens the next few and moves the cursor in one transaction, so a kill between two steps repeats and skips none.
They are looked for by a reader, since that may walk through all that ever went out; the writer, for which every
acknowledgement waits, only touches those few rows, each if it is still as it was found.
Nothing is ever submitted to the upstream again: what is replayed are deliveries, of events as they were recorded.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from receiver import ids
from receiver.deliver.ops import reopened
from receiver.errors import Conflict, NotFound, StoreUnavailable
from receiver.records import Replay
from receiver.store import Reads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from receiver.ids import DeliveryId, ReplayId
    from receiver.lifecycle import Replayed
    from receiver.logs import Logger
    from receiver.records import Delivery
    from receiver.store import Store, Unit
    from receiver.store.rows import Prepared

STEP = 200
"""Deliveries opened in one transaction: small, so that it never stalls what else is written."""
IDLE_FOR = 1.0


@dataclass(frozen=True)
class Put(Reads):
    """The op that stores a new replay."""

    replay: Replay

    def apply(self, unit: Unit) -> Replay:
        """Stage it."""
        unit.put_replay(self.replay)
        return self.replay


@dataclass(frozen=True)
class Cancel(Reads):
    """The op that ends a replay early; what it opened goes on."""

    replay_id: ReplayId
    now: datetime

    def apply(self, unit: Unit) -> Replay:
        """Stage it.

        Raises:
            NotFound: there is no such replay.
            Conflict: it has ended.
        """
        before = unit.replay(self.replay_id)
        if before is None:
            raise NotFound(f"there is no replay {self.replay_id[:60]!r}")
        if before.state != "running":
            raise Conflict(f"the replay is {before.state} already")
        cancelled = replace(before, state="cancelled", finished_at=self.now)
        unit.put_replay(cancelled)
        return cancelled


@dataclass(frozen=True)
class Found:
    """What a reader found for the next step.

    Attributes:
        replay: as it was when they were looked for.
        deliveries: those to be opened.
        cursor: the last one that was looked at.
        is_last: there are no more.
    """

    replay: Replay
    deliveries: Sequence[Delivery]
    cursor: str
    is_last: bool


@dataclass(frozen=True)
class Step(Reads):
    """The op of one step: what was found for a replay is opened, and its cursor moves."""

    found: Found
    now: datetime

    @property
    def delivery_ids(self) -> list[DeliveryId]:
        """Those that were found."""
        return [delivery.id for delivery in self.found.deliveries]

    def apply(self, unit: Unit) -> Replay | None:
        """The replay after the step; None, and nothing staged, where it is not what it was: it was cancelled, say."""
        before = unit.replay(self.found.replay.id)
        if before is None or before != self.found.replay:
            return None
        untouched = [delivery for delivery in self.found.deliveries if unit.delivery(delivery.id) == delivery]
        for delivery in untouched:
            unit.put_delivery(reopened(delivery, self.now))
        replay = replace(
            before,
            replayed=before.replayed + len(untouched),
            cursor=self.found.cursor,
            state="done" if self.found.is_last else "running",
            finished_at=self.now if self.found.is_last else None,
        )
        unit.put_replay(replay)
        return replay


@dataclass
class Replayer:
    """Starts and cancels replays, and takes their steps.

    Attributes:
        names: the configured destinations.
        wake_deliver: deliveries are due.
    """

    store: Store
    names: Sequence[str]
    log: Logger
    clock: Callable[[], datetime]
    entropy: Callable[[int], bytes]
    wake_deliver: Callable[[], None]
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False

    async def start(
        self,
        *,
        destination: str | None = None,
        since_at: datetime | None = None,
        until_at: datetime | None = None,
        which: Replayed = "dead",
    ) -> Replay:
        """Store a replay; its steps begin at once. What is made, or ends, after this moment is not part of it."""
        asked_at = self.clock()
        until = asked_at if until_at is None else min(until_at, asked_at)
        names = [name for name in self.names if destination in {None, name}]
        matched = await self.store.read(
            lambda connection: self.store.deliveries.matched(
                connection, which=which, names=names, since_at=since_at, until_at=until
            )
        )
        now = self.clock()  # read again: what was counted had ended by now
        replay = Replay(
            id=ids.replay_id(int(now.timestamp() * 1000), self.entropy(ids.ENTROPY_BYTES)),
            state="running",
            destination=destination,
            which=which,
            since_at=since_at,
            until_at=until,
            matched=matched,
            created_at=now,
        )
        await self.store.run(Put(replay))
        self.log.info("replay.started", replay_id=replay.id, destination=destination, which=which, matched=matched)
        self._wake.set()
        return replay

    async def cancel(self, replay_id: ReplayId) -> Replay:
        """End a replay early.

        Raises:
            NotFound, Conflict: see `Cancel`.
        """
        replay = await self.store.run(Cancel(replay_id, self.clock()))
        self.log.info("replay.cancelled", replay_id=replay.id, replayed=replay.replayed)
        return replay

    async def run(self) -> None:
        """Take steps while there are any, for ever."""
        while not self._stopping:
            try:
                if (found := await self.store.read(self._find)) is not None:
                    self._stepped(await self.store.run(Step(found, self.clock())))
                    continue
            except StoreUnavailable as error:
                self.log.error("replay.store_unavailable", error=str(error))
            try:
                await asyncio.wait_for(self._wake.wait(), IDLE_FOR)
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    def _find(self, connection: Any) -> Found | None:
        """What the oldest running replay opens next; None where none is running."""

        def ask(question: Prepared, **named: Any) -> list[Any]:
            return list(connection.exec_driver_sql(question.sql, question.values(**named)))

        rows = ask(self.store.replays.running, limit=1)
        replay = self.store.replays.get(connection, rows[0][0]) if rows else None
        if replay is None:
            return None
        # Deliveries of a destination that is not configured could not be sent, and stay as they are.
        names = [name for name in self.names if replay.destination in {None, name}]
        rows = ask(
            self.store.deliveries.to_replay[replay.which],
            cursor=replay.cursor,
            since=0 if replay.since_at is None else replay.since_at,
            until=replay.until_at,
            names=self.store.dialect.values(names),
            limit=STEP,
        )
        seen = self.store.deliveries.rows.decode(rows)
        return Found(
            replay,
            # One that was still on its way when the replay was asked for has only just said what it has to say.
            [one for one in seen if one.finished_at is None or one.finished_at <= replay.created_at],
            cursor=seen[-1].id if seen else replay.cursor,
            is_last=len(seen) < STEP,
        )

    def _stepped(self, replay: Replay | None) -> None:
        if replay is None:
            return
        self.wake_deliver()
        if replay.state == "done":
            self.log.info("replay.done", replay_id=replay.id, matched=replay.matched, replayed=replay.replayed)

    def stop(self) -> None:
        """Take no further step; the next process goes on from the cursor."""
        self._stopping = True
        self._wake.set()
