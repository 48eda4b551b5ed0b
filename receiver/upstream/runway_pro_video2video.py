"""`POST /runway/pro/video2video`: the reverse format, with a callback (upstream.md 2, seed 004).

`callback_url` is mandatory in practice. `options.seconds` is asked for by the newest page only; sent always.
"""

from __future__ import annotations

from typing import Final

from receiver.upstream.base import UpstreamRoute

ROUTE: Final = UpstreamRoute(
    name="runway/pro/video2video",
    takes_callback=True,
    prompt_key="prompt",
    required=("video", "prompt"),
    feed_first=True,
    defaults={"model": "gen4", "options": {"structure_transformation": 0.5, "seconds": 5}},
)
