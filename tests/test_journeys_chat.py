"""Journeys to the chats: every kind in one service, each to its platform, over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import pytest
from typer.testing import CliRunner

from receiver import config
from receiver.cli import app as command_line
from receiver.cli.probing import probe
from receiver.config.models import Config
from receiver.destinations import KINDS
from tests.platforms import Said, served
from tests.platforms.apprise import AppriseTarget
from tests.platforms.email import MailServer, mail_server
from tests.platforms.every import EVERY
from tests.platforms.slack import Slack
from tests.rooms import rows_of
from tests.world import World, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.platforms import Platform

pytestmark = pytest.mark.anyio

CHATS = sorted(name for name, kind in KINDS.items() if kind.summary is not None)
NAMES_A_WAIT = ("slack", "discord", "telegram", "teams", "mattermost")
"""Those whose answer says for how long; the others' tables do."""


@dataclass
class Place:
    """A service that tells every platform, and the platforms by their kinds.

    Attributes:
        left_alone: the kinds that asked for that for longer than any test takes.
    """

    world: World
    platforms: dict[str, Any]
    left_alone: set[str] = field(default_factory=set)

    def of(self, kind: str) -> Platform:
        """One that speaks HTTP."""
        platform: Platform = self.platforms[kind]
        return platform

    async def deliveries(self, task_id: str) -> dict[str, Any]:
        """A task's deliveries by destination, once each was tried."""

        async def tried() -> bool:
            found = await self.world.timeline(task_id, "delivery")
            tried = {one["destination"] for one in found if one["attempt_count"]}
            return len(found) == len(CHATS) and tried >= set(CHATS) - self.left_alone

        await self.world.eventually(tried)
        return {one["destination"]: one for one in await self.world.timeline(task_id, "delivery")}


@pytest.fixture(scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    """Every kind there is, each named like itself."""
    async with AsyncExitStack() as stack:
        platforms: dict[str, Any] = {}
        for kind in CHATS:
            way: Any = mail_server() if kind == "email" else served({**EVERY, "apprise": AppriseTarget}[kind]())
            platforms[kind] = await stack.enter_async_context(way)

        def change(given: dict[str, Any]) -> None:
            given["destinations"] = [platforms[kind].destination(kind) for kind in CHATS]

        built = await stack.enter_async_context(world(tmp_path_factory.mktemp("chat"), change=change))
        yield Place(built, platforms)


async def test_every_chat_is_told_of_a_render_and_of_a_failure(here: Place) -> None:
    """Each platform takes both, and shows what is to be shown."""
    done, failed = await here.world.created(), await here.world.created(outcome="fail")
    for task_id in (done, failed):
        await here.world.ended(task_id)
        states = {name: one["state"] for name, one in (await here.deliveries(task_id)).items()}
        assert states == dict.fromkeys(CHATS, "delivered"), states
    video = (await here.world.task(done))["video_url"]
    reason = (await here.world.task(failed))["failure"]
    for kind in CHATS:
        shown = here.platforms[kind].shown
        assert any("Video ready" in one.text and video in f"{one.links}{one.text}" for one in shown), kind
        # Signs that would be markup may be written wide.
        assert any("Render failed" in one.text and reason in normalize("NFKC", one.text) for one in shown), kind
        assert getattr(here.platforms[kind], "refused", []) == []


async def test_no_secret_is_in_any_answer(here: Place) -> None:
    """Neither in what is stored of attempts nor in what is said of destinations; the fakes' secrets say `secret`."""
    task_id = await here.world.created()
    await here.world.ended(task_id)
    await here.deliveries(task_id)
    attempts = await here.world.timeline(task_id, "attempt")
    assert len(attempts) >= len(CHATS)
    requests = json.dumps([[one["request"], one["error"], one["reason"]] for one in attempts])
    assert "secret" not in requests
    assert "secret" not in (await here.world.api.get("/destinations")).text


@pytest.mark.parametrize("kind", CHATS)
async def test_a_sample_is_sent_by_hand(here: Place, kind: str) -> None:
    """`receiver destinations test NAME`: it says of itself that it is one."""
    answer = await here.world.api.post(f"/destinations/{kind}/test")
    assert answer.json()["result"] == "ok", answer.text
    assert "Test: video ready" in here.platforms[kind].shown[-1].text


@pytest.mark.parametrize("kind", CHATS)
async def test_a_preview_prints_the_request_without_its_secret(here: Place, kind: str) -> None:
    """`receiver destinations preview NAME`: exactly what would be sent."""
    path = str(here.world.folder / "config.toml")
    printed = CliRunner().invoke(command_line, ["destinations", "preview", kind, "--json", "--config", path])
    assert printed.exit_code == 0, printed.output
    document = json.loads(printed.stdout)
    assert document["method"] == {"email": "MAIL", "apprise": "NOTIFY"}.get(kind, "POST")
    assert "secret" not in f"{document['url']}{document['headers']}"
    assert "Test: video ready" in document["body"].replace("\\u", "") or kind in {"email", "apprise", "telegram"}


async def test_doctor_knocks_at_every_platform(here: Place) -> None:
    """Where it leads by HTTP; of the others it says how to try them. Nothing is sent."""
    before = {kind: len(here.platforms[kind].shown) for kind in CHATS}
    settings = config.load(here.world.folder / "config.toml", {})
    found = {one.name.removeprefix("destination "): one for one in await probe(settings)}
    states = {kind: found[kind].state for kind in CHATS}
    assert states == {kind: "note" if kind in {"email", "apprise"} else "ok" for kind in CHATS}, found
    assert "destinations test email" in found["email"].detail
    assert before == {kind: len(here.platforms[kind].shown) for kind in CHATS}


def test_a_password_is_hidden_from_the_logs_in_every_spelling() -> None:
    """As it stands in the URL, and as the server is told it."""
    keys = {"smtp_url": "smtp://me:a%2Fsecret@h:25", "from": "a@b.example", "to": "c@d.example"}
    options = KINDS["email"].options.model_validate(keys)
    destination = config.Destination(name="mail", kind="email").model_copy(update={"options": options})
    assert {"a%2Fsecret", "a/secret"} <= set(config.secrets_of(Config(destinations=(destination,))))


@asynccontextmanager
async def alone(folder: Path, kind: str, **more: Any) -> AsyncIterator[tuple[World, Platform]]:
    """A service that tells one platform."""
    async with served(EVERY[kind]()) as platform:

        def change(given: dict[str, Any]) -> None:
            given["destinations"] = [platform.destination(kind, **more)]

        async with world(folder, change=change) as built:
            yield built, platform


@pytest.mark.parametrize("kind", NAMES_A_WAIT)
async def test_who_is_throttled_does_not_come_back_before_the_time(tmp_path: Path, kind: str) -> None:
    """429 in the platform's own words: neither with that message nor with any other; then all arrive, once."""
    async with alone(tmp_path, kind) as (service, platform):
        platform.script = [platform.throttled(2.0)]
        first = await service.created()
        await platform.until(lambda: bool(platform.asked))
        later = [await service.created() for _ in range(3)]
        await platform.until(lambda: len(platform.shown) == 1 + len(later))
        assert platform.early == []

        async def both() -> bool:
            attempts = await service.timeline(first, "attempt")
            return [one["result"] for one in attempts] == ["throttled", "ok"]

        await service.eventually(both)


@pytest.mark.parametrize("kind", NAMES_A_WAIT)
async def test_a_burst_at_a_throttled_chat_is_one_summary_after_the_time(kind: str, tmp_path: Path) -> None:
    """Nothing is sent before the time it named, by hand neither; then what came meanwhile is told in one message."""
    async with served(EVERY[kind]()) as platform:

        def change(given: dict[str, Any]) -> None:
            given["destinations"] = [platform.destination("chat", coalesce="2/h", rate="50/s")]

        async with world(tmp_path, change=change) as it:
            platform.script = [platform.throttled(2.0)]
            assert (await it.api.post("/destinations/chat/test")).json()["result"] == "throttled"
            assert (await it.api.get("/destinations/chat")).json()["next_try_at"] is not None
            assert (await it.api.post("/destinations/chat/test")).status_code == 409
            # Paused until all are there: were they slower than the two seconds, the first would go out alone.
            await it.api.post("/destinations/chat/pause")
            tasks = await asyncio.gather(*(it.created() for _ in range(6)))
            for task_id in tasks:
                await it.ended(task_id)
            await it.api.post("/destinations/chat/resume")
            for task_id in tasks:
                await it.eventually(partial(it.all_delivered, task_id))
            assert (len(platform.shown), platform.early, platform.refused) == (1, [], [])
            assert "6" in platform.shown[0].text


@pytest.mark.parametrize(("kind", "least"), [("feishu", 60), ("dingtalk", 600), ("wecom", 60), ("ntfy", 10)])
async def test_who_names_no_time_is_left_alone_for_the_documented_one(here: Place, kind: str, least: int) -> None:
    """The next try is that far away, however short the schedule is."""
    platform = here.of(kind)
    platform.script = [platform.throttled(least)]
    task_id = await here.world.created()

    async def tried() -> list[dict[str, Any]]:
        return [one for one in await here.world.timeline(task_id, "attempt") if one["destination"] == kind]

    await here.world.eventually(tried)
    here.left_alone.add(kind)
    answer = await here.world.api.post(f"/destinations/{kind}/test")  # before all others were told: it holds for a time
    assert (answer.status_code, platform.early) == (409, []), "it holds for all that would be sent there"
    assert f"nothing was sent to {kind}: it asked to be left alone" in answer.json()["detail"]
    await here.deliveries(task_id)
    [attempt] = await tried()
    assert attempt["result"] == "throttled"
    wait = datetime.fromisoformat(attempt["next_at"]) - datetime.fromisoformat(attempt["started_at"])
    assert wait >= timedelta(seconds=least)


async def test_a_burst_is_folded(tmp_path: Path) -> None:
    """Past `coalesce` one message tells of all that is due; every delivery arrives, and Slack sees no flood."""
    async with alone(tmp_path, "slack", coalesce="2/s") as (service, slack):
        tasks = await asyncio.gather(*[service.created() for _ in range(12)])

        async def told() -> bool:
            found = [one for task_id in tasks for one in await service.timeline(task_id, "delivery")]
            return [one["state"] for one in found] == ["delivered"] * len(tasks)

        await service.eventually(told)
        assert slack.refused == []
        assert len(slack.shown) < len(tasks), "nothing was folded"
        assert any(re.match(r"\S+ \d+ events", one.text) for one in slack.shown), slack.shown


async def test_a_burst_waits_for_the_platforms_own_pace(tmp_path: Path) -> None:
    """Without a `rate` WeCom gets its twenty a minute, and the rest waits: a twenty-first would be refused."""
    async with served(EVERY["wecom"]()) as wecom:

        def change(given: dict[str, Any]) -> None:
            given["destinations"] = [{k: v for k, v in wecom.destination("wecom").items() if k != "rate"}]

        async with world(tmp_path, change=change) as service:
            tasks = await asyncio.gather(*[service.created() for _ in range(24)])
            for task_id in tasks:
                await service.ended(task_id)
            await wecom.until(lambda: len(wecom.shown) == 20)

            async def rest() -> bool:
                found = (await service.api.get("/deliveries?state=pending")).json()["data"]
                return [one["attempt_count"] for one in found] == [0] * 4

            await service.eventually(rest)
            assert (len(wecom.asked), wecom.refused) == (20, [])


async def test_a_chat_that_is_gone_is_paused(here: Place) -> None:
    """Nothing else is spent on it; `resume` takes it up again."""
    telegram = here.of("telegram")
    telegram.script = [telegram.refusal(403, "Forbidden: bot was kicked from the supergroup chat")]  # type: ignore[attr-defined]
    answer = await here.world.created()
    await here.deliveries(answer)
    found = {one["name"]: one for one in (await here.world.api.get("/destinations")).json()["data"]}
    assert found["telegram"]["state"] == "paused"
    assert "kicked" in found["telegram"]["last_error"]
    assert (await here.world.api.post("/destinations/telegram/resume")).json()["state"] == "active"


async def test_what_an_answer_repeats_of_a_url_is_neither_stored_nor_told(tmp_path: Path) -> None:
    """Servers say in a 404 what was asked for, and redirects say where it is now: both are the URL, and its secret."""
    async with served(Slack()) as slack, served(EVERY["discord"]()) as other:
        moved = {"location": f"https://chat.example.com{slack.path}/"}
        slack.script = [Said(404, f"Cannot POST {slack.path}".encode(), moved)]

        def change(given: dict[str, Any]) -> None:
            given["destinations"] = [
                slack.destination("chat"),
                other.destination("operators", events=["destination.paused", "delivery.dead"]),
            ]

        async with world(tmp_path, change=change) as it:
            await it.ended(await it.created())
            told = await other.seen(2)
            assert all("Cannot POST" in one.text for one in told)
            assert "secret" not in repr(told)
            assert it.service is not None
            kept = rows_of(it.service.store, "SELECT reason, response_json FROM attempts WHERE result = 'permanent'")
            assert len(kept) == 1
            assert "secret" not in repr(kept)


async def test_a_mail_that_is_put_off_is_mailed_later(here: Place) -> None:
    """With the same Message-ID, once."""
    mail = here.platforms["email"]
    assert isinstance(mail, MailServer)
    before = len(mail.mails)
    mail.script = {"RCPT": ["450 4.2.0 greylisted"]}
    await here.world.created()
    await mail.until(lambda: len(mail.mails) > before)


async def test_past_its_threshold_what_is_due_is_one_message(tmp_path: Path) -> None:
    """`coalesce`: six renders while the chat was paused, one message an hour; nothing is dropped."""
    async with served(Slack()) as slack:

        def change(given: dict[str, Any]) -> None:
            given["destinations"] = [slack.destination("slack", coalesce="1/h")]

        async with world(tmp_path, change=change) as here:
            await here.api.post("/destinations/slack/pause")
            tasks = [await here.created() for _ in range(6)]
            for task_id in tasks:
                await here.ended(task_id)
            await here.api.post("/destinations/slack/resume")

            async def all_told() -> bool:
                return all([await here.all_delivered(task_id) for task_id in tasks])

            await here.eventually(all_told)
    [shown] = await slack.seen()
    assert "6 events" in shown.text
    assert "✅ Video ready" in shown.text
