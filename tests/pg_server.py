"""A PostgreSQL server of Debian's, which a test may stop, kill and start again as it likes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psycopg
import pytest

from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SETTINGS = "-c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=60 -c log_min_messages=fatal"
"""A process that is killed loses nothing that it has written, synced or not: only a machine does."""


def _tools() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no PostgreSQL: apt-get install postgresql")
    return found[-1]


@dataclass
class Server:
    """The server; `folder` has its data and its log."""

    folder: Path
    port: int
    tools: Path

    def run(self, *command: str) -> None:
        """Run one of its tools, as the user that it wants to be."""
        user = "postgres" if os.geteuid() == 0 else None
        done = subprocess.run(
            [str(self.tools / command[0]), *command[1:]],
            user=user, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout.decode()

    def start(self) -> None:
        """Start it; it answers."""
        options = f"-p {self.port} -k {self.folder} {SETTINGS}"
        self.run("pg_ctl", "-D", "data", "-l", "log", "-w", "-o", options, "start")

    def stop(self, how: Literal["fast", "immediate"] = "immediate") -> None:
        """Stop it, in order or as a crash does."""
        self.run("pg_ctl", "-D", "data", "-w", "-m", how, "stop")

    def terminate(self) -> int:
        """Hang up on every client, as an operator does; how many."""
        others = "pid != pg_backend_pid() and backend_type = 'client backend'"
        question = f"select count(pg_terminate_backend(pid)) from pg_stat_activity where {others}"
        return int(self.ask(question, database="postgres")[0][0])

    def ask(self, question: str, values: Sequence[Any] = (), *, database: str) -> list[Any]:
        """One statement on a connection of its own; its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute("set search_path to receiver, public")
            found = connection.execute(question.encode(), values or None)
            return found.fetchall() if found.description else []

    def database(self, name: str) -> str:
        """Make an empty database; its URL."""
        self.ask(f"create database {name}", database="postgres")
        return self.url(name)

    def url(self, database: str) -> str:
        """Of one of its databases."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"


@contextmanager
def server() -> Iterator[Server]:
    """A server that is there."""
    tools = _tools()
    folder = Path(tempfile.mkdtemp(prefix="receiver-pg-"))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    made = Server(folder, free_port(), tools)
    try:
        made.run("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
        made.start()
        yield made
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            made.stop()
        shutil.rmtree(folder, ignore_errors=True)
