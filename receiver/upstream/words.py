"""The upstream's words, as tables. A word that is in no table is `unknown` and never terminal.

Sources: upstream.md 8.3 (statuses), 8.1 (codes), 1.1 (error codes). Words are compared trimmed, in lower case, with `_`
for blanks and hyphens. Numbers are statuses only in the reverse shape's member `status`, never in `state` or `code`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from receiver.lifecycle import Seen

UNKNOWN: Final[Seen] = "unknown"
TASK_NOT_EXIST: Final = "task_not_exist"
INVALID_REQUEST: Final = "invalid_request"

_TABLE: Final[dict[Seen, tuple[str, ...]]] = {
    "queued": (
        *("not_start", "not_started", "submitted", "queued", "queueing", "pending", "throttled", "in_queue"),
        *("starting", "queuing", "waiting", "staged", "created"),  # the last four are siblings'
    ),
    "running": ("in_progress", "running", "processing", "generating", "dreaming"),  # dreaming: Luma
    "succeeded": ("success", "succeeded", "succeed", "completed", "complete"),
    "failed": ("failure", "failed", "fail", "error", "timeout", "expired"),
    "cancelled": ("cancelled", "canceled", "cancel", "deleted"),
    "missing": (TASK_NOT_EXIST,),
    "unknown": (UNKNOWN,),
}
WORDS: Final[dict[str, Seen]] = {word: seen for seen, words in _TABLE.items() for word in words}
STATUS_WORDS: Final[dict[str, Seen]] = {**WORDS, "0": "queued", "1": "running", "2": "failed", "3": "succeeded"}
"""For the member `status`: also the reverse shape's numbers. One reseller's page swaps 2 and 3; it is wrong."""

SUCCESS_NUMBERS: Final = frozenset({200, 0, 201, 202})
SUCCESS_WORDS: Final = frozenset({"success", "succeed", "succeeded", "ok"})
ACCOUNT_WORDS: Final = ("quota", "balance", "billing", "arrear")
"""Parts of an error's `code` or `type` that say a 403 is about our account: new-api's `insufficient_user_quota` and
`pre_consume_token_quota_failed`, OpenAI's `insufficient_quota` and `billing_hard_limit_reached`, resellers'
`insufficient_balance`. Messages are never asked: the gateway rewrites them."""

_MAX_WORD = 40
_MAX_NUMBER = 2**31 - 1
_NO_WORD = "?"


def word(value: Any) -> str:
    """A status or a code as a table knows it; "" for a blank, "?" for what is no word at all (booleans, objects)."""
    if type(value) is str:
        if len(value) > _MAX_WORD:
            return _NO_WORD
        return value.strip().lower().replace(" ", "_").replace("-", "_")
    if type(value) is int:
        return str(value)
    return "" if value is None else _NO_WORD


def number(code: int | str | None) -> int | None:
    """The upstream's own number, also where it came as text; None for words and for what no database would hold."""
    if type(code) is str:
        digits = code.strip()
        if not (digits.isascii() and digits.removeprefix("-").isdigit()) or len(digits) > len(str(_MAX_NUMBER)):
            return None
        code = int(digits)
    return code if type(code) is int and abs(code) <= _MAX_NUMBER else None


def is_error(code: int | str | None) -> bool:
    """Whether a business code says that something went wrong; no code says nothing."""
    if code is None:
        return False
    known = number(code)
    return known not in SUCCESS_NUMBERS if known is not None else word(code) not in SUCCESS_WORDS


def outcome_code(succeeded: bool, code: int | None) -> int:
    """The `code` that goes out (contract 5): 200 exactly for a success, else the upstream's own number, else 500.

    A number that means success (kling's 0 too) is no code for a task that did not succeed.
    """
    if succeeded:
        return 200
    return 500 if code is None or code in SUCCESS_NUMBERS else code
