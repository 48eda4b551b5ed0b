"""What all chat kinds share: options, the way from an event to one message, and how plain HTTP answers are judged.

A kind says how a card is laid out on its platform (`send`) and what its words mean; this makes of it the flow of one
event and the summary of many. A template that does not suit an event gives way to the kind's own words: the message
arrives.
"""

from __future__ import annotations

import difflib
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, TypeVar
from urllib.parse import parse_qs, urlsplit, urlunsplit

import msgspec
import orjson
from pydantic import AfterValidator, Field, Strict, field_validator

from receiver import __version__, retry
from receiver.destinations.base import MASK, Kind, Options, Steps, http_url, masked
from receiver.destinations.card import Card, card, summary_card
from receiver.destinations.text import PLAIN, Markup, clean, cut, one_line
from receiver.retry import Result
from receiver.wire import HttpRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from receiver.records import Event
    from receiver.wire import HttpResponse

USER_AGENT: Final = f"receiver/{__version__}"
THROTTLED: Final = frozenset({408, 425, 429, 503})
"""Statuses that ask for patience, whoever says them."""
_SERVER: Final = 500

TITLE: Final = "{{ icon }} {{ headline }}"
TEXT: Final = "{{ prompt }}{% if prompt and failure %}\n\n{% endif %}{{ failure }}"
SUMMARY: Final = (
    "{% for one in newest %}{{ one.icon }} {{ one.headline }}{% if one.about %}: {{ one.about }}{% endif +%}\n"
    "{% endfor %}{% if more %}… and {{ more }} more{% endif %}"
)
"""The default words, for a platform that has a place of its own for facts, the picture and buttons."""


def secret_url(url: str) -> str:
    """A platform's URL as it came, once it is sure to be an absolute http(s) URL. Its path or query is the secret.

    Raises:
        ValueError: it is not; the words never repeat the URL.
    """
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError("user and password do not belong in this URL")
    return http_url(url)


SecretUrl = Annotated[str, AfterValidator(secret_url)]


def bearing(name: str, api: str) -> AfterValidator:
    """The check that a URL bears the parameter which is its secret: without it the platform refuses everything.

    Only of the platform's host or path, which `api` names: behind a proxy of one's own the token may come in there.
    """
    host, _, path = api.partition("/")

    def check(url: str) -> str:
        parts = urlsplit(url)
        is_theirs = parts.hostname == host or parts.path.rstrip("/").endswith(f"/{path}")
        if is_theirs and not any(value.strip() for value in parse_qs(parts.query).get(name, ())):
            raise ValueError(f"the URL has no {name}: copy all of the robot's URL, which ends in ?{name}=…")
        return url

    return AfterValidator(check)


def _own_template(text: str) -> str:
    from receiver.destinations import templates

    return templates.check(text)


OwnTemplate = Annotated[str, AfterValidator(_own_template)]


class ChatOptions(Options):
    """The keys that all chat kinds take, and what a kind says once for all.

    Attributes:
        LIMITS: what the platform takes, by name; `limits` overrides single ones.
        MARKUP: how its text is read; TITLE_MARKUP how its title is.
        TITLE_TEMPLATE, TEXT_TEMPLATE, SUMMARY_TEMPLATE: the default words.
    """

    LIMITS: ClassVar[Mapping[str, int]] = {}
    MARKUP: ClassVar[Markup] = PLAIN
    TITLE_MARKUP: ClassVar[Markup] = PLAIN
    TITLE_TEMPLATE: ClassVar[str] = TITLE
    TEXT_TEMPLATE: ClassVar[str] = TEXT
    SUMMARY_TEMPLATE: ClassVar[str] = SUMMARY

    title: OwnTemplate | None = None
    text: OwnTemplate | None = None
    limits: dict[str, Annotated[int, Strict(), Field(ge=1)]] = Field(default_factory=dict)

    def model_post_init(self, _context: Any) -> None:
        """Have Jinja there before the first message: a service without chat starts without it, 0.1 s sooner."""
        import receiver.destinations.templates  # noqa: F401

    @field_validator("limits")
    @classmethod
    def _are_known(cls, limits: dict[str, int]) -> dict[str, int]:
        for name in limits:
            if name not in cls.LIMITS:
                near = difflib.get_close_matches(name, cls.LIMITS, 1)
                meant = f" (did you mean {near[0]}?)" if near else f"; there are {', '.join(cls.LIMITS)}"
                raise ValueError(f'there is no limit "{name}"{meant}')
        return limits

    def limit(self, name: str) -> int:
        """A limit of the platform, or what the configuration says instead."""
        return self.limits.get(name, self.LIMITS[name])

    def title_of(self, told: Card, most: int) -> str:
        """The title, on one line, escaped and cut; the icon where the template comes to nothing: none may be empty."""
        own = None if told.is_summary else self.title
        filled = one_line(self._filled(told, own, self.TITLE_TEMPLATE, most, title=True))
        return filled or cut(told.icon, most, self.TITLE_MARKUP)

    def text_of(self, told: Card, most: int) -> str:
        """The text, escaped and cut; "" where there is nothing to say."""
        default = self.SUMMARY_TEMPLATE if told.is_summary else self.TEXT_TEMPLATE
        return self._filled(told, None if told.is_summary else self.text, default, most)

    def facts_of(self, told: Card) -> list[tuple[str, str]]:
        """The card's facts, their values escaped, as many and as long as the limits `facts` and `fact` allow."""
        facts = [(clean(label), self.MARKUP.escape(clean(value))) for label, value in told.facts]
        most = self.limit("fact")
        return [(label, cut(value, most, self.MARKUP)) for label, value in facts if value][: self.limit("facts")]

    def _filled(self, told: Card, own: str | None, default: str, most: int, *, title: bool = False) -> str:
        markup = self.TITLE_MARKUP if title else self.MARKUP
        from jinja2 import TemplateError

        from receiver.destinations import templates

        if own is not None:
            try:
                return templates.fill(own, told.values, markup, most)
            except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError):
                pass
        return templates.fill(default, told.values, markup, most)


AnyOptions = TypeVar("AnyOptions", bound=ChatOptions)


def chat_kind(
    name: str,
    options: type[AnyOptions],
    send: Callable[..., Steps],
    *,
    masked: Callable[[HttpRequest], HttpRequest],
    secrets: tuple[str, ...] = ("url",),
    steps: int = 1,
    pace: tuple[float, timedelta] | None = None,
) -> Kind:
    """A chat kind of `send(card, options, now=…)`, which makes one message of one card; `pace` as in `Kind`."""

    def flow(event: Event, given: AnyOptions, *, now: datetime, home: str | None = None) -> Steps:
        return send(card(event, home=home), given, now=now)

    def summary(events: Sequence[Event], given: AnyOptions, *, now: datetime, home: str | None = None) -> Steps:
        return send(summary_card(events, home=home), given, now=now)

    return Kind(name, options, flow, masked, steps, summary, pace, dict.fromkeys(secrets, False))


def markdown_links(told: Card) -> str:
    """The links of a card on one line of Markdown, for a platform without buttons."""
    return " · ".join(f"[{label}]({url})" for label, url in told.links)


def post(url: str, document: Any, **headers: str) -> HttpRequest:
    """A POST of a JSON document; header names are given with `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {"content-type": "application/json", "user-agent": USER_AGENT, **named}
    return HttpRequest("POST", url, sent, orjson.dumps(document))


def fitted(make: Callable[[int], HttpRequest], longest: int, most: int) -> HttpRequest:
    """The request that `make(length of its text)` makes, its text made shorter until the body has `most` bytes or less.

    Where even no text is too long, that request goes out, and the platform says so.
    """
    request = make(longest)
    fits, too_long = 0, longest
    if len(request.body) <= most:
        return request
    request = make(0)
    while too_long - fits > max(1, longest // 64):  # the share that may stay unused
        middle = (fits + too_long) // 2
        tried = make(middle)
        if len(tried.body) <= most:
            fits, request = middle, tried
        else:
            too_long = middle
    return request


def masked_path(request: HttpRequest, *, keep: int = 0, least: int = 1) -> HttpRequest:
    """`base.masked`, and of the path's segments those masked that have `least` characters, but for the first `keep`.

    A chat's URL is its secret.
    """
    shown = masked(request)
    parts = urlsplit(shown.url)
    segments = parts.path.split("/")
    path = "/".join([*segments[: keep + 1], *(MASK if len(one) >= least else one for one in segments[keep + 1 :])])
    return HttpRequest(shown.method, urlunsplit(parts._replace(path=path)), shown.headers, shown.body)


def judge(response: HttpResponse, *, now: datetime, said: str = "") -> Result:
    """What a plain HTTP answer means where the platform has no word of its own for it; `said` is what it said.

    A 4xx is permanent: it would be the same again. 404 and 410 say that the webhook itself is gone, 401 and 403 that it
    may not be used: the destination is paused, since whatever else goes there would end the same way.
    """
    status = response.status
    answered = f"it answered {status}{f', {said}' if said else ''}"
    if response.is_success:
        return Result("ok", answered)
    if status in THROTTLED:
        wait = retry.retry_after(response.headers.get("retry-after"), now=now)
        return Result("throttled", answered, retry_after=wait)
    if status >= _SERVER:
        return Result("transient", answered)
    if status // 100 == 3:  # noqa: PLR2004 -- the class of redirects
        return Result("transient", f"{answered}: a redirect is never followed, set the URL to where it leads")
    if status in {401, 403, 404, 410}:
        return Result("permanent", f"{answered}: the URL is no longer good, and the destination is paused", pause=True)
    return Result("permanent", answered)


def document_of(response: HttpResponse) -> dict[str, Any]:
    """The JSON object of an answer; empty where there is none."""
    try:
        found = msgspec.json.decode(response.body)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def word_of(value: object) -> str:
    """Something an answer says, as it may stand in a reason: short and on one line."""
    return cut(one_line("".join(char for char in str(value) if char.isprintable() or char.isspace())), 200)


def seconds(value: object) -> timedelta | None:
    """A wait in seconds as an answer's JSON has it; None for what is none. At most what `retry` allows."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        return None
    return timedelta(seconds=min(float(value), retry.MAX_RETRY_AFTER.total_seconds()))
