"""The kind `mattermost`: an incoming webhook (developers.mattermost.com/integrate/webhooks/incoming).

One message attachment; what would call somebody by name is broken by an invisible character, since Mattermost has no
switch for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from receiver.destinations import chat
from receiver.destinations.chat import ChatOptions, SecretUrl, masked_path
from receiver.destinations.text import MARKDOWN_ATOMS, Markup, backslashed, clean
from receiver.retry import Result

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from receiver.destinations.base import Steps
    from receiver.destinations.card import Card, Tone
    from receiver.wire import HttpResponse

_COLOURS: Final[Mapping[Tone, str]] = {"good": "#2ecc71", "bad": "#e74c3c", "warning": "#f1c40f", "plain": "#95a5a6"}
_GONE: Final = frozenset({"web.incoming_webhook.invalid.app_error", "web.incoming_webhook.disabled.app_error"})
"""The server's words for a webhook it does not know (400), and for a server that takes none (501)."""
_backslashed: Final = backslashed("\\`*_~<>[]()#-+!|&$")


def escape(text: str) -> str:
    """Markdown and formulas by backslash; a mention by a zero-width space."""
    return _backslashed(text).replace("@", "@\u200b")


_MARKUP: Final = Markup(escape=escape, atoms=MARKDOWN_ATOMS)


class MattermostOptions(ChatOptions):
    """The keys of kind `mattermost`."""

    # integrate/reference/message-attachments and the server's MaxMessageSize: characters.
    LIMITS: ClassVar[Mapping[str, int]] = {"title": 1024, "text": 16_383, "facts": 20, "fact": 2000}
    MARKUP: ClassVar[Markup] = _MARKUP
    TITLE_MARKUP: ClassVar[Markup] = _MARKUP

    url: SecretUrl


def send(card: Card, options: MattermostOptions, *, now: datetime) -> Steps:
    """One message."""
    title, links = options.title_of(card, options.limit("title")), chat.markdown_links(card)
    room = max(0, options.limit("text") - len(links) - 2)
    text = "\n\n".join(part for part in (options.text_of(card, room), links) if part)
    attachment = {
        "fallback": title,
        "color": _COLOURS[card.tone],
        "title": title,
        **({"text": text} if text else {}),
        "fields": [{"title": label, "value": value, "short": True} for label, value in options.facts_of(card)],
        **({"title_link": card.links[0][1]} if card.links else {}),
        **({"image_url": card.poster} if card.poster else {}),
    }
    response = yield chat.post(options.url, {"attachments": [attachment]})
    return judge(response, now=now)


def judge(response: HttpResponse, *, now: datetime) -> Result:
    """By status, and the server's word for it."""
    said = chat.document_of(response)
    word = chat.word_of(clean(said["id"])) if isinstance(said.get("id"), str) else ""
    result = chat.judge(response, now=now, said=word)
    return Result("permanent", result.reason, pause=True) if word in _GONE and result.kind != "ok" else result


KIND: Final = chat.chat_kind("mattermost", MattermostOptions, send, masked=lambda one: masked_path(one, keep=1))
