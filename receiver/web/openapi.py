"""`GET /openapi.json`: OpenAPI 3.1, written from the route tables and the models; nothing is told a second time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from starlette.responses import Response

from receiver import __version__
from receiver.web import error_shapes, problems, shapes
from receiver.web.table import API, JSON, Answer, Operation, id_schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import BaseModel
    from starlette.requests import Request

    from receiver.web.table import Parameter

TAGS: Final = {
    "tasks": "Submit a render, follow it, take it in hand.",
    "events": "The pull feed, for those who cannot be called.",
    "deliveries": "What went out: every event for every destination, with its attempts.",
    "replays": "Many ended deliveries again, by filter.",
    "destinations": "The configured receivers, and how they do.",
    "drop-in": "The upstream's own routes: change the base URL, keep your code. Bodies and statuses are the "
    "upstream's; errors of this service have the upstream's shape.",
    "webhooks": "What this service sends to your destinations.",
    "callbacks": "Where the upstream calls back. The token in the path is the only authentication.",
    "operation": "For the operator's machines.",
}
SAYS: Final = f"""\
A webhook receiver and callback router for AI video tasks: it submits renders to the upstream, takes its callbacks,
looks up what is never called back, and delivers what became of it, signed and retried.

* Everything under `{API}` takes `Authorization: Bearer <one of security.api_keys>`. Without configured keys only
  requests that are plainly local are answered.
* Errors are RFC 9457 problem documents; `type` leads to a page that explains it. A path that is not here is a 404, a
  method that is not here a 405 with `Allow`.
* Lists have `next_cursor` and `Link: rel="next"`, newest first.
* Every answer but the callback door's bears `X-Request-Id`: yours, where you sent one (1 to 128 visible ASCII
  characters), else a new one. The service's log lines of that request have it, too.
"""
WEBHOOK: Final = """\
At least once, signed, in no promised order. A destination that names no `events` gets the terminal ones.

* Format `envelope`: the body is exactly `data.envelope`; this is also what a task's own `callback_url` gets.
* Format `cloudevents`: CloudEvents 1.0, structured; `id` is the `webhook-id`, `data` is the same.
"""
COMMON: Final = ("unauthorized", "forbidden", "rate-limited", "store-unavailable")
"""Problems of every guarded operation."""
_PATH: Final[dict[tuple[str, str], tuple[dict[str, Any], str]]] = {
    ("tasks", "id"): (id_schema("tsk_"), "A task's id."),
    ("deliveries", "id"): (id_schema("dlv_"), "A delivery's id."),
    ("replays", "id"): (id_schema("rpl_"), "A replay's id."),
    ("destinations", "name"): (
        {"type": "string", "pattern": "^[a-z0-9-]{1,64}$", "examples": ["pipeline"]},
        "A configured destination's name.",
    ),
    ("drop-in", "id"): ({"type": "string", "minLength": 1}, "The upstream's id of the task."),
    ("operation", "code"): ({"type": "string", "enum": list(problems.KINDS)}, "The end of a problem's `type`."),
    ("callbacks", "token"): (
        {"type": "string", "minLength": 1},
        "The token that the callback URL bears. Whatever is appended after a `/` or a `?` changes nothing.",
    ),
}
REQUEST_ID: Final = {"$ref": "#/components/headers/RequestId"}


class _Untitled(GenerateJsonSchema):
    """Members are known by their names; a title made of the name says nothing."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 -- pydantic's signature
        return False


def document(operations: Iterable[Operation], *, keyless: bool = False) -> dict[str, Any]:
    """The OpenAPI document of these operations; `keyless`: no key is configured, so none is wanted."""
    rows = list(operations)
    models = _models(rows)
    _, definitions = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Untitled,
    )
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row, keyless=keyless)
    used = {row.tag for row in rows} | {"webhooks"}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "receiver",
            "version": __version__,
            "description": SAYS,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": says} for name, says in TAGS.items() if name in used],
        "paths": paths,
        "webhooks": {"event": {"post": _webhook()}},
        "components": {
            "schemas": dict(sorted(definitions["$defs"].items())),
            "headers": {
                "RequestId": {
                    "description": "The request's id; also in the log.",
                    "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
                }
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "One of security.api_keys"}},
        },
    }


def _models(rows: Sequence[Operation]) -> list[type[BaseModel]]:
    found: dict[type[BaseModel], None] = {error_shapes.Problem: None, shapes.Webhook: None}
    for row in rows:
        if row.takes is not None and row.takes.shape is not None:
            found[row.takes.shape] = None
        found |= {answer.shape: None for answer in row.answers if answer.shape is not None}
    return list(found)


def _webhook() -> dict[str, Any]:
    """What goes out, in format `standard` (contract section 5)."""
    headers = {
        "webhook-id": "The event's id, `evt_…`: the same for every attempt and replay. Take an event once.",
        "webhook-timestamp": "Seconds since 1970; of this attempt.",
        "webhook-signature": "Standard Webhooks 1.0.0: `v1,…`, one for each secret of the destination.",
    }
    return {
        "operationId": "onEvent",
        "tags": ["webhooks"],
        "summary": "An event, sent to a destination",
        "description": WEBHOOK,
        "parameters": [
            {"name": name, "in": "header", "required": True, "description": says, "schema": {"type": "string"}}
            for name, says in headers.items()
        ],
        "requestBody": {
            "description": "The event.",
            "required": True,
            "content": {JSON: {"schema": _ref(shapes.Webhook)}},
        },
        "responses": {
            "2XX": {"description": "It is taken, and not sent again."},
            "410": {"description": "The end: this delivery is `dead`, and the destination is paused."},
            "default": {"description": "It is tried again on `delivery.schedule`, not before `Retry-After`."},
        },
        "security": [],
    }


def _operation(row: Operation, *, keyless: bool) -> dict[str, Any]:
    written: dict[str, Any] = {"operationId": row.name, "tags": [row.tag], "summary": row.summary}
    if row.says:
        written["description"] = row.says
    parameters = [_in_path(row, name) for name in row.in_path] + [_parameter(one) for one in row.asks]
    if parameters:
        written["parameters"] = parameters
    if row.takes is not None:
        schema = _ref(row.takes.shape) if row.takes.shape is not None else {}
        content: dict[str, Any] = {"schema": schema}
        if row.takes.example is not None:
            content["example"] = row.takes.example
        written["requestBody"] = {
            "description": row.takes.says,
            "required": row.takes.required,
            "content": dict.fromkeys(row.takes.media, content),
        }
    written["responses"] = _responses(row)
    key: dict[str, list[str]] = {"key": []}
    written["security"] = [] if row.access == "open" else [key, {}] if keyless else [key]
    return written


def _in_path(row: Operation, name: str) -> dict[str, Any]:
    schema, says = _PATH.get((row.tag, name), ({"type": "string"}, ""))
    return {"name": name, "in": "path", "required": True, "description": says, "schema": schema}


def _parameter(one: Parameter) -> dict[str, Any]:
    return {"name": one.name, "in": one.where, "required": False, "description": one.says, "schema": dict(one.schema)}


def _responses(row: Operation) -> dict[str, Any]:
    with_id = row.tag != "callbacks"
    found = {str(answer.status): _answer(answer, with_id=with_id) for answer in row.answers}
    codes = [*(COMMON if row.access == "key" else ()), *row.problems]
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(problems.KINDS[code].status, []).append(code)
    for status, those in sorted(by_status.items()):
        found[str(status)] = _problem(those, with_id=with_id)
    return dict(sorted(found.items()))


def _answer(answer: Answer, *, with_id: bool) -> dict[str, Any]:
    headers: dict[str, Any] = {"X-Request-Id": REQUEST_ID} if with_id else {}
    headers |= {name: {"description": says, "schema": {"type": "string"}} for name, says in answer.headers.items()}
    written: dict[str, Any] = {"description": answer.says}
    if headers:
        written["headers"] = headers
    if answer.media:
        schema = _ref(answer.shape) if answer.shape is not None else {}
        if answer.media.startswith("text/"):
            schema = {"type": "string"}
        written["content"] = {answer.media: {"schema": schema}}
    if answer.links:
        written["links"] = {
            name: {"operationId": link.to, "parameters": dict(link.given)} for name, link in answer.links.items()
        }
    return written


def _problem(codes: Sequence[str], *, with_id: bool) -> dict[str, Any]:
    kinds = [problems.KINDS[code] for code in codes]
    headers: dict[str, Any] = {"X-Request-Id": REQUEST_ID} if with_id else {}
    for kind in kinds:
        headers |= {name: {"schema": {"type": "string"}} for name in kind.headers}
    written: dict[str, Any] = {
        "description": " ".join(
            f"[`{code}`](/docs/problems/{code}): {kind.title}." for code, kind in zip(codes, kinds, strict=True)
        ),
        "content": {problems.MEDIA: {"schema": _ref(error_shapes.Problem)}},
    }
    return written | ({"headers": headers} if headers else {})


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


@dataclass
class OpenApi:
    """Serves the document; it is written once, when it is first asked for."""

    operations: list[Operation]
    keyless: bool = False
    _made: dict[str, Any] | None = None
    _written: bytes = field(default=b"")

    @property
    def document(self) -> dict[str, Any]:
        """The document."""
        if self._made is None:
            self._made = document([*self.operations, *self.table()], keyless=self.keyless)
            self._written = orjson.dumps(self._made, option=orjson.OPT_INDENT_2)
        return self._made

    def table(self) -> list[Operation]:
        """The route table."""
        return [
            Operation(
                method="GET",
                path="/openapi.json",
                handler=self.show,
                name="showOpenApi",
                tag="operation",
                summary="This document",
                answers=[Answer(200, "OpenAPI 3.1.")],
                access="open",
            )
        ]

    async def show(self, _request: Request) -> Response:
        """`GET /openapi.json`."""
        _ = self.document
        return Response(self._written, media_type=JSON)
