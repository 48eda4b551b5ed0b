"""The kind `email` against a real mail server, and what a mail is made of."""

from __future__ import annotations

import asyncio
import json
import ssl
from email.headerregistry import Address
from typing import TYPE_CHECKING, Any

import aiosmtplib
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from pydantic import ValidationError

from receiver.destinations import KINDS
from receiver.egress import Egress, mail
from receiver.errors import EgressError
from receiver.ids import TaskId
from receiver.wire import HttpRequest, HttpResponse
from tests.kind_room import HOME, PAGE, POSTER, VIDEO, canned, delivered, event, failure, options_of, steps_of, way_out
from tests.platforms.email import READER, SENDER, USER, MailServer, mail_server, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from receiver.retry import Result

pytestmark = pytest.mark.anyio

KEYS = {"smtp_url": "smtp://me:the-secret@mail.example.com:587", "from": SENDER, "to": READER}
LOGIN = f"{USER}:smtp%20secret%3A%20p%40ss%2Fw%C3%B6rd"


@pytest.fixture
async def there() -> AsyncIterator[MailServer]:
    """The mail server."""
    async with mail_server() as server:
        yield server


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """An authority that nobody trusts by itself."""
    return trustme.CA()


def _by_tls(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def _trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def _sent(server: MailServer, url: str, trusted: ssl.SSLContext | None = None, within: float = 5) -> HttpResponse:
    """The reply to a mail that goes out by that URL."""
    request = next(steps_of("email", options_of("email", server.keys()), event()))
    egress = Egress(base_url="http://127.0.0.1:9", headers={}, tls=trusted)
    try:
        return await egress.deliver(
            HttpRequest("MAIL", url.format(port=server.port), request.headers, request.body),
            timeout=within,
            allow_private=False,
        )
    finally:
        await egress.aclose()


# -- the mail ------------------------------------------------------------------------------------------------------


async def test_a_render_is_a_mail_of_two_parts(there: MailServer) -> None:
    """Text and HTML that say the same, the poster linked; the server is the operator's word and needs no leave."""
    assert (await delivered("email", there.keys(), [event()], allow_private=False)).kind == "ok"
    [shown] = there.shown
    assert (shown.links, shown.pictures) == ((VIDEO, PAGE), (POSTER,))
    assert shown.text.count("a paper boat") == 2
    assert shown.text.count(VIDEO) == 1  # in the text; in the HTML it is behind the button
    message, _ = opened(there.mails[0])
    assert message["subject"] == "✅ Video ready"
    assert message["from"].addresses == (Address("Renders", addr_spec=SENDER),)
    assert there.peers == [(SENDER, [READER], False, False)]


async def test_a_failure_says_why(there: MailServer) -> None:
    """Without a picture."""
    assert (await delivered("email", there.keys(), [failure()])).kind == "ok"
    [shown] = there.shown
    assert shown.text.count("the input is too long") == 2
    assert shown.pictures == ()


async def test_where_there_is_nothing_to_say_there_is_a_title(there: MailServer) -> None:
    """No text, no facts, no links: empty parts are left out."""
    bare = event(prompt=None, video_url=None, poster=None)
    bare = replace(bare, task_id=TaskId(bare.id), data_json="{}")  # it is about no task
    assert (await delivered("email", there.keys(), [bare], home=None)).kind == "ok"
    assert there.shown[0].text.split() == ["✅", "Video", "ready"] * 3


def test_every_attempt_has_the_same_message_id() -> None:
    """So that a mailbox can tell a repeat; other readers have another, so that no server takes theirs for one."""
    first, again = (_message("email") for _ in range(2))
    other = _message("email", to=["b@example.com"])
    assert first["message-id"] == again["message-id"] != other["message-id"]
    assert event().id in first["message-id"]
    assert first["message-id"].endswith("@studio.example>")


def _message(kind: str, prompt: str = "p", **more: Any) -> Any:
    steps = steps_of(kind, options_of(kind, KEYS, **more), event(prompt=prompt))
    return opened(next(steps).body)[0]


async def test_a_summary_is_one_mail(there: MailServer) -> None:
    """For many; it has an id of its own."""
    assert (await delivered("email", there.keys(), [event(), failure(), event()])).kind == "ok"
    assert "3 events" in there.shown[0].text
    assert there.shown[0].links == (f"{HOME}/",)


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.lists(
        st.one_of(
            st.text(max_size=40),
            st.sampled_from(
                [
                    "\r\n.\r\n", "\r\nBcc: x@evil.example\r\n\r\n", "\n.\n", "=_", "--=_", "<script>",
                    "=?utf-8?b?PHg+?=", "'\"><img src=x>", "</p></body>", "&amp;", "\ud800", "\u202e", "漢字" * 200,
                    "👩‍👩‍👧‍👦" * 99, "e\u0301" * 500, "From me", "\x00",
                ],
            ),
        ),
        max_size=12,
    ).map("".join)
)  # fmt: skip
def test_whatever_is_typed_makes_no_header_no_markup_and_no_end(prompt: str) -> None:
    """In the subject, the text and the HTML; the parts still say it."""
    options = options_of("email", KEYS, title="{{ prompt }}", text="begin {{ prompt }}")
    request = next(steps_of("email", options, event(prompt=prompt, failure_code=prompt)))
    message, shown = opened(request.body)
    assert {name.lower() for name in message.keys()} == {  # noqa: SIM118 -- a message's keys repeat
        "from", "to", "subject", "date", "message-id", "auto-submitted", "user-agent", "mime-version", "content-type"
    }  # fmt: skip
    assert (shown.links, shown.pictures) == ((VIDEO, PAGE), (POSTER,))
    assert shown.text.count("begin") == 2
    assert len(str(message["subject"])) <= 200


@pytest.mark.parametrize(
    "coded", ["=?utf-8?q?hi=0D=0ABcc:_x@evil.example?=", "=?utf-8?b?aGkKQmNjOiB4QGV2aWwuZXhhbXBsZQ==?="]
)
def test_a_prompt_that_is_encoded_like_a_header_makes_none(coded: str) -> None:
    """The standard library decodes such a subject (RFC 2047) and writes its line feeds out: a header, or a body."""
    steps = steps_of("email", options_of("email", KEYS, title="{{ prompt }}"), event(prompt=coded))
    mail, _ = opened(next(steps).body)
    assert (mail["bcc"], mail["to"]) == (None, READER)
    assert mail["subject"] == coded.replace("=?", "=\uff1f")


def test_a_hundred_kilobytes_are_cut() -> None:
    """With an ellipsis, in both parts."""
    for prompt in ("a" * 100_000, "漢" * 100_000, "👩‍👩‍👧‍👦" * 9000):
        body = next(steps_of("email", options_of("email", KEYS), event(prompt=prompt))).body
        assert opened(body)[1].text.count("…") == 2
        assert len(body) < 600_000


# -- how it goes out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "kind", "pause", "words"),
    [
        ({"MAIL": ["421 4.3.2 closing"]}, "transient", False, "421"),
        ({"RCPT": ["450 4.2.0 greylisted"]}, "transient", False, "greylisted"),
        ({"RCPT": ["550 5.1.1 no such user"]}, "permanent", False, "no such user"),
        ({"DATA": ["452 4.3.1 disk full"]}, "transient", False, "disk full"),
        ({"DATA": ["554 5.7.1 looks like spam"]}, "permanent", False, "spam"),
        ({"MAIL": ["530 5.7.0 authentication required"]}, "permanent", True, "user and password"),
    ],
)
async def test_how_a_reply_is_judged(
    there: MailServer, script: dict[str, list[str]], kind: str, pause: bool, words: str
) -> None:
    """4xx puts it off, 5xx is for good; without a login nothing would go, so the destination is paused."""
    there.script = script
    result = await delivered("email", there.keys(), [event()])
    assert (result.kind, result.pause) == (kind, pause), result
    assert words in result.reason
    assert there.mails == []


async def test_one_of_several_who_is_refused_keeps_it_from_nobody(there: MailServer) -> None:
    """The others get it, and the reason names who did not."""
    there.script = {"RCPT": ["550 5.1.1 no such user"]}
    result = await delivered("email", there.keys() | {"to": ["gone@a.example", f"Team <{READER}>"]}, [event()])
    assert result.kind == "ok"
    assert "it refused gone@a.example: 550" in result.reason
    assert there.peers[0][1] == [READER]


async def test_one_of_several_who_is_put_off_puts_it_off_for_all(there: MailServer) -> None:
    """Before anything is sent: the others would get it again with every try."""
    there.script = {"RCPT": ["250 ok", "451 4.7.1 later"]}
    result = await delivered("email", there.keys() | {"to": [READER, "later@a.example"]}, [event()])
    assert (result.kind, there.mails) == ("transient", [])


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
async def test_a_password_goes_by_tls(authority: trustme.CA, scheme: str) -> None:
    """By STARTTLS or from the start; its characters come by percent in the URL."""
    tls = _by_tls(authority, "localhost")
    given: dict[str, Any] = {"starttls": tls} if scheme == "smtp" else {"tls": tls}
    async with mail_server(passwords=True, **given) as server:
        reply = await _sent(server, f"{scheme}://{LOGIN}@localhost:{{port}}", _trusting(authority))
        assert reply.status == 250
        assert server.peers == [(SENDER, [READER], True, True)]


async def test_a_wrong_password_is_heard_of(authority: trustme.CA) -> None:
    """And never repeated in any word."""
    async with mail_server(passwords=True, starttls=_by_tls(authority, "localhost")) as server:
        reply = await _sent(server, f"smtp://{USER}:wrong-secret@localhost:{{port}}", _trusting(authority))
        result, _ = canned(steps_of("email", options_of("email", KEYS), event()), reply)
        assert (result.kind, result.pause, reply.status) == ("permanent", True, 535)
        assert "wrong-secret" not in f"{result}{reply}"


async def test_a_certificate_is_verified(authority: trustme.CA) -> None:
    """An authority that is not trusted, or another name: nothing is sent."""
    async with mail_server(tls=_by_tls(authority, "other.example")) as server:
        for trusted in (None, _trusting(authority)):
            with pytest.raises(EgressError, match=r"certificate|match|hostname") as caught:
                await _sent(server, "smtps://localhost:{port}", trusted)
            assert (caught.value.stage, caught.value.sent) == ("tls", False)
        assert server.mails == []


async def test_on_this_machine_starttls_needs_no_good_certificate(authority: trustme.CA) -> None:
    """Mail servers there have seldom one for `localhost`, and nobody is in between."""
    async with mail_server(starttls=_by_tls(authority, "other.example")) as server:
        assert (await _sent(server, "smtp://127.0.0.1:{port}")).status == 250
        assert server.peers[0][2] is True


async def test_elsewhere_a_password_needs_tls_and_a_good_certificate(authority: trustme.CA) -> None:
    """No STARTTLS, or one with another's name: nothing of the password was said."""
    for starttls, words in ((None, "no STARTTLS"), (_by_tls(authority, "other.example"), "certificate|match")):
        async with mail_server(starttls=starttls) as server:
            smtp = aiosmtplib.SMTP(
                hostname="127.0.0.1", port=server.port, start_tls=False, local_hostname="[127.0.0.1]"
            )
            await smtp.connect()
            await smtp.ehlo()
            with pytest.raises((EgressError, ssl.SSLError), match=words):
                await mail._secure(smtp, _trusting(authority), mail._Way(), is_local=False, has_password=True)
            smtp.close()
            assert server.logins == 0


async def test_an_address_that_nobody_answers_at_gives_way_to_the_next(there: MailServer) -> None:
    """`localhost` has two, and the server listens on one."""
    assert (await _sent(there, "smtp://localhost:{port}")).status == 250


async def test_a_server_that_takes_no_password(there: MailServer) -> None:
    """It says nothing of it: told in words."""
    with pytest.raises(EgressError, match="AUTH") as caught:
        await _sent(there, f"smtp://{LOGIN}@127.0.0.1:{{port}}")
    assert caught.value.stage == "send"
    assert "secret" not in str(caught.value)


async def test_a_server_that_hangs_is_left_in_time(there: MailServer) -> None:
    """The whole of it has one time."""
    there.hangs = True
    with pytest.raises(EgressError, match="no answer within") as caught:
        await _sent(there, "smtp://127.0.0.1:{port}", within=0.3)
    assert (caught.value.stage, caught.value.sent) == ("timeout", False)


async def test_a_server_that_is_none() -> None:
    """No name, nobody there, a web server, one that hangs up: told in words, without the password."""
    said = [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""]

    async def say(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said.pop(0))
        writer.close()

    for stage in ("send", "reset"):
        listener = await asyncio.start_server(say, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with listener:
            assert (await _unsent(f"smtp://u:the-secret@127.0.0.1:{port}")).stage == stage
    assert (await _unsent(f"smtp://u:the-secret@127.0.0.1:{port}")).stage == "connect"
    assert (await _unsent("smtp://u:the-secret@nowhere.invalid")).stage == "dns"


async def _unsent(url: str) -> EgressError:
    async with way_out() as egress:
        request = HttpRequest("MAIL", url, {"mail-from": SENDER, "rcpt-to": READER}, b"x")
        with pytest.raises(EgressError) as caught:
            await egress.deliver(request, timeout=5, allow_private=False)
    assert "the-secret" not in str(caught.value)
    return caught.value


# -- its keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        "", "http://mail.example.com", "smtp://", "mail.example.com:587", "smtp://mail.example.com/x", "smtp://h:0",
        "smtp://h:99999", "smtp://u:pa/ss@h", "smtp://u:p?x@h", "smtp://u:p#x@h", "smtp://u:p w@h", "smtp://u:wörd@h", "smtp://[h",
    ],
)  # fmt: skip
def test_a_server_that_will_not_do(wrong: str) -> None:
    """It is said at start, and the URL is not repeated."""
    with pytest.raises(ValidationError) as caught:
        options_of("email", KEYS, smtp_url=wrong)
    assert len(wrong) < 8 or wrong not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    ["", "nobody", "a@", "@b", "a@b, c@d", "a@b\r\nBcc: x@y", "ünï@b.example", "a@münchen.example", "a b@c", "<a@b", 5],
)  # fmt: skip
def test_a_sender_that_will_not_do(wrong: Any) -> None:
    """One address, that every server takes."""
    with pytest.raises(ValidationError):
        options_of("email", KEYS, **{"from": wrong})


@pytest.mark.parametrize("wrong", ["", [], ["nobody"], ["a@b.example", "x\r\nBcc: y@z"], [5], None])
def test_readers_that_will_not_do(wrong: Any) -> None:
    """One address or more."""
    with pytest.raises(ValidationError):
        options_of("email", KEYS, to=wrong)


@pytest.mark.parametrize(
    ("to", "count"),
    [("a@b.example", 1), ("a@b.example, C <c@d.example>", 2), (["a@b.example", '"Doe, J." <j@d.example>'], 2)],
)
def test_readers(to: Any, count: int) -> None:
    """As a list, or as a header has them."""
    request = next(steps_of("email", options_of("email", KEYS, to=to), event()))
    assert len(request.headers["rcpt-to"].split(",")) == count
    assert len(opened(request.body)[0]["to"].addresses) == count


def test_what_is_shown_of_a_request_hides_the_login() -> None:
    """Who it is from and for is left to see."""
    shown = KINDS["email"].masked(next(steps_of("email", options_of("email", KEYS), event())))
    assert shown.url == "smtp://***@mail.example.com:587"
    assert "secret" not in json.dumps(dict(shown.headers))


def judged(response: HttpResponse) -> Result:
    """The result of a flow that ends so."""
    return canned(steps_of("email", options_of("email", KEYS), event()), response)[0]


def test_other_replies() -> None:
    """3xx where it should not be is no success."""
    assert judged(HttpResponse(354, {}, b"go on")).kind == "transient"
    assert judged(HttpResponse(250, {}, b"ok")).reason == "it replied 250: ok"
