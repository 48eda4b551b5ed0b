"""The demo, as a reader runs it: a real process, nothing configured."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from receiver.cli.sink import Sink
from tests.cli_world import receiver, up

PRO, VIDEO, IMAGE = "runway/pro/video2video", "runwayml/v1/video_to_video", "runwayml/v1/image_to_video"
WAYS = [
    (PRO, "task.succeeded", "callback"),
    (PRO, "task.succeeded", "poll"),
    (PRO, "task.failed", "callback"),
    (VIDEO, "task.succeeded", "poll"),
    (VIDEO, "task.failed", "poll"),
    (IMAGE, "task.succeeded", "poll"),
    (IMAGE, "task.failed", "poll"),
]


def chapters(text: str) -> list[str]:
    """What the demo tells of each task."""
    return re.split(r"(?m)^\d\. ", text)[1:]


def test_once_shows_the_way_of_seven_tasks_and_ends_with_0(tmp_path: Path) -> None:
    """`demo --once`: each task with its route, its observation, its event and a verified delivery; 0, in under 30 s."""
    began = time.monotonic()
    ended = receiver("demo", "--once", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert time.monotonic() - began < 30
    told = chapters(ended.stdout)
    assert len(told) == len(WAYS)
    for chapter, (route, event, via) in zip(told, WAYS, strict=True):
        assert chapter.startswith(route)
        assert re.search(r"tsk_[0-9a-z]{26}", chapter)
        steps = [line.split()[2] for line in chapter.splitlines() if line.strip().startswith("+")]
        assert steps[0] == "submitted"
        assert [step for step in steps if step in {"callback", "event", "delivery"}][-2:] == ["event", "delivery"]
        assert ("callback" in steps) == (via == "callback")
        assert re.search(rf"{via}.*{event.removeprefix('task.')}: believed", chapter)
        assert event in chapter
        assert re.search(r"attempt 1, HTTP 204 in \d+ ms, signature verified", chapter)
    assert "All 7 tasks ended as they should" in ended.stdout
    assert "\x1b" not in ended.stdout


def test_it_needs_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    """A config that is broken, proxies and keys in the environment do not matter; no file is left, here or in /tmp."""
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    (tmp_path / "config.toml").write_text("this is no config")
    env = {
        "TMPDIR": str(tmp),
        "RECEIVER_SERVER__PORT": "nonsense",
        "RECEIVER_CONFIG": "nowhere.toml",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "ALL_PROXY": "http://127.0.0.1:9",
    }
    ended = receiver("demo", "--once", cwd=tmp_path, env=env)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert list(tmp.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "tmp"]


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    """`--port` of somebody else: 1, in words, and nothing is left."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ended = receiver(
            "demo", "--once", "--port", str(other.getsockname()[1]), cwd=tmp_path, env={"TMPDIR": str(tmp_path)}
        )
    assert ended.returncode == 1
    assert "choose another --port" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_without_once_it_stays_up_for_the_reader(tmp_path: Path, number: signal.Signals) -> None:
    """What it prints works: the key and URL in curl's line, the config for other commands; a signal ends it cleanly."""
    with up("demo", cwd=tmp_path, env={"TMPDIR": str(tmp_path)}) as demo:
        config = demo.line(r"export RECEIVER_CONFIG=(\S+)")[1]
        url = demo.line(r"curl -s (\S+)/api/v1/tasks -H 'Authorization: Bearer")[1]
        key = demo.line(r"Authorization: Bearer (\S+)'$")[1]
        with_key = {"authorization": f"Bearer {key}"}
        listed = httpx.get(f"{url}/api/v1/tasks", headers=with_key, trust_env=False).json()["data"]
        assert len(listed) == 7
        shown = receiver("tasks", "list", "--json", cwd=tmp_path, env={"RECEIVER_CONFIG": config})
        assert [task["id"] for task in json.loads(shown.stdout)["data"]] == [task["id"] for task in listed]
        if number is signal.SIGINT:
            late = receiver("trigger", "late", cwd=tmp_path, env={"RECEIVER_CONFIG": config})
            assert late.returncode == 0, late.stderr
            demo.line(r"sink: task.succeeded of tsk_\w+, signature verified")
        assert Path(config).stat().st_mode & 0o777 == 0o600
        assert demo.end(number) == 0
    assert demo.err == []
    assert list(tmp_path.iterdir()) == []


def test_a_knock_at_the_sink_is_no_webhook() -> None:
    """`receiver doctor` asks by HEAD whether somebody is there: nothing arrives by it, nothing is told."""
    sink, sent = Sink("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), list[Any]()
    sink.listener = sent.append

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(sink({"type": "http", "method": "HEAD", "headers": []}, receive, send))
    assert [message.get("status") for message in sent] == [405, None]
    assert sink.arrivals == []
