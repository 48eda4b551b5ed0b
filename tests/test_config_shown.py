"""config: what is shown of it has its source and no secret, and its schema means what it says."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
from jsonschema import Draft202012Validator

from receiver import config
from receiver.config.models import SECRET_KEYS, SECTIONS
from receiver.errors import ConfigError
from tests.config_text import EXAMPLE, HOOK, KEY, SECRET, loaded, uncommented, without_none

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test's config stands."""
    return tmp_path / "config.toml"


def test_what_is_shown_has_its_source(file: Path) -> None:
    """Default, line, variable or command line."""
    file.write_text("[server]\nhost = '::1'\n" + HOOK)
    read, raw = config.load_with_sources(file, {"PORT": "7"}, overrides={"upstream.max_concurrency": 3})
    shown = {key: (value, source) for key, value, source in config.effective(read, raw)}
    assert shown["server.host"] == ("::1", f"{file}:2")
    assert shown["server.port"] == (7, "environment PORT")
    assert shown["upstream.max_concurrency"] == (3, "command line")
    assert shown["database.url"] == (f"sqlite:///{file.parent}/receiver.db", "default")
    assert shown["destinations[0].url"] == ("https://x.example/h", f"{file}:6")


def test_what_is_shown_holds_no_part_of_a_url_that_may_be_secret(file: Path) -> None:
    """Userinfo, the query, and what a name stood for in the midst of it; a whole URL from a name is shown."""
    text = """\
[server]
public_url = "${PUBLIC}"
[[destinations]]
name = "a"
kind = "webhook"
url = "https://hooks.example.com/${TOKEN}/x?key=SEKRIT"
headers = { X-Key = "SEKRIT" }
"""
    file.write_text(text)
    read, raw = config.load_with_sources(file, {"PUBLIC": "https://h.example", "TOKEN": "SEKRIT"})
    shown = {key: value for key, value, _source in config.effective(read, raw)}
    assert shown["server.public_url"] == "https://h.example"
    assert shown["destinations[0].url"] == "https://hooks.example.com/***/x?key=***"
    assert shown["destinations[0].headers"] == {"X-Key": "***"}
    assert read.destinations[0].options.url == "https://hooks.example.com/SEKRIT/x?key=SEKRIT"


def test_every_secret_of_a_config_is_known(file: Path) -> None:
    """What logs have to hide: keys, secrets, secret headers, and what a URL's query holds; nothing else."""
    text = f"""\
[security]
signing_keys = ["{KEY}"]
api_keys = ["an-api-key"]
callback_secrets = ["{SECRET}"]
[upstream]
api_key = "the-upstream-key"
[database]
url = "postgresql://me:of%40the-database@h/d?sslmode=require&sslpassword=of-its-key"
[[destinations]]
name = "a"
kind = "webhook"
url = "https://hooks.example.com/x?key=in-the-query"
secrets = ["{SECRET}"]
headers = {{ Authorization = "Basic abc", X-Env = "prod" }}
"""
    expected = {"of%40the-database", "of@the-database", "of-its-key"}
    expected |= {KEY, "an-api-key", SECRET, "the-upstream-key", "in-the-query", "Basic abc"}
    assert set(config.secrets_of(loaded(file, text))) == expected
    assert config.secrets_of(config.load(None, {})) == []


def test_a_config_never_shows_its_secrets(file: Path) -> None:
    """Neither by `repr` nor by what `config show` prints."""
    hidden = ["SEKRIT-A" + "k" * 32, "SEKRIT-B", "SEKRIT-C", "SEKRIT-D", SECRET]
    text = f"""\
[security]
signing_keys = ["{hidden[0]}"]
api_keys = ["{hidden[1]}"]
callback_secrets = ["{SECRET}"]
[upstream]
api_key = "{hidden[2]}"
{HOOK}secrets = ["{SECRET}"]
headers = {{ Authorization = "{hidden[3]}" }}
"""
    file.write_text(text)
    read, raw = config.load_with_sources(file, {})
    shown = repr(config.effective(read, raw))
    for secret in hidden:
        assert secret not in repr(read)
        assert secret not in shown


def _schema_takes(document: Any) -> bool:
    schema = config.schema()
    Draft202012Validator.check_schema(schema)
    return bool(Draft202012Validator(schema).is_valid(document))


def test_the_example_is_valid_by_the_schema() -> None:
    """As it stands, and with what is commented out switched on, but for keys that exclude one another."""
    assert _schema_takes(tomllib.loads(EXAMPLE.read_text()))
    named = uncommented(EXAMPLE.read_text())
    assert not _schema_takes(named)
    for table in (*named.values(), *named["destinations"]):
        for key in [key for key in table if isinstance(table, dict) and str(key).endswith("_file")]:
            del table[key]
    assert _schema_takes(named)


def test_the_schema_has_every_key_and_its_default() -> None:
    """The defaults as they are written; no null, which TOML has not."""
    schema = config.schema()
    assert set(schema["properties"]) == {*SECTIONS, "destinations"}
    for name, model in SECTIONS.items():
        table = schema["properties"][name]["properties"]
        secret = {f"{key.partition('.')[2]}_file" for key in SECRET_KEYS if key.startswith(f"{name}.")}
        assert set(table) == set(model.model_fields) | secret
        defaults = {key: one["default"] for key, one in table.items() if "default" in one}
        assert model.model_validate(defaults) == model()
    assert "null" not in json.dumps(schema)


_DESTINATION = {"name": "a", "kind": "webhook", "url": "https://x.example/h"}


@pytest.mark.parametrize(
    ("document", "is_taken"),
    [
        ({}, True),
        ({"server": {"port": 9}, "destinations": [_DESTINATION]}, True),
        ({"upstream": {"timeout": 1.5, "submit_retry": ["1s", 2]}, "polling": {"callback_grace": 0}}, True),
        ({"server": {"port": "${P:-9000}", "public_url": "${URL}"}, "logging": {"level": "${L:-info}"}}, True),
        ({"destinations": [{**_DESTINATION, "match": {"metadata.team": ["a", 1, True]}}]}, True),
        ({"destinations": [{**_DESTINATION, "secrets_file": "x", "jitter": 0, "events": ["task.*"]}]}, True),
        ({"servr": {}}, False),
        ({"server": {"prot": 1}}, False),
        ({"server": {"port": True}}, False),
        ({"server": {"port": "9000"}}, False),
        ({"server": {"port": 70000}}, False),
        ({"server": {"public_url": None}}, False),
        ({"server": {"public_url": "hooks.example.com"}}, False),
        ({"server": {"max_submission": "48 potatoes"}}, False),
        ({"database": {"url": "mysql://h/d"}}, False),
        ({"security": {"signing_keys": ["short"]}}, False),
        ({"security": {"signing_keys": [KEY], "signing_keys_file": "x"}}, False),
        ({"security": {"api_keys": ["two words"]}}, False),
        ({"upstream": {"timeout": "5 potatoes"}}, False),
        ({"upstream": {"timeout": 0}}, False),
        ({"upstream": {"confirm_callbacks": "allways"}}, False),
        ({"polling": {"jitter": 2}}, False),
        ({"delivery": {"schedule": []}}, False),
        ({"destinations": {}}, False),
        ({"destinations": [{**_DESTINATION, "kind": "slack", "coalesce": "20/m", "limits": {"text": 9}}]}, True),
        ({"destinations": [{**_DESTINATION, "kind": "slack", "limits": {"text": "9"}}]}, False),
        ({"destinations": [{**_DESTINATION, "kind": "slack", "secrets": [SECRET]}]}, False),
        ({"destinations": [{**_DESTINATION, "coalesce": "20/m"}]}, False),
        ({"destinations": [{**_DESTINATION, "name": "A"}]}, False),
        ({"destinations": [{**_DESTINATION, "uri": "x"}]}, False),
        ({"destinations": [{**_DESTINATION, "events": ["task.suceeded"]}]}, False),
        ({"destinations": [{**_DESTINATION, "events": []}]}, False),
        ({"destinations": [{**_DESTINATION, "rate": "fast"}]}, False),
        ({"destinations": [{**_DESTINATION, "options": {}}]}, False),
        ({"destinations": [{"name": "a", "kind": "webhook"}]}, False),
    ],
)
def test_the_schema_takes_what_the_config_takes(file: Path, document: dict[str, Any], is_taken: bool) -> None:
    """And refuses what it refuses, as far as a schema can tell."""
    (file.parent / "x").write_text(SECRET)
    assert _schema_takes(document) is is_taken
    is_loaded = True
    try:
        loaded(file, tomli_w.dumps(without_none(document)), {"URL": "https://h.example"})
    except ConfigError:
        is_loaded = False
    assert is_loaded is is_taken or None in document.get("server", {}).values()
