"""The one writer of a process: every write is an op, and what is waiting becomes one transaction (group commit).

A thread takes all ops that wait, lets each prepare what takes no row, reads the rows they need in one statement a
table, lets each op decide in Python, writes with one executemany a table, commits once, and only then wakes whoever
waits. An acknowledgement is therefore always after a commit, and under load a commit is shared by all who wait for it:
x3 to x49 over a commit each, depending on the disk (performance.md).

What an op must keep to:
* it runs on the writer's thread, sees the effects of the ops before it, and touches nothing but its `Unit`;
* it raises a ReceiverError (NotFound, Conflict, …) only before its first change;
* it may be run again from the start: where another instance was in the way the batch is tried again, and if it fails
  for good its ops are tried one by one, so that a faulty op fails alone.

On a shared database every batch leaves its number in the writer's own row. A COMMIT that got no answer is looked up by
it, before anybody is told anything.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

from receiver.errors import ReceiverError, StoreUnavailable, StoreUnsure
from receiver.store.marks import Marks
from receiver.store.teller import Teller
from receiver.store.unit import Statements, Unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from receiver.ids import DeliveryId, TaskId
    from receiver.records import Delivery
    from receiver.store.dialect import Dialect

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MAX_BATCH = 512
"""Ops in one transaction: past this the gain is small and the wait of the first grows."""
GATHER_FOR = 0.01
"""Seconds that a batch is left to gather at most."""
GATHER_STEP, GATHER_EACH = 0.0005, 0.00006
"""Seconds in which nobody comes, after which nobody else is waited for; at least as long as it takes to read as many as
are waited for, since to look is to take the loop's turn."""
TRIES = 8
"""Times that a batch is tried while other instances are in its way."""
UNSURE_FOR = 8.0
"""Seconds to find out what became of a COMMIT; whoever waits is told after them that nobody knows."""
HURRIED_FOR = 1.0
"""The same once the service stops."""
ASK_EVERY = 0.2
MAX_WAITING = 20_000
"""Ops that may wait; past this new ones are refused, so memory is bounded when the disk stands still."""


class Op(Protocol[T_co]):
    """One write: which rows it is likely to read, and what it does."""

    @property
    def task_ids(self) -> Sequence[TaskId]:
        """Tasks to read ahead, in one statement for the whole batch."""
        ...

    @property
    def delivery_ids(self) -> Sequence[DeliveryId]:
        """Deliveries to read ahead likewise."""
        ...

    def prepare(self) -> None:
        """Work out what takes no row, before the transaction; perhaps more than once, and earlier on another thread.

        All of a batch do this before the first of them decides: many that do the same one after the other find the
        processor's caches full of it.
        """
        ...

    def apply(self, unit: Unit) -> T_co:
        """Decide and stage the changes; what it returns is the waiter's answer after the commit."""
        ...


class Reads:
    """What an op works out and reads ahead unless it says more: nothing."""

    __slots__ = ()

    @property
    def task_ids(self) -> Sequence[TaskId]:
        """No task."""
        return ()

    @property
    def delivery_ids(self) -> Sequence[DeliveryId]:
        """No delivery."""
        return ()

    def prepare(self) -> None:
        """Nothing."""


class ReadsTask(Reads):
    """An op about one task reads that."""

    __slots__ = ()

    task_id: TaskId

    @property
    def task_ids(self) -> Sequence[TaskId]:
        """The task."""
        return (self.task_id,)


Done = Callable[[Any, BaseException | None], Callable[[], None] | None]
"""Told what an op returned, or why it was not committed. What it returns is called once all others have heard of
theirs: whoever waits does not wait for what is done about other ops."""


class _Waiting(msgspec.Struct, Generic[T]):
    op: Op[T]
    done: Done
    value: T | None = None
    error: BaseException | None = None


class Writer:
    """The thread, its queue and its connection."""

    def __init__(self, dialect: Dialect, statements: Statements, loop: asyncio.AbstractEventLoop) -> None:
        """Connect; `start` begins the work. Answers are given on `loop`.

        Raises:
            StoreUnavailable: the database cannot be opened.
        """
        self._dialect = dialect
        self._statements = statements
        self._loop = loop
        self._connection = dialect.connect()
        self._marks = Marks(dialect) if dialect.is_shared else None
        self._broken = self._again = False
        self._queue: SimpleQueue[_Waiting[Any] | None] = SimpleQueue()
        self._wanted = MAX_WAITING
        self._all_here: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._closed = False
        self.is_hurried = False
        """The service stops: a COMMIT without an answer is not asked after for long."""
        self.failure: str | None = None
        """Why the last transaction failed; None once one has succeeded since."""
        self.commits = 0
        self.committed: Callable[[int, float], None] = lambda _ops, _seconds: None
        """Told of every commit, on the writer's thread: how many ops shared it, and how long it took."""
        self.unheard: Callable[[list[Delivery]], None] = lambda _leased: None
        """Told, on the loop, what was leased in a COMMIT that nobody can tell of: nobody here works on it."""
        self._crowd = self._changes = 0
        self._teller = Teller(loop)

    @property
    def waiting(self) -> int:
        """How many ops wait for a commit, those under way not counted."""
        return self._queue.qsize()

    def start(self) -> None:
        """Begin to take ops."""
        self._thread.start()

    def run(self, op: Op[T]) -> asyncio.Future[T]:
        """Queue `op`; the future is done after its commit.

        Raises:
            StoreUnavailable: as in `soon`.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self.soon(op, partial(_resolve, future))
        return future

    def soon(self, op: Op[T], done: Done) -> None:
        """Queue `op`; `done` is called on the loop after its commit, without the loop's detour by a future.

        Raises:
            StoreUnavailable: the writer is closed or too many ops wait already.
        """
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self._queue.qsize() >= MAX_WAITING:
            raise StoreUnavailable(f"{MAX_WAITING} writes are waiting for the disk already")
        self._queue.put(_Waiting(op, done))
        if self._queue.qsize() >= self._wanted:
            self._wanted = MAX_WAITING
            self._all_here.put(None)

    def hurry(self) -> None:
        """The service stops: nothing is waited for long, and nothing is left for later."""
        self.is_hurried = True
        self._teller.hurry()

    async def close(self) -> None:
        """Commit what waits, then end the thread."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._connection.close()

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            self._let_gather()
            batch, last = [first], False
            while len(batch) < MAX_BATCH:
                try:
                    waiting = self._queue.get_nowait()
                except Empty:
                    break
                if waiting is None:
                    last = True
                    break
                batch.append(waiting)
            self._crowd = len(batch)
            self._settle(batch)
            if last:
                return

    def _let_gather(self) -> None:
        """Wait for those who were woken last to come back, as long as some do.

        Whoever was answered together asks again at about the same time; a commit begun with the first of them would
        leave the others to the next one, and a commit for four costs each twice what one for thirty does. Alone (the
        last batch was of one) nobody is waited for.
        """
        size, ends = self._queue.qsize() + 1, time.perf_counter() + GATHER_FOR
        step = min(GATHER_FOR, max(GATHER_STEP, self._crowd * GATHER_EACH))
        while size < self._crowd and time.perf_counter() < ends:
            self._wanted = self._crowd - 1  # one of them is out of the queue already
            with suppress(Empty):
                self._all_here.get(timeout=step)
            before, size = size, self._queue.qsize() + 1
            if size == before:
                break
        self._wanted = MAX_WAITING

    def _settle(self, batch: list[_Waiting[Any]]) -> None:
        """Commit the batch, or find out who spoils it; then wake everyone at once."""
        error = self._insist(batch)
        if error is not None:
            alone = len(batch) > 1 and not self._dialect.is_outage(error)
            for waiting in batch:
                own = self._insist([waiting]) if alone else error
                if own is not None:
                    waiting.error = self._told(own)
                    if alone and self._broken:  # it is gone: each of the others would wait for it anew
                        alone, error = False, StoreUnavailable(str(own))
        self._teller.tell([partial(waiting.done, waiting.value, waiting.error) for waiting in batch])
        if self._changes and not self._broken:
            self._dialect.tidy(self._connection, self._changes)
            self._changes = 0

    def _told(self, error: BaseException) -> BaseException:
        """What the waiters of a batch that failed are told."""
        if isinstance(error, StoreUnsure) or not (self._dialect.is_outage(error) or self._dialect.is_passing(error)):
            return error
        if isinstance(error, StoreUnavailable):  # there was not even a connection, and it says so
            return error
        return StoreUnavailable(f"cannot commit: {error}")

    def _insist(self, batch: list[_Waiting[Any]]) -> BaseException | None:
        """Commit, and again while others are in the way, or where only the connection had died since its last use."""
        for _ in range(TRIES):
            error = self._commit(batch)
            if error is None or not self._again:
                return error
        return error

    def _commit(self, batch: list[_Waiting[Any]]) -> BaseException | None:
        was_open, is_sent = not self._broken, False
        try:
            if self._broken:
                self._connection = self._dialect.connect()
                self._broken = False
            for waiting in batch:
                waiting.op.prepare()
            started, connection = time.perf_counter(), self._connection
            unit = Unit(connection, self._statements)
            connection.execute(self._dialect.begin)
            _decide(batch, unit)
            with self._dialect.pipeline(connection):
                unit.flush()
                if self._marks is not None and unit.changes:
                    self._marks.put(connection)
                is_sent = True
                self._teller.use_the_wait()
                connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 -- whatever it is, the transaction is undone and the waiters are told
            self._undo()
            self.failure = str(error)
            self._again = self._dialect.is_passing(error) or (was_open and self._broken)
            self._again = self._again or (not self._broken and self._dialect.unblock(self._connection, error))
            if not (is_sent and self._broken and self._marks is not None and unit.changes):
                return error
            stands = self._look_up(self._marks)
            if not stands:
                self._again = stands is not None
                if self._again:
                    return error
                with suppress(RuntimeError):  # the loop is closed: the process is going down
                    self._loop.call_soon_threadsafe(self.unheard, unit.leased)
                return StoreUnsure(f"the database went away in a COMMIT: {error}")
        self.failure = None
        self.commits += 1
        self._changes += unit.changes
        self.committed(len(batch), time.perf_counter() - started)
        return None

    def _look_up(self, marks: Marks) -> bool | None:
        """Whether the last batch stands; None where that could not be found out in time."""
        ends = time.monotonic() + (HURRIED_FOR if self.is_hurried else UNSURE_FOR)
        while time.monotonic() < ends:
            try:
                self._connection = self._dialect.connect()
            except StoreUnavailable:
                time.sleep(ASK_EVERY)
                continue
            try:
                stands = marks.stands(self._connection)
            except self._dialect.error:
                self._connection.close()
                time.sleep(ASK_EVERY)
                continue
            self._broken = False
            return stands
        marks.leave()
        return None

    def _undo(self) -> None:
        if self._broken:
            return
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except Exception:  # noqa: BLE001 -- a connection that cannot even roll back is replaced, by the next transaction
            self._broken = True
            self._connection.close()


def _decide(batch: list[_Waiting[Any]], unit: Unit) -> None:
    """Have each op stage its changes, or say why not."""
    unit.read_ahead([i for w in batch for i in w.op.task_ids], [i for w in batch for i in w.op.delivery_ids])
    for waiting in batch:
        waiting.error = None
        before = unit.changes
        try:
            waiting.value = waiting.op.apply(unit)
        except ReceiverError as error:
            if unit.changes != before:
                raise
            waiting.error = error


def _resolve(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():  # whoever waited has gone; the commit stands all the same
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
