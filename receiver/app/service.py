"""All rooms of one process, connected, started and stopped."""

from __future__ import annotations

import asyncio
import random
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from receiver import deliver, logs
from receiver.app import process, terms
from receiver.app.chance import Entropy
from receiver.app.chance import clock as local_clock
from receiver.config import secrets_of
from receiver.egress import Egress
from receiver.errors import ConfigError
from receiver.ingest import After, Lane, Rulebook
from receiver.poll import Poller
from receiver.relay import Relay
from receiver.routing import OWN_CALLBACK
from receiver.store import Store, migrations
from receiver.submit import Sender, Submitter, Through
from receiver.sweep import Refusals, Sweeper
from receiver.web import Front
from receiver.web.api import Api
from receiver.web.callbacks import CallbackDoor
from receiver.web.feed import Feed
from receiver.web.gateway import Gateway
from receiver.web.guard import Guard
from receiver.web.health import Health
from receiver.web.limits import Limits
from receiver.web.meter import Meter
from receiver.web.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from receiver.config import Config
    from receiver.store.dialect import Lock

DRAIN_FOR = 7.0
"""Seconds that requests and attempts under way have on SIGTERM; with what follows, the exit is within 10 s."""
RESTART_FOR = 1.0
"""Seconds before a loop that fell over is started again."""


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
    through: Through
    relay: Relay
    poller: Poller
    deliverer: deliver.Deliverer
    replayer: deliver.Replayer
    sweeper: Sweeper
    after: After
    lock: Lock
    front: Front = field(init=False)
    meter: Meter = field(init=False)
    _loops: list[asyncio.Task[None]] = field(default_factory=list)
    _stopping: bool = False

    def __post_init__(self) -> None:
        """Put the edge in front of the rooms."""
        config = self.config
        rules, clock = self.sweeper.rules, self.sweeper.clock
        door = CallbackDoor(
            self.store, rules, self.after, self.sweeper.refusals, self.after.log, clock, config.security.signing_keys
        )
        rate = config.server.rate_per_key
        guard = Guard(config.security.api_keys, Limits(None if rate is None else (rate.count, rate.per), clock))
        outbox = Outbox(self.store, self.deliverer, self.replayer, guard, clock)
        feed = Feed(self.store, self.after, guard)
        gateway = Gateway(self.store, self.through, self.relay, guard, config.server.max_submission)
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
        watched = [name for name in self.deliverer.destinations if name != OWN_CALLBACK]
        self.meter = Meter(self.store, self.after.metrics, self.sweeper.refusals.counts, watched, clock())
        self.store.writer.committed = self.after.metrics.committed
        self.store.writer.unheard = self.deliverer.give_back
        self.front = Front(
            door,
            [row for room in (api, feed, outbox, gateway, self.meter, probes) for row in room.table()],
            guard=guard,
            public_path=path,
            new_id=_request_id,
            count=self.after.metrics.requests.add,
        )

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
            await asyncio.to_thread(_migrate, config, log)
            store = Store.open(url)
        except BaseException:
            service_lock.release()
            raise
        clock = store.clock or local_clock
        egress = Egress(base_url=config.upstream.base_url, headers=terms.upstream_headers(config))
        after = After(log)
        destinations = {d.name: terms.destination(config, d) for d in config.destinations}
        destinations[OWN_CALLBACK] = terms.own_callbacks(config)
        # Seeded by the operating system, so no two processes draw the same; what must not be guessed is entropy.
        dice, entropy = random.Random(), Entropy()  # noqa: S311 -- jitter and samples
        rules = Rulebook(
            rules=[terms.rule(d) for d in config.destinations],
            lanes={name: Lane(d.schedule[0], d.lease_for) for name, d in destinations.items()},
            room=lambda name: deliverer.room(name),  # noqa: PLW0108 -- each knows the other; it is made below
            entropy=entropy,
            draw=dice.random,
            polling=terms.polling(config),
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
        gates = terms.gates(config, clock)
        sender = Sender(store, egress, rules, terms.terms(config), after, log, clock, gates)
        submitter, through = Submitter(sender), Through(sender)
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
        relay = Relay(store, egress, rules, after, clock, timeout)
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
        after.herald = store.herald
        if store.herald is not None:
            store.herald.heard = after.heard
        service = cls(
            config, store, egress, submitter, through, relay, poller, deliverer, replayer, sweeper, after, service_lock
        )
        try:
            if not store.dialect.is_shared:  # else others may be at work on what is leased
                await sweeper.recover()
        except BaseException:
            await service.close()
            raise
        process.freeze()
        for name, loop in (
            ("submit", submitter.run),
            ("poll", poller.run),
            ("deliver", deliverer.run),
            ("replay", replayer.run),
            ("sweep", sweeper.run),
            ("meter", service.meter.run),
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
            if not self._stopping:  # nor may one that only returned come back without a breath
                await asyncio.sleep(RESTART_FOR)

    def reasons(self) -> list[str]:
        """Why the service is not ready, in words."""
        reasons = ["the service is stopping"] if self._stopping else []
        reasons += self.submitter.gates.trouble.values()
        if self.poller.trouble is not None:
            reasons.append(self.poller.trouble)
        return reasons

    async def drain(self) -> None:
        """Take nothing new; finish what is under way, or give it back (contract: SIGTERM)."""
        self._stopping = True
        self.store.hurry()
        self.after.release()
        self.sweeper.stop()
        self.replayer.stop()
        self.through.stopping = True
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


def _request_id() -> str:
    return f"req_{secrets.token_hex(12)}"


def _lock(url: str) -> Lock:
    from receiver.store.dialect import open_dialect

    return open_dialect(url).claim_for_serving()


def _migrate(config: Config, log: logs.Logger) -> None:
    url = config.database.url
    if config.database.migrate:
        done = migrations.upgrade(url)
        schema = done.schema
        if schema.at != done.before:
            log.info("schema.migrated", before=done.before, after=schema.at, copy=done.copy and str(done.copy))
    else:
        schema = migrations.look(url)
    if not schema.fits:
        raise ConfigError([f"database.migrate is false and the database {schema.words}: run `receiver db upgrade`"])
    if schema.is_newer:
        log.warning("schema.overtaken", schema=schema.at, newest_known=schema.head)
