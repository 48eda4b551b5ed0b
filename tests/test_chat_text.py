"""Text for a chat: what `clean` takes out, and where `cut` cuts, judged by the `regex` library's own characters."""

from __future__ import annotations

import re
import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from receiver.destinations import text
from receiver.destinations.text import MARKDOWN_ATOMS, PLAIN, PLAIN_UTF8, Markup, clean, cut, pieces

CHARACTERS = st.sampled_from(
    ["a", "é", "e\u0301", "👩‍👩‍👧‍👦", "👍🏽", "🇨🇳", "❤️", "1️⃣", "नि", "กำ", "각",
     "\u1100\u1161\u11a8", "漢", "😀", " ", "\n"]
)  # fmt: skip
UNITS = st.sampled_from([text.code_points, text.utf16_units, text.utf8_bytes])


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("a\x00b\x1b[31mc\x7f\x9b", "ab[31mc"),
        ("a\r\nb\rc\x0bd\u2028e\x85f\x1ez", "a\nb\nc\nd\ne\nf\nz"),
        ("a\n \n\n\t\nb", "a\n\nb"),
        ("  a\tb \n", "a b"),
        ("\u202eevil\u202c \u2066x\u2069\u200f\u061c", "evil x"),
        ("\u200b\ufeff\xadx\u2060y", "xy"),
        ("a\ud800b", "a\ufffdb"),
        ("🏴\U000e0067\U000e0062\U000e007f", "🏴"),
        ("Z" + "\u0300" * 100 + "e\u0301", "Z" + "\u0300" * 8 + "e\u0301"),
        ("👩‍👩‍👧‍👦 שלום नि", "👩‍👩‍👧‍👦 שלום नि"),
        ("\u2029" * 50, ""),
    ],
)
def test_what_a_screen_would_obey_is_taken_out(given: str, cleaned: str) -> None:
    """Controls, direction, what is invisible, halves of pairs, towers; scripts and emoji stay whole."""
    assert clean(given) == cleaned


@given(st.text())
def test_clean_text_stays_clean(given: str) -> None:
    """Nothing but line feeds is left of the controls, and there is nothing more to take out."""
    once = clean(given)
    assert {char for char in once if unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"}} <= {"\n"}
    assert clean(once) == once


def test_only_so_much_is_looked_at() -> None:
    """A text may be of any length."""
    assert len(clean("a" * 10_000_000)) == text.MOST


@given(st.lists(CHARACTERS, max_size=40).map("".join), st.integers(0, 60), UNITS)
def test_a_cut_keeps_whole_characters_and_the_limit(whole: str, most: int, size: text.Size) -> None:
    """As much as fits, with an ellipsis; in code points, units of UTF-16 and bytes alike."""
    short = cut(whole, most, Markup(size=size))
    assert size(short) <= most
    if size(whole) <= most:
        assert short == whole
        return
    if most < size("…"):
        assert short == ""
        return
    kept = short.removesuffix("…")
    assert short == f"{kept}…"
    boundaries = {0, *(match.end() for match in regex.finditer(r"\X", whole))}
    assert whole.startswith(kept)
    assert len(kept) in boundaries
    following = next(place for place in sorted(boundaries) if place > len(kept))
    more = whole[:following]
    assert size(f"{more}…") > most or more.strip() != more or not more.strip()


@given(st.lists(CHARACTERS, max_size=40).map("".join))
def test_pieces_are_characters(whole: str) -> None:
    """As Unicode has them."""
    assert list(pieces(whole)) == regex.findall(r"\X", whole)


def test_a_joined_row_without_end_is_cut_all_the_same() -> None:
    """Forty code points are kept together at most."""
    chain = "\u200d".join(["👩"] * 500)
    assert max(map(len, pieces(chain))) == 40
    assert 0 < len(cut(chain, 100)) <= 100
    assert cut("🇨🇳" * 300, 11) == "🇨🇳" * 5 + "…"
    assert cut("\u0301" * 5, 3) == "…"


ESCAPED = Markup(escape=text.backslashed("*_"), size=text.utf8_bytes, atoms=MARKDOWN_ATOMS)


@given(st.lists(st.sampled_from(["*", "_", "a", "漢", "[a](https://x/y)", "<b>"]), max_size=30), st.integers(3, 80))
def test_no_escape_and_no_link_is_cut_apart(words: list[str], most: int) -> None:
    """Each is there as a whole or not at all."""
    whole = "".join(ESCAPED.escape(word) if len(word) == 1 else word for word in words)
    short = cut(whole, most, ESCAPED)
    assert len(short.encode()) <= most
    rest = re.sub(r"\\[*_]|\[a\]\(https://x/y\)|<b>|a|漢|…", "", short)
    assert rest == ""


def test_what_a_cut_left_open_is_closed() -> None:
    """By the platform's own word for it."""
    tags = Markup(atoms=re.compile("<[^>]*>"), closing=lambda begun: "</b>" if begun.count("<b>") else "")
    assert cut("<b>abcdef</b>", 8, tags) == "<b>abcd…</b>"
    assert cut("abcdefghij", 8, tags) == "abcdefg…"


def test_sizes() -> None:
    """Of one text in three units."""
    given = "aé漢😀"
    assert (text.code_points(given), text.utf16_units(given), text.utf8_bytes(given)) == (4, 5, 10)
    assert (PLAIN.size(given), PLAIN_UTF8.size(given)) == (4, 10)
    assert text.one_line(" a \n b\tc ") == "a b c"
