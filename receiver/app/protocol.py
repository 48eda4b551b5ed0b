"""A connection is uvicorn's, with two shortcuts and one mend.

uvicorn writes an answer's head and its body apart, and each write is a system call: here an answer leaves in one piece.
It makes a task of each request, which for a callback, on the one hot path, is as dear as to read and check it: a
callback needs none. And it loses the body of whoever would rather speak HTTP/2, as Java's client does on every plain
connection: here that wish is passed over, as HTTP lets a server do.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from receiver.web import RECEIVED

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from receiver.web import Front, Taken

_HEAD: Final = b"HTTP/1.1 "
_CONTINUE: Final = b"HTTP/1.1 100"
_OK: Final = b"HTTP/1.1 200 OK\r\n"
_REST: Final = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(RECEIVED)
_KEPT: Final = _REST + b"\r\n" + RECEIVED
_CLOSED: Final = _REST + b"connection: close\r\n\r\n" + RECEIVED
_WISHES: Final = frozenset({b"upgrade", b"http2-settings"})


class Joined:
    """A connection's transport that keeps an answer's head until what comes next, or until the loop's next turn.

    So a stream whose first piece takes its time is seen to have begun all the same. All else is the transport's own.
    """

    __slots__ = ("_head", "_loop", "_transport", "is_closing", "write_whole")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """Wrap `transport`."""
        self._transport = transport
        self._loop = loop
        self._head = b""
        self.write_whole = transport.write
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send `data`, after what was kept; where the other side is gone nothing, which uvloop would call an error."""
        if self.is_closing():
            return
        if self._head:
            data, self._head = self._head + data, b""
            self.write_whole(data)
        elif data.startswith(_HEAD) and not data.startswith(_CONTINUE):
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self.write_whole(data)

    def close(self) -> None:
        """Send what was kept, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head and not self.is_closing():
            data, self._head = self._head, b""
            self.write_whole(data)


class Protocol(HttpToolsProtocol):
    """uvicorn's, with the two shortcuts and the mend.

    A request is begun when what has arrived is read to its end. If it is a callback and whole by then, as it nearly
    always is, the door takes it at once and its answer is written when its commit is done; all else goes uvicorn's way,
    and so does a callback that cannot be answered 200.
    """

    _front: Front
    _wire: Joined
    _held: RequestResponseCycle | None = None
    _arrives = _wishes = False
    _data = _anew = _ok = b""
    _headers: list[tuple[bytes, bytes]] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection."""
        self._front, self._wire = cast("Front", self.app), Joined(transport, self.loop)
        super().connection_made(self._wire)  # type: ignore[arg-type]

    def on_headers_complete(self) -> None:
        """A request arrives; it may have to wait for the one before it."""
        if self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers):  # else it is CONNECT
            self._wishes = True
            return
        self._arrives = True
        super().on_headers_complete()
        self._arrives = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._arrives and app is self.app:
            self._held = cycle
        else:
            super()._start_asgi_task(cycle, app)

    def on_message_complete(self) -> None:
        """A request is whole."""
        if self._wishes:  # all but its body, if it has one
            return
        super().on_message_complete()
        cycle, self._held = self._held, None
        if cycle is not None and not self._take(cycle):
            super()._start_asgi_task(cycle, self.app)

    def data_received(self, data: bytes) -> None:
        """Some of a request, one, or several."""
        while data:
            self._data, self._anew = data, b""
            super().data_received(data)
            data = self._anew
        self._data = b""
        cycle, self._held = self._held, None
        if cycle is not None:
            super()._start_asgi_task(cycle, self.app)

    def _unsupported_upgrade_warning(self) -> None:
        """Have a request that wishes for another protocol read anew without that wish, and what follows it, too.

        uvicorn asks for this while it handles the parser's `HttpParserUpgrade`, which says how far that has come.
        """
        if not self._wishes:  # CONNECT
            super()._unsupported_upgrade_warning()
            return
        self._wishes = False
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token for token in value.split(b",") if token.strip().lower() not in _WISHES]
                head += [name, b": ", b",".join(tokens), b"\r\n"]
            elif name not in _WISHES:
                head += [name, b": ", value, b"\r\n"]
        error = sys.exception()
        assert isinstance(error, httptools.HttpParserUpgrade)  # noqa: S101 -- see above
        self._anew = b"".join([*head, b"\r\n", self._data[error.args[0] :]])
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it

    def _take(self, cycle: RequestResponseCycle) -> bool:
        """Whether the door has it."""
        if cycle.waiting_for_100_continue or self.flow.write_paused:
            return False
        scope: Any = cycle.scope
        try:
            taken = self._front.take(scope, cycle.body, partial(self._answer, cycle), self.transport.close)
        except Exception:  # noqa: BLE001 -- a fault of ours: the long way meets it too, and there it is logged and a 500
            taken = None
        if taken is None:
            return False
        cycle.body = bytearray()  # the cycle stays until the next request
        self.tasks.add(taken)  # type: ignore[arg-type] # what uvicorn waits for when it stops
        return True

    def _answer(
        self, cycle: RequestResponseCycle, taken: Taken, recorded: Any, error: BaseException | None
    ) -> Callable[[], None] | None:
        self.tasks.discard(taken)
        if error is not None:  # uvicorn logs what the door has no answer to, and says 500
            super()._start_asgi_task(cycle, partial(taken.failed, error))
            return None
        try:
            self._write_good(cycle)
        except Exception as fault:  # noqa: BLE001 -- it is committed, so it goes on; its sender may come again
            self.loop.call_exception_handler({"message": "a callback's answer failed", "exception": fault})
            self.transport.abort()
        return partial(taken.accepted, recorded)

    def _write_good(self, cycle: RequestResponseCycle) -> None:
        cycle.on_response = lambda: None  # as uvicorn does: it would keep the connection from being freed
        # It is closing where what came behind the callback was no HTTP, or where a stop waits no longer.
        if cycle.disconnected or self.transport.is_closing():
            return
        cycle.response_started = cycle.response_complete = True
        headers = self.server_state.default_headers
        if headers is not self._headers:  # they are made anew each second
            self._headers, self._ok = headers, _OK + b"".join([b"%b: %b\r\n" % header for header in headers])
        self._wire.write_whole(self._ok + (_KEPT if cycle.keep_alive else _CLOSED))
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()
