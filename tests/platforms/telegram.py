"""The Telegram Bot API (core.telegram.org/bots/api): sendVideo, sendPhoto and sendMessage by URL, in HTML mode."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any, Final
from urllib.parse import urlsplit

from tests.platforms import Asked, Checks, Platform, Refused, Said, Shown, document, utf16

TOKEN: Final = "110201543:AAHdqTcvCH1vGWJ-secret-of-the-bot"
_TAGS: Final = frozenset({"b", "strong", "i", "em", "u", "ins", "s", "del", "a", "code", "pre", "blockquote"})
_BARE: Final = re.compile(r"&(?!(?:lt|gt|amp|quot|#[0-9]+|#x[0-9a-fA-F]+);)")
_PING: Final = re.compile(r"(?<![\w@])@[A-Za-z][A-Za-z0-9_]{3,31}")
_COMMON: Final = "message_thread_id disable_notification protect_content reply_markup parse_mode"
_METHODS: Final = {
    "sendVideo": ("video", 1024, "caption supports_streaming cover show_caption_above_media has_spoiler"),
    "sendPhoto": ("photo", 1024, "caption show_caption_above_media has_spoiler"),
    "sendMessage": ("text", 4096, "link_preview_options"),
}  # fmt: skip


def _error(status: int, description: str, **parameters: Any) -> Said:
    more = {"parameters": parameters} if parameters else {}
    return Said(status, {"ok": False, "error_code": status, "description": description, **more})


class Telegram(Platform):
    """A bot, and the chat it may write to.

    Attributes:
        unfetchable: what Telegram says of a file that it cannot take by URL; None while it can.
        chat_id: the one chat it knows.
        methods: which were called, in order, well or not.
    """

    kind = "telegram"

    def __init__(self) -> None:
        super().__init__()
        self.unfetchable: str | None = None
        self.chat_id = "-1001234567890"
        self.methods: list[str] = []

    def keys(self) -> dict[str, Any]:
        """It is named by a token and a chat."""
        return {"token": TOKEN, "chat_id": self.chat_id, "api_base": self.base}

    def throttled(self, wait: float) -> Said:
        """429 with whole seconds, in the body."""
        said = _error(429, f"Too Many Requests: retry after {wait:g}", retry_after=int(wait))
        return Said(said.status, said.body, {"retry-after": f"{wait:g}"}, wait)

    @staticmethod
    def migrated(chat_id: int) -> Said:
        """The group is a supergroup now, under another id."""
        return _error(400, "Bad Request: group chat was upgraded to a supergroup chat", migrate_to_chat_id=chat_id)

    @staticmethod
    def refusal(status: int, description: str) -> Said:
        """Any of its errors."""
        return _error(status, description)

    def take(self, asked: Asked) -> tuple[Said, Shown]:
        """One of the three methods, as JSON."""
        bot, _, method = asked.path.removeprefix("/").partition("/")
        self.methods.append(method)
        if bot != f"bot{TOKEN}":
            raise Refused(_error(401, "Unauthorized"), "no such token")
        if method not in _METHODS:
            raise Refused(_error(404, "Not Found"), f"no such method: {method}")
        check = Checks(lambda why: _error(400, f"Bad Request: {why}"))
        content, most, more = _METHODS[method]
        given = document(asked, _error(400, "Bad Request: no JSON"))
        check.members(given, f"{_COMMON} {more}", f"chat_id {content}")
        check.that(str(given["chat_id"]) == self.chat_id, "chat not found")
        check.that(isinstance(given.get("message_thread_id", 1), int), "message thread not found")
        check.one_of(given.get("parse_mode"), "HTML", where="parse_mode")
        words = given["text"] if method == "sendMessage" else given.get("caption", "")
        seen = _parsed(check, words, most, least=int(method == "sendMessage"))
        pictures: tuple[str, ...] = ()
        if method != "sendMessage":
            pictures = (check.link(given[content], where=content),)
            if self.unfetchable is not None:
                raise Refused(_error(400, f"Bad Request: {self.unfetchable}"), f"{method}: {self.unfetchable}")
        labels, buttons = _buttons(check, given.get("reply_markup"))
        text = "\n".join([seen.text, *labels])
        result = {"message_id": 1, "chat": {"id": given["chat_id"]}}
        return Said(200, {"ok": True, "result": result}), Shown(text, seen.links + buttons, pictures, seen.pings)


def _parsed(check: Checks, text: Any, most: int, *, least: int) -> Shown:
    check.that(isinstance(text, str), "the text is no string")
    html = _Html()
    html.feed(text)
    html.close()
    check.that(not html.flaws and not html.open, f"can't parse entities: {html.flaws or html.open}")
    check.that(not _BARE.search(text), "can't parse entities: an & stands bare")
    check.that(text.count("<") == html.tags == text.count(">"), "can't parse entities: a < or > stands bare")
    seen = "".join(html.texts)
    check.text(seen, most, unit=utf16, where="the text after entities", least=least)
    return Shown(seen, tuple(html.links), (), tuple(html.pings))


class _Html(HTMLParser):
    """The few tags that Telegram knows."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self.links: list[str] = []
        self.pings: list[str] = []
        self.flaws: list[str] = []
        self.open: list[str] = []
        self.tags = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag opens."""
        self.tags += 1
        named = dict(attrs)
        allowed = {"a": {"href"}, "blockquote": {"expandable"}, "code": {"class"}}.get(tag, set())
        if tag not in _TAGS or named.keys() - allowed:
            self.flaws.append(f"unsupported start tag {tag!r}")
        if tag == "a":
            href = named.get("href") or ""
            (self.pings if href.startswith("tg://user") else self.links).append(href)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """A tag closes."""
        self.tags += 1
        if not self.open or self.open.pop() != tag:
            self.flaws.append(f"unmatched end tag {tag!r}")

    def handle_data(self, data: str) -> None:
        """Text; a name in it calls its bearer, but not in code."""
        self.texts.append(data)
        if not {"code", "pre", "a"} & set(self.open):
            self.pings += _PING.findall(data)

    def handle_comment(self, data: str) -> None:
        """There are none."""
        self.flaws.append(f"unsupported start tag {data[:10]!r}")

    def handle_decl(self, decl: str) -> None:
        """Nor these."""
        self.handle_comment(decl)

    def handle_pi(self, data: str) -> None:
        """Nor these."""
        self.handle_comment(data)

    def unknown_decl(self, data: str) -> None:
        """Nor these."""
        self.handle_comment(data)


def _buttons(check: Checks, markup: Any) -> tuple[list[str], tuple[str, ...]]:
    if markup is None:
        return [], ()
    check.members(markup, "", "inline_keyboard", where="reply_markup")
    labels, links = [], []
    for row in check.some(markup["inline_keyboard"], 20, where="rows"):
        for button in check.some(row, 8, where="buttons"):
            check.members(button, "", "text url", where="a button")
            labels.append(check.text(button["text"], 64, where="a button's text"))
            url = check.link(button["url"], where="a button's url", schemes=("http", "https", "tg"))
            # "inline keyboard button URL 'http://localhost/' is invalid: Wrong HTTP URL"
            check.that("." in (urlsplit(url).hostname or ""), f"inline keyboard button URL {url!r} is invalid")
            links.append(url)
    return labels, tuple(links)
