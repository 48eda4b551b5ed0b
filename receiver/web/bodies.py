"""What the API takes: bodies as strict models (contract 4.3), each with what the document says of it."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from receiver.upstream import ROUTES
from receiver.web.requests import A_MOMENT, Strict
from receiver.web.table import Parameter


def _by_route(schema: dict[str, Any]) -> None:
    """Each route has members without which nothing is sent."""
    schema["properties"]["route"] = {"type": "string", "enum": list(ROUTES)}
    schema["anyOf"] = [
        {
            "title": name,
            "properties": {
                "route": {"const": name},
                "input": {
                    "type": "object",
                    "required": list(route.required),
                    "properties": {member: {"not": {"enum": [None, ""]}} for member in route.required},
                },
            },
        }
        for name, route in ROUTES.items()
    ]


class SubmitBody(Strict):
    """A task to be submitted."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra=_by_route)

    route: str
    """The upstream route."""
    input: dict[str, Any]
    """The upstream's own body for that route, without `callback_url`. What is missing and has a default is filled in;
    ranges are the upstream's to judge."""
    metadata: dict[str, Any] | None = None
    """Anything; it comes back with the task and its events, and destinations can match on it."""
    destinations: list[str] | None = None
    """Only these of the configured destinations; their filters still hold."""
    callback_url: Annotated[str, Field(json_schema_extra={"format": "uri", "maxLength": 8192})] | None = None
    """Where this one task's terminal events go, too, in `envelope` format: an http(s) URL."""


class AdoptBody(Strict):
    """The id of a task whose submission got no answer."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    upstream_id: Annotated[
        str, Field(json_schema_extra={"minLength": 1, "maxLength": 255, "pattern": "^[ -~]*[0-9A-Za-z_-][ -~]*$"})
    ]
    """As the upstream gave it."""


Moment = Annotated[str, Field(json_schema_extra=A_MOMENT)]


class ReplayBody(Strict):
    """Which ended deliveries are opened again; without members all dead ones."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    destination: str | None = None
    """Only this one's; absent: all."""
    since: Moment | None = None
    """Made since then: a time, or a duration back from now."""
    until: Moment | None = None
    """Made until then; absent, and at most: now."""
    state: Literal["dead", "delivered", "all"] = "dead"
    """How they ended; `all` means the cancelled ones, too."""


EXAMPLE: Final = {
    "route": "runway/pro/video2video",
    "input": {"video": "https://example.com/in.mp4", "prompt": "a cat in the rain"},
    "metadata": {"team": "vfx"},
}
SUBMIT: Final = """\
Stored first, then sent upstream.

* 201: the upstream took it.
* 202 with state `pending`: it is durably queued, since the upstream is throttling or away and nothing was sent yet; or
  at once, with `Prefer: respond-async`.
* 202 with state `ambiguous`: it may have been taken, and no answer tells. It is never sent again by itself.
* Else a problem: what is wrong with the request, or the upstream's own words (`upstream-refused`).
"""
IDEMPOTENCY_KEY: Final = Parameter(
    "Idempotency-Key",
    {"type": "string", "pattern": "^[!-~](?:[ -~]{0,253}[!-~])?$"},
    "The same request again under the same key gets the same answer, with `Idempotency-Replayed: true`, and nothing is "
    "submitted twice; kept as long as its task.",
    where="header",
)
PREFER: Final = Parameter(
    "Prefer", {"type": "string", "examples": ["respond-async"]}, "`respond-async`", where="header"
)
