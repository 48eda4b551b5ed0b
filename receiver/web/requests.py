"""How a request of the API is read: strictly, and whatever is wrong in it is named (contract 4.3).

Nothing here touches a store. An InvalidInput names the member (`pointer`) or the query parameter that is at fault.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError

from receiver.errors import Flaw, InvalidInput
from receiver.web.asgi import read_body

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

MAX_BODY = 1024 * 1024
"""Bytes of any body but a submission's (contract 3, `max_submission`)."""
MAX_WAIT = 60.0
RECHECK_FOR = 1.0
"""Seconds between looks at what somebody waits for: another process may have moved it."""
DEFAULT_LIMIT, MAX_LIMIT = 50, 200
A_TIME = 'a time such as "2026-01-31T12:00:00Z" or a duration such as "2h" is wanted'
# ASCII digits only: \d takes those of every script, and int() and float() read them. No more of them than can be
# reckoned back from today.
SPAN: Final = (
    r"[0-9]{1,12}(?:\.[0-9]{1,3})?ms|[0-9]{1,9}(?:\.[0-9]{1,3})?[sm]?|[0-9]{1,6}(?:\.[0-9]{1,3})?h|"
    r"[0-9]{1,5}(?:\.[0-9]{1,3})?d"
)
_SPAN: Final = re.compile(SPAN)
_PARTS: Final = re.compile(r"([0-9.]+)([a-z]*)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
A_SPAN: Final = {"type": "string", "pattern": f"^(?:{SPAN})$", "examples": ["500ms", "30s", "2h"]}
"""A duration, for the document."""
A_MOMENT: Final[dict[str, Any]] = {
    "anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "pattern": f"^(?:{SPAN})$"}],
    "examples": ["2026-01-31T12:00:00Z", "2h"],
}
"""A time or a duration back from now, for the document."""
_LIMIT: Final = re.compile(r"[0-9]{1,3}")
_PLACE: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_ID: Final = re.compile(r"([a-z]{3}_)[0-9a-hjkmnp-tv-z]{26}")  # ids.py
MAX_PLACE: Final = 2**63 - 1
"""The largest a store holds."""

M = TypeVar("M", bound=BaseModel)
S = TypeVar("S", bound=str)


class Strict(BaseModel):
    """A body: no member that is not named, no type that only resembles the right one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# -- bodies --------------------------------------------------------------------------------------------------------


async def json_of(request: Request, cap: int = MAX_BODY) -> Any:
    """The body as JSON.

    Raises:
        InvalidInput: it is none.
        TooLarge, Gone: it has more than `cap` bytes, or did not arrive.
    """
    return _decoded(await read_body(request.scope, request.receive, cap))


async def json_or_nothing(request: Request) -> Any:
    """The body as JSON; `{}` where there is none. Raises as `json_of`."""
    body = await read_body(request.scope, request.receive, MAX_BODY)
    return _decoded(body) if body.strip() else {}


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}", [Flaw(str(error), "")]) from None


def modelled(model: type[M], raw: Any) -> M:
    """The body as its model.

    Raises:
        InvalidInput: with a pointer to each member that does not fit.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        flaws = [
            Flaw(one["msg"], "".join(f"/{_escaped(str(part))}" for part in one["loc"]))
            for one in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        words = "; ".join(f"{flaw.pointer or 'the body'}: {flaw.detail}" for flaw in flaws)
        raise InvalidInput(words, flaws) from None


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")


def refuse(flaws: Sequence[Flaw]) -> None:
    """Let a body without flaws pass.

    Raises:
        InvalidInput: there are some.
    """
    if flaws:
        raise InvalidInput("; ".join(flaw.detail for flaw in flaws), list(flaws))


# -- parameters ----------------------------------------------------------------------------------------------------


def bad(parameter: str, detail: str) -> InvalidInput:
    """The error of one query parameter."""
    return InvalidInput(f"{parameter}: {detail}", [Flaw(detail, parameter=parameter)])


def known(request: Request, names: set[str]) -> None:
    """Let a query with none but these parameters pass."""
    for name in request.query_params:
        if name not in names:
            raise bad(name[:60], f"there is no such parameter; there are {', '.join(sorted(names))}")


def states(request: Request, there_are: Sequence[S]) -> list[S]:
    """`state`: one or several, with commas or repeated; in the order of the table, empty for all."""
    asked = {s for value in request.query_params.getlist("state") for s in value.split(",") if s}
    for state in sorted(asked.difference(there_are)):
        raise bad("state", f"there is no state {state[:40]!r}; there are {', '.join(there_are)}")
    return [state for state in there_are if state in asked]


def limit(request: Request) -> int:
    """`limit`: how many there are on a page."""
    text = request.query_params.get("limit")
    if text is None:
        return DEFAULT_LIMIT
    if not _LIMIT.fullmatch(text) or not 1 <= int(text) <= MAX_LIMIT:
        raise bad("limit", f"a number from 1 to {MAX_LIMIT} is wanted")
    return int(text)


def wait(request: Request) -> float:
    """`wait`: seconds; more than the most is taken for the most."""
    text = request.query_params.get("wait")
    if text is None:
        return 0.0
    try:
        return min(span(text).total_seconds(), MAX_WAIT)
    except ValueError as error:
        raise bad("wait", str(error)) from None


def since(request: Request, now: datetime) -> datetime | None:
    """`since`: a moment; see `moment`."""
    text = request.query_params.get("since")
    if text is None:
        return None
    try:
        return moment(text.strip().replace(" ", "+"), now)  # a plus that nobody escaped arrives as a space
    except ValueError as error:
        raise bad("since", str(error)) from None


def id_cursor(request: Request, prefix: str) -> str | None:
    """`cursor` of a list that goes by ids: the last of the page before. It stays good when that row is gone."""
    text = request.query_params.get("cursor")
    if text is None:
        return None
    found = _ID.fullmatch(text)
    if found is None or found[1] != prefix:
        raise no_cursor("cursor")
    return text


def place(request: Request) -> int:
    """`after` of the feed: the place of the last event that was read; 0, before the first, where it is absent."""
    text = request.query_params.get("after")
    if text is None:
        return 0
    if not _PLACE.fullmatch(text) or int(text) > MAX_PLACE:
        raise no_cursor("after")
    return int(text)


def no_cursor(parameter: str) -> InvalidInput:
    """The error of a cursor that this program never gave."""
    return bad(parameter, "it is none of ours; take `next_cursor` from the page before")


# -- times ---------------------------------------------------------------------------------------------------------


def span(text: str) -> timedelta:
    """A duration: `"500ms"`, `"30s"`, `"2h"`, or a number of seconds.

    Raises:
        ValueError: it is none; in words for the caller.
    """
    text = text.strip()
    found = _PARTS.fullmatch(text) if _SPAN.fullmatch(text) else None
    if found is None:
        raise ValueError('a duration such as "30s", "5m" or "2h" is wanted')
    return timedelta(seconds=float(found[1]) * _UNITS[found[2]])


def moment(text: str, now: datetime) -> datetime:
    """A time (ISO 8601, UTC where it names no zone), or a duration counted back from `now`.

    Raises:
        ValueError: it is neither; in words for the caller.
    """
    text = text.strip()
    try:
        if _SPAN.fullmatch(text):
            return now - span(text)
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(A_TIME) from None
