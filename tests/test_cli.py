"""The commands that need no running service: real processes, their output and their exit codes."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

from receiver.cli.emulator import emulator
from receiver.cli.submit import MEMBERS
from receiver.emulator import EmulatorOptions
from receiver.upstream import ROUTES
from tests.cli_world import SIGNING_KEY, UPSTREAM_KEY, environment, receiver, up, write_config
from tests.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = [
    "demo", "serve", "init", "submit", "emulator", "trigger", "config check", "config show", "config schema",
    "tasks list", "tasks show", "tasks refresh", "tasks cancel", "tasks adopt", "db upgrade", "db check",
    "db copy", "doctor",
]  # fmt: skip
READING = ["config check", "config show", "config schema", "tasks list", "tasks show", "db check", "doctor"]
PRO, VIDEO, IMAGE = "runway/pro/video2video", "runwayml/v1/video_to_video", "runwayml/v1/image_to_video"


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """A folder with a good config.toml, for a service that does not run."""
    write_config(tmp_path, port=1, upstream="https://api.example.com")
    return tmp_path


# -- help and usage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, tmp_path: Path) -> None:
    """--help: 0, an example that begins with the command itself, --config; reading ones have --json."""
    ended = receiver(*command.split(), "--help", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(rf"Example:\s+receiver {command}", ended.stdout)
    assert "--config" in ended.stdout
    assert command not in READING or "--json" in ended.stdout
    assert "\x1b" not in ended.stdout


def test_help_loads_nothing_heavy() -> None:
    """Neither the store, nor HTTP, nor the service, nor the config's models are imported for --help."""
    code = (
        "import sys; sys.argv = ['receiver', '--help']\n"
        "from receiver.cli import run\n"
        "assert run() == 0\n"
        "print(sorted({'sqlalchemy', 'httpx', 'aiohttp', 'starlette', 'uvicorn', 'pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("serv", "serve"),
        ("serve --port eighty", "--port"),
        ("serve --port 70000", "--port"),
        ("submit", "ROUTE"),
        ("submit runway/pro/video2vide --dry-run", f"did you mean {PRO}?"),
        (f"submit {PRO} --input [1] --dry-run", "a JSON object"),
        (f"submit {PRO} --input {{ --dry-run", "not JSON"),
        (f"submit {PRO} --input @nowhere.json --dry-run", "cannot read nowhere.json"),
        (f"submit {PRO} --metadata team --dry-run", "team=vfx"),
        (f"submit {PRO} --video x --prompt y --callback-url ftp://x --dry-run", "callback_url"),
        (f"submit {PRO} --video x --prompt y --callback-url http://127.1/ --dry-run", "private addresses"),
        (f'submit {PRO} --input {{"video":"x","prompt":"y","callback_url":"http://z"}} --dry-run', "--callback-url"),
        ("submit --from nowhere.jsonl", "cannot read nowhere.jsonl"),
        ("submit --from config.toml --wait", "--wait"),
        (f"submit {PRO} --from config.toml --prompt x", "--prompt"),
        ("trigger nothing", "succeeded"),
        ("emulator --callback nonsense", "nonsense"),
        ("emulator --chance lookup=500", "callback=missing:0.1"),
        ("emulator --chance nonsense=1:0.5", "nonsense"),
        ("tasks list --url nonsense", "nonsense"),
        ("tasks list --limit 0", "--limit"),
    ],
)
def test_wrong_usage_is_2_and_names_what_is_wrong(configured: Path, arguments: str, words: str) -> None:
    """What cannot be meant: 2, told on stderr, nothing on stdout."""
    ended = receiver(*arguments.split(), cwd=configured)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert words in re.sub(r"\s+│?\s*│?\s*", " ", ended.stderr)


def test_the_version_is_printed(tmp_path: Path) -> None:
    """--version: one line."""
    assert re.fullmatch(r"receiver \d+\.\d+\S*\n", receiver("--version", cwd=tmp_path).stdout)


def in_bash(script: str, home: Path) -> str:
    """What a script prints; `receiver` is the command, and the shell is found as its parent."""
    whole = f'receiver() {{ "{sys.executable}" -m receiver "$@"; }}\n{script}\n'
    env = environment(HOME=str(home))
    done = subprocess.run(["bash", "-c", whole], cwd=home, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_completion_is_shown_and_installed_for_the_shell_one_is_in(tmp_path: Path) -> None:
    """--show-completion prints what bash can run, and installs nothing; --install-completion does, for this user."""
    shown = in_bash('script=$(receiver --show-completion); eval "$script"; complete -p receiver', tmp_path)
    assert shown == "complete -o default -F _receiver_completion receiver\n"
    assert list(tmp_path.iterdir()) == []
    in_bash("receiver --install-completion; true", tmp_path)
    assert "receiver" in (tmp_path / ".bashrc").read_text()
    assert in_bash("source ~/.bashrc; complete -p receiver", tmp_path) == shown


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("receiver su", ["submit"]),
        ("receiver dest", ["destinations"]),
        ("receiver destinations pa", ["pause"]),
        ("receiver submit run", list(MEMBERS)),
        ("receiver submit runwayml/v1/i", [IMAGE]),
        ("receiver trigger su", ["succeeded"]),
    ],
)
def test_completion_offers_commands_and_values(words: str, offered: list[str], tmp_path: Path) -> None:
    """What the shell asks while one types: commands, subcommands, and the routes there are."""
    asked = {"_RECEIVER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    ended = receiver(cwd=tmp_path, env=asked)
    assert (ended.stdout.split(), ended.stderr) == (offered, "")


# -- init and config ---------------------------------------------------------------------------------------------------


def test_init_writes_a_private_config_once(tmp_path: Path) -> None:
    """Mode 0600, fresh secrets each time, good as it is; a second one is refused and changes nothing."""
    first = receiver("init", cwd=tmp_path)
    assert first.returncode == 0
    assert "receiver serve" in first.stdout
    path = tmp_path / "config.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    again = receiver("init", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (1, "")
    assert "never overwritten" in again.stderr
    assert path.read_text() == text
    other = receiver("init", "--path", "other.toml", cwd=tmp_path)
    assert "receiver serve --config other.toml" in other.stdout
    ours, theirs = (tomllib.loads(one.read_text())["security"] for one in (path, tmp_path / "other.toml"))
    assert not set(ours["signing_keys"] + ours["api_keys"]) & set(theirs["signing_keys"] + theirs["api_keys"])
    assert not any(key in first.stdout for key in ours["signing_keys"] + ours["api_keys"])
    checked = receiver("config", "check", cwd=tmp_path)
    assert (checked.returncode, checked.stdout) == (0, f"{path}: no mistakes\n")


def test_init_where_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    """A folder that does not exist: 1, in words; a dangling link is not followed."""
    ended = receiver("init", "--path", "no/such/folder/config.toml", cwd=tmp_path)
    assert ended.returncode == 1
    assert "no/such/folder/config.toml" in ended.stderr
    (tmp_path / "config.toml").symlink_to(tmp_path / "elsewhere")
    assert receiver("init", cwd=tmp_path).returncode == 1
    assert not (tmp_path / "elsewhere").exists()


def test_config_check_names_all_mistakes_at_once(tmp_path: Path) -> None:
    """2; each mistake on a line of its own as file:line: key: reason; --json has them too."""
    (tmp_path / "config.toml").write_text('[server]\nprot = 3\n[upstrem]\nx = 1\n[polling]\ninterval = "soon"\n')
    ended = receiver("config", "check", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    lines = ended.stderr.splitlines()
    assert [re.sub(r"^.*config\.toml:(\d+): ([\w.]+): .*", r"\1 \2", line) for line in lines] == [
        "2 server.prot",
        "3 upstrem",
        "6 polling.interval",
    ]
    assert "did you mean port?" in lines[0]
    assert json.loads(receiver("config", "check", "--json", cwd=tmp_path).stdout)["problems"] == lines


def test_config_check_tells_what_would_keep_serve_from_starting(tmp_path: Path) -> None:
    """A config without keys has no mistakes, and yet could not be served: 0, and told on stderr."""
    ended = receiver("config", "check", cwd=tmp_path)
    assert ended.returncode == 0
    assert "security.signing_keys" in ended.stderr


def test_config_show_masks_what_is_secret_and_names_the_source(configured: Path) -> None:
    """The values that count, where each was set, and no secret."""
    env = {"RECEIVER_POLLING__INTERVAL": "7s"}
    shown = json.loads(receiver("config", "show", "--json", cwd=configured, env=env).stdout)
    assert shown["polling.interval"] == {"value": "7s", "source": "RECEIVER_POLLING__INTERVAL"} or (
        shown["polling.interval"]["value"] == "7s"
        and "RECEIVER_POLLING__INTERVAL" in shown["polling.interval"]["source"]
    )
    assert shown["server.port"]["value"] == 1
    table = receiver("config", "show", cwd=configured)
    assert table.returncode == 0
    assert "config.toml:" in table.stdout
    for secret in (SIGNING_KEY, UPSTREAM_KEY):
        assert secret not in table.stdout + json.dumps(shown)


def test_config_schema_is_a_json_schema(tmp_path: Path) -> None:
    """It names the sections."""
    schema = json.loads(receiver("config", "schema", cwd=tmp_path).stdout)
    assert {"server", "upstream", "destinations"} <= schema["properties"].keys()


def test_a_config_that_is_not_there_is_2(tmp_path: Path) -> None:
    """Named by --config or by $RECEIVER_CONFIG, every command says that it cannot be read."""
    for arguments in (["serve"], ["tasks", "list"], ["db", "check"], ["config", "show"], ["trigger", "late"]):
        ended = receiver(*arguments, "--config", "nowhere.toml", cwd=tmp_path)
        assert (ended.returncode, ended.stdout) == (2, ""), arguments
        assert "nowhere.toml" in ended.stderr
        assert receiver(*arguments, cwd=tmp_path, env={"RECEIVER_CONFIG": "nowhere.toml"}).returncode == 2


# -- serve and db ------------------------------------------------------------------------------------------------------


def test_serve_without_what_it_needs_is_2_and_names_it(tmp_path: Path) -> None:
    """No signing keys: `receiver init` is named. No upstream key: its settings are."""
    ended = receiver("serve", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "receiver init" in ended.stderr
    assert "upstream.api_key" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_serve_on_an_address_that_is_not_ours_is_1(configured: Path) -> None:
    """It says what was tried and which settings to change."""
    ended = receiver("serve", "--host", "192.0.2.1", cwd=configured)
    assert ended.returncode == 1
    assert "192.0.2.1" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_database_that_cannot_be_opened_is_3(configured: Path) -> None:
    """A folder that is not there, and a file that is no database: `serve` and `db` end with 3, in words."""
    (configured / "text.db").write_text("this is no database, and never was one " * 100)
    for url in ("sqlite:///no/such/folder/x.db", "sqlite:///text.db"):
        env = {"RECEIVER_DATABASE__URL": url}
        for command in (["serve", "--port", str(free_port())], ["db", "upgrade"]):
            ended = receiver(*command, cwd=configured, env=env)
            assert ended.returncode == 3, (url, command, ended.stderr)
            assert url.rpartition("/")[2] in ended.stderr
            assert "Traceback" not in ended.stderr


def test_db_check_and_upgrade_tell_where_the_schema_is(configured: Path) -> None:
    """1 before, 0 after; looking makes no file, and a second upgrade changes nothing."""
    before = receiver("db", "check", cwd=configured)
    assert (before.returncode, before.stdout) == (1, "")
    assert "receiver db upgrade" in before.stderr
    assert not (configured / "receiver.db").exists()
    assert receiver("db", "check", "--json", cwd=configured).returncode == 1
    first = receiver("db", "upgrade", cwd=configured)
    assert first.returncode == 0
    assert "made new" in first.stdout
    assert "already" in receiver("db", "upgrade", cwd=configured).stdout
    assert json.loads(receiver("db", "check", "--json", cwd=configured).stdout)["up_to_date"] is True


# -- submit --dry-run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [PRO, VIDEO, IMAGE])
def test_dry_run_shows_the_whole_request_and_sends_nothing(configured: Path, route: str) -> None:
    """Method, URL, headers and the filled body; key and callback token masked; no service is needed."""
    arguments = ("submit", route, "--video", "https://example.com/x", "--prompt", "a cat", "--dry-run")
    request = json.loads(receiver(*arguments, "--json", cwd=configured).stdout)
    assert (request["method"], request["url"]) == ("POST", f"https://api.example.com/{route}")
    assert request["headers"] == {
        "authorization": "Bearer ***",
        "x-runway-version": "2024-11-06",
        "content-type": "application/json",
    }
    media, prompt = MEMBERS[route]
    assert (request["body"][media], request["body"][prompt]) == ("https://example.com/x", "a cat")
    assert "model" in request["body"]
    assert request["body"].get("callback_url") == ("http://127.0.0.1:1/callbacks/***" if route == PRO else None)
    plain = receiver(*arguments, cwd=configured)
    assert plain.stdout.startswith(f"POST https://api.example.com/{route}\nauthorization: Bearer ***\n")
    assert "Nothing was sent" in plain.stderr
    assert UPSTREAM_KEY not in plain.stdout + plain.stderr


def test_dry_run_refuses_what_the_service_would_refuse(configured: Path) -> None:
    """A missing member is 2 and named."""
    ended = receiver("submit", PRO, "--video", "https://example.com/x", "--dry-run", cwd=configured)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "prompt" in ended.stderr


def test_dry_run_abridges_a_data_uri(configured: Path) -> None:
    """Nobody wants megabytes of base64 on a screen."""
    uri = "data:video/mp4;base64," + "AAAA" * 1000
    ended = receiver("submit", VIDEO, "--video", uri, "--prompt", "x", "--dry-run", cwd=configured)
    assert "data:video/mp4;… (3000 bytes, sha256" in ended.stdout


# -- nobody there ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", ["tasks list", "tasks show tsk_1", "tasks cancel tsk_1", f"submit {PRO} --video x --prompt y"]
)
def test_a_service_that_is_not_there_is_3(configured: Path, arguments: str) -> None:
    """3, with the address that was tried and the way to start it."""
    ended = receiver(*arguments.split(), cwd=configured)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert "nothing answers at http://127.0.0.1:1" in ended.stderr
    assert "receiver serve" in ended.stderr


def test_any_bind_address_is_reached_over_the_loopback(configured: Path) -> None:
    """0.0.0.0 and :: are no addresses to call; IPv6 is put in brackets."""
    for host, url in (("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1"), ("::1", "http://[::1]:1")):
        ended = receiver("tasks", "list", cwd=configured, env={"RECEIVER_SERVER__HOST": host})
        assert f"nothing answers at {url} " in ended.stderr


def test_ctrl_c_is_quiet(tmp_path: Path) -> None:
    """A command that waits for an answer and is interrupted: 130, and not a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with up("tasks", "list", "--url", url, cwd=tmp_path) as command:
            connection, _ = silent.accept()
            with connection:
                assert command.end(signal.SIGINT) == 130
        assert (command.out, command.err) == ([], [])


# -- guards ------------------------------------------------------------------------------------------------------------


def test_every_route_has_its_members() -> None:
    """A new upstream route needs a line in MEMBERS."""
    assert MEMBERS.keys() == ROUTES.keys()
    for name, route in ROUTES.items():
        assert set(route.required) <= set(MEMBERS[name])
        assert MEMBERS[name][1] == route.prompt_key


def test_every_field_of_the_emulator_has_an_option() -> None:
    """A new field of EmulatorOptions needs an option of `receiver emulator`."""
    names = {"keys": "key", "chances": "chance", "render_seconds": "render", "missing_seconds": "missing_for"}
    names |= {"hang_seconds": "hang"}
    fields = {names.get(name, name) for name in EmulatorOptions.__dataclass_fields__}
    assert fields | {"host", "port", "config"} == emulator.__annotations__.keys() - {"return"}
