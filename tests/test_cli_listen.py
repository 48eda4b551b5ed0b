"""`receiver listen`: events of a real service, at a local application, signed."""

from __future__ import annotations

import json
import re
import signal
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from standardwebhooks import Webhook

from receiver.cli.forwarding import LONGEST, Listening, _capped
from receiver.cli.signals import Stop
from receiver.client import Forwarder
from receiver.destinations.webhook import WebhookOptions
from receiver.retry import Result
from tests.cli_world import receiver, up, wait_until_ready
from tests.outbox_world import SECRET, Outbox, outbox, sink
from tests.test_client import answer, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli_world import Running

FRESH = r"signed with (whsec_\S+)"
LINE = r"(task\.\w+) +(evt_\w+)  (tsk_\w+)  -> (\d+|no answer) in \d+ ms"
CURSOR = r"Ended\. To go on from here: --after (\S+)"
FAILED = "a [emulator: fail; reason=Too dark]"


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outbox]:
    """One service for all tests of this module, without destinations; each test has a path of the sink to itself."""
    with sink() as made, outbox(tmp_path_factory.mktemp("listen"), made) as running:
        yield running


@contextmanager
def listening(at: Outbox, path: str, *arguments: str, **env: str) -> Iterator[Running]:
    """The command, once it has said that it forwards."""
    with up("listen", "--forward-to", f"{at.sink.url}{path}", *arguments, cwd=at.folder, env=env) as command:
        command.line("forwarding events from")
        command.line("signed with")
        yield command


def ended(command: Running, number: signal.Signals = signal.SIGINT) -> str:
    """End it; the cursor it names."""
    assert command.end(number) == 0, command.err
    found = re.search(CURSOR, "\n".join(command.err))
    assert found is not None, command.err
    return found[1]


def events_of(at: Outbox, *task_ids: str) -> list[str]:
    """The ids of the events in the feed that are of these tasks, oldest first."""
    with at.client() as client:
        feed = client.event_page(limit=200)["data"]
    return [one["id"] for one in feed if one["data"]["task_id"] in task_ids]


def test_new_events_are_forwarded_signed_with_the_secret_it_prints(at: Outbox) -> None:
    """Only what happens from now on, under the event's own id, in the words of the feed; Ctrl-C is 0."""
    at.task("before")
    with listening(at, "/new") as command:
        secret = command.line(FRESH)[1]
        task_id = at.task("now")
        [arrival] = at.sink.wait("/new", 1)
        told = command.line(LINE)
        ended(command)
    event = Webhook(secret).verify(arrival.body, arrival.headers)
    assert (event["type"], event["data"]["task_id"], event["data"]["metadata"]) == (
        "task.succeeded",
        task_id,
        {"to": "now"},
    )
    assert [arrival.id] == events_of(at, task_id)
    assert (told[1], told[2], told[3], told[4]) == ("task.succeeded", arrival.id, task_id, "204")
    with at.client() as client:
        [item] = [one for one in client.event_page(limit=200)["data"] if one["id"] == arrival.id]
    assert item == {"id": arrival.id, **event}


def test_it_goes_on_from_the_cursor_it_named(at: Outbox) -> None:
    """What happened meanwhile comes with --after; what had come does not come again; SIGTERM ends it likewise."""
    with listening(at, "/on") as command:
        first = at.task("first")
        at.sink.wait("/on", 1)
        command.line(LINE)
        cursor = ended(command, signal.SIGTERM)
    second = at.task("second")
    with listening(at, "/on", "--after", cursor) as command:
        command.line(LINE)
        assert ended(command) != cursor
    assert [one.id for one in at.sink.at("/on")] == events_of(at, first, second)


def test_the_cursor_is_behind_the_last_event_that_is_done(at: Outbox) -> None:
    """Ended in the middle of a page, while an event is still tried: that one comes again, the one before does not."""
    cursor = _cursor_now(at)
    first, second = at.task("first"), at.task("second")
    at.sink.say("/half", 204, 503)
    with listening(at, "/half", "--after", cursor) as command:
        command.line(r"-> 503 in \d+ ms; tried again in 1 s")
        cursor = ended(command)
    at.sink.say("/half", 204)
    before = len(at.sink.at("/half"))
    with listening(at, "/half", "--after", cursor) as command:
        at.sink.wait("/half", before + 1)
        command.line(LINE)
        ended(command)
    assert [one.id for one in at.sink.at("/half")[before:]] == events_of(at, second)
    assert at.sink.at("/half")[0].id == events_of(at, first)[0]


def _cursor_now(at: Outbox) -> str:
    with at.client() as client:
        page = client.event_page(limit=200)
        assert len(page["data"]) < 200
    return str(page["next_cursor"])


def test_a_failed_forward_is_tried_again_and_told(at: Outbox) -> None:
    """500, then 204: two lines, two requests with one id and fresh signatures."""
    at.sink.say("/again", 500, 204)
    with listening(at, "/again", "--secret", SECRET) as command:
        at.task("again")
        command.line(r"-> 500 in \d+ ms; tried again in 1 s$")
        command.line(r"-> 204 in \d+ ms$")
        ended(command)
    first, second = at.sink.at("/again")
    assert first.id == second.id
    for arrival in (first, second):
        Webhook(SECRET).verify(arrival.body, arrival.headers)
    assert not any(SECRET in line for line in command.out + command.err)


def test_what_is_given_up_does_not_hold_up_the_next(at: Outbox) -> None:
    """An application that says to stop is not asked again about that event; the next one arrives."""
    at.sink.say("/stop", 410, 204)
    with listening(at, "/stop") as command:
        at.task("gone")
        command.line(r"-> 410 in \d+ ms; given up: it is gone; it is not tried again$")
        task_id = at.task("next")
        command.line(rf"{task_id}  -> 204")
        ended(command)
    assert len(at.sink.at("/stop")) == 2


def test_only_the_types_that_were_asked_for_are_forwarded(at: Outbox) -> None:
    """--events: the others are passed over; --json is one object a line, its secret from the environment."""
    env = {"RECEIVER_LISTEN_SECRET": SECRET}
    arguments = ("--forward-to", f"{at.sink.url}/types", "--events", "task.failed,task.lost", "--json")
    with up("listen", *arguments, cwd=at.folder, env=env) as command:
        _greeted(command)
        at.task("good")
        with at.client() as client:
            bad = client.submit("runway/pro/video2video", {"video": "https://example.com/x", "prompt": FAILED})
        command.line("task.failed")
        ended(command)
    [line] = [json.loads(line) for line in command.out]
    [arrival] = at.sink.at("/types")
    Webhook(SECRET).verify(arrival.body, arrival.headers)
    assert (line["type"], line["task_id"], line["event_id"]) == ("task.failed", bad["id"], arrival.id)
    assert (line["attempt"], line["status"], line["state"]) == (1, 204, "delivered")


def _greeted(command: Running) -> None:
    """With --json the greeting is on stderr."""
    with command._news:
        assert command._news.wait_for(lambda: any("signed with" in line for line in command.err), 30), command.err


def test_it_can_begin_in_the_past(at: Outbox) -> None:
    """--from-start forwards everything that is kept, --since what is not older."""
    at.task("past")
    with at.client() as client:
        feed = client.event_page(limit=200)["data"]
    for path, arguments in (("/start", ["--from-start"]), ("/since", ["--since", feed[-1]["timestamp"]])):
        wanted = [one["id"] for one in (feed if path == "/start" else feed[-1:])]
        with listening(at, path, *arguments) as command:
            at.sink.wait(path, len(wanted))
            command.line(wanted[-1])
            ended(command)
        assert [one.id for one in at.sink.at(path)] == wanted


def test_a_service_that_goes_away_is_waited_for(tmp_path: Path) -> None:
    """It is told once, and what happens after it is back is forwarded."""
    with sink() as made, outbox(tmp_path, made) as at, listening(at, "/away") as command:
        at.service.end()
        with command._news:
            assert command._news.wait_for(lambda: any("is away" in line for line in command.err), 40), command.err
        with up("serve", cwd=tmp_path) as service:
            wait_until_ready(service, at.url)
            task_id = at.task("back")
            made.wait("/away", 1)
            command.line(rf"{task_id}  -> 204")
            ended(command)
            service.end()
        # Only now is all read that was said there: the line that was waited for came by another pipe.
        assert sum("is away" in line for line in command.err) == 1
        assert any("is back" in line for line in command.err)


def test_all_pages_that_are_there_are_passed_over(tmp_path: Path) -> None:
    """The end is an empty page, not a short one: a page also ends where it gets too large."""
    old, new = (
        {"id": f"evt_{name}", "type": "task.lost", "timestamp": "2026-01-31T12:00:00.000Z", "data": {"task_id": "t"}}
        for name in ("old", "new")
    )
    pages = [answer({"data": data, "next_cursor": str(n)}) for n, data in enumerate([[old], [old, old], [], [new]], 1)]
    refusal = answer({"type": "/docs/problems/unauthorized"}, 401)
    with sink() as made, serving(*pages, refusal) as (url, asked):
        receiver("listen", "--forward-to", made.url, "--url", url, cwd=tmp_path)
    assert [one.id for one in made.arrivals] == ["evt_new"]
    assert [re.findall(r"after=(\d+)|$", path)[0] for _, path, _, _ in asked] == ["", "1", "2", "3", "4"]


def test_a_cursor_that_is_none_is_a_matter_of_usage(at: Outbox) -> None:
    """2, before anything is forwarded."""
    done = receiver("listen", "--forward-to", at.sink.url, "--after", "nonsense!", cwd=at.folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "after" in done.stderr


def test_a_key_that_is_not_taken_any_more_ends_it_with_the_cursor(tmp_path: Path) -> None:
    """Waiting would not help: 2, and where to go on once the key is right."""
    event = {"id": "evt_1", "type": "task.lost", "timestamp": "2026-01-31T12:00:00.000Z", "data": {"task_id": "tsk_1"}}
    pages = [answer({"data": [], "next_cursor": "5"}), answer({"data": [event], "next_cursor": "6"})]
    refusal = answer({"type": "/docs/problems/unauthorized", "detail": "no such key"}, 401)
    with sink() as made, serving(*pages, refusal) as (url, _):
        done = receiver("listen", "--forward-to", made.url, "--url", url, cwd=tmp_path)
        [arrival] = made.arrivals
    assert done.returncode == 2
    assert "no such key" in done.stderr
    assert "--after 6" in done.stderr
    assert arrival.id == "evt_1"


def test_an_event_may_be_nested_deeper_than_some_writers_can_go(tmp_path: Path) -> None:
    """What an upstream said is passed on as it came; one odd event must not end the listening for good."""
    deep: Any = "here"
    for _ in range(400):
        deep = {"in": deep}
    event = {"id": "evt_1", "type": "task.lost", "timestamp": "2026-01-31T12:00:00.000Z", "data": {"deep": deep}}
    pages = [answer({"data": [event], "next_cursor": "6"}), answer({"type": "/docs/problems/unauthorized"}, 401)]
    with sink() as made, serving(pages[0], *pages) as (url, _):
        receiver("listen", "--forward-to", made.url, "--from-start", "--url", url, cwd=tmp_path)
        [arrival] = made.arrivals
    assert json.loads(arrival.body)["data"] == {"deep": deep}


def test_no_answer_holds_up_what_is_behind_it_for_hours() -> None:
    """A Retry-After counts, but not for longer than half a minute."""
    for asked, wait in ((None, None), (timedelta(seconds=7), timedelta(seconds=7)), (timedelta(hours=3), LONGEST)):
        assert _capped(Result("throttled", "it answered 503", retry_after=asked)).retry_after == wait


def test_an_event_that_never_arrives_is_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    """As many tries as the schedule has entries, under one id; then it goes on with the next page."""
    event: dict[str, Any] = {"id": "evt_1", "type": "delivery.dead", "timestamp": "2026-01-31T12:00:00.000Z"}
    page = answer({"data": [event | {"data": {"task_id": None}}], "next_cursor": "6"})
    refusal = answer({"type": "/docs/problems/unauthorized"}, 401)
    with sink() as made, serving(page, refusal) as (url, _):
        at = Listening(
            options=WebhookOptions(url=f"{made.url}/never", secrets=(SECRET,)),
            types=None,
            since=None,
            place=("5", 0),
            stop=Stop(),
            json=True,
            schedule=[timedelta(0), timedelta(milliseconds=10), timedelta(milliseconds=20)],
        )
        made.say("/never", 500)
        forwarder = Forwarder()
        from receiver.client import ApiProblem, Client

        with Client(url) as client, pytest.raises(ApiProblem):
            at.run(client, forwarder)
        forwarder.close()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["attempt"], line["state"]) for line in lines] == [(1, "pending"), (2, "pending"), (3, "dead")]
    assert {one.id for one in made.arrivals} == {"evt_1"}
    assert at.place == ("6", 0)
