"""Sending callbacks: when each step of a task's plan is due, what it carries, and where it goes.

Each client of the pool carries one request at a time: httpx's shared pool collapses under concurrency. A callback is
never sent again unless the script says so, for no upstream document promises it.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit

import httpx

from receiver.emulator import shapes
from receiver.emulator import vocabulary as words
from receiver.emulator.model import Sent

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from receiver.emulator.ledger import Ledger
    from receiver.emulator.model import Phase, Task, View
    from receiver.emulator.script import EmulatorOptions

_AGENT: Final = "Go-http-client/1.1"
_UNDERWAY: Final = {"queued", "progress"}
_OPPOSITE: Final[dict[Phase, Phase]] = {"succeeded": "failed", "failed": "succeeded", "cancelled": "succeeded"}
_BENDS: Final = {"disagreeing": shapes.disagreeing, "no-id": shapes.anonymous}


class Caller:
    """Sends what tasks owe, in asyncio tasks of its own.

    Args:
        ledger: where it is noted.
        options: asked for at each callback, since they can change.
        another_id: the id of another task than this one, for `tampered-id`.
    """

    def __init__(
        self, ledger: Ledger, options: Callable[[], EmulatorOptions], another_id: Callable[[Task], str]
    ) -> None:
        self.ledger = ledger
        self._options = options
        self._another_id = another_id
        self._clients: list[httpx.AsyncClient] = []
        self._context: ssl.SSLContext | None = None
        self._free = asyncio.Semaphore(options().callback_concurrency)
        self._running: set[asyncio.Task[None]] = set()

    def start(self, task: Task) -> None:
        """Let the plan of a task run, but for its `early` steps."""
        steps = [kind for kind in words.plan(task.script.callback) if kind != "early"]
        if task.callback_url is not None and steps:
            self._keep(self._run(task, steps))

    async def early(self, task: Task) -> None:
        """Send what is to arrive before the submission is answered."""
        if task.callback_url is not None:
            for kind in words.plan(task.script.callback):
                if kind == "early":
                    await self.send(task, kind)

    async def send(
        self,
        task: Task,
        kind: str = "ok",
        *,
        shape: str | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        url: str | None = None,
    ) -> Sent:
        """Send one callback now: of a kind, in a shape, or with a body as it is given."""
        target = url or task.callback_url
        if target is None:
            raise ValueError("this task has no callback_url")
        named = task.pick(shape or task.script.callback_shape, words.CALLBACK_SHAPES, len(task.callbacks))
        made = self._body(task, kind, named) if body is None else shapes.Body(body, {"content-type": content_type})
        method, target = _address(kind, target, task.id)
        content = b"" if method == "GET" else made.content
        request = httpx.Request(method, target, headers={**made.headers, "user-agent": _AGENT}, content=content)
        sent = await self._post(request, kind, "raw" if body is not None else named)
        for _ in range(task.script.callback_retries):
            if sent.status is not None and httpx.codes.is_success(sent.status):
                break
            self._note(task, sent)
            await asyncio.sleep(task.script.callback_retry_gap)
            sent = await self._post(request, kind, sent.shape)
        self._note(task, sent)
        return sent

    async def idle(self) -> None:
        """Wait until every callback that will come by itself has come."""
        while self._running:
            await asyncio.wait(self._running)

    async def close(self) -> None:
        """Stop all of it."""
        running = list(self._running)
        for job in running:
            job.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        while self._clients:
            await self._clients.pop().aclose()

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        job = asyncio.create_task(work)
        self._running.add(job)
        job.add_done_callback(self._running.discard)

    async def _run(self, task: Task, steps: list[str]) -> None:
        leading = _leading(steps)
        for index, kind in enumerate(steps):
            if index < leading:
                await self._part_of_render(task, (index + 1) / (leading + 1))
            else:
                await _ended(task)
                if kind == "late":
                    await task.shown.wait()
                await asyncio.sleep(task.script.callback_delay if index == leading or kind == "late" else 0)
            await self.send(task, kind)

    async def _part_of_render(self, task: Task, part: float) -> None:
        """Wait until this part of the render is done; one that never ends is as long as its script says."""
        due = task.born_at + task.script.render_seconds * part
        await _wait(task.ended, due - time.monotonic())

    def _body(self, task: Task, kind: str, shape: str) -> shapes.Body:
        if kind == "malformed":
            return shapes.Body(b'{"task_id": "' + task.dice.randbytes(24), {"content-type": "application/json"})
        return shapes.callback(shape, self._view(task, kind), _BENDS.get(kind))

    def _view(self, task: Task, kind: str) -> View:
        now = time.monotonic()
        if kind == "queued":
            return task.view(now, phase="queued")
        if kind == "progress":
            return task.view(now, phase="running")
        if kind == "opposite":
            return task.view(now, phase=_OPPOSITE.get(task.end_phase, "failed"))
        if kind == "tampered-id":
            return task.view(now, task_id=self._another_id(task))
        return task.view(now, with_url=kind != "no-url")

    async def _post(self, request: httpx.Request, kind: str, shape: str) -> Sent:
        if request.url.host.endswith(".invalid"):
            return Sent(kind, shape, None, "unresolvable")
        timeout = self._options().callback_timeout
        async with self._free:
            client = self._clients.pop() if self._clients else self._client()
            try:
                async with asyncio.timeout(timeout):
                    response = await client.send(request, follow_redirects=False)
                return Sent(kind, shape, response.status_code, None)
            except (httpx.HTTPError, TimeoutError, OSError) as error:
                return Sent(kind, shape, None, type(error).__name__)
            finally:
                self._clients.append(client)

    def _client(self) -> httpx.AsyncClient:
        if self._context is None:
            self._context = ssl.create_default_context()
        return httpx.AsyncClient(verify=self._context, trust_env=False, timeout=self._options().callback_timeout)

    def _note(self, task: Task, sent: Sent) -> None:
        task.callbacks.append(sent)
        self.ledger.sent(sent)


async def _ended(task: Task) -> None:
    """Wait for the end of the render, by its time or by hand."""
    if task.finish_at is None:
        await task.ended.wait()
    else:
        await _wait(task.ended, task.finish_at - time.monotonic())


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Until the event, or so long."""
    due = time.monotonic() + seconds
    while not event.is_set() and (left := due - time.monotonic()) > 0:  # uvloop's timers fire up to 1 ms early
        with suppress(TimeoutError):
            async with asyncio.timeout(left):
                await event.wait()


def _leading(steps: Iterable[str]) -> int:
    """How many steps come before the end: the progress words the plan begins with."""
    count = 0
    for kind in steps:
        if kind not in _UNDERWAY:
            break
        count += 1
    return count


def _address(kind: str, url: str, task_id: str) -> tuple[str, str]:
    """Method and URL; siblings append a path or a query, ask by GET, and a forger alters the token."""
    if kind == "probe":
        return "GET", f"{url}{'&' if '?' in url else '?'}uuid={task_id}"
    parts = urlsplit(url)
    if kind == "appended":
        return "POST", urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/callback", query=f"uuid={task_id}"))
    if kind == "tampered-token":
        return "POST", urlunsplit(parts._replace(path=_altered(parts.path)))
    return "POST", url


def _altered(path: str) -> str:
    """The path with one letter in the middle of its last segment changed: the last one may have spare bits."""
    head, _, last = path.rstrip("/").rpartition("/")
    middle = len(last) // 2
    swapped = "B" if last[middle : middle + 1] == "A" else "A"
    return f"{head}/{last[:middle]}{swapped}{last[middle + 1 :]}"
