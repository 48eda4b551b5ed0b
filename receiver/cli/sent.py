"""Deliveries, attempts, destinations and replays as a reader sees them. Pure, but for the printing.

The data is that of the API; nothing is added to it but words.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from receiver.cli import output, way

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

Document = dict[str, Any]

BODY_SHOWN: Final = 2000
"""Characters of a body that are printed; `--json` has all that is kept."""
PROMPT: Final = timedelta(seconds=3)
"""What is due for longer waits: for a pause, an open circuit, a rate, or those before it."""
WIDE: Final = 120
"""Columns from which on a list has room for words."""


def ahead(text: str, now: datetime) -> str:
    """How far off a time of the API is: `in 3 min`, or `now` where it has come."""
    left = datetime.fromisoformat(text) - now
    return "now" if left.total_seconds() <= 0 else f"in {way.age(now.isoformat(), now + left)}"


# -- attempts ------------------------------------------------------------------------------------------------------


def show_exchange(attempt: Document, *, indent: int = 2) -> None:
    """Print what was sent, and what came back."""
    request, answer = attempt["request"], attempt["response"]
    if request["url"]:
        _show_message(f"sent to {request['url']}:", request["headers"], "", indent)
    if answer:
        _show_message(f"and it answered {answer['status']}:", answer["headers"], answer.get("body") or "", indent)


def _show_message(title: str, headers: Document, body: str, indent: int) -> None:
    margin = " " * indent
    output.say(margin, title)
    for name, value in headers.items():
        output.say(margin, "  ", output.styled(f"{name}: ", "dim"), str(value).replace("\n", " "))
    if body:
        shown = body if len(body) <= BODY_SHOWN else f"{body[:BODY_SHOWN]}… ({len(body)} characters; --json has more)"
        output.say(*(f"\n{margin}  {line}" for line in shown.rstrip().splitlines()))


# -- deliveries ----------------------------------------------------------------------------------------------------


def show_deliveries(deliveries: Sequence[Document], *, now: datetime) -> None:
    """Print a table of deliveries."""
    is_wide = output.out().width >= WIDE
    table = output.table("ID", "STATE", "DESTINATION", "TRIES", "AGE", *(["THE LAST TRY"] if is_wide else []))
    for delivery in deliveries:
        table.add_row(
            output.styled(delivery["id"], ""),
            output.state(delivery["state"]),
            output.clean(delivery["destination"]),
            str(delivery["attempt_count"]),
            way.age(delivery["created_at"], now),
            *([output.clean(_last_words(delivery, now))] if is_wide else []),
        )
    output.out().print(table)


def _last_words(delivery: Document, now: datetime) -> str:
    attempts = delivery["attempts"]
    if attempts:
        return output.short(way.heard(attempts[-1]), 100)
    if not (due := delivery["due_at"]):
        return ""
    is_held = now - datetime.fromisoformat(due) > PROMPT
    return f"due for {way.age(due, now)}: it waits for its destination" if is_held else f"to be tried {ahead(due, now)}"


def show_delivery(delivery: Document, *, now: datetime) -> None:
    """Print a delivery: what of, where to, every attempt, and the last exchange."""
    output.say(output.styled(delivery["id"], "bold"), "  ", output.state(delivery["state"]))
    due = delivery["due_at"]
    facts: list[tuple[str, str | None]] = [
        ("event", delivery["event_id"]),
        ("task", delivery["task_id"]),
        ("destination", delivery["destination"]),
        ("created", _since(delivery["created_at"], now)),
        ("next try", f"{way.moment(due)}, {ahead(due, now)}" if due else None),
        ("ended", _since(delivery["finished_at"], now) if delivery["finished_at"] else None),
    ]
    output.rows([(output.styled(name, "dim"), value) for name, value in facts if value])
    attempts = delivery["attempts"]
    if not attempts:
        output.say("  no attempt yet")
        return
    output.say("  its attempts:")
    output.rows([_attempt_line(attempt) for attempt in attempts], indent=4)
    show_exchange(attempts[-1])


def _attempt_line(attempt: Document) -> tuple[Text, str, str]:
    style = "green" if attempt["result"] == "ok" else "red"
    by_hand = "again, " if attempt["redelivery"] else ""
    return output.styled(f"{attempt['number']}", style), way.moment(attempt["started_at"]), by_hand + way.heard(attempt)


def _since(text: str, now: datetime) -> str:
    return f"{way.moment(text)}, {way.age(text, now)} ago"


# -- destinations --------------------------------------------------------------------------------------------------


def show_destinations(destinations: Sequence[Document], *, now: datetime) -> None:
    """Print a table of destinations and their health."""
    table = output.table("NAME", "KIND", "STATE", "FAILURES", "NEXT TRY", "LAST ERROR")
    for one in destinations:
        table.add_row(
            output.styled(one["name"], ""),
            output.clean(one["kind"]),
            output.state(one["state"]),
            str(one["consecutive_failures"] or ""),
            ahead(one["next_try_at"], now) if one["next_try_at"] else "",
            output.clean(output.short(one["last_error"] or "", 200)),
        )
    output.out().print(table)


def show_destination(destination: Document, *, now: datetime) -> None:
    """Print a destination and its health."""
    output.say(output.styled(destination["name"], "bold"), "  ", output.state(destination["state"]))
    due = destination["next_try_at"]
    failures = destination["consecutive_failures"]
    facts: list[tuple[str, str | None]] = [
        ("kind", destination["kind"]),
        ("because", destination.get("reason")),
        ("failures", f"{failures} in a row" if failures else None),
        ("last error", destination["last_error"]),
        ("next try", f"{way.moment(due)}, {ahead(due, now)}" if due else None),
    ]
    output.rows([(output.styled(name, "dim"), value) for name, value in facts if value])


# -- replays -------------------------------------------------------------------------------------------------------


def progress(replay: Document) -> str:
    """How far a replay is."""
    return f"{replay['replayed']} of {replay['matched']}"


def show_replays(replays: Sequence[Document]) -> None:
    """Print a table of replays."""
    table = output.table("ID", "STATE", "OPENED AGAIN")
    for one in replays:
        table.add_row(output.styled(one["id"], ""), output.state(one["state"]), progress(one))
    output.out().print(table)
