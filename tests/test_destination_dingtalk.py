"""The kind `dingtalk` against a robot that is as strict as the real one, signature included."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import ValidationError

from receiver.destinations import KINDS
from receiver.wire import HttpResponse
from tests.kind_room import PAGE, POSTER, VIDEO, answer, canned, delivered, event, failure, options_of, steps_of
from tests.platforms import served
from tests.platforms.dingtalk import SECRET, DingTalk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

KEYS = {"url": "https://oapi.dingtalk.com/robot/send?access_token=the-secret", "secret": SECRET}


@pytest.fixture
async def there() -> AsyncIterator[DingTalk]:
    """The platform."""
    async with served(DingTalk()) as platform:
        yield platform


async def test_a_render_is_a_card(there: DingTalk) -> None:
    """With the picture and two buttons, signed in the query."""
    assert (await delivered("dingtalk", there.keys(), [event()])).kind == "ok"
    [shown] = await there.seen()
    assert (shown.links, shown.pictures) == ((VIDEO, PAGE), (POSTER,))
    assert "a paper boat" in shown.text
    assert "1 min 35 s" in shown.text


async def test_without_a_link_it_is_markdown(there: DingTalk) -> None:
    """A card must have a button."""
    assert (await delivered("dingtalk", there.keys(), [failure()], home=None)).kind == "ok"
    [shown] = await there.seen()
    assert "the input is too long" in shown.text
    assert shown.links == ()


async def test_a_wrong_secret_is_heard_of(there: DingTalk) -> None:
    """It says so in a 200; nothing else would come through, so the destination is paused."""
    result = await delivered("dingtalk", there.keys(), [event()], secret="SECanother")
    assert (result.kind, result.pause) == ("permanent", True)
    assert "310000" in result.reason
    assert there.shown == []


async def test_twenty_thousand_bytes_are_the_most(there: DingTalk) -> None:
    """Also where a break becomes four characters, and a sign its wide form."""
    for prompt in ("漢" * 40_000, "*" * 40_000, "a\n" * 40_000):
        assert (await delivered("dingtalk", there.keys(), [event(prompt=prompt)])).kind == "ok"
    assert all(10_000 < len(one.body) <= 20_000 for one in there.asked)


async def test_a_summary_has_a_line_for_each(there: DingTalk) -> None:
    """One message for many; a single break would be none."""
    assert (await delivered("dingtalk", there.keys(), [event(), failure()])).kind == "ok"
    assert "  \n" in there.shown[0].text


def test_the_signature_is_that_of_the_documentation() -> None:
    r"""The key is the secret, the message the milliseconds and the secret; computed by openssl.

    `printf '1769860805999\nSECdingtalk-signing-secret' | openssl dgst -sha256 -hmac … -binary | base64`
    """
    now = datetime(2026, 1, 31, 12, 0, 5, 999_000, tzinfo=UTC)
    request = next(steps_of("dingtalk", options_of("dingtalk", KEYS), event(), now=now))
    query = parse_qs(urlsplit(request.url).query, strict_parsing=True)
    assert query == {
        "access_token": ["the-secret"],
        "timestamp": ["1769860805999"],
        "sign": ["htLnFM5JDVTBQ6IrKJFAJJJT8XxPTUh0OIL418kxXAU="],
    }
    bare = {"url": "https://proxy.example.com/ding", "secret": SECRET}
    assert "/ding?timestamp=" in next(steps_of("dingtalk", options_of("dingtalk", bare), event())).url


def test_without_a_secret_nothing_is_signed() -> None:
    """Where the robot checks none."""
    assert next(steps_of("dingtalk", options_of("dingtalk", {"url": KEYS["url"]}), event())).url == KEYS["url"]


@pytest.mark.parametrize(
    ("response", "kind", "pause", "wait"),
    [
        (answer({"errcode": 0, "errmsg": "ok"}), "ok", False, None),
        (answer({"errcode": 130101, "errmsg": "send too fast"}), "throttled", False, timedelta(minutes=10)),
        (answer({"errcode": -1, "errmsg": "system busy"}), "throttled", False, timedelta(seconds=10)),
        (answer({"errcode": 310000, "errmsg": "keywords not in content"}), "permanent", True, None),
        (answer({"errcode": 300001, "errmsg": "token is not exist"}), "permanent", True, None),
        (answer({"errcode": 400105, "errmsg": "unsupported msgtype"}), "permanent", False, None),
        (answer({"errcode": 77777, "errmsg": "new"}), "transient", False, None),
        (answer({"errcode": "0"}), "transient", False, None),
        (HttpResponse(200, {}, b"ok"), "transient", False, None),
        (HttpResponse(503, {}, b""), "throttled", False, None),
    ],
)
def test_how_an_answer_is_judged(response: HttpResponse, kind: str, pause: bool, wait: timedelta | None) -> None:
    """By its `errcode`, in a 200; too fast is ten minutes of silence."""
    result, _ = canned(steps_of("dingtalk", options_of("dingtalk", KEYS), event()), response)
    assert (result.kind, result.pause, result.retry_after) == (kind, pause, wait), result


def test_its_markdown_has_no_escape_so_signs_are_written_wide() -> None:
    """Nothing of what was typed is markup."""
    request = next(steps_of("dingtalk", options_of("dingtalk", KEYS), event(prompt="# [x](y) **b** <a>")))
    assert "＃ ［x］(y) ＊＊b＊＊ ＜a＞" in json.loads(request.body)["actionCard"]["text"]  # noqa: RUF001


@pytest.mark.parametrize("more", [{"url": "oapi.dingtalk.com"}, {"secret": ""}])
def test_mistakes_are_said_at_start(more: dict[str, object]) -> None:
    """All of them."""
    with pytest.raises(ValidationError):
        options_of("dingtalk", KEYS, **more)


def test_what_is_shown_of_a_request_hides_the_token() -> None:
    """It is in the query, as the signature is."""
    request = next(steps_of("dingtalk", options_of("dingtalk", KEYS), event()))
    shown = KINDS["dingtalk"].masked(request).url
    assert shown == "https://oapi.dingtalk.com/robot/send?access_token=***&timestamp=***&sign=***"
