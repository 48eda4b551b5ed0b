"""The destination kinds: a literal registry. To add one, write its file and its line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from receiver.destinations import discord, mattermost, slack, teams, webhook

if TYPE_CHECKING:
    from receiver.destinations.base import Kind

KINDS: Final[dict[str, Kind]] = {
    "webhook": webhook.KIND,
    "slack": slack.KIND,
    "discord": discord.KIND,
    "teams": teams.KIND,
    "mattermost": mattermost.KIND,
}
