"""What happens after a commit: the log lines, the hand-over to the deliverer, the wake-ups. Nothing here is durable.

Whatever is lost between the commit and this room is found again by a loop: leases expire, due rows stay due.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from receiver.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from receiver.ids import TaskId
    from receiver.ingest.record import Born, Recorded
    from receiver.logs import Logger
    from receiver.records import Delivery, Event, Task
    from receiver.store.news import Herald, News


class After:
    """The place where rooms hear of what was committed; `app` connects them.

    Attributes:
        take: the deliverer's door for deliveries leased at birth.
        poll: tell the poller when a task is due; None for at once.
        deliver: tell the deliverer that a destination's delivery is due at a time.
        herald: tells other instances; None where there are none.
    """

    def __init__(self, log: Logger) -> None:
        """Nobody listens yet."""
        self.log = log
        self.metrics = Metrics()
        self.take: Callable[[Sequence[tuple[Delivery, Event]]], None] = lambda _leased: None
        self.poll: Callable[[datetime | None], None] = lambda _due_at: None
        self.deliver: Callable[[str, datetime | None], None] = lambda _destination, _due_at: None
        self.herald: Herald | None = None
        self.stopping = False
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._readers: set[asyncio.Future[None]] = set()

    def __call__(self, recorded: Recorded) -> Recorded:
        """Act on what an op made of a task."""
        task = recorded.task
        self.born(recorded.born, task)
        if recorded.look or task.poll_due_at is not None:
            self.poll(None if recorded.look else task.poll_due_at)
        _release(self._waiting.pop(task.id, ()))
        if self.herald is not None and recorded.moved:
            self.herald.tell((task.id,), (), events=False)
        return recorded

    def born(self, born: Born, task: Task | None = None) -> None:
        """Act on new events and their deliveries."""
        for event in born.events:
            self.metrics.events.add(event.type)
            self.log.info(
                "event.recorded",
                task_id=event.of_task,
                upstream_id=task.upstream_id if task else None,
                event_id=event.id,
                type=event.type,
                via=task.via if task else None,
            )
        if born.leased:
            self.take(born.leased)
        for delivery in born.waiting:
            self.deliver(delivery.destination, delivery.due_at)
        if born.events:
            _release(self._readers)
            if self.herald is not None:
                due = {
                    one.destination for one in born.waiting if one.due_at is not None and one.due_at <= one.created_at
                }
                self.herald.tell((), due, events=True)

    def held(self, destination: str) -> None:
        """A destination asked to be left alone: the other instances are to ask about it."""
        if self.herald is not None:
            self.herald.tell((), (destination,), events=False)

    def heard(self, news: News) -> None:
        """Act on what other instances did."""
        known = self._waiting if news.tasks is None else news.tasks & self._waiting.keys()
        for task_id in list(known):
            _release(self._waiting.pop(task_id))
        if news.events:
            _release(self._readers)
        for name in news.destinations:
            self.deliver(name, None)

    async def changed(self, task_id: TaskId, seconds: float) -> None:
        """Wait until something is recorded of the task in this process, or for `seconds`."""
        waiters = self._waiting.setdefault(task_id, set())
        try:
            await self._wait(waiters, seconds)
        finally:
            if not waiters and self._waiting.get(task_id) is waiters:
                del self._waiting[task_id]

    async def recorded(self, seconds: float) -> None:
        """Wait until any event is recorded in this process, or for `seconds`."""
        await self._wait(self._readers, seconds)

    async def _wait(self, waiters: set[asyncio.Future[None]], seconds: float) -> None:
        if self.stopping:
            return
        waiter = asyncio.get_running_loop().create_future()
        waiters.add(waiter)
        try:
            await asyncio.wait_for(waiter, seconds)
        except TimeoutError:
            return
        finally:
            waiters.discard(waiter)

    def release(self) -> None:
        """Let everyone who waits go: the service stops."""
        self.stopping = True
        for waiters in (*self._waiting.values(), self._readers):
            _release(waiters)


def _release(waiters: Iterable[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
