"""The emulator's words: read strictly, written so that they are read back, and all of them in the table."""

from __future__ import annotations

from typing import Any

import pytest

from receiver.emulator import EmulatorOptions, directive
from receiver.emulator import __doc__ as table
from receiver.emulator.script import directive_in
from receiver.emulator.vocabulary import CALLBACK_KINDS, CALLBACK_SHAPES, LOOKUP_SHAPES, OUTCOMES, PLANS, WORDS


@pytest.mark.parametrize("text", ["[emulator: fail", "[emulator: fail] [emulator: fail]", "[emulator fail]"])
def test_a_broken_directive_is_no_silent_prompt(text: str) -> None:
    """An unclosed, doubled or misspelt directive is a mistake, not prose."""
    with pytest.raises(ValueError, match="one directive"):
        directive_in(text)


def test_directive_writes_what_directive_in_reads() -> None:
    """Words and fields are both understood, and what is written is read back as it was meant."""
    text = directive(outcome="fail", callback="missing", render=0.2, hang_seconds=3, submit="reset-after")
    assert text == "[emulator: fail; callback=missing; render=0.2; hang=3; submit=reset-after]"
    assert dict(directive_in(f"a cat {text} in the rain")) == {
        "outcome": "fail", "callback": "missing", "render_seconds": 0.2, "hang_seconds": 3.0, "submit": "reset-after",
    }  # fmt: skip


@pytest.mark.parametrize("words", [{"reason": "a; fail"}, {"reason": "a]b"}, {"callback": "lost"}, {"colour": "red"}])
def test_directive_refuses_what_could_not_be_read_back(words: dict[str, Any]) -> None:
    """A value that would end the directive, or a word that is not known, is an error where it is written."""
    with pytest.raises(ValueError, match=r"."):
        directive(**words)


@pytest.mark.parametrize(
    "words", [{"render_seconds": -1}, {"outcome": ""}, {"callback_concurrency": 0}, {"chances": {"fail": -0.1}}]
)
def test_options_are_checked_at_birth(words: dict[str, Any]) -> None:
    """An option that makes no sense is a ValueError at once."""
    with pytest.raises(ValueError, match=r"."):
        EmulatorOptions(**words)


def test_every_word_stands_in_the_table() -> None:
    """The package's docstring names every word, shape, kind and plan there is."""
    for word in (*OUTCOMES, *WORDS, *CALLBACK_KINDS, *CALLBACK_SHAPES, *LOOKUP_SHAPES, *PLANS):
        assert word in str(table), word
