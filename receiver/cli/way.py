"""A task and its way as a reader sees them: submitted, callback or poll, event, deliveries. Pure, but for the printing.

The data is that of the API's timeline; nothing is added to it but words.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from receiver.cli.output import rows, say, short, state, styled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from rich.text import Text

Document = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One line of a way.

    Attributes:
        at: when it began.
        name: what it is, in one word.
        words: what there is to say of it.
        style: of the name.
        times: how often the same happened in a row.
    """

    at: datetime
    name: str
    words: str
    style: str = ""
    times: int = 1


_STYLES = {"accepted": "green", "odd": "yellow", "unreadable": "yellow", "late": "dim", "duplicate": "dim"}
_VERDICTS = {
    "accepted": "says {}: believed",
    "duplicate": "the same again: noted, nothing changes",
    "late": "too late, nothing changes: {}",
    "progress": "{}",
    "odd": "odd, so the upstream is asked: {}",
    "unreadable": "makes no sense, so the upstream is asked: {}",
}
_UNSENT = {
    "pending": "stored; not sent yet",
    "submitting": "stored; being sent",
    "ambiguous": "sent, and no answer tells whether it was taken",
    "lost": "sent, and no answer told whether it was taken",
}
"""What there is to say of a submission without an upstream id, by the task's state."""


def steps(task: Document, timeline: Sequence[Document], notes: Mapping[str, str] | None = None) -> list[Step]:
    """The way of a task; what is the same several times in a row is one step. `notes`: by event id, to its attempts."""
    tried = {item["delivery_id"] for item in timeline if item["kind"] == "attempt"}
    events = {item["delivery_id"]: item["event_id"] for item in timeline if item["kind"] == "delivery"}
    found: list[Step] = []
    for item in timeline:
        if item["kind"] == "delivery" and item["delivery_id"] in tried:
            continue  # its attempts tell more
        note = (notes or {}).get(events.get(item.get("delivery_id", ""), ""), "")
        step = _step(task, item, note)
        last = found[-1] if found else None
        if last is not None and item["kind"] == "poll" and (last.name, last.words) == (step.name, step.words):
            found[-1] = Step(last.at, last.name, last.words, last.style, last.times + 1)
        else:
            found.append(step)
    return found


def _step(task: Document, item: Document, note: str) -> Step:
    at, kind = _when(item["at"]), item["kind"]
    if kind == "submission":
        return Step(at, "submitted", _submission(task, item), "bold")
    if kind in {"observation", "poll"}:
        words = _VERDICTS.get(item["verdict"], "{}").format(item.get("detail") or "nothing new")
        if item["verdict"] == "accepted" and task["failure"]:
            words += f" ({short(task['failure'], 200)})"
        return Step(at, "callback" if kind == "observation" else "poll", words, _STYLES.get(item["verdict"], ""))
    if kind == "event":
        return Step(at, "event", f"{item['type']}  {item['event_id']}", "bold")
    if kind == "skip":
        return Step(at, "not sent", f"to {item['destination']}: {item['reason']}", "dim")
    if kind == "delivery":
        return Step(at, "delivery", f"to {item['destination']}: {item['state']}{_due(item)}", "yellow")
    style = "green" if item["result"] == "ok" else "red"
    return Step(at, "delivery", _tried(item) + (f", {note}" if note else ""), style)


def _submission(task: Document, item: Document) -> str:
    tries = item.get("submit_attempts") or 0
    again = f" (before that, not taken {tries} times)" if tries else ""
    if item.get("submitted_at") is not None:
        took = _ms(_when(item["submitted_at"]) - _when(item["at"]))
        return f"taken by the upstream after {took} as {item['upstream_id']}{again}"
    if task["state"] == "rejected":
        return f"refused by the upstream: {task['failure'] or task['msg'] or 'without a reason'}"
    return _UNSENT.get(task["state"], "stored; never sent") + again


def _due(item: Document) -> str:
    return f", due {moment(item['due_at'])}" if item.get("due_at") else ""


def heard(attempt: Document) -> str:
    """What an attempt came to: `HTTP 500 in 12 ms; tried again in 5 s`. A mail server's answer is `SMTP 250`."""
    status = attempt["response"]["status"] if attempt["response"] else None
    spoken = "SMTP" if attempt["request"]["url"].startswith("smtp") else "HTTP"
    words = f"{spoken} {status}" if status else "no answer"
    why = "" if attempt["result"] == "ok" else besides(attempt["reason"], status)
    return f"{words} in {attempt['duration_ms']} ms{why and '; '}{why}"


def besides(reason: str, status: int | None) -> str:
    """What a reason says besides the status, which a reader has read already."""
    return reason.removeprefix(f"it answered {status}").removeprefix(f"it replied {status}").lstrip(":;, ")


def _tried(item: Document) -> str:
    return f"to {item['destination']}: attempt {item['number']}, {heard(item)}"


def show_way(made: Sequence[Step], *, indent: int = 2) -> None:
    """Print the steps, each with its time from the first one."""
    lines: list[tuple[str | Text, ...]] = []
    for step in made:
        name = step.name + (f" x{step.times}" if step.times > 1 else "")
        lines.append((styled(f"+{span(step.at - made[0].at)}", "dim"), styled(name, step.style), step.words))
    rows(lines, indent=indent)


def show_task(task: Document, *, now: datetime) -> None:
    """Print a task: what it is, where it stands, what came of it."""
    say(styled(task["id"], "bold"), "  ", state(task["state"]), _percent(task))
    facts: list[tuple[str, Any]] = [
        ("route", task["route"]),
        ("upstream id", task["upstream_id"]),
        ("learnt by", task["via"]),
        ("video", task["video_url"]),
        ("poster", task["poster"]),
        ("last frame", task["last_frame"]),
        ("failure", task["failure"]),
        ("failure code", task["failure_code"]),
        ("upstream says", None if task["failure"] == task["msg"] else task["msg"]),
        ("metadata", ", ".join(f"{name}={value}" for name, value in task["metadata"].items())),
        ("created", f"{moment(task['created_at'])}, {age(task['created_at'], now)} ago"),
        ("finished", _took(task)),
    ]
    rows([(styled(name, "dim"), str(value)) for name, value in facts if value])


def _percent(task: Document) -> str:
    is_open = task["finished_at"] is None
    return f"  {task['progress']} %" if is_open and task["progress"] is not None else ""


def _took(task: Document) -> str | None:
    if task["finished_at"] is None:
        return None
    took = _when(task["finished_at"]) - _when(task["created_at"])
    return f"{moment(task['finished_at'])}, after {span(took)}"


def _when(text: str) -> datetime:
    return datetime.fromisoformat(text)


def moment(text: str) -> str:
    """A time of the API, to the second, in UTC."""
    return f"{text[:10]} {text[11:19]} UTC"


def age(text: str, now: datetime) -> str:
    """How long ago, roughly: `12 s`, `3 min`, `5 h`, `2 d`."""
    seconds = max(0, int((now - _when(text)).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def between(begin: str, end: str) -> str:
    """How long it was from one time of the API to another."""
    return span(_when(end) - _when(begin))


def span(length: timedelta) -> str:
    """How long, as exactly as it matters: `0.812 s`, `1 min 05 s`, `2 h 03 min`."""
    seconds = length.total_seconds()
    if seconds < 60:  # noqa: PLR2004 -- a minute
        return f"{seconds:.3f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:  # noqa: PLR2004 -- an hour
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def _ms(length: timedelta) -> str:
    return f"{round(length.total_seconds() * 1000)} ms" if length.total_seconds() < 1 else span(length)


def note(task: Document) -> str:
    """What a list says of a task in one line: its failure, else its prompt."""
    given = task["input"]
    prompt = given.get("prompt") or given.get("promptText") or ""
    return short(str(task["failure"] or prompt))
