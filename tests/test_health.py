"""The health of a destination, purely: circuits, probes, pauses, and what is told of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from receiver import health
from receiver.health import MAX_PAUSE, Terms
from receiver.ids import DeliveryId
from receiver.records import Health
from receiver.retry import Result

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
MINE, OTHER = DeliveryId("dlv_mine"), DeliveryId("dlv_other")
TERMS = Terms(failures=3, pause=timedelta(seconds=60))
OK, BAD = Result("ok", "it answered 200"), Result("transient", "it answered 500")
GONE = Result("permanent", "it answered 410: it is gone, and paused", pause=True)


def after(before: Health, *results: Result, delivery: DeliveryId = MINE, quiet: bool = False) -> health.Change:
    """What attempts make of it, one after the other."""
    change = health.Change(before)
    for result in results:
        change = health.after_attempt(change.health, result, TERMS, delivery_id=delivery, now=NOW, quiet=quiet)
    return change


def opened() -> Health:
    """One whose circuit has just opened."""
    return after(Health("sink"), BAD, BAD, BAD).health


def test_a_healthy_one_that_succeeds_is_the_same_object() -> None:
    """So that nothing is written for it, on the hot path."""
    before = Health("sink")
    assert after(before, OK).health is before


@pytest.mark.parametrize(
    "bad", [BAD, Result("throttled", "it answered 429"), Result("permanent", "abort-message")], ids=lambda r: r.kind
)
def test_failures_in_a_row_open_the_circuit(bad: Result) -> None:
    """At the last of them, and it is told once; whose fault they were does not matter."""
    two = after(Health("sink"), bad, bad)
    assert (two.health.state, two.health.consecutive_failures, two.told) == ("active", 2, None)
    three = after(two.health, bad)
    assert (three.health.state, three.told) == ("open", "destination.failing")
    assert three.reason == f"3 failures in a row, the last: {bad.reason}"
    assert three.health.next_try_at == NOW + TERMS.pause
    assert (three.health.last_error, three.health.last_error_at, three.health.opened_at) == (bad.reason, NOW, NOW)
    assert after(three.health, bad).told is None


def test_one_success_in_between_begins_the_count_again() -> None:
    """In a row means in a row."""
    change = after(Health("sink"), BAD, BAD, OK, BAD, BAD)
    assert (change.health.state, change.health.consecutive_failures) == ("active", 2)
    assert after(Health("sink"), BAD, OK).told is None


def test_a_probe_that_fails_doubles_the_pause_up_to_an_hour() -> None:
    """60 s, 2 min, 4 min, … and then every hour; what is no probe doubles nothing."""
    now = opened()
    waits = []
    for _ in range(9):
        now = health.probe(now, MINE, NOW + timedelta(seconds=30))
        assert after(now, BAD, delivery=OTHER).health.next_try_at == now.next_try_at
        assert health.probe_due_at(now, NOW) == max(NOW + timedelta(seconds=30), now.next_try_at or NOW)
        now = after(now, BAD).health
        assert (now.probe_id, now.probe_until) == (None, None)
        assert now.next_try_at is not None
        waits.append((now.next_try_at - NOW).total_seconds())
    assert waits == [120, 240, 480, 960, 1920, 3600, 3600, 3600, 3600]
    assert health.probe_due_at(now, NOW) == now.next_try_at == NOW + MAX_PAUSE


def test_a_probe_is_made_one_at_a_time() -> None:
    """While one is under way no other is due; one that was given back untried makes room at once."""
    now = health.probe(opened(), MINE, NOW + timedelta(minutes=5))
    assert health.probe_due_at(now, NOW) == NOW + timedelta(minutes=5)
    back = health.unprobed(now, NOW)
    assert (back.probe_id, health.probe_due_at(back, NOW)) == (None, NOW)
    assert health.probe_due_at(replace(now, next_try_at=None), NOW) == now.probe_until


def test_an_open_circuit_waits_as_long_as_it_was_asked_to() -> None:
    """`Retry-After` only ever makes the pause longer."""
    for asked, wait in ((timedelta(seconds=5), TERMS.pause), (timedelta(minutes=10), timedelta(minutes=10))):
        change = after(Health("sink"), BAD, BAD, Result("throttled", "429", retry_after=asked))
        assert change.health.next_try_at == NOW + wait


@pytest.mark.parametrize("delivery", [MINE, OTHER])
def test_any_success_closes_the_circuit(delivery: DeliveryId) -> None:
    """The probe's, or that of an attempt that began before it opened; and it is told."""
    change = after(health.probe(opened(), MINE, NOW), OK, delivery=delivery)
    assert (change.told, change.reason) == ("destination.recovered", "it answered 200, after 3 failures in a row")
    assert change.health == Health("sink", last_error=BAD.reason, last_error_at=NOW)
    assert after(change.health, OK).health is change.health


@pytest.mark.parametrize("before", [Health("sink"), opened()], ids=["active", "open"])
def test_a_destination_that_is_gone_is_paused(before: Health) -> None:
    """Once, with its own words; what else fails meanwhile changes only the count."""
    change = after(before, GONE)
    assert (change.health.state, change.told, change.health.reason) == ("paused", "destination.paused", GONE.reason)
    assert change.health.next_try_at is None
    again = after(change.health, GONE)
    assert (again.told, again.health.consecutive_failures) == (None, before.consecutive_failures + 2)


def test_a_pause_ends_only_by_hand() -> None:
    """What was tried by hand past it may succeed: it stays paused."""
    paused = health.hold(Health("sink", consecutive_failures=2), "paused by hand")
    assert (paused.told, paused.reason) == ("destination.paused", "paused by hand")
    kept = after(paused.health, OK)
    assert (kept.health.state, kept.health.consecutive_failures, kept.told) == ("paused", 0, None)
    assert after(kept.health, OK).health is kept.health
    assert health.hold(paused.health, "again") == health.Change(paused.health, None, "paused by hand")
    resumed = health.resume(kept.health, "resumed by hand")
    assert (resumed.health, resumed.told) == (Health("sink"), "destination.recovered")
    assert health.resume(resumed.health, "again") == health.Change(resumed.health)


def test_an_open_circuit_can_be_closed_by_hand() -> None:
    """`resume` means: try it again now."""
    change = health.resume(opened(), "resumed by hand")
    assert (change.health.state, change.health.consecutive_failures, change.health.next_try_at) == ("active", 0, None)


def test_the_deliveries_of_operator_events_cause_none() -> None:
    """Nor do they take the word from those that may speak: an end that is owed is told by the next."""
    silent = after(Health("ops"), BAD, BAD, BAD, quiet=True)
    assert (silent.health.state, silent.told, silent.health.announced) == ("open", None, False)
    assert after(silent.health, OK).told is None
    assert health.resume(silent.health, "by hand").told is None
    assert after(silent.health, BAD).told == "destination.failing", "the next one that may speak tells it"
    assert after(Health("ops"), GONE, quiet=True).told is None
    ended = after(opened(), OK, quiet=True)
    assert (ended.health.state, ended.told) == ("active", None)
    owed = after(ended.health, OK)
    assert (owed.told, owed.reason) == ("destination.recovered", "it answered 200")


_RESULTS = st.sampled_from([OK, BAD, GONE, Result("throttled", "429", retry_after=timedelta(hours=2))])


@given(st.lists(st.tuples(_RESULTS, st.booleans(), st.sampled_from(["attempt", "probe", "hold", "resume"]))))
def test_what_is_told_makes_sense(steps: list[tuple[Result, bool, str]]) -> None:
    """An outage is told of once, its end only after it; an open circuit has a time for its probe, others have none."""
    now, told = Health("sink"), ""
    for result, quiet, what in steps:
        change = health.Change(now)
        if what == "hold":
            change = health.hold(now, "by hand")
        elif what == "resume":
            change = health.resume(now, "by hand")
        else:
            now = health.probe(now, MINE, NOW) if what == "probe" and now.state == "open" else now
            change = health.after_attempt(now, result, TERMS, delivery_id=MINE, now=NOW, quiet=quiet)
        if change.told == "destination.recovered":
            assert told
        elif change.told == "destination.failing":
            assert told in {"", "destination.recovered", "destination.failing"}
            assert now.state == "active" or not now.announced
        elif change.told == "destination.paused":
            assert now.state != "paused"
        told = "" if change.told == "destination.recovered" else change.told or told
        now = change.health
        assert (now.state == "open") == (now.next_try_at is not None) == (now.opened_at is not None)
        assert (now.state == "paused") == (now.reason is not None)


# -- to be left alone --------------------------------------------------------------------------------------------------

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("result", "wait"),
    [
        (Result("throttled", "429", retry_after=MINUTE), MINUTE),
        (Result("throttled", "429"), None),
        (Result("throttled", "429", retry_after=timedelta(0)), None),
        (Result("throttled", "429", retry_after=timedelta(days=9)), timedelta(days=1)),
        (Result("transient", "500", retry_after=MINUTE), None),
        (Result("ok", "200", hold=MINUTE), MINUTE),
        (Result("permanent", "404", hold=MINUTE), MINUTE),
        (Result("throttled", "429", retry_after=timedelta(hours=1), hold=MINUTE), MINUTE),
    ],
)
def test_an_answer_that_names_a_wait_holds_all(result: Result, wait: timedelta | None) -> None:
    """A throttled one, and any that says so; a day at most."""
    for now in (health.held(Health("sink"), result, NOW), after(Health("sink"), result).health):
        assert now.held_until == (None if wait is None else NOW + wait)
        assert health.held_at(now, NOW) == now.held_until
        assert health.held_at(now, NOW + (wait or MINUTE)) is None


def test_a_wait_is_only_ever_over_by_time() -> None:
    """Neither a success that was under way, nor a shorter wait, nor a hand ends it."""
    now = after(Health("sink"), Result("throttled", "429", retry_after=10 * MINUTE)).health
    assert after(now, OK, Result("throttled", "429", retry_after=MINUTE)).health.held_until == NOW + 10 * MINUTE
    assert health.resume(health.hold(now, "by hand").health, "by hand").health.held_until == NOW + 10 * MINUTE
    assert after(Health("sink", held_until=NOW), OK).health == Health("sink", held_until=NOW)


def test_it_is_tried_next_when_all_that_holds_it_is_over() -> None:
    """Its wait and its circuit's pause; of a pause by hand nobody knows the end."""
    assert health.next_at(Health("sink"), NOW) is None
    assert health.next_at(opened(), NOW) == NOW + TERMS.pause
    assert health.next_at(replace(opened(), held_until=NOW + 5 * MINUTE), NOW) == NOW + 5 * MINUTE
    assert health.next_at(Health("sink", held_until=NOW + MINUTE), NOW) == NOW + MINUTE
    assert health.next_at(health.hold(opened(), "by hand").health, NOW) is None


def test_a_clock_set_back_neither_keeps_a_circuit_open_nor_a_wait() -> None:
    """What failed at a time to come did fail, and its pause has begun; nobody asks for more than a day."""
    assert health.probe_due_at(opened(), NOW - timedelta(hours=5)) == NOW - timedelta(hours=5)
    assert health.probe_due_at(opened(), NOW - timedelta(seconds=30)) == NOW + TERMS.pause
    held = Health("sink", held_until=NOW + MINUTE)
    assert health.held_at(held, NOW - timedelta(days=2)) is None
