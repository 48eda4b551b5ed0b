"""The card: what is told of an event, whatever the platform."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from receiver import routing
from receiver.destinations import card as room
from receiver.destinations.card import card, link, summary_card, took
from receiver.destinations.sample import sample_event
from receiver.ids import EventId, TaskId
from receiver.records import Event
from tests.kind_room import HOME, PAGE, POSTER, VIDEO, event, failure

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_a_render() -> None:
    """What it is, how long it took, where it leads."""
    told = card(event(), home=HOME)
    assert (told.icon, told.headline, told.tone, told.poster) == ("✅", "Video ready", "good", POSTER)
    assert told.facts == (("Took", "1 min 35 s"), ("Route", "runway/pro/video2video"), ("Task", event().task_id))
    assert told.links == (("Watch", VIDEO), ("Open task", PAGE))


def test_a_failure_has_its_reason() -> None:
    """The upstream's words, and its code."""
    told = card(event("task.failed", failure="too long", failure_code="E1", video_url=None), home=None)
    assert (told.values["failure"], told.links, told.tone) == ("too long", (), "bad")
    assert ("Code", "E1") in told.facts


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"failure": None, "msg": "its words"}, "its words"),
        ({"failure": " ", "msg": ""}, "The upstream gave no reason."),
        ({}, "The upstream gave no reason."),
    ],
)
def test_a_failure_without_a_reason_says_so(data: dict[str, Any], reason: str) -> None:
    """Rather than nothing."""
    assert card(event("task.failed", **data), home=None).values["failure"] == reason


def test_our_own_copy_goes_before_the_upstreams_link() -> None:
    """Which is dead in a day or two."""
    ours = "https://ours.example"
    copies = [{"kind": "video", "url": f"{ours}/v"}, {"kind": "poster", "url": f"{ours}/p"}, 7]
    told = card(event(artifacts=copies), home=HOME)
    assert (told.values["video_url"], told.poster) == (f"{ours}/v", f"{ours}/p")


@pytest.mark.parametrize("kind", sorted(routing.EVENT_TYPES))
def test_every_event_has_a_headline(kind: str) -> None:
    """Of its own; an unknown one, too, has one."""
    told = card(event(kind), home=HOME)
    assert told.headline not in {"", "Event"}
    assert card(event("task.new"), home=HOME).headline == "Event"


def test_an_operator_event_names_its_destination() -> None:
    """And leads to its page, where it is about no task."""
    data = {"task_id": None, "destination": "crm & co", "consecutive_failures": 10, "reason": "it answered 500"}
    told = card(Event(EventId("evt_1"), TaskId("evt_1"), "destination.failing", NOW, json.dumps(data)), home=HOME)
    assert told.headline == "Destination failing: crm & co"
    assert told.facts == (("Failures in a row", "10"),)
    assert told.values["failure"] == "it answered 500"
    assert told.links == (("Open task", f"{HOME}/destinations/crm%20%26%20co"),)
    bare = Event(EventId("evt_1"), TaskId("evt_1"), "destination.failing", NOW, "{}")
    assert card(bare, home=HOME).links == ()


def test_the_sample_says_that_it_is_one() -> None:
    """So that nobody looks for the render."""
    told = card(sample_event(event_id=EventId("evt_01KG9Q8Y0000000000000000ZZ"), now=NOW), home=None)
    assert told.headline == "Test: video ready"


def test_progress_and_recovery_are_in_the_headline() -> None:
    """They are what is new."""
    assert card(event("task.progress", progress=40), home=None).headline == "Rendering, 40 %"
    assert card(event("task.progress", progress="x"), home=None).headline == "Rendering"
    assert card(event(recovered=True), home=None).headline == "Video ready, after it was lost"


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ({"created_at": "2026-01-31T12:00:00Z", "finished_at": "2026-01-31T12:00:09Z"}, "9 s"),
        ({"created_at": "2026-01-31T12:00:09Z", "finished_at": "2026-01-31T12:00:00Z"}, "0 s"),
        ({"created_at": "2026-01-31T12:00:00Z", "finished_at": "2026-02-01T13:02:00Z"}, "25 h 2 min"),
        ({"created_at": "2026-01-31T12:00:00Z", "finished_at": None}, None),
        ({"created_at": "2026-01-31T12:00:00", "finished_at": "2026-01-31T12:00:00Z"}, None),
        ({"created_at": "soon", "finished_at": "2026-01-31T12:00:00Z"}, None),
    ],
)
def test_how_long_it_took(times: dict[str, Any], words: str | None) -> None:
    """In words; nothing where that is not known."""
    assert card(event(**times), home=None).values["took"] == words
    assert took(timedelta(seconds=60)) == "1 min 0 s"


@pytest.mark.parametrize(
    ("url", "found"),
    [
        (VIDEO, VIDEO),
        ("http://h.example:8080/a?b=c%20d&e=(1)", "http://h.example:8080/a?b=c%20d&e=%281%29"),
        ("https://h.example/é|\"'<>[]*`{}^", "https://h.example/%C3%A9%7C%22%27%3C%3E%5B%5D%2A%60%7B%7D%5E"),
        ("https://exämple.com/x", "https://xn--exmple-cua.com/x"),
        ("https://[::1]:80/x", "https://[::1]:80/x"),
        ("HTTPS://h.example", "https://h.example"),
        ("https://a_b.example/x", "https://a_b.example/x"),
        ("https://h.example:x/", "https://h.example:x/"),
        ("https://h<b>.example/", None),
        ("https://u@h.example/", None),
        ("https://h.example/a b", None),
        ("https://h.example/a\\b", None),
        ("https://" + "ä" * 80 + ".example/", None),
        ("https://h.example/" + "a" * 3000, None),
        ("https://h.example/" + "é" * 600, None),
        ("https://[::1", None),
        ("https:///x", None),
        ("javascript:alert(1)", None),
        ("", None),
        (None, None),
    ],
)
def test_a_link_is_checked(url: object, found: str | None) -> None:
    """What could end a platform's link is written in percent; what is no URL of the web is none."""
    assert link(url) == found


def test_a_summary_counts_and_names_the_newest() -> None:
    """The worst of them gives its colour."""
    events = [event(prompt=f"clip {number}\n\u202e") for number in range(9)] + [failure("why")]
    told = summary_card(events, home=HOME)
    assert (told.headline, told.tone, told.is_summary) == ("10 events", "bad", True)
    assert told.facts == (("✅ Video ready", "9"), ("❌ Render failed", "1"))
    assert told.links == (("Open the list", f"{HOME}/"),)
    assert [one["about"] for one in told.values["newest"]] == ["a paper boat", "clip 8", "clip 7", "clip 6", "clip 5"]
    assert told.values["more"] == 5
    assert summary_card([event("task.running")], home=None).tone == "plain"
    long = summary_card([event(prompt="e\u0301" * 500)], home=None).values["newest"][0]["about"]
    assert len(long) <= 120
    assert long.endswith("e\u0301…")
    nothing = Event(EventId("evt_1"), TaskId("evt_1"), "task.new", NOW, "{}")
    assert summary_card([nothing], home=None).values["newest"][0]["about"] == ""


def test_a_summary_of_nothing_is_a_mistake() -> None:
    """Nobody asks for one."""
    with pytest.raises(ValueError, match="no events"):
        summary_card([], home=None)


def test_half_a_surrogate_pair_is_no_reason_to_say_nothing() -> None:
    """The upstream's own words may hold one; what cannot be read at all is told by its type."""
    broken = Event(EventId("evt_1"), TaskId("tsk_1"), "task.failed", NOW, '{"failure": "a", "envelope": "\\ud83d"}')
    assert card(broken, home=None).values["failure"] == "a"
    for text in ("[", "[" * 100_000, "3"):
        assert card(Event(EventId("e"), TaskId("t"), "task.failed", NOW, text), home=None).headline == "Render failed"
    assert room.NEWEST == 5
