"""A PostgreSQL server of Debian's with the settings it comes with, its fsync included, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from bench import harness

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_TOOLS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@dataclass(frozen=True)
class Server:
    """One that answers."""

    folder: Path
    port: int

    def database(self, name: str) -> str:
        """Make an empty one; its URL."""
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def run(self, *command: str) -> None:
        """Run one of its tools, as the user that it wants to be."""
        done = subprocess.run(
            [str(_TOOLS[-1] / command[0]), *command[1:]],
            user="postgres" if os.geteuid() == 0 else None,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode()

    def cpu(self) -> float:
        """Seconds of CPU that all its processes have used, those included that have ended."""
        first = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        own = harness.cpu_of(first, children=True)
        return own + sum(harness.cpu_of(pid) for pid in harness.children_of(first))

    def version(self) -> str:
        """Of the server."""
        with psycopg.connect(self._url("postgres")) as connection:
            return str(connection.info.parameter_status("server_version"))


def is_there() -> bool:
    """Whether Debian's package is installed."""
    return bool(_TOOLS)


@contextmanager
def server(cores: Iterable[int] | None = None) -> Iterator[Server]:
    """One for the time being; on these cores or on any, whatever the bench itself is held to."""
    made = Server(Path(tempfile.mkdtemp(prefix="bench-pg-")), harness.free_port())
    if os.geteuid() == 0:
        shutil.chown(made.folder, "postgres")
    try:
        made.run("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C")
        with harness.on_cores(cores):
            options = f"-p {made.port} -k {made.folder} -c listen_addresses=127.0.0.1"
            made.run("pg_ctl", "-D", "data", "-l", "log", "-w", "-o", options, "start")
        yield made
    finally:
        if (made.folder / "data" / "postmaster.pid").exists():
            made.run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")
        shutil.rmtree(made.folder, ignore_errors=True)
