"""The kind `ntfy`: a push message, published as JSON to the server's root (docs.ntfy.sh/publish/#publish-as-json).

A message past its limit would become a file, so it is cut. Whoever knows a topic can read it, unless it is reserved.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

from pydantic import AfterValidator

from receiver.destinations import chat
from receiver.destinations.base import http_url, masked
from receiver.destinations.chat import ChatOptions
from receiver.destinations.text import PLAIN_UTF8, Markup, cut, utf8_bytes
from receiver.retry import Result

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from receiver.destinations.base import Steps
    from receiver.destinations.card import Card
    from receiver.wire import HttpRequest, HttpResponse

_PRIORITIES: Final = {"bad": 4}
_NORMAL: Final = 3
_PATIENCE: Final[Mapping[int, timedelta]] = {
    42901: timedelta(seconds=10),  # a request is given back every five seconds
    42905: timedelta(hours=1),  # the day's bandwidth
    42908: timedelta(hours=1),  # the day's messages
}
"""How long it would be left alone where it names no time."""
_ACTIONS: Final = 3


def _root(url: str) -> str:
    if "?" in url:
        raise ValueError("a query does not belong in the server's root")
    return http_url(url).rstrip("/")


def _topic(topic: str) -> str:
    if not re.fullmatch(r"[-_A-Za-z0-9]{1,64}", topic):
        raise ValueError("a topic has 1 to 64 letters, digits, - and _; the server's root belongs in `url`")
    return topic


def _token(token: str) -> str:
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("it is empty, or not plain ASCII without spaces; it goes into a header")
    return token


class NtfyOptions(ChatOptions):
    """The keys of kind `ntfy`."""

    # docs.ntfy.sh/publish/#limitations: bytes; of the JSON around it, twice as many are taken.
    LIMITS: ClassVar[Mapping[str, int]] = {"title": 250, "message": 4096, "body": 8192, "facts": 10, "fact": 200}
    MARKUP: ClassVar[Markup] = PLAIN_UTF8
    TITLE_MARKUP: ClassVar[Markup] = PLAIN_UTF8

    url: Annotated[str, AfterValidator(_root)]
    topic: Annotated[str, AfterValidator(_topic)]
    token: Annotated[str, AfterValidator(_token)] | None = None


def send(card: Card, options: NtfyOptions, *, now: datetime) -> Steps:
    """One message: the poster attached by its URL, a button for each link."""
    most = options.limit("message")
    facts = cut("\n".join(f"{label}: {value}" for label, value in options.facts_of(card)), most // 2, PLAIN_UTF8)
    title = options.title_of(card, options.limit("title"))
    shown: dict[str, Any] = {"topic": options.topic, "title": title, "priority": _PRIORITIES.get(card.tone, _NORMAL)}
    if card.poster:
        shown["attach"] = card.poster
    if card.links:
        shown["click"] = card.links[0][1]
        shown["actions"] = [{"action": "view", "label": label, "url": url} for label, url in card.links[:_ACTIONS]]
    headers = {} if options.token is None else {"authorization": f"Bearer {options.token}"}

    def made(longest: int) -> HttpRequest:
        text = options.text_of(card, min(longest, max(0, most - utf8_bytes(facts) - 2)))
        message = "\n\n".join(part for part in (text, facts) if part)
        # An empty message is shown as "triggered".
        return chat.post(f"{options.url}/", {**shown, "message": message or title}, **headers)

    response = yield chat.fitted(made, most, options.limit("body"))
    return judge(response, now=now)


def judge(response: HttpResponse, *, now: datetime) -> Result:
    """By its status; its `code` says how long "too many" lasts, where no header does."""
    document = chat.document_of(response)
    result = chat.judge(response, now=now, said=chat.word_of(document.get("error", "")))
    code = document.get("code")
    if result.kind != "throttled" or result.retry_after is not None or not isinstance(code, int):
        return result
    return Result("throttled", result.reason, retry_after=_PATIENCE.get(code))


KIND: Final = chat.chat_kind("ntfy", NtfyOptions, send, masked=masked, secrets=("token",))
