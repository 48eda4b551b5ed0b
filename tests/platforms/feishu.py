"""A Feishu (or Lark) custom bot (open.feishu.cn: custom-bot-guide); errors come in a 200."""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
import re
import time
from typing import Any, Final

from tests.platforms import Asked, Checks, Platform, Refused, Said, Shown, document
from tests.platforms.markdown import read

SECRET: Final = "feishu-signing-secret"
MOST: Final = 20 * 1024
_GOOD_FOR: Final = 3600
_AT: Final = re.compile(r"<at[^>]*>")
_COLOURS: Final = (
    "blue", "wathet", "turquoise", "green", "yellow", "orange", "red", "carmine", "violet", "purple", "indigo", "grey",
)  # fmt: skip


def _error(code: int, msg: str) -> Said:
    return Said(200, {"code": code, "msg": msg, "data": {}})


class Feishu(Platform):
    """One bot of one group, with its signature switched on."""

    kind = "feishu"
    path = "/open-apis/bot/v2/hook/feishu-secret-in-the-path"

    def keys(self) -> dict[str, Any]:
        """With its secret."""
        return {"url": self.url, "secret": SECRET}

    def throttled(self, wait: float) -> Said:
        """11232 in a 200; it names no time, `wait` is what the test thinks right."""
        return Said(200, {"code": 11232, "msg": "frequency limited psm"}, {}, wait)

    @staticmethod
    def refusal(code: int, msg: str, *, status: int = 200) -> Said:
        """Any of its errors."""
        return Said(status, {"code": code, "msg": msg, "data": {}})

    def take(self, asked: Asked) -> tuple[Said, Shown]:
        """A signed card or text."""
        if asked.path != self.path:
            raise Refused(_error(19001, "param invalid: incoming webhook access token invalid"), "no such bot")
        if len(asked.body) > MOST:
            raise Refused(_error(9499, "Bad Request"), f"{len(asked.body)} bytes, {MOST} are taken")
        check = Checks(lambda why: _error(9499, f"Bad Request: {why}"))
        given = document(asked, _error(9499, "Bad Request"))
        check.members(given, "content card", "msg_type timestamp sign")
        self._signed(given)
        check.one_of(given["msg_type"], "interactive", "text", where="msg_type")
        if given["msg_type"] == "text":
            check.members(given["content"], "", "text", where="content")
            text = check.text(given["content"]["text"], MOST, where="text")
            shown = Shown(text, (), (), tuple(_AT.findall(text)))
        else:
            shown = _Card(check).shown(given["card"])
        answer = {"StatusCode": 0, "StatusMessage": "success", "code": 0, "data": {}, "msg": "success"}
        return Said(200, answer), shown

    @staticmethod
    def _signed(given: dict[str, Any]) -> None:
        r"""HMAC-SHA256 with the key "<timestamp>\n<secret>" over nothing."""
        refused = _error(19021, "sign match fail or timestamp is not within one hour from current time")
        stamp = given["timestamp"]
        if not isinstance(stamp, str) or abs(time.time() - float(stamp)) > _GOOD_FOR:
            raise Refused(refused, f"the timestamp {stamp!r}")
        good = hmac.new(f"{stamp}\n{SECRET}".encode(), b"", hashlib.sha256).digest()
        if given["sign"] != base64.b64encode(good).decode():
            raise Refused(refused, "the signature")


class _Card:
    """What is read of a card, each part checked."""

    def __init__(self, check: Checks) -> None:
        self.check = check
        self.texts: list[str] = []
        self.links: list[str] = []
        self.pings: list[str] = []

    def shown(self, card: Any) -> Shown:
        """All of it."""
        self.check.members(card, "config header card_link", "elements", where="the card")
        self.check.members(card.get("config", {}), "wide_screen_mode enable_forward update_multi", where="config")
        if "header" in card:
            self.check.members(card["header"], "template", "title", where="the header")
            self.check.one_of(card["header"].get("template", "blue"), *_COLOURS, where="the template")
            self._text(card["header"]["title"])
        for one in self.check.some(card["elements"], 50, where="elements"):
            self._element(one)
        return Shown("\n".join(self.texts), tuple(self.links), (), tuple(self.pings))

    def _element(self, one: Any) -> None:
        tag = one.get("tag") if isinstance(one, dict) else None
        self.check.one_of(tag, "markdown", "div", "action", "hr", "note", where="an element")
        if tag == "markdown":
            self.check.members(one, "text_align", "tag content", where="markdown")
            self._markdown(one["content"])
        elif tag == "div":
            self.check.members(one, "fields", "tag text", where="a div")
            self._text(one["text"])
            for field in one.get("fields", []):
                self.check.members(field, "", "is_short text", where="a field")
                self._text(field["text"])
        elif tag == "note":
            self.check.members(one, "", "tag elements", where="a note")
            for text in one["elements"]:
                self._text(text)
        elif tag == "action":
            self.check.members(one, "layout", "tag actions", where="an action")
            for button in self.check.some(one["actions"], 10, where="actions"):
                self._button(button)

    def _button(self, button: Any) -> None:
        self.check.members(button, "type", "tag text url", where="a button")
        self.check.one_of(button["tag"], "button", where="an action")
        self.check.one_of(button.get("type", "default"), "default", "primary", "danger", where="a button's type")
        self._text(button["text"])
        self.links.append(self.check.link(button["url"], where="a button's url"))

    def _text(self, given: Any) -> None:
        self.check.members(given, "lines", "tag content", where="a text")
        self.check.one_of(given["tag"], "plain_text", "lark_md", where="a text")
        if given["tag"] == "plain_text":
            self.texts.append(self.check.text(given["content"], MOST, where="a text"))
        else:
            self._markdown(given["content"])

    def _markdown(self, given: Any) -> None:
        found = read(self.check.text(given, MOST, where="markdown"), escapes=False)
        self.texts.append(html.unescape(found.text))  # special characters come by their numbers
        self.links += found.links
        self.pings += _AT.findall(given)
        self.check.that(not found.pictures, "a picture needs an img_key")
