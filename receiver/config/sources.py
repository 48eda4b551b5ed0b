"""From file and environment to one tree of raw values, each with the place it came from. No value is judged here.

Order, later wins: the defaults, the file, `RECEIVER_<SECTION>__<KEY>`. A key may be given as `<key>_file`: the name of
a file that holds the secret. `${NAME}` and `${NAME:-default}` inside strings come from the environment; `$${` is a plain
`${`.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from receiver.config.lines import Lines
from receiver.config.models import DESTINATION_SECRET_KEYS, SECRET_KEYS, SECTIONS
from receiver.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from receiver.config.lines import Path as KeyPath

PREFIX: Final = "RECEIVER_"
OTHER_NAMES: Final = frozenset({"RECEIVER_CONFIG", "RECEIVER_URL", "RECEIVER_API_KEY"})
"""Variables with our prefix that are no keys of the configuration."""
_REFERENCE: Final = re.compile(r"\$(\$)?\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


@dataclass
class Raw:
    """The tree, where each part came from, and the mistakes found so far."""

    tree: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    folder: Path = field(default_factory=Path)
    file: str = ""
    lines: Lines | None = None

    def place(self, path: KeyPath) -> str:
        """Where a key was set: `config.toml:12`, or a variable's name."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return f"{self.file}:{self.lines.of(path)}" if self.lines else "configuration"

    def complain(self, path: KeyPath, reason: str) -> None:
        """Note a mistake at a key."""
        name = dotted(path)
        self.problems.append(f"{self.place(path)}: {name}: {reason}" if name else f"{self.place(path)}: {reason}")


def dotted(path: KeyPath) -> str:
    """A key as people write it: `destinations[1].url`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def suggestion(word: str, known: list[str]) -> str:
    """` (did you mean …?)`, where something known is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def gather(path: Path | None, environ: Mapping[str, str]) -> Raw:
    """All raw values.

    Raises:
        ConfigError: the file cannot be read, or is no TOML: nothing more can be said.
    """
    raw = Raw()
    if path is not None:
        _read_file(raw, path)
    _read_environment(raw, environ)
    raw.tree = _interpolated(raw, raw.tree, (), environ)
    _read_secret_files(raw)
    return raw


def _read_file(raw: Raw, path: Path) -> None:
    raw.file, raw.folder = str(path), path.resolve().parent
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: it is not UTF-8: {error.reason} at byte {error.start}"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: it cannot be read: {error.strerror}"]) from None
    try:
        raw.tree = tomllib.loads(text.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        raise ConfigError([f"{path}:{found[1] if found else 1}: it is not TOML: {error}"]) from None
    raw.lines = Lines(text)


def _read_environment(raw: Raw, environ: Mapping[str, str]) -> None:
    known = {f"{PREFIX}{section}__{key}".upper(): (section, key) for section, key in _keys()}
    known[f"{PREFIX}DESTINATIONS"] = ("destinations", "")
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in OTHER_NAMES:
            continue
        if name not in known:
            if "__" in name:
                raw.problems.append(f"environment: {name}: no such key{suggestion(name, list(known))}")
            continue
        section, key = known[name]
        path: KeyPath = (section, key) if key else (section,)
        raw.places[path] = f"environment {name}"
        value = _typed(section, key, environ[name])
        if key:
            table = raw.tree.setdefault(section, {})
            if isinstance(table, dict):
                table.pop(f"{key}_file", None)
                table.pop(key.removesuffix("_file"), None)
                table[key] = value
        else:
            raw.tree[section] = value


def _keys() -> list[tuple[str, str]]:
    keys = [(section, key) for section, model in SECTIONS.items() for key in model.model_fields]
    secret = [name.split(".") for name in SECRET_KEYS]
    return keys + [(section, f"{key}_file") for section, key in secret]


def _typed(section: str, key: str, text: str) -> Any:
    """A variable's text as the type its key wants; what does not read as that stays text, and is refused by name."""
    if key:
        annotation = str(SECTIONS[section].model_fields[key].annotation) if not key.endswith("_file") else "str"
        if (
            "tuple" not in annotation
            and "int" not in annotation
            and "bool" not in annotation
            and "float" not in annotation
        ):
            return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _interpolated(raw: Raw, value: Any, path: KeyPath, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        found = {key: _interpolated(raw, member, (*path, key), environ) for key, member in value.items()}
        return {key: member for key, member in found.items() if member is not _NOTHING}
    if isinstance(value, list):
        return [_interpolated(raw, member, (*path, number), environ) for number, member in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    if path == ("upstream", "api_key") and value == "${COMETAPI_KEY}" and not environ.get("COMETAPI_KEY"):
        return _NOTHING  # contract 3: then $COMETAPI_API_KEY is asked

    def replace(found: re.Match[str]) -> str:
        if found[1]:
            return found[0][1:]
        set_to = environ.get(found[2], found[3])
        if set_to is None:
            raw.complain(path, f"the environment variable {found[2]} is not set")
            return ""
        return set_to

    before = len(raw.problems)
    text = _REFERENCE.sub(replace, value)
    return _NOTHING if len(raw.problems) > before else text


_NOTHING: Final = object()


def _read_secret_files(raw: Raw) -> None:
    for name, is_list in SECRET_KEYS.items():
        section, key = name.split(".")
        _read_secret_file(raw, raw.tree.get(section), (section,), key, is_list=is_list)
    destinations = raw.tree.get("destinations")
    for number, table in enumerate(destinations if isinstance(destinations, list) else []):
        for key, is_list in DESTINATION_SECRET_KEYS.items():
            _read_secret_file(raw, table, ("destinations", number), key, is_list=is_list)


def _read_secret_file(raw: Raw, table: Any, around: KeyPath, key: str, *, is_list: bool) -> None:
    if not isinstance(table, dict) or f"{key}_file" not in table:
        return
    path = (*around, f"{key}_file")
    given = table.pop(f"{key}_file")
    if key in table:
        raw.complain(path, f"{key} is given too; one of them is enough")
        return
    if not isinstance(given, str):
        raw.complain(path, "the name of a file is wanted")
        return
    try:
        text = (raw.folder / given).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raw.complain(path, f"the file cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}")
        return
    secrets = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    raw.places[(*around, key)] = raw.place(path)
    table[key] = secrets if is_list else text.strip()
