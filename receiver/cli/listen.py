"""`receiver listen`: for a developer's laptop, which nobody can call: events are pulled, and posted to a local URL."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from receiver.cli import output
from receiver.cli.clock import now
from receiver.cli.options import ConfigOption, UrlOption, connect
from receiver.errors import ReceiverError

if TYPE_CHECKING:
    from receiver.client import Client
    from receiver.destinations.webhook import WebhookOptions

SECRET_BYTES: Final = 32


def listen(
    *,
    forward_to: Annotated[
        str,
        typer.Option(
            help="Where to post each event, such as http://localhost:3000/hooks.", metavar="URL", show_default=False
        ),
    ],
    events: Annotated[
        list[str] | None,
        typer.Option(
            help="Only these types: task.failed, task.* (repeatable, or joined by commas).",
            metavar="TYPE",
            show_default=False,
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(help="Go on from a cursor, as printed at the end of a run.", metavar="CURSOR", show_default=False),
    ] = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Begin with the oldest event the service keeps.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            help="Begin with the events recorded since: 2h, 7d, or a time in ISO 8601.",
            metavar="WHEN",
            show_default=False,
        ),
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(
            help="Sign with this whsec_… secret; else $RECEIVER_LISTEN_SECRET, else a fresh one is made and printed.",
            metavar="SECRET",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object a line for every try, for programs.")
    ] = False,
    url: UrlOption = None,
    config: ConfigOption = None,
) -> None:
    """Forward events from a running service to a local URL, signed; until Ctrl-C.

    It begins with the next event, unless --after, --since or --from-start says otherwise.
    A service that goes away is waited for.

    Example:
      receiver listen --forward-to http://localhost:3000/hooks
      receiver listen --forward-to localhost:3000/hooks --events task.failed,task.lost --since 2h
    """
    from receiver.cli.forwarding import Listening
    from receiver.cli.signals import Stop
    from receiver.client import Forwarder

    if (after is not None) + (since is not None) + from_start > 1:
        raise typer.BadParameter("only one of --after, --since and --from-start can be meant", param_hint="--after")
    options, is_fresh = _options(forward_to, secret)
    stop = Stop()
    listening = Listening(
        options=options,
        types=_types(events or []),
        since=None if since is None else _moment(since, now()),
        place=(after, 0),
        stop=stop,
        json=json,
    )
    forwarder = Forwarder()
    with connect(config, url) as client, stop:
        try:
            if after is None and since is None and not from_start:
                listening.skip_to_the_end(client)
            else:
                listening.look(client)  # who is not there, or takes no such cursor, is told at once
            _greet(client, options, is_fresh=is_fresh, json=json)
            listening.run(client, forwarder)
        except KeyboardInterrupt:
            _farewell(listening.cursor(client))
        except ReceiverError as error:
            if listening.place[0] is not None and listening.place[0] != after:
                error.add_note(f"Once that is mended, it goes on by: --after {listening.place[0]}")
            raise
        finally:
            forwarder.close()


def _greet(client: Client, options: WebhookOptions, *, is_fresh: bool, json: bool) -> None:
    where = output.err() if json else None
    output.say(f"forwarding events from {client.url} to {options.url}", console=where)
    key = options.secrets[0] if is_fresh else "the secret that was given"
    output.say(f"signed with {key}", console=where)
    output.hint("Ctrl-C ends it.")


def _farewell(cursor: str | None) -> None:
    if cursor is None:
        output.hint("Ended before the first event was read.")
    else:
        output.hint(f"Ended. To go on from here: --after {cursor}")


# -- what was given ------------------------------------------------------------------------------------------------


def _options(forward_to: str, secret: str | None) -> tuple[WebhookOptions, bool]:
    """The options of the kind, and whether the secret is a fresh one."""
    from pydantic import ValidationError

    from receiver.destinations.webhook import WebhookOptions

    given = secret or os.environ.get("RECEIVER_LISTEN_SECRET") or None
    where = forward_to if "://" in forward_to else f"http://{forward_to}"
    try:
        return WebhookOptions(url=where, secrets=(given or _fresh_secret(),)), given is None
    except ValidationError as error:
        flaw = error.errors(include_url=False)[0]
        names = {"url": "--forward-to", "secrets": "--secret"}
        words = str(flaw["msg"]).removeprefix("Value error, ").removeprefix("secret 1: ")
        raise typer.BadParameter(words, param_hint=names[str(flaw["loc"][0])]) from None


def _fresh_secret() -> str:
    import base64
    import secrets

    return f"whsec_{base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()}"


def _types(given: list[str]) -> frozenset[str] | None:
    """The event types that are meant; None for all."""
    from receiver import routing

    patterns = [one for text in given for one in text.replace(",", " ").split()]
    for pattern in patterns:
        if not routing.types_of(pattern):
            import difflib

            near = difflib.get_close_matches(pattern, known := sorted(routing.EVENT_TYPES), 1, 0.5)
            meant = f" (did you mean {near[0]}?)" if near else f"; there are {', '.join(known)}"
            raise typer.BadParameter(f"no event is called {pattern!r}{meant}", param_hint="--events")
    return frozenset().union(*map(routing.types_of, patterns)) if patterns else None


def _moment(text: str, at: datetime) -> datetime:
    from receiver.config.values import duration

    try:
        return at - duration(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        words = 'a time such as "2026-01-31T12:00:00Z" or a span such as "2h" is wanted'
        raise typer.BadParameter(words, param_hint="--since") from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found
