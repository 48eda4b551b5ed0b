"""A Microsoft Teams Workflows webhook: an Adaptive Card in a message, 28 KB, taken with 202 and nothing else.

learn.microsoft.com: add-incoming-webhook, cards-format, adaptivecards.io/explorer.
"""

from __future__ import annotations

import re
from typing import Any, Final

from tests.platforms import Asked, Checks, Platform, Refused, Said, Shown, document
from tests.platforms.markdown import read

MOST: Final = 28 * 1024
_CARD: Final = "application/vnd.microsoft.card.adaptive"
_VERSIONS: Final = ("1.0", "1.1", "1.2", "1.3", "1.4", "1.5")
_ANY: Final = "id isVisible separator spacing height fallback"
_ELEMENTS: Final = {
    "TextBlock": ("text", "color fontType horizontalAlignment isSubtle maxLines size weight wrap style"),
    "Image": ("url", "altText backgroundColor horizontalAlignment selectAction size style width msteams"),
    "Container": ("items", "selectAction style verticalContentAlignment bleed minHeight"),
    "ColumnSet": ("columns", "selectAction style bleed minHeight horizontalAlignment"),
    "Column": ("", "items bleed minHeight selectAction style verticalContentAlignment width"),
    "FactSet": ("facts", ""),
    "ActionSet": ("actions", ""),
}
_AT: Final = re.compile(r"<at>(.*?)</at>")


def _error(status: int, code: str, why: str) -> Said:
    return Said(status, {"error": {"code": code, "message": why}})


class Teams(Platform):
    """One workflow; its secret is the query."""

    kind = "teams"
    path = "/powerautomate/automations/direct/workflows/abc/triggers/manual/paths/invoke"
    secret = "api-version=1&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=teams-secret-in-the-query"

    @property
    def url(self) -> str:
        """With its query."""
        return f"{self.base}{self.path}?{self.secret}"

    def throttled(self, wait: float) -> Said:
        """429 with whole seconds."""
        body = {"error": {"code": "WorkflowTriggerRateLimitExceeded", "message": "Too many requests."}}
        return Said(429, body, {"retry-after": f"{wait:g}"}, wait)

    def take(self, asked: Asked) -> tuple[Said, Shown]:
        """A message with one card."""
        if asked.query.get("sig") != "teams-secret-in-the-query":
            raise Refused(_error(401, "DirectApiAuthorizationRequired", "bad sig"), "the signature in the query")
        if asked.path != self.path:
            raise Refused(_error(404, "WorkflowNotFound", "gone"), "no such workflow")
        if len(asked.body) > MOST:
            raise Refused(Said(413, b""), f"{len(asked.body)} bytes, {MOST} are taken")
        check = Checks(lambda why: _error(400, "TriggerInputSchemaMismatch", why))
        given = document(asked, _error(400, "InvalidRequestContent", "no JSON"))
        check.members(given, "summary", "type attachments")
        check.one_of(given["type"], "message", where="type")
        [attachment] = check.some(given["attachments"], 1, where="attachments")
        check.members(attachment, "contentUrl name", "contentType content", where="the attachment")
        check.one_of(attachment["contentType"], _CARD, where="contentType")
        check.that(attachment.get("contentUrl") is None, "contentUrl is not null")
        return Said(202), _Card(check).shown(attachment["content"])


class _Card:
    """What is read of a card, each part checked."""

    def __init__(self, check: Checks) -> None:
        self.check = check
        self.texts: list[str] = []
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.pings: list[str] = []

    def shown(self, card: Any) -> Shown:
        """All of it."""
        self.check.members(
            card, "$schema actions msteams fallbackText lang speak selectAction minHeight", "type version body",
            where="the card",
        )  # fmt: skip
        self.check.one_of(card["type"], "AdaptiveCard", where="the card's type")
        self.check.one_of(card["version"], *_VERSIONS, where="the card's version")
        self.check.members(card.get("msteams", {}), "width", where="msteams")  # entities would ping
        self._elements(card["body"])
        self._actions(card.get("actions", []))
        return Shown("\n".join(self.texts), *map(tuple, (self.links, self.pictures, self.pings)))

    def _elements(self, given: Any) -> None:
        for one in self.check.some(given, 50, where="elements"):
            kind = one.get("type") if isinstance(one, dict) else None
            self.check.one_of(kind, *_ELEMENTS, where="the type of an element")
            must, may = _ELEMENTS[str(kind)]
            self.check.members(one, f"{may} {_ANY}", f"type {must}", where=str(kind))
            self._one(str(kind), one)

    def _one(self, kind: str, one: dict[str, Any]) -> None:
        if kind == "TextBlock":
            self._markdown(one["text"])
        elif kind == "Image":
            self.pictures.append(self.check.link(one["url"], where="an image's url"))
            self.texts.append(self.check.text(one.get("altText", "-"), MOST, where="altText"))
        elif kind == "FactSet":
            for fact in self.check.some(one["facts"], 30, where="facts"):
                self.check.members(fact, "", "title value", where="a fact")
                self._markdown(fact["title"])
                self._markdown(fact["value"])
        elif kind == "ActionSet":
            self._actions(one["actions"])
        else:
            self._elements(one.get("items") or one.get("columns"))
        if "selectAction" in one:
            self._actions([one["selectAction"]])

    def _actions(self, given: Any) -> None:
        for one in self.check.some(given, 6, where="actions", least=0):
            self.check.members(one, "title iconUrl id style tooltip", "type url", where="an action")
            self.check.one_of(one["type"], "Action.OpenUrl", where="an action")
            self.links.append(self.check.link(one["url"], 8192, where="an action's url"))
            self.texts.append(self.check.text(one.get("title", "-"), 200, where="an action's title"))

    def _markdown(self, given: Any) -> None:
        found = read(self.check.text(given, MOST, where="text"))
        self.texts.append(found.text)
        self.links += found.links
        self.pictures += found.pictures
        self.pings += _AT.findall(given)
