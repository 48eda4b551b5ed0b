"""The few lines of ASGI that the rooms of web share: reading a body under a cap, answering."""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, Any

import orjson

from receiver import logs
from receiver.errors import ReceiverError, TooLarge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Generator, Iterable

    from starlette.types import Message, Receive, Scope, Send

BODY_FOR = 30.0
"""Seconds a body may take to arrive; a sender that is slower, or never begins, is let go."""
MAX_MEMBERS = 64
"""Parts of one gzip body; each costs a copy of what follows, and a body of empty ones would cost minutes."""
SMALL = 32 * 1024
"""Bytes of a document that is searched for secrets as a whole; a larger one string by string."""
JSON = (b"content-type", b"application/json")


class Gone(ReceiverError):
    """The sender went away, or was too slow, before the body was whole."""

    http_status = 408
    code = "body-timeout"


async def answer(send: Send, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = (JSON,)) -> None:
    """One whole response."""
    fields = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def answer_json(send: Send, status: int, document: Any, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """One whole JSON response."""
    await answer(send, status, orjson.dumps(document), (JSON, *headers))


def written(document: Any) -> bytes:
    """A document of an answer as JSON, with whatever secret the upstream's words may repeat masked (contract 4.3)."""
    return masked(orjson.dumps(document))


def masked(raw: bytes) -> bytes:
    """A finished JSON document with every secret in it masked; the very bytes where there is none."""
    if len(raw) <= SMALL and logs.redact(text := raw.decode()) == text:
        return raw
    # String by string, so that it stays JSON, and so that a large one lets other threads go on in between.
    said = orjson.loads(raw)
    cleaned = _cleaned(said)
    return raw if cleaned == said else orjson.dumps(cleaned)


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return logs.redact(value)
    if isinstance(value, dict):
        return {logs.redact(name): _cleaned(member) for name, member in value.items()}
    return [_cleaned(item) for item in value] if isinstance(value, list) else value


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


async def read_body(scope: Scope, receive: Receive, cap: int) -> bytes:
    """The body, with `Content-Encoding: gzip` undone, refused as soon as it passes `cap` bytes (inflated, too).

    Raises:
        TooLarge: it is larger.
        Gone: it did not arrive.
    """
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > cap:
        raise TooLarge(f"the body has {int(declared)} bytes, {cap} are taken")
    steps = receive().__await__()
    try:
        waits_for = next(steps)
    except StopIteration as done:  # it was there already, as it nearly always is: no timer is worth its price
        message: Message = done.value
        body = _piece(message, cap)
        if message.get("more_body", False):
            body = await _in_time(_rest(receive, [body], cap))
    else:
        body = await _in_time(_rest(receive, [], cap, _Resumed(steps, waits_for)))
    encoding = header(scope, b"content-encoding")
    if encoding is not None and encoding.strip().lower() in {b"gzip", b"x-gzip"}:
        return inflate(body, cap)
    return body


class _Resumed:
    """A question that was taken one step and had to wait: awaited, it goes on from there."""

    __slots__ = ("_steps", "_waits_for")

    def __init__(self, steps: Generator[Any, None, Message], waits_for: Any) -> None:
        self._steps, self._waits_for = steps, waits_for

    def __await__(self) -> Generator[Any, None, Message]:
        yield self._waits_for
        return (yield from self._steps)


async def _in_time(whole: Coroutine[Any, Any, bytes]) -> bytes:
    try:
        async with asyncio.timeout(BODY_FOR):
            return await whole
    except TimeoutError:
        raise Gone(f"the body did not arrive within {BODY_FOR:.0f} s") from None


async def _rest(receive: Receive, pieces: list[bytes], cap: int, first: Awaitable[Message] | None = None) -> bytes:
    left = cap - sum(map(len, pieces))
    more = True
    while more:
        message = await (first or receive())
        first = None
        piece = _piece(message, left)
        left -= len(piece)
        pieces.append(piece)
        more = message.get("more_body", False)
    return b"".join(pieces)


def _piece(message: Message, left: int) -> bytes:
    if message["type"] == "http.disconnect":
        raise Gone("the sender went away before the body was whole")
    piece: bytes = message.get("body", b"")
    if len(piece) > left:
        raise TooLarge("the body is larger than what is taken")
    return piece


def inflate(body: bytes, cap: int) -> bytes:
    """The content of a gzip body; the body itself where it is none, since some senders only say so.

    Raises:
        TooLarge: it inflates to more than `cap` bytes; no more than that is ever held.
    """
    pieces: list[bytes] = []
    size, rest = 0, body
    try:
        while rest:
            if len(pieces) == MAX_MEMBERS:
                return body
            unpacker = zlib.decompressobj(wbits=31)
            piece = unpacker.decompress(rest, cap - size + 1)
            size += len(piece)
            if size > cap:
                raise TooLarge(f"the body inflates to more than {cap} bytes")
            pieces.append(piece)
            if not unpacker.eof:
                break
            rest = unpacker.unused_data
    except zlib.error:
        return body
    return b"".join(pieces)
