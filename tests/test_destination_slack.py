"""The kind `slack` against a webhook as strict as Slack's, and against the models of Slack's own SDK."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from pydantic import ValidationError
from slack_sdk.models.blocks import Block

from receiver.destinations import KINDS
from receiver.ids import TaskId
from receiver.retry import Result
from receiver.wire import HttpResponse
from tests.kind_room import PAGE, POSTER, VIDEO, canned, delivered, event, failure, options_of, steps_of
from tests.platforms import Said, served
from tests.platforms.slack import Slack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from receiver.records import Event

pytestmark = pytest.mark.anyio

KEYS = {"url": "https://hooks.slack.com/services/T0/B0/the-secret"}


@pytest.fixture
async def there() -> AsyncIterator[Slack]:
    """The platform."""
    async with served(Slack()) as platform:
        yield platform


def message(*events: Event, **more: Any) -> dict[str, Any]:
    """What is posted first."""
    found: dict[str, Any] = json.loads(next(steps_of("slack", options_of("slack", KEYS, **more), *events)).body)
    return found


async def test_a_render_has_its_picture_and_buttons(there: Slack) -> None:
    """The words, how long it took, the route; the poster; a way to the video and to the task's page."""
    assert (await delivered("slack", there.keys(), [event()])).kind == "ok"
    [shown] = await there.seen()
    assert (shown.links, shown.pictures) == ((VIDEO, PAGE), (POSTER,))
    for words in ("✅ Video ready", "a paper boat", "1 min 35 s", "runway/pro/video2video", "Watch", "Open task"):
        assert words in shown.text


async def test_a_failure_says_why(there: Slack) -> None:
    """In the upstream's words, without a picture."""
    assert (await delivered("slack", there.keys(), [failure("codec <b> & co")])).kind == "ok"
    [shown] = await there.seen()
    assert (shown.links, shown.pictures) == ((PAGE,), ())
    assert "❌ Render failed" in shown.text
    assert "codec <b> & co" in shown.text


async def test_an_event_that_says_nothing(there: Slack) -> None:
    """A header alone is a message."""
    bare = replace(event(), data_json="{}", task_id=TaskId(event().id))
    assert (await delivered("slack", there.keys(), [bare], home=None)).kind == "ok"
    [shown] = await there.seen()
    assert set(shown.text.split("\n")) == {"✅ Video ready"}


def test_a_template_that_does_not_suit_an_event_gives_way() -> None:
    """To the kind's own words: the message arrives."""
    own: dict[str, Any] = {"title": "{{ seconds / progress }}", "text": "{{ metadata.n + 1 }}"}
    given = message(event(progress=0), **own)
    assert (given["text"], given["blocks"][1]["text"]["text"]) == ("✅ Video ready", "a paper boat")
    assert message(event(progress=5, metadata={"n": 1}), **own)["text"] == "19.0"


async def test_a_picture_that_slack_cannot_fetch_is_left_out(there: Slack) -> None:
    """The same message at once, without it; the second answer counts."""
    there.fetches_pictures = False
    assert (await delivered("slack", there.keys(), [event()])).kind == "ok"
    assert len(there.asked) == KINDS["slack"].steps == 2
    [shown] = there.shown
    assert (shown.links, shown.pictures) == ((VIDEO, PAGE), ())
    there.script = [Said(400, b"invalid_blocks"), there.throttled(3)]
    result = await delivered("slack", there.keys(), [event()])
    assert (result.kind, result.retry_after) == ("throttled", timedelta(seconds=3))


async def test_invalid_blocks_without_a_picture_are_not_sent_again(there: Slack) -> None:
    """They would be as invalid."""
    there.script = [Said(400, b"invalid_blocks")]
    result = await delivered("slack", there.keys(), [failure()])
    assert (result.kind, result.pause, len(there.asked)) == ("permanent", False, 1)
    assert "invalid_blocks" in result.reason


@pytest.mark.parametrize(
    ("status", "word", "kind", "pause"),
    [
        (200, "ok", "ok", False),
        (400, "invalid_payload", "permanent", False),
        (400, "user_not_found", "permanent", True),
        (400, "a word that is new", "permanent", False),
        (403, "action_prohibited", "permanent", True),
        (403, "invalid_token", "permanent", True),
        (404, "channel_not_found", "permanent", True),
        (404, "no_service", "permanent", True),
        (410, "channel_is_archived", "permanent", True),
        (429, "rate_limited", "throttled", False),
        (500, "rollup_error", "transient", False),
        (503, "", "throttled", False),
        (302, "", "transient", False),
    ],
)
def test_each_answer_means_what_slack_says(status: int, word: str, kind: str, pause: bool) -> None:
    """Its word decides whether the webhook itself is no longer good."""
    said = HttpResponse(status, {}, word.encode())
    result, _ = canned(steps_of("slack", options_of("slack", KEYS), failure()), said)
    assert (result.kind, result.pause) == (kind, pause)
    assert str(status) in result.reason


@pytest.mark.parametrize("events", [[event()], [failure()], [event(prompt="<!channel> & x" * 9000)], [event()] * 90])
def test_the_sdk_takes_every_block(events: list[Event]) -> None:
    """slack_sdk's models read them without leaving anything out, and find nothing wrong with them."""
    given = message(*events)["blocks"]
    read = Block.parse_all(given)
    for block, raw in zip(read, given, strict=True):
        block.validate_json()
        assert block.to_dict() == raw


def test_own_words_are_markup_and_values_are_not() -> None:
    """The operator's `*` is bold and his link a link; a prompt's is a `&lt;`."""
    given = message(event(prompt="<!here> *b*"), title="{{ route }}", text="*Hi* <{{ video_url }}|it> {{ prompt }}")
    assert given["text"] == "runway/pro/video2video"
    assert given["blocks"][1]["text"]["text"] == f"*Hi* <{VIDEO}|it> &lt;!here&gt; *b*"


def test_the_secret_is_the_last_part_of_the_url() -> None:
    """The rest says which workspace it is."""
    request = next(steps_of("slack", options_of("slack", KEYS), event()))
    assert KINDS["slack"].masked(request).url == "https://hooks.slack.com/services/T0/B0/***"


@pytest.mark.parametrize("url", ["hooks.slack.com/services/x", "https://u:p@x.example/y", "ftp://x/SEKRIT", "https://"])
def test_a_url_that_is_none_is_told_without_it(url: str) -> None:
    """When the configuration is read."""
    with pytest.raises(ValidationError) as caught:
        options_of("slack", {"url": url})
    assert "SEKRIT" not in str(caught.value)


def test_a_result_is_a_result() -> None:
    """Slack's own `ok` is not repeated in the reason."""
    result, _ = canned(steps_of("slack", options_of("slack", KEYS), event()), HttpResponse(200, {}, b"ok"))
    assert result == Result("ok", "it answered 200")
