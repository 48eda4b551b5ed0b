"""Which destinations an event goes to, and in words why it does not go to the others. Pure: no I/O.

What `events` says:
* nothing: the terminal types, and no other;
* a full name: that type, an operator event as well;
* `task.*`: every type that tells of a task's way. Operator events go only to those who name them, so `task.ambiguous`
  (which has other data) is not among these;
* `destination.*`, `delivery.*`: the operator events of that family, since nothing else can be meant;
* `*`: the same as `task.*`.

What `match` says: all conditions must hold. A condition is a dotted path into the event's data and the values allowed
there. A list on the way or at its end holds if one of its elements does (`metadata.tags`); a list inside a list is not
looked into. Values compare with their type: `1` is not `"1"` and not `true`, but `1` is `1.0`. A path that leads
nowhere does not match.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from receiver.records import Event

TERMINAL_EVENTS: Final[frozenset[str]] = frozenset(
    {"task.succeeded", "task.failed", "task.cancelled", "task.lost", "task.rejected"}
)
"""What a destination gets that asks for nothing in particular."""
OPTIONAL_EVENTS: Final[frozenset[str]] = frozenset({"task.queued", "task.running", "task.progress"})
"""Only for those who ask; where nobody does they are not even recorded."""
OPERATOR_EVENTS: Final[frozenset[str]] = frozenset(
    {"task.ambiguous", "destination.failing", "destination.paused", "destination.recovered", "delivery.dead"}
)
"""About this program's own work; only for those who name them."""
EVENT_TYPES: Final[frozenset[str]] = TERMINAL_EVENTS | OPTIONAL_EVENTS | OPERATOR_EVENTS
"""Every type there is (contract section 5)."""

_TASK_EVENTS: Final = TERMINAL_EVENTS | OPTIONAL_EVENTS
_PATTERNS: Final[dict[str, frozenset[str]]] = {
    "*": _TASK_EVENTS,
    "task.*": _TASK_EVENTS,
    "destination.*": frozenset({"destination.failing", "destination.paused", "destination.recovered"}),
    "delivery.*": frozenset({"delivery.dead"}),
    **{name: frozenset({name}) for name in EVENT_TYPES},
}
_SHOWN: Final = 60
"""Characters of a value that a reason repeats."""

OWN_CALLBACK: Final = "@callback"
"""The name of the destination that is a task's own callback_url (contract 4.2)."""

Condition = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Rule:
    """What one destination wants.

    Attributes:
        name: the destination's.
        events: patterns, see the module; None for the terminal types.
        routes: upstream routes; None for all.
        match: pairs of a dotted path into the event's data and the values allowed there; all must hold.
    """

    name: str
    events: tuple[str, ...] | None = None
    routes: tuple[str, ...] | None = None
    match: tuple[Condition, ...] = ()


class Match(msgspec.Struct, frozen=True):
    """Whether one destination gets the event, and why (not)."""

    destination: str
    chosen: bool
    reason: str


def types_of(pattern: str) -> frozenset[str]:
    """The event types a pattern stands for; none for a word that is no pattern here, which config refuses."""
    return _PATTERNS.get(pattern, frozenset())


def wanted(event_type: str, rules: Iterable[Rule]) -> bool:
    """Whether any destination asks for this type; if none does, an optional event need not be recorded."""
    return any(event_type in _types(rule.events) for rule in rules)


def match(event: Event, rules: Sequence[Rule], *, route: str | None, only: frozenset[str] | None = None) -> list[Match]:
    """Each rule's verdict on an event, in the order of the rules.

    Args:
        event: its data is parsed once, and only if a rule that is still in question looks into it.
        rules: one for each destination.
        route: the upstream route of the event's task; None for an event about no task, which no `routes` keeps out.
        only: the destinations the submitter chose for this task; None for all.
    """
    data = _Data(event.data_json)
    found = []
    for rule in rules:
        reason = _objection(event.type, rule, route, only) or _mismatch(rule, data)
        found.append(Match(rule.name, reason is None, reason or "it matches"))
    return found


def _objection(event_type: str, rule: Rule, route: str | None, only: frozenset[str] | None) -> str | None:
    """Why not, as far as can be said without looking into the data."""
    if only is not None and rule.name not in only:
        return "the task was submitted for other destinations"
    if event_type not in _types(rule.events):
        asked = "the terminal events" if rule.events is None else ", ".join(rule.events)
        return f"events: it asks for {asked}, this is {event_type}"
    if rule.routes is not None and route is not None and route not in rule.routes:
        return f"routes: it takes {', '.join(rule.routes)}, the task is on {route}"
    return None


def _mismatch(rule: Rule, data: _Data) -> str | None:
    for path, allowed in rule.match:
        values = list(_values(data.parsed(), path.split(".")))
        if not values:
            return f"match: the event has no {path}"
        if not any(_equal(value, one) for value in values for one in allowed):
            return f"match: {path} is {_show(values)}, it wants {_show(allowed)}"
    return None


@lru_cache(maxsize=1024)
def _types(events: tuple[str, ...] | None) -> frozenset[str]:
    return TERMINAL_EVENTS if events is None else frozenset[str]().union(*map(types_of, events))


class _Data:
    """An event's data, parsed when it is first asked for."""

    def __init__(self, text: str) -> None:
        self._text: str | None = text
        self._parsed: Any = None

    def parsed(self) -> Any:
        if self._text is not None:
            text, self._text = self._text, None
            # Not by msgspec, which refuses the half of a surrogate pair that a text cut by others ends in.
            with suppress(ValueError, RecursionError):  # nested too deep to be read again: nothing is found in it
                self._parsed = json.loads(text)
        return self._parsed


def _values(node: Any, path: list[str]) -> Iterator[Any]:
    """What stands at the end of a path. It goes as deep as the path has parts, however deep the data is."""
    for element in node if isinstance(node, list) else (node,):
        if not path:
            yield element
        elif isinstance(element, dict) and path[0] in element:
            yield from _values(element[path[0]], path[1:])


def _equal(value: Any, allowed: Any) -> bool:
    if isinstance(value, bool) or isinstance(allowed, bool):
        return value is allowed
    if isinstance(value, (int, float)) and isinstance(allowed, (int, float)):
        return value == allowed
    return type(value) is type(allowed) and bool(value == allowed)


def _show(values: Iterable[Any]) -> str:
    text = " or ".join([msgspec.json.encode(value).decode() for value in values])
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
