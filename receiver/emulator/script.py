"""The words an emulator is scripted with: as options, as chances, and inside a prompt. Parsing is strict and pure.

One vocabulary serves three places: the fields of `EmulatorOptions` (always), its `chances` (sometimes), and a directive
in a task's prompt (this task). An unknown word or value is a `ValueError` that names it. The table of words stands in
the package's docstring.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from receiver.emulator.vocabulary import NEWEST, OUTCOMES, WORDS, Outcome, field_of, read, seconds, whole, word_of

_DIRECTIVE: Final = re.compile(r"\[emulator:([^\[\]]*)\]")
_OPENING: Final = "[emulator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How one task behaves. Times are seconds.

    Attributes:
        outcome: how the render ends.
        reason: the words of a failure or a cancellation.
        render_seconds: from submission to the end.
        callback: what is called back (see `plan`).
        callback_delay: from the end to the callback; for `late`, from the lookup that showed the end.
        callback_shape: the dress of callbacks.
        callback_retries: how often a callback is sent again that was not answered 2xx; an upstream promises none.
        callback_retry_gap: between those.
        submit_shape: the dress of a pro submission's answer.
        submit: a fault instead of it.
        submit_times: how many submissions of the same route and prompt the fault hits; 0 for all.
        submit_delay: before the answer.
        lookup_shape: the dress of both lookups; `newest` is 3c for feed and 4.4b for tasks.
        feed_shape: that of feed alone; "" to follow `lookup_shape`.
        tasks_shape: that of tasks/{id} alone; "" to follow `lookup_shape`.
        lookup: a fault instead of a lookup's answer.
        lookup_times: how many lookups of a task the fault hits; 0 for all.
        lookup_delay: before the answer.
        missing: the first lookups that answer `task_not_exist`.
        missing_seconds: how long after the submission lookups answer so.
        urlless: the first lookups of a success that show no URL.
        hang_seconds: how long a `hang` lasts.
        retry_after: of a status fault: "" for none, "2" for seconds, "date:2" for an HTTP date so far ahead.
    """

    outcome: str = "succeed"
    reason: str = "The render failed: INTERNAL.BAD_OUTPUT.CODE01"
    render_seconds: float = 1.0
    callback: str = "ok"
    callback_delay: float = 0.0
    callback_shape: str = "flat"
    callback_retries: int = 0
    callback_retry_gap: float = 1.0
    submit_shape: str = "2c"
    submit: str = "ok"
    submit_times: int = 0
    submit_delay: float = 0.0
    lookup_shape: str = NEWEST
    feed_shape: str = ""
    tasks_shape: str = ""
    lookup: str = "ok"
    lookup_times: int = 0
    lookup_delay: float = 0.0
    missing: int = 0
    missing_seconds: float = 0.0
    urlless: int = 0
    hang_seconds: float = 60.0
    retry_after: str = ""

    def __post_init__(self) -> None:
        for name in SCRIPT_FIELDS:
            read(name, str(getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorOptions(Script):
    """The emulator's own settings, and the script of every task that says nothing else.

    Attributes:
        seed: of all dice; the same seed and order of requests give the same ids, shapes and faults.
        keys: bearer keys that are let in; none for any.
        chances: word -> probability, e.g. `{"callback=missing": 0.1, "lookup=500": 0.05}`; drawn per submission, those
            of `lookup` per lookup. They beat the options; a directive beats them.
        asset_base: the base of result URLs.
        callback_timeout: of one callback, in seconds.
        callback_concurrency: callbacks under way at once.
    """

    seed: int = 0
    keys: tuple[str, ...] = ()
    chances: Mapping[str, float] = field(default_factory=dict)
    asset_base: str = "https://runwaycdn.example.com"
    callback_timeout: float = 5.0
    callback_concurrency: int = 32

    def __post_init__(self) -> None:
        # Zero-argument super() does not survive slots=True on Python 3.11.
        Script.__post_init__(self)
        for word, chance in self.chances.items():
            parse(word)
            if not 0.0 <= chance <= 1.0:
                raise ValueError(f"chances: {word!r} must have a probability between 0 and 1, not {chance!r}")
        if self.callback_concurrency < 1:
            raise ValueError(f"callback_concurrency: {self.callback_concurrency} is not at least 1")

    def submit_chances(self) -> list[tuple[Overrides, float]]:
        """Those drawn per submission."""
        found = [(parse(word), chance) for word, chance in self.chances.items()]
        return [(overrides, chance) for overrides, chance in found if not _is_of_lookup(overrides)]

    def lookup_chances(self) -> list[tuple[str, float]]:
        """Those drawn per lookup: the fault's word alone."""
        found = [(parse(word), chance) for word, chance in self.chances.items()]
        return [(overrides[0][1], chance) for overrides, chance in found if _is_of_lookup(overrides)]

    def script(self) -> Script:
        """The script of a task that says nothing else."""
        return Script(**{name: getattr(self, name) for name in SCRIPT_FIELDS})


Overrides = tuple[tuple[str, Any], ...]


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Overrides:
    """The words of a directive, without its brackets: `fail; callback=missing; render=0.2`.

    Raises:
        ValueError: names the word or value that is not known.
    """
    found: dict[str, Any] = {}
    for part in text.split(";"):
        word, sign, value = (piece.strip() for piece in part.partition("="))
        if not word:
            if sign:
                raise ValueError(f"{part.strip()!r} has no word before its =")
            continue
        if not sign and word in OUTCOMES:
            word, value = "outcome", word
        elif not sign:
            raise ValueError(f"unknown word {word!r} (known: {', '.join(OUTCOMES)}, {', '.join(WORDS)})")
        name = field_of(word)
        if name in found:
            raise ValueError(f"{word!r} is said twice")
        found[name] = read(name, value)
    return tuple(found.items())


def directive_in(prompt: str) -> Overrides:
    """What a prompt's directive asks for; nothing where it has none.

    Raises:
        ValueError: there are two, it is not closed, or it says what is not known.
    """
    if _OPENING not in prompt:
        return ()
    found = _DIRECTIVE.findall(prompt)
    if len(found) != 1 or prompt.count(_OPENING) != 1:
        raise ValueError("a prompt has one directive, written [emulator: word; word=value]")
    return parse(found[0])


@functools.lru_cache(maxsize=4096)
def merge(base: Script, overrides: Overrides) -> Script:
    """`base` with these words said over it."""
    return dataclasses.replace(base, **dict(overrides)) if overrides else base


def changed(options: EmulatorOptions, changes: Mapping[str, Any]) -> EmulatorOptions:
    """The options with these members of a JSON object put over them.

    Raises:
        ValueError: names the member that is not known or has a bad value.
    """
    found: dict[str, Any] = {}
    for word, value in changes.items():
        if word in {"seed", "callback_concurrency"}:
            found[word] = whole(str(value))
        elif word == "callback_timeout":
            found[word] = seconds(str(value))
        elif word == "asset_base":
            found[word] = str(value)
        elif word == "keys":
            if not isinstance(value, list) or not all(isinstance(key, str) for key in value):
                raise ValueError("keys: a list of strings")
            found[word] = tuple(value)
        elif word == "chances":
            if not isinstance(value, Mapping) or not all(_is_number(chance) for chance in value.values()):
                raise ValueError("chances: an object of word -> probability")
            found[word] = dict(value)
        else:
            name = field_of(word)
            found[name] = read(name, str(value))
    return dataclasses.replace(options, **found)


def directive(**words: object) -> str:
    """A directive for a prompt, checked: `directive(outcome="fail", callback="missing", render=0.2)`.

    Names are the words of the table or the fields of `Script`.

    Raises:
        ValueError: a word or value is not known, or cannot be written in a directive.
    """
    parts = [str(value) if word == "outcome" else f"{word_of(word)}={value}" for word, value in words.items()]
    text = f"[emulator: {'; '.join(parts)}]"
    meant = {field_of(word): read(field_of(word), str(value)) for word, value in words.items()}
    if _DIRECTIVE.fullmatch(text) is None or dict(directive_in(text)) != meant:
        raise ValueError(f"a value of {text!r} cannot be written in a directive")
    return text


SCRIPT_FIELDS: Final = tuple(item.name for item in dataclasses.fields(Script))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_of_lookup(overrides: Overrides) -> bool:
    return [name for name, _ in overrides] == ["lookup"]


def outcome_of(script: Script) -> Outcome:
    """The script's outcome, as the type that its parser has already held it to."""
    return cast("Outcome", script.outcome)
