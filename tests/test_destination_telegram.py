"""The kind `telegram` against a Bot API that is as strict as the real one."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from receiver.destinations import KINDS
from receiver.destinations.telegram import TelegramOptions
from receiver.wire import HttpResponse
from tests.kind_room import PAGE, POSTER, VIDEO, answer, canned, delivered, event, failure, options_of, steps_of
from tests.platforms import served
from tests.platforms.telegram import TOKEN, Telegram

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from receiver.destinations.base import Steps

pytestmark = pytest.mark.anyio

KEYS = {"token": TOKEN, "chat_id": -100}


@pytest.fixture
async def there() -> AsyncIterator[Telegram]:
    """The platform."""
    async with served(Telegram()) as platform:
        yield platform


def steps(**more: Any) -> Steps:
    """The flow of a success."""
    return steps_of("telegram", options_of("telegram", KEYS, **more), event())


async def test_a_render_is_a_video_with_buttons(there: Telegram) -> None:
    """By its URL, with the words as its caption."""
    assert (await delivered("telegram", there.keys(), [event()])).kind == "ok"
    [shown] = await there.seen()
    assert there.methods == ["sendVideo"]
    assert shown.pictures == (VIDEO,)
    assert shown.links == (VIDEO, PAGE)
    assert "Video ready" in shown.text
    assert "a paper boat" in shown.text
    assert "1 min 35 s" in shown.text


async def test_a_poster_alone_is_a_photo_and_nothing_at_all_a_message(there: Telegram) -> None:
    """What there is is shown."""
    assert (await delivered("telegram", there.keys(), [event(video_url=None)])).kind == "ok"
    assert (await delivered("telegram", there.keys(), [failure()])).kind == "ok"
    photo, message = await there.seen(2)
    assert there.methods == ["sendPhoto", "sendMessage"]
    assert photo.pictures == (POSTER,)
    assert "the input is too long" in message.text


@pytest.mark.parametrize(
    "words",
    [
        "failed to get HTTP URL content",
        "wrong file identifier/HTTP URL specified",
        "wrong type of the web page content",
        "WEBPAGE_CURL_FAILED",
    ],
)
async def test_a_video_it_cannot_fetch_is_a_message_with_a_link(there: Telegram, words: str) -> None:
    """At once, in the same attempt; nothing is downloaded here."""
    there.unfetchable = words
    assert (await delivered("telegram", there.keys(), [event(prompt="x" * 3000)])).kind == "ok"
    assert there.methods == ["sendVideo", "sendMessage"]
    [shown] = there.shown
    assert VIDEO in shown.links
    assert "x" * 3000 in shown.text  # a message has more room than a caption


async def test_a_group_that_became_a_supergroup_is_followed(there: Telegram) -> None:
    """Its new id is in the refusal, and then in the reason, for whoever keeps the configuration."""
    there.script = [there.migrated(-1009)]
    there.chat_id = "-1009"
    result = await delivered("telegram", there.keys() | {"chat_id": -5}, [event()])
    assert result.kind == "ok"
    assert "set chat_id = -1009" in result.reason
    assert [json.loads(one.body)["chat_id"] for one in there.asked] == [-5, -1009]


async def test_both_in_one_attempt(there: Telegram) -> None:
    """It moved, and it cannot fetch: no more requests than the kind says."""
    there.script, there.chat_id = [there.migrated(-1009)], "-1009"
    there.unfetchable = "failed to get HTTP URL content"
    assert (await delivered("telegram", there.keys() | {"chat_id": -5}, [event()])).kind == "ok"
    assert len(there.asked) == KINDS["telegram"].steps == 3


async def test_a_topic_and_another_server(there: Telegram) -> None:
    """`thread_id` goes along; `api_base` may have a path, and a slash at its end."""
    assert (
        await delivered("telegram", there.keys() | {"api_base": f"{there.base}/"}, [event()], thread_id=7)
    ).kind == "ok"
    assert json.loads(there.asked[0].body)["message_thread_id"] == 7


async def test_a_button_to_localhost_is_left_out(there: Telegram) -> None:
    """It would make the Bot API refuse all of it."""
    result = await delivered("telegram", there.keys(), [event(video_url=None)], home="http://localhost:8000")
    assert result.kind == "ok"
    assert there.shown[0].links == ()


async def test_own_words_may_use_its_markup(there: Telegram) -> None:
    """The operator's tags are tags; the values' are text; a cut closes what it left open."""
    own = "<i>{{ prompt }}</i> <a href='{{ video_url }}'>see</a>"
    assert (await delivered("telegram", there.keys(), [event(prompt="<b>&" * 900)], text=own)).kind == "ok"
    [shown] = there.shown
    assert "<b>&<b>&" in shown.text
    assert shown.links[0] == VIDEO


async def test_what_a_cut_leaves_open_is_closed(there: Telegram) -> None:
    """Where the operator's own words are too long, they are cut, and it is HTML still."""
    own = "<i>a</i> <b>b <a href='{{ video_url }}'>" + "x" * 2000 + "</a></b>"
    assert (await delivered("telegram", there.keys(), [event()], text=own)).kind == "ok"
    assert "a b xxx" in there.shown[0].text


def test_an_end_without_a_beginning_is_the_operators_own() -> None:
    """It goes out as it was written, and Telegram says what is wrong with it."""
    request = next(steps(text="</i>" + "x" * 2000))
    assert "</i>xxx" in json.loads(request.body)["caption"]


async def test_a_summary_is_a_message(there: Telegram) -> None:
    """One for many."""
    assert (await delivered("telegram", there.keys(), [event(), failure(), event()])).kind == "ok"
    [shown] = there.shown
    assert "3 events" in shown.text
    assert "❌ Render failed 1" in shown.text


JUDGED: list[tuple[HttpResponse, str, bool, str]] = [
    (answer({"ok": True, "result": {}}), "ok", False, "it answered 200"),
    (answer({"ok": False, "error_code": 401, "description": "Unauthorized"}, 401), "permanent", True, "Unauthorized"),
    (answer({"ok": False, "error_code": 404, "description": "Not Found"}, 404), "permanent", True, "Not Found"),
    (
        answer({"ok": False, "error_code": 403, "description": "Forbidden: bot was kicked"}, 403),
        "permanent",
        True,
        "kick",
    ),
    (
        answer({"ok": False, "error_code": 400, "description": "Bad Request: chat not found"}, 400),
        "permanent",
        True,
        "400",
    ),
    (
        answer({"ok": False, "error_code": 400, "description": "Bad Request: can't parse"}, 400),
        "permanent",
        False,
        "pars",
    ),
    (answer({"ok": False, "error_code": 400, "description": "ok:false in a 200"}, 200), "permanent", False, "400"),
    (answer({"ok": False, "error_code": 500, "description": "Internal"}, 500), "transient", False, "500"),
    (answer({"ok": False}, 200), "transient", False, "not as Telegram does"),
    (answer({"ok": True}, 502), "transient", False, "502"),
    (HttpResponse(502, {}, b"<html>"), "transient", False, "502"),
    (HttpResponse(200, {}, b"<html>"), "transient", False, "not as Telegram does"),
    (HttpResponse(200, {}, b"[]"), "transient", False, "not as Telegram does"),
]


@pytest.mark.parametrize(("response", "kind", "pause", "words"), JUDGED)
def test_how_an_answer_is_judged(response: HttpResponse, kind: str, pause: bool, words: str) -> None:
    """By its own word; where nothing can be written the destination is paused."""
    result, _ = canned(steps(), response)
    assert (result.kind, result.pause) == (kind, pause), result
    assert words in result.reason


def test_the_wait_it_names_is_kept() -> None:
    """In seconds, in the body."""
    result, _ = canned(steps(), answer(Telegram().throttled(13).body, 429))
    assert (result.kind, result.retry_after) == ("throttled", timedelta(seconds=13))
    odd = answer({"ok": False, "error_code": 429, "description": "x", "parameters": []}, 429)
    assert canned(steps(), odd)[0].retry_after is None


@pytest.mark.parametrize("wrong", ["", "AAHdq", "bot110201543:AAHdq", "110201543:AAH dq", "110201543:AAHdq/x", "1:"])
def test_a_token_that_is_none(wrong: str) -> None:
    """It is said at start, and not repeated."""
    with pytest.raises(ValidationError, match="no bot token") as caught:
        options_of("telegram", KEYS, token=wrong)
    assert not wrong or wrong not in str(caught.value)


@pytest.mark.parametrize("wrong", ["", "name", "@", "@1x", 1.5, True, "-", "12x"])
def test_a_chat_that_is_none(wrong: Any) -> None:
    """A number or an @name."""
    with pytest.raises(ValidationError):
        options_of("telegram", KEYS, chat_id=wrong)


@pytest.mark.parametrize("good", [-1001234567890, 42, "-100123", "@channel_1"])
def test_a_chat(good: Any) -> None:
    """As it came."""
    options = options_of("telegram", KEYS, chat_id=good)
    assert isinstance(options, TelegramOptions)
    assert options.chat_id == good
    assert options.api_base == "https://api.telegram.org"


@pytest.mark.parametrize(
    "more", [{"api_base": "https://x/?a=b"}, {"api_base": "x"}, {"thread_id": 0}, {"thread_id": True}]
)
def test_other_mistakes(more: dict[str, Any]) -> None:
    """Said at start."""
    with pytest.raises(ValidationError):
        options_of("telegram", KEYS, **more)


def test_what_is_shown_of_a_request_hides_the_token() -> None:
    """The method is left to see."""
    request = next(steps())
    assert TOKEN in request.url
    assert KINDS["telegram"].masked(request).url == "https://api.telegram.org/bot***/sendVideo"
