"""What is decided after an attempt: a table of every case, and the properties behind it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.errors import EgressError, Stage
from receiver.lifecycle import ResultKind
from receiver.retry import MAX_RETRY_AFTER, Result, decide, from_error, retry_after

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
S, H = timedelta(seconds=1), timedelta(hours=1)
SCHEDULE = (0 * S, 5 * S, 300 * S, 2 * H)

# how it ended, asked to wait, number of the attempt, jitter -> state, wait until the next, words
DECISIONS: list[tuple[ResultKind, timedelta | None, int, float, str, timedelta | None, str]] = [
    ("ok", None, 1, 0.0, "delivered", None, "why"),
    ("ok", None, 4, 0.2, "delivered", None, "why"),
    ("permanent", None, 1, 0.0, "dead", None, "why; it is not tried again"),
    ("permanent", 5 * S, 1, 0.0, "dead", None, "why; it is not tried again"),
    ("transient", None, 1, 0.0, "pending", 5 * S, "why; tried again in 5 s"),
    ("transient", None, 1, 0.2, "pending", 6 * S, "why; tried again in 6 s"),
    ("transient", None, 2, 0.0, "pending", 300 * S, "why; tried again in 5 min"),
    ("transient", None, 3, 0.5, "pending", 3 * H, "why; tried again in 3 h"),
    ("transient", None, 4, 0.0, "dead", None, "why; this was the last of 4 attempts"),
    ("transient", None, 9, 0.0, "dead", None, "why; this was the last of 4 attempts"),
    ("throttled", None, 1, 0.0, "pending", 5 * S, "why; tried again in 5 s"),
    ("throttled", 1 * S, 1, 0.0, "pending", 5 * S, "why; tried again in 5 s"),
    ("throttled", 5 * S, 1, 0.2, "pending", 6 * S, "why; tried again in 6 s"),
    ("throttled", 30 * S, 1, 0.2, "pending", 30 * S, "why; tried again in 30 s, as it asked"),
    ("throttled", 90 * H, 1, 0.0, "pending", 24 * H, "why; tried again in 24 h, as it asked"),
    ("throttled", 90 * H, 4, 0.0, "dead", None, "why; this was the last of 4 attempts"),
]


@pytest.mark.parametrize(("kind", "asked", "attempt", "jitter", "state", "wait", "words"), DECISIONS)
def test_the_table_of_decisions(
    kind: ResultKind,
    asked: timedelta | None,
    attempt: int,
    jitter: float,
    state: str,
    wait: timedelta | None,
    words: str,
) -> None:
    """Each result, at each place in the schedule, with and without a wish of the other side."""
    decision = decide(Result(kind, "why", asked), attempt=attempt, schedule=SCHEDULE, now=NOW, jitter=jitter)
    assert decision.state == state
    assert decision.due_at == (None if wait is None else NOW + wait)
    assert decision.reason == words


def test_the_table_knows_every_kind() -> None:
    """No kind of result is missing from it."""
    assert {row[0] for row in DECISIONS} == set(get_args(ResultKind))


def test_a_schedule_of_one_entry_is_one_attempt() -> None:
    """As many attempts as entries; of one it is not said that it was the last of several."""
    decision = decide(Result("transient", "why"), attempt=1, schedule=[0 * S], now=NOW, jitter=0)
    assert (decision.state, decision.reason) == ("dead", "why; this was the only attempt")


@given(
    st.sampled_from(["transient", "throttled"]),
    st.none() | st.timedeltas(min_value=0 * S, max_value=100 * H),
    st.floats(0, 10),
)
def test_the_next_try_is_never_earlier_than_the_schedule(
    kind: ResultKind, asked: timedelta | None, jitter: float
) -> None:
    """Jitter and wishes only ever add, and a wish never more than to 24 h."""
    due = decide(Result(kind, "why", asked), attempt=2, schedule=SCHEDULE, now=NOW, jitter=jitter).due_at
    assert due is not None
    assert due >= NOW + SCHEDULE[2]
    assert due <= NOW + max(SCHEDULE[2] * (1 + jitter), MAX_RETRY_AFTER)


@pytest.mark.parametrize(
    ("attempt", "jitter", "now"), [(0, 0.0, NOW), (1, -0.1, NOW), (1, 0.0, NOW.replace(tzinfo=None))]
)
def test_a_caller_who_counts_wrongly_is_told(attempt: int, jitter: float, now: datetime) -> None:
    """Attempts count from 1, jitter is added, moments are aware."""
    with pytest.raises(ValueError, match="counts from 1"):
        decide(Result("transient", "why"), attempt=attempt, schedule=SCHEDULE, now=now, jitter=jitter)


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("5 s", None),
        ("\u0665", None),
        ("nan", None),
        ("inf", None),
        ("1e3", None),
        ("0", 0 * S),
        ("30", 30 * S),
        (" 30 ", 30 * S),
        ("1.5", 1.5 * S),
        ("86400", 24 * H),
        ("86401", 24 * H),
        ("9" * 5000, 24 * H),
        ("Sat, 31 Jan 2026 12:00:30 GMT", 30 * S),
        ("Saturday, 31-Jan-26 12:00:30 GMT", 30 * S),
        ("Sat Jan 31 12:00:30 2026", 30 * S),
        ("Sat, 31 Jan 2026 13:00:30 +0100", 30 * S),
        ("Sat, 31 Jan 2026 12:00:30 -0000", 30 * S),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0 * S),
        ("Sat, 31 Jan 2099 12:00:30 GMT", 24 * H),
        ("Sat, 31 Feb 2026 12:00:30 GMT", None),
        ("Sat, 31 Jan 20260 12:00:30 GMT", None),
        ("Sat, 31 Jan 2026 12:00:30 +9999", None),
    ],
)
def test_what_retry_after_asks_for(header: str | None, wait: timedelta | None) -> None:
    """Seconds or a date of any of the three forms of RFC 9110; at most 24 h; garbage asks for nothing."""
    assert retry_after(header, now=NOW) == wait


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,6} [0-9:]{1,9} [+-]?[A-Z0-9]{1,7}"))
def test_no_retry_after_raises(header: str) -> None:
    """Whatever stands there, the answer is a wait from 0 to 24 h, or none; in any zone of ours."""
    wait = retry_after(header, now=NOW.astimezone(timezone(timedelta(hours=8))))
    assert wait is None or timedelta(0) <= wait <= MAX_RETRY_AFTER


@pytest.mark.parametrize("stage", get_args(Stage))
def test_a_failure_on_the_way_is_transient_and_says_where(stage: Stage) -> None:
    """Every stage has its words, and keeps those of the error."""
    result = from_error(EgressError("the error's own words", stage=stage, sent=False))
    assert (result.kind, result.pause, result.retry_after) == ("transient", False, None)
    assert result.reason.endswith(": the error's own words")
    assert len(result.reason) > len(": the error's own words") + 5


def test_each_stage_has_words_of_its_own() -> None:
    """Two stages never read alike."""
    reasons = {from_error(EgressError("", stage=stage, sent=False)).reason for stage in get_args(Stage)}
    assert len(reasons) == len(get_args(Stage))
