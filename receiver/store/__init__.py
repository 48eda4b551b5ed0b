"""The store: everything durable. The only room that speaks SQL.

Writes go through the one `Writer` as ops (see writer.py); questions that nobody decides on go to a small pool of
readers, which in WAL mode never wait for the writer and never hold it up.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from receiver.errors import StoreUnavailable
from receiver.store.deliveries import DeliveryQuestions
from receiver.store.destinations import HealthQuestions, ReplayQuestions
from receiver.store.dialect import Dialect, open_dialect
from receiver.store.events import EventQuestions
from receiver.store.holds import Holds
from receiver.store.news import DatabaseClock, Herald
from receiver.store.prune import PruneQuestions, probe
from receiver.store.tasks import TaskQuestions
from receiver.store.unit import Statements, Unit
from receiver.store.writer import Done, Op, Reads, ReadsTask, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from sqlalchemy import Connection

    from receiver.records import Health

__all__ = ["Op", "Reads", "ReadsTask", "Store", "Unit"]

T = TypeVar("T")


class Store:
    """An open store.

    Attributes:
        tasks, deliveries, events, health, replays: the questions that can be asked.
        probe: statements that write a row of no meaning.
        clock: the clock that all who share the database go by; None where nobody else does.
        herald: what tells them; None likewise.
        holds: who asks what they were told to leave alone; None likewise.
        writer: the process's one writer.
    """

    def __init__(self, dialect: Dialect) -> None:
        """Compile the statements; `open` connects."""
        self.dialect = dialect
        self.tasks = TaskQuestions(dialect)
        self.deliveries = DeliveryQuestions(dialect)
        self.events = EventQuestions(dialect)
        self.health = HealthQuestions(dialect)
        self.replays = ReplayQuestions(dialect)
        self.prune = PruneQuestions(dialect)
        self.probe = probe(dialect)
        self._statements = Statements(dialect)
        self._engine = dialect.engine()
        self._readers = ThreadPoolExecutor(dialect.readers, thread_name_prefix="store-reader")
        self._closed = False
        self.writer: Writer
        self.herald: Herald | None = None
        self.holds: Holds | None = None
        self.clock: Callable[[], datetime] | None = None

    @classmethod
    def open(cls, url: str) -> Store:
        """Open the database at `url` (its schema must be up to date) and start the writer on the running loop.

        Raises:
            StoreUnavailable: it cannot be opened.
        """
        dialect, loop = open_dialect(url), asyncio.get_running_loop()
        store = cls(dialect)
        store.writer = Writer(dialect, store._statements, loop)
        store.writer.start()
        if dialect.is_shared:
            store.clock = clock = DatabaseClock()
            store.herald = Herald(dialect, clock, loop)
            store.herald.start()
            store.holds = Holds(dialect)
        return store

    async def run(self, op: Op[T]) -> T:
        """Do `op`; returns after its commit.

        Raises:
            StoreUnavailable: it was not committed.
            ReceiverError: what the op itself raised.
        """
        return await self.writer.run(op)

    def soon(self, op: Op[T], done: Done) -> None:
        """Do `op`; after its commit `done` is told what it returned, or the error that `run` raises.

        Raises:
            StoreUnavailable: it is not even tried.
        """
        self.writer.soon(op, done)

    async def read(self, question: Callable[[Connection], T]) -> T:
        """Ask on a reader's connection.

        Raises:
            StoreUnavailable: the database cannot be read.
        """

        def ask() -> T:
            with self._engine.connect() as connection:
                return question(connection)

        if self._closed:
            raise StoreUnavailable("the store is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, ask)
        except (SQLAlchemyError, self.dialect.error) as error:  # what a connection's preparation says comes bare
            raise StoreUnavailable(f"cannot read the database: {error}") from error

    async def held(self, now: datetime) -> Mapping[str, Health]:
        """Those who are to be left alone, as it is committed now; none where nobody else is told so.

        Raises:
            StoreUnavailable: the database cannot be asked.
        """
        return {} if self.holds is None else await self.holds.ask(now)

    async def end_stopped(self) -> int:
        """End the sessions of instances that were stopped while they held rows, which claims pass over; how many.

        Raises:
            StoreUnavailable: the database cannot be asked.
        """
        return await self.read(self.dialect.end_stopped) if self.dialect.is_shared else 0

    def hurry(self) -> None:
        """The service stops: do not wait long for a database that is silent."""
        self.dialect.hurry()
        self.writer.hurry()

    async def close(self) -> None:
        """Commit what waits and close."""
        self._closed = True
        self.hurry()
        await asyncio.gather(*(one.close() for one in (self.herald, self.holds) if one is not None))
        await self.writer.close()
        self._readers.shutdown()
        self._engine.dispose()
