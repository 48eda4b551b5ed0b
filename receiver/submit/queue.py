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
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import orjson

from receiver import ids
from receiver.errors import StoreUnavailable, StoreUnsure, UpstreamRefused
from receiver.ingest.record import UNDECIDED
from receiver.records import Task
from receiver.submit.asked import check, check_callback_url
from receiver.submit.ops import Accept, Claim
from receiver.submit.repeats import refuse_known, refuse_repeat
from receiver.submit.sending import STORE_RETRY_FOR
from receiver.upstream import ROUTES
from receiver.upstream.base import Refused
from receiver.upstream.data_uri import abridge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from receiver.ids import TaskId
    from receiver.store.rates import Paced
    from receiver.submit.gates import Gates
    from receiver.submit.ops import Accepted, Claimed
    from receiver.submit.repeats import Asked
    from receiver.submit.sending import Sender, Sent
    from receiver.wire import HttpRequest

IDLE_FOR = 1.0


@dataclass
class Submitter:
    """Accepts tasks, sends them, and sends again what surely was not taken.

    Routes take turns for what is free: the one that was served last comes last.
    """

    sender: Sender
    _awaited: dict[TaskId, asyncio.Future[Sent | None]] = field(default_factory=dict)
    _turns: list[str] = field(default_factory=lambda: list(ROUTES))
    _stopping: bool = False
    _claiming: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def gates(self) -> Gates:
        """Who may send, and when."""
        return self.sender.gates

    @property
    def _wake(self) -> asyncio.Event:
        return self.gates.freed

    # -- accepting -------------------------------------------------------------------------------------------------

    async def accept(
        self,
        route_name: str,
        given: Mapping[str, Any],
        *,
        metadata: Mapping[str, Any] | None = None,
        only: Sequence[str] | None = None,
        callback_url: str | None = None,
        asked: Asked | None = None,
        in_background: bool = False,
    ) -> Task:
        """Store a task and send it, or queue it where the upstream must wait; the task as it then is.

        Raises:
            InvalidInput: a required member is missing, or nothing can be sent to `callback_url`; nothing was stored.
            KeyReused, KeyBusy, AnsweredBefore: its Idempotency-Key is known; nothing was stored.
            UpstreamRefused: the upstream said no; the task is kept as `rejected`.
            AnswerUnknown: nobody can tell whether it was stored; nothing was sent yet.
            StoreUnavailable: nothing was stored and nothing sent.
        """
        route = ROUTES[route_name]
        check(route, given)
        if callback_url is not None:
            check_callback_url(callback_url, allow_private=self.sender.terms.allow_private_callbacks)
        await refuse_known(self.sender, asked)
        now = self.sender.clock()
        seed = int.from_bytes(self.sender.rules.entropy(4), "big")
        filled = route.fill(dict(given), seed=seed)
        whole = orjson.dumps(filled)
        shown = abridge(filled)
        abridged = orjson.dumps(shown) if shown is not filled else whole
        direct = not in_background and not self._stopping and self.gates.may_pass(route_name)
        prompt = filled.get(route.prompt_key)
        task = Task(
            id=ids.task_id(int(now.timestamp() * 1000), self.sender.rules.entropy(ids.ENTROPY_BYTES)),
            route=route_name,
            state="submitting" if direct else "pending",
            created_at=now,
            input_json=abridged.decode(),
            metadata_json=orjson.dumps(metadata or {}).decode(),
            only_json=None if only is None else orjson.dumps(list(only)).decode(),
            callback_expires_at=self.sender.callback_expires_at(route_name, now),
            prompt=prompt if isinstance(prompt, str) else None,
            deferred=not direct,
            submit_first_at=now if direct else None,
            submit_due_at=None if direct else now,
            submit_leased_until=self.sender.lease(now) if direct else None,
            callback_url=callback_url,
        )
        op = Accept(task, whole if shown is not filled else None, asked, self.gates.asked(now) if direct else None)
        if direct:
            sent = await self._sent_at_once(op, whole)
        else:
            self.gates.backlog.add(route_name)
            await self._stored(op)
            if in_background:
                self._wake.set()
                return task
            sent = await self._decided(task)
        return sent if isinstance(sent, Task) else _told(sent)

    async def _stored(self, op: Accept) -> Accepted:
        accepted = await self.sender.accept(op)
        if accepted.known is not None and op.asked is not None:
            await refuse_repeat(self.sender, accepted.known, op.asked)
        return accepted

    async def _sent_at_once(self, op: Accept, whole: bytes) -> Sent | Task:
        route = op.task.route
        self.gates.begin(route)
        try:
            accepted = await self._stored(op)
        except BaseException:
            self.gates.end(route)
            raise
        if accepted.task is not None and accepted.paced_until is not None:
            self.gates.backlog.add(route)
            self.gates.paced_until(accepted.paced_until)
            self.gates.end(route)
            return await self._decided(accepted.task)
        # The sending outlives a caller who goes away: its answer is a paid id.
        return await asyncio.shield(self._start(op.task, whole, op.paced))

    def _start(self, task: Task, body: bytes, paced: Paced | None) -> asyncio.Task[Sent]:
        sending = self.sender.start(task, partial(self._request, task, body), paced)
        sending.add_done_callback(partial(self._ended, task.id))
        return sending

    def _request(self, task: Task, body: bytes) -> HttpRequest:
        return ROUTES[task.route].submit(orjson.loads(body), self.sender.callback_url(task))

    def _ended(self, task_id: TaskId, sending: asyncio.Task[Sent]) -> None:
        waiter = self._awaited.get(task_id)
        if waiter is not None and not waiter.done():
            waiter.set_result(None if sending.cancelled() or sending.exception() else sending.result())

    async def _decided(self, task: Task) -> Sent | Task:
        """Wait a while for a queued task that may go at once: the upstream's word is worth more than a 202."""
        if self.gates.closed_until(task.route) is not None or self._stopping:
            self._wake.set()
            return task
        waiter: asyncio.Future[Sent | None] = asyncio.get_running_loop().create_future()
        self._awaited[task.id] = waiter
        self._wake.set()
        loop, after = asyncio.get_running_loop(), self.sender.after
        ends = loop.time() + self.sender.terms.timeout
        try:
            while not waiter.done() and not after.stopping and (left := ends - loop.time()) > 0:
                heard = asyncio.create_task(after.changed(task.id, min(left, IDLE_FOR)))
                await asyncio.wait({waiter, cast("asyncio.Future[Any]", heard)}, return_when=asyncio.FIRST_COMPLETED)
                heard.cancel()
                if not waiter.done() and not self.sender.is_sending(task.id):
                    task = await self._as_stored(task)  # another instance may have sent it
                    if task.state not in UNDECIDED:
                        return task
            await asyncio.wait({waiter}, timeout=max(0.0, ends - loop.time()))
            return (waiter.result() if waiter.done() else None) or await self._as_stored(task)
        finally:
            del self._awaited[task.id]

    async def _as_stored(self, task: Task) -> Task:
        """What its caller is told must be so: it may have been sent since it was accepted."""
        with suppress(StoreUnavailable):
            return await self.sender.store.read(lambda c: self.sender.store.tasks.get(c, task.id)) or task
        return task

    # -- the loop --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send what is queued, for ever: in order of creation, as slots, gates and the rate allow."""
        while not self._stopping:
            wait = IDLE_FOR
            try:
                async with self._claiming:
                    for route in list(self._turns):
                        if not self._stopping:
                            wait = min(wait, await self._advance(route))
            except StoreUnavailable as error:
                self.sender.log.error("submit.store_unavailable", error=str(error))
            try:
                await asyncio.wait_for(self._wake.wait(), wait)
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    async def _advance(self, route: str) -> float:
        """Send what may be sent of a route now; seconds until there may be more."""
        gates, now = self.gates, self.sender.clock()
        closed = gates.closed_until(route)
        gates.want(route, wants=False)
        if closed is not None and closed > now:
            return (closed - now).total_seconds()
        free = gates.free()
        if gates.is_probing(route) or free <= 0:
            gates.want(route, wants=route in gates.backlog and not gates.is_probing(route))
            by_rate = gates.next_by_rate()
            return IDLE_FOR if by_rate is None else max((by_rate - now).total_seconds(), 0.01)
        probing, heard = closed is not None, gates.heard
        paced = gates.asked(now)
        # A look that expects nothing keeps no slot from those who come now, who would go by the queue for it: so it
        # may take nothing, either.
        limit = (1 if probing else free) if route in gates.backlog else 0
        with gates.holding(limit):
            lease = self.sender.lease(now)
            found = await self._leased(Claim(self.sender.store, route, limit, now, lease, paced))
        if found.tasks:
            self._turns.remove(route)
            self._turns.append(route)
        for task, body in found.tasks:
            gates.begin(route, queued=True)
            self._start(task, body, paced)
        gates.unseen.discard(route)
        if found.tasks and probing:
            gates.probe(route)
        elif not found.tasks and found.due is None and gates.heard == heard:  # else it may have been closed meanwhile
            gates.open(route)
        return self._next(route, found, now)

    def _next(self, route: str, found: Claimed, now: datetime) -> float:
        gates, (claimed, due, paced_until) = self.gates, found
        if paced_until is not None:
            gates.paced_until(paced_until)
            gates.want(route, wants=True)
            return max((paced_until - now).total_seconds(), 0.01)
        if not claimed and due is not None and due <= now:  # found by a look that expected nothing
            gates.backlog.add(route)
            return 0.0
        if not claimed and due is not None:
            gates.close(route, due)  # also after a restart, which knows of a throttle only by this row
            return max((due - now).total_seconds(), 0.01)
        return IDLE_FOR if due is None else max((due - now).total_seconds(), 0.0)

    async def _leased(self, claim: Claim) -> Claimed:
        try:
            return await self.sender.store.run(claim)
        except StoreUnsure:  # what may be leased now is sent by nobody
            for task in claim.staged:
                self.sender.withdraw(task)
            raise

    async def stop(self) -> None:
        """Send nothing new; what has been sent is awaited, to `upstream.timeout` at most: its answer is a paid id."""
        self._stopping = True
        self._wake.set()
        self.gates.stop()
        async with self._claiming:  # what is being claimed is sent, and awaited, or it would be called ambiguous
            pass
        for task_id, waiter in self._awaited.items():
            if not self.sender.is_sending(task_id) and not waiter.done():
                waiter.set_result(None)
        await self.sender.settled(self.sender.terms.timeout + STORE_RETRY_FOR)


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
