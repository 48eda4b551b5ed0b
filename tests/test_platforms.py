"""The judges are strict: each platform takes what its kind sends, and refuses it with one thing wrong.

Without this a suite of kinds could be green because its platforms take everything.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from receiver.wire import HttpRequest
from tests.kind_room import event, options_of, steps_of
from tests.platforms import Asked
from tests.platforms.every import EVERY, driven, played

if TYPE_CHECKING:
    from collections.abc import Callable


def _sent(kind: str) -> HttpRequest:
    platform = played(kind)
    return next(steps_of(kind, options_of(kind, platform.keys()), event()))


def _put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set what stands at the end of a path; `None` takes it out."""

    def change(document: Any) -> None:
        for part in path[:-1]:
            document = document[part]
        if value is None:
            del document[path[-1]]
        else:
            document[path[-1]] = value

    return change


_CARD = ("attachments", 0, "content")
_WRONG: list[tuple[str, str, Callable[[dict[str, Any]], None]]] = [
    ("slack", "header has 151", _put("blocks", 0, "text", "text", value="x" * 151)),
    ("slack", "unknown members", _put("blocks", 0, "colour", value="red")),
    ("slack", "stands bare", _put("blocks", 1, "text", "text", value="a & b")),
    ("slack", "is nothing", _put("blocks", 1, "text", "text", value="a <b> c")),
    ("slack", "lacks ['text']", _put("text", value=None)),
    ("slack", "blocks has 51", _put("blocks", value=[{"type": "divider"}] * 51)),
    ("discord", "mentions are not switched off", _put("allowed_mentions", value=None)),
    ("discord", "title has 257", _put("embeds", 0, "title", value="x" * 257)),
    ("discord", "content has 2001", _put("content", value="x" * 2001)),
    ("discord", "characters in all", _put("embeds", 0, "fields", value=[{"name": "n", "value": "x" * 1024}] * 6)),
    ("telegram", "after entities has 1025", _put("caption", value="&lt;" * 1025)),
    ("telegram", "can't parse", _put("caption", value="a < b")),
    ("telegram", "can't parse", _put("caption", value="<b>a")),
    ("telegram", "can't parse", _put("caption", value="<img src=x>")),
    ("telegram", "chat not found", _put("chat_id", value=1)),
    ("telegram", "is invalid", _put("reply_markup", "inline_keyboard", 0, 0, "url", value="http://localhost/")),
    ("teams", "28672 are taken", _put(*_CARD, "fallbackText", value="x" * 28 * 1024)),
    ("teams", "version", _put(*_CARD, "version", value="2.0")),
    ("teams", "the type of an element", _put(*_CARD, "body", 0, "type", value="Media")),
    ("teams", "unknown members", _put(*_CARD, "msteams", value={"entities": []})),
    ("mattermost", "lacks ['fallback']", _put("attachments", 0, "fallback", value=None)),
    ("mattermost", "text has 16384", _put("text", value="x" * 16_384)),
    ("feishu", "the signature", _put("sign", value="x")),
    ("feishu", "the timestamp", _put("timestamp", value="1700000000")),
    ("feishu", "20480 are taken", _put("card", "header", "title", "content", value="x" * 20_480)),
    ("feishu", "an element", _put("card", "elements", 0, "tag", value="img")),
    ("dingtalk", "bytes", _put("actionCard", "text", value="x" * 20_000)),
    ("dingtalk", "either btns", _put("actionCard", "singleURL", value="https://x.example/")),
    ("dingtalk", "no URL", _put("actionCard", "btns", 0, "actionURL", value="javascript:alert(1)")),
    ("wecom", "title has 27", _put("template_card", "main_title", "title", value="x" * 27)),
    ("wecom", "lacks ['card_action']", _put("template_card", "card_action", value=None)),
    ("wecom", "comes with", _put("text", value={"content": "x"})),
    ("ntfy", "message has 4098", _put("message", value="漢" * 1366)),
    (
        "ntfy",
        "actions has 4",
        _put("actions", value=[{"action": "view", "label": "l", "url": "https://x.example"}] * 4),
    ),
    ("ntfy", "priority", _put("priority", value=6)),
]


@pytest.mark.parametrize("kind", sorted(EVERY))
def test_what_a_kind_sends_is_taken(kind: str) -> None:
    """As it is, and not by another method, as another type, to another path."""
    platform = played(kind)
    assert driven(platform, steps_of(kind, options_of(kind, platform.keys()), event())).kind == "ok"
    [asked] = [_asked(_sent(kind))]
    others = (
        Asked("PUT", asked.path, asked.query, asked.headers, asked.body),
        Asked("POST", f"{asked.path}x", asked.query, asked.headers, asked.body),
        Asked("POST", asked.path, asked.query, {**asked.headers, "content-type": "text/plain"}, asked.body),
        Asked("POST", asked.path, asked.query, asked.headers, asked.body[:-1]),
    )
    for other in others:
        platform.answer(other)
    assert len(platform.refused) == len(others)


@pytest.mark.parametrize(("kind", "why", "change"), _WRONG, ids=[f"{kind}-{why}" for kind, why, _ in _WRONG])
def test_one_thing_wrong_is_refused(kind: str, why: str, change: Callable[[dict[str, Any]], None]) -> None:
    """With the reason, and with an answer that is no success."""
    platform, request = played(kind), _sent(kind)
    document = json.loads(request.body)
    change(document)
    platform.answer(
        _asked(HttpRequest("POST", request.url, request.headers, json.dumps(document, ensure_ascii=False).encode()))
    )
    assert platform.shown == []
    assert why in platform.refused[0]


def test_dingtalks_signature_is_checked() -> None:
    """Its value, and how old it is."""
    asked = _asked(_sent("dingtalk"))
    for change in ({"sign": "x"}, {"timestamp": "1700000000000"}, {"access_token": "x"}):
        platform = played("dingtalk")
        platform.answer(Asked("POST", asked.path, {**asked.query, **change}, asked.headers, asked.body))
        assert len(platform.refused) == 1


def _asked(request: HttpRequest) -> Asked:
    from urllib.parse import parse_qsl, unquote, urlsplit

    parts = urlsplit(request.url)
    headers = {name.lower(): value for name, value in request.headers.items()}
    return Asked(request.method, unquote(parts.path), dict(parse_qsl(parts.query)), headers, request.body)
