"""From file and environment to one tree of raw values, each with the place it came from. No value is judged here.

Order, later wins: the defaults, the file, `RECEIVER_<SECTION>__<KEY>`. A key may be given as `<key>_file`: the name of
a file that holds the secret. `${NAME}` and `${NAME:-default}` inside strings come from the environment; `$${` is a
plain `${`.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from receiver.config.lines import Lines
from receiver.config.models import DESTINATION_SECRET_KEYS, SECRET_KEYS, SECTIONS
from receiver.config.values import suggestion
from receiver.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from receiver.config.lines import Path as KeyPath

PREFIX: Final = "RECEIVER_"
OTHER_NAMES: Final = frozenset({"RECEIVER_CONFIG", "RECEIVER_URL", "RECEIVER_API_KEY"})
"""Variables with our prefix that are no keys of the configuration."""
_REFERENCE: Final = re.compile(r"\$(\$)?\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?")


@dataclass
class Raw:
    """The tree, where each part came from, and the mistakes found so far."""

    tree: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    folder: Path = field(default_factory=Path)
    file: str = ""
    lines: Lines | None = None
    spoiled: set[KeyPath] = field(default_factory=set)

    def place(self, path: KeyPath) -> str:
        """Where a key was set: `config.toml:12`, or a variable's name."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return f"{self.file}:{self.lines.of(path)}" if self.lines else "configuration"

    def complain(self, path: KeyPath, reason: str) -> None:
        """Note a mistake at a key, unless one was noted there already by `spoil`."""
        if any(path[: len(one)] == one or one[: len(path)] == path for one in self.spoiled):
            return
        for end in range(len(path), 0, -1):
            place = self.places.get(path[:end], "")
            if place.startswith("environment "):
                rest = dotted((place.removeprefix("environment "), *path[end:]))
                self.problems.append(f"environment: {rest}: {reason}")
                return
        name = dotted(path)
        self.problems.append(f"{self.place(path)}: {name}: {reason}" if name else f"{self.place(path)}: {reason}")

    def spoil(self, path: KeyPath, reason: str) -> None:
        """Note a mistake that leaves no value to judge: whatever else is found there would follow from it."""
        self.complain(path, reason)
        self.spoiled.add(path)


def dotted(path: KeyPath) -> str:
    """A key as people write it: `destinations[1].url`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


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
    data = b""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: it is not UTF-8 ({error.reason}); save it as UTF-8"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: it cannot be read: {error.strerror}"]) from None
    try:
        raw.tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        line = int(found[1]) if found else text.rstrip().count("\n") + 1  # "at end of document"
        raise ConfigError([f"{path}:{line}: it is not TOML: {error}"]) from None
    except (ValueError, RecursionError):  # what the standard library lets out
        raise ConfigError([f"{path}: it is not TOML: a number is far too long, or lists are nested too deep"]) from None
    raw.lines = Lines(text)


def _read_environment(raw: Raw, environ: Mapping[str, str]) -> None:
    known = {f"{PREFIX}{section}__{key}".upper(): (section, key) for section, key in _keys()}
    known[f"{PREFIX}DESTINATIONS"] = ("destinations", "")
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in OTHER_NAMES:
            continue
        if name not in known:
            _complain_of_name(raw, name, environ[name], known)
            continue
        section, key = known[name]
        if key.endswith("_file") and name.removesuffix("_FILE") in environ:
            raw.problems.append(
                f"environment: {name}: {name.removesuffix('_FILE')} is given too; one of them is enough"
            )
            continue
        path: KeyPath = (section, key) if key else (section,)
        raw.places[path] = f"environment {name}"
        value = _typed(section, key, environ[name])
        if key:
            table = raw.tree.setdefault(section, {})
            if isinstance(table, dict):
                table.pop(f"{key}_file", None)
                table.pop(key.removesuffix("_file"), None)
                table[key] = value
                if value == "" and not key.endswith("_file") and SECTIONS[section].model_fields[key].default is None:
                    del table[key]  # an empty variable unsets what may be unset
        else:
            raw.tree[section] = value


def _complain_of_name(raw: Raw, name: str, value: str, known: Iterable[str]) -> None:
    """A variable that is ours by its name, but no key. What Kubernetes sets for a service called `receiver` is not."""
    single = {one.replace("__", "_"): one for one in known}
    if "__" in name or name == "RECEIVER_DESTINATION":
        raw.problems.append(f"environment: {name}: there is no such key{suggestion(name, known)}")
    elif name in single and "://" not in value:
        raw.problems.append(f"environment: {name}: it is not read (did you mean {single[name]}, with two underscores?)")


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
        if "bool" in annotation:
            return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _interpolated(raw: Raw, value: Any, path: KeyPath, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        found = {key: _interpolated(raw, member, (*path, key), environ) for key, member in value.items()}
        return {key: member for key, member in found.items() if member is not _NOTHING}
    if isinstance(value, list):
        members = [_interpolated(raw, member, (*path, number), environ) for number, member in enumerate(value)]
        return [member for member in members if member is not _NOTHING]
    if not isinstance(value, str) or "${" not in value:
        return value
    text = _replaced(raw, value, path, environ)
    if text is _NOTHING or len(path) != 2:  # noqa: PLR2004 -- a section's key
        return text
    section, key = str(path[0]), str(path[1])
    is_key = section in SECTIONS and key in SECTIONS[section].model_fields
    return _typed(section, key, text) if is_key else text


def _replaced(raw: Raw, value: str, path: KeyPath, environ: Mapping[str, str]) -> Any:
    """A string with its references replaced; `_NOTHING` where there is no value to judge."""
    if path == ("upstream", "api_key") and value == "${COMETAPI_KEY}" and not environ.get("COMETAPI_KEY"):
        return _NOTHING  # contract 3: then $COMETAPI_API_KEY is asked

    def replace(found: re.Match[str]) -> str:
        if found[1]:
            return found[0][1:]
        if found[2] is None:
            flaws.append("${ begins the name of an environment variable, ${NAME}; write $${ for these two characters")
            return ""
        set_to = environ.get(found[2]) or found[3]  # as in a shell, :- is for the empty one too
        if set_to is None and found[2] not in environ:
            flaws.append(f"the environment variable {found[2]} is not set")
        return set_to or ""

    flaws: list[str] = []
    text = _REFERENCE.sub(replace, value)
    for flaw in flaws[:1]:
        raw.spoil(path, flaw)
    return _NOTHING if flaws else text


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
        raw.spoiled.add((*around, key))
        return
    if not isinstance(given, str):
        raw.complain(path, "the name of a file is wanted")
        return
    try:
        text = (raw.folder / given).read_text("utf-8-sig")
    except (OSError, ValueError) as error:  # not UTF-8, or a name with a NUL in it
        raw.complain(path, f"the file cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}")
        return
    secrets = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    raw.places[(*around, key)] = raw.place(path)
    table[key] = secrets if is_list else text.strip()
