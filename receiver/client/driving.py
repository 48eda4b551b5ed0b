"""Following a flow: the two ways to do what it yields, one that blocks and one that is awaited. Nothing else differs.

A question that was cut off (Ctrl-C, a cancelled `await`) stays the next step, so an iterator goes on where it was.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from receiver.client.asking import Found, Pause
from receiver.errors import ReceiverError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any, Self

    from receiver.client.asking import Answer, Document, Flow, Question, Step

T = TypeVar("T")


class Course(Generic[T]):
    """How far a flow is.

    Attributes:
        result: what it returned, once it is over.
    """

    result: T

    def __init__(self, flow: Flow[T]) -> None:
        """Nothing is done yet."""
        self._flow = flow
        self._reply: Any = None
        self._error: ReceiverError | None = None
        self._open: Step | None = None

    def next(self) -> Step | None:
        """The next step, or the one that was not done; None at the end. What the flow raises comes out here."""
        if self._open is not None:
            return self._open
        (reply, self._reply), (error, self._error) = (self._reply, None), (self._error, None)
        try:
            self._open = self._flow.send(reply) if error is None else self._flow.throw(error)
        except StopIteration as end:
            self.result = end.value
        return self._open

    def done(self, answer: Answer | None = None) -> None:
        """The step was done; this is the answer to it."""
        self._reply, self._open = answer, None

    def failed(self, error: ReceiverError) -> None:
        """The question got this instead of an answer."""
        self._error, self._open = error, None


def follow(course: Course[T], send: Callable[[Question], Answer]) -> Found | None:
    """Do the steps, up to what is found next; None at the end."""
    while (step := course.next()) is not None:
        if isinstance(step, Found):
            course.done()
            return step
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            course.done()
            continue
        try:
            course.done(send(step))
        except ReceiverError as error:
            course.failed(error)
    return None


async def follow_async(course: Course[T], send: Callable[[Question], Awaitable[Answer]]) -> Found | None:
    """The same, awaited."""
    while (step := course.next()) is not None:
        if isinstance(step, Found):
            course.done()
            return step
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            course.done()
            continue
        try:
            course.done(await send(step))
        except ReceiverError as error:
            course.failed(error)
    return None


class _Handing:
    """What was found and is not handed out yet.

    Attributes:
        cursor: where to go on: behind what was handed out, as far as the service gives cursors, which it does for whole
            pages; within a page it is the page's beginning. Keep it when you are done with what you were handed.
    """

    def __init__(self, flow: Flow[None], cursor: str | None) -> None:
        self._course = Course(flow)
        self._left: deque[Document] = deque()
        self._behind = self.cursor = cursor

    def _take(self, found: Found) -> None:
        self._left.extend(found.items)
        self._behind = found.cursor
        if not self._left:
            self.cursor = self._behind

    def _hand(self) -> Document:
        item = self._left.popleft()
        if not self._left:
            self.cursor = self._behind
        return item


class Stream(_Handing):
    """An iterator of documents, which are asked for as they are needed."""

    def __init__(self, flow: Flow[None], cursor: str | None, send: Callable[[Question], Answer]) -> None:
        super().__init__(flow, cursor)
        self._send = send

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Document:
        while not self._left:
            found = follow(self._course, self._send)
            if found is None:
                raise StopIteration
            self._take(found)
        return self._hand()


class AsyncStream(_Handing):
    """The same, awaited."""

    def __init__(self, flow: Flow[None], cursor: str | None, send: Callable[[Question], Awaitable[Answer]]) -> None:
        super().__init__(flow, cursor)
        self._send = send

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Document:
        while not self._left:
            found = await follow_async(self._course, self._send)
            if found is None:
                raise StopAsyncIteration
            self._take(found)
        return self._hand()
