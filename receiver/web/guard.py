"""Who may use the API: a bearer key; or, where no key is configured, a request that is plainly local (contract 3)."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from receiver.errors import ReceiverError, Unauthorized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.datastructures import Headers
    from starlette.requests import Request

    from receiver.web.limits import Limits

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
FORWARDING = (
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
)
"""A request that carries one of these, or any `X-Forwarded-…`, came through a proxy, so it is not local whatever its
Host says."""


class Forbidden(ReceiverError):
    """A request that is not plainly local, where no key is configured."""

    http_status = 403
    code = "forbidden"


@dataclass(frozen=True)
class Guard:
    """The check of every API request."""

    api_keys: Sequence[str]
    limits: Limits | None = None

    def check(self, request: Request, *, counted: bool = True) -> None:
        """Let the request pass, or say why not. `counted`: it is one of those that `server.rate_per_key` is about.

        Raises:
            Unauthorized: keys are configured, and it carries none of them.
            Forbidden: none is configured, and it is not plainly local.
            RateLimited: its key has had its share, or its address has tried too many wrong ones.
        """
        who: int | str = _address(request)
        if self.api_keys:
            who = self._key(request)
        else:
            _check_local(request.headers)
        if counted and self.limits is not None:
            self.limits.spend(who)

    def _key(self, request: Request) -> int:
        """Which key it carries."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        sent = given.strip().encode("latin-1", errors="replace")
        # Every key is compared, so that the time tells nothing of which one was near.
        matches = [hmac.compare_digest(key.encode(), sent) for key in self.api_keys]
        key = matches.index(True) if scheme.lower() == "bearer" and any(matches) else None
        if self.limits is not None and sent:
            self.limits.check_address(_address(request), key)
        if key is None:
            raise Unauthorized("send `Authorization: Bearer <key>` with one of security.api_keys")
        return key


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _check_local(headers: Headers) -> None:
    mend = "set security.api_keys (`receiver init` makes one) and send it as a bearer key"
    forwarded = [name for name in headers if name in FORWARDING or name.startswith("x-forwarded-")]
    if forwarded:
        raise Forbidden(f"no API key is configured, and the request came through a proxy ({forwarded[0]}): {mend}")
    if _host_of(f"//{headers.get('host', '')}") not in LOCAL_HOSTS:
        raise Forbidden(f"no API key is configured, and the Host is not localhost, 127.0.0.1 or [::1]: {mend}")
    origin = headers.get("origin")
    if origin is not None and _host_of(origin) not in LOCAL_HOSTS:
        raise Forbidden(f"no API key is configured, and the request comes from a page of another site: {mend}")


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
