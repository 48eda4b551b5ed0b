"""A rate is a window that is a value: it holds in every span, whoever takes from it, and it stays small."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.pace import AHEAD, PARTS, Haste, Pace, Rate

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MS = timedelta(milliseconds=1)


def most_in_a_span(starts: list[datetime], per: timedelta) -> int:
    """The most that began in any span of that length."""
    return max((sum(1 for other in starts if at <= other < at + per) for at in starts), default=0)


@given(
    st.integers(1, 12),
    st.sampled_from([timedelta(milliseconds=20), SECOND, timedelta(minutes=1), timedelta(hours=1)]),
    st.lists(st.tuples(st.floats(0, 1.5), st.integers(1, 20), st.floats(0, 0.5), st.floats(0, 1)), max_size=60),
)
def test_a_rate_holds_in_every_span(count: int, per: timedelta, takers: list[tuple[float, int, float, float]]) -> None:
    """However many ask, and whenever what they were granted begins, up to the time they named."""
    pace, now, starts = Pace.of(count, per), NOW, []
    for wait, wanted, allowed, late in takers:
        now += per * wait
        granted = min(wanted, pace.free(now))
        assert (pace.next_at(now) == now) == (pace.free(now) > 0)
        if granted:
            pace = Pace.of(count, per, pace.spend(now, granted, by=now + per * allowed).starts)
            starts += [now + per * allowed * late] * granted
    assert most_in_a_span(starts, per) <= count


@given(st.integers(1, 50), st.sampled_from([SECOND, timedelta(minutes=1)]))
def test_a_window_is_used(count: int, per: timedelta) -> None:
    """Rounding costs less than two parts of a hundred where there is always something to start."""
    pace, now, started = Pace.of(count, per), NOW, 0
    while now < NOW + 20 * per:
        now = pace.next_at(now)
        assert pace.free(now) > 0
        started += pace.free(now)
        pace = pace.spend(now, pace.free(now))
    assert started >= 20 * count * 0.98


def test_what_is_kept_stays_small() -> None:
    """`100000/h` is a row, and asked again and again: it is as small and as quick as any other."""
    pace = Pace.of(100_000, timedelta(hours=1))
    for n in range(20_000):
        pace = pace.spend(NOW + n * 170 * MS, by=NOW + n * 170 * MS + SECOND)
    assert len(pace.runs) <= PARTS + 3
    began = time.thread_time()
    pace.free(NOW + timedelta(hours=1))
    assert time.thread_time() - began < 0.01


def test_a_clock_set_back_does_not_stop_a_rate_nor_double_it() -> None:
    """What began before it was set back did begin: it counts for a span (or ten seconds) more, not for an hour."""
    before = NOW - timedelta(hours=1)
    pace = Pace.of(1, SECOND).spend(NOW)
    assert pace.free(before) == 0
    seen = pace.at(before)
    assert seen.next_at(before) == before + AHEAD + SECOND
    assert seen.at(before + SECOND) == seen
    assert Pace.of(3, SECOND).spend(NOW).spend(NOW + SECOND / 2).at(before).runs == ((seen.runs[0][0], 2),)


def test_a_fraction_of_a_start_is_one_in_a_longer_span() -> None:
    """`0.5/s` is one in two seconds, `2.5/s` two in 0.8."""
    half, more = Pace.of(0.5, SECOND), Pace.of(2.5, SECOND)
    assert NOW + 2 * SECOND <= half.spend(NOW).next_at(NOW) < NOW + 2 * SECOND + 32 * MS
    assert more.spend(NOW).free(NOW) == 1
    assert NOW + 800 * MS <= more.spend(NOW, 2).next_at(NOW) < NOW + 813 * MS


def test_a_changed_rate_keeps_what_was_started() -> None:
    """A smaller one has more than it would have allowed behind it, and waits until enough of that is over."""
    pace = Pace.of(10, SECOND)
    for n in range(10):
        pace = pace.spend(NOW + n * 50 * MS)
    fewer = Pace.of(2, SECOND, pace.starts)
    assert fewer.free(NOW + SECOND) == 0
    at = fewer.next_at(NOW + 500 * MS)
    assert NOW + SECOND + 400 * MS <= at < NOW + SECOND + 420 * MS
    assert fewer.free(at) == 1
    with pytest.raises(msgspec.DecodeError):
        Pace.of(1, SECOND, '{"not": "runs"}')


def test_the_haste_follows_what_was_seen() -> None:
    """Three times the lag of late, a sixteenth of the span at least, ten seconds or a span at most."""
    haste, rate = Haste(), Rate("x", 10, SECOND)
    assert haste.by([rate], NOW) == NOW + 300 * MS
    haste.saw(NOW, NOW + 100 * SECOND)
    assert haste.by([rate], NOW) == NOW + AHEAD
    for _ in range(60):
        haste.saw(NOW, NOW + 2 * MS)
    assert haste.by([rate], NOW) == NOW + SECOND / 16
    hour = Rate("y", 1, timedelta(hours=1))
    assert haste.by([hour], NOW) == NOW + 250 * MS
    assert haste.by([hour, rate], NOW) == NOW + SECOND / 16
