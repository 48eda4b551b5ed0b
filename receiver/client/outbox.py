"""The part of the client that is about what goes out: deliveries, replays, destinations, and the feed of events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from receiver.client.asking import ANSWER_FOR, UPSTREAM_FOR, Asking, Document, segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

FEED_WAIT: Final = 30.0
"""Seconds that one question for new events waits for some."""


class Outbox(Asking):
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
    ) -> Document:
        """One page of deliveries, newest first: `{"data": […], "next_cursor": …}`."""
        asked = {"state": ",".join(state), "destination": destination, "task": task_id}
        return self._ask("GET", "/deliveries", query={**asked, "limit": limit, "cursor": cursor})

    def deliveries(
        self, *, state: Sequence[str] = (), destination: str | None = None, task_id: str | None = None
    ) -> Iterator[Document]:
        """Every delivery, newest first; pages are fetched as they are needed."""
        return self._all("/deliveries", {"state": ",".join(state), "destination": destination, "task": task_id})

    def delivery(self, delivery_id: str) -> Document:
        """A delivery with its attempts."""
        return self._ask("GET", f"/deliveries/{segment(delivery_id)}")

    def redeliver(self, delivery_id: str) -> Document:
        """Open a delivery again: it is tried at once, under the same `webhook-id`, with a fresh budget.

        Raises:
            ApiProblem: there is none (404), or it is being tried right now (409).
        """
        return self._ask("POST", f"/deliveries/{segment(delivery_id)}/redeliver")

    def wait_for_attempt(self, delivery_id: str, *, after: int, patience: float = 0.0) -> Document:
        """Wait until more than `after` attempts were made of a delivery, or until it ended without; it, as it then is.

        For `patience` seconds in a row a service that is away is waited for.
        """

        def is_enough(delivery: Document) -> bool:
            was_tried: bool = delivery["attempt_count"] > after and delivery["state"] != "leased"
            return was_tried or delivery["state"] == "cancelled"

        return self._until(lambda: self.delivery(delivery_id), is_enough, patience=patience)

    # -- replays ---------------------------------------------------------------------------------------------------

    def start_replay(
        self,
        *,
        destination: str | None = None,
        since: str | None = None,
        until: str | None = None,
        state: str | None = None,
    ) -> Document:
        """Open many ended deliveries again, in the background of the service; what is not given is left to it.

        `since` and `until`: a time in ISO 8601, or a span counted back from now (`2h`).

        Raises:
            Unreachable: where `sent`, it may have begun: look at `replays` before you start another.
        """
        given = {"destination": destination, "since": since, "until": until, "state": state}
        return self._ask("POST", "/replays", body={name: value for name, value in given.items() if value is not None})

    def replay_page(self, *, limit: int | None = None, cursor: str | None = None) -> Document:
        """One page of replays, newest first."""
        return self._ask("GET", "/replays", query={"limit": limit, "cursor": cursor})

    def replay(self, replay_id: str) -> Document:
        """A replay, and how far it is."""
        return self._ask("GET", f"/replays/{segment(replay_id)}")

    def cancel_replay(self, replay_id: str) -> Document:
        """Have a replay stop where it is; what it opened again stays open."""
        return self._ask("POST", f"/replays/{segment(replay_id)}/cancel")

    def wait_for_replay(
        self, replay_id: str, *, patience: float = 0.0, seen: Callable[[Document], None] | None = None
    ) -> Document:
        """Wait until a replay has ended; `seen` is called with every look at it.

        For `patience` seconds in a row a service that is away is waited for: a replay goes on after a restart.
        """

        def has_ended(replay: Document) -> bool:
            return replay["state"] in {"done", "cancelled"}

        return self._until(lambda: self.replay(replay_id), has_ended, patience=patience, seen=seen)

    # -- destinations ----------------------------------------------------------------------------------------------

    def destinations(self) -> list[Document]:
        """Every configured destination with its health."""
        return list(self._all("/destinations", {}))

    def test_destination(self, name: str) -> Document:
        """Have a sample event really sent; the attempt."""
        return self._ask("POST", f"/destinations/{segment(name)}/test", seconds=UPSTREAM_FOR)

    def pause_destination(self, name: str) -> Document:
        """Have nothing sent to it until it is resumed; what is due waits."""
        return self._ask("POST", f"/destinations/{segment(name)}/pause")

    def resume_destination(self, name: str) -> Document:
        """Have what is due sent to it again."""
        return self._ask("POST", f"/destinations/{segment(name)}/resume")

    # -- events ----------------------------------------------------------------------------------------------------

    def events(self, *, after: str | None = None, limit: int | None = None, wait: float = 0.0) -> Document:
        """One page of the feed, oldest first, without gaps; its `next_cursor` is what to go on `after`.

        Without `after` it begins with the oldest event that is kept. Where there is none yet, it waits for one, for at
        most `wait` seconds (up to 60).
        """
        asked = {"after": after, "limit": limit, "wait": f"{wait:.3f}s" if wait > 0 else None}
        return self._ask("GET", "/events", query=asked, seconds=ANSWER_FOR + wait)
