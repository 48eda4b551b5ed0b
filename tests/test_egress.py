"""The way out, against real sockets on loopback that misbehave in every way there is."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp.abc import ResolveResult

from receiver.egress import Egress, dialing, faults
from receiver.errors import EgressError
from receiver.wire import HttpRequest, HttpResponse

pytestmark = pytest.mark.anyio

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both loops: the tests' own and the one that serves."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that nobody trusts unless told to."""
    return trustme.CA()


@dataclass
class Server:
    """What a server saw."""

    port: int = 0
    connections: int = 0
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    connected: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        """Its root."""
        return f"http://127.0.0.1:{self.port}"


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """One request: its head and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head, await reader.readexactly(int(length[0].split(b":")[1])) if length else b""


@asynccontextmanager
async def serve(handler: Handler, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """A server whose connections do what `handler` says, and end when the test does."""
    seen, tasks = Server(), set[asyncio.Task[None]]()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        seen.connected.set()
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            await handler(reader, writer)
        writer.close()

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(one(reader, writer))
        tasks.add(task)

    server = await asyncio.start_server(start, "127.0.0.1", 0, ssl=tls)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answering(seen: list[Server], *answers: bytes) -> Handler:
    """A handler that answers the requests of a connection with these bytes in turn, then closes it."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            request = await read_request(reader)
            if seen:
                seen[0].requests.append(request)
            writer.write(answer)
            await writer.drain()

    return handler


async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Take everything, say nothing."""
    while await reader.read(65536):
        pass


async def close_at_once(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Say nothing, read nothing."""


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take the request and reset the connection."""
    await read_request(reader)
    writer.transport.abort()


def out(server: Server | None = None, **more: Any) -> Any:
    """An Egress whose upstream is that server, closed at the end."""
    base_url = "http://127.0.0.1:9" if server is None else server.url
    return aclosing(Egress(base_url=base_url, headers={"Authorization": "Bearer k", "X-Runway-Version": "v"}, **more))


POST = HttpRequest("POST", "/path", {"content-type": "application/json"}, b'{"a": 1}')


async def failure(awaitable: Awaitable[HttpResponse]) -> EgressError:
    """The error a request ends with."""
    with pytest.raises(EgressError) as caught:
        await awaitable
    return caught.value


Way = Callable[[Egress, Server, float], Awaitable[HttpResponse]]


def by_submit(egress: Egress, _server: Server, limit: float = 5) -> Awaitable[HttpResponse]:
    """To the upstream."""
    return egress.submit(POST, timeout=limit)


def by_ask(egress: Egress, _server: Server, limit: float = 5) -> Awaitable[HttpResponse]:
    """A lookup."""
    return egress.ask(POST, timeout=limit)


def by_deliver(egress: Egress, server: Server, limit: float = 5) -> Awaitable[HttpResponse]:
    """To a destination with leave for loopback."""
    request = HttpRequest("POST", server.url + "/hooks", POST.headers, POST.body)
    return egress.deliver(request, timeout=limit, allow_private=True)


every_way = pytest.mark.parametrize("way", [by_submit, by_ask, by_deliver])


# -- what arrives, and what comes back --------------------------------------------------------------------------------


async def test_a_submission_is_the_path_behind_the_base_url_with_the_upstreams_headers() -> None:
    """The credential is there, a request's own header wins, and nothing invites compression or reuse."""
    box: list[Server] = []
    async with serve(answering(box, OK)) as server, out(server) as egress:
        box.append(server)
        request = HttpRequest("POST", "/runway/pro/a%2Fb", {"x-runway-version": "mine"}, b"body")
        response = await egress.submit(request, timeout=5)
        head, body = server.requests[0]
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "post /runway/pro/a%2fb http/1.1"
    assert {"authorization: bearer k", "x-runway-version: mine", "accept-encoding: identity"} <= set(lines)
    assert "connection: close" in lines
    assert (body, response.status, response.body, response.truncated) == (b"body", 200, b"ok", False)
    assert 0 <= response.elapsed_for < 5


async def test_a_delivery_is_sent_byte_for_byte() -> None:
    """No header of ours is lost, the URL is not requoted, nothing invites compression."""
    box: list[Server] = []
    answer = b"HTTP/1.1 200 OK\r\nX-One: 1\r\nx-one: 2\r\nX-Odd: \xff\r\nContent-Length: 0\r\n\r\n"
    async with serve(answering(box, answer, answer)) as server, out() as egress:
        box.append(server)
        request = HttpRequest("POST", server.url + "/a%7Eb/../c?sig=x%2By+z", {"Webhook-Id": "evt_1"}, b"\x00body")
        for _ in range(2):
            response = await egress.deliver(request, timeout=5, allow_private=True)
        assert server.connections == 1
        for head, body in server.requests:
            lines = head.decode().lower().split("\r\n")
            assert lines[0] == "post /a%7eb/../c?sig=x%2by+z http/1.1"
            assert {"webhook-id: evt_1", "accept-encoding: identity", "content-length: 5"} <= set(lines)
            assert body == b"\x00body"
    assert response.headers["x-one"] == "2"
    assert response.headers["x-odd"] == "\ufffd"


async def test_cookies_are_not_kept() -> None:
    """What one answer sets, the next request does not carry; the host is a name, for addresses keep none anyway."""
    box: list[Server] = []
    answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"
    async with serve(answering(box, answer, answer, answer, answer)) as server:
        box.append(server)
        base_url = f"http://localhost:{server.port}"
        async with aclosing(Egress(base_url=base_url, headers={})) as egress:
            for _ in range(2):
                await egress.submit(POST, timeout=5)
                await egress.ask(POST, timeout=5)
                await egress.deliver(HttpRequest("POST", base_url), timeout=5, allow_private=True)
        assert len(server.requests) == 6
        assert not [head for head, _ in server.requests if b"\r\ncookie:" in head.lower()]


@every_way
async def test_a_large_body_arrives_whole(way: Way) -> None:
    """Past a megabyte it goes in pieces (aiohttp warns of anything else), with its length, not chunked."""
    box: list[Server] = []
    body = bytes(range(256)) * 4097 * 3
    async with serve(answering(box, OK)) as server, out(server) as egress:
        box.append(server)
        request = HttpRequest("POST", (server.url if way is by_deliver else "") + "/x", {}, body)
        if way is by_deliver:
            await egress.deliver(request, timeout=5, allow_private=True)
        else:
            await (egress.submit if way is by_submit else egress.ask)(request, timeout=5)
        assert server.requests[0][1] == body
        assert b"chunked" not in server.requests[0][0].lower()


@every_way
@pytest.mark.parametrize("status", [301, 307, 404, 500])
async def test_a_redirect_is_an_answer_like_any_other(way: Way, status: int) -> None:
    """It is never followed: one connection, one request."""
    box: list[Server] = []
    location = b"HTTP/1.1 %d X\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n" % status
    async with serve(answering(box, location, OK)) as server, out(server) as egress:
        box.append(server)
        response = await way(egress, server, 5)
        assert (response.status, response.headers["location"]) == (status, "/elsewhere")
        assert len(server.requests) == 1


async def test_every_submission_has_a_connection_of_its_own() -> None:
    """Even where the server would keep it, so that a reset is never the stale end of an earlier one."""
    async with serve(answering([], OK, OK, OK)) as server, out(server) as egress:
        for _ in range(3):
            await egress.submit(POST, timeout=5)
        assert server.connections == 3


@pytest.mark.parametrize("way", [by_ask, by_deliver])
async def test_lookups_and_deliveries_share_connections(way: Way) -> None:
    """A connection that is kept is used again."""
    async with serve(answering([], OK, OK, OK)) as server, out(server) as egress:
        for _ in range(3):
            await way(egress, server, 5)
        assert server.connections == 1


async def test_a_lookup_on_a_stale_connection_is_asked_again_on_a_fresh_one() -> None:
    """The server ends the kept connection just when it is used: the caller never learns of it."""
    box: list[Server] = []

    async def once_then_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(box, OK)(reader, writer)
        if box[0].connections == 1:
            await reset(reader, writer)

    async with serve(once_then_reset) as server, out(server) as egress:
        box.append(server)
        await egress.ask(POST, timeout=5)
        assert (await egress.ask(POST, timeout=5)).body == b"ok"
        assert server.connections == 2


async def test_a_delivery_on_a_stale_connection_is_not_repeated() -> None:
    """Its next try is the schedule's business."""

    async def once_then_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering([], OK)(reader, writer)
        await reset(reader, writer)

    async with serve(once_then_reset) as server, out() as egress:
        await by_deliver(egress, server)
        error = await failure(by_deliver(egress, server))
        assert (error.stage, error.sent, server.connections) == ("reset", True, 1)


async def test_a_lookup_that_fails_on_a_fresh_connection_is_not_repeated() -> None:
    """Only the stale end of a kept one is worth a second question."""
    async with serve(reset) as server, out(server) as egress:
        error = await failure(egress.ask(POST, timeout=5))
        assert (error.stage, server.connections) == ("reset", 1)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
async def test_the_environments_proxy_is_not_used(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes where the environment points."""
    async with serve(answering([], OK, OK, OK)) as server, serve(hang) as proxy:
        monkeypatch.setenv(variable, proxy.url)
        async with out(server) as egress:
            for way in (by_submit, by_ask, by_deliver):
                assert (await way(egress, server)).status == 200
        assert proxy.connections == 0


# -- answers that break, drip or never end ----------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ],
)
async def test_a_body_that_breaks_off_leaves_a_truncated_answer(way: Way, answer: bytes) -> None:
    """The status stands."""
    async with serve(answering([], answer)) as server, out(server) as egress:
        response = await way(egress, server, 5)
        assert (response.status, response.truncated) == (200, True)
        assert b"half".startswith(response.body)


@every_way
@pytest.mark.parametrize("cut", [0, 1, 3, 5, 12])
@pytest.mark.parametrize(
    ("status", "head", "broken"),
    [
        (200, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"nonsense\r\n"),
        (200, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\nok\r\nzz\r\n"),
        (204, b"HTTP/1.1 204 No\r\n\r\n", b"a body\r\n\r\n"),
        (410, b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 410 Gone\r\nTransfer-Encoding: chunked\r\n\r\n", b"nonsense\r\n"),
    ],
)
async def test_a_status_is_an_answer_whatever_comes_behind_it(
    way: Way, status: int, head: bytes, broken: bytes, cut: int
) -> None:
    """In one breath with it or not: aiohttp's parser alone would lose both, or wait for the rest of a broken body."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        answer = head + broken
        place = len(head) - cut if cut else len(answer)
        writer.write(answer[:place])
        await writer.drain()
        if cut:
            await asyncio.sleep(0.005)
            writer.write(answer[place:])
        await hang(reader, writer)

    async with serve(handler) as server, out(server) as egress:
        began = asyncio.get_running_loop().time()
        response = await way(egress, server, 60)
        assert response.status == status
        assert asyncio.get_running_loop().time() - began < 30  # and not when the time is up


@pytest.mark.parametrize("way", [by_ask, by_deliver])
async def test_a_second_answer_is_no_answer_to_the_next_request(way: Way) -> None:
    """Whether it comes with the first or behind it: that connection is not used again."""
    answered, ended = asyncio.Event(), asyncio.Event()

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK + OK if server.connections == 1 else OK)
        if server.connections == 2:
            await answered.wait()
            writer.write(OK)
            await hang(reader, writer)
            ended.set()
        await hang(reader, writer)

    async with serve(twice) as server, out(server) as egress:
        await way(egress, server, 5)
        await way(egress, server, 5)
        assert server.connections == 2
        answered.set()
        async with asyncio.timeout(5):
            await ended.wait()
        await way(egress, server, 5)
        assert server.connections == 3


@every_way
async def test_a_body_that_never_comes_leaves_a_truncated_answer(way: Way) -> None:
    """When the time is up, the status stands."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 202 OK\r\nContent-Length: 100\r\n\r\nha")
        await hang(reader, writer)

    async with serve(drip) as server, out(server) as egress:
        response = await way(egress, server, 1)  # in which the beginning of the answer must be here
        assert (response.status, response.body, response.truncated) == (202, b"ha", True)
        assert 0.9 < response.elapsed_for < 30


@pytest.mark.parametrize(("way", "cap"), [(by_submit, 2 << 20), (by_ask, 2 << 20), (by_deliver, 16 << 10)])
async def test_an_endless_body_is_read_to_the_cap_and_no_further(way: Way, cap: int) -> None:
    """Then the connection is closed: the server cannot write on, and the next request gets a new one."""
    stopped = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        finally:
            stopped.set()

    async with serve(endless) as server, out(server) as egress:
        response = await way(egress, server, 5)
        assert (response.status, len(response.body), response.truncated) == (200, cap, True)
        async with asyncio.timeout(5):
            await stopped.wait()
        await way(egress, server, 5)
        assert server.connections == 2


@pytest.mark.parametrize(("way", "cap"), [(by_submit, 2 << 20), (by_deliver, 16 << 10)])
async def test_a_body_of_exactly_the_cap_is_whole(way: Way, cap: int) -> None:
    """The cap itself still fits."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % cap + b"x" * cap
    async with serve(answering([], answer)) as server, out(server) as egress:
        response = await way(egress, server, 5)
        assert (len(response.body), response.truncated) == (cap, False)


async def test_a_compressed_answer_of_the_upstream_is_undone() -> None:
    """Though it was not asked for; what cannot be undone stays as it came."""
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(b'{"code": 200}') + packer.flush()

    def answer(body: bytes) -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Encoding: GZip\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    for body, expected, truncated in (
        (packed, b'{"code": 200}', False),
        (packed[:-9], b'{"code": 200}', True),
        (b"no gzip", b"no gzip", False),
    ):
        async with serve(answering([], answer(body))) as server, out(server) as egress:
            response = await egress.submit(POST, timeout=5)
            assert (response.body, response.truncated) == (expected, truncated)


async def test_a_bomb_is_defused() -> None:
    """Inflated only to the cap; a destination's is not inflated at all."""
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join([packer.compress(bytes(1 << 20)) for _ in range(10)]) + packer.flush()
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb
    async with serve(answering([], answer)) as server, out(server) as egress:
        response = await egress.ask(POST, timeout=5)
        assert (len(response.body), response.truncated) == (2 << 20, True)
        assert (await by_deliver(egress, server)).body == bomb[: 16 << 10]


async def test_headers_are_kept_to_a_cap() -> None:
    """A hundred long ones are not all stored."""
    many = b"".join([b"X-%d: %s\r\n" % (n, b"v" * 1000) for n in range(100)])
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + many + b"\r\n"
    async with serve(answering([], answer)) as server, out() as egress:
        headers = (await by_deliver(egress, server)).headers
        assert 10 < len(headers) < 20
        assert sum(map(len, [*headers, *headers.values()])) <= 16 << 10


# -- no answer at all -------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize(
    ("handler", "stage"),
    [(reset, "reset"), (close_at_once, "reset"), (answering([], b""), "reset"), (hang, "timeout")],
    ids=["reset", "closed-unread", "closed", "hang"],
)
async def test_after_the_connection_stood_it_may_have_been_sent(way: Way, handler: Handler, stage: str) -> None:
    """Whatever went wrong then, `sent` is true."""
    async with serve(handler) as server, out(server) as egress:
        error = await failure(way(egress, server, 1 if stage == "timeout" else 30))
        assert (error.stage, error.sent) == (stage, True)
        assert str(error)


@every_way
@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"HTTP/1.1 twohundred OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    ],
    ids=["ssh", "tls", "status", "long-header", "many-headers", "bad-length"],
)
async def test_garbage_is_no_answer(way: Way, answer: bytes) -> None:
    """What is no HTTP, or more header than allowed, is told as that, on one short line."""

    async def then_wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering([], answer)(reader, writer)
        await hang(reader, writer)

    async with serve(then_wait) as server, out(server) as egress:
        error = await failure(way(egress, server, 5))
        assert (error.stage, error.sent) == ("answer", True)
        assert len(str(error)) <= 200
        assert "\n" not in str(error)


@every_way
async def test_a_refused_connection_sent_nothing(way: Way) -> None:
    """And the words name host and port."""
    async with serve(hang) as server:
        pass
    async with out(server) as egress:
        error = await failure(way(egress, server, 5))
    assert (error.stage, error.sent) == ("connect", False)
    assert f"127.0.0.1:{server.port}" in str(error)


@pytest.mark.parametrize("host", ["nothing.invalid", "x" * 64 + ".invalid", "a..invalid"])
@pytest.mark.parametrize("allow_private", [True, False])
async def test_a_name_without_an_address_sent_nothing(host: str, allow_private: bool) -> None:
    """The stage is `dns`, and the words name the host."""
    async with out() as egress:
        request = HttpRequest("POST", f"http://{host}/", {}, b"")
        error = await failure(egress.deliver(request, timeout=20, allow_private=allow_private))
    assert (error.stage, error.sent) == ("dns", False)
    assert host in str(error)


async def test_an_upstream_without_an_address_sent_nothing() -> None:
    """Neither way."""
    async with aclosing(Egress(base_url="http://nothing.invalid", headers={})) as egress:
        for ask in (egress.submit, egress.ask):
            error = await failure(ask(POST, timeout=20))
            assert (error.stage, error.sent) == ("dns", False)


async def test_time_that_runs_out_before_the_connection_stands_sent_nothing() -> None:
    """A TLS handshake that never comes is no connection yet."""
    async with serve(hang) as server:
        async with aclosing(Egress(base_url=f"https://127.0.0.1:{server.port}", headers={})) as egress:
            error = await failure(egress.submit(POST, timeout=0.2))
        assert (error.stage, error.sent, str(error)) == ("timeout", False, "no connection within 0.2 s")


@pytest.mark.parametrize("url", ["http://", "http:///x", "ftp://host/", "not a url", "http://[::1", "http://h:99999/"])
async def test_a_url_nobody_can_connect_to_is_an_address_error(url: str) -> None:
    """Such a thing never gets past the config; if it does, it is told."""
    async with out() as egress:
        error = await failure(egress.deliver(HttpRequest("POST", url), timeout=1, allow_private=True))
    assert (error.stage, error.sent) == ("address", False)


async def test_a_header_that_would_split_the_request_is_refused() -> None:
    """Nothing of it is written."""
    async with serve(hang) as server, out(server) as egress:
        request = HttpRequest("POST", server.url, {"X-Env": "a\r\nEvil: b"}, b"")
        error = await failure(egress.deliver(request, timeout=1, allow_private=True))
        assert error.stage == "send"
    with pytest.raises(ValueError, match="the upstream header Authorization is not plain ASCII"):
        Egress(base_url="http://127.0.0.1", headers={"Authorization": "Bearer clé"})


@pytest.mark.parametrize(
    "error",
    [
        aiohttp.ClientOSError(None, "Can not write request body for http://host/?key=hunter2"),
        aiohttp.ClientOSError(104, "Can not write request body for http://host/?key=hunter2"),
        aiohttp.ClientConnectionError("Failed to send bytes into the underlying connection to hunter2"),
        aiohttp.ClientConnectionResetError("Cannot write to closing transport of hunter2"),
    ],
)
def test_the_words_of_a_broken_connection_are_our_own(error: Exception) -> None:
    """The library's hold the URL, which may hold a secret."""
    told = faults.told(error, stood=True, within=1)
    assert (told.stage, told.sent) == ("reset", True)
    assert str(told) in {"the other side closed it while the request was sent", "connection reset by peer"}


async def test_what_is_closed_sends_nothing() -> None:
    """A straggler after the end gets the error of its kind."""
    async with serve(answering([], OK)) as server:
        async with out(server) as egress:
            pass
        for way in (by_submit, by_ask, by_deliver):
            error = await failure(way(egress, server))
            assert (error.stage, error.sent) == ("send", False)
        assert server.connections == 0


async def test_a_cancelled_request_stays_cancelled() -> None:
    """A stop of the program is no failure of the destination."""
    async with serve(hang) as server, out(server) as egress:
        for way in (by_submit, by_ask, by_deliver):
            server.connected.clear()
            task = asyncio.ensure_future(way(egress, server, 30))
            await server.connected.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


# -- TLS --------------------------------------------------------------------------------------------------------------


def server_tls(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """A server's context with a certificate for these names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    """A client's context that trusts that authority alone."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_a_trusted_certificate_is_accepted(authority: trustme.CA) -> None:
    """Every way out speaks TLS."""
    async with serve(answering([], OK), tls=server_tls(authority, "127.0.0.1")) as server:
        base_url = f"https://127.0.0.1:{server.port}"
        async with aclosing(Egress(base_url=base_url, headers={}, tls=client_tls(authority))) as egress:
            assert (await egress.submit(POST, timeout=5)).body == b"ok"
            assert (await egress.ask(POST, timeout=5)).body == b"ok"
            request = HttpRequest("POST", base_url, {}, b"x")
            assert (await egress.deliver(request, timeout=5, allow_private=True)).body == b"ok"


@pytest.mark.parametrize(
    ("name", "trusted", "words"),
    [("127.0.0.1", False, "local issuer certificate"), ("other.example", True, "IP address mismatch")],
)
async def test_a_certificate_that_is_not_accepted_sent_nothing(
    authority: trustme.CA, name: str, trusted: bool, words: str
) -> None:
    """Unknown authority or another name: the words are the certificate's, and no request was read."""
    box: list[Server] = []
    async with serve(answering(box, OK), tls=server_tls(authority, name)) as server:
        box.append(server)
        base_url = f"https://127.0.0.1:{server.port}"
        tls = client_tls(authority) if trusted else None
        async with aclosing(Egress(base_url=base_url, headers={}, tls=tls)) as egress:
            request = HttpRequest("POST", base_url, {}, b"x")
            for awaitable in (
                egress.submit(POST, timeout=5),
                egress.ask(POST, timeout=5),
                egress.deliver(request, timeout=5, allow_private=True),
            ):
                error = await failure(awaitable)
                assert (error.stage, error.sent) == ("tls", False)
                assert words in str(error)
        assert server.requests == []


async def test_a_server_that_speaks_no_tls_sent_nothing() -> None:
    """Plain HTTP behind https:// is a TLS error, and so is one that hangs up."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await hang(reader, writer)

    for handler, words in ((plain, "does not speak TLS"), (close_at_once, "broke it off")):
        async with serve(handler) as server:
            async with aclosing(Egress(base_url=f"https://127.0.0.1:{server.port}", headers={})) as egress:
                error = await failure(egress.submit(POST, timeout=5))
            assert (error.stage, error.sent) == ("tls", False)
            assert words in str(error)


# -- the gate ---------------------------------------------------------------------------------------------------------

LOOPBACK = [
    "127.0.0.1",
    "127.0.0.2",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f.1",
    "0x7f000001",
    "0x7F.0x0.0x0.0x1",
    "0177.0.0.1",
    "017700000001",
    "0",
    "0.0.0.0",
    "0x0",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "[::1]",
    "[::]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "127。0。0。1",
    "①②⑦.⓪.⓪.①",
    "１２７.０.０.１",  # noqa: RUF001 -- likewise the digits
    "127.0.0.1.",
    "[fe80::1%25lo]",
]


@pytest.mark.parametrize("host", LOOPBACK)
async def test_no_spelling_of_loopback_is_connected_without_leave(host: str) -> None:
    """The server on that port never sees a connection."""
    async with serve(answering([], OK)) as server, out() as egress:
        request = HttpRequest("POST", f"http://{host}:{server.port}/", {}, b"x")
        error = await failure(egress.deliver(request, timeout=5, allow_private=False))
        assert error.stage in {"address", "dns"}
        assert not error.sent
        assert server.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "[::ffff:127.0.0.1]", "localhost"])
async def test_a_private_address_is_told_as_such(host: str) -> None:
    """The words say which address it was, and why it is not public."""
    async with out() as egress:
        error = await failure(egress.deliver(HttpRequest("POST", f"http://{host}:9/"), timeout=5, allow_private=False))
    assert error.stage == "address"
    assert "loopback" in str(error)
    assert ("localhost resolves to" in str(error)) == (host == "localhost")


async def test_a_kept_connection_never_crosses_the_gate() -> None:
    """One that was opened with leave is not used without it, and the other way round needs no new leave."""
    async with serve(answering([], OK, OK)) as server, out() as egress:
        request = HttpRequest("POST", server.url, {}, b"x")
        await egress.deliver(request, timeout=5, allow_private=True)
        error = await failure(egress.deliver(request, timeout=5, allow_private=False))
        assert error.stage == "address"
        await egress.deliver(request, timeout=5, allow_private=True)
        assert server.connections == 1


async def test_with_leave_a_name_of_this_machine_is_connected() -> None:
    """Leave is for names as well as for literal addresses."""
    async with serve(answering([], OK)) as server, out() as egress:
        request = HttpRequest("POST", f"http://localhost:{server.port}/", {}, b"x")
        assert (await egress.deliver(request, timeout=5, allow_private=True)).body == b"ok"


async def test_a_redirect_into_the_house_is_not_followed() -> None:
    """Nothing is connected that was not asked for."""
    async with serve(answering([], OK)) as inside:
        answer = b"HTTP/1.1 307 X\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % inside.url.encode()
        async with serve(answering([], answer)) as server, out() as egress:
            assert (await by_deliver(egress, server)).status == 307
        assert inside.connections == 0


async def test_the_resolver_gives_public_addresses_as_they_are() -> None:
    """A number needs no server to be resolved."""
    (found,) = await dialing.Resolver(vetted=True).resolve("8.8.8.8", 443)
    assert (found["host"], found["port"], found["family"]) == ("8.8.8.8", 443, socket.AF_INET)


def test_one_private_address_spoils_the_name() -> None:
    """Whichever place it has among public ones: half a rebinding is one."""

    def found(*hosts: str) -> list[ResolveResult]:
        return [
            ResolveResult(hostname="h", host=host, port=80, family=socket.AF_UNSPEC, proto=0, flags=0) for host in hosts
        ]

    dialing.refuse_private("h", found("8.8.8.8", "2606:4700::1111"))
    for hosts in (("8.8.8.8", "10.0.0.1"), ("10.0.0.1", "8.8.8.8"), ("8.8.8.8", "::1", "1.1.1.1")):
        with pytest.raises(EgressError, match="h resolves to a private address"):
            dialing.refuse_private("h", found(*hosts))


def test_the_last_gate_is_the_socket() -> None:
    """Whatever came before: a socket is made for a public address, and for no other."""
    dialing.guarded_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("8.8.8.8", 80))).close()
    for address in (("127.0.0.1", 80), ("::1", 80, 0, 0), ("2130706433", 80)):
        with pytest.raises(EgressError):
            dialing.guarded_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", address))


async def test_a_lookup_nobody_waits_for_ends_quietly() -> None:
    """The thread comes back late, and nothing is raised anywhere."""
    begun, go = asyncio.Event(), threading.Event()
    loop, threads, complaints = asyncio.get_running_loop(), list[threading.Thread](), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _loop, context: complaints.append(context))

    def slow() -> list[ResolveResult]:
        threads.append(threading.current_thread())
        loop.call_soon_threadsafe(begun.set)
        go.wait(5)
        return []

    task = asyncio.ensure_future(dialing.in_thread(slow))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    await asyncio.to_thread(threads[0].join)
    await asyncio.sleep(0)
    assert threads[0].daemon
    assert complaints == []
