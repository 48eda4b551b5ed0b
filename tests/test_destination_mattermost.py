"""The kind `mattermost` against a webhook as strict as the server's."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from receiver.destinations import KINDS
from receiver.wire import HttpResponse
from tests.kind_room import PAGE, POSTER, VIDEO, canned, delivered, event, failure, options_of, steps_of
from tests.platforms import served
from tests.platforms.mattermost import Mattermost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

KEYS = {"url": "https://chat.example.com/hooks/the-secret"}


@pytest.fixture
async def there() -> AsyncIterator[Mattermost]:
    """The platform."""
    async with served(Mattermost()) as platform:
        yield platform


async def test_a_render_has_its_picture_and_links(there: Mattermost) -> None:
    """The title leads to the video; the links stand below the text."""
    assert (await delivered("mattermost", there.keys(), [event()])).kind == "ok"
    [shown] = await there.seen()
    assert (shown.links, shown.pictures) == ((VIDEO, VIDEO, PAGE), (POSTER,))
    for words in ("✅ Video ready", "a paper boat", "1 min 35 s", "runway/pro/video2video", "Watch", "Open task"):
        assert words in shown.text


async def test_a_failure_says_why_and_calls_nobody(there: Mattermost) -> None:
    """A mention is broken by an invisible character."""
    assert (await delivered("mattermost", there.keys(), [failure("@channel :tada: $$x$$ *b*")])).kind == "ok"
    [shown] = await there.seen()
    assert shown.pings == ()
    assert "@\u200bchannel :tada: $$x$$ *b*" in shown.text


async def test_nothing_to_say_and_nowhere_to_go(there: Mattermost) -> None:
    """An attachment without a text is whole all the same."""
    bare = event(prompt=None, video_url=None, poster=None)
    assert (await delivered("mattermost", there.keys(), [bare], home=None)).kind == "ok"
    assert len(await there.seen()) == 1


def said(status: int, document: Any, **headers: str) -> Any:
    """What an answer is taken for."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    steps = steps_of("mattermost", options_of("mattermost", KEYS), event())
    return canned(steps, HttpResponse(status, {k.replace("_", "-"): v for k, v in headers.items()}, body))[0]


@pytest.mark.parametrize(
    ("status", "document", "kind", "pause"),
    [
        (200, b"ok", "ok", False),
        (400, {"id": "web.incoming_webhook.invalid.app_error"}, "permanent", True),
        (400, {"id": "web.incoming_webhook.parse.app_error"}, "permanent", False),
        (400, {"id": 7}, "permanent", False),
        (403, {"id": "web.incoming_webhook.permissions.app_error"}, "permanent", True),
        (404, {"id": "web.incoming_webhook.channel.app_error"}, "permanent", True),
        (500, {"id": "app.post.save.app_error"}, "transient", False),
        (501, {"id": "web.incoming_webhook.disabled.app_error"}, "permanent", True),
    ],
)
def test_each_answer_means_what_the_server_says(status: int, document: Any, kind: str, pause: bool) -> None:
    """Its word tells a webhook that is gone from a message that is wrong."""
    result = said(status, document)
    assert (result.kind, result.pause) == (kind, pause)


def test_a_throttled_one_waits() -> None:
    """As long as the server's limiter says."""
    assert said(429, b"limit exceeded", retry_after="4").retry_after == timedelta(seconds=4)


def test_the_secret_is_the_last_part_of_the_url() -> None:
    """The rest is where the server is."""
    request = next(steps_of("mattermost", options_of("mattermost", KEYS), event()))
    assert KINDS["mattermost"].masked(request).url == "https://chat.example.com/hooks/***"
