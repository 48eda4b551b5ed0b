"""The command line (contract 2): one file per group of commands, put together here. It prints, and decides nothing.

What is heavy (the service, the store, HTTP) is imported by the command that needs it, so that `--help` is quick.
An error that was raised on purpose ends in words on stderr and a code: 1 failed, 2 usage or config, 3 not reachable.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from receiver import __version__
from receiver.cli import (
    database,
    deliveries,
    demo,
    destinations,
    doctor,
    emulator,
    listen,
    output,
    replays,
    service,
    submit,
    tasks,
    trigger,
)
from receiver.errors import ReceiverError

START, WORK, PLAY = "To begin", "With a running service", "To try things"

app = typer.Typer(
    name="receiver",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="A webhook receiver and callback router for AI video tasks: submits them, believes their callbacks with care, "
    "looks after the lost ones, and delivers signed events.",
    epilog="To see it work, without a key and without cost: receiver demo",
)


def _version(wanted: bool) -> None:
    if wanted:
        output.say(f"receiver {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command(rich_help_panel=START)(demo.demo)
app.command(rich_help_panel=START)(service.init)
app.command(rich_help_panel=START)(service.serve)
app.command(rich_help_panel=START)(doctor.doctor)
app.add_typer(service.config_app, name="config", rich_help_panel=START)
app.add_typer(database.app, name="db", rich_help_panel=START)
app.command(rich_help_panel=WORK)(submit.submit)
app.add_typer(tasks.app, name="tasks", rich_help_panel=WORK)
app.add_typer(deliveries.app, name="deliveries", rich_help_panel=WORK)
app.command(rich_help_panel=WORK)(replays.replay)
app.add_typer(replays.app, name="replays", rich_help_panel=WORK)
app.add_typer(destinations.app, name="destinations", rich_help_panel=WORK)
app.command(rich_help_panel=WORK)(listen.listen)
app.command(rich_help_panel=PLAY)(emulator.emulator)
app.command(rich_help_panel=PLAY)(trigger.trigger)


def run() -> int:
    """Run the command that the arguments name; its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 gets question marks, not a traceback
    try:
        app(prog_name="receiver")
    except ReceiverError as error:
        return output.report(error)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return output.DONE
