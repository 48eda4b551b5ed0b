"""`receiver replay` and `receiver replays …`: many deliveries again; the service does it, and goes on by itself."""

from __future__ import annotations

import time
from contextlib import nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from receiver.cli import listing, output, sent
from receiver.cli.options import ConfigOption, CursorOption, JsonOption, LimitOption, UrlOption, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from receiver.cli.sent import Document
    from receiver.client import Client

    Show = Callable[[Document], None]

PATIENCE_FOR: Final = 60.0
"""Seconds that a watch bears with a service that is away: a replay goes on where it was after a restart."""
INTERRUPTED: Final = 130
LINE_EVERY: Final = 1.0
"""Seconds between lines of progress where there is no terminal."""

app = typer.Typer(no_args_is_help=True, help="Look at replays, and cancel one.")

ReplayArgument = Annotated[str, typer.Argument(help="The replay's id.", metavar="ID", show_default=False)]


class Which(StrEnum):
    """Which ended deliveries are meant."""

    dead = "dead"
    delivered = "delivered"
    all = "all"


def replay(
    *,
    destination: Annotated[
        str | None, typer.Option(help="Only to this destination; else to all.", metavar="NAME", show_default=False)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Only made since: 2h, 7d, or a time in ISO 8601.", metavar="WHEN", show_default=False),
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Only made until, likewise; else until now.", metavar="WHEN", show_default=False)
    ] = None,
    state: Annotated[Which, typer.Option(help="Which of those that have ended.")] = Which.dead,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Start it, and do not watch it.")] = False,
    json: JsonOption = False,
    url: UrlOption = None,
    config: ConfigOption = None,
) -> None:
    """Send many deliveries again, each under its own webhook-id. Nothing is submitted to the upstream again.

    The service opens them again step by step, also over a restart; Ctrl-C ends only the watching.

    Example:
      receiver replay --destination pipeline --since 2h
      receiver replay --state all --since 2026-01-31T08:00:00Z --until 2026-01-31T09:00:00Z --no-wait
    """
    with connect(config, url) as client:
        started = _start(client, destination=destination, since=since, until=until, state=state.value)
        if no_wait:
            _tell_started(started, json=json)
            return
        ended = _watch(client, started, quiet=json)
    _tell_ended(ended, json=json)


def _start(client: Client, **which: str | None) -> Document:
    from receiver.client import Unreachable

    try:
        return client.start_replay(**which)
    except Unreachable as error:
        if error.sent:
            error.add_note("It may have begun all the same: receiver replays list")
        raise


@app.command("list")
def list_replays(
    *,
    limit: LimitOption = 50,
    cursor: CursorOption = None,
    json: JsonOption = False,
    url: UrlOption = None,
    config: ConfigOption = None,
) -> None:
    """List replays, newest first.

    Example:
      receiver replays list
      receiver replays list --limit 5 --json
    """
    with connect(config, url) as client:
        found = listing.gather(lambda size, at: client.replay_page(limit=size, cursor=at), limit, cursor)
    listing.show(found, sent.show_replays, limit=limit, nothing="No replays.", json=json)


@app.command()
def show(
    replay_id: ReplayArgument,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it until it has ended.")] = False,
    json: JsonOption = False,
    url: UrlOption = None,
    config: ConfigOption = None,
) -> None:
    """Show how far a replay is.

    Example:
      receiver replays show rpl_01jd3v8f0000000000000000ab
      receiver replays show rpl_01jd3v8f0000000000000000ab --wait
    """
    with connect(config, url) as client:
        found = client.replay(replay_id)
        if wait:
            found = _watch(client, found, quiet=json)
    if wait:
        _tell_ended(found, json=json)
    elif json:
        output.document(found)
    else:
        _tell(found)


@app.command()
def cancel(
    replay_id: ReplayArgument, *, json: JsonOption = False, url: UrlOption = None, config: ConfigOption = None
) -> None:
    """Have a replay stop where it is. What it has opened again is sent all the same.

    Example:
      receiver replays cancel rpl_01jd3v8f0000000000000000ab
    """
    with connect(config, url) as client:
        found = client.cancel_replay(replay_id)
    if json:
        output.document(found)
        return
    _tell(found)


# -- telling -------------------------------------------------------------------------------------------------------


def _tell(replay: Document) -> None:
    words = f": {sent.progress(replay)} deliveries opened again"
    output.say(output.styled(replay["id"], "bold"), "  ", output.state(replay["state"]), words)


def _tell_started(replay: Document, *, json: bool) -> None:
    if json:
        output.document(replay)
        return
    _tell(replay)
    output.hint(f"See how far it is: receiver replays show {replay['id']}")


def _tell_ended(replay: Document, *, json: bool) -> None:
    if json:
        output.document(replay)
    else:
        _tell(replay)
        if not replay["matched"]:
            output.hint("No delivery is like that.")
        elif replay["state"] == "done":
            output.hint("They are sent as fast as their destinations take them: receiver deliveries list")
    if replay["state"] != "done":
        raise typer.Exit(output.FAILED)


def _watch(client: Client, replay: Document, *, quiet: bool) -> Document:
    """Show its progress until it has ended; Ctrl-C leaves it running."""
    console = output.err() if quiet else output.out()
    try:
        with _live(replay) if console.is_terminal else nullcontext(_lines(quiet=quiet)) as show:
            return client.wait_for_replay(replay["id"], patience=PATIENCE_FOR, seen=show)
    except KeyboardInterrupt:
        output.hint(
            f"It goes on without you. See how far it is: receiver replays show {replay['id']} --wait; "
            f"stop it: receiver replays cancel {replay['id']}"
        )
        raise typer.Exit(INTERRUPTED) from None


def _live(replay: Document) -> AbstractContextManager[Show]:
    """One line that is drawn again and again."""
    from contextlib import contextmanager

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    @contextmanager
    def live() -> Iterator[Show]:
        columns = (SpinnerColumn(), TextColumn("opened again"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=output.err(), transient=True) as drawn:
            bar = drawn.add_task("", total=replay["matched"], completed=replay["replayed"])
            yield lambda now: drawn.update(bar, total=now["matched"], completed=now["replayed"])

    return live()


def _lines(*, quiet: bool) -> Show:
    """A line now and then, where there is no terminal; the end is told by others."""
    began = time.monotonic()
    said_at, said = float("-inf"), ""

    def show(replay: Document) -> None:
        nonlocal said_at, said
        at, words = time.monotonic(), sent.progress(replay)
        if replay["state"] == "running" and words != said and at - said_at >= LINE_EVERY:
            said_at, said = at, words
            output.say(f"{at - began:7.1f} s  {words}", console=output.err() if quiet else None)

    return show
