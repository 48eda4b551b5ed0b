"""The pull feed, `GET /api/v1/events` (contract 4.3): for those who cannot be called. Oldest first, without gaps.

The cursor is the place of the last event that was read: it says nothing of what is kept, so it stays good for ever.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from receiver.web import answers, requests, shapes, table, views
from receiver.web.answers import Page
from receiver.web.requests import RECHECK_FOR
from receiver.web.table import API, Answer, Operation, Parameter

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from receiver.ingest import After
    from receiver.records import Event
    from receiver.store import Store
    from receiver.web.guard import Guard


@dataclass
class Feed:
    """The handler, and what it translates for."""

    store: Store
    after: After
    guard: Guard

    def table(self) -> list[Operation]:
        """The route table."""
        after = Parameter(
            "after",
            {"type": "integer", "minimum": 0, "maximum": requests.MAX_PLACE},
            "The last page's `next_cursor`; it stays good for ever. Absent: from the oldest kept.",
        )
        return [
            Operation(
                method="GET",
                path=f"{API}/events",
                handler=self.events,
                name="listEvents",
                tag="events",
                summary="Read the feed",
                says="Oldest first, without gaps: the terminal events, and others that some destination names. With "
                "`wait`, as soon as there is one.",
                asks=[after, table.LIMIT, table.WAIT],
                answers=[
                    Answer(
                        200,
                        "A page; empty where nothing follows.",
                        shapes.EventPage,
                        headers=table.NEXT,
                        links=table.leads("/next_cursor", "listEvents", by="after"),
                    )
                ],
                problems=["invalid-input"],
            )
        ]

    async def events(self, request: Request) -> Response:
        """`GET /events`, waiting for one where asked to; the cursor is never null, so there is always a next page."""
        requests.known(request, {"after", "limit", "wait"})
        place, limit, wait = requests.place(request), requests.limit(request), requests.wait(request)
        page, last = await self._filled(place, limit, wait)
        return page.response(request, str(last), by="after")

    async def _filled(self, place: int, limit: int, wait: float) -> tuple[Page, int]:
        """The first page that has something, or what there is when the time is over or the service stops."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + wait
        while True:
            left = ends - loop.time()
            # It listens before it looks: what is recorded between the look and the wait is heard, too.
            heard = asyncio.create_task(self.after.recorded(max(0.0, min(left, RECHECK_FOR))))
            try:
                page, last = await self._page(place, limit)
                if len(page) or left <= 0 or self.after.stopping:
                    return page, last
                await heard
            finally:
                heard.cancel()

    async def _page(self, place: int, limit: int) -> tuple[Page, int]:
        """What comes after a place, and the place of its last."""
        page = Page()
        while len(page) < limit and not page.is_full:
            most = min(answers.STEP, limit - len(page))
            rows = await self._after(place, most)
            before = len(page)
            await page.add(views.event(row) for row in rows)
            if len(page) > before:
                place = rows[len(page) - before - 1].seq
            if len(rows) < most:
                break
        return page, place

    async def _after(self, place: int, most: int) -> list[Event]:
        return await self.store.read(lambda connection: self.store.events.feed(connection, place, most))
