"""A time in a document: the same text as the standard library's, to the millisecond, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from receiver.ingest import stamp

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@given(st.integers(min_value=-(10**12), max_value=250 * 10**12))
def test_a_stamp_is_iso_8601_to_the_millisecond(ms: int) -> None:
    """Whatever the second, before 1970 too, the text that is kept for it is its own."""
    at = EPOCH + timedelta(milliseconds=ms)
    assert stamp(at) == at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_no_time_has_no_stamp() -> None:
    """None stays None."""
    assert stamp(None) is None
