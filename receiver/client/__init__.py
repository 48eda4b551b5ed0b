"""A small client of our own API (contract 4.3), for users and for the command line.

It asks and reads the answer. It decides nothing, follows no redirect, takes no proxy from the environment, and repeats
nothing that was sent: a submission is paid for. Documents come back as they are, plain dicts.

    with Client("http://127.0.0.1:8000", key) as receiver:
        task = receiver.submit("runway/pro/video2video", {"video": "https://…", "prompt": "a cat"})
        task = receiver.wait(task["id"])

    ReceiverError
    ├── Unreachable    no usable answer; `sent` tells whether the request may have arrived
    └── ApiProblem     it answered no, with a problem document (RFC 9457)
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final

import httpx
import orjson

from receiver import __version__
from receiver.client.asking import ANSWER_FOR, PAGE, ApiProblem, Document, Unreachable, is_away
from receiver.client.outbox import FEED_WAIT, Outbox
from receiver.client.tasks import Tasks
from receiver.errors import EgressError
from receiver.wire import HttpResponse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from receiver.wire import HttpRequest

__all__ = [
    "FEED_WAIT", "PAGE", "ApiProblem", "Client", "Document", "Forwarder", "Unreachable", "is_away", "is_emulator",
]  # fmt: skip

CONNECT_FOR: Final = 5.0
"""Seconds for a connection."""
FORWARD_FOR: Final = 15.0
"""Seconds that a local application has for its answer, as a destination has by default."""
KEPT_BYTES: Final = 16 * 1024
"""What is read of such an answer, as of a destination's."""


class Client(Tasks, Outbox):
    """One receiver service, asked over one connection pool. Not for several threads at once."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """`url`: base of the service, `http://127.0.0.1:8000`; `key`: one of its `security.api_keys`.

        Raises:
            ValueError: `url` is no absolute http(s) URL, or `key` cannot be sent in a header.
        """
        try:
            base = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"{url!r} is no URL: {error}") from None
        if base.scheme not in {"http", "https"} or not base.host:
            raise ValueError(f"{url!r} is no URL of a service: one such as http://127.0.0.1:8000 is wanted")
        if key is not None and (not key.isprintable() or not key.strip()):
            raise ValueError("the API key is empty, or has characters that no header can carry")
        self.url = url.rstrip("/")
        headers = {b"user-agent": f"receiver-client/{__version__}".encode(), b"accept": b"application/json"}
        if key is not None:
            headers[b"authorization"] = b"Bearer " + key.encode()
        self._http = httpx.Client(headers=headers, trust_env=False, follow_redirects=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = ANSWER_FOR,
    ) -> Document:
        content = None if body is None else orjson.dumps(body)
        sent = dict(headers or {}) | ({} if body is None else {"content-type": "application/json"})
        asked = {name: str(value) for name, value in (query or {}).items() if value is not None and value != ""}
        try:
            answer = self._http.request(
                method,
                f"{self.url}/api/v1{path}",
                params=asked or None,
                content=content,
                headers=sent,
                timeout=httpx.Timeout(seconds, connect=CONNECT_FOR),
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unreachable(f"nothing answers at {self.url} ({_words(error)})", sent=False) from error
        except httpx.TimeoutException as error:
            raise Unreachable(f"{self.url} gave no answer in {seconds:g} s", sent=True) from error
        except httpx.HTTPError as error:
            raise Unreachable(f"the connection to {self.url} broke: {_words(error)}", sent=True) from error
        return self._read(answer)

    def _read(self, answer: httpx.Response) -> Document:
        try:
            document = orjson.loads(answer.content)
        except orjson.JSONDecodeError:
            document = None
        if isinstance(document, dict) and answer.is_success:
            return document
        if isinstance(document, dict) and "type" in document and not answer.is_redirect:
            raise ApiProblem(answer.status_code, document)
        hint = "is this the address of the service?"
        if answer.is_redirect:
            hint = f"it leads to {answer.headers.get('location', 'nowhere')[:200]}; redirects are not followed"
        raise Unreachable(
            f"{self.url} answered {answer.status_code}, and not as a receiver does: {hint}", sent=True
        ) from None


class Forwarder:
    """Hands requests on to an application on this machine, for `receiver listen`. Not for several threads at once.

    It stands where egress stands in the service, and fails in the same words; the address is its caller's own word.
    """

    def __init__(self) -> None:
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
    try:
        answer = httpx.get(f"{base_url.rstrip('/')}/_emulator/report", trust_env=False, timeout=CONNECT_FOR)
        notes = orjson.loads(answer.content)
    except (httpx.HTTPError, httpx.InvalidURL, orjson.JSONDecodeError):
        return False
    return answer.is_success and isinstance(notes, dict) and "submissions" in notes
