"""lines: every key of a file is found on the line where it begins."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from receiver.config.lines import Lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from receiver.config.lines import Path


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Everything there is in a document."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in members:
        yield (*path, name)
        yield from _paths(member, (*path, name))


def test_lines_are_found_through_strings_comments_and_brackets() -> None:
    """What looks like a key or a header inside a string or a list is none."""
    text = '''\
# [a]
"quoted.key".b = 1
a.b.c = """
[no]
x = 1
"""
list = [ # ]
  "]", ']',
]
[[destinations]]
name = "x"  # [y]
[destinations.match]
"metadata.team" = """one"""
[[destinations]]
late = \'\'\'
[[destinations]]\'\'\'
last = 1
'''
    lines = Lines(text)
    found = {
        ("quoted.key", "b"): 2,
        ("a", "b", "c"): 3,
        ("list",): 7,
        ("list", 0): 8,
        ("list", 1): 8,
        ("destinations", 0): 10,
        ("destinations", 0, "name"): 11,
        ("destinations", 0, "match", "metadata.team"): 13,
        ("destinations", 1): 14,
        ("destinations", 1, "late"): 15,
        ("destinations", 1, "last"): 17,
        ("destinations", 1, "missing"): 14,
    }
    assert {path: lines.of(path) for path in found} == found


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ('d = [\n { name = "a" },\n { name = "b", match = { x = [1,\n 2] }, url = "u" },\n]', ("d", 1, "url"), 4),
        (
            'd = [\n { name = "a" },\n { name = "b", match = { x = [1,\n 2] }, url = "u" },\n]',
            ("d", 1, "match", "x", 1),
            4,
        ),
        ('a = """one \\""" [b]\n[c]\n"""\nb = 1', ("b",), 4),
        ('a = """two""""\nb = 1', ("b",), 2),
        ("a = '''two'''''\nb = 1", ("b",), 2),
        ("a = [\n  # ] \n  1979-05-27 07:32:00Z, # ,\n  07:32:00,\n]\nb = 1", ("a", 1), 4),
        ("a = [\n  # ] \n  1979-05-27 07:32:00Z, # ,\n  07:32:00,\n]\nb = 1", ("b",), 6),
        ('"a\\u0062"."c.d" = 1\n  e  .  f\t=\t{ }', ("ab", "c.d"), 1),
        ('"a\\u0062"."c.d" = 1\n  e  .  f\t=\t{ }', ("e", "f"), 2),
        ("# \u2028 \u0085\na = 1", ("a",), 2),
        ("\n[[x]]\n[[x.y]]\n[[x.y]]\nz = 1\n[[x]]\n[x.y]\nz = 2", ("x", 0, "y", 1, "z"), 5),
        ("\n[[x]]\n[[x.y]]\n[[x.y]]\nz = 1\n[[x]]\n[x.y]\nz = 2", ("x", 1, "y", "z"), 8),
        ("\n[a.b]\n[a]\nc = 1", ("a", "d"), 2),
        ("", ("a",), 1),
    ],
)
def test_a_key_is_found_on_its_line(text: str, path: Path, line: int) -> None:
    """In lists and tables over many lines, after strings that end oddly, and by the name that TOML reads."""
    tomllib.loads(text)
    assert Lines(text).of(path) == line


_NAMES = st.text(max_size=6)
_SCALARS = (
    st.text(max_size=15) | st.integers() | st.booleans() | st.floats(allow_nan=False) | st.datetimes() | st.times()
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(_NAMES, _VALUES, max_size=4), st.booleans())
def test_every_key_of_every_file_has_a_line(document: dict[str, Any], long: bool) -> None:
    """Its own, not that of something around it, however the file is written; and in a file pushed down, one lower."""
    text = tomli_w.dumps(document, multiline_strings=long).replace("\r\n", "\n")
    lines, lower = Lines(text), Lines(f"# one more line\n{text}")
    for path in _paths(tomllib.loads(text)):
        assert path in lines._lines
        assert 1 <= lines.of(path) <= text.count("\n") + 1
        assert lower.of(path) == lines.of(path) + 1, path
