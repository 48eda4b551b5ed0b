"""What every part of the client stands on: how it asks, how it bears with a service that is away, what can go wrong.

No HTTP here; that is done in the package's own module alone.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from receiver.errors import ReceiverError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

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


def is_away(error: Unreachable | ApiProblem) -> bool:
    """Whether asking again later may help: nobody answered, or it was too much, or the fault is the service's own."""
    return isinstance(error, Unreachable) or error.status == _TOO_MANY or error.status >= _BROKEN


def segment(text: str) -> str:
    """An id as one segment of a path; one that is only dots would climb it."""
    return quote(text, safe="").replace(".", "%2E")


class Asking(ABC):
    """Asks one service; what it is asked is the business of those who inherit."""

    @abstractmethod
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
        """One request to `/api/v1{path}` and its answer; members of `query` that are None or empty are left out.

        Raises:
            ApiProblem: it answered no.
            Unreachable: there is no usable answer within `seconds`.
        """

    def _all(self, path: str, query: Mapping[str, Any]) -> Iterator[Document]:
        """Every item of a list, newest first; pages are fetched as they are needed."""
        cursor: str | None = None
        while True:
            page = self._ask("GET", path, query={**query, "limit": PAGE, "cursor": cursor})
            yield from page["data"]
            cursor = page.get("next_cursor")
            if cursor is None:
                return

    @staticmethod
    def _until(
        look: Callable[[], Document],
        is_enough: Callable[[Document], bool],
        *,
        patience: float,
        seen: Callable[[Document], None] | None = None,
    ) -> Document:
        """Look until it is enough; for `patience` seconds in a row a service that is away is waited for."""
        heard_at = time.monotonic()
        while True:
            asked_at = time.monotonic()
            try:
                found = look()
            except (Unreachable, ApiProblem) as error:
                if not is_away(error) or time.monotonic() - heard_at >= patience:
                    raise
                time.sleep(PAUSE_FOR)
                continue
            heard_at = time.monotonic()
            if seen is not None:
                seen(found)
            if is_enough(found):
                return found
            if heard_at - asked_at < PAUSE_FOR:  # also a service that is stopping, which waits for nobody
                time.sleep(PAUSE_FOR)
