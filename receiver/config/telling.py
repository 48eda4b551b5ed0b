"""How a mistake is told: `file:line: key: reason (did you mean …?)`, by its place, in words, and without a secret.

What is told names the bad value, but never that of a secret, nor what a reference to the environment stood for; of a
URL only the scheme and the host. A mistake from which others merely follow is told alone.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import date, time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from receiver.config.models import SECRET_KEYS, SECTIONS
from receiver.config.values import suggestion
from receiver.destinations import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic_core import ErrorDetails

    from receiver.config.lines import Lines
    from receiver.config.lines import Path as KeyPath

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN: Final = 60
"""Characters of a value that a mistake repeats."""


@dataclass
class Raw:
    """The tree of raw values, where each part came from, and the mistakes found so far.

    Attributes:
        tree: as TOML has it: tables, lists, values.
        places: where a key came from, if not from the file.
        written: strings with references in them, as they were written.
        spoiled: keys without a value that could be judged.
        folder: the config file's; the current one without a file.
        file: its name as it was given.
    """

    tree: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    written: dict[KeyPath, str] = field(default_factory=dict)
    spoiled: set[KeyPath] = field(default_factory=set)
    folder: Path = field(default_factory=Path)
    file: str = ""
    lines: Lines | None = None
    _told: list[tuple[int, str]] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """The mistakes: those outside the file, then the file's by line."""
        return [text for _, text in sorted(dict.fromkeys(self._told))]

    def place(self, path: KeyPath) -> str:
        """Where a key was set: `config.toml:12`, or a variable's name."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return f"{self.file}:{self.lines.of(path)}" if self.lines else "configuration"

    def note(self, text: str, line: int = 0) -> None:
        """Note a mistake in finished words, without anything a terminal would obey."""
        harmless = [char if char.isprintable() else char.encode("unicode_escape").decode() for char in text]
        self._told.append((line, "".join(harmless)))

    def complain(self, path: KeyPath, reason: str) -> None:
        """Note a mistake at a key, unless `spoil` noted one there already, or at an entry of the list there."""
        if any(path[: len(one)] == one or (isinstance(one[-1], int) and one[:-1] == path) for one in self.spoiled):
            return
        place = self.place(path)
        for end in range(len(path), 0, -1):
            if self.places.get(path[:end], "").startswith("environment "):
                self.note(f"environment: {dotted((place.removeprefix('environment '), *path[end:]))}: {reason}")
                return
        line = re.search(r":(\d+)$", place)
        self.note(f"{place}: {dotted(path)}: {reason}", int(line[1]) if line else 0)

    def spoil(self, path: KeyPath, reason: str) -> None:
        """Note a mistake that leaves no value to judge: whatever else is found there would follow from it."""
        self.complain(path, reason)
        self.spoiled.add(path)


def dotted(path: KeyPath) -> str:
    """A key as people write it: `destinations[1].match."metadata.team"`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            word = part if _BARE.fullmatch(part) else json.dumps(part, ensure_ascii=False)
            text += f".{word}" if text else word
    return text


_WANTED: Final = {
    "int_type": "a whole number is wanted",
    "float_type": "a number is wanted",
    "finite_number": "a number is wanted",
    "string_type": "text in quotes is wanted",
    "bool_type": "true or false is wanted",
    "tuple_type": "a list is wanted",
    "dict_type": "a table is wanted",
    "greater_than_equal": "{ge:g} or more is wanted",
    "less_than_equal": "{le:g} or less is wanted",
    "too_short": "at least one is wanted",
    "string_too_short": "it is empty",
    "string_pattern_mismatch": "small letters, digits and - are wanted, 64 at most",  # the only one is that of `name`
    "missing": "it is missing",
    "literal_error": "{expected} is wanted",
}
_OWN_WORDS: Final = frozenset({"title", "text"})
"""Templates: what is wrong is a word of them, which is named, and not the whole."""


def told(raw: Raw, error: ErrorDetails, path: KeyPath, known: Iterable[str]) -> str:
    """What pydantic found at `path`, in our words; `known` are the keys that can stand beside it."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return f"there is no such key{_meant(str(path[-1]), known)}"
    ours = _WANTED.get(kind)
    words = ours.format_map(context) if ours else error["msg"].removeprefix("Value error, ")
    shown = None if kind == "missing" else _shown(raw, error["input"], path)
    if shown is not None and shown not in words and (ours or path[-1] not in _OWN_WORDS):
        words += f", not {shown}"
    near = suggestion(str(error["input"]), re.findall(r"'(.*?)'", words)) if kind == "literal_error" else ""
    return words + near


def home(key: str) -> str:
    """` (did you mean server.port?)` for a key that stands in the wrong table."""
    homes = [f"{section}.{key}" for section, model in SECTIONS.items() if key in model.model_fields]
    return f" (did you mean {homes[0]}?)" if homes else ""


def _meant(key: str, known: Iterable[str]) -> str:
    return home(key) or suggestion(key, known)


def _shown(raw: Raw, value: Any, path: KeyPath) -> str | None:
    """A value as it was written; None for what is no single value, or nobody else's business."""
    secret = {name.rpartition(".")[2] for name in SECRET_KEYS} | {"headers", *secrets_at(raw, path)}
    if not secret.isdisjoint(str(part) for part in path):
        return None
    if path in raw.written:
        value = raw.written[path]
    if isinstance(value, str):
        is_url = "url" in str(path[-1]) or path[-1] == "public_base"
        text = _url_shown(value) if is_url else value
        return json.dumps(_cut(text), ensure_ascii=False)
    if isinstance(value, bool | int | float):
        return _cut(json.dumps(value))
    return value.isoformat() if isinstance(value, date | time) else None


def secrets_at(raw: Raw, path: KeyPath) -> frozenset[str]:
    """The keys of a destination that are secrets of its kind; all kinds' but `url`, where the kind is none."""
    if path[0] != "destinations" or len(path) < 2:  # noqa: PLR2004 -- the list and the number
        return frozenset()
    table = raw.tree["destinations"][path[1]]
    kind = KINDS.get(str(table.get("kind"))) if isinstance(table, dict) else None
    if kind is None:
        return frozenset(key for one in KINDS.values() for key in one.secrets if key != "url")
    return frozenset(kind.secrets)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _url_shown(text: str) -> str:
    """Scheme and host: a password may stand before it, and a key anywhere after it."""
    scheme, colon, rest = text.partition("://") if "://" in text else ("", "", text)
    if scheme == "sqlite" and "@" not in rest:
        return text
    after = rest.rpartition("@")[2]
    host = re.split(r"[/?#\\]", after, maxsplit=1)[0]
    # What follows a colon and is no port may be a password that lost its host.
    named = re.findall(r"^(?:\[[^\]]*\]|[^:]*)(?::[0-9]{1,5}$)?", host)[0]
    scheme = scheme if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]{0,19}|", scheme) else "…"
    return f"{scheme}{colon}{named}{'' if host == after else '/…'}"
