"""One attempt: the kind's flow through egress, and the record of it. It decides nothing and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson

from receiver import logs, retry
from receiver.errors import EgressError, StoreUnavailable
from receiver.records import Attempt
from receiver.retry import Result
from receiver.wire import HttpRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from receiver.deliver.lanes import Destination, Leased
    from receiver.destinations.base import Steps
    from receiver.egress import Egress
    from receiver.ids import AttemptId
    from receiver.ingest import After
    from receiver.logs import Logger
    from receiver.records import Delivery
    from receiver.retry import Decision
    from receiver.wire import HttpResponse

KEPT_BYTES = 16 * 1024
"""What is kept of an answer (contract 4.3)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What went out, what came back (None where nothing did), and what it means."""

    request: HttpRequest
    response: HttpResponse | None
    result: Result


async def attempt(
    egress: Egress,
    destination: Destination,
    leased: Sequence[Leased],
    now: datetime,
    log: Logger,
    is_free: Callable[[], Awaitable[bool]],
) -> Outcome:
    """Run the kind's generator: each request out, each answer in, until it returns what they mean.

    Of several events it is the kind's summary. It ends early where the destination asked to be left alone meanwhile, by
    what it answered to another attempt, whichever instance made that. A fault of ours is an attempt that failed: a
    delivery that only raised would come back for ever.
    """
    request, response = HttpRequest("", ""), None
    try:
        steps = _steps(destination, leased, now)
        request = next(steps)
        for _ in range(destination.kind.steps):
            response = await egress.deliver(
                request, timeout=destination.timeout, allow_private=destination.allow_private
            )
            following = steps.send(response)
            if not await is_free():
                return Outcome(request, response, Result("throttled", "it asked to be left alone before all was said"))
            request = following
        fault = f"a fault of the kind {destination.kind.name}: more than its {destination.kind.steps} requests"
        return Outcome(request, response, Result("transient", fault))
    except StopIteration as done:
        return Outcome(request, response, replace(done.value, reason=logs.redact(done.value.reason)))
    except EgressError as error:
        return Outcome(request, None, retry.from_error(error))
    except StoreUnavailable:
        return Outcome(request, response, Result("transient", "nobody could be asked whether to say the rest"))
    except Exception as error:  # noqa: BLE001 -- see above
        log.error("delivery.failed", event_id=leased[0][1].id, destination=destination.name, error=repr(error))
        fault = f"a fault of the kind {destination.kind.name} ({type(error).__name__}); the log has more"
        return Outcome(request, None, Result("transient", fault))


def _steps(destination: Destination, leased: Sequence[Leased], now: datetime) -> Steps:
    kind, (delivery, event) = destination.kind, leased[0]
    if kind.summary is not None and len(leased) > 1:
        return kind.summary([event for _, event in leased], destination.options, now=now, home=destination.home)
    return kind.flow(event, destination.options_for(delivery), now=now, home=destination.home)


def recorded(
    attempt_id: AttemptId,
    destination: Destination,
    delivery: Delivery,
    outcome: Outcome,
    decision: Decision,
    *,
    started_at: datetime,
    ended_at: datetime,
) -> Attempt:
    """The attempt as it is stored and shown, secrets masked."""
    return Attempt(
        id=attempt_id,
        delivery_id=delivery.id,
        task_id=delivery.task_id,
        number=delivery.attempt_count + 1,
        started_at=started_at,
        duration_ms=round((ended_at - started_at).total_seconds() * 1000),
        redelivery=delivery.forced or delivery.budget_from > 0,
        request_json=_request_json(outcome.request, destination),
        response_json=_response_json(outcome.response),
        error=None if outcome.response is not None else outcome.result.reason,
        result=outcome.result.kind,
        reason=decision.reason,
        next_at=decision.due_at if decision.state == "pending" else None,
    )


def _request_json(request: HttpRequest, destination: Destination) -> str:
    shown = destination.kind.masked(request)
    return orjson.dumps({"url": shown.url, "headers": dict(shown.headers)}).decode()


def _response_json(response: HttpResponse | None) -> str | None:
    if response is None:
        return None
    body = response.body[:KEPT_BYTES].decode("utf-8", errors="replace")
    shown = orjson.dumps({"status": response.status, "headers": dict(response.headers), "body": body})
    return logs.redact_json(shown).decode()


def tell(
    after: After, delivery: Delivery, made: Attempt, decision: Decision, response: HttpResponse | None, *, stored: bool
) -> None:
    """One wide line for every attempt, also where the store was away: it was made all the same."""
    line: dict[str, Any] = {
        "task_id": delivery.of_task,
        "event_id": delivery.event_id,
        "delivery_id": delivery.id,
        "destination": delivery.destination,
        "attempt": made.number,
        "result": made.result,
        "status": response.status if response else None,
        "duration_ms": made.duration_ms,
        "state": decision.state,
        "reason": made.reason,
        "next_at": _text(made.next_at),
        "stored": stored,
    }
    (after.log.info if made.result == "ok" else after.log.warning)("delivery.attempted", **line)
    after.metrics.attempted(delivery.destination, made.result, made.duration_ms)


def _text(at: datetime | None) -> str | None:
    return None if at is None else f"{at.isoformat(timespec='milliseconds')[:23]}Z"
