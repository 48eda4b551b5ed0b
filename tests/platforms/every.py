"""Every platform by the name of its kind, and a flow driven against one without a socket."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from receiver.wire import HttpRequest, HttpResponse
from tests.platforms import Asked, Platform
from tests.platforms.dingtalk import DingTalk
from tests.platforms.discord import Discord
from tests.platforms.feishu import Feishu
from tests.platforms.mattermost import Mattermost
from tests.platforms.ntfy import Ntfy
from tests.platforms.slack import Slack
from tests.platforms.teams import Teams
from tests.platforms.telegram import Telegram
from tests.platforms.wecom import WeCom

if TYPE_CHECKING:
    from receiver.destinations.base import Steps
    from receiver.retry import Result

EVERY: Final[dict[str, type[Platform]]] = {
    one.kind: one for one in (DingTalk, Discord, Feishu, Mattermost, Ntfy, Slack, Teams, Telegram, WeCom)
}
"""Those that speak HTTP."""


def played(kind: str) -> Platform:
    """A platform of that kind, at an address where nobody listens."""
    platform = EVERY[kind]()
    platform.base = "http://127.0.0.1:9"
    return platform


def driven(platform: Platform, steps: Steps) -> Result:
    """What a flow makes of the platform's answers; what was taken and refused is the platform's to tell."""
    request = next(steps)
    while True:
        assert isinstance(request, HttpRequest)
        parts = urlsplit(request.url)
        headers = {name.lower(): value for name, value in request.headers.items()}
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        said = platform.answer(Asked(request.method, unquote(parts.path), query, headers, request.body))
        body = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
        try:
            request = steps.send(HttpResponse(said.status, {k.lower(): v for k, v in said.headers.items()}, body))
        except StopIteration as done:
            result: Result = done.value
            return result
