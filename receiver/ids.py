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

ENTROPY_BYTES = 10
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LOW_HALF = (1 << 40) - 1
_BITS = [_ALPHABET[high] + _ALPHABET[low] for high in range(32) for low in range(32)]


def write(ms: int, entropy: bytes) -> str:
    """The 26 characters for a moment (Unix milliseconds) and ten random bytes.

    Raises:
        ValueError: `entropy` is not ten bytes, or `ms` does not fit 48 bits.
    """
    if len(entropy) != ENTROPY_BYTES or not 0 <= ms < 1 << 48:
        raise ValueError("an id is made of 48 bits of time and ten random bytes")
    number = int.from_bytes(entropy, "big")
    # Written out, in two halves of 40 bits: 0.6 us; a loop over the whole takes 1.1, and a callback makes three.
    high, low = number >> 40, number & _LOW_HALF
    return (
        f"{_moment(ms)}{_BITS[high >> 30]}{_BITS[high >> 20 & 1023]}{_BITS[high >> 10 & 1023]}{_BITS[high & 1023]}"
        f"{_BITS[low >> 30]}{_BITS[low >> 20 & 1023]}{_BITS[low >> 10 & 1023]}{_BITS[low & 1023]}"
    )


@lru_cache(maxsize=8)
def _moment(ms: int) -> str:
    """The first ten characters; many ids are made in one millisecond."""
    return "".join([_BITS[(ms >> shift) & 1023] for shift in (40, 30, 20, 10, 0)])


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
