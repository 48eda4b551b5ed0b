"""`receiver trigger`: have the emulator behind a service play one situation, and see what the service makes of it.

It submits a task, so behind the real upstream it would cost money: it asks first, and refuses unless the config at hand
names an upstream on this machine that answers as the emulator does, and the service is the one of that config.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from receiver.cli import output, way
from receiver.cli.options import ConfigOption, JsonOption, UrlOption, connect, load, same_place, service_url

if TYPE_CHECKING:
    from receiver.client import Client
    from receiver.config import Config

ROUTE: Final = "runway/pro/video2video"
VIDEO: Final = "https://example.com/in.mp4"
SETTLE_FOR: Final = 15.0
"""Seconds after the end for what comes after it: the late callback, the second one, the deliveries."""
LOOK_FOR: Final = 0.1
LONG_FOR: Final = 5.0
"""Seconds that want an explanation."""


class Situation(StrEnum):
    """What can be played."""

    succeeded = "succeeded"
    failed = "failed"
    late = "late"
    duplicate = "duplicate"
    malformed = "malformed"
    missing = "missing"


@dataclass(frozen=True)
class Script:
    """How a situation is played, and what it has to come to.

    Attributes:
        words: the emulator's directive.
        title: what will happen.
        state, via: how the task has to end; `via` "" for either.
        verdicts: what the service has to have said of callbacks, any one of them; empty for nothing in particular.
    """

    words: str
    title: str
    state: str = "succeeded"
    via: str = ""
    verdicts: tuple[str, ...] = ()


SCRIPTS: Final = {
    Situation.succeeded: Script("succeed; render=1", "a task that succeeds", "succeeded", "callback", ("accepted",)),
    Situation.failed: Script(
        "fail; render=1; reason=The input video could not be decoded",
        "a task that fails",
        "failed",
        "callback",
        ("accepted",),
    ),
    Situation.late: Script(
        "succeed; render=1; callback=late",
        "a callback that comes after a lookup has shown the end",
        via="poll",
        verdicts=("late",),
    ),
    Situation.duplicate: Script(
        "succeed; render=1; callback=doubled",
        "a callback that comes twice",
        via="callback",
        verdicts=("duplicate", "late"),
    ),
    Situation.malformed: Script(
        "succeed; render=1; callback=malformed", "a callback that makes no sense", via="poll", verdicts=("unreadable",)
    ),
    Situation.missing: Script("succeed; render=1; callback=missing", "a callback that never comes", via="poll"),
}


def trigger(
    situation: Annotated[Situation, typer.Argument(help="What is to happen.", show_default=False)],
    *,
    json: JsonOption = False,
    url: UrlOption = None,
    config: ConfigOption = None,
) -> None:
    """Have the emulator play a situation, and see what the service makes of it.

    The service's upstream must be the emulator (`receiver emulator`, or `receiver demo` without --once): with the real
    one it would cost money, so this refuses.

    Example:
      receiver trigger late
      receiver trigger missing --config /tmp/receiver-demo-x/config.toml
    """
    from receiver.emulator.script import directive_in

    script, settings = SCRIPTS[situation], load(config)
    _refuse_the_real_one(settings, url)
    prompt = f"receiver trigger {situation.value} [emulator: {script.words}]"
    directive_in(prompt)
    with connect(config, url) as client:
        task = client.submit(ROUTE, {"video": VIDEO, "prompt": prompt}, metadata={"trigger": situation.value})
        if not json:
            _announce(script, settings, task)
        task = client.wait(task["id"], patience=10)
        items = _settled(client, task["id"], script)
    wrong = _wrong(script, settings, task, items)
    if json:
        output.document({"task": task, "timeline": items, "problems": wrong})
    else:
        way.show_way(way.steps(task, items))
    if wrong:
        raise output.Failed("; ".join(wrong))


def _announce(script: Script, settings: Config, task: dict[str, Any]) -> None:
    output.say(output.styled(task["id"], "bold"), f": {script.title}")
    grace = settings.polling.callback_grace.total_seconds()
    if script.via == "poll" and "malformed" not in script.words and grace > LONG_FOR:
        output.hint(
            f"The first lookup is due {grace:g} s after the submission (polling.callback_grace); "
            f"at once with: receiver tasks refresh {task['id']}"
        )


# -- is it the emulator? -------------------------------------------------------------------------------------------


def _refuse_the_real_one(settings: Config, url: str | None) -> None:
    """Make sure that nobody pays for this.

    Raises:
        Failed: the upstream is not on this machine, or no emulator, or the service may be another one's.
    """
    import os

    base = settings.upstream.base_url
    host = urlsplit(base).hostname or ""
    if not _is_loopback(host):
        raise output.Failed(
            f"this would cost money: upstream.base_url is {base}, not an emulator on this machine. "
            "Start one (`receiver emulator`), and the service with RECEIVER_UPSTREAM__BASE_URL pointing at it; "
            "or try `receiver demo`"
        )
    where = url or os.environ.get("RECEIVER_URL")
    own = service_url(settings)
    if where is not None and not same_place(where, own):
        raise output.Failed(
            f"nothing here tells what upstream the service at {where} talks to, and with the real one this would cost "
            f"money. Name its own config by --config; the one at hand is of {own}"
        )
    from receiver.client import is_emulator

    if not is_emulator(base):
        raise output.Failed(
            f"nothing at {base} (upstream.base_url) answers as the emulator does: start it (`receiver emulator`)"
        )


def _is_loopback(host: str) -> bool:
    import ipaddress

    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# -- what came of it -----------------------------------------------------------------------------------------------


def _verdicts(items: list[dict[str, Any]]) -> set[str]:
    return {item["verdict"] for item in items if item["kind"] == "observation"}


def _settled(client: Client, task_id: str, script: Script) -> list[dict[str, Any]]:
    """The way, once what is to come after the end has come and the first attempts are made, or the time is over."""
    ends = time.monotonic() + SETTLE_FOR
    while True:
        items = client.timeline(task_id)
        untried = [i for i in items if i["kind"] == "delivery" and i["attempt_count"] == 0]
        is_heard = not script.verdicts or not _verdicts(items).isdisjoint(script.verdicts)
        if (is_heard and not untried) or time.monotonic() >= ends:
            return items
        time.sleep(LOOK_FOR)


def _wrong(script: Script, settings: Config, task: dict[str, Any], items: list[dict[str, Any]]) -> list[str]:
    """What did not go as it should, in words."""
    wrong = []
    if task["state"] != script.state:
        wrong.append(f"the task is {task['state']}, and should be {script.state}")
    if script.via and task["via"] != script.via:
        wrong.append(f"its end was learnt by {task['via']}, and should have been by {script.via}")
    if script.verdicts and _verdicts(items).isdisjoint(script.verdicts):
        wrong.append(f"no callback was recorded as {' or '.join(script.verdicts)}")
    if wrong and settings.server.public_url is None:
        wrong.append("server.public_url is not set, so no callback reaches this service")
    return wrong
