"""One submission: sent once, on a connection of its own, and its answer stored before anybody hears of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from receiver import signing
from receiver.errors import AnswerUnknown, EgressError, StoreUnavailable, StoreUnsure
from receiver.submit.ops import Accept, Answered
from receiver.upstream import ROUTES
from receiver.upstream.base import Ambiguous, NotTaken, Refused, Taken
from receiver.upstream.verdicts import upstream_code

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from receiver.egress import Egress
    from receiver.ids import TaskId
    from receiver.ingest import After, Rulebook
    from receiver.logs import Logger
    from receiver.records import Task
    from receiver.store import Store
    from receiver.store.rates import Paced
    from receiver.submit.gates import Gates
    from receiver.submit.ops import Accepted, Terms
    from receiver.upstream.base import Submission
    from receiver.wire import HttpRequest, HttpResponse

LEASE_MARGIN = timedelta(seconds=30)
"""A sender's lease outlives `upstream.timeout` by this much, so that only a dead one's runs out."""
OUTCOMES = {Taken: "taken", Refused: "refused", NotTaken: "not_taken", Ambiguous: "ambiguous"}
STORE_RETRY_FOR = 0.5
"""Seconds between tries to store an upstream's answer: it is a paid id."""


@dataclass(frozen=True)
class Sent:
    """What was made of a submission's answer, the answer itself where there was one, and the task as it was stored."""

    answer: Submission
    response: HttpResponse | None
    task: Task


@dataclass
class Sender:
    """Sends, and keeps what is under way: it outlives a caller who goes away, since its answer is a paid id.

    Attributes:
        held: Idempotency-Keys whose first request has no answer yet.
    """

    store: Store
    egress: Egress
    rules: Rulebook
    terms: Terms
    after: After
    log: Logger
    clock: Callable[[], datetime]
    gates: Gates
    held: set[str] = field(default_factory=set)
    _sending: dict[asyncio.Task[Sent], TaskId] = field(default_factory=dict)
    _withdrawing: set[asyncio.Task[None]] = field(default_factory=set)

    def lease(self, now: datetime) -> datetime:
        """Until when a sender that began now is alive; to the millisecond, as it is stored, so that ours is known.

        Instances whose gate opens look in the same millisecond: a part of a second by chance tells their leases apart.
        One whose claim came to nothing must not put back what another is sending: it would be paid for twice.
        """
        milliseconds = round(self.terms.timeout * 1000) + int(self.rules.draw() * 1000)
        return now + timedelta(milliseconds=milliseconds) + LEASE_MARGIN

    def callback_expires_at(self, route: str, now: datetime) -> datetime | None:
        """How long the callback URL of a task that is accepted now is good; None where it gets none."""
        takes = ROUTES[route].takes_callback and self.terms.callback_base
        return now + self.terms.callback_ttl if takes else None

    def callback_url(self, task: Task) -> str | None:
        """Our own callback URL for a task, with its token; None where it has none."""
        if task.callback_expires_at is None or self.terms.callback_base is None:
            return None
        token = signing.mint(self.terms.signing_keys, task.id, task.callback_expires_at)
        return f"{self.terms.callback_base}/callbacks/{token}"

    async def accept(self, op: Accept) -> Accepted:
        """Store a task before it is sent.

        Raises:
            AnswerUnknown: nobody can tell whether it was stored, so nothing is sent now; a caller who heard of a plain
                failure would ask again, and might pay twice. Stored after all, it goes to the queue, or is rejected.
            StoreUnavailable: nothing was stored.
        """
        try:
            return await self.store.run(op)
        except StoreUnsure as error:
            if op.task.state == "submitting":
                self.withdraw(op.task, may_wait=op.may_wait)
            words = "the database went away while it was stored: the task may be there, ask for it by its id"
            raise AnswerUnknown(words, op.task.id) from error

    def withdraw(self, task: Task, *, may_wait: bool = True) -> None:
        """Nobody sends it: say so, where it was stored, once the store is back."""
        withdrawing = asyncio.create_task(self._withdraw(task, may_wait=may_wait))
        self._withdrawing.add(withdrawing)
        withdrawing.add_done_callback(self._withdrawing.discard)

    async def _withdraw(self, task: Task, *, may_wait: bool) -> None:
        reason = "the database went away while it was stored, and it was not sent"
        op = Answered(task, NotTaken(reason, None), None, self.clock(), self.terms, self.rules, may_wait)
        while True:
            try:
                recorded = await self.store.run(op)
            except StoreUnavailable:
                await asyncio.sleep(STORE_RETRY_FOR)
                continue
            break
        if recorded.moved:
            self._tell(op.answer, recorded.task)
            self.after(recorded)
            self.gates.backlog.add(task.route)

    def start(
        self, task: Task, request: Callable[[], HttpRequest], paced: Paced | None = None, *, may_wait: bool = True
    ) -> asyncio.Task[Sent]:
        """Send a task that is stored as `submitting`; its slot was taken by `gates.begin`.

        Args:
            task: as it was stored.
            request: makes what is sent.
            paced: the start of the rate that was granted with it.
            may_wait: surely not taken, it goes (back) to the queue; else it is rejected.
        """
        sending = asyncio.create_task(self._send(task, request, paced, may_wait=may_wait), name=f"submit {task.id}")
        self._sending[sending] = task.id
        sending.add_done_callback(self._ended)
        return sending

    def is_sending(self, task_id: TaskId) -> bool:
        """Whether a task is under way."""
        return task_id in self._sending.values()

    async def settled(self, seconds: float | None = None) -> None:
        """Wait until no submission is under way, `seconds` at most."""
        while self._sending:
            await asyncio.wait(set(self._sending), timeout=seconds)
            if seconds is not None:
                return

    def _ended(self, sending: asyncio.Task[Sent]) -> None:
        del self._sending[sending]
        if not sending.cancelled() and (error := sending.exception()) is not None:
            self.log.error("submit.failed", error=repr(error))

    async def _send(
        self, task: Task, request: Callable[[], HttpRequest], paced: Paced | None, *, may_wait: bool
    ) -> Sent:
        answer: Submission = Ambiguous("the sender ended before the answer")
        response: HttpResponse | None = None
        try:
            made = request()
            if paced is not None and self._is_late(paced):
                answer = NotTaken("the store was slow, and its start of upstream.rate is over", None)
            else:
                response, answer = await self._called(task, made)
            code = None if response is None else upstream_code(response)
            kept = await self._keep(Answered(task, answer, code, self.clock(), self.terms, self.rules, may_wait))
            if kept.state == "pending":
                self.gates.backlog.add(task.route)
            return Sent(answer, response, kept)
        finally:
            self.gates.end(task.route, answer)

    def _is_late(self, paced: Paced) -> bool:
        now = self.clock()
        self.gates.haste.saw(paced.now, now)
        return now > paced.by

    async def _called(self, task: Task, made: HttpRequest) -> tuple[HttpResponse | None, Submission]:
        try:
            response = await self.egress.submit(made, timeout=self.terms.timeout)
        except EgressError as error:
            return None, Ambiguous(str(error)) if error.sent else NotTaken(str(error), None)
        return response, ROUTES[task.route].read_submission(response, now=self.clock())

    async def _keep(self, op: Answered) -> Task:
        """Store the answer, however long the store is away; only then does anybody hear of it. The task as stored."""
        while True:
            try:
                recorded = await self.store.run(op)
            except StoreUnavailable as error:
                # Should the process die before the store is back, this line's id lets an operator adopt the task.
                self.log.error(
                    "task.answer_unstored",
                    task_id=op.sent.id,
                    upstream_id=getattr(op.answer, "upstream_id", None),
                    error=str(error),
                )
                await asyncio.sleep(STORE_RETRY_FOR)
                continue
            except Exception:  # a fault of ours: the id is paid for, and stands nowhere else
                self.log.exception(
                    "task.answer_unstored",
                    task_id=op.sent.id,
                    upstream_id=getattr(op.answer, "upstream_id", None),
                )
                raise
            break
        self._tell(op.answer, recorded.task)
        self.after(recorded)
        return recorded.task

    def _tell(self, answer: Submission, task: Task) -> None:
        self.after.metrics.submissions.add((task.route, OUTCOMES[type(answer)]))
        match answer:
            case Taken():
                self.log.info("task.submitted", task_id=task.id, upstream_id=answer.upstream_id, route=task.route)
            case Ambiguous():
                self.log.warning(
                    "task.submit_ambiguous",
                    task_id=task.id,
                    upstream_id=task.upstream_id,
                    route=task.route,
                    reason=answer.reason,
                )
            case Refused() | NotTaken():
                event = "task.submit_deferred" if task.state == "pending" else "task.submit_refused"
                self.log.warning(
                    event,
                    task_id=task.id,
                    route=task.route,
                    state=task.state,
                    reason=answer.reason,
                    submit_attempts=task.submit_attempts,
                )
