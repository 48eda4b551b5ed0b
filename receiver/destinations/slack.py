"""The kind `slack`: an incoming webhook (docs.slack.dev/messaging/sending-messages-using-incoming-webhooks).

One message of Block Kit blocks; `text` is what notifications show. Slack fetches the picture while it takes the
message, and a poster it cannot reach makes the blocks invalid: the message is then sent again at once, without it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final

from receiver.destinations import chat
from receiver.destinations.chat import ChatOptions, SecretUrl, masked_path
from receiver.destinations.text import Markup, clean, cut

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from receiver.destinations.base import Steps
    from receiver.destinations.card import Card
    from receiver.retry import Result
    from receiver.wire import HttpResponse

_WORDS: Final[Mapping[str, bool]] = {
    "channel_is_archived": True,
    "channel_not_found": True,
    "no_service": True,
    "no_service_id": True,
    "no_team": True,
    "team_disabled": True,
    "token_revoked": True,
    "action_prohibited": True,
    "posting_to_general_channel_denied": True,
    "user_not_found": True,
    "invalid_payload": False,
    "invalid_blocks": False,
    "no_text": False,
    "too_many_attachments": False,
}
"""Slack's own words for a message that is not taken, and whether the webhook itself is no longer good."""


def escape(text: str) -> str:
    """Slack reads `&`, `<` and `>` alone; every mention, link and command needs them (docs: formatting text)."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class SlackOptions(ChatOptions):
    """The keys of kind `slack`."""

    # docs.slack.dev/reference/block-kit/blocks: characters; a field has 2,000 with its label.
    LIMITS: ClassVar[Mapping[str, int]] = {"title": 150, "text": 3000, "facts": 10, "fact": 1900, "alt": 2000}
    MARKUP: ClassVar[Markup] = Markup(escape=escape, url=escape, atoms=re.compile(r"&(?:amp|lt|gt);|<[^<>\n]{1,3500}>"))

    url: SecretUrl


def send(card: Card, options: SlackOptions, *, now: datetime) -> Steps:
    """The message, and once more without its picture where Slack does not take that."""
    title, text = options.title_of(card, options.limit("title")), options.text_of(card, options.limit("text"))
    blocks: list[dict[str, Any]] = [{"type": "header", "text": {"type": "plain_text", "text": title, "emoji": True}}]
    if text:
        # verbatim: Slack makes no links or mentions of its own out of it
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": True}})
    facts = [{"type": "mrkdwn", "text": f"*{label}*\n{value}"} for label, value in options.facts_of(card)]
    if facts:
        blocks.append({"type": "section", "fields": facts})
    if card.poster:
        alt = cut(clean(str(card.values["prompt"] or card.headline)), options.limit("alt"))
        blocks.append({"type": "image", "image_url": card.poster, "alt_text": alt})
    if card.links:
        buttons = [{"type": "button", "text": {"type": "plain_text", "text": to}, "url": url} for to, url in card.links]
        blocks.append({"type": "actions", "elements": buttons})
    message = {"text": escape(title), "blocks": blocks}
    response = yield chat.post(options.url, message)
    if card.poster and response.body.strip() == b"invalid_blocks":
        without = {**message, "blocks": [one for one in blocks if one["type"] != "image"]}
        response = yield chat.post(options.url, without)
    return judge(response, now=now)


def judge(response: HttpResponse, *, now: datetime) -> Result:
    """Slack says `ok`, or a word of its table."""
    word = chat.word_of(response.body.decode(errors="replace"))
    result = chat.judge(response, now=now, said="" if word == "ok" else word)
    if response.is_success or result.kind != "permanent":
        return result
    return replace(result, pause=_WORDS.get(word, result.pause))


PACE: Final = (1, timedelta(seconds=1))
"""About one message a second to a channel (api.slack.com/docs/rate-limits)."""
KIND: Final = chat.chat_kind(
    "slack", SlackOptions, send, masked=lambda one: masked_path(one, keep=3), steps=2, pace=PACE
)
