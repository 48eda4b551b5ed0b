"""A Discord webhook (docs.discord.com/developers/resources/webhook#execute-webhook)."""

from __future__ import annotations

from typing import Any

from tests.platforms import Asked, Checks, Platform, Refused, Said, Shown, document
from tests.platforms.markdown import read

_IN_ALL = 6000
_URLS = ("http", "https", "attachment")


def _invalid(why: str) -> Said:
    return Said(400, {"message": "Invalid Form Body", "code": 50035, "errors": {"_errors": [{"message": why}]}})


class Discord(Platform):
    """One webhook, for one channel.

    Attributes:
        is_forum: a message must name its thread.
    """

    kind = "discord"
    path = "/api/webhooks/1234567890/discord-secret-in-the-path"

    def __init__(self) -> None:
        super().__init__()
        self.is_forum = False
        self.queries: list[dict[str, str]] = []

    def throttled(self, wait: float, *, where: str = "user") -> Said:
        """429 with a float of seconds, in the body and in the headers."""
        body = {"message": "You are being rate limited.", "retry_after": wait, "global": where == "global"}
        headers = {
            "retry-after": str(int(wait) + 1),
            "x-ratelimit-reset-after": f"{wait:.3f}",
            "x-ratelimit-remaining": "0",
            "x-ratelimit-bucket": "abcd1234",
            "x-ratelimit-scope": where,
        }
        return Said(429, body, headers, wait)

    @staticmethod
    def gone() -> Said:
        """The webhook was deleted."""
        return Said(404, {"message": "Unknown Webhook", "code": 10015})

    def take(self, asked: Asked) -> tuple[Said, Shown]:
        """A JSON message of content and embeds, with mentions switched off."""
        if asked.path != self.path:
            raise Refused(self.gone(), "no such webhook")
        check = Checks(_invalid)
        given = document(asked, _invalid("no JSON"))
        check.members(
            given, "content embeds username avatar_url allowed_mentions components flags thread_name tts applied_tags"
        )
        check.that(asked.query.keys() <= {"wait", "thread_id", "with_components"}, f"the query is {asked.query}")
        check.that(asked.query.get("wait") == "true", "without wait=true nobody learns whether it was saved")
        check.that(given.get("allowed_mentions") == {"parse": []}, "mentions are not switched off")
        named = "thread_name" in given or "thread_id" in asked.query
        if self.is_forum and not named:
            said = Said(400, {"message": "Webhooks posted to forum channels must have a thread_name", "code": 220001})
            raise Refused(said, "no thread in a forum")
        if "username" in given:
            name = check.text(given["username"], 80, where="username").lower()
            check.that("discord" not in name and "clyde" not in name, "username")
        check.text(given.get("thread_name", "x"), 100, where="thread_name")
        self.queries.append(dict(asked.query))
        shown = _shown(check, given, with_components=asked.query.get("with_components") == "true")
        headers = {"x-ratelimit-limit": "5", "x-ratelimit-remaining": "4", "x-ratelimit-reset-after": "1.000"}
        return Said(200, {"id": "1", "type": 0, "content": given.get("content", "")}, headers), shown


def _shown(check: Checks, given: dict[str, Any], *, with_components: bool) -> Shown:
    content = check.text(given.get("content", ""), 2000, where="content", least=0)
    embeds = check.some(given.get("embeds", []), 10, where="embeds", least=0)
    check.that(content or embeds, "Cannot send an empty message")
    rich, links, pictures, total = [content], [], [], 0
    for embed in embeds:
        texts = _embed(check, embed)
        total += sum(map(len, texts))
        rich += texts
        links += [embed["url"]] if "url" in embed else []
        pictures += [embed[name]["url"] for name in ("image", "thumbnail") if name in embed]
    check.that(total <= _IN_ALL, f"the embeds have {total} characters in all")
    rows = check.some(given.get("components", []), 5, where="components", least=0)
    check.that(with_components or not rows, "components without with_components=true")
    for row in rows:
        check.members(row, "", "type components", where="a row")
        for button in check.some(row["components"], 5, where="buttons"):
            check.members(button, "emoji", "type style label url", where="a button")
            check.one_of((button["type"], button["style"]), (2, 5), where="a button that only links")
            rich.append(check.text(button["label"], 80, where="a label"))
            links.append(check.link(button["url"], 512, where="a button's url"))
    found = [read(text) for text in rich]
    for one in found:
        links += one.links
    return Shown("\n".join(one.text for one in found), tuple(links), tuple(pictures), ())


def _embed(check: Checks, embed: Any) -> list[str]:
    """The texts of one embed."""
    check.members(embed, "title description url timestamp color footer image thumbnail author fields", where="an embed")
    texts = []
    for name, most in (("title", 256), ("description", 4096)):
        if name in embed:
            texts.append(check.text(embed[name], most, where=name))
    if "url" in embed:
        check.link(embed["url"], where="an embed's url")
    if "color" in embed:
        check.that(isinstance(embed["color"], int) and 0 <= embed["color"] <= 0xFFFFFF, "color")
    for name in ("image", "thumbnail"):
        if name in embed:
            check.members(embed[name], "", "url", where=name)
            check.link(embed[name]["url"], where=name, schemes=_URLS)
    for name, most in (("footer", 2048), ("author", 256)):
        if name in embed:
            word = {"footer": "text", "author": "name"}[name]
            check.members(embed[name], "icon_url url", word, where=name)
            texts.append(check.text(embed[name][word], most, where=name))
    for one in check.some(embed.get("fields", []), 25, where="fields", least=0):
        check.members(one, "inline", "name value", where="a field")
        texts.append(check.text(one["name"], 256, where="a field's name"))
        texts.append(check.text(one["value"], 1024, where="a field's value"))
    return texts
