"""A Mattermost incoming webhook (developers.mattermost.com/integrate/webhooks/incoming)."""

from __future__ import annotations

import re
from typing import Any

from tests.platforms import Asked, Checks, Platform, Refused, Said, Shown, document
from tests.platforms.markdown import read

_PING = re.compile(r"(?<![\w@`])@(?:channel|all|here|[a-z][a-z0-9._-]{2,})", re.IGNORECASE)
_ATTACHMENT = (
    "color pretext text author_name author_link author_icon title title_link fields image_url thumb_url footer "
    "footer_icon"
)


def _error(status: int, name: str, why: str) -> Said:
    body = {"id": name, "message": why, "detailed_error": "", "request_id": "r", "status_code": status}
    return Said(status, body)


class Mattermost(Platform):
    """One webhook, for one channel."""

    kind = "mattermost"
    path = "/hooks/mattermost-secret-in-the-path"

    def throttled(self, wait: float) -> Said:
        """429 of its rate limiter."""
        headers = {"x-ratelimit-limit": "10", "x-ratelimit-remaining": "0", "x-ratelimit-reset": f"{wait:g}"}
        return Said(429, b"limit exceeded", {**headers, "retry-after": f"{wait:g}"}, wait)

    def take(self, asked: Asked) -> tuple[Said, Shown]:
        """A JSON message of text and attachments."""
        if asked.path != self.path:
            raise Refused(_error(400, "web.incoming_webhook.invalid.app_error", "Invalid webhook."), "no such webhook")
        check = Checks(lambda why: _error(400, "api.webhook.incoming.error", why))
        given = document(asked, _error(400, "api.incoming_webhook.invalid", "Unable to parse incoming data"))
        check.members(given, "text attachments username icon_url icon_emoji props priority channel type")
        check.that(given.get("text") or given.get("attachments"), "neither text nor attachments")
        texts = [check.text(given.get("text", ""), 16_383, where="text", least=0)]
        links: list[str] = []
        pictures: list[str] = []
        for one in check.some(given.get("attachments", []), 10, where="attachments", least=0):
            _attachment(check, one, texts, links, pictures)
        found = [read(text) for text in texts]
        for text in found:
            links += text.links
            pictures += text.pictures
        pings = tuple(ping for text in texts for ping in _PING.findall(text))
        return Said(200, b"ok"), Shown("\n".join(one.text for one in found), tuple(links), tuple(pictures), pings)


def _attachment(check: Checks, one: Any, texts: list[str], links: list[str], pictures: list[str]) -> None:
    check.members(one, _ATTACHMENT, "fallback", where="an attachment")
    words = ("fallback", "pretext", "text", "author_name", "title", "footer")
    texts += [check.text(one[name], 16_383, where=name) for name in words if name in one]
    links += [check.link(one[name], where=name) for name in ("title_link", "author_link") if name in one]
    pictures += [check.link(one[name], where=name) for name in ("image_url", "thumb_url") if name in one]
    check.that(re.fullmatch("#[0-9A-Fa-f]{6}|good|warning|danger", one.get("color", "good")), "color")
    for field in check.some(one.get("fields", []), 20, where="fields", least=0):
        check.members(field, "short", "title value", where="a field")
        texts.append(check.text(field["title"], 16_383, where="a field's title"))
        texts.append(check.text(field["value"], 16_383, where="a field's value"))
