"""Who asked to be left alone, asked of a shared database by whoever is about to call: another instance may know of it.

One question at a time, for all who ask while the one before is under way: it begins after the last of them asked, so it
sees what was committed by then. It has a connection and a thread of its own: no list that somebody reads holds up what
is to be sent.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, select

from receiver.errors import StoreUnavailable
from receiver.records import Health
from receiver.store.rows import Prepared, Rows
from receiver.store.schema import destinations

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from receiver.store.dialect.postgres import Postgres, PostgresSession

AWAY_FOR = 1.0
"""Seconds before those are answered who asked a database that is not there: they would ask again at once."""


class Holds:
    """The one who asks."""

    def __init__(self, dialect: Postgres) -> None:
        """Compile the question; it connects when it is first asked."""
        self._dialect = dialect
        self._rows = Rows(Health, destinations, dialect.core)
        self._question = Prepared(
            select(*self._rows.columns).where(destinations.c.held_until > bindparam("now")), dialect.core
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-holds")
        self._session: PostgresSession | None = None
        self._closed = threading.Event()
        self._under_way: asyncio.Task[dict[str, Health]] | None = None
        self._next: asyncio.Task[dict[str, Health]] | None = None

    async def ask(self, now: datetime) -> Mapping[str, Health]:
        """Those who are held, by their names, as it is committed when this is asked.

        Raises:
            StoreUnavailable: the database cannot be asked.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._asked(self._under_way, now), context=Context())
            self._next.add_done_callback(_heard)  # also where nobody waits for it any more
        return await asyncio.shield(self._next)

    async def _asked(self, before: asyncio.Task[dict[str, Health]] | None, now: datetime) -> dict[str, Health]:
        if before is not None:
            await asyncio.wait({before})
        if self._closed.is_set():
            raise StoreUnavailable("the store is closed")
        self._under_way, self._next = self._next, None  # whoever asks from here on is too late for this one
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, now)
        except (StoreUnavailable, self._dialect.error) as error:
            raise StoreUnavailable(f"cannot ask who is to be left alone: {error}") from error

    async def close(self) -> None:
        """End it: nobody is answered any more."""
        self._closed.set()
        await asyncio.to_thread(self._thread.shutdown)
        self._hang_up()

    # -- on the thread ---------------------------------------------------------------------------------------------

    def _ask(self, now: datetime) -> dict[str, Health]:
        try:
            if self._session is not None:
                try:
                    return self._look(self._session, now)
                except self._dialect.error:  # it may only have died since it was last used
                    if self._closed.is_set():
                        raise
                    self._hang_up()
            self._session = self._dialect.connect()
            return self._look(self._session, now)
        except (StoreUnavailable, self._dialect.error):
            self._hang_up()
            self._closed.wait(AWAY_FOR)
            raise

    def _look(self, session: PostgresSession, now: datetime) -> dict[str, Health]:
        found = self._rows.decode(session.execute(self._question.sql, self._question.values(now=now)))
        return {health.name: health for health in found}

    def _hang_up(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


def _heard(asked: asyncio.Task[dict[str, Health]]) -> None:
    if not asked.cancelled():
        asked.exception()
