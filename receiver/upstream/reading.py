"""An envelope becomes an Observation: what one body says of a task, by the rules of upstream.md 8 and the traps of 6.

The law: `observe` is total and believes nothing. What is odd about a body is named in `oddities`; ingest has such a
body looked up, and the lookup decides:

* `disagreement`: `status` and `state` are both words. Two known words that differ: nothing is claimed (`unknown`). A
  terminal word beside one that no table knows: the known word is the claim, so that a vocabulary that grows at the
  upstream costs a lookup and not the render.
* `bare-code`: an error code and no status. The claim is `failed`.
* `no-url`: the claim is `succeeded` and no usable URL stands anywhere. `video_url` is None.

A body without any status is `queued` if it names a task (the newest feed documents that), but `unknown` if it also
holds a result or an error text: then there is more to know than that it waits.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from receiver.envelope import EXPLICIT_ID_NAMES, STATUS_NAMES, error_text, parse
from receiver.errors import EnvelopeError
from receiver.records import Observation
from receiver.upstream.words import STATUS_WORDS, TASK_NOT_EXIST, UNKNOWN, WORDS, is_error, number, word

if TYPE_CHECKING:
    from receiver.envelope import Envelope
    from receiver.lifecycle import Seen
    from receiver.records import Oddity

_Node = dict[str, Any]
_Levels = tuple[_Node, ...]

_MAX_TEXT = 4_000
_MAX_CODE_TEXT = 200
_MAX_ID = 255
_MAX_URL = 8_192
_MAX_ITEMS = 8
_MAX_URL_DEPTH = 4
_FULL = 100
# orjson writes 254 levels; whoever puts the object into an event adds a few of their own, so these are tried with it
_SPARE_LEVELS = 16

_EMPTY: Final[_Node] = {}
_STATUS_TABLES: Final = tuple((name, STATUS_WORDS if name == "status" else WORDS) for name in STATUS_NAMES)
_TERMINAL: Final = frozenset({"succeeded", "failed", "cancelled"})
_VIDEO_PATHS: Final = (
    ("video_url",),
    ("result_url",),
    ("output",),
    ("result", "video_url"),
    ("raw_video_url",),
    ("data", "video_url"),
    ("data", "result_url"),
    ("data", "output"),
    ("task_result", "videos"),  # kling
    ("result_video_url",),  # kie
    ("videoUrl",),
    ("assets", "video"),  # Luma
    ("content", "video_url"),  # volc
    ("result", "videos"),  # apimart
    ("artifacts",),  # useapi
    ("fail_reason",),  # historic rows of the gateway keep the URL of a SUCCESS there (trap 2)
)
_POSTER_NAMES: Final = ("poster", "image_url", "poster_url", "cover", "cover_url", "thumbnail_url", "thumbnailUrl")
_LAST_FRAME_NAMES: Final = ("last_frame", "last_frame_url")
_REASON_NAMES: Final = ("fail_reason", "failure", "failure_reason", "msg", "message", "error", "task_status_msg")
_URL = re.compile(
    r"https?://(?:[^\s/?#@\\\x00-\x20\x7f]*@)?(?:\[[0-9a-f:.]+\]|[^\s/?#@:\[\]\\\x00-\x20\x7f]+)(?::\d{1,5})?"
    r"(?:[/?#][^\s\x00-\x20\x7f-\x9f]*)?",
    re.IGNORECASE,
)
# Nearly every URL is like this, and surely one by the rule above, which takes three times as long.
_PLAIN_URL = re.compile(r"https?://[a-z0-9.-]+/[!-~]*")
# the gateway's own content route wants the API key: no public file (trap 3)
_PROXY = re.compile(r"https?://[^/]+(?:/.*)?/v1/videos/[^/]+/content", re.IGNORECASE)
_PROGRESS = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)\s*(%?)", re.ASCII)


def read_callback(body: bytes, content_type: str | None) -> Observation:
    """What a callback says. Its URL names a task and no route, and all routes' bodies are read alike.

    Raises:
        EnvelopeError: it makes no sense, or tells of no task.
    """
    envelope = parse(body, content_type)
    seen = observe(envelope)
    if seen.seen == UNKNOWN and seen.upstream_id is None and not has_word(envelope):
        raise EnvelopeError("JSON that tells of no task")
    return seen


def observe(envelope: Envelope) -> Observation:
    """What the envelope says; never raises."""
    data = envelope.data
    inner = _object(data, "data")
    upstream_id = _task_id((*envelope.levels, inner))
    seen, oddities = _seen(envelope, upstream_id)
    progress = _progress(data.get("progress"))
    if progress is None and inner:
        progress = _progress(inner.get("progress"))
    video_url = poster = last_frame = failure = failure_code = None
    msg = _text(envelope.msg)
    if seen == "succeeded":
        video_url = _video_url(data)
        places = (data, inner, _object(data, "result"), _object(data, "content"))
        poster, last_frame = _named_url(places, _POSTER_NAMES), _named_url(places, _LAST_FRAME_NAMES)
        oddities = oddities if video_url else (*oddities, "no-url")
    elif seen in _TERMINAL:
        msg = failure = _failure(envelope, data, inner)
        failure_code = _failure_code((data, inner))
    return Observation(
        seen=seen,
        upstream_id=upstream_id,
        oddities=oddities,
        progress=progress,
        video_url=video_url,
        poster=poster,
        last_frame=last_frame,
        failure=failure,
        failure_code=failure_code,
        code=number(envelope.code),
        msg=msg or "",
        prompt=_text(data.get("prompt")),
        data_json=_dumped(data) if data else None,
    )


def has_word(envelope: Envelope) -> bool:
    """Whether the body has a status at all, known or not."""
    return any(word(envelope.data.get(name)) for name in STATUS_NAMES)


def is_about_question(envelope: Envelope, observation: Observation) -> bool:
    """Whether a lookup's answer speaks of the lookup rather than of the task.

    An error code without a status does (`get_task_failed`), and so does `{"status": "error", …}` that names no task:
    neither may end a task that was paid for.
    """
    if observation.seen != "failed" or (observation.upstream_id and not observation.oddities):
        return False
    return is_error(envelope.code) or word(envelope.data.get("status")) == "error"


def usable_id(value: object) -> str | None:
    """A task id that can be kept, compared and put into a path; ids are opaque strings (trap 10)."""
    if type(value) is not str:
        return None
    text = value.strip()
    if not text or len(text) > _MAX_ID or not text.isprintable() or not text.strip("."):
        return None
    return text


def _seen(envelope: Envelope, upstream_id: str | None) -> tuple[Seen, tuple[Oddity, ...]]:
    claim, disagrees = _claim(envelope.data)
    if disagrees:
        return claim or UNKNOWN, ("disagreement",)
    if claim in {None, UNKNOWN, "failed"} and _says_missing(envelope, named=claim == "failed" and bool(upstream_id)):
        return "missing", ()
    if claim is None and is_error(envelope.code):
        return "failed", ("bare-code",)
    return claim or _seen_without_status(envelope, upstream_id), ()


def _seen_without_status(envelope: Envelope, upstream_id: str | None) -> Seen:
    if any(error_text(level) for level in envelope.levels) or any(map(_video_url, envelope.levels)):
        return UNKNOWN
    if upstream_id or any(type(envelope.data.get(name)) is str for name in STATUS_NAMES):
        return "queued"
    return UNKNOWN


def _claim(data: _Node) -> tuple[Seen | None, bool]:
    """The canonical word of this level, None where there is none, and whether its members disagree."""
    claim: Seen | None = None
    odd = False
    for name, table in _STATUS_TABLES:
        if (value := data.get(name)) is None:
            continue
        # as a rule it is written as the table has it
        seen = table.get(value) if type(value) is str else None
        if seen is None:
            if not (text := word(value)):
                continue
            seen = table.get(text, UNKNOWN)
        if claim is None or claim == seen:
            claim = seen
        elif UNKNOWN in {claim, seen}:
            claim = seen if claim == UNKNOWN else claim
            odd = odd or claim in _TERMINAL
        else:
            return UNKNOWN, True
    return claim, odd


def _says_missing(envelope: Envelope, *, named: bool) -> bool:
    """`task_not_exist` in a code, or in words unless they are the reason of a task that is named and failed."""
    if word(envelope.code) == TASK_NOT_EXIST:
        return True
    if named:
        return False
    for level in envelope.levels:
        words = (level.get("msg"), level.get("message"), error_text(level))
        if any(type(text) is str and TASK_NOT_EXIST in text.lower() for text in words):
            return True
    return False


def _object(node: _Node, name: str) -> _Node:
    value = node.get(name)
    return value if type(value) is dict else _EMPTY


def _task_id(levels: _Levels) -> str | None:
    """The outermost `task_id` or `taskId`, else the outermost `id`: an event around a task has an id of its own."""
    for names in (EXPLICIT_ID_NAMES, ("id",)):
        for level in levels:
            for name in names:
                if name in level and (found := usable_id(level[name])):
                    return found
    return None


def _text(value: object, cap: int = _MAX_TEXT) -> str | None:
    """Words, trimmed and capped, without NUL (which PostgreSQL does not store); None where there are none."""
    if type(value) is not str:
        return None
    return value[: cap + 1].replace("\x00", "").strip()[:cap] or None


def _url(value: object) -> str | None:
    """An http(s) URL with a host and nothing in it that breaks a line or a header."""
    if type(value) is not str or len(value) > _MAX_URL:
        return None
    text = value.strip()
    return text if _PLAIN_URL.fullmatch(text) or _URL.fullmatch(text) else None


def _first_url(value: object, depth: int = _MAX_URL_DEPTH) -> str | None:
    if type(value) is str:
        return _url(value)
    if depth == 0:
        return None
    if type(value) is dict:
        return _first_url(value.get("video_url") or value.get("url"), depth - 1)
    if type(value) is list:
        for item in value[:_MAX_ITEMS]:
            if found := _first_url(item, depth - 1):
                return found
    return None


def _video_url(data: _Node) -> str | None:
    """The first usable URL in the order of upstream.md 8.4; the gateway's proxy only where there is no other."""
    proxied = None
    for path in _VIDEO_PATHS:
        value: Any = data
        for name in path:
            value = value.get(name) if type(value) is dict else None
        if not value or not (found := _first_url(value)):
            continue
        if not _is_proxy(found):
            return found
        proxied = proxied or found
    return proxied


def _is_proxy(url: str) -> bool:
    return url[-8:].lower() == "/content" and _PROXY.fullmatch(url) is not None


def _named_url(places: _Levels, names: tuple[str, ...]) -> str | None:
    for place in places:
        if not place:
            continue
        for name in names:
            if name in place and (found := _url(place[name])):
                return found
    return None


def _failure(envelope: Envelope, data: _Node, inner: _Node) -> str | None:
    """The reason in words: of the task, else of the envelope if its code is an error's (else they praise the call)."""
    for place in (data, inner):
        praises = "code" in place and not is_error(place["code"] if type(place["code"]) in {int, str} else None)
        for name in _REASON_NAMES:
            if praises and name in {"msg", "message"}:
                continue
            if words := _text(error_text(place) if name == "error" else place.get(name)):
                return words
    return _text(envelope.msg) if is_error(envelope.code) else None


def _failure_code(places: _Levels) -> str | None:
    for place in places:
        for name in ("failureCode", "failure_code"):
            if code := _text(place.get(name), _MAX_CODE_TEXT):
                return code
    return None


def _progress(value: object) -> int | None:
    """Percent, 0 to 100: "45%" is 45, a float up to 1 is a share, an integer is as it is (upstream.md 8.6)."""
    if type(value) is str:
        match = _PROGRESS.fullmatch(value.strip()) if len(value) <= _MAX_ITEMS * 2 else None
        if not match:
            return None
        share = "." in match[1] and not match[2]
        value = float(match[1]) if share else int(float(match[1]))
    if type(value) is float and value >= 0:
        value = int(value * _FULL + 0.5) if value <= 1 else int(value)
    return value if type(value) is int and 0 <= value <= _FULL else None


def _dumped(data: _Node) -> str:
    """The object as it came; of one nested too deeply to be written again, its scalars."""
    try:
        return orjson.dumps([[[[[[[[[[[[[[[[data]]]]]]]]]]]]]]]])[_SPARE_LEVELS:-_SPARE_LEVELS].decode()
    except orjson.JSONEncodeError:
        flat = {name: value for name, value in data.items() if not isinstance(value, dict | list)}
        return orjson.dumps(flat).decode()
