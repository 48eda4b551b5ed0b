"""Which destinations an event goes to, and the reason in words for every one it does not go to."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver import routing
from receiver.ids import EventId, TaskId
from receiver.records import Event
from receiver.routing import Rule

ROUTE = "runway/pro/video2video"
DATA: dict[str, Any] = {
    "state": "succeeded",
    "code": 200,
    "confirmed": False,
    "progress": None,
    "metadata": {"team": "vfx", "shot": 1, "ratio": 1.5, "rush": True, "tags": ["a", "b", ["c"]], "none": []},
    "artifacts": [{"kind": "video"}, {"kind": "poster", "more": [{"deep": 7}]}],
}


def event(kind: str = "task.succeeded", data: Any = DATA) -> Event:
    """An event of that type."""
    text = data if isinstance(data, str) else json.dumps(data)
    return Event(EventId("evt_1"), TaskId("tsk_1"), kind, datetime(2026, 1, 31, tzinfo=UTC), text)


def verdict(rule: Rule, *, of: Event | None = None, only: frozenset[str] | None = None) -> str | None:
    """Why the rule does not choose the event; None where it does."""
    (found,) = routing.match(of or event(), [rule], route=ROUTE, only=only)
    assert found.destination == rule.name
    assert found.reason
    return None if found.chosen else found.reason


@pytest.mark.parametrize("kind", sorted(routing.EVENT_TYPES))
def test_the_default_is_the_terminal_events(kind: str) -> None:
    """`rejected` among them; no progress and no operator's event."""
    terminal = {"task.succeeded", "task.failed", "task.cancelled", "task.lost", "task.rejected"}
    assert (verdict(Rule("d"), of=event(kind)) is None) == (kind in terminal)


@pytest.mark.parametrize(
    ("events", "gets", "misses"),
    [
        (("task.*",), {"task.running", "task.progress", "task.rejected"}, {"task.ambiguous", "delivery.dead"}),
        (("*",), {"task.queued", "task.lost"}, {"task.ambiguous", "destination.paused"}),
        (("task.ambiguous",), {"task.ambiguous"}, {"task.succeeded", "delivery.dead"}),
        (("destination.*",), {"destination.failing", "destination.recovered"}, {"task.failed", "delivery.dead"}),
        (("delivery.*", "task.failed"), {"delivery.dead", "task.failed"}, {"task.succeeded"}),
        (("task.s*", "task", "TASK.*", ""), set(), {"task.succeeded"}),
        ((), set(), {"task.succeeded"}),
    ],
)
def test_what_patterns_stand_for(events: tuple[str, ...], gets: set[str], misses: set[str]) -> None:
    """Operator events go only to those who name them or their own family."""
    rule = Rule("d", events=events)
    assert {kind for kind in gets | misses if verdict(rule, of=event(kind)) is None} == gets
    assert {kind for kind in gets | misses if routing.wanted(kind, [Rule("other"), rule])} == gets | (
        misses & routing.TERMINAL_EVENTS
    )


def test_every_type_can_be_named_and_no_other() -> None:
    """The three families share nothing; a word that is no type stands for none."""
    assert all(routing.types_of(kind) == {kind} for kind in routing.EVENT_TYPES)
    assert routing.types_of("task.done") == frozenset()
    assert len(routing.EVENT_TYPES) == 13
    assert not routing.TERMINAL_EVENTS & routing.OPERATOR_EVENTS
    assert routing.types_of("*") == routing.EVENT_TYPES - routing.OPERATOR_EVENTS


def test_an_optional_event_is_wanted_only_where_someone_asks() -> None:
    """So it need not be recorded otherwise."""
    assert not routing.wanted("task.progress", [])
    assert not routing.wanted("task.progress", [Rule("a"), Rule("b", events=("task.failed",))])
    assert routing.wanted("task.progress", [Rule("a"), Rule("b", events=("task.*",))])


def test_each_objection_has_its_words() -> None:
    """Submitter's choice, events, routes and match are told apart, in that order."""
    rule = Rule("d", events=("task.failed",), routes=("runwayml/v1/video_to_video",), match=(("state", ("x",)),))
    assert verdict(rule, only=frozenset({"e"})) == "the task was submitted for other destinations"
    assert verdict(rule, only=frozenset({"d"})) == "events: it asks for task.failed, this is task.succeeded"
    assert verdict(Rule("d"), of=event("task.queued")) == "events: it asks for the terminal events, this is task.queued"
    assert verdict(rule, of=event("task.failed")) == (
        "routes: it takes runwayml/v1/video_to_video, the task is on runway/pro/video2video"
    )
    assert verdict(Rule("d", match=(("state", ("x", "y")),))) == 'match: state is "succeeded", it wants "x" or "y"'
    assert verdict(Rule("d", match=(("metadata.who", ("x",)),))) == "match: the event has no metadata.who"
    assert verdict(Rule("d", routes=(ROUTE,))) is None
    assert verdict(Rule("d"), only=frozenset({"d", "e"})) is None


def test_a_long_value_is_not_repeated_whole() -> None:
    """A prompt of a thousand characters does not fill the reason."""
    reason = verdict(Rule("d", match=(("prompt", ("x",)),)), of=event(data={"prompt": "word " * 200}))
    assert reason is not None
    assert len(reason) < 120
    assert "…" in reason


@pytest.mark.parametrize(
    ("path", "allowed", "holds"),
    [
        ("state", "succeeded", True),
        ("state", "Succeeded", False),
        ("code", 200, True),
        ("code", 200.0, True),
        ("code", "200", False),
        ("metadata.ratio", 1.5, True),
        ("metadata.shot", 1, True),
        ("metadata.shot", True, False),
        ("metadata.rush", True, True),
        ("metadata.rush", 1, False),
        ("metadata.rush", "true", False),
        ("confirmed", False, True),
        ("confirmed", 0, False),
        ("metadata.tags", "b", True),
        ("metadata.tags", "c", False),
        ("metadata.none", "a", False),
        ("artifacts.kind", "poster", True),
        ("artifacts.more.deep", 7, True),
        ("artifacts.0.kind", "video", False),
        ("metadata", "vfx", False),
        ("metadata.team.x", "vfx", False),
        ("", "vfx", False),
        ("metadata..team", "vfx", False),
    ],
)
def test_how_values_compare(path: str, allowed: Any, holds: bool) -> None:
    """With their type, but for whole and broken numbers; through lists, but not through lists in lists."""
    assert (verdict(Rule("d", match=((path, (allowed,)),))) is None) == holds


def test_all_conditions_must_hold_and_one_value_of_each() -> None:
    """The conditions are an and, their values an or."""
    team = ("metadata.team", ("ops", "vfx"))
    assert verdict(Rule("d", match=(team, ("code", (200,))))) is None
    assert verdict(Rule("d", match=(team, ("code", (500,))))) == "match: code is 200, it wants 500"


def test_every_rule_gets_its_own_verdict_in_order() -> None:
    """One that objects does not keep the event from the next."""
    rules = [Rule("a", match=(("state", ("x",)),)), Rule("b"), Rule("c", match=(("state", ("succeeded",)),))]
    found = routing.match(event(), rules, route=ROUTE)
    assert [(one.destination, one.chosen) for one in found] == [("a", False), ("b", True), ("c", True)]


def test_data_is_read_only_where_a_rule_looks_into_it() -> None:
    """A broken document harms nobody who does not ask, and matches nobody who does."""
    broken = event(data="{")
    assert verdict(Rule("d"), of=broken) is None
    assert verdict(Rule("d", match=(("state", ("x",)),)), of=broken) == "match: the event has no state"


def test_data_nested_beyond_reading_matches_nobody() -> None:
    """Depth is no way to make routing raise."""
    deep = event(data='{"state":' + "[" * 100_000 + "]" * 100_000 + "}")
    assert verdict(Rule("d", match=(("state", ("x",)),)), of=deep) == "match: the event has no state"


def test_a_text_that_was_cut_in_a_character_hides_nothing_else() -> None:
    """Half a surrogate pair in the upstream's words is no reason to miss what a rule looks for beside it."""
    cut = event(data='{"state":"succeeded","msg":"cut \\ud83d"}')
    assert verdict(Rule("d", match=(("state", ("succeeded",)),)), of=cut) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4), st.text(max_size=7), JSON)
def test_match_is_total(data: dict[str, Any], path: str, allowed: Any) -> None:
    """Any document, any path and any value give a verdict."""
    rules = [Rule("d", match=((path, (allowed,)),)), Rule("e")]
    found = routing.match(event(data=data), rules, route=ROUTE)
    assert [one.destination for one in found] == ["d", "e"]
    assert found[1].chosen
