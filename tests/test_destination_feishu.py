"""The kind `feishu` against a bot that is as strict as the real one, signature included."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from receiver.destinations import KINDS
from receiver.destinations.codes import Codes
from receiver.destinations.feishu import escape
from receiver.wire import HttpResponse
from tests.kind_room import PAGE, VIDEO, answer, canned, delivered, event, failure, options_of, steps_of
from tests.platforms import served
from tests.platforms.feishu import SECRET, Feishu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

KEYS = {"url": "https://open.feishu.cn/open-apis/bot/v2/hook/the-secret", "secret": SECRET}


@pytest.fixture
async def there() -> AsyncIterator[Feishu]:
    """The platform."""
    async with served(Feishu()) as platform:
        yield platform


async def test_a_render_is_a_card(there: Feishu) -> None:
    """Green, with the words, the facts and two buttons; it could show no picture."""
    assert (await delivered("feishu", there.keys(), [event()])).kind == "ok"
    [shown] = await there.seen()
    assert shown.links == (VIDEO, PAGE)
    assert "a paper boat" in shown.text
    assert "runway/pro/video2video" in shown.text
    assert json.loads(there.asked[0].body)["card"]["header"]["template"] == "green"


async def test_a_failure_says_why(there: Feishu) -> None:
    """In red, in the upstream's words."""
    assert (await delivered("feishu", there.keys(), [failure()])).kind == "ok"
    assert "the input is too long" in there.shown[0].text
    assert json.loads(there.asked[0].body)["card"]["header"]["template"] == "red"


async def test_a_wrong_secret_is_heard_of(there: Feishu) -> None:
    """It says so in a 200; nothing else would come through, so the destination is paused."""
    result = await delivered("feishu", there.keys(), [event()], secret="another")
    assert (result.kind, result.pause) == ("permanent", True)
    assert "19021" in result.reason
    assert there.shown == []


async def test_twenty_kilobytes_are_the_most(there: Feishu) -> None:
    """In bytes, however they are written."""
    for prompt in ("漢" * 40_000, '"' * 40_000, "*" * 40_000):
        assert (await delivered("feishu", there.keys(), [event(prompt=prompt)])).kind == "ok"
    assert all(3_500 < len(one.body) <= 20_000 for one in there.asked)


async def test_a_summary_is_a_card_too(there: Feishu) -> None:
    """One for many."""
    assert (await delivered("feishu", there.keys(), [event(), failure(), event()])).kind == "ok"
    assert "3 events" in there.shown[0].text


def test_the_signature_is_that_of_the_documentation() -> None:
    r"""The key is the timestamp and the secret, the message is empty; computed by openssl.

    `printf '' | openssl dgst -sha256 -mac HMAC -macopt hexkey:(timestamp, \n, secret) -binary | base64`
    """
    now = datetime(2026, 1, 31, 12, 0, 5, 999_000, tzinfo=UTC)
    sent = json.loads(next(steps_of("feishu", options_of("feishu", KEYS), event(), now=now)).body)
    assert sent["timestamp"] == "1769860805"
    assert sent["sign"] == "sExKJcRkct+WwRinTqUEXU1jQ6yvVQHoNhUkzWgWfNI="


def test_without_a_secret_nothing_is_signed() -> None:
    """Where the bot checks none."""
    sent = json.loads(next(steps_of("feishu", options_of("feishu", {"url": KEYS["url"]}), event())).body)
    assert sent.keys() == {"msg_type", "card"}


def test_special_characters_go_by_their_numbers() -> None:
    """As its Markdown wants them."""
    assert escape("a*b <at>[x](y)&") == "a&#42;b &#60;at&#62;&#91;x&#93;&#40;y&#41;&#38;"


@pytest.mark.parametrize(
    ("response", "kind", "pause", "wait"),
    [
        (answer({"code": 0, "msg": "success"}), "ok", False, None),
        (answer({"StatusCode": 0, "StatusMessage": "success"}), "ok", False, None),
        (answer({"code": 11232, "msg": "frequency limited"}), "throttled", False, timedelta(minutes=1)),
        (answer({"code": 9499, "msg": "Bad Request"}), "permanent", False, None),
        (answer({"code": 19021, "msg": "sign match fail"}), "permanent", True, None),
        (answer({"code": 19022, "msg": "Ip Not Allowed"}), "permanent", True, None),
        (answer({"code": 19024, "msg": "Key Words Not Found"}), "permanent", True, None),
        (answer({"code": 77777, "msg": "new"}), "transient", False, None),
        (answer({"code": True}), "transient", False, None),
        (answer({}), "transient", False, None),
        (answer({"code": 0}, 500), "transient", False, None),
        (answer({"msg": "x"}, 429, **{"retry-after": "9"}), "throttled", False, timedelta(seconds=9)),
        (HttpResponse(200, {}, b"<html>"), "transient", False, None),
        (HttpResponse(404, {}, b""), "permanent", True, None),
    ],
)
def test_how_an_answer_is_judged(response: HttpResponse, kind: str, pause: bool, wait: timedelta | None) -> None:
    """By its `code`, in a 200; one that says none is no success."""
    result, _ = canned(steps_of("feishu", options_of("feishu", KEYS), event()), response)
    assert (result.kind, result.pause, result.retry_after) == (kind, pause, wait), result


def test_words_of_a_platform_are_short_and_on_one_line() -> None:
    """They are stored and shown."""
    codes = Codes("X", ("n",), "w")
    result = codes.judge(answer({"n": 1, "w": "a\nb\x1b[31m" + "x" * 900}), now=event().created_at)
    assert result.reason.startswith("it said 1: a b[31m")
    assert len(result.reason) < 250


@pytest.mark.parametrize("more", [{"url": "ftp://x"}, {"secret": ""}, {"secrets": ["x"]}, {"limits": {"chars": 1}}])
def test_mistakes_are_said_at_start(more: dict[str, object]) -> None:
    """All of them."""
    with pytest.raises(ValidationError):
        options_of("feishu", KEYS, **more)


def test_what_is_shown_of_a_request_hides_the_token() -> None:
    """It is the end of the path."""
    request = next(steps_of("feishu", options_of("feishu", KEYS), event()))
    assert KINDS["feishu"].masked(request).url == "https://open.feishu.cn/open-apis/bot/v2/hook/***"
