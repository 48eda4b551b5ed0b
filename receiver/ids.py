"""The ids of things: how one is written. Time and entropy come in as arguments.

An id is a prefix and 26 characters: 48 bits of time in milliseconds, then 80 random bits, in Crockford's base32, lower
case (the layout of a ULID). Ids of one kind sort by age, come from no sequence, and are safe in a URL and a header.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NewType

TaskId = NewType("TaskId", str)
EventId = NewType("EventId", str)
DeliveryId = NewType("DeliveryId", str)
AttemptId = NewType("AttemptId", str)
ReplayId = NewType("ReplayId", str)

ENTROPY_BYTES = 16
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_DIGITS = (_ALPHABET * 8).encode()


def write(ms: int, entropy: bytes) -> str:
    """The 26 characters for a moment (Unix milliseconds) and sixteen random bytes, five bits of each.

    Raises:
        ValueError: `entropy` is not sixteen bytes, or `ms` does not fit 48 bits.
    """
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"an id is made of sixteen random bytes, not {len(entropy)}")
    # A byte for each digit: ten bytes, whose bits are put together and taken apart, cost three times as much.
    return _moment(ms) + entropy.translate(_DIGITS).decode()


@lru_cache(maxsize=8)
def _moment(ms: int) -> str:
    """The first ten characters; many ids are made in one millisecond."""
    if not 0 <= ms < 1 << 48:
        raise ValueError(f"an id's time is 48 bits of milliseconds, not {ms}")
    return "".join([_ALPHABET[(ms >> shift) & 31] for shift in range(45, -1, -5)])


def task_id(ms: int, entropy: bytes) -> TaskId:
    """A new `tsk_…`."""
    return TaskId("tsk_" + write(ms, entropy))


def event_id(ms: int, entropy: bytes) -> EventId:
    """A new `evt_…`, which is also the `webhook-id`."""
    return EventId("evt_" + write(ms, entropy))


def delivery_id(ms: int, entropy: bytes) -> DeliveryId:
    """A new `dlv_…`."""
    return DeliveryId("dlv_" + write(ms, entropy))


def attempt_id(ms: int, entropy: bytes) -> AttemptId:
    """A new `att_…`."""
    return AttemptId("att_" + write(ms, entropy))


def replay_id(ms: int, entropy: bytes) -> ReplayId:
    """A new `rpl_…`."""
    return ReplayId("rpl_" + write(ms, entropy))
