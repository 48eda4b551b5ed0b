"""What can be said of a submission before anything is stored or sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from receiver.destinations.base import http_url
from receiver.egress import private_literal
from receiver.errors import Flaw, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from receiver.upstream.base import UpstreamRoute

MAX_URL = 8_192


def check(route: UpstreamRoute, given: Mapping[str, Any]) -> None:
    """Refuse an input that lacks a required member.

    Raises:
        InvalidInput: it names each missing member.
    """
    missing = route.missing(given)
    if missing:
        flaws = [Flaw(f"{name} is required by {route.name}", pointer=f"/input/{name}") for name in missing]
        raise InvalidInput(f"input lacks {', '.join(missing)}", flaws)


def check_callback_url(url: str, *, allow_private: bool) -> None:
    """Refuse a task's own callback_url to which nothing could ever be sent (contract 4.3).

    What a name resolves to is vetted with every attempt; here only a literal address can be told.

    Raises:
        InvalidInput: it is no http(s) URL, or a literal private address without leave.
    """
    flaw = None
    try:
        host = urlsplit(http_url(url)).hostname or ""
        if len(url) > MAX_URL:
            flaw = f"it has {len(url)} characters, {MAX_URL} are taken"
        elif not allow_private and (reason := private_literal(host)) is not None:
            flaw = f"nothing is sent to private addresses (security.allow_private_callbacks is false): {reason}"
    except ValueError as error:
        flaw = str(error)
    if flaw is not None:
        raise InvalidInput(f"callback_url: {flaw}", [Flaw(flaw, pointer="/callback_url")])
