"""The internet as a test plays it: names, public servers, listeners at home, and a guard on every connect there is.

Law: no packet leaves this machine, and no connect goes unseen. The guard is an audit hook, which the interpreter itself
calls for every `connect` of every socket, whoever makes it. Played are the resolver (`socket.getaddrinfo`) and the net
behind `socket.socket.connect`: a connect to one of the PUBLIC addresses arrives at a server here. Whatever else is not
loopback is stopped. Nothing of ours is replaced.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
import threading
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    import pytest

PUBLIC = (
    "93.184.215.14",
    "1.1.1.1",
    "8.8.8.8",
    "198.20.0.1",
    "2606:2800:21f:cb07:6820:80da:af6b:8b2c",
    "2a00:1450:4001:81b::200e",
)
"""The only public addresses there are here. Any other that is connected to is a hole: this list needs no ranges."""
HOME_PORTS = 4

_NUMERIC = threading.local()
_HERE = threading.local()
_armed: Internet | None = None
_installed = False

Address = tuple[Any, ...]


def canonical(host: str) -> str:
    """An address in the one spelling that can be compared."""
    return str(ip_address(host))


def stays_here(host: str) -> bool:
    """Whether a packet to it cannot leave the machine: loopback, in every form that the kernel reads so."""
    address: IPv4Address | IPv6Address | None = ip_address(host)
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    return address is not None and (address.is_loopback or address.is_unspecified)


@dataclass
class Listener:
    """Listening sockets that count, read a request and answer; `counted` also sees what was never accepted."""

    sockets: list[socket.socket]
    answers: Mapping[str, bytes] = field(default_factory=dict)
    accepted: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def open(self) -> None:
        """Begin to accept, in the running loop."""
        for one in self.sockets:
            self._spawn(self._accept(one))

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(listening)
            self.accepted += 1
            self._spawn(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            with suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                    lengths = [line[15:] for line in head.lower().split("\r\n") if line.startswith("content-length:")]
                    await reader.readexactly(int(lengths[0]) if lengths else 0)
                    path = head.split(" ", 2)[1]
                    self.asked[path] += 1
                    writer.write(self.answers.get(path, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
        finally:
            writer.transport.abort()

    def counted(self) -> int:
        """Connections so far, those that wait to be accepted included."""
        for one in self.sockets:
            with suppress(BlockingIOError):
                while True:
                    one.accept()[0].close()
                    self.accepted += 1
        return self.accepted

    async def close(self) -> None:
        """Hang up and listen no more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in self.sockets:
            one.close()


@dataclass
class Internet:
    """What the outside world does, and what was seen of us.

    Attributes:
        names: what the resolver answers: the first list to the first question, and round again.
        known: loopback ports that are part of the test itself (a service, an emulator): not counted.
        home: the listeners on loopback that nobody may reach.
        public: the servers behind the PUBLIC addresses.
        connects: every address a connect was tried to, in order.
        looked_up: how often each name was asked for.
    """

    home: Listener
    public: Listener
    ports: tuple[int, ...]
    names: dict[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)
    connects: list[tuple[str, int]] = field(default_factory=list)
    looked_up: Counter[str] = field(default_factory=Counter)

    def private(self) -> list[tuple[str, int]]:
        """The connects that were to no public address."""
        return [one for one in self.connects if canonical(one[0]) not in PUBLIC]

    # -- what the guard and the played net ask ---------------------------------------------------------------------

    def on_connect(self, address: Address | str | bytes) -> None:
        """See a connect; stop it where a packet would leave."""
        if not isinstance(address, tuple) or getattr(_HERE, "routed", False):
            return
        host, port = str(address[0]), int(address[1])
        if stays_here(host) and port in self.known:
            return
        self.connects.append((host, port))
        if not stays_here(host):
            raise OSError(errno.ENETUNREACH, "the test's guard lets nothing leave this machine")

    def route(self, family: int, address: Address | str | bytes) -> Address | None:
        """Where a connect to a public address arrives here."""
        if not isinstance(address, tuple) or canonical(str(address[0])) not in PUBLIC:
            return None
        self.connects.append((str(address[0]), int(address[1])))
        here: Address = next(one for one in self.public.sockets if one.family == family).getsockname()
        return here

    def resolve(self, host: str | bytes | None, port: Any, *args: Any, **more: Any) -> list[Any]:
        """`socket.getaddrinfo`: numbers are read by the real one, names are looked up in `names`."""
        given = dict(zip(("family", "type", "proto", "flags"), args, strict=False)) | more
        text = host.decode() if isinstance(host, bytes) else host or ""
        name = text.encode("idna").decode().lower().removesuffix(".")  # UnicodeError, as from the real one
        if name not in self.names:
            return self._numeric(host, port, given)
        turn, answers = self.looked_up[name], self.names[name]
        self.looked_up[name] += 1
        family, given["family"] = given.get("family") or 0, 0
        found = [info for one in answers[turn % len(answers)] for info in self._numeric(one, port, given)]
        wanted = [info for info in found if family in {0, info[0]}]
        if not wanted:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return wanted

    @staticmethod
    def _numeric(host: Any, port: Any, given: dict[str, Any]) -> list[Any]:
        _NUMERIC.allowed = True
        try:
            flags = int(given.get("flags") or 0) | socket.AI_NUMERICHOST
            return list(_REAL_GETADDRINFO(host, port, **{**given, "flags": flags}))
        finally:
            _NUMERIC.allowed = False


_REAL_GETADDRINFO = socket.getaddrinfo
_REAL_CONNECT = socket.socket.connect


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _armed is None or not event.startswith("socket."):
        return
    if event == "socket.connect":
        _armed.on_connect(args[1])
    elif event in {"socket.sendto", "socket.sendmsg"} and isinstance(args[1], tuple):
        raise OSError(errno.ENETUNREACH, f"a datagram to {args[1]}")
    elif event == "socket.getaddrinfo" and not getattr(_NUMERIC, "allowed", False):
        raise OSError(errno.ENETUNREACH, f"the real resolver was asked for {args[0]!r}")
    elif event.startswith("socket.gethostby"):
        raise OSError(errno.ENETUNREACH, f"the real resolver was asked for {args!r}")


def _connect(self: socket.socket, address: Any) -> None:
    here = None if _armed is None else _armed.route(self.family, address)
    if here is None:
        return _REAL_CONNECT(self, address)
    _HERE.routed = True
    try:
        return _REAL_CONNECT(self, here)
    finally:
        _HERE.routed = False


def _listening(host: str, port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.create_server((host, port), family=family, backlog=1024)
    opened.setblocking(False)
    return opened


def _both() -> tuple[socket.socket, socket.socket]:
    """One port on both loopback addresses."""
    while True:
        four = _listening("127.0.0.1")
        try:
            return four, _listening("::1", four.getsockname()[1])
        except OSError as error:
            four.close()
            if error.errno != errno.EADDRINUSE:
                raise


def _all(count: int) -> Iterator[socket.socket]:
    for _ in range(count):
        yield from _both()


@asynccontextmanager
async def internet(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Internet]:
    """An internet that is guarded as long as this lasts."""
    global _armed, _installed  # noqa: PLW0603 -- an audit hook can never be removed, only disarmed
    if not _installed:
        sys.addaudithook(_audit)
        _installed = True
    home = Listener(list(_all(HOME_PORTS)))
    public = Listener(list(_both()))
    ports = tuple(sorted({one.getsockname()[1] for one in home.sockets}))
    opened = Internet(home, public, ports)
    for listener in (home, public):
        listener.open()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", opened.resolve)
        patch.setattr(socket.socket, "connect", _connect)
        _armed = opened
        try:
            yield opened
        finally:
            _armed = None
            await home.close()
            await public.close()
