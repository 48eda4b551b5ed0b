"""What every part of the client stands on: questions as data, flows of them, what can go wrong.

A method describes what is asked, once: as one question, or as a flow, a generator that yields what is to be done next
and is sent the answers. No HTTP here and no waiting: that is the business of the two clients, in the package's module.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeAlias, TypeVar
from urllib.parse import quote

from receiver.errors import ReceiverError

Document = dict[str, Any]

PAGE: Final = 200
"""The largest page the API gives."""
ANSWER_FOR: Final = 30.0
"""Seconds for an answer that waits for nobody."""
UPSTREAM_FOR: Final = 180.0
"""Seconds for an answer that waits for the upstream: some multiple of the service's own `upstream.timeout`."""
LOOK_EVERY: Final = 2.0
"""Seconds between looks at a task that is waited for, so that its progress is seen."""
PAUSE_FOR: Final = 0.25
"""Seconds between looks that are answered at once."""
_TOO_MANY, _BROKEN = 429, 500


# -- what can go wrong ---------------------------------------------------------------------------------------------


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
        retry_after: seconds that it asked to be left alone for; None where it did not.
    """

    code = "api-problem"

    def __init__(self, status: int, problem: Document, *, retry_after: float | None = None) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"it answered {status}"))
        self.status = status
        self.problem = problem
        self.kind = str(problem.get("type", "")).rpartition("/")[2]
        self.retry_after = retry_after


def is_away(error: Unreachable | ApiProblem) -> bool:
    """Whether asking again later may help: nobody answered, or it was too much, or the fault is the service's own."""
    if isinstance(error, Unreachable):
        return True
    # A refusal of the upstream is passed on, as a 502 where it is about the account: the answer stays what it is.
    return error.status == _TOO_MANY or (error.status >= _BROKEN and error.kind != "upstream-refused")


# -- what is asked -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """One request to the API.

    Attributes:
        path: behind `/api/v1`.
        query: members that are None or empty are left out.
        body: is sent as JSON; None for no body.
        seconds: for the answer.
    """

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = ANSWER_FOR


@dataclass(frozen=True, slots=True)
class Answer:
    """A good answer: its status, its headers (names in lower case) and its document."""

    status: int
    headers: Mapping[str, str]
    document: Document


@dataclass(frozen=True, slots=True)
class Pause:
    """A step of a flow: wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Found:
    """A step of a flow: hand these out; `cursor` is where it goes on behind them, None at the end."""

    items: list[Document]
    cursor: str | None


T = TypeVar("T")
Step: TypeAlias = Question | Pause | Found
Flow: TypeAlias = Generator[Step, Any, T]
"""Yields steps, is sent the `Answer` to each question (or thrown its error), and returns what came of it."""


def segment(text: str) -> str:
    """An id as one segment of a path; one that is only dots would climb it."""
    return quote(text, safe="").replace(".", "%2E")


def asked(question: Question) -> Flow[Document]:
    """One question; the document."""
    answer: Answer = yield question
    return answer.document


def patient(question: Question, patience: float) -> Flow[Document]:
    """The same, asked again while the service is away, for at most `patience` seconds. For what changes nothing."""
    began = time.monotonic()
    while True:
        try:
            return (yield from asked(question))
        except (Unreachable, ApiProblem) as error:
            left = began + patience - time.monotonic()
            if not is_away(error) or left <= 0:
                raise
            yield Pause(min(max(PAUSE_FOR, getattr(error, "retry_after", None) or 0.0), max(left, PAUSE_FOR)))


def until(
    look: Callable[[], Question],
    is_enough: Callable[[Document], bool],
    *,
    patience: float,
    seen: Callable[[Document], None] | None = None,
) -> Flow[Document]:
    """Look until it is enough; for `patience` seconds in a row a service that is away is waited for."""
    while True:
        asked_at = time.monotonic()
        found = yield from patient(look(), patience)
        if seen is not None:
            seen(found)
        if is_enough(found):
            return found
        if time.monotonic() - asked_at < PAUSE_FOR:  # also a service that is stopping, which waits for nobody
            yield Pause(PAUSE_FOR)


def paged(path: str, query: Mapping[str, Any], cursor: str | None = None) -> Flow[None]:
    """Every item of a list, newest first; pages are asked for as they are needed."""
    while True:
        page = yield from asked(Question("GET", path, {**query, "limit": PAGE, "cursor": cursor}))
        cursor = page.get("next_cursor")
        yield Found(page["data"], cursor)
        if cursor is None:
            return


def gathered(path: str) -> Flow[list[Document]]:
    """All items of a list at once."""
    items: list[Document] = []
    pages = paged(path, {})
    reply: Any = None
    while True:
        try:
            step = pages.send(reply)
        except StopIteration:
            return items
        if isinstance(step, Found):
            items += step.items
            reply = None
        else:
            reply = yield step


One = TypeVar("One")
Many = TypeVar("Many")
Stream = TypeVar("Stream")


class Asking(ABC, Generic[One, Many, Stream]):
    """Asks one service; what it is asked is the business of those who inherit.

    How it answers is the client's: `One` is a document, or an awaitable of one; `Many` a list of them; `Stream` an
    iterator of them.
    """

    @abstractmethod
    def _one(self, flow: Flow[Document]) -> One:
        """Follow a flow to its document.

        Raises:
            ApiProblem: it answered no.
            Unreachable: there is no usable answer in time.
        """

    @abstractmethod
    def _many(self, flow: Flow[list[Document]]) -> Many:
        """Follow a flow to its documents. Raises as `_one` does."""

    @abstractmethod
    def _stream(self, flow: Flow[None], cursor: str | None = None) -> Stream:
        """Hand out what a flow finds, as it is asked for; `cursor` is where it begins."""

    def _ask(self, question: Question) -> One:
        return self._one(asked(question))
