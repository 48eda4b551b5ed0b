"""What is counted, and that Prometheus reads it: its own client's parser is the judge."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parsed

from receiver import metrics
from receiver.metrics import Counter, Histogram, Metrics, Reading
from receiver.web.meter import Meter
from tests.rooms import NOW, on_disk, opened
from tests.test_api import is_problem
from tests.test_web_problems import held
from tests.world import PATIENCE, script, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.world import World

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    """Every sample by its name and labels."""
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value for family in parsed(text) for one in family.samples
    }


# -- the text ----------------------------------------------------------------------------------------------------------


def test_a_counter_is_read_back() -> None:
    """With its labels, its kind and its help."""
    counter = Counter("receiver_things_total", 'Things, "odd" ones \\ too.\nAll.', "kind", "place")
    for _ in range(3):
        counter.add(("a", "b"))
    counter.add(("a", "c"))
    text = metrics.written([counter])
    [family] = parsed(text)
    assert (family.type, family.documentation) == ("counter", 'Things, "odd" ones \\ too.\nAll.')
    assert samples(text) == {
        ("receiver_things_total", (("kind", "a"), ("place", "b"))): 3,
        ("receiver_things_total", (("kind", "a"), ("place", "c"))): 1,
    }


def test_a_histogram_counts_upwards() -> None:
    """Each bucket holds the ones below it; a value on a bound is in its bucket; what is above all is in +Inf alone."""
    plain = Histogram("seconds", "How long.", (0.5, 1.0))
    for value in (0.1, 0.5, 0.7, 4.0):
        plain.add(value)
    assert samples(metrics.written([plain])) == {
        ("seconds_bucket", (("le", "0.5"),)): 2,
        ("seconds_bucket", (("le", "1"),)): 3,
        ("seconds_bucket", (("le", "+Inf"),)): 4,
        ("seconds_sum", ()): pytest.approx(5.3),
        ("seconds_count", ()): 4,
    }
    by_place = Histogram("ops", "How many.", (1.0,), "place")
    by_place.add(1, "x")
    by_place.add(2, "y")
    assert samples(metrics.written([by_place]))["ops_bucket", (("le", "1"), ("place", "y"))] == 0
    assert samples(metrics.written([by_place]))["ops_count", (("place", "x"),)] == 1


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_any_label_and_any_number_are_read_back(label: str, value: float) -> None:
    """Quotes, backslashes and line ends stay within their sample."""
    text = metrics.written([Reading("a_gauge", "Something.", "gauge", "name", values={label: value})])
    assert samples(text) == {("a_gauge", (("name", label),)): value}


def test_what_has_no_label_has_no_braces() -> None:
    """As the format's own examples have it; a family that counted nothing yet still says what it is."""
    reading = Reading("up", "It is.", "gauge", values={"": 1})
    assert metrics.written([reading]) == "# HELP up It is.\n# TYPE up gauge\nup 1\n"
    assert (
        metrics.written([Counter("none_total", "None.", "a")]) == "# HELP none_total None.\n# TYPE none_total counter\n"
    )


def test_every_family_has_a_name_of_its_own() -> None:
    """Counters end in `_total`, times are in seconds, and all say what they are."""
    families = Metrics().families()
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert re.fullmatch(r"receiver_[a-z_]+", family.name)
        assert family.help.endswith(".")
        assert family.name.endswith("_total") == (family.kind == "counter")


# -- the service -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def it(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One world for all."""
    async with world(tmp_path_factory.mktemp("metrics")) as one:
        yield one


async def scraped(it: World) -> Samples:
    """What Prometheus would read now; the counts of the store are asked for anew."""
    assert it.service is not None
    it.service.meter._stale_at = 0.0
    answer = await it.api.get(f"http://127.0.0.1:{it.settings['server']['port']}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return samples(answer.text)


@pytest.mark.anyio
async def test_a_task_s_way_is_counted(it: World) -> None:
    """From the submission to the delivery, and what the store holds in the end."""
    task_id = await it.created()
    await it.whole(task_id)
    await it.eventually(lambda: an_attempt_is_counted(it))  # which comes after its commit
    found = await scraped(it)
    route = "runway/pro/video2video"
    assert found["receiver_submissions_total", (("outcome", "taken"), ("route", route))] == 1
    assert found["receiver_callbacks_total", (("verdict", "accepted"),)] >= 1
    assert found["receiver_callback_duration_seconds_count", ()] >= 1
    assert found["receiver_events_total", (("type", "task.succeeded"),)] == 1
    assert found["receiver_attempts_total", (("destination", "sink"), ("result", "ok"))] == 1
    assert found["receiver_attempt_duration_seconds_count", (("destination", "sink"),)] == 1
    assert found["receiver_tasks", (("state", "succeeded"),)] == 1
    assert found["receiver_tasks", (("state", "lost"),)] == 0
    assert found["receiver_destination_state", (("destination", "sink"), ("state", "active"))] == 1
    assert (
        found["receiver_http_requests_total", (("method", "POST"), ("path", "/api/v1/tasks"), ("status", "201"))] == 1
    )
    assert found["receiver_store_commits_total", ()] == found["receiver_store_commit_duration_seconds_count", ()]
    assert found["receiver_store_batch_ops_sum", ()] >= found["receiver_store_commits_total", ()]
    assert not any("tsk_" in value or "evt_" in value for _, labels in found for _, value in labels)


async def an_attempt_is_counted(it: World) -> bool:
    """At the sink."""
    return ("receiver_attempts_total", (("destination", "sink"), ("result", "ok"))) in await scraped(it)


@pytest.mark.anyio
async def test_what_goes_wrong_is_counted(it: World) -> None:
    """A refused submission, a lookup, a callback without a good token, a dead delivery, a request for nothing."""
    assert (await it.submit(prompt=script(submit="400"))).status_code == 400
    polled = await it.created(callback="missing", render=60)  # nothing of it is delivered
    await it.refresh(polled)
    base = f"http://127.0.0.1:{it.settings['server']['port']}"
    assert (await it.api.post(f"{base}/callbacks/nonsense")).status_code == 404
    await it.api.get("/tasks/nobody")
    it.sink.answers += [410]
    await it.created()
    await it.eventually(lambda: state_is(it, "paused"))
    found = await scraped(it)
    assert found["receiver_submissions_total", (("outcome", "refused"), ("route", "runway/pro/video2video"))] == 1
    assert sum(value for (name, _), value in found.items() if name == "receiver_lookups_total") >= 1
    assert found["receiver_callbacks_refused_total", (("reason", "malformed"),)] == 1
    assert found["receiver_deliveries", (("destination", "sink"), ("state", "dead"))] == 1
    assert found["receiver_destination_state", (("destination", "sink"), ("state", "paused"))] == 1
    assert found["receiver_destination_consecutive_failures", (("destination", "sink"),)] == 1
    missing = (("method", "GET"), ("path", "/api/v1/tasks/{id}"), ("status", "404"))
    assert found["receiver_http_requests_total", missing] == 1


async def state_is(it: World, state: str) -> bool:
    """The sink is in this state."""
    return bool((await it.api.get("/destinations/sink")).json()["state"] == state)


@pytest.mark.anyio
async def test_a_store_that_cannot_commit_is_seen(it: World) -> None:
    """The callback that was not taken is counted, and the gauge is up until a commit succeeds."""
    task_id = await it.created(render=60)
    with held(it):
        assert (await it.call_back(task_id, {"code": 200})).status_code == 503
        away = await scraped(it)
    assert away["receiver_callbacks_total", (("verdict", "unstored"),)] == 1
    assert away["receiver_store_failing", ()] == 1
    assert (await it.call_back(task_id, {"code": 200})).status_code == 200
    assert (await scraped(it))["receiver_store_failing", ()] == 0


@pytest.mark.anyio
async def test_a_store_that_cannot_be_read_hides_nothing_else(tmp_path: Path) -> None:
    """Its counts are absent, what the rooms counted is there."""
    async with opened(tmp_path) as store:
        meter = Meter(store, Metrics(), {"forged": 3}, ["sink"], NOW)
        assert {family.name for family in await meter._of_store()} >= {"receiver_tasks", "receiver_deliveries"}
        on_disk(store, "DROP TABLE tasks")
        meter._stale_at = 0.0
        assert await meter._of_store() == []
        [refused, *_] = meter._of_writer()
        assert refused.values == {"forged": 3}


@pytest.mark.anyio
async def test_the_process_says_how_it_does(it: World) -> None:
    """Memory, time, files, the loop, the build: under the names that dashboards know."""
    assert it.service is not None
    await it.eventually(lambda: lag_is_known(it))
    found = await scraped(it)
    assert found["process_resident_memory_bytes", ()] > 10_000_000
    assert found["process_virtual_memory_bytes", ()] > found["process_resident_memory_bytes", ()]
    assert 0 < found["process_open_fds", ()] < found["process_max_fds", ()]
    assert found["process_cpu_seconds_total", ()] > 0
    assert 1_700_000_000 < found["process_start_time_seconds", ()] < 5_000_000_000
    assert found["receiver_store_waiting_ops", ()] >= 0
    assert found["receiver_store_failing", ()] == 0
    [build] = [labels for name, labels in found if name == "receiver_build_info"]
    assert dict(build)["database"] == "sqlite"


async def lag_is_known(it: World) -> bool:
    """The loop has been measured."""
    return ("receiver_loop_lag_seconds_count", ()) in await scraped(it)


@pytest.mark.anyio
async def test_metrics_are_guarded_as_the_api_is(it: World) -> None:
    """401 without a key."""
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as stranger:
        answer = await stranger.get(f"http://127.0.0.1:{it.settings['server']['port']}/metrics")
    is_problem(answer, 401, "unauthorized")


@pytest.mark.anyio
async def test_the_store_is_asked_seldom(tmp_path: Path) -> None:
    """Several scrapes at once and soon after are one question; once that is stale, there is another."""
    async with opened(tmp_path) as store:
        meter = Meter(store, Metrics(), {}, ["sink"], NOW)
        first = await meter._of_store()
        assert await meter._of_store() is first
        meter._stale_at = 0.0
        assert await meter._of_store() is not first
