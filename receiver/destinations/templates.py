"""The operator's own words for a chat: Jinja2, cut down to what cannot run away or misspeak. Pure.

A template names the variables below, chooses (`if`), goes through a list (`for`, one deep) and filters; it calls
nothing, multiplies nothing and sets nothing, so what it costs is bounded by its own length and the event's. Every value
is cleaned and escaped for the platform as it is put out; only what the operator wrote is markup. What is wrong with a
template is said when the configuration is read.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import orjson
from jinja2 import ChainableUndefined, TemplateError, meta, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from receiver.destinations.card import Url
from receiver.destinations.text import MOST, Markup, clean, cut

if TYPE_CHECKING:
    from jinja2 import Template

VARIABLES: Final[Mapping[str, str]] = {
    "icon": "an emoji for the state",
    "headline": "the state in words",
    "event": "the event's type, such as task.succeeded",
    "event_id": "its id, the same in every attempt",
    "state": "the task's state",
    "task_id": "the task's id here; none for an event about a destination",
    "upstream_id": "its id at the upstream",
    "route": "the upstream route",
    "prompt": "what was asked for",
    "took": "from acceptance to the end, in words",
    "seconds": "the same as a number",
    "progress": "0 to 100, while it renders",
    "video_url": "the render: our own copy where there is one, else the upstream's link, which expires",
    "poster": "its picture",
    "last_frame": "its last picture",
    "page": "the page of the task (or destination) in the dashboard; none without server.public_url",
    "failure": "why it failed, in the upstream's words; of an operator event its reason",
    "failure_code": "the upstream's code for that",
    "msg": "the upstream's words",
    "via": "callback or poll",
    "metadata": "the submitter's own: metadata.order",
    "destination": "of an operator event: the destination it is about",
    "delivery_id": "of an operator event: the delivery it is about",
    "failures": "of an operator event: failures in a row",
}
"""What `title` and `text` can name. What an event does not have is empty."""
LONGEST: Final = 8192
"""Characters of a template."""
_ITEMS: Final = 1000
"""Entries of a list that a filter joins."""
_STEPS: Final = 64
"""The share of a limit that may stay unused where values are cut."""
_LONGEST_VALUE: Final = "_longest"
"""Under this name the context holds how long a value may be; no template can name it."""

_ALLOWED: Final = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.List, nodes.Tuple),
    *(
        nodes.Getattr,
        nodes.Getitem,
        nodes.Filter,
        nodes.Test,
        nodes.Keyword,
        nodes.Slice,
        nodes.If,
        nodes.For,
        nodes.CondExpr,
    ),
    *(nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not),
    *(nodes.Add, nodes.Sub, nodes.Div, nodes.FloorDiv, nodes.Neg, nodes.Concat),
)
_NAMED: Final = {"Call": "calling", "Mul": "*", "Pow": "**", "Mod": "%", "Assign": "set", "AssignBlock": "set"}
_LOOP: Final = frozenset({"index", "index0", "revindex", "first", "last", "length"})
_TESTS: Final = ("defined", "undefined", "none", "string", "number", "mapping", "boolean")


def check(source: str) -> str:
    """`source` as it came, once it is sure to be a template that can be filled in.

    Raises:
        ValueError: it is none; the words say where and why.
    """
    if len(source) > LONGEST:
        raise ValueError(f"a template has {LONGEST} characters at most, this one {len(source)}")
    environment = _environment(Markup())
    try:
        tree = environment.parse(source)
        _refuse(tree)
        unknown = sorted(meta.find_undeclared_variables(tree) - VARIABLES.keys())
        if unknown:
            near = difflib.get_close_matches(unknown[0], VARIABLES, 1)
            meant = f" (did you mean {near[0]}?)" if near else f"; there are {', '.join(VARIABLES)}"
            raise ValueError(f"the template names {unknown[0]!r}, which is nothing here{meant}")
        environment.from_string(source)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise ValueError(
            f"the template cannot be read{f' (its line {line})' if line else ''}: {(error.message or '').rstrip('.')}"
        ) from None
    except (RecursionError, MemoryError, OverflowError, SyntaxError):
        raise ValueError("the template is nested too deep") from None
    return source


def fill(source: str, values: Mapping[str, Any], markup: Markup, most: int) -> str:
    """A checked template with its values, cut to `most` of the platform's unit.

    Values give way before the template does: where it does not fit, every value is cut as far as it must be, so that
    no markup of the operator's is cut as long as there is any other way.

    Raises:
        TemplateError, TypeError, ValueError, ArithmeticError: it does not suit these values (`seconds / progress`).
    """
    template = _compiled(source, markup)
    given = {name: "" if value is None else value for name, value in values.items()}

    def rendered(longest: int) -> str:
        return _rendered(template, {**given, _LONGEST_VALUE: longest})

    if markup.size(text := rendered(MOST)) <= most:
        return text
    fits, too_long = 0, most + 1
    text = rendered(0)
    if markup.size(text) > most:
        return cut(text, most, markup)
    while too_long - fits > max(1, most // _STEPS):
        middle = (fits + too_long) // 2
        if markup.size(tried := rendered(middle)) <= most:
            fits, text = middle, tried
        else:
            too_long = middle
    return text


def _rendered(template: Template, values: Mapping[str, Any]) -> str:
    """Filled in; no further than a platform would ever take."""
    written, length = [], 0
    for piece in template.generate(values):
        written.append(piece)
        length += len(piece)
        if length > 2 * MOST:
            break
    return "\n".join(line.rstrip() for line in "".join(written).split("\n")).strip()


def _refuse(tree: nodes.Template) -> None:
    for node in tree.find_all(nodes.Node):
        name = type(node).__name__
        if not isinstance(node, _ALLOWED):
            problem = f"{_NAMED.get(name, name.lower())} is not available in templates (line {node.lineno})"
            raise ValueError(problem)  # noqa: TRY004 -- of the configuration, not of a type
        if isinstance(node, nodes.For) and (node.recursive or any(node.find_all(nodes.For))):
            raise ValueError(f"a loop within a loop is not available in templates (line {node.lineno})")


class _Environment(ImmutableSandboxedEnvironment):
    """Data and nothing else: no attribute of any object is reachable, only members of what the event holds."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        """A member of a table, an entry of a list or a piece of a text."""
        is_place = isinstance(argument, int | slice) and isinstance(obj, list | tuple | str)
        if (isinstance(obj, Mapping) and isinstance(argument, str)) or is_place:
            try:
                return obj[argument]
            except (LookupError, TypeError, ValueError):
                pass
        if isinstance(obj, LoopContext) and argument in _LOOP:
            return getattr(obj, argument)
        return self.undefined(obj=obj, name=argument)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """The same: `metadata.items` is what the submitter called `items`."""
        return self.getitem(obj, attribute)


def _replace(text: Any, old: Any, new: Any) -> str:
    begun, what, by = str(text)[:MOST], str(old), str(new)
    if len(begun) + begun.count(what) * len(by) > 4 * MOST:
        raise SecurityError("replace: this would be far too long")
    return begun.replace(what, by)


def _join(values: Any, by: Any = "") -> str:
    return str(by)[:_ITEMS].join([str(value)[:_ITEMS] for value in islice(values, _ITEMS)])


def _truncate(text: Any, most: int) -> str:
    return cut(clean(str(text)), most)


def _round(number: float, digits: int = 0) -> float | int:
    return round(number, max(-9, min(digits, 9))) if digits else round(number)


_FILTERS: Final[dict[str, Any]] = {
    **{name: FILTERS[name] for name in ("upper", "lower", "capitalize", "title", "trim", "length", "first", "last")},
    **dict.fromkeys(("default", "d"), FILTERS["default"]),
    "replace": _replace,
    "join": _join,
    "truncate": _truncate,
    "round": _round,
}


@lru_cache(maxsize=256)
def _compiled(source: str, markup: Markup) -> Template:
    return _environment(markup).from_string(source)


@lru_cache(maxsize=32)
def _environment(markup: Markup) -> _Environment:
    """One for each way to escape."""

    @pass_context
    def put_out(context: Context, value: Any) -> str:
        if isinstance(value, Url):
            return markup.url(value)
        if isinstance(value, dict | list):
            value = orjson.dumps(value).decode()
        if not isinstance(value, str | int | float):
            return ""
        text = str(value).lower() if isinstance(value, bool) else str(value)
        return markup.escape(cut(clean(text), context[_LONGEST_VALUE]))

    made = _Environment(
        undefined=ChainableUndefined, finalize=put_out, autoescape=False, trim_blocks=True, lstrip_blocks=True
    )
    made.globals.clear()
    made.filters = _FILTERS.copy()
    made.tests = {name: made.tests[name] for name in _TESTS}
    return made
