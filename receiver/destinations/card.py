"""What is told of an event in a chat, free of any platform: the words, the facts, the links. Pure.

A chat kind lays a card out and escapes it; what is said is decided here, once. Texts are as they came: whoever puts
one out cleans it first (`text.clean`; a template does so by itself). Links are checked: http(s), and nothing in them
that any platform's markup could end at.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote, urlsplit

from receiver.destinations.sample import MSG as SAMPLE
from receiver.destinations.text import clean, cut, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from receiver.records import Event

Tone = Literal["good", "bad", "warning", "plain"]

_HEADLINES: Final[dict[str, tuple[str, Tone, str]]] = {
    "task.queued": ("🕓", "plain", "Queued"),
    "task.running": ("🎬", "plain", "Rendering"),
    "task.progress": ("⏳", "plain", "Rendering"),
    "task.succeeded": ("✅", "good", "Video ready"),
    "task.failed": ("❌", "bad", "Render failed"),
    "task.cancelled": ("🚫", "warning", "Render cancelled"),
    "task.lost": ("❓", "bad", "Render lost"),
    "task.rejected": ("⛔", "bad", "Render rejected"),
    "task.ambiguous": ("⚠️", "warning", "Submission in doubt"),
    "destination.failing": ("🔴", "bad", "Destination failing"),
    "destination.paused": ("⏸️", "warning", "Destination paused"),
    "destination.recovered": ("🟢", "good", "Destination recovered"),
    "delivery.dead": ("📭", "bad", "Delivery dead"),
}
_UNKNOWN: Final[tuple[str, Tone, str]] = ("📣", "plain", "Event")
_UNSAID: Final = {
    "task.failed": "The upstream gave no reason.",
    "task.lost": "No answer told what became of it.",
    "task.rejected": "The upstream gave no reason.",
}
"""What is said where nobody gave a reason."""
_LONGEST_URL: Final = 3000
"""Characters; Slack's limit for a button or a picture, the largest of all platforms'."""
_LINE: Final = 120
"""Characters of a prompt in a summary's line."""
NEWEST: Final = 5
"""Events that a summary names."""


class Url(str):
    """A URL that was checked: it may stand as it is where the platform's markup wants one."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Card:
    """What is told.

    Attributes:
        icon: one emoji for the state.
        headline: the state in words.
        tone: what its colour says.
        values: what templates can name, see `templates.VARIABLES`.
        facts: short pairs of a label and a value, for platforms that have a place for them.
        poster: a picture, where there is one.
        links: the buttons: a label and where it leads.
        is_summary: it tells of many events.
    """

    icon: str
    headline: str
    tone: Tone
    values: Mapping[str, Any]
    facts: tuple[tuple[str, str], ...] = ()
    poster: Url | None = None
    links: tuple[tuple[str, Url], ...] = ()
    is_summary: bool = False


def card(event: Event, *, home: str | None) -> Card:
    """The card of one event; `home` is this service's public URL, where it has one."""
    data = _data(event)
    values = _values(event, data, home)
    icon, tone, headline = _HEADLINES.get(event.type, _UNKNOWN)
    if event.type == "task.progress" and values["progress"] is not None:
        headline = f"{headline}, {values['progress']} %"
    if data.get("recovered") is True:
        headline += ", after it was lost"
    if values["destination"] is not None:
        headline = f"{headline}: {values['destination']}"
    if data.get("msg") == SAMPLE:
        headline = f"Test: {headline[0].lower()}{headline[1:]}"
    links = [("Watch", values["video_url"]), ("Open task", values["page"])]
    return Card(
        icon=icon,
        headline=headline,
        tone=tone,
        values=values | {"icon": icon, "headline": headline},
        facts=_facts(values),
        poster=values["poster"],
        links=tuple((label, url) for label, url in links if url is not None),
    )


def summary_card(events: Sequence[Event], *, home: str | None) -> Card:
    """One card for many events: how many of each state, and the newest by name.

    Raises:
        ValueError: there are none.
    """
    if not events:
        raise ValueError("a summary of no events")
    counted = Counter(event.type for event in events)
    shown = [_HEADLINES.get(kind, _UNKNOWN) for kind in counted]
    worst: Tone = next((tone for tone in ("bad", "warning", "good") if any(one[1] == tone for one in shown)), "plain")
    counts = [{"icon": one[0], "headline": one[2], "count": n} for one, n in zip(shown, counted.values(), strict=True)]
    in_order = sorted(events, key=lambda event: event.created_at)
    newest = [_line(card(event, home=home)) for event in reversed(in_order[-NEWEST:])]
    page = link(f"{home}/") if home else None
    headline = f"{len(events)} events"
    values = {
        "icon": "🗂️",
        "headline": headline,
        "count": len(events),
        "counts": counts,
        "newest": newest,
        "more": len(events) - len(newest),
        "page": page,
    }
    facts = tuple((f"{one['icon']} {one['headline']}", str(one["count"])) for one in counts)
    links = (("Open the list", page),) if page else ()
    return Card("🗂️", headline, worst, values, facts, links=links, is_summary=True)


def link(url: object) -> Url | None:
    """An absolute http(s) URL in plain ASCII; None for what is none, or is too long to be a button anywhere."""
    if not isinstance(url, str) or len(url) > _LONGEST_URL or re.search(r"[\s\x00-\x1f\x7f\\]", url):
        return None
    try:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
            return None
        host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    except ValueError:  # also what is no IDNA name
        return None
    # Quotes, brackets and bars end a link in some markup or other; an octet may be written in percent anywhere.
    rest = quote(url.partition("://")[2][len(parts.netloc) :], safe="%/?#:@!$&+,;=-._~*[]", errors="replace")
    found = f"{parts.scheme}://{host}{rest.replace('[', '%5B').replace(']', '%5D').replace('*', '%2A')}"
    is_fit = len(found) <= _LONGEST_URL and re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", host)
    return Url(found) if is_fit else None


def took(span: timedelta) -> str:
    """A duration in words: `95 s` is `1 min 35 s`."""
    seconds = round(span.total_seconds())
    minutes, hours = seconds // 60, seconds // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def _data(event: Event) -> dict[str, Any]:
    """The standard library's reader: half a surrogate pair in what the upstream said is no reason to say nothing."""
    try:
        data = json.loads(event.data_json)
    except (ValueError, RecursionError):  # nested too deep to be read again
        return {}
    return data if isinstance(data, dict) else {}


def _values(event: Event, data: dict[str, Any], home: str | None) -> dict[str, Any]:
    """What templates can name, but for icon and headline."""
    texts = ("state", "prompt", "msg", "route", "upstream_id", "via", "failure_code", "destination", "delivery_id")
    values: dict[str, Any] = {name: _text(data.get(name)) for name in texts}
    reason = _text(data.get("failure")) or _text(data.get("reason"))
    if reason is None and event.type in _UNSAID:
        reason = _text(data.get("msg")) or _UNSAID[event.type]
    copies = data.get("artifacts")
    ours = (
        {one.get("kind"): one.get("url") for one in copies if isinstance(one, dict)} if isinstance(copies, list) else {}
    )
    span = _span(data)
    return values | {
        "event": event.type,
        "event_id": event.id,
        "task_id": event.of_task,
        "failure": reason,
        "took": None if span is None else took(span),
        "seconds": None if span is None else round(span.total_seconds()),
        # Our own copy, where there is one: the upstream's links are dead in a day or two.
        "video_url": link(ours.get("video")) or link(data.get("video_url")),
        "poster": link(ours.get("poster")) or link(data.get("poster")),
        "last_frame": link(ours.get("last_frame")) or link(data.get("last_frame")),
        "page": _page(event, data, home),
        "progress": data.get("progress") if isinstance(data.get("progress"), int) else None,
        "failures": data.get("consecutive_failures") if isinstance(data.get("consecutive_failures"), int) else None,
        "metadata": data.get("metadata") if isinstance(data.get("metadata"), dict) else {},
    }


def _facts(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    pairs = [
        ("Took", values["took"]),
        ("Route", values["route"]),
        ("Code", values["failure_code"]),
        ("Failures in a row", None if values["failures"] is None else str(values["failures"])),
        ("Delivery", values["delivery_id"]),
        ("Task", values["task_id"]),
    ]
    return tuple((label, value) for label, value in pairs if value)


def _page(event: Event, data: Mapping[str, Any], home: str | None) -> Url | None:
    """The task's page in the dashboard, or the destination's (contract 4.4); None where no URL leads here."""
    if home is None:
        return None
    if event.of_task is not None:
        return link(f"{home}/tasks/{event.of_task}")
    name = _text(data.get("destination"))
    return None if name is None else link(f"{home}/destinations/{quote(name, safe='')}")


def _line(one: Card) -> dict[str, Any]:
    """An event in a summary."""
    about = one.values["prompt"] or one.values["failure"] or one.values["task_id"] or ""
    shown = cut(one_line(clean(about)), _LINE)
    return {"icon": one.icon, "headline": one.headline, "about": shown, "page": one.values["page"]}


def _span(data: Mapping[str, Any]) -> timedelta | None:
    try:
        began, ended = (datetime.fromisoformat(data[name]) for name in ("created_at", "finished_at"))
        return max(ended - began, timedelta(0))
    except (KeyError, TypeError, ValueError):
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None
