"""config: the example, the template, and what keeps `serve` from starting."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

import pytest
import tomli_w

from receiver import config
from receiver.config.models import SECRET_KEYS, SECTIONS, shared_keys
from receiver.destinations import KINDS
from receiver.destinations.chat import ChatOptions
from tests.config_text import EXAMPLE, KEY, SECRET, loaded, uncommented

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test's config stands."""
    return tmp_path / "config.toml"


def test_the_example_equals_the_defaults(tmp_path: Path) -> None:
    """It parses as it stands, and what stands in it is what is compiled in."""
    here, empty = tmp_path / "example.toml", tmp_path / "empty.toml"
    here.write_bytes(EXAMPLE.read_bytes())
    empty.write_text("")
    assert config.load(here, {}) == config.load(empty, {})


def test_the_example_names_every_key() -> None:
    """Both ways: no key is missing from it, and none in it is unknown."""
    text = EXAMPLE.read_text()
    named = uncommented(text)
    expected = {section: set(model.model_fields) for section, model in SECTIONS.items()}
    for secret in SECRET_KEYS:
        section, key = secret.split(".")
        expected[section].add(f"{key}_file")
    webhook = KINDS["webhook"]
    expected["destinations"] = {*shared_keys(webhook), *webhook.options.model_fields, "secrets_file"}
    found = {name: set(table[0] if isinstance(table, list) else table) for name, table in named.items()}
    assert found == expected


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"webhook"}))
def test_the_example_has_a_block_of_every_kind(kind: str) -> None:
    """With the kind's own keys; those that all chats take stand in the first chat's."""
    blocks = re.split(r"^# \[\[destinations\]\]$", EXAMPLE.read_text(), flags=re.MULTILINE)
    [block] = [one for one in blocks if f'kind = "{kind}"' in one]
    own = {*KINDS[kind].options.keys(), *(f"{key}_file" for key in KINDS[kind].secrets)}
    common = {*ChatOptions.model_fields, "coalesce"}
    named = set(re.findall(r"^(?:# )+([a-z_]+) = ", block, re.MULTILINE))
    assert named == {"name", "kind"} | (own | common if kind == "slack" else own - common)


def test_a_key_with_a_default_stands_in_the_example_with_it() -> None:
    """Only what has no default is commented out."""
    standing = tomllib.loads(EXAMPLE.read_text())
    for section, model in SECTIONS.items():
        with_default = {name for name, field in model.model_fields.items() if field.default not in {None, ()}}
        assert set(standing[section]) == with_default


def test_every_key_of_the_example_is_explained() -> None:
    """In plain words on its line."""
    text = EXAMPLE.read_text()
    lines = re.findall(r"^(?:# )?[a-z_]+ = .*$", text, re.MULTILINE)
    assert lines
    assert [line for line in lines if not re.search(r"\S +# \S.{5,}", line)] == []


def test_what_is_commented_out_in_the_example_is_right_too(file: Path) -> None:
    """Switched on, all of it is taken."""
    named = uncommented(EXAMPLE.read_text())
    for table in (*named.values(), *named["destinations"]):
        for key in [key for key in table if isinstance(table, dict) and str(key).endswith("_file")]:
            del table[key]
    # What the environment holds there: a URL, a bot's token, any secret.
    values = {"URL": "https://chat.example.com/hook", "TOKEN": "1:a", "SECRET": "x", "KEY": "x"}
    named_there = re.findall(r"\$\{(\w+_(\w+?))\}", EXAMPLE.read_text())
    environ = {name: values[last] for name, last in named_there}
    everything = loaded(file, tomli_w.dumps(named), environ | {"APPRISE_URL": "json://localhost"})
    assert str(everything.server.rate_per_key) == "100/s"


def test_the_template_is_ready_to_serve(file: Path) -> None:
    """What `receiver init` writes loads, holds the fresh secrets, and lacks nothing but the upstream's key."""
    text = config.template(KEY, "an-api-key", SECRET)
    assert SECRET in text
    fresh = loaded(file, text, {"COMETAPI_KEY": "u"})
    assert fresh.security.signing_keys == (KEY,)
    assert fresh.security.api_keys == ("an-api-key",)
    assert config.servable(fresh, {}) == []
    [lack] = config.servable(loaded(file, text), {})
    assert "COMETAPI_API_KEY" in lack


READY = f'[security]\nsigning_keys = ["{KEY}"]\n[upstream]\napi_key = "u"\n[server]\n'


@pytest.mark.parametrize(
    ("server", "is_local"),
    [
        ("", True),
        ('host = "::1"\npublic_url = "http://localhost:8000/x"', True),
        ('host = "127.0.0.2"\npublic_url = "http://[::1]:8000"', True),
        ('host = "LocalHost"', True),
        ('host = "127.1"', False),
        ('host = "localhost.example.com"', False),
        ('host = "0.0.0.0"', False),
        ('host = "::"', False),
        ('public_url = "https://hooks.example.com"', False),
        ('public_url = "http://localhost.example.com"', False),
    ],
)
def test_without_api_keys_only_this_machine_is_served(file: Path, server: str, is_local: bool) -> None:
    """Contract 3: loopback host, and public_url unset or loopback."""
    assert bool(config.servable(loaded(file, READY + server), {})) is not is_local
    with_key = loaded(file, READY.replace("signing", 'api_keys = ["k"]\nsigning') + server)
    assert config.servable(with_key, {}) == []


def test_what_is_missing_says_how_to_get_it(file: Path) -> None:
    """No signing key names `receiver init`; SQLite on a disk that is wiped is refused unless forced."""
    assert "receiver init" in config.servable(loaded(file, ""), {})[0]
    [problem] = config.servable(loaded(file, READY), {"DYNO": "web.1"})
    assert "ephemeral=ok" in problem
    forced = loaded(file, READY + '[database]\nurl = "sqlite:///a.db?ephemeral=ok"')
    assert config.servable(forced, {"DYNO": "web.1"}) == []
