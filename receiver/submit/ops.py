"""The writer's ops of a submission: accept, claim, answered; and the two things a person can do by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from receiver import lifecycle
from receiver.errors import Conflict, NotFound
from receiver.ingest import Recorded, record, record_operator, settle
from receiver.ingest.judge import end_by_hand, judge_held, judge_kept, reject
from receiver.ingest.record import URGENT
from receiver.records import Repeat
from receiver.store import Reads, ReadsTask
from receiver.store.rates import Starts
from receiver.upstream.base import Ambiguous, NotTaken, Refused, Taken

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from receiver.ids import TaskId
    from receiver.ingest import Rulebook
    from receiver.records import Task
    from receiver.store import Store, Unit
    from receiver.store.rates import Paced
    from receiver.submit.repeats import Asked
    from receiver.upstream.base import Submission


PROBE_FOR = timedelta(seconds=0.5)
"""How soon an instance looks again whether another's try was taken."""


@dataclass(frozen=True)
class Terms:
    """What submissions are made by; from the configuration.

    Attributes:
        callback_base: what the callback URLs begin with; None where all tasks are polled.
        timeout: seconds for one submission.
    """

    signing_keys: Sequence[str]
    callback_base: str | None
    callback_ttl: timedelta
    timeout: float
    max_concurrency: int
    retry: Sequence[timedelta]
    deadline: timedelta
    allow_private_callbacks: bool = False


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a new task.

    Attributes:
        task: as it was stored; None where nothing was.
        known: what is known of its Idempotency-Key.
        paced_until: the rate had no start for it; when it has one.
    """

    task: Task | None
    known: Repeat | None = None
    paced_until: datetime | None = None


@dataclass(frozen=True)
class Accept(Reads):
    """The op that stores a new task, with the whole body where the row's is abridged.

    Attributes:
        paced: the start that one which is sent at once asks for; None where there is no rate.
        may_wait: where there is none it goes to the queue; else nothing is stored.
    """

    task: Task
    payload: bytes | None
    asked: Asked | None = None
    paced: Paced | None = None
    may_wait: bool = True

    def apply(self, unit: Unit) -> Accepted:
        """Stage both, unless something is known of its Idempotency-Key."""
        task, paced_until = self.task, None
        if self.asked is not None and (known := unit.repeat(self.asked.key)) is not None:
            return Accepted(None, known)
        if self.paced is not None:
            starts = Starts.of(unit, self.paced)
            if starts.free:
                starts.take(1)
            else:
                task, paced_until = _queued(task), starts.next_at
                if not self.may_wait:
                    return Accepted(None, None, paced_until)
        if self.asked is not None:
            unit.put_repeat(Repeat(self.asked.key, task.id, task.created_at, self.asked.request))
        unit.add_task(task)
        if self.payload is not None:
            unit.add_payload(task.id, self.payload)
        return Accepted(task, None, paced_until)


def _queued(task: Task) -> Task:
    return replace(
        task,
        state="pending",
        deferred=True,
        submit_first_at=None,
        submit_due_at=task.created_at,
        submit_leased_until=None,
    )


class Claimed(NamedTuple):
    """What a claim found.

    Attributes:
        tasks: with their bodies.
        due: when the first that must wait is due.
        paced_until: it waits for the rate, which has a start for it then.
    """

    tasks: list[tuple[Task, bytes]]
    due: datetime | None
    paced_until: datetime | None = None


@dataclass(frozen=True)
class Claim(Reads):
    """The op that takes what may be sent of a route: in order of creation, up to the first that must wait.

    Attributes:
        limit: how many; with none it only looks.
        paced: the starts it asks for; None where there is no rate.
        staged: what it leased when it last ran, for one who never heard whether that was committed.
    """

    store: Store
    route: str
    limit: int
    now: datetime
    lease_until: datetime
    paced: Paced | None = None
    staged: list[Task] = field(default_factory=list)

    def apply(self, unit: Unit) -> Claimed:
        """Lease them."""
        claimed = self._claimed(unit)
        self.staged[:] = [task for task, _ in claimed.tasks]
        return claimed

    def _claimed(self, unit: Unit) -> Claimed:
        if self.store.dialect.is_shared and self._is_probed(unit):
            return Claimed([], self.now + PROBE_FOR)
        if self.paced is None:
            return Claimed(*self._leased(unit, self.limit))
        starts = Starts.of(unit, self.paced)
        free = starts.free
        tasks, due = self._leased(unit, min(self.limit, free))
        starts.take(len(tasks))
        is_paced = due is not None and due <= self.now and free < self.limit
        return Claimed(tasks, due, starts.next_at if is_paced else None)

    def _is_probed(self, unit: Unit) -> bool:
        """Whether an instance is trying again what was not taken: until the upstream has, the route's gate is shut."""
        questions = self.store.tasks
        unit.select(questions.unsent, route=self.route, limit=1)  # with its lock: two who look at once would both begin
        return bool(unit.select(questions.probes, route=self.route, now=self.now))

    def _leased(self, unit: Unit, limit: int) -> tuple[list[tuple[Task, bytes]], datetime | None]:
        claimed: list[tuple[Task, bytes]] = []
        for task in unit.tasks_where(self.store.tasks.unsent, route=self.route, limit=limit + 1):
            due = task.submit_due_at or self.now
            if due > self.now or len(claimed) == limit:
                return claimed, due
            rows = unit.select(self.store.tasks.payload, task_id=task.id)
            body = rows[0][0] if rows else task.input_json.encode()
            sending = replace(
                task,
                state="submitting",
                submit_due_at=None,
                submit_leased_until=self.lease_until,
                submit_first_at=task.submit_first_at or self.now,
            )
            unit.put_task(sending)
            claimed.append((sending, body))
        return claimed, None


@dataclass(frozen=True)
class Answered(Reads):
    """The op that stores a submission's answer.

    Attributes:
        code: the upstream's own number, where its answer had one.
        may_wait: what surely was not taken goes back to the queue; else it is rejected.
    """

    sent: Task
    answer: Submission
    code: int | None
    at: datetime
    terms: Terms
    rules: Rulebook
    may_wait: bool = True

    @property
    def task_ids(self) -> tuple[TaskId, ...]:
        """The task that was sent."""
        return (self.sent.id,)

    def apply(self, unit: Unit) -> Recorded:
        """Stage it. A late answer of a sender that was taken for dead is still the truth about an ambiguous task."""
        before = unit.task(self.sent.id)
        if before is None:
            return Recorded(self.sent)
        mine = before.state == "submitting" and before.submit_leased_until == self.sent.submit_leased_until
        if not mine and not (before.state == "ambiguous" and before.upstream_id is None):
            return Recorded(before)
        if not mine and not isinstance(self.answer, Taken):
            return Recorded(before)
        into = Recorded(before)
        match self.answer:
            case Taken():
                self._taken(unit, before, self.answer, into)
            case Refused() if not before.shown and not (self.answer.account and before.deferred):
                self._rejected(unit, before, self.answer.reason, self.code, into)
            case NotTaken() if not before.shown and not self.may_wait:
                self._rejected(unit, before, self.answer.reason, self.code, into)
            case NotTaken() | Refused() if not before.shown:
                self._again(unit, before, self.answer, into)
            case Ambiguous() | NotTaken() | Refused() as answer:
                # No answer tells; or one says no, and yet the upstream has called back: it is not sent again.
                ambiguous(unit, before, self.rules, self.at, into, answer.reason)
        if into.task.state not in {"pending", "submitting"}:
            unit.drop_payload(before.id)
        return into

    def _taken(self, unit: Unit, before: Task, answer: Taken, into: Recorded) -> None:
        held = before.held_json
        task = replace(
            before,
            state="queued",
            upstream_id=answer.upstream_id,
            submitted_at=self.at,
            submit_due_at=None,
            submit_leased_until=None,
            held_json=None,
        )
        task = replace(task, poll_due_at=self.rules.polling.first(task, self.at, self.rules.draw()))
        unit.put_task(task)
        into.task, into.moved = task, True
        record(unit, task, "task.queued", self.rules, self.at, into.born)
        if held is not None:
            settle(unit, task, judge_kept(task, held, self.rules.confirm, self.at), self.rules, self.at, into)

    def _rejected(self, unit: Unit, before: Task, reason: str, code: int | None, into: Recorded) -> None:
        task = reject(before, reason, code, self.at)
        unit.put_task(task)
        into.task, into.moved = task, True
        if task.deferred:  # otherwise the caller has the refusal in hand (contract section 5)
            record(unit, task, "task.rejected", self.rules, self.at, into.born)

    def _again(self, unit: Unit, before: Task, answer: NotTaken | Refused, into: Recorded) -> None:
        """Surely not taken: put back, unless its time is over."""
        first = before.submit_first_at or self.at
        waits = self.terms.retry
        wait = waits[-1] if isinstance(answer, Refused) else waits[min(before.submit_attempts, len(waits) - 1)]
        if isinstance(answer, NotTaken) and answer.retry_after is not None:
            wait = max(wait, timedelta(seconds=answer.retry_after))
        task = replace(
            before,
            state="pending",
            deferred=True,
            submit_attempts=before.submit_attempts + 1,
            submit_due_at=self.at + wait,
            submit_leased_until=None,
        )
        if self.at + wait >= first + self.terms.deadline:
            self._rejected(unit, task, f"not taken before upstream.submit_deadline: {answer.reason}", None, into)
            return
        unit.put_task(task)
        into.task, into.moved = task, True


@dataclass(frozen=True)
class Cancel(ReadsTask):
    """The op that stops tracking a task: it may still be rendered and paid, but nobody waits for it here."""

    task_id: TaskId
    at: datetime
    rules: Rulebook

    def apply(self, unit: Unit) -> Recorded:
        """Stage it.

        Raises:
            NotFound: there is no such task.
            Conflict: it has ended, or is being sent right now.
        """
        before = unit.task(self.task_id)
        if before is None:
            raise NotFound(f"there is no task {self.task_id[:60]!r}")
        if before.state in lifecycle.TERMINAL or before.state == "submitting":
            raise Conflict(f"the task is {before.state}: only one that waits or renders can be cancelled")
        task = end_by_hand(before, self.at)
        unit.put_task(task)
        unit.drop_payload(task.id)
        into = Recorded(task, moved=True)
        record(unit, task, "task.cancelled", self.rules, self.at, into.born)
        return into


@dataclass(frozen=True)
class Adopt(ReadsTask):
    """The op that gives an ambiguous or lost task its upstream id by hand; it is looked up at once."""

    task_id: TaskId
    upstream_id: str
    at: datetime
    rules: Rulebook

    def apply(self, unit: Unit) -> Recorded:
        """Stage it. A lost task stays lost until the upstream says more; then it is `recovered`.

        Raises:
            NotFound: there is no such task.
            Conflict: it is neither ambiguous nor lost.
        """
        before = unit.task(self.task_id)
        if before is None:
            raise NotFound(f"there is no task {self.task_id[:60]!r}")
        if before.state not in {"ambiguous", "lost"}:
            raise Conflict(f"the task is {before.state}: only an ambiguous or a lost one can be given an id")
        state = "queued" if before.state == "ambiguous" else before.state
        task = replace(
            before,
            state=state,
            upstream_id=self.upstream_id,
            held_json=None,
            poll_due_at=URGENT,
            poll_leased_until=None,
            poll_count=0,
            missing_count=0,
            missing_since_at=None,
            woken_at=self.at,
            submitted_at=before.submitted_at or self.at,
        )
        unit.put_task(task)
        into = Recorded(task, look=True, moved=True)
        if before.state == "ambiguous":
            record(unit, task, "task.queued", self.rules, self.at, into.born)
        return into


def ambiguous(unit: Unit, before: Task, rules: Rulebook, now: datetime, into: Recorded, reason: str) -> None:
    """Stage that a task may have been taken and no answer tells; what a callback said meanwhile is decided now."""
    task = replace(
        before,
        state="ambiguous",
        submit_due_at=None,
        submit_leased_until=None,
        poll_due_at=(before.submit_first_at or before.created_at) + rules.polling.deadline,
    )
    unit.put_task(task)
    into.task, into.moved = task, True
    record_operator(unit, "task.ambiguous", rules, now, into.born, task=task, reason=reason)
    if task.held_json is not None:
        settle(unit, task, judge_held(task, now), rules, now, into)
