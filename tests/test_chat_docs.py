"""The documents about chats: what they name is there, what is there is named, and their example works."""

from __future__ import annotations

import importlib
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from receiver import app
from receiver.destinations import KINDS
from receiver.destinations.chat import ChatOptions
from receiver.destinations.templates import VARIABLES, check
from tests.kind_room import HOME, answer, canned, event

if TYPE_CHECKING:
    from receiver.retry import Result

DOCS = Path(__file__).parent.parent / "docs"
CHATS = {name: kind for name, kind in KINDS.items() if kind.summary is not None}


def test_the_names_of_templates_are_documented() -> None:
    """All of them, and no other; the example is a template."""
    text = (DOCS / "chat.md").read_text()
    table = re.search(r"\| name \| what it is \|\n\|---\|---\|\n((?:\|.*\n)+)", text)
    assert table is not None
    named = {name for row in table[1].splitlines() for name in re.findall(r"`([a-z_]+)`", row.split("|")[1])}
    assert named == set(VARIABLES)
    example = re.search(r'text = """\n(.*?)"""', text, re.DOTALL)
    assert example is not None
    assert check(example[1])


@pytest.mark.parametrize("kind", sorted(CHATS))
def test_the_limits_of_every_kind_are_documented(kind: str) -> None:
    """As they are."""
    options = KINDS[kind].options
    assert issubclass(options, ChatOptions)
    row = ", ".join(f"{name} {value:,}" for name, value in options.LIMITS.items())
    assert f"| `{kind}` | {row} |" in (DOCS / "chat.md").read_text()


def test_the_example_of_a_new_kind_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file in add-a-destination.md, run as it stands there."""
    block = re.search(r"```python\n(.*?)```", (DOCS / "add-a-destination.md").read_text(), re.DOTALL)
    assert block is not None
    (tmp_path / "pager_of_the_document.py").write_text(block[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    kind: Any = importlib.import_module("pager_of_the_document").KIND
    chosen = kind.options.model_validate({"url": "https://pager.example.com/in/the-secret", "text": "*{{ prompt }}*"})

    def ended(document: Any, status: int = 200) -> Result:
        return canned(kind.flow(event(prompt="2*2"), chosen, now=app.clock(), home=HOME), answer(document, status))[0]

    request = next(kind.flow(event(prompt="2*2"), chosen, now=app.clock(), home=HOME))
    assert b'"text":"*2\\\\*2*"' in request.body
    assert kind.masked(request).url == "https://pager.example.com/***/***"
    assert ended({"done": False, "why": "busy", "wait": 3}).retry_after == timedelta(seconds=3)
    assert ended({"done": False, "why": "no"}).kind == "permanent"
    assert ended({"done": True}).kind == "ok"
    assert ended({}, 404).pause
