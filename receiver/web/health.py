"""`/livez` and `/readyz`: open to all, and saying nothing secret."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson
from starlette.responses import Response

from receiver.errors import StoreUnavailable
from receiver.store import Reads
from receiver.web import shapes
from receiver.web.table import Answer, Operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from receiver.store import Store, Unit

PROBE_FOR = 5.0
"""Seconds a small commit may take before the store counts as away."""


@dataclass(frozen=True)
class Probe(Reads):
    """An op that means nothing and writes a page: its commit shows that the store can."""

    store: Store

    def apply(self, unit: Unit) -> None:
        """Write: where the disk is full, a commit of nothing still succeeds."""
        for statement in self.store.probe:
            unit.execute(statement)


@dataclass
class Health:
    """The two questions an operator's machine asks."""

    store: Store
    reasons: Callable[[], list[str]]

    def table(self) -> list[Operation]:
        """The route table."""
        return [
            Operation(
                method="GET",
                path="/livez",
                handler=self.live,
                name="isLive",
                tag="operation",
                summary="Does the process run?",
                answers=[Answer(200, "It does.", shapes.Live)],
                access="open",
            ),
            Operation(
                method="GET",
                path="/readyz",
                handler=self.ready,
                name="isReady",
                tag="operation",
                summary="Is all there that it needs?",
                answers=[
                    Answer(200, "It is.", shapes.Ready),
                    Answer(503, "It is not; each reason in words. Callbacks may be taken all the same.", shapes.Ready),
                ],
                access="open",
            ),
        ]

    async def live(self, _request: Request) -> Response:
        """The process runs."""
        return Response(b'{"status":"live"}', media_type="application/json")

    async def ready(self, _request: Request) -> Response:
        """All it needs is there; else 503, with each reason in words."""
        reasons = self.reasons()
        try:
            async with asyncio.timeout(PROBE_FOR):
                await self.store.run(Probe(self.store))
        except (StoreUnavailable, TimeoutError) as error:
            words = (
                error.outside.removeprefix("cannot commit: ")
                if isinstance(error, StoreUnavailable)
                else "it does not answer"
            )
            reasons.insert(0, f"the store cannot commit: {words}")
        status = "unready" if reasons else "ready"
        body = orjson.dumps({"status": status, "reasons": reasons})
        return Response(body, 503 if reasons else 200, media_type="application/json")
