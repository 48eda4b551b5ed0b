"""What went out, under `/api/v1`: deliveries, replays, destinations (contract 4.3). Translates, decides nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from receiver import lifecycle
from receiver.errors import Flaw, NotFound
from receiver.ids import DeliveryId, ReplayId, TaskId
from receiver.records import Health
from receiver.routing import OWN_CALLBACK
from receiver.web import answers, requests, shapes, table, views
from receiver.web.answers import Page, answered
from receiver.web.bodies import ReplayBody
from receiver.web.table import API, Answer, Body, Operation, Parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from starlette.requests import Request
    from starlette.responses import Response

    from receiver.deliver import Deliverer, Destination, Replayer
    from receiver.records import Delivery
    from receiver.store import Store
    from receiver.web.guard import Guard

_NAME = re.compile(r"[a-z0-9-]{1,100}")


@dataclass
class Outbox:
    """The handlers, and what they translate for."""

    store: Store
    deliverer: Deliverer
    replayer: Replayer
    guard: Guard
    clock: Callable[[], datetime]

    def table(self) -> list[Operation]:
        """The route table."""
        return [*self._of_deliveries(), *self._of_replays(), *self._of_destinations()]

    def _of_deliveries(self) -> list[Operation]:
        row = partial(Operation, tag="deliveries")
        one = f"{API}/deliveries/{{id}}"
        to_one = table.leads("/id", "showDelivery", "redeliver")
        return [
            row(
                method="GET",
                path=f"{API}/deliveries",
                handler=self.list_deliveries,
                name="listDeliveries",
                summary="List deliveries",
                says="Newest first, each with its attempts.",
                asks=[
                    table.some_of(lifecycle.DELIVERY_STATES),
                    Parameter("destination", {"type": "string"}, "Only this one's; it may have left the config."),
                    Parameter("task", {"type": "string"}, "Only this task's."),
                    table.LIMIT,
                    table.cursor(table.id_schema("dlv_")),
                ],
                answers=[Answer(200, "A page.", shapes.DeliveryPage, headers=table.NEXT)],
                problems=["invalid-input"],
            ),
            row(
                method="GET",
                path=one,
                handler=self.show_delivery,
                name="showDelivery",
                summary="Show a delivery",
                answers=[Answer(200, "The delivery with its attempts.", shapes.Delivery, links=to_one)],
                problems=["not-found"],
            ),
            row(
                method="POST",
                path=f"{one}/redeliver",
                handler=self.redeliver,
                name="redeliver",
                summary="Deliver once more",
                says="The same row is opened again and tried at once, even past a pause or an open circuit; attempt "
                "numbers go on.",
                answers=[Answer(202, "The delivery, opened again.", shapes.Delivery, links=to_one)],
                problems=["not-found", "conflict"],
            ),
        ]

    def _of_replays(self) -> list[Operation]:
        row = partial(Operation, tag="replays")
        one = f"{API}/replays/{{id}}"
        to_one = table.leads("/id", "showReplay", "cancelReplay")
        return [
            row(
                method="POST",
                path=f"{API}/replays",
                handler=self.start_replay,
                name="startReplay",
                summary="Deliver many again",
                says="Durable and step by step; what is made after this moment is not of it.",
                takes=Body(
                    ReplayBody,
                    "Which ones; without a body all dead ones.",
                    example={"since": "2h", "state": "dead"},
                    required=False,
                ),
                answers=[
                    Answer(202, "It runs.", shapes.Replay, headers={"Location": "The replay's path."}, links=to_one)
                ],
                problems=["too-large", "body-timeout", "invalid-input"],
            ),
            row(
                method="GET",
                path=f"{API}/replays",
                handler=self.list_replays,
                name="listReplays",
                summary="List replays",
                says="Newest first.",
                asks=[table.LIMIT, table.cursor(table.id_schema("rpl_"))],
                answers=[Answer(200, "A page.", shapes.ReplayPage, headers=table.NEXT)],
                problems=["invalid-input"],
            ),
            row(
                method="GET",
                path=one,
                handler=self.show_replay,
                name="showReplay",
                summary="Show a replay",
                answers=[Answer(200, "The replay, and how far it is.", shapes.Replay, links=to_one)],
                problems=["not-found"],
            ),
            row(
                method="POST",
                path=f"{one}/cancel",
                handler=self.cancel_replay,
                name="cancelReplay",
                summary="Stop a replay",
                says="What it opened again already goes its way.",
                answers=[Answer(200, "The replay.", shapes.Replay)],
                problems=["not-found", "conflict"],
            ),
        ]

    def _of_destinations(self) -> list[Operation]:
        row = partial(Operation, tag="destinations", problems=["not-found"])
        one = f"{API}/destinations/{{name}}"
        to_one = table.leads(
            "/name", *("showDestination", "pauseDestination", "resumeDestination", "testDestination"), by="name"
        )
        return [
            Operation(
                tag="destinations",
                method="GET",
                path=f"{API}/destinations",
                handler=self.list_destinations,
                name="listDestinations",
                summary="List destinations",
                says="Those of the configuration, by name.",
                asks=[table.LIMIT, table.cursor({"type": "string", "pattern": f"^{_NAME.pattern}$"})],
                answers=[Answer(200, "A page.", shapes.DestinationPage, headers=table.NEXT)],
                problems=["invalid-input"],
            ),
            row(
                method="GET",
                path=one,
                handler=self.show_destination,
                name="showDestination",
                summary="Show a destination",
                answers=[Answer(200, "The destination.", shapes.Destination, links=to_one)],
            ),
            row(
                method="POST",
                path=f"{one}/pause",
                handler=self.pause,
                name="pauseDestination",
                summary="Pause a destination",
                says="Nothing is tried until it is resumed; what is due waits, and spends no attempt.",
                answers=[Answer(200, "The destination.", shapes.Destination, links=to_one)],
            ),
            row(
                method="POST",
                path=f"{one}/resume",
                handler=self.resume,
                name="resumeDestination",
                summary="Resume a destination",
                says="Whether it was paused or its circuit was open.",
                answers=[Answer(200, "The destination.", shapes.Destination, links=to_one)],
            ),
            row(
                method="POST",
                path=f"{one}/test",
                handler=self.test,
                name="testDestination",
                summary="Send a sample event",
                says="Really sent, now, past a pause and an open circuit; it is not stored. "
                "Not where the destination has asked to be left alone, or its rate is used up.",
                answers=[Answer(200, "The attempt.", shapes.Attempt)],
                problems=["not-found", "conflict"],
            ),
        ]

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
        page, now = Page(), self.clock()
        await page.add(views.destination(row, healths.get(row.name) or Health(row.name), now) for row in rows[:limit])
        return page.response(request, rows[len(page) - 1].name if len(rows) > len(page) else None)

    async def show_destination(self, request: Request) -> Response:
        """`GET /destinations/{name}`."""
        row = self._destination(request)
        return await self._shown(row, (await self._healths()).get(row.name) or Health(row.name))

    async def pause(self, request: Request) -> Response:
        """`POST /destinations/{name}/pause`."""
        row = self._destination(request)
        return await self._shown(row, await self.deliverer.pause(row.name))

    async def resume(self, request: Request) -> Response:
        """`POST /destinations/{name}/resume`."""
        row = self._destination(request)
        return await self._shown(row, await self.deliverer.resume(row.name))

    async def test(self, request: Request) -> Response:
        """`POST /destinations/{name}/test`: a sample event really sent; the attempt."""
        row = self._destination(request)
        return await answered(views.attempt(await self.deliverer.test(row.name)))

    async def _shown(self, row: Destination, health: Health) -> Response:
        return await answered(views.destination(row, health, self.clock()))

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
            raise NotFound(f"there is no destination {name[:60]!r}; the service started with: {there_are}")
        return configured[name]


def _moment(text: str | None, pointer: str, now: datetime, flaws: list[Flaw]) -> datetime | None:
    if text is None:
        return None
    try:
        return requests.moment(text, now)
    except ValueError as error:
        flaws.append(Flaw(str(error), pointer))
        return None
