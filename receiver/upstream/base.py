"""The promise of an upstream route: how it is asked, and how its answers are read. Pure; a route is data.

The bearer key and `X-Runway-Version` are the shell's: it puts them on every request to the upstream. URLs are paths.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import orjson

from receiver.upstream.reading import observe, usable_id
from receiver.upstream.verdicts import (
    Ambiguous,
    Looked,
    Missing,
    NotTaken,
    Refused,
    Shown,
    Submission,
    Taken,
    Unanswered,
    Unusable,
    judge_lookup,
    judge_submission,
)
from receiver.upstream.words import outcome_code
from receiver.wire import HttpRequest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from receiver.wire import HttpResponse

__all__ = [
    "NO_CALLBACK",
    "SEED_LIMIT",
    "Ambiguous",
    "Looked",
    "Missing",
    "NotTaken",
    "Refused",
    "Shown",
    "Submission",
    "Taken",
    "Unanswered",
    "Unusable",
    "UpstreamRoute",
    "feed_request",
    "observe",
    "outcome_code",
    "task_request",
    "usable_id",
]

NO_CALLBACK: Final = "https://callback.invalid/none"
"""What a route that insists on a callback is given where no public URL is configured (contract 3)."""
SEED_LIMIT: Final = 2**32
"""Seeds are below this (seed document 000: 0 to 4294967295)."""

_JSON: Final = {"content-type": "application/json"}


def feed_request(upstream_id: str) -> HttpRequest:
    """`POST /runway/feed`: read-only and free, though a POST (upstream.md 3)."""
    return HttpRequest("POST", "/runway/feed", dict(_JSON), orjson.dumps({"task_id": upstream_id}))


def task_request(upstream_id: str) -> HttpRequest:
    """`GET /runwayml/v1/tasks/{id}` (upstream.md 4.4); the id is one path segment, whatever is in it."""
    return HttpRequest("GET", f"/runwayml/v1/tasks/{quote(upstream_id, safe='')}")


@dataclass(frozen=True, slots=True)
class UpstreamRoute:
    """One way to ask the upstream for a video.

    Attributes:
        name: as callers name it; the drop-in path without its slash.
        takes_callback: whether the upstream calls back; otherwise its tasks are polled.
        prompt_key: the member of the input that holds the prompt.
        required: members without which nothing is sent.
        feed_first: which of the two lookup routes is its own; the other one is its fallback.
        defaults: what is filled in where missing; members of objects one by one.
        seeded: whether a random seed is filled in too.
    """

    name: str
    takes_callback: bool
    prompt_key: str
    required: tuple[str, ...]
    feed_first: bool
    defaults: Mapping[str, Any] = field(default_factory=dict)
    seeded: bool = False

    def fill(self, input: Mapping[str, Any], *, seed: int) -> dict[str, Any]:  # noqa: A002 -- the contract's word
        """The input with the defaults of contract 4.3 where a member is absent or null; the argument stays as it is."""
        defaults = {**self.defaults, "seed": seed} if self.seeded else self.defaults
        return _filled(input, defaults)

    def missing(self, input: Mapping[str, Any]) -> list[str]:  # noqa: A002 -- the contract's word
        """The required members that are absent, null or empty strings, in the order of the route."""
        return [name for name in self.required if _is_blank(input.get(name))]

    def submit(self, input: Mapping[str, Any], callback_url: str | None) -> HttpRequest:  # noqa: A002 -- likewise
        """The submission. `callback_url` is ours and goes where the upstream takes one; the input's own never does.

        Raises:
            TypeError: the input is no JSON (nested deeper than 254 levels, say).
        """
        body = {name: value for name, value in input.items() if name != "callback_url"}
        if self.takes_callback:
            body["callback_url"] = callback_url or NO_CALLBACK
        return HttpRequest("POST", f"/{self.name}", dict(_JSON), orjson.dumps(body))

    def lookup(self, upstream_id: str) -> HttpRequest:
        """How this route's tasks are asked for."""
        return feed_request(upstream_id) if self.feed_first else task_request(upstream_id)

    def fallback(self, upstream_id: str) -> HttpRequest:
        """The other lookup route, for when the first tells nothing."""
        return task_request(upstream_id) if self.feed_first else feed_request(upstream_id)

    def read_submission(self, response: HttpResponse, *, now: datetime) -> Submission:
        """What a submission's answer means; never raises. `now` is for a Retry-After that names a date."""
        return judge_submission(response, now=now)

    def read_lookup(self, response: HttpResponse, *, now: datetime) -> Looked:
        """What a lookup's answer means; never raises. `now` is for a Retry-After that names a date."""
        return judge_lookup(response, now=now)


def _is_blank(value: object) -> bool:
    return value is None or value == ""


def _filled(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    filled = dict(given)
    for name, default in defaults.items():
        value = filled.get(name)
        if value is None:
            filled[name] = copy.deepcopy(default)
        elif isinstance(value, dict) and isinstance(default, dict):
            filled[name] = _filled(value, default)
    return filled
