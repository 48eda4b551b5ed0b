"""The kind `dingtalk`: a group's custom robot (open.dingtalk.com: custom-robot-access).

Where the robot has a secret, the signature stands in the query: an HMAC whose key is the secret, over the timestamp in
milliseconds and the secret (Feishu's is the other way round). Every answer is a 200; its `errcode` says what it means.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final
from urllib.parse import urlencode

from pydantic import Field

from receiver.destinations import chat
from receiver.destinations.base import masked
from receiver.destinations.chat import ChatOptions, SecretUrl
from receiver.destinations.codes import Codes
from receiver.destinations.text import Markup

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from receiver.destinations.base import Steps
    from receiver.destinations.card import Card
    from receiver.wire import HttpRequest

# Its Markdown has no escape: what would be read as markup is written as the wide form of the same sign.
_WIDE: Final = str.maketrans({sign: chr(ord(sign) + 0xFEE0) for sign in r"[]<>`*_#~|\!"})
# open.dingtalk.com: custom-robot-access, and its table of errors.
CODES: Final = Codes(
    "DingTalk",
    numbers=("errcode",),
    words="errmsg",
    # More than twenty a minute, and the robot is silenced for ten.
    patience={code: timedelta(minutes=10) for code in (90018, 130101, 130102)} | {-1: timedelta(seconds=10)},
    unusable={
        300001: "the token is no longer good",
        300005: "the token is no longer good",
        310000: "check the robot's secret, keywords and addresses, and this machine's clock",
        400013: "the group was dissolved",
        400101: "the token is no longer good",
        400102: "the robot is switched off",
    },
    refused=frozenset({40035, 43004, 400105, 400106, 460101}),
)


class DingTalkOptions(ChatOptions):
    """The keys of kind `dingtalk`."""

    # open.dingtalk.com: custom-robot-access: 20,000 bytes a request.
    LIMITS: ClassVar[Mapping[str, int]] = {"title": 200, "text": 4000, "facts": 10, "fact": 200, "body": 20_000}
    MARKUP: ClassVar[Markup] = Markup(escape=lambda text: text.translate(_WIDE))
    TITLE_MARKUP: ClassVar[Markup] = MARKUP

    url: Annotated[SecretUrl, chat.bearing("access_token", "oapi.dingtalk.com/robot/send")]
    secret: Annotated[str, Field(min_length=1)] | None = None


def send(card: Card, options: DingTalkOptions, *, now: datetime) -> Steps:
    """A card with buttons; without any, the same as Markdown."""
    title = options.title_of(card, options.limit("title"))
    url = options.url if options.secret is None else _signed(options.url, options.secret, now)
    facts = "\n".join(f"- {label}: {value}" for label, value in options.facts_of(card))
    picture = f"![]({card.poster})" if card.poster else ""

    def made(longest: int) -> HttpRequest:
        # A single break is none in its Markdown.
        words = options.text_of(card, longest).replace("\n", "  \n")
        text = "\n\n".join(part for part in (f"### {title}", picture, words, facts) if part)
        shown: dict[str, Any] = {"title": title, "text": text}
        if not card.links:
            return chat.post(url, {"msgtype": "markdown", "markdown": shown})
        shown["btnOrientation"] = "0"
        shown["btns"] = [{"title": label, "actionURL": to} for label, to in card.links]
        return chat.post(url, {"msgtype": "actionCard", "actionCard": shown})

    response = yield chat.fitted(made, options.limit("text"), options.limit("body"))
    return CODES.judge(response, now=now)


def _signed(url: str, secret: str, now: datetime) -> str:
    stamp = str(int(now.timestamp() * 1000))
    digest = hmac.new(secret.encode(), f"{stamp}\n{secret}".encode(), hashlib.sha256).digest()
    query = urlencode({"timestamp": stamp, "sign": base64.b64encode(digest).decode()})
    return f"{url}{'&' if '?' in url else '?'}{query}"


PACE: Final = (20, timedelta(minutes=1))
"""Twenty a minute, and then ten minutes of silence."""
KIND: Final = chat.chat_kind("dingtalk", DingTalkOptions, send, masked=masked, secrets=("url", "secret"), pace=PACE)
