"""The rules of reading, one by one, where a recorded body would show only one of their sides."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.envelope import parse
from receiver.upstream import reading
from receiver.upstream.base import Missing, Refused, Shown, Unanswered, Unusable
from receiver.upstream.reading import has_word, is_about_question, observe
from receiver.upstream.verdicts import judge_lookup, judge_submission, upstream_code
from receiver.upstream.words import is_error, number, outcome_code, word
from receiver.wire import HttpResponse

if TYPE_CHECKING:
    from receiver.records import Observation

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
URL = "https://cdn.example.com/v.mp4"
OTHER = "https://cdn.example.com/other.mp4"
PROXY = "https://api.cometapi.com/v1/videos/t/content"


def read(**body: Any) -> Observation:
    """The observation of a flat body."""
    return observe(parse(orjson.dumps(body), None))


@pytest.mark.parametrize(
    ("value", "percent"),
    [
        ("45%", 45),
        (" 45 % ", 45),
        ("45", 45),
        ("100%", 100),
        ("99.9%", 99),
        ("0.45", 45),
        ("1.0", 100),
        ("1", 1),
        (0, 0),
        (1, 1),
        (100, 100),
        (0.29, 29),
        (1.0, 100),
        (45.7, 45),
        (101, None),
        (-1, None),
        (-0.5, None),
        ("150%", None),
        ("nan%", None),
        ("-5%", None),
        ("half", None),
        ("5" * 40, None),
        ("\u0664\u0665%", None),
        (True, None),
        (None, None),
        ([45], None),
        (1e300, None),
    ],
)
def test_progress_is_percent(value: object, percent: int | None) -> None:
    """Texts with and without a sign, shares and integers, 0 to 100; anything else is no progress."""
    assert read(task_id="t", status="1", progress=value).progress == percent


def test_progress_of_the_inner_object_counts_where_the_row_has_none() -> None:
    """The row goes first."""
    assert read(task_id="t", status="1", data={"progress": 0.5}).progress == 50
    assert read(task_id="t", status="1", progress="0%", data={"progress": 0.5}).progress == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://h/",
        "https://h",
        "HTTPS://H.EXAMPLE:8443/a?b=c#d",
        "https://user:pass@h.example/v",
        "https://[2001:db8::1]:443/v",
        "https://h?q",
        "https://h#f",
        "https://xn--bcher-kva.example/ä%20b",
        "https://h/" + "a" * 8_182,
    ],
)
def test_a_usable_url(url: str) -> None:
    """Two schemes, a host, nothing that breaks a line, at most 8,192 characters."""
    assert read(status="3", video_url=f" {url}" if len(url) < 99 else url).video_url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://h/v",
        "//h/v",
        "/v",
        "https://",
        "https:///v",
        "https://?q",
        "https://user@/v",
        "https://h:port/v",
        "https://h\\@evil/v",
        "https://h/a b",
        "https://h/a\nb",
        "https://h/a\x00b",
        "https://h/a\u2028b",
        "https://h/a\x85b",
        "javascript:alert(1)//https://h/",
        "https://h/" + "a" * 8_183,
        5,
        True,
        {"x": URL},
        [],
        [[[[[URL]]]]],
    ],
)
def test_an_unusable_url(url: object) -> None:
    """Anything else is no URL, and a success without one is odd."""
    observation = read(task_id="t", status="3", video_url=url, poster=url, last_frame=url)
    assert (observation.video_url, observation.poster, observation.last_frame) == (None, None, None)
    assert observation.oddities == ("no-url",)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_no_text_becomes_a_url_with_a_blank_or_a_control_character(text: str) -> None:
    """What stands in a URL that is passed on can break neither a header nor a log line."""
    url = read(status="3", video_url=f"https://h/{text}").video_url
    assert url is None or not any(sign.isspace() or unicodedata.category(sign) == "Cc" for sign in url)


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.sampled_from(["h.example/", "H.example/", ""])
)
def test_the_quick_look_at_a_url_agrees_with_the_whole_rule(text: str, host: str) -> None:
    """A plain URL is recognised without the regular expression, and nothing else is."""
    url = f"https://{host}{text}".strip()
    assert read(status="3", video_url=url).video_url == (url if reading._URL.fullmatch(url) else None)


@pytest.mark.parametrize(
    "body",
    [
        {"video_url": URL, "result_url": OTHER},
        {"video_url": "soon", "result_url": URL, "output": [OTHER]},
        {"output": [None, "soon", URL], "result": {"video_url": OTHER}},
        {"output": URL},
        {"output": {"url": URL}},
        {"result": {"video_url": URL}, "raw_video_url": OTHER},
        {"raw_video_url": URL, "data": {"video_url": OTHER}},
        {"data": {"video_url": URL, "output": [OTHER]}},
        {"data": {"result_url": URL}},
        {"data": {"output": [URL]}, "fail_reason": OTHER},
        {"task_result": {"videos": [{"url": URL}]}},
        {"result": {"videos": [{"url": [URL]}]}},
        {"fail_reason": URL},
        {"result_url": PROXY, "data": {"output": [URL]}},
        {"video_url": PROXY, "fail_reason": URL},
    ],
)
def test_the_result_is_taken_in_the_documented_order(body: dict[str, Any]) -> None:
    """The first usable URL of the list; one that needs our key only where there is no other."""
    assert read(task_id="t", status="SUCCESS", **body).video_url == URL


def test_a_proxy_is_better_than_nothing() -> None:
    """Where the gateway's own route is all there is, it is the first of these."""
    assert read(status="3", video_url=PROXY, result_url=f"{PROXY}?x").video_url == f"{PROXY}?x"
    assert read(status="3", video_url=PROXY, raw_video_url=PROXY.replace("t/", "u/")).video_url == PROXY


def test_pictures_are_found_beside_and_inside() -> None:
    """Poster and last frame, of the task or of what is nested in it; the first usable one."""
    found = read(status="3", video_url=URL, poster="no", cover_url=OTHER, result={"last_frame": URL})
    assert (found.poster, found.last_frame) == (OTHER, URL)
    assert read(status="2", poster=URL, last_frame=URL).poster is None


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ({"fail_reason": "a", "failure": "b"}, "a"),
        ({"fail_reason": " ", "failure": "b", "msg": "c"}, "b"),
        ({"failure_reason": "a"}, "a"),
        ({"msg": "a", "error": "b"}, "a"),
        ({"message": "a"}, "a"),
        ({"error": "a"}, "a"),
        ({"error": {"message": "a"}}, "a"),
        ({"task_status_msg": "a"}, "a"),
        ({"data": {"failure": "a"}}, "a"),
        ({"code": 500, "msg": "a"}, "a"),
        ({"code": 200, "msg": "success"}, None),
        ({"code": [200], "msg": "a"}, None),
        ({"code": "success", "message": "ok", "fail_reason": "a"}, "a"),
        ({"fail_reason": {"x": 1}, "failure": 5}, None),
        ({}, None),
    ],
)
def test_the_reason_of_a_failure(body: dict[str, Any], failure: str | None) -> None:
    """The task's own words, and never the envelope's praise for the call."""
    observation = read(task_id="t", status="2", **body)
    assert (observation.failure, observation.msg) == (failure, failure or "")


def test_a_failure_code_is_passed_on() -> None:
    """Beside or inside, in either spelling."""
    assert read(status="FAILED", failureCode="SAFETY.INPUT.TEXT").failure_code == "SAFETY.INPUT.TEXT"
    assert read(status="FAILED", task_id="t", data={"failure_code": "INTERNAL"}).failure_code == "INTERNAL"
    assert read(status="SUCCEEDED", failureCode="INTERNAL").failure_code is None


def test_texts_are_capped_and_hold_no_nul() -> None:
    """A hostile body cannot bloat a row, nor bring what PostgreSQL will not store."""
    observation = read(task_id="t", status="2", msg="a\x00b" + "x" * 9_000, prompt="p" * 9_000, failureCode="c" * 999)
    assert observation.failure == "ab" + "x" * 3_998
    assert observation.prompt == "p" * 4_000
    assert observation.failure_code == "c" * 200


@pytest.mark.parametrize(
    ("status", "state", "seen", "odd"),
    [
        ("3", "succeeded", "succeeded", False),
        ("2", "failed", "failed", False),
        ("1", "", "running", False),
        (None, "failed", "failed", False),
        ("3", "failed", "unknown", True),
        ("2", "succeeded", "unknown", True),
        ("3", "running", "unknown", True),
        ("1", "succeeded", "unknown", True),
        ("0", "running", "unknown", True),
        ("3", "sparkling", "succeeded", True),
        ("sparkling", "succeeded", "succeeded", True),
        ("2", "sparkling", "failed", True),
        ("1", "sparkling", "running", False),
        ("sparkling", "glittering", "unknown", False),
        (200, "succeeded", "succeeded", True),
        ("3", "3", "succeeded", True),
        ("cancelled", "CANCELED", "cancelled", False),
    ],
)
def test_status_and_state_together(status: object, state: object, seen: str, odd: bool) -> None:
    """Two known words that differ claim nothing; a terminal one beside an unknown one is a claim, and odd."""
    observation = read(task_id="t", status=status, state=state, video_url=URL)
    assert (observation.seen, observation.oddities) == (seen, ("disagreement",) * odd)


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ({"code": "task_not_exist", "status": "error"}, "missing"),
        ({"status": 404, "code": "task_not_exist"}, "missing"),
        ({"status": "error", "message": "task_not_exist"}, "missing"),
        ({"error": "Task_Not_Exist"}, "missing"),
        ({"message": 5, "error": {"message": "task_not_exist (request id: 1)"}}, "missing"),
        ({"task_id": "t", "status": "2", "msg": "task_not_exist at the provider"}, "failed"),
        ({"task_id": "t", "status": "3", "msg": "task_not_exist"}, "succeeded"),
        ({"task_id": "t", "status": "1", "code": "task_not_exist"}, "running"),
        ({"prompt": "task_not_exist"}, "unknown"),
    ],
)
def test_what_says_that_the_task_does_not_exist(body: dict[str, Any], seen: str) -> None:
    """The code, or words that are not the reason of a named task; a word on the task itself goes first."""
    assert read(**body).seen == seen


def test_a_code_without_a_status_is_a_claim_that_is_odd() -> None:
    """An error code claims a failure, success codes claim nothing."""
    errors: list[Any] = [400, "500", "task_failed", -1, 1]
    for code in errors:
        assert (read(code=code).seen, read(code=code).oddities) == ("failed", ("bare-code",))
    for code in [200, "200", 0, "success", "SUCCESS", " ", None]:
        assert (read(code=code).seen, read(code=code).oddities) == ("unknown", ())


@pytest.mark.parametrize(
    ("code", "known"),
    [
        (200, 200),
        ("200", 200),
        (" -1 ", -1),
        ("success", None),
        (None, None),
        (2**31 - 1, 2**31 - 1),
        (2**31, None),
        (-(2**31), None),
        ("9" * 10, None),
        ("9" * 5_000, None),
        ("\u0662", None),
        ("--1", None),
    ],
)
def test_a_code_s_number(code: int | str | None, known: int | None) -> None:
    """Also as text; nothing that a database's integer would not hold."""
    assert number(code) == known
    assert read(task_id="t", status="1", code=code).code == known


def test_what_is_an_error_code() -> None:
    """No code is no error; a number too large to keep is one all the same."""
    assert [is_error(code) for code in (None, 200, "0", "ok", "x", 2**40, 500)] == [False] * 4 + [True] * 3


def test_what_is_no_word() -> None:
    """Booleans, objects and prose are no words, and no table knows them; null is silence."""
    values: list[Any] = [True, {}, 3.0, "x" * 41, None, "  "]
    assert [word(value) for value in values] == ["?", "?", "?", "?", "", ""]
    assert word(" In-Queue ") == "in_queue"


@pytest.mark.parametrize(
    ("succeeded", "code", "outgoing"),
    [(True, None, 200), (True, 500, 200), (False, None, 500), (False, 200, 500), (False, 0, 500), (False, 501, 501)],
)
def test_the_outgoing_code(succeeded: bool, code: int | None, outgoing: int) -> None:
    """200 exactly for a success; a failure never goes out under a number of success."""
    assert outcome_code(succeeded, code) == outgoing


def test_an_object_nested_too_deeply_is_passed_on_without_its_depths() -> None:
    """What comes out can be put into an event and written again; the scalars are kept."""
    deep: Any = 1
    for _ in range(240):
        deep = [deep]
    observation = read(task_id="t", status="2", deep=deep)
    assert orjson.loads(observation.data_json or "") == {"task_id": "t", "status": "2"}
    kept = read(task_id="t", status="2", deep=deep[0][0][0][0][0])
    assert len(orjson.dumps([orjson.loads(kept.data_json or "")])) > 240


@pytest.mark.parametrize(
    ("body", "about"),
    [
        ({"code": "get_task_failed", "message": "db", "data": None}, True),
        ({"code": 500, "msg": "x", "data": {"task_id": "t"}}, True),
        ({"status": "error", "message": "db"}, True),
        ({"code": 500, "status": "failed"}, True),
        ({"status": "failed"}, False),
        ({"id": "t", "status": "error"}, False),
        ({"id": "t", "code": 500, "status": "failed"}, False),
        ({"status": "succeeded"}, False),
    ],
)
def test_a_lookup_that_failed_is_no_task_that_failed(body: dict[str, Any], about: bool) -> None:
    """An error about the question never ends a task, in a lookup's answer."""
    envelope = parse(orjson.dumps(body), None)
    assert is_about_question(envelope, observe(envelope)) is about
    looked = judge_lookup(HttpResponse(200, {}, orjson.dumps(body)), now=NOW)
    assert isinstance(looked, Unusable if about else Shown)


def test_a_lookup_s_answer_that_broke_off_is_none() -> None:
    """However much of it could be read."""
    body = b'{"id": "t", "status": "FAILED"}'
    assert isinstance(judge_lookup(HttpResponse(200, {}, body), now=NOW), Shown)
    assert isinstance(judge_lookup(HttpResponse(200, {}, body, truncated=True), now=NOW), Unanswered)


@pytest.mark.parametrize("status", [200, 201, 301, 400, 401, 403, 404, 429, 500, 502])
def test_task_not_exist_is_missing_with_any_status(status: int) -> None:
    """The HTTP status under it says nothing."""
    assert judge_lookup(HttpResponse(status, {}, b'{"code":"task_not_exist"}'), now=NOW) == Missing()


@pytest.mark.parametrize("status", [400, 404, 410, 422])
def test_a_task_object_under_an_error_status_is_not_believed(status: int) -> None:
    """A lookup that was refused shows nothing, whatever words its body has."""
    looked = judge_lookup(HttpResponse(status, {}, b'{"id":"t","status":"FAILED","failure":"x"}'), now=NOW)
    assert looked == Unusable(f"HTTP {status}", status, None)


def test_a_403_without_a_body_or_with_a_word_beside_is_told_apart() -> None:
    """Only the code and the type are asked whether it is about the account."""
    blocked = Refused(403, "HTTP 403", account=False)
    assert judge_submission(HttpResponse(403), now=NOW) == blocked
    assert judge_submission(HttpResponse(403, {}, b'{"type": 5, "error": {"type": []}}'), now=NOW) == blocked
    quota = judge_submission(HttpResponse(403, {}, b'{"code":"insufficient_balance","message":"x"}'), now=NOW)
    assert quota == Refused(502, "x", account=True)
    words = judge_submission(HttpResponse(403, {}, b'{"error":{"message":"quota of free models"}}'), now=NOW)
    assert words == Refused(403, "quota of free models", account=False)


def test_whether_there_is_a_word() -> None:
    """Known or not; blanks and null are none."""
    for body, has in (({"status": "x"}, True), ({"status": " ", "state": None}, False), ({"task_status": 1}, True)):
        assert has_word(parse(orjson.dumps(body), None)) is has


def test_the_upstream_s_number_in_an_answer() -> None:
    """Where it can be read and gave one."""
    assert upstream_code(HttpResponse(200, {}, b'{"code": "400"}')) == 400
    assert upstream_code(HttpResponse(200, {}, b'{"code": "x"}')) is None
    assert upstream_code(HttpResponse(200, {}, b"<html>")) is None
