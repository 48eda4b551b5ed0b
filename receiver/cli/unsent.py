"""`receiver submit --dry-run`: the request to the upstream, put together as the service does it, and not sent."""

from __future__ import annotations

import json as jsons
import secrets
import sys
from typing import TYPE_CHECKING, Any, Final

from receiver.cli import output
from receiver.errors import Flaw, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable

    from receiver.config import Config

MASK: Final = "***"


def request(settings: Config, name: str, body: dict[str, Any]) -> dict[str, Any]:
    """The request that a submission makes: key and callback token masked, long data URIs abridged.

    Beyond it only what every HTTP request has is sent: host, length, accepted encodings. A random seed is another one
    each time.

    Raises:
        InvalidInput: the service would refuse it.
    """
    from receiver.submit.asked import check
    from receiver.upstream import ROUTES
    from receiver.upstream.base import SEED_LIMIT
    from receiver.upstream.data_uri import abridge

    route, public_url = ROUTES[name], settings.server.public_url
    check(route, body)
    if "callback_url" in body:
        words = "callback_url does not belong in input: the service puts its own there; see --callback-url"
        raise InvalidInput(words, [Flaw(words, "/input/callback_url")])
    filled = abridge(route.fill(body, seed=secrets.randbelow(SEED_LIMIT)))
    made = route.submit(filled, f"{public_url.rstrip('/')}/callbacks/{MASK}" if public_url else None)
    key = f"Bearer {MASK}" if settings.upstream.api_key else "(no key is configured)"
    return {
        "method": made.method,
        "url": f"{settings.upstream.base_url.rstrip('/')}{made.url}",
        "headers": {"authorization": key, "x-runway-version": settings.upstream.runway_version, **made.headers},
        "body": jsons.loads(made.body),
    }


def show(shown: dict[str, Any], *, json: bool) -> None:
    """Print one request."""
    if json:
        output.document(shown)
        return
    output.say(f"{shown['method']} {shown['url']}")
    for header, value in shown["headers"].items():
        output.say(f"{header}: {value}")
    output.say("\n", jsons.dumps(shown["body"], indent=2, ensure_ascii=False))
    output.hint("This is the request to the upstream. Nothing was sent.")


def show_all(requests: Iterable[dict[str, Any]]) -> None:
    """Print many, each as a JSON object on a line of its own."""
    count = 0
    for count, one in enumerate(requests, 1):  # noqa: B007 -- it is read behind the loop
        sys.stdout.write(jsons.dumps(one, ensure_ascii=False) + "\n")
    output.hint(f"These are {count} requests to the upstream. Nothing was sent.")
