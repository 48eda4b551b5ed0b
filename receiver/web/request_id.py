"""`X-Request-Id`: the caller's own where it is fit, else a new one; on every answer, and in the request's log lines.

Pure ASGI, and not in front of the callback door: there the task's id says more, and costs nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from receiver import logs
from receiver.web.asgi import header

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAME: Final = b"x-request-id"
_FIT: Final = re.compile(rb"[!-~]{1,128}")


@dataclass(frozen=True)
class RequestIds:
    """The application with ids for its requests."""

    app: ASGIApp
    new_id: Callable[[], str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = header(scope, NAME)
        request_id = given if given is not None and _FIT.fullmatch(given) else self.new_id().encode()
        # Never taken back: each request has a task of its own, and what it started keeps the id.
        logs.request_id.set(request_id.decode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = [field for field in message.get("headers", ()) if field[0] != NAME]
                message = {**message, "headers": [*others, (NAME, request_id)]}
            await send(message)

        await self.app(scope, receive, send_with_id)
