"""`GET /docs`: the OpenAPI document as a page to read, and a page for every kind of problem.

Nothing is said here that the document and problems.py do not say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

import orjson

from receiver.web import dress, problems
from receiver.web.dress import prose, words
from receiver.web.table import Answer, Operation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.requests import Request
    from starlette.responses import Response

    from receiver.web.openapi import OpenApi

_REF: Final = "#/components/schemas/"
_CODE: Final = re.compile(r"\[`[a-z-]+`\]\(/docs/problems/[a-z-]+\)")
HTML: Final = "text/html; charset=utf-8"


@dataclass
class Docs:
    """The pages; the large one is made once, when it is first asked for."""

    openapi: OpenApi
    _made: Response | None = None

    def table(self) -> list[Operation]:
        """The route table."""
        return [
            Operation(
                method="GET",
                path="/docs",
                handler=self.show,
                name="showDocs",
                tag="operation",
                summary="This document as a page",
                answers=[Answer(200, "A page.", media=HTML)],
                access="open",
            ),
            Operation(
                method="GET",
                path="/docs/problems/{code}",
                handler=self.problem,
                name="showProblem",
                tag="operation",
                summary="What a kind of problem means",
                answers=[Answer(200, "A page.", media=HTML)],
                problems=["not-found"],
                access="open",
            ),
        ]

    async def show(self, _request: Request) -> Response:
        """`GET /docs`."""
        if self._made is None:
            self._made = dress.page("receiver: the API", _whole(self.openapi.document))
        return self._made

    async def problem(self, request: Request) -> Response:
        """The page behind a problem's type."""
        code = request.path_params["code"]
        kind = problems.KINDS.get(code)
        if kind is None:
            return problems.problem(404, "not-found", "there is no such kind of problem")
        headers = "".join(f"<li>Comes with <code>{escape(name)}</code>.</li>" for name in kind.headers)
        return dress.page(
            kind.title,
            f'<main class="alone"><p class="soft"><a href="/docs#problems">Problems</a> / <code>{code}</code></p>'
            f"<h1>{escape(kind.title)}</h1><p>{words(kind.says)}</p>"
            f"<ul><li>Status <code>{kind.status}</code>.</li>{headers}</ul></main>",
        )


# -- the page ----------------------------------------------------------------------------------------------------------


def _whole(document: dict[str, Any]) -> str:
    info = document["info"]
    by_tag = {tag["name"]: list(_operations(document, tag["name"])) for tag in document["tags"]}
    said = "".join(
        f'<h2 id="{tag["name"]}">{escape(tag["name"].capitalize())}</h2><p class="soft">{words(tag["description"])}</p>'
        + "".join(_operation(*one) for one in by_tag[tag["name"]])
        for tag in document["tags"]
    )
    return (
        f'<div class="page">{_contents(by_tag, document)}<main>'
        f'<h1>{escape(info["title"])} <span class="soft">{escape(info["version"])}</span></h1>'
        f"{prose(info['description'])}"
        f'<p>The same as <a href="/openapi.json">OpenAPI {document["openapi"]}</a>, for machines.</p>'
        f"{said}{_schemas(document)}{_problems()}</main></div>"
    )


def _operations(document: dict[str, Any], tag: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in [*document["paths"].items(), ("to your URL", document["webhooks"]["event"])]:
        for method, one in methods.items():
            if tag in one["tags"]:
                yield method.upper(), path, one


def _contents(by_tag: dict[str, list[tuple[str, str, dict[str, Any]]]], document: dict[str, Any]) -> str:
    parts = []
    for tag, operations in by_tag.items():
        parts.append(f"<b>{escape(tag.capitalize())}</b>")
        parts += [f'<a href="#{one["operationId"]}">{escape(one["summary"])}</a>' for _, _, one in operations]
    parts.append('<b id="toc-schemas">Shapes</b>')
    parts += [f'<a href="#{name}">{escape(name)}</a>' for name in document["components"]["schemas"]]
    parts.append('<b>Problems</b><a href="#problems">Every kind</a>')
    return f'<nav aria-label="Contents">{"".join(parts)}</nav>'


def _operation(method: str, path: str, one: dict[str, Any]) -> str:
    name = one["operationId"]
    mark = "" if one["summary"].endswith("?") else "."
    is_open = "" if one["security"] or one["tags"] == ["webhooks"] else ' <span class="soft">Open to all.</span>'
    verb = f'<span class="verb {method}">{method}</span>'
    here = f'<a class="hash" href="#{name}" aria-label="Link to this">#</a>'
    parts = [
        f'<section class="op" id="{name}"><h3>{verb}<span class="path">{escape(path)}</span>{here}</h3>',
        f"<p>{words(one['summary'])}{mark}{is_open}</p>",
        prose(one["description"]) if "description" in one else "",
    ]
    if "parameters" in one:
        parts.append(_table("Parameters", map(_parameter, one["parameters"])))
    if "requestBody" in one:
        parts.append(_body(one["requestBody"]))
    answers = {status: answer for status, answer in one["responses"].items() if not _is_problem(answer)}
    parts.append(_table("Answers", (_answer(status, answer) for status, answer in answers.items())))
    wrong = [
        f'<span class="bad">{status}</span> {words(" ".join(_codes(answer)))}'
        for status, answer in one["responses"].items()
        if _is_problem(answer)
    ]
    if wrong:
        parts.append(f'<h4>Problems</h4><p class="wrong">{", ".join(wrong)}</p>')
    return "".join(parts) + "</section>"


def _is_problem(answer: dict[str, Any]) -> bool:
    return bool(_CODE.match(answer["description"]))


def _codes(answer: dict[str, Any]) -> list[str]:
    return _CODE.findall(answer["description"])


def _table(title: str, rows: Iterable[tuple[str, str, str]]) -> str:
    lines = "".join(f"<tr><td>{a}</td><td>{b}</td><td>{c}</td></tr>" for a, b, c in rows)
    return f'<h4>{title}</h4><div class="scroll"><table>{lines}</table></div>'


def _parameter(one: dict[str, Any]) -> tuple[str, str, str]:
    return f"<code>{escape(one['name'])}</code>", f"{one['in']}<br>{_kind(one['schema'])}", words(one["description"])


def _body(body: dict[str, Any]) -> str:
    [(media, content), *more] = body["content"].items()
    others = "".join(f" or <code>{escape(name)}</code>" for name, _ in more)
    optional = "" if body["required"] else " Optional."
    kind = f"{_kind(content['schema'])} as " if content["schema"] else ""
    said = f"<h4>Body</h4><p>{words(body['description'])}{optional} {kind}<code>{escape(media)}</code>{others}</p>"
    if "example" not in content:
        return said
    shown = orjson.dumps(content["example"], option=orjson.OPT_INDENT_2).decode()
    return f"{said}<pre><code>{escape(shown)}</code></pre>"


def _answer(status: str, answer: dict[str, Any]) -> tuple[str, str, str]:
    kinds = [_kind(content["schema"]) for content in answer.get("content", {}).values() if content["schema"]]
    headers = [name for name in answer.get("headers", {}) if name != "X-Request-Id"]
    with_them = f" <span class=soft>With {', '.join(f'<code>{escape(h)}</code>' for h in headers)}.</span>"
    wrong = ' class="bad"' if status[0] in "45" else ""
    return (
        f"<code{wrong}>{status}</code>",
        ", ".join(kinds),
        f"{words(answer['description'])}{with_them if headers else ''}",
    )


# -- shapes ------------------------------------------------------------------------------------------------------------


def _schemas(document: dict[str, Any]) -> str:
    parts = ['<h2 id="shapes">Shapes</h2><p class="soft">The documents that come and go.</p>']
    for name, schema in document["components"]["schemas"].items():
        required = schema.get("required", [])
        rows = [
            (
                f"<code>{escape(member)}</code>",
                _kind(one) + ("" if member in required else "<br><span class=soft>optional</span>"),
                words(one.get("description", "")),
            )
            for member, one in schema.get("properties", {}).items()
        ]
        parts.append(
            f'<section class="schema" id="{escape(name)}"><h3>{escape(name)}<a class="hash" href="#{escape(name)}" '
            f'aria-label="Link to this">#</a></h3><p>{words(schema.get("description", ""))}</p>'
            f'<div class="scroll"><table>'
            + "".join(f"<tr><td>{a}</td><td>{b}</td><td>{c}</td></tr>" for a, b, c in rows)
            + "</table></div></section>"
        )
    return "".join(parts)


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words, as HTML."""
    match schema:
        case {"$ref": str(ref)}:
            name = escape(ref.removeprefix(_REF))
            said = f'<a href="#{name}">{name}</a>'
        case {"anyOf": list(several)} | {"oneOf": list(several)}:
            said = " or ".join(dict.fromkeys(_kind(one) for one in several))
        case {"const": value}:
            said = f"<code>{escape(orjson.dumps(value).decode())}</code>"
        case {"enum": list(several)}:
            said = " ".join(f"<code>{escape(str(one))}</code>" for one in several)
        case {"type": "array"}:
            said = f"list of {_kind(schema.get('items', {}))}"
        case {"type": "object", "additionalProperties": dict(values)}:
            said = f"object of {_kind(values)}"
        case {"format": "date-time"}:
            said = "time"
        case {"minimum": least, "maximum": most}:
            said = f"{schema['type']} from {least} to {most}"
        case {"type": "string", "examples": [str(first), *_]}:
            said = f"string, such as <code>{escape(first)}</code>"
        case _:
            said = schema.get("type", "any")
    return said


def _problems() -> str:
    rows = "".join(
        f'<tr><td><a href="/docs/problems/{code}"><code>{code}</code></a></td><td>{kind.status}</td>'
        f"<td>{escape(kind.title)}. {words(kind.says)}</td></tr>"
        for code, kind in problems.KINDS.items()
    )
    return f'<h2 id="problems">Problems</h2><div class="scroll"><table>{rows}</table></div>'
