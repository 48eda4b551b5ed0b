"""How a connection comes about: names to addresses, addresses past the gate, sockets to sessions.

The gate stands in two places. The resolver vets every address a name has, and refuses the name if one of them is
private. The socket factory vets once more whatever is about to be connected, so a literal address in the URL, which
never meets the resolver, passes no other way. What was vetted is what is connected: the DNS is never asked for a second
answer in between (rebinding).
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult

from receiver.egress.addresses import vet
from receiver.egress.reading import Connector
from receiver.errors import EgressError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

Done = TypeVar("Done")

_MAX_LOOKUPS: Final = 64
"""Names one resolver looks up at once; a name that is being looked up already is not asked for twice."""
_KEEPALIVE: Final = 15.0
"""Seconds an idle connection is kept."""
_MAX_LINE: Final = 8190
"""Bytes of a status line or a header field."""
_READ_AHEAD: Final = 16 * 1024


class Mark:
    """How far the connection of one request came."""

    __slots__ = ("reused", "stood_at")

    def __init__(self) -> None:
        self.stood_at: float | None = None
        """The loop's time when the connection stood, TLS included; from then on something may have been sent."""
        self.reused = False

    @property
    def stood(self) -> bool:
        """Whether a connection stood."""
        return self.stood_at is not None


MARK: Final[ContextVar[Mark]] = ContextVar("egress_mark")


class Resolver(AbstractResolver):
    """Names to addresses, each lookup in a daemon thread of its own.

    Not in an executor: a few names whose servers hang would hold its threads, and the exit of the process, for half a
    minute; and libuv's pool, which uvloop would use, has four.
    """

    def __init__(self, *, vetted: bool) -> None:
        self._vetted = vetted
        self._slots = asyncio.Semaphore(_MAX_LOOKUPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of `host`.

        Raises:
            OSError: it has none, or its server does not answer.
            EgressError: one of them is private, and this resolver vets.
        """
        async with self._slots:
            found = await in_thread(lambda: _addresses(host, port, family))
        if self._vetted:
            refuse_private(host, found)
        return found

    async def close(self) -> None:
        """Nothing is held."""


def refuse_private(host: str, found: list[ResolveResult]) -> None:
    """Refuse a name that has a private address, even where others of its addresses are public.

    Raises:
        EgressError: one of them is private.
    """
    for one in found:
        reason = vet(one["host"])
        if reason is not None:
            raise EgressError(f"{host} resolves to a private address: {reason}", stage="address", sent=False)


def private_literal(host: str) -> str | None:
    """Why nothing may be connected to `host` without leave, where it is an address in any spelling; None for a name.

    Nothing is asked of any server: whether it is an address is for the same function to say that resolves it later, so
    that `127.1` and `0x7f000001` are seen as what they would become.
    """
    try:
        found = socket.getaddrinfo(host.rstrip("."), None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    return next((reason for *_, address in found if (reason := vet(str(address[0]))) is not None), None)


def _addresses(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    try:
        found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    except UnicodeError:  # a label that is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, "not a valid host name") from None
    return [
        ResolveResult(
            hostname=host, host=str(address[0]), port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST
        )
        for kind, _, proto, _, address in found
    ]


async def in_thread(work: Callable[[], Done], *, name: str = "dns") -> Done:
    """What `work` returns or raises, on a thread that nobody waits for at the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Done] = loop.create_future()

    def settle(end: Callable[[], None]) -> None:
        if not future.done():  # somebody still waits
            end()

    def run() -> None:
        try:
            end = partial(future.set_result, work())
        except Exception as error:  # noqa: BLE001 -- it is raised again where the answer is awaited
            end = partial(future.set_exception, error)
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, end)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future


def guarded_socket(info: tuple[Any, ...]) -> socket.socket:
    """A socket for what is about to be connected, an entry as `getaddrinfo` gives it.

    Raises:
        EgressError: its address is private.
    """
    family, kind, proto, _, address = info
    reason = vet(address[0])
    if reason is not None:
        raise EgressError(reason, stage="address", sent=False)
    return socket.socket(family=family, type=kind, proto=proto)


def tls_context(*, alpn: str | None = "http/1.1") -> ssl.SSLContext:
    """One context for all connections: certifi's authorities and the system's (`SSL_CERT_FILE` included)."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    return context


def session(*, tls: ssl.SSLContext, vetted: bool, fresh: bool = False, limit: int = 0) -> aiohttp.ClientSession:
    """A session with a pool of its own.

    Args:
        tls: the shared context.
        vetted: public addresses only.
        fresh: every request gets a new connection, which is closed after it.
        limit: connections at once; 0 for as many as the caller has requests.
    """
    keep: dict[str, Any] = {"force_close": True} if fresh else {"keepalive_timeout": _KEEPALIVE}
    connector = Connector(
        ssl=tls,
        resolver=Resolver(vetted=vetted),
        socket_factory=guarded_socket if vetted else None,
        limit=limit,
        **keep,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),  # egress counts the whole of it
        auto_decompress=False,
        trust_env=False,
        read_bufsize=_READ_AHEAD,
        max_line_size=_MAX_LINE,
        max_field_size=_MAX_LINE,
        trace_configs=[_trace()],
    )


def _trace() -> aiohttp.TraceConfig:
    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(_on_created)
    trace.on_connection_reuseconn.append(_on_reused)
    return trace


async def _on_created(_session: aiohttp.ClientSession, _context: Any, _params: Any) -> None:
    mark = MARK.get()
    mark.stood_at, mark.reused = asyncio.get_running_loop().time(), False


async def _on_reused(_session: aiohttp.ClientSession, _context: Any, _params: Any) -> None:
    mark = MARK.get()
    mark.stood_at, mark.reused = asyncio.get_running_loop().time(), True
