"""The kind `feishu`, also for Lark: a group's custom bot (open.feishu.cn: custom-bot-guide).

Where the bot has a secret, its signature stands in the body: an HMAC whose KEY is the timestamp and the secret, over an
empty message (DingTalk's is the other way round). A bot without an app behind it can show no picture by its URL. Every
answer is a 200; its `code` says what it means.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

from pydantic import Field

from receiver.destinations import chat
from receiver.destinations.chat import ChatOptions, SecretUrl, masked_path
from receiver.destinations.codes import Codes
from receiver.destinations.text import Markup

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from receiver.destinations.base import Steps
    from receiver.destinations.card import Card
    from receiver.wire import HttpRequest

_SPECIAL: Final = re.compile(r"[&<>~*_`\[\]()\\#!]")
_COLOURS: Final = {"good": "green", "bad": "red", "warning": "orange", "plain": "blue"}
# open.feishu.cn: custom-bot-guide, its table of errors.
CODES: Final = Codes(
    "Feishu",
    numbers=("code", "StatusCode"),
    words="msg",
    # A hundred a minute, five a second; it also says so at full and half hours.
    patience={11232: timedelta(minutes=1), 99991400: timedelta(minutes=1)},
    unusable={
        19001: "the URL is no longer good",
        19021: "check `secret` and this machine's clock",
        19022: "the bot takes no messages from this address",
        19024: "the bot wants a keyword: put it into `title`",
    },
    refused=frozenset({9499, 11246, 19002, 19003}),
)


def escape(text: str) -> str:
    """As its Markdown wants special characters: by their numbers."""
    return _SPECIAL.sub(lambda match: f"&#{ord(match[0])};", text)


class FeishuOptions(ChatOptions):
    """The keys of kind `feishu`."""

    # open.feishu.cn: custom-bot-guide: 20 KB a request; a title is shown on four lines at most.
    LIMITS: ClassVar[Mapping[str, int]] = {"title": 200, "text": 4000, "facts": 10, "fact": 200, "body": 20_000}
    MARKUP: ClassVar[Markup] = Markup(escape=escape, atoms=re.compile(r"&#[0-9]+;|\[[^\[\]]*\]\([^()\s]*\)"))

    url: SecretUrl
    secret: Annotated[str, Field(min_length=1)] | None = None


def send(card: Card, options: FeishuOptions, *, now: datetime) -> Steps:
    """A card: header, text, facts, buttons."""
    title = {"tag": "plain_text", "content": options.title_of(card, options.limit("title"))}
    header = {"template": _COLOURS[card.tone], "title": title}
    facts = [f"**{label}** {value}" for label, value in options.facts_of(card)]
    buttons = [
        {"tag": "button", "type": "default" if place else "primary", "url": url, "text": _plain(label)}
        for place, (label, url) in enumerate(card.links)
    ]
    signed = {} if options.secret is None else _signature(options.secret, now)

    def made(longest: int) -> HttpRequest:
        text = options.text_of(card, longest)
        parts = [{"tag": "markdown", "content": one} for one in (text, "\n".join(facts)) if one]
        elements: list[dict[str, Any]] = [*parts] or [{"tag": "div", "text": title}]  # a card without any is none
        elements += [{"tag": "action", "actions": buttons}] if buttons else []
        shown = {"config": {"wide_screen_mode": True}, "header": header, "elements": elements}
        return chat.post(options.url, {**signed, "msg_type": "interactive", "card": shown})

    response = yield chat.fitted(made, options.limit("text"), options.limit("body"))
    return CODES.judge(response, now=now)


def _plain(text: str) -> dict[str, str]:
    return {"tag": "plain_text", "content": text}


def _signature(secret: str, now: datetime) -> dict[str, str]:
    stamp = str(int(now.timestamp()))
    digest = hmac.new(f"{stamp}\n{secret}".encode(), b"", hashlib.sha256).digest()
    return {"timestamp": stamp, "sign": base64.b64encode(digest).decode()}


PACE: Final = (5, timedelta(seconds=3))
"""Five a second and a hundred a minute for a bot: this keeps both."""
KIND: Final = chat.chat_kind(
    "feishu", FeishuOptions, send, masked=lambda one: masked_path(one, keep=4), secrets=("url", "secret"), pace=PACE
)
