"""A TCP proxy before PostgreSQL that knows a COMMIT when it sees one, and goes wrong at that very moment.

It is armed with words: the next transaction whose statements bear them is the one that is hit. It understands just
enough of the protocol (https://www.postgresql.org/docs/current/protocol-message-formats.html).
"""

from __future__ import annotations

import asyncio
import struct
import threading
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
Mode = Literal["before", "after", "late"]
_ASKS = {80877103, 80877104}
"""Requests for TLS and GSSAPI, which come before the start-up message and look like it."""


@dataclass
class Proxy:
    """The proxy.

    Attributes:
        url: as `database.url`.
        mode: `before`: the COMMIT does not reach the server. `after`: it does, and its answer does not come back.
            `late`: what is marked reaches the server when `release` is called, long after the client was cut off.
        words: what the transaction bears that is hit; None for none.
        is_away: nobody gets through; where it `is_mute`, nobody hears so either.
        begins_nothing: whoever begins a transaction is cut off; `is_deaf`: whoever listens for news.
        hits: how often it struck; `refused`: how many it did not let in.
        ended: of `late`: the server's last words, once it was released.
    """

    host: str
    port: int
    loop: asyncio.AbstractEventLoop
    url: str = ""
    mode: Mode = "before"
    words: bytes | None = None
    is_away: bool = False
    away_after: bool = False
    begins_nothing: bool = False
    is_deaf: bool = False
    is_mute: bool = False
    hits: int = 0
    refused: int = 0
    ended: Future[bytes] = field(default_factory=Future)
    _release: asyncio.Event = field(default_factory=asyncio.Event)
    _links: set[_Link] = field(default_factory=set)
    _running: set[asyncio.Task[None]] = field(default_factory=set)
    _listener: asyncio.Server | None = None

    def arm(self, mode: Mode, words: str, *, away: bool = False) -> None:
        """Hit the next transaction that bears these words, and then stay away; of `late`, let nobody begin another."""

        def armed() -> None:
            self.mode, self.words, self.away_after = mode, words.encode(), away
            self.ended = Future()
            self._release.clear()

        self._do(armed)

    def go_away(self, *, mute: bool = False) -> None:
        """Let nobody in, and cut every connection; or leave all of them without an answer, as a net that is gone."""

        def gone() -> None:
            self.is_mute = mute
            if mute:
                self.is_away = True
            else:
                self._go_away()

        self._do(gone)

    def come_back(self) -> None:
        """Let everybody in."""

        def back() -> None:
            self.is_away, self.begins_nothing, self.words = False, False, None
            self.is_mute = False

        self._do(back)

    def release(self) -> bytes:
        """Let go of what was held back; what the server said to it."""
        self._do(self._release.set)
        return self.ended.result(10)

    def deafen(self) -> int:
        """Cut the connections that listen for news, now and whenever they come; how many there were."""

        def cut() -> int:
            self.is_deaf = True
            listening = [link for link in self._links if link.listens]
            for link in listening:
                link.cut()
            return len(listening)

        return self._do(cut)

    def _do(self, what: Callable[[], T]) -> T:
        async def done() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(done(), self.loop).result(10)

    # -- on its own loop -------------------------------------------------------------------------------------------

    async def listen(self) -> int:
        """Open; the port."""
        self._listener = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return int(self._listener.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """End it."""
        assert self._listener is not None
        self._listener.close()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.sleep(0)  # what was aborted is closed by the loop's next turn

    def _go_away(self) -> None:
        self.is_away = True
        for link in list(self._links):
            link.cut()

    def struck(self) -> None:
        """It has hit what it was armed for."""
        self.words = None
        self.hits += 1
        self.begins_nothing = self.mode == "late"
        if self.away_after:
            self._go_away()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            with suppress(asyncio.CancelledError, ConnectionError):
                await self._serve(reader, writer)
        finally:
            writer.transport.abort()
            self._running.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_away:
            self.refused += 1
            if self.is_mute:
                await reader.read()
            return
        theirs, ours = await asyncio.open_connection(self.host, self.port)
        link = _Link(self, reader, writer, theirs, ours)
        self._links.add(link)
        try:
            await link.run(self._release)
        finally:
            self._links.discard(link)
            link.cut()
            ours.transport.abort()


@dataclass(eq=False)
class _Link:
    """One client's connection, and ours for it."""

    proxy: Proxy
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    theirs: asyncio.StreamReader
    ours: asyncio.StreamWriter
    listens: bool = False
    _is_marked: bool = False
    _is_cut: bool = False
    _commits: set[bytes] = field(default_factory=set)

    def cut(self) -> None:
        """The client hears nothing more."""
        self._is_cut = True
        self.writer.transport.abort()

    async def run(self, release: asyncio.Event) -> None:
        """Carry messages until one side ends, or the proxy strikes."""
        back = asyncio.create_task(self._back())
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._start_up()
                await self._forth(release)
        finally:
            if not self._is_cut or self.proxy.mode == "before":
                back.cancel()
            await asyncio.wait({back}, timeout=10)
            back.cancel()

    async def _start_up(self) -> None:
        while True:
            head = await self.reader.readexactly(8)
            size, code = struct.unpack("!II", head)
            self.ours.write(head + await self.reader.readexactly(size - 8))
            if code not in _ASKS:
                return

    async def _forth(self, release: asyncio.Event) -> None:
        while True:
            head = await self.reader.readexactly(5)
            message = head + await self.reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
            words = self.proxy.words
            self.listens = self.listens or b"LISTEN " in message
            if (self.proxy.begins_nothing and b"BEGIN" in message) or (self.proxy.is_deaf and self.listens):
                self.cut()
                return
            self._is_marked = self._is_marked or (words is not None and words in message)
            if self._is_marked and words is not None and self.proxy.mode == "late":
                await self._hold(message, release)
                return
            if self._ends_it(message):
                if self._is_marked and words is not None:
                    await self._strike(message)
                    return
                self._is_marked = False
            if self.proxy.is_mute:
                await self.reader.read()
                return
            self.ours.write(message)
            await self.ours.drain()

    def _ends_it(self, message: bytes) -> bool:
        """Whether it is (the first message of) a COMMIT."""
        kind, body = message[:1], message[5:]
        if kind == b"P":
            name, query, *_ = body.split(b"\0")
            if query == b"COMMIT" and name:
                self._commits.add(name)
            return query == b"COMMIT"
        if kind == b"B":
            return body.split(b"\0")[1] in self._commits
        return kind == b"Q" and body.startswith(b"COMMIT")

    async def _strike(self, message: bytes) -> None:
        if self.proxy.mode == "before":
            self.cut()
            self.ours.transport.abort()
            self.proxy.struck()
            return
        self._is_cut = True  # the answer is read and told to nobody
        while True:
            self.ours.write(message)
            if message[:1] in b"SQ":
                break
            head = await self.reader.readexactly(5)
            message = head + await self.reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
        await self.ours.drain()

    async def _hold(self, message: bytes, release: asyncio.Event) -> None:
        """Take what the client says up to its Sync, cut it off, and pass it on when we are told to."""
        held = [message]
        while held[-1][:1] != b"S":
            head = await self.reader.readexactly(5)
            held.append(head + await self.reader.readexactly(struct.unpack("!I", head[1:])[0] - 4))
        self.cut()
        self.proxy.struck()
        await release.wait()
        self.ours.write(b"".join(held))
        await self.ours.drain()

    async def _back(self) -> None:
        said = b""
        with suppress(ConnectionError):
            while piece := await self.theirs.read(65_536):
                if not self._is_cut:
                    self.writer.write(piece)
                    await self.writer.drain()
                    continue
                said += piece
                if self.proxy.mode == "after" and b"COMMIT\0" in said:
                    self.cut()
                    self.proxy.struck()
                    return
                ended = self.proxy.ended
                if self.proxy.mode == "late" and not ended.done() and _is_ready(said):
                    ended.set_result(said)
                    return
        if not self._is_cut:
            self.writer.close()


def _is_ready(said: bytes) -> bool:
    """The server waits for the next question."""
    return said[-6:-1] == b"Z\0\0\0\5"


@contextmanager
def proxy(url: str) -> Iterator[Proxy]:
    """A proxy before the server at `url`, on a thread of its own: who connects while a loop waits must get through."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    loop = asyncio.new_event_loop()
    made = Proxy(parts.hostname, parts.port, loop)
    thread = threading.Thread(target=loop.run_forever, name="proxy", daemon=True)
    thread.start()
    try:
        port = asyncio.run_coroutine_threadsafe(made.listen(), loop).result(10)
        made.url = urlunsplit(parts._replace(netloc=f"postgres@127.0.0.1:{port}"))
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(made.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
