"""The commands that talk to a running service: real processes all, a service with the emulator behind it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from receiver.client import Client
from tests.cli_world import (
    API_KEY,
    UPSTREAM_KEY,
    World,
    environment,
    receiver,
    up,
    wait_until_ready,
    world,
    write_config,
)
from tests.ports import free_port, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

PRO, VIDEO, IMAGE = "runway/pro/video2video", "runwayml/v1/video_to_video", "runwayml/v1/image_to_video"
CLIP = "https://example.com/in.mp4"
NEVER = "1h"


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One service for all tests of this module; each submits tasks of its own.

    It asks about nothing that a callback may tell, however late: what is learnt by callback is the same every time.
    """
    with world(tmp_path_factory.mktemp("service"), grace=NEVER) as running:
        yield running


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Another one, which soon asks about what no callback tells."""
    with world(tmp_path_factory.mktemp("asking")) as running:
        yield running


def ask(at: World, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command beside the service's config."""
    return receiver(*arguments, cwd=at.folder, **more)


def submitted(at: World, prompt: str = "a cat", route: str = PRO, *more: str) -> dict[str, Any]:
    """Submit a task; the task."""
    ended = ask(at, "submit", route, "--video", CLIP, "--prompt", prompt, "--json", *more)
    assert ended.returncode == 0, ended.stderr
    task: dict[str, Any] = json.loads(ended.stdout)
    return task


# -- submit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "media", "prompt"),
    [(PRO, "video", "prompt"), (VIDEO, "videoUri", "promptText"), (IMAGE, "promptImage", "promptText")],
)
def test_video_and_prompt_go_into_the_routes_own_members(at: World, route: str, media: str, prompt: str) -> None:
    """`--video` and `--prompt` are what the route calls them; the upstream takes the task."""
    task = submitted(at, "a cat", route, "--metadata", "team=vfx", "--metadata", "shot=a=b")
    assert task["input"][media] == CLIP
    assert task["input"][prompt] == "a cat"
    assert task["upstream_id"]
    assert task["metadata"] == {"team": "vfx", "shot": "a=b"}


def test_submit_says_what_became_of_it_and_what_to_do_next(at: World) -> None:
    """Without --wait: the id, its state and the upstream's id on stdout; the next command as a hint on stderr."""
    ended = ask(at, "submit", PRO, "--video", CLIP, "--prompt", "a [emulator: never]")
    found = re.fullmatch(r"(tsk_\w+)  queued: the upstream took it as \S+\n", ended.stdout)
    assert found is not None, ended.stdout
    assert f"receiver tasks show {found[1]}" in ended.stderr
    assert ended.returncode == 0


@pytest.mark.parametrize("how", ["json", "file", "stdin"])
def test_the_input_comes_from_the_line_a_file_or_stdin(at: World, how: str) -> None:
    """`--input` is the upstream's own body; --prompt goes over it."""
    body = json.dumps({"video": CLIP, "prompt": "from the body", "options": {"seconds": 10}})
    (at.folder / "body.json").write_text(body)
    given = {"json": body, "file": "@body.json", "stdin": "-"}[how]
    ended = ask(at, "submit", PRO, "--input", given, "--prompt", "a dog", "--json", stdin=body)
    task = json.loads(ended.stdout)
    assert task["input"]["prompt"] == "a dog"
    assert task["input"]["options"] == {"seconds": 10, "structure_transformation": 0.5}


def test_a_callback_url_gets_the_tasks_end(at: World) -> None:
    """--callback-url becomes a delivery of this one task; one that nothing could be sent to is a matter of usage."""
    task = submitted(at, "a cat", PRO, "--callback-url", "http://user.invalid/done", "--wait")
    listed = ask(at, "deliveries", "list", "--task", task["id"], "--json")
    assert [one["destination"] for one in json.loads(listed.stdout)["data"]] == ["@callback"]
    bad = ask(at, "submit", PRO, "--video", CLIP, "--prompt", "x", "--callback-url", "http://127.0.0.1/x")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "callback_url" in bad.stderr


def test_wait_ends_with_0_only_for_a_success(at: World) -> None:
    """`--wait`: lines of state, then the result; 0 and the URL for a success, 1 and the reason for a failure."""
    good = ask(at, "submit", PRO, "--video", CLIP, "--prompt", "a cat", "--wait")
    assert good.returncode == 0, good.stderr
    assert re.search(r"tsk_\w+  succeeded after \S+ s, learnt by callback", good.stdout)
    assert re.search(r"video +https://\S+\.mp4", good.stdout)
    bad = ask(at, "submit", PRO, "--video", CLIP, "--prompt", "a [emulator: fail; reason=Too dark]", "--wait")
    assert bad.returncode == 1
    assert "Too dark" in bad.stdout
    assert "\x1b" not in good.stdout + bad.stdout


def test_wait_with_json_prints_the_ended_task_alone(at: World) -> None:
    """The ended task is one JSON document on stdout; the progress is on stderr."""
    ended = ask(at, "submit", PRO, "--video", CLIP, "--prompt", "a cat", "--wait", "--json")
    assert json.loads(ended.stdout)["state"] == "succeeded"
    assert "succeeded" in ended.stderr


def test_wait_on_a_terminal_shows_progress_in_place(at: World) -> None:
    """On a TTY there is a live line, in colour, and the result at the end; with NO_COLOR no colour."""
    command = [sys.executable, "-m", "receiver", "submit", PRO, "--video", CLIP, "--wait", "--prompt"]
    for no_color, prompt in (("", "a cat"), ("1", "a dog")):
        env = environment(TERM="xterm-256color", NO_COLOR=no_color, COLUMNS="100")
        main, side = pty.openpty()
        with subprocess.Popen(
            [*command, prompt], cwd=at.folder, env=env, stdin=side, stdout=side, stderr=side
        ) as process:
            os.close(side)
            seen = b""
            while True:
                try:
                    seen += os.read(main, 65536)
                except OSError:  # the other end is closed
                    break
            assert process.wait(30) == 0, seen.decode()
        os.close(main)
        text = seen.decode()
        assert "succeeded" in text
        assert "\x1b[?25l" in text  # the cursor is hidden while a live line is drawn
        assert ("\x1b[32m" in text) == (no_color == ""), text


def test_a_refusal_of_the_upstream_is_told_in_its_words(at: World) -> None:
    """1, the upstream's status and reason on stderr, and where the rejected task is kept."""
    ended = ask(at, "submit", PRO, "--video", CLIP, "--prompt", "a [emulator: submit=400]")
    assert ended.returncode == 1
    assert "the upstream answered 400" in ended.stderr
    assert re.search(r"receiver tasks show tsk_\w+", ended.stderr)
    assert ended.stdout == ""


def test_a_missing_member_is_a_matter_of_usage(at: World) -> None:
    """2, and the member is named; nothing is kept."""
    ended = ask(at, "submit", PRO, "--prompt", "without a video")
    assert ended.returncode == 2
    assert "input lacks video" in ended.stderr
    assert "--video sets video" in ended.stderr
    listed = json.loads(ask(at, "tasks", "list", "--json").stdout)["data"]
    assert "without a video" not in [task["input"]["prompt"] for task in listed if "prompt" in task["input"]]


@contextmanager
def recorded() -> Iterator[tuple[str, list[tuple[str, dict[str, str], str]]]]:
    """An upstream that keeps what it is sent, byte for byte: its URL, and each request's line, headers and body."""
    requests: list[tuple[str, dict[str, str], str]] = []

    class Keeping(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            requests.append((f"{self.command} {self.path}", dict(self.headers.items()), body))
            self.send_response(400)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- http.server's word
            """Nothing."""

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Keeping)) as url:
        yield url, requests


def test_dry_run_prints_what_is_then_really_sent(tmp_path: Path) -> None:
    """Line, headers and body, member by member in its order; only key, token and the random seed are not the same."""
    port, body = free_port(), '{"options": {"flip": true}, "ümlaut": [1, 2.5, null], "references": null}'
    with recorded() as (upstream, requests):
        config = write_config(tmp_path, port=port, upstream=upstream)
        config.write_text(config.read_text().replace(f"127.0.0.1:{port}", f"127.0.0.1:{port}/hooks/"))
        with up("serve", cwd=tmp_path) as service:
            wait_until_ready(service, f"http://127.0.0.1:{port}")
            for route in (PRO, VIDEO, IMAGE):
                given = ("submit", route, "--video", CLIP, "--prompt", "a cat", "--input", body)
                shown = json.loads(receiver(*given, "--dry-run", "--json", cwd=tmp_path).stdout)
                assert receiver(*given, "--callback-url", "https://u.example", cwd=tmp_path).returncode == 1
                line, headers, sent = requests.pop()
                assert f"POST {shown['url']}" == line.replace(" ", f" {upstream}")
                plumbing = {"Host", "host", "accept", "accept-encoding", "connection", "content-length", "User-Agent"}
                real = {name: value for name, value in headers.items() if name not in plumbing}
                assert real == shown["headers"] | {"authorization": f"Bearer {UPSTREAM_KEY}"}
                printed = jsons_compact(shown["body"])
                if route == VIDEO:
                    assert re.sub(r'"seed":\d+', "", sent) == re.sub(r'"seed":\d+', "", printed)
                else:
                    assert re.sub(r"/callbacks/[^\"]+", "/callbacks/***", sent) == printed
            service.end()
    assert requests == []


def jsons_compact(document: Any) -> str:
    """As it is sent."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


# -- many --------------------------------------------------------------------------------------------------------------


@contextmanager
def gate(url: str, enough: int) -> Iterator[tuple[str, threading.Event]]:
    """What stands before a service and lets so many submissions through: its URL, and whether another one came.

    That one gets no answer, and is not passed on: whoever sends one after the other is in the middle then.
    """
    shut, over, passed = threading.Event(), threading.Event(), count()
    client = httpx.Client(base_url=url, trust_env=False, timeout=30)

    class Passing(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.command == "POST" and next(passed) >= enough:
                shut.set()
                over.wait(60)
                self.close_connection = True
                return
            answer = client.request(self.command, self.path, headers=dict(self.headers.items()), content=body)
            self.send_response(answer.status_code)
            self.send_header("content-type", answer.headers["content-type"])
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = handle_any  # noqa: N815 -- http.server's names

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- http.server's word
            """Nothing."""

    with client, serving(ThreadingHTTPServer(("127.0.0.1", 0), Passing)) as here:
        try:
            yield here, shut
        finally:
            over.set()


def test_many_are_submitted_once_though_the_command_and_the_service_are_killed(tmp_path: Path) -> None:
    """A file against a real service: both are killed in the middle, and the emulator renders each line once."""
    lines = [
        {"route": IMAGE, "input": {"promptImage": CLIP, "promptText": f"shot {n} [emulator: render=0.05]"}}
        for n in range(300)
    ]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with up("emulator", "--port", "0", cwd=tmp_path) as emulator:
        upstream, port = emulator.line(r"listens on (http://\S+)")[1], free_port()
        write_config(tmp_path, port=port, upstream=upstream)
        with up("serve", cwd=tmp_path) as service:
            wait_until_ready(service, f"http://127.0.0.1:{port}")
            with gate(f"http://127.0.0.1:{port}", 60) as (url, shut):
                env = {"RECEIVER_URL": url, "RECEIVER_API_KEY": API_KEY}
                arguments = ("submit", "--from", "jobs.jsonl", "--concurrency", "1")
                with up(*arguments, cwd=tmp_path, env=env) as command:
                    assert shut.wait(60), command.err
                    command.process.kill()
                service.process.kill()
            service.process.wait(10)
        with up("serve", cwd=tmp_path) as service:
            wait_until_ready(service, f"http://127.0.0.1:{port}")
            ended = receiver("submit", "--from", "jobs.jsonl", "--json", cwd=tmp_path)
            assert ended.returncode == 0, ended.stderr
            document = json.loads(ended.stdout)
            assert (document["lines"], document["left"], document["problems"]) == (300, 0, [])
            assert (document["repeated"], document["submitted"]) == (60, 240)
            with Client(f"http://127.0.0.1:{port}", API_KEY) as client:
                while any(client.tasks(state=["pending", "submitting"])):
                    threading.Event().wait(0.1)
                tasks = list(client.tasks())
            rendered = httpx.get(f"{upstream}/_emulator/tasks", trust_env=False).json()
            service.end()
    assert len(tasks) == 300
    prompts = Counter(one["prompt"] for one in rendered)
    assert set(prompts.values()) == {1}
    # What was under way when the service was killed may not have arrived; it is never sent again by itself.
    missing = {task["input"]["promptText"]: task["state"] for task in tasks if not prompts[task["input"]["promptText"]]}
    assert set(missing.values()) <= {"ambiguous"}
    assert len(missing) <= 8


# -- tasks -------------------------------------------------------------------------------------------------------------


def test_list_filters_and_pages(at: World) -> None:
    """Filters hold, --limit cuts, and next_cursor goes on where it ended."""
    ids = [submitted(at, f"list {number}", IMAGE)["id"] for number in range(3)]
    first = json.loads(ask(at, "tasks", "list", "--route", IMAGE, "--limit", "2", "--json").stdout)
    assert [task["id"] for task in first["data"]] == [ids[2], ids[1]]
    rest = ask(at, "tasks", "list", "--route", IMAGE, "--cursor", first["next_cursor"], "--json")
    assert json.loads(rest.stdout)["data"][0]["id"] == ids[0]
    table = ask(at, "tasks", "list", "--route", IMAGE, "--limit", "2")
    assert table.stdout.splitlines()[0].split()[:3] == ["ID", "STATE", "%"]
    assert ids[2] in table.stdout
    assert ids[0] not in table.stdout
    assert "--limit" in table.stderr
    nothing = ask(at, "tasks", "list", "--state", "lost")
    assert (nothing.stdout, nothing.returncode) == ("", 0)
    assert "No such tasks" in nothing.stderr


def test_list_with_an_unknown_state_is_a_matter_of_usage(at: World) -> None:
    """2, with the states there are."""
    ended = ask(at, "tasks", "list", "--state", "done")
    assert ended.returncode == 2
    assert "succeeded" in ended.stderr


def test_show_tells_a_task_and_its_way(at: World) -> None:
    """The facts and the way for a reader; with --json the task, with --timeline its items."""
    task = json.loads(
        ask(at, "submit", PRO, "--video", CLIP, "--prompt", "a [emulator: callback=doubled]", "--wait", "--json").stdout
    )
    shown = ask(at, "tasks", "show", task["id"])
    assert shown.returncode == 0
    for words in (task["id"], "succeeded", PRO, task["upstream_id"], task["video_url"], "submitted", "believed"):
        assert words in shown.stdout
    assert json.loads(ask(at, "tasks", "show", task["id"], "--json").stdout)["id"] == task["id"]
    items = json.loads(ask(at, "tasks", "show", task["id"], "--timeline", "--json").stdout)
    assert items[0]["kind"] == "submission"


def test_words_from_elsewhere_cannot_drive_the_terminal(at: World) -> None:
    """Control characters in a prompt are replaced; markup in it is printed as it is."""
    task = submitted(at, "\x1b[31mred\x07 [bold]x[/bold]", IMAGE)
    for ended in (ask(at, "tasks", "show", task["id"]), ask(at, "tasks", "list", "--limit", "3")):
        assert "\x1b" not in ended.stdout
        assert "\x07" not in ended.stdout
    assert "[bold]x[/bold]" in ask(at, "tasks", "list", "--limit", "3").stdout


def test_refresh_asks_the_upstream_now(at: World) -> None:
    """A task whose callback never comes is ended by hand."""
    task = submitted(at, "a [emulator: callback=missing; render=0]")
    ended = ask(at, "tasks", "refresh", task["id"], "--json")
    assert json.loads(ended.stdout)["state"] == "succeeded"
    assert task["id"] in ask(at, "tasks", "refresh", task["id"]).stdout


def test_cancel_stops_the_tracking_and_says_so_once(at: World) -> None:
    """0 the first time; then 1: its state forbids it."""
    task = submitted(at, "a [emulator: never]")
    ended = ask(at, "tasks", "cancel", task["id"])
    assert ended.returncode == 0
    assert "cancelled" in ended.stdout
    again = ask(at, "tasks", "cancel", task["id"])
    assert again.returncode == 1
    assert "cancelled" in again.stderr


def test_adopt_gives_an_ambiguous_task_its_id(at: World) -> None:
    """An unanswered submission is ambiguous, and told as such; adopt gives it an id."""
    ended = ask(at, "submit", VIDEO, "--video", CLIP, "--prompt", "a [emulator: submit=500-after]")
    assert ended.returncode == 0
    assert "no answer tells whether it was taken" in ended.stdout
    task_id = ended.stdout.split()[0]
    other = submitted(at, "another", VIDEO)
    adopted = ask(at, "tasks", "adopt", task_id, other["upstream_id"])
    assert adopted.returncode == 0, adopted.stderr
    assert other["upstream_id"] in adopted.stdout
    assert ask(at, "tasks", "adopt", task_id, "x").returncode == 1


def test_an_unknown_task_is_a_failure(at: World) -> None:
    """1, with its id, on stderr alone."""
    for command in ("show", "refresh", "cancel"):
        ended = ask(at, "tasks", command, "tsk_nothing")
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "tsk_nothing" in ended.stderr


# -- finding the service -----------------------------------------------------------------------------------------------


def test_url_and_key_come_from_the_environment_without_a_config(at: World, tmp_path: Path) -> None:
    """With $RECEIVER_URL and $RECEIVER_API_KEY no config is needed; --url beats the environment."""
    env = {"RECEIVER_URL": at.url, "RECEIVER_API_KEY": API_KEY}
    assert receiver("tasks", "list", cwd=tmp_path, env=env).returncode == 0
    env["RECEIVER_URL"] = "http://127.0.0.1:1"
    assert receiver("tasks", "list", "--url", at.url, cwd=tmp_path, env=env).returncode == 0
    assert receiver("tasks", "list", cwd=tmp_path, env=env).returncode == 3


def test_a_wrong_key_is_a_matter_of_config(at: World, tmp_path: Path) -> None:
    """2, and which setting to look at; the key itself is not repeated."""
    env = {"RECEIVER_URL": at.url, "RECEIVER_API_KEY": "a-wrong-key"}
    ended = receiver("tasks", "list", cwd=tmp_path, env=env)
    assert ended.returncode == 2
    assert "RECEIVER_API_KEY" in ended.stderr
    assert "a-wrong-key" not in ended.stderr


def test_what_is_no_receiver_is_told(at: World) -> None:
    """An address where something else answers (here the upstream): 3."""
    ended = ask(at, "tasks", "list", "--url", at.emulator_url)
    assert ended.returncode == 3
    assert "not as a receiver does" in ended.stderr


# -- trigger -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("situation", "words"),
    [
        ("succeeded", "succeeded: believed"),
        ("failed", "failed: believed"),
        ("late", "too late, nothing changes"),
        ("duplicate", "the same again"),
        ("malformed", "makes no sense, so the upstream is asked"),
        ("missing", "poll"),
    ],
)
def test_trigger_plays_a_situation_and_shows_what_came_of_it(
    at: World, asking: World, situation: str, words: str
) -> None:
    """Each situation reaches the service as named, and its way is printed."""
    ended = ask(asking if situation in {"late", "missing"} else at, "trigger", situation)
    assert ended.returncode == 0, ended.stderr
    assert words in ended.stdout
    assert "task.failed" in ended.stdout if situation == "failed" else "task.succeeded" in ended.stdout
    if situation == "missing":
        assert "callback  " not in ended.stdout


def test_trigger_never_costs_money(at: World, tmp_path: Path) -> None:
    """It refuses the real upstream, a loopback upstream that is no emulator, and a service it knows nothing of."""
    port = int(at.url.rpartition(":")[2])
    real = write_config(tmp_path, port=port, upstream="https://api.cometapi.com")
    assert "this would cost money" in _refused(at, "--config", str(real))
    no_emulator = write_config(tmp_path, port=port, upstream=at.url)
    assert "as the emulator does" in _refused(at, "--config", str(no_emulator))
    assert "what upstream the service at" in _refused(at, "--url", "https://receiver.example.com")
    assert "what upstream the service at" in _refused(at, env={"RECEIVER_URL": "http://127.0.0.1:1"})


def _refused(at: World, *arguments: str, **more: Any) -> str:
    before = len(json.loads(ask(at, "tasks", "list", "--limit", "1000", "--json").stdout)["data"])
    ended = ask(at, "trigger", "succeeded", *arguments, **more)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert len(json.loads(ask(at, "tasks", "list", "--limit", "1000", "--json").stdout)["data"]) == before
    return ended.stderr


# -- serve and emulator ------------------------------------------------------------------------------------------------


def test_a_second_service_on_the_same_port_or_file_is_refused(at: World, tmp_path: Path) -> None:
    """The port in use: 1. The same database: 3. Both in words."""
    port = int(at.url.rpartition(":")[2])
    ended = receiver("serve", "--config", write_config(tmp_path, port=port, upstream=at.emulator_url), cwd=tmp_path)
    assert ended.returncode == 1
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr
    same_file = ask(at, "serve", "--port", str(free_port()))
    assert same_file.returncode == 3
    assert "already serves" in same_file.stderr


def test_commands_look_at_the_database_beside_the_service(at: World) -> None:
    """`db check`, `db upgrade` and `doctor` work beside it; a copy would miss what comes in, and is refused."""
    for arguments in (("db", "check"), ("db", "upgrade"), ("doctor",)):
        ended = ask(at, *arguments)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    copied = ask(at, "db", "copy", "--to", "postgresql://127.0.0.1:1/x")
    assert (copied.returncode, "already serves" in copied.stderr) == (1, True)


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="it is Linux's")
def test_the_loop_gives_way_to_the_writer(at: World) -> None:
    """What it is woken for in a COMMIT is done while that waits for the disk."""
    pid = at.service.process.pid
    others = {int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()} - {pid}
    assert os.sched_getscheduler(pid) == os.SCHED_BATCH
    assert os.SCHED_OTHER in map(os.sched_getscheduler, others)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_by_a_signal_with_0_and_logs_json_lines(at: World, tmp_path: Path, number: signal.Signals) -> None:
    """Every line on stdout is JSON with time, level and event, and no key in it; stderr is empty; the code is 0."""
    port = free_port()
    logs = '[logging]\nformat = "json"'
    config = write_config(tmp_path, port=port, upstream=at.emulator_url, more=logs, grace=NEVER)
    with up("serve", "--config", config, cwd=tmp_path) as service:
        wait_until_ready(service, f"http://127.0.0.1:{port}")
        done = receiver("submit", PRO, "--video", CLIP, "--prompt", "x", "--wait", "--config", config, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert service.end(number) == 0
    lines = [json.loads(line) for line in service.out]
    assert {"service.started", "task.submitted", "callback.received", "service.stopped"} <= {
        line["event"] for line in lines
    }
    assert all({"timestamp", "level", "event"} <= line.keys() for line in lines)
    assert service.err == []
    for secret in (API_KEY, UPSTREAM_KEY):
        assert secret not in "".join(service.out)


def test_serve_takes_its_port_from_the_line_before_the_environment(at: World, tmp_path: Path) -> None:
    """--port beats RECEIVER_SERVER__PORT, which beats $PORT and the file."""
    line, ours, platform = free_port(), free_port(), free_port()
    config = write_config(tmp_path, port=1, upstream=at.emulator_url)
    for arguments, env, port in (
        (("--port", str(line)), {"RECEIVER_SERVER__PORT": str(ours), "PORT": str(platform)}, line),
        ((), {"RECEIVER_SERVER__PORT": str(ours), "PORT": str(platform)}, ours),
        ((), {"PORT": str(platform)}, platform),
    ):
        with up("serve", "--config", config, *arguments, cwd=tmp_path, env=env) as service:
            wait_until_ready(service, f"http://127.0.0.1:{port}")
            assert service.end() == 0


def test_the_emulator_sums_up_what_a_real_upstream_would_say(tmp_path: Path) -> None:
    """Ctrl-C ends it with 0 and its notes."""
    with up("emulator", "--port", "0", "--seed", "3", cwd=tmp_path) as emulator:
        emulator.line("listens on http://127.0.0.1:")
        assert emulator.end(signal.SIGINT) == 0
    assert "0 tasks, 0 callbacks, 0 refusals" in emulator.out
