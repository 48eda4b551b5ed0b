"""The part of the client that is about what goes out: deliveries, replays, destinations, and the feed of events."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from receiver.client.asking import (
    ANSWER_FOR,
    PAUSE_FOR,
    UPSTREAM_FOR,
    Asking,
    Document,
    Found,
    Many,
    One,
    Pause,
    Question,
    Stream,
    gathered,
    paged,
    patient,
    segment,
    until,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from receiver.client.asking import Flow

FEED_WAIT: Final = 30.0
"""Seconds that one question for new events waits for some."""


class Outbox(Asking[One, Many, Stream]):
    """Look at deliveries and destinations, and have things sent again."""

    # -- deliveries ------------------------------------------------------------------------------------------------

    def delivery_page(
        self,
        *,
        state: Sequence[str] = (),
        destination: str | None = None,
        task_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> One:
        """One page of deliveries, newest first: `{"data": […], "next_cursor": …}`."""
        which = {"state": ",".join(state), "destination": destination, "task": task_id}
        return self._ask(Question("GET", "/deliveries", {**which, "limit": limit, "cursor": cursor}))

    def deliveries(
        self, *, state: Sequence[str] = (), destination: str | None = None, task_id: str | None = None
    ) -> Stream:
        """Every delivery, newest first; pages are fetched as they are needed."""
        which = {"state": ",".join(state), "destination": destination, "task": task_id}
        return self._stream(paged("/deliveries", which))

    def delivery(self, delivery_id: str) -> One:
        """A delivery with its attempts."""
        return self._ask(_of_delivery(delivery_id))

    def redeliver(self, delivery_id: str) -> One:
        """Open a delivery again: it is tried at once, under the same `webhook-id`, with a fresh budget.

        Raises:
            ApiProblem: there is none (404), or it is being tried right now (409).
        """
        return self._ask(Question("POST", f"/deliveries/{segment(delivery_id)}/redeliver"))

    def wait_for_attempt(self, delivery_id: str, *, after: int, patience: float = 0.0) -> One:
        """Wait until more than `after` attempts were made of a delivery, or until it ended without; it, as it then is.

        For `patience` seconds in a row a service that is away is waited for.
        """

        def is_enough(delivery: Document) -> bool:
            was_tried: bool = delivery["attempt_count"] > after and delivery["state"] != "leased"
            return was_tried or delivery["state"] == "cancelled"

        return self._one(until(lambda: _of_delivery(delivery_id), is_enough, patience=patience))

    # -- replays ---------------------------------------------------------------------------------------------------

    def start_replay(
        self,
        *,
        destination: str | None = None,
        since: str | None = None,
        until: str | None = None,
        state: str | None = None,
    ) -> One:
        """Open many ended deliveries again, in the background of the service; what is not given is left to it.

        `since` and `until`: a time in ISO 8601, or a span counted back from now (`2h`).

        Raises:
            Unreachable: where `sent`, it may have begun: look at `replays` before you start another.
        """
        given = {"destination": destination, "since": since, "until": until, "state": state}
        body = {name: value for name, value in given.items() if value is not None}
        return self._ask(Question("POST", "/replays", body=body))

    def replay_page(self, *, limit: int | None = None, cursor: str | None = None) -> One:
        """One page of replays, newest first."""
        return self._ask(Question("GET", "/replays", {"limit": limit, "cursor": cursor}))

    def replays(self) -> Stream:
        """Every replay, newest first; pages are fetched as they are needed."""
        return self._stream(paged("/replays", {}))

    def replay(self, replay_id: str) -> One:
        """A replay, and how far it is."""
        return self._ask(_of_replay(replay_id))

    def cancel_replay(self, replay_id: str) -> One:
        """Have a replay stop where it is; what it opened again stays open."""
        return self._ask(Question("POST", f"/replays/{segment(replay_id)}/cancel"))

    def wait_for_replay(
        self, replay_id: str, *, patience: float = 0.0, seen: Callable[[Document], None] | None = None
    ) -> One:
        """Wait until a replay has ended; `seen` is called with every look at it.

        For `patience` seconds in a row a service that is away is waited for: a replay goes on after a restart.
        """

        def has_ended(replay: Document) -> bool:
            return replay["state"] in {"done", "cancelled"}

        return self._one(until(lambda: _of_replay(replay_id), has_ended, patience=patience, seen=seen))

    # -- destinations ----------------------------------------------------------------------------------------------

    def destinations(self) -> Many:
        """Every configured destination with its health."""
        return self._many(gathered("/destinations"))

    def test_destination(self, name: str) -> One:
        """Have a sample event really sent; the attempt."""
        return self._ask(Question("POST", f"/destinations/{segment(name)}/test", seconds=UPSTREAM_FOR))

    def pause_destination(self, name: str) -> One:
        """Have nothing sent to it until it is resumed; what is due waits."""
        return self._ask(Question("POST", f"/destinations/{segment(name)}/pause"))

    def resume_destination(self, name: str) -> One:
        """Have what is due sent to it again."""
        return self._ask(Question("POST", f"/destinations/{segment(name)}/resume"))

    # -- events ----------------------------------------------------------------------------------------------------

    def event_page(self, *, after: str | None = None, limit: int | None = None, wait: float = 0.0) -> One:
        """One page of the feed, oldest first, without gaps; its `next_cursor` is what to go on `after`.

        Without `after` it begins with the oldest event that is kept. Where there is none yet, it waits for one, for at
        most `wait` seconds (up to 60).
        """
        return self._ask(_page_of_feed(after, limit, wait))

    def events(
        self,
        *,
        after: str | None = None,
        follow: bool = True,
        wait: float = FEED_WAIT,
        limit: int | None = None,
        patience: float = 0.0,
    ) -> Stream:
        """Every event, oldest first, without gaps; it waits for new ones for ever, or ends without `follow`.

        Its `cursor` is what to go on `after`: keep it once you are done with an event. It moves by pages, so after a
        kill up to `limit` events come again, under the same ids.

        Args:
            after: a `cursor`; the oldest event that is kept unless given.
            follow: wait for what is still to come.
            wait: seconds that one question waits for new events, up to 60.
            limit: events on a page, up to 200 (50 unless told); 1 for a cursor that is exact.
            patience: seconds in a row for which a service that is away is waited for; `math.inf` for ever.
        """
        return self._stream(_feed(after, limit, wait if follow else 0.0, patience, follow=follow), after)


def _of_delivery(delivery_id: str) -> Question:
    return Question("GET", f"/deliveries/{segment(delivery_id)}")


def _of_replay(replay_id: str) -> Question:
    return Question("GET", f"/replays/{segment(replay_id)}")


def _page_of_feed(after: str | None, limit: int | None, wait: float) -> Question:
    which = {"after": after, "limit": limit, "wait": f"{wait:.3f}s" if wait > 0 else None}
    return Question("GET", "/events", which, seconds=ANSWER_FOR + wait)


def _feed(after: str | None, limit: int | None, wait: float, patience: float, *, follow: bool) -> Flow[None]:
    while True:
        asked_at = time.monotonic()
        page = yield from patient(_page_of_feed(after, limit, wait), patience)
        after = page["next_cursor"]
        yield Found(page["data"], after)
        if page["data"]:
            continue
        if not follow:
            return
        if time.monotonic() - asked_at < PAUSE_FOR:  # a service that is stopping waits for nobody
            yield Pause(PAUSE_FOR)
