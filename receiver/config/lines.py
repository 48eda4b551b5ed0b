"""On which line of a TOML file a key stands, so that a mistake can be named `file:line`.

A scanner, not a parser: tomllib has read the file already, so what comes here is well-formed, and only where things
begin is of interest. Every key, every entry of a list and every table gets its line, those of inline tables too; what
is not there (a key that is missing) is placed on the line of the nearest thing around it.
"""

from __future__ import annotations

import re
import tomllib
from typing import Final

Path = tuple[str | int, ...]

_BLANK: Final = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE: Final = re.compile(r"[ \t]*")
# A long string may end in up to two quotes of its own. Not possessive, though nothing here needs to go back: early
# releases of Python 3.11 (Debian's 3.11.2) read possessive groups wrongly.
_LONG: Final = r'"""(?:[^"\\]+|\\.|"{1,2}(?!"))*"{3,5}|' + r"'''(?:[^']+|'{1,2}(?!'))*'{3,5}"
_SHORT: Final = r'"(?:[^"\\]+|\\.)*"|' + r"'[^']*'"
# A string, or what is none: a number, a date (which may hold one space), a truth value.
_SCALAR: Final = re.compile(rf"{_LONG}|{_SHORT}|[^\s,\[\]{{}}#]+(?: [0-9][^\s,\[\]{{}}#]*)?", re.DOTALL)
_PART: Final = re.compile(rf"{_SHORT}|[A-Za-z0-9_-]+")


class Lines:
    """Where keys stand."""

    def __init__(self, text: str) -> None:
        r"""Scan a file's text; its lines end at `\n`, as tomllib and editors count them.

        Raises:
            RecursionError: lists are nested too deep; tomllib, which goes as deep, says so before.
        """
        self._text, self._place = text, 0
        self._line, self._counted = 1, 0
        self._lines: dict[Path, int] = {(): 1}
        self._counts: dict[Path, int] = {}
        table: Path = ()
        self._skip(_BLANK)
        while self._place < len(text):
            if text[self._place] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)

    def of(self, path: Path) -> int:
        """The line of a key, or of the nearest thing around it."""
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]

    def _header(self) -> Path:
        """`[a.b]`, or `[[a.b]]`, which begins another table of a list."""
        is_array = self._text.startswith("[[", self._place)
        line = self._now()
        self._place += 1 + is_array
        parts = self._key()
        self._place += 1 + is_array
        path: Path = ()
        for number, part in enumerate(parts, 1):
            path = (*path, part)
            if path in self._counts and not (is_array and number == len(parts)):
                path = (*path, self._counts[path] - 1)
            self._lines.setdefault(path, line)
        if is_array:
            index = self._counts.get(path, 0)
            self._counts[path] = index + 1
            path = (*path, index)
            self._lines[path] = line
        return path

    def _pair(self, table: Path) -> None:
        """`a.b = …`."""
        line, path = self._now(), table
        for part in self._key():
            path = (*path, part)
            self._lines.setdefault(path, line)
        self._place += 1  # the =
        self._skip(_SPACE)
        self._value(path)

    def _value(self, path: Path) -> None:
        char = self._text[self._place]
        if char not in "[{":
            self._skip(_SCALAR)
            return
        self._place += 1
        self._skip(_BLANK)
        index = 0
        while self._text[self._place] not in "]}":
            if char == "[":
                self._lines[*path, index] = self._now()
                self._value((*path, index))
                index += 1
            else:
                self._pair(path)
            self._skip(_BLANK)
            if self._text[self._place] == ",":
                self._place += 1
                self._skip(_BLANK)
        self._place += 1

    def _key(self) -> list[str]:
        """The parts of a dotted key, unquoted, and what is blank after it."""
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            before = self._place
            self._skip(_PART)
            part = self._text[before : self._place]
            parts.append(tomllib.loads(f"k={part}")["k"] if part[0] in "\"'" else part)
            self._skip(_SPACE)
            if self._text[self._place] != ".":
                return parts
            self._place += 1

    def _skip(self, what: re.Pattern[str]) -> None:
        found = what.match(self._text, self._place)
        self._place = found.end() if found else self._place + 1  # well-formed text always matches; never stand still

    def _now(self) -> int:
        """The line of the place; counted on from the last time, so that a long file costs one pass."""
        self._line += self._text.count("\n", self._counted, self._place)
        self._counted = self._place
        return self._line
