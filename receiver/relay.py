"""A caller's own lookup (contract 4.2): answered from the upstream, and what that says is ingested; or from the store.

An open task, and a lost one, is asked for upstream; an ended one is answered from the store, in the upstream's own
words, for as long as its links are good; after that a fresh lookup renews them, and the store stands in where that
fails. What is passed on is passed on as it came, whatever shape the upstream has today: code that was written for the
upstream meets the upstream.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from receiver import lifecycle
from receiver.errors import EgressError, NotFound, UpstreamAway
from receiver.ingest import Lookup, Wake
from receiver.upstream import ROUTES
from receiver.upstream.base import Shown, Unusable
from receiver.wire import HttpResponse

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from receiver.egress import Egress
    from receiver.ingest import After, Rulebook
    from receiver.records import Event, Inbox, LookupRoute, Task
    from receiver.store import Store
    from receiver.wire import HttpRequest

GOOD_FOR = timedelta(hours=12)
"""How long what the store has is as good as fresh: result links expire after a day (contract 4.2)."""
AGAIN_FOR = 5.0
OK = 200


@dataclass(frozen=True)
class Relayed:
    """The answer, and the task it is about; None for one that is not ours."""

    response: HttpResponse
    task_id: str | None


@dataclass
class Relay:
    """Passes lookups on. `timeout` is seconds for one question."""

    store: Store
    egress: Egress
    rules: Rulebook
    after: After
    clock: Callable[[], datetime]
    timeout: float

    async def look_up(self, route: LookupRoute, upstream_id: str | None, request: HttpRequest) -> Relayed:
        """Answer a lookup of `upstream_id` by that route; `request` is how the caller asked.

        Raises:
            UpstreamAway: the upstream cannot be reached, and the store has no answer.
            StoreUnavailable: the store cannot be read.
        """
        task = None
        if upstream_id is not None:
            task = await self.store.read(lambda connection: self.store.tasks.by_upstream_id(connection, upstream_id))
        if task is None:
            return Relayed(await self._ask(request, None), None)
        ended = task.state in lifecycle.TERMINAL and task.state != "lost"
        kept = await self._kept(task, route) if ended else None
        if kept is not None and task.finished_at is not None and self.clock() - task.finished_at < GOOD_FOR:
            return Relayed(kept, task.id)
        try:
            response = await self._ask(request, task)
        except UpstreamAway:
            if kept is None:
                raise
            return Relayed(kept, task.id)
        if kept is not None and not self._tells_the_end(task, response):
            return Relayed(kept, task.id)
        await self._ingest(task, route, response)
        return Relayed(response, task.id)

    async def _ask(self, request: HttpRequest, task: Task | None) -> HttpResponse:
        task_id = task.id if task else None
        try:
            response = await self.egress.ask(request, timeout=self.timeout)
        except EgressError as error:
            raise UpstreamAway(f"the upstream does not answer: {error}", task_id, AGAIN_FOR) from None
        if response.truncated:
            raise UpstreamAway("the upstream's answer broke off", task_id, AGAIN_FOR)
        return response

    def _tells_the_end(self, task: Task, response: HttpResponse) -> bool:
        """It is a fresh lookup's answer that is worth more than what the store has."""
        looked = ROUTES[task.route].read_lookup(response, now=self.clock())
        return isinstance(looked, Shown) and looked.observation.seen in lifecycle.TERMINAL_SEEN

    async def _ingest(self, task: Task, route: LookupRoute, response: HttpResponse) -> None:
        """What the upstream said is an observation like any other; what it did not say changes nothing."""
        now = self.clock()
        looked = ROUTES[task.route].read_lookup(response, now=now)
        if not isinstance(looked, Shown | Unusable) or looked.observation is None:
            return
        seen = looked.observation
        if "no-url" in seen.oddities or seen.upstream_id not in {None, task.upstream_id}:
            # A caller who asks fast must not use up the tries for a URL; and a question may name two tasks. The
            # poller asks for itself.
            await self._wake(task, now)
            return
        op = Lookup(
            task_id=task.id,
            upstream_id=task.upstream_id,
            lease=now,  # nobody's: the poller's schedule stays as it is
            seen=looked.observation,
            missing=False,
            answered=True,
            detail=f"a caller's lookup: {looked.observation.seen}",
            raw=response.body,
            content_type=response.headers.get("content-type"),
            at=now,
            rules=self.rules,
            asked=route,
        )
        try:
            recorded = await self.store.run(op)
        except NotFound:
            return  # retention took it meanwhile
        self.after.log.info(
            "task.polled",
            task_id=task.id,
            upstream_id=task.upstream_id,
            state=recorded.task.state,
            verdict=recorded.verdict,
            detail=op.detail,
        )
        self.after(recorded)

    async def _wake(self, task: Task, now: datetime) -> None:
        with suppress(NotFound):
            self.after(await self.store.run(Wake(task.id, now)))

    async def _kept(self, task: Task, route: LookupRoute) -> HttpResponse | None:
        """The upstream's own words on how the task ended, as that route would say them; None where there are none."""

        def find(connection: Any) -> tuple[list[Inbox], list[Event]]:
            events = self.store.events
            return events.answers(connection, task.id, route), events.of_task(connection, task.id)

        answers, events = await self.store.read(find)
        for answer in answers:
            response = HttpResponse(OK, {"content-type": answer.content_type or "application/json"}, answer.raw)
            looked = ROUTES[task.route].read_lookup(response, now=self.clock())
            if isinstance(looked, Shown) and looked.observation.seen in lifecycle.TERMINAL_SEEN:
                return response
        return self._as_feed(task, events) if route == "feed" else None

    def _as_feed(self, task: Task, events: list[Event]) -> HttpResponse | None:
        """The feed's shape around the task's object as it came (upstream.md 3); its code is about the question."""
        for event in events:
            if event.type == f"task.{task.state}" and task.via is not None:
                envelope = msgspec.json.decode(event.data_json, type=_Data).envelope
                body = msgspec.json.encode({"code": OK, "msg": envelope.msg, "data": envelope.data})
                return HttpResponse(OK, {"content-type": "application/json"}, body)
        return None


class _Envelope(msgspec.Struct):
    msg: str
    data: msgspec.Raw


class _Data(msgspec.Struct):
    envelope: _Envelope
