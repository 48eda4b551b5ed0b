"""How the API answers: one shape for lists and for errors, secrets masked, and the loop never held up by a large page.

What a page repeats are other people's words (answers of destinations, bodies of callbacks), so it may be large and
dense with what looks like secrets. Documents are therefore written one by one, the large ones on a thread, and a page
ends before its time when it is full; `next_cursor` leads on from there.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import orjson
from starlette.responses import Response
from starlette.routing import Route

from receiver.errors import ReceiverError
from receiver.web import problems
from receiver.web.asgi import SMALL, masked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from starlette.requests import Request

    from receiver.web.guard import Guard
    from receiver.web.table import Handler, Operation

    Count = Callable[[tuple[str, str, str]], None]
    Document = dict[str, Any]

PAGE_BYTES = 4 * 1024 * 1024
"""Of documents on one page; the one that passes it is the last."""
STEP = 25
"""Rows that are read at once where each may drag along a megabyte."""

# Of its own: the loop's default pool is where names are resolved, and may be full of those that are not.
_pen: Final = ThreadPoolExecutor(1, thread_name_prefix="web-pen")


def routes(guard: Guard, table: Iterable[Operation], count: Count | None = None) -> list[Route]:
    """Starlette's routes of a table: guarded as each row says; errors of ours become problem documents.

    `count` hears of every answer: method, path as it stands in the table, status.
    """
    by_path: dict[str, dict[str, Handler]] = {}
    for row in table:
        if row.handler is not None:
            handler = _guarded(guard, row.handler, counted=row.counted) if row.access == "key" else row.handler
            by_path.setdefault(row.path, {})[row.method] = handler
    return [Route(path, _by_method(path, these, count), methods=[*these]) for path, these in by_path.items()]


def _by_method(path: str, handlers: Mapping[str, Handler], count: Count | None) -> Handler:
    async def handle(request: Request) -> Response:
        status = 500
        try:
            response = await handlers["GET" if request.method == "HEAD" else request.method](request)
            status = response.status_code
        finally:
            if count is not None:
                count((request.method, path, str(status)))
        return response

    return handle


def _guarded(guard: Guard, handler: Handler, *, counted: bool) -> Handler:
    async def handle(request: Request) -> Response:
        try:
            guard.check(request, counted=counted)
            return await handler(request)
        except ReceiverError as error:
            return problems.of(error)

    return handle


async def answered(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """One document."""
    return Response(await _written(document), status, headers, "application/json")


async def _written(document: Any) -> bytes:
    raw = orjson.dumps(document)
    if len(raw) <= SMALL:
        return masked(raw)
    return await asyncio.get_running_loop().run_in_executor(_pen, masked, raw)


@dataclass
class Page:
    """The documents of one page, as they are written."""

    _documents: list[bytes] = field(default_factory=list)
    _size: int = 0

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def is_full(self) -> bool:
        """Nothing more is taken."""
        return self._size >= PAGE_BYTES

    async def add(self, documents: Iterable[Document]) -> None:
        """Take documents until it is full."""
        for document in documents:
            if self.is_full:
                return
            raw = await _written(document)
            self._documents.append(raw)
            self._size += len(raw)

    def response(self, request: Request, next_cursor: str | None, *, by: str = "cursor") -> Response:
        """The page; `by` is the parameter that takes the cursor."""
        headers = {}
        if next_cursor is not None:
            again = [(name, value) for name, value in request.query_params.multi_items() if name != by]
            headers["link"] = f'<{request.scope["path"]}?{urlencode([*again, (by, next_cursor)])}>; rel="next"'
        data = [orjson.Fragment(raw) for raw in self._documents]
        return Response(
            orjson.dumps({"data": data, "next_cursor": next_cursor}), 200, headers, media_type="application/json"
        )
