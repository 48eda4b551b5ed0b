"""What is believed (contract section 1), for every state, word, way, oddity and setting there is."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import TYPE_CHECKING, cast, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver import lifecycle
from receiver.ingest.judge import (
    URLLESS_LOOKUPS,
    Confirm,
    Judgement,
    Polling,
    end_by_hand,
    judge,
    judge_held,
    judge_kept,
    lose,
    reject,
)
from receiver.records import Observation, Oddity, Via
from tests.rooms import NOW, a_task, later

if TYPE_CHECKING:
    from receiver.lifecycle import Seen, TaskState
    from receiver.records import Task

STATES = lifecycle.TASK_STATES
SEEN = cast("tuple[Seen, ...]", get_args(lifecycle.Seen))
VIAS = cast("tuple[Via, ...]", get_args(Via))
ODDITIES = (None, *cast("tuple[Oddity, ...]", get_args(Oddity)))
CONFIRMS = cast("tuple[Confirm, ...]", get_args(Confirm))
IDS = (None, "up-1", "up-2")
ENDED = lifecycle.TERMINAL - {"lost"}
URL = "https://x.example/v.mp4"


def said(seen: Seen, oddity: Oddity | None = None, upstream_id: str | None = "up-1") -> Observation:
    """A body that says so."""
    url = URL if seen == "succeeded" and oddity != "no-url" else None
    return Observation(seen, upstream_id=upstream_id, oddities=(oddity,) if oddity else (), video_url=url)


def every(states: tuple[TaskState, ...] = STATES) -> list[tuple[Task, Observation, Via, Confirm]]:
    """All that can be asked; a task without an id is told of by callbacks only."""
    product = itertools.product(states, SEEN, VIAS, ODDITIES, CONFIRMS, IDS, (True, False))
    cases = []
    for state, seen, via, oddity, confirm, names, known in product:
        task = a_task(state)
        if not known and state == "lost":
            task = msgspec.structs.replace(task, upstream_id=None)
        elif known == (state in lifecycle.UNSENT):
            continue
        if via == "poll" and task.upstream_id is None:
            continue
        cases.append((task, said(seen, oddity, names), via, confirm))
    return cases


def is_odd(task: Task, seen: Observation, via: Via, confirm: Confirm) -> bool:
    """The contract's list of odd terminal words, and what `confirm_callbacks` adds to it or takes from it."""
    if via == "poll":
        return "bare-code" in seen.oddities or "no-url" in seen.oddities
    if seen.upstream_id not in {None, task.upstream_id}:
        return True
    return {"odd": bool(seen.oddities), "always": True, "never": False}[confirm]


def told(task: Task, seen: Observation, via: Via, confirm: Confirm) -> str:
    """A case in words, for a failure's message."""
    return f"{task.state} {task.upstream_id} <- {seen.seen} {seen.oddities} {seen.upstream_id} via {via}, {confirm}"


CASES = every()


def test_every_case_is_there() -> None:
    """No filter above has eaten a state, a word or a setting."""
    assert {task.state for task, *_ in CASES} == set(STATES)
    assert {seen.seen for _, seen, *_ in CASES} == set(SEEN)
    assert len(CASES) > 5_000


def test_what_has_ended_stays_ended() -> None:
    """A terminal state but `lost` is changed by nothing; what comes is late, and asks for no lookup."""
    for task, seen, via, confirm in CASES:
        if task.state in ENDED:
            judged = judge(task, seen, via, confirm, NOW)
            assert judged.task == task, told(task, seen, via, confirm)
            assert (judged.verdict, judged.look, judged.moved) == ("late", "no", False), told(task, seen, via, confirm)


def test_only_a_terminal_word_ends_a_task() -> None:
    """Nothing else does: no unknown word, no progress, no `task_not_exist`."""
    for task, seen, via, confirm in CASES:
        judged = judge(task, seen, via, confirm, NOW)
        if judged.task.state != task.state and judged.task.state in lifecycle.TERMINAL:
            assert judged.task.state == seen.seen, told(task, seen, via, confirm)


def test_states_move_along_the_lifecycle() -> None:
    """`moved` says exactly when the state changed, and every change is one the table knows."""
    for task, seen, via, confirm in CASES:
        after = judge(task, seen, via, confirm, NOW)
        assert after.moved or task.state in {after.task.state, "pending"}, told(task, seen, via, confirm)
        if after.moved and task.state != "pending":
            start: TaskState = "ambiguous" if task.state in lifecycle.UNSENT else task.state
            allowed = {lifecycle.advance(start, one) for one in SEEN}
            assert after.task.state in allowed, told(task, seen, via, confirm)


def test_an_upstream_id_is_kept_once_it_is_set() -> None:
    """Whatever a body names."""
    for task, seen, via, confirm in CASES:
        if task.upstream_id is not None:
            assert judge(task, seen, via, confirm, NOW).task.upstream_id == task.upstream_id


def test_a_terminal_word_is_believed_unless_it_is_odd() -> None:
    """Where the id is known: an odd one is looked up at once and changes no state; any other ends the task."""
    for task, seen, via, confirm in CASES:
        if task.upstream_id is None or task.state in ENDED or seen.seen not in lifecycle.TERMINAL_SEEN:
            continue
        judged, words = judge(task, seen, via, confirm, NOW), told(task, seen, via, confirm)
        if is_odd(task, seen, via, confirm):
            assert (judged.verdict, judged.look, judged.moved) == ("odd", "at once", False), words
            assert judged.task.state == task.state, words
        else:
            assert (judged.verdict, judged.look, judged.moved) == ("accepted", "no", True), words
            ended = judged.task
            assert (ended.state, ended.via, ended.confirmed) == (seen.seen, via, via == "poll"), words
            assert ended.recovered == (task.state == "lost"), words
            assert (ended.video_url, ended.finished_at, ended.poll_due_at) == (seen.video_url, NOW, None), words


def test_a_callback_we_cannot_read_is_looked_up() -> None:
    """A callback about an open task whose word no table knows asks for a lookup, unless that is switched off."""
    for task, seen, via, confirm in CASES:
        if task.upstream_id is None or task.state in ENDED or via == "poll" or seen.seen not in {"unknown", "missing"}:
            continue
        judged = judge(task, seen, via, confirm, NOW)
        other = seen.upstream_id not in {None, task.upstream_id}
        if confirm != "never" or other:
            assert judged.look == "at once", told(task, seen, via, confirm)


def test_a_lost_task_that_shows_life_is_asked_about() -> None:
    """Progress does not bring it back, but the truth is sought."""
    for seen in ("queued", "running"):
        judged = judge(a_task("lost"), said(seen), "callback", "odd", NOW)
        assert (judged.task.state, judged.look, judged.moved) == ("lost", "at once", False)


def test_whoever_is_shown_counts_as_shown() -> None:
    """A word about an open task ends the count of `task_not_exist`."""
    task = a_task(missing_count=4, missing_since_at=NOW)
    after = judge(task, said("running"), "poll", "odd", NOW).task
    assert (after.shown, after.missing_count, after.missing_since_at) == (True, 0, None)


def test_progress_is_told_once() -> None:
    """A percentage that differs is progress; the same one again is not; the state may move with it."""
    first = judge(a_task("queued"), Observation("running", "up-1", progress=10), "callback", "odd", NOW)
    assert (first.task.state, first.task.progress, first.moved, first.progressed) == ("running", 10, True, True)
    second = judge(first.task, Observation("running", "up-1", progress=10), "callback", "odd", NOW)
    assert (second.moved, second.progressed, second.verdict) == (False, False, "progress")
    third = judge(first.task, Observation("queued", "up-1", progress=20), "callback", "odd", NOW)
    assert (third.task.state, third.task.progress, third.moved, third.progressed) == ("running", 20, False, True)


def test_a_success_is_complete_and_a_failure_is_not() -> None:
    """`progress` is 100 for a success; of a failure it is what was last known, or what the body says."""
    task = a_task("running", progress=40)
    assert judge(task, said("succeeded"), "callback", "odd", NOW).task.progress == 100
    assert judge(task, said("failed"), "callback", "odd", NOW).task.progress == 40
    assert judge(task, Observation("failed", "up-1", progress=60), "callback", "odd", NOW).task.progress == 60


def test_a_task_that_is_being_sent_is_ended_by_nobody() -> None:
    """Even with an id, which it cannot have: no table knows a way from there, so nothing changes."""
    task = a_task("submitting", upstream_id="up-1")
    judged = judge(task, said("succeeded"), "callback", "odd", NOW)
    assert (judged.task.state, judged.verdict, judged.moved) == ("submitting", "late", False)


# -- a lookup that says success without a URL --------------------------------------------------------------------------


def test_a_success_without_a_url_is_believed_at_the_fifth_lookup() -> None:
    """Four say so and are odd; the fifth ends the task without a video."""
    for count in range(URLLESS_LOOKUPS - 1):
        judged = judge(a_task(urlless_count=count), said("succeeded", "no-url"), "poll", "odd", NOW)
        assert (judged.verdict, judged.moved) == ("odd", False), count
    judged = judge(a_task(urlless_count=4), said("succeeded", "no-url"), "poll", "odd", NOW)
    assert (judged.task.state, judged.task.video_url, judged.task.confirmed) == ("succeeded", None, True)


# -- before the submission's answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", sorted(lifecycle.TERMINAL_SEEN))
@pytest.mark.parametrize("names", IDS)
def test_a_terminal_callback_waits_for_the_submission(seen: Seen, names: str | None) -> None:
    """While it is being sent, the word is kept and the state stays."""
    judged = judge(a_task("submitting"), said(seen, upstream_id=names), "callback", "odd", NOW)
    assert (judged.task.state, judged.verdict, judged.moved, judged.look) == ("submitting", "progress", False, "no")
    assert judged.task.held_json is not None


def test_the_first_terminal_callback_is_the_one_that_is_kept() -> None:
    """A second one, whatever it says, is late; progress does not replace it either."""
    first = judge(a_task("submitting"), said("succeeded"), "callback", "odd", NOW).task
    second = judge(first, said("failed"), "callback", "odd", NOW)
    assert (second.verdict, second.task) == ("late", first)
    assert judge(first, said("running"), "callback", "odd", NOW).task == first


def test_a_proper_end_is_kept_in_place_of_an_odd_one() -> None:
    """What a lookup would have to decide gives way to a callback that can be believed; not the other way round."""
    odd, proper = said("failed", "bare-code"), said("succeeded")
    task = judge(a_task("submitting"), odd, "callback", "odd", NOW).task
    task = judge(task, proper, "callback", "odd", NOW).task
    assert '"succeeded"' in (task.held_json or "")
    assert judge(task, odd, "callback", "odd", NOW).verdict == "late"


def test_an_id_in_early_progress_is_kept_and_gives_way_to_the_end() -> None:
    """Progress that names an id may be needed to adopt; a terminal word takes its place."""
    early = judge(a_task("submitting"), said("running"), "callback", "odd", NOW).task
    assert early.held_json is not None
    assert judge(early, said("running", upstream_id="up-2"), "callback", "odd", NOW).task.held_json == early.held_json
    ended = judge(early, said("failed"), "callback", "odd", NOW).task
    assert msgspec.json.decode(ended.held_json or "", type=Observation).seen == "failed"


def test_early_progress_without_an_id_is_not_kept() -> None:
    """It would decide nothing; but that the upstream speaks of the task is noted, so that it is not sent again."""
    task = a_task("submitting")
    after = judge(task, said("running", upstream_id=None), "callback", "odd", NOW).task
    assert (after.state, after.held_json, after.shown) == ("submitting", None, True)


@pytest.mark.parametrize(
    ("held", "state", "verdict", "look"),
    [
        (said("succeeded"), "succeeded", "accepted", "no"),
        (said("failed", upstream_id=None), "failed", "accepted", "no"),
        (said("succeeded", upstream_id="up-2"), "queued", "odd", "at once"),
        (said("failed", "bare-code"), "queued", "odd", "at once"),
        (said("running"), "running", "progress", "no"),
    ],
)
def test_what_was_kept_is_decided_when_the_answer_is_in(held: Observation, state: str, verdict: str, look: str) -> None:
    """Taken: from now on the recorded id says whether the word is odd."""
    judged = judge_kept(a_task("queued"), msgspec.json.encode(held).decode(), "odd", NOW)
    assert (judged.task.state, judged.verdict, judged.look) == (state, verdict, look)


@pytest.mark.parametrize(
    ("held", "state", "upstream_id", "look"),
    [
        (None, "ambiguous", None, "no"),
        (said("succeeded"), "queued", "up-1", "at once"),
        (said("running"), "running", "up-1", "at once"),
        (said("failed", "bare-code"), "queued", "up-1", "at once"),
        (said("succeeded", upstream_id=None), "succeeded", None, "no"),
        (said("failed", "bare-code", upstream_id=None), "failed", None, "no"),
    ],
)
def test_what_was_kept_decides_where_no_answer_comes(
    held: Observation | None, state: str, upstream_id: str | None, look: str
) -> None:
    """Ambiguous: an id is adopted and looked up first; a body without one is believed, odd or not."""
    task = a_task("ambiguous", held_json=None if held is None else msgspec.json.encode(held).decode())
    judged = judge_held(task, later(1))
    assert (judged.task.state, judged.task.upstream_id, judged.look) == (state, upstream_id, look)
    assert judged.task.held_json is None
    assert judged.moved == (state != "ambiguous")


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("names", [None, "up-1"])
def test_a_task_the_upstream_speaks_of_is_not_sent_again(seen: Seen, names: str | None) -> None:
    """It was put back as surely not taken; one callback, and it is never `pending` again: it could be paid twice."""
    after = judge(a_task("pending", deferred=True), said(seen, upstream_id=names), "callback", "odd", NOW).task
    assert after.state not in {"pending", "submitting"}
    assert after.submit_due_at is None


def test_an_ambiguous_task_adopts_what_a_callback_names() -> None:
    """It is born by it, as queued or running, and looked up before any terminal word is believed."""
    for seen, state in (("queued", "queued"), ("running", "running"), ("succeeded", "queued"), ("unknown", "queued")):
        judged = judge(a_task("ambiguous"), said(cast("Seen", seen)), "callback", "never", later(5))
        assert (judged.task.state, judged.task.upstream_id, judged.look) == (state, "up-1", "at once"), seen
        assert (judged.moved, judged.task.submitted_at, judged.task.shown) == (True, later(5), True), seen


def test_an_ambiguous_task_without_an_id_waits_on() -> None:
    """Progress that names nobody proves that it lives, and no more."""
    judged = judge(a_task("ambiguous"), said("running", upstream_id=None), "callback", "odd", NOW)
    assert (judged.task.state, judged.task.shown, judged.look) == ("ambiguous", True, "no")


def test_a_lost_task_without_an_id_adopts_and_stays_lost() -> None:
    """The truth may replace `lost`; a name alone is not the truth."""
    task = a_task("lost", upstream_id=None)
    judged = judge(task, said("succeeded"), "callback", "odd", NOW)
    assert (judged.task.state, judged.task.upstream_id, judged.look, judged.moved) == ("lost", "up-1", "at once", False)
    ended = judge(task, said("succeeded", upstream_id=None), "callback", "odd", NOW).task
    assert (ended.state, ended.recovered) == ("succeeded", True)


# -- our own words -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", sorted(lifecycle.OPEN))
def test_our_own_ends_leave_nothing_scheduled(state: str) -> None:
    """Lost, rejected, cancelled: nothing is due any more, nothing is held, and the code is no success."""
    task = a_task(state, poll_leased_until=later(5), held_json='{"seen":"running"}' if state == "ambiguous" else None)
    for ended in (
        lose(task, "why", later(9)),
        reject(msgspec.structs.replace(task, held_json=None), "why", 200, later(9)),
        end_by_hand(task, later(9)),
    ):
        assert ended.state in lifecycle.TERMINAL
        assert (ended.code, ended.finished_at, ended.held_json) == (500, later(9), None)
        due = (ended.submit_due_at, ended.submit_leased_until, ended.poll_due_at, ended.poll_leased_until)
        assert due == (None,) * 4


def test_a_rejection_keeps_the_upstreams_number() -> None:
    """Its own non-200 number where it gave one."""
    assert reject(a_task("submitting"), "no", 40013, NOW).code == 40013


# -- when lookups are due ----------------------------------------------------------------------------------------------


@given(count=st.integers(0, 10**9), draw=st.floats(0, 1, exclude_max=True))
def test_waits_grow_to_a_bound(count: int, draw: float) -> None:
    """Never below the interval, never past the bound with its jitter, whatever the count."""
    polling = Polling()
    wait = polling.wait(count, draw)
    assert polling.interval <= wait <= polling.max_interval * (1 + polling.jitter)
    assert polling.wait(count + 1, draw) >= wait


def test_the_first_lookup_leaves_room_for_a_callback() -> None:
    """After the grace where one may come, after the interval where none can."""
    polling = Polling()
    assert polling.first(a_task(), NOW, 0.0) == NOW + polling.callback_grace
    assert polling.first(a_task(callback_expires_at=None), NOW, 0.0) == NOW + polling.interval
    assert polling.first(a_task(), NOW, 0.5) == NOW + polling.callback_grace * 1.1
    assert Polling(jitter=0.0).wait(0, 0.9) == timedelta(seconds=5)


def test_a_judgement_says_nothing_by_itself() -> None:
    """Its defaults ask for nothing: no lookup, no event."""
    judged = Judgement(a_task(), "progress", "")
    assert (judged.look, judged.moved, judged.progressed) == ("no", False, False)
