"""What went out, under `/api/v1`: deliveries, replays, destinations (contract 4.3). Translates, decides nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from receiver import lifecycle
from receiver.errors import Flaw, NotFound
from receiver.ids import DeliveryId, ReplayId, TaskId
from receiver.records import Health
from receiver.routing import OWN_CALLBACK
from receiver.web import answers, requests, views
from receiver.web.answers import Page, answered
from receiver.web.requests import Strict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from receiver.deliver import Deliverer, Destination, Replayer
    from receiver.records import Delivery
    from receiver.store import Store
    from receiver.web.guard import Guard

_NAME = re.compile(r"[a-z0-9-]{1,100}")


class ReplayBody(Strict):
    """The body of `POST /replays`; without members all dead deliveries are meant."""

    destination: str | None = None
    since: str | None = None
    until: str | None = None
    state: Literal["dead", "delivered", "all"] = "dead"


@dataclass
class Outbox:
    """The handlers, and what they translate for."""

    store: Store
    deliverer: Deliverer
    replayer: Replayer
    guard: Guard
    clock: Callable[[], datetime]

    def routes(self) -> list[Route]:
        """The route table."""
        return answers.routes(
            self.guard,
            [
                ("GET", "/deliveries", self.list_deliveries),
                ("GET", "/deliveries/{id}", self.show_delivery),
                ("POST", "/deliveries/{id}/redeliver", self.redeliver),
                ("POST", "/replays", self.start_replay),
                ("GET", "/replays", self.list_replays),
                ("GET", "/replays/{id}", self.show_replay),
                ("POST", "/replays/{id}/cancel", self.cancel_replay),
                ("GET", "/destinations", self.list_destinations),
                ("GET", "/destinations/{name}", self.show_destination),
                ("POST", "/destinations/{name}/pause", self.pause),
                ("POST", "/destinations/{name}/resume", self.resume),
                ("POST", "/destinations/{name}/test", self.test),
            ],
        )

    # -- deliveries ------------------------------------------------------------------------------------------------

    async def list_deliveries(self, request: Request) -> Response:
        """`GET /deliveries`; the destination may be one that has left the config."""
        requests.known(request, {"state", "destination", "task", "limit", "cursor"})
        query = request.query_params
        limit = requests.limit(request)
        states = requests.states(request, lifecycle.DELIVERY_STATES)
        task, before = query.get("task"), requests.id_cursor(request, "dlv_")
        rows = await self.store.read(
            lambda connection: self.store.deliveries.page(
                connection,
                states=states,
                destination=query.get("destination"),
                task_id=None if task is None else TaskId(task),
                before=None if before is None else DeliveryId(before),
                limit=limit + 1,
            )
        )
        page = Page()
        for start in range(0, limit, answers.STEP):
            await page.add(await self._documents(rows[start : min(start + answers.STEP, limit)]))
            if page.is_full:
                break
        return page.response(request, rows[len(page) - 1].id if len(rows) > len(page) else None)

    async def show_delivery(self, request: Request) -> Response:
        """`GET /deliveries/{id}`."""
        delivery_id = DeliveryId(request.path_params["id"])
        row = await self.store.read(lambda connection: self.store.deliveries.get(connection, delivery_id))
        if row is None:
            raise NotFound(f"there is no delivery {delivery_id[:60]!r}")
        [document] = await self._documents([row])
        return await answered(document)

    async def redeliver(self, request: Request) -> Response:
        """`POST /deliveries/{id}/redeliver`: the same row opened again, and tried at once."""
        row = await self.deliverer.redeliver(DeliveryId(request.path_params["id"]))
        [document] = await self._documents([row])
        return await answered(document, 202)

    async def _documents(self, rows: Sequence[Delivery]) -> list[dict[str, Any]]:
        if not rows:
            return []
        tried = await self.store.read(lambda connection: self.store.deliveries.attempts_of(connection, rows))
        return [views.delivery(row, tried.get(row.id, ())) for row in rows]

    # -- replays ---------------------------------------------------------------------------------------------------

    async def start_replay(self, request: Request) -> Response:
        """`POST /replays`: many by filter; what is made after this moment is not of it."""
        body = requests.modelled(ReplayBody, await requests.json_or_nothing(request))
        now = self.clock()
        flaws: list[Flaw] = []
        since_at, until_at = _moment(body.since, "/since", now, flaws), _moment(body.until, "/until", now, flaws)
        until_at = now if until_at is None else min(until_at, now)
        if since_at is not None and since_at > until_at and not flaws:
            flaws.append(Flaw("since is after until (or now), so there is nothing between them", "/since"))
        names = self.deliverer.destinations
        if body.destination is not None and body.destination not in names:
            there_are = ", ".join(sorted(names)) or "none"
            flaws.append(
                Flaw(f"there is no destination {body.destination[:80]!r}; there are: {there_are}", "/destination")
            )
        requests.refuse(flaws)
        row = await self.replayer.start(
            destination=body.destination, since_at=since_at, until_at=until_at, which=body.state
        )
        return await answered(views.replay(row), 202, {"location": f"/api/v1/replays/{row.id}"})

    async def list_replays(self, request: Request) -> Response:
        """`GET /replays`."""
        requests.known(request, {"limit", "cursor"})
        limit, before = requests.limit(request), requests.id_cursor(request, "rpl_")
        rows = await self.store.read(
            lambda connection: self.store.replays.page(
                connection, before=None if before is None else ReplayId(before), limit=limit + 1
            )
        )
        page = Page()
        await page.add(views.replay(row) for row in rows[:limit])
        return page.response(request, rows[len(page) - 1].id if len(rows) > len(page) else None)

    async def show_replay(self, request: Request) -> Response:
        """`GET /replays/{id}`."""
        replay_id = ReplayId(request.path_params["id"])
        row = await self.store.read(lambda connection: self.store.replays.get(connection, replay_id))
        if row is None:
            raise NotFound(f"there is no replay {replay_id[:60]!r}")
        return await answered(views.replay(row))

    async def cancel_replay(self, request: Request) -> Response:
        """`POST /replays/{id}/cancel`: what it opened again already goes its way."""
        row = await self.replayer.cancel(ReplayId(request.path_params["id"]))
        return await answered(views.replay(row))

    # -- destinations ----------------------------------------------------------------------------------------------

    async def list_destinations(self, request: Request) -> Response:
        """`GET /destinations`: those of the config, by name, since they have no age."""
        requests.known(request, {"limit", "cursor"})
        limit, after = requests.limit(request), request.query_params.get("cursor")
        if after is not None and not _NAME.fullmatch(after):
            raise requests.no_cursor("cursor")
        rows = [row for name, row in sorted(self._configured().items()) if after is None or name > after]
        healths = await self._healths()
        page = Page()
        await page.add(views.destination(row, healths.get(row.name) or Health(row.name)) for row in rows[:limit])
        return page.response(request, rows[len(page) - 1].name if len(rows) > len(page) else None)

    async def show_destination(self, request: Request) -> Response:
        """`GET /destinations/{name}`."""
        row = self._destination(request)
        return await answered(views.destination(row, (await self._healths()).get(row.name) or Health(row.name)))

    async def pause(self, request: Request) -> Response:
        """`POST /destinations/{name}/pause`."""
        row = self._destination(request)
        return await answered(views.destination(row, await self.deliverer.pause(row.name)))

    async def resume(self, request: Request) -> Response:
        """`POST /destinations/{name}/resume`."""
        row = self._destination(request)
        return await answered(views.destination(row, await self.deliverer.resume(row.name)))

    async def test(self, request: Request) -> Response:
        """`POST /destinations/{name}/test`: a sample event really sent; the attempt."""
        row = self._destination(request)
        return await answered(views.attempt(await self.deliverer.test(row.name)))

    async def _healths(self) -> dict[str, Health]:
        return await self.store.read(self.store.health.all)

    def _configured(self) -> dict[str, Destination]:
        """Without the one that tasks' own callback URLs share: it is nobody's, and has no health."""
        return {name: row for name, row in self.deliverer.destinations.items() if name != OWN_CALLBACK}

    def _destination(self, request: Request) -> Destination:
        name = request.path_params["name"]
        configured = self._configured()
        if name not in configured:
            there_are = ", ".join(sorted(configured)) or "none"
            raise NotFound(f"there is no destination {name[:60]!r}; configured: {there_are}")
        return configured[name]


def _moment(text: str | None, pointer: str, now: datetime, flaws: list[Flaw]) -> datetime | None:
    if text is None:
        return None
    try:
        return requests.moment(text, now)
    except ValueError as error:
        flaws.append(Flaw(str(error), pointer))
        return None
