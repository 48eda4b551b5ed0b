"""A connection is uvicorn's, with two shortcuts and one mend.

uvicorn writes an answer's head and its body apart, and each write is a system call: here an answer leaves in one piece.
It calls back for each part of a request and makes a task of the whole, which for a callback, on the one hot path, is
twice as dear as to read and check it: a callback that arrives whole, with a head that nobody can read in two ways, is
read by one pattern and needs no task. And it loses the body of whoever would rather speak HTTP/2, as Java's client does
on every plain connection: here that wish is passed over, as HTTP lets a server do.
"""

from __future__ import annotations

import re
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from receiver.web import RECEIVED

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from receiver.web import Front, Taken

_HEAD: Final = b"HTTP/1.1 "
_CONTINUE: Final = b"HTTP/1.1 100"
_OK: Final = b"HTTP/1.1 200 OK\r\n"
_REST: Final = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(RECEIVED)
_KEPT: Final = _REST + b"\r\n" + RECEIVED
_CLOSED: Final = _REST + b"connection: close\r\n\r\n" + RECEIVED
_WISHES: Final = frozenset({b"upgrade", b"http2-settings"})
_MAX_HEAD: Final = 8192
"""Bytes of a head that the pattern looks at."""
# RFC 9112 without what has a second reading: one length, no coding, no wish, no line that goes on, nothing but CRLF.
_TOKEN: Final = rb"[!#-'*+.^_`|~0-9A-Za-z-]+"
_SPECIAL: Final = rb"(?i:connection|content-|expect|proxy-|transfer-|upgrade)"
_OTHERS: Final = rb"(?:(?!%b)%b:[\t -~\x80-\xff]*\r\n|(?i:connection): keep-alive\r\n)*" % (_SPECIAL, _TOKEN)
_TYPE: Final = rb"(?:(?i:content-type): ?([!-~]+(?: [!-~]+)*)\r\n%b)?" % _OTHERS
_WHOLE: Final = re.compile(
    rb"(?:POST|PUT) (/[A-Za-z0-9._~/-]*) HTTP/1\.1\r\n%b%b(?i:content-length): ?([0-9]{1,7})\r\n%b%b\r\n"
    % (_OTHERS, _TYPE, _OTHERS, _TYPE)
)
"""A path, a content type before the length, the length, and a content type after it."""


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

    A callback that is whole in what arrives while nothing else is under way, as it nearly always is, never meets
    uvicorn's parser: the door takes it at once, and its answer is written when its commit is done. All else goes
    uvicorn's way, and so does a callback that cannot be answered 200.
    """

    _front: Front
    _wire: Joined
    _taken: Taken | None = None
    _instead: ASGI3Application | None = None
    _between = True  # the parser is at no request
    _stops = _wishes = False
    _used = float("-inf")  # when the last callback was answered
    _head = _behind = _data = _anew = _ok = b""
    _headers: list[tuple[bytes, bytes]] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection."""
        self._front, self._wire = cast("Front", self.app), Joined(transport, self.loop)
        super().connection_made(self._wire)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        """A connection is gone; uvicorn leaves the timer of one that was reset, which would keep it for as long."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request's head is read."""
        if self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers):  # else it is CONNECT
            self._wishes = True
        else:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._between = True
        if not self._wishes:  # else all but its body, if it has one
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Some of a request, one, or several."""
        if self._taken is not None:
            self._behind += data
            self.flow.pause_reading()
        elif not self._take(data):
            self._read(data)

    def shutdown(self) -> None:
        """Close the connection once nothing is under way."""
        if self._taken is None:
            super().shutdown()
        else:
            self._stops = True

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that is not used; a timer goes on through callbacks, and is not made anew for each."""
        left = self.timeout_keep_alive - (0 if self._taken else self.loop.time() - self._used)
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _read(self, data: bytes) -> None:
        """Go uvicorn's way."""
        while data:
            self._data, self._anew = data, b""
            super().data_received(data)
            data = self._anew
        self._data = b""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        app, self._instead = self._instead or app, None
        super()._start_asgi_task(cycle, app)

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

    def _take(self, data: bytes) -> bool:
        """Whether the door has it."""
        is_idle = self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr] # at first it is
        free = is_idle and self._between and not self.flow.write_paused
        whole = _WHOLE.match(data, 0, _MAX_HEAD) if free else None
        if whole is None:
            return False
        path, before, size, after = whole.groups()
        end = whole.end()
        if len(data) - end != int(size) or (before and after):
            return False
        try:
            taken = self._front.take(path.decode(), data[end:], before or after, self._answer, self.transport.close)
        except Exception:  # noqa: BLE001 -- a fault of ours: the long way meets it too, and there it is logged and a 500
            return False
        if taken is None:
            return False
        self._taken, self._head = taken, data[:end]
        self.tasks.add(taken)  # type: ignore[arg-type] # what uvicorn waits for when it stops
        return True

    def _answer(self, taken: Taken, recorded: Any, error: BaseException | None) -> Callable[[], None] | None:
        self.tasks.discard(taken)
        self._taken, head, behind = None, self._head, self._behind
        self._head = self._behind = b""
        try:
            if error is None:
                self._write_good(closes=self._stops and not behind)
            else:
                self._refuse(head + taken.op.body, partial(taken.failed, error))
            if behind and not self.transport.is_closing():
                self.data_received(behind)
            if self._stops:
                self.shutdown()
        except Exception as fault:  # noqa: BLE001 -- what is committed goes on; its sender may come again
            self.loop.call_exception_handler({"message": "a callback's answer failed", "exception": fault})
            self.transport.abort()
        return partial(taken.accepted, recorded) if error is None else None

    def _refuse(self, request: bytes, app: ASGI3Application) -> None:
        """Have uvicorn read what was taken, and `app` answer it: what that raises is logged and a 500.

        Whoever sent it may be gone, and the parser with them; the log is to have it all the same.
        """
        is_gone = self.parser is None
        if is_gone:
            self.parser = httptools.HttpRequestParser(self)
        self._instead = app
        self._read(request)
        if is_gone:
            self.parser = None  # type: ignore[assignment]

    def _write_good(self, *, closes: bool) -> None:
        if self.transport.is_closing():  # its sender is gone, or a stop waits no longer
            return
        headers = self.server_state.default_headers
        if headers is not self._headers:  # they are made anew each second
            self._headers, self._ok = headers, _OK + b"".join([b"%b: %b\r\n" % header for header in headers])
        self._wire.write_whole(self._ok + (_CLOSED if closes else _KEPT))
        if closes:
            self.transport.close()
        self._used = self.loop.time()
        if self.timeout_keep_alive_task is None or self.flow.read_paused:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
