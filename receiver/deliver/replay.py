"""Replays: many ended deliveries opened again, as a job that survives the process.

A step opens the next few and moves the cursor in one transaction, so a kill between two steps repeats and skips none.
Nothing is ever submitted to the upstream again: what is replayed are deliveries, of events as they were recorded.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec.structs import replace

from receiver import ids
from receiver.deliver.ops import reopened
from receiver.errors import Conflict, NotFound, StoreUnavailable
from receiver.records import Replay
from receiver.store import Reads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from receiver.ids import ReplayId
    from receiver.lifecycle import Replayed
    from receiver.logs import Logger
    from receiver.store import Store, Unit

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
class Step(Reads):
    """The op of one step of the oldest running replay.

    Attributes:
        names: the configured destinations; deliveries of others could not be sent, and stay as they are.
    """

    store: Store
    names: Sequence[str]
    now: datetime

    def apply(self, unit: Unit) -> Replay | None:
        """The replay after the step; None where none is running."""
        rows = unit.select(self.store.replays.running, limit=1)
        replay = unit.replay(rows[0][0]) if rows else None
        if replay is None:
            return None
        names = [name for name in self.names if replay.destination in {None, name}]
        found = unit.deliveries_where(
            self.store.deliveries.to_replay[replay.which],
            cursor=replay.cursor,
            since=0 if replay.since_at is None else replay.since_at,
            until=replay.until_at,
            names=self.store.dialect.ids(names),
            limit=STEP,
        )
        for delivery in found:
            unit.put_delivery(reopened(delivery, self.now))
        is_done = len(found) < STEP
        replay = replace(
            replay,
            replayed=replay.replayed + len(found),
            cursor=found[-1].id if found else replay.cursor,
            state="done" if is_done else "running",
            finished_at=self.now if is_done else None,
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
        """Store a replay; its steps begin at once. What is made after this moment is not part of it."""
        now = self.clock()
        until = now if until_at is None else min(until_at, now)
        names = [name for name in self.names if destination in {None, name}]
        matched = await self.store.read(
            lambda connection: self.store.deliveries.matched(
                connection, which=which, names=names, since_at=since_at, until_at=until
            )
        )
        replay = Replay(
            id=ids.replay_id(int(now.timestamp() * 1000), self.entropy(10)),
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
            replay: Replay | None = None
            try:
                replay = await self.store.run(Step(self.store, self.names, self.clock()))
            except StoreUnavailable as error:
                self.log.error("replay.store_unavailable", error=str(error))
            if replay is not None:
                self._stepped(replay)
                continue
            try:
                await asyncio.wait_for(self._wake.wait(), IDLE_FOR)
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    def _stepped(self, replay: Replay) -> None:
        self.wake_deliver()
        if replay.state == "done":
            self.log.info("replay.done", replay_id=replay.id, matched=replay.matched, replayed=replay.replayed)

    def stop(self) -> None:
        """Take no further step; the next process goes on from the cursor."""
        self._stopping = True
        self._wake.set()
