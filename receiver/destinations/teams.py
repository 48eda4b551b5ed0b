"""The kind `teams`: a Workflows webhook of Microsoft Teams ("When a Teams webhook request is received").

One Adaptive Card 1.4 in a message of 28 KB at most (learn.microsoft.com: webhooks-and-connectors). 202 says that the
workflow took it; whether it is shown, nobody tells. The URL's hosts change, so any is taken; the secret is its query.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final

from receiver.destinations import chat
from receiver.destinations.chat import ChatOptions, SecretUrl, masked_path
from receiver.destinations.text import MARKDOWN_ATOMS, Markup, backslashed, clean, cut

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from receiver.destinations.base import Steps
    from receiver.destinations.card import Card, Tone
    from receiver.retry import Result
    from receiver.wire import HttpRequest, HttpResponse

_COLOURS: Final[Mapping[Tone, str]] = {"good": "Good", "bad": "Attention", "warning": "Warning", "plain": "Default"}
_CARD: Final = "application/vnd.microsoft.card.adaptive"
_MARKUP: Final = Markup(escape=backslashed("\\`*_~<>[]()#-+!|&"), atoms=MARKDOWN_ATOMS)
_SECRET: Final = 20
"""Characters of a path's segment from which on it may be a key (those of the retired connectors were)."""


class TeamsOptions(ChatOptions):
    """The keys of kind `teams`."""

    # `message`: bytes of the whole, add-incoming-webhook. The others are ours: beyond them a card is no card.
    LIMITS: ClassVar[Mapping[str, int]] = {
        "message": 28 * 1024,
        "title": 256,
        "text": 8000,
        "facts": 10,
        "fact": 500,
        "alt": 500,
        "link": 2048,
    }
    MARKUP: ClassVar[Markup] = _MARKUP
    TITLE_MARKUP: ClassVar[Markup] = _MARKUP

    url: SecretUrl


def send(card: Card, options: TeamsOptions, *, now: datetime) -> Steps:
    """One message, its text as long as the whole allows."""
    response = yield chat.fitted(
        lambda longest: _message(card, options, longest), options.limit("text"), options.limit("message")
    )
    return judge(response, now=now)


def judge(response: HttpResponse, *, now: datetime) -> Result:
    """By status; the words are the workflow's own."""
    error = chat.document_of(response).get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return chat.judge(response, now=now, said=chat.word_of(code) if code else "")


def _message(card: Card, options: TeamsOptions, longest: int) -> HttpRequest:
    links = [(label, url) for label, url in card.links if len(url) <= options.limit("link")]
    title = options.title_of(card, options.limit("title"))
    body = [{**_text(title), "size": "Large", "weight": "Bolder", "color": _COLOURS[card.tone]}]
    if text := options.text_of(card, longest):
        body.append(_text(text.replace("\n", "\n\n")))  # to Markdown, one line feed is none
    if facts := options.facts_of(card):
        body.append({"type": "FactSet", "facts": [{"title": label, "value": value} for label, value in facts]})
    if card.poster and len(card.poster) <= options.limit("link"):
        body.append(_picture(card, options, links))
    actions = [{"type": "Action.OpenUrl", "title": label, "url": url} for label, url in links]
    content = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "msteams": {"width": "Full"},
        "body": body,
        "actions": actions,
    }
    attachment = {"contentType": _CARD, "contentUrl": None, "content": content}
    return chat.post(options.url, {"type": "message", "attachments": [attachment]})


def _text(text: str) -> dict[str, Any]:
    return {"type": "TextBlock", "text": text, "wrap": True}


def _picture(card: Card, options: TeamsOptions, links: list[tuple[str, Any]]) -> dict[str, Any]:
    alt = cut(clean(str(card.values["prompt"] or card.headline)), options.limit("alt"))
    picture = {"type": "Image", "url": card.poster, "altText": alt}
    return {**picture, "selectAction": {"type": "Action.OpenUrl", "url": links[0][1]}} if links else picture


PACE: Final = (4, timedelta(seconds=1))
"""Four requests a second (learn.microsoft.com, add-incoming-webhook)."""
KIND: Final = chat.chat_kind("teams", TeamsOptions, send, masked=lambda one: masked_path(one, least=_SECRET), pace=PACE)
