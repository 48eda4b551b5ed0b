"""The edge that listens: translates between HTTP and the verbs, decides nothing.

One ASGI callable. The callback door is looked for first, by its prefix and nothing else; all the rest is Starlette's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from receiver.web import answers, doorway, problems
from receiver.web.callbacks import RECEIVED, Taken
from receiver.web.docs import Docs
from receiver.web.openapi import OpenApi
from receiver.web.request_id import RequestIds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from receiver.web.callbacks import CallbackDoor, Told
    from receiver.web.guard import Guard
    from receiver.web.table import Operation


__all__ = ["RECEIVED", "Front", "Taken"]


class Front:
    """The door for callbacks, and the application behind it.

    Attributes:
        prefixes: what callback paths begin with: `/callbacks/`, and the same under the path of `public_url`.
        openapi: the document of all that is served.
    """

    def __init__(
        self,
        door: CallbackDoor,
        table: Sequence[Operation],
        *,
        guard: Guard,
        public_path: str,
        new_id: Callable[[], str],
        count: answers.Count | None = None,
    ) -> None:
        """Put the rows of `table` behind the door.

        Args:
            door: takes the callbacks.
            table: the rows of every room.
            guard: of the rows that want a key.
            public_path: the path of `public_url`, without a slash at its end.
            new_id: makes a request's id.
            count: hears of every answer; see `answers.routes`.
        """
        self._door = door
        self._prefixes = tuple({"/callbacks/", f"{public_path}/callbacks/"})
        self.openapi = OpenApi([*table, *doorway.table()], keyless=not guard.api_keys)
        docs = Docs(self.openapi)
        self.openapi.operations += docs.table()
        rows = [*self.openapi.operations, *self.openapi.table()]
        behind = Starlette(
            routes=answers.routes(guard, rows, count),
            exception_handlers={HTTPException: _http_error, Exception: _fault},
        )
        behind.router.redirect_slashes = False  # a path is there, or it is a 404: a redirect loses a body
        self._rest: ASGIApp = RequestIds(behind, new_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        rest = self._behind_prefix(scope["path"]) if scope["type"] == "http" else None
        if rest is None:
            await self._rest(scope, receive, send)
        else:
            await self._door(scope, receive, send, rest)

    def take(
        self, path: str, body: bytes, content_type: bytes | None, tell: Told, close: Callable[[], None]
    ) -> Taken | None:
        """Take a whole request at once, if it is a callback that can be; see `CallbackDoor.take`."""
        rest = self._behind_prefix(path)
        return None if rest is None else self._door.take(rest, body, content_type, tell, close)

    def _behind_prefix(self, path: str) -> str | None:
        for prefix in self._prefixes:
            if path.startswith(prefix):
                return path[len(prefix) :]
        return None


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 -- what it is registered for
    if error.status_code == 405:  # noqa: PLR2004 -- Starlette's own word
        return problems.problem(405, "method-not-allowed", "not by this method", headers=dict(error.headers or {}))
    return problems.problem(404, "not-found", "there is nothing at this path")


async def _fault(_request: Request, _error: Exception) -> Response:
    return problems.problem(500, "internal", "an error of ours; the log has the details")
