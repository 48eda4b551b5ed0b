"""`receiver submit --from`: what a file may say, and that each of its lines is submitted exactly once."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.cli.bulk import Sending
from receiver.cli.jobs import Given, JobFile
from receiver.client import AsyncClient
from tests.cli_world import API_KEY, environment, receiver, up, write_config
from tests.outbox_world import told
from tests.ports import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PRO, VIDEO, IMAGE = "runway/pro/video2video", "runwayml/v1/video_to_video", "runwayml/v1/image_to_video"
CLIP = "https://example.com/in.mp4"


@dataclass
class Played:
    """A service that keeps what it was given by key, as the contract says, and answers otherwise where it is told.

    Attributes:
        tasks: by key, the body's digest and the task's id.
        bodies: what made each of them, in the order in which they came.
        before: asked before each submission; an answer of its own, or None to go on. A status of 0 breaks the
            connection, one below 0 does so after the task was taken.
        requests: every submission with its headers.
    """

    url: str = ""
    tasks: dict[str, tuple[str, str]] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    before: Callable[[dict[str, Any]], tuple[int, dict[str, str], dict[str, Any]] | None] = lambda _body: None
    requests: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, key: str, raw: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
        """What is answered to one submission."""
        body = json.loads(raw)
        with self.lock:
            said = self.before(body)
            if said is not None and said[0] >= 0:
                return said
            digest = hashlib.sha256(raw).hexdigest()
            if key in self.tasks and self.tasks[key][0] != digest:
                return (
                    422,
                    {},
                    {"type": "/docs/problems/idempotency-key-reused", "detail": "the key was used for another body"},
                )
            again = key in self.tasks
            if not again:
                self.tasks[key] = (digest, f"tsk_{len(self.tasks)}")
                self.bodies.append(body)
            if said is not None:
                return 0, {}, {}
            headers = {"Idempotency-Replayed": "true"} if again else {}
            return 202, headers, {"id": self.tasks[key][1], "state": "pending"}


@contextmanager
def playing() -> Iterator[Played]:
    """Such a service, listening."""
    made = Played()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(200, {}, {"data": [], "next_cursor": None})

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            made.requests.append({name.lower(): value for name, value in self.headers.items()})
            status, headers, document = made.take(self.headers["idempotency-key"], raw)
            if status:
                self.answer(status, headers, document)
            else:
                self.close_connection = True

        def answer(self, status: int, headers: dict[str, str], document: dict[str, Any]) -> None:
            raw = json.dumps(document).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- http.server's word
            """Nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_who: Any) -> None:
            """A client that was killed."""

    server = Server(("127.0.0.1", 0), Handler)
    with serving(server) as made.url:
        yield made


@pytest.fixture
def at() -> Iterator[Played]:
    """A service of each test's own."""
    with playing() as made:
        yield made


def line(number: int = 1, **more: Any) -> dict[str, Any]:
    """A good job."""
    return {"route": PRO, "input": {"video": CLIP, "prompt": f"shot {number}"}, **more}


def write(folder: Path, *lines: Any, name: str = "jobs.jsonl") -> Path:
    """A file of them; a text stands as it is."""
    path = folder / name
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return path


def bulk(at: Played, folder: Path, *arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """`receiver submit --from jobs.jsonl`."""
    env = {"RECEIVER_URL": at.url, "RECEIVER_API_KEY": API_KEY}
    return receiver("submit", "--from", "jobs.jsonl", *arguments, cwd=folder, env=env, **more)


# -- what a file may say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{", "this is not JSON"),
        ("[1]", "a JSON object is wanted"),
        ('{"route": "x", "input": {"a": NaN}}', "this is not JSON"),
        ({"input": {}}, "route: it is missing"),
        ({"route": PRO}, "input: it is missing"),
        (line(route="runway/pro/video2vide"), f"did you mean {PRO}?"),
        (line(route=3), "route: a text is wanted"),
        (line(input="x"), "input: an object is wanted"),
        (line(input={"video": CLIP}), "input lacks prompt"),
        (line(input={"video": CLIP, "prompt": "x", "callback_url": "http://x"}), "it stands beside input"),
        (line(metdata={}), "metdata: there is no such member (did you mean metadata?)"),
        (line(metadata=[]), "metadata: an object is wanted"),
        (line(destinations="a"), "destinations: a list of texts is wanted"),
        (line(destinations=["a", 1]), "destinations: a list of texts is wanted"),
        (line(callback_url="ftp://x/y"), "callback_url"),
        (line(callback_url=None), "callback_url: a text is wanted"),
        (line(idempotency_key=" a"), "idempotency_key: 1 to 255"),
        (line(idempotency_key="ä"), "idempotency_key: 1 to 255"),
        (line(idempotency_key=""), "idempotency_key: 1 to 255"),
    ],
)
def test_a_mistake_is_told_with_its_line(bad: Any, words: str, tmp_path: Path) -> None:
    """`file:line: reason`, once, where it is; what stands around it is good."""
    with write(tmp_path, line(1), "", bad, line(2)).open("rb") as file:
        [mistake] = JobFile("jobs.jsonl", file, Given()).check()
    assert mistake.startswith("jobs.jsonl:3: ")
    assert words in mistake


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=8), some, max_size=3),
    max_leaves=6,
)
MEMBER = st.sampled_from(["route", "input", "metadata", "destinations", "callback_url", "idempotency_key", "rout", ""])
LINE = st.dictionaries(MEMBER, ANY | st.just(PRO) | st.just({"video": CLIP, "prompt": "x"}), max_size=6)


@settings(deadline=None)  # the first one loads what knows the routes
@given(st.lists(st.binary(max_size=40) | LINE.map(lambda one: json.dumps(one).encode()), max_size=5), st.booleans())
def test_reading_a_file_is_total(lines: list[bytes], has_route: bool) -> None:
    """Whatever stands in it: mistakes in words, each with a line that is there; what has none can be submitted."""
    content = b"\n".join(lines)
    jobs = JobFile("f", io.BytesIO(content), Given(PRO if has_route else None))
    mistakes = jobs.check()
    count = content.count(b"\n") + 1
    for mistake in mistakes:
        found = re.match(r"f:(?:(\d+):)? .", mistake)
        assert found is not None, mistake
        assert found[1] is None or 1 <= int(found[1]) <= count
    if not mistakes:
        keys = {jobs.question(job).headers["idempotency-key"] for job in jobs.jobs}
        assert len(keys) == len(jobs.jobs) > 0


def test_all_mistakes_are_told_before_anything_is_submitted(at: Played, tmp_path: Path) -> None:
    """2, all of them on stderr; the good lines before and behind them are not submitted either."""
    bad = line(2, idempotency_key="a")
    write(tmp_path, line(idempotency_key="a"), {"rout": PRO, "input": 1}, bad, line(3))
    ended = bulk(at, tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "jobs.jsonl:3: idempotency_key: line 1 has the same" in ended.stderr
    assert len(re.findall(r"^jobs\.jsonl:2: ", ended.stderr, re.MULTILINE)) == 3  # rout, input, and no route
    assert "Nothing was submitted." in ended.stderr
    assert at.requests == []


@pytest.mark.parametrize("text", ["", "\n\n  \n"])
def test_a_file_without_jobs_is_a_mistake(at: Played, tmp_path: Path, text: str) -> None:
    """2: it is surely not what was meant."""
    (tmp_path / "jobs.jsonl").write_text(text)
    ended = bulk(at, tmp_path)
    assert ended.returncode == 2
    assert "there is no job in it" in ended.stderr


def test_a_line_says_all_that_a_submission_may(at: Played, tmp_path: Path) -> None:
    """Its members go into the body; every one is queued, and has a key of its own."""
    own = line(metadata={"shot": 1}, destinations=["a"], callback_url="https://u.example.com/x", idempotency_key="mine")
    write(tmp_path, "\ufeff" + json.dumps(own), line(2), line(2))
    (tmp_path / "jobs.jsonl").write_text((tmp_path / "jobs.jsonl").read_text().replace("\n", "\r\n"))
    assert "jobs.jsonl: 3 submitted (of 3)" in told(bulk(at, tmp_path))
    assert {name: own[name] for name in own if name != "idempotency_key"} in at.bodies
    assert at.tasks.keys() > {"mine"}
    assert len(at.tasks) == 3  # two equal lines are two tasks
    assert {one["prefer"] for one in at.requests} == {"respond-async"}
    assert {one["authorization"] for one in at.requests} == {f"Bearer {API_KEY}"}


def test_the_command_line_completes_the_lines(at: Played, tmp_path: Path) -> None:
    """ROUTE, --destination and --callback-url are for lines without; --metadata goes under a line's own."""
    write(tmp_path, {"input": {"promptImage": CLIP}}, line(metadata={"team": "ads"}, destinations=[]))
    more = [
        "--metadata",
        "team=vfx",
        "--metadata",
        "day=1",
        "--destination",
        "a",
        "--callback-url",
        "https://u.example",
    ]
    told(bulk(at, tmp_path, f"/{IMAGE}", *more))
    first, second = sorted(at.bodies, key=lambda body: str(body["route"]), reverse=True)
    assert (first["route"], first["metadata"], first["destinations"]) == (IMAGE, {"team": "vfx", "day": "1"}, ["a"])
    assert (second["route"], second["metadata"], second["destinations"]) == (PRO, {"team": "ads", "day": "1"}, [])
    assert first["callback_url"] == second["callback_url"] == "https://u.example"
    other = bulk(at, tmp_path, IMAGE, "--metadata", "team=ads")
    assert "0 submitted, 2 refused (of 2)" in told(other, 1)
    assert "say the same as then" in other.stderr
    assert len(at.bodies) == 2


def test_dry_run_prints_every_request_and_needs_no_service(tmp_path: Path) -> None:
    """One JSON object a line: the requests to the upstream."""
    write_config(tmp_path, port=1, upstream="https://api.example.com")
    write(tmp_path, line(1), line(2))
    ended = receiver("submit", "--from", "jobs.jsonl", "--dry-run", cwd=tmp_path)
    requests = [json.loads(one) for one in told(ended).splitlines()]
    assert [one["body"]["prompt"] for one in requests] == ["shot 1", "shot 2"]
    assert requests[0]["url"] == f"https://api.example.com/{PRO}"
    assert "Nothing was sent" in ended.stderr


# -- exactly once ------------------------------------------------------------------------------------------------------


def test_the_same_file_submits_nothing_twice_and_a_grown_one_what_is_new(at: Played, tmp_path: Path) -> None:
    """Run again at any time: 0 submitted. Lines behind it: those. Another name for it: all of them, on purpose."""
    path = write(tmp_path, line(1), line(2))
    assert "2 submitted (of 2)" in told(bulk(at, tmp_path))
    again = bulk(at, tmp_path)
    assert "0 submitted, 2 had been submitted before (of 2)" in told(again)
    assert "--batch NAME" in again.stderr
    path.write_text(path.read_text().removesuffix("\n"))  # how its last line ends is no content
    assert "2 had been submitted before" in told(bulk(at, tmp_path))
    write(tmp_path, line(1), line(2), line(3))
    assert "1 submitted, 2 had been submitted before (of 3)" in told(bulk(at, tmp_path))
    assert [body["input"]["prompt"] for body in sorted(at.bodies, key=str)] == ["shot 1", "shot 2", "shot 3"]
    assert "3 submitted (of 3)" in told(bulk(at, tmp_path, "--batch", "second"))
    assert "3 had been submitted before" in told(bulk(at, tmp_path, "--batch", "second"))


def test_the_same_line_in_another_file_is_another_task(at: Played, tmp_path: Path) -> None:
    """What a line's key stands for is the file up to it, not the line alone."""
    write(tmp_path, line(1), line(2))
    told(bulk(at, tmp_path))
    write(tmp_path, line(9), line(2))
    assert "2 submitted (of 2)" in told(bulk(at, tmp_path))


def test_a_copy_from_stdin_is_the_same_file(at: Played, tmp_path: Path) -> None:
    """`--from -` reads stdin; mistakes are told under that name; its keys are those of the same content on disk."""
    path = write(tmp_path, line(1), line(2))
    env = {"RECEIVER_URL": at.url, "RECEIVER_API_KEY": API_KEY}
    first = receiver("submit", "--from", "-", cwd=tmp_path, env=env, stdin=path.read_text())
    assert "stdin: 2 submitted" in told(first)
    assert "2 had been submitted before" in told(bulk(at, tmp_path))
    bad = receiver("submit", "--from", "-", cwd=tmp_path, env=env, stdin="{")
    assert (bad.returncode, bad.stderr.startswith("stdin:1: ")) == (2, True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_end_in_the_middle_is_gone_on_from(at: Played, tmp_path: Path, number: signal.Signals) -> None:
    """Killed or ended by Ctrl-C while answers are under way; the next run submits the rest, and no line twice."""
    write(tmp_path, *[line(n) for n in range(60)])
    reached, go_on = threading.Event(), threading.Event()

    def stall(_body: dict[str, Any]) -> None:
        if len(at.tasks) >= 30:
            reached.set()
            go_on.wait(30)

    at.before = stall
    env = {"RECEIVER_URL": at.url, "RECEIVER_API_KEY": API_KEY}
    with up("submit", "--from", "jobs.jsonl", cwd=tmp_path, env=env) as command:
        assert reached.wait(30)
        command.process.send_signal(number)
        if number is signal.SIGKILL:
            command.process.wait(10)
        go_on.set()
        command.process.wait(30)
        code = command.end()
    if number is not signal.SIGKILL:
        assert code == 130
        assert any("Run the same command again" in one for one in command.err), command.err
        assert re.search(r"(\d+) submitted, (\d+) left \(of 60\)", "\n".join(command.out)), command.out
    taken = len(at.tasks)
    assert 30 <= taken < 60
    # What was still in hand when it was killed may have been taken meanwhile: it counts as submitted before.
    assert "had been submitted before (of 60)" in told(bulk(at, tmp_path))
    assert sorted(body["input"]["prompt"] for body in at.bodies) == sorted(f"shot {n}" for n in range(60))


def test_an_answer_that_was_lost_is_asked_for_again(at: Played, tmp_path: Path) -> None:
    """The task was taken and the connection broke: the same key gets the same task, and it is not paid twice."""
    write(tmp_path, *[line(n) for n in range(20)])
    broken: set[str] = set()

    def break_once(body: dict[str, Any]) -> tuple[int, dict[str, str], dict[str, Any]] | None:
        prompt = body["input"]["prompt"]
        if prompt in broken or not prompt.endswith("3"):
            return None
        broken.add(prompt)
        return -1, {}, {}

    at.before = break_once
    ended = bulk(at, tmp_path)
    assert "18 submitted, 2 had been submitted before (of 20)" in told(ended)
    assert len(at.bodies) == 20


@pytest.mark.parametrize(
    "said",
    [
        (429, {"Retry-After": "1"}, {"type": "/docs/problems/too-many-requests", "detail": "too many"}),
        (503, {"Retry-After": "1"}, {"type": "/docs/problems/store-unavailable", "detail": "no disk"}),
        (503, {}, {"type": "/docs/problems/stopping", "detail": "stopping"}),
        (409, {}, {"type": "/docs/problems/conflict", "detail": "the first with this key is still running"}),
    ],
)
def test_what_cannot_be_taken_now_is_sent_again_not_before_its_time(
    at: Played, tmp_path: Path, said: tuple[int, dict[str, str], dict[str, Any]]
) -> None:
    """429 and 503 with and without Retry-After, and a 409 of the key: all is submitted in the end, and all waited."""
    import time

    write(tmp_path, *[line(n) for n in range(8)])
    noted: list[float] = []

    def refuse_first(_body: dict[str, Any]) -> tuple[int, dict[str, str], dict[str, Any]] | None:
        noted.append(time.monotonic())
        return said if len(noted) == 1 else None

    at.before = refuse_first
    ended = bulk(at, tmp_path, "--concurrency", "1")
    assert "8 submitted (of 8)" in told(ended)
    assert noted[1] - noted[0] >= (1.0 if said[1] else 0.2)
    assert len(noted) == 9


def test_what_is_refused_is_told_with_its_line_and_the_others_go_on(at: Played, tmp_path: Path) -> None:
    """1; the reason on stderr; the summary counts it, also as JSON."""
    write(tmp_path, line(1), line(2), line(3))
    flaw = {"type": "/docs/problems/invalid-input", "detail": "no", "errors": [{"pointer": "/x", "detail": "no way"}]}
    at.before = lambda body: (422, {}, flaw) if body["input"]["prompt"] == "shot 2" else None
    ended = bulk(at, tmp_path)
    assert "2 submitted, 1 refused (of 3)" in told(ended, 1)
    assert "jobs.jsonl:2: refused (422): /x: no way" in ended.stderr
    document = json.loads(told(bulk(at, tmp_path, "--json"), 1))
    counts = {name: document[name] for name in ("lines", "submitted", "repeated", "refused", "left")}
    assert counts == {"lines": 3, "submitted": 0, "repeated": 2, "refused": 1, "left": 0}
    assert [(one["line"], one["repeated"]) for one in document["tasks"]] == [(1, True), (3, True)]
    assert [(one["line"], one["status"], one["kind"]) for one in document["problems"]] == [(2, 422, "invalid-input")]


def test_a_key_that_fits_no_line_ends_it_at_once(at: Played, tmp_path: Path) -> None:
    """401 is not asked for every line: 2, and which setting to look at."""
    write(tmp_path, *[line(n) for n in range(100)])
    at.before = lambda _body: (401, {}, {"type": "/docs/problems/unauthorized", "detail": "a valid API key is needed"})
    ended = bulk(at, tmp_path, "--concurrency", "2")
    assert "0 submitted, 100 left" in told(ended, 2)
    assert "RECEIVER_API_KEY" in ended.stderr
    assert len(at.requests) <= 2


def test_a_service_that_is_not_there_is_3_before_the_first_line(tmp_path: Path) -> None:
    """3 at once, nothing on stdout; a URL that is none is 2."""
    write(tmp_path, line())
    env = {"RECEIVER_URL": "http://127.0.0.1:1", "RECEIVER_API_KEY": API_KEY}
    ended = receiver("submit", "--from", "jobs.jsonl", cwd=tmp_path, env=env)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert receiver("submit", "--from", "jobs.jsonl", "--url", "nonsense", cwd=tmp_path, env=env).returncode == 2


async def sent(at: Played, folder: Path, *, patience: float) -> Sending:
    """Ten lines, sent with so much patience."""
    with write(folder, *[line(n) for n in range(10)]).open("rb") as file:
        source = JobFile("jobs.jsonl", file, Given())
        assert source.check() == []
        async with AsyncClient(at.url, API_KEY) as client:
            sending = Sending(client, source, lambda _now: None, patience)
            await sending.run(4)
    return sending


@pytest.mark.anyio
async def test_a_service_that_stays_away_ends_it(at: Played, tmp_path: Path) -> None:
    """When its patience is over, with the last reason; a service that was taken from meanwhile has all of it again."""
    down: tuple[int, dict[str, str], dict[str, Any]] = (
        503,
        {},
        {"type": "/docs/problems/stopping", "detail": "the service is stopping"},
    )
    at.before = lambda _body: None if len(at.tasks) < 5 else down
    sending = await sent(at, tmp_path, patience=0.5)
    assert str(sending.problem) == "the service is stopping"
    assert (len(sending.taken), sending.left, sending.refused) == (5, 5, {})


@pytest.mark.anyio
async def test_a_service_that_asks_for_time_is_not_away(at: Played, tmp_path: Path) -> None:
    """A 429 that says how long is waited for, however often it comes, also without any patience."""
    noted: list[int] = []

    def throttle(_body: dict[str, Any]) -> tuple[int, dict[str, str], dict[str, Any]] | None:
        noted.append(1)
        return (429, {"Retry-After": "0"}, {"type": "/docs/problems/rate-limited"}) if len(noted) % 2 else None

    at.before = throttle
    sending = await sent(at, tmp_path, patience=0)
    assert (sending.problem, sending.left, len(at.bodies)) == (None, 0, 10)


# -- how it is shown ---------------------------------------------------------------------------------------------------


def test_a_terminal_shows_a_bar_and_others_lines(at: Played, tmp_path: Path) -> None:
    """On a TTY a bar that is drawn in place; elsewhere a line now and then, and no escape sequence."""
    write(tmp_path, *[line(n) for n in range(30)])
    seen = 0

    def slowly(_body: dict[str, Any]) -> tuple[int, dict[str, str], dict[str, Any]] | None:
        nonlocal seen
        seen += 1
        return (429, {"Retry-After": "2"}, {"type": "x", "detail": "too many"}) if seen == 20 else None

    at.before = slowly
    plain = bulk(at, tmp_path)
    assert "30 submitted (of 30)" in told(plain)
    assert re.search(r"^ +\d+\.\d s  \d+ of 30", plain.stdout, re.MULTILINE), plain.stdout
    assert "\x1b" not in plain.stdout + plain.stderr
    main, side = pty.openpty()
    command = [sys.executable, "-m", "receiver", "submit", "--from", "jobs.jsonl", "--batch", "2"]
    env = environment(TERM="xterm-256color", COLUMNS="100", RECEIVER_URL=at.url, RECEIVER_API_KEY=API_KEY)
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdin=side, stdout=side, stderr=side) as process:
        os.close(side)
        drawn = b""
        while True:
            try:
                drawn += os.read(main, 65536)
            except OSError:  # the other end is closed
                break
        assert process.wait(30) == 0, drawn.decode()
    os.close(main)
    assert "\x1b[?25l" in drawn.decode()  # the cursor is hidden while the bar is drawn
    assert "30 submitted (of 30)" in drawn.decode()
