"""The words themselves: which there are, what each may say, and how one is read. Pure tables and small parsers."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Outcome = Literal["succeed", "fail", "cancel", "never"]
OUTCOMES: Final = ("succeed", "fail", "cancel", "never")
SUBMIT_SHAPES: Final = ("2a", "2b", "2c")
FEED_SHAPES: Final = ("3a", "3b", "3c", "id-only")
TASKS_SHAPES: Final = ("4.4a", "4.4b", "blog")
LOOKUP_SHAPES: Final = (*FEED_SHAPES, *TASKS_SHAPES, "3b-historic", "3b-new")
CALLBACK_SHAPES: Final = (
    "flat", "enveloped", "generic", "3b", "3c", "4.4b", "form", "bom", "text", "gzip", "integers", "kie",
)  # fmt: skip
CALLBACK_KINDS: Final = (
    "ok", "queued", "progress", "early", "late", "tampered-id", "tampered-token", "malformed", "disagreeing", "no-url",
    "no-id", "opposite", "probe", "appended",
)  # fmt: skip
PLANS: Final[Mapping[str, tuple[str, ...]]] = {
    "missing": (),
    "doubled": ("ok", "ok"),
    "reordered": ("ok", "progress"),
}
CHOICES: Final = ("random", "cycle")
NEWEST: Final = "newest"

_SUBMIT_FAULTS: Final = ("ok", "code", "unreadable", "empty", "scalar", "no-id", "hang", "reset", "cut")
_LOOKUP_FAULTS: Final = ("ok", "unreadable", "empty", "scalar", "null", "disagreeing", "hang", "reset", "cut")
_STATUS_FAULT: Final = re.compile(r"([345]\d\d)(?:-(e1|e2|e4|empty|html|invalid))?")


class Fault(NamedTuple):
    """What is done instead of a proper answer.

    Attributes:
        word: as it was written.
        kind: `ok`, `status`, or one of the special words without `-after`.
        status: for `status` the HTTP status, else 0.
        body: for `status` the error shape.
        after: the task is created all the same.
    """

    word: str
    kind: str
    status: int = 0
    body: str = ""
    after: bool = False


@functools.lru_cache(maxsize=256)
def fault(word: str) -> Fault:
    """Read a fault word, for a submission or a lookup.

    Raises:
        ValueError: it is no such word.
    """
    base, after = (word.removesuffix("-after"), True) if word.endswith("-after") else (word, False)
    found = _STATUS_FAULT.fullmatch(base)
    if found is not None:
        status = int(found[1])
        redirect = status < 400  # noqa: PLR2004 -- 3xx and wrong paths answer HTML (V6)
        return Fault(word, "status", status, found[2] or ("html" if redirect else "e1"), after)
    if base in _SUBMIT_FAULTS or base in _LOOKUP_FAULTS:
        return Fault(word, base, after=after)
    raise ValueError(f"{word!r} is no fault (known: {_known_faults((*_SUBMIT_FAULTS, *_LOOKUP_FAULTS))})")


@functools.lru_cache(maxsize=256)
def plan(text: str) -> tuple[str, ...]:
    """The callbacks a `callback=` word asks for, in order: kinds and the names of plans, joined by `+`.

    Raises:
        ValueError: a part is no such word.
    """
    steps: list[str] = []
    for part in text.split("+"):
        word = part.strip()
        if word in PLANS:
            steps += PLANS[word]
        elif word in CALLBACK_KINDS:
            steps.append(word)
        else:
            raise ValueError(f"{word!r} is no callback (known: {', '.join((*PLANS, *CALLBACK_KINDS))})")
    return tuple(steps)


def _one_of(*known: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in known:
            raise ValueError(f"{value!r} is not one of {', '.join(known)}")
        return value

    return read


def seconds(value: str) -> float:
    """A number of seconds, not negative.

    Raises:
        ValueError: it is none.
    """
    if re.fullmatch(r"\d{1,9}(\.\d+)?(e-\d{1,2})?", value) is None:
        raise ValueError(f"{value!r} is no number of seconds")
    return float(value)


def whole(value: str) -> int:
    """A whole number, not negative.

    Raises:
        ValueError: it is none.
    """
    if re.fullmatch(r"\d{1,18}", value) is None:
        raise ValueError(f"{value!r} is no whole number")
    return int(value)


def _text(value: str) -> str:
    if not value:
        raise ValueError("'' says nothing")
    return value


def _callback(value: str) -> str:
    plan(value)
    return value


def _known_faults(special: tuple[str, ...]) -> str:
    return ", ".join(dict.fromkeys(special)) + ", a status such as 429, 500-e2, 503-html, 429-empty, 500-invalid"


def _fault(*special: str, after: bool) -> Callable[[str], str]:
    def read(value: str) -> str:
        found = fault(value)
        is_known = found.kind == "status" or found.kind in special
        if not is_known or (found.after and (not after or found.kind == "ok")):
            raise ValueError(f"{value!r} is no fault here (known: {_known_faults(special)})")
        return value

    return read


def _retry_after(value: str) -> str:
    whole(value.removeprefix("date:"))
    return value


WORDS: Final[Mapping[str, Callable[[str], Any]]] = {
    "outcome": _one_of(*OUTCOMES),
    "reason": _text,
    "render": seconds,
    "callback": _callback,
    "callback_delay": seconds,
    "callback_shape": _one_of(*CALLBACK_SHAPES, *CHOICES),
    "callback_retries": whole,
    "callback_retry_gap": seconds,
    "submit_shape": _one_of(*SUBMIT_SHAPES, *CHOICES),
    "submit": _fault(*_SUBMIT_FAULTS, after=True),
    "submit_times": whole,
    "submit_delay": seconds,
    "lookup_shape": _one_of(*LOOKUP_SHAPES, *CHOICES, NEWEST),
    "feed_shape": _one_of(*LOOKUP_SHAPES, *CHOICES, NEWEST),
    "tasks_shape": _one_of(*LOOKUP_SHAPES, *CHOICES, NEWEST),
    "lookup": _fault(*_LOOKUP_FAULTS, after=False),
    "lookup_times": whole,
    "lookup_delay": seconds,
    "missing": whole,
    "missing_for": seconds,
    "urlless": whole,
    "hang": seconds,
    "retry_after": _retry_after,
}
_FIELDS: Final = {"render": "render_seconds", "missing_for": "missing_seconds", "hang": "hang_seconds"}
OPTIONAL: Final = frozenset({"feed_shape", "tasks_shape", "retry_after"})
"""Fields that may be empty."""
_BY_FIELD: Final = {name: word for word, name in _FIELDS.items()}


def field_of(word: str) -> str:
    """The field of `Script` that a word sets; a field's own name is taken too.

    Raises:
        ValueError: there is no such word.
    """
    if word in WORDS:
        return _FIELDS.get(word, word)
    if word in _BY_FIELD:
        return word
    raise ValueError(f"unknown word {word!r} (known: {', '.join(OUTCOMES)}, {', '.join(WORDS)})")


def word_of(name: str) -> str:
    """The word that sets a field."""
    return _BY_FIELD.get(name, name)


def read(name: str, value: str) -> Any:
    """The value of a field, from its text.

    Raises:
        ValueError: names the word and the bad value.
    """
    if value == "" and name in OPTIONAL:
        return ""
    word = word_of(name)
    try:
        return WORDS[word](value)
    except ValueError as error:
        raise ValueError(f"{word}: {error}") from None
