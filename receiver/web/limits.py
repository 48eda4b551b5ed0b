"""How many requests a caller may make: `server.rate_per_key`, and how many wrong keys an address may try.

Counted in this process, by a window (pace.py). Memory is bounded: there are as many keys as are configured, and of
addresses no more are kept than `ADDRESSES`, the longest unseen going first.

An address that has sent too many wrong keys is not heard with any key for a while, right or wrong: were the right one
let through, it could be guessed at full speed all the same. But a key that was good from that address before stays
good: else anybody behind the same proxy could lock out all others.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta
from math import ceil
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

from receiver.errors import ReceiverError
from receiver.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

K = TypeVar("K")
V = TypeVar("V")

WRONG_KEYS: Final = (60, timedelta(minutes=1))
"""Wrong keys of one address in any minute: more than a client with an old key needs to be told so, or a scanner of the
API's own document; one a second is no use to who guesses."""
ADDRESSES: Final = 1024
"""Addresses whose requests or wrong keys are counted, and pairs of address and key that were good."""


class RateLimited(ReceiverError):
    """Too many requests; `retry_after` is in whole seconds."""

    http_status: ClassVar[int] = 429
    code: ClassVar[str] = "rate-limited"

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


@dataclass
class Limits:
    """The counts. `rate` is so many requests in so long, for each key; None for as many as there are."""

    rate: tuple[float, timedelta] | None
    clock: Callable[[], datetime]
    _spent: OrderedDict[int | str, Pace] = field(default_factory=OrderedDict)
    _wrong: OrderedDict[str, Pace] = field(default_factory=OrderedDict)
    _known: OrderedDict[tuple[str, int], None] = field(default_factory=OrderedDict)

    def spend(self, who: int | str) -> None:
        """One request of a key (its place in the configuration), or of an address, where no key is configured.

        Raises:
            RateLimited: it has had all it may have for now.
        """
        if self.rate is None:
            return
        pace, now = self._spent.get(who) or Pace.of(*self.rate), self.clock()
        wait = pace.next_at(now) - now
        if wait > timedelta(0):
            raise RateLimited("there were as many requests as server.rate_per_key allows", _seconds(wait))
        _keep(self._spent, who, pace.spend(now))

    def check_address(self, address: str, key: int | None) -> None:
        """A request with a key came from there; `key` is its place, None for a wrong one.

        Raises:
            RateLimited: too many wrong ones came from there, and this one is not known from there.
        """
        if key is not None and (address, key) in self._known:
            return
        now = self.clock()
        pace = self._wrong.get(address)
        if pace is not None and (wait := pace.next_at(now) - now) > timedelta(0):
            raise RateLimited("too many wrong API keys came from this address", _seconds(wait))
        if key is not None:
            _keep(self._known, (address, key), None)
            return
        _keep(self._wrong, address, (pace or Pace.of(*WRONG_KEYS)).spend(now))


def _keep(table: OrderedDict[K, V], key: K, value: V) -> None:
    """Put it last; the one that was put there longest ago goes where there are too many."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > ADDRESSES:
        table.popitem(last=False)


def _seconds(wait: timedelta) -> int:
    return max(1, ceil(wait.total_seconds()))
