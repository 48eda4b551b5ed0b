"""The only shapes that cross the network boundary: one request out, one response back. No I/O here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request as data.

    Attributes:
        method: upper case; `MAIL` goes by SMTP and `NOTIFY` by apprise, which egress knows how to send.
        url: absolute; for an upstream route the path alone, which egress puts behind `upstream.base_url`.
        headers: as they are sent.
        body: bytes, already encoded.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An answer, cut at the cap of whoever asked.

    Attributes:
        status: 100 to 599; of a mail the code of the reply.
        headers: names in lower case; of repeated ones the last.
        body: at most the cap the caller named.
        truncated: the body went on past the cap, or broke off.
        elapsed_for: seconds from the first byte sent to the last one read.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    truncated: bool = False
    elapsed_for: float = 0.0

    @property
    def is_success(self) -> bool:
        """Any 2xx."""
        return 200 <= self.status < 300  # noqa: PLR2004 -- the definition itself
