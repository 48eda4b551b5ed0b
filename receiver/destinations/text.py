"""Foreign text made fit for a chat: nothing in it obeys, and a cut never goes through a character or an escape. Pure.

A prompt is whatever somebody typed. `clean` takes out what a screen would obey (control characters, bidirectional
overrides, invisible ones); a kind's `Markup` escapes what its platform would; `cut` shortens in its own unit.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

ELLIPSIS: Final = "…"
MOST: Final = 32_768
"""Characters of one text that are looked at; no platform takes as many (Mattermost's 16,383 are the most)."""
_MARKS: Final = 8
"""Combining marks on one character; scripts need four, and towers of them bury the lines around."""
_CLUSTER: Final = 40
"""Code points that are kept together at most, however they are joined."""
_ZWNJ, _ZWJ = "\u200c", "\u200d"

_BREAK: Final = re.compile(r"\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Controls; the soft hyphen and other invisible ones; bidirectional marks, embeddings, overrides and isolates; invisible
# operators; annotations; tags. Not the joiners, which scripts and emoji need.
_GONE: Final = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001d173-\U0001d17a\U000e0000-\U000e00ff]"
)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_GAP: Final = re.compile(r"[^\S\n]*\n(?:[^\S\n]*\n)+")


@lru_cache(maxsize=64)
def clean(text: str) -> str:
    """`text` without what a screen would obey; at most two line feeds in a row; towers of marks are capped."""
    text = _BREAK.sub("\n", text[:MOST]).replace("\t", " ")
    text = _GAP.sub("\n\n", _SURROGATE.sub("\ufffd", _GONE.sub("", text)))
    marks = "".join(char for char in set(text) if _is_mark(char))
    if marks:
        text = re.sub(f"([{marks}]{{{_MARKS}}})[{marks}]+", r"\1", text)
    return text.strip()


def one_line(text: str) -> str:
    """Every run of blank as one space."""
    return " ".join(text.split())


def code_points(text: str) -> int:
    """The length most platforms count."""
    return len(text)


def utf16_units(text: str) -> int:
    """The length as JavaScript and Telegram count it: 2 for what is outside the Basic Multilingual Plane."""
    return len(text.encode("utf-16-le", "replace")) // 2


def utf8_bytes(text: str) -> int:
    """The length in bytes."""
    return len(text.encode("utf-8", "replace"))


Size = Callable[[str], int]


def _nothing(_text: str) -> str:
    return ""


def _as_it_is(text: str) -> str:
    return text


@dataclass(frozen=True)
class Markup:
    """How one platform reads text.

    Attributes:
        escape: a clean value as text that means nothing but itself.
        url: a checked URL as it stands in a template.
        size: the length of finished text in the platform's unit; the parts' sizes add up to the whole's.
        atoms: what of finished text must not be cut apart: an escape, a tag, a link.
        closing: what closes that which a cut left open (tags); its size is not counted.
    """

    escape: Callable[[str], str] = _as_it_is
    url: Callable[[str], str] = _as_it_is
    size: Size = code_points
    atoms: re.Pattern[str] | None = None
    closing: Callable[[str], str] = _nothing


def backslashed(signs: str) -> Callable[[str], str]:
    """An escape as Markdown has it (CommonMark 2.4): a backslash takes the power of each of these signs away."""
    table = {ord(sign): f"\\{sign}" for sign in signs}
    return lambda text: text.translate(table)


MARKDOWN_ATOMS: Final = re.compile(r"\\.|!?\[[^\[\]\n]*\]\([^()\s]*\)|<[^<>\s]+>", re.DOTALL)
"""An escape, a link or picture, and what stands between < and >."""
PLAIN: Final = Markup()
"""Text that nothing is read into."""
PLAIN_UTF8: Final = Markup(size=utf8_bytes)


def cut(text: str, most: int, markup: Markup = PLAIN) -> str:
    """`text`, or as much of its beginning as fits into `most` with an ellipsis at its end."""
    if markup.size(text) <= most:
        return text
    room = most - markup.size(ELLIPSIS)
    if room < 0:
        return ""
    end = 0 if markup.atoms else _start_before(text, _fitting(text, room, markup.size))
    room -= markup.size(text[:end])
    following = pieces(text[end:], markup.atoms)
    while (room := room - markup.size(piece := next(following))) >= 0:  # it ends: not all of them fit
        end += len(piece)
    begun = text[:end].rstrip()
    return f"{begun}{ELLIPSIS}{markup.closing(begun)}"


def _fitting(text: str, room: int, size: Size) -> int:
    """How many characters fit, whatever they belong to."""
    fits, too_many = 0, min(len(text), room) + 1  # none is smaller than a unit
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if size(text[:middle]) <= room else (fits, middle)
    return fits


def _start_before(text: str, place: int) -> int:
    """The last place before, where a character surely begins; of a row of flags that is where the row does."""
    start = place - 1
    while start > 0 and (_is_flag_letter(text[start]) or _joins(text, 0, start)):
        start -= 1
    return max(0, start)


def pieces(text: str, atoms: re.Pattern[str] | None = None) -> Iterator[str]:
    """What a reader takes for one character each, and each atom as one."""
    place = 0
    while place < len(text):
        atom = atoms.match(text, place) if atoms else None
        end = atom.end() if atom and atom.end() > place else _cluster_end(text, place)
        yield text[place:end]
        place = end


def _cluster_end(text: str, place: int) -> int:
    """Where the character that begins at `place` ends (Unicode UAX 29, but for rules that only rare scripts need)."""
    end = place + 1
    while end < len(text) and end - place < _CLUSTER and _joins(text, place, end):
        end += 1
    return end


def _joins(text: str, place: int, at: int) -> bool:
    before, char = text[at - 1], text[at]
    if char < "\u0300":
        return False
    if char in {_ZWJ, _ZWNJ} or before == _ZWJ or _is_mark(char) or char in "\u0e33\u0eb3":
        return True
    if "\U0001f3fb" <= char <= "\U0001f3ff":  # a skin tone
        return True
    if _is_flag_letter(char):
        return at - place == 1 and _is_flag_letter(before)
    if "\u1100" <= char < "\u1160":  # the beginning of a Korean syllable
        return "\u1100" <= before < "\u1160"
    return "\u1160" <= char <= "\u11ff" and ("\u1100" <= before <= "\u11ff" or "\uac00" <= before <= "\ud7a3")


def _is_mark(char: str) -> bool:
    return unicodedata.category(char)[0] == "M"


def _is_flag_letter(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"
