"""values: durations, sizes and rates read as people write them, or are refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.config import values


@given(st.integers(0, 3650 * 86_400_000))
def test_a_duration_reads_as_it_is_written(ms: int) -> None:
    """To the millisecond, whatever unit it is written in."""
    span = timedelta(milliseconds=ms)
    assert values.duration(values.written(span)) == span


@given(st.integers(1, 4096), st.sampled_from(["B", "KiB", "MiB", "GiB"]))
def test_a_size_is_what_it_says(count: int, unit: str) -> None:
    """Powers of 1024."""
    assert values.size(f"{count}{unit}") == count * 1024 ** ["B", "KiB", "MiB", "GiB"].index(unit)


@given(st.integers(1, 10_000), st.sampled_from("smh"))
def test_a_rate_reads_as_it_is_written(count: int, unit: str) -> None:
    """`"10/s"`."""
    assert values.rate(f"{count}/{unit}").count == count
    assert values.rate(str(values.rate(f"{count}/{unit}"))) == values.rate(f"{count}/{unit}")


def test_what_was_read_stays_as_it_is() -> None:
    """A value that is one already is not read again."""
    span, rate = timedelta(seconds=1.5), values.rate("10/s")
    assert values.duration(span) is span
    assert values.rate(rate) is rate
    assert str(values.rate("1234567/h")) == "1234567/h"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("500ms", timedelta(milliseconds=500)),
        (" 1.5 h ", timedelta(minutes=90)),
        ("30d", timedelta(days=30)),
        (2.5, timedelta(seconds=2.5)),
        (0, timedelta(0)),
        (0.0004, timedelta(0)),
    ],
)
def test_a_duration_is_text_with_a_unit_or_seconds(text: str | float, read: timedelta) -> None:
    """To the millisecond; above zero only where `positive` is asked."""
    assert values.duration(text) == read
    if not read:
        with pytest.raises(ValueError, match="above zero"):
            values.positive(text)


@pytest.mark.parametrize("text", ["30", "", "s", "-1s", "1 month", "1e3s", "٣s", "11y", "9999d", "1s 2s", "1,5s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """A unit is never guessed."""
    with pytest.raises(ValueError, match="a duration such as"):
        values.duration(text)


@given(
    st.integers() | st.text(max_size=12) | st.floats() | st.booleans() | st.none() | st.lists(st.integers(), max_size=1)
)
def test_a_value_is_read_or_refused(value: Any) -> None:
    """Nothing but ValueError escapes, and nothing negative or endless gets in."""
    for read in (values.duration, values.positive, values.size, values.rate):
        try:
            found = read(value)
        except ValueError:
            continue
        assert not isinstance(value, bool | None | list)
        assert found is not None
