"""What a platform's Markdown makes of a text: links under other words, pictures, and what is left to read."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
_PICTURE = re.compile(r"!\[([^\[\]]*)\]\(([^()\s]*)\)")
_LINK = re.compile(r"\[([^\[\]]*)\]\(([^()]*)\)")
_POINTED = re.compile(r"<([a-zA-Z][a-zA-Z0-9+.-]*:[^<>\s]*)>")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_PRIVATE = 0xF0000
"""Escaped characters are put out of the patterns' reach for a while."""


@dataclass(frozen=True)
class Read:
    """A text as it is shown."""

    text: str
    links: tuple[str, ...]
    pictures: tuple[str, ...]
    tags: tuple[str, ...]


def read(text: str, *, escapes: bool = True) -> Read:
    """Read Markdown as the platforms do: with `escapes`, a backslash takes a sign's power away."""
    hidden = _ESCAPED.sub(lambda match: chr(_PRIVATE + ord(match[1])), text) if escapes else text
    pictures = tuple(match[2] for match in _PICTURE.finditer(hidden))
    hidden = _PICTURE.sub("", hidden)
    links = tuple(match[2].split()[0] if match[2].split() else "" for match in _LINK.finditer(hidden))
    hidden = _LINK.sub(lambda match: match[1], hidden)
    links += tuple(match[1] for match in _POINTED.finditer(hidden))
    hidden = _POINTED.sub(lambda match: match[1], hidden)
    tags = tuple(match[0] for match in _TAG.finditer(hidden))
    return Read(_shown(hidden), tuple(map(_shown, links)), tuple(map(_shown, pictures)), tags)


def _shown(hidden: str) -> str:
    return "".join(chr(ord(c) - _PRIVATE) if _PRIVATE <= ord(c) < _PRIVATE + 128 else c for c in hidden)
