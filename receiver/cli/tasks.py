"""`receiver tasks …`: look at the tasks of a running service, and decide by hand where it cannot."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from receiver.cli import listing, output, way
from receiver.cli.clock import now
from receiver.cli.options import (
    ConfigOption,
    CursorOption,
    JsonOption,
    LimitOption,
    TaskArgument,
    UrlOption,
    connect,
)

WIDE = 120
"""Columns from which on a list has room for words."""

app = typer.Typer(no_args_is_help=True, help="Look at tasks, and decide by hand where the service cannot.")


@app.command("list")
def list_tasks(
    *,
    state: Annotated[
        list[str] | None, typer.Option(help="Only in this state (repeatable, or joined by commas).", show_default=False)
    ] = None,
    route: Annotated[str | None, typer.Option(help="Only of this route.", show_default=False)] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Only created since: 2h, 7d, or a time in ISO 8601.", metavar="WHEN", show_default=False),
    ] = None,
    limit: LimitOption = 50,
    cursor: CursorOption = None,
    json: JsonOption = False,
    url: UrlOption = None,
    config: ConfigOption = None,
) -> None:
    """List tasks, newest first.

    Example:
      receiver tasks list --state failed,lost --since 24h
      receiver tasks list --limit 500 --json
    """
    with connect(config, url) as client:
        found = listing.gather(
            lambda size, at: client.page(state=state or (), route=route, since=since, limit=size, cursor=at),
            limit,
            cursor,
        )
    nothing = "No tasks." if not (state or route or since) else "No such tasks."
    listing.show(found, _show_table, limit=limit, nothing=nothing, json=json)


def _show_table(tasks: list[dict[str, Any]]) -> None:
    at, is_wide = now(), output.out().width >= WIDE
    table = output.table("ID", "STATE", "%", "AGE", "ROUTE", *(["FAILURE OR PROMPT"] if is_wide else []))
    for task in tasks:
        table.add_row(
            output.styled(task["id"], ""),
            output.state(task["state"]),
            "" if task["progress"] is None else str(task["progress"]),
            way.age(task["created_at"], at),
            output.clean(task["route"]),
            *([output.clean(way.note(task))] if is_wide else []),
        )
    output.out().print(table)


@app.command()
def show(
    task_id: TaskArgument,
    *,
    timeline: Annotated[bool, typer.Option("--timeline", help="With --json: its way instead of the task.")] = False,
    json: JsonOption = False,
    url: UrlOption = None,
    config: ConfigOption = None,
) -> None:
    """Show a task and its way: submitted, callbacks and polls, events, deliveries.

    Example:
      receiver tasks show tsk_01jd3v8f0000000000000000ab
      receiver tasks show tsk_01jd3v8f0000000000000000ab --json
    """
    with connect(config, url) as client:
        task = client.task(task_id)
        if json and not timeline:
            output.document(task)
            return
        items = client.timeline(task_id)
    if json:
        output.document(items)
        return
    way.show_task(task, now=now())
    output.say("  its way:")
    way.show_way(way.steps(task, items), indent=4)


@app.command()
def refresh(
    task_id: TaskArgument, *, json: JsonOption = False, url: UrlOption = None, config: ConfigOption = None
) -> None:
    """Have the upstream asked about a task now, instead of when it is due.

    Example:
      receiver tasks refresh tsk_01jd3v8f0000000000000000ab
    """
    with connect(config, url) as client:
        task = client.refresh(task_id)
    if json:
        output.document(task)
        return
    way.show_task(task, now=now())


@app.command()
def cancel(
    task_id: TaskArgument, *, json: JsonOption = False, url: UrlOption = None, config: ConfigOption = None
) -> None:
    """Stop tracking a task. The upstream has no way to cancel: it may render, and charge, all the same.

    Example:
      receiver tasks cancel tsk_01jd3v8f0000000000000000ab
    """
    with connect(config, url) as client:
        task = client.cancel(task_id)
    if json:
        output.document(task)
        return
    output.say(
        task["id"], " is ", output.state(task["state"]), ": it is not tracked any more, and task.cancelled goes out"
    )


@app.command()
def adopt(
    task_id: TaskArgument,
    upstream_id: Annotated[str, typer.Argument(help="The upstream's own id of it.", show_default=False)],
    *,
    json: JsonOption = False,
    url: UrlOption = None,
    config: ConfigOption = None,
) -> None:
    """Give an ambiguous or lost task its upstream id by hand; the upstream is then asked about it.

    Example:
      receiver tasks adopt tsk_01jd3v8f0000000000000000ab 196642a0-05e1-441a-981e-eb0c1f5d983b
    """
    with connect(config, url) as client:
        task = client.adopt(task_id, upstream_id)
    if json:
        output.document(task)
        return
    output.say(task["id"], " is ", output.state(task["state"]), f": the upstream calls it {task['upstream_id']}")
