"""An ntfy server, published to as JSON (docs.ntfy.sh/publish/#publish-as-json, its server/errors.go)."""

from __future__ import annotations

import re
from typing import Any, Final

from tests.platforms import Asked, Checks, Platform, Refused, Said, Shown, document, utf8
from tests.platforms.markdown import read

TOKEN: Final = "tk_ntfysecrettokenofthistest000"
TOPIC: Final = "renders-of-this-test"
_IN_ALL: Final = 8192
_MEMBERS: Final = "title message tags priority click attach filename icon actions markdown delay email call id"


def _error(status: int, code: int, words: str) -> Said:
    return Said(status, {"code": code, "http": status, "error": words, "link": "https://ntfy.sh/docs/publish/"})


class Ntfy(Platform):
    """A server with one reserved topic."""

    kind = "ntfy"

    def keys(self) -> dict[str, Any]:
        """The root of the server, the topic, the token."""
        return {"url": self.base, "topic": TOPIC, "token": TOKEN}

    def throttled(self, wait: float) -> Said:
        """429; it names no time: a request is given back every 5 s."""
        said = _error(429, 42901, "limit reached: too many requests, please be nice")
        return Said(429, said.body, {}, wait)

    @staticmethod
    def refusal(status: int, code: int, words: str) -> Said:
        """Any of its errors."""
        return _error(status, code, words)

    def take(self, asked: Asked) -> tuple[Said, Shown]:
        """A JSON message."""
        if asked.path != "/":
            raise Refused(_error(404, 40401, "page not found"), f"{asked.path} is not the root")
        if asked.headers.get("authorization") != f"Bearer {TOKEN}":
            raise Refused(_error(403, 40301, "forbidden"), "not by this token")
        if len(asked.body) > _IN_ALL:
            raise Refused(_error(413, 41303, "JSON body too large"), f"{len(asked.body)} bytes")
        bad = _error(400, 40024, "invalid request: request body must be valid JSON")
        check = Checks(lambda why: _error(400, 40017, f"invalid request: {why}"))
        given = check.members(document(asked, bad), _MEMBERS, "topic")
        if given["topic"] != TOPIC or not re.fullmatch("[-_A-Za-z0-9]{1,64}", given["topic"]):
            raise Refused(_error(403, 40301, "forbidden"), "not to this topic")
        check.one_of(given.get("priority", 3), 1, 2, 3, 4, 5, where="priority")
        check.that(all(isinstance(tag, str) for tag in given.get("tags", [])), "tags")
        check.that(isinstance(given.get("markdown", False), bool), "markdown")
        title = check.text(given.get("title", ""), 1024, unit=utf8, where="title", least=0)
        check.that("\n" not in title, "a title of two lines")
        # A longer one would become an attachment.
        message = check.text(given.get("message", ""), 4096, unit=utf8, where="message", least=0)
        links: list[str] = []
        pictures: list[str] = []
        labels: list[str] = []
        for name, found in (("click", links), ("attach", pictures), ("icon", pictures)):
            if name in given:
                found.append(check.link(given[name], where=name))
        for action in check.some(given.get("actions", []), 3, where="actions", least=0):
            check.members(action, "clear", "action label url", where="an action")
            check.one_of(action["action"], "view", where="an action")
            labels.append(check.text(action["label"], 100, where="a label"))
            links.append(check.link(action["url"], where="an action's url"))
        if given.get("markdown"):
            parsed = read(message)
            message = parsed.text
            links += parsed.links
        answer = {"id": "xE73Iyuabi", "time": 1, "event": "message", "topic": TOPIC, "message": message}
        return Said(200, answer), Shown("\n".join([title, message, *labels]), tuple(links), tuple(pictures))
