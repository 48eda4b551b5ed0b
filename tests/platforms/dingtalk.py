"""A DingTalk custom robot (open.dingtalk.com: custom-robot-access); errors come in a 200."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from typing import Any, Final

from tests.platforms import Asked, Checks, Platform, Refused, Said, Shown, document
from tests.platforms.markdown import read

SECRET: Final = "SECdingtalk-signing-secret"
ACCESS_TOKEN: Final = "dingtalk-secret-in-the-query"
MOST: Final = 20_000
_GOOD_FOR: Final = 3_600_000


def _error(code: int, msg: str) -> Said:
    return Said(200, {"errcode": code, "errmsg": msg})


class DingTalk(Platform):
    """One robot of one group, with its signature switched on."""

    kind = "dingtalk"
    path = "/robot/send"

    @property
    def url(self) -> str:
        """Its token is in the query."""
        return f"{self.base}{self.path}?access_token={ACCESS_TOKEN}"

    def keys(self) -> dict[str, Any]:
        """With its secret."""
        return {"url": self.url, "secret": SECRET}

    def throttled(self, wait: float) -> Said:
        """130101 in a 200; the documentation names ten minutes, the answer names nothing."""
        return Said(200, {"errcode": 130101, "errmsg": "send too fast, exceed 20 times per minute"}, {}, wait)

    @staticmethod
    def refusal(code: int, msg: str) -> Said:
        """Any of its errors."""
        return _error(code, msg)

    def take(self, asked: Asked) -> tuple[Said, Shown]:
        """A signed actionCard, markdown, link or text."""
        if asked.path != self.path:
            raise Refused(Said(404, b""), "no such API")
        if asked.query.get("access_token") != ACCESS_TOKEN:
            raise Refused(_error(300001, "token is not exist"), "no such robot")
        self._signed(asked)
        if len(asked.body) > MOST:
            raise Refused(_error(460101, "message too long, exceed 20000 bytes"), f"{len(asked.body)} bytes")
        check = Checks(lambda why: _error(400105, f"param error: {why}"))
        given = document(asked, _error(43004, "invalid HTTP HEADER Content-Type"))
        kind = check.members(given, "actionCard markdown link text at", "msgtype")["msgtype"]
        check.one_of(kind, "actionCard", "markdown", "link", "text", where="msgtype")
        check.that(given.keys() - {"at"} == {"msgtype", kind}, f"{kind} comes with {sorted(given)}")
        at = check.members(given.get("at", {}), "isAtAll atMobiles atUserIds", where="at")
        pings = tuple(str(one) for one in at.values() if one)
        shown: _Parts = getattr(_Message(check), kind.lower())(given[kind])
        return Said(200, {"errcode": 0, "errmsg": "ok"}), Shown(shown[0], shown[1], shown[2], pings)

    @staticmethod
    def _signed(asked: Asked) -> None:
        r"""HMAC-SHA256 with the secret as the key over "<timestamp>\n<secret>", both in the query."""
        stamp = asked.query.get("timestamp", "")
        if not re.fullmatch("[0-9]{13}", stamp) or abs(time.time() * 1000 - int(stamp)) > _GOOD_FOR:
            raise Refused(_error(310000, "invalid timestamp"), f"the timestamp {stamp!r}")
        good = hmac.new(SECRET.encode(), f"{stamp}\n{SECRET}".encode(), hashlib.sha256).digest()
        if asked.query.get("sign") != base64.b64encode(good).decode():
            raise Refused(_error(310000, "sign not match"), "the signature")


_Parts = tuple[str, tuple[str, ...], tuple[str, ...]]


class _Message:
    """How each type of message is read: text, links, pictures."""

    def __init__(self, check: Checks) -> None:
        self.check = check

    def actioncard(self, given: Any) -> _Parts:
        """Markdown with buttons."""
        check = self.check
        check.members(given, "btnOrientation btns singleTitle singleURL", "title text", where="actionCard")
        check.that(("btns" in given) != ("singleURL" in given), "either btns, or singleTitle and singleURL")
        check.one_of(given.get("btnOrientation", "0"), "0", "1", where="btnOrientation")
        buttons = [(given.get("singleTitle"), given.get("singleURL"))]
        if "btns" in given:
            for one in check.some(given["btns"], 10, where="btns"):
                check.members(one, "", "title actionURL", where="a button")
            buttons = [(one["title"], one["actionURL"]) for one in given["btns"]]
        text, links, pictures = self.markdown({"title": given["title"], "text": given["text"]})
        labels = [check.text(title, 200, where="a button's title") for title, _ in buttons]
        more = tuple(check.link(url, where="a button's url") for _, url in buttons)
        return "\n".join([text, *labels]), links + more, pictures

    def markdown(self, given: Any) -> _Parts:
        """Markdown; a backslash takes nothing's power away here."""
        self.check.members(given, "", "title text", where="markdown")
        title = self.check.text(given["title"], MOST, where="title")
        found = read(self.check.text(given["text"], MOST, where="text"), escapes=False)
        return f"{title}\n{found.text}", found.links, found.pictures

    def link(self, given: Any) -> _Parts:
        """Plain text, a picture, one link."""
        self.check.members(given, "picUrl", "title text messageUrl", where="link")
        words = [self.check.text(given[name], MOST, where=name) for name in ("title", "text")]
        pictures = (self.check.link(given["picUrl"], where="picUrl"),) if given.get("picUrl") else ()
        return "\n".join(words), (self.check.link(given["messageUrl"], where="messageUrl"),), pictures

    def text(self, given: Any) -> _Parts:
        """Plain text."""
        self.check.members(given, "", "content", where="text")
        return self.check.text(given["content"], MOST, where="content"), (), ()
