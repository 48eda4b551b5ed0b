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
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import orjson

from receiver import __version__, lifecycle
from receiver.errors import ReceiverError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

Document = dict[str, Any]

PAGE = 200
"""The largest page the API gives."""
CONNECT_FOR, ANSWER_FOR = 5.0, 30.0
"""Seconds for a connection, and for an answer that waits for nobody."""
UPSTREAM_FOR = 180.0
"""Seconds for an answer that waits for the upstream: some multiple of the service's own `upstream.timeout`."""
LOOK_EVERY = 2.0
"""Seconds between looks at a task that is waited for, so that its progress is seen."""
PAUSE_FOR = 0.25
_UNAVAILABLE = 503


class Unreachable(ReceiverError):
    """There is no usable answer.

    Attributes:
        sent: whether the request may have reached the service all the same.
    """

    code = "unreachable"

    def __init__(self, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.sent = sent


class ApiProblem(ReceiverError):
    """The service answered no.

    Attributes:
        status: of the answer.
        problem: the problem document.
        kind: the last part of its type: `invalid-input`, `conflict`, …
    """

    code = "api-problem"

    def __init__(self, status: int, problem: Document) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"it answered {status}"))
        self.status = status
        self.problem = problem
        self.kind = str(problem.get("type", "")).rpartition("/")[2]


class Client:
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

    # -- tasks -----------------------------------------------------------------------------------------------------

    def submit(
        self,
        route: str,
        input: Mapping[str, Any],  # noqa: A002 -- the contract's word
        *,
        metadata: Mapping[str, Any] | None = None,
        destinations: Sequence[str] | None = None,
        in_background: bool = False,
    ) -> Document:
        """Submit a task. `in_background`: it is queued, and the answer does not wait for the upstream.

        Raises:
            ApiProblem: it was refused, by the service or by the upstream.
            Unreachable: where `sent`, it may have been accepted: look before you submit again.
        """
        body: Document = {"route": route, "input": dict(input)}
        if metadata:
            body["metadata"] = dict(metadata)
        if destinations is not None:
            body["destinations"] = list(destinations)
        headers = {"prefer": "respond-async"} if in_background else {}
        return self._ask("POST", "/tasks", body=body, headers=headers, seconds=UPSTREAM_FOR)

    def task(self, task_id: str, *, wait: float = 0.0) -> Document:
        """A task as it is now, or, after at most `wait` seconds (up to 60), when it is terminal."""
        asked = {"wait": f"{wait:.3f}s"} if wait > 0 else {}
        return self._ask("GET", f"/tasks/{_segment(task_id)}", query=asked, seconds=ANSWER_FOR + wait)

    def page(
        self,
        *,
        state: Sequence[str] = (),
        route: str | None = None,
        since: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Document:
        """One page of tasks, newest first: `{"data": […], "next_cursor": …}`."""
        asked = {"state": ",".join(state), "route": route, "since": since, "limit": limit, "cursor": cursor}
        return self._ask("GET", "/tasks", query={name: str(value) for name, value in asked.items() if value})

    def tasks(
        self, *, state: Sequence[str] = (), route: str | None = None, since: str | None = None
    ) -> Iterator[Document]:
        """Every task, newest first; pages are fetched as they are needed."""
        cursor: str | None = None
        while True:
            page = self.page(state=state, route=route, since=since, limit=PAGE, cursor=cursor)
            yield from page["data"]
            cursor = page.get("next_cursor")
            if cursor is None:
                return

    def timeline(self, task_id: str) -> list[Document]:
        """A task's way: submission, observations, polls, events, deliveries and attempts, in order of time."""
        found: list[Document] = self._ask("GET", f"/tasks/{_segment(task_id)}/timeline")["data"]
        return found

    def refresh(self, task_id: str) -> Document:
        """Have the upstream asked now; the task as it is after that."""
        return self._ask("POST", f"/tasks/{_segment(task_id)}/refresh", seconds=UPSTREAM_FOR)

    def cancel(self, task_id: str) -> Document:
        """Stop tracking a task."""
        return self._ask("POST", f"/tasks/{_segment(task_id)}/cancel")

    def adopt(self, task_id: str, upstream_id: str) -> Document:
        """Give an ambiguous or lost task its upstream id by hand."""
        return self._ask("POST", f"/tasks/{_segment(task_id)}/adopt", body={"upstream_id": upstream_id})

    def wait(
        self,
        task_id: str,
        *,
        timeout: float | None = None,
        patience: float = 0.0,
        seen: Callable[[Document], None] | None = None,
    ) -> Document:
        """Wait until a task is terminal, or for `timeout` seconds; the task as it then is.

        `seen` is called with every look at it. For `patience` seconds in a row a service that is away is waited for.

        Raises:
            Unreachable, ApiProblem: it was away for longer than that, or does not know the task.
        """
        ends = None if timeout is None else time.monotonic() + timeout
        heard_at = time.monotonic()
        while True:
            asked_at = time.monotonic()
            left = LOOK_EVERY if ends is None else min(LOOK_EVERY, ends - asked_at)
            try:
                task = self.task(task_id, wait=left)
            except (Unreachable, ApiProblem) as error:
                is_away = isinstance(error, Unreachable) or error.status == _UNAVAILABLE
                if not is_away or time.monotonic() - heard_at >= patience:
                    raise
                time.sleep(PAUSE_FOR)
                continue
            heard_at = time.monotonic()
            if seen is not None:
                seen(task)
            if task["state"] in lifecycle.TERMINAL or (ends is not None and heard_at >= ends):
                return task
            if heard_at - asked_at < PAUSE_FOR:  # a service that is stopping waits for nobody
                time.sleep(PAUSE_FOR)

    # -- asking ----------------------------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = ANSWER_FOR,
    ) -> Document:
        content = None if body is None else orjson.dumps(body)
        sent = dict(headers or {}) | ({} if body is None else {"content-type": "application/json"})
        try:
            answer = self._http.request(
                method,
                f"{self.url}/api/v1{path}",
                params=query or None,
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


def _segment(text: str) -> str:
    """An id as one segment of a path; one that is only dots would climb it."""
    return quote(text, safe="").replace(".", "%2E")


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
