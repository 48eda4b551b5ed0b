"""The configuration as it is shown: effective values with their source, its JSON Schema, a fresh file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from receiver.config.models import DESTINATION_SECRET_KEYS, SECRET_KEYS, SECTIONS, Config, Destination
from receiver.destinations import KINDS
from receiver.destinations.base import MASK, masked_url

if TYPE_CHECKING:
    from receiver.config.sources import Raw


def effective(config: Config, raw: Raw) -> list[tuple[str, Any, str]]:
    """Every key with its value (secrets masked) and where it was set."""
    shown: list[tuple[str, Any, str]] = []
    for name in SECTIONS:
        section = getattr(config, name).model_dump(mode="json")
        given = raw.tree.get(name, {})
        for key, value in section.items():
            source = raw.place((name, key)) if isinstance(given, dict) and key in given else "default"
            shown.append((f"{name}.{key}", _masked(f"{name}.{key}", value), source))
    for number, destination in enumerate(config.destinations):
        document = destination.model_dump(mode="json") | destination.options.model_dump(mode="json")
        given = raw.tree["destinations"][number]
        for key, value in document.items():
            source = raw.place(("destinations", number, key)) if key in given else "default"
            shown.append((f"destinations[{number}].{key}", _destination_masked(key, value), source))
    return shown


def _masked(name: str, value: Any) -> Any:
    if name in SECRET_KEYS:
        return [MASK for _ in value] if isinstance(value, list) else value and MASK
    is_url = name.endswith("url") and isinstance(value, str) and not value.startswith("sqlite:")
    return masked_url(value) if is_url and "://" in value else value


def _destination_masked(key: str, value: Any) -> Any:
    if key in DESTINATION_SECRET_KEYS:
        return [MASK for _ in value]
    if key == "headers":
        return dict.fromkeys(value, MASK)
    return masked_url(value) if key == "url" else value


def schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    document = Config.model_json_schema(mode="validation")
    destination = Destination.model_json_schema(mode="validation")
    definitions = document.get("$defs", {})
    definitions.pop("Destination", None)
    variants = []
    for kind in KINDS.values():
        options = kind.options.model_json_schema(mode="validation")
        properties = {**destination["properties"], **options["properties"], "kind": {"const": kind.name}}
        properties.pop("options", None)
        properties |= {
            f"{key}_file": {"type": "string"} for key in DESTINATION_SECRET_KEYS if key in options["properties"]
        }
        required = [*destination.get("required", []), *options.get("required", [])]
        variants.append(
            {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        )
    for name in SECRET_KEYS:
        section, key = name.split(".")
        definitions[SECTIONS[section].__name__]["properties"][f"{key}_file"] = {"type": "string"}
    document["properties"]["destinations"] = {"type": "array", "items": {"anyOf": variants}, "default": []}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "receiver configuration", **document}


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
