"""The kind `wecom` against a robot that is as strict as its documentation recommends to be with it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from receiver.destinations import KINDS
from receiver.wire import HttpResponse
from tests.kind_room import PAGE, POSTER, VIDEO, answer, canned, delivered, event, failure, options_of, steps_of
from tests.platforms import served
from tests.platforms.wecom import WeCom

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

KEYS = {"url": "https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=the-secret"}


@pytest.fixture
async def there() -> AsyncIterator[WeCom]:
    """The platform."""
    async with served(WeCom()) as platform:
        yield platform


async def test_a_render_is_a_card_with_its_picture(there: WeCom) -> None:
    """It leads to the video, and has a line for the task's page."""
    assert (await delivered("wecom", there.keys(), [event()])).kind == "ok"
    [shown] = await there.seen()
    assert (shown.links, shown.pictures) == ((VIDEO, PAGE, VIDEO), (POSTER,))
    assert "a paper boat" in shown.text
    assert "1 min 35 s" in shown.text


async def test_a_failure_is_a_card_without_one(there: WeCom) -> None:
    """It leads to the task's page, and says why."""
    assert (await delivered("wecom", there.keys(), [failure()])).kind == "ok"
    [shown] = await there.seen()
    assert shown.links == (PAGE, PAGE)
    assert "the input is too long" in shown.text


async def test_where_nothing_can_be_linked_it_is_text(there: WeCom) -> None:
    """A card must lead somewhere; text has 2,048 bytes, not characters."""
    assert (await delivered("wecom", there.keys(), [failure("漢" * 5000)], home=None)).kind == "ok"
    [shown] = await there.seen()
    assert shown.text.startswith("❌ Render failed")
    assert 1900 < len(shown.text.encode()) <= 2048
    assert "Route: runway/pro/video2video" in shown.text


async def test_a_summary_is_text(there: WeCom) -> None:
    """A card has no room for it."""
    assert (await delivered("wecom", there.keys(), [event(), failure(), event()])).kind == "ok"
    [shown] = await there.seen()
    assert "3 events" in shown.text
    assert "Open the list: https://hooks.example.com/" in shown.text


async def test_a_card_with_next_to_nothing_to_say(there: WeCom) -> None:
    """With a picture or without one."""
    for poster in (POSTER, None):
        assert (await delivered("wecom", there.keys(), [event(prompt=None, poster=poster)])).kind == "ok"
    assert there.refused == []


def test_nobody_is_called() -> None:
    """<@name> would."""
    request = next(steps_of("wecom", options_of("wecom", KEYS), failure("<@all> x"), home=None))
    assert "<@all>" not in json.loads(request.body)["text"]["content"]


@pytest.mark.parametrize(
    ("response", "kind", "pause", "wait"),
    [
        (answer({"errcode": 0, "errmsg": "ok"}), "ok", False, None),
        (answer({"errcode": 45009, "errmsg": "api freq out of limit"}), "throttled", False, timedelta(minutes=1)),
        (answer({"errcode": 45033, "errmsg": "concurrent"}), "throttled", False, timedelta(seconds=5)),
        (answer({"errcode": 93000, "errmsg": "invalid webhook url"}), "permanent", True, None),
        (answer({"errcode": 40058, "errmsg": "invalid Request Parameter"}), "permanent", False, None),
        (answer({"errcode": 77777, "errmsg": "new"}), "transient", False, None),
        (HttpResponse(500, {}, b""), "transient", False, None),
    ],
)
def test_how_an_answer_is_judged(response: HttpResponse, kind: str, pause: bool, wait: timedelta | None) -> None:
    """By its `errcode`, in a 200."""
    result, _ = canned(steps_of("wecom", options_of("wecom", KEYS), event()), response)
    assert (result.kind, result.pause, result.retry_after) == (kind, pause, wait), result


def test_mistakes_are_said_at_start() -> None:
    """All of them."""
    with pytest.raises(ValidationError):
        options_of("wecom", {"url": "qyapi.weixin.qq.com"})


def test_what_is_shown_of_a_request_hides_the_key() -> None:
    """It is in the query."""
    request = next(steps_of("wecom", options_of("wecom", KEYS), event()))
    assert KINDS["wecom"].masked(request).url == "https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=***"
