"""A TCP proxy on loopback in front of a real receiver, whose connections go wrong as a script says.

A fault is data: the steps of one connection (`Relay`, `Say`, `Reset`, …). A proxy has a script, one fault for each of
the next connections, and relays when that is spent. It keeps no opinion: what the fault means is for the test to say.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import trustme

from receiver.app import clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime
    from pathlib import Path

PIECE: Final = 65_536
"""Bytes that are read at once."""


@dataclass(frozen=True)
class Relay:
    """Carry bytes between the client and the receiver, until one side ends or a limit is reached.

    Attributes:
        request: so many bytes of what the client sends, then the next step.
        answer: so many bytes of what the receiver says, then the next step.
    """

    request: int | None = None
    answer: int | None = None


@dataclass(frozen=True)
class Take:
    """Read one request, or so many bytes of it, and show it to nobody."""

    size: int | None = None


@dataclass(frozen=True)
class Say:
    """Send these bytes; a function is asked for them then. `piece` bytes `every` so many seconds where that is set."""

    what: bytes | Callable[[], bytes]
    piece: int | None = None
    every: float = 0.0


@dataclass(frozen=True)
class Endless:
    """Send this again and again, with a pause between where it is set, until the client has gone."""

    what: bytes
    every: float = 0.0


@dataclass(frozen=True)
class Close:
    """End it in good order (FIN)."""


@dataclass(frozen=True)
class Reset:
    """End it with a reset (RST)."""


@dataclass(frozen=True)
class HalfClose:
    """Say that nothing more will come, and go on listening."""


@dataclass(frozen=True)
class Hang:
    """Read and say nothing, until the client has gone."""


@dataclass(frozen=True)
class Handshake:
    """Speak TLS from here on, with this context."""

    tls: ssl.SSLContext = field(repr=False)


Step = Relay | Take | Say | Endless | Close | Reset | HalfClose | Hang | Handshake
Fault = tuple[Step, ...]


def answered(status: int, *headers: str, body: bytes = b"no") -> bytes:
    """A whole answer with these header lines."""
    lines = [f"HTTP/1.1 {status} Said", *headers, f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _bound() -> socket.socket:
    bound = socket.socket()
    bound.setblocking(False)
    bound.bind(("127.0.0.1", 0))
    return bound


@dataclass
class Proxy:
    """One proxy; whoever makes it, closes it.

    Attributes:
        script: the faults of its next connections.
        tls: what it speaks where the script says nothing; None for plain.
        connections: how many it ever had.
    """

    receiver: tuple[str, int]
    script: list[Fault] = field(default_factory=list)
    tls: ssl.SSLContext | None = None
    connections: int = 0
    _socket: socket.socket = field(default_factory=_bound)
    _accepting: asyncio.Task[None] | None = None
    _serving: set[asyncio.Task[None]] = field(default_factory=set)
    _fillers: list[socket.socket] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Where it is, or will be."""
        return int(self._socket.getsockname()[1])

    @property
    def open(self) -> int:
        """Connections that it serves now."""
        return len(self._serving)

    @property
    def _relay(self) -> Fault:
        return (Relay(),) if self.tls is None else (Handshake(self.tls), Relay())

    @property
    def listens(self) -> bool:
        """Whether it takes connections."""
        return self._accepting is not None

    def listen(self) -> None:
        """Take connections; before, the port is held and every one is refused."""
        if self._accepting is not None:
            return
        for filler in self._fillers:
            filler.close()
        self._socket.listen(128)
        self._accepting = asyncio.create_task(self._accept())

    def clog(self) -> None:
        """Listen, but with a queue that is full: a connection to it is neither taken nor refused."""
        self._socket.listen(0)
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(self._socket.getsockname())
            self._fillers.append(filler)

    async def close(self) -> None:
        """End every connection, and the proxy."""
        running = [*self._serving, *([self._accepting] if self._accepting else [])]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for one in (self._socket, *self._fillers):
            one.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._socket)
            self.connections += 1
            fault = self.script.pop(0) if self.script else self._relay
            serving = asyncio.create_task(_Connection(client, self.receiver).run(fault))
            self._serving.add(serving)
            serving.add_done_callback(self._serving.discard)


@dataclass
class _Connection:
    """One connection while its steps are gone through; streams are opened when the first step needs them."""

    socket: socket.socket
    receiver: tuple[str, int]
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None

    async def run(self, fault: Fault) -> None:
        """Go through the steps; whatever the client does meanwhile is its business."""
        try:
            for step in fault:
                await self._do(step)
        except (OSError, EOFError, RuntimeError):  # the last is uvloop's for a connection that is closed
            pass
        finally:
            if self.writer is None:
                self.socket.close()
            else:
                self.writer.transport.abort()

    async def _do(self, step: Step) -> None:
        match step:
            case Handshake(tls):
                await self._open(tls)
            case Relay(request, answer):
                await self._relay(request, answer)
            case Take(size):
                await self._take(size)
            case Say(what, piece, every):
                await self._say(what if isinstance(what, bytes) else what(), piece, every)
            case Endless(what, every):
                for _ in itertools.repeat(None):
                    await self._say(what, None, every)
            case Close():
                await self._close()
            case Reset():
                await self._reset()
            case HalfClose():
                _, writer = await self._open()
                writer.write_eof()
            case Hang():
                reader, _ = await self._open()
                while await reader.read(PIECE):
                    pass

    async def _open(self, tls: ssl.SSLContext | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.reader is None or self.writer is None:
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, self.socket, ssl=tls)
            self.reader, self.writer = reader, asyncio.StreamWriter(transport, protocol, reader, loop)
        return self.reader, self.writer

    async def _close(self) -> None:
        if self.writer is None:
            self.socket.close()
            return
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()

    async def _reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self.writer is None:
            self.socket.close()
        else:
            self.writer.transport.abort()

    async def _take(self, size: int | None) -> None:
        reader, _ = await self._open()
        if size is not None:
            await reader.readexactly(size)
            return
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        _, _, rest = head.partition(b"content-length:")
        await reader.readexactly(int(rest.split(b"\r\n")[0] or b"0"))

    async def _say(self, what: bytes, piece: int | None, every: float) -> None:
        _, writer = await self._open()
        size = piece or len(what)
        for start in range(0, len(what), size):
            writer.write(what[start : start + size])
            await writer.drain()
            await asyncio.sleep(every)

    async def _relay(self, request: int | None, answer: int | None) -> None:
        reader, writer = await self._open()
        from_receiver, to_receiver = await asyncio.open_connection(*self.receiver)
        ways = [
            asyncio.create_task(_carry(reader, to_receiver, request)),
            asyncio.create_task(_carry(from_receiver, writer, answer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            to_receiver.transport.abort()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None) -> None:
    """Bytes from one side to the other, as far as the limit or the end."""
    left = limit
    while left is None or left > 0:
        data = await reader.read(PIECE if left is None else min(PIECE, left))
        if not data:
            return
        writer.write(data)
        await writer.drain()
        left = None if left is None else left - len(data)


@asynccontextmanager
async def proxies() -> AsyncIterator[Callable[..., Proxy]]:
    """A function that makes proxies (`receiver`: the URL in front of which one stands); all are closed at the end."""
    made: list[Proxy] = []

    def make(receiver: str, *script: Fault, tls: ssl.SSLContext | None = None) -> Proxy:
        host, _, port = receiver.split("/")[2].partition(":")
        made.append(Proxy((host, int(port)), list(script), tls))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            await one.close()


class Certificates:
    """Contexts of servers with good and bad certificates for 127.0.0.1, of an authority that a file names."""

    def __init__(self) -> None:
        """Make the authority."""
        self._authority = trustme.CA()

    def write(self, path: Path) -> None:
        """Put the authority where `SSL_CERT_FILE` can point."""
        self._authority.cert_pem.write_to_path(str(path))

    @property
    def good(self) -> ssl.SSLContext:
        """One that verifies."""
        return _context(self._issued())

    @property
    def expired(self) -> ssl.SSLContext:
        """Good until yesterday."""
        return _context(self._issued(not_after=clock() - timedelta(days=1)))

    @property
    def misnamed(self) -> ssl.SSLContext:
        """Somebody else's."""
        return _context(self._issued("other.example"))

    @property
    def stranger(self) -> ssl.SSLContext:
        """Signed by an authority that nobody knows."""
        return _context(trustme.CA().issue_cert("127.0.0.1"))

    @property
    def selfsigned(self) -> ssl.SSLContext:
        """Signed by nobody else."""
        alone = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with trustme.Blob(alone.private_key_pem.bytes() + alone.cert_pem.bytes()).tempfile() as path:
            context.load_cert_chain(path)
        return context

    def _issued(self, name: str = "127.0.0.1", not_after: datetime | None = None) -> trustme.LeafCert:
        return self._authority.issue_cert(name, not_after=not_after)


def _context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context
