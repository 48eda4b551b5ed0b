"""The rows of the route tables: what is served where, and all that the document (openapi.py) says of it.

One source: the rows that make Starlette's routes are the rows the document is written from. A row that names a
parameter, a body, an answer or a problem names it for both.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from receiver.web import error_shapes
from receiver.web.requests import A_MOMENT, A_SPAN, DEFAULT_LIMIT, MAX_LIMIT

if TYPE_CHECKING:
    from pydantic import BaseModel

API = "/api/v1"
JSON = "application/json"

Handler = Callable[[Request], Awaitable[Response]]
Access = Literal["key", "own", "open"]
"""`key`: guarded, errors are problem documents; `own`: guarded by the handler itself, in its own way; `open`."""
Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter, or a header, that an operation takes."""

    name: str
    schema: Schema
    says: str
    where: Literal["query", "header"] = "query"


@dataclass(frozen=True, slots=True)
class Link:
    """Where an answer leads: the operation, and what of the answer is which of its parameters."""

    to: str
    given: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """A status that is no problem.

    Attributes:
        shape: the model of the document; None for no body, or for one that is not ours to describe.
        media: its content type; "" where there is no body.
        headers: name and what it says of each, besides `X-Request-Id`.
    """

    status: int | Literal["4XX", "default"]
    says: str
    shape: type[BaseModel] | None = None
    media: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, Link] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries; `shape` is its model, None where any document goes on as it came."""

    shape: type[BaseModel] | None
    says: str
    example: Any = None
    required: bool = True
    media: Sequence[str] = (JSON,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One row.

    Attributes:
        handler: answers it; None where the Front itself finds the way (the callback door).
        name: its `operationId`.
        problems: codes of problem documents (problems.py) that it may answer, besides those of every guarded one.
        counted: it is one of the requests that `server.rate_per_key` is about.
    """

    method: str
    path: str
    handler: Handler | None
    name: str
    tag: str
    summary: str
    answers: Sequence[Answer]
    says: str = ""
    asks: Sequence[Parameter] = ()
    takes: Body | None = None
    problems: Sequence[str] = ()
    access: Access = "key"
    counted: bool = True

    @property
    def in_path(self) -> list[str]:
        """The names in its path, in order."""
        return re.findall(r"\{(\w+)\}", self.path)


# -- what several share -------------------------------------------------------------------------------------

_ID = "[0-9a-hjkmnp-tv-z]{26}"


def id_schema(prefix: str) -> dict[str, Any]:
    """An id of ours (ids.py)."""
    return {"type": "string", "pattern": f"^{prefix}{_ID}$", "examples": [f"{prefix}01kdyx3mzrtq0s9a5kjw3hc9zp"]}


def some_of(states: Sequence[str]) -> Parameter:
    """`state` of a list."""
    schema = {"type": "array", "items": {"type": "string", "enum": list(states)}}
    return Parameter("state", schema, "One or several: repeated, or with commas. Absent: all.")


def cursor(schema: Schema) -> Parameter:
    """`cursor` of a list."""
    return Parameter("cursor", schema, "`next_cursor` of the page before. It stays good when that row is gone.")


SINCE = Parameter("since", A_MOMENT, "Only those made since then: a time, or a duration back from now.")
LIMIT = Parameter(
    "limit",
    {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
    "How many on a page; a page of large documents may end before.",
)
WAIT = Parameter("wait", A_SPAN, "How long to wait, 60 s at most.")
NEXT = {"Link": '`<…>; rel="next"`, where there is a next page.'}
PROBLEM_DOCUMENT = (error_shapes.Problem, "application/problem+json")


def leads(given: str, *operations: str, by: str = "id") -> dict[str, Link]:
    """Links to operations about the thing whose id stands at `given` in the answer; `by` is what they call it."""
    return {name: Link(name, {by: f"$response.body#{given}"}) for name in operations}
