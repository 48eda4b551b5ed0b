"""How the upstream says no: the error bodies E1 to E5 and the HTML of whatever stands before it, as data."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

    from receiver.emulator.vocabulary import Fault

JSON_TYPE: Final = "application/json; charset=utf-8"
_SATURATED: Final = "当前分组上游负载已饱和，请稍后再试"  # noqa: RUF001 -- the upstream's own words
_TOO_MANY: Final = 429
_FIRST_ERROR: Final = 400


class Answer(NamedTuple):
    """A whole response."""

    status: int
    body: bytes
    content_type: str = JSON_TYPE
    headers: Mapping[str, str] = {}


class Refusal(Exception):
    """The request is refused; `reason` is for the report.

    Attributes:
        answer: what the caller gets.
        code: one stable word for the report.
    """

    def __init__(self, answer: Answer, *, code: str, reason: str) -> None:
        super().__init__(reason)
        self.answer = answer
        self.code = code
        self.reason = reason


def json_answer(status: int, body: Any) -> Answer:
    """Any JSON."""
    return Answer(status, orjson.dumps(body))


def e1(status: int, message: str, request_id: str, code: str = "") -> Answer:
    """The gateway's own (OpenAI style); the request id stands in the message."""
    error = {"message": f"{message} (request id: {request_id})", "type": "comet_api_error", "param": "", "code": code}
    return json_answer(status, {"error": error})


def e2(status: int, code: str, message: str = "") -> Answer:
    """The task routes' (new-api's TaskError); on 429 its message is overwritten."""
    text = _SATURATED if status == _TOO_MANY else message or code
    return json_answer(status, {"code": code, "message": text, "data": None})


def e4(status: int, message: str, issues: list[str] | None = None) -> Answer:
    """The official API's, passed through: `error` is a string."""
    return json_answer(status, {"error": message, "issues": issues} if issues else {"error": message})


def html(status: int, headers: Mapping[str, str] | None = None) -> Answer:
    """What a proxy or a CDN says."""
    text = f"<html><head><title>{status}</title></head><body><center><h1>{status}</h1></center></body></html>"
    return Answer(status, text.encode(), "text/html; charset=utf-8", headers or {})


def task_not_exist(*, as_blog: bool = False, task_id: str = "") -> Answer:
    """HTTP 400, not 404; the vendor's article reads it from `status` in a 2xx instead."""
    if as_blog:
        return json_answer(200, {"id": task_id, "status": "task_not_exist"})
    return e2(400, "task_not_exist")


_E1_WORDS: Final = {
    401: ("Invalid token", ""),
    403: ("This model is not available to your group", ""),
    429: ("Rate limit reached, please slow down", "rate_limit_exceeded"),
    503: ("No available channel", "service_unavailable"),
}
_E2_WORDS: Final = {401: "unauthorized", 429: "rate_limit", 500: "fail_to_fetch_task", 503: "channel_not_found"}


def of_fault(fault: Fault, *, request_id: str, retry_after: str) -> Answer:
    """The answer a status fault asks for, with its `Retry-After`."""
    answer = _status_answer(fault, request_id)
    headers = dict(answer.headers)
    if retry_after.startswith("date:"):
        headers["retry-after"] = formatdate(time.time() + int(retry_after.removeprefix("date:")), usegmt=True)
    elif retry_after:
        headers["retry-after"] = retry_after
    return answer._replace(headers=headers)


def _status_answer(fault: Fault, request_id: str) -> Answer:
    status = fault.status
    if fault.body == "empty":
        return Answer(status, b"")
    if fault.body == "html":
        redirects = status < _FIRST_ERROR
        return html(status, {"location": "https://www.example.com/"} if redirects else None)
    if fault.body == "e2":
        return e2(status, _E2_WORDS.get(status, "do_request_failed"))
    if fault.body == "e4":
        return e4(status, "The request could not be processed.")
    if fault.body == "invalid":
        return e1(status, "field messages is required", request_id, "invalid_request")
    message, code = _E1_WORDS.get(status, ("The upstream had an error", "upstream_error"))
    return e1(status, message, request_id, code)


UNREADABLE: Final = Answer(200, b"<!doctype html><html><body>please wait</body></html>", "text/html; charset=utf-8")
EMPTY: Final = Answer(200, b"")
SCALAR: Final = Answer(200, b'"ok"')
NULL: Final = Answer(200, b'{"code":"success","message":"","data":null}')
BUSINESS: Final = json_answer(200, {"code": 1002, "msg": "积分不足", "data": None, "exec_time": 0.01})
NO_ID: Final = json_answer(200, {"code": 200, "message": "", "msg": "success", "data": {}})
BY_WORD: Final[Mapping[str, Answer]] = {
    "code": BUSINESS,
    "unreadable": UNREADABLE,
    "empty": EMPTY,
    "scalar": SCALAR,
    "null": NULL,
    "no-id": NO_ID,
}
