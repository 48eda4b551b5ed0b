"""What instances on one database tell one another, and the clock they share.

A thread with a connection of its own listens, says what this process has to say (one NOTIFY for all of a moment, after
the commits it is about), and asks the database for the time. All of it is a help: who hears nothing looks once a second
by itself. It is no part of a batch's transaction: the server lets only one transaction with news commit at a time.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import select
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson

from receiver.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from receiver.store.dialect.postgres import Postgres, PostgresSession

CHANNEL = "receiver"
SAY_EVERY = 0.05
"""Seconds for which news gather."""
LOOK_EVERY = 1.0
"""Seconds between two looks at the database's clock."""
AWAY_FOR = 1.0
TIME = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
MOST = 150
"""Tasks named in one NOTIFY, which carries 8,000 bytes; past this all who wait look for themselves."""


@dataclass
class News:
    """What happened.

    Attributes:
        tasks: those that moved; None for too many to name.
        destinations: those for which something is due that the teller has no room for.
        events: whether there is something new in the feed.
    """

    tasks: set[str] | None = field(default_factory=set)
    destinations: set[str] = field(default_factory=set)
    events: bool = False

    def add(self, tasks: Iterable[str], destinations: Iterable[str], *, events: bool) -> None:
        """More of it."""
        if self.tasks is not None:
            self.tasks.update(tasks)
            if len(self.tasks) > MOST:
                self.tasks = None
        self.destinations.update(destinations)
        self.events = self.events or events

    def written(self, teller: str) -> str:
        """As the payload of a NOTIFY."""
        names = sorted(self.destinations)[:20]  # those left out are found by their own looks
        tasks = None if self.tasks is None else sorted(self.tasks)
        return orjson.dumps({"from": teller, "tasks": tasks, "due": names, "events": self.events}).decode()


class DatabaseClock:
    """Now, by the database: machines' clocks differ, and what is due is one question for all instances.

    It follows this machine's monotonic clock in between, which nobody sets.
    """

    def __init__(self) -> None:
        """Before the first look it is this machine's time."""
        self._ahead = time.time_ns() - time.monotonic_ns()
        self._width = 0

    def __call__(self) -> datetime:
        """Now, in UTC, to the millisecond."""
        return datetime.fromtimestamp((time.monotonic_ns() + self._ahead) // 1_000_000 / 1000, UTC)

    def look(self, ask: Callable[[], int]) -> None:
        """Set it by `ask`, which returns the database's time in microseconds; a slow answer tells little."""
        before = time.monotonic_ns()
        theirs = ask() * 1000
        width = time.monotonic_ns() - before
        if self._width and width > 4 * self._width:
            self._width *= 2  # a way that has become slow for good counts soon
            return
        self._width = width
        self._ahead = theirs - before - width // 2


class Herald:
    """The thread."""

    def __init__(self, dialect: Postgres, clock: DatabaseClock, loop: asyncio.AbstractEventLoop) -> None:
        """Set the clock; `start` begins the rest.

        Raises:
            StoreUnavailable: the database is not there.
        """
        self._dialect, self._clock, self._loop = dialect, clock, loop
        self._name = secrets.token_hex(8)
        self._gathering: News | None = None
        self._say: list[str] = []
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-herald", daemon=True)
        self.heard: Callable[[News], None] = lambda _news: None
        """Told, on the loop, what others did."""
        self._session: PostgresSession | None = None
        self._connect()

    def start(self) -> None:
        """Listen from now on."""
        self._thread.start()

    def tell(self, tasks: Iterable[str], destinations: Iterable[str], *, events: bool) -> None:
        """Tell the others, soon; from the loop."""
        if self._gathering is None:
            self._gathering = News()
            self._loop.call_later(SAY_EVERY, self._gathered)
        self._gathering.add(tasks, destinations, events=events)

    def _gathered(self) -> None:
        gathered, self._gathering = self._gathering, None
        if gathered is not None and not self._closed.is_set():
            self._say.append(gathered.written(self._name))
            self._nudge()

    def _nudge(self) -> None:
        with suppress(BlockingIOError):  # it is full of nudges
            os.write(self._write_end, b".")

    async def close(self) -> None:
        """End it; nothing where it has ended."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._nudge()
        await asyncio.to_thread(self._thread.join)
        os.close(self._read_end)
        os.close(self._write_end)

    # -- on the thread ---------------------------------------------------------------------------------------------

    def _connect(self) -> PostgresSession:
        session = self._dialect.connect()
        try:
            session.execute("SET synchronous_commit TO off")  # news are no data
            session.execute(f"LISTEN {CHANNEL}")
            self._look(session)
        except self._dialect.error as error:
            session.close()
            raise StoreUnavailable(f"cannot listen to the database: {error}") from error
        self._session = session
        return session

    def _look(self, session: PostgresSession) -> None:
        self._clock.look(lambda: next(iter(session.execute(TIME)))[0])

    def _run(self) -> None:
        look_at = time.monotonic() + LOOK_EVERY
        while not self._closed.is_set():
            try:
                session = self._session
                if session is None:
                    session = self._connect()
                    self._pass_on(News(tasks=None, events=True))  # what was said meanwhile was not heard
                _wait([session.fileno(), self._read_end], max(0.0, look_at - time.monotonic()))
                self._speak(session)
                for payload in session.heard():
                    self._hear(payload)
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + LOOK_EVERY
                    self._look(session)
            except (StoreUnavailable, self._dialect.error, OSError, ValueError):
                self._hang_up()
                self._closed.wait(AWAY_FOR)
                self._say.clear()  # old by the time that somebody listens; who waits looks by himself
        self._hang_up()

    def _hang_up(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _speak(self, session: PostgresSession) -> None:
        while _wait([self._read_end], 0):
            os.read(self._read_end, 4096)
        while self._say:
            session.execute("SELECT pg_notify(%s, %s)", (CHANNEL, self._say.pop(0)))

    def _hear(self, payload: str) -> None:
        try:
            said = orjson.loads(payload)
            if said["from"] == self._name:
                return
            tasks = said["tasks"]
            news = News(None if tasks is None else set(tasks), set(said["due"]), bool(said["events"]))
        except (ValueError, KeyError, TypeError):  # another release's words, or a stranger's: our own looks will do
            return
        self._pass_on(news)

    def _pass_on(self, news: News) -> None:
        with suppress(RuntimeError):  # the loop is closed: the process is going down
            self._loop.call_soon_threadsafe(self._heard, news)

    def _heard(self, news: News) -> None:
        self.heard(news)


def _wait(descriptors: Iterable[int], seconds: float) -> bool:
    """Whether one of them can be read in that time; `select` knows none past 1023."""
    poll = select.poll()
    for one in descriptors:
        poll.register(one, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
