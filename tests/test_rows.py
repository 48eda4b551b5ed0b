"""Rows become records: the times in them are the very times that were stored."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from receiver.records import Refusal
from receiver.store import schema
from receiver.store.dialect import SQLite
from receiver.store.rows import Rows, from_ms

ROWS: Rows[Any] = Rows(Refusal, schema.refusals, SQLite.core)


@given(st.integers(min_value=0, max_value=250 * 10**12))
@example(2**33 * 1000 - 1)
@example(2**33 * 1000)
@example(0)
def test_a_time_is_read_as_it_was_written(ms: int) -> None:
    """To the millisecond, in whatever century: what a double of seconds cannot hold goes another way."""
    (refusal,) = ROWS.decode([["ref_1", ms, "forged", "POST", 5]])
    assert refusal.at == from_ms(ms)
    ((_, written, *_),) = ROWS.insert(refusal).encode([refusal])
    assert written == ms
