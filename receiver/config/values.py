"""Values as people write them in a configuration: durations, sizes, rates. Each reader says what it wants."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

if TYPE_CHECKING:
    from collections.abc import Iterable

_NUMBER: Final = r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*"
_DURATION: Final = re.compile(_NUMBER + "(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = re.compile(_NUMBER + "(B|KiB|MiB|GiB|TiB|kB|KB|MB|GB|TB)")
_BYTES: Final = {
    "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4,
    "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
}  # fmt: skip
_RATE: Final = re.compile(_NUMBER + r"/\s*(s|m|h)")
_LONGEST: Final = timedelta(days=3650)
_LARGEST: Final = 1 << 50


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in so long: `"10/s"`."""

    count: float
    per: timedelta

    def __str__(self) -> str:
        unit = {1: "s", 60: "m", 3600: "h"}[int(self.per.total_seconds())]
        return f"{self.count:.15g}/{unit}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """` (did you mean …?)`, where something known is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def duration(value: Any) -> timedelta:
    """`"500ms" "15s" "5m" "2h" "30d"`, or a number of seconds; zero and up, to the millisecond.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and (found := _DURATION.fullmatch(value.strip())):
        value = float(found[1]) * _SECONDS[found[2]]
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not 0 <= value <= _LONGEST.total_seconds():  # nor NaN, which is in no order
        raise ValueError('a duration such as "500ms", "15s", "2h" or "30d", or a number of seconds, is wanted')
    return timedelta(milliseconds=round(value * 1000))


def positive(value: Any) -> timedelta:
    """A duration above zero: a millisecond or more.

    Raises:
        ValueError: it is none.
    """
    span = duration(value)
    if not span:
        raise ValueError("a duration above zero is wanted here")
    return span


def written(span: timedelta) -> str:
    """A duration as it would be written: in the largest unit that leaves a whole number."""
    ms = round(span.total_seconds() * 1000)
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if ms and ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms" if ms else "0s"


def size(value: Any) -> int:
    """`"48MiB"`, `"2GiB"`, `"500kB"`, or a number of bytes; above zero.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, str) and (found := _SIZE.fullmatch(value.strip())):
        value = round(float(found[1]) * _BYTES[found[2]])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
        raise ValueError('a size such as "48MiB" or "2GiB", or a number of bytes above zero, is wanted')
    return value


def rate(value: Any) -> Rate:
    """`"10/s"`, `"100/m"`, `"1000/h"`.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, Rate):
        return value
    found = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or not float(found[1]):
        raise ValueError('a rate such as "10/s", "100/m" or "1000/h" is wanted')
    return Rate(float(found[1]), timedelta(seconds=_SECONDS[found[2]]))


_WRITTEN = {"type": "string", "pattern": rf"^\s*{_DURATION.pattern}\s*$", "examples": ["500ms", "15s", "2h", "30d"]}
_AS_WRITTEN = PlainSerializer(written, return_type=str)
Span = Annotated[
    timedelta,
    BeforeValidator(positive),
    _AS_WRITTEN,
    WithJsonSchema({"anyOf": [_WRITTEN, {"type": "number", "exclusiveMinimum": 0}]}),
]
SpanOrZero = Annotated[
    timedelta,
    BeforeValidator(duration),
    _AS_WRITTEN,
    WithJsonSchema({"anyOf": [_WRITTEN, {"type": "number", "minimum": 0}]}),
]
Size = Annotated[
    int,
    BeforeValidator(size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": rf"^\s*{_SIZE.pattern}\s*$", "examples": ["48MiB", "2GiB"]},
                {"type": "integer", "minimum": 1},
            ]
        }
    ),
]
RateText = Annotated[
    Rate,
    BeforeValidator(rate),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": rf"^\s*{_RATE.pattern}\s*$", "examples": ["10/s", "100/m"]}),
]
