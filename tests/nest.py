"""Commands that hatch from one process with everything imported: a cold start costs most of a second of a core.

What hatches is a process of its own, with its own folder, environment and streams, as any command that a shell starts;
that it can start by itself is seen where `python -m receiver` is run as it is (`cold=True`).
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_NEST = """
import gc, json, os, pkgutil, signal, socket, struct, sys
import receiver.app, receiver.cli, receiver.client, receiver.emulator
from receiver.__main__ import main
for found in pkgutil.walk_packages(receiver.cli.__path__, "receiver.cli."):
    __import__(found.name)
gc.freeze()
channel = socket.socket(fileno=int(sys.argv[1]))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    told, given, _, _ = socket.recv_fds(channel, 1 << 20, 4)
    if not told:
        sys.exit()
    if os.fork():
        for one in given:
            os.close(one)
        continue
    # This one waits for the command, and tells how it ended.
    channel.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, report = given
    pid = os.fork()
    if pid:
        for one in streams:
            os.close(one)
        os.write(report, struct.pack("i", pid))
        os.write(report, struct.pack("i", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
        os._exit(0)
    os.close(report)
    for number, one in enumerate(streams):
        os.dup2(one, number)
        os.close(one)
    command = json.loads(told)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["env"])
    sys.argv[:] = ["receiver", *command["arguments"]]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    break
main()
"""


class Hatched:
    """A command that runs; as much of `subprocess.Popen` as the tests ask for."""

    def __init__(self, pid: int, report: int) -> None:
        """`report`: where its end is told."""
        self.pid = pid
        self.returncode: int | None = None
        self._report = report

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; negative for a signal.

        Raises:
            subprocess.TimeoutExpired: it has not ended.
        """
        if self.returncode is None:
            if not select.select([self._report], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("receiver", timeout or 0.0)
            self.returncode = _number(self._report)
            os.close(self._report)
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Send it one, if it is still there."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def hatch(arguments: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], streams: Sequence[int]) -> Hatched:
    """Start a command; `streams` are its stdin, stdout and stderr."""
    told = {"arguments": [*map(str, arguments)], "cwd": str(cwd), "env": {**env}}
    report, its_report = os.pipe()
    try:
        socket.send_fds(_nest(), [json.dumps(told).encode()], [*streams, its_report])
    finally:
        os.close(its_report)
    return Hatched(_number(report), report)


def _number(report: int) -> int:
    (number,) = struct.unpack("i", os.read(report, 4))
    return int(number)


@cache
def _nest() -> socket.socket:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        nest = subprocess.Popen([sys.executable, "-c", _NEST, str(its.fileno())], pass_fds=[its.fileno()])

    def end() -> None:
        ours.close()  # so it does by itself where this process is killed
        nest.wait()

    atexit.register(end)
    return ours
