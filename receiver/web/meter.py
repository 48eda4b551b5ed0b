"""`GET /metrics`: what the rooms counted, and what the store and the process say when asked, as Prometheus reads it.

What the store must count is asked for on a reader's connection, and not again before that is twenty times as old as it
took: a large store is asked seldom, and a scrape never waits for another. Where it cannot be read, its counts are
absent and all else is there.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from starlette.responses import Response

from receiver import __version__, lifecycle, metrics
from receiver.errors import StoreUnavailable
from receiver.lifecycle import HealthState
from receiver.metrics import Reading
from receiver.records import Health
from receiver.web.table import Answer, Operation

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from starlette.requests import Request

    from receiver.metrics import Labels, Metrics
    from receiver.store import Store

FRESH_FOR = 5.0
"""Seconds that counts of the store are kept at least."""
LAG_EVERY = 0.5
_SELF = Path("/proc/self")


@dataclass
class Meter:
    """The handler, and whom it asks.

    Attributes:
        destinations: those with a health.
        refused: how many callbacks were refused, by reason.
        started_at: when the process began to serve.
    """

    store: Store
    metrics: Metrics
    refused: Mapping[str, int]
    destinations: Collection[str]
    started_at: datetime
    _stored: list[Reading] = field(default_factory=list)
    _stale_at: float = 0.0
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def table(self) -> list[Operation]:
        """The route table."""
        return [
            Operation(
                method="GET",
                path="/metrics",
                handler=self.show,
                name="showMetrics",
                tag="operation",
                summary="Numbers for Prometheus",
                says="Text format 0.0.4. No task's id and nothing of a stranger's is ever a label.",
                answers=[Answer(200, "The numbers.", media=metrics.CONTENT_TYPE)],
                counted=False,
            )
        ]

    async def show(self, _request: Request) -> Response:
        """`GET /metrics`."""
        families = [*self.metrics.families(), *await self._of_store(), *self._of_writer(), *self._of_process()]
        return Response(metrics.written(families), headers={"content-type": metrics.CONTENT_TYPE})

    async def run(self) -> None:
        """Measure how late the event loop is, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_EVERY
            await asyncio.sleep(LAG_EVERY)
            self.metrics.loop_lag.add(max(0.0, loop.time() - due))

    # -- what is asked for ---------------------------------------------------------------------------------------------

    async def _of_store(self) -> list[Reading]:
        loop = asyncio.get_running_loop()
        async with self._asking:
            began = loop.time()
            if began >= self._stale_at:
                try:
                    self._stored = await self.store.read(self._count)
                except StoreUnavailable:  # the rest is wanted most when this is away
                    self._stored = []
                took = loop.time() - began
                self._stale_at = loop.time() + max(FRESH_FOR, 20 * took)
        return self._stored

    def _count(self, connection: Any) -> list[Reading]:
        store = self.store
        tasks = store.tasks.counts(connection)
        healths = store.health.all(connection)
        state: dict[Labels, float] = {}
        failures: dict[Labels, float] = {}
        for name in self.destinations:
            health = healths.get(name) or Health(name)
            state |= {(name, one): float(health.state == one) for one in get_args(HealthState)}
            failures[name] = health.consecutive_failures
        return [
            _gauge(
                "receiver_tasks",
                "Tasks that are kept, by state.",
                "state",
                values={one: tasks.get(one, 0) for one in lifecycle.TASK_STATES},
            ),
            _gauge(
                "receiver_deliveries",
                "Deliveries that wait, are under way or are dead.",
                *("destination", "state"),
                values=dict(store.deliveries.counts(connection)),
            ),
            _gauge(
                "receiver_destination_state",
                "1 for the state a destination is in.",
                *("destination", "state"),
                values=state,
            ),
            _gauge(
                "receiver_destination_consecutive_failures",
                "Attempts that failed since the last that did not.",
                "destination",
                values=failures,
            ),
        ]

    def _of_writer(self) -> list[Reading]:
        writer = self.store.writer
        return [
            _counted("receiver_callbacks_refused_total", "Those refused.", "reason", values=self.refused),
            _counted("receiver_store_commits_total", "Transactions committed.", values={"": writer.commits}),
            _gauge("receiver_store_waiting_ops", "Ops that wait for a commit.", values={"": writer.waiting}),
            _gauge(
                "receiver_store_failing",
                "1 while the last commit failed.",
                values={"": writer.failure is not None},
            ),
        ]

    def _of_process(self) -> list[Reading]:
        times = os.times()
        build = {(__version__, platform.python_version(), self.store.dialect.name): 1}
        found = [
            _gauge("receiver_build_info", "What runs.", *("version", "python", "database"), values=build),
            _counted(
                "process_cpu_seconds_total", "User and system time, in seconds.", values={"": times.user + times.system}
            ),
            _gauge(
                "process_start_time_seconds",
                "When it began to serve, in seconds since 1970.",
                values={"": self.started_at.timestamp()},
            ),
            _gauge(
                "process_max_fds", "Files it may have open.", values={"": resource.getrlimit(resource.RLIMIT_NOFILE)[0]}
            ),
        ]
        with suppress(OSError):  # where there is no /proc
            size, resident = (int(pages) * resource.getpagesize() for pages in _pages())
            found += [
                _gauge("process_virtual_memory_bytes", "Address space, in bytes.", values={"": size}),
                _gauge("process_resident_memory_bytes", "Memory, in bytes.", values={"": resident}),
                _gauge("process_open_fds", "Files it has open.", values={"": sum(1 for _ in (_SELF / "fd").iterdir())}),
            ]
        return found


def _pages() -> list[str]:
    return (_SELF / "statm").read_text().split()[:2]


def _gauge(name: str, says: str, *labels: str, values: Mapping[Any, float]) -> Reading:
    return Reading(name, says, "gauge", *labels, values=values)


def _counted(name: str, says: str, *labels: str, values: Mapping[Any, float]) -> Reading:
    return Reading(name, says, "counter", *labels, values=values)
