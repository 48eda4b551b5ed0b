"""Heads that are read by one pattern are those that nobody can read in two ways: the real parser reads them alike."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.app.protocol import _WHOLE

START = b"POST /callbacks/a.b-c_d/e HTTP/1.1"
BODY = b"{} "
PLAIN = [b"host: x", b"content-type: application/json", b"content-length: 3"]


class Parsed:
    """What uvicorn's parser hears."""

    def __init__(self, request: bytes) -> None:
        self.url, self.body, self.ends = b"", b"", 0
        self.fields: list[tuple[bytes, bytes]] = []
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(request)

    def on_url(self, url: bytes) -> None:
        """Some of the path."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field."""
        self.fields.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self.body += body

    def on_message_complete(self) -> None:
        """One more request."""
        self.ends += 1

    def every(self, name: bytes) -> list[bytes]:
        """The values of a field."""
        return [value for key, value in self.fields if key == name]


def head_of(*lines: bytes, end: bytes = b"\r\n") -> bytes:
    """A head."""
    return end.join([*lines, b"", b""])


def alike(head: bytes) -> bool:
    """Whether the pattern reads it; then the parser must read the same."""
    whole = _WHOLE.match(head)
    if whole is None:
        return False
    head = whole[0]
    assert head.find(b"\r\n\r\n") == len(head) - 4
    path, before, size, after = whole.groups()
    if before and after:
        return False
    body = b"x" * min(int(size), 10_000)
    parsed = Parsed(head + body)
    assert parsed.url == path
    assert parsed.parser.get_method() in {b"POST", b"PUT"}
    assert parsed.parser.get_http_version() == "1.1"
    assert parsed.parser.should_keep_alive()
    assert not parsed.parser.should_upgrade()
    assert parsed.every(b"content-type") == [one for one in (before or after,) if one]
    assert [int(one) for one in parsed.every(b"content-length")] == [int(size)]
    for name in (b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"):
        assert parsed.every(name) == []
    assert parsed.body == body
    assert parsed.ends == (len(body) == int(size))
    return True


@pytest.mark.parametrize(
    "lines",
    [
        PLAIN,
        PLAIN[::-1],
        [b"Content-Length:3"],
        [b"CONTENT-LENGTH: 0000003", b"Content-Type:text/plain; charset=utf-8", b"Connection: keep-alive"],
        [b"host: x", b"accept: */*", b"user-agent: \x80\xff\t!", b"x-empty:", b"content-length: 3", b"via: 1.1 a"],
        [b"content-length: 0"],
    ],
)
def test_what_everyday_senders_say_is_read(lines: list[bytes]) -> None:
    """Else all would go the long way."""
    assert alike(head_of(START, *lines))


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [b"content-length: 3", b"content-length: 3"],
        [b"content-length: 3, 3"],
        [b"content-length: +3"],
        [b"content-length: 3 "],
        [b"content-length:\t3"],
        [b"content-length : 3"],
        [b"content-length: 12345678"],
        [b"content-length: 3", b"transfer-encoding: chunked"],
        [b"Transfer-Encoding: chunked", b"content-length: 3"],
        [b"transfer-encoding : chunked", b"content-length: 3"],
        [b"content-length: 3", b"x: y", b" folded"],
        [b"content-length: 3", b"\ttransfer-encoding: chunked"],
        [b"content-length: 3", b"x: a\rtransfer-encoding: chunked"],
        [b"content-length: 3", b"x: a\ntransfer-encoding: chunked"],
        [b"content-length: 3", b"x: a\0"],
        [b"content-length: 3", b"x y: z"],
        [b"content-length: 3", b": z"],
        [b"content-length: 3", b"no colon"],
        [b"content-length: 3", b"content-type: a/b", b"content-type: c/d"],
        [b"content-type: a/b", b"content-length: 3", b"content-type: c/d"],
        [b"content-length: 3", b"content-encoding: gzip"],
        [b"content-length: 3", b"connection: close"],
        [b"content-length: 3", b"connection: keep-alive, upgrade", b"upgrade: h2c"],
        [b"content-length: 3", b"proxy-connection: close"],
        [b"content-length: 3", b"expect: 100-continue"],
    ],
)
def test_what_has_a_second_reading_is_left_to_the_parser(lines: list[bytes]) -> None:
    """Two lengths, a coding, a wish, a line that goes on, an end that is none."""
    assert not alike(head_of(START, *lines))


@pytest.mark.parametrize(
    "start",
    [
        b"GET /callbacks/a HTTP/1.1",
        b"post /callbacks/a HTTP/1.1",
        b"POST /callbacks/a HTTP/1.0",
        b"POST /callbacks/a HTTP/1.2",
        b"POST /callbacks/a http/1.1",
        b"POST  /callbacks/a HTTP/1.1",
        b"POST /callbacks/a?b HTTP/1.1",
        b"POST /callbacks/%61 HTTP/1.1",
        b"POST http://x/callbacks/a HTTP/1.1",
        b"POST *  HTTP/1.1",
        b"POST /callbacks/a",
        b"\r\nPOST /callbacks/a HTTP/1.1",
        b" POST /callbacks/a HTTP/1.1",
    ],
)
def test_no_other_beginning_is_read(start: bytes) -> None:
    """What the pattern does not know is not its business."""
    assert not alike(head_of(start, *PLAIN))


def test_no_other_end_of_a_line_is_one() -> None:
    """A lone CR or LF ends nothing."""
    assert not any(alike(head_of(START, *PLAIN, end=end)) for end in (b"\n", b"\r", b"\n\r", b"\r\r\n"))


FIELDS = st.sampled_from(
    [
        *PLAIN,
        b"Content-Type:a/b",
        b"content-type: a/b; c=d",
        b"content-length: 2",
        b"Content-Length:7",
        b"transfer-encoding: chunked",
        b"transfer-encoding: identity",
        b"connection: close",
        b"Connection: keep-alive",
        b"connection: upgrade",
        b"upgrade: h2c",
        b"expect: 100-continue",
        b"proxy-connection: close",
        b"trailer: x",
        b"te: trailers",
        b"x: \x80",
        b"y:",
        b" z",
    ]
)


BYTES = st.sampled_from([b"", b"\0", b"\r", b"\n", b" ", b"\t", b":", b"c", b"\xff"])


@given(
    st.lists(FIELDS, max_size=2).flatmap(lambda more: st.permutations([*PLAIN, *more])),
    st.lists(st.tuples(st.integers(0, 200), BYTES), max_size=3),
    st.booleans(),
)
def test_what_is_read_is_read_alike(fields: list[bytes], cuts: list[tuple[int, bytes]], keep: bool) -> None:
    """Heads of all kinds, with bytes put in or put in place of others."""
    head = head_of(START, *fields)
    for at, byte in cuts:
        head = head[:at] + byte + head[at + (not keep) :]
    alike(head)
