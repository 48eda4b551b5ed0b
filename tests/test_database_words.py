"""PostgreSQL refuses in many ways: `db upgrade`, `db check`, `serve` and `doctor` say which it was, and no password.

A server of the tests lets everybody in, and is of one version; what it would not say is said by `Playing`.
"""

from __future__ import annotations

import json
import re
import socketserver
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from receiver.errors import StoreUnavailable
from receiver.store import migrations
from receiver.store.dialect.postgres import OLDEST, Postgres
from receiver.store.dialect.words import told as told_of
from receiver.web import gateway, problems
from tests import databases
from tests.cli_world import receiver, write_config
from tests.ports import free_port, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.engine("postgresql")

PASSWORD = "SEKRIT-of-the-tests"


class Playing(socketserver.BaseRequestHandler):
    """A server that answers the start of a session with bytes prepared before, and says no more."""

    answer: bytes

    def handle(self) -> None:
        """Refuse encryption, hear who it is, answer."""
        size = struct.unpack("!i", self.request.recv(4))[0]
        if size == 8:  # an SSLRequest
            self.request.recv(4)
            self.request.sendall(b"N")
            size = struct.unpack("!i", self.request.recv(4))[0]
        self.request.recv(size - 4)
        self.request.sendall(self.answer)
        self.request.recv(1024)


def message(kind: bytes, body: bytes) -> bytes:
    """A message of the protocol."""
    return kind + struct.pack("!i", len(body) + 4) + body


@contextmanager
def playing(answer: bytes) -> Iterator[str]:
    """Such a server: its URL."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), type("Made", (Playing,), {"answer": answer}))
    server.daemon_threads = True
    with serving(server):
        yield f"postgresql://me:{PASSWORD}@127.0.0.1:{server.server_address[1]}/db?gssencmode=disable"


def refusing(code: str, words: str) -> bytes:
    """The answer of one that refuses."""
    return message(b"E", f"SFATAL\0VFATAL\0C{code}\0M{words}\0\0".encode())


@pytest.fixture
def url(tmp_path: Path) -> str:
    """An empty database on the server of the tests."""
    return databases.empty(tmp_path).replace("postgres@", f"postgres:{PASSWORD}@", 1)


@pytest.fixture
def limited(url: str) -> Iterator[str]:
    """The same, as a user who may connect, and no more."""
    run(url, f"CREATE ROLE limited LOGIN PASSWORD '{PASSWORD}'")
    yield url.replace("postgres:", "limited:", 1)
    run(url, "DROP OWNED BY limited; DROP ROLE limited")


def run(url: str, statements: str) -> None:
    """As the owner of the server."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statements.encode())


def said(url: str, folder: Path, *arguments: str, code: int) -> str:
    """What a command says of this database; the password is never in it."""
    ended = receiver(*arguments, cwd=folder, env={"RECEIVER_DATABASE__URL": url})
    assert ended.returncode == code, ended.stderr
    assert PASSWORD not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout + ended.stderr


def found(url: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The doctor's findings, by name."""
    write_config(folder, port=free_port(), upstream="http://127.0.0.1:1")
    answer = said(url, folder, "doctor", "--json", code=1)  # there is no upstream
    return {check["name"]: check for check in json.loads(answer)["checks"]}


def test_a_new_database_is_made_ready_and_looked_at(url: str, tmp_path: Path) -> None:
    """`check` makes nothing, `upgrade` says what it made, and the doctor sees the server behind it."""
    assert "has no schema yet: run `receiver db upgrade`" in said(url, tmp_path, "db", "check", code=1)
    assert migrations.look(url).at is None
    assert found(url, tmp_path)["database"]["state"] == "note"
    assert f"schema {migrations.head()}, made new" in said(url, tmp_path, "db", "upgrade", code=0)
    assert "is up to date already" in said(url, tmp_path, "db", "upgrade", code=0)
    assert f"is up to date: schema {migrations.head()}" in said(url, tmp_path, "db", "check", code=0)
    assert found(url, tmp_path)["database"]["state"] == "ok"


def test_a_server_that_may_lose_what_it_acknowledged_is_warned_of(url: str, tmp_path: Path) -> None:
    """The servers of the tests flush nothing; for itself this program turns synchronous_commit on."""
    server = found(url, tmp_path)["server"]
    assert server["state"] == "note"
    assert server["detail"].startswith("PostgreSQL ")
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        assert f"{name} is off" in server["mend"]
    assert databases.ask(url, "SHOW synchronous_commit") == [("on",)]


@pytest.mark.parametrize(
    ("code", "words", "meaning"),
    [
        ("28P01", 'password authentication failed for user "me"', "it refuses the password"),
        ("28000", 'no pg_hba.conf entry for host "1.2.3.4"', "it does not let this user in"),
        ("53300", "sorry, too many clients already", "it has no connection left"),
        ("57P03", "the database system is starting up", "it is starting or stopping"),
        ("XX000", "the words of another language", "the words of another language"),
    ],
)
def test_a_refusal_is_told_with_its_meaning(tmp_path: Path, code: str, words: str, meaning: str) -> None:
    """3, and the server's own words behind it."""
    with playing(refusing(code, words)) as url:
        answer = said(url, tmp_path, "db", "upgrade", code=3)
    assert meaning in answer
    assert words in answer


def test_a_server_that_is_too_old_is_told(tmp_path: Path) -> None:
    """Before anything is asked of it."""
    hello = message(b"R", struct.pack("!i", 0)) + message(b"S", b"server_version\x0010.23\0")
    with playing(hello + message(b"S", b"client_encoding\0UTF8\0") + message(b"Z", b"I")) as url:
        assert f"is PostgreSQL 10.23; {OLDEST} or newer is wanted" in said(url, tmp_path, "db", "check", code=3)


def test_what_is_not_there_is_told(url: str, tmp_path: Path) -> None:
    """A server, a host, a database, a user: each by its name."""
    port = url.rpartition(":")[2].partition("/")[0]
    for other, words in (
        (url.replace(f":{port}/", f":{free_port()}/"), "nothing answers there"),
        (url.replace("127.0.0.1", "no-such-host.invalid"), "no such host is known"),
        (url + "x", "there is no such database on that server"),
        (url.replace("postgres:", "nobody:", 1), "it does not let this user in"),
        (url + "?no_such_option=SEKRIT", "libpq cannot read its URL"),
    ):
        with pytest.raises(StoreUnavailable, match=words) as raised:
            migrations.look(other)
        assert raised.value.__notes__
        assert "SEKRIT" not in str(raised.value) + "".join(raised.value.__notes__)
    assert (
        "nothing answers there" in found(url.replace(f":{port}/", f":{free_port()}/"), tmp_path)["database"]["detail"]
    )


def test_a_user_without_rights_is_told_what_its_owner_can_do(limited: str, url: str, tmp_path: Path) -> None:
    """3 and the statement; with a schema of its own it needs no other right."""
    answer = said(limited, tmp_path, "db", "upgrade", code=3)
    assert "this user has no right to do that" in answer
    assert "CREATE SCHEMA receiver AUTHORIZATION" in answer
    run(url, "CREATE SCHEMA receiver AUTHORIZATION limited")
    assert "made new" in said(limited, tmp_path, "db", "upgrade", code=0)


def test_a_user_who_may_only_read_and_write_rows_will_do(limited: str, url: str, tmp_path: Path) -> None:
    """Where another user has migrated: `upgrade`, which is what `serve` does, asks for no more rights than it needs."""
    migrations.upgrade(url)
    assert "this user has no right to do that" in said(limited, tmp_path, "db", "upgrade", code=3)
    run(url, "GRANT USAGE ON SCHEMA receiver TO limited")
    run(url, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA receiver TO limited")
    assert "is up to date already" in said(limited, tmp_path, "db", "upgrade", code=0)
    assert found(limited, tmp_path)["database"]["state"] == "ok"


def test_a_standby_is_told(url: str, tmp_path: Path) -> None:
    """It can be read, so `check` is content; who would write is told, and where to write to."""
    migrations.upgrade(url)
    run(url, f'ALTER DATABASE "{url.rpartition("/")[2]}" SET default_transaction_read_only = on')
    said(url, tmp_path, "db", "check", code=0)
    database = found(url, tmp_path)["database"]
    assert (database["state"], "it is read only: a standby" in database["detail"]) == ("wrong", True)
    assert "target_session_attrs=read-write" in database["mend"]


def test_a_driver_that_is_missing_is_told(tmp_path: Path) -> None:
    """The extra, by its name; a folder that cannot be imported stands in its place."""
    (tmp_path / "psycopg.py").write_text("raise ImportError")
    url = f"postgresql://me:{PASSWORD}@127.0.0.1/db"
    assert "callback-receiver[postgres]" in said(url, tmp_path, "db", "check", code=3)
    assert "callback-receiver[postgres]" in found(url, tmp_path)["database"]["detail"]
    assert "callback-receiver[postgres]" in said(url, tmp_path, "db", "copy", "--to", url, code=3)


def test_a_place_is_shown_without_what_is_secret() -> None:
    """Neither password nor parameters."""
    shown = Postgres(f"postgres://me:{PASSWORD}@h1:1,h2:2/db?sslpassword={PASSWORD}&sslmode=require").url
    assert shown == "postgresql://me@h1:1,h2:2/db"


def test_callers_hear_nothing_of_where_the_database_is() -> None:
    """An API answer, a drop-in one and `/readyz` say what it is; host, user and name stay in the log."""
    raw = 'connection to server at "10.1.2.3", port 5432 failed: Connection refused'
    for error in (psycopg.OperationalError(raw), psycopg.OperationalError(f"Verbindung? {raw[:40]}")):
        told = told_of(error, "postgresql://billing@10.1.2.3:5432/renders", "cannot open")
        assert "10.1.2.3" in str(told)
        for answer in (problems.of(told), gateway.problem(told)):
            assert answer.status_code == 503
            assert not {b"10.1.2.3", b"billing", b"renders"} & set(re.findall(rb"[\w.]+", bytes(answer.body)))
            assert b"cannot open the database" in bytes(answer.body)
