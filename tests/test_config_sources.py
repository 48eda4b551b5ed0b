"""config: every value by every way there is, in order; secrets from files, names in strings."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest

from receiver import config
from receiver.errors import ConfigError
from tests.config_text import HOOK, KEY, SECRET, loaded, mistakes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test's config stands."""
    return tmp_path / "config.toml"


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
    assert loaded(file, "", {"DATABASE_URL": "postgres://u:p@h/d"}).database.url == "postgres://u:p@h/d"


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
            "RECEIVER_SERVER_PORT": "tcp://10.0.0.2:80",
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
    of_the_file = '[upstream]\napi_key_file = "nope"'
    assert loaded(file, of_the_file, {"RECEIVER_UPSTREAM__API_KEY": "x"}).upstream.api_key == "x"


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
    elsewhere = {"RECEIVER_DATABASE__URL": "sqlite:////var/lib/r.db"}
    assert config.load(tmp_path / "a?b" / "config.toml", elsewhere).database.url == elsewhere["RECEIVER_DATABASE__URL"]


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
