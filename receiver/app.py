"""The composition root: from a configuration to a running service. Only cli imports it.

Here is the one clock and the one source of chance; everything else is told the time and given its dice.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import uvicorn

from receiver import deliver, health, logs
from receiver.config import secrets_of
from receiver.destinations import KINDS
from receiver.destinations.webhook import WebhookOptions
from receiver.egress import Egress
from receiver.errors import ConfigError, StoreUnavailable
from receiver.ingest import After, Lane, Polling, Rulebook
from receiver.poll import Poller
from receiver.routing import OWN_CALLBACK, Rule
from receiver.store import Store, migrations
from receiver.submit import Submitter, Terms
from receiver.sweep import Refusals, Sweeper
from receiver.web import Front
from receiver.web.api import Api
from receiver.web.callbacks import CallbackDoor
from receiver.web.feed import Feed
from receiver.web.guard import Guard
from receiver.web.health import Health
from receiver.web.outbox import Outbox

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Iterator

    from receiver.config import Config
    from receiver.store.dialect import ServeLock

DRAIN_FOR = 7.0
"""Seconds that requests and attempts under way have on SIGTERM; with what follows, the exit is within 10 s."""
RESTART_FOR = 1.0
"""Seconds before a loop that fell over is started again."""


def clock() -> datetime:
    """Now, in UTC, to the millisecond: what is stored and read again is the same time."""
    now = datetime.now(UTC)  # noqa: TID251 -- the one place
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


class Entropy:
    """Random bytes of the operating system, asked for by the page: ids want ten at a time, and a call costs more."""

    def __init__(self) -> None:
        """Nothing drawn yet."""
        self._pool, self._place = b"", 0
        self._lock = threading.Lock()

    def __call__(self, count: int) -> bytes:
        """Bytes that nobody else gets."""
        with self._lock:
            if self._place + count > len(self._pool):
                self._pool, self._place = os.urandom(max(4096, count)), 0
            self._place += count
            return self._pool[self._place - count : self._place]


@dataclass
class Service:
    """All rooms of one process, connected.

    Attributes:
        front: the ASGI application.
    """

    config: Config
    store: Store
    egress: Egress
    submitter: Submitter
    poller: Poller
    deliverer: deliver.Deliverer
    replayer: deliver.Replayer
    sweeper: Sweeper
    after: After
    lock: ServeLock
    front: Front = field(init=False)
    _loops: list[asyncio.Task[None]] = field(default_factory=list)
    _stopping: bool = False

    def __post_init__(self) -> None:
        """Put the edge in front of the rooms."""
        config = self.config
        rules = self.sweeper.rules
        door = CallbackDoor(
            self.store, rules, self.after, self.sweeper.refusals, self.after.log, clock, config.security.signing_keys
        )
        guard = Guard(config.security.api_keys)
        outbox = Outbox(self.store, self.deliverer, self.replayer, guard, clock)
        feed = Feed(self.store, self.after, guard)
        api = Api(
            store=self.store,
            submitter=self.submitter,
            rules=rules,
            after=self.after,
            guard=guard,
            clock=clock,
            max_submission=config.server.max_submission,
            destinations=frozenset(destination.name for destination in config.destinations),
            lookup_for=2 * config.upstream.timeout.total_seconds(),
        )
        probes = Health(self.store, self.reasons)
        path = urlsplit(config.server.public_url or "").path.rstrip("/")
        self.front = Front(door, [*api.routes(), *outbox.routes(), *feed.routes(), *probes.routes()], public_path=path)

    @classmethod
    async def start(cls, config: Config) -> Service:
        """Open the database, take back what a dead process held, and start the loops.

        Raises:
            StoreUnavailable: the database cannot be opened, or another process serves it.
            ConfigError: the schema is not up to date, and `database.migrate` is false.
        """
        log = logs.get()
        logs.hide(*secrets_of(config))
        url = config.database.url
        service_lock = _lock(url)
        try:
            await asyncio.to_thread(_migrate, config)
            store = Store.open(url)
        except BaseException:
            service_lock.release()
            raise
        egress = Egress(base_url=config.upstream.base_url, headers=_upstream_headers(config))
        after = After(log)
        destinations = {d.name: _destination(config, d) for d in config.destinations}
        destinations[OWN_CALLBACK] = _own_callbacks(config)
        # Chance from the operating system: ids are guessed by nobody, and no two processes draw the same.
        dice, entropy = random.SystemRandom(), Entropy()
        rules = Rulebook(
            rules=[_rule(d) for d in config.destinations],
            lanes={name: Lane(d.schedule[0], d.lease_for) for name, d in destinations.items()},
            room=lambda name: deliverer.room(name),  # noqa: PLW0108 -- each knows the other; it is made below
            entropy=entropy,
            draw=dice.random,
            polling=_polling(config),
            confirm=config.upstream.confirm_callbacks,
        )
        deliverer = deliver.Deliverer(
            store=store,
            egress=egress,
            destinations=destinations,
            rules=rules,
            after=after,
            clock=clock,
            max_concurrency=config.delivery.max_concurrency,
        )
        replayer = deliver.Replayer(store, list(destinations), log, clock, entropy, deliverer.wake)
        submitter = Submitter(store, egress, rules, _terms(config), after, log, clock)
        timeout = config.upstream.timeout.total_seconds()
        poller = Poller(
            store=store,
            egress=egress,
            rules=rules,
            after=after,
            log=log,
            clock=clock,
            timeout=timeout,
            max_concurrency=config.polling.max_concurrency,
        )
        sweeper = Sweeper(
            store=store,
            rules=rules,
            refusals=Refusals(entropy),
            after=after,
            log=log,
            clock=clock,
            destinations=list(destinations),
            keep_for=config.retention.tasks,
            wake_deliver=deliverer.wake,
        )
        after.take, after.deliver, after.poll = deliverer.take, deliverer.wake, poller.wake
        service = cls(config, store, egress, submitter, poller, deliverer, replayer, sweeper, after, service_lock)
        try:
            await sweeper.recover()
        except BaseException:
            await service.close()
            raise
        # What is here now stays: the collector need not walk through it again and again (15 us of each callback).
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 50, 100)
        for name, loop in (
            ("submit", submitter.run),
            ("poll", poller.run),
            ("deliver", deliverer.run),
            ("replay", replayer.run),
            ("sweep", sweeper.run),
        ):
            service._loops.append(asyncio.create_task(service._kept_up(name, loop), name=name))
        return service

    async def _kept_up(self, name: str, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A loop that falls over is told of and started again: a fault in one task must not stop all others."""
        while not self._stopping:
            try:
                await loop()
            except Exception:
                self.after.log.exception("loop.failed", loop=name)
                await asyncio.sleep(RESTART_FOR)

    def reasons(self) -> list[str]:
        """Why the service is not ready, in words."""
        reasons = ["the service is stopping"] if self._stopping else []
        reasons += self.submitter.trouble.values()
        if self.poller.trouble is not None:
            reasons.append(self.poller.trouble)
        return reasons

    async def drain(self) -> None:
        """Take nothing new; finish what is under way, or give it back (contract: SIGTERM)."""
        self._stopping = True
        self.after.release()
        self.sweeper.stop()
        self.replayer.stop()
        await asyncio.gather(self.submitter.stop(), self.poller.stop(), self.deliverer.stop(DRAIN_FOR))

    async def close(self) -> None:
        """Let go of everything; to be called after `drain`."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self.egress.aclose()
        await self.store.close()
        self.lock.release()
        self.after.log.info("service.stopped")


class Server(uvicorn.Server):
    """uvicorn, stopping by our order: take nothing new, await paid answers, give back the rest, and be gone.

    uvicorn's own way kills the process by the signal it was stopped with, before the store is closed, and cancels
    requests by one time limit for all. Here a request that waits for a submission's answer may take as long as that.
    """

    def __init__(self, service: Service, *, host: str, port: int) -> None:
        """One process, no access log (it would hold the callback tokens), no trust in forwarding headers."""
        super().__init__(
            uvicorn.Config(
                service.front,
                host=host,
                port=port,
                workers=1,
                access_log=False,
                log_config=None,
                lifespan="off",
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=30,
            )
        )
        self._service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT, and afterwards return as from any other call."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        service, listening = self._service, [s.getsockname() for server in self.servers for s in server.sockets]
        service.after.log.info(
            "service.started",
            listening=[f"{address[0]}:{address[1]}" for address in listening],
            public_url=service.config.server.public_url,
            database=service.store.dialect.name,
            destinations=sorted(destination.name for destination in service.config.destinations),
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain the service while the connections are closed."""
        watch = asyncio.create_task(self._hurry())
        drain = asyncio.create_task(self._service.drain())
        await super().shutdown(sockets)
        await drain
        watch.cancel()

    async def _hurry(self) -> None:
        """After the drain time, wait for nothing but answers that are paid for."""
        await asyncio.sleep(DRAIN_FOR)
        await self._service.submitter.settled()
        await asyncio.sleep(0.5)  # their callers get the answer
        for request in list(self.server_state.tasks):
            request.cancel()
        self.force_exit = True


async def serve(config: Config, *, host: str | None = None, port: int | None = None) -> None:
    """Run the service until SIGTERM or SIGINT.

    Raises:
        StoreUnavailable, ConfigError: it cannot start; see `Service.start`.
    """
    service = await Service.start(config)
    try:
        here = config.server
        await Server(service, host=host or here.host, port=here.port if port is None else port).serve()
    finally:
        if not service._stopping:  # noqa: SLF001 -- the server did not come up: its port is taken
            await service.drain()
        await service.close()


def _lock(url: str) -> ServeLock:
    from receiver.store.dialect import open_dialect

    return open_dialect(url).claim_for_serving()


def _migrate(config: Config) -> None:
    url = config.database.url
    if config.database.migrate:
        migrations.upgrade(url)
        return
    at, head = migrations.current(url), migrations.head()
    if at != head:
        raise ConfigError(
            [f"database.migrate is false and the schema is {at or 'empty'}, not {head}: run `receiver db upgrade`"]
        )


def _upstream_headers(config: Config) -> dict[str, str]:
    return {
        "authorization": f"Bearer {config.upstream.api_key}",
        "x-runway-version": config.upstream.runway_version,
    }


def _destination(config: Config, given: Any) -> deliver.Destination:
    base = config.delivery
    return deliver.Destination(
        name=given.name,
        kind=KINDS[given.kind],
        options=given.options,
        schedule=base.schedule if given.schedule is None else given.schedule,
        jitter=base.jitter if given.jitter is None else given.jitter,
        timeout=(base.timeout if given.timeout is None else given.timeout).total_seconds(),
        max_concurrency=given.max_concurrency,
        allow_private=given.allow_private,
        terms=health.Terms(
            base.circuit_failures if given.circuit_failures is None else given.circuit_failures,
            base.circuit_pause if given.circuit_pause is None else given.circuit_pause,
        ),
        rate=None if given.rate is None else (given.rate.count, given.rate.per),
        home=config.server.public_url,
    )


def _own_callbacks(config: Config) -> deliver.Destination:
    """The lane that all tasks' own callback_urls share (contract section 3: 16 slots, 4 a host)."""
    base = config.delivery
    return deliver.Destination(
        name=OWN_CALLBACK,
        kind=KINDS["webhook"],
        # The URL is each delivery's own.
        options=WebhookOptions(
            url="http://callback.invalid", secrets=config.security.callback_secrets, format="envelope"
        ),
        schedule=base.schedule,
        jitter=base.jitter,
        timeout=base.timeout.total_seconds(),
        max_concurrency=16,
        allow_private=config.security.allow_private_callbacks,
        per_host=4,
    )


def _rule(given: Any) -> Rule:
    match = tuple((path, tuple(v) if isinstance(v, list | tuple) else (v,)) for path, v in given.match.items())
    return Rule(
        name=given.name,
        events=None if given.events is None else tuple(given.events),
        routes=None if given.routes is None else tuple(given.routes),
        match=match,
    )


def _polling(config: Config) -> Polling:
    given = config.polling
    return Polling(
        callback_grace=given.callback_grace,
        interval=given.interval,
        backoff=given.backoff,
        max_interval=given.max_interval,
        jitter=given.jitter,
        missing_grace=given.missing_grace,
        deadline=given.deadline,
    )


def _terms(config: Config) -> Terms:
    upstream = config.upstream
    return Terms(
        signing_keys=config.security.signing_keys,
        callback_base=config.server.public_url,
        callback_ttl=config.security.callback_ttl,
        timeout=upstream.timeout.total_seconds(),
        max_concurrency=upstream.max_concurrency,
        retry=upstream.submit_retry,
        deadline=upstream.submit_deadline,
        allow_private_callbacks=config.security.allow_private_callbacks,
    )


__all__ = ["Server", "Service", "StoreUnavailable", "clock", "serve"]
