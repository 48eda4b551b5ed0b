"""Real processes for the tests of the command line: any command, and a service with the emulator behind it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

import httpx

from tests.nest import Hatched, hatch
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PYCACHE = Path(__file__).parent.parent / ".pytest_cache" / "pycache"
API_KEY = "the-api-key-of-the-tests"
OLD_KEY = "an-older-api-key-of-the-tests"
SIGNING_KEY = "a-signing-key-of-forty-characters-or-so-"
UPSTREAM_KEY = "the-upstream-key-of-the-tests"


def environment(**more: str) -> dict[str, str]:
    """This process's environment without anything that configures a receiver; no colours."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RECEIVER_", "COMETAPI_", "COVERAGE_", "COV_")) and name not in {"PORT", "DATABASE_URL"}
    }
    # Compiled once for all of these processes, and outside the source tree: a start costs a fifth of the time then.
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(PYCACHE)}
    return kept | {"NO_COLOR": "1", "PYTHONUNBUFFERED": "1"} | compiled | more


def receiver(
    *arguments: str | Path, cwd: Path, stdin: str = "", env: Mapping[str, str] | None = None, seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    with TemporaryFile("w+") as given, TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        given.write(stdin)
        given.seek(0)
        streams = [one.fileno() for one in (given, out, err)]
        hatched = hatch(arguments, cwd=cwd, env=environment(**(env or {})), streams=streams)
        try:
            code = hatched.wait(seconds)
        finally:
            hatched.kill()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read(), err.read())


@dataclass
class Running:
    """A command that stays up; its lines are collected as they come."""

    process: Hatched
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)
    _threads: list[threading.Thread] = field(default_factory=list)

    def collect(self, out: IO[str], err: IO[str]) -> None:
        """Begin to read both streams."""
        for stream, lines in ((out, self.out), (err, self.err)):
            thread = threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            with self._news:
                lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def line(self, pattern: str, *, seconds: float = 30) -> re.Match[str]:
        """Wait for a line on stdout that the pattern is found in."""

        def found() -> re.Match[str] | None:
            return next((hit for line in self.out if (hit := re.search(pattern, line))), None)

        with self._news:
            self._news.wait_for(lambda: found() or not self._threads[0].is_alive(), seconds)
        hit = found()
        assert hit is not None, f"no line with {pattern!r} in {self.out[-20:]}, stderr {self.err[-20:]}"
        return hit

    def end(self, number: signal.Signals = signal.SIGTERM, *, seconds: float = 30) -> int:
        """Send a signal and wait for the end; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(seconds)
        for thread in self._threads:
            thread.join(5)
        return code


@contextmanager
def up(*arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Start a command that stays up; it is killed at the end if it is still there."""
    with ExitStack() as streams:
        (out, its_out), (err, its_err) = os.pipe(), os.pipe()
        outs = [streams.enter_context(os.fdopen(one)) for one in (out, err)]
        with open(os.devnull) as nothing, os.fdopen(its_out, "w"), os.fdopen(its_err, "w"):  # noqa: PTH123
            process = hatch(
                arguments,
                cwd=cwd,
                env=environment(**(env or {})),
                streams=[nothing.fileno(), its_out, its_err],
            )
        running = Running(process)
        running.collect(*outs)
        try:
            yield running
        finally:
            process.kill()
            process.wait(10)


def write_config(folder: Path, *, port: int, upstream: str, more: str = "", grace: str = "500ms") -> Path:
    """A config for a service on this machine; `grace`: how long it waits for a callback before it asks."""
    path = folder / "config.toml"
    path.write_text(
        f"""
[server]
public_url = "http://127.0.0.1:{port}"
port = {port}
[security]
signing_keys = ["{SIGNING_KEY}"]
api_keys = ["{OLD_KEY}", "{API_KEY}"]
[upstream]
base_url = "{upstream}"
api_key = "{UPSTREAM_KEY}"
[polling]
callback_grace = "{grace}"
interval = "200ms"
max_interval = "1s"
{more}
""",
        encoding="utf-8",
    )
    return path


@dataclass(frozen=True)
class World:
    """A service, its config, and the emulator behind it."""

    folder: Path
    url: str
    emulator_url: str
    service: Running


def wait_until_ready(running: Running, url: str) -> None:
    """Until the service answers, or its process has ended."""
    for _ in range(600):
        assert running.process.poll() is None, running.err
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", trust_env=False, timeout=5).is_success:
                return
        threading.Event().wait(0.05)
    raise AssertionError("the service did not get ready")


@contextmanager
def world(folder: Path, *, grace: str = "500ms") -> Iterator[World]:
    """A service with an emulator behind it, as two real processes; the folder holds its config.toml."""
    with up("emulator", "--port", "0", "--render", "0.3", cwd=folder) as emulator:
        upstream = emulator.line(r"listens on (http://\S+)")[1]
        port = free_port()
        write_config(folder, port=port, upstream=upstream, grace=grace)
        with up("serve", cwd=folder) as service:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(service, url)
            yield World(folder, url, upstream, service)
            service.end()
