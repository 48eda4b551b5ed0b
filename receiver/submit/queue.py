"""Accept a task: store it with its token, THEN call the upstream, then store the answer (the first law).

A crash between any two steps leaves a row that says what may have happened:

* `pending`: nothing was sent, or surely not taken. It is sent again, in order of creation.
* `submitting` without a living sender: it may have been sent. It becomes `ambiguous`, never `pending` again.
* `ambiguous`: a callback may still adopt it. It is never repeated by itself.

The queue is the table: what waits stands there with `submit_due_at`, and the oldest of a route is its gate. While the
oldest must wait, nothing of that route is sent; when its time has come, it goes alone, and the others follow once the
upstream has taken it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import orjson

from receiver import ids, signing
from receiver.errors import EgressError, StoreUnavailable, UpstreamRefused
from receiver.records import Task
from receiver.submit.asked import check, check_callback_url
from receiver.submit.ops import Accept, Answered, Claim
from receiver.upstream import ROUTES
from receiver.upstream.base import Ambiguous, NotTaken, Refused, Taken
from receiver.upstream.data_uri import abridge
from receiver.upstream.verdicts import upstream_code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from typing import Any

    from receiver.egress import Egress
    from receiver.ids import TaskId
    from receiver.ingest import After, Rulebook
    from receiver.logs import Logger
    from receiver.store import Store
    from receiver.submit.ops import Terms
    from receiver.upstream.base import Submission, UpstreamRoute
    from receiver.wire import HttpResponse

LEASE_MARGIN = timedelta(seconds=30)
"""A sender's lease outlives `upstream.timeout` by this much, so that only a dead one's runs out."""
STORE_RETRY_FOR = 0.5
"""Seconds between tries to store an upstream's answer: it is a paid id."""


@dataclass(frozen=True)
class Sent:
    """What was made of a submission's answer, the answer itself where there was one, and the task as it was stored."""

    answer: Submission
    response: HttpResponse | None
    task: Task


@dataclass
class _Gate:
    """A route's gate: closed until a time, then open for one, then open."""

    until: datetime | None = None
    probing: bool = False
    sending: int = 0


@dataclass
class Submitter:
    """Accepts tasks, sends them, and sends again what surely was not taken.

    Attributes:
        trouble: why submissions wait, by route or "account"; empty when none does.
    """

    store: Store
    egress: Egress
    rules: Rulebook
    terms: Terms
    after: After
    log: Logger
    clock: Callable[[], datetime]
    trouble: dict[str, str] = field(default_factory=dict)
    _gates: dict[str, _Gate] = field(default_factory=lambda: {name: _Gate() for name in ROUTES})
    _account_until: datetime | None = None
    _sending: dict[asyncio.Task[Sent], TaskId] = field(default_factory=dict)
    _awaited: dict[TaskId, asyncio.Future[Sent | None]] = field(default_factory=dict)
    _backlog: set[str] = field(default_factory=lambda: set(ROUTES))
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False

    # -- accepting -------------------------------------------------------------------------------------------------

    async def accept(
        self,
        route_name: str,
        given: Mapping[str, Any],
        *,
        metadata: Mapping[str, Any] | None = None,
        only: Sequence[str] | None = None,
        callback_url: str | None = None,
        in_background: bool = False,
    ) -> Task:
        """Store a task and send it, or queue it where the upstream must wait; the task as it then is.

        Raises:
            InvalidInput: a required member is missing, or nothing can be sent to `callback_url`; nothing was stored.
            UpstreamRefused: the upstream said no; the task is kept as `rejected`.
            StoreUnavailable: nothing was stored and nothing sent.
        """
        route = ROUTES[route_name]
        check(route, given)
        if callback_url is not None:
            check_callback_url(callback_url, allow_private=self.terms.allow_private_callbacks)
        now = self.clock()
        seed = int.from_bytes(self.rules.entropy(4), "big")
        filled = route.fill(dict(given), seed=seed)
        whole = orjson.dumps(filled)
        shown = abridge(filled)
        abridged = orjson.dumps(shown) if shown is not filled else whole
        direct = not in_background and not self._stopping and self._is_open(route_name) and self._has_slot()
        prompt = filled.get(route.prompt_key)
        task = Task(
            id=ids.task_id(int(now.timestamp() * 1000), self.rules.entropy(10)),
            route=route_name,
            state="submitting" if direct else "pending",
            created_at=now,
            input_json=abridged.decode(),
            metadata_json=orjson.dumps(metadata or {}).decode(),
            only_json=None if only is None else orjson.dumps(list(only)).decode(),
            callback_expires_at=self._expiry(route, now),
            prompt=prompt if isinstance(prompt, str) else None,
            deferred=not direct,
            submit_first_at=now if direct else None,
            submit_due_at=None if direct else now,
            submit_leased_until=self._lease(now) if direct else None,
            callback_url=callback_url,
        )
        if not direct:
            self._backlog.add(route_name)
            task = await self.store.run(Accept(task, whole if shown is not filled else None))
            if in_background:
                self._wake.set()
                return task
            sent = await self._decided(task)
        else:
            sent = await self._sent_at_once(task, whole, abridged=shown is not filled)
        return task if sent is None else _told(sent)

    async def _sent_at_once(self, task: Task, whole: bytes, *, abridged: bool) -> Sent:
        gate = self._gates[task.route]
        gate.sending += 1
        try:
            await self.store.run(Accept(task, whole if abridged else None))
        except BaseException:
            gate.sending -= 1
            raise
        # The sending outlives a caller who goes away: its answer is a paid id.
        return await asyncio.shield(self._start(task, whole, counted=True))

    async def _decided(self, task: Task) -> Sent | None:
        """Wait a while for a queued task that may go at once: the upstream's word is worth more than a 202."""
        gate = self._gates[task.route]
        if gate.until is not None or self._account_until is not None or self._stopping:
            self._wake.set()
            return None
        waiter: asyncio.Future[Sent | None] = asyncio.get_running_loop().create_future()
        self._awaited[task.id] = waiter
        self._wake.set()
        try:
            await asyncio.wait({waiter}, timeout=self.terms.timeout)
            return waiter.result() if waiter.done() else None
        finally:
            del self._awaited[task.id]

    def _expiry(self, route: UpstreamRoute, now: datetime) -> datetime | None:
        return now + self.terms.callback_ttl if route.takes_callback and self.terms.callback_base else None

    def _callback_url(self, route: UpstreamRoute, task: Task) -> str | None:
        if not route.takes_callback:
            return None
        if task.callback_expires_at is None or self.terms.callback_base is None:
            return None
        token = signing.mint(self.terms.signing_keys, task.id, task.callback_expires_at)
        return f"{self.terms.callback_base}/callbacks/{token}"

    def _lease(self, now: datetime) -> datetime:
        # To the millisecond, as it is stored: the lease that is read again must be known as ours.
        return now + timedelta(milliseconds=round(self.terms.timeout * 1000)) + LEASE_MARGIN

    # -- sending ---------------------------------------------------------------------------------------------------

    def _has_slot(self) -> bool:
        return sum(gate.sending for gate in self._gates.values()) < self.terms.max_concurrency

    def _is_open(self, route: str) -> bool:
        """Whether a new task may be sent past the queue: nothing of its route waits."""
        gate = self._gates[route]
        return route not in self._backlog and gate.until is None and not gate.probing

    def _start(self, task: Task, body: bytes, *, counted: bool = False) -> asyncio.Task[Sent]:
        if not counted:
            self._gates[task.route].sending += 1
        sending = asyncio.create_task(self._send(task, body), name=f"submit {task.id}")
        self._sending[sending] = task.id
        sending.add_done_callback(self._ended)
        return sending

    def _ended(self, sending: asyncio.Task[Sent]) -> None:
        del self._sending[sending]
        if not sending.cancelled() and (error := sending.exception()) is not None:
            self.log.error("submit.failed", error=repr(error))

    async def _send(self, task: Task, body: bytes) -> Sent:
        """One submission, on a connection of its own, and its answer into the store."""
        route = ROUTES[task.route]
        gate = self._gates[task.route]
        answer: Submission = Ambiguous("the sender ended before the answer")
        response: HttpResponse | None = None
        sent: Sent | None = None
        try:
            request = route.submit(orjson.loads(body), self._callback_url(route, task))
            try:
                response = await self.egress.submit(request, timeout=self.terms.timeout)
                answer = route.read_submission(response, now=self.clock())
            except EgressError as error:
                answer = Ambiguous(str(error)) if error.sent else NotTaken(str(error), None)
            kept = await self._keep(task, answer, None if response is None else upstream_code(response))
            sent = Sent(answer, response, kept)
            return sent
        finally:
            gate.sending -= 1
            self._regulate(task.route, answer)
            self._wake.set()
            waiter = self._awaited.get(task.id)
            if waiter is not None and not waiter.done():
                waiter.set_result(sent)

    async def _keep(self, task: Task, answer: Submission, code: int | None) -> Task:
        """Store the answer, however long the store is away; only then does anybody hear of it. The task as stored."""
        at = self.clock()
        while True:
            try:
                recorded = await self.store.run(Answered(task, answer, code, at, self.terms, self.rules))
            except StoreUnavailable as error:
                # Should the process die before the store is back, this line's id lets an operator adopt the task.
                self.log.error(
                    "task.answer_unstored",
                    task_id=task.id,
                    upstream_id=getattr(answer, "upstream_id", None),
                    error=str(error),
                )
                await asyncio.sleep(STORE_RETRY_FOR)
                continue
            break
        now = recorded.task
        match answer:
            case Taken():
                self.log.info("task.submitted", task_id=task.id, upstream_id=answer.upstream_id, route=task.route)
            case Ambiguous():
                self.log.warning(
                    "task.submit_ambiguous",
                    task_id=task.id,
                    upstream_id=now.upstream_id,
                    route=task.route,
                    reason=answer.reason,
                )
            case Refused() | NotTaken():
                event = "task.submit_deferred" if now.state == "pending" else "task.submit_refused"
                self.log.warning(
                    event,
                    task_id=task.id,
                    route=task.route,
                    state=now.state,
                    reason=answer.reason,
                    submit_attempts=now.submit_attempts,
                )
        self.after(recorded)
        return now

    def _regulate(self, route: str, answer: Submission) -> None:
        """Open or close the gates by what the upstream said."""
        gate = self._gates[route]
        now = self.clock()
        match answer:
            case Taken():
                gate.until, gate.probing = None, False
                self._account_until = None
                self.trouble.pop(route, None)
                self.trouble.pop("account", None)
            case NotTaken():
                wait = timedelta(seconds=answer.retry_after or 0)
                gate.until = max(gate.until or now, now + max(wait, self.terms.retry[0]))
                gate.probing = False
                self._backlog.add(route)
                self.trouble[route] = f"submissions of {route} wait: {answer.reason}"
            case Refused() if answer.account:
                self._account_until = now + self.terms.retry[-1]
                gate.probing = False
                self.trouble["account"] = f"the upstream refuses our account: {answer.reason}"
            case _:
                gate.probing = False

    # -- the loop --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send what is queued, for ever: in order of creation, as slots and gates allow."""
        while not self._stopping:
            wait = 1.0
            try:
                for route in ROUTES:
                    wait = min(wait, await self._advance(route))
            except StoreUnavailable as error:
                self.log.error("submit.store_unavailable", error=str(error))
            try:
                await asyncio.wait_for(self._wake.wait(), wait)
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    async def _advance(self, route: str) -> float:
        """Send what may be sent of a route now; seconds until there may be more."""
        gate, now = self._gates[route], self.clock()
        closed = max(filter(None, (gate.until, self._account_until)), default=None)
        if closed is not None and closed > now:
            return (closed - now).total_seconds()
        free = self.terms.max_concurrency - sum(g.sending for g in self._gates.values())
        if gate.probing or free <= 0:
            return 1.0
        probing = closed is not None
        claimed, due = await self.store.run(Claim(self.store, route, 1 if probing else free, now, self._lease(now)))
        for task, body in claimed:
            self._start(task, body)
        if claimed and probing:
            gate.probing = True
        elif not claimed and due is None:
            # Nothing waits: the way is free for new ones, past whatever closed the gate.
            self._backlog.discard(route)
            gate.until = None
            self.trouble.pop(route, None)
            if not self._backlog:
                self._account_until = None
                self.trouble.pop("account", None)
        elif not claimed and due is not None:
            return max((due - now).total_seconds(), 0.01)
        return 1.0 if due is None else max((due - now).total_seconds(), 0.0)

    async def stop(self) -> None:
        """Send nothing new; what has been sent is awaited, to `upstream.timeout` at most: its answer is a paid id."""
        self._stopping = True
        self._wake.set()
        for task_id, waiter in self._awaited.items():
            if task_id not in self._sending.values() and not waiter.done():
                waiter.set_result(None)
        if self._sending:
            await asyncio.wait(set(self._sending), timeout=self.terms.timeout + STORE_RETRY_FOR)

    async def settled(self) -> None:
        """Wait until no submission is under way."""
        while self._sending:
            await asyncio.wait(set(self._sending))


def _told(sent: Sent) -> Task:
    """What the caller hears of an answer.

    Raises:
        UpstreamRefused: the upstream said no.
    """
    answer, response = sent.answer, sent.response
    if isinstance(answer, Refused) and sent.task.state == "rejected":
        raise UpstreamRefused(
            answer.reason,
            status=answer.status,
            upstream_status=response.status if response else 0,
            upstream_body=response.body.decode("utf-8", errors="replace") if response else "",
            task_id=sent.task.id,
        )
    return sent.task
