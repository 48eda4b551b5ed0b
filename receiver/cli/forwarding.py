"""What `receiver listen` does with an event: the very request a destination of kind `webhook` would get, sent locally.

It is made by the kind's own flow in format `standard`, and judged by it, under the event's own `webhook-id`. Events go
one after the other, oldest first; one that fails is tried a few times and then given up, so that the next ones come. At
least once, as everywhere: what was under way at the end comes again when it goes on from the cursor it named.
"""

from __future__ import annotations

import json as jsons
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from receiver import retry
from receiver.cli import output, way
from receiver.cli.clock import now
from receiver.client import FEED_WAIT, PAGE, ApiProblem, Unreachable, is_away
from receiver.destinations import webhook
from receiver.errors import EgressError
from receiver.ids import EventId, TaskId
from receiver.records import Event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from receiver.cli.signals import Stop
    from receiver.client import Client, Forwarder
    from receiver.destinations.webhook import WebhookOptions
    from receiver.retry import Decision, Result
    from receiver.wire import HttpResponse

Document = dict[str, Any]

SCHEDULE: Final = tuple(timedelta(seconds=wait) for wait in (0, 1, 2, 5))
"""Waits before each try: long enough for a local server to restart."""
LONGEST: Final = timedelta(seconds=30)
"""No `Retry-After` holds the events behind it up for longer."""
AWAY_FOR: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds between questions to a service that is away; the last repeats."""
QUIET_FOR: Final = 0.25
"""Seconds below which an empty answer came too soon: a service that is stopping waits for nobody."""
MANY: Final = 2000
"""Events to skip from which on it is worth a word."""


@dataclass
class Listening:
    """How far it is, and what is forwarded how.

    Attributes:
        types, since: what is passed over.
        place: the cursor of the last whole page, and how many events after it are done.
        stop: what ends it, while it waits.
        schedule: the waits before each try of an event.
    """

    options: WebhookOptions
    types: frozenset[str] | None
    since: datetime | None
    place: tuple[str | None, int]
    stop: Stop
    json: bool = False
    schedule: Sequence[timedelta] = SCHEDULE

    def skip_to_the_end(self, client: Client) -> None:
        """Page through what is there; the API has no word for `now`."""
        skipped = 0
        while True:
            with self.stop.heard():
                page = client.event_page(after=self.place[0], limit=PAGE)
            self.place = (page["next_cursor"], 0)
            if not page["data"]:
                return
            if skipped < MANY <= skipped + len(page["data"]):
                output.hint("Passing over the events that are there already…")
            skipped += len(page["data"])

    def look(self, client: Client) -> None:
        """Ask once, and do nothing with the answer.

        Raises:
            Unreachable, ApiProblem: the service is not there, or does not take the cursor.
        """
        with self.stop.heard():
            client.event_page(after=self.place[0], limit=1)

    def run(self, client: Client, forwarder: Forwarder) -> None:
        """Forward what comes, for ever."""
        while True:
            page = self._page(client)
            cursor = self.place[0]
            for done, item in enumerate(page["data"], 1):
                if self._is_meant(item):
                    self._forward(_event(item), forwarder)
                self.place = (cursor, done)
            self.place = (page["next_cursor"], 0)

    def cursor(self, client: Client) -> str | None:
        """Where to go on: behind the last event that is done, where the service tells; else before it."""
        before, done = self.place
        if not done:
            return before
        try:
            # Only the end of a page has a cursor, so a page is asked for that ends there.
            page = client.event_page(after=before, limit=done)
        except (Unreachable, ApiProblem):
            return before
        cursor: str = page["next_cursor"]
        return cursor

    def _page(self, client: Client) -> Document:
        """The next page with something on it; a service that is away is waited for."""
        tries = 0
        while True:
            asked_at = time.monotonic()
            try:
                with self.stop.heard():
                    page = client.event_page(after=self.place[0], limit=PAGE, wait=FEED_WAIT)
            except (Unreachable, ApiProblem) as error:
                if not is_away(error):
                    raise
                if not tries:
                    output.say(f"the service is away, and waited for: {error}", style="yellow", console=output.err())
                self._sleep(AWAY_FOR[min(tries, len(AWAY_FOR) - 1)])
                tries += 1
                continue
            if tries:
                output.say("the service is back", style="green", console=output.err())
                tries = 0
            if page["data"]:
                return page
            self.place = (page["next_cursor"], 0)
            if time.monotonic() - asked_at < QUIET_FOR:
                self._sleep(QUIET_FOR)

    def _sleep(self, seconds: float) -> None:
        with self.stop.heard():
            time.sleep(seconds)

    def _is_meant(self, item: Document) -> bool:
        if self.types is not None and item["type"] not in self.types:
            return False
        return self.since is None or datetime.fromisoformat(item["timestamp"]) >= self.since

    def _forward(self, event: Event, forwarder: Forwarder) -> None:
        """Try it until it arrives or is given up."""
        for attempt in range(1, len(self.schedule) + 1):
            began = time.monotonic()
            answer, result = self._try(event, forwarder)
            took = round((time.monotonic() - began) * 1000)
            at = now()
            decision = retry.decide(result, attempt=attempt, schedule=self.schedule, now=at, jitter=0)
            self._tell(event, attempt, answer, decision, took)
            if decision.due_at is None:
                return
            self._sleep(max(0.0, (decision.due_at - at).total_seconds()))

    def _try(self, event: Event, forwarder: Forwarder) -> tuple[HttpResponse | None, Result]:
        steps = webhook.flow(event, self.options, now=now())
        request = next(steps)
        try:
            with self.stop.heard():
                answer = forwarder.send(request)
        except EgressError as error:
            return None, retry.from_error(error)
        try:
            steps.send(answer)
        except StopIteration as done:
            return answer, _capped(done.value)
        raise AssertionError("a webhook is one request")

    def _tell(self, event: Event, attempt: int, answer: HttpResponse | None, decision: Decision, took: int) -> None:
        status = answer.status if answer else None
        is_done = decision.state == "delivered"
        if self.json:
            line = {
                "at": f"{now().isoformat(timespec='milliseconds')[:23]}Z",
                "event_id": event.id,
                "type": event.type,
                "task_id": event.task_id or None,
                "attempt": attempt,
                "status": status,
                "duration_ms": took,
                "state": decision.state,
                "reason": decision.reason,
            }
            sys.stdout.write(jsons.dumps(line, ensure_ascii=False) + "\n")
            sys.stdout.flush()
            return
        heard = f"{status}" if status else "no answer"
        given_up = "" if decision.due_at else "given up: "
        words = f" in {took} ms" if is_done else f" in {took} ms; {given_up}{way.besides(decision.reason, status)}"
        output.say(
            output.styled(f"{now():%H:%M:%S}", "dim"),
            f"  {event.type:<14}  {event.id}  {event.task_id}  -> ",
            output.styled(heard, "green" if is_done else "red"),
            words,
        )


def _event(item: Document) -> Event:
    """An item of the feed as the record it was made from, so that the kind's flow writes the same body."""
    data = item["data"]
    # Not by orjson: it reads what is nested deeper than it can write.
    text = jsons.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Event(
        id=EventId(item["id"]),
        task_id=TaskId(data.get("task_id") or ""),
        type=item["type"],
        created_at=datetime.fromisoformat(item["timestamp"]),
        data_json=text,
    )


def _capped(result: Result) -> Result:
    """Without what only a service can do: a pause, a wait of hours."""
    wait = None if result.retry_after is None else min(result.retry_after, LONGEST)
    return replace(result, retry_after=wait, reason=result.reason.removesuffix(", and paused"))
