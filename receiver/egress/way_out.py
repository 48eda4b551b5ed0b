"""Egress: three ways out, one reading of what comes back.

* `submit`: to the upstream, each request on a connection of its own, so that a reset is never the stale end of an
  earlier one; httpx over aiohttp, whose connector closes each connection after its request.
* `ask`: lookups at the upstream; httpx over aiohttp, pooled. They change nothing there, so one that met a stale pooled
  connection is asked once more on a fresh one. (aiohttp itself repeats a GET once, on any connection; never a POST.)
* `deliver`: to destinations; aiohttp itself, which is about twice as fast, in two pools: one for public addresses
  alone, one for destinations with leave for private ones. A connection never crosses. Nothing is repeated here: a stale
  connection is a transient failure of the attempt. Mails and what goes through apprise have rooms of their own.

A failure before a status line is an EgressError. Once there is a status, there is an answer: a body that breaks off,
runs out of time or passes the cap only makes it `truncated`.
"""

from __future__ import annotations

import asyncio
import io
import zlib
from contextlib import aclosing, suppress
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Final, cast

import httpx
from httpx_aiohttp import AiohttpTransport
from yarl import URL

from receiver.egress import dialing, faults, mail, notify
from receiver.errors import EgressError
from receiver.wire import HttpRequest, HttpResponse

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping

    import aiohttp

UPSTREAM_CAP: Final = 2 * 1024 * 1024
"""Bytes of an upstream's answer that are read; also of one that came compressed, inflated."""
DELIVERY_CAP: Final = 16 * 1024
"""Bytes of a destination's answer that are read."""
HEADERS_CAP: Final = 16 * 1024
"""Bytes of an answer's headers that are kept."""

_POOL: Final = 64
_PIECE: Final = 64 * 1024
_LARGE: Final = 1024 * 1024
"""Above this a body goes out in pieces: aiohttp would copy it whole in one step of the loop, and warns."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """A status that has arrived, its body still to come."""

    status: int
    headers: Iterable[tuple[bytes, bytes]]
    chunks: AsyncIterable[bytes]
    close: Callable[[bool], Awaitable[None]]  # told whether the body was read to its end


class Egress:
    """The way out of one process; to be made inside its event loop."""

    def __init__(self, *, base_url: str, headers: Mapping[str, str], tls: ssl.SSLContext | None = None) -> None:
        """Open the pools; nothing is connected yet.

        Args:
            base_url: what the paths of upstream requests are put behind; the operator's word, never vetted.
            headers: on every request to the upstream (its key, its version); a request's own win.
            tls: the authorities that are trusted; None for certifi's and the system's.

        Raises:
            ValueError: a header is not plain ASCII on one line.
        """
        for name, value in headers.items():
            if not (value.isascii() and value.isprintable()):
                raise ValueError(f"the upstream header {name} is not plain ASCII on one line")
        context = tls or dialing.tls_context()
        self._mail_tls = tls
        self._base_url = base_url.rstrip("/")
        self._headers = dict(headers)
        self._public = dialing.session(tls=context, vetted=True)
        self._private = dialing.session(tls=context, vetted=False)
        self._pooled = _client(dialing.session(tls=context, vetted=False, limit=_POOL), context)
        self._fresh = _client(dialing.session(tls=context, vetted=False, fresh=True), context)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._public.close()
        await self._private.close()
        await self._pooled.aclose()
        await self._fresh.aclose()

    async def submit(self, request: HttpRequest, *, timeout: float) -> HttpResponse:  # noqa: ASYNC109 -- it outlives any one scope
        """Send a submission to the upstream, once, on a fresh connection.

        Args:
            request: its url is a path behind `base_url`.
            timeout: seconds for the whole of it, the answer's body included.

        Raises:
            EgressError: no answer; `sent` is false only if no connection stood.
        """
        return await self._consult(self._fresh, request, ends=_now() + timeout, within=timeout)

    async def ask(self, request: HttpRequest, *, timeout: float) -> HttpResponse:  # noqa: ASYNC109 -- likewise
        """Ask the upstream a question that changes nothing there. See `submit`."""
        ends = _now() + timeout
        try:
            return await self._consult(self._pooled, request, ends=ends, within=timeout)
        except EgressError as error:
            if error.stage != "reset" or not dialing.MARK.get().reused:
                raise
        return await self._consult(self._fresh, request, ends=ends, within=timeout)

    async def deliver(
        self,
        request: HttpRequest,
        *,
        timeout: float,  # noqa: ASYNC109 -- likewise
        allow_private: bool,
    ) -> HttpResponse:
        """Send a request to a destination: by HTTP, or what its method says (`mail.METHOD`, `notify.METHOD`).

        Args:
            request: its url is absolute.
            timeout: seconds for the whole of it, the answer's body included.
            allow_private: whether it may go to loopback and private addresses.

        Raises:
            EgressError: no answer; stage `address` where the destination is private without leave.
        """
        if request.method == mail.METHOD:
            self._mail_tls = self._mail_tls or dialing.tls_context(alpn=None)  # some servers mind a foreign protocol
            return await mail.send(request, tls=self._mail_tls, timeout=timeout)
        if request.method == notify.METHOD:
            return await notify.send(request, timeout=timeout)
        session = self._private if allow_private else self._public

        async def send() -> _Answer:
            return await _deliver(session, request)

        return await _converse(send, ends=_now() + timeout, within=timeout, cap=DELIVERY_CAP)

    async def _consult(
        self, client: httpx.AsyncClient, request: HttpRequest, *, ends: float, within: float
    ) -> HttpResponse:
        async def send() -> _Answer:
            return await _send(client, self._upstream_request(request, fresh=client is self._fresh))

        return _inflated(await _converse(send, ends=ends, within=within, cap=UPSTREAM_CAP))

    def _upstream_request(self, request: HttpRequest, *, fresh: bool) -> httpx.Request:
        headers = httpx.Headers({"accept": "application/json", "accept-encoding": "identity", **self._headers})
        headers.update(request.headers)
        headers["connection"] = "close" if fresh else "keep-alive"
        content: bytes | AsyncIterator[bytes] = request.body
        if len(request.body) > _LARGE:
            headers["content-length"] = str(len(request.body))
            content = _pieces(request.body)
        return httpx.Request(request.method, self._base_url + request.url, headers=headers, content=content)


async def _converse(send: Callable[[], Awaitable[_Answer]], *, ends: float, within: float, cap: int) -> HttpResponse:
    mark = dialing.Mark()
    dialing.MARK.set(mark)
    began = _now()
    answer: _Answer | None = None
    body, whole = bytearray(), False
    try:
        async with asyncio.timeout_at(ends):
            answer = await send()
            whole = await _read(answer.chunks, body, cap)
    except faults.FAILURES as error:
        if answer is None:
            raise faults.told(error, stood=mark.stood, within=within) from error
    finally:
        if answer is not None:
            await answer.close(whole)
    return HttpResponse(
        status=answer.status,
        headers=_headers(answer.headers),
        body=bytes(body[:cap]),
        truncated=not whole,
        elapsed_for=_now() - (mark.stood_at or began),
    )


async def _read(chunks: AsyncIterable[bytes], body: bytearray, cap: int) -> bool:
    """Read into `body` until its end, or past the cap; whether the end was reached."""
    async for chunk in chunks:
        body += chunk
        if len(body) > cap:
            return False
    return True


async def _deliver(session: aiohttp.ClientSession, request: HttpRequest) -> _Answer:
    try:
        # As it stands, where it can: requoting a URL can break one that carries a signature.
        url = URL(request.url, encoded=request.url.isascii())
        url.port  # noqa: B018 -- read lazily, and refused then
    except ValueError:
        raise EgressError("nothing can be connected to this URL", stage="address", sent=False) from None
    response = await session.request(
        request.method,
        url,
        headers={"accept": "*/*", "accept-encoding": "identity", **request.headers},
        data=io.BytesIO(request.body) if len(request.body) > _LARGE else request.body,
        allow_redirects=False,
    )

    async def close(whole: bool) -> None:
        if not whole:
            response.close()

    return _Answer(response.status, response.raw_headers, response.content.iter_any(), close)


async def _send(client: httpx.AsyncClient, request: httpx.Request) -> _Answer:
    response = await client.send(request, stream=True)

    async def chunks() -> AsyncIterator[bytes]:
        async with aclosing(cast("AsyncGenerator[bytes]", response.aiter_raw())) as raw:
            async for chunk in raw:
                yield chunk

    async def close(_whole: bool) -> None:
        # Closing waits for the end of the upload; a server that answered without reading it does not hold us.
        with suppress(*faults.FAILURES):
            async with asyncio.timeout(1):
                await response.aclose()

    return _Answer(response.status_code, response.headers.raw, chunks(), close)


def _client(session: aiohttp.ClientSession, tls: ssl.SSLContext) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=AiohttpTransport(client=session, verify=tls, trust_env=False),
        trust_env=False,
        follow_redirects=False,
        timeout=None,  # noqa: S113 -- `_converse` counts the whole of it
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Names in lower case, of repeated ones the last; what is no UTF-8 is replaced, so that JSON can hold it."""
    kept: dict[str, str] = {}
    size = 0
    for name, value in raw:
        size += len(name) + len(value)
        if size > HEADERS_CAP:
            break
        kept[name.decode("utf-8", "replace").lower()] = value.decode("utf-8", "replace")
    return kept


def _inflated(response: HttpResponse) -> HttpResponse:
    """Undo a compression that was not asked for, as far as the cap; what cannot be undone stays as it came."""
    if response.headers.get("content-encoding", "").strip().lower() not in {"gzip", "x-gzip", "deflate"}:
        return response
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        body = stream.decompress(response.body, UPSTREAM_CAP)
    except zlib.error:
        return response
    return HttpResponse(
        status=response.status,
        headers=response.headers,
        body=body,
        truncated=response.truncated or not stream.eof,
        elapsed_for=response.elapsed_for,
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
