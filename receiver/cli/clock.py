"""The command line's clock: it tells ages to a reader, and signs what it previews and forwards."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)  # noqa: TID251 -- the command line has a clock, see above
