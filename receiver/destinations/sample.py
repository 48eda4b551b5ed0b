"""The sample event that `receiver destinations test` sends and `preview` prints: one for every kind, pure.

It is a success with every member of contract section 5, so that a consumer's parser and a chat's template meet all they
can meet. It says of itself that it is a test, in `msg` and in `metadata`, and stands for no task: no table has its ids.
"""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec

from receiver.ids import TaskId
from receiver.records import Event

if TYPE_CHECKING:
    from datetime import datetime

    from receiver.ids import EventId

MSG: Final = "This is a test of the destination: no task was rendered."
_UPSTREAM_ID: Final = "5a3b1e00-7e57-4000-8000-000000000000"
_PROMPT: Final = "a paper boat on a puddle, in the style of an ink drawing"
_RENDERS: Final = f"https://renders.example.com/{_UPSTREAM_ID}"
_TOOK: Final = timedelta(seconds=95)
_ACCEPTED_IN: Final = timedelta(milliseconds=412)


def sample_event(*, event_id: EventId, now: datetime) -> Event:
    """A `task.succeeded` that ended `now`; its task bears the event's own 26 characters, so the same id gives the same.

    Raises:
        ValueError: `now` is naive.
    """
    if now.utcoffset() is None:
        raise ValueError(f"{now!r} has no time zone: times here are aware")
    task_id = TaskId(f"tsk_{event_id.removeprefix('evt_')}")
    data = msgspec.json.encode(_data(task_id, now.astimezone(UTC))).decode()
    return Event(id=event_id, task_id=task_id, type="task.succeeded", created_at=now, data_json=data)


def _data(task_id: TaskId, finished_at: datetime) -> dict[str, Any]:
    created_at = finished_at - _TOOK
    files = {
        "video_url": f"{_RENDERS}/video.mp4",
        "poster": f"{_RENDERS}/poster.png",
        "last_frame": f"{_RENDERS}/last.png",
    }
    return {
        "task_id": task_id,
        "upstream_id": _UPSTREAM_ID,
        "route": "runway/pro/video2video",
        "state": "succeeded",
        "code": 200,
        "msg": MSG,
        "via": "callback",
        "confirmed": False,
        "recovered": False,
        "prompt": _PROMPT,
        **files,
        "failure": None,
        "failure_code": None,
        "metadata": {"sample": True},
        "progress": 100,
        "artifacts": [],
        "created_at": _stamp(created_at),
        "submitted_at": _stamp(created_at + _ACCEPTED_IN),
        "finished_at": _stamp(finished_at),
        "envelope": {"code": 200, "msg": MSG, "data": _upstream_object(files, created_at, finished_at)},
    }


def _upstream_object(files: dict[str, str], created_at: datetime, finished_at: datetime) -> dict[str, Any]:
    """As the pro route's callback writes it (upstream.md 5.1a)."""
    return {
        "task_id": _UPSTREAM_ID,
        "state": "succeeded",
        "status": "3",
        "prompt": _PROMPT,
        "prompt_en": _PROMPT,
        **files,
        "msg": MSG,
        "point": "0",
        "refund": "0",
        "create_time": str(int(created_at.timestamp())),
        "update_time": str(int(finished_at.timestamp())),
    }


def _stamp(at: datetime) -> str:
    return f"{at.isoformat(timespec='milliseconds')[:23]}Z"
