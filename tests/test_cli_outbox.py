"""The commands about what goes out, against a real service: deliveries, replays, destinations."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from standardwebhooks import Webhook

from receiver.cli import app, sent, way
from tests.cli_world import environment, receiver, up, write_config
from tests.outbox_world import SECRET, TOKEN, Outbox, destination, outbox, sink, told
from tests.test_cli import COMMANDS as OTHER_COMMANDS
from tests.test_client import answer, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMANDS = [
    "deliveries list", "deliveries show", "deliveries redeliver", "replay", "replays list", "replays show",
    "replays cancel", "destinations list", "destinations show", "destinations test", "destinations preview",
    "destinations pause", "destinations resume", "listen",
]  # fmt: skip
GOOD, BAD, MOODY, PATIENT, REPLAYED = "good", "bad", "moody", "patient", "replayed"


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outbox]:
    """One service for all tests of this module. `good` takes all, `bad` nothing; the others as a test says."""
    with sink() as made:
        made.say("/bad", 500)
        more = '[delivery]\njitter = 0\ncircuit_failures = 1000\n[logging]\nlevel = "error"\n'
        more += "".join(destination(name, made.url) for name in (GOOD, BAD, MOODY, REPLAYED))
        more += destination(PATIENT, made.url, schedule='["0s", "2h"]')
        with outbox(tmp_path_factory.mktemp("outbox"), made, more=more) as running:
            yield running


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """A folder with a good config.toml, for a service that does not run."""
    text = destination(GOOD, "https://user.example.com", more='format = "standard"')
    write_config(tmp_path, port=1, upstream="https://api.example.com", more=text)
    return tmp_path


def ask(at: Outbox, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command beside the service's config."""
    return receiver(*arguments, cwd=at.folder, **more)


# -- without a service -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, tmp_path: Path) -> None:
    """--help: 0, an example that begins with the command itself, --config and --json."""
    ended = receiver(*command.split(), "--help", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(rf"Example:\s+receiver {command}", ended.stdout)
    assert "--config" in ended.stdout
    assert "--json" in ended.stdout


def test_every_command_is_in_one_of_the_lists() -> None:
    """A new command is asked for its help and its example, too."""
    named = {
        f"{group.name} {command.name or command.callback.__name__}"
        for group in app.registered_groups
        if group.typer_instance is not None
        for command in group.typer_instance.registered_commands
        if command.callback is not None
    }
    named |= {command.callback.__name__ for command in app.registered_commands if command.callback is not None}
    assert named == {*COMMANDS, *OTHER_COMMANDS}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("replay --state pending", "--state"),
        ("deliveries list --limit 0", "--limit"),
        ("destinations preview god", "did you mean good?"),
        ("listen", "--forward-to"),
        ("listen --forward-to ftp://x/y", "http"),
        ("listen --forward-to http://user:password@x/y", "user and password"),
        ("listen --forward-to localhost:1 --secret nonsense", "begins with whsec_"),
        ("listen --forward-to localhost:1 --events task.suceeded", "did you mean task.succeeded?"),
        ("listen --forward-to localhost:1 --since yesterday", "2h"),
        ("listen --forward-to localhost:1 --after 1 --from-start", "only one of"),
    ],
)
def test_wrong_usage_is_2_and_names_what_is_wrong(configured: Path, arguments: str, words: str) -> None:
    """What cannot be meant: 2, told on stderr, nothing on stdout."""
    ended = receiver(*arguments.split(), cwd=configured)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert words in re.sub(r"\s+│?\s*│?\s*", " ", ended.stderr)


@pytest.mark.parametrize(
    "arguments",
    ["deliveries list", "deliveries redeliver dlv_1 --wait", "replay", "replays list", "destinations list",
     "destinations test good", "listen --forward-to localhost:1"],
)  # fmt: skip
def test_a_service_that_is_not_there_is_3(configured: Path, arguments: str) -> None:
    """3, with the address that was tried and the way to start it."""
    ended = receiver(*arguments.split(), cwd=configured)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert "nothing answers at http://127.0.0.1:1" in ended.stderr
    assert "receiver serve" in ended.stderr


def test_preview_is_the_exact_request_and_nothing_is_sent(configured: Path) -> None:
    """No service is needed; secrets are masked, and the signature shown verifies the body shown."""
    ended = receiver("destinations", "preview", GOOD, "--json", cwd=configured)
    request = json.loads(told(ended))
    assert (request["method"], request["url"]) == ("POST", "https://user.example.com/good")
    headers = request["headers"]
    assert (headers["X-Api-Token"], headers["X-Env"]) == ("***", "test")
    event = Webhook(SECRET).verify(request["body"], headers)
    assert (event["type"], event["data"]["metadata"]) == ("task.succeeded", {"sample": True})
    plain = receiver("destinations", "preview", GOOD, cwd=configured)
    head, _, body = plain.stdout.partition("\n\n")
    lines = head.splitlines()
    assert lines[0] == "POST https://user.example.com/good"
    assert (
        Webhook(SECRET).verify(body.strip(), dict(line.split(": ", 1) for line in lines[1:]))["type"] == event["type"]
    )
    assert "Nothing was sent" in plain.stderr
    for secret in (SECRET, TOKEN):
        assert secret not in ended.stdout + plain.stdout + plain.stderr


def test_preview_of_a_mail_is_lines(tmp_path: Path) -> None:
    """A mail's lines end in CRLF; printed they are lines, without signs for what cannot be shown."""
    mail = '[[destinations]]\nname = "mail"\nkind = "email"\nsmtp_url = "smtp://mail.example.com"\n'
    write_config(
        tmp_path, port=1, upstream="https://api.example.com", more=f'{mail}from = "a@b.example"\nto = ["c@d.example"]\n'
    )
    text = told(receiver("destinations", "preview", "mail", cwd=tmp_path))
    assert "\nTo: c@d.example\n" in text
    assert "\ufffd" not in text


@pytest.mark.parametrize("form", ["envelope", "cloudevents"])
def test_preview_follows_the_format(tmp_path: Path, form: str) -> None:
    """An envelope is the upstream's own shape; a CloudEvent names this service as its source."""
    text = destination(GOOD, "https://user.example.com", more=f'format = "{form}"')
    write_config(tmp_path, port=1, upstream="https://api.example.com", more=text)
    body = json.loads(json.loads(told(receiver("destinations", "preview", GOOD, "--json", cwd=tmp_path)))["body"])
    if form == "envelope":
        assert body.keys() == {"code", "msg", "data"}
    else:
        assert (body["source"], body["type"]) == ("http://127.0.0.1:1", "task.succeeded")


def test_a_limit_beyond_a_page_goes_on_over_pages(tmp_path: Path) -> None:
    """No page is asked for more than it can hold, and no more in all than was asked for."""
    pages = [answer({"data": [{"id": n}] * n, "next_cursor": f"c{n}"}) for n in (200, 50)]
    with serving(*pages) as (url, asked):
        ended = receiver("deliveries", "list", "--limit", "250", "--json", "--url", url, cwd=tmp_path)
    found = json.loads(told(ended))
    assert (len(found["data"]), found["next_cursor"]) == (250, "c50")
    assert [path.partition("?")[2] for _, path, _, _ in asked] == ["limit=200", "limit=50&cursor=c200"]


# -- deliveries --------------------------------------------------------------------------------------------------------


def test_list_filters_by_state_destination_and_task(at: Outbox) -> None:
    """Each filter holds; the table tells the state and the last try; --json has the documents and the cursor."""
    good, bad = at.delivery(GOOD), [at.delivery(BAD) for _ in range(2)]
    dead = json.loads(told(ask(at, "deliveries", "list", "--state", "dead,pending", "--destination", BAD, "--json")))
    assert [one["id"] for one in dead["data"]][:2] == [bad[1]["id"], bad[0]["id"]]
    assert {one["destination"] for one in dead["data"]} == {BAD}
    first = json.loads(told(ask(at, "deliveries", "list", "--destination", BAD, "--limit", "1", "--json")))
    rest = ask(at, "deliveries", "list", "--destination", BAD, "--cursor", first["next_cursor"], "--json")
    assert json.loads(told(rest))["data"][0]["id"] == bad[0]["id"]
    own = ask(at, "deliveries", "list", "--task", good["task_id"])
    lines = told(own).splitlines()
    assert lines[0].split()[:4] == ["ID", "STATE", "DESTINATION", "TRIES"]
    assert lines[1].split()[:4] == [good["id"], "delivered", GOOD, "1"]
    assert re.search(r"HTTP 204 in \d+ ms", lines[1])
    table = ask(at, "deliveries", "list", "--destination", BAD, "--limit", "1")
    assert "HTTP 500" in told(table)
    assert "--limit" in table.stderr
    nothing = ask(at, "deliveries", "list", "--task", "tsk_nothing")
    assert told(nothing) == ""
    assert "No such deliveries" in nothing.stderr


def test_list_with_an_unknown_state_is_a_matter_of_usage(at: Outbox) -> None:
    """2, with the states there are."""
    ended = ask(at, "deliveries", "list", "--state", "gone")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "delivered" in ended.stderr


def test_show_tells_every_attempt_and_the_last_exchange(at: Outbox) -> None:
    """What of, where to, what was heard, what was sent; the secret header is masked; a dead one can be mended."""
    delivery = at.delivery(BAD)
    shown = ask(at, "deliveries", "show", delivery["id"])
    text = told(shown)
    for words in (delivery["id"], "dead", delivery["event_id"], delivery["task_id"], "HTTP 500", "webhook-signature"):
        assert words in text
    assert re.search(r"X-Api-Token: \*\*\*", text, re.IGNORECASE)
    assert f"receiver deliveries redeliver {delivery['id']}" in shown.stderr
    assert json.loads(told(ask(at, "deliveries", "show", delivery["id"], "--json"))) == delivery
    assert TOKEN not in text + json.dumps(delivery)


def test_show_tells_when_the_next_try_is(at: Outbox) -> None:
    """A delivery that waits says until when."""
    at.sink.say("/patient", 503)
    delivery = at.delivery(PATIENT)
    text = told(ask(at, "deliveries", "show", delivery["id"]))
    assert "pending" in text
    assert re.search(r"next try +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, in (1|2) h", text)


def test_redeliver_sends_the_same_event_again(at: Outbox) -> None:
    """The same webhook-id, the numbers go on; `--wait` is 1 while it fails and 0 once it arrives."""
    at.sink.say("/moody", 500)
    delivery = at.delivery(MOODY)
    failed = ask(at, "deliveries", "redeliver", delivery["id"], "--wait")
    assert re.search(r"is dead: attempt 2, HTTP 500 in \d+ ms; ", told(failed, 1))
    at.sink.say("/moody", 204)
    mended = ask(at, "deliveries", "redeliver", delivery["id"], "--wait")
    assert re.search(rf"{delivery['id']} is delivered: attempt 3, HTTP 204 in \d+ ms\n", told(mended))
    again = json.loads(told(ask(at, "deliveries", "redeliver", delivery["id"], "--wait", "--json")))
    assert (again["state"], again["attempt_count"], again["attempts"][-1]["redelivery"]) == ("delivered", 4, True)
    ids = {one.id for one in at.sink.at("/moody")}
    assert ids == {delivery["event_id"]}
    shown = told(ask(at, "deliveries", "show", delivery["id"]))
    assert "again, HTTP 204" in shown


def test_redeliver_without_waiting_says_where_to_look(at: Outbox) -> None:
    """0 as soon as it is opened again."""
    at.sink.say("/moody", 204)
    delivery = at.delivery(MOODY)
    count = len(at.sink.at("/moody"))
    ended = ask(at, "deliveries", "redeliver", delivery["id"])
    assert "is opened again" in told(ended)
    assert f"receiver deliveries show {delivery['id']}" in ended.stderr
    at.sink.wait("/moody", count + 1)


@pytest.mark.parametrize("command", ["deliveries show", "deliveries redeliver", "replays show", "replays cancel"])
def test_what_is_unknown_is_a_failure(at: Outbox, command: str) -> None:
    """1, with the id, on stderr alone."""
    ended = ask(at, *command.split(), "xyz_nothing")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "xyz_nothing" in ended.stderr


@pytest.mark.parametrize(
    ("reason", "status", "said"),
    [
        ("it answered 404, no_service: the URL is no longer good", 404, "no_service: the URL is no longer good"),
        ("it answered 500; tried again in 5 s", 500, "tried again in 5 s"),
        ("it replied 550: no such user; it is not tried again", 550, "no such user; it is not tried again"),
        ("timed out", None, "timed out"),
    ],
)
def test_what_was_heard_begins_with_no_leftover_sign(reason: str, status: int | None, said: str) -> None:
    """The status stands there already; neither it nor what followed it is said again."""
    assert way.besides(reason, status) == said


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        ("smtps://***@mail.example.com:465", 250, "SMTP 250 in 12 ms"),
        ("https://hooks.example.com", 200, "HTTP 200 in 12 ms"),
        ("smtp://mail.example.com", None, "no answer in 12 ms"),
    ],
)
def test_a_mail_servers_answer_is_not_called_http(url: str, status: int | None, said: str) -> None:
    """Its codes are those of RFC 5321."""
    answer = None if status is None else {"status": status}
    attempt = {"request": {"url": url}, "response": answer, "duration_ms": 12, "result": "ok", "reason": ""}
    assert way.heard(attempt) == said


def test_what_is_due_and_held_is_not_said_to_be_tried_now() -> None:
    """Behind a pause or a rate a delivery that was never tried waits for its destination."""
    made = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
    delivery = {"attempts": [], "due_at": made.isoformat()}
    assert sent._last_words(delivery, made + timedelta(seconds=1)) == "to be tried now"
    held = sent._last_words(delivery, made + timedelta(seconds=40))
    assert held == "due for 40 s: it waits for its destination"


# -- replays -----------------------------------------------------------------------------------------------------------


def test_a_replay_opens_what_died_again_and_shows_its_end(at: Outbox) -> None:
    """Dead ones by default; each arrives under its own id; then there is nothing left to replay."""
    at.sink.say("/replayed", 500)
    dead = [at.delivery(REPLAYED) for _ in range(3)]
    at.sink.say("/replayed", 204)
    before = len(at.sink.at("/replayed"))
    ended = ask(at, "replay", "--destination", REPLAYED, "--since", "1h")
    found = re.search(r"(rpl_\w+)  done: 3 of 3 deliveries opened again\n", told(ended))
    assert found is not None, ended.stdout
    arrived = at.sink.wait("/replayed", before + 3)[before:]
    assert {one.id for one in arrived} == {one["event_id"] for one in dead}
    listed = told(ask(at, "replays", "list"))
    assert re.search(rf"{found[1]} +done +3 of 3", listed)
    assert found[1] in told(ask(at, "replays", "show", found[1]))
    assert json.loads(told(ask(at, "replays", "show", found[1], "--json")))["replayed"] == 3
    assert "done: 3 of 3" in told(ask(at, "replays", "show", found[1], "--wait"))
    again = ask(at, "replay", "--destination", REPLAYED)
    assert "done: 0 of 0" in told(again)
    assert "No delivery is like that" in again.stderr
    over = ask(at, "replays", "cancel", found[1])
    assert (over.returncode, over.stdout) == (1, "")
    assert "done" in over.stderr


def test_a_replay_can_be_started_and_left(at: Outbox) -> None:
    """`--no-wait`: 0 with its id, as words or as JSON; `--json` that waits prints the ended one alone."""
    started = ask(at, "replay", "--destination", GOOD, "--state", "all", "--until", "30d", "--no-wait")
    found = re.search(r"rpl_\w+", told(started))
    assert found is not None
    assert f"receiver replays show {found[0]}" in started.stderr
    document = json.loads(told(ask(at, "replay", "--destination", GOOD, "--until", "30d", "--no-wait", "--json")))
    assert document["matched"] == 0
    waited = json.loads(told(ask(at, "replay", "--destination", GOOD, "--until", "30d", "--json")))
    assert (waited["state"], waited["replayed"]) == ("done", 0)


def test_a_replay_of_what_cannot_be_is_a_matter_of_usage(at: Outbox) -> None:
    """An unknown destination and a time that is none: 2, named; nothing is begun."""
    before = told(ask(at, "replays", "list", "--limit", "1", "--json"))
    for arguments, words in ((("--destination", "god"), GOOD), (("--since", "yesterday"), "since")):
        ended = ask(at, "replay", *arguments)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert words in ended.stderr
    assert told(ask(at, "replays", "list", "--limit", "1", "--json")) == before


def test_a_replay_that_may_have_begun_is_told_as_such(tmp_path: Path) -> None:
    """The connection breaks after the request: 3, it is not sent again, and where to look is said."""
    with serving((0, {}, b"")) as (url, asked):
        ended = receiver("replay", "--url", url, cwd=tmp_path)
    assert (ended.returncode, ended.stdout, len(asked)) == (3, "", 1)
    assert "receiver replays list" in ended.stderr


def replays(*states: tuple[str, int]) -> list[Any]:
    """Canned answers of a service whose replay takes its time."""
    return [answer({"id": "rpl_1", "state": state, "matched": 400, "replayed": count}) for state, count in states]


def test_ctrl_c_leaves_a_replay_running_and_says_so(tmp_path: Path) -> None:
    """130, with its id and how to see on; nothing but looks was asked for."""
    with serving(*replays(("running", 0), ("running", 200))) as (url, asked):
        with up("replay", "--url", url, cwd=tmp_path) as command:
            command.line("200 of 400")
            assert command.end(signal.SIGINT) == 130
        assert any("receiver replays show rpl_1 --wait" in line for line in command.err)
    assert [method for method, _, _, _ in asked].count("POST") == 1


def test_a_replay_that_somebody_cancels_is_a_failure(tmp_path: Path) -> None:
    """The one who watches is told how far it came, with 1."""
    with serving(*replays(("running", 0), ("running", 200), ("cancelled", 200))) as (url, _):
        ended = receiver("replay", "--url", url, cwd=tmp_path)
    assert "rpl_1  cancelled: 200 of 400 deliveries opened again" in told(ended, 1)


def test_a_replay_on_a_terminal_shows_progress_in_place(tmp_path: Path) -> None:
    """On a TTY there is a live line, and the result at the end."""
    with serving(*replays(("running", 0), ("running", 200), ("running", 300), ("done", 400))) as (url, _):
        main, side = pty.openpty()
        command = [sys.executable, "-m", "receiver", "replay", "--url", url]
        env = environment(TERM="xterm-256color", COLUMNS="100")
        with subprocess.Popen(command, cwd=tmp_path, env=env, stdin=side, stdout=side, stderr=side) as process:
            os.close(side)
            seen = b""
            while True:
                try:
                    seen += os.read(main, 65536)
                except OSError:  # the other end is closed
                    break
            assert process.wait(30) == 0, seen.decode()
        os.close(main)
    assert "\x1b[?25l" in seen.decode()  # the cursor is hidden while a live line is drawn
    assert "done: 400 of 400" in seen.decode()


# -- destinations ------------------------------------------------------------------------------------------------------


def test_destinations_are_listed_with_their_health(at: Outbox) -> None:
    """One line each; the failing one says what it failed with."""
    at.delivery(BAD)
    lines = told(ask(at, "destinations", "list")).splitlines()
    assert lines[0].split()[:4] == ["NAME", "KIND", "STATE", "FAILURES"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert rows.keys() == {GOOD, BAD, MOODY, PATIENT, REPLAYED}
    assert re.search(r"webhook +active +\d+ .*500", rows[BAD])
    documents = json.loads(told(ask(at, "destinations", "list", "--json")))["data"]
    assert {one["name"] for one in documents} == rows.keys()


def test_show_tells_how_a_destination_does_and_what_went_there(at: Outbox) -> None:
    """Health, the last deliveries, and the way to mend."""
    delivery = at.delivery(BAD)
    ended = ask(at, "destinations", "show", BAD)
    assert delivery["id"] in told(ended)
    assert re.search(r"failures +\d+ in a row", ended.stdout)
    assert f"receiver replay --destination {BAD}" in ended.stderr
    assert json.loads(told(ask(at, "destinations", "show", BAD, "--json")))["name"] == BAD
    unknown = ask(at, "destinations", "show", "god")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "did you mean good?" in unknown.stderr


def test_pause_holds_what_is_due_and_resume_sends_it(at: Outbox) -> None:
    """While it is paused nothing arrives and no attempt is spent; afterwards it does."""
    assert "moody is paused" in told(ask(at, "destinations", "pause", MOODY))
    try:
        at.sink.say("/moody", 204)
        before = len(at.sink.at("/moody"))
        task_id = at.task(MOODY)
        shown = ask(at, "destinations", "show", MOODY)
        assert "paused" in told(shown)
        assert f"receiver destinations resume {MOODY}" in shown.stderr
        looked = {one["name"]: one for one in json.loads(ask(at, "doctor", "--json").stdout)["checks"]}
        assert looked["destination moody"]["state"] == "note"
        assert looked["destination moody"]["detail"].startswith("it is paused: ")
        assert "receiver destinations resume moody" in looked["destination moody"]["mend"]
        assert looked["destination good"]["state"] == "ok"
        [held] = json.loads(told(ask(at, "deliveries", "list", "--task", task_id, "--json")))["data"]
        assert (held["state"], held["attempt_count"]) == ("pending", 0)
        assert len(at.sink.at("/moody")) == before
    finally:
        resumed = json.loads(told(ask(at, "destinations", "resume", MOODY, "--json")))
    assert (resumed["name"], resumed["state"]) == (MOODY, "active")
    at.sink.wait("/moody", before + 1)
    assert "moody is active" in told(ask(at, "destinations", "resume", MOODY))
    for command in ("pause", "resume", "test"):
        unknown = ask(at, "destinations", command, "god")
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert "god" in unknown.stderr


def test_test_sends_a_sample_and_says_how_it_was_taken(at: Outbox) -> None:
    """0 and the status where it was taken, 1 and the reason where not; what arrives is signed and says it is a test."""
    before = len(at.sink.at("/good"))
    ended = ask(at, "destinations", "test", GOOD)
    assert re.search(r"^good took it: HTTP 204 in \d+ ms\n", told(ended))
    [arrival] = at.sink.at("/good")[before:]
    event = Webhook(SECRET).verify(arrival.body, arrival.headers)
    assert event["data"]["metadata"] == {"sample": True}
    assert arrival.id in ended.stdout
    failed = ask(at, "destinations", "test", BAD)
    assert re.search(r"^bad did not take it: HTTP 500 in \d+ ms", told(failed, 1))
    attempt = json.loads(told(ask(at, "destinations", "test", BAD, "--json"), 1))
    assert (attempt["result"], attempt["response"]["status"]) == ("transient", 500)
    assert TOKEN not in ended.stdout + failed.stdout + json.dumps(attempt)
