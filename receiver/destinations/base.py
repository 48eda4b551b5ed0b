"""The promise a destination kind keeps: options that are checked when the config is read, and a flow.

A flow is a generator: it yields requests, is sent the responses, and returns the Result. It does no I/O, so a test
drives it with canned answers; many steps (upload, then post) are the same type as one. It judges the answer itself:
a chat service that says `ok: false` in a 200 has failed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict

from receiver.retry import Result
from receiver.wire import HttpRequest, HttpResponse

if TYPE_CHECKING:
    from datetime import timedelta

Steps = Generator[HttpRequest, HttpResponse, Result]

MASK: Final = "***"
"""What stands where a secret was."""

# Words that make a header's name one that carries a secret: Authorization, Cookie, X-Api-Key, X-Auth-Token, …
_SECRET_NAME: Final = re.compile(
    r"auth|cookie|key|token|secret|passw|credential|session|signature|jwt|bearer", re.IGNORECASE
)
_SHOWN: Final = frozenset({"webhook-signature"})
"""A signature of one body at one moment gives nothing away, and is what one wants to see when it does not verify."""
_UNFIT: Final = re.compile(r"[\s\x00-\x1f\x7f\\]")


class Options(BaseModel):
    """A kind's own keys of a `[[destinations]]` table; the keys that all kinds share are config's."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @classmethod
    def keys(cls) -> list[str]:
        """Its keys as they are written; Python has words of its own (`from`)."""
        return [field.alias or name for name, field in cls.model_fields.items()]


def masked(request: HttpRequest) -> HttpRequest:
    """The request as it may be stored and shown: secret headers, userinfo and the values of the query are masked.

    A kind whose secret is in the path (most chat services) masks more, see `Kind.masked`.
    """
    headers = {name: MASK if _is_secret(name) else value for name, value in request.headers.items()}
    return replace(request, url=masked_url(request.url), headers=headers)


@lru_cache(maxsize=256)  # one for most destinations, and ten microseconds
def masked_url(url: str) -> str:
    """The URL with userinfo and the values of its query masked; all of it where it cannot be taken apart."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return MASK
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{MASK}@{host}" if "@" in parts.netloc else host
    query = "&".join([_masked_parameter(one) for one in parts.query.split("&")])
    return urlunsplit(SplitResult(parts.scheme, netloc, parts.path, query, MASK if parts.fragment else ""))


def http_url(url: str) -> str:
    """`url` as it came, once it is sure to be an absolute http(s) URL with a host and nothing that could mislead.

    Raises:
        ValueError: it is not; the words say what is wrong and never repeat the URL, which may hold a secret.
    """
    if _UNFIT.search(url):
        raise ValueError("a URL has no spaces, control characters or backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its words may repeat a password
        raise ValueError("this is no URL: its host or port cannot be read") from None
    if parts.scheme not in {"http", "https"}:
        raise ValueError("an absolute URL is wanted here, beginning with https:// (or http://)")
    if not parts.hostname:
        raise ValueError("the URL names no host")
    if "@" in parts.netloc:
        raise ValueError("user and password do not belong in the URL; put an Authorization header into `headers`")
    if "#" in url:
        raise ValueError("a fragment (#…) is never sent; leave it out")
    if port == 0:
        raise ValueError("nothing can listen on port 0")
    return url


@dataclass(frozen=True)
class Kind:
    """One destination kind.

    Attributes:
        name: the word in `kind = "…"`.
        options: the model of its own keys.
        flow: `flow(event, options, now=…, home=…)`, see the module; `home` is this service's public URL, or None.
        masked: what may be stored and shown of a request of its flow.
        steps: how many requests its flow makes at most.
        summary: `summary(events, options, now=…, home=…)`, a flow that tells of many events in one message; None for a
            kind whose every event counts, which therefore takes no `coalesce`.
        pace: so many messages in so long, where the platform takes no more; an operator's `rate` goes before it.
        secrets: its options that are secrets (each has a `…_file` beside it), and whether they are lists.
    """

    name: str
    options: type[Options]
    flow: Callable[..., Steps]
    masked: Callable[[HttpRequest], HttpRequest] = masked
    steps: int = 1
    summary: Callable[..., Steps] | None = None
    pace: tuple[float, timedelta] | None = None
    secrets: Mapping[str, bool] = field(default_factory=dict)


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    return name.lower() not in _SHOWN and _SECRET_NAME.search(name) is not None


def _masked_parameter(parameter: str) -> str:
    name, equals, value = parameter.partition("=")
    if equals:
        return f"{name}={MASK}" if value else parameter
    return MASK if name else ""
