"""From the tree of raw values to the configuration: every table by its model, every mistake noted where it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from receiver.config.models import SECRET_KEYS, SECTIONS, Config, Database, Destination, shared_keys
from receiver.config.telling import home, told
from receiver.config.values import suggestion
from receiver.destinations import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import BaseModel

    from receiver.config.lines import Path as KeyPath
    from receiver.config.telling import Raw


def read(raw: Raw) -> Config:
    """The configuration; where `raw` has problems afterwards, what could not be read stands there as its default."""
    parsed: dict[str, Any] = {name: model() for name, model in SECTIONS.items()}
    for name, table in raw.tree.items():
        if name == "destinations":
            continue
        if name not in SECTIONS:
            near = suggestion(name, [*SECTIONS, "destinations"]) or home(name)
            raw.complain((name,), f"there is no such section{near}")
        elif not isinstance(table, dict):
            raw.complain((name,), f"a table is wanted: [{name}]")
        else:
            secret = [one.partition(".")[2] for one in SECRET_KEYS if one.startswith(f"{name}.")]
            known = [*SECTIONS[name].model_fields, *(f"{key}_file" for key in secret)]
            parsed[name] = _model(raw, SECTIONS[name], table, (name,), known) or parsed[name]
    parsed["database"] = _beside_the_file(raw, parsed["database"])
    parsed["destinations"] = _destinations(raw)
    config: Config = Config.model_construct(**parsed)
    for path, what in not_built(config):
        raw.complain(path, f"{what} is not built yet in this release")
    return config


def not_built(config: Config) -> list[tuple[KeyPath, str]]:
    """What is switched on here and comes in a later release: one line each, to be deleted when it is built."""
    given: list[tuple[KeyPath, Any, str]] = [
        (("archive", "url"), config.archive.url, "the archive"),
    ]
    return [(path, what) for path, is_on, what in given if is_on]


def _model(raw: Raw, model: type[BaseModel], table: dict[str, Any], path: KeyPath, known: Iterable[str]) -> Any:
    """A table by its model, or None with its mistakes noted."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            if one["type"] == "too_short" and one["input"]:
                continue  # it counts only entries without a mistake; these are named for themselves
            # "[key]" is pydantic's word for a mistake in the key of a table, and no part of its path.
            place = (*path, *(part for part in one["loc"] if part != "[key]"))
            raw.complain(place, told(raw, one, place, known))
        return None


def _beside_the_file(raw: Raw, database: Database) -> Database:
    """A relative SQLite file is relative to the config file's folder (contract 3)."""
    name = database.url.removeprefix("sqlite:///")
    if not raw.file or not database.url.startswith("sqlite:///") or name.startswith("/"):
        return database
    if "?" in str(raw.folder):
        raw.complain(("database", "url"), "the config file's folder has a ? in its name: give a path without one")
        return database
    return database.model_copy(update={"url": f"sqlite:///{raw.folder / name}"})


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
        found.append(_destination(raw, table, path))
        name = table.get("name")
        if isinstance(name, str) and names.setdefault(name, number) != number:
            raw.complain((*path, "name"), f'"{name}" is the name of destinations[{names[name]}] too')
    return tuple(found)


def _destination(raw: Raw, table: dict[str, Any], path: KeyPath) -> Destination:
    """One table: the keys that all kinds share, then the kind's own; of a kind that is none, no more is said."""
    kind = KINDS.get(str(table.get("kind")))
    common = shared_keys(kind)
    shared = {key: value for key, value in table.items() if key in common}
    own = {key: value for key, value in table.items() if key not in shared}
    destination: Destination | None = _model(raw, Destination, shared, path, common)
    options = None
    if kind is not None:
        files = [f"{key}_file" for key in kind.secrets]
        options = _model(raw, kind.options, own, path, [*common, *kind.options.keys(), *files])
    if destination is None:
        destination = Destination.model_construct(
            name="", kind=""
        )  # its number stays taken, for what is said of others
    return destination.model_copy(update={"options": options})
