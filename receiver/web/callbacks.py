"""The callback door (contract 4.1): the one hot path, a bare ASGI endpoint.

The token in the path is the only authentication. Whoever has a good one is answered 200 once the observation is on
disk, whatever the body says; whoever has not gets one and the same 404, cheaply. The token itself goes nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from receiver import signing
from receiver.errors import NotFound, ReceiverError, StoreUnavailable, TokenError, TooLarge
from receiver.ingest import Callback, Recorded, Wake
from receiver.web.asgi import Gone, answer, header, read_body

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from starlette.types import Receive, Scope, Send

    from receiver.ids import TaskId
    from receiver.ingest import After, Rulebook
    from receiver.logs import Logger
    from receiver.store import Store
    from receiver.sweep import Refusals

MAX_BODY = 1024 * 1024
"""Bytes of a callback's body, inflated (contract 4.1)."""
MAX_HELD = 64 * 1024 * 1024
"""Bytes of callbacks that may wait for their commit. Past this senders are told to come again: a disk that stands still
must not fill the memory."""
LONG = 8 * 1024
"""Bytes from which a body is read at the door, by itself: a megabyte may take 0.2 s, and all who wait for a batch's
commit would wait for all of its bodies. Shorter ones, as nearly all are, are read by the writer, which is cheaper."""
RECEIVED = b'{"received":true}'
NOT_FOUND = b'{"type":"/docs/problems/not-found","title":"Not found","status":404}'
PROBLEM = (b"content-type", b"application/problem+json")
RETRY_AFTER = (b"retry-after", b"5")
CLOSE = (b"connection", b"close")
_READING = frozenset({"GET", "HEAD"})
_WRITING = frozenset({"POST", "PUT"})


Told = Callable[["Taken", Any, BaseException | None], Callable[[], None] | None]
"""Told of what was taken, and what came of it, a `Recorded` or an error; see `receiver.store.writer.Done`."""


class Taken(msgspec.Struct, eq=False):
    """A callback that the door has taken in one piece: the store is at it.

    Attributes:
        tell: is told of it once it is committed, or cannot be.
        close: closes its sender's connection.
    """

    door: CallbackDoor
    op: Callback
    started: float
    tell: Told
    close: Callable[[], None]

    __repr__ = object.__repr__  # a loop that logs a callback of its own would tell of the body

    def cancel(self) -> None:
        """Let its sender go without an answer: the service stops. It is committed all the same, or is not."""
        self.close()

    def done(self, recorded: Any, error: BaseException | None) -> Callable[[], None] | None:
        """What the store calls."""
        self.door.held -= len(self.op.body)
        return self.tell(self, recorded, error)

    def accepted(self, recorded: Recorded) -> None:
        """It is committed."""
        self.door.accepted(self.op, recorded, self.started)

    async def failed(self, error: BaseException, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer that it is not; an ASGI application but for its first argument."""
        await self.door.failed(self.op.task_id, error, scope, send)


@dataclass
class CallbackDoor:
    """`POST`, `PUT`, `GET` and `HEAD` on `/callbacks/{token}`, with anything appended.

    Attributes:
        held: bytes of the callbacks that wait for their commit.
    """

    store: Store
    rules: Rulebook
    after: After
    refusals: Refusals
    log: Logger
    clock: Callable[[], datetime]
    signing_keys: Sequence[str] = field(repr=False)
    held: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send, rest: str) -> None:
        """Answer one request; `rest` is what follows `/callbacks/`."""
        method: str = scope["method"]
        now = self.clock()
        try:
            task_id = signing.read(self.signing_keys, rest.partition("/")[0], now=now)
        except TokenError as error:
            await self._refuse(scope, send, error.flaw)
            return
        if method in _WRITING:
            await self._take(scope, receive, send, task_id, now)
        elif method in _READING:
            await self._wake(scope, send, task_id)
        else:
            await answer(send, 405, b"", ((b"allow", b"POST, PUT, GET, HEAD"),))

    def take(
        self, rest: str, body: bytes, declared: bytes | None, tell: Told, close: Callable[[], None]
    ) -> Taken | None:
        """Have a callback stored that was sent whole and as it is: what `__call__` does where its answer will be 200.

        `rest` is what follows `/callbacks/`, `declared` the content type. None where the answer may be another:
        `__call__` is to see to that.
        """
        if len(body) > MAX_BODY or self.held > MAX_HELD:
            return None
        now, started = self.clock(), perf_counter()
        try:
            task_id = signing.read(self.signing_keys, rest.partition("/")[0], now=now)
            taken = Taken(self, self._op(declared, task_id, body, now), started, tell, close)
            self.store.soon(taken.op, taken.done)
        except (TokenError, StoreUnavailable):
            return None
        self.held += len(body)
        return taken

    def accepted(self, op: Callback, recorded: Recorded, started: float) -> None:
        """Say and pass on what is committed."""
        task, seconds = recorded.task, perf_counter() - started
        self.after.metrics.callbacks.add(str(recorded.verdict))
        self.after.metrics.callback_seconds.add(seconds)
        self.log.info(
            "callback.received",
            task_id=op.task_id,
            upstream_id=task.upstream_id,
            verdict=recorded.verdict,
            detail=recorded.detail,
            state=task.state,
            bytes=len(op.body),
            duration_ms=int(seconds * 10_000) / 10,  # `round` takes three times as long
        )
        self.after(recorded)

    async def failed(self, task_id: TaskId, error: BaseException, scope: Scope, send: Send) -> None:
        """Answer what was not committed.

        Raises:
            BaseException: the error itself, where it is a fault of ours.
        """
        if isinstance(error, NotFound):
            await self._refuse(scope, send, "unknown task")
            return
        if not isinstance(error, StoreUnavailable):
            raise error
        self.after.metrics.callbacks.add("unstored")
        self.log.error("callback.unstored", task_id=task_id, error=str(error))
        body = b'{"type":"/docs/problems/store-unavailable","title":"Try again","status":503}'
        await answer(send, 503, body, (PROBLEM, RETRY_AFTER))

    def _op(self, declared: bytes | None, task_id: TaskId, body: bytes, now: datetime, flaw: str = "") -> Callback:
        content_type = None if declared is None else declared[:200].decode("latin-1")
        op = Callback(task_id, body, content_type, now, self.rules, flaw)
        if len(body) > LONG:
            op.prepare()
        return op

    async def _take(self, scope: Scope, receive: Receive, send: Send, task_id: TaskId, now: datetime) -> None:
        started = perf_counter()
        body, flaw, status = b"", "", 200
        try:
            body = await read_body(scope, receive, MAX_BODY)
        except TooLarge as error:
            flaw, status = str(error), 413
        except Gone as error:
            flaw, status = str(error), 408
        if self.held > MAX_HELD:
            full = StoreUnavailable(f"{MAX_HELD} bytes of callbacks wait for the disk already")
            await self.failed(task_id, full, scope, send)
            return
        op = self._op(header(scope, b"content-type"), task_id, body, now, flaw)
        self.held += len(body)
        try:
            recorded = await self.store.run(op)
        except (NotFound, StoreUnavailable) as error:
            await self.failed(task_id, error, scope, send)
            return
        finally:
            self.held -= len(body)
        self.accepted(op, recorded, started)
        if status == 200:  # noqa: PLR2004 -- the one good answer
            await answer(send, 200, RECEIVED)
        else:
            await answer(send, status, b"", (CLOSE,))

    async def _wake(self, scope: Scope, send: Send, task_id: TaskId) -> None:
        try:
            self.after(await self.store.run(Wake(task_id, self.clock())))
        except NotFound:
            await self._refuse(scope, send, "unknown task")
        except ReceiverError:
            await answer(send, 503, b"", (RETRY_AFTER,))
        else:
            await answer(send, 200, b"" if scope["method"] == "HEAD" else RECEIVED)

    async def _refuse(self, scope: Scope, send: Send, reason: str) -> None:
        """The same answer for every reason; the reason is for the operator."""
        size = header(scope, b"content-length")
        declared = int(size) if size is not None and size.isdigit() and len(size) < 10 else 0  # noqa: PLR2004 -- an INTEGER column
        self.refusals.note(reason, scope["method"], declared, self.clock())
        self.log.info("callback.refused", reason=reason, method=scope["method"][:10])
        await answer(
            send, 404, b"" if scope["method"] == "HEAD" else NOT_FOUND, (PROBLEM, CLOSE) if declared else (PROBLEM,)
        )
