"""A real PostgreSQL for the tests: Debian's server on an empty folder, as the user postgres where we are root.

Law: it dies with this process, and nothing of it is left. A journey's database need not survive a power cut, so it
flushes nothing; a test that kills the server itself asks for one that does.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from tests.ports import free_port

INSTALL = "apt-get update && apt-get install --no-install-recommends postgresql"
PATIENCE = 60.0
"""Seconds in which a server starts, on the busiest machine."""
_HASTY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}
_ALL = {"listen_addresses": "127.0.0.1", "shared_buffers": "32MB", "max_connections": "100"}


def programs() -> Path | None:
    """The folder with the newest server's programs; None where there is none."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(folders, key=lambda folder: float(folder.parent.name), default=None)


@dataclass
class Server:
    """A server that runs; it may be stopped, killed and started again on the same folder and port."""

    folder: Path
    port: int
    options: dict[str, str]
    _process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / "log"

    def url(self, database: str) -> str:
        """The URL of a database, by TCP."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = [f"--{name}={value}" for name, value in (_ALL | self.options).items()]
        command = ["postgres", "-D", "data", "-p", str(self.port), "-k", str(self.folder), *options]
        with self.log.open("ab") as log:
            # Where the tests are killed, the kernel stops the server.
            self._process = _start(self.folder, ["setpriv", "--pdeathsig=QUIT", *command], log=log.fileno())
        ends = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < ends, f"PostgreSQL did not start within {PATIENCE} s"
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.02)

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError), psycopg.connect(self.url("postgres"), connect_timeout=5):
            return True
        return False

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGTERM waits for its clients, SIGINT ends them, SIGQUIT is a crash."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(PATIENCE)
        self._process = None

    def run(self, statement: str, **names: str) -> None:
        """A statement about databases, with their names put in."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            named = {key: sql.Identifier(name) for key, name in names.items()}
            connection.execute(sql.SQL(statement).format(**named))

    def remove(self) -> None:
        """Stop it at once and delete its folder."""
        if self._process is not None:
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)


def launch(*, durable: bool = False, **options: str) -> Server:
    """A new server, running; `durable` ones survive a crash of the machine as in production.

    Raises:
        FileNotFoundError: there is no PostgreSQL here.
    """
    folder = Path(tempfile.mkdtemp(prefix="receiver-pg-"))
    if owner := _owner():
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    server = Server(folder, free_port(), ({} if durable else _HASTY) | options)
    made = _start(
        folder, ["initdb", "--no-sync", "-D", "data", "-U", "postgres", "-A", "trust", "-EUTF8", "--locale=C"]
    )
    said, _ = made.communicate(timeout=PATIENCE)
    assert made.returncode == 0, said.decode()
    server.start()
    return server


def _owner() -> pwd.struct_passwd | None:
    """The user it runs as where we are root, as whom it refuses to run."""
    return pwd.getpwnam("postgres") if os.geteuid() == 0 else None


def _start(folder: Path, command: list[str], log: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    found = programs()
    if found is None:
        raise FileNotFoundError(f"no PostgreSQL in /usr/lib/postgresql; to install it: {INSTALL}")
    owner = _owner()
    return subprocess.Popen(
        command,
        cwd=folder,
        env={"PATH": f"{found}:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a Ctrl-C is for the tests, which then stop it
        user=None if owner is None else owner.pw_uid,
        group=None if owner is None else owner.pw_gid,
        extra_groups=None if owner is None else [],
    )
