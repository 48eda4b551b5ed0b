"""The upstream routes: a literal registry. To add one: a file, a line here, and its folder of recorded fixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from receiver.upstream import runway_image_to_video, runway_pro_video2video, runway_video_to_video

if TYPE_CHECKING:
    from receiver.upstream.base import UpstreamRoute

ROUTES: Final[dict[str, UpstreamRoute]] = {
    "runway/pro/video2video": runway_pro_video2video.ROUTE,
    "runwayml/v1/video_to_video": runway_video_to_video.ROUTE,
    "runwayml/v1/image_to_video": runway_image_to_video.ROUTE,
}
