"""Every recorded body is read as the file beside it says: answers by their routes, callbacks by the one reader."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import orjson
import pytest

from receiver.errors import EnvelopeError
from receiver.records import Observation
from receiver.upstream import ROUTES
from receiver.upstream.base import NO_CALLBACK, Ambiguous, Taken, UpstreamRoute, usable_id
from receiver.upstream.reading import read_callback
from receiver.wire import HttpResponse

FIXTURES = Path(__file__).parent / "fixtures" / "upstream"
NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
SIBLINGS = "siblings"
FOLDERS = {name: name.removeprefix("runwayml/v1/").replace("/", "_") for name in ROUTES}
FOLDERS = {name: folder if folder.startswith("runway_") else f"runway_{folder}" for name, folder in FOLDERS.items()}
PRO, V2V, I2V = ROUTES.values()


def recorded(folder: str, part: str) -> list[Path]:
    """The bodies of one folder; the expectations stand beside them."""
    found = sorted((FIXTURES / folder / part).glob("*"))
    return [path for path in found if not path.name.endswith(".expected.json")]


def cases(part: str) -> list[Any]:
    """One parameter set for each route and each body of its folder."""
    return [
        pytest.param(route, path, id=f"{FOLDERS[name]}:{path.name}")
        for name, route in ROUTES.items()
        for path in recorded(FOLDERS[name], part)
    ]


def expected_of(path: Path) -> dict[str, Any]:
    """The expectation beside a body."""
    found: dict[str, Any] = orjson.loads(path.with_name(f"{path.stem}.expected.json").read_bytes())
    return found


def response_of(path: Path, expected: dict[str, Any]) -> HttpResponse:
    """The recorded answer."""
    return HttpResponse(expected["status"], expected.get("headers", {}), path.read_bytes())


def check_observation(observation: Observation, expected: dict[str, Any], body: bytes) -> None:
    """Every field is as expected, or its default where none is named; the object is the one pointed at."""
    wanted = dict(expected)
    where = wanted.pop("data_at")
    oddities = tuple(wanted.pop("oddities", ()))
    assert msgspec.structs.replace(observation, data_json=None) == Observation(**wanted, oddities=oddities)
    if where is None:
        assert observation.data_json is None
        return
    assert observation.data_json is not None
    data = orjson.loads(observation.data_json)
    if where in {"form", "altered"}:
        assert data["task_id"] == observation.upstream_id
    else:
        root = orjson.loads(body.removeprefix(b"\xef\xbb\xbf"))
        assert data == (root[where.removeprefix("/")] if where else root)


def check_verdict(verdict: msgspec.Struct, expected: dict[str, Any], body: bytes) -> None:
    """The verdict has the expected kind and members; an observation in it is compared as one."""
    wanted = dict(expected)
    assert type(verdict).__name__ == wanted.pop("kind")
    observation = wanted.pop("observation", None)
    given = msgspec.structs.asdict(verdict)
    seen = given.pop("observation", None)
    assert given == wanted
    if observation is None:
        assert seen is None
    else:
        check_observation(seen, observation, body)


@pytest.mark.parametrize("name", ROUTES)
def test_every_route_has_recorded_bodies(name: str) -> None:
    """A route without fixtures for its submission, its lookup and (where it has one) its callback is no route."""
    parts = ["submit", "lookup"] + ["callback"] * ROUTES[name].takes_callback
    assert all(recorded(FOLDERS[name], part) for part in parts)


def test_every_folder_and_file_is_used() -> None:
    """No folder without a route, no body without an expectation, no expectation without a body."""
    assert {path.name for path in FIXTURES.iterdir()} == {*FOLDERS.values(), SIBLINGS}
    for folder in FIXTURES.glob("*/*"):
        assert folder.name in {"submit", "lookup", "callback"}
        bodies = [path.stem for path in recorded(folder.parent.name, folder.name)]
        answers = [path.name.removesuffix(".expected.json") for path in folder.glob("*.expected.json")]
        assert sorted(bodies) == sorted(answers)
    assert recorded(SIBLINGS, "callback")


@pytest.mark.parametrize(("route", "path"), cases("submit"))
def test_a_submission_s_answer_is_judged_as_recorded(route: UpstreamRoute, path: Path) -> None:
    """Taken, refused, not taken and ambiguous are told apart as contract 4.3 sorts them."""
    expected = expected_of(path)
    verdict = route.read_submission(response_of(path, expected), now=NOW)
    check_verdict(verdict, expected["verdict"], path.read_bytes())


@pytest.mark.parametrize(("route", "path"), cases("lookup"))
def test_a_lookup_s_answer_is_judged_as_recorded(route: UpstreamRoute, path: Path) -> None:
    """What a lookup shows, and when it shows nothing, is as recorded."""
    expected = expected_of(path)
    looked = route.read_lookup(response_of(path, expected), now=NOW)
    check_verdict(looked, expected["looked"], path.read_bytes())


@pytest.mark.parametrize(
    "path",
    [path for folder in (*FOLDERS.values(), SIBLINGS) for path in recorded(folder, "callback")],
    ids=lambda path: f"{path.parent.parent.name}:{path.name}",
)
def test_a_callback_is_read_as_recorded(path: Path) -> None:
    """Every recorded callback, a sibling's too, becomes the recorded observation, or is unreadable as recorded."""
    expected = expected_of(path)
    body = path.read_bytes()
    if expected["observation"] is None:
        with pytest.raises(EnvelopeError):
            read_callback(body, expected["content_type"])
        return
    check_observation(read_callback(body, expected["content_type"]), expected["observation"], body)


@pytest.mark.parametrize("name", ROUTES)
def test_a_route_is_registered_under_its_own_name(name: str) -> None:
    """The registry's key, the route's name and the path of its submission are one."""
    route = ROUTES[name]
    assert route.name == name
    assert route.submit({}, None).url == f"/{name}"


def test_the_pro_route_sends_our_callback_url_and_not_the_input_s() -> None:
    """`callback_url` upstream is ours; where there is none, an address that goes nowhere."""
    request = PRO.submit({"video": "v", "callback_url": "https://theirs.example"}, "https://ours.example/c/t")
    assert (request.method, request.headers) == ("POST", {"content-type": "application/json"})
    assert orjson.loads(request.body) == {"video": "v", "callback_url": "https://ours.example/c/t"}
    assert orjson.loads(PRO.submit({"video": "v"}, None).body)["callback_url"] == NO_CALLBACK


@pytest.mark.parametrize("route", [V2V, I2V])
def test_an_official_route_never_sends_a_callback_url(route: UpstreamRoute) -> None:
    """The official format has no such member, whoever names one."""
    request = route.submit({"model": "m", "callback_url": "https://theirs.example"}, "https://ours.example/c/t")
    assert orjson.loads(request.body) == {"model": "m"}


def test_the_defaults_are_the_contract_s() -> None:
    """What is filled in where missing is exactly what contract 4.3 lists."""
    assert PRO.fill({}, seed=7) == {"model": "gen4", "options": {"structure_transformation": 0.5, "seconds": 5}}
    assert V2V.fill({}, seed=7) == {
        "model": "gen4_aleph",
        "references": [],
        "ratio": "1280:720",
        "contentModeration": {"publicFigureThreshold": "auto"},
        "seed": 7,
    }
    assert I2V.fill({}, seed=7) == {"model": "gen3a_turbo"}


def test_filling_keeps_what_is_given_and_changes_no_argument() -> None:
    """A given value stays, zero and false too; members of an object are filled one by one; nothing is shared."""
    given = {"model": "gen4_turbo", "options": {"flip": False, "structure_transformation": 0}, "extra": 1}
    filled = PRO.fill(given, seed=7)
    assert filled == {**given, "options": {"flip": False, "structure_transformation": 0, "seconds": 5}}
    assert given["options"] == {"flip": False, "structure_transformation": 0}
    assert V2V.fill({"seed": 0, "references": None}, seed=7)["seed"] == 0
    V2V.fill({}, seed=7)["references"].append("mine")
    assert V2V.fill({}, seed=7)["references"] == []
    assert PRO.fill({"options": "as it came"}, seed=7)["options"] == "as it came"


def test_what_is_required_and_missing_is_named() -> None:
    """Absent, null and empty are missing; anything else is the upstream's to judge."""
    assert PRO.missing({}) == ["video", "prompt"]
    assert PRO.missing({"video": "", "prompt": None}) == ["video", "prompt"]
    assert PRO.missing({"video": [], "prompt": 0}) == []
    assert V2V.missing({"videoUri": "v"}) == ["promptText"]
    assert I2V.missing({"promptText": "p"}) == ["promptImage"]


def test_each_lookup_route_is_the_other_s_fallback() -> None:
    """The pro route asks the feed first, the official ones the task; each falls back on the other."""
    feed, task = PRO.lookup("a/b"), PRO.fallback("a/b")
    assert (feed.method, feed.url, orjson.loads(feed.body)) == ("POST", "/runway/feed", {"task_id": "a/b"})
    assert (task.method, task.url, task.body) == ("GET", "/runwayml/v1/tasks/a%2Fb", b"")
    for route in (V2V, I2V):
        assert (route.lookup("a/b"), route.fallback("a/b")) == (task, feed)


@pytest.mark.parametrize("upstream_id", ["../../keys", "a?b=c#d", "ä b", "%2e%2e", "a\\b"])
def test_an_id_stays_one_segment_of_the_path(upstream_id: str) -> None:
    """Whatever an id holds, it leaves neither its segment nor the path."""
    segment = PRO.fallback(upstream_id).url.removeprefix("/runwayml/v1/tasks/")
    assert unquote(segment) == upstream_id
    assert not set(segment) & set("/?#\\ ")


@pytest.mark.parametrize("value", [None, 5, True, "", "  ", ".", "..", "a\nb", "a\x00b", "x" * 256, ["a"]])
def test_what_is_no_usable_id(value: object) -> None:
    """Numbers are row numbers; blanks, control characters, dot segments and very long texts are no ids."""
    assert usable_id(value) is None


def test_an_id_is_trimmed() -> None:
    """An id is compared without the blanks around it."""
    assert usable_id(" task_1 ") == "task_1"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        (" 7 ", 7),
        ("86400", 86_400),
        ("999999999", 86_400),
        ("9" * 5_000, 86_400),
        ("Sat, 31 Jan 2026 12:01:30 GMT", 90),
        ("Sat, 31 Jan 2026 12:01:30 -0000", 90),
        ("Sat, 31 Jan 2026 13:01:30 +0100", 90),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0),
        ("Sat, 31 Jan 2099 12:00:00 GMT", 86_400),
        ("Sat, 31 Jan 99999 12:00:00 GMT", None),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("\u0667", None),
        ("soon", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_at_most_a_day(header: str, seconds: float | None) -> None:
    """Delta seconds and HTTP dates are understood, capped at 24 h; garbage is ignored."""
    verdict = PRO.read_submission(HttpResponse(429, {"retry-after": header}), now=NOW)
    assert msgspec.structs.asdict(verdict) == {"reason": "HTTP 429", "retry_after": seconds}


def test_a_submission_s_answer_that_broke_off_is_ambiguous() -> None:
    """Half an id is no id, even where what came can be read."""
    whole = HttpResponse(200, {}, b'{"id": "12a01a5e"}')
    assert isinstance(V2V.read_submission(whole, now=NOW), Taken)
    cut = HttpResponse(200, {}, b"id=12a0", truncated=True)
    assert V2V.read_submission(cut, now=NOW) == Ambiguous("HTTP 200 with an unreadable body")


@pytest.mark.parametrize("status", [100, 199, 408, 500, 502, 503, 504, 524, 599])
def test_what_no_rule_names_is_ambiguous(status: int) -> None:
    """A status that does not surely say no is never a refusal, and never sent again."""
    assert isinstance(PRO.read_submission(HttpResponse(status), now=NOW), Ambiguous)
