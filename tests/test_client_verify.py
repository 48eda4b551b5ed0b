"""`receiver.client.verify`: against what the service really sends, and against two independent libraries."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from email.message import Message
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import svix.webhooks
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from standardwebhooks import Webhook

from receiver.client import Event, SecretError, Unverified, verify
from receiver.destinations.sample import sample_event
from receiver.destinations.webhook import WebhookOptions, flow
from receiver.ids import EventId
from tests.cli_world import environment
from tests.world import SECRET, world

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OTHER = "whsec_" + base64.b64encode(b"another secret of thirty bytes").decode()
NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
ID = "evt_01jd3v8f0000000000000000ab"
BODY = b'{"type":"task.succeeded","timestamp":"2026-01-31T11:59:00.000Z","data":{"task_id":"tsk_1"}}'


def signed(body: bytes = BODY, *secrets: str, at: datetime = NOW, event_id: str = ID) -> dict[str, str]:
    """Headers of a webhook, signed by the library of Standard Webhooks."""
    made = " ".join(Webhook(secret).sign(event_id, at, body.decode()) for secret in secrets or (SECRET,))
    return {"webhook-id": event_id, "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": made}


def sent(form: str, *secrets: str) -> tuple[dict[str, str], bytes]:
    """What the kind `webhook` really sends of a sample event in a format: headers and body."""
    options = WebhookOptions(url="https://example.com", secrets=secrets, format=form)
    request = next(flow(sample_event(event_id=EventId(ID), now=NOW), options, now=NOW))
    return dict(request.headers), request.body


def refused(headers: Any, body: bytes | str = BODY, secrets: str | Sequence[str] = SECRET, **more: Any) -> Unverified:
    """Why it is not believed."""
    with pytest.raises(Unverified) as caught:
        verify(headers, body, secrets, **{"now": NOW, **more})
    return caught.value


# -- what is ours ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["standard", "cloudevents", "envelope"])
def test_what_the_service_sends_is_believed_in_every_format(form: str) -> None:
    """Its id, type, time and data; in the format `envelope` there is no word for the type, and the data is theirs."""
    headers, body = sent(form, SECRET)
    event = verify(headers, body, SECRET, now=NOW)
    assert (event.id, event.format, event.sent_at, event.document) == (ID, form, NOW, json.loads(body))
    if form == "envelope":
        assert (event.type, event.timestamp, event.document["code"]) == (None, None, 200)
    else:
        assert (event.type, event.timestamp) == ("task.succeeded", NOW)
        assert event.data["metadata"] == {"sample": True}
    assert event.data == event.document["data"]


@pytest.mark.anyio
async def test_what_really_arrived_is_believed(tmp_path: Path) -> None:
    """A task's way to its end, through a real service: what two libraries verified, this does."""
    async with world(tmp_path) as at:
        task_id = await at.created()
        [received] = [one for one in await at.arrived(task_id) if one.type == "task.succeeded"]
        event = verify(received.headers, received.body, [OTHER, SECRET])
        assert (event.id, event.type, event.data) == (received.id, received.type, received.data)


@pytest.mark.parametrize("made_by", [(SECRET,), (OTHER,), (SECRET, OTHER), (OTHER, SECRET)])
@pytest.mark.parametrize("known", [(SECRET,), (OTHER,), (SECRET, OTHER)])
def test_any_of_several_secrets_and_of_several_signatures_will_do(
    made_by: tuple[str, ...], known: tuple[str, ...]
) -> None:
    """It is believed exactly if some secret that is known made one of the signatures: as in a rotation by overlap."""
    headers, body = sent("standard", *made_by)
    if set(made_by) & set(known):
        assert verify(headers, body, known, now=NOW).id == ID
    else:
        assert refused(headers, body, known).flaw == "forged"


def test_signatures_of_other_versions_are_passed_over() -> None:
    """A list may hold what this release does not know (`v1a`, …): it neither opens the door nor bars it."""
    headers = signed()
    good = headers["webhook-signature"]
    assert verify(headers | {"webhook-signature": f"v1a,AAAA v2,BBBB nonsense {good}"}, BODY, SECRET, now=NOW).id
    digest = good.removeprefix("v1,")
    assert refused(headers | {"webhook-signature": f"v2,{digest} {digest} v1a,{digest}"}).flaw == "forged"


HEADERS = signed()
SHAPES: dict[str, Any] = {
    "title case": {name.title(): value for name, value in HEADERS.items()},
    "upper case": {name.upper(): value for name, value in HEADERS.items()},
    "pairs": list(HEADERS.items()),
    "asgi": [(name.encode(), value.encode()) for name, value in HEADERS.items()],
    "bytes": {name.encode(): value.encode() for name, value in HEADERS.items()},
    "httpx": httpx.Headers(HEADERS),
    "aiohttp": CIMultiDict(HEADERS),
    "with others": {"Host": "x", "Content-Type": "application/json", **HEADERS},
    "padded": {name: f" {value} " for name, value in HEADERS.items()},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_headers_come_in_any_case_and_shape(shape: str) -> None:
    """A mapping or pairs, text or bytes, as frameworks hand them out; the body as bytes or as text."""
    for body in (BODY, BODY.decode(), bytearray(BODY)):
        assert verify(SHAPES[shape], bytes(body) if isinstance(body, bytearray) else body, SECRET, now=NOW).id == ID


def test_headers_of_the_standard_librarys_server_are_read() -> None:
    """`http.server` gives an email message; a signature in two headers is a list of both."""
    message = Message()
    for name, value in HEADERS.items():
        message[name] = value
    message["webhook-signature"] = "v1,AAAA"
    assert verify(message, BODY, SECRET, now=NOW).id == ID


# -- what is not -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(HEADERS))
def test_a_missing_header_is_named(name: str) -> None:
    """Without one of the three nothing is believed; an unsigned one says where to look."""
    for headers in ({k: v for k, v in HEADERS.items() if k != name}, HEADERS | {name: ""}):
        error = refused(headers)
        assert (error.flaw, error.http_status) == ("missing", 400)
        assert name in str(error)
        assert ("`secrets`" in str(error)) == (name == "webhook-signature")


@pytest.mark.parametrize(
    ("changed", "flaw"),
    [
        ({"webhook-id": "evt_other"}, "forged"),
        ({"webhook-timestamp": str(int(NOW.timestamp()) + 1)}, "forged"),
        ({"webhook-timestamp": "soon"}, "malformed"),
        ({"webhook-timestamp": "-1"}, "malformed"),
        ({"webhook-timestamp": "1" * 40}, "malformed"),
        ({"webhook-timestamp": "1e9"}, "malformed"),
        ({"webhook-signature": "v1"}, "forged"),
        ({"webhook-signature": "v1,"}, "forged"),
        ({"webhook-signature": "v1,é€\udc80\ud800"}, "forged"),
    ],
)
def test_whatever_was_changed_is_noticed(changed: dict[str, str], flaw: str) -> None:
    """Id, timestamp and signature are all held by the signature; what cannot be read is told, not raised as it is."""
    assert refused(HEADERS | changed).flaw == flaw


def test_a_changed_body_is_noticed_and_told_how_it_may_have_come() -> None:
    """The same document, written again with spaces, is other bytes: the most frequent mistake has words of its own."""
    again = json.dumps(json.loads(BODY)).encode()
    assert json.loads(again) == json.loads(BODY)
    assert "the bytes that came" in str(refused(HEADERS, again))


def test_a_signature_with_spare_bits_is_another_text() -> None:
    """The last character before the padding may differ and decode to the same bytes: it is refused all the same."""
    good = HEADERS["webhook-signature"]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    twin = good[:-2] + letters[letters.index(good[-2]) ^ 1] + "="
    assert base64.b64decode(twin[3:]) == base64.b64decode(good[3:])
    assert refused(HEADERS | {"webhook-signature": twin}).flaw == "forged"


@pytest.mark.parametrize(("seconds", "is_good"), [(-301, False), (-300, True), (0, True), (300, True), (301, False)])
def test_five_minutes_are_tolerated_either_way(seconds: int, *, is_good: bool) -> None:
    """To the second; what is older may be a recording, what is newer a wrong clock. A tolerance can be given."""
    now = NOW + timedelta(seconds=seconds)
    if is_good:
        assert verify(HEADERS, BODY, SECRET, now=now).sent_at == NOW
    else:
        error = refused(HEADERS, now=now)
        assert error.flaw == "stale"
        assert f"{abs(seconds)} s {'ago' if seconds > 0 else 'ahead'}" in str(error)
    for same in (now, now.astimezone(timezone(timedelta(hours=8)))):
        for hour in (timedelta(hours=1), 3600, 3600.0):
            assert verify(HEADERS, BODY, SECRET, now=same, tolerance=hour).sent_at == NOW


def test_the_clock_is_asked_unless_a_time_is_given() -> None:
    """A signature of January is stale today; one of now is not. A time without a zone is a mistake of the caller."""
    with pytest.raises(Unverified, match="ago"):
        verify(HEADERS, BODY, SECRET)
    import time

    at = datetime.fromtimestamp(time.time(), UTC)
    assert verify(signed(at=at), BODY, SECRET).sent_at == at.replace(microsecond=0)
    with pytest.raises(ValueError, match="no time zone"):
        verify(HEADERS, BODY, SECRET, now=datetime(2026, 1, 31))  # noqa: DTZ001 -- that is the point


@pytest.mark.parametrize("secrets", [[], (), "", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAAA", [SECRET, "whsec_"]])
def test_a_secret_that_is_none_is_an_error_of_ones_own(secrets: Any) -> None:
    """No secret at all must never let everything in; the words do not repeat it."""
    with pytest.raises(SecretError) as caught:
        verify(HEADERS, BODY, secrets, now=NOW)
    assert "MfKQ9r8" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [b"", b"[1]", b"null", b"{", b"\xff", b'{"type":1,"timestamp":"x","data":{}}', b'{"code":"200","msg":"","data":{}}',
     b'{"type":"task.succeeded","timestamp":"noon","data":{}}', b"[" * 5000],
)  # fmt: skip
def test_what_is_signed_and_none_of_the_formats_is_told_as_such(body: bytes) -> None:
    """It comes from one who knows the secret, and yet it is not what we send."""
    import hashlib
    import hmac

    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    stamp = str(int(NOW.timestamp()))
    digest = hmac.new(key, f"{ID}.{stamp}.".encode() + body, hashlib.sha256).digest()
    headers = HEADERS | {"webhook-signature": f"v1,{base64.b64encode(digest).decode()}"}
    assert refused(headers, body).flaw == "unreadable"


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*HEADERS, "Webhook-Id", "x"]),
            st.text() | st.sampled_from([*HEADERS.values(), "v1,=", "1769860800"]),
        )
    ),
    st.binary() | st.text() | st.just(BODY),
)
def test_it_is_total(headers: list[tuple[str, str]], body: bytes | str) -> None:
    """Whatever comes, it is an Event or Unverified; and an Event only with what the library itself would verify."""
    try:
        event = verify(headers, body, SECRET, now=NOW)
    except Unverified:
        return
    assert isinstance(event, Event)
    lower = {name.lower(): value.strip() for name, value in headers}
    assert lower["webhook-id"] == ID
    assert body in {BODY, BODY.decode()}


@given(st.text(max_size=300), st.sampled_from(["standard", "envelope"]), st.sets(st.sampled_from([SECRET, OTHER])))
def test_two_libraries_agree(words: str, form: str, made_by: set[str]) -> None:
    """With what Standard Webhooks' and Svix's own libraries sign and verify, for any text in the body."""
    document: dict[str, Any] = {"type": "task.failed", "timestamp": "2026-01-31T12:00:00.000Z", "data": {"msg": words}}
    if form == "envelope":
        document = {"code": 500, "msg": words, "data": {"task_id": "1"}}
    body = json.dumps(document, ensure_ascii=False).encode(errors="surrogatepass")
    at = datetime.now(UTC).replace(microsecond=0)  # noqa: TID251 -- those libraries ask the clock themselves
    for secret in made_by:
        theirs = svix.webhooks.Webhook(secret).sign(ID, at, body.decode())
        headers = signed(body, secret, at=at)
        assert headers["webhook-signature"] == theirs
        assert verify(headers, body, secret, now=at).document == Webhook(secret).verify(body, headers)
        svix.webhooks.Webhook(secret).verify(body, headers)  # raises, or says nothing


def test_to_verify_loads_nothing_heavy() -> None:
    """A consumer's process that imports it gets neither HTTP, nor the store, nor the service, nor a terminal."""
    heavy = {"httpx", "aiohttp", "pydantic", "sqlalchemy", "starlette", "uvicorn", "rich", "typer", "structlog"}
    heavy |= {f"receiver.{room}" for room in ("store", "config", "destinations", "egress", "web", "cli", "app")}
    code = f"import sys\nfrom receiver.client import verify, Client\nprint(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
