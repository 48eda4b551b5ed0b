"""The health of a destination: what attempts and hands make of it. Pure; deliver stores it, in the database.

So many failures in a row open its circuit: nothing is tried until the pause is over, and then one probe (an ordinary
attempt) at a time. Each probe that fails doubles the pause, up to an hour; any success closes the circuit. A pause, by
hand or because the destination answered that it is gone (410), ends only by hand. A failure is an attempt that did not
succeed, whoever's fault it was: also a throttled one, since a 503 is how a service that is down answers.

Whoever answers with a wait is left alone by all until it is over: neither a probe nor a hand goes past that.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

from msgspec.structs import replace

from receiver.retry import MAX_RETRY_AFTER

if TYPE_CHECKING:
    from datetime import datetime

    from receiver.ids import DeliveryId
    from receiver.records import Health
    from receiver.retry import Result

MAX_PAUSE: Final = timedelta(hours=1)
"""The longest pause of an open circuit (contract section 3, `circuit_pause`)."""
SKEW: Final = timedelta(minutes=1)
"""Clocks of instances, and the moments before a transaction, differ by less."""

Told = Literal["destination.failing", "destination.paused", "destination.recovered"]


@dataclass(frozen=True, slots=True)
class Terms:
    """When a circuit opens, and for how long at first."""

    failures: int = 10
    pause: timedelta = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Change:
    """What something made of a destination's health.

    Attributes:
        health: as it is now; the old object where nothing changed.
        told: the operator event to tell of it; None for none.
        reason: why, in words.
        logged: what a log line tells of it; also where an operator event's own delivery did it, and no event tells.
    """

    health: Health
    told: Told | None = None
    reason: str = ""
    logged: Told | None = None


def after_attempt(
    health: Health, result: Result, terms: Terms, *, delivery_id: DeliveryId, now: datetime, quiet: bool = False
) -> Change:
    """What an attempt makes of its destination's health.

    Args:
        health: as it was.
        result: how the attempt ended.
        terms: the destination's.
        delivery_id: what was tried; whether it was the probe decides about the pause.
        now: when it ended.
        quiet: it was the delivery of an operator event, which causes none.
    """
    health = held(health, result, now)
    if result.kind == "ok":
        return _after_success(health, result, quiet=quiet)
    failed = replace(
        health,
        consecutive_failures=health.consecutive_failures + 1,
        last_error=result.reason,
        last_error_at=now,
    )
    was_probe = health.probe_id == delivery_id
    if was_probe:
        failed = replace(failed, probe_id=None, probe_until=None)
    if result.pause and health.state != "paused":
        paused = replace(_closed(failed), state="paused", reason=result.reason)
        return _announced(paused, "destination.paused", result.reason, quiet=quiet)
    if health.state == "active" and failed.consecutive_failures >= terms.failures:
        opened = replace(failed, state="open", opened_at=now, opens=1, next_try_at=_after(now, terms, 0, result))
        why = f"{failed.consecutive_failures} failures in a row, the last: {result.reason}"
        return _announced(opened, "destination.failing", why, quiet=quiet)
    if health.state == "open" and was_probe:
        failed = replace(failed, opens=health.opens + 1, next_try_at=_after(now, terms, health.opens, result))
    if health.state == "open" and not (health.announced or quiet):  # an operator event's own delivery opened it
        return _announced(failed, "destination.failing", result.reason)
    return Change(failed, reason=result.reason)


def _after_success(health: Health, result: Result, *, quiet: bool) -> Change:
    failures = health.consecutive_failures
    if health.state == "paused":  # tried by hand past the pause: it stays paused
        return Change(replace(health, consecutive_failures=0) if failures else health)
    # Where an operator event's own delivery ended the outage, its end is still owed to those who heard of it.
    told: Told | None = "destination.recovered" if health.announced and not quiet else None
    logged: Told | None = told or ("destination.recovered" if health.state == "open" else None)
    if health.state == "active" and not failures and told is None:
        return Change(health)
    well = replace(_closed(health), state="active", consecutive_failures=0, announced=health.announced and quiet)
    why = f"{result.reason}, after {failures} failures in a row" if failures else result.reason
    return Change(well, told, why, logged)


def held(health: Health, result: Result, now: datetime) -> Health:
    """What a result asks of all that would be sent there: to wait, a day at most; the same object where it does not."""
    wait = result.hold or (result.retry_after if result.kind == "throttled" else None)
    until = now + min(wait or timedelta(0), MAX_RETRY_AFTER)
    return replace(health, held_until=until) if until > max(now, health.held_until or now) else health


def held_at(health: Health, now: datetime) -> datetime | None:
    """Until when it is to be left alone; None where it is not, or where only a clock set back could make it so."""
    until = health.held_until
    return until if until is not None and now < until <= now + MAX_RETRY_AFTER else None


def next_at(health: Health, now: datetime) -> datetime | None:
    """When it is tried next, where something but its rate keeps it waiting; None for now, or for nobody knows."""
    if health.state == "paused":
        return None
    return max(filter(None, (held_at(health, now), health.next_try_at)), default=None)


def hold(health: Health, reason: str) -> Change:
    """Pause it by hand; nothing changes where it is paused already."""
    if health.state == "paused":
        return Change(health, reason=health.reason or reason)
    return _announced(replace(_closed(health), state="paused", reason=reason), "destination.paused", reason)


def resume(health: Health, reason: str) -> Change:
    """Have it tried again at once, whether it was paused or its circuit was open."""
    if health.state == "active":
        return Change(health)
    told: Told | None = "destination.recovered" if health.announced else None
    return Change(
        replace(_closed(health), state="active", consecutive_failures=0, reason=None, announced=False), told, reason
    )


def probe(health: Health, delivery_id: DeliveryId, until: datetime) -> Health:
    """One delivery is tried while the circuit is open."""
    return replace(health, probe_id=delivery_id, probe_until=until)


def unprobed(health: Health, now: datetime) -> Health:
    """The probe was given back untried: another may be made."""
    return replace(health, probe_id=None, probe_until=None, next_try_at=now)


def probe_due_at(health: Health, now: datetime) -> datetime | None:
    """When an open circuit may be probed: after its pause, and not while another probe is under way.

    At once, where it failed at a time that is still to come: the clock was set back.
    """
    if health.last_error_at is not None and health.last_error_at > now + SKEW:
        return now
    if health.probe_until is not None and (health.next_try_at is None or health.probe_until > health.next_try_at):
        return health.probe_until
    return health.next_try_at


def _closed(health: Health) -> Health:
    return replace(health, opened_at=None, opens=0, next_try_at=None, probe_id=None, probe_until=None)


def _announced(health: Health, told: Told, reason: str, *, quiet: bool = False) -> Change:
    return Change(replace(health, announced=health.announced or not quiet), None if quiet else told, reason, told)


def _after(now: datetime, terms: Terms, doublings: int, result: Result) -> datetime:
    # 65,536 times the shortest pause is past any hour; without the cap a long outage's power would overflow.
    pause = min(MAX_PAUSE, terms.pause * (1 << min(doublings, 16)))
    return now + min(MAX_PAUSE, max(pause, result.retry_after or timedelta(0)))
