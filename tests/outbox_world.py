"""A service with destinations that a test can make fail, for the tests of the commands about what goes out."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from receiver.client import Client
from tests.cli_world import API_KEY, up, wait_until_ready, write_config
from tests.ports import free_port, serving

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli_world import Running

PRO = "runway/pro/video2video"
CLIP = "https://example.com/in.mp4"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TOKEN = "a-token-that-nobody-may-see"


@dataclass(frozen=True)
class Arrival:
    """One request that came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """Its webhook-id."""
        return self.headers["webhook-id"]


@dataclass
class Sink:
    """An application on this machine: notes what comes, answers as it is told, path by path (204 unless told).

    Attributes:
        answers: by path, a status and headers for each request to come, the last one for ever.
    """

    url: str = ""
    answers: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    arrivals: list[Arrival] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    def say(self, path: str, *statuses: int, **headers: str) -> None:
        """What to answer there from now on."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[path] = [(status, named) for status in statuses]

    def at(self, path: str) -> list[Arrival]:
        """What came there."""
        return [one for one in self.arrivals if one.path == path]

    def wait(self, path: str, count: int, *, seconds: float = 30) -> list[Arrival]:
        """Wait until so many have come there."""
        with self.news:
            self.news.wait_for(lambda: len(self.at(path)) >= count, seconds)
        found = self.at(path)
        assert len(found) >= count, f"{len(found)} of {count} came to {path}"
        return found

    def take(self, arrival: Arrival) -> tuple[int, dict[str, str]]:
        """Note one; what to answer."""
        with self.news:
            self.arrivals.append(arrival)
            planned = self.answers.get(arrival.path, [(204, {})])
            answer = planned.pop(0) if len(planned) > 1 else planned[0]
            self.news.notify_all()
        return answer


@contextmanager
def sink() -> Iterator[Sink]:
    """A sink on a free port."""
    made = Sink()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, more = made.take(Arrival(self.path, headers, body))
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- http.server's word
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with serving(server) as made.url:
        yield made


def destination(name: str, url: str, *, schedule: str = '["0s"]', more: str = "") -> str:
    """A destination for tasks with the metadata `to = NAME`."""
    return f"""
[[destinations]]
name = "{name}"
kind = "webhook"
url = "{url}/{name}"
secrets = ["{SECRET}"]
headers = {{ "X-Api-Token" = "{TOKEN}", "X-Env" = "test" }}
match = {{ "metadata.to" = "{name}" }}
schedule = {schedule}
allow_private = true
{more}"""


@dataclass
class Outbox:
    """A running service, its folder, and the sink behind its destinations."""

    folder: Path
    url: str
    sink: Sink
    service: Running

    def client(self) -> Client:
        """A client of it."""
        return Client(self.url, API_KEY)

    def task(self, to: str) -> str:
        """A task that has succeeded, for one destination; its id."""
        with self.client() as client:
            task = client.submit(PRO, {"video": CLIP, "prompt": f"for {to}"}, metadata={"to": to})
            assert client.wait(task["id"], timeout=60)["state"] == "succeeded"
        return str(task["id"])

    def delivery(self, to: str) -> dict[str, Any]:
        """Its delivery to that destination, after the first attempt."""
        task_id = self.task(to)
        with self.client() as client:
            [delivery] = client.deliveries(task_id=task_id)
            return client.wait_for_attempt(delivery["id"], after=0)


@contextmanager
def outbox(folder: Path, made: Sink, *, more: str = "") -> Iterator[Outbox]:
    """A service with the emulator behind it and `more` in its config; the folder holds its config.toml."""
    with up("emulator", "--port", "0", "--render", "0.1", cwd=folder) as emulator:
        upstream = emulator.line(r"listens on (http://\S+)")[1]
        port = free_port()
        write_config(folder, port=port, upstream=upstream, more=more)
        with up("serve", cwd=folder) as service:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(service, url)
            yield Outbox(folder, url, made, service)
            service.end()


def told(ended: subprocess.CompletedProcess[str], code: int = 0) -> str:
    """What a command printed, once it is sure that it ended with this code."""
    assert ended.returncode == code, (ended.returncode, ended.stdout, ended.stderr)
    return ended.stdout
