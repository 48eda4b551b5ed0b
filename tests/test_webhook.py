"""The kind `webhook`, driven with canned answers: what is sent, how it is judged, what is shown of it."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import standardwebhooks
import svix.webhooks
from msgspec.structs import replace
from pydantic import ValidationError

import receiver
from receiver.destinations import KINDS, base, webhook
from receiver.destinations.webhook import WebhookOptions, flow, judge
from receiver.ids import EventId, TaskId
from receiver.records import Event
from receiver.retry import Result
from receiver.wire import HttpRequest, HttpResponse

NOW = datetime(2026, 1, 31, 12, 0, 5, 999_000, tzinfo=UTC)
SECRETS = ("whsec_" + base64.b64encode(b"o" * 24).decode(), "whsec_" + base64.b64encode(b"n" * 32).decode())
# The spacing and the escapes are kept as they came: they must go out as they are stored.
ENVELOPE = '{"code": 200, "msg":"\\u6210\\u529f", "data": {"task_id": "221c", "n": 1.0}}'
DATA = '{"task_id": "tsk_1",  "prompt": "épée", "envelope": ' + ENVELOPE + "}"
EVENT = Event(EventId("evt_1"), TaskId("tsk_1"), "task.succeeded", datetime(2026, 1, 31, 12, tzinfo=UTC), DATA)


def options(**more: Any) -> WebhookOptions:
    """Options as the config would make them."""
    return WebhookOptions.model_validate({"url": "https://pipeline.example.com/hooks", **more})


def attempt(chosen: WebhookOptions, *, event: Event = EVENT, now: datetime = NOW) -> HttpRequest:
    """The request of an attempt."""
    return next(flow(event, chosen, now=now))


def end(answer: HttpResponse) -> Result:
    """How an attempt with that answer ends."""
    steps = flow(EVENT, options(), now=NOW)
    next(steps)
    with pytest.raises(StopIteration) as stop:
        steps.send(answer)
    result = stop.value.value
    assert isinstance(result, Result)
    assert result == judge(answer, now=NOW)
    return result


def test_what_is_sent() -> None:
    """One POST with the headers of contract section 5, and the configured ones."""
    request = attempt(options(secrets=SECRETS, headers={"X-Env": "prod"}))
    signature = request.headers["webhook-signature"]
    assert (request.method, request.url) == ("POST", "https://pipeline.example.com/hooks")
    assert request.headers == {
        "X-Env": "prod",
        "webhook-id": "evt_1",
        "webhook-timestamp": "1769860805",
        "webhook-signature": signature,
        "content-type": "application/json",
        "user-agent": f"receiver/{receiver.__version__}",
    }
    assert request.body.decode() == (
        '{"type":"task.succeeded","timestamp":"2026-01-31T12:00:00.000Z","data":' + DATA + "}"
    )


def test_both_libraries_verify_what_is_sent() -> None:
    """With either secret; what they parse is the event."""
    now = datetime.now(timezone(timedelta(hours=8)))  # noqa: TID251 -- the libraries compare with the wall clock
    request = attempt(options(secrets=SECRETS), now=now)
    headers = dict(request.headers)
    for secret in SECRETS:
        parsed = standardwebhooks.Webhook(secret).verify(request.body, headers)
        svix.webhooks.Webhook(secret).verify(request.body, headers)
        assert parsed["data"] == json.loads(DATA)


def test_attempts_differ_in_moment_and_signature_alone() -> None:
    """The same id and the same bytes, however often."""
    first, second = attempt(options(secrets=SECRETS)), attempt(options(secrets=SECRETS), now=NOW + timedelta(hours=2))
    assert first.body == second.body
    differing = {name for name in first.headers if first.headers[name] != second.headers[name]}
    assert differing == {"webhook-timestamp", "webhook-signature"}


def test_without_secrets_nothing_is_signed() -> None:
    """The header is absent then, not empty."""
    assert "webhook-signature" not in attempt(options()).headers


def test_a_naive_moment_is_refused() -> None:
    """Signed or not."""
    with pytest.raises(ValueError, match="no time zone"):
        attempt(options(), now=NOW.replace(tzinfo=None))


def test_the_format_envelope_is_the_upstreams_own_bytes() -> None:
    """Exactly what the upstream would have sent, with our headers."""
    request = attempt(options(format="envelope", secrets=SECRETS))
    assert request.body == ENVELOPE.encode()
    assert request.headers["webhook-id"] == "evt_1"
    assert request.headers["content-type"] == "application/json"


def test_an_operator_event_in_an_envelope_is_no_success() -> None:
    """It has no task object; its code says so."""
    event = Event(EventId("evt_2"), TaskId("tsk_1"), "delivery.dead", NOW, '{"reason": "x"}')
    sent = json.loads(attempt(options(format="envelope"), event=event).body)
    assert sent == {"code": 500, "msg": "delivery.dead", "data": {"reason": "x"}}


def test_the_format_cloudevents_is_structured_json() -> None:
    """The attributes of CloudEvents 1.0, the data as it is stored."""
    request = next(flow(EVENT, options(format="cloudevents"), now=NOW, home="https://hooks.example.com"))
    assert request.headers["content-type"] == "application/cloudevents+json"
    assert json.loads(request.body) == {
        "specversion": "1.0",
        "id": "evt_1",
        "type": "task.succeeded",
        "source": "https://hooks.example.com",
        "subject": "tsk_1",
        "time": "2026-01-31T12:00:00.000Z",
        "datacontenttype": "application/json",
        "data": json.loads(DATA),
    }
    assert DATA.encode() in request.body
    assert json.loads(attempt(options(format="cloudevents")).body)["source"] == "/receiver"


JUDGED: list[tuple[int, dict[str, str], str, str]] = [
    (200, {}, "ok", "it answered 200"),
    (204, {"webhook-delivery": "abort-message"}, "ok", "it answered 204"),
    (299, {}, "ok", "it answered 299"),
    (101, {}, "transient", "it answered 101"),
    (301, {"location": "https://elsewhere"}, "transient", "it answered 301: a redirect is never followed"),
    (304, {}, "transient", "it answered 304: a redirect is never followed"),
    (307, {"retry-after": "30"}, "transient", "it answered 307: a redirect is never followed"),
    (400, {}, "transient", "it answered 400"),
    (401, {}, "transient", "it answered 401"),
    (404, {}, "transient", "it answered 404"),
    (408, {}, "throttled", "it answered 408"),
    (410, {}, "permanent", "it answered 410: it is gone, and paused"),
    (422, {"webhook-delivery": " Abort-Message "}, "permanent", "it answered 422 and webhook-delivery: abort-message"),
    (425, {}, "throttled", "it answered 425"),
    (429, {}, "throttled", "it answered 429"),
    (500, {"webhook-delivery": "other"}, "transient", "it answered 500"),
    (503, {"webhook-delivery": "abort-message"}, "permanent", "it answered 503 and webhook-delivery: abort-message"),
    (503, {}, "throttled", "it answered 503"),
    (599, {}, "transient", "it answered 599"),
]


@pytest.mark.parametrize(("status", "headers", "kind", "words"), JUDGED)
def test_how_an_answer_is_judged(status: int, headers: dict[str, str], kind: str, words: str) -> None:
    """Every class of answer; the reason names the status."""
    result = end(HttpResponse(status, headers))
    assert result.kind == kind
    assert result.reason.startswith(words)
    assert result.pause == (status == 410)


@pytest.mark.parametrize("status", [408, 425, 429, 503])
def test_retry_after_is_heard_from_those_who_may_ask(status: int) -> None:
    """In seconds, or as a date; garbage is not heard."""
    assert end(HttpResponse(status, {"retry-after": "30"})).retry_after == timedelta(seconds=30)
    dated = end(HttpResponse(status, {"retry-after": "Sat, 31 Jan 2026 12:01:05 GMT"}))
    assert dated.retry_after is not None
    assert timedelta(seconds=59) < dated.retry_after < timedelta(seconds=60)
    assert end(HttpResponse(status, {"retry-after": "soon"})).retry_after is None


@pytest.mark.parametrize("status", [301, 400, 500, 502])
def test_retry_after_is_not_heard_from_others(status: int) -> None:
    """Their next try is where the schedule says."""
    assert end(HttpResponse(status, {"retry-after": "30"})).retry_after is None


def test_a_success_whose_body_breaks_is_a_success() -> None:
    """And the reason says that it broke."""
    result = end(HttpResponse(200, {}, b"{", truncated=True))
    assert (result.kind, result.reason) == ("ok", "it answered 200, its body broke off or was long")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "absolute URL"),
        ("/hooks", "absolute URL"),
        ("pipeline.example.com", "absolute URL"),
        ("ftp://pipeline.example.com", "absolute URL"),
        ("https://", "names no host"),
        ("https:///hooks", "names no host"),
        ("https://:443/", "names no host"),
        ("https://user:hunter2@host/", "do not belong"),
        ("https://hunter2@host/", "do not belong"),
        ("https://host/#part", "fragment"),
        ("https://host/#", "fragment"),
        ("https://host:hunter2/", "host or port"),
        ("https://host:99999/", "host or port"),
        ("https://[hunter2/", "host or port"),
        ("https://host:0/", "port 0"),
        ("https://ho st/", "spaces"),
        (" https://host/", "spaces"),
        ("https://host/\nx", "spaces"),
        ("https://host\\@evil/", "backslashes"),
        ("https://host/\u2003", "spaces"),
    ],
)
def test_a_url_that_will_not_do_is_named(url: str, words: str) -> None:
    """The message says what is wrong with it, and repeats no password."""
    with pytest.raises(ValidationError, match=words) as caught:
        options(url=url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://localhost:9000", "HTTPS://Host.example/a%2Fb?x=1&y", "https://[::1]:8443/", "https://bücher.example/"],
)
def test_a_url_is_kept_as_it_came(url: str) -> None:
    """Byte for byte: no slash is added, nothing requoted."""
    assert options(url=url).url == url


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"": "x"}, "no header name"),
        ({"X Env": "x"}, "no header name"),
        ({"X-Énv": "x"}, "no header name"),
        ({"X-Env\n": "x"}, "no header name"),
        ({"Content-Type": "x"}, "set by this program"),
        ({"WEBHOOK-ID": "x"}, "set by this program"),
        ({"webhook-anything": "x"}, "set by this program"),
        ({"Host": "x"}, "set by this program"),
        ({"Transfer-Encoding": "x"}, "set by this program"),
        ({"X-Env": "a", "x-env": "b"}, "twice"),
        ({"X-Env": "a\r\nEvil: b"}, "plain ASCII"),
        ({"X-Env": "a\n"}, "plain ASCII"),
        ({"X-Env": " a"}, "plain ASCII"),
        ({"X-Env": "é"}, "plain ASCII"),
        ({"X-Env": "\x00"}, "plain ASCII"),
    ],
)
def test_a_header_that_will_not_do_is_named(headers: dict[str, str], words: str) -> None:
    """Nothing can be smuggled past the program's own headers."""
    with pytest.raises(ValidationError, match=words):
        options(headers=headers)


@pytest.mark.parametrize("value", ["", "a", "Bearer abc.def", "a\tb"])
def test_an_ordinary_header_is_taken(value: str) -> None:
    """As it stands."""
    assert attempt(options(headers={"Authorization": value})).headers["Authorization"] == value


def test_a_secret_that_cannot_sign_is_named_by_its_place() -> None:
    """Never by its value."""
    with pytest.raises(ValidationError, match="secret 2: a webhook secret begins with whsec_") as caught:
        options(secrets=[SECRETS[0], "hunter2"])
    assert "hunter2" not in str(caught.value)


def test_an_unknown_key_or_format_is_refused() -> None:
    """A typo is no silent default."""
    with pytest.raises(ValidationError):
        options(secret="x")
    with pytest.raises(ValidationError):
        options(format="xml")


def test_what_is_shown_of_a_request_holds_no_secret() -> None:
    """Keys and cookies, userinfo and the values of a query are masked; the rest is as it was."""
    secret = dict.fromkeys(("Authorization", "cookie", "X-Api-Key", "x-auth-token", "My-Password"), "hunter2")
    plain = {"X-Env": "prod", "webhook-id": "evt_1", "webhook-signature": "v1,abc", "content-type": "application/json"}
    url = "https://me:hunter2@host:8443/path?token=hunter2&empty=&hunter2#hunter2"
    shown = base.masked(HttpRequest("POST", url, {**secret, **plain}, b"body"))
    assert shown.headers == {**dict.fromkeys(secret, "***"), **plain}
    assert shown.url == "https://***@host:8443/path?token=***&empty=&***#***"
    assert (shown.method, shown.body) == ("POST", b"body")
    assert base.masked_url("https://host/path") == "https://host/path"
    assert base.masked_url("https://[hunter2") == "***"


def test_the_registry_names_its_kinds() -> None:
    """Each under its own name, with options that are checked and a mask."""
    assert {name: kind.name for name, kind in KINDS.items()} == {name: name for name in KINDS}
    kind = KINDS["webhook"]
    assert kind is webhook.KIND
    assert (kind.options, kind.flow, kind.masked) == (WebhookOptions, flow, base.masked)


def test_a_cloudevent_about_no_task_has_no_subject() -> None:
    """It may be left out, and must not be empty (CloudEvents 1.0, 3.1)."""
    event = replace(EVENT, task_id=TaskId(EVENT.id))
    assert "subject" not in json.loads(attempt(options(format="cloudevents"), event=event).body)
