"""The kind `apprise`: the long tail of services, by the library of that name (extra `apprise`), best effort.

Its request goes by `NOTIFY` instead of `POST` and its URL is apprise's own. The library says whether it was taken and
no more: neither why not nor for how long. It opens its own sockets, so addresses are not vetted and answers not read by
egress; what is native here is better served by its own kind.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

from pydantic import AfterValidator

from receiver.destinations import chat
from receiver.destinations.base import MASK
from receiver.destinations.chat import ChatOptions
from receiver.destinations.text import Markup
from receiver.retry import Result
from receiver.wire import HttpRequest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from receiver.destinations.base import Steps
    from receiver.destinations.card import Card
    from receiver.wire import HttpResponse

MISSING: Final = "the kind apprise needs its extra: pip install 'callback-receiver[apprise]'"
_TYPES: Final = {"good": "success", "bad": "failure", "warning": "warning", "plain": "info"}
# Which service it goes to is apprise's business: what would call somebody, or hide where a link leads, is taken apart.
_LIVE: Final = re.compile(r"@(?=\w)|\](?=\()|<(?=[@!#a-zA-Z/])")


def _url(url: str) -> str:
    if find_spec("apprise") is None:
        raise ValueError(MISSING)
    if not re.fullmatch(r"[A-Za-z0-9]+s?://[^\s\x00-\x1f\x7f]+", url):
        raise ValueError("an apprise URL is wanted, such as json://host/path (github.com/caronc/apprise/wiki)")
    from apprise import Apprise

    if Apprise.instantiate(url, suppress_exceptions=True) is None:
        raise ValueError("apprise knows no such service, or something is missing in the URL")
    return url


class AppriseOptions(ChatOptions):
    """The keys of kind `apprise`."""

    # What apprise cuts or splits past each service's own limit, it does itself.
    LIMITS: ClassVar[Mapping[str, int]] = {"title": 250, "text": 4000, "facts": 10, "fact": 200}
    MARKUP: ClassVar[Markup] = Markup(escape=lambda text: _LIVE.sub("\\g<0>\u200c", text))
    TITLE_MARKUP: ClassVar[Markup] = MARKUP

    url: Annotated[str, AfterValidator(_url)]


def send(card: Card, options: AppriseOptions, *, now: datetime) -> Steps:  # noqa: ARG001 -- nothing in it is dated
    """One notification: the title, and a text that ends in the links."""
    facts = "\n".join(f"{label}: {value}" for label, value in options.facts_of(card))
    links = "\n".join(f"{label}: {url}" for label, url in card.links)
    text = options.text_of(card, options.limit("text"))
    title = options.title_of(card, options.limit("title"))
    body = "\n\n".join(part for part in (text, facts, links) if part) or title
    headers = {"title": title, "type": _TYPES[card.tone]}
    response = yield HttpRequest("NOTIFY", options.url, headers, body.encode())
    return judge(response)


def judge(response: HttpResponse) -> Result:
    """Yes or no; a no is tried again, since nothing tells one kind of it from another."""
    if response.is_success:
        return Result("ok", "apprise says that it was taken")
    return Result("transient", "apprise says that it was not taken, and not why")


def _masked(request: HttpRequest) -> HttpRequest:
    """Anything in an apprise URL can be a secret, the host too."""
    return HttpRequest(request.method, f"{request.url.partition('://')[0]}://{MASK}", request.headers, request.body)


KIND: Final = chat.chat_kind("apprise", AppriseOptions, send, masked=_masked)
