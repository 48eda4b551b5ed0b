"""The destination kinds: a literal registry. To add one, write its file and its line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from receiver.destinations import (
    apprise,
    dingtalk,
    discord,
    email,
    feishu,
    mattermost,
    ntfy,
    slack,
    teams,
    telegram,
    webhook,
    wecom,
)

if TYPE_CHECKING:
    from receiver.destinations.base import Kind

KINDS: Final[dict[str, Kind]] = {
    "webhook": webhook.KIND,
    "slack": slack.KIND,
    "discord": discord.KIND,
    "telegram": telegram.KIND,
    "teams": teams.KIND,
    "feishu": feishu.KIND,
    "dingtalk": dingtalk.KIND,
    "wecom": wecom.KIND,
    "mattermost": mattermost.KIND,
    "ntfy": ntfy.KIND,
    "email": email.KIND,
    "apprise": apprise.KIND,
}
