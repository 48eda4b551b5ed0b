"""docs/client.md: its examples run, against a real service, just as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from receiver.client import Client
from receiver.client.outbox import Outbox
from receiver.client.tasks import Tasks
from tests.cli_world import API_KEY
from tests.outbox_world import SECRET, destination, outbox, sink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.outbox_world import Outbox as Running

PAGE = (Path(__file__).parent.parent / "docs" / "client.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
AWAITED = re.findall(r"^```python\n(import asyncio.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One service, with a destination that gets everything."""
    with sink() as made:
        more = destination("all", made.url).replace('match = { "metadata.to" = "all" }', "")
        with outbox(tmp_path_factory.mktemp("docs"), made, more=more) as running:
            yield running


def run(at: Running, example: str, **names: Any) -> dict[str, Any]:
    """Run an example as it stands, but for the address of the service; the names it leaves behind."""
    # The secrets on the page are none: that none of them can be taken for one is as it should be.
    code = example.replace("http://127.0.0.1:8000", at.url).replace("whsec_…the old one", SECRET)
    scope = {"key": API_KEY, **names}
    exec(compile(code.replace("whsec_…the new one", SECRET), "docs/client.md", "exec"), scope)
    return scope


def test_every_example_is_run() -> None:
    """One a section, and the one that is awaited: no other stands on the page."""
    assert list(EXAMPLES) == ["Submit and wait", "When it goes wrong", "Follow the events", "Verify a webhook"]
    assert len(AWAITED) == 1
    assert PAGE.count("```python") == len(EXAMPLES) + len(AWAITED)


def test_every_method_is_on_the_page() -> None:
    """A new method has its place in the table, and the table names none that is gone."""
    there = {name for part in (Tasks, Outbox) for name in vars(part) if not name.startswith("_")}
    rows = re.findall(r"^\| (?:tasks|deliveries|replays|destinations|events) \| `([^`]+)` \|$", PAGE, re.MULTILINE)
    assert {name for row in rows for name in row.split()} == there


def test_submit_and_wait(at: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints the end and the URL; run again, its key gets the same task."""
    task = run(at, EXAMPLES["Submit and wait"])["task"]
    assert capsys.readouterr().out == f"succeeded {task['video_url']}\n"
    assert run(at, EXAMPLES["Submit and wait"])["task"]["id"] == task["id"]


def test_the_one_that_is_awaited(at: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """Three tasks at once."""
    run(at, AWAITED[0])
    assert capsys.readouterr().out == "succeeded\n" * 3


def test_when_it_goes_wrong(at: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """The problem's status, kind, words and places."""
    with at.client() as receiver:
        run(at, EXAMPLES["When it goes wrong"], receiver=receiver)
        printed = capsys.readouterr().out
        assert printed.startswith("422 invalid-input input lacks video\n")
        assert "/input/video" in printed
    with Client("http://127.0.0.1:1") as receiver:
        run(at, EXAMPLES["When it goes wrong"], receiver=receiver)
    assert capsys.readouterr().out == "was it sent? False\n"


def test_follow_the_events(at: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints each, and its cursor goes on; ended here by what stands in the loop's place for ever."""
    task_id = at.task("nobody")
    with at.client() as receiver:
        end = receiver.events(follow=False)
        count = len(list(end))
        example = EXAMPLES["Follow the events"].replace("patience=math.inf", "follow=False")
        scope = run(at, example, receiver=receiver, cursor=None)
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), scope["cursor"]) == (count, end.cursor)
    assert f"task.succeeded {task_id}" in lines


def test_verify_a_webhook(at: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """What really arrived is taken, a changed body is not."""
    task_id = at.delivery("nobody")["task_id"]
    [arrival] = [one for one in at.sink.at("/all") if task_id.encode() in one.body]
    hook = run(at, EXAMPLES["Verify a webhook"])["hook"]
    assert hook(arrival.headers, arrival.body) == (204, "")
    assert capsys.readouterr().out.startswith(f"{arrival.id} https://")
    status, words = hook(arrival.headers, arrival.body + b" ")
    assert (status, "none of the secrets" in words) == (400, True)
