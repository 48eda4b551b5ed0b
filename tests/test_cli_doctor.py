"""`receiver doctor`: each thing that can be wrong is found and told how to mend; and nothing is done by looking."""

from __future__ import annotations

import json
import ssl
import time
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trustme

from receiver.store import migrations
from tests.cli_world import API_KEY, receiver, world, write_config
from tests.outbox_world import SECRET, told
from tests.ports import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli_world import World

MISSING = {"code": "task_not_exist", "message": "task_not_exist", "data": None}
DOOR = {"type": "/docs/problems/not-found", "title": "Not found", "status": 404}


class Answering(BaseHTTPRequestHandler):
    """Answers everything with one status, body and more headers, and notes what was asked."""

    said: tuple[int, bytes, dict[str, str]]
    asked: list[tuple[str, str]]

    def answer(self) -> None:
        """One of them."""
        self.asked.append((self.command, self.path))
        status, body, headers = self.said
        self.send_response_only(status)
        for name, value in ({"Date": formatdate(usegmt=True)} | headers).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_HEAD = answer  # noqa: N815 -- http.server's names

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- http.server's word
        """Nothing."""


@contextmanager
def answering(
    document: Any, status: int = 200, headers: dict[str, str] | None = None, *, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Such a server: its URL, and what it is asked."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    asked: list[tuple[str, str]] = []
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Made", (Answering,), {"said": (status, body, headers or {}), "asked": asked})
    )
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    with serving(server) as url:
        yield url if tls is None else url.replace("http", "https"), asked


def findings(folder: Path, code: int = 1, **env: str) -> dict[str, dict[str, Any]]:
    """What it says, by name; with `mend` exactly where something is to be done."""
    document = json.loads(told(receiver("doctor", "--json", cwd=folder, env=env), code))
    found = {check["name"]: check for check in document["checks"]}
    assert document["ok"] == (code == 0) == all(check["state"] != "wrong" for check in found.values())
    assert all(check["mend"] for check in found.values() if check["state"] == "wrong")
    return found


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """An upstream that takes the key and knows no task."""
    with answering(MISSING, 400) as (url, _):
        yield url


def destination(name: str, url: str, more: str = "allow_private = true") -> str:
    """A destination's table."""
    return f'[[destinations]]\nname = "{name}"\nkind = "webhook"\nurl = "{url}"\nsecrets = ["{SECRET}"]\n{more}\n'


# -- all is well -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A running service with the emulator behind it."""
    with world(tmp_path_factory.mktemp("doctor")) as running:
        yield running


def test_where_all_is_well_it_says_so_and_changes_nothing(at: World) -> None:
    """0: every check, a line each; no task was made, here or at the upstream, and no destination got an event."""
    config = (at.folder / "config.toml").read_text()
    with answering(b"", 405) as (url, asked):
        (at.folder / "sent.toml").write_text(config + destination("pipeline", f"{url}/secret/path?token=1"))
        ended = receiver("doctor", "--config", "sent.toml", cwd=at.folder)
    lines = told(ended).splitlines()
    assert [line.split(":")[0].split(maxsplit=1) for line in lines] == [
        ["ok", name]
        for name in ("config", "database", "disk", "upstream", "clock", "service", "public URL", "destination pipeline")
    ]
    assert ended.stderr == ""
    assert asked == [("HEAD", "/")]
    assert "secret" not in ended.stdout
    assert httpx.get(f"{at.emulator_url}/_emulator/report", trust_env=False).json()["submissions"] == {}
    listed = json.loads(told(receiver("tasks", "list", "--json", cwd=at.folder)))
    assert listed["data"] == []


def test_a_wrong_key_is_found_at_the_upstream(at: World) -> None:
    """1: it refuses the key, and the setting is named; the key is not printed."""
    with answering({"error": {"message": "invalid token"}}, 401) as (url, asked):
        env = {"RECEIVER_UPSTREAM__BASE_URL": url, "RECEIVER_UPSTREAM__API_KEY": "a-wrong-key"}
        ended = receiver("doctor", cwd=at.folder, env=env)
    assert "wrong upstream:" in told(ended, 1)
    assert "refuses the key (401)" in ended.stdout
    assert "upstream.api_key" in ended.stdout
    assert "1 of 8 is wrong: upstream" in ended.stderr
    assert "a-wrong-key" not in ended.stdout + ended.stderr
    assert [method for method, _ in asked] == ["GET"]  # a lookup, which is free


def test_a_service_that_is_not_ready_tells_why(at: World, tmp_path: Path, upstream: str) -> None:
    """What answers on the service's port as a receiver, unready, is quoted; what is none is told as such."""
    for document, words in (
        ({"status": "unready", "reasons": ["the store cannot commit: disk full"]}, "disk full"),
        ({"hello": 1}, "not as a receiver does"),
    ):
        with answering(document) as (url, _):
            write_config(tmp_path, port=int(url.rpartition(":")[2]), upstream=upstream)
            found = findings(tmp_path, RECEIVER_SERVER__PUBLIC_URL=at.url)
        assert (found["service"]["state"], words in found["service"]["detail"]) == ("wrong", True)


# -- what can be wrong -------------------------------------------------------------------------------------------------


def test_without_keys_each_setting_is_named(tmp_path: Path, upstream: str) -> None:
    """An empty config: what `serve` lacks is wrong; the upstream is asked all the same, for the clock."""
    found = findings(tmp_path, RECEIVER_UPSTREAM__BASE_URL=upstream)
    assert {name for name, check in found.items() if check["state"] == "wrong"} == {
        "security.signing_keys",
        "upstream.api_key",
    }
    assert "receiver init" in found["security.signing_keys"]["mend"]
    assert found["clock"]["state"] == "ok"
    assert (found["upstream"]["state"], found["public URL"]["state"]) == ("note", "note")
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_cannot_be_read_is_2(tmp_path: Path) -> None:
    """As with every command: each mistake with its line, and nothing is asked of anybody."""
    (tmp_path / "config.toml").write_text("[server]\nprot = 1\n")
    ended = receiver("doctor", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "config.toml:2: server.prot" in ended.stderr


@pytest.mark.parametrize(("seconds", "state"), [(0, "ok"), (-3600, "wrong"), (3600, "wrong")])
def test_a_clock_that_is_off_is_found_by_the_upstreams_date(tmp_path: Path, seconds: int, state: str) -> None:
    """An hour ahead or behind is wrong, and how to set it is said."""
    with answering(MISSING, 400, {"Date": formatdate(time.time() + seconds, usegmt=True)}) as (url, _):
        write_config(tmp_path, port=1, upstream=url)
        clock = findings(tmp_path)["clock"]
    assert clock["state"] == state
    assert ("timedatectl" in str(clock["mend"])) == (state == "wrong")
    assert state == "ok" or ("ahead of" if seconds < 0 else "behind") in clock["detail"]


@pytest.mark.parametrize(
    ("status", "document", "state", "words"),
    [
        (200, {"id": "x"}, "ok", "takes the key"),
        (404, {"error": {"message": "no"}}, "ok", "takes the key"),
        (403, {"error": {"message": "no"}}, "wrong", "refuses the key"),
        (429, b"", "note", "429"),
        (502, b"<html>", "note", "502"),
        (200, b"<html>", "wrong", "not as the API does"),
        (301, b"", "wrong", "not as the API does"),
    ],
)
def test_what_the_upstream_answers_is_judged(
    tmp_path: Path, status: int, document: Any, state: str, words: str
) -> None:
    """Only a clear word against the key, or no API at all, is wrong; an upstream that is busy is no fault here."""
    with answering(document, status, {"Date": "yesterday"} if status == 200 else None) as (url, _):
        write_config(tmp_path, port=1, upstream=url)
        found = findings(tmp_path)
    assert (found["upstream"]["state"], words in found["upstream"]["detail"]) == (state, True)
    assert found["clock"]["state"] == ("note" if status == 200 else "ok")


@pytest.mark.parametrize(
    ("status", "document", "state", "words"),
    [
        (404, DOOR, "ok", "as it should"),
        (404, b"<html>not found</html>", "wrong", "not as the callback door does"),
        (404, {"type": "about:blank"}, "wrong", "not as the callback door does"),
        (200, {"received": True}, "wrong", "answers 200"),
        (301, b"", "wrong", "answers 301, to https://elsewhere.example/"),
    ],
)
def test_only_our_own_door_is_taken_for_it(
    tmp_path: Path, upstream: str, status: int, document: Any, state: str, words: str
) -> None:
    """A token that nobody minted is refused as only we refuse it, also under a path; anything else is somebody else."""
    more = {"Location": "https://elsewhere.example/"} if status == 301 else None
    with answering(document, status, more) as (url, asked):
        write_config(tmp_path, port=1, upstream=upstream)
        found = findings(tmp_path, 0 if state == "ok" else 1, RECEIVER_SERVER__PUBLIC_URL=f"{url}/hooks/")
    assert (found["public URL"]["state"], words in found["public URL"]["detail"]) == (state, True)
    assert asked == [("GET", "/hooks/callbacks/x")]


def test_a_public_url_that_only_this_machine_reaches_is_wrong_for_the_real_upstream(tmp_path: Path) -> None:
    """Loopback is fine for an upstream on loopback (above), and unreachable for any other."""
    with answering(DOOR, 404) as (url, _):
        write_config(tmp_path, port=1, upstream="https://api.invalid")
        found = findings(tmp_path, RECEIVER_SERVER__PUBLIC_URL=url)
    assert found["public URL"]["state"] == "wrong"
    assert "the upstream cannot reach it" in found["public URL"]["detail"]
    assert "loopback" in found["public URL"]["detail"]
    assert (found["upstream"]["state"], found["clock"]["state"]) == ("wrong", "note")
    assert "could not be resolved" in found["upstream"]["detail"]


def test_nothing_at_the_public_url_is_told(tmp_path: Path, upstream: str) -> None:
    """Where the service does not run: wrong, with the way to start it."""
    write_config(tmp_path, port=1, upstream=upstream)
    found = findings(tmp_path)
    assert "connection refused" in found["public URL"]["detail"]
    assert "receiver serve" in found["public URL"]["mend"]
    assert (found["service"]["state"], found["database"]["state"]) == ("note", "note")
    assert not (tmp_path / "receiver.db").exists()


def test_each_destination_is_resolved_vetted_and_greeted(tmp_path: Path, upstream: str) -> None:
    """The stage at which each fails, with a mend of its own; no event is sent to any, and no path is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with answering(b"", 200, tls=context) as (strange, asked), answering(b"", 500) as (plain, _):
        more = "".join(
            [
                destination("private", f"{plain}/hooks", "allow_private = false"),
                destination("nameless", "https://no-such-name.invalid/hooks"),
                destination("untrusted", f"{strange}/hooks"),
                destination("down", "http://127.0.0.1:1/hooks"),
                destination("unsigned", f"{plain}/hooks").replace(f'"{SECRET}"', ""),
                destination("good", f"{plain}/hooks"),
            ]
        )
        write_config(tmp_path, port=1, upstream=upstream, more=more)
        found = findings(tmp_path)
    told_of = {name.removeprefix("destination "): one for name, one in found.items() if name.startswith("destination ")}
    for name, state, words, mend in (
        ("private", "wrong", "loopback", "allow_private = true"),
        ("nameless", "wrong", "could not be resolved", "Check the name"),
        ("untrusted", "wrong", "TLS", "certificate"),
        ("down", "wrong", "connection refused", "Is it up"),
        ("unsigned", "note", "unsigned", "secrets"),
        ("good", "ok", "receiver destinations test good", ""),
    ):
        one = told_of.pop(name)
        assert (one["state"], words in one["detail"], mend in (one["mend"] or "")) == (state, True, True), one
        assert "/hooks" not in one["detail"]
    assert told_of == {}
    assert asked == []


def test_the_database_is_looked_at_and_left_alone(tmp_path: Path, upstream: str) -> None:
    """A missing folder, a file that is none, an old schema with and without `migrate`, a newer one, one up to date."""
    write_config(tmp_path, port=1, upstream=upstream)

    def database(url: str = "sqlite:///receiver.db", *, migrate: str = "true") -> dict[str, Any]:
        return findings(tmp_path, RECEIVER_DATABASE__URL=url, RECEIVER_DATABASE__MIGRATE=migrate)["database"]

    assert "there is no folder" in database("sqlite:///no/such/x.db")["detail"]
    (tmp_path / "text.db").write_text("this is no database, and never was one " * 100)
    assert (database("sqlite:///text.db")["state"], (tmp_path / "text.db").read_text()[:4]) == ("wrong", "this")
    assert database(migrate="false")["mend"].endswith("receiver db upgrade")
    assert not (tmp_path / "receiver.db").exists()
    url = f"sqlite:///{tmp_path}/receiver.db"
    migrations.upgrade(url)
    assert database()["state"] == "ok"
    for revision, migrate, state, mend in (
        ("0001", "true", "note", "receiver serve"),
        ("0001", "false", "wrong", "receiver db upgrade"),
        ("9999", "true", "wrong", "newer release"),
    ):
        _set_revision(tmp_path / "receiver.db", revision)
        found = database(migrate=migrate)
        assert (found["state"], mend in found["mend"]) == (state, True), found


def _set_revision(path: Path, revision: str) -> None:
    import sqlite3

    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.commit()
    connection.close()


def test_a_full_disk_is_told(tmp_path: Path, upstream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below half a gibibyte: what that will do, in words. A full disk is the one thing that is played."""
    import shutil

    from receiver import config
    from receiver.cli import doctor

    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    path = write_config(tmp_path, port=1, upstream=upstream)
    [disk] = [found for found in doctor._database(config.load(path, {})) if found.name == "disk"]
    assert (disk.state, "1 MiB free" in disk.detail, "503" in disk.mend) == ("wrong", True, True)


def test_the_key_of_the_api_is_not_needed(at: World) -> None:
    """It reads the config, and asks the service only what is open to all."""
    assert API_KEY not in told(receiver("doctor", cwd=at.folder, env={"RECEIVER_API_KEY": "wrong"}))
