"""A small client of our own API (contract 4.3), for users and for the command line; and `verify` for what we send.

It asks and reads the answer. It decides nothing, follows no redirect, takes no proxy from the environment, and repeats
nothing that was sent: a submission is paid for. Documents come back as they are, plain dicts. `AsyncClient` has the
same methods, to be awaited.

    with Client("http://127.0.0.1:8000", key) as receiver:
        task = receiver.submit("runway/pro/video2video", {"video": "https://…", "prompt": "a cat"})
        task = receiver.wait(task["id"])

    ReceiverError
    ├── Unreachable    no usable answer; `sent` tells whether the request may have arrived
    ├── ApiProblem     it answered no, with a problem document (RFC 9457)
    └── Unverified     a webhook that is none of ours; `flaw` tells why

HTTP is imported by the clients when they are made: who only verifies need not wait for it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

import orjson

from receiver import __version__
from receiver.client.asking import PAGE, Answer, ApiProblem, Document, Question, Unreachable, is_away
from receiver.client.driving import AsyncStream, Course, Stream, follow, follow_async
from receiver.client.outbox import FEED_WAIT, Outbox
from receiver.client.tasks import Tasks, check_key, submission
from receiver.client.verifying import Event, Unverified, verify
from receiver.errors import EgressError, ReceiverError, SecretError
from receiver.wire import HttpResponse

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    import httpx

    from receiver.client.asking import Flow
    from receiver.wire import HttpRequest

__all__ = [
    "FEED_WAIT", "PAGE", "Answer", "ApiProblem", "AsyncClient", "AsyncStream", "Client", "Document", "Event",
    "Forwarder", "Question", "ReceiverError", "SecretError", "Stream", "Unreachable", "Unverified",
    "check_key", "is_away", "is_emulator", "submission", "verify",
]  # fmt: skip

CONNECTIONS: Final = 100
"""At once, of one client; what is asked beyond waits its turn."""
CONNECT_FOR: Final = 5.0
"""Seconds for a connection."""
FORWARD_FOR: Final = 15.0
"""Seconds that a local application has for its answer, as a destination has by default."""
KEPT_BYTES: Final = 16 * 1024
"""What is read of such an answer, as of a destination's."""

_Awaited = Coroutine[Any, Any, Document]
_AwaitedMany = Coroutine[Any, Any, list[Document]]


class Client(Tasks[Document, list[Document], Stream], Outbox[Document, list[Document], Stream]):
    """One receiver service, asked over one connection pool. Not for several threads at once."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """`url`: base of the service, `http://127.0.0.1:8000`; `key`: one of its `security.api_keys`.

        Raises:
            ValueError: `url` is no absolute http(s) URL, or `key` cannot be sent in a header.
        """
        import httpx

        self.url, options = _opened(url, key)
        self._http = httpx.Client(**options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def send(self, question: Question) -> Answer:
        """Ask anything of the API; every other method is this and a question that it knows how to put.

        Raises:
            ApiProblem: it answered no.
            Unreachable: there is no usable answer.
        """
        import httpx

        try:
            return _read(self.url, self._http.request(**_put(self.url, question)))
        except httpx.HTTPError as error:
            raise _unreachable(self.url, question, error) from error

    def _one(self, flow: Flow[Document]) -> Document:
        course = Course(flow)
        follow(course, self.send)
        return course.result

    def _many(self, flow: Flow[list[Document]]) -> list[Document]:
        course = Course(flow)
        follow(course, self.send)
        return course.result

    def _stream(self, flow: Flow[None], cursor: str | None = None) -> Stream:
        return Stream(flow, cursor, self.send)


class AsyncClient(Tasks[_Awaited, _AwaitedMany, AsyncStream], Outbox[_Awaited, _AwaitedMany, AsyncStream]):
    """The same, to be awaited: `await client.task(…)`, `async for event in client.events()`."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """As `Client`."""
        import httpx

        self.url, options = _opened(url, key)
        self._http = httpx.AsyncClient(**options)
        # httpx's own queue for connections takes longer the longer it is, and would count as silence of the service.
        self._turns = asyncio.Semaphore(CONNECTIONS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _type: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def send(self, question: Question) -> Answer:
        """As `Client.send`."""
        import httpx

        try:
            async with self._turns:
                return _read(self.url, await self._http.request(**_put(self.url, question)))
        except httpx.HTTPError as error:
            raise _unreachable(self.url, question, error) from error

    async def _one(self, flow: Flow[Document]) -> Document:
        course = Course(flow)
        await follow_async(course, self.send)
        return course.result

    async def _many(self, flow: Flow[list[Document]]) -> list[Document]:
        course = Course(flow)
        await follow_async(course, self.send)
        return course.result

    def _stream(self, flow: Flow[None], cursor: str | None = None) -> AsyncStream:
        return AsyncStream(flow, cursor, self.send)


# -- what both send, and how both read -----------------------------------------------------------------------------


def _opened(url: str, key: str | None) -> tuple[str, dict[str, Any]]:
    """The base, and what both kinds of httpx client are made with."""
    import httpx

    try:
        base = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is no URL: {error}") from None
    if base.scheme not in {"http", "https"} or not base.host:
        raise ValueError(f"{url!r} is no URL of a service: one such as http://127.0.0.1:8000 is wanted")
    if key is not None and (not key.isprintable() or not key.strip()):
        raise ValueError("the API key is empty, or has characters that no header can carry")
    headers = {b"user-agent": f"receiver-client/{__version__}".encode(), b"accept": b"application/json"}
    if key is not None:
        headers[b"authorization"] = b"Bearer " + key.encode()
    # Idle connections are few: httpx looks at each of them before each request.
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=16)
    return url.rstrip("/"), {"headers": headers, "trust_env": False, "follow_redirects": False, "limits": limits}


def _put(url: str, question: Question) -> dict[str, Any]:
    """A question as the arguments of a request."""
    import httpx

    headers = dict(question.headers)
    if question.body is not None:
        headers["content-type"] = "application/json"
    params = {name: str(value) for name, value in question.query.items() if value is not None and value != ""}
    return {
        "method": question.method,
        "url": f"{url}/api/v1{question.path}",
        "params": params or None,
        "content": None if question.body is None else orjson.dumps(question.body),
        "headers": headers,
        "timeout": httpx.Timeout(question.seconds, connect=CONNECT_FOR),
    }


def _unreachable(url: str, question: Question, error: httpx.HTTPError) -> Unreachable:
    import httpx

    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return Unreachable(f"nothing answers at {url} ({_words(error)})", sent=False)
    if isinstance(error, httpx.TimeoutException):
        return Unreachable(f"{url} gave no answer in {question.seconds:g} s", sent=True)
    return Unreachable(f"the connection to {url} broke: {_words(error)}", sent=True)


def _read(url: str, answer: httpx.Response) -> Answer:
    try:
        document = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        document = None
    if isinstance(document, dict) and answer.is_success:
        return Answer(answer.status_code, dict(answer.headers), document)
    if isinstance(document, dict) and "type" in document and not answer.is_redirect:
        asked = answer.headers.get("retry-after", "")
        wait = float(asked) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", asked) else None
        raise ApiProblem(answer.status_code, document, retry_after=wait)
    hint = "is this the address of the service?"
    if answer.is_redirect:
        hint = f"it leads to {answer.headers.get('location', 'nowhere')[:200]}; redirects are not followed"
    raise Unreachable(f"{url} answered {answer.status_code}, and not as a receiver does: {hint}", sent=True)


# -- for the command line ------------------------------------------------------------------------------------------


class Forwarder:
    """Hands requests on to an application on this machine, for `receiver listen`. Not for several threads at once.

    It stands where egress stands in the service, and fails in the same words; the address is its caller's own word.
    """

    def __init__(self) -> None:
        import httpx

        # A connection each: one that a restarted application left half open would look like a broken answer.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(trust_env=False, follow_redirects=False, limits=limits)

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def send(self, request: HttpRequest) -> HttpResponse:
        """Send one request; the answer, cut at 16 KiB.

        Raises:
            EgressError: there is no usable answer in 15 s.
        """
        import httpx

        began = time.monotonic()
        try:
            with self._http.stream(
                request.method,
                request.url,
                headers=dict(request.headers),
                content=request.body,
                timeout=httpx.Timeout(FORWARD_FOR, connect=CONNECT_FOR),
            ) as answer:
                body, truncated = _head(answer, began + FORWARD_FOR)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise EgressError(_words(error), stage="connect", sent=False) from error
        except httpx.TimeoutException as error:
            raise EgressError(f"no answer in {FORWARD_FOR:g} s", stage="timeout", sent=True) from error
        except httpx.HTTPError as error:
            raise EgressError(_words(error), stage="reset", sent=True) from error
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return HttpResponse(answer.status_code, headers, body, truncated, time.monotonic() - began)


def _head(answer: httpx.Response, ends: float) -> tuple[bytes, bool]:
    """The first bytes of a body, and whether there was more, or it broke off: the status has been heard by then."""
    import httpx

    body = b""
    try:
        for part in answer.iter_raw():
            body += part
            if len(body) > KEPT_BYTES or time.monotonic() > ends:
                return body[:KEPT_BYTES], True
    except httpx.HTTPError:
        return body, True
    return body, False


def _words(error: Exception) -> str:
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__


def is_emulator(base_url: str) -> bool:
    """Whether the emulated upstream (`receiver emulator`) answers at `base_url`; asking it costs nothing anywhere."""
    import httpx

    try:
        answer = httpx.get(f"{base_url.rstrip('/')}/_emulator/report", trust_env=False, timeout=CONNECT_FOR)
        notes = orjson.loads(answer.content)
    except (httpx.HTTPError, httpx.InvalidURL, orjson.JSONDecodeError):
        return False
    return answer.is_success and isinstance(notes, dict) and "submissions" in notes
