"""`POST /runwayml/v1/image_to_video`: the official format, polled (upstream.md 4.2, seed 003)."""

from __future__ import annotations

from typing import Final

from receiver.upstream.base import UpstreamRoute

ROUTE: Final = UpstreamRoute(
    name="runwayml/v1/image_to_video",
    takes_callback=False,
    prompt_key="promptText",
    required=("promptImage",),
    feed_first=False,
    defaults={"model": "gen3a_turbo"},
)
