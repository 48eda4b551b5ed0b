"""A real `receiver serve` in a process of its own, to be killed at any moment and started again on the same file."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NEST = """
import os, sys
import receiver.app, receiver.cli
for _ in sys.stdin:
    pid = os.fork()
    if not pid:
        os.dup2(2, 1)
        from receiver.__main__ import main
        main()
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Hatches `receiver serve` with everything imported: kills are then a third of a second apart, and not two seconds."""


@dataclass
class Victim:
    """The process, and when it was killed."""

    config: Path
    url: str
    kills: list[float] = field(default_factory=list)
    up: asyncio.Event = field(default_factory=asyncio.Event)
    _pid: int = 0
    _cold: subprocess.Popen[bytes] | None = None
    _nest: subprocess.Popen[bytes] | None = None

    def spawn_cold(self) -> None:
        """Start it as a user does."""
        with self.config.with_suffix(".log").open("ab") as log:
            command = [sys.executable, "-m", "receiver", "serve", "--config", str(self.config)]
            self._cold = subprocess.Popen(command, stdout=log, stderr=log)
        self._pid = self._cold.pid

    def spawn(self) -> None:
        """Start it from the nest."""
        self._cold = None
        if self._nest is None:
            with self.config.with_suffix(".log").open("ab") as log:
                command = [sys.executable, "-c", NEST, "serve", "--config", str(self.config)]
                self._nest = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
                )
        assert self._nest.stdin is not None
        assert self._nest.stdout is not None
        self._nest.stdin.write(b"\n")
        self._nest.stdin.flush()
        self._pid = int(self._nest.stdout.readline())

    async def ready(self) -> None:
        """Wait until it answers."""
        async with httpx.AsyncClient(trust_env=False) as client:

            async def answers() -> bool:
                assert self._lives(), "it ended by itself:\n" + self.last_words()
                try:
                    return (await client.get(f"{self.url}/livez")).is_success
                except httpx.TransportError:
                    return False

            await until(answers, "the service to answer", limit=90)
        self.up.set()

    def _lives(self) -> bool:
        if self._cold is not None:
            return self._cold.poll() is None
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        """It does nothing more after this line."""
        self.up.clear()
        os.kill(self._pid, number)
        self.kills.append(time.monotonic())

    async def gone(self) -> int:
        """Its exit code, once it has ended."""
        return await asyncio.to_thread(self._wait)

    def _wait(self) -> int:
        pid, self._pid = self._pid, 0
        assert pid
        if self._cold is not None:
            return self._cold.wait(20)
        assert self._nest is not None
        assert self._nest.stdout is not None
        return int(self._nest.stdout.readline())

    def quell(self) -> None:
        """It does not run after this line, in whatever state a test left it."""
        self.up.clear()
        if self._pid:
            with suppress(ProcessLookupError):  # it was killed, and nobody has asked yet how it ended
                os.kill(self._pid, signal.SIGKILL)
            self._wait()

    def end(self) -> None:
        """Leave nothing behind, in whatever state a test ended."""
        if self._nest is not None:
            os.killpg(self._nest.pid, signal.SIGKILL)  # and what it hatched
            self._nest.communicate()
        if self._cold is not None and self._cold.poll() is None:
            self._cold.kill()
            self._cold.wait()

    def last_words(self) -> str:
        """The end of its log."""
        return self.config.with_suffix(".log").read_text()[-3000:]


async def until(holds: Callable[[], Any], what: str, *, limit: float = 30.0, every: float = 0.02) -> None:
    """Ask again and again until it holds; what never comes is a failure, not a sleep."""
    ends = time.monotonic() + limit
    while not await holds():
        assert time.monotonic() < ends, f"waited {limit} s for {what}"
        await asyncio.sleep(every)
