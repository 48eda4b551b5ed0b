"""`receiver destinations …`: how they do, a test that is really sent, a preview that is not, a pause by hand."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Any

import typer

from receiver.cli import output, sent, way
from receiver.cli.clock import now
from receiver.cli.options import ConfigOption, JsonOption, UrlOption, connect, load

if TYPE_CHECKING:
    from collections.abc import Iterable

    from receiver.cli.sent import Document
    from receiver.client import Client
    from receiver.config import Config, Destination
    from receiver.wire import HttpRequest

app = typer.Typer(no_args_is_help=True, help="See how destinations do, test them, pause and resume them.")

NameArgument = Annotated[str, typer.Argument(help="The destination's name.", metavar="NAME", show_default=False)]


@app.command("list")
def list_destinations(*, json: JsonOption = False, url: UrlOption = None, config: ConfigOption = None) -> None:
    """List the destinations of a running service, and how they do.

    Example:
      receiver destinations list
      receiver destinations list --json
    """
    with connect(config, url) as client:
        found = client.destinations()
    if json:
        output.document({"data": found, "next_cursor": None})
    elif found:
        sent.show_destinations(found, now=now())
    else:
        output.hint("No destinations: add [[destinations]] to the service's config.")


@app.command()
def show(name: NameArgument, *, json: JsonOption = False, url: UrlOption = None, config: ConfigOption = None) -> None:
    """Show how a destination does, and what went there last.

    Example:
      receiver destinations show pipeline
    """
    with connect(config, url) as client:
        found = _of(client, name)
        if json:
            output.document(found)
            return
        last = client.delivery_page(destination=name, limit=5)["data"]
        dead = client.delivery_page(destination=name, state=["dead"], limit=1)["data"]
    sent.show_destination(found, now=now())
    if last:
        output.say("  its last deliveries:")
        sent.show_deliveries(last, now=now())
    for line in _advice(found, any_dead=bool(dead)):
        output.hint(line)


def _of(client: Client, name: str) -> Document:
    every = {one["name"]: one for one in client.destinations()}
    if name not in every:
        raise output.Failed(_unknown(name, every, "the service started with"))
    return every[name]


def _unknown(name: str, known: Iterable[str], where: str = "configured") -> str:
    import difflib

    near = difflib.get_close_matches(name, known := list(known), 1, 0.5)
    meant = f" (did you mean {near[0]}?)" if near else ""
    return f"there is no destination {name!r}{meant}; {where}: {', '.join(known) or 'none'}"


def _advice(destination: Document, *, any_dead: bool) -> list[str]:
    name, lines = destination["name"], []
    if destination["state"] == "paused":
        lines.append(f"Nothing is sent to it until: receiver destinations resume {name}")
    if destination["state"] == "open":
        lines.append(
            f"It failed too often in a row, so only a probe is sent. Try it now: receiver destinations test {name}"
        )
    if any_dead:
        lines.append(f"Once it is mended, what died is sent again by: receiver replay --destination {name}")
    return lines


@app.command("test")
def send_test(
    name: NameArgument, *, json: JsonOption = False, url: UrlOption = None, config: ConfigOption = None
) -> None:
    """Have the running service send a sample event now, also past a pause; 0 if the destination took it, else 1.

    Example:
      receiver destinations test pipeline
    """
    with connect(config, url) as client:
        attempt = client.test_destination(name)
    took_it = attempt["result"] == "ok"
    if json:
        output.document(attempt)
    else:
        words = "took it" if took_it else "did not take it"
        style = "green" if took_it else "red"
        output.say(output.styled(name, "bold"), output.styled(f" {words}", style), f": {way.heard(attempt)}")
        sent.show_exchange(attempt)
        if not took_it:
            output.hint("`receiver doctor` tries to reach every destination, and says how to mend what is wrong.")
    if not took_it:
        raise typer.Exit(output.FAILED)


@app.command()
def pause(name: NameArgument, *, json: JsonOption = False, url: UrlOption = None, config: ConfigOption = None) -> None:
    """Have nothing sent to a destination until it is resumed. What is due waits, and spends no attempt.

    Example:
      receiver destinations pause pipeline
    """
    with connect(config, url) as client:
        found = client.pause_destination(name)
    if json:
        output.document(found)
        return
    output.say(output.styled(found["name"], "bold"), " is ", output.state(found["state"]), ": what is due waits")
    output.hint(f"It goes on by: receiver destinations resume {found['name']}")


@app.command()
def resume(name: NameArgument, *, json: JsonOption = False, url: UrlOption = None, config: ConfigOption = None) -> None:
    """Have a destination sent to again, after a pause or an open circuit.

    Example:
      receiver destinations resume pipeline
    """
    with connect(config, url) as client:
        found = client.resume_destination(name)
    if json:
        output.document(found)
        return
    output.say(output.styled(found["name"], "bold"), " is ", output.state(found["state"]), ": what is due is sent")


# -- without sending -----------------------------------------------------------------------------------------------


@app.command()
def preview(name: NameArgument, *, json: JsonOption = False, config: ConfigOption = None) -> None:
    """Print the request that a sample event makes of a destination; nothing is sent, no service is needed.

    Secrets are masked; the signature is a real one, made by the configured secrets.

    Example:
      receiver destinations preview pipeline
      receiver destinations preview pipeline --json
    """
    settings = load(config)
    known = {one.name: one for one in settings.destinations}
    if name not in known:
        raise typer.BadParameter(_unknown(name, known), param_hint="NAME")
    request = _sample_request(settings, known[name])
    shown: dict[str, Any] = {
        "method": request.method,
        "url": request.url,
        "headers": dict(request.headers),
        "body": request.body.decode("utf-8", "replace"),
    }
    if json:
        output.document(shown)
        return
    output.say(f"{shown['method']} {shown['url']}")
    for header, value in shown["headers"].items():
        output.say(f"{header}: {value}")
    output.say("\n", shown["body"].replace("\r\n", "\n"))
    output.hint(f"This is what {name} would be sent. Nothing was sent; to send it: receiver destinations test {name}")


def _sample_request(settings: Config, destination: Destination) -> HttpRequest:
    """The first request of the kind's flow, masked as in every answer."""
    from receiver import ids
    from receiver.destinations import KINDS
    from receiver.destinations.sample import sample_event

    at = now()
    event = sample_event(
        event_id=ids.event_id(int(at.timestamp() * 1000), secrets.token_bytes(ids.ENTROPY_BYTES)), now=at
    )
    kind = KINDS[destination.kind]
    steps = kind.flow(event, destination.options, now=at, home=settings.server.public_url)
    return kind.masked(next(steps))
