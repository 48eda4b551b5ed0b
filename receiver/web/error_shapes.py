"""What is answered where something is wrong, as models: RFC 9457 problems, and the upstream's shape."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from receiver.web.shapes import Shape


class Place(BaseModel):
    """One mistake: a `pointer` into the body (RFC 6901), or a `parameter`, and what is wrong there."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None


class UpstreamSaid(Shape):
    """What the upstream answered."""

    status: int
    body: str


class Problem(BaseModel):
    """An error (RFC 9457). `type` is stable, and leads to a page of this service that explains it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: Annotated[str, Field(pattern="^/docs/problems/[a-z-]+$")]
    title: str
    status: int
    detail: str | None = None
    """What was wrong this time, in words."""
    errors: list[Place] | None = None
    """Of bad input, each place."""
    task_id: str | None = None
    """The task that is kept, of a refused submission."""
    upstream: UpstreamSaid | None = None
    """Of a refused submission: the upstream's own words."""


class UpstreamWords(Shape):
    """What is the matter, as the upstream says it."""

    message: str
    type: str
    param: str
    code: str


class UpstreamError(Shape):
    """An error of ours on a drop-in route, in the upstream's shape."""

    error: UpstreamWords
