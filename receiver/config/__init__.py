"""The configuration: one file, the environment over it, every mistake named at once with its line (contract 3)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from pydantic import ValidationError

from receiver.config.models import DESTINATION_SECRET_KEYS, SECRET_KEYS, SECTIONS, Config, Destination
from receiver.config.show import effective, schema, template
from receiver.config.sources import Raw, gather
from receiver.config.values import suggestion
from receiver.destinations import KINDS
from receiver.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

__all__ = ["Config", "ConfigError", "Destination", "effective", "find", "load", "schema", "servable", "template"]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def find(given: Path | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """The config file: `--config`, then `$RECEIVER_CONFIG`, then `./config.toml` if it is there; None for none."""
    if given is not None:
        return given
    named = environ.get("RECEIVER_CONFIG")
    if named:
        return Path(named)
    here = cwd / "config.toml"
    return here if here.exists() else None


def load(path: Path | None, environ: Mapping[str, str], *, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of `path` and `environ`; `overrides` (`{"server.port": 9000}`) come from the command line.

    Raises:
        ConfigError: with every mistake in it.
    """
    return load_with_sources(path, environ, overrides=overrides)[0]


def load_with_sources(
    path: Path | None, environ: Mapping[str, str], *, overrides: Mapping[str, Any] | None = None
) -> tuple[Config, Raw]:
    """The same, with the places its values came from.

    Raises:
        ConfigError: with every mistake in it.
    """
    raw = gather(path, environ)
    _other_names(raw, environ, overrides or {})
    tables = {key: table for key, table in raw.tree.items() if key != "destinations"}
    parsed: dict[str, Any] = {}
    for name, table in tables.items():
        if name not in SECTIONS:
            homes = [f"{section}.{name}" for section, model in SECTIONS.items() if name in model.model_fields]
            near = suggestion(name, [*SECTIONS, "destinations"]) or (f" (did you mean {homes[0]}?)" if homes else "")
            raw.complain((name,), f"there is no such section{near}")
        elif not isinstance(table, dict):
            raw.complain((name,), f"a table is wanted: [{name}]")
        else:
            parsed[name] = _section(raw, SECTIONS[name], table, (name,)) or SECTIONS[name]()
    parsed["destinations"] = _destinations(raw)
    config = Config.model_construct(**{**{n: m() for n, m in SECTIONS.items()}, **parsed})
    for place, reason in not_built(config):
        raw.complain(place, reason)
    if raw.problems:
        raise ConfigError(sorted(raw.problems, key=_by_line))
    return config, raw


def not_built(config: Config) -> list[tuple[tuple[str | int, ...], str]]:
    """What is switched on here and comes in a later release: one line each, to be deleted when it is built."""
    found: list[tuple[tuple[str | int, ...], str]] = []

    def refuse(path: tuple[str | int, ...], what: str) -> None:
        found.append((path, f"{what} is not built yet in this release"))

    if config.database.url.startswith("postgres"):
        refuse(("database", "url"), "PostgreSQL (use sqlite:///…)")
    if config.archive.url:
        refuse(("archive", "url"), "the archive")
    if config.server.rate_per_key is not None:
        refuse(("server", "rate_per_key"), "the rate limit of the API")
    if config.upstream.rate is not None:
        refuse(("upstream", "rate"), "the rate limit of submissions")
    for number, destination in enumerate(config.destinations):
        if destination.rate is not None:
            refuse(("destinations", number, "rate"), "the rate limit of a destination")
        if getattr(destination.options, "format", "standard") != "standard":
            refuse(("destinations", number, "format"), f'the format "{destination.options.format}"')
    return found


def servable(config: Config, environ: Mapping[str, str]) -> list[str]:
    """What keeps `serve` from starting, each with its mend (contract 3)."""
    found = []
    if not config.security.signing_keys:
        found.append("security.signing_keys: there is none; `receiver init` writes a config with fresh ones")
    if config.upstream.api_key is None:
        found.append("upstream.api_key: there is none; set it, or $COMETAPI_API_KEY, to your CometAPI key")
    public = config.server.public_url
    local = config.server.host in LOOPBACK and (public is None or urlsplit(public).hostname in LOOPBACK)
    if not config.security.api_keys and not local:
        found.append(
            "security.api_keys: there is none, and the service would be reachable from elsewhere; add one "
            "(`receiver init` makes one), or keep server.host on 127.0.0.1 and server.public_url unset"
        )
    if "DYNO" in environ and config.database.url.startswith("sqlite") and "ephemeral=ok" not in config.database.url:
        found.append(
            "database.url: this platform's disk is wiped at every restart, and SQLite lives on it; use PostgreSQL, or "
            "add ?ephemeral=ok to the URL if losing everything is fine"
        )
    return found


def _other_names(raw: Raw, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> None:
    """Values that have a place of their own besides ours: $PORT, $DATABASE_URL, $COMETAPI_API_KEY, the command line."""
    ours = {
        ("server", "port"): ("PORT", True),
        ("database", "url"): ("DATABASE_URL", False),
        ("upstream", "api_key"): ("COMETAPI_API_KEY", False),
    }
    for (section, key), (name, beats_file) in ours.items():
        text = environ.get(name)
        table = raw.tree.setdefault(section, {})
        if not text or not isinstance(table, dict):
            continue
        if (section, key) in raw.places or (key in table and not beats_file):
            continue
        raw.places[section, key] = f"environment {name}"
        table[key] = int(text) if key == "port" and text.isdigit() else text
    for name, value in overrides.items():
        section, _, key = name.partition(".")
        raw.places[section, key] = "command line"
        raw.tree.setdefault(section, {})[key] = value
    database = raw.tree["database"]
    if isinstance(database, dict):
        url = database.get("url", "sqlite:///receiver.db")
        if "url" not in database:
            raw.places["database", "url"] = "default"
        relative = isinstance(url, str) and url.startswith("sqlite:///") and not url.startswith("sqlite:////")
        if relative and raw.lines is not None and not url.startswith(("sqlite:///:", "sqlite:///?")) and url[10:]:
            database["url"] = f"sqlite:///{raw.folder / url[10:]}"


def _section(raw: Raw, model: type[BaseModel], table: Any, path: tuple[str | int, ...]) -> Any:
    try:
        return model.model_validate(table)
    except ValidationError as error:
        for one in error.errors(include_url=False, include_input=False, include_context=False):
            place = (*path, *_place(one["loc"]))
            raw.complain(place, _reason(one, place, list(model.model_fields), table))
        return None


def _place(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return tuple(part for part in loc if not (isinstance(part, str) and ("[" in part or "-" in part)))


_WANTED: Final = {
    "int_type": "a whole number is wanted",
    "int_parsing": "a whole number is wanted",
    "float_type": "a number is wanted",
    "float_parsing": "a number is wanted",
    "string_type": "text in quotes is wanted",
    "bool_type": "true or false is wanted",
    "tuple_type": "a list is wanted",
    "dict_type": "a table is wanted",
    "too_short": "at least one is wanted",
    "string_too_short": "it is empty",
    "missing": "it is missing",
}


def _reason(one: ErrorDetails, path: tuple[str | int, ...], known: list[str], table: Any) -> str:
    """What is wrong, what was there, and what was probably meant. A secret's value is never repeated."""
    if one["type"] == "extra_forbidden":
        return f"there is no such key{suggestion(str(path[-1]), [name for name in known if name != 'options'])}"
    if path[-1] == "name" and one["type"] == "string_pattern_mismatch":
        words = "small letters, digits and - are wanted, 64 at most"
    else:
        words = _WANTED.get(one["type"]) or one["msg"].removeprefix("Value error, ")
        words = words.replace("Input should be", "wanted is")
    value = table.get(path[-1]) if isinstance(table, dict) else None
    shown = isinstance(value, str | int | float) and not _is_secret(path) and f'"{value}"' not in words
    if shown:
        words += f", not {json.dumps(value, ensure_ascii=False)[:80]}"
    near = suggestion(value, re.findall(r"'([^']+)'", words)) if isinstance(value, str) else ""
    return words + near if one["type"] == "literal_error" else words


def _is_secret(path: tuple[str | int, ...]) -> bool:
    keys = {name.rpartition(".")[2] for name in SECRET_KEYS} | DESTINATION_SECRET_KEYS.keys()
    return not keys.isdisjoint(str(part) for part in path) or "url" in str(path[-1]) or "headers" in path


def _destinations(raw: Raw) -> tuple[Destination, ...]:
    given = raw.tree.get("destinations", [])
    if not isinstance(given, list):
        raw.complain(("destinations",), "a list of tables is wanted: [[destinations]]")
        return ()
    found: list[Destination] = []
    names: dict[str, int] = {}
    for number, table in enumerate(given):
        path = ("destinations", number)
        if not isinstance(table, dict):
            raw.complain(path, "a table is wanted: [[destinations]]")
            continue
        shared = {key: value for key, value in table.items() if key in Destination.model_fields and key != "options"}
        own = {key: value for key, value in table.items() if key not in shared}
        destination = _section(raw, Destination, shared, path)
        kind = KINDS.get(str(table.get("kind")))
        options = None if kind is None else _options(raw, kind.options, own, path)
        if destination is None or options is None:
            # Its number stays taken, so that what is said of the others names the right one.
            found.append(Destination.model_construct(name="", kind=""))
            continue
        if destination.name in names:
            raw.complain(
                (*path, "name"), f'"{destination.name}" is the name of destinations[{names[destination.name]}] too'
            )
        names.setdefault(destination.name, number)
        found.append(destination.model_copy(update={"options": options}))
    return tuple(found)


def _options(raw: Raw, model: type[BaseModel], own: dict[str, Any], path: tuple[str | int, ...]) -> Any:
    known = [*Destination.model_fields, *model.model_fields, *(f"{key}_file" for key in DESTINATION_SECRET_KEYS)]
    try:
        return model.model_validate(own)
    except ValidationError as error:
        for one in error.errors(include_url=False, include_input=False, include_context=False):
            place = (*path, *_place(one["loc"]))
            raw.complain(place, _reason(one, place, known, own))
        return None


def _by_line(problem: str) -> tuple[int, str]:
    parts = problem.split(":")
    numbers = [int(part) for part in parts[1:2] if part.isdigit()]
    return (numbers[0] if numbers else 0, problem)
