"""`POST /runwayml/v1/video_to_video`: the official format, polled (upstream.md 4.1, seeds 000 and 001).

The schema calls all seven members required. Its own default for `references`, `[{}]`, is an invalid item: an empty list
is sent.
"""

from __future__ import annotations

from typing import Final

from receiver.upstream.base import UpstreamRoute

ROUTE: Final = UpstreamRoute(
    name="runwayml/v1/video_to_video",
    takes_callback=False,
    prompt_key="promptText",
    required=("videoUri", "promptText"),
    feed_first=False,
    defaults={
        "model": "gen4_aleph",
        "references": [],
        "ratio": "1280:720",
        "contentModeration": {"publicFigureThreshold": "auto"},
    },
    seeded=True,
)
