"""`receiver demo`: seven tasks from submission to delivered, on this machine alone, each with its way.

What is shown comes from the API's timeline and from what the sink itself saw; the demo adds only words.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from receiver.cli import output, way
from receiver.cli.options import ConfigOption  # noqa: TC001 -- typer reads it

if TYPE_CHECKING:
    from receiver.cli.sink import Arrival, Sink
    from receiver.cli.stage import Stage
    from receiver.client import Client

PRO, VIDEO, IMAGE = "runway/pro/video2video", "runwayml/v1/video_to_video", "runwayml/v1/image_to_video"
END_FOR: Final = 25.0
"""Seconds until all seven must have ended; a few are enough."""
LOOK_FOR: Final = 0.03
INTERRUPTED: Final = 130


@dataclass(frozen=True)
class Play:
    """One task of the demo, and how it has to end.

    Attributes:
        words: the emulator's directive, without its brackets.
        state, via: how it has to end.
    """

    title: str
    route: str
    words: str
    state: str
    via: str

    @property
    def input(self) -> dict[str, Any]:
        """The upstream's own body, but for what is filled in."""
        prompt = f"a cat in the rain [emulator: {self.words}]"
        match self.route:
            case "runway/pro/video2video":
                return {"video": "https://example.com/in.mp4", "prompt": prompt}
            case "runwayml/v1/video_to_video":
                return {"videoUri": "https://example.com/in.mp4", "promptText": prompt}
            case _:
                return {"promptImage": "https://example.com/in.png", "promptText": prompt}


PLAYS: Final = (
    Play("it succeeds, and its callback says so", PRO, "succeed; render=0.6", "succeeded", "callback"),
    Play(
        "it succeeds, but its callback never comes: polling finds it",
        PRO,
        "succeed; render=0.6; callback=missing",
        "succeeded",
        "poll",
    ),
    Play(
        "it fails, and its callback says why",
        PRO,
        "fail; render=0.8; reason=The input video could not be decoded",
        "failed",
        "callback",
    ),
    Play("it succeeds; this route has no callbacks", VIDEO, "succeed; render=0.9", "succeeded", "poll"),
    Play("it fails", VIDEO, "fail; render=0.9; reason=The prompt was refused by moderation", "failed", "poll"),
    Play("it succeeds; this route has no callbacks", IMAGE, "succeed; render=0.9", "succeeded", "poll"),
    Play("it fails", IMAGE, "fail; render=0.9; reason=The image is too small", "failed", "poll"),
)


def demo(
    *,
    once: Annotated[
        bool, typer.Option("--once", help="End when the seven are done: 0 if all went as it should, else 1.")
    ] = False,
    port: Annotated[int, typer.Option(help="The receiver's port; 0 for a free one.", min=0, max=65535)] = 0,
    config: ConfigOption = None,  # noqa: ARG001 -- every command takes it; the demo writes its own
) -> None:
    """See it work: no key, no config, no network, no cost.

    Starts an emulated upstream, the receiver and a sink that plays your application, submits seven tasks, and shows
    the way of each. Then it stays up for you to try things, until Ctrl-C.

    Example:
      receiver demo
      receiver demo --once
    """
    raise typer.Exit(asyncio.run(_demo(once=once, port=port)))


async def _demo(*, once: bool, port: int) -> int:
    from receiver.cli.signals import stopped
    from receiver.cli.stage import stage

    began = time.monotonic()
    async with stage(port) as up, stopped() as stop:
        _introduce(up)
        story, halt = asyncio.create_task(_story(up, began)), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({story, halt}, return_when=asyncio.FIRST_COMPLETED)
            if not story.done():
                return INTERRUPTED
            problems = story.result()
            if problems:
                _complain(up, problems)
            if not once:
                _invite(up)
                await halt
            return output.FAILED if problems else output.DONE
        finally:
            story.cancel()
            halt.cancel()
            await asyncio.wait({story, halt})


def _introduce(up: Stage) -> None:
    output.say(output.styled("receiver demo", "bold"), ": all on this machine, no key, no cost")
    output.rows([
        ("upstream", up.emulator_url, "emulated: plays the video API"),
        ("receiver", up.receiver_url, "this program, on a SQLite file"),
        ("sink", up.sink_url, "plays your application, and checks every signature"),
    ])  # fmt: skip
    output.say(f"  log       {up.log_path}")


async def _story(up: Stage, began: float) -> list[str]:
    """Submit the seven, show the way of each when it has ended; what did not go as it should, in words."""
    from receiver.client import Client

    with Client(up.receiver_url, up.api_key) as client:
        ids = []
        for play in PLAYS:
            task = await asyncio.to_thread(client.submit, play.route, play.input, metadata={"demo": play.title})
            ids.append(task["id"])
        output.say(f"\n{len(ids)} tasks are submitted. The way of each:")
        problems = []
        ends = time.monotonic() + END_FOR
        for number, (play, task_id) in enumerate(zip(PLAYS, ids, strict=True), 1):
            task, timeline = await asyncio.to_thread(_ended, client, task_id, ends)
            wrong = _check(play, task, timeline, up.sink)
            _show(number, task, timeline, up.sink, wrong)
            problems += [f"task {number} ({task_id}): {flaw}" for flaw in wrong]
    took = time.monotonic() - began
    if not problems:
        output.say(
            output.styled("\nAll 7 tasks ended as they should", "green"),
            f"; all {len(up.sink.arrivals)} deliveries arrived, each with a good signature. {took:.1f} s",
        )
    return problems


def _ended(client: Client, task_id: str, ends: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The task and its way, once it is terminal and its deliveries have ended, or when the time is over."""
    task = client.wait(task_id, timeout=max(0.1, ends - time.monotonic()))
    while True:
        timeline = client.timeline(task_id)
        open_ = [item for item in timeline if item["kind"] == "delivery" and item["state"] in {"pending", "leased"}]
        if not open_ or time.monotonic() >= ends:
            return task, timeline
        time.sleep(LOOK_FOR)


def _check(play: Play, task: dict[str, Any], timeline: list[dict[str, Any]], sink: Sink) -> list[str]:
    """What did not go as it should."""
    wrong = []
    if task["state"] != play.state:
        wrong.append(f"it is {task['state']}, and should be {play.state}")
    elif task["via"] != play.via:
        wrong.append(f"its end was learnt by {task['via']}, and should have been by {play.via}")
    events = [item for item in timeline if item["kind"] == "event"]
    if [item["type"] for item in events] != [f"task.{play.state}"]:
        wrong.append(f"its events are {[item['type'] for item in events]}, and should be one task.{play.state}")
    deliveries = [item for item in timeline if item["kind"] == "delivery"]
    if [item["state"] for item in deliveries] != ["delivered"]:
        wrong.append(f"its deliveries are {[item['state'] for item in deliveries]}, and should be one, delivered")
    for event in events:
        arrived = sink.of(event["event_id"])
        if len(arrived) != 1:
            wrong.append(f"the sink saw {event['event_id']} {len(arrived)} times")
        wrong += [f"the sink does not trust {event['event_id']}: {one.flaw}" for one in arrived if one.flaw]
    return wrong


def _show(number: int, task: dict[str, Any], timeline: list[dict[str, Any]], sink: Sink, wrong: list[str]) -> None:
    notes = {
        arrival.event_id: f"signature refused ({arrival.flaw})" if arrival.flaw else "signature verified"
        for arrival in sink.arrivals
    }
    output.say(f"\n{number}. ", output.styled(task["route"], "bold"), f": {task['metadata']['demo']}")
    output.say("   ", output.styled(task["id"], "dim"))
    way.show_way(way.steps(task, timeline, notes), indent=3)
    for flaw in wrong:
        output.say("   not as it should be: ", flaw, style="red")


def _complain(up: Stage, problems: list[str]) -> None:
    output.say(output.styled("\nerror: ", "bold red"), "not everything went as it should:", console=output.err())
    for problem in problems:
        output.say("  ", problem, console=output.err())
    lines = up.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    output.say("The last lines of the receiver's log:", console=output.err())
    for line in lines[-10:]:
        output.say("  ", line, console=output.err())


def _invite(up: Stage) -> None:
    """What to try while it stays up; from here on the sink tells of each arrival."""
    key, url, config = up.api_key, up.receiver_url, up.config_path

    def tell(arrival: Arrival) -> None:
        if arrival.flaw:
            output.say(f"  sink: a webhook without a good signature ({arrival.flaw})", style="red")
        else:
            output.say(f"  sink: {arrival.type} of {arrival.task_id}, signature verified")

    output.say(output.styled("\nIt stays up for you to try things; Ctrl-C ends it and throws its data away.", "bold"))
    output.say("\nSubmit another task, and look at what there is; the API key is ", output.styled(key, "bold"), "\n")
    body = '{"route": "runway/pro/video2video", "input": {"video": "https://example.com/in.mp4", "prompt": "a dog"}}'
    output.say(f"  curl -s {url}/api/v1/tasks -H 'Authorization: Bearer {key}' \\")
    output.say(f"       -H 'Content-Type: application/json' -d '{body}'")
    output.say(f"  curl -s {url}/api/v1/tasks -H 'Authorization: Bearer {key}'")
    output.say(f"  curl -s {url}/readyz")
    output.say("\nThe same, and more, by command in another terminal:\n")
    output.say(f"  export RECEIVER_CONFIG={config}")
    output.say("  receiver tasks list")
    output.say('  receiver submit runway/pro/video2video --video https://example.com/in.mp4 --prompt "a dog" --wait')
    for kind, what in (("late", "a callback that comes too late"), ("malformed", "one that makes no sense")):
        output.say(f"  receiver trigger {kind:<10} ", output.styled(f"# {what}", "dim"))
    output.say("\nWhat arrives at the sink:")
    up.sink.listener = tell
