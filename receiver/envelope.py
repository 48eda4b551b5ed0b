"""Whatever shape arrived: bytes and a content type in, an `Envelope` out.

The law: `parse` is total. Any bytes with any content type give an Envelope or raise EnvelopeError, nothing else.
Nothing is believed here and no word is interpreted; that is the upstream routes' business. The shapes are those of
the upstream: flat objects, `{code, msg, data}`, the gateway's nested wrapper, official task objects, forms.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
import orjson

from receiver.errors import EnvelopeError

STATUS_NAMES: Final = ("status", "state", "task_status")
EXPLICIT_ID_NAMES: Final = ("task_id", "taskId")
ID_NAMES: Final = (*EXPLICIT_ID_NAMES, "id")

_MAX_DESCENTS = 3
_MAX_FORM_FIELDS = 200
_MAX_FORM_DEPTH = 4
_MAX_INTEGER_DIGITS = 18
_FORM_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)((?:\[[A-Za-z0-9_.-]*\])*)")
_KNOWN = frozenset({*STATUS_NAMES, *ID_NAMES, "code", "data"})


class Envelope(msgspec.Struct, frozen=True):
    """What came, unwrapped.

    Attributes:
        code: the outermost `code` as it came (of an error object, where no level has one); None where there is none.
        msg: the outermost words (`msg`, `message`, else those of `error`); "" where there are none.
        data: the object in which the status stands; without a status the one that names the task; {} for a bare error.
        levels: every object from the root down to where the descent ended, outermost first; never empty.
    """

    code: int | str | None
    msg: str
    data: dict[str, Any]
    levels: tuple[dict[str, Any], ...]


def parse(body: bytes, content_type: str | None) -> Envelope:
    """Reads a body: JSON first, whatever the content type says, then a form.

    JSON is read a second time, leniently, where the strict reader gives up: a byte order mark, bytes that are no UTF-8,
    half a surrogate pair, control characters in strings, NaN and numbers beyond a double (these read as null).

    Raises:
        EnvelopeError: the body is neither a JSON object nor a form with a member we know.
    """
    try:
        root = orjson.loads(body)
    except orjson.JSONDecodeError:
        root = _read_again(body, content_type)
    if type(root) is not dict:
        raise EnvelopeError(f"the body is JSON, but no object: {type(root).__name__}")
    levels = _unwrap(root)
    return Envelope(_code(levels), _words(levels), _task_object(levels), levels)


def error_text(node: dict[str, Any]) -> str:
    """The words of a member `error`, which may be a string or an object; "" where there are none."""
    error = node.get("error")
    if type(error) is dict:
        error = error.get("message") or error.get("msg") or error.get("raw_message")
    return error.strip() if type(error) is str else ""


def _read_again(body: bytes, content_type: str | None) -> Any:
    text = body.decode("utf-8-sig", "replace")
    try:
        # stdlib reads what orjson refuses; what cannot be written as UTF-8 becomes a question mark on the way back
        loose = json.loads(text, strict=False, parse_float=_number, parse_int=_number, parse_constant=_null)
        return orjson.loads(json.dumps(loose, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return _read_form(text, content_type)


def _number(digits: str) -> float | int | None:
    if digits.lstrip("-").isdigit() and len(digits) <= _MAX_INTEGER_DIGITS:
        return int(digits)
    number = float(digits)
    return number if math.isfinite(number) else None


def _null(_: str) -> None:
    return None


def _read_form(text: str, content_type: str | None) -> dict[str, Any]:
    flaw = EnvelopeError(f"the body is neither JSON nor a form (content type: {str(content_type)[:80]})")
    if "=" not in text:
        raise flaw
    try:
        pairs = parse_qsl(text.strip(), keep_blank_values=True, max_num_fields=_MAX_FORM_FIELDS)
    except ValueError:
        raise flaw from None
    root: dict[str, Any] = {}
    for name, value in pairs:
        # HTML and prose may hold `&id=5` somewhere: in a form every name looks like one
        if not (match := _FORM_NAME.fullmatch(name)):
            raise flaw
        path = [match[1], *match[2][1:-1].split("][")] if match[2] else [match[1]]
        _plant(root, path[:_MAX_FORM_DEPTH], _form_value(value))
    if _KNOWN.isdisjoint(root):
        held: list[dict[str, Any]] = [value for value in root.values() if type(value) is dict]
        root = next((value for value in held if not _KNOWN.isdisjoint(value)), {})
    if not root:
        raise flaw
    return root


def _plant(node: dict[str, Any], path: list[str], value: Any) -> None:
    """`data[task_id]=…`, as PHP's http_build_query writes it."""
    for name in path[:-1]:
        inner = node.get(name)
        if type(inner) is not dict:
            inner = node[name] = {}
        node = inner
    node[path[-1]] = value


def _form_value(value: str) -> Any:
    if value.startswith(("{", "[")):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def _unwrap(root: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Descends through `data` until a level has a status of its own (upstream.md 8.1).

    A status on a level that names no task, above a level with both, is about the answer (`{"status": "success", "data":
    {"task_id", "status": "2"}}`, or an HTTP status): the descent goes on.
    """
    node, inner = root, root.get("data")
    if type(inner) is not dict:
        return (root,)
    levels = [root]
    while type(inner) is dict and len(levels) <= _MAX_DESCENTS:
        if has_status(node) and (names_task(node) or not (has_status(inner) and names_task(inner))):
            break
        levels.append(inner)
        node, inner = inner, inner.get("data")
    return tuple(levels)


def has_status(node: dict[str, Any]) -> bool:
    """Whether a status-like scalar stands here: a string that is not blank, or a number."""
    for name in STATUS_NAMES:
        value = node.get(name)
        if type(value) is str:
            if value and not value.isspace():
                return True
        elif type(value) is int or type(value) is float:
            return True
    return False


def names_task(node: dict[str, Any]) -> bool:
    """Whether an id stands here; an integer is a row number of the gateway, not an id."""
    for name in ID_NAMES:
        value = node.get(name)
        if type(value) is str and value:
            return True
    return False


def _task_object(levels: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    last = levels[-1]
    if has_status(last):
        return last
    for level in levels[::-1]:
        if "code" not in level and names_task(level):
            return level
    if len(levels) == 1 and ("code" in last or "error" in last):
        return {}
    return last


def _code(levels: tuple[dict[str, Any], ...]) -> int | str | None:
    for level in levels:
        if (code := _as_code(level.get("code"))) is not None:
            return code
    for level in levels:
        error = level.get("error")
        if type(error) is dict and (code := _as_code(error.get("code"))) is not None:
            return code
    return None


def _as_code(value: Any) -> int | str | None:
    if type(value) is int:
        return value
    if type(value) is str and value.strip():
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    return None


def _words(levels: tuple[dict[str, Any], ...]) -> str:
    for level in levels:
        for name in ("msg", "message"):
            value = level.get(name)
            if type(value) is str and (words := value.strip()):
                return words
    for level in levels:
        if words := error_text(level):
            return words
    return ""
