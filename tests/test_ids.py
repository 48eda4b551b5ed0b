"""Ids: sorted by age, safe anywhere, one way to write each."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver import ids

MOMENTS = st.integers(min_value=0, max_value=(1 << 48) - 1)
ENTROPY = st.binary(min_size=16, max_size=16)


@given(MOMENTS, ENTROPY)
def test_an_id_is_26_safe_characters(ms: int, entropy: bytes) -> None:
    """Crockford's base32 in lower case, and nothing else."""
    assert re.fullmatch(r"[0-9a-hjkmnp-tv-z]{26}", ids.write(ms, entropy))


@given(st.tuples(MOMENTS, ENTROPY), st.tuples(MOMENTS, ENTROPY))
def test_ids_sort_as_their_time(one: tuple[int, bytes], other: tuple[int, bytes]) -> None:
    """Text order is order of age."""
    assert one[0] == other[0] or (ids.write(*one) < ids.write(*other)) == (one[0] < other[0])


@given(ENTROPY, ENTROPY)
def test_every_digit_tells_five_bits_of_its_byte(one: bytes, other: bytes) -> None:
    """Eighty bits: ids of one moment are the same only where these are."""
    alike = [a % 32 == b % 32 for a, b in zip(one, other, strict=True)]
    assert [a == b for a, b in zip(ids.write(1, one)[10:], ids.write(1, other)[10:], strict=True)] == alike


def test_the_layout_is_that_of_a_ulid() -> None:
    """The moment that the reference implementation's tests encode as 01ARYZ6S41."""
    assert ids.write(1469918176385, b"\0" * 16) == "01aryz6s41" + "0" * 16


def test_each_kind_has_its_prefix() -> None:
    """An id says what it is the id of."""
    entropy = bytes(range(16))
    tail = ids.write(1, entropy)
    assert ids.task_id(1, entropy) == f"tsk_{tail}"
    assert ids.event_id(1, entropy) == f"evt_{tail}"
    assert ids.delivery_id(1, entropy) == f"dlv_{tail}"
    assert ids.attempt_id(1, entropy) == f"att_{tail}"


@pytest.mark.parametrize(
    ("ms", "entropy", "words"),
    [
        (0, b"", "not 0"),
        (0, b"x" * 17, "not 17"),
        (-1, b"x" * 16, "48 bits .* not -1"),
        (1 << 48, b"x" * 16, "48 bits .* not 281474976710656"),
    ],
)
def test_what_does_not_fit_is_refused(ms: int, entropy: bytes, words: str) -> None:
    """Too much or too little of either is a ValueError that says so, never another id."""
    with pytest.raises(ValueError, match=words):
        ids.write(ms, entropy)
