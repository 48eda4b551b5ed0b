"""The kind `discord` against a webhook as strict as Discord's."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from receiver.destinations import KINDS
from receiver.wire import HttpResponse
from tests.kind_room import PAGE, POSTER, VIDEO, canned, delivered, event, failure, options_of, steps_of
from tests.platforms import served
from tests.platforms.discord import Discord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

KEYS = {"url": "https://discord.com/api/webhooks/1234567890/the-secret"}


@pytest.fixture
async def there() -> AsyncIterator[Discord]:
    """The platform."""
    async with served(Discord()) as platform:
        yield platform


def judged(status: int, document: Any, **headers: str) -> Any:
    """What an answer is taken for."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return canned(steps_of("discord", options_of("discord", KEYS), event()), HttpResponse(status, named, body))[0]


async def test_a_render_has_its_picture_and_buttons(there: Discord) -> None:
    """The title leads to the video too; whether it was saved is asked for."""
    assert (await delivered("discord", there.keys(), [event()])).kind == "ok"
    [shown] = await there.seen()
    assert (shown.links, shown.pictures) == ((VIDEO, VIDEO, PAGE), (POSTER,))
    for words in ("✅ Video ready", "a paper boat", "1 min 35 s", "runway/pro/video2video"):
        assert words in shown.text
    assert there.queries == [{"wait": "true", "with_components": "true"}]


async def test_a_failure_says_why(there: Discord) -> None:
    """In the upstream's words, as they came."""
    assert (await delivered("discord", there.keys(), [failure("*codec* [x](javascript:y)")])).kind == "ok"
    [shown] = await there.seen()
    assert (shown.links, shown.pictures) == ((PAGE, PAGE), ())
    assert "*codec* [x](javascript:y)" in shown.text


async def test_a_long_url_is_behind_the_title(there: Discord) -> None:
    """A button takes 512 characters; what is past 2,048 is left out."""
    long, longer = f"{VIDEO}?{'a' * 600}", f"{VIDEO}?{'a' * 2100}"
    assert (await delivered("discord", there.keys(), [event(video_url=long)])).kind == "ok"
    assert (await delivered("discord", there.keys(), [event(video_url=longer, poster=longer)], home=None)).kind == "ok"
    first, second = await there.seen(2)
    assert first.links == (long, PAGE)
    assert (second.links, second.pictures) == ((), ())


async def test_all_texts_together_are_six_thousand(there: Discord) -> None:
    """The description gives way to the facts."""
    given = [event(prompt="x" * 9000, failure_code="c" * 9000)]
    assert (await delivered("discord", there.keys(), given)).kind == "ok"
    [shown] = await there.seen()
    assert 4000 < shown.text.count("x") <= 4096
    assert shown.text.count("c") > 1000


async def test_threads(there: Discord) -> None:
    """One that is there, or in a forum a new one for each message."""
    there.is_forum = True
    bare = await delivered("discord", there.keys(), [event()])
    assert (bare.kind, bare.pause) == ("permanent", False)
    assert "220001" in bare.reason
    assert (await delivered("discord", there.keys(), [event()], thread_id="11")).kind == "ok"
    assert (await delivered("discord", there.keys(), [event()], thread_name="Renders")).kind == "ok"
    assert there.queries[0]["thread_id"] == "11"


async def test_a_webhook_that_is_gone_is_paused(there: Discord) -> None:
    """At once: answers of that kind add up to a ban."""
    there.script = [there.gone()]
    result = await delivered("discord", there.keys(), [event()])
    assert (result.kind, result.pause) == ("permanent", True)
    assert "Unknown Webhook (10015)" in result.reason


@pytest.mark.parametrize(
    ("status", "document", "kind", "pause"),
    [
        (200, {"id": "1"}, "ok", False),
        (204, b"", "ok", False),
        (400, {"message": "Invalid Form Body", "code": 50035}, "permanent", False),
        (400, {"message": "Invalid Webhook Token", "code": 50027}, "permanent", True),
        (400, b"<html>", "permanent", False),
        (401, {"message": "401: Unauthorized", "code": 0}, "permanent", True),
        (404, {"message": "Unknown Channel", "code": 10003}, "permanent", True),
        (404, {"message": 7, "code": [1]}, "permanent", True),
        (502, b"", "transient", False),
    ],
)
def test_each_answer_means_what_discord_says(status: int, document: Any, kind: str, pause: bool) -> None:
    """Its code decides."""
    result = judged(status, document)
    assert (result.kind, result.pause) == (kind, pause)


@pytest.mark.parametrize(
    ("document", "headers", "wait"),
    [
        ({"retry_after": 0.65, "global": False}, {"retry_after": "1", "x_ratelimit_reset_after": "0.650"}, 1.0),
        ({"retry_after": 64.57, "global": True}, {}, 64.57),
        (b"error code: 1015", {"retry_after": "300"}, 300.0),
        ({"retry_after": "soon"}, {"x_ratelimit_reset_after": "12.5"}, 12.5),
        ({"retry_after": -1}, {"x_ratelimit_reset_after": "-3"}, None),
        ({"retry_after": True}, {"x_ratelimit_reset_after": "1e9"}, None),
        ({"retry_after": 1e300}, {}, 86_400.0),
    ],
)
def test_the_longest_wait_that_it_names_counts(document: Any, headers: dict[str, str], wait: float | None) -> None:
    """In the body, in Retry-After, in X-RateLimit-Reset-After; the CDN before it has the header alone."""
    result = judged(429, document, **headers)
    assert result.kind == "throttled"
    assert result.retry_after == (None if wait is None else timedelta(seconds=wait))


@pytest.mark.parametrize(("status", "kind"), [(200, "ok"), (400, "permanent"), (404, "permanent"), (502, "transient")])
def test_a_spent_bucket_holds_the_destination(status: int, kind: str) -> None:
    """`X-RateLimit-Remaining: 0` says that the next would be refused, whatever became of this one."""
    document = {"code": 10015, "message": "Unknown Webhook"} if status == 404 else {}
    spent = judged(status, document, x_ratelimit_remaining="0", x_ratelimit_reset_after="0.5")
    assert (spent.kind, spent.hold, spent.pause) == (kind, timedelta(seconds=0.5), status == 404)
    assert judged(status, document, x_ratelimit_remaining="1", x_ratelimit_reset_after="0.5").hold is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"thread_id": "1", "thread_name": "x"}, "not both"),
        ({"thread_id": "my thread"}, "the id of a thread is wanted"),
        ({"thread_name": ""}, "at least 1 character"),
        ({"limits": {"texts": 5}}, "did you mean text?"),
        ({"limits": {"x": 5}}, "there are title, text"),
        ({"limits": {"text": 0}}, "greater than or equal to 1"),
        ({"limits": {"text": "5"}}, "valid integer"),
    ],
)
def test_wrong_options_are_told(more: dict[str, Any], words: str) -> None:
    """When the configuration is read."""
    with pytest.raises(ValidationError, match=words.replace("?", r"\?")):
        options_of("discord", KEYS, **more)


def test_the_secret_is_the_last_part_of_the_url() -> None:
    """Its query, too, is masked."""
    request = next(steps_of("discord", options_of("discord", {"url": f"{KEYS['url']}?thread_id=5"}), event()))
    assert request.url.startswith(f"{KEYS['url']}?thread_id=5&wait=true&with_components=true")
    masked = KINDS["discord"].masked(request).url
    assert masked.startswith("https://discord.com/api/webhooks/1234567890/***?thread_id=***")
    assert "secret" not in masked
