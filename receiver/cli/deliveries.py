"""`receiver deliveries …`: what was sent where, what came back, and one of them again."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from receiver.cli import listing, output, sent, way
from receiver.cli.clock import now
from receiver.cli.options import ConfigOption, CursorOption, JsonOption, LimitOption, UrlOption, connect

PATIENCE_FOR: Final = 60.0
"""Seconds that `--wait` bears with a service that is away, restarting say."""

app = typer.Typer(no_args_is_help=True, help="Look at what was sent where, and send one again.")

DeliveryArgument = Annotated[str, typer.Argument(help="The delivery's id.", metavar="ID", show_default=False)]


@app.command("list")
def list_deliveries(
    *,
    state: Annotated[
        list[str] | None,
        typer.Option(
            help="Only in this state: pending, leased, delivered, dead, cancelled (repeatable, or joined by commas).",
            show_default=False,
        ),
    ] = None,
    destination: Annotated[
        str | None, typer.Option(help="Only to this destination.", metavar="NAME", show_default=False)
    ] = None,
    task: Annotated[str | None, typer.Option(help="Only of this task.", metavar="ID", show_default=False)] = None,
    limit: LimitOption = 50,
    cursor: CursorOption = None,
    json: JsonOption = False,
    url: UrlOption = None,
    config: ConfigOption = None,
) -> None:
    """List deliveries, newest first.

    Example:
      receiver deliveries list --state dead --destination pipeline
      receiver deliveries list --task tsk_01jd3v8f0000000000000000ab --json
    """
    with connect(config, url) as client:
        found = listing.gather(
            lambda size, at: client.delivery_page(
                state=state or (), destination=destination, task_id=task, limit=size, cursor=at
            ),
            limit,
            cursor,
        )
    nothing = "No deliveries." if not (state or destination or task) else "No such deliveries."
    listing.show(found, lambda rows: sent.show_deliveries(rows, now=now()), limit=limit, nothing=nothing, json=json)


@app.command()
def show(
    delivery_id: DeliveryArgument, *, json: JsonOption = False, url: UrlOption = None, config: ConfigOption = None
) -> None:
    """Show a delivery with its attempts, and what was sent and answered last.

    Example:
      receiver deliveries show dlv_01jd3v8f0000000000000000ab
      receiver deliveries show dlv_01jd3v8f0000000000000000ab --json
    """
    with connect(config, url) as client:
        delivery = client.delivery(delivery_id)
    if json:
        output.document(delivery)
        return
    sent.show_delivery(delivery, now=now())
    if delivery["state"] == "dead":
        output.hint(f"Once its destination is mended: receiver deliveries redeliver {delivery['id']}")


@app.command()
def redeliver(
    delivery_id: DeliveryArgument,
    *,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the attempt: 0 if it arrived, else 1.", show_default=False)
    ] = False,
    json: JsonOption = False,
    url: UrlOption = None,
    config: ConfigOption = None,
) -> None:
    """Send a delivery again, at once, even past a pause or an open circuit; the receiver sees the same webhook-id.

    Example:
      receiver deliveries redeliver dlv_01jd3v8f0000000000000000ab --wait
    """
    with connect(config, url) as client:
        before = client.delivery(delivery_id)["attempt_count"] if wait else 0
        delivery = client.redeliver(delivery_id)
        if wait:
            delivery = client.wait_for_attempt(delivery_id, after=before, patience=PATIENCE_FOR)
    if json:
        output.document(delivery)
    elif wait:
        output.say(delivery["id"], " is ", output.state(delivery["state"]), *_last(delivery))
    else:
        output.say(delivery["id"], f" is opened again, and is tried at {delivery['destination']} at once")
        output.hint(f"See how it went: receiver deliveries show {delivery['id']}")
    if wait and delivery["state"] != "delivered":
        raise typer.Exit(output.FAILED)


def _last(delivery: sent.Document) -> list[str]:
    attempts = delivery["attempts"]
    return [f": attempt {attempts[-1]['number']}, {way.heard(attempts[-1])}"] if attempts else []
