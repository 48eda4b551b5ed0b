"""`receiver emulator`: the fake upstream alone, its faults as options: one for every field of `EmulatorOptions`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from receiver.cli import output
from receiver.cli.options import ConfigOption  # noqa: TC001 -- typer reads it

if TYPE_CHECKING:
    from receiver.emulator import EmulatorOptions, RunningEmulator

RENDER, CALLS, FAULTS, SHAPES = "The render", "Callbacks", "Faults", "Shapes of answers"


def emulator(
    port: Annotated[int, typer.Option(help="Port on the loopback; 0 for a free one.", min=0, max=65535)] = 9000,
    host: Annotated[str, typer.Option(help="Address to listen on.", metavar="HOST")] = "127.0.0.1",
    seed: Annotated[int, typer.Option(help="Of all dice: the same seed plays the same run.", min=0)] = 0,
    key: Annotated[
        list[str] | None, typer.Option(help="A bearer key that is let in (repeatable); none: any.", metavar="KEY")
    ] = None,
    chance: Annotated[
        list[str] | None,
        typer.Option(
            help="Play a word sometimes: callback=missing:0.1 for one task in ten (repeatable).", metavar="WORD:P"
        ),
    ] = None,
    outcome: Annotated[
        str | None, typer.Option(help="succeed, fail, cancel or never.", metavar="WORD", rich_help_panel=RENDER)
    ] = None,
    reason: Annotated[
        str | None, typer.Option(help="Why renders fail.", metavar="TEXT", rich_help_panel=RENDER)
    ] = None,
    render: Annotated[
        str | None, typer.Option(help="Seconds a render takes.", metavar="S", rich_help_panel=RENDER)
    ] = None,
    callback: Annotated[
        str | None,
        typer.Option(
            help="ok, missing, doubled, reordered, early, late, tampered-id, tampered-token, malformed, disagreeing, "
            "no-url, no-id, opposite, probe, appended, queued, progress; several joined by +.",
            metavar="WORDS",
            rich_help_panel=CALLS,
        ),
    ] = None,
    callback_shape: Annotated[
        str | None,
        typer.Option(
            help="flat, enveloped, generic, 3b, 3c, 4.4b, form, bom, text, gzip, integers, kie, random or cycle.",
            metavar="WORD",
            rich_help_panel=CALLS,
        ),
    ] = None,
    callback_delay: Annotated[
        str | None, typer.Option(help="Seconds from the end to the callback.", metavar="S", rich_help_panel=CALLS)
    ] = None,
    callback_retries: Annotated[
        str | None, typer.Option(help="Repeats where it is not answered 2xx.", metavar="N", rich_help_panel=CALLS)
    ] = None,
    callback_retry_gap: Annotated[
        str | None, typer.Option(help="Seconds between those.", metavar="S", rich_help_panel=CALLS)
    ] = None,
    callback_timeout: Annotated[
        str | None, typer.Option(help="Seconds one callback may take.", metavar="S", rich_help_panel=CALLS)
    ] = None,
    callback_concurrency: Annotated[
        str | None, typer.Option(help="Callbacks under way at once.", metavar="N", rich_help_panel=CALLS)
    ] = None,
    submit: Annotated[
        str | None,
        typer.Option(
            help="Instead of a submission's answer: 429, 500-html, 503, 301, unreadable, empty, scalar, hang, reset, "
            "cut, code, no-id; with -after the task has been made all the same.",
            metavar="FAULT",
            rich_help_panel=FAULTS,
        ),
    ] = None,
    submit_times: Annotated[
        str | None,
        typer.Option(help="It hits only so many first submissions.", metavar="N", rich_help_panel=FAULTS),
    ] = None,
    submit_delay: Annotated[
        str | None, typer.Option(help="Seconds before the answer.", metavar="S", rich_help_panel=FAULTS)
    ] = None,
    lookup: Annotated[
        str | None,
        typer.Option(
            help="Instead of a lookup's answer: a fault as above, null or disagreeing.",
            metavar="FAULT",
            rich_help_panel=FAULTS,
        ),
    ] = None,
    lookup_times: Annotated[
        str | None, typer.Option(help="It hits only a task's first lookups.", metavar="N", rich_help_panel=FAULTS)
    ] = None,
    lookup_delay: Annotated[
        str | None, typer.Option(help="Seconds before the answer.", metavar="S", rich_help_panel=FAULTS)
    ] = None,
    missing: Annotated[
        str | None,
        typer.Option(help="So many first lookups say task_not_exist.", metavar="N", rich_help_panel=FAULTS),
    ] = None,
    missing_for: Annotated[
        str | None, typer.Option(help="Lookups say so for so many seconds.", metavar="S", rich_help_panel=FAULTS)
    ] = None,
    urlless: Annotated[
        str | None,
        typer.Option(help="So many first lookups of a success show no URL.", metavar="N", rich_help_panel=FAULTS),
    ] = None,
    hang: Annotated[str | None, typer.Option(help="Seconds a hang lasts.", metavar="S", rich_help_panel=FAULTS)] = None,
    retry_after: Annotated[
        str | None,
        typer.Option(help="Of a status fault: 2, or date:2.", metavar="S", rich_help_panel=FAULTS),
    ] = None,
    submit_shape: Annotated[
        str | None, typer.Option(help="2a, 2b, 2c, random or cycle.", metavar="WORD", rich_help_panel=SHAPES)
    ] = None,
    lookup_shape: Annotated[
        str | None,
        typer.Option(
            help="newest, 3a, 3b, 3b-historic, 3b-new, 3c, id-only, 4.4a, 4.4b, blog, random or cycle.",
            metavar="WORD",
            rich_help_panel=SHAPES,
        ),
    ] = None,
    feed_shape: Annotated[
        str | None, typer.Option(help="The same, for feed alone.", metavar="WORD", rich_help_panel=SHAPES)
    ] = None,
    tasks_shape: Annotated[
        str | None, typer.Option(help="The same, for tasks/{id} alone.", metavar="WORD", rich_help_panel=SHAPES)
    ] = None,
    asset_base: Annotated[
        str | None, typer.Option(help="Base of the result URLs.", metavar="URL", rich_help_panel=SHAPES)
    ] = None,
    config: ConfigOption = None,
) -> None:
    r"""Play the upstream: all its routes, no cost; misbehave as told.

    Point a receiver at it by RECEIVER_UPSTREAM__BASE_URL. Any task can ask for its own play in its prompt:
    "a cat \[emulator: fail; callback=missing]". What a real upstream would have refused is told at the end.

    Example:
      receiver emulator --port 9000 --seed 7 --callback missing
      receiver emulator --chance lookup=500:0.05 --render 30
    """
    said = dict(locals())
    changes = {name: said[name] for name in said.keys() - {"port", "host", "key", "chance", "config"}}
    changes = {name: value for name, value in changes.items() if value is not None}
    if key:
        changes["keys"] = key
    if chance:
        changes["chances"] = dict([_chance(text) for text in chance])
    _run(_options(changes), host, port)


def _chance(text: str) -> tuple[str, float]:
    word, colon, probability = text.rpartition(":")
    try:
        if colon:
            return word, float(probability)
    except ValueError:
        pass
    raise typer.BadParameter(
        f"{text!r}: a word and a probability are wanted, such as callback=missing:0.1", param_hint="--chance"
    )


def _options(changes: dict[str, Any]) -> EmulatorOptions:
    from receiver.emulator import EmulatorOptions
    from receiver.emulator.script import changed

    try:
        return changed(EmulatorOptions(), changes)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _run(options: EmulatorOptions, host: str, port: int) -> None:
    import asyncio

    try:
        asyncio.run(_serve(options, host, port))
    except OSError as error:
        raise output.Failed(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
        ) from None


async def _serve(options: EmulatorOptions, host: str, port: int) -> None:
    from receiver.cli.signals import stopped
    from receiver.emulator import running

    async with running(options, host=host, port=port) as it, stopped() as stop:
        output.say("The emulated upstream listens on ", output.styled(it.base_url, "bold"))
        output.hint(f"Point a receiver at it: RECEIVER_UPSTREAM__BASE_URL={it.base_url} receiver serve")
        output.hint("Ctrl-C ends it.")
        await stop.wait()
        _sum_up(it)


def _sum_up(it: RunningEmulator) -> None:
    """What a real upstream would have said to this client."""
    notes = it.emulator.report()
    output.say(f"{notes['tasks']} tasks, {notes['callbacks']['sent']} callbacks, {notes['refused_count']} refusals")
    for item in notes["refused"][-10:]:
        output.say(f"  refused  {item['route']}: {item['status']} {item['code']}: {output.short(item['reason'], 120)}")
    for code, count in notes["warned"].items():
        output.say(f"  taken, though a real upstream might not: {code}, {count} times")
    if notes["repeated"]:  # told without the URLs, for they hold callback tokens
        output.say(f"  paid for more than once: {len(notes['repeated'])} callback URLs")
