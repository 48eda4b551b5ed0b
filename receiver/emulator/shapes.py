"""Every documented dress of a submission's answer, a lookup's answer and a callback's body, written from one `View`.

Section numbers are those of the upstream notes: 2a-2c answers of a pro submission, 3a-3c of feed, 4.4a-4.4b of
tasks/{id}, 5.1a-5.1c callbacks. `blog` is what the vendor's article reads, `kie` a sibling's callback whose `code`
carries the outcome. The reverse shapes (3a, flat) and the gateway's (3b, 3c) have no documented word for a cancelled
render; here they say `cancelled` in their own case.
"""

from __future__ import annotations

import gzip
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode

import orjson

from receiver.emulator.model import IMAGE_TO_VIDEO, PRO

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from receiver.emulator.model import Phase, View

Json = dict[str, Any]

_REVERSE: Final[Mapping[Phase, tuple[str, str]]] = {
    "queued": ("0", ""),
    "running": ("1", ""),
    "succeeded": ("3", "succeeded"),
    "failed": ("2", "failed"),
    "cancelled": ("cancelled", "cancelled"),
}
_GATEWAY: Final[Mapping[Phase, str]] = {
    "queued": "QUEUED",
    "running": "IN_PROGRESS",
    "succeeded": "SUCCESS",
    "failed": "FAILURE",
    "cancelled": "CANCELLED",
}
_RUNWAY: Final[Mapping[Phase, str]] = {
    "queued": "PENDING",
    "running": "RUNNING",
    "succeeded": "SUCCEEDED",
    "failed": "FAILED",
    "cancelled": "CANCELLED",
}
_GENERIC: Final[Mapping[Phase, str]] = {
    "queued": "queued",
    "running": "processing",
    "succeeded": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
}
_SHANGHAI: Final = timezone(timedelta(hours=8))
FAILURE_CODE: Final = "INTERNAL.BAD_OUTPUT.CODE01"


def _stamp(at: float) -> str:
    return str(int(at))


def _zulu(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _reverse(view: View, *, progress_of_times: bool = True) -> Json:
    status, state = _REVERSE[view.phase]
    known = progress_of_times and view.phase != "queued"
    return {
        "task_id": view.id,
        "state": state,
        "status": status,
        "prompt": view.prompt,
        "prompt_en": view.prompt,
        "video_url": view.video_url,
        "poster": view.poster,
        "last_frame": view.last_frame,
        "msg": view.reason,
        "point": "320",
        "refund": "1" if view.reason else "0",
        "create_time": _stamp(view.created_at),
        "update_time": _stamp(view.finished_at or view.started_at) if known else "0",
    }


def _provider(view: View) -> Json:
    """The provider's object inside the gateway's row; assets sit in `video_url`, `poster` (pro) or `output`."""
    inner: Json = {
        "id": view.id,
        "status": _RUNWAY[view.phase],
        "createdAt": datetime.fromtimestamp(view.created_at, _SHANGHAI).isoformat(timespec="seconds"),
    }
    if view.reason is not None:
        inner["failure"] = view.reason
    if view.video_url is not None and view.route == PRO:
        inner |= {"video_url": view.video_url, "poster": view.poster, "last_frame": view.last_frame}
    elif view.video_url is not None:
        inner["output"] = [view.video_url]
    return inner


def _row(view: View) -> Json:
    return {
        "task_id": view.id,
        "action": "IMAGE_TO_VIDEO" if view.route == IMAGE_TO_VIDEO else "VIDEO_TO_VIDEO",
        "status": _GATEWAY[view.phase],
        "fail_reason": view.reason or "",
        "submit_time": int(view.created_at),
        "start_time": int(view.started_at),
        "finish_time": int(view.finished_at),
        "progress": f"{view.progress}%",
        "data": _provider(view),
    }


def _wrapped(row: Json) -> Json:
    return {"code": "success", "message": "", "data": row}


def _historic(view: View) -> Json:
    """Old rows keep a success's URL in `fail_reason` (trap 6.2)."""
    row = _row(view)
    row["data"] = {key: row["data"][key] for key in ("id", "status", "createdAt")}
    return _wrapped(row | {"fail_reason": view.video_url or view.reason or ""})


def _newer_row(view: View) -> Json:
    """`id` is the row's number, and `result_url` falls back to the reason of a failure (traps 6.1, 8.2)."""
    row = _row(view)
    row["data"] = {key: row["data"][key] for key in ("id", "status", "createdAt")}
    row |= {
        "id": view.number,
        "created_at": int(view.created_at),
        "updated_at": int(view.finished_at or view.created_at),
        "platform": "runway",
        "user_id": 7,
        "group": "default",
        "channel_id": 3,
        "quota": 160000,
        "properties": {"input": view.prompt},
    }
    result = view.video_url or view.reason
    return row | {"result_url": result} if result else row


def _flat_row(view: View) -> Json:
    return _row(view) | {"result_url": view.video_url or view.reason or ""}


def _runway(view: View) -> Json:
    body: Json = {"id": view.id, "status": _RUNWAY[view.phase], "createdAt": _zulu(view.created_at)}
    if view.phase == "running":
        body["progress"] = view.progress / 100
    if view.phase == "succeeded":
        body["output"] = [] if view.video_url is None else [view.video_url]
    if view.phase == "failed":
        body |= {"failure": view.reason, "failureCode": FAILURE_CODE}
    return body


def _blog(view: View) -> Json:
    body: Json = {"id": view.id, "status": _RUNWAY[view.phase].lower()}
    if view.video_url is not None:
        body["output"] = [view.video_url]
    return body | {"error": view.reason} if view.reason else body


def _envelope(data: Json, msg: str = "成功") -> Json:
    return {"code": 200, "msg": msg, "data": data, "exec_time": 0}


def _generic(view: View) -> Json:
    body: Json = {"task_id": view.id, "status": _GENERIC[view.phase], "progress": view.progress}
    if view.video_url is not None:
        body["result"] = {"video_url": view.video_url}
    return body | {"error": view.reason} if view.reason else body


def _kie(view: View) -> Json:
    if view.reason is not None:
        return {"code": 400, "msg": view.reason, "data": {"task_id": view.id}}
    data = {"task_id": view.id, "video_id": view.id, "video_url": view.video_url, "image_url": view.poster}
    return {"code": 200, "msg": "All generated successfully.", "data": data}


def _integers(view: View) -> Json:
    numbers = ("status", "point", "refund", "create_time", "update_time")
    return {key: int(value) if key in numbers and value.isdigit() else value for key, value in flat(view).items()}


def flat(view: View) -> Json:
    """5.1a: the bare task object, without `state`."""
    body = _reverse(view)
    del body["state"]
    return body


def _submitted(view: View) -> Json:
    data = dict.fromkeys(("prompt_en", "video_url", "raw_video_url", "poster", "last_frame", "msg"))
    zero = {"state": "", "status": "0", "prompt": "", "create_time": "0", "update_time": "0"}
    return _envelope({"task_id": view.id, **zero, **data})


SUBMIT: Final[Mapping[str, Callable[[View], Json]]] = {
    "2a": _submitted,
    "2b": lambda view: {"code": 200, "msg": "成功", "data": {"task_id": view.id}, "exec_time": 0.67573},
    "2c": lambda view: {"code": 200, "message": "", "msg": "success", "data": {"task_id": view.id}},
}
LOOKUP: Final[Mapping[str, Callable[[View], Json]]] = {
    "3a": lambda view: _envelope(_reverse(view)),
    "3b": lambda view: _wrapped(_row(view)),
    "3b-historic": _historic,
    "3b-new": lambda view: _wrapped(_newer_row(view)),
    "3c": _flat_row,
    "id-only": lambda view: {"task_id": view.id},
    "4.4a": lambda view: _wrapped(_row(view)),
    "4.4b": _runway,
    "blog": _blog,
}
_CALLBACK: Final[Mapping[str, Callable[[View], Json]]] = {
    "flat": flat,
    "enveloped": lambda view: _envelope(_reverse(view)),
    "generic": _generic,
    "3b": lambda view: _wrapped(_row(view)),
    "3c": _flat_row,
    "4.4b": _runway,
    "integers": _integers,
    "kie": _kie,
}


class Body(NamedTuple):
    """A callback's body as bytes, and the headers that go with it."""

    content: bytes
    headers: Mapping[str, str]


_JSON_TYPE: Final = {"content-type": "application/json"}


def callback(shape: str, view: View, bend: Callable[[Json], Json] | None = None) -> Body:
    """A callback's body; `bend` changes the object before it is written."""
    body = _CALLBACK.get(shape, flat)(view)
    if bend is not None:
        body = bend(body)
    if shape == "form":
        text = urlencode({key: value for key, value in body.items() if value is not None})
        return Body(text.encode(), {"content-type": "application/x-www-form-urlencoded"})
    content = orjson.dumps(body)
    if shape == "bom":
        return Body(b"\xef\xbb\xbf" + content, _JSON_TYPE)
    if shape == "text":
        return Body(content, {"content-type": "text/plain; charset=utf-8"})
    if shape == "gzip":
        return Body(gzip.compress(content, mtime=0), {**_JSON_TYPE, "content-encoding": "gzip"})
    return Body(content, _JSON_TYPE)


def _task_level(body: Json) -> Json:
    """The object that has the status: the body itself, or what its envelope holds."""
    inner = body.get("data")
    return inner if "status" not in body and isinstance(inner, dict) else body


def disagreeing(body: Json) -> Json:
    """The same with a `state` that contradicts its `status`."""
    level = _task_level(body)
    failed = str(level.get("status", "")).lower() in {"2", "failure", "failed"}
    level["state"] = "succeeded" if failed else "failed"
    return body


def anonymous(body: Json) -> Json:
    """The same without any id."""
    for level in (body, _task_level(body)):
        for name in ("task_id", "id", "taskId"):
            level.pop(name, None)
        if isinstance(level.get("data"), dict):
            level["data"].pop("id", None)
            level["data"].pop("task_id", None)
    return body
