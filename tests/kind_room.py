"""What the tests of a chat kind share: an event, its options, and a flow driven to its end over real sockets."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from receiver import app
from receiver.destinations import KINDS
from receiver.egress import Egress
from receiver.ids import EventId, TaskId
from receiver.records import Event
from receiver.wire import HttpRequest, HttpResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from receiver.destinations.base import Options, Steps
    from receiver.retry import Result

HOME = "https://hooks.example.com"
VIDEO = "https://cdn.example.com/render.mp4"
POSTER = "https://cdn.example.com/poster.png"
TASK = TaskId("tsk_01kg9q8y0000000000000000zz")
PAGE = f"{HOME}/tasks/{TASK}"


def event(kind: str = "task.succeeded", **data: Any) -> Event:
    """A success with a video and a poster, unless `data` says otherwise."""
    base: dict[str, Any] = {
        "task_id": TASK,
        "route": "runway/pro/video2video",
        "state": kind.removeprefix("task."),
        "prompt": "a paper boat",
        "video_url": VIDEO,
        "poster": POSTER,
        "created_at": "2026-01-31T12:00:00.000Z",
        "finished_at": "2026-01-31T12:01:35.000Z",
    }
    return Event(EventId("evt_01kg9q8y0000000000000000zz"), TASK, kind, app.clock(), json.dumps(base | data))


def failure(words: str = "the input is too long") -> Event:
    """A failure with its reason, and neither video nor poster."""
    return event("task.failed", failure=words, video_url=None, poster=None)


def options_of(kind: str, keys: dict[str, Any], **more: Any) -> Options:
    """The kind's options, as the configuration makes them."""
    return KINDS[kind].options.model_validate({**keys, **more})


def steps_of(
    kind: str,
    options: Options,
    *events: Event,
    now: datetime | None = None,
    home: str | None = HOME,
) -> Steps:
    """The flow of one event, or of the summary of several."""
    chosen, at = KINDS[kind], now or app.clock()
    if len(events) == 1:
        return chosen.flow(events[0], options, now=at, home=home)
    assert chosen.summary is not None
    return chosen.summary(events, options, now=at, home=home)


def canned(steps: Steps, *answers: HttpResponse) -> tuple[Result, list[HttpRequest]]:
    """The result of a flow that is given these answers, and its requests; every answer is used."""
    requests = [next(steps)]
    for place, answer in enumerate(answers):
        try:
            requests.append(steps.send(answer))
        except StopIteration as done:
            assert place == len(answers) - 1, "an answer was left over"
            return done.value, requests
    raise AssertionError("the flow wants another answer")


def answer(document: Any, status: int = 200, **headers: str) -> HttpResponse:
    """A JSON answer."""
    return HttpResponse(status, headers, json.dumps(document).encode())


@asynccontextmanager
async def way_out() -> AsyncIterator[Egress]:
    """Egress, as the service has it."""
    egress = Egress(base_url="http://127.0.0.1:9", headers={})
    try:
        yield egress
    finally:
        await egress.aclose()


async def delivered(
    kind: str,
    keys: dict[str, Any],
    events: Sequence[Event],
    *,
    home: str | None = HOME,
    allow_private: bool = True,
    within: float = 5.0,
    **more: Any,
) -> Result:
    """How a flow ends that goes out for real."""
    steps = steps_of(kind, options_of(kind, keys, **more), *events, home=home)
    async with way_out() as egress:
        request, count = next(steps), 1
        while True:
            assert count <= KINDS[kind].steps
            response = await egress.deliver(request, timeout=within, allow_private=allow_private)
            try:
                request, count = steps.send(response), count + 1
            except StopIteration as done:
                result: Result = done.value
                return result
