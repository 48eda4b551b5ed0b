"""The envelope: total, lenient about bytes, strict about what is an object."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from receiver.envelope import Envelope, error_text, parse
from receiver.errors import EnvelopeError
from receiver.lifecycle import TERMINAL_SEEN
from receiver.upstream.reading import has_word, observe
from receiver.upstream.words import STATUS_WORDS, WORDS

CONTENT_TYPES = st.none() | st.sampled_from(["application/json", "application/x-www-form-urlencoded"]) | st.text()

NAMES = st.sampled_from(
    [
        "status",
        "state",
        "task_status",
        "task_id",
        "taskId",
        "id",
        "code",
        "msg",
        "message",
        "data",
        "error",
        "result",
        "output",
        "video_url",
        "result_url",
        "poster",
        "fail_reason",
        "failure",
        "failureCode",
        "progress",
        "prompt",
        "task_result",
        "videos",
        "url",
        "assets",
        "content",
        "type",
        "last_frame",
    ]
)
KNOWN_WORDS = st.sampled_from([*STATUS_WORDS, "SUCCESS", " Failed ", "https://x.example/v.mp4", "task_not_exist", ""])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 600)
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | KNOWN_WORDS
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=12,
)
BODIES = st.dictionaries(NAMES | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), VALUES, max_size=8)


def read_or_none(body: bytes, content_type: str | None) -> Envelope | None:
    """The envelope, or None for the one error that may escape."""
    try:
        return parse(body, content_type)
    except EnvelopeError:
        return None


@given(st.binary(), CONTENT_TYPES)
@example(b"[" * 100_000, None)
@example(b'{"a":' * 100_000, None)
@example(b'{"data":' * 900 + b"1" + b"}" * 900, None)
@example(b'{"code": 1e999, "status": -1e999}', None)
@example(b'{"code": ' + b"9" * 5_000 + b"}", None)
@example(b'{"code": ' + b"9" * 30 + b', "x": NaN}', None)
@example(b'{"status": "\\ud800", "task_id": "\\udfff"}', None)
@example(b'{"status": "\x00"}', None)
@example(b"\xff\xfe{\x00}\x00", None)
@example(b"status=3&" * 1_000, "application/x-www-form-urlencoded")
@example(b"data[a][b][c][d][e][f]=1&data=2&data[a]=3", None)
@example(b"data=" + b"[" * 5_000, None)
@example(b"id=%00%ff%ed%a0%80", None)
def test_no_bytes_make_parse_or_read_raise(body: bytes, content_type: str | None) -> None:
    """Of any bytes with any content type, only EnvelopeError escapes; what can be parsed can be read and written."""
    envelope = read_or_none(body, content_type)
    if envelope is not None:
        observation = observe(envelope)
        assert observation.data_json is None or type(orjson.loads(observation.data_json)) is dict


@given(st.text(alphabet='{}[]":,\\u0dD8=&%+-.eE1 \n\x00<status_idcode', max_size=60), CONTENT_TYPES)
def test_no_text_that_looks_like_json_or_a_form_makes_parse_raise(text: str, content_type: str | None) -> None:
    """Near misses of JSON and of forms are no different."""
    read_or_none(text.encode(), content_type)


@given(BODIES)
def test_what_is_read_obeys_the_laws(body: dict[str, Any]) -> None:
    """A URL stands only with a success and is http(s); a success without one is odd; no word, no terminal claim."""
    envelope = parse(orjson.dumps(body), "application/json")
    observation = observe(envelope)
    assert 1 <= len(envelope.levels) <= 4
    assert envelope.levels[0] == body
    for url in (observation.video_url, observation.poster, observation.last_frame):
        assert url is None or url.lower().startswith(("http://", "https://"))
        assert url is None or observation.seen == "succeeded"
    assert (observation.seen == "succeeded" and observation.video_url is None) == ("no-url" in observation.oddities)
    if observation.seen in TERMINAL_SEEN and not has_word(envelope):
        assert observation.oddities == ("bare-code",)
    assert observation.progress is None or 0 <= observation.progress <= 100
    assert observation.failure is None or observation.seen in {"failed", "cancelled"}


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_an_unknown_word_is_never_terminal(text: str) -> None:
    """What no table knows is no end of a task, in any of the members."""
    normal = text.strip().lower().replace(" ", "_").replace("-", "_")
    for name, table in (("status", STATUS_WORDS), ("state", WORDS), ("task_status", WORDS)):
        seen = observe(parse(orjson.dumps({"task_id": "t", name: text}), None)).seen
        assert seen == (table.get(normal, "unknown") if normal else "queued")


@pytest.mark.parametrize(
    "body", [b"", b" ", b"null", b"3", b'"x"', b"[]", b'[{"id": "x"}]', b"true", b"<p>&id=5", b"{"]
)
def test_what_is_no_object_is_an_envelope_error(body: bytes) -> None:
    """A list, a scalar, nothing, HTML and half a body are no envelope."""
    with pytest.raises(EnvelopeError):
        parse(body, "application/json")


def test_the_error_names_the_content_type_and_not_the_body() -> None:
    """The operator sees what it claimed to be; what it held is kept elsewhere."""
    with pytest.raises(EnvelopeError, match=r"content type: text/secret-free\)") as caught:
        parse(b"a secret", "text/secret-free")
    assert "a secret" not in str(caught.value)


def test_an_empty_object_is_an_envelope_of_nothing() -> None:
    """No code, no words, no data; one level."""
    assert parse(b"{}", None) == Envelope(None, "", {}, ({},))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"code": 200}, 200),
        ({"code": "200"}, "200"),
        ({"code": 200.0}, 200),
        ({"code": 200.5}, None),
        ({"code": True}, None),
        ({"code": " "}, None),
        ({"code": None, "data": {"code": 5}}, 5),
        ({"error": {"code": "invalid_request"}}, "invalid_request"),
        ({"error": {"code": ""}}, None),
        ({"error": "text"}, None),
        ({"code": 0, "error": {"code": "x"}}, 0),
    ],
)
def test_the_code_is_the_outermost_one_as_it_came(body: dict[str, Any], code: object) -> None:
    """A number or a word; an error object's where no level has one."""
    assert parse(orjson.dumps(body), None).code == code


@pytest.mark.parametrize(
    ("body", "msg"),
    [
        ({"msg": "a", "message": "b"}, "a"),
        ({"msg": " ", "message": " b "}, "b"),
        ({"msg": None, "data": {"msg": "inner"}}, "inner"),
        ({"error": {"message": "m"}}, "m"),
        ({"error": {"msg": "m"}}, "m"),
        ({"error": {"raw_message": "m"}}, "m"),
        ({"error": " text "}, "text"),
        ({"error": {"message": 5}}, ""),
        ({"error": 5}, ""),
    ],
)
def test_the_words_are_the_outermost_ones(body: dict[str, Any], msg: str) -> None:
    """`msg` before `message`, both before an error's."""
    assert parse(orjson.dumps(body), None).msg == msg


def test_the_descent_ends_at_the_level_with_a_status_and_keeps_every_level() -> None:
    """The row of the nested wrapper is read, not what is nested in the row."""
    row = {"task_id": "t", "status": "QUEUED", "data": {"id": "t", "status": "PENDING"}}
    body = {"code": "success", "data": row}
    assert parse(orjson.dumps(body), None) == Envelope("success", "", row, (body, row))


def test_the_descent_is_bounded() -> None:
    """A root and three levels below it at most."""
    body: dict[str, Any] = {"status": "3"}
    for _ in range(9):
        body = {"data": body}
    envelope = parse(orjson.dumps(body), None)
    assert len(envelope.levels) == 4
    assert envelope.data == envelope.levels[-1]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"status": "success", "data": {"id": "t", "status": "2"}}, "data"),
        ({"status": "success", "data": {"status": "2"}}, None),
        ({"status": "success", "data": {"id": "t"}}, None),
        ({"id": "t", "status": "success", "data": {"id": "t", "status": "2"}}, None),
        ({"status": " ", "data": {"status": 2}}, "data"),
        ({"status": False, "data": {"status": 2.0}}, "data"),
        ({"task_id": "t", "data": {}}, None),
        ({"code": 200, "taskId": "t", "data": {"x": 1}}, "data"),
    ],
)
def test_which_level_is_the_task(body: dict[str, Any], pointer: str | None) -> None:
    """The first with a status of its own; one that names no task is about the answer if a real one is below."""
    assert parse(orjson.dumps(body), None).data == (body[pointer] if pointer else body)


@pytest.mark.parametrize(
    "body", [{"code": 400, "taskId": "t", "data": None}, {"error": "x"}, {"code": 200, "data": []}]
)
def test_a_bare_envelope_holds_no_task_object(body: dict[str, Any]) -> None:
    """What speaks of the call alone is not passed on as a task."""
    assert parse(orjson.dumps(body), None).data == {}


def test_a_second_try_mends_what_the_strict_reader_refuses() -> None:
    """A raw line break, half a surrogate pair, NaN and a number too large cost their own value and no more."""
    body = b'{"task_id": "t", "prompt": "a\nb\\ud83d", "x": NaN, "y": 1e999, "z": 12, "w": ' + b"9" * 400 + b"}"
    assert parse(body, None).data == {"task_id": "t", "prompt": "a\nb?", "x": None, "y": None, "z": 12, "w": None}


@pytest.mark.parametrize(
    ("form", "data"),
    [
        (b"task_id=t&status=3&empty=", {"task_id": "t", "status": "3", "empty": ""}),
        (b"data[task_id]=t&data[output][]=u", {"task_id": "t", "output": {"": "u"}}),
        (b'data={"task_id":"t","status":"3"}', {"task_id": "t", "status": "3"}),
        (b'body={"task_id":"t"}&sign=x', {"task_id": "t"}),
        (b'id=t&output=["https://x.example/v"]', {"id": "t", "output": ["https://x.example/v"]}),
        (b"id=t&prompt={cut", {"id": "t", "prompt": "{cut"}),
        (b"data=x&data[task_id]=t", {"task_id": "t"}),
        (b"\xef\xbb\xbfid=t\r\n", {"id": "t"}),
    ],
)
def test_a_form_is_understood(form: bytes, data: dict[str, Any]) -> None:
    """Flat, with PHP's brackets, with JSON in a value."""
    assert parse(form, "application/x-www-form-urlencoded").data == data


@pytest.mark.parametrize(
    "form", [b"a=1&b=2", b'a={"b":1}', b"&".join([b"id=1"] * 201), b"id=1&<b>=2", b"status", b"=3"]
)
def test_what_is_no_form_of_the_upstream(form: bytes) -> None:
    """Names nobody knows, too many fields, names that are prose."""
    with pytest.raises(EnvelopeError):
        parse(form, "application/x-www-form-urlencoded")


def test_error_text_reads_strings_and_objects() -> None:
    """The upstream's `error` is either."""
    assert error_text({}) == ""
    assert error_text({"error": {"message": "", "msg": " m "}}) == "m"
