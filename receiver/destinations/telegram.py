"""The kind `telegram`: a bot that writes to a chat (core.telegram.org/bots/api).

The render goes out as a video by its URL, which Telegram fetches itself, up to 20 MB. Where it cannot, the message is
sent at once as text with a link; nothing is downloaded here. A group that became a supergroup has another id, which the
refusal names: the message follows it, and the id belongs into the configuration.
"""

from __future__ import annotations

import html
import re
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, Strict, WithJsonSchema

from receiver.destinations import chat
from receiver.destinations.base import MASK, masked
from receiver.destinations.chat import ChatOptions
from receiver.destinations.text import Markup, utf16_units
from receiver.retry import Result

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from receiver.destinations.base import Steps
    from receiver.destinations.card import Card
    from receiver.wire import HttpRequest, HttpResponse

_TAG: Final = re.compile(r"</?([a-z-]+)[^<>]*>")
_ATOMS: Final = re.compile(r"</?[a-z-]+[^<>]*>|&(?:#?[a-z0-9]+);|@\u200c")
_NAME: Final = re.compile(r"@(?=\w)")
_UNFETCHED: Final = ("http url", "web page", "webpage_", "wrong file identifier", "file is too big", "media_empty")
"""What it says of a file that it cannot take by URL; each of them in a 400."""
_NO_CHAT: Final = (
    "chat not found",
    "peer_id_invalid",
    "deactivated",
    "not enough rights",
    "thread not found",
    "chat_id",
)
"""What it says where nothing can be written, in a 400."""
_PLAIN: Final = frozenset({"Took", "Route"})
"""Facts that say by themselves what they are."""
_REFUSED: Final = frozenset({401, 403, 404})
_BAD: Final = 400
_PATIENCE: Final = 429


def escape(text: str) -> str:
    """As HTML; a name in it calls nobody."""
    return _NAME.sub("@\u200c", html.escape(text, quote=False))


def _size(text: str) -> int:
    """As Telegram counts: UTF-16 units, after the markup was read."""
    return utf16_units(html.unescape(_TAG.sub("", text)))


def _closing(text: str) -> str:
    still: list[str] = []
    for match in _TAG.finditer(text):
        if not match[0].startswith("</"):
            still.append(match[1])
        elif still:
            still.pop()
    return "".join(f"</{name}>" for name in reversed(still))


def _token(token: str) -> str:
    if not re.fullmatch(r"[0-9]+:[A-Za-z0-9_-]+", token):
        raise ValueError("this is no bot token: @BotFather gives them out, digits, a colon and letters")
    return token


def _chat_id(chat_id: Any) -> Any:
    is_either = isinstance(chat_id, int | str) and not isinstance(chat_id, bool)
    if not is_either or not re.fullmatch(r"-?[0-9]+|@[A-Za-z][A-Za-z0-9_]+", str(chat_id)):
        raise ValueError("the id of a chat (a number; groups' are negative) or the @name of a channel is wanted")
    return chat_id


def _api_base(url: str) -> str:
    if "?" in url:
        raise ValueError("a query does not belong in a base URL")
    return chat.secret_url(url).rstrip("/")


class TelegramOptions(ChatOptions):
    """The keys of kind `telegram`."""

    # core.telegram.org/bots/api#sendvideo and #sendmessage: "after entities parsing", in UTF-16 units.
    LIMITS: ClassVar[Mapping[str, int]] = {"title": 256, "caption": 1024, "text": 4096, "facts": 10, "fact": 100}
    MARKUP: ClassVar[Markup] = Markup(escape=escape, url=html.escape, size=_size, atoms=_ATOMS, closing=_closing)
    TITLE_MARKUP: ClassVar[Markup] = MARKUP

    token: Annotated[str, AfterValidator(_token)]
    chat_id: Annotated[Any, AfterValidator(_chat_id), WithJsonSchema({"type": ["integer", "string"]})]
    thread_id: Annotated[int, Strict(), Field(ge=1)] | None = None
    api_base: Annotated[str, AfterValidator(_api_base)] = "https://api.telegram.org"


def send(card: Card, options: TelegramOptions, *, now: datetime) -> Steps:
    """A video or a picture with a caption, else a message; a message too where the file cannot be had."""
    method, media = _media(card)
    chat_id: int | str = options.chat_id
    response = yield _request(method, media, card, options, chat_id)
    moved = _parameters(response).get("migrate_to_chat_id")
    if isinstance(moved, int):
        chat_id = moved
        response = yield _request(method, media, card, options, chat_id)
    if media and _says(response, _UNFETCHED):
        response = yield _request("sendMessage", {}, card, options, chat_id)
    result = judge(response, now=now)
    if chat_id == options.chat_id:
        return result
    return replace(result, reason=f"{result.reason}; the chat has a new id: set chat_id = {chat_id}")


def judge(response: HttpResponse, *, now: datetime) -> Result:
    """`ok`, or an `error_code` with its words."""
    document = chat.document_of(response)
    words = chat.word_of(document.get("description", ""))
    if document.get("ok") is True and response.is_success:
        return Result("ok", f"it answered {response.status}")
    code = document.get("error_code")
    if not isinstance(code, int):
        result = chat.judge(response, now=now)
        return result if result.kind != "ok" else Result("transient", f"{result.reason}, and not as Telegram does")
    said = f"it said {code}: {words}"
    if code == _PATIENCE:
        return Result("throttled", said, retry_after=chat.seconds(_parameters(response).get("retry_after")))
    if code in _REFUSED or _says(response, _NO_CHAT):
        return Result("permanent", f"{said}; the destination is paused", pause=True)
    return Result("permanent" if _BAD <= code < 500 else "transient", said)  # noqa: PLR2004 -- the class of its errors


def _media(card: Card) -> tuple[str, dict[str, Any]]:
    video, poster = (card.values.get(name) for name in ("video_url", "poster"))
    if video:
        return "sendVideo", {"video": video, "supports_streaming": True}
    return ("sendPhoto", {"photo": poster}) if poster else ("sendMessage", {})


def _request(
    method: str, media: dict[str, Any], card: Card, options: TelegramOptions, chat_id: int | str
) -> HttpRequest:
    most = options.limit("caption" if media else "text")
    words: dict[str, Any] = {"caption" if media else "text": _words(card, options, most), "parse_mode": "HTML"}
    if not media:
        words["link_preview_options"] = (
            {"url": card.poster, "prefer_large_media": True} if card.poster else {"is_disabled": True}
        )
    # A button to a host without a dot (localhost) would make it refuse the whole message.
    buttons = [{"text": label, "url": url} for label, url in card.links if "." in (urlsplit(url).hostname or "")]
    more: dict[str, Any] = {"reply_markup": {"inline_keyboard": [buttons]}} if buttons else {}
    if options.thread_id is not None:
        more["message_thread_id"] = options.thread_id
    url = f"{options.api_base}/bot{options.token}/{method}"
    return chat.post(url, {"chat_id": chat_id, **media, **words, **more})


def _words(card: Card, options: TelegramOptions, most: int) -> str:
    """The title, the facts, and as much of the text as there is room for."""
    title = f"<b>{options.title_of(card, options.limit('title'))}</b>"
    pairs = [(label, value) for label, value in options.facts_of(card) if label != "Task"]
    facts = " · ".join(value if label in _PLAIN else f"{label} {value}" for label, value in pairs)
    text = options.text_of(card, max(0, most - _size(title) - _size(facts) - 4))
    return "\n\n".join(part for part in (title, text, facts) if part)


def _parameters(response: HttpResponse) -> dict[str, Any]:
    found = chat.document_of(response).get("parameters")
    return found if isinstance(found, dict) else {}


def _says(response: HttpResponse, words: tuple[str, ...]) -> bool:
    document = chat.document_of(response)
    description = str(document.get("description", "")).lower()
    return document.get("error_code") == _BAD and any(one in description for one in words)


def _masked(request: HttpRequest) -> HttpRequest:
    shown = masked(request)
    return replace(shown, url=re.sub(r"/bot[^/?#]+", f"/bot{MASK}", shown.url))


PACE: Final = (1, timedelta(seconds=3))
"""One a second to a chat and twenty a minute to a group (Bot FAQ): this keeps both."""
KIND: Final = chat.chat_kind("telegram", TelegramOptions, send, masked=_masked, secrets=("token",), steps=3, pace=PACE)
