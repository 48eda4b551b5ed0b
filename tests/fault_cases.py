"""The table: every fault there is, and what must be said of it.

A row is one destination behind one proxy. Its first connections meet the fault, and later ones do not.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from tests.fault_proxy import (
    Certificates,
    Close,
    Endless,
    Fault,
    HalfClose,
    Handshake,
    Hang,
    Relay,
    Reset,
    Say,
    Step,
    Take,
    answered,
)

if TYPE_CHECKING:
    from receiver.lifecycle import ResultKind

SHORT: Final = 2.0
"""Seconds that an attempt has where the fault is one of time; elsewhere `LONG`, which none of them takes.

A handshake, and all else that comes before the fault, must fit into them on a busy machine.
"""
LONG: Final = 10.0
RECEIVED: Final = len(b"HTTP/1.1 200 Said\r\ncontent-length: 2\r\n\r\nok")
"""Bytes of the real receiver's answer."""
STATUS_LINE: Final = len(b"HTTP/1.1 200 Said\r\n")
OK: Final = b"HTTP/1.1 200 OK\r\n"
OKBODY: Final = b"content-length: 2\r\n\r\nok"

BROKE = "the connection broke before an answer: "
NO_HTTP = "the answer is no HTTP: "
NO_TLS = "the TLS handshake failed: "
NO_CONNECTION = "no connection: 127.0.0.1:"
NO_ANSWER = f"timed out: no answer within {SHORT:g} s"
NOT_CONNECTED = f"timed out: no connection within {SHORT:g} s"
CUT = "it answered 200, its body broke off or was long"


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        words: what the stored attempt says first.
        more: what else stands there.
        fault: the steps of the connection that meets it.
        result, status: how the first attempt ended; no status where no answer came.
        timeout: seconds for an attempt.
        https: the destination's URL is https.
        door: whether the proxy listens at first, or is clogged.
        taken: the receiver got the request that met the fault.
    """

    name: str
    words: str
    fault: Fault = ()
    more: str = ""
    result: ResultKind = "transient"
    status: int | None = None
    timeout: float = LONG
    https: bool = False
    door: Literal["open", "shut", "clogged"] = "open"
    taken: bool = False

    @property
    def copies(self) -> int:
        """How many requests the receiver gets in all: what failed is sent once more."""
        return self.taken + (self.result != "ok")


def slow(name: str, words: str, *fault: Step, https: bool = False, taken: bool = False) -> Case:
    """A fault of time."""
    return Case(name, words, fault, timeout=SHORT, https=https, taken=taken)


def says(name: str, words: str, answer: bytes, more: str = "") -> Case:
    """The request is taken, and the answer is this."""
    return Case(name, words, (Take(), Say(answer), Hang()), more)


def gives(name: str, status: int, words: str, answer: bytes, *then: Step, timeout: float = LONG) -> Case:
    """The request is taken, and the answer has a status, whatever follows it."""
    kind: ResultKind = "ok" if status // 100 == 2 else "transient"
    return Case(name, words, (Take(), Say(answer), *then), result=kind, status=status, timeout=timeout)


def connection_cases() -> list[Case]:
    """Before an answer begins."""
    return [
        Case("refused", NO_CONNECTION, more="refused", door="shut"),
        Case("not-accepted", NOT_CONNECTED, timeout=SHORT, door="clogged"),
        Case("closed-on-accept", BROKE, (Close(),)),
        Case("reset-on-accept", BROKE, (Reset(),)),
        slow("hang-after-accept", NO_ANSWER, Hang()),
        Case("closed-within-the-request", BROKE, (Take(20), Close())),
        Case("reset-within-the-request-line", BROKE, (Relay(request=3), Reset())),
        Case("reset-within-the-request-headers", BROKE, (Relay(request=150), Reset())),
        Case("reset-within-the-request-body", BROKE, (Relay(request=700), Reset())),
        Case("closed-after-the-request", BROKE, (Take(), Close())),
        Case("reset-after-the-request", BROKE, (Take(), Reset())),
        slow("hang-after-the-request", NO_ANSWER, Take(), Hang()),
        Case("half-close-before-the-answer-and-hang", BROKE, (Take(), HalfClose(), Hang())),
        Case("reset-within-the-status-line", BROKE, (Relay(answer=STATUS_LINE - 5), Reset()), taken=True),
        Case("closed-within-the-status-line", BROKE, (Relay(answer=STATUS_LINE - 5), Close()), taken=True),
        Case("reset-within-the-headers", BROKE, (Relay(answer=STATUS_LINE + 5), Reset()), taken=True),
        Case("closed-within-the-headers", BROKE, (Relay(answer=STATUS_LINE + 5), Close()), taken=True),
        slow("hang-within-the-status-line", NO_ANSWER, Relay(answer=STATUS_LINE - 5), Hang(), taken=True),
        slow("hang-within-the-headers", NO_ANSWER, Relay(answer=STATUS_LINE + 5), Hang(), taken=True),
        slow("a-status-line-that-drips", NO_ANSWER, Take(), Say(answered(200), 1, SHORT / 10), Hang()),
        slow("headers-that-drip-without-end", NO_ANSWER, Take(), Say(OK), Endless(b"x: y\r\n", SHORT / 5)),
        slow("an-endless-storm-of-1xx", NO_ANSWER, Take(), Endless(b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.002)),
        slow("a-100-and-nothing-more", NO_ANSWER, Take(), Say(b"HTTP/1.1 100 Continue\r\n\r\n"), Hang()),
    ]


def garbage_cases() -> list[Case]:
    """What is no HTTP, or more of it than is read."""
    return [
        says("ssh", NO_HTTP, b"SSH-2.0-OpenSSH_9.2\r\n"),
        says("smtp", NO_HTTP, b"220 mx.example.com ESMTP\r\n"),
        says("binary", NO_HTTP, bytes(range(256))),
        says("zeros", NO_HTTP, bytes(64)),
        says("html", NO_HTTP, b"<html><body>It works!</body></html>"),
        says("tls-alert", NO_HTTP, b"\x15\x03\x01\x00\x02\x02\x46"),
        says("http-09", NO_HTTP, b"ok\n"),
        says("http-2-preface", NO_HTTP, b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80"),
        says("status-in-words", NO_HTTP, b"HTTP/1.1 twohundred OK\r\n\r\n"),
        says("status-of-two-digits", NO_HTTP, b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n"),
        says("status-of-four-digits", NO_HTTP, b"HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n"),
        says("status-of-minus", NO_HTTP, b"HTTP/1.1 -20 OK\r\ncontent-length: 0\r\n\r\n"),
        says("version-of-nothing", NO_HTTP, b"HTTP/x.y 200 OK\r\ncontent-length: 0\r\n\r\n"),
        says("a-huge-header", NO_HTTP, OK + b"x: " + b"y" * 20_000 + b"\r\n\r\n"),
        says("a-huge-status-line", NO_HTTP, b"HTTP/1.1 200 " + b"y" * 20_000 + b"\r\n\r\n"),
        says("many-headers", NO_HTTP, OK + b"x: y\r\n" * 2000 + b"\r\n"),
        Case("headers-without-end", NO_HTTP, (Take(), Say(OK), Endless(b"x: y\r\n" * 500))),
        Case("one-header-without-end", NO_HTTP, (Take(), Say(OK + b"x: "), Endless(b"y" * 4000))),
        says("a-header-without-a-name", NO_HTTP, OK + b": y\r\ncontent-length: 0\r\n\r\n"),
        says("a-header-with-a-zero", NO_HTTP, OK + b"x: \x00\r\ncontent-length: 0\r\n\r\n"),
        says("a-length-below-zero", NO_HTTP, OK + b"content-length: -1\r\n\r\n"),
        says("a-length-in-words", NO_HTTP, OK + b"content-length: two\r\n\r\nok"),
        says("two-lengths", NO_HTTP, OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok"),
        says("a-length-and-chunks", NO_HTTP, OK + b"transfer-encoding: chunked\r\n" + OKBODY),
        says("a-length-beyond-all-numbers", NO_HTTP, OK + b"content-length: " + b"9" * 40 + b"\r\n\r\nok"),
    ]


def tls_cases(certificates: Certificates) -> list[Case]:
    """The handshake, and what a broken one is called."""
    refused = "the certificate of 127.0.0.1 is not accepted: "
    good = Handshake(certificates.good)

    def bad(name: str, words: str, *fault: Step, more: str = "") -> Case:
        return Case(name, words, fault, more, https=True)

    return [
        bad("self-signed", NO_TLS + refused, Handshake(certificates.selfsigned), more="self-signed certificate"),
        bad("unknown-authority", NO_TLS + refused, Handshake(certificates.stranger), more="local issuer certificate"),
        bad("expired", NO_TLS + refused, Handshake(certificates.expired), more="certificate has expired"),
        bad("wrong-name", NO_TLS + refused, Handshake(certificates.misnamed), more="IP address mismatch"),
        bad("plain-http-where-tls-is-expected", NO_TLS, Take(5), Say(answered(400)), Hang()),
        bad("garbage-where-tls-is-expected", NO_TLS, Take(5), Say(bytes(range(256))), Hang()),
        bad(
            "a-tls-alert", NO_TLS, Take(5), Say(b"\x15\x03\x01\x00\x02\x02\x28"), Hang(), more="alert handshake failure"
        ),
        bad("handshake-closed", NO_TLS, Take(5), Close()),
        bad("handshake-reset", NO_TLS, Take(5), Reset()),
        bad("handshake-cut-within-an-answer", NO_TLS, Take(5), Say(b"\x16\x03\x03\x00\x7a\x02\x00"), Close()),
        slow("handshake-hangs", NOT_CONNECTED, Hang(), https=True),
        slow("tls-hang-after-the-request", NO_ANSWER, good, Take(), Hang(), https=True),
        bad("tls-reset-after-the-request", BROKE, good, Take(), Reset()),
        bad("tls-closed-after-the-request", BROKE, good, Take(), Close()),
        bad("tls-garbage-after-the-request", NO_HTTP, good, Take(), Say(bytes(64)), Hang()),
        Case("tls-where-plain-is-expected", NO_HTTP, (Take(), Say(b"\x15\x03\x03\x00\x02\x02\x46"), Close())),
    ]


def answer_cases() -> list[Case]:
    """A status came. A 2xx is a success whatever its body does; the others are what they are."""
    length, chunked = b"content-length: 100\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n"
    bomb = gzip.compress(bytes(20_000_000))
    packed = b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(bomb) + bomb
    error = b"HTTP/1.1 500 No\r\n"
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    received = Case("", CUT, result="ok", status=200, taken=True).__dict__
    return [
        Case(**{**received, "name": "2xx-reset-within-the-body", "fault": (Relay(answer=RECEIVED - 1), Reset())}),
        Case(**{**received, "name": "2xx-closed-within-the-body", "fault": (Relay(answer=RECEIVED - 1), Close())}),
        gives("2xx-shorter-than-its-length", 200, CUT, OK + length + b"half", Close()),
        gives("2xx-reset-before-its-body", 200, CUT, OK + length, Reset()),
        gives("2xx-half-closed", 200, CUT, OK + length + b"half", HalfClose(), Hang()),
        gives("2xx-whose-body-hangs", 200, CUT, OK + length + b"half", Hang(), timeout=SHORT),
        gives("2xx-whose-body-drips", 200, CUT, OK + length, Endless(b"x", SHORT / 10), timeout=SHORT),
        gives("2xx-without-an-end", 200, CUT, OK + b"\r\n", Endless(b"x" * 60_000)),
        gives("2xx-whose-chunks-have-no-end", 200, CUT, OK + chunked, Endless(b"10\r\n0123456789abcdef\r\n" * 99)),
        gives("2xx-cut-within-a-chunk", 200, CUT, OK + chunked + b"10\r\n01234", Close()),
        gives("2xx-with-a-bad-chunk", 200, CUT, OK + chunked + b"nonsense\r\n", Hang()),
        gives("2xx-with-a-bad-chunk-later", 200, CUT, OK + chunked + b"2\r\nok\r\nzz\r\n", Hang()),
        gives("2xx-with-a-chunk-too-large", 200, CUT, OK + chunked + b"f" * 40 + b"\r\nok", Hang()),
        gives("2xx-with-a-bomb", 200, CUT, OK + packed, Hang()),
        gives("2xx-that-lies-about-gzip", 200, "it answered 200", OK + b"content-encoding: gzip\r\n" + OKBODY, Hang()),
        gives("2xx-of-http-10", 200, "it answered 200", b"HTTP/1.0 200 OK\r\n\r\nok", Close()),
        gives("2xx-without-a-reason", 200, "it answered 200", b"HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", Hang()),
        gives("2xx-with-bare-line-feeds", 200, "it answered 200", b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok", Hang()),
        gives("2xx-with-a-folded-header", 200, "it answered 200", OK + b"x: y\r\n z\r\n" + OKBODY, Hang()),
        gives("2xx-after-a-100", 200, "it answered 200", b"HTTP/1.1 100 Continue\r\n\r\n" + OK + OKBODY, Hang()),
        gives("2xx-after-many-1xx", 200, "it answered 200", early * 50 + OK + OKBODY, Hang()),
        gives("204-with-a-body", 204, "it answered 204", b"HTTP/1.1 204 No\r\ncontent-length: 4\r\n\r\nbody", Hang()),
        Case("2xx-before-the-request", "it answered 200", (Say(OK + OKBODY), Hang()), result="ok", status=200),
        Case("2xx-that-drips-in-time", "it answered 200", (Take(), Say(OK + OKBODY, 5, 0.02), Hang()), "", "ok", 200),
        gives("5xx-whose-body-hangs", 500, "it answered 500", error + length, Hang(), timeout=SHORT),
        gives("5xx-without-an-end", 500, "it answered 500", error + b"\r\n", Endless(b"x" * 60_000)),
        gives("5xx-cut", 500, "it answered 500", error + length + b"half", Reset()),
        gives("5xx-with-a-bad-chunk", 500, "it answered 500", error + chunked + b"nonsense\r\n", Hang()),
        gives(
            "an-upgrade",
            101,
            "it answered 101",
            b"HTTP/1.1 101 Up\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            Hang(),
        ),
        gives(
            "a-status-nobody-knows", 999, "it answered 999", b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n", Close()
        ),
    ]


def all_cases(certificates: Certificates) -> list[Case]:
    """Every row."""
    return [*connection_cases(), *garbage_cases(), *tls_cases(certificates), *answer_cases()]
