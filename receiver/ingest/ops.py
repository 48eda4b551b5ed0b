"""The writer's ops of this room: a callback, a lookup, a wake-up."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from receiver import ids, lifecycle
from receiver.errors import EnvelopeError, NotFound
from receiver.ids import TaskId
from receiver.ingest.judge import MISSING_LOOKUPS, Judgement, judge, lose, unreadable
from receiver.ingest.record import Recorded, Rulebook, settle
from receiver.records import Inbox, Observation, Task
from receiver.store import ReadsTask
from receiver.upstream.reading import read_callback

if TYPE_CHECKING:
    from receiver.records import LookupRoute
    from receiver.store import Unit

KEPT_BODIES = 50
"""Raw bodies kept of one task (contract 4.1); more are only counted. Lookups have as many places of their own."""
WAKE_SPACING = timedelta(seconds=5)
"""A GET on a callback URL wakes the poller at most this often (contract 4.1)."""


class Callback(msgspec.Struct, ReadsTask):
    """The op of one callback. Its answer comes after the commit.

    Attributes:
        flaw: why the body makes no sense; the door's word where it was cut, else found by `prepare`.
        seen: what it says of the task, where it makes sense; found by `prepare`.
    """

    task_id: TaskId
    body: bytes
    content_type: str | None
    at: datetime
    rules: Rulebook
    flaw: str = ""
    seen: Observation | None = None

    def prepare(self) -> None:
        """Read the body."""
        if self.seen is None and not self.flaw:
            try:
                self.seen = read_callback(self.body, self.content_type)
            except EnvelopeError as error:
                self.flaw = str(error)

    def apply(self, unit: Unit) -> Recorded:
        """Decide and stage.

        Raises:
            NotFound: there is no such task (any more).
        """
        before = unit.task(self.task_id)
        if before is None:
            raise NotFound("no such task")
        # Most tasks are called back once: that body is compared as it is with those that follow, should there be any.
        digest = hashlib.sha256(self.body).digest()[:16] if before.callbacks else b""
        known = before.callbacks > 0 and unit.is_known(self.task_id, digest, self.body)
        task = replace(before, callbacks=before.callbacks + 1)
        if self.seen is None:
            judged = unreadable(task, self.flaw)
        else:
            judged = judge(task, self.seen, "callback", self.rules.confirm, self.at)
        verdict = judged.verdict
        if known and verdict in {"late", "progress"} and not judged.moved:
            verdict = "duplicate"
        into = Recorded(task, verdict, judged.detail)
        settle(unit, before, judged, self.rules, self.at, into)
        if before.callbacks < KEPT_BODIES:
            unit.add_inbox(
                Inbox(
                    id="obs_" + ids.write(int(self.at.timestamp() * 1000), self.rules.entropy(ids.ENTROPY_BYTES)),
                    task_id=self.task_id,
                    via="callback",
                    received_at=self.at,
                    verdict=verdict,
                    detail=judged.detail,
                    content_type=self.content_type,
                    digest=digest,
                    raw=self.body,
                )
            )
        return into


@dataclass(frozen=True)
class Wake(ReadsTask):
    """The op of a GET on a callback URL, and of `refresh`: have the task looked up soon; nothing else changes."""

    task_id: TaskId
    at: datetime
    spacing: timedelta = WAKE_SPACING

    def apply(self, unit: Unit) -> Recorded:
        """Stage the earlier lookup.

        Raises:
            NotFound: there is no such task.
        """
        task = unit.task(self.task_id)
        if task is None:
            raise NotFound("no such task")
        asleep = task.state in lifecycle.TERMINAL and task.state != "lost"
        if asleep or task.upstream_id is None:
            return Recorded(task)
        if task.woken_at is not None and self.at - task.woken_at < self.spacing:
            return Recorded(task)
        due = self.at if task.poll_due_at is None else min(task.poll_due_at, self.at)
        task = replace(task, poll_due_at=due, woken_at=self.at)
        unit.put_task(task)
        return Recorded(task, look=True)


@dataclass(frozen=True)
class Lookup(ReadsTask):
    """The op of one lookup's answer.

    Attributes:
        upstream_id: whom it was about; of a task that was given another id meanwhile it says nothing.
        lease: the claim it was made under; a lookup that outlived its lease still tells the truth, but does not touch
            the schedule of the one that followed it.
        seen: what was shown; None where the upstream has no such task (`missing`) or did not answer.
        answered: false where the upstream did not get to the question; that postpones `polling.deadline`.
        missing: both lookup routes said `task_not_exist`.
        detail: what the answer was, in words.
        raw: the body.
        not_before: the upstream's own wish (`Retry-After`).
        asked: which lookup route gave it.
    """

    task_id: TaskId
    upstream_id: str | None
    lease: datetime
    seen: Observation | None
    missing: bool
    answered: bool
    detail: str
    raw: bytes
    content_type: str | None
    at: datetime
    rules: Rulebook
    not_before: timedelta = timedelta(0)
    asked: LookupRoute | None = None

    def apply(self, unit: Unit) -> Recorded:
        """Decide, stage, and set when the next lookup is due.

        Raises:
            NotFound: the task is gone.
        """
        before = unit.task(self.task_id)
        if before is None:
            raise NotFound("no such task")
        if before.upstream_id != self.upstream_id:
            return Recorded(before)
        task = replace(before, polled_at=self.at, poll_count=before.poll_count + 1)
        if self.missing:
            task = replace(
                task, missing_count=task.missing_count + 1, missing_since_at=task.missing_since_at or self.at
            )
        elif self.answered:
            task = replace(task, missing_count=0, missing_since_at=None)  # five in a row are wanted
        judged = self._give_up(self._judge(task))
        if not judged.moved or judged.task.state not in lifecycle.TERMINAL:
            judged = replace(judged, task=self._schedule(before, judged))
        into = Recorded(task, judged.verdict, judged.detail)
        settle(unit, before, judged, self.rules, self.at, into)
        self._keep(unit, before, judged)
        return into

    def _judge(self, task: Task) -> Judgement:
        if self.seen is None:
            return Judgement(task, "progress", self.detail)
        judged = judge(task, self.seen, "poll", self.rules.confirm, self.at)
        urlless = judged.verdict == "odd" and "no-url" in self.seen.oddities
        if urlless:
            judged = replace(judged, task=replace(judged.task, urlless_count=judged.task.urlless_count + 1))
        return replace(judged, look="no")  # the schedule below says when

    def _give_up(self, judged: Judgement) -> Judgement:
        """The task as lost, where the rules of contract section 1 say so; only an answer can say it."""
        task, rules = judged.task, self.rules.polling
        if not self.answered or task.state not in {"queued", "running"}:
            return judged
        if judged.verdict == "odd":  # a success that lacks its URL yet: asked again, and never given up
            return judged
        since = task.submitted_at or task.created_at
        if self.at >= since + rules.deadline:
            return Judgement(
                lose(task, "no terminal word before polling.deadline", self.at),
                "progress",
                "lost: past polling.deadline",
                moved=True,
            )
        missing = self.missing and not task.shown and task.missing_count >= MISSING_LOOKUPS
        waited = task.missing_since_at is not None and self.at - task.missing_since_at >= rules.missing_grace
        callback_may_come = task.callback_expires_at is not None and task.callback_expires_at > self.at
        if missing and waited and not callback_may_come:
            return Judgement(
                lose(task, "the upstream has no such task", self.at),
                "progress",
                "lost: the upstream never showed it",
                moved=True,
            )
        return judged

    def _schedule(self, before: Task, judged: Judgement) -> Task:
        """When it is looked up next. Who asked for an earlier one while this was under way is heard."""
        task, polling = judged.task, self.rules.polling
        if before.poll_leased_until != self.lease:
            return replace(task, poll_due_at=before.poll_due_at, poll_leased_until=before.poll_leased_until)
        if task.state in lifecycle.TERMINAL and not self._still_sought(task):
            return replace(task, poll_due_at=None, poll_leased_until=None)
        count = 0 if task.urlless_count else task.poll_count
        due = self.at + max(polling.wait(count, self.rules.draw()), self.not_before)
        if before.poll_due_at is not None and before.poll_due_at != self.lease:
            due = min(due, max(before.poll_due_at, self.at))
        return replace(task, poll_due_at=due, poll_leased_until=None)

    def _still_sought(self, task: Task) -> bool:
        """A lost task that lives after all is asked about until the truth is known, as long as any other would be."""
        since = task.woken_at or task.submitted_at or task.created_at
        return task.state == "lost" and not self.missing and self.at < since + self.rules.polling.deadline

    def _keep(self, unit: Unit, before: Task, judged: Judgement) -> None:
        """Keep the first answers raw, and every one that moved the task; the rest are counted."""
        if before.poll_count >= KEPT_BODIES and not judged.moved:
            return
        unit.add_inbox(
            Inbox(
                id="obs_" + ids.write(int(self.at.timestamp() * 1000), self.rules.entropy(ids.ENTROPY_BYTES)),
                task_id=self.task_id,
                via="poll",
                received_at=self.at,
                verdict=judged.verdict,
                detail=judged.detail,
                content_type=self.content_type,
                digest=b"",
                raw=self.raw,
                asked=self.asked,
            )
        )
