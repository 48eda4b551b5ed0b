"""Journeys that end by asking: the polled routes, lost callbacks, tasks the upstream does not show, and lost ones."""

from __future__ import annotations

import dataclasses
import itertools
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest

from receiver import poll
from receiver.emulator.vocabulary import LOOKUP_SHAPES
from tests.world import I2V, PRO, V2V, World, destination, show, sink, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Any

pytestmark = [pytest.mark.anyio, pytest.mark.engines]
ENDS = {"succeed": "task.succeeded", "fail": "task.failed", "cancel": "task.cancelled"}
DEADLINE = timedelta(seconds=0.8)
SOON = timedelta(milliseconds=300)
PATIENT = timedelta(seconds=60)


def _eager(given: dict[str, Any]) -> None:
    given["polling"]["callback_grace"] = "50ms"


def _hurried(given: dict[str, Any], deadline: timedelta = DEADLINE) -> None:
    _eager(given)
    given["polling"] |= {"missing_grace": "200ms", "deadline": deadline.total_seconds(), "max_interval": "60ms"}


@pytest.fixture(scope="module")
async def eager(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world that begins to poll after a twentieth of a second, and is patient with what it finds."""
    async with world(tmp_path_factory.mktemp("eager"), change=_eager) as built:
        yield built


@pytest.fixture(scope="module")
async def hurried(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world that gives a task up after 0.8 s."""
    async with world(tmp_path_factory.mktemp("hurried"), change=_hurried) as built:
        yield built


@pytest.fixture(scope="module")
async def soon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world that gives a task up after 0.3 s, if only the upstream answers."""
    async with world(tmp_path_factory.mktemp("soon"), change=lambda given: _hurried(given, SOON)) as built:
        yield built


def _span(task: dict[str, Any]) -> timedelta:
    """From the submission's answer to the end."""
    return datetime.fromisoformat(task["finished_at"]) - datetime.fromisoformat(task["submitted_at"])


def _own(route: str, shape: str) -> dict[str, Any]:
    """The word that dresses the route's own lookup, and not its fallback."""
    return {"feed_shape" if route == PRO else "tasks_shape": shape}


async def _script(here: World, task_id: str, **words: Any) -> None:
    """Change what the upstream does with a task that it has."""
    task = await here.rendering(task_id)
    task.script = dataclasses.replace(task.script, **words)


@pytest.mark.parametrize("outcome", ENDS)
@pytest.mark.parametrize("route", [V2V, I2V])
async def test_the_routes_without_a_callback(eager: World, route: str, outcome: str) -> None:
    """The official-format routes have no callback: polling finds every end."""
    task_id = await eager.created(route, outcome=outcome, reason="too dark")
    got = await eager.whole(task_id, ENDS[outcome])
    assert (got.data["via"], got.data["confirmed"]) == ("poll", True)
    if outcome == "fail":
        assert (got.data["failure"], got.data["failure_code"]) == ("too dark", "INTERNAL.BAD_OUTPUT.CODE01")


async def test_the_first_lookup_is_made_when_it_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop does not sleep past it: a new task's first lookup comes after `interval`, not after its longest sleep.

    That is a second, and here an hour.
    """
    monkeypatch.setattr(poll, "IDLE_FOR", 3600.0)
    async with world(tmp_path) as here:
        task_id = await here.created(V2V, outcome="never")

        async def polled() -> bool:
            return bool(await here.timeline(task_id, "poll"))

        await here.eventually(polled)
        submitted = datetime.fromisoformat((await here.task(task_id))["submitted_at"])
        first = datetime.fromisoformat((await here.timeline(task_id, "poll"))[0]["at"])
        assert first - submitted >= timedelta(milliseconds=50)


@pytest.mark.parametrize(("route", "shape"), list(itertools.product([PRO, V2V, I2V], LOOKUP_SHAPES)))
async def test_every_shape_of_lookup(eager: World, route: str, shape: str) -> None:
    """Each documented dress of a lookup's answer, on each route; where it says nothing, the other route does."""
    task_id = await eager.created(route, callback="missing", **_own(route, shape))
    got = await eager.whole(task_id)
    assert got.data["video_url"].endswith(".mp4")


@pytest.mark.parametrize(("route", "shape"), list(itertools.product([PRO, V2V, I2V], LOOKUP_SHAPES)))
async def test_every_shape_of_a_lookup_that_shows_a_failure(eager: World, route: str, shape: str) -> None:
    """The same for a failure: its words are never taken for a URL, nor a URL for its words."""
    words = _own(route, shape)
    task_id = await eager.created(route, callback="missing", outcome="fail", reason="too dark", **words)
    got = await eager.whole(task_id, "task.failed")
    assert (got.data["failure"], got.data["video_url"]) == ("too dark", None)


@pytest.mark.parametrize("route", [PRO, V2V])
@pytest.mark.parametrize("fault", ["500", "503-html", "429-empty", "401", "unreadable", "empty", "scalar", "null",
                                   "reset", "cut", "disagreeing", "301"])  # fmt: skip
async def test_a_lookup_that_fails_is_asked_again(eager: World, route: str, fault: str) -> None:
    """Whatever a lookup meets on its way, it is asked again, and the end is found."""
    task_id = await eager.created(route, callback="missing", lookup=fault, lookup_times=2)
    await eager.whole(task_id)


async def test_a_task_that_is_not_visible_at_first(eager: World) -> None:
    """`task_not_exist` right after the submission is no end: it is asked again until it is shown."""
    task_id = await eager.created(V2V, missing=4)
    got = await eager.whole(task_id)
    assert got.data["via"] == "poll"


async def test_a_success_without_a_url_on_a_polled_route(eager: World) -> None:
    """Five lookups without a URL, and then that is the truth."""
    task_id = await eager.created(I2V, urlless=100)
    got = await eager.whole(task_id)
    assert got.data["video_url"] is None
    polls = [item for item in await eager.timeline(task_id, "poll") if item["verdict"] in {"odd", "accepted"}]
    assert [item["verdict"] for item in polls] == ["odd"] * 4 + ["accepted"]


# -- who hears of progress -------------------------------------------------------------------------------------------


async def test_progress_is_kept_and_forwarded_to_nobody_who_did_not_ask(eager: World) -> None:
    """Running and a percentage move the task; without a destination that asks for them they are no events."""
    words: dict[str, Any] = {"callback": "queued+progress+ok", "callback_shape": "3b", "render": 0.1}
    task_id = await eager.created(outcome="never", **words)

    async def moving() -> bool:
        return await eager.state(task_id) == "running"

    await eager.eventually(moving)
    eager.upstream.end((await eager.rendering(task_id)).id)
    await eager.whole(task_id)
    assert [item["type"] for item in await eager.timeline(task_id, "event")] == ["task.succeeded"]


async def test_progress_goes_to_those_who_ask(tmp_path: Path) -> None:
    """A destination that names all events gets the whole way in its order; the others get the end alone."""
    async with sink() as watcher:

        def change(given: dict[str, Any]) -> None:
            _eager(given)
            given["destinations"].append(destination("watcher", watcher.url, events=["task.*"], max_concurrency=1))

        async with world(tmp_path, change=change) as here:
            task_id = await here.created(V2V, render=1000, tasks_shape="4.4b")
            render = await here.rendering(task_id)
            for older, kind in ((600, "task.running"), (3000, "task.progress")):
                render.born_at -= older
                await watcher.until(lambda kind=kind: kind in {one.type for one in watcher.of(task_id)})  # type: ignore[misc]
            here.upstream.end(render.id)
            await watcher.until(lambda: bool(watcher.of(task_id)) and watcher.of(task_id)[-1].type == "task.succeeded")
            types = [one.type for one in watcher.of(task_id)]
            assert types[:2] == ["task.queued", "task.running"], types
            assert set(types[2:-1]) == {"task.progress"}, types
            seen = [one.data["progress"] for one in watcher.of(task_id)[1:]]
            assert seen == sorted(seen)
            assert len({one.id for one in watcher.of(task_id)}) == len(types)
            await here.whole(task_id)
            assert watcher.bad == []
            skips = [item for item in await here.timeline(task_id, "skip") if item["destination"] == "sink"]
            assert len(skips) == len(types) - 1


# -- lost, and found again -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [V2V, I2V])
async def test_a_task_nobody_ever_saw_is_lost(eager: World, route: str) -> None:
    """`task_not_exist` five times in a row, from both lookup routes, over the grace: lost, well before the deadline."""
    task_id = await eager.created(route, missing=1000)
    got = await eager.whole(task_id, "task.lost")
    polls = await eager.timeline(task_id, "poll")
    assert len(polls) >= 5
    first, last = (datetime.fromisoformat(polls[at]["at"]) for at in (0, -1))
    assert last - first >= timedelta(milliseconds=300)
    assert (await eager.rendering(task_id)).lookups >= 2 * len(polls)
    assert _span(await eager.task(task_id)) < PATIENT
    assert (got.data["code"], got.data["envelope"]["data"]) == (500, {"task_id": got.data["upstream_id"]})


async def test_a_task_with_a_good_callback_url_waits_for_the_deadline(tmp_path: Path) -> None:
    """While its callback URL is good, a task that no lookup shows is not given up before the deadline."""
    async with world(tmp_path, change=lambda given: _hurried(given, PATIENT)) as here:
        task_id = await here.created(PRO, callback="missing", missing=1000)
        await here.eventually(partial(_is_missed, here, task_id))
        assert await here.state(task_id) == "queued"
        _past_the_deadline(here)
        await here.whole(task_id, "task.lost")
        assert _span(await here.task(task_id)) >= PATIENT


async def _is_missed(here: World, task_id: str) -> bool:
    """Lookups have said more often, and for longer, that there is no such task than it takes to give one up."""
    polls = [item for item in await here.timeline(task_id, "poll") if item["detail"] == "the upstream has no such task"]
    times = [datetime.fromisoformat(item["at"]) for item in polls]
    return len(times) > 5 and times[-1] - times[0] > timedelta(milliseconds=200)


def _past_the_deadline(here: World) -> None:
    """Time passes, for the poller alone: however slow this machine is, the deadline is not here before."""
    assert here.service is not None
    clock = here.service.poller.clock
    here.service.poller.clock = lambda: clock() + PATIENT


async def test_a_task_whose_callback_url_has_expired_is_lost_like_any_other(tmp_path: Path) -> None:
    """Once nobody can call back any more, five times `task_not_exist` is enough."""

    def change(given: dict[str, Any]) -> None:
        _hurried(given)
        given["polling"]["deadline"] = "60s"
        given["security"]["callback_ttl"] = "400ms"

    async with world(tmp_path, change=change) as here:
        task_id = await here.created(PRO, callback="missing", missing=1000)
        await here.whole(task_id, "task.lost")
        task = await here.task(task_id)
        lived = datetime.fromisoformat(task["finished_at"]) - datetime.fromisoformat(task["created_at"])
        assert lived >= timedelta(milliseconds=390)


async def test_a_task_that_was_shown_once_waits_for_the_deadline(tmp_path: Path) -> None:
    """What a lookup has shown is not lost because later ones do not show it."""
    async with world(tmp_path, change=lambda given: _hurried(given, PATIENT)) as here:
        task_id = await here.created(V2V, outcome="never")

        async def shown() -> bool:
            return await here.state(task_id) == "running"

        await here.eventually(shown)
        del here.upstream.tasks[(await here.rendering(task_id)).id]
        await here.eventually(partial(_is_missed, here, task_id))
        assert await here.state(task_id) == "running"
        _past_the_deadline(here)
        await here.whole(task_id, "task.lost")
        assert _span(await here.task(task_id)) >= PATIENT


async def test_a_render_that_never_ends_is_lost_at_the_deadline(hurried: World) -> None:
    """Still running past the deadline, by an answer that was given after it: lost."""
    task_id = await hurried.created(V2V, outcome="never")
    got = await hurried.whole(task_id, "task.lost")
    assert got.data["via"] is None
    assert _span(await hurried.task(task_id)) >= DEADLINE


async def test_a_lost_task_comes_back_by_a_callback(hurried: World) -> None:
    """`lost` is our own word: the truth replaces it, with one more event that says `recovered`."""
    task_id = await hurried.created(PRO, outcome="never", callback="missing")
    lost = await hurried.whole(task_id, "task.lost")
    upstream_id = (await hurried.rendering(task_id)).id
    hurried.upstream.end(upstream_id, outcome="succeed")
    assert (await hurried.upstream.call(upstream_id)).status == 200
    got = await hurried.whole(task_id, "task.succeeded", events=2)
    assert (got.data["recovered"], lost.data["recovered"]) == (True, False)
    assert got.data["video_url"].endswith(".mp4")
    assert (await hurried.upstream.call(upstream_id)).status == 200
    await hurried.whole(task_id, "task.succeeded", events=2)


async def test_a_lost_task_comes_back_by_asking(hurried: World) -> None:
    """`refresh` asks for a lost task too; a success is then the truth, and is forwarded as recovered."""
    task_id = await hurried.created(V2V, outcome="never")
    await hurried.whole(task_id, "task.lost")
    hurried.upstream.end((await hurried.rendering(task_id)).id, outcome="fail", reason="too dark")
    assert (await hurried.refresh(task_id))["state"] == "failed"
    got = await hurried.whole(task_id, "task.failed", events=2)
    assert (got.data["recovered"], got.data["confirmed"]) == (True, True)


async def test_a_lost_task_that_lives_is_asked_about_until_the_truth_is_known(hurried: World) -> None:
    """A callback shows a lost task running: it stays lost, and is looked up until it ends."""
    task_id = await hurried.created(PRO, outcome="never", callback="missing")
    await hurried.whole(task_id, "task.lost")
    upstream_id = (await hurried.rendering(task_id)).id
    assert (await hurried.upstream.call(upstream_id, "progress")).status == 200
    before = (await hurried.rendering(task_id)).lookups

    async def asked() -> bool:
        return (await hurried.rendering(task_id)).lookups > before + 1

    await hurried.eventually(asked)
    assert await hurried.state(task_id) == "lost"
    hurried.upstream.end(upstream_id, outcome="succeed")
    got = await hurried.whole(task_id, "task.succeeded", events=2)
    assert (got.data["recovered"], got.data["via"]) == (True, "poll")


@pytest.mark.parametrize("fault", ["500", "401", "403", "429", "unreadable", "reset"])
async def test_an_upstream_that_does_not_answer_postpones_the_deadline(soon: World, fault: str) -> None:
    """Past the deadline without an answer nothing is lost; `/readyz` says why; the first answer decides."""
    task_id = await soon.created(V2V, outcome="never", lookup=fault)
    submitted = datetime.fromisoformat((await soon.task(task_id))["submitted_at"])

    async def asked_past_the_deadline() -> bool:
        polls = await soon.timeline(task_id, "poll")
        return any(datetime.fromisoformat(item["at"]) > submitted + SOON for item in polls)

    await soon.eventually(asked_past_the_deadline)
    status, reasons = await soon.ready()
    assert (status, await soon.state(task_id)) == (503, "queued")
    assert "the upstream does not answer lookups" in reasons[0]
    await _script(soon, task_id, lookup="ok")
    await soon.whole(task_id, "task.lost")
    assert show(await soon.timeline(task_id, "event")).count("task.lost") == 1
    assert await soon.ready() == (200, [])


async def test_a_trouble_that_nobody_waits_for_is_none(tmp_path: Path) -> None:
    """Lookups failed, and then a callback ended the last task: there is nothing to be unready for."""
    async with world(tmp_path, change=_eager) as here:
        task_id = await here.created(PRO, callback="missing", lookup="500", render=0)

        async def troubled() -> bool:
            return (await here.ready())[0] == 503

        await here.eventually(troubled)
        assert (await here.upstream.call((await here.rendering(task_id)).id)).status == 200
        await here.whole(task_id)

        async def calm() -> bool:
            return await here.ready() == (200, [])

        await here.eventually(calm)
