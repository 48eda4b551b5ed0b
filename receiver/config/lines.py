"""On which line of a TOML file a key stands, so that a mistake can be named `file:line`.

A small scanner, not a parser: tomllib has read the file already, so what comes here is well-formed. What it cannot
place (a key of an inline table) it places on the line of the nearest key around it.
"""

from __future__ import annotations

import re
from typing import Final

Path = tuple[str | int, ...]

_PART: Final = r'(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|\'[^\']*\')'
_HEADER: Final = re.compile(rf"\s*(\[\[?)\s*({_PART}(?:\s*\.\s*{_PART})*)\s*\]\]?")
_KEY: Final = re.compile(rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=(.*)", re.DOTALL)
_TOKEN: Final = re.compile(r'"""|\'\'\'|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#.*|[\[\]{}]')


class Lines:
    """Where keys stand."""

    def __init__(self, text: str) -> None:
        """Scan a file's text."""
        self._lines: dict[Path, int] = {(): 1}
        self._counts: dict[Path, int] = {}
        table: Path = ()
        depth, quote = 0, ""
        for number, line in enumerate(text.splitlines(), 1):
            rest = line
            if not depth and not quote:
                if header := _HEADER.match(line):
                    table = self._table(_parts(header[2]), is_array=header[1] == "[[")
                    self._lines.setdefault(table, number)
                    continue
                if key := _KEY.match(line):
                    path = table
                    for part in _parts(key[1]):
                        path = (*path, part)
                        self._lines.setdefault(path, number)
                    rest = key[2]
            depth, quote = _after(rest, depth, quote)

    def of(self, path: Path) -> int:
        """The line of a key, or of the nearest thing around it."""
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]

    def _table(self, parts: list[str], *, is_array: bool) -> Path:
        path: Path = ()
        for part in parts:
            path = (*path, part)
            if path in self._counts and not (is_array and path == tuple(parts)):
                path = (*path, self._counts[path] - 1)
        if is_array:
            index = self._counts.get(path, 0)
            self._counts[path] = index + 1
            path = (*path, index)
        return path


def _parts(dotted: str) -> list[str]:
    return [part[1:-1] if part[0] in "\"'" else part for part in re.findall(_PART, dotted)]


def _after(text: str, depth: int, quote: str) -> tuple[int, str]:
    """Brackets and long strings still open after a line."""
    place = 0
    while place < len(text):
        if quote:
            end = text.find(quote, place)
            if end < 0:
                return depth, quote
            place, quote = end + 3, ""
            continue
        token = _TOKEN.search(text, place)
        if token is None:
            break
        place = token.end()
        if token[0] in {'"""', "'''"}:
            quote = token[0]
        elif token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth = max(0, depth - 1)
    return depth, quote
