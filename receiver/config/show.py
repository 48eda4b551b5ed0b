"""The configuration as it is shown: effective values with their source, its JSON Schema, a fresh file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from receiver.config.models import SECRET_KEYS, SECTIONS, Config, Destination, shared_keys
from receiver.config.sources import REFERENCE
from receiver.config.telling import dotted
from receiver.destinations import KINDS
from receiver.destinations.base import MASK, masked_url
from receiver.wire import HttpRequest

if TYPE_CHECKING:
    from pydantic import BaseModel

    from receiver.config.lines import Path
    from receiver.config.telling import Raw
    from receiver.destinations.base import Kind


def effective(config: Config, raw: Raw) -> list[tuple[str, Any, str]]:
    """Every key with its value (secrets masked) and where it was set: `default`, `config.toml:12`, or who said it."""
    shown: list[tuple[str, Any, str]] = []
    for name in SECTIONS:
        given = raw.tree.get(name, {})
        for key, value in getattr(config, name).model_dump(mode="json").items():
            source = raw.place((name, key)) if key in given else "default"
            shown.append((f"{name}.{key}", _masked((name, key), value, raw), source))
    for number, destination in enumerate(config.destinations):
        kind = KINDS[destination.kind]
        document = destination.model_dump(mode="json", include=set(shared_keys(kind)))
        document |= destination.options.model_dump(mode="json", by_alias=True)
        given = raw.tree["destinations"][number]
        for key, value in document.items():
            path = ("destinations", number, key)
            source = raw.place(path) if key in given else "default"
            text = _own_masked(kind, key, value) if key in kind.secrets else _masked(path, value, raw)
            shown.append((dotted(path), text, source))
    return shown


def secrets_of(config: Config) -> list[str]:
    """Every secret value in a configuration, so that logs can be told never to show it (`logs.hide`)."""
    found = [*config.security.signing_keys, *config.security.api_keys, *config.security.callback_secrets]
    database = urlsplit(config.database.url)
    password = database.password or ""  # as it stands in the URL; libpq's errors could have it as it is
    found += [config.upstream.api_key or "", password, unquote(password)]
    found += [value for key, value in parse_qsl(database.query) if "password" in key]
    for destination in config.destinations:
        options = destination.options.model_dump()
        kind = KINDS[destination.kind]
        for key, is_list in kind.secrets.items():
            found += options[key] if is_list else [options[key] or ""]
        found += _passwords(options.get("smtp_url", ""))
        request = HttpRequest("POST", options.get("url", ""), options.get("headers", {}), b"")
        masked = kind.masked(request)
        found += [value for name, value in request.headers.items() if masked.headers[name] != value]
        parts = urlsplit(request.url)
        found += [parts.password or "", *(value for _, value in parse_qsl(parts.query))]
        shown = frozenset(urlsplit(masked.url).path.split("/"))
        found += [segment for segment in parts.path.split("/") if segment not in shown]
    return [secret for secret in dict.fromkeys(found) if secret]


def _passwords(url: str) -> list[str]:
    """The password of a URL, as it stands there and as it is said to the server."""
    password = urlsplit(url).password or ""
    return [password, unquote(password)]


def _masked(path: Path, value: Any, raw: Raw) -> Any:
    """A value as it may be shown to whoever asks, with what a URL or a header holds masked."""
    key = path[-1]
    if f"{path[0]}.{key}" in SECRET_KEYS:
        return [MASK for _ in value] if isinstance(value, list) else value and MASK
    if key == "headers":
        return dict.fromkeys(value, MASK)
    if not isinstance(value, str) or key not in {"url", "public_url", "base_url", "public_base"}:
        return value
    written = raw.written.get(path, "")
    if "${" in written and re.fullmatch(r"\$\{[^}]*\}", written) is None:
        value = REFERENCE.sub(MASK, written)  # a name in the midst of a URL stands for its secret part, most likely
    return masked_url(value) if re.search(r"[@?#]", value) and not value.startswith("sqlite:") else value


def _own_masked(kind: Kind, key: str, value: Any) -> Any:
    """A secret of a destination: of a URL where it leads, as its kind shows that."""
    if isinstance(value, list):
        return [MASK for _ in value]
    return kind.masked(HttpRequest("POST", value)).url if value and key == "url" else value and MASK


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the file: what `load` takes, as far as a schema can say it."""
    properties: dict[str, Any] = {}
    for name, model in SECTIONS.items():
        secret = [one.partition(".")[2] for one in SECRET_KEYS if one.startswith(f"{name}.")]
        properties[name] = _table(model, secret)
        for key, value in model().model_dump(mode="json").items():
            if value not in (None, []):
                properties[name]["properties"][key]["default"] = value
    kinds = []
    for kind in KINDS.values():
        shared, own = _table(Destination, []), _table(kind.options, list(kind.secrets))
        shared["properties"] = {key: one for key, one in shared["properties"].items() if key in shared_keys(kind)}
        shared["properties"]["kind"] = {"const": kind.name}
        required = sorted({*shared.get("required", []), *own.get("required", [])})
        both = {"properties": shared["properties"] | own["properties"], "required": required}
        kinds.append(own | both | {"description": f"A destination of the kind {kind.name}."})
    properties["destinations"] = {"type": "array", "items": {"anyOf": kinds}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The configuration of receiver",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _table(model: type[BaseModel], secret: list[str]) -> dict[str, Any]:
    """A model's schema as an editor wants it: TOML has no null, and a reference can stand for any value."""
    document = model.model_json_schema(mode="validation")
    properties = {name: _value(one) for name, one in document["properties"].items()}
    table = {
        "type": "object",
        "description": document.get("description", ""),
        "properties": properties | {f"{key}_file": {"type": "string"} for key in secret},
        "additionalProperties": False,
    }
    if "required" in document:
        table["required"] = [name for name in document["required"] if name not in secret]
    if secret:
        table["allOf"] = [{"not": {"required": [key, f"{key}_file"]}} for key in secret]
    return table


def _value(given: dict[str, Any]) -> dict[str, Any]:
    kinds = [one for one in given.get("anyOf", [given]) if one != {"type": "null"}]
    found = []
    for one in kinds:
        kept = {name: value for name, value in one.items() if name not in {"title", "default"}}
        if "items" in kept:
            kept["items"] = _value(kept["items"])
        if isinstance(kept.get("additionalProperties"), dict):
            kept["additionalProperties"] = _value(kept["additionalProperties"])
        found.append(kept)
    if found == [{"type": "string"}] or any(one.get("type") == "object" for one in found):
        return found[0] if len(found) == 1 else {"anyOf": found}
    return {"anyOf": [*found, {"type": "string", "pattern": r"\$\{"}]}


TEMPLATE = """\
# The configuration of `receiver`. Every key there is: config.example.toml. Check it with: receiver config check

[server]
# public_url = "https://hooks.example.com"   # how the upstream reaches this program; unset: all tasks are polled

[database]
url = "sqlite:///receiver.db"                # beside this file

[security]
signing_keys = ["{signing_key}"]             # sign the callback URLs; to rotate, add a new one at the end
api_keys = ["{api_key}"]                     # who may submit: Authorization: Bearer <key>

[upstream]
api_key = "${{COMETAPI_KEY}}"                  # your CometAPI key, from the environment

# Where results go. The consumer verifies each webhook with the secret: see the README.
# [[destinations]]
# name = "pipeline"
# kind = "webhook"
# url = "https://pipeline.example.com/hooks"
# secrets = ["{secret}"]
"""


def template(signing_key: str, api_key: str, secret: str) -> str:
    """A fresh file for `receiver init`; the secrets come in as arguments."""
    return TEMPLATE.format(signing_key=signing_key, api_key=api_key, secret=secret)
