"""What one observation makes of a task: the rules of contract section 1, as pure functions.

* A terminal word is believed as it comes, but for the odd ones, which a lookup decides.
* While the submission has no answer yet, a terminal callback is held, and decided when the answer is in.
* An ambiguous submission adopts the id a callback names, and looks it up first.
* The first terminal observation that is believed wins; what comes later is recorded and forwards nothing.
* `lost` is our own word, so the truth may still replace it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec.structs import replace

from receiver import lifecycle
from receiver.records import Observation, Task, Verdict
from receiver.upstream.base import outcome_code

if TYPE_CHECKING:
    from datetime import datetime

    from receiver.records import Via

Confirm = Literal["odd", "always", "never"]

URLLESS_LOOKUPS = 5
"""Lookups that may say success without a URL before that is the truth (contract section 1)."""
MISSING_LOOKUPS = 5
"""`task_not_exist` in a row, from both lookup routes, before a task may be lost (contract section 1)."""


@dataclass(frozen=True)
class Polling:
    """When tasks are looked up (contract section 3, `[polling]`)."""

    callback_grace: timedelta = timedelta(seconds=60)
    interval: timedelta = timedelta(seconds=5)
    backoff: float = 1.5
    max_interval: timedelta = timedelta(seconds=60)
    jitter: float = 0.2
    missing_grace: timedelta = timedelta(seconds=120)
    deadline: timedelta = timedelta(hours=25)

    def wait(self, count: int, draw: float) -> timedelta:
        """The wait before the lookup after `count` of them; jitter only adds, the upstream asks for 5 s at least."""
        # 1.5 ** 64 is past any max_interval; without the cap a patient task's power would overflow a float.
        plain = min(self.max_interval, self.interval * self.backoff ** min(count, 64))
        return plain * (1 + self.jitter * draw)

    def first(self, task: Task, now: datetime, draw: float) -> datetime:
        """When a task is looked up first: after the grace where a callback may come, else after one interval."""
        wait = self.interval if task.callback_expires_at is None else self.callback_grace
        return now + wait * (1 + self.jitter * draw)


class Judgement(msgspec.Struct):
    """What one observation makes of a task.

    Attributes:
        task: its new state; the old object where nothing changes.
        look: whether the upstream is to be asked: at once and before all others, soon, or not because of this.
        moved: the task went over into the state it now has.
        progressed: a percentage was learnt that differs from the one before.
        data_json: the upstream's object that says so, for the event; the task itself does not keep it.
    """

    task: Task
    verdict: Verdict
    detail: str
    look: Literal["at once", "no"] = "no"
    moved: bool = False
    progressed: bool = False
    data_json: str | None = None


def judge(task: Task, seen: Observation, via: Via, confirm: Confirm, now: datetime) -> Judgement:
    """What `seen` makes of `task`. Lookups come here only when they showed the task."""
    if task.state in lifecycle.TERMINAL and task.state != "lost":
        return Judgement(task, "late", f"the task is {task.state} already")
    if task.upstream_id is None:
        return _judge_unsent(task, seen, now)
    terminal = seen.seen in lifecycle.TERMINAL_SEEN
    doubt = _doubt(task, seen, via, confirm)
    if terminal and not doubt:
        return _end(task, seen, via, now)
    shown = replace(task, shown=True, missing_count=0, missing_since_at=None)
    if doubt and (terminal or via == "callback"):
        return Judgement(shown, "odd", doubt, look="at once")
    return _advance(shown, seen)


def _doubt(task: Task, seen: Observation, via: Via, confirm: Confirm) -> str:
    """Why a body is not simply believed, in words; empty where it is."""
    if via == "poll":
        # A lookup is what decides. Only what it leaves open stays open: a success may yet get its URL.
        if "no-url" in seen.oddities and task.urlless_count + 1 < URLLESS_LOOKUPS:
            return "the lookup says success without a URL"
        return "a code without a status" if "bare-code" in seen.oddities else ""
    if seen.upstream_id is not None and seen.upstream_id != task.upstream_id:
        return f"the body names another task, {seen.upstream_id[:80]!r}"
    return "" if confirm == "never" else _oddity(seen, confirm)


def _oddity(seen: Observation, confirm: Confirm) -> str:
    if seen.oddities:
        return ODDITIES[seen.oddities[0]]
    if seen.seen in {"unknown", "missing"}:
        return "its status is no word we know"
    if confirm == "always" and seen.seen in lifecycle.TERMINAL_SEEN:
        return "every terminal callback is confirmed by a lookup (upstream.confirm_callbacks)"
    return ""


ODDITIES = {
    "other-id": "the body names another task",
    "disagreement": "`status` and `state` disagree",
    "bare-code": "an error code without a status",
    "no-url": "a success without a usable URL",
}


def _judge_unsent(task: Task, seen: Observation, now: datetime) -> Judgement:
    """A callback came before the submission's answer, or instead of it."""
    terminal = seen.seen in lifecycle.TERMINAL_SEEN
    if task.state in {"pending", "submitting"}:
        keep = terminal or (task.held_json is None and seen.upstream_id is not None)
        held = msgspec.json.decode(task.held_json, type=Observation) if task.held_json else None
        better = held is not None and held.oddities and terminal and not seen.oddities
        if held is not None and held.seen in lifecycle.TERMINAL_SEEN and not better:
            return Judgement(task, "late", "another terminal callback is kept already")
        kept = replace(task, shown=True, held_json=msgspec.json.encode(seen).decode() if keep else task.held_json)
        if task.state == "pending":
            # It was put back as surely not taken, and yet the upstream speaks of it: it must not be sent again.
            return judge_held(replace(kept, state="ambiguous", submit_due_at=None), now)
        return Judgement(kept, "progress", "kept until the submission's answer is in")
    if seen.upstream_id is not None:
        # A lost task stays lost until the truth is known; an ambiguous one is born by this.
        born = lifecycle.advance("ambiguous", "running" if seen.seen == "running" else "queued")
        adopted = replace(
            task,
            state=task.state if task.state == "lost" else born or "queued",
            upstream_id=seen.upstream_id,
            shown=True,
            held_json=None,
            submitted_at=task.submitted_at or now,
            progress=seen.progress,
        )
        return Judgement(
            adopted,
            "odd" if terminal else "progress",
            "its id is adopted and looked up first",
            look="at once",
            moved=task.state != "lost",
        )
    if not terminal:
        return Judgement(replace(task, shown=True), "progress", "no id to adopt")
    # Nobody can be asked about it: it is believed, odd or not.
    return _end(task, seen, "callback", now)


def unreadable(task: Task, flaw: str) -> Judgement:
    """A callback whose body makes no sense: nothing is learnt but that the upstream has our URL, and so the task."""
    if task.state in {"pending", "submitting"}:
        task = replace(task, shown=True)
    if task.state == "pending":  # surely not taken, it was thought; it must not be sent again
        task = replace(task, state="ambiguous", submit_due_at=None)
    ended = task.state in lifecycle.TERMINAL and task.state != "lost"
    return Judgement(task, "unreadable", flaw, look="no" if ended else "at once")


def judge_held(task: Task, now: datetime) -> Judgement:
    """A submission stayed ambiguous: decide by what was held meanwhile, if anything was."""
    if task.held_json is None:
        return Judgement(task, "progress", "")
    return _judge_unsent(task, msgspec.json.decode(task.held_json, type=Observation), now)


def _advance(task: Task, seen: Observation) -> Judgement:
    state = lifecycle.advance(task.state, seen.seen)
    progressed = seen.progress is not None and seen.progress != task.progress
    if task.state == "lost":  # it lives after all: ask until the truth is known
        return Judgement(task, "progress", seen.seen, look="at once")
    if state is None and not progressed:
        return Judgement(task, "progress", seen.seen)
    changed = replace(
        task,
        state=state or task.state,
        progress=seen.progress if progressed else task.progress,
        prompt=seen.prompt or task.prompt,
    )
    return Judgement(
        changed, "progress", seen.seen, moved=state is not None, progressed=progressed, data_json=seen.data_json
    )


def _end(task: Task, seen: Observation, via: Via, now: datetime) -> Judgement:
    """The first terminal word that is believed."""
    state = lifecycle.advance(task.state, seen.seen)
    if state is None:
        return Judgement(task, "late", f"the task is {task.state} already")
    ended = replace(
        task,
        state=state,
        progress=100 if state == "succeeded" else (seen.progress if seen.progress is not None else task.progress),
        prompt=seen.prompt or task.prompt,
        code=outcome_code(state == "succeeded", seen.code),
        msg=seen.msg,
        video_url=seen.video_url,
        poster=seen.poster,
        last_frame=seen.last_frame,
        failure=seen.failure,
        failure_code=seen.failure_code,
        via=via,
        confirmed=via == "poll",
        recovered=task.state == "lost",
        finished_at=now,
        shown=True,
        missing_count=0,
        missing_since_at=None,
        held_json=None,
        submit_leased_until=None,
        submit_due_at=None,
        poll_due_at=None,
        poll_leased_until=None,
    )
    return Judgement(ended, "accepted", state, moved=True, data_json=seen.data_json)


def lose(task: Task, reason: str, now: datetime) -> Task:
    """The task as `lost`: our own word for one nobody will ever hear of (contract section 1)."""
    return replace(
        task,
        state="lost",
        code=500,
        msg=reason,
        failure=reason,
        finished_at=now,
        held_json=None,
        poll_due_at=None,
        poll_leased_until=None,
        submit_leased_until=None,
        submit_due_at=None,
    )


def judge_kept(task: Task, held_json: str, confirm: Confirm, now: datetime) -> Judgement:
    """A submission was taken: decide the callback that came before its answer, now that the id is known."""
    return judge(task, msgspec.json.decode(held_json, type=Observation), "callback", confirm, now)


def reject(task: Task, reason: str, code: int | None, now: datetime) -> Task:
    """The task as `rejected`: the upstream never took it."""
    return replace(
        task,
        state="rejected",
        code=outcome_code(False, code),
        msg=reason,
        failure=reason,
        finished_at=now,
        submit_due_at=None,
        submit_leased_until=None,
        poll_due_at=None,
        poll_leased_until=None,
    )


def end_by_hand(task: Task, now: datetime) -> Task:
    """The task as `cancelled` by its owner: it is not tracked any more."""
    return replace(
        task,
        state="cancelled",
        code=500,
        msg="",
        finished_at=now,
        held_json=None,
        submit_due_at=None,
        submit_leased_until=None,
        poll_due_at=None,
        poll_leased_until=None,
    )
