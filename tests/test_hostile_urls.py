"""Two thousand hostile URLs open no connection to a private address without leave, seen from below.

What is ours is real: the configuration, the webhook flow, egress, the whole service. The outside world is played
(`tests.played_internet`): its guard sees every connect of this process, and listeners wait at home for whoever comes.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from receiver import config
from receiver.destinations import KINDS
from receiver.destinations.sample import sample_event
from receiver.egress import Egress
from receiver.errors import ConfigError, EgressError
from receiver.ids import EventId
from receiver.wire import HttpRequest
from tests.hostile_urls import QUOTAS, Herd, Hostile, herd
from tests.played_internet import PUBLIC, Internet, internet
from tests.world import PRO, World, script
from tests.world import world as built

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
EVENT = sample_event(event_id=EventId("evt_01KG9Q8Y0000000000000000ZZ"), now=NOW)
AT_ONCE = 32
TIMEOUT = 30.0
"""Seconds; no way there ends by it."""

Way = tuple[str, int]
"""What became of a URL: `config`, `answered` or the stage of its failure; and the status of the answer."""


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both loops: each connects in its own way."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Internet, Herd]]:
    """The played internet, and the herd that roams it."""
    async with internet(monkeypatch) as net:
        roaming = herd(net.ports, PUBLIC)
        net.names.update(roaming.names)
        yield net, roaming


def destination(one: Hostile, *, allow_private: bool) -> config.Destination | None:
    """The destination of that URL as the configuration takes it, or None where it refuses the URL."""
    given = {"name": "a", "kind": "webhook", "url": one.url, "allow_private": allow_private}
    try:
        loaded = config.load(None, {"RECEIVER_DESTINATIONS": json.dumps([given])})
    except ConfigError:
        return None
    return loaded.destinations[0]


async def delivered(egress: Egress, one: Hostile, *, allow_private: bool = False) -> Way:
    """Send the sample event to a URL, by every room on the way; what configuration refuses meets egress alone."""
    given = destination(one, allow_private=allow_private)
    if given is None:
        await ended(egress.deliver(HttpRequest("POST", one.url, {}, b"{}"), timeout=TIMEOUT, allow_private=False))
        return "config", 0
    steps = KINDS[given.kind].flow(EVENT, given.options, now=NOW)
    return await ended(egress.deliver(next(steps), timeout=TIMEOUT, allow_private=given.allow_private))


async def ended(request: Awaitable[Any]) -> Way:
    """How a request ended; nothing but an EgressError may come out of it."""
    try:
        response = await request
    except EgressError as error:
        return error.stage, 0
    return "answered", response.status


async def all_of(herd: Sequence[Hostile], send: Callable[[Hostile], Awaitable[Way]]) -> dict[str, Way]:
    """What became of each, many at once."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(hostile: Hostile) -> tuple[str, Way]:
        async with gate:
            return hostile.url, await send(hostile)

    return dict(await asyncio.gather(*map(one, herd)))


def out() -> Any:
    """An Egress, closed at the end."""
    return aclosing(Egress(base_url="http://127.0.0.1:9", headers={}))


async def test_no_hostile_destination_is_connected_at_home(world: tuple[Internet, Herd]) -> None:
    """Two thousand of them, through configuration, flow and egress: no connect, no connection, and words for each."""
    net, roaming = world
    async with out() as egress:
        ways = await all_of(roaming.every, lambda one: delivered(egress, one))
    assert len(ways) == 2000
    assert net.private() == []
    assert net.home.counted() == 0
    told = Counter(stage for stage, _ in ways.values())
    assert set(told) <= {"config", "address", "dns", "answered", "tls"}


async def test_with_leave_they_come_home(world: tuple[Internet, Herd]) -> None:
    """The converse, without which the above could not fail: what is known to lead home does, every one of them."""
    net, roaming = world
    home = [one for one in roaming.every if one.home]
    async with out() as egress:
        ways = await all_of(home, lambda one: delivered(egress, one, allow_private=True))
    assert [(one.trick, one.url, ways[one.url]) for one in home if ways[one.url] != ("answered", 200)] == []
    assert len(home) > 80
    assert net.home.counted() > 0


async def test_no_redirect_is_followed(world: tuple[Internet, Herd]) -> None:
    """Whatever its status and Location, and whatever the answer says of other ways: one question, one answer."""
    net, roaming = world
    redirected = roaming.urls["redirected"]
    home = net.ports[0]
    net.public.answers = {
        f"/r/{one.url.rpartition('/')[2]}": (
            f"HTTP/1.1 {one.status} Elsewhere\r\nLocation: {one.location}\r\nRefresh: 0; url={one.location}\r\n"
            f'Alt-Svc: h2="127.0.0.1:{home}"; ma=86400, http/1.1=":{home}"\r\nContent-Location: {one.location}\r\n'
            f"Link: <{one.location}>; rel=preload\r\nContent-Length: 0\r\n\r\n"
        ).encode()
        for one in redirected
    }
    async with out() as egress:
        for _ in range(2):  # an Alt-Svc would be heeded the next time
            ways = await all_of(redirected, lambda one: delivered(egress, one))
            assert ways == {one.url: ("answered", one.status) for one in redirected}
    assert net.public.asked == dict.fromkeys(net.public.answers, 2)
    assert net.private() == []
    assert net.home.counted() == 0


async def test_a_rebinding_name_is_asked_once_a_connection(world: tuple[Internet, Herd]) -> None:
    """What was vetted is what is connected: a resolver that turns round finds nobody who asks again."""
    net, roaming = world
    rebinding = roaming.urls["rebinding"]
    rounds = 3
    for number in range(rounds):
        async with out() as egress:  # with the lookups of its predecessor forgotten
            ways = await all_of(rebinding, lambda one: delivered(egress, one))
        for one in rebinding:
            name = one.url.split("/")[2].partition(":")[0]
            answers = net.names[name]
            is_public = set(answers[number % len(answers)]) <= set(PUBLIC)
            assert ways[one.url] == (("answered", 200) if is_public else ("address", 0)), (one, number)
            assert net.looked_up[name] == number + 1
    assert net.private() == []
    assert net.home.counted() == 0


# -- as tasks' own callback_urls, through the whole service ------------------------------------------------------------

AS_SERVED = pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])


REFUSED = ("not connected, the address is not allowed", "the name could not be resolved")
"""How the attempts begin that connected nothing."""


@asynccontextmanager
async def guarded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, allow_private: bool
) -> AsyncIterator[tuple[World, Internet, Herd]]:
    """A whole world, in which nothing but the service and the emulator is known to the guard."""

    def change(given: dict[str, Any]) -> None:
        given["security"]["allow_private_callbacks"] = allow_private
        given["upstream"] |= {"max_concurrency": AT_ONCE, "timeout": f"{TIMEOUT:.0f}s"}
        given["delivery"] |= {"schedule": ["0s"], "timeout": f"{TIMEOUT:.0f}s"}
        given["destinations"] = []

    async with built(folder, change=change) as here, internet(monkeypatch) as net:
        upstream = urlsplit(here.settings["upstream"]["base_url"])
        net.known = {here.settings["server"]["port"], upstream.port or 0}
        roaming = herd(net.ports, PUBLIC)
        net.names.update(roaming.names)
        yield here, net, roaming


async def submitted(here: World, herd: Sequence[Hostile]) -> dict[str, int]:
    """What `POST /tasks` says to each URL as a task's callback_url."""
    # aiohttp: here it takes half the time of the world's own client.
    async with aiohttp.ClientSession(headers={"authorization": here.api.headers["authorization"]}) as api:

        async def submit(one: Hostile) -> Way:
            given = {"video": "https://example.com/in.mp4", "prompt": script(render=0)}
            body = json.dumps({"route": PRO, "input": given, "callback_url": one.url})
            async with api.post(str(here.api.base_url) + "tasks", data=body) as answer:
                await answer.read()
                return "told", answer.status

        return {url: status for url, (_, status) in (await all_of(herd, submit)).items()}


async def attempts(here: World, count: int) -> list[dict[str, Any]]:
    """The attempts at callback_urls, once there are so many deliveries and all of them have ended."""
    found: list[dict[str, Any]] = []

    async def all_ended() -> bool:
        found[:] = []
        page: dict[str, Any] = {"next_cursor": ""}
        while page["next_cursor"] is not None:
            asked = {"destination": "@callback", "limit": "200"}
            asked |= {"cursor": page["next_cursor"]} if page["next_cursor"] else {}
            page = (await here.api.get("/deliveries", params=asked)).json()
            found.extend(page["data"])
        return len(found) == count and {one["state"] for one in found} <= {"delivered", "dead"}

    await here.eventually(all_ended)
    return [attempt for one in found for attempt in one["attempts"]]


@AS_SERVED
async def test_no_hostile_callback_url_is_connected_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same two thousand, submitted: refused, or their deliveries end in words; no connect, no connection."""
    async with guarded(tmp_path, monkeypatch, allow_private=False) as (here, net, roaming):
        told = await submitted(here, roaming.every)
        assert set(told.values()) == {201, 422}
        taken = [one for one in roaming.every if told[one.url] == 201]
        made = await attempts(here, len(taken))
        assert net.private() == []
        assert net.home.counted() == 0
        assert len(made) == len(taken) > 500
        failed = [one["error"] for one in made if one["response"] is None]
        assert [words for words in failed if not words.startswith(REFUSED)] == []


@AS_SERVED
async def test_with_leave_callback_urls_come_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converse, with `security.allow_private_callbacks`."""
    async with guarded(tmp_path, monkeypatch, allow_private=True) as (here, net, roaming):
        home = [one for one in roaming.every if one.home]
        assert set((await submitted(here, home)).values()) == {201}
        assert [one for one in await attempts(here, len(home)) if one["result"] != "ok"] == []
        assert net.home.counted() > 0


def test_the_herd_is_two_thousand_and_the_same_every_time() -> None:
    """Of every family as many as it says, no URL twice; other seeds give others."""
    first, again, other = (herd((4001, 4002), PUBLIC, seed) for seed in (4, 4, 5))
    assert {family: len(urls) for family, urls in first.urls.items()} == QUOTAS
    assert len({one.url for one in first.every}) == sum(QUOTAS.values()) == 2000
    assert first == again != other
    assert len({one.trick for one in first.every}) > 200
