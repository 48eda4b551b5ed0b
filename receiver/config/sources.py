"""From file and environment to one tree of raw values, each with the place it came from. No value is judged here.

Order, later wins: the defaults, the file, `RECEIVER_<SECTION>__<KEY>`, the command line; three keys have other names in
the environment besides (`_OTHERS`). A key may be given as `<key>_file`: the name of a file that holds the secret,
relative to the config file's folder. `${NAME}` and `${NAME:-default}` inside strings come from the environment; `$${`
is a plain `${`. What comes from a reference or from a secret's file is taken as it is, and not looked into again.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin

from receiver.config.lines import Lines
from receiver.config.models import SECRET_KEYS, SECTIONS, Destination
from receiver.config.telling import Raw
from receiver.config.values import suggestion
from receiver.destinations import KINDS
from receiver.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from receiver.config.lines import Path as KeyPath

PREFIX: Final = "RECEIVER_"
OTHER_NAMES: Final = frozenset({"RECEIVER_CONFIG", "RECEIVER_URL", "RECEIVER_API_KEY"})
"""Variables with our prefix that are no keys of the configuration."""
_OTHERS: Final = (
    (("server", "port"), ("PORT",), True),
    (("database", "url"), ("DATABASE_URL",), False),
    (("upstream", "api_key"), ("COMETAPI_KEY", "COMETAPI_API_KEY"), False),
)
"""Keys with other names in the environment (contract 3), and whether these win over the file."""
_MOST: Final = 4 * 1024**2
"""Bytes of a file; more is no configuration, and may have no end (`/dev/zero`)."""
REFERENCE: Final = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-((?:(?!\$\{)[^}])*))?\})?")
"""What is replaced in strings; `${` alone is a mistake."""


def gather(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Raw:
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
    _read_other_names(raw, environ)
    for name, value in overrides.items():
        section, _, key = name.partition(".")
        _set(raw, (section, key), value, "command line")
    return raw


def _read_file(raw: Raw, path: Path) -> None:
    # Not resolved: a mounted file is often a link into a folder that is replaced at every change.
    raw.file, raw.folder = str(path), path.absolute().parent
    data = b""
    try:
        data = _bytes(path)
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: it is not UTF-8 ({error.reason}); save it as UTF-8"]) from None
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: it cannot be read: {getattr(error, 'strerror', None) or error}"]) from None
    try:
        raw.tree = tomllib.loads(text)
        raw.lines = Lines(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        line = int(found[1]) if found else text.rstrip().count("\n") + 1  # "at end of document"
        raise ConfigError([f"{path}:{line}: it is not TOML: {error}"]) from None
    except (ValueError, RecursionError):  # what the standard library lets out
        raise ConfigError([f"{path}: it is not TOML: a number is far too long, or lists are nested too deep"]) from None


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MOST + 1)
    if len(data) > _MOST:
        raise ValueError(f"it has more than {_MOST} bytes")
    return data


def _read_environment(raw: Raw, environ: Mapping[str, str]) -> None:
    known: dict[str, KeyPath] = {f"{PREFIX}{section}__{key}".upper(): (section, key) for section, key in _keys()}
    known[f"{PREFIX}DESTINATIONS"] = ("destinations",)
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in OTHER_NAMES:
            continue
        if name not in known:
            _complain_of_name(raw, name, environ[name], known)
        elif name.endswith("_FILE") and name.removesuffix("_FILE") in environ:
            raw.note(f"environment: {name}: {name.removesuffix('_FILE')} is given too; one of them is enough")
        else:
            _take(raw, known[name], name, environ[name])


def _take(raw: Raw, path: KeyPath, name: str, text: str) -> None:
    """One variable, over what the file says of the same key, or of the file that holds it."""
    if not _is_text(text):
        raw.places[path] = f"environment {name}"
        raw.spoil(path, "it is not UTF-8")
        return
    if len(path) == 1:
        raw.tree[str(path[0])], raw.places[path] = _json(raw, path, name, text), f"environment {name}"
        return
    key = str(path[1])
    table = raw.tree.get(str(path[0]))
    if isinstance(table, dict):
        table.pop(f"{key}_file", None)
        table.pop(key.removesuffix("_file"), None)
    field = SECTIONS[str(path[0])].model_fields.get(key)
    if text == "" and field is not None and field.default is None:
        return  # an empty variable unsets what may be unset
    value = _json(raw, path, name, text) if field and get_origin(field.annotation) is tuple else _typed(field, text)
    _set(raw, path, value, f"environment {name}")


def _json(raw: Raw, path: KeyPath, name: str, text: str) -> Any:
    """A list, as it stands in a variable; what does not read as one is refused here, with the reason."""
    try:
        value = json.loads(text)
        if _is_text(json.dumps(value, ensure_ascii=False)):
            return value
        why = "half a surrogate in it is no text"
    except ValueError as error:
        why = str(error)
    except RecursionError:
        why = "lists are nested too deep"
    raw.places[path] = f"environment {name}"
    raw.spoil(path, f"a list is wanted, written as JSON, and this is none: {why}")
    return None


def _set(raw: Raw, path: KeyPath, value: Any, place: str) -> None:
    table = raw.tree.setdefault(str(path[0]), {})
    if isinstance(table, dict):  # else that is the mistake, and it is named for the file
        table[str(path[1])] = value
        raw.places[path] = place


def _complain_of_name(raw: Raw, name: str, value: str, known: Iterable[str]) -> None:
    """A variable that is ours by its name, but no key. What Kubernetes sets for a service called `receiver` is not."""
    single = {one.replace("__", "_"): one for one in known}
    if "__" in name or name == "RECEIVER_DESTINATION":
        raw.note(f"environment: {name}: there is no such key{suggestion(name.upper(), known)}")
    elif name in single and "://" not in value:
        raw.note(f"environment: {name}: it is not read (did you mean {single[name]}, with two underscores?)")


def _keys() -> list[tuple[str, str]]:
    keys = [(section, key) for section, model in SECTIONS.items() for key in model.model_fields]
    secret = [name.split(".") for name in SECRET_KEYS]
    return keys + [(section, f"{key}_file") for section, key in secret]


def _typed(field: Any, text: str) -> Any:
    """A text as the type its key wants; what does not read as that stays text, and is refused by name."""
    if field is None or _wants_text(field.annotation):
        return text
    if field.annotation is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _wants_text(annotation: Any) -> bool:
    if annotation is str or get_origin(annotation) is Literal:
        return True
    # `Annotated[str, …]` has its type first; of `… | None` either member may be it. A tuple's members are not its type.
    return get_origin(annotation) is not tuple and any(_wants_text(one) for one in get_args(annotation)[:2])


def _is_text(text: str) -> bool:
    """Whether it holds no half surrogates, as which bytes that are no UTF-8 come from the environment."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    raw.written[path] = value
    # Text in the place of a number was meant to be read as one: port = "${PORT_OF_OURS:-9000}".
    return _typed(_field(path), _replaced(raw, value, path, environ))


def _field(path: KeyPath) -> Any:
    match path:
        case [str(section), str(key)] if section in SECTIONS:
            return SECTIONS[section].model_fields.get(key)
        case ["destinations", int(), str(key)]:
            return Destination.model_fields.get(key)
        case _:
            return None


def _replaced(raw: Raw, value: str, path: KeyPath, environ: Mapping[str, str]) -> str:
    """A string with its references replaced; where that cannot be done, the place is spoiled."""

    def replace(found: re.Match[str]) -> str:
        name, default = found.groups()
        if found[0] == "$${":
            return "${"
        if name is None:
            flaws.append("${ begins the name of an environment variable, ${NAME}; write $${ for these two characters")
            return ""
        set_to = environ.get(name)
        if set_to is None and default is None:
            flaws.append(f"the environment variable {name} is not set")
        elif set_to and not _is_text(set_to):
            flaws.append(f"the environment variable {name} is not UTF-8")
        return set_to or default or ""  # as in a shell, :- is for the empty one too

    flaws: list[str] = []
    text = REFERENCE.sub(replace, value)
    if flaws:
        raw.spoil(path, flaws[0])
    return text


_NOTHING: Final = object()


def _read_secret_files(raw: Raw) -> None:
    for name, is_list in SECRET_KEYS.items():
        section, key = name.split(".")
        _read_secret_file(raw, raw.tree.get(section), (section,), key, is_list=is_list)
    destinations = raw.tree.get("destinations")
    for number, table in enumerate(destinations if isinstance(destinations, list) else []):
        kind = KINDS.get(str(table.get("kind"))) if isinstance(table, dict) else None
        for key, is_list in kind.secrets.items() if kind else ():
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
    raw.places[(*around, key)] = raw.place(path)
    table[key] = [] if is_list else ""
    if not isinstance(given, str):
        raw.spoil(path, "the name of a file is wanted")
        raw.spoiled.add((*around, key))
        return
    try:
        text = _bytes(raw.folder / given).decode("utf-8-sig")
    except (OSError, ValueError) as error:  # it is not there, not UTF-8, too long, or its name has a NUL in it
        why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        raw.complain(path, f"the file cannot be read: {why}")
        raw.spoiled.add((*around, key))
        return
    secrets = [line.strip() for line in text.split("\n") if line.strip()]
    if not secrets:  # an empty list of api_keys would mean that none is asked for
        raw.complain(path, "the file is empty")
        raw.spoiled.add((*around, key))
    table[key] = secrets if is_list else text.strip()


def _read_other_names(raw: Raw, environ: Mapping[str, str]) -> None:
    for path, names, beats_file in _OTHERS:
        table = raw.tree.get(path[0], {})
        is_ours = raw.places.get(path, "").startswith("environment ")
        if not isinstance(table, dict) or is_ours or (path[1] in table and not beats_file):
            continue
        for name in names:
            if text := environ.get(name):
                _set(raw, path, _typed(SECTIONS[path[0]].model_fields[path[1]], text), f"environment {name}")
                if not _is_text(text):
                    raw.spoil(path, "it is not UTF-8")
                break
