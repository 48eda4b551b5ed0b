"""The kind `wecom`: a group's robot (developer.work.weixin.qq.com/document/path/99110).

A card with the picture, whose texts are plain; where nothing can be linked to, which a card must, and for a summary,
plain text. Every answer is a 200; its `errcode` says what it means.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final

from receiver.destinations import chat
from receiver.destinations.base import masked
from receiver.destinations.chat import ChatOptions, SecretUrl
from receiver.destinations.text import PLAIN_UTF8, Markup, clean, cut, utf8_bytes
from receiver.retry import Result

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from receiver.destinations.base import Steps
    from receiver.destinations.card import Card
    from receiver.wire import HttpResponse

_PATIENCE: Final[Mapping[int, timedelta]] = {
    45009: timedelta(minutes=1),  # more than twenty a minute
    45033: timedelta(seconds=5),  # too many at once
    -1: timedelta(seconds=5),  # "system busy"
}
_UNUSABLE: Final = frozenset({93000, 93004, 93008, 93017})
_REFUSED: Final = frozenset({40008, 40058, 40063, 41001, 44004, 45002, 45008, 93032})
_LINKS: Final = 3


class WeComOptions(ChatOptions):
    """The keys of kind `wecom`."""

    # path/99110: a message of text has 2,048 bytes. Of a card it recommends characters; past them nothing is shown.
    LIMITS: ClassVar[Mapping[str, int]] = {"title": 26, "text": 112, "label": 5, "value": 26, "bytes": 2048}
    # <@name> calls somebody.
    MARKUP: ClassVar[Markup] = Markup(escape=lambda text: text.replace("<@", "＜@"))
    TITLE_MARKUP: ClassVar[Markup] = MARKUP

    url: SecretUrl


class _Long(WeComOptions):
    """The same, where texts are counted in bytes."""

    MARKUP: ClassVar[Markup] = Markup(escape=WeComOptions.MARKUP.escape, size=utf8_bytes)
    TITLE_MARKUP: ClassVar[Markup] = MARKUP


def send(card: Card, options: WeComOptions, *, now: datetime) -> Steps:
    """A card where it can be one, else text."""
    if card.links and not card.is_summary:
        message = {"msgtype": "template_card", "template_card": _template_card(card, options)}
    else:
        message = {"msgtype": "text", "text": {"content": _text(card, _Long.model_construct(**dict(options)))}}
    response = yield chat.post(options.url, message)
    return judge(response, now=now)


def _template_card(card: Card, options: WeComOptions) -> dict[str, Any]:
    label, value, escape = options.limit("label"), options.limit("value"), options.MARKUP.escape
    facts = [(name, cut(escape(clean(fact)), value)) for name, fact in card.facts if len(name) <= label]
    text = options.text_of(card, options.limit("text"))
    shown: dict[str, Any] = {
        "card_type": "text_notice",
        "main_title": {"title": options.title_of(card, options.limit("title"))},
        "horizontal_content_list": [{"keyname": name, "value": fact} for name, fact in facts],
        "jump_list": [{"type": 1, "title": name, "url": url} for name, url in card.links[:_LINKS]],
        "card_action": {"type": 1, "url": card.links[0][1]},
    }
    if not card.poster:
        return shown | ({"sub_title_text": text} if text else {})
    about = "Reason" if card.values.get("failure") else "Prompt"
    shown |= {"card_type": "news_notice", "card_image": {"url": card.poster, "aspect_ratio": 1.78}}
    return shown | ({"vertical_content_list": [{"title": about, "desc": text}]} if text else {})


def _text(card: Card, options: _Long) -> str:
    most, escape = options.limit("bytes"), options.MARKUP.escape
    title = options.title_of(card, most)
    rest = [f"{label}: {escape(clean(fact))}" for label, fact in card.facts]
    rest += [f"{label}: {url}" for label, url in card.links]
    below = cut("\n".join(rest), most // 2, PLAIN_UTF8)
    text = options.text_of(card, max(0, most - utf8_bytes(title) - utf8_bytes(below) - 4))
    return cut("\n\n".join(part for part in (title, text, below) if part), most, PLAIN_UTF8)


def judge(response: HttpResponse, *, now: datetime) -> Result:
    """By its `errcode`; 0 is success."""
    document = chat.document_of(response)
    code = document.get("errcode")
    if not isinstance(code, int):
        result = chat.judge(response, now=now)
        return result if result.kind != "ok" else Result("transient", f"{result.reason}, and not as WeCom does")
    said = f"it said {code}: {chat.word_of(document.get('errmsg', ''))}"
    if code == 0 and response.is_success:
        return Result("ok", f"it answered {response.status}")
    if code in _PATIENCE:
        return Result("throttled", said, retry_after=_PATIENCE[code])
    if code in _UNUSABLE:
        return Result("permanent", f"{said}; the URL is no longer good, and the destination is paused", pause=True)
    return Result("permanent" if code in _REFUSED else "transient", said)


KIND: Final = chat.chat_kind("wecom", WeComOptions, send, masked=masked)
