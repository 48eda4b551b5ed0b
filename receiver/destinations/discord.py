"""The kind `discord`: a webhook (docs.discord.com/developers/resources/webhook, execute webhook).

One embed with link buttons; nobody is ever pinged (`allowed_mentions`), and `wait=true` makes the answer tell whether
it was saved. Rates are Discord's to name: they are read from every answer and never assumed. A webhook that is unknown
is paused at once, since answers of that kind add up to a ban of the address.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

from pydantic import AfterValidator, Field, model_validator

from receiver.destinations import chat
from receiver.destinations.chat import ChatOptions, SecretUrl, masked_path
from receiver.destinations.text import MARKDOWN_ATOMS, Markup, backslashed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    from receiver.destinations.base import Steps
    from receiver.destinations.card import Card, Tone
    from receiver.retry import Result
    from receiver.wire import HttpResponse

_COLOURS: Final[Mapping[Tone, int]] = {"good": 0x2ECC71, "bad": 0xE74C3C, "warning": 0xF1C40F, "plain": 0x95A5A6}
_GONE: Final = frozenset({10003, 10015, 50027})
"""Codes of an unknown channel, an unknown webhook and an invalid token (topics/opcodes-and-status-codes)."""
_MARKUP: Final = Markup(escape=backslashed("\\`*_~|<>[]()#-+@"), atoms=MARKDOWN_ATOMS)
_THROTTLED: Final = 429
_NUMBER: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


def _snowflake(text: str) -> str:
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise ValueError("the id of a thread is wanted, a number in quotes: copy it in Discord's developer mode")
    return text


class DiscordOptions(ChatOptions):
    """The keys of kind `discord`."""

    # resources/message, embed limits; components/reference, button (`url`): characters. `embed` is that of all texts.
    LIMITS: ClassVar[Mapping[str, int]] = {
        "title": 256,
        "text": 4096,
        "facts": 25,
        "fact": 1024,
        "embed": 6000,
        "link": 2048,
        "button": 512,
    }
    MARKUP: ClassVar[Markup] = _MARKUP
    TITLE_MARKUP: ClassVar[Markup] = _MARKUP

    url: SecretUrl
    thread_id: Annotated[str, AfterValidator(_snowflake)] | None = None
    thread_name: Annotated[str, Field(min_length=1, max_length=100)] | None = None

    @model_validator(mode="after")
    def _one_thread(self) -> DiscordOptions:
        if self.thread_id is not None and self.thread_name is not None:
            raise ValueError("thread_id (a thread that is there) or thread_name (a new one each time): not both")
        return self


def send(card: Card, options: DiscordOptions, *, now: datetime) -> Steps:
    """One message."""
    query = "wait=true&with_components=true" + (f"&thread_id={options.thread_id}" if options.thread_id else "")
    url = f"{options.url}{'&' if '?' in options.url else '?'}{query}"
    message = {
        "embeds": [_embed(card, options)],
        "components": _buttons(card, options),
        "allowed_mentions": {"parse": []},
        **({"thread_name": options.thread_name} if options.thread_name else {}),
    }
    response = yield chat.post(url, message)
    return judge(response, now=now)


def _embed(card: Card, options: DiscordOptions) -> dict[str, Any]:
    title = options.title_of(card, options.limit("title"))
    facts = options.facts_of(card)
    room = options.limit("embed") - len(title) - sum(len(label) + len(value) for label, value in facts)
    longest = options.limit("link")
    text = options.text_of(card, max(0, min(options.limit("text"), room)))
    return {
        "title": title,
        **({"description": text} if text else {}),
        "color": _COLOURS[card.tone],
        "fields": [{"name": label, "value": value, "inline": True} for label, value in facts],
        **({"url": card.links[0][1]} if card.links and len(card.links[0][1]) <= longest else {}),
        **({"image": {"url": card.poster}} if card.poster and len(card.poster) <= longest else {}),
    }


def _buttons(card: Card, options: DiscordOptions) -> list[dict[str, Any]]:
    """One row of link buttons; a longer URL is behind the title alone."""
    most = options.limit("button")
    row = [{"type": 2, "style": 5, "label": label, "url": url} for label, url in card.links if len(url) <= most]
    return [{"type": 1, "components": row}] if row else []


def judge(response: HttpResponse, *, now: datetime) -> Result:
    """By status, Discord's code, and whatever it says of rates."""
    said = chat.document_of(response)
    code = said["code"] if isinstance(said.get("code"), int) else None
    words = chat.word_of(said["message"]) if isinstance(said.get("message"), str) else ""
    result = chat.judge(response, now=now, said=f"{words} ({code})" if words and code else words)
    if response.status == _THROTTLED:
        # Without a document it is the CDN in front of Discord, which has the header alone.
        waits = [result.retry_after, chat.seconds(said.get("retry_after")), _reset_after(response)]
        return replace(result, retry_after=max((wait for wait in waits if wait is not None), default=None))
    if response.headers.get("x-ratelimit-remaining", "").strip() == "0":
        result = replace(result, hold=_reset_after(response))
    if result.kind == "permanent" and code in _GONE:
        return replace(result, pause=True)
    return result


def _reset_after(response: HttpResponse) -> timedelta | None:
    text = response.headers.get("x-ratelimit-reset-after", "").strip()
    return chat.seconds(float(text)) if _NUMBER.fullmatch(text) else None


KIND: Final = chat.chat_kind("discord", DiscordOptions, send, masked=lambda one: masked_path(one, keep=3))
