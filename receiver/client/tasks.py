"""The part of the client that is about tasks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from receiver import lifecycle
from receiver.client.asking import ANSWER_FOR, LOOK_EVERY, UPSTREAM_FOR, Asking, Document, segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


class Tasks(Asking):
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
    ) -> Document:
        """Submit a task. `in_background`: it is queued, and the answer does not wait for the upstream.

        `callback_url`: gets the terminal events of this one task, in the upstream's own form.

        Raises:
            ApiProblem: it was refused, by the service or by the upstream.
            Unreachable: where `sent`, it may have been accepted: look before you submit again.
        """
        body: Document = {"route": route, "input": dict(input)}
        if metadata:
            body["metadata"] = dict(metadata)
        if destinations is not None:
            body["destinations"] = list(destinations)
        if callback_url is not None:
            body["callback_url"] = callback_url
        headers = {"prefer": "respond-async"} if in_background else {}
        return self._ask("POST", "/tasks", body=body, headers=headers, seconds=UPSTREAM_FOR)

    def task(self, task_id: str, *, wait: float = 0.0) -> Document:
        """A task as it is now, or, after at most `wait` seconds (up to 60), when it is terminal."""
        asked = {"wait": f"{wait:.3f}s"} if wait > 0 else {}
        return self._ask("GET", f"/tasks/{segment(task_id)}", query=asked, seconds=ANSWER_FOR + max(wait, 0.0))

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
        return self._ask("GET", "/tasks", query=asked)

    def tasks(
        self, *, state: Sequence[str] = (), route: str | None = None, since: str | None = None
    ) -> Iterator[Document]:
        """Every task, newest first; pages are fetched as they are needed."""
        return self._all("/tasks", {"state": ",".join(state), "route": route, "since": since})

    def timeline(self, task_id: str) -> list[Document]:
        """A task's way: submission, observations, polls, events, deliveries and attempts, in order of time."""
        found: list[Document] = self._ask("GET", f"/tasks/{segment(task_id)}/timeline")["data"]
        return found

    def refresh(self, task_id: str) -> Document:
        """Have the upstream asked now; the task as it is after that."""
        return self._ask("POST", f"/tasks/{segment(task_id)}/refresh", seconds=UPSTREAM_FOR)

    def cancel(self, task_id: str) -> Document:
        """Stop tracking a task."""
        return self._ask("POST", f"/tasks/{segment(task_id)}/cancel")

    def adopt(self, task_id: str, upstream_id: str) -> Document:
        """Give an ambiguous or lost task its upstream id by hand."""
        return self._ask("POST", f"/tasks/{segment(task_id)}/adopt", body={"upstream_id": upstream_id})

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

        def look() -> Document:
            return self.task(task_id, wait=LOOK_EVERY if ends is None else min(LOOK_EVERY, ends - time.monotonic()))

        def is_enough(task: Document) -> bool:
            return task["state"] in lifecycle.TERMINAL or (ends is not None and time.monotonic() >= ends)

        return self._until(look, is_enough, patience=patience, seen=seen)
