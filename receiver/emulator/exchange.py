"""One request and its answer at ASGI level, with the two rudenesses HTTP libraries hide: reset, and cut off halfway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from receiver.emulator.refusals import EMPTY, Answer, Refusal, e1, html

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

ABORT: Final = "receiver.abort"
"""The scope extension through which `server` lets the connection be reset."""
_MAX_BODY: Final = 64 * 1024 * 1024
_BEARER: Final = "bearer "


class Exchange:
    """A request that waits for its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = False
        self.request_id = request_id
        self.headers: dict[bytes, bytes] = dict(scope["headers"])

    def header(self, name: bytes) -> str | None:
        """A header's value, by its name in lower case."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def bearer(self, keys: tuple[str, ...]) -> str:
        """The key that came with the request.

        Raises:
            Refusal: there is none, or none of `keys`, if there are any.
        """
        value = self.header(b"authorization") or ""
        key = value[len(_BEARER) :].strip() if value.lower().startswith(_BEARER) else ""
        if not key or (keys and key not in keys):
            raise Refusal(
                e1(401, "Invalid token", self.request_id),
                code="unauthorized",
                reason="the bearer key is not known" if key else "Authorization: Bearer is missing",
            )
        return key

    async def body(self) -> bytes:
        """The whole request body.

        Raises:
            Refusal: it is over 64 MiB, or it broke off.
        """
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Refusal(html(400), code="broken-off", reason="the caller went away while sending")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > _MAX_BODY:
                raise Refusal(html(413), code="too-large", reason=f"the body is over {_MAX_BODY} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def json_object(self) -> dict[str, Any]:
        """The request body as a JSON object.

        Raises:
            Refusal: the content type is not JSON's, or it is none.
        """
        content = await self.body()
        media_type = (self.header(b"content-type") or "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise self._invalid(f"Content-Type must be application/json, not {media_type or 'missing'}")
        try:
            found = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise self._invalid(f"the body is no JSON: {error}") from None
        if not isinstance(found, dict):
            raise self._invalid("the body must be a JSON object")
        return found

    def _invalid(self, reason: str) -> Refusal:
        return Refusal(e1(400, reason, self.request_id, "invalid_request"), code="invalid_request", reason=reason)

    async def answer(self, answer: Answer) -> None:
        """Send a whole response."""
        await self._start(answer)
        await self._send({"type": "http.response.body", "body": answer.body})

    async def cut(self, answer: Answer) -> None:
        """Send half a response, then let go of the connection."""
        await self._start(answer)
        await self._send(
            {"type": "http.response.body", "body": answer.body[: len(answer.body) // 2], "more_body": True}
        )
        await self.reset()

    async def reset(self) -> None:
        """Reset the connection without (further) answer.

        Under a server other than `receiver.emulator.server`'s there is no way to, and the response is cut off instead.
        """
        abort = self._scope.get("extensions", {}).get(ABORT)
        if abort is None:
            if not self._started:
                await self._start(EMPTY._replace(body=b"{}"))
            return
        abort()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _start(self, answer: Answer) -> None:
        self._started = True
        headers = [
            (b"content-length", str(len(answer.body)).encode()),
            *((name.encode(), value.encode()) for name, value in answer.headers.items()),
        ]
        if answer.body:
            headers.append((b"content-type", answer.content_type.encode()))
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
