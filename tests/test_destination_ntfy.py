"""The kind `ntfy` against a server that is as strict as the real one."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace
from pydantic import ValidationError

from receiver.destinations import KINDS
from receiver.ids import TaskId
from receiver.wire import HttpResponse
from tests.kind_room import PAGE, POSTER, VIDEO, answer, canned, delivered, event, failure, options_of, steps_of
from tests.platforms import served
from tests.platforms.ntfy import Ntfy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

KEYS = {"url": "https://ntfy.sh", "topic": "renders", "token": "tk_secret"}


@pytest.fixture
async def there() -> AsyncIterator[Ntfy]:
    """The platform."""
    async with served(Ntfy()) as platform:
        yield platform


async def test_a_render_is_a_push_message(there: Ntfy) -> None:
    """With the picture, and a button for each link; a tap leads to the video."""
    assert (await delivered("ntfy", there.keys(), [event()])).kind == "ok"
    [shown] = await there.seen()
    assert (shown.links, shown.pictures) == ((VIDEO, VIDEO, PAGE), (POSTER,))
    assert "a paper boat" in shown.text
    assert json.loads(there.asked[0].body)["priority"] == 3


async def test_a_failure_is_urgent(there: Ntfy) -> None:
    """And says why."""
    assert (await delivered("ntfy", there.keys(), [failure()])).kind == "ok"
    assert "the input is too long" in there.shown[0].text
    assert json.loads(there.asked[0].body)["priority"] == 4


async def test_four_kilobytes_are_the_most(there: Ntfy) -> None:
    """In bytes; more would become a file. Of the JSON around it, twice as many."""
    for prompt in ("漢" * 9000, '"' * 9000, "\\" * 9000):
        assert (await delivered("ntfy", there.keys(), [event(prompt=prompt)])).kind == "ok"
    sizes = [len(json.loads(one.body)["message"].encode()) for one in there.asked]
    assert all(3000 < size <= 4096 for size in sizes), sizes


async def test_a_wrong_token_is_heard_of(there: Ntfy) -> None:
    """Nothing else would come through, so the destination is paused."""
    result = await delivered("ntfy", there.keys(), [event()], token="tk_another")
    assert (result.kind, result.pause) == ("permanent", True)
    assert "forbidden" in result.reason


async def test_a_summary_is_one_message(there: Ntfy) -> None:
    """For many."""
    assert (await delivered("ntfy", there.keys(), [event(), failure()])).kind == "ok"
    assert "2 events" in there.shown[0].text


def test_an_empty_message_repeats_the_title() -> None:
    """The app would say "triggered"."""
    bare = event(prompt=None, route=None, created_at=None, video_url=None, poster=None)
    bare = replace(bare, task_id=TaskId(bare.id))  # it is about no task
    sent = json.loads(next(steps_of("ntfy", options_of("ntfy", KEYS), bare, home=None)).body)
    assert sent["message"] == sent["title"] == "✅ Video ready"
    assert sent.keys() == {"topic", "title", "priority", "message"}


def test_without_a_token_there_is_no_header() -> None:
    """A topic that everybody may write to."""
    request = next(steps_of("ntfy", options_of("ntfy", {"url": "https://ntfy.sh/", "topic": "t"}), event()))
    assert "authorization" not in request.headers
    assert request.url == "https://ntfy.sh/"


@pytest.mark.parametrize(
    ("response", "kind", "wait"),
    [
        (answer({"id": "x"}), "ok", None),
        (answer({"code": 42901, "error": "too many requests"}, 429), "throttled", timedelta(seconds=10)),
        (answer({"code": 42908, "error": "too many messages"}, 429), "throttled", timedelta(hours=1)),
        (answer({"code": 42901}, 429, **{"retry-after": "3"}), "throttled", timedelta(seconds=3)),
        (answer({"code": 42999, "error": "new"}, 429), "throttled", None),
        (HttpResponse(429, {}, b""), "throttled", None),
        (answer({"code": 40018, "error": "actions invalid"}, 400), "permanent", None),
        (answer({"code": 50001, "error": "internal"}, 500), "transient", None),
    ],
)
def test_how_an_answer_is_judged(response: HttpResponse, kind: str, wait: timedelta | None) -> None:
    """By its status, and the code in it."""
    result, _ = canned(steps_of("ntfy", options_of("ntfy", KEYS), event()), response)
    assert (result.kind, result.retry_after) == (kind, wait), result


@pytest.mark.parametrize(
    "more",
    [
        {"url": "https://ntfy.sh/?x=1"},
        {"url": "ntfy.sh"},
        {"topic": "a/b"},
        {"topic": ""},
        {"token": "tk x"},
        {"token": ""},
    ],
)
def test_mistakes_are_said_at_start(more: dict[str, object]) -> None:
    """All of them."""
    with pytest.raises(ValidationError):
        options_of("ntfy", KEYS, **more)


def test_what_is_shown_of_a_request_hides_the_token() -> None:
    """It is in a header."""
    shown = KINDS["ntfy"].masked(next(steps_of("ntfy", options_of("ntfy", KEYS), event())))
    assert shown.headers["authorization"] == "***"
