"""config: every mistake at once, each at its place, in words and without a secret."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.config_text import HOOK, NO_URL, SEKRIT, mistakes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test's config stands."""
    return tmp_path / "config.toml"


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
kind = "slck"
"""
    assert mistakes(file, text, {"RECEIVER_SERVER__PUBLIC_URL": "soon", "RECEIVER_SERVER__PROT": "1"}) == [
        "environment: RECEIVER_SERVER__PROT: there is no such key (did you mean RECEIVER_SERVER__PORT?)",
        f'environment: RECEIVER_SERVER__PUBLIC_URL: {NO_URL}, not "soon"',
        "config.toml:2: server.prot: there is no such key (did you mean port?)",
        'config.toml:3: server.port: a whole number is wanted, not "8000"',
        "config.toml:6: archive.url: the archive is not built yet in this release",
        "config.toml:8: polling.jitter: 1 or less is wanted, not 2",
        'config.toml:13: destinations[0].events[0]: no event is called "task.suceeded" (did you mean task.succeeded?)',
        'config.toml:16: destinations[1].kind: there is no kind "slck" (did you mean slack?)',
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
        (HOOK + 'match = { "" = 1 }', 'config.toml:5: destinations[0].match."": it is empty'),
        ('[database]\nurl = "sqlite:///file::memory:"', "config.toml:2: database.url: a database in memory would lose"),
        (HOOK + "match = { a = [] }", "config.toml:5: destinations[0].match.a: a value or a list"),
    ],
)
def test_a_mistake_is_named_at_its_place(file: Path, text: str, problem: str) -> None:
    """With its line, its key, the reason and what was probably meant."""
    assert any(problem in one for one in mistakes(file, text))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[archive]\nurl = "s3://b/p"', "archive.url"),
    ],
)
def test_what_is_not_built_yet_is_refused_where_it_is_switched_on(file: Path, text: str, key: str) -> None:
    """One message, at its line, that says so."""
    [problem] = mistakes(file, text)
    assert re.fullmatch(r"config\.toml:\d+: " + re.escape(key) + ": .*is not built yet in this release.*", problem)


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
        *(
            f'[database]\nurl = "postgres://u:x{sign}{SEKRIT}@h/d"'
            for sign in ("@", "/", "?", "#", "%", "[", " ", "%00")
        ),
        HOOK + f'secrets = ["{SEKRIT}"]',
        HOOK + f'secrets = "{SEKRIT}"',
        HOOK.replace("https://", f"ftp://{SEKRIT}@"),
        HOOK + "headers = { X-Key = 424242 }",
        HOOK + f'headers = {{ Authorization = "{SEKRIT}\\u00e9" }}',
    ],
)
def test_a_mistake_never_repeats_a_secret(file: Path, text: str) -> None:
    """What is wrong with it is said without it."""
    said = "\n".join(mistakes(file, text))
    assert SEKRIT not in said
    assert "424242" not in said


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
