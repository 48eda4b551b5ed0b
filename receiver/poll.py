"""Ask the upstream about tasks that are due, and hand what it says to ingest.

The schedule is a column with an index: what is outstanding costs a row, never an asyncio task. Lookups have a limit of
their own, go longest due first (an odd callback's before all), and are claimed with a lease, so that two instances do
not ask twice and a dead one's are asked again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, assert_never

from msgspec.structs import replace

from receiver.errors import EgressError, NotFound, StoreUnavailable, StoreUnsure
from receiver.ingest import Lookup, Recorded, record
from receiver.ingest.judge import lose
from receiver.store import Reads
from receiver.upstream import ROUTES
from receiver.upstream.base import Missing, Shown, Unanswered, Unusable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from receiver.egress import Egress
    from receiver.ids import TaskId
    from receiver.ingest import After, Rulebook
    from receiver.logs import Logger
    from receiver.records import LookupRoute, Task
    from receiver.store import Store, Unit
    from receiver.upstream.base import Looked
    from receiver.wire import HttpRequest, HttpResponse

LEASE_MARGIN = timedelta(seconds=10)
NO_STATUS = 0
UNREACHED = frozenset({NO_STATUS, 401, 403, 429})
"""Answers, or none, that the other lookup route would only repeat: the network, our key, our rate."""
IDLE_FOR = 1.0
"""The longest sleep, in seconds: what other processes made due is found within it."""


@dataclass(frozen=True)
class Claim(Reads):
    """The op that takes what is due, longest due first; ambiguous tasks past their deadline are lost here.

    Attributes:
        staged: what it leased when it last ran, for one who never heard whether that was committed.
    """

    store: Store
    limit: int
    now: datetime
    lease_until: datetime
    rules: Rulebook
    staged: list[Task] = field(default_factory=list)

    def apply(self, unit: Unit) -> tuple[list[Task], list[Recorded], datetime | None]:
        """The claimed tasks, what was recorded of others, and when the next is due."""
        claimed, lost = [], []
        for task in unit.tasks_where(self.store.tasks.polls_due, now=self.now, limit=self.limit):
            if task.upstream_id is None:
                lost.append(self._lose(unit, task))
                continue
            leased = replace(task, poll_due_at=self.lease_until, poll_leased_until=self.lease_until)
            unit.put_task(leased)
            claimed.append(leased)
        self.staged[:] = claimed
        questions = self.store.tasks
        upcoming = questions.next_poll_at(unit.select(questions.next_poll, now=self.now))
        return claimed, lost, upcoming

    def _lose(self, unit: Unit, task: Task) -> Recorded:
        gone = lose(task, "the submission got no answer, and no callback came before polling.deadline", self.now)
        unit.put_task(gone)
        into = Recorded(gone, moved=True)
        record(unit, gone, "task.lost", self.rules, self.now, into.born)
        return into


@dataclass(frozen=True)
class HandBack(Reads):
    """The op that gives back what was claimed and is not asked: nobody need wait for its lease to end."""

    tasks: Sequence[Task]
    now: datetime

    @property
    def task_ids(self) -> list[TaskId]:
        """Those that are given back."""
        return [task.id for task in self.tasks]

    def apply(self, unit: Unit) -> None:
        """Stage it."""
        for mine in self.tasks:
            task = unit.task(mine.id)
            if task is not None and task.poll_leased_until == mine.poll_leased_until:
                unit.put_task(replace(task, poll_due_at=self.now, poll_leased_until=None))


@dataclass
class Poller:
    """The loop and its lookups.

    Attributes:
        timeout: seconds for one question.
        trouble: why the upstream does not answer; None while it does.
    """

    store: Store
    egress: Egress
    rules: Rulebook
    after: After
    log: Logger
    clock: Callable[[], datetime]
    timeout: float
    max_concurrency: int
    trouble: str | None = None
    _asking: dict[asyncio.Task[None], Task] = field(default_factory=dict)
    _answered: set[TaskId] = field(default_factory=set)
    _back: list[Task] = field(default_factory=list)
    _claiming: asyncio.Lock = field(default_factory=asyncio.Lock)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _sleeps_until: datetime | None = None
    _heard: datetime | None = None
    _stopping: bool = False

    def wake(self, due_at: datetime | None = None) -> None:
        """Something is due, now or at `due_at`: the loop does not sleep past it."""
        if due_at is None:
            self._wake.set()
        elif self._heard is None or due_at < self._heard:
            self._heard = due_at
            if self._sleeps_until is not None and due_at < self._sleeps_until:
                self._wake.set()

    async def run(self) -> None:
        """Ask, for ever."""
        while not self._stopping:
            wait, self._heard = IDLE_FOR, None
            try:
                async with self._claiming:
                    wait = await self._round()
            except StoreUnavailable as error:
                self.log.error("poll.store_unavailable", error=str(error))
            now = self.clock()
            if self._heard is not None:
                wait = min(wait, max((self._heard - now).total_seconds(), 0.0))
            self._sleeps_until = now + timedelta(seconds=wait)
            try:
                await asyncio.wait_for(self._wake.wait(), wait)
            except TimeoutError:
                continue
            finally:
                self._sleeps_until = None
                self._wake.clear()

    async def _round(self) -> float:
        await self._put_back()
        free = self.max_concurrency - len(self._asking)
        if free <= 0:
            return IDLE_FOR  # a lookup that ends wakes the loop
        now = self.clock()
        # Two questions at most (a route and its fallback), and the answer's commit.
        # To the millisecond, as it is stored: the lease that is read again must be known as ours.
        lease = now + timedelta(milliseconds=round(2000 * self.timeout)) + LEASE_MARGIN
        claim = Claim(self.store, free, now, lease, self.rules)
        try:
            claimed, lost, upcoming = await self.store.run(claim)
        except StoreUnsure:  # what may be leased now is asked about by nobody
            self._back += claim.staged
            raise
        if not claimed and not self._asking and upcoming is None:
            self.trouble = None  # nobody waits for an answer any more
        for recorded in lost:
            self.log.warning("task.lost", task_id=recorded.task.id, reason=recorded.task.msg)
            self.after(recorded)
        for task in claimed:
            asking = asyncio.create_task(self._look_up(task), name=f"look up {task.id}")
            self._asking[asking] = task
            asking.add_done_callback(self._done)
        if len(claimed) + len(lost) >= free:
            return 0.0 if lost else IDLE_FOR
        return IDLE_FOR if upcoming is None else min(max((upcoming - now).total_seconds(), 0.0), IDLE_FOR)

    async def _put_back(self) -> None:
        """What is leased and was not asked, or answered in vain, is due at once; no lease's end is waited for."""
        if back := self._back.copy():
            await self.store.run(HandBack(back, self.clock()))
            del self._back[: len(back)]

    def _done(self, asking: asyncio.Task[None]) -> None:
        self._asking.pop(asking, None)
        self._wake.set()
        if not asking.cancelled() and (error := asking.exception()) is not None:
            self.log.error("poll.failed", error=repr(error))

    async def _look_up(self, task: Task) -> None:
        looked, response, asked = await self._ask(task)
        self._answered.add(task.id)
        try:
            await self._keep(task, looked, response, asked)
        except StoreUnavailable:
            self._back.append(task)
            raise
        finally:
            self._answered.discard(task.id)

    async def _keep(self, task: Task, looked: Looked, response: HttpResponse | None, asked: LookupRoute) -> None:
        at = self.clock()
        lease = task.poll_leased_until
        assert lease is not None  # noqa: S101 -- the claim set it
        op = Lookup(
            task_id=task.id,
            upstream_id=task.upstream_id,
            lease=lease,
            seen=looked.observation if isinstance(looked, Shown | Unusable) else None,
            missing=isinstance(looked, Missing),
            answered=not isinstance(looked, Unanswered),
            detail=_words(looked),
            raw=response.body if response else b"",
            content_type=response.headers.get("content-type") if response else None,
            at=at,
            rules=self.rules,
            not_before=timedelta(seconds=(looked.retry_after or 0) if isinstance(looked, Unanswered) else 0),
            asked=asked,
        )
        try:
            recorded = await self.store.run(op)
        except NotFound:
            return
        self._report(task, looked, recorded)
        self.after(recorded)

    def _report(self, task: Task, looked: Looked, recorded: Recorded) -> None:
        self.after.metrics.lookups.add(type(looked).__name__.lower())
        unanswered = isinstance(looked, Unanswered)
        self.trouble = f"the upstream does not answer lookups: {_words(looked)}" if unanswered else None
        (self.log.warning if unanswered else self.log.info)(
            "task.polled",
            task_id=task.id,
            upstream_id=task.upstream_id,
            state=recorded.task.state,
            verdict=recorded.verdict,
            detail=recorded.detail,
            poll_count=recorded.task.poll_count,
        )

    async def _ask(self, task: Task) -> tuple[Looked, HttpResponse | None, LookupRoute]:
        """The route's own lookup, and the other one where the first shows nothing of use.

        Missing only where both say so: one route may not know what the other shows. One that does not answer leaves
        the question open.
        """
        route = ROUTES[task.route]
        upstream_id = task.upstream_id or ""
        own: LookupRoute = "feed" if route.feed_first else "task"
        its: LookupRoute = "task" if route.feed_first else "feed"
        first, response = await self._question(task, route.lookup(upstream_id))
        if isinstance(first, Shown) or (isinstance(first, Unanswered) and first.status in UNREACHED):
            return first, response, own
        second, other = await self._question(task, route.fallback(upstream_id))
        if isinstance(second, Shown) or _shows_it(second):
            return second, other, its
        if _shows_it(first) or isinstance(first, Unanswered):
            return first, response, own
        if isinstance(second, Missing) and not isinstance(first, Missing):
            return first, response, own
        return second, other, its

    async def _question(self, task: Task, request: HttpRequest) -> tuple[Looked, HttpResponse | None]:
        try:
            response = await self.egress.ask(request, timeout=self.timeout)
        except EgressError as error:
            return Unanswered(str(error), NO_STATUS, None), None
        return ROUTES[task.route].read_lookup(response, now=self.clock()), response

    async def stop(self) -> None:
        """Ask nothing new and give back what is under way: a lookup changes nothing upstream.

        One that was answered goes on: what its commit leases is for this process, and somebody must hear of it.
        """
        self._stopping = True
        self._wake.set()
        async with self._claiming:  # what is being claimed is given back, too
            under_way = dict(self._asking)
        for asking, task in under_way.items():
            if task.id not in self._answered:
                asking.cancel()
        if under_way:
            await asyncio.wait(under_way)
        self._back += under_way.values()
        try:
            await self._put_back()
        except StoreUnavailable as error:  # the leases run out by themselves
            self.log.error("poll.store_unavailable", error=str(error))


def _shows_it(looked: Looked) -> bool:
    """A body that only names the task says little, and yet shows that the upstream has it."""
    return isinstance(looked, Unusable) and looked.observation is not None


def _words(looked: Looked) -> str:
    match looked:
        case Shown():
            return looked.observation.seen
        case Missing():
            return "the upstream has no such task"
        case Unusable() | Unanswered():
            return looked.reason
        case _:
            assert_never(looked)
