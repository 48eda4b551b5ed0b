"""config: every mistake at once, each at its place and without a secret; every value by every way there is."""

from __future__ import annotations

import json
import os
import re
import tomllib
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from receiver import config
from receiver.config import values
from receiver.config.models import PLANNED_KINDS, SECRET_KEYS, SECTIONS
from receiver.destinations import KINDS
from receiver.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = "k" * 32
NO_URL = "an absolute URL is wanted, beginning with https:// (or http://)"
HOOK = '[[destinations]]\nname = "a"\nkind = "webhook"\nurl = "https://x.example/h"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test's config stands."""
    return tmp_path / "config.toml"


def loaded(file: Path, text: str | bytes, environ: Mapping[str, str] | None = None, **overrides: Any) -> config.Config:
    """The config of a text."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return config.load(file, environ or {}, overrides=overrides)


def mistakes(file: Path, text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
    """What is wrong with a text, the folder left out."""
    with pytest.raises(ConfigError) as caught:
        loaded(file, text, environ)
    return [problem.replace(f"{file.parent}/", "") for problem in caught.value.problems]


# -- the example and the template -------------------------------------------------------------------------------------


def test_the_example_equals_the_defaults(tmp_path: Path) -> None:
    """It parses as it stands, and what stands in it is what is compiled in."""
    here, empty = tmp_path / "example.toml", tmp_path / "empty.toml"
    here.write_bytes(EXAMPLE.read_bytes())
    empty.write_text("")
    assert config.load(here, {}) == config.load(empty, {})


def _uncommented(text: str) -> dict[str, Any]:
    """The example with its commented keys switched on."""
    return tomllib.loads(re.sub(r"^# (?=[a-z_]+ = |\[\[)", "", text, flags=re.MULTILINE))


def test_the_example_names_every_key() -> None:
    """Both ways: no key is missing from it, and none in it is unknown."""
    text = EXAMPLE.read_text()
    named = _uncommented(text)
    expected = {section: set(model.model_fields) for section, model in SECTIONS.items()}
    for secret in SECRET_KEYS:
        section, key = secret.split(".")
        expected[section].add(f"{key}_file")
    expected["destinations"] = {
        *config.Destination.model_fields,
        *KINDS["webhook"].options.model_fields,
        "secrets_file",
    }
    expected["destinations"].discard("options")
    found = {name: set(table[0] if isinstance(table, list) else table) for name, table in named.items()}
    assert found == expected


def test_a_key_with_a_default_stands_in_the_example_with_it() -> None:
    """Only what has no default is commented out."""
    standing = tomllib.loads(EXAMPLE.read_text())
    for section, model in SECTIONS.items():
        with_default = {name for name, field in model.model_fields.items() if field.default not in {None, ()}}
        assert set(standing[section]) == with_default


def test_every_key_of_the_example_is_explained() -> None:
    """In plain words on its line; chat kinds are named as coming."""
    text = EXAMPLE.read_text()
    lines = re.findall(r"^(?:# )?[a-z_]+ = .*$", text, re.MULTILINE)
    assert lines
    assert [line for line in lines if not re.search(r"\S +# \S.{5,}", line)] == []
    assert all(kind in text for kind in PLANNED_KINDS)


def test_what_is_commented_out_in_the_example_is_right_too(file: Path) -> None:
    """Switched on, only what is not built yet is refused."""
    named = _uncommented(EXAMPLE.read_text())
    for table in (*named.values(), *named["destinations"]):
        for key in [key for key in table if isinstance(table, dict) and str(key).endswith("_file")]:
            del table[key]
    problems = mistakes(file, tomli_w.dumps(named), {"COMETAPI_KEY": "x"})
    assert [problem.split(": ")[1] for problem in problems] == [
        "server.rate_per_key",
        "upstream.rate",
        "destinations[0].rate",
    ]


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


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_every_mistake_at_once_each_at_its_place(file: Path) -> None:
    """File, environment and what is not built yet, in one go."""
    text = f"""\
[server]
prot = 1
port = "8000"

[archive]
url = "file:///x"
[polling]
jitter = 2
{HOOK}events = ["task.suceeded"]
[[destinations]]
name = "chat"
kind = "slack"
"""
    assert mistakes(file, text, {"RECEIVER_SERVER__PUBLIC_URL": "soon", "RECEIVER_SERVER__PROT": "1"}) == [
        "environment: RECEIVER_SERVER__PROT: there is no such key (did you mean RECEIVER_SERVER__PORT?)",
        f'environment: RECEIVER_SERVER__PUBLIC_URL: {NO_URL}, not "soon"',
        "config.toml:2: server.prot: there is no such key (did you mean port?)",
        'config.toml:3: server.port: a whole number is wanted, not "8000"',
        "config.toml:6: archive.url: the archive is not built yet in this release",
        "config.toml:8: polling.jitter: 1 or less is wanted, not 2",
        'config.toml:13: destinations[0].events[0]: no event is called "task.suceeded" (did you mean task.succeeded?)',
        'config.toml:16: destinations[1].kind: "slack" is not built yet in this release (built: webhook)',
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[servr]\n", "config.toml:1: servr: there is no such section (did you mean server?)"),
        ("port = 1", "config.toml:1: port: there is no such section (did you mean server.port?)"),
        ("server = 1", "config.toml:1: server: a table is wanted: [server]"),
        ('[destinations]\nname = "a"', "destinations: a list of tables is wanted: [[destinations]]"),
        ("[server]\nport = true", "config.toml:2: server.port: a whole number is wanted, not true"),
        ("[server]\nport = 70000", "config.toml:2: server.port: 65535 or less is wanted, not 70000"),
        ("[database]\nmigrate = 1", "config.toml:2: database.migrate: true or false is wanted, not 1"),
        ("[upstream]\ntimeout = true", "config.toml:2: upstream.timeout: a duration"),
        ("[upstream]\ntimeout = 0", "config.toml:2: upstream.timeout: a duration above zero is wanted"),
        ("[upstream]\ntimeout = inf", "config.toml:2: upstream.timeout: a duration"),
        ('[upstream]\nsubmit_retry = ["1s", "0s"]', "config.toml:2: upstream.submit_retry[1]: a duration above zero"),
        ("[delivery]\nschedule = []", "config.toml:2: delivery.schedule: at least one is wanted"),
        ("[polling]\nbackoff = 0.5", "config.toml:2: polling.backoff: 1 or more is wanted, not 0.5"),
        ('[logging]\nlevel = "warn"', "(did you mean warning?)"),
        ('[upstream]\nconfirm_callbacks = "allways"', "(did you mean always?)"),
        ('[server]\nmax_submission = "48 potatoes"', 'config.toml:2: server.max_submission: a size such as "48MiB"'),
        ('[server]\nhost = "http://x"', "config.toml:2: server.host: an address or a name to listen on"),
        ('[server]\npublic_url = "hooks.example.com"', "config.toml:2: server.public_url: an absolute URL is wanted"),
        ('[server]\npublic_url = "https://x?a=b"', "config.toml:2: server.public_url: a query or fragment"),
        ('[server]\npublic_url = "https://x:99999"', "config.toml:2: server.public_url: this is no URL"),
        ('[database]\nurl = "sqlite:///:memory:"', "config.toml:2: database.url: a database in memory would lose"),
        ('[database]\nurl = "sqlite:///a.db?mode=ro"', "config.toml:2: database.url: the only thing"),
        ('[database]\nurl = "mysql://u:SEKRIT@h/d"', 'config.toml:2: database.url: "sqlite:///receiver.db"'),
        ("[security]\nsigning_keys = 1", "config.toml:2: security.signing_keys: a list is wanted"),
        (HOOK + HOOK, 'config.toml:6: destinations[1].name: "a" is the name of destinations[0] too'),
        (HOOK.replace('"a"', '"A b"'), "config.toml:2: destinations[0].name: small letters, digits and -"),
        (HOOK.replace("webhook", "slak"), 'destinations[0].kind: there is no kind "slak" (did you mean slack?)'),
        (
            HOOK.replace('url = "', 'uri = "'),
            "config.toml:4: destinations[0].uri: there is no such key (did you mean url?)",
        ),
        (HOOK + 'routes = ["runway/pro/video2vide"]', "(did you mean runway/pro/video2video?)"),
        (HOOK + "events = []", "config.toml:5: destinations[0].events: at least one is wanted"),
        (HOOK + 'options = "x"', "config.toml:5: destinations[0].options: there is no such key"),
        (HOOK + "headers = { X = 1 }", "config.toml:5: destinations[0].headers.X: text in quotes is wanted"),
        (
            "[server]\napi_keys = []",
            "config.toml:2: server.api_keys: there is no such key (did you mean security.api_keys?)",
        ),
        ("[security]\nsigning_keys_fil = 1", "(did you mean signing_keys_file?)"),
        ("[upstream]\ntimeout = " + "9" * 400, "config.toml:2: upstream.timeout: a duration"),
        ('[upstream]\ntimeout = "30"', 'number of seconds, is wanted, not "30"'),
        ('[upstream]\ntimeout = "٣s"', 'number of seconds, is wanted, not "٣s"'),
        (f'[server]\nmax_submission = "{"9" * 400}TiB"', "config.toml:2: server.max_submission: a size"),
        ('[polling]\njitter = "0.2"', 'config.toml:2: polling.jitter: a number is wanted, not "0.2"'),
        ("[polling]\njitter = true", "config.toml:2: polling.jitter: a number is wanted, not true"),
        ("[polling]\njitter = nan", "config.toml:2: polling.jitter: a number is wanted, not NaN"),
        (
            "[polling]\nmax_concurrency = 8.0",
            "config.toml:2: polling.max_concurrency: a whole number is wanted, not 8.0",
        ),
        ("[server]\nport = 2024-01-01", "config.toml:2: server.port: a whole number is wanted, not 2024-01-01"),
        ('[upstream]\nrunway_version = "a\\nb: c"', 'it goes into a header, not "a\\nb: c"'),
        ('[upstream]\napi_key = "two words"', "config.toml:2: upstream.api_key: it is empty, or not plain ASCII"),
        ('[archive]\nurl = "/var/lib"', 'config.toml:2: archive.url: "file:///var/lib/receiver/renders" or'),
        ('[archive]\npublic_base = "x"', f'config.toml:2: archive.public_base: {NO_URL}, not "x"'),
        ('[database]\nurl = "sqlite:///folder/"', "config.toml:2: database.url: the name of a file is wanted"),
        ('[server]\n"\\u001b[31mx" = 1', 'config.toml:2: server."\\u001b[31mx": there is no such key'),
        (
            'destinations = [\n{ name = "a" },\n{ name = 1 }]',
            "config.toml:3: destinations[1].name: text in quotes is wanted",
        ),
        ("destinations = [1]", "config.toml:1: destinations[0]: a table is wanted: [[destinations]]"),
        (
            HOOK + HOOK.replace("https", "ftp"),
            'config.toml:6: destinations[1].name: "a" is the name of destinations[0]',
        ),
        (HOOK + 'headers = { "X-Env" = 1 }', "config.toml:5: destinations[0].headers.X-Env: text in quotes is wanted"),
        (HOOK + 'match = { "a.b" = nan }', 'config.toml:5: destinations[0].match."a.b": a value or a list of values'),
        (HOOK + "match = { a = 2024-01-01 }", "config.toml:5: destinations[0].match.a: a value or a list of values"),
        (HOOK + "match = { a = [] }", "config.toml:5: destinations[0].match.a: a value or a list"),
    ],
)
def test_a_mistake_is_named_at_its_place(file: Path, text: str, problem: str) -> None:
    """With its line, its key, the reason and what was probably meant."""
    assert any(problem in one for one in mistakes(file, text))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[database]\nurl = "postgresql://u:SEKRIT@h/d"', "database.url"),
        ('[database]\nurl = "postgres://u:SEKRIT@h/d"', "database.url"),
        ('[archive]\nurl = "s3://b/p"', "archive.url"),
        ('[server]\nrate_per_key = "100/s"', "server.rate_per_key"),
        ('[upstream]\nrate = "5/s"', "upstream.rate"),
        (HOOK + 'rate = "10/s"', "destinations[0].rate"),
        (HOOK + 'format = "envelope"', "destinations[0].format"),
        (HOOK + 'format = "cloudevents"', "destinations[0].format"),
        (HOOK + 'events = ["task.*", "delivery.dead"]', "destinations[0].events[1]"),
        (HOOK + 'events = ["destination.*"]', "destinations[0].events[0]"),
        (HOOK + 'events = ["task.ambiguous"]', "destinations[0].events[0]"),
        *((HOOK.replace("webhook", kind), "destinations[0].kind") for kind in ("discord", "email", "apprise")),
    ],
)
def test_what_is_not_built_yet_is_refused_where_it_is_switched_on(file: Path, text: str, key: str) -> None:
    """One message, at its line, that says so."""
    [problem] = mistakes(file, text)
    assert re.fullmatch(r"config\.toml:\d+: " + re.escape(key) + ": .*is not built yet in this release.*", problem)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"[server]\nport = \n", "config.toml:2: it is not TOML"),
        (b"[server]\nport = 1\nport = 2", "config.toml:3: it is not TOML"),
        (b"# ok\n# caf\xe9\n", "config.toml:2: it is not UTF-8"),
        ("[server]".encode("utf-16"), "config.toml:1: it is not UTF-8"),
        (b"x = " + b"[" * 5000, "config.toml: it is not TOML"),
        (b"x = " + b"9" * 5000, "config.toml: it is not TOML"),
    ],
)
def test_a_file_that_is_no_toml_is_said_to_be_none(file: Path, data: bytes, problem: str) -> None:
    """With the line where it can be known; nothing else escapes."""
    [said] = mistakes(file, data)
    assert said.startswith(problem)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, or a folder."""
    for path, why in ((tmp_path / "nope.toml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: it cannot be read: {why}"):
            config.load(path, {})


@given(st.binary(max_size=200) | st.text(st.sampled_from("[]{}=\"'.# \n\tab1,$:-"), max_size=60).map(str.encode))
def test_no_file_makes_anything_but_a_config_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever bytes stand in it."""
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    with suppress(ConfigError):
        config.load(path, {})


@pytest.mark.parametrize("name", ["/dev/zero", "big"])
def test_a_file_without_an_end_is_no_config(tmp_path: Path, name: str) -> None:
    """Nor is one of megabytes; neither is read to its end, as a config or as a secret."""
    (tmp_path / "big").write_bytes(b"#" * 5_000_000)
    (tmp_path / "config.toml").write_text(f'[upstream]\napi_key_file = "{name}"')
    for path in (tmp_path / name, tmp_path / "config.toml"):
        with pytest.raises(ConfigError, match=r"cannot be read: it has more than \d+ bytes"):
            config.load(path, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_named(file: Path) -> None:
    """With the system's word for it."""
    file.touch(mode=0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        config.load(file, {})


_WORDS = st.sampled_from(
    [
        "server",
        "destinations",
        "name",
        "kind",
        "webhook",
        "url",
        "port",
        "secrets",
        "${A}",
        "${B:-7}",
        "match",
        "*",
        "timeout",
    ]
)
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | _WORDS | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
_NAMES = st.sampled_from(
    [
        *(f"RECEIVER_{section}__{key}".upper() for section, model in SECTIONS.items() for key in model.model_fields),
        *(f"RECEIVER_{name}_FILE".replace(".", "__").upper() for name in SECRET_KEYS),
        *("RECEIVER_DESTINATIONS", "PORT", "DATABASE_URL", "COMETAPI_KEY", "COMETAPI_API_KEY", "A", "RECEIVER_X__Y"),
    ]
)
_TEXTS = st.text(max_size=12).filter(lambda text: "\0" not in text) | _ANY.map(
    lambda value: json.dumps(value, default=str)
)


@given(
    st.dictionaries(st.sampled_from([*SECTIONS, "destinations", "x"]), _ANY, max_size=4),
    st.dictionaries(_NAMES, _TEXTS),
)
def test_no_tree_and_no_environment_makes_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any], environ: dict[str, str]
) -> None:
    """Any values under any keys, in the file and in variables; each mistake is one line that nothing obeys."""
    path = tmp_path_factory.getbasetemp() / "tree.toml"
    path.write_text(tomli_w.dumps(_without_none(tree)), encoding="utf-8")
    problems: list[str] = []
    try:
        read, raw = config.load_with_sources(path, environ)
        config.effective(read, raw)
        config.secrets_of(read)
    except ConfigError as error:
        problems = error.problems or [""]
    assert all(re.match(r"(?:environment|.*tree\.toml:\d+): \S", problem) for problem in problems)
    assert all(problem.isprintable() for problem in problems)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(member) for key, member in value.items() if member is not None}
    return [_without_none(member) for member in value if member is not None] if isinstance(value, list) else value


SEKRIT = "SEKRIT-value-that-must-not-show"


@pytest.mark.parametrize(
    "text",
    [
        f'[security]\nsigning_keys = ["{SEKRIT}"]',
        f'[security]\nsigning_keys = "{SEKRIT}"',
        f'[security]\napi_keys = ["{SEKRIT} with spaces"]',
        f'[security]\ncallback_secrets = ["whsec_{SEKRIT}"]',
        f'[upstream]\napi_key = "{SEKRIT}\\n"',
        f'[server]\npublic_url = "https://u:{SEKRIT}@h.example"',
        f'[upstream]\nbase_url = "ftp://u:{SEKRIT}@h.example"',
        f'[database]\nurl = "mysql://u:{SEKRIT}@h/d"',
        HOOK + f'secrets = ["{SEKRIT}"]',
        HOOK + f'secrets = "{SEKRIT}"',
        HOOK.replace("https://", f"ftp://{SEKRIT}@"),
        HOOK + f'headers = {{ Authorization = "{SEKRIT}\\u00e9" }}',
    ],
)
def test_a_mistake_never_repeats_a_secret(file: Path, text: str) -> None:
    """What is wrong with it is said without it."""
    assert SEKRIT not in "\n".join(mistakes(file, text))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ftp://hooks.example.com/SEKRIT?SEKRIT", "ftp://hooks.example.com/…"),
        ("ftp://u:SEKRIT@hooks.example.com:80", "ftp://hooks.example.com:80"),
        ("ftp://u:SEK/RIT@SEKRIT@hooks.example.com", "ftp://hooks.example.com"),
        ("https://u:SEKRIT", "https://u"),
        ("u:SEKRIT@hooks.example.com", "hooks.example.com"),
        ("hooks.example.com/SEKRIT", "hooks.example.com/…"),
        ("SEK RIT@x://[::1]:8000", "…://[::1]:8000"),
    ],
)
def test_of_a_url_that_is_wrong_the_scheme_and_the_host_are_named(file: Path, url: str, shown: str) -> None:
    """So that it is found in the file; what is around the host may be a secret."""
    [said] = mistakes(file, f'[server]\npublic_url = "{url}"')
    assert said.endswith(f', not "{shown}"')


def test_what_a_reference_stood_for_is_not_named(file: Path) -> None:
    """It may be anything there is in the environment; the mistake shows what the file says."""
    [said] = mistakes(file, '[server]\nport = "${COMETAPI_KEY}"', {"COMETAPI_KEY": SEKRIT})
    assert said == 'config.toml:2: server.port: a whole number is wanted, not "${COMETAPI_KEY}"'


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


# -- where values come from -------------------------------------------------------------------------------------------


def test_without_a_file_the_defaults_hold() -> None:
    """No file is needed."""
    read = config.load(None, {})
    assert read.server.port == 8000
    assert read.destinations == ()
    assert read.delivery.schedule[:3] == (timedelta(0), timedelta(seconds=5), timedelta(minutes=5))


def test_the_file_is_found_in_order(tmp_path: Path) -> None:
    """`--config`, then $RECEIVER_CONFIG, then ./config.toml, else none."""
    assert config.find(None, {}, tmp_path) is None
    (tmp_path / "config.toml").touch()
    assert config.find(None, {}, tmp_path) == tmp_path / "config.toml"
    assert config.find(None, {"RECEIVER_CONFIG": "b.toml"}, tmp_path) == Path("b.toml")
    assert config.find(Path("a.toml"), {"RECEIVER_CONFIG": "b.toml"}, tmp_path) == Path("a.toml")


def test_the_port_comes_in_order(file: Path) -> None:
    """The command line, RECEIVER_SERVER__PORT, $PORT, the file, 8000."""
    text, ours, platform = "[server]\nport = 1", {"RECEIVER_SERVER__PORT": "3"}, {"PORT": "2"}
    assert loaded(file, "").server.port == 8000
    assert loaded(file, text).server.port == 1
    assert loaded(file, text, platform).server.port == 2
    assert loaded(file, text, platform | ours).server.port == 3
    assert loaded(file, text, platform | ours, **{"server.port": 4}).server.port == 4
    assert mistakes(file, text, {"PORT": "²"}) == ['environment: PORT: a whole number is wanted, not "²"']
    assert mistakes(file, text, {"PORT": "x"}) == ['environment: PORT: a whole number is wanted, not "x"']


def test_the_database_comes_in_order(file: Path) -> None:
    """RECEIVER_DATABASE__URL, the file, $DATABASE_URL, the default; a relative file is beside the config."""
    beside = f"sqlite:///{file.parent}"
    platform, ours = {"DATABASE_URL": "sqlite:///p.db"}, {"RECEIVER_DATABASE__URL": "sqlite:////abs/o.db"}
    assert loaded(file, "").database.url == f"{beside}/receiver.db"
    assert loaded(file, "", platform).database.url == f"{beside}/p.db"
    assert loaded(file, '[database]\nurl = "sqlite:///f.db"', platform).database.url == f"{beside}/f.db"
    assert loaded(file, "", platform | ours).database.url == "sqlite:////abs/o.db"
    [problem] = mistakes(file, "", {"DATABASE_URL": "postgres://u:SEKRIT@h/d"})
    assert problem.startswith("environment: DATABASE_URL: PostgreSQL")
    assert "SEKRIT" not in problem


def test_the_upstream_key_comes_in_order(file: Path) -> None:
    """RECEIVER_UPSTREAM__API_KEY, the file, $COMETAPI_KEY, $COMETAPI_API_KEY; an unset ${COMETAPI_KEY} is none."""
    text = '[upstream]\napi_key = "${COMETAPI_KEY}"'
    platform, named = {"COMETAPI_API_KEY": "a"}, {"COMETAPI_KEY": "b"}
    assert loaded(file, text).upstream.api_key is None
    assert loaded(file, text, platform).upstream.api_key == "a"
    assert loaded(file, text, platform | named).upstream.api_key == "b"
    assert loaded(file, "", platform | named).upstream.api_key == "b"
    assert loaded(file, text.replace("${COMETAPI_KEY}", "c"), platform | named).upstream.api_key == "c"
    assert loaded(file, text, platform | named | {"RECEIVER_UPSTREAM__API_KEY": "123"}).upstream.api_key == "123"


def test_every_key_can_come_from_the_environment(file: Path) -> None:
    """Text, numbers, truth values, durations, and lists as JSON."""
    read = loaded(
        file,
        '[security]\napi_keys = ["of the file"]\n' + HOOK,
        {
            "RECEIVER_SERVER__PUBLIC_URL": "https://h.example/a/",
            "RECEIVER_DATABASE__MIGRATE": "False",
            "RECEIVER_SECURITY__API_KEYS": '["one", "two"]',
            "RECEIVER_UPSTREAM__TIMEOUT": "30",
            "RECEIVER_POLLING__JITTER": "0.5",
            "RECEIVER_DELIVERY__SCHEDULE": '["0s", 5]',
            "RECEIVER_DESTINATIONS": json.dumps(
                [{"name": "b", "kind": "webhook", "url": "https://y.example/${WORD}", "secrets": [SECRET]}]
            ),
            "WORD": 'a"b',
            "RECEIVER_URL": "not a key",
            "RECEIVER_API_KEY": "not a key",
            "RECEIVER_PORT": "tcp://10.0.0.1:80",
        },
    )
    assert read.server.public_url == "https://h.example/a"
    assert read.database.migrate is False
    assert read.security.api_keys == ("one", "two")
    assert read.upstream.timeout == timedelta(seconds=30)
    assert read.polling.jitter == 0.5
    assert read.delivery.schedule == (timedelta(0), timedelta(seconds=5))
    [only] = read.destinations
    assert only.name == "b"
    assert only.options.url == 'https://y.example/a"b'


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("RECEIVER_SERVER__HOST", "\udcffSEKRIT", "it is not UTF-8"),
        ("COMETAPI_KEY", "\udcffSEKRIT", "it is not UTF-8"),
        (
            "RECEIVER_SECURITY__SIGNING_KEYS",
            f'["{KEY}\\ud800"]',
            "a list is wanted, written as JSON, and this is none: half",
        ),
        ("RECEIVER_SECURITY__SIGNING_KEYS", '"SEKRIT"', "a list is wanted"),
        (
            "RECEIVER_DESTINATIONS",
            "[" * 100_000,
            "a list is wanted, written as JSON, and this is none: lists are nested",
        ),
        ("RECEIVER_DESTINATIONS", '[{"name": "a", "kind": "webhook"}]', "it is missing"),
        ("RECEIVER_SERVR__PORT", "1", "there is no such key (did you mean RECEIVER_SERVER__PORT?)"),
        ("RECEIVER_DESTINATION", "[]", "there is no such key (did you mean RECEIVER_DESTINATIONS?)"),
        ("RECEIVER_SERVER_HOST", "::", "it is not read (did you mean RECEIVER_SERVER__HOST, with two underscores?)"),
        ("RECEIVER_SECURITY__API_KEYS", "SEKRIT", "a list is wanted, written as JSON, and this is none: Expecting"),
        ("RECEIVER_DESTINATIONS", "{SEKRIT", "a list is wanted, written as JSON, and this is none: Expecting"),
        ("RECEIVER_DESTINATIONS", "{}", "a list of tables is wanted: [[destinations]]"),
    ],
)
def test_a_variable_that_is_wrong_is_named(file: Path, name: str, value: str, problem: str) -> None:
    """An unknown one is an error: a setting that is not read would be found out too late."""
    [said] = mistakes(file, "", {name: value})
    assert re.fullmatch(rf"environment: {name}(\[0\]\.url)?: {re.escape(problem)}.*", said)
    assert "SEKRIT" not in said


def test_an_empty_variable_unsets_what_may_be_unset(file: Path) -> None:
    """As container platforms pass them."""
    text = '[server]\npublic_url = "https://x.example"'
    assert loaded(file, text, {"RECEIVER_SERVER__PUBLIC_URL": "", "PORT": ""}).server.public_url is None


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("a-${NAME}-b", "a-value-b"),
        ("${NAME}${NAME}", "valuevalue"),
        ("${NOPE:-default}", "default"),
        ("${NOPE:-}x", "x"),
        ("${EMPTY:-default}", "default"),
        ("x${EMPTY}", "x"),
        ("$${NAME}", "${NAME}"),
        ("$$${NAME}", "$${NAME}"),
        ("a$${b", "a${b"),
        ("${NOPE:-a$b}", "a$b"),
        ("cost$$5", "cost$$5"),
        ("$NAME", "$NAME"),
    ],
)
def test_names_in_strings_are_replaced(file: Path, text: str, result: str) -> None:
    """`${NAME}`, `${NAME:-default}`; `$${` is the two characters; nothing else is special."""
    environ = {"NAME": "value", "EMPTY": ""}
    assert loaded(file, f'[upstream]\napi_key = "{text}"', environ).upstream.api_key == result


def test_a_name_can_stand_for_a_number(file: Path) -> None:
    """`port = "${PORT_OF_OURS:-9000}"`."""
    assert loaded(file, '[server]\nport = "${P:-9000}"').server.port == 9000


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '[security]\nsigning_keys = ["${NOPE}"]',
            "config.toml:2: security.signing_keys[0]: the environment variable NOPE",
        ),
        (
            HOOK.replace("https://x.example/h", "${NOPE}"),
            "config.toml:4: destinations[0].url: the environment variable NOPE",
        ),
        ('[upstream]\napi_key = "${A:-${B}}"', "config.toml:2: upstream.api_key: ${ begins the name"),
        ('[upstream]\napi_key_file = "${NOPE}"', "config.toml:2: upstream.api_key_file: the environment variable NOPE"),
        (HOOK + 'secrets = ["${NOPE}"]', "config.toml:5: destinations[0].secrets[0]: the environment variable NOPE"),
        (HOOK + 'events = ["${NOPE}"]', "config.toml:5: destinations[0].events[0]: the environment variable NOPE"),
        (HOOK.replace("webhook", "${NOPE}"), "config.toml:3: destinations[0].kind: the environment variable NOPE"),
        ('[upstream]\napi_key = "${not a name}"', "config.toml:2: upstream.api_key: ${ begins the name"),
    ],
)
def test_a_name_that_is_not_set_is_one_mistake(file: Path, text: str, problem: str) -> None:
    """And nothing that merely follows from it is another."""
    [said] = mistakes(file, text)
    assert said.startswith(problem)


def test_an_unset_name_hides_no_other_mistake(file: Path) -> None:
    """Not even one in the same list."""
    said = mistakes(
        file,
        '[security]\nsigning_keys = ["${NOPE}", "short"]\n[upstream]\nrunway_version = "${BAD}"',
        {"BAD": "\udcff"},
    )
    assert [one.split(": ")[1] for one in said] == [
        "security.signing_keys[0]",
        "security.signing_keys[1]",
        "upstream.runway_version",
    ]


def test_a_name_can_stand_for_a_destinations_number(file: Path) -> None:
    """As for a section's; and what it stood for is not looked into again."""
    [one] = loaded(
        file, HOOK + 'max_concurrency = "${N}"\nheaders = { X = "${H}" }', {"N": "3", "H": "${N}"}
    ).destinations
    assert one.max_concurrency == 3
    assert one.options.headers == {"X": "${N}"}


def test_a_secret_can_come_from_a_file(file: Path) -> None:
    """A list: one a line; relative to the config's folder; a file in the environment wins over a value in the file."""
    (file.parent / "keys").write_text(f"\ufeff{KEY}\n\n#{KEY}\u2028\r\n")
    (file.parent / "hook").write_text(SECRET)
    (file.parent / "up").write_text("the-key\n")
    read = loaded(
        file,
        '[security]\nsigning_keys_file = "keys"\n[upstream]\napi_key = "x"\n' + HOOK + 'secrets_file = "hook"',
        {"RECEIVER_UPSTREAM__API_KEY_FILE": str(file.parent / "up"), "COMETAPI_API_KEY": "y"},
    )
    assert read.security.signing_keys == (KEY, f"#{KEY}")
    assert read.destinations[0].options.secrets == (SECRET,)
    assert read.upstream.api_key == "the-key"


@pytest.mark.parametrize(
    ("text", "environ", "problem"),
    [
        (
            f'[upstream]\napi_key = "{KEY}"\napi_key_file = "k"',
            {},
            "config.toml:3: upstream.api_key_file: api_key is given too",
        ),
        (
            "",
            {"RECEIVER_UPSTREAM__API_KEY": "x", "RECEIVER_UPSTREAM__API_KEY_FILE": "k"},
            "environment: RECEIVER_UPSTREAM__API_KEY_FILE: RECEIVER_UPSTREAM__API_KEY is given too",
        ),
        (
            '[upstream]\napi_key_file = "nope"',
            {},
            "config.toml:2: upstream.api_key_file: the file cannot be read: No such",
        ),
        ('[upstream]\napi_key_file = "."', {}, "config.toml:2: upstream.api_key_file: the file cannot be read: Is a"),
        ('[upstream]\napi_key_file = "a\\u0000b"', {}, "config.toml:2: upstream.api_key_file: the file cannot be read"),
        ('[security]\napi_keys_file = "empty"', {}, "config.toml:2: security.api_keys_file: the file is empty"),
        (
            '[upstream]\napi_key_file = "latin"',
            {},
            "config.toml:2: upstream.api_key_file: the file cannot be read: it is not",
        ),
        (
            "",
            {"RECEIVER_SECURITY__API_KEYS_FILE": "no"},
            "environment: RECEIVER_SECURITY__API_KEYS_FILE: the file cannot",
        ),
        ("[upstream]\napi_key_file = 1", {}, "config.toml:2: upstream.api_key_file: the name of a file is wanted"),
        ('[security]\nsigning_keys_file = "k"', {}, "config.toml:2: security.signing_keys[0]: it has 5 characters"),
    ],
)
def test_a_secret_file_that_is_wrong_is_named(file: Path, text: str, environ: dict[str, str], problem: str) -> None:
    """Both ways at once, unreadable, or with something unfit in it: one mistake each."""
    (file.parent / "k").write_text("short")
    (file.parent / "empty").write_text(" \n\n")
    (file.parent / "latin").write_bytes(b"\xff")
    [said] = mistakes(file, text, environ)
    assert said.startswith(problem)


def test_a_link_to_the_config_counts_as_the_config(tmp_path: Path) -> None:
    """A mounted file is a link into a folder that is replaced at every change: no place for a database."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "config.toml").touch()
    (tmp_path / "config.toml").symlink_to("..2026/config.toml")
    assert config.load(tmp_path / "config.toml", {}).database.url == f"sqlite:///{tmp_path}/receiver.db"


def test_a_folder_whose_name_cannot_stand_in_a_url_is_refused(tmp_path: Path) -> None:
    """Cut off at its ?, the database would be another file."""
    (tmp_path / "a?b").mkdir()
    (tmp_path / "a?b" / "config.toml").touch()
    with pytest.raises(ConfigError, match=r"database\.url: the config file's folder has a \? in its name"):
        config.load(tmp_path / "a?b" / "config.toml", {})


def test_the_command_line_cannot_mend_a_file(file: Path) -> None:
    """What is no table stays a mistake, and is told as one."""
    file.write_text("server = 1")
    with pytest.raises(ConfigError, match="server: a table is wanted"):
        config.load(file, {"RECEIVER_SERVER__HOST": "::", "PORT": "1"}, overrides={"server.port": 4})


def test_a_byte_order_mark_and_windows_line_ends_are_tolerated(file: Path) -> None:
    """As some editors write them; the lines still count right."""
    assert loaded(file, b"\xef\xbb\xbf[server]\r\nport = 9\r\n").server.port == 9
    assert mistakes(file, b"\xef\xbb\xbf[server]\r\n\r\nport = true\r\n")[0].startswith("config.toml:3: server.port")


def test_a_destination_has_shared_keys_and_its_own(file: Path) -> None:
    """Overrides of [delivery] too; `match` may be written without quotes."""
    text = HOOK + (
        'events = ["task.*"]\nroutes = ["runway/pro/video2video"]\nschedule = ["0s"]\njitter = 0\ntimeout = 3\n'
        'circuit_failures = 2\ncircuit_pause = "1m"\nmatch = { metadata.team = "vfx", code = [200, 500] }\n'
        'headers = { "X-Env" = "prod" }\n'
    )
    [one] = loaded(file, text).destinations
    assert one.match == {"metadata.team": "vfx", "code": [200, 500]}
    assert (one.schedule, one.jitter, one.timeout) == ((timedelta(0),), 0.0, timedelta(seconds=3))
    assert (one.max_concurrency, one.allow_private) == (8, False)
    assert one.options.headers == {"X-Env": "prod"}


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
[[destinations]]
name = "a"
kind = "webhook"
url = "https://hooks.example.com/x?key=in-the-query"
secrets = ["{SECRET}"]
headers = {{ Authorization = "Basic abc", X-Env = "prod" }}
"""
    expected = {KEY, "an-api-key", SECRET, "the-upstream-key", "in-the-query", "Basic abc"}
    assert set(config.secrets_of(loaded(file, text))) == expected
    assert config.secrets_of(config.load(None, {})) == []


# -- the schema -------------------------------------------------------------------------------------------------------


def _schema_takes(document: Any) -> bool:
    schema = config.schema()
    Draft202012Validator.check_schema(schema)
    return bool(Draft202012Validator(schema).is_valid(document))


def test_the_example_is_valid_by_the_schema() -> None:
    """As it stands, and with what is commented out switched on, but for keys that exclude one another."""
    assert _schema_takes(tomllib.loads(EXAMPLE.read_text()))
    named = _uncommented(EXAMPLE.read_text())
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
        ({"destinations": [{**_DESTINATION, "kind": "slack"}]}, False),
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
        loaded(file, tomli_w.dumps(_without_none(document)), {"URL": "https://h.example"})
    except ConfigError:
        is_loaded = False
    assert is_loaded is is_taken or None in document.get("server", {}).values()


# -- what keeps `serve` from starting ---------------------------------------------------------------------------------

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


# -- values -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 3650 * 86_400_000))
def test_a_duration_reads_as_it_is_written(ms: int) -> None:
    """To the millisecond, whatever unit it is written in."""
    span = timedelta(milliseconds=ms)
    assert values.duration(values.written(span)) == span


@given(st.integers(1, 4096), st.sampled_from(["B", "KiB", "MiB", "GiB"]))
def test_a_size_is_what_it_says(count: int, unit: str) -> None:
    """Powers of 1024."""
    assert values.size(f"{count}{unit}") == count * 1024 ** ["B", "KiB", "MiB", "GiB"].index(unit)


@given(st.integers(1, 10_000), st.sampled_from("smh"))
def test_a_rate_reads_as_it_is_written(count: int, unit: str) -> None:
    """`"10/s"`."""
    assert values.rate(f"{count}/{unit}").count == count
    assert values.rate(str(values.rate(f"{count}/{unit}"))) == values.rate(f"{count}/{unit}")


@given(st.text(max_size=12) | st.floats() | st.booleans() | st.none() | st.lists(st.integers(), max_size=1))
def test_a_value_is_read_or_refused(value: Any) -> None:
    """Nothing but ValueError escapes, and nothing negative or endless gets in."""
    for read in (values.duration, values.positive, values.size, values.rate):
        try:
            found = read(value)
        except ValueError:
            continue
        assert not isinstance(value, bool | None | list)
        assert found is not None
