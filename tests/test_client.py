"""The client against a loopback server with canned answers: how it asks, and how it reads what comes back."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from receiver.client import ApiProblem, Client, Forwarder, Unreachable, is_emulator
from receiver.errors import EgressError
from receiver.wire import HttpRequest
from tests import ports

if TYPE_CHECKING:
    from collections.abc import Iterator

Answer = tuple[int, dict[str, str], bytes]
OPEN = {"id": "tsk_1", "state": "running"}
DONE = {"id": "tsk_1", "state": "succeeded"}


def answer(document: Any, status: int = 200, **headers: str) -> Answer:
    """A canned answer with a JSON body."""
    return status, headers, json.dumps(document).encode()


class Handler(BaseHTTPRequestHandler):
    """Gives the next canned answer, the last one for ever, and notes what was asked."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar[list[Answer]]
    asked: ClassVar[list[tuple[str, str, dict[str, str], bytes]]]

    def handle_any(self) -> None:
        """Note the request, give the answer; a status of 0 breaks the connection instead."""
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.asked.append((self.command, self.path, headers, body))
        status, more, content = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if status == 0:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = handle_any  # noqa: N815 -- http.server's names

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- http.server's word
        """Nothing."""


@contextmanager
def serving(*answers: Answer) -> Iterator[tuple[str, list[tuple[str, str, dict[str, str], bytes]]]]:
    """A server with these answers: its URL, and what it is asked."""
    asked: list[tuple[str, str, dict[str, str], bytes]] = []
    handler = type("Canned", (Handler,), {"answers": list(answers), "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    with ports.serving(server) as url:
        yield url, asked


def test_a_submission_is_one_post_with_the_key_and_what_was_given() -> None:
    """Route, input, metadata and destinations go out as the contract writes them, with the bearer key."""
    with serving(answer(OPEN, 201)) as (url, asked), Client(url + "/", "key-ü") as client:
        task = client.submit("r", {"prompt": "p"}, metadata={"team": "vfx"}, destinations=["a"], in_background=True)
    assert task == OPEN
    [(method, path, headers, body)] = asked
    assert (method, path) == ("POST", "/api/v1/tasks")
    assert json.loads(body) == {
        "route": "r",
        "input": {"prompt": "p"},
        "metadata": {"team": "vfx"},
        "destinations": ["a"],
    }
    assert headers["authorization"].encode("latin-1") == "Bearer key-ü".encode()
    assert headers["prefer"] == "respond-async"


def test_an_id_is_one_segment_of_the_path() -> None:
    """An id with a slash, a query or dots asks for that id and for nothing else."""
    with serving(answer({"data": []})) as (url, asked), Client(url) as client:
        client.timeline("../a?b")
        client.timeline("..")
    assert [path for _, path, _, _ in asked] == [
        "/api/v1/tasks/%2E%2E%2Fa%3Fb/timeline",
        "/api/v1/tasks/%2E%2E/timeline",
    ]


def test_tasks_go_on_over_all_pages() -> None:
    """The iterator follows `next_cursor` to the end and keeps the filters."""
    pages = [
        answer({"data": [{"id": 1}, {"id": 2}], "next_cursor": "c1"}),
        answer({"data": [{"id": 3}], "next_cursor": None}),
    ]
    with serving(*pages) as (url, asked), Client(url) as client:
        found = [task["id"] for task in client.tasks(state=["failed", "lost"], route="r", since="2h")]
    assert found == [1, 2, 3]
    queries = [parse_qs(urlsplit(path).query) for _, path, _, _ in asked]
    assert [query.get("cursor") for query in queries] == [None, ["c1"]]
    assert all(query["state"] == ["failed,lost"] and query["since"] == ["2h"] for query in queries)


def test_a_problem_document_becomes_an_error_with_its_words() -> None:
    """Status, kind and every member of the document can be read from the error."""
    problem = {"type": "/docs/problems/invalid-input", "title": "t", "status": 422, "detail": "input lacks video"}
    with serving(answer(problem, 422)) as (url, _), Client(url) as client, pytest.raises(ApiProblem) as caught:
        client.task("tsk_1")
    assert (caught.value.status, caught.value.kind, str(caught.value)) == (422, "invalid-input", "input lacks video")
    assert caught.value.problem == problem


@pytest.mark.parametrize(
    "given",
    [
        (200, {}, b"<html>hello</html>"),
        (404, {}, b"not found"),
        (502, {}, b""),
        (200, {}, b"[1]"),
        (404, {}, b'{"detail": "Not Found"}'),
        (302, {"location": "https://elsewhere.example/"}, b'{"type": "x"}'),
    ],
)
def test_what_does_not_answer_as_a_receiver_is_no_receiver(given: Answer) -> None:
    """HTML, other people's JSON, an empty body and a redirect are told as such; a redirect is not followed."""
    with serving(given) as (url, asked), Client(url) as client, pytest.raises(Unreachable, match=str(given[0])):
        client.task("tsk_1")
    assert len(asked) == 1


def test_nobody_there_is_told_as_not_sent() -> None:
    """A refused connection says so, and that nothing was sent."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and never listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with Client(url) as client, pytest.raises(Unreachable, match="nothing answers at") as caught:
            client.submit("r", {})
    assert caught.value.sent is False


def test_a_broken_submission_is_sent_once_and_told_as_perhaps_arrived() -> None:
    """A connection that breaks after the request is no reason to send it again: it may be paid for."""
    with serving((0, {}, b"")) as (url, asked), Client(url) as client, pytest.raises(Unreachable) as caught:
        client.submit("r", {})
    assert caught.value.sent is True
    assert len(asked) == 1


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://", "http://[::1", "/x"])
def test_a_url_that_is_none_is_told_before_anything_is_sent(url: str) -> None:
    """What cannot be the address of a service is a ValueError."""
    with pytest.raises(ValueError, match="URL"):
        Client(url)


@pytest.mark.parametrize("key", ["", " ", "a\nb", "a\x00"])
def test_a_key_that_no_header_can_carry_is_told(key: str) -> None:
    """An empty key, and one with control characters, are a ValueError."""
    with pytest.raises(ValueError, match="key"):
        Client("http://127.0.0.1:1", key)


def test_waiting_ends_with_the_terminal_state_and_shows_every_look() -> None:
    """`wait` asks on until the task is terminal; `seen` is told of each answer."""
    seen: list[str] = []
    with serving(answer(OPEN), answer(DONE)) as (url, asked), Client(url) as client:
        task = client.wait("tsk_1", seen=lambda task: seen.append(task["state"]))
    assert task == DONE
    assert seen == ["running", "succeeded"]
    assert "wait=2.000s" in asked[0][1]


def test_waiting_ends_with_the_time_it_was_given() -> None:
    """With a timeout the task comes back as it is."""
    with serving(answer(OPEN)) as (url, _), Client(url) as client:
        assert client.wait("tsk_1", timeout=0.3) == OPEN


def test_waiting_bears_with_a_service_that_restarts() -> None:
    """Within its patience a service that is away, or stopping, is waited for; without it the error comes at once."""
    stopping = answer({"type": "/docs/problems/stopping", "detail": "stopping"}, 503)
    with serving((0, {}, b""), stopping, answer(DONE)) as (url, asked), Client(url) as client:
        assert client.wait("tsk_1", patience=30) == DONE
    assert len(asked) == 3
    with serving(stopping) as (url, _), Client(url) as client, pytest.raises(ApiProblem):
        client.wait("tsk_1")


def test_waiting_for_an_unknown_task_ends_at_once() -> None:
    """Patience is for a service that is away, not for a task that does not exist."""
    missing = answer({"type": "/docs/problems/not-found", "detail": "there is no task"}, 404)
    with serving(missing) as (url, asked), Client(url) as client, pytest.raises(ApiProblem):
        client.wait("tsk_1", patience=30)
    assert len(asked) == 1


def test_decisions_are_posts_to_the_task() -> None:
    """Refresh, cancel and adopt ask for what they say."""
    with serving(answer(OPEN)) as (url, asked), Client(url) as client:
        client.refresh("tsk_1")
        client.cancel("tsk_1")
        client.adopt("tsk_1", "up-1")
    assert [(method, path, body) for method, path, _, body in asked] == [
        ("POST", "/api/v1/tasks/tsk_1/refresh", b""),
        ("POST", "/api/v1/tasks/tsk_1/cancel", b""),
        ("POST", "/api/v1/tasks/tsk_1/adopt", b'{"upstream_id":"up-1"}'),
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (answer({"submissions": {}}), True),
        (answer({"error": {"message": "no"}}, 404), False),
        ((200, {}, b"<html>"), False),
        (answer([]), False),
    ],
)
def test_only_the_emulator_is_taken_for_one(given: Answer, *, expected: bool) -> None:
    """Whatever does not answer with the emulator's notes may be the real upstream."""
    with serving(given) as (url, _):
        assert is_emulator(url) is expected


def test_nobody_is_no_emulator() -> None:
    """Where nothing listens there is none."""
    assert is_emulator("http://127.0.0.1:1") is False


# -- what goes out -----------------------------------------------------------------------------------------------------


def test_a_tasks_own_callback_url_goes_with_the_submission() -> None:
    """It is a member of the body beside the input, and only where it was given."""
    with serving(answer(OPEN, 201)) as (url, asked), Client(url) as client:
        client.submit("r", {}, callback_url="https://example.com/done")
        client.submit("r", {})
    assert [json.loads(body).get("callback_url", "none") for _, _, _, body in asked] == [
        "https://example.com/done",
        "none",
    ]


def test_what_goes_out_is_asked_for_as_the_contract_writes_it() -> None:
    """Every method of deliveries, replays, destinations and events: its method, path, query and body."""
    page = answer({"data": [], "next_cursor": None})
    with serving(page) as (url, asked), Client(url) as client:
        client.delivery_page(state=["dead", "pending"], destination="a", task_id="tsk_1", limit=2, cursor="c")
        client.delivery_page()
        client.delivery("dlv_1")
        client.redeliver("dlv_1")
        client.start_replay(destination="a", since="2h", until="1h", state="all")
        client.start_replay()
        client.replay_page(limit=2, cursor="c")
        client.replay("rpl_1")
        client.cancel_replay("rpl_1")
        client.destinations()
        client.test_destination("a")
        client.pause_destination("a")
        client.resume_destination("@callback")
        client.event_page()
        client.event_page(after="7", limit=3, wait=1.5)
    assert [f"{method} {path.removeprefix('/api/v1')} {body.decode()}".strip() for method, path, _, body in asked] == [
        "GET /deliveries?state=dead%2Cpending&destination=a&task=tsk_1&limit=2&cursor=c",
        "GET /deliveries",
        "GET /deliveries/dlv_1",
        "POST /deliveries/dlv_1/redeliver",
        'POST /replays {"destination":"a","since":"2h","until":"1h","state":"all"}',
        "POST /replays {}",
        "GET /replays?limit=2&cursor=c",
        "GET /replays/rpl_1",
        "POST /replays/rpl_1/cancel",
        "GET /destinations?limit=200",
        "POST /destinations/a/test",
        "POST /destinations/a/pause",
        "POST /destinations/%40callback/resume",
        "GET /events",
        "GET /events?after=7&limit=3&wait=1.500s",
    ]


def test_all_deliveries_and_destinations_go_on_over_all_pages() -> None:
    """`next_cursor` is followed to the end, and the filters are kept."""
    pages = [answer({"data": [{"id": 1}], "next_cursor": "c1"}), answer({"data": [{"id": 2}], "next_cursor": None})]
    with serving(*pages) as (url, asked), Client(url) as client:
        assert [one["id"] for one in client.deliveries(state=["dead"], destination="a")] == [1, 2]
    assert all("state=dead&destination=a" in path for _, path, _, _ in asked)
    with serving(*pages) as (url, _), Client(url) as client:
        assert [one["id"] for one in client.destinations()] == [1, 2]


@pytest.mark.parametrize(
    ("looks", "state"),
    [
        ([("pending", 1), ("leased", 1), ("delivered", 2)], "delivered"),
        ([("leased", 2), ("pending", 2)], "pending"),
        ([("dead", 1), ("dead", 2)], "dead"),
        ([("cancelled", 1)], "cancelled"),
    ],
)
def test_an_attempt_is_waited_for_until_it_is_written(looks: list[tuple[str, int]], state: str) -> None:
    """More attempts than before, and none under way; a delivery that is cancelled will never have one."""
    answers = [answer({"state": seen, "attempt_count": count}) for seen, count in looks]
    with serving(*answers) as (url, asked), Client(url) as client:
        assert client.wait_for_attempt("dlv_1", after=1)["state"] == state
    assert len(asked) == len(looks)


def test_a_replay_is_waited_for_over_a_restart() -> None:
    """Within its patience a service that is away is borne with, and every look is shown."""
    seen: list[int] = []
    looks = [
        answer({"state": "running", "replayed": 1}),
        (0, {}, b""),
        answer({"type": "/docs/problems/stopping"}, 503),
        answer({"state": "cancelled", "replayed": 2}),
    ]
    with serving(*looks) as (url, asked), Client(url) as client:
        ended = client.wait_for_replay("rpl_1", patience=30, seen=lambda replay: seen.append(replay["replayed"]))
    assert ended["state"] == "cancelled"
    assert seen == [1, 2]
    assert len(asked) == 4


# -- handing on --------------------------------------------------------------------------------------------------------


def forwarded(given: Answer) -> tuple[Any, list[tuple[str, str, dict[str, str], bytes]]]:
    """What a Forwarder makes of an answer, and what it sent."""
    forwarder = Forwarder()
    try:
        with serving(given) as (url, asked):
            return forwarder.send(HttpRequest("POST", f"{url}/hooks?a=b", {"webhook-id": "evt_1"}, b"{}")), asked
    finally:
        forwarder.close()


def test_a_request_is_handed_on_as_it_is() -> None:
    """Method, path, headers and body as they were made; status, headers and body come back."""
    found, asked = forwarded((201, {"X-Made-By": "me"}, b"thanks"))
    [(method, path, headers, body)] = asked
    assert (method, path, headers["webhook-id"], body) == ("POST", "/hooks?a=b", "evt_1", b"{}")
    assert (found.status, found.headers["x-made-by"], found.body) == (201, "me", b"thanks")
    assert not found.truncated


def test_a_redirect_is_not_followed_and_a_long_answer_is_cut() -> None:
    """A 302 is an answer like any other; of a body 16 KiB are read."""
    found, asked = forwarded((302, {"location": "/elsewhere"}, b""))
    assert (found.status, len(asked)) == (302, 1)
    found, _ = forwarded((200, {}, b"x" * 16385))
    assert (len(found.body), found.truncated) == (16384, True)


def test_a_status_that_was_heard_counts_though_the_body_breaks_off() -> None:
    """Fewer bytes than announced: the answer is what its status says, marked as cut."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_half() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")

        thread = threading.Thread(target=answer_half)
        thread.start()
        forwarder = Forwarder()
        found = forwarder.send(HttpRequest("POST", f"http://127.0.0.1:{server.getsockname()[1]}/", {}, b""))
        thread.join()
        forwarder.close()
    assert (found.status, found.body, found.truncated) == (200, b"half", True)


def test_handing_on_fails_in_the_words_of_egress() -> None:
    """Nobody there: `connect`, nothing was sent. A connection that breaks: `reset`, something may have been."""
    with pytest.raises(EgressError) as caught:
        forwarded((0, {}, b""))
    assert (caught.value.stage, caught.value.sent) == ("reset", True)
    forwarder = Forwarder()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(EgressError, match="refused") as caught:
            forwarder.send(HttpRequest("POST", f"http://127.0.0.1:{taken.getsockname()[1]}/", {}, b""))
    forwarder.close()
    assert (caught.value.stage, caught.value.sent) == ("connect", False)
