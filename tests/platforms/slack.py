"""A Slack incoming webhook (api.slack.com/messaging/webhooks, docs.slack.dev/reference/block-kit)."""

from __future__ import annotations

import re
from typing import Any

from tests.platforms import Asked, Checks, Platform, Refused, Said, Shown, document

_POINTED = re.compile(r"<([^<>]*)>")
_AMPERSAND = re.compile(r"&(?!(?:amp|lt|gt);)")


class Slack(Platform):
    """One webhook, for one channel."""

    kind = "slack"
    path = "/services/T00000000/B00000000/slack-secret-in-the-path"

    def __init__(self) -> None:
        super().__init__()
        self.fetches_pictures = True
        """Slack fetches a picture while it is told; where it cannot, the whole message is invalid."""

    def throttled(self, wait: float) -> Said:
        """429 with whole seconds."""
        return Said(429, b"rate_limited", {"retry-after": f"{wait:g}"}, wait)

    def take(self, asked: Asked) -> tuple[Said, Shown]:
        """A JSON message of text and blocks."""
        if asked.path != self.path:
            raise Refused(Said(404, b"no_service"), "no such webhook")
        given = document(asked, Said(400, b"invalid_payload"))
        check = Checks(lambda _why: Said(400, b"invalid_payload"))
        check.members(given, "blocks unfurl_links unfurl_media", "text")
        Checks(lambda _why: Said(400, b"no_text")).text(given["text"], 40_000, where="text")
        seen = _Seen(self.fetches_pictures)
        seen.mrkdwn(given["text"], 40_000, "text")
        blocks = seen.check.some(given.get("blocks", []), 50, where="blocks", least=0)
        for block in blocks:
            seen.block(block)
        return Said(200, b"ok"), Shown("\n".join(seen.texts), *map(tuple, (seen.links, seen.pictures, seen.pings)))


class _Seen:
    """What is read of the blocks, each checked."""

    def __init__(self, fetches_pictures: bool) -> None:
        self.check = Checks(lambda _why: Said(400, b"invalid_blocks"))
        self.fetches_pictures = fetches_pictures
        self.texts: list[str] = []
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.pings: list[str] = []

    def block(self, block: Any) -> None:
        """One block of the kinds that a bare webhook may send."""
        kinds = {
            "header": ("text", ""), "section": ("", "text fields accessory"), "image": ("image_url alt_text", "title"),
            "context": ("elements", ""), "actions": ("elements", ""), "divider": ("", ""),
        }  # fmt: skip
        kind = block.get("type") if isinstance(block, dict) else None
        self.check.one_of(kind, *kinds, where="the type of a block")
        assert isinstance(kind, str)
        must, may = kinds[kind]
        self.check.members(block, f"block_id {may}", f"type {must}", where=kind)
        self.check.text(block.get("block_id", "x"), 255, where="block_id")
        getattr(self, f"_{kind}", lambda _block: None)(block)

    def _header(self, block: dict[str, Any]) -> None:
        self._text(block["text"], 150, "header", plain=True)

    def _section(self, block: dict[str, Any]) -> None:
        self.check.that("text" in block or "fields" in block, "a section has neither text nor fields")
        if "text" in block:
            self._text(block["text"], 3000, "section")
        for one in self.check.some(block.get("fields", []), 10, where="fields", least=int("fields" in block)):
            self._text(one, 2000, "a field")
        if "accessory" in block:
            self._element(block["accessory"])

    def _image(self, block: dict[str, Any]) -> None:
        self.check.link(block["image_url"], 3000, where="image_url")
        self.check.that(self.fetches_pictures, "downloading image failed")
        self.pictures.append(block["image_url"])
        self.texts.append(self.check.text(block["alt_text"], 2000, where="alt_text"))
        if "title" in block:
            self._text(block["title"], 2000, "an image's title", plain=True)

    def _context(self, block: dict[str, Any]) -> None:
        for one in self.check.some(block["elements"], 10, where="elements of a context"):
            self._element(one) if one.get("type") == "image" else self._text(one, 3000, "a context")

    def _actions(self, block: dict[str, Any]) -> None:
        for one in self.check.some(block["elements"], 25, where="elements of actions"):
            self._element(one)

    def _element(self, given: dict[str, Any]) -> None:
        if given.get("type") == "image":
            self.check.members(given, "", "type image_url alt_text", where="an image")
            self._image(given)
            return
        self.check.members(given, "action_id style value accessibility_label", "type text url", where="a button")
        self.check.one_of(given["type"], "button", where="an element")
        self.check.one_of(given.get("style", "primary"), "primary", "danger", where="a button's style")
        self.check.text(given.get("action_id", "x"), 255, where="action_id")
        self._text(given["text"], 75, "a button", plain=True)
        self.links.append(self.check.link(given["url"], 3000, where="a button's url"))

    def _text(self, given: Any, most: int, where: str, *, plain: bool = False) -> None:
        self.check.members(given, "emoji verbatim", "type text", where=where)
        self.check.one_of(given["type"], *(["plain_text"] if plain else ["plain_text", "mrkdwn"]), where=where)
        if given["type"] == "plain_text":
            self.texts.append(self.check.text(given["text"], most, where=where))
        else:
            self.mrkdwn(given["text"], most, where)

    def mrkdwn(self, text: str, most: int, where: str) -> None:
        """Control sequences are between < and >; all other of these and & are escaped."""
        self.check.text(text, most, where=where)
        for match in _POINTED.finditer(text):
            inside, _, label = match[1].partition("|")
            (self.pings if inside[:1] in {"!", "@", "#"} else self.links).append(inside.replace("&amp;", "&"))
            self.check.that(inside[:1] in {"!", "@", "#"} or "://" in inside, f"{where}: <{inside}> is nothing")
            self.check.that("\n" not in label, f"{where}: a link over two lines")
        self.check.that(not _AMPERSAND.search(text), f"{where}: an & stands bare")
        bare = _POINTED.sub(lambda match: match[1].partition("|")[2] or match[1], text)
        self.check.that("<" not in bare, f"{where}: a < stands bare")
        self.texts.append(bare.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
