"""The sample event: it has what every real event has, and says what it is."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from msgspec.structs import replace

from receiver import envelope, ids
from receiver.destinations.sample import MSG, sample_event
from receiver.ingest.record import event_data
from receiver.records import Task
from receiver.upstream import ROUTES
from receiver.upstream.reading import observe

NOW = datetime(2026, 1, 31, 12, 0, 0, 123000, tzinfo=UTC)
EVENT_ID = ids.event_id(1769860800123, b"\x07" * 16)


def test_it_has_exactly_the_members_of_a_real_event() -> None:
    """The same members in the same order as ingest writes them, none of the results empty."""
    data = json.loads(sample_event(event_id=EVENT_ID, now=NOW).data_json)
    task = Task(id=ids.task_id(1, b"\x01" * 16), route="r", state="succeeded", created_at=NOW, input_json="{}")
    assert list(data) == list(json.loads(event_data(task)))
    assert [name for name, value in data.items() if value is None] == ["failure", "failure_code"]
    assert (data["state"], data["code"], data["route"] in ROUTES) == ("succeeded", 200, True)


def test_it_says_that_it_is_a_test() -> None:
    """In its metadata and in its words, also for who reads only the envelope."""
    data = json.loads(sample_event(event_id=EVENT_ID, now=NOW).data_json)
    assert data["metadata"] == {"sample": True}
    assert data["msg"] == data["envelope"]["msg"] == MSG
    assert "test" in MSG


def test_the_upstreams_object_reads_as_the_event_says() -> None:
    """Its envelope, read as a callback's body would be, tells the same story."""
    data = json.loads(sample_event(event_id=EVENT_ID, now=NOW).data_json)
    seen = observe(envelope.parse(json.dumps(data["envelope"]).encode(), "application/json"))
    assert (seen.seen, seen.upstream_id, seen.oddities) == ("succeeded", data["upstream_id"], ())
    assert (seen.video_url, seen.poster, seen.last_frame) == (data["video_url"], data["poster"], data["last_frame"])


def test_its_times_are_in_order_and_in_utc() -> None:
    """Created, submitted, finished now; a moment of another zone is the same moment."""
    event = sample_event(event_id=EVENT_ID, now=NOW)
    data = json.loads(event.data_json)
    assert data["created_at"] < data["submitted_at"] < data["finished_at"] == "2026-01-31T12:00:00.123Z"
    elsewhere = sample_event(event_id=EVENT_ID, now=NOW.astimezone(timezone(timedelta(hours=8))))
    assert replace(elsewhere, created_at=NOW) == event
    with pytest.raises(ValueError, match="no time zone"):
        sample_event(event_id=EVENT_ID, now=NOW.replace(tzinfo=None))


def test_its_ids_are_of_our_making() -> None:
    """The event bears the id it was given, its task the same characters."""
    event = sample_event(event_id=EVENT_ID, now=NOW)
    assert event.id == EVENT_ID
    assert event.task_id == json.loads(event.data_json)["task_id"] == "tsk_" + EVENT_ID[4:]
    assert event.type == "task.succeeded"
