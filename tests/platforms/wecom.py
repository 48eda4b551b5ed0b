"""A WeCom group robot (developer.work.weixin.qq.com/document/path/99110); errors come in a 200."""

from __future__ import annotations

from typing import Any, Final

from tests.platforms import Asked, Checks, Platform, Refused, Said, Shown, document, utf8
from tests.platforms.markdown import read

KEY: Final = "wecom-secret-in-the-query"


def _error(code: int, msg: str) -> Said:
    return Said(
        200, {"errcode": code, "errmsg": f"{msg}, hint: [1700000000], more info at https://open.work.weixin.qq.com"}
    )


class WeCom(Platform):
    """One robot of one group."""

    kind = "wecom"
    path = "/cgi-bin/webhook/send"

    @property
    def url(self) -> str:
        """Its key is in the query."""
        return f"{self.base}{self.path}?key={KEY}"

    def throttled(self, wait: float) -> Said:
        """45009 in a 200; it names no time: twenty a minute are taken."""
        said = _error(45009, "api freq out of limit")
        return Said(200, said.body, {}, wait)

    @staticmethod
    def refusal(code: int, msg: str) -> Said:
        """Any of its errors."""
        return _error(code, msg)

    def take(self, asked: Asked) -> tuple[Said, Shown]:
        """A template card, news, markdown or text."""
        if asked.path != self.path:
            raise Refused(Said(404, b""), "no such API")
        if asked.query != {"key": KEY}:
            raise Refused(_error(93000, "invalid webhook url"), "no such robot")
        check = Checks(lambda why: _error(40058, f"invalid Request Parameter: {why}"))
        given = document(asked, _error(44001, "empty media data"))
        kind = check.members(given, "text markdown markdown_v2 news template_card", "msgtype")["msgtype"]
        check.one_of(kind, "text", "markdown", "markdown_v2", "news", "template_card", where="msgtype")
        check.that(given.keys() == {"msgtype", kind}, f"{kind} comes with {sorted(given)}")
        shown: Shown = getattr(_Message(check), kind)(given[kind])
        return Said(200, {"errcode": 0, "errmsg": "ok"}), shown


class _Message:
    """How each type of message is read."""

    def __init__(self, check: Checks) -> None:
        self.check = check

    def text(self, given: Any) -> Shown:
        """Plain text, 2,048 bytes."""
        self.check.members(given, "mentioned_list mentioned_mobile_list", "content", where="text")
        pings = (*given.get("mentioned_list", ()), *given.get("mentioned_mobile_list", ()))
        return Shown(self.check.text(given["content"], 2048, unit=utf8, where="content"), (), (), pings)

    def markdown(self, given: Any) -> Shown:
        """4,096 bytes; <@name> calls."""
        self.check.members(given, "", "content", where="markdown")
        content = self.check.text(given["content"], 4096, unit=utf8, where="content")
        found = read(content, escapes=False)
        return Shown(found.text, found.links, found.pictures, ("<@",) * content.count("<@"))

    def markdown_v2(self, given: Any) -> Shown:
        """4,096 bytes; nobody can be called."""
        shown = self.markdown(given)
        return Shown(shown.text, shown.links, shown.pictures)

    def news(self, given: Any) -> Shown:
        """Plain text, a picture, a link."""
        self.check.members(given, "", "articles", where="news")
        texts, links, pictures = [], [], []
        for one in self.check.some(given["articles"], 8, where="articles"):
            self.check.members(one, "description picurl", "title url", where="an article")
            texts.append(self.check.text(one["title"], 128, unit=utf8, where="title"))
            texts.append(self.check.text(one.get("description", ""), 512, unit=utf8, where="description", least=0))
            links.append(self.check.link(one["url"], where="url"))
            pictures += [self.check.link(one["picurl"], where="picurl")] if one.get("picurl") else []
        return Shown("\n".join(texts), tuple(links), tuple(pictures))

    def template_card(self, given: Any) -> Shown:
        """A card; its texts are plain. What the documentation only recommends is refused here."""
        self.check.members(
            given,
            "source main_title emphasis_content quote_area sub_title_text horizontal_content_list jump_list "
            "card_image image_text_area vertical_content_list",
            "card_type card_action",
            where="the card",
        )
        self.check.one_of(given["card_type"], "text_notice", "news_notice", where="card_type")
        read_card = _CardRead(self.check)
        read_card.all_of(given, is_news=given["card_type"] == "news_notice")
        return Shown("\n".join(read_card.texts), tuple(read_card.links), tuple(read_card.pictures))


class _CardRead:
    """The parts of a template card."""

    def __init__(self, check: Checks) -> None:
        self.check = check
        self.texts: list[str] = []
        self.links: list[str] = []
        self.pictures: list[str] = []

    def all_of(self, card: dict[str, Any], *, is_news: bool) -> None:
        """Every part that is there, and those that must be."""
        self._source(card.get("source", {}))
        title = card.get("main_title", {})
        self.check.members(title, "title desc", where="main_title")
        self._texts(title, title=26, desc=30)
        self.check.that(title.get("title") or (not is_news and card.get("sub_title_text")), "the card has no title")
        if is_news:
            self._image(card.get("card_image"))
        else:
            self.check.that("vertical_content_list" not in card, "vertical_content_list in a text_notice")
            self._texts(card, sub_title_text=112)
        self._lists(card)
        action = self.check.members(card["card_action"], "", "type url", where="card_action")
        self.check.one_of(action["type"], 1, where="the type of card_action")
        self.links.append(self.check.link(action["url"], where="card_action"))

    def _source(self, given: Any) -> None:
        self.check.members(given, "icon_url desc desc_color", where="source")
        self._texts(given, desc=13)
        self.check.one_of(given.get("desc_color", 0), 0, 1, 2, 3, where="desc_color")

    def _image(self, given: Any) -> None:
        self.check.members(given, "aspect_ratio", "url", where="card_image")
        self.check.that(1.3 < given.get("aspect_ratio", 1.78) < 2.25, "aspect_ratio")
        self.pictures.append(self.check.link(given["url"], where="card_image"))

    def _lists(self, card: dict[str, Any]) -> None:
        for one in self.check.some(card.get("vertical_content_list", []), 4, where="vertical_content_list", least=0):
            self.check.members(one, "desc", "title", where="a vertical content")
            self._texts(one, title=26, desc=112)
        for one in self.check.some(
            card.get("horizontal_content_list", []), 6, where="horizontal_content_list", least=0
        ):
            self.check.members(one, "type url value", "keyname", where="a horizontal content")
            self._texts(one, keyname=5, value=26)
        for one in self.check.some(card.get("jump_list", []), 3, where="jump_list", least=0):
            self.check.members(one, "", "type title url", where="a jump")
            self._texts(one, title=13)
            self.links.append(self.check.link(one["url"], where="a jump"))
        quote = self.check.members(card.get("quote_area", {}), "type url title quote_text", where="quote_area")
        self._texts(quote, title=26, quote_text=112)

    def _texts(self, given: dict[str, Any], **most: int) -> None:
        for name, limit in most.items():
            if name in given:
                self.texts.append(self.check.text(given[name], limit, where=name))
