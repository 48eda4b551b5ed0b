"""The kind `wecom`: a group's robot (developer.work.weixin.qq.com/document/path/99110).

A card with the picture, whose texts are plain; where nothing can be linked to, which a card must, and for a summary,
plain text. Every answer is a 200; its `errcode` says what it means.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

from receiver.destinations import chat
from receiver.destinations.base import masked
from receiver.destinations.chat import ChatOptions, SecretUrl
from receiver.destinations.codes import Codes
from receiver.destinations.text import PLAIN_UTF8, Markup, cut, utf8_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from receiver.destinations.base import Steps
    from receiver.destinations.card import Card

# path/90313: the table of errors.
CODES: Final = Codes(
    "WeCom",
    numbers=("errcode",),
    words="errmsg",
    # Twenty a minute; so many at once; "system busy".
    patience={45009: timedelta(minutes=1), 45033: timedelta(seconds=5), -1: timedelta(seconds=5)},
    unusable=dict.fromkeys((93000, 93004, 93008, 93017), "the URL is no longer good"),
    refused=frozenset({40008, 40058, 40063, 41001, 44004, 45002, 45008, 93032}),
)
_LINKS: Final = 3


class WeComOptions(ChatOptions):
    """The keys of kind `wecom`."""

    # path/99110: a message of text has 2,048 bytes. Of a card it recommends characters; past them nothing is shown.
    LIMITS: ClassVar[Mapping[str, int]] = {"title": 26, "text": 112, "facts": 6, "label": 5, "fact": 26, "bytes": 2048}
    # <@name> calls somebody.
    MARKUP: ClassVar[Markup] = Markup(escape=lambda text: text.replace("<@", "<\u200c@"))
    TITLE_MARKUP: ClassVar[Markup] = MARKUP

    url: Annotated[SecretUrl, chat.bearing("key", "qyapi.weixin.qq.com/cgi-bin/webhook/send")]


def send(card: Card, options: WeComOptions, *, now: datetime) -> Steps:
    """A card where it can be one, else text."""
    if card.links and not card.is_summary:
        message = {"msgtype": "template_card", "template_card": _template_card(card, options)}
    else:
        message = {"msgtype": "text", "text": {"content": _text(card, options)}}
    response = yield chat.post(options.url, message)
    return CODES.judge(response, now=now)


def _template_card(card: Card, options: WeComOptions) -> dict[str, Any]:
    most = options.limit("label")  # an id does not fit: the card leads to the task
    facts = [(name, fact) for name, fact in options.facts_of(card) if len(name) <= most and name != "Task"]
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


def _text(card: Card, options: WeComOptions) -> str:
    most, title = options.limit("bytes"), options.title_of(card, options.limit("title"))
    rest = [f"{label}: {fact}" for label, fact in options.facts_of(card)]
    rest += [f"{label}: {url}" for label, url in card.links]
    below = cut("\n".join(rest), most // 2, PLAIN_UTF8)
    room = most - utf8_bytes(title) - utf8_bytes(below) - 4
    text = cut(options.text_of(card, most), max(0, room), PLAIN_UTF8)
    return cut("\n\n".join(part for part in (title, text, below) if part), most, PLAIN_UTF8)


PACE: Final = (20, timedelta(minutes=1))
"""Twenty a minute for a robot (official page 99110)."""
KIND: Final = chat.chat_kind("wecom", WeComOptions, send, masked=masked, pace=PACE)
