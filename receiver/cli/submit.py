"""`receiver submit`: a task, or with `--from` many, through a running service; with `--dry-run` what it would send."""

from __future__ import annotations

import contextlib
import json as jsons
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from receiver.cli import output, way
from receiver.cli.options import ConfigOption, JsonOption, UrlOption, connect, connect_async, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from receiver.cli.jobs import JobFile
    from receiver.client import Client

MEMBERS: Final = {
    "runway/pro/video2video": ("video", "prompt"),
    "runwayml/v1/video_to_video": ("videoUri", "promptText"),
    "runwayml/v1/image_to_video": ("promptImage", "promptText"),
}
"""What `--video` and `--prompt` are called in each route's own body."""
PATIENCE_FOR: Final = 60.0
"""Seconds that `--wait` bears with a service that is away, restarting say."""
SENDERS: Final = 16
"""Lines of a file under way at once: enough for the store to commit them together."""


def submit(
    route: Annotated[
        str | None,
        typer.Argument(
            help=f"One of {', '.join(MEMBERS)}. With --from it is for the lines that name none.",
            metavar="ROUTE",
            show_default=False,
            autocompletion=lambda: list(MEMBERS),
        ),
    ] = None,
    *,
    video: Annotated[
        str | None, typer.Option("--video", "--image", help="What to start from: a URL, or a data URI.", metavar="URL")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What to make of it.", metavar="TEXT")] = None,
    given: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="The upstream's own body, as JSON, from a @file or from stdin (-); --video and --prompt go over it.",
            metavar="JSON|@FILE|-",
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="Kept with the task and sent with its events (repeatable).", metavar="K=V")
    ] = None,
    destination: Annotated[
        list[str] | None, typer.Option(help="Only this destination (repeatable); else all that match.", metavar="NAME")
    ] = None,
    callback_url: Annotated[
        str | None,
        typer.Option(
            "--callback-url", help="Gets this task's terminal event, as the upstream would send it.", metavar="URL"
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Submit many: a file with a JSON object a line, or stdin (-). "
            'Members: "route", "input", "metadata", "destinations", "callback_url", "idempotency_key". '
            "Run it again at any time: what was submitted is not submitted twice, as long as its tasks are kept.",
            metavar="JOBS.JSONL",
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option(help="With --from: a name that makes the same jobs new ones.", metavar="NAME")
    ] = "",
    senders: Annotated[
        int, typer.Option("--concurrency", help="With --from: lines under way at once.", min=1, max=256)
    ] = SENDERS,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it ends: 0 if it succeeded, else 1.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the request to the upstream; send nothing. Needs no service.")
    ] = False,
    json: JsonOption = False,
    url: UrlOption = None,
    config: ConfigOption = None,
) -> None:
    """Submit a task through a running service; with --from, thousands.

    Example:
      receiver submit runway/pro/video2video --video URL --prompt "a cat" --wait
      receiver submit runwayml/v1/image_to_video --image URL --metadata team=vfx
      receiver submit runway/pro/video2video --input @body.json --dry-run
      receiver submit --from jobs.jsonl
    """
    name, labels = None if route is None else _route(route), _labels(metadata or [])
    if source is not None:
        _alone({"--video": video, "--prompt": prompt, "--input": given, "--wait": wait or None})
        with _jobs(source, name, labels, destination, callback_url, batch) as jobs:
            _submit_all(jobs, config, url, senders, dry_run=dry_run, json=json)
        return
    if name is None:
        raise typer.BadParameter(f"it is missing; there are {', '.join(MEMBERS)}", param_hint="ROUTE")
    body = _input(name, given, video, prompt)
    if dry_run:
        _show_request(name, body, callback_url, config, json=json)
        return
    with connect(config, url) as client:
        task = _send(client, name, body, labels, destination, callback_url)
        if not json:
            _tell(task, wait=wait)
        if wait:
            task = _wait(client, task, quiet=json)
    if json:
        output.document(task)
    elif wait:
        _result(task)
    if wait and task["state"] != "succeeded":
        raise typer.Exit(output.FAILED)


# -- what was given ------------------------------------------------------------------------------------------------


def _route(text: str) -> str:
    name = text.strip("/")
    if name in MEMBERS:
        return name
    import difflib

    near = difflib.get_close_matches(name, MEMBERS, 1, 0.5)
    meant = f" (did you mean {near[0]}?)" if near else ""
    raise typer.BadParameter(f"there is no route {text!r}{meant}; there are {', '.join(MEMBERS)}", param_hint="ROUTE")


def _alone(options: dict[str, Any]) -> None:
    for option, value in options.items():
        if value is not None:
            raise typer.BadParameter("this is for one task; a file says it line by line", param_hint=option)


def _input(route: str, given: str | None, video: str | None, prompt: str | None) -> dict[str, Any]:
    body = {} if given is None else _parsed(given)
    for member, value in zip(MEMBERS[route], (video, prompt), strict=True):
        if value is not None:
            body[member] = value
    return body


def _parsed(given: str) -> dict[str, Any]:
    try:
        if given == "-":
            text = sys.stdin.read()
        elif given.startswith("@"):
            text = Path(given[1:]).read_text(encoding="utf-8")
        else:
            text = given
        body = jsons.loads(text)
    except OSError as error:
        raise typer.BadParameter(f"cannot read {given[1:]}: {error.strerror}", param_hint="--input") from None
    except ValueError as error:
        raise typer.BadParameter(f"this is not JSON: {error}", param_hint="--input") from None
    if not isinstance(body, dict):
        raise typer.BadParameter("a JSON object is wanted: the upstream's own body", param_hint="--input")
    return body


def _labels(given: list[str]) -> dict[str, str]:
    labels = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise typer.BadParameter(
                f"{text!r}: a name and a value are wanted, such as team=vfx", param_hint="--metadata"
            )
        labels[name] = value
    return labels


# -- without sending -----------------------------------------------------------------------------------------------


def _show_request(
    name: str, body: dict[str, Any], callback_url: str | None, config: Path | None, *, json: bool
) -> None:
    from receiver.cli import unsent
    from receiver.submit.asked import check_callback_url

    settings = load(config)
    if callback_url is not None:  # the upstream is never told of it: it is called back by the service
        check_callback_url(callback_url, allow_private=settings.security.allow_private_callbacks)
    unsent.show(unsent.request(settings, name, body), json=json)


# -- many ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _jobs(
    source: str,
    route: str | None,
    labels: dict[str, str],
    destinations: list[str] | None,
    callback_url: str | None,
    batch: str,
) -> Iterator[JobFile]:
    """The file, open; of stdin a copy, since it is read twice."""
    import shutil
    import tempfile

    from receiver.cli.jobs import Given, JobFile

    given = Given(route, labels, destinations, callback_url)
    if source == "-":
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            yield JobFile("stdin", copy, given, batch)
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(Path(source).open("rb"))
        except OSError as error:
            raise typer.BadParameter(f"cannot read {source}: {error.strerror}", param_hint="--from") from None
        yield JobFile(source, file, given, batch)


def _submit_all(
    jobs: JobFile, config: Path | None, url: str | None, senders: int, *, dry_run: bool, json: bool
) -> None:
    from receiver.cli import bulk, unsent

    mistakes = jobs.check()
    if mistakes:
        for mistake in mistakes:
            output.say(mistake, console=output.err())
        output.hint("Nothing was submitted.")
        raise typer.Exit(output.USAGE)
    if dry_run:
        settings = load(config)
        lines = (jobs.document(job) for job in jobs.jobs)
        unsent.show_all(unsent.request(settings, line["route"], line["input"]) for line in lines)
        return
    code = bulk.submit_all(connect_async(config, url), jobs, senders=senders, json=json)
    if code:
        raise typer.Exit(code)


# -- sending -------------------------------------------------------------------------------------------------------


def _send(
    client: Client,
    name: str,
    body: dict[str, Any],
    labels: dict[str, str],
    destinations: list[str] | None,
    callback_url: str | None,
) -> dict[str, Any]:
    from receiver.client import ApiProblem, Unreachable

    try:
        return client.submit(name, body, metadata=labels, destinations=destinations, callback_url=callback_url)
    except ApiProblem as error:
        if error.kind == "invalid-input":
            media, prompt = MEMBERS[name]
            error.add_note(f"Of this route --video sets {media}, --prompt sets {prompt}, and --input all there is.")
        raise
    except Unreachable as error:
        if error.sent:
            words = (
                f"{error}. The task may have been accepted: look by `receiver tasks list` before you submit it again"
            )
            raise Unreachable(words, sent=True) from error
        raise


def _tell(task: dict[str, Any], *, wait: bool) -> None:
    words = {
        "pending": "it is stored, and is sent when the upstream takes it",
        "ambiguous": "it was sent, and no answer tells whether it was taken; it is not sent again",
    }.get(task["state"], f"the upstream took it as {task['upstream_id']}")
    output.say(output.styled(task["id"], "bold"), "  ", output.state(task["state"]), f": {words}")
    if task["state"] == "ambiguous":
        output.hint(f"If the upstream's own records show its id: receiver tasks adopt {task['id']} UPSTREAM_ID")
    if not wait:
        output.hint(f"See how it goes: receiver tasks show {task['id']}")


def _wait(client: Client, task: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Wait to the end, showing where it stands: one live line on a terminal, a line for each change elsewhere."""
    console = output.err() if quiet else output.out()
    with _live(task) if console.is_terminal else _lines(quiet=quiet) as show:
        return client.wait(task["id"], patience=PATIENCE_FOR, seen=show)


def _live(task: dict[str, Any]) -> AbstractContextManager[Callable[[dict[str, Any]], None]]:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    @contextlib.contextmanager
    def live() -> Iterator[Callable[[dict[str, Any]], None]]:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
        with Progress(*columns, TimeElapsedColumn(), console=output.err(), transient=True) as progress:
            bar = progress.add_task(task["state"], total=None)

            def show(task: dict[str, Any]) -> None:
                known = task["progress"] is not None
                progress.update(
                    bar, description=task["state"], total=100 if known else None, completed=task["progress"] or 0
                )

            yield show

    return live()


def _lines(*, quiet: bool) -> AbstractContextManager[Callable[[dict[str, Any]], None]]:
    began, last = time.monotonic(), [""]

    def show(task: dict[str, Any]) -> None:
        percent = "" if task["progress"] is None else f" {task['progress']} %"
        words = f"{task['state']}{percent}"
        if words != last[0]:
            last[0] = words
            output.say(f"{time.monotonic() - began:7.1f} s  {words}", console=output.err() if quiet else None)

    return contextlib.nullcontext(show)


def _result(task: dict[str, Any]) -> None:
    took = way.between(task["created_at"], task["finished_at"])
    by = f", learnt by {task['via']}" if task["via"] else ""
    output.say(output.styled(task["id"], "bold"), "  ", output.state(task["state"]), f" after {took}{by}")
    if task["state"] != "succeeded":
        output.say("  ", task["failure"] or task["msg"] or "no reason was given", style="red")
    for name in ("video_url", "poster", "last_frame"):
        if task[name]:
            output.say(f"  {name.removesuffix('_url'):<10} {task[name]}")
