"""Who may send, and when: one gate a route, slots and a rate in all, and the account's own wait.

While a route is throttled nothing of it is sent; when its time has come one goes alone, and the others follow once the
upstream has taken it. What is said of our account holds every route back.

Starts of the rate are the database's to give, since all processes share them; what is known here of when the next one
is free is a hint, so that nobody asks before.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from receiver.pace import Haste
from receiver.store.rates import Paced
from receiver.upstream import ROUTES
from receiver.upstream.base import NotTaken, Refused, Taken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from receiver.pace import Rate
    from receiver.upstream.base import Submission


@dataclass
class Gate:
    """A route's gate: closed until a time, then open for one, then open."""

    until: datetime | None = None
    probing: bool = False
    sending: int = 0


@dataclass
class Gates:
    """All of them.

    Attributes:
        retry: the waits of `upstream.submit_retry`.
        rate: `upstream.rate`; None for none.
        haste: how soon what is stored here is sent.
        trouble: why submissions wait, by route or "account"; empty when none does.
        freed: set when one is no longer under way, whichever way it came in: the queue goes on.
        backlog: routes of which something waits in the queue: nothing new passes it.
        unseen: routes whose queue nobody has looked at since the start: whether they are throttled is not known.
        stopping: nothing new may be sent.
        heard: counts what the upstream said: who has asked the store since knows whether a gate may have closed.
    """

    clock: Callable[[], datetime]
    max_concurrency: int
    retry: Sequence[timedelta]
    rate: Rate | None = None
    haste: Haste = field(default_factory=Haste)
    trouble: dict[str, str] = field(default_factory=dict)
    backlog: set[str] = field(default_factory=lambda: set(ROUTES))
    unseen: set[str] = field(default_factory=lambda: set(ROUTES))
    stopping: bool = False
    heard: int = 0
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    _held: int = 0
    _paced_until: datetime | None = None
    _wanting: set[str] = field(default_factory=set)
    _passed: bool = False
    _gates: dict[str, Gate] = field(default_factory=lambda: {name: Gate() for name in ROUTES})
    _account_until: datetime | None = None
    _changed: set[asyncio.Future[None]] = field(default_factory=set)

    @property
    def sending(self) -> int:
        """How many submissions are under way."""
        return sum(gate.sending for gate in self._gates.values())

    def free(self) -> int:
        """How many more may be sent now: the slots that are free, and none while the rate is known to have no start."""
        if self.next_by_rate() is not None:
            return 0
        return max(0, self.max_concurrency - self.sending - self._held)

    @contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """Keep so many free while the queue claims who gets them: a claim takes a commit, and others ask meanwhile."""
        self._held += count
        try:
            yield
        finally:
            self._held -= count
            self.tell()

    def closed_until(self, route: str) -> datetime | None:
        """When the route's gate opens for one; None while it stands open."""
        return max(filter(None, (self._gates[route].until, self._account_until)), default=None)

    def is_probing(self, route: str) -> bool:
        """Whether one is under way that decides about all others."""
        return self._gates[route].probing

    def probe(self, route: str) -> None:
        """One goes alone."""
        self._gates[route].probing = True

    def may_pass(self, route: str, *, queued: bool = True) -> bool:
        """Whether a new task may be sent past the queue: its gate stands open, and there is a slot.

        Where the queue wants one, too, they get it by turns: callers who come all the time must not hold up what waits.

        Args:
            route: the task's.
            queued: it can wait in the queue, and does where something of its route waits already.
        """
        gate = self._gates[route]
        is_open = gate.until is None and not gate.probing and not self.stopping and route not in self.unseen
        turn = 1 if self.rate is None else self.max_concurrency  # of the rate there may be only one start to share
        kept = turn if self._wanting and self._passed else 0
        return is_open and not (queued and route in self.backlog) and self.free() > kept

    def want(self, route: str, *, wants: bool) -> None:
        """Say whether the queue has something of a route to send that only waits for a slot."""
        (self._wanting.add if wants else self._wanting.discard)(route)

    def next_by_rate(self) -> datetime | None:
        """When the rate lets one through; None where it is not what holds things up."""
        until = self._paced_until
        return until if until is not None and until > self.clock() else None

    def paced_until(self, at: datetime) -> None:
        """The rate has no start before then: so said the database."""
        self._paced_until = at

    def asked(self, now: datetime) -> Paced | None:
        """The start that a submission asks for; None where there is no rate."""
        return None if self.rate is None else Paced((self.rate,), now, self.haste.by((self.rate,), now))

    def begin(self, route: str, *, queued: bool = False) -> None:
        """One is sent: from the queue, or past it."""
        self._passed = not queued
        self._gates[route].sending += 1

    def end(self, route: str, answer: Submission | None = None) -> None:
        """One is no longer under way; open or close the gate by what the upstream said."""
        self._gates[route].sending -= 1
        if answer is not None:
            self._regulate(route, answer)
        self.freed.set()
        self.tell()

    def close(self, route: str, until: datetime) -> None:
        """Its oldest must wait until then, as it stands in the store: nothing else of that route is sent meanwhile."""
        gate = self._gates[route]
        gate.until = max(gate.until or until, until)

    def open(self, route: str) -> None:
        """Nothing of it waits: the way is free for new ones, past whatever closed the gate."""
        self.backlog.discard(route)
        self._gates[route].until = None
        self.trouble.pop(route, None)
        if not self.backlog:
            self._account_until = None
            self.trouble.pop("account", None)
        self.tell()

    def _regulate(self, route: str, answer: Submission) -> None:
        gate, now = self._gates[route], self.clock()
        gate.probing = False
        self.heard += 1
        match answer:
            case Taken():
                self._account_until = None
                self.trouble.pop("account", None)
                if gate.until is None or gate.until <= now:  # else it was on its way when another one was throttled
                    gate.until = None
                    self.trouble.pop(route, None)
            case NotTaken():
                wait = timedelta(seconds=answer.retry_after or 0)
                gate.until = max(gate.until or now, now + max(wait, self.retry[0]))
                self.trouble[route] = f"submissions of {route} wait: {answer.reason}"
            case Refused() if answer.account:
                self._account_until = now + self.retry[-1]
                self.trouble["account"] = f"the upstream refuses our account: {answer.reason}"
            case _:
                return

    def tell(self) -> None:
        """Something changed: whoever waits for a slot looks again."""
        for waiter in self._changed:
            if not waiter.done():
                waiter.set_result(None)

    def stop(self) -> None:
        """Let nothing new pass, and tell those who wait for it."""
        self.stopping = True
        self.tell()

    async def slot(self, route: str, seconds: float) -> datetime | None:
        """Wait for the right to send one past the queue, `seconds` at most.

        Returns:
            None once it may be sent; else when it is worth while to ask again.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        while not self.may_pass(route, queued=False):
            left = ends - loop.time()
            opens = self.closed_until(route) or self.next_by_rate() or self.clock()
            if self.stopping or left <= 0 or opens > self.clock() + timedelta(seconds=left):
                return opens
            waiter: asyncio.Future[None] = loop.create_future()
            self._changed.add(waiter)
            try:
                soon = max((opens - self.clock()).total_seconds(), 0.01) if self.next_by_rate() else 0.25
                await asyncio.wait({waiter}, timeout=min(left, soon, 0.25))
            finally:
                self._changed.discard(waiter)
        return None
