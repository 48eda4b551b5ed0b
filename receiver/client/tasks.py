"""The part of the client that is about tasks."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from receiver import lifecycle
from receiver.client.asking import (
    ANSWER_FOR,
    LOOK_EVERY,
    UPSTREAM_FOR,
    Asking,
    Document,
    Many,
    One,
    Question,
    Stream,
    asked,
    paged,
    segment,
    until,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from receiver.client.asking import Flow

_KEY = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?")


def check_key(key: str) -> None:
    """Say whether it can be an idempotency key.

    Raises:
        ValueError: it has not 1 to 255 printable ASCII characters, or a space at its ends, where headers lose it.
    """
    if not _KEY.fullmatch(key):
        raise ValueError("1 to 255 printable ASCII characters are wanted in an idempotency key, no space at its ends")


def submission(
    route: str,
    input: Mapping[str, Any],  # noqa: A002 -- the contract's word
    *,
    metadata: Mapping[str, Any] | None = None,
    destinations: Sequence[str] | None = None,
    callback_url: str | None = None,
    in_background: bool = False,
    idempotency_key: str | None = None,
) -> Question:
    """The question that `submit` asks.

    Raises:
        ValueError: `idempotency_key` can be none; see `check_key`.
    """
    body: Document = {"route": route, "input": dict(input)}
    if metadata:
        body["metadata"] = dict(metadata)
    if destinations is not None:
        body["destinations"] = list(destinations)
    if callback_url is not None:
        body["callback_url"] = callback_url
    headers = {"prefer": "respond-async"} if in_background else {}
    if idempotency_key is not None:
        check_key(idempotency_key)
        headers["idempotency-key"] = idempotency_key
    return Question("POST", "/tasks", body=body, headers=headers, seconds=UPSTREAM_FOR)


class Tasks(Asking[One, Many, Stream]):
    """Submit tasks, look at them, decide by hand."""

    def submit(
        self,
        route: str,
        input: Mapping[str, Any],  # noqa: A002 -- the contract's word
        *,
        metadata: Mapping[str, Any] | None = None,
        destinations: Sequence[str] | None = None,
        callback_url: str | None = None,
        in_background: bool = False,
        idempotency_key: str | None = None,
    ) -> One:
        """Submit a task. `in_background`: it is queued, and the answer does not wait for the upstream.

        `callback_url`: gets the terminal events of this one task, in the upstream's own form.
        `idempotency_key`: with one, the same submission can be sent again without being paid twice.

        Raises:
            ApiProblem: it was refused, by the service or by the upstream.
            Unreachable: where `sent`, it may have been accepted: without a key, look before you submit again.
            ValueError: the key can be none.
        """
        return self._ask(
            submission(
                route,
                input,
                metadata=metadata,
                destinations=destinations,
                callback_url=callback_url,
                in_background=in_background,
                idempotency_key=idempotency_key,
            )
        )

    def task(self, task_id: str, *, wait: float = 0.0) -> One:
        """A task as it is now, or, after at most `wait` seconds (up to 60), when it is terminal."""
        return self._ask(_look(task_id, wait))

    def page(
        self,
        *,
        state: Sequence[str] = (),
        route: str | None = None,
        since: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> One:
        """One page of tasks, newest first: `{"data": […], "next_cursor": …}`."""
        which = {"state": ",".join(state), "route": route, "since": since, "limit": limit, "cursor": cursor}
        return self._ask(Question("GET", "/tasks", which))

    def tasks(self, *, state: Sequence[str] = (), route: str | None = None, since: str | None = None) -> Stream:
        """Every task, newest first; pages are fetched as they are needed."""
        return self._stream(paged("/tasks", {"state": ",".join(state), "route": route, "since": since}))

    def timeline(self, task_id: str) -> Many:
        """A task's way: submission, observations, polls, events, deliveries and attempts, in order of time."""

        def look() -> Flow[list[Document]]:
            way = yield from asked(Question("GET", f"/tasks/{segment(task_id)}/timeline"))
            items: list[Document] = way["data"]
            return items

        return self._many(look())

    def refresh(self, task_id: str) -> One:
        """Have the upstream asked now; the task as it is after that."""
        return self._ask(Question("POST", f"/tasks/{segment(task_id)}/refresh", seconds=UPSTREAM_FOR))

    def cancel(self, task_id: str) -> One:
        """Stop tracking a task."""
        return self._ask(Question("POST", f"/tasks/{segment(task_id)}/cancel"))

    def adopt(self, task_id: str, upstream_id: str) -> One:
        """Give an ambiguous or lost task its upstream id by hand."""
        return self._ask(Question("POST", f"/tasks/{segment(task_id)}/adopt", body={"upstream_id": upstream_id}))

    def wait(
        self,
        task_id: str,
        *,
        timeout: float | None = None,
        patience: float = 0.0,
        seen: Callable[[Document], None] | None = None,
    ) -> One:
        """Wait until a task is terminal, or for `timeout` seconds; the task as it then is.

        `seen` is called with every look at it. For `patience` seconds in a row a service that is away is waited for.

        Raises:
            Unreachable, ApiProblem: it was away for longer than that, or does not know the task.
        """
        ends = None if timeout is None else time.monotonic() + timeout

        def look() -> Question:
            return _look(task_id, LOOK_EVERY if ends is None else min(LOOK_EVERY, ends - time.monotonic()))

        def is_enough(task: Document) -> bool:
            return task["state"] in lifecycle.TERMINAL or (ends is not None and time.monotonic() >= ends)

        return self._one(until(look, is_enough, patience=patience, seen=seen))


def _look(task_id: str, wait: float) -> Question:
    waiting = {"wait": f"{wait:.3f}s"} if wait > 0 else {}
    return Question("GET", f"/tasks/{segment(task_id)}", waiting, seconds=ANSWER_FOR + max(wait, 0.0))
