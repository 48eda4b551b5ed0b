"""Platforms that answer everything with a 200 and say what it means by a number in it: 0 is success. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from receiver.destinations import chat
from receiver.retry import Result

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    from receiver.wire import HttpResponse


@dataclass(frozen=True)
class Codes:
    """One platform's numbers. Those that stand nowhere here are transient: the schedule ends them.

    Attributes:
        platform: its name.
        numbers: the members that hold the number; the first that is there counts.
        words: the member that holds the words to it.
        patience: too many, and how long to leave it alone: it names no time itself.
        unusable: what would be the same for whatever else is sent, and what it is about; the destination is paused.
        refused: what is wrong with this one message.
    """

    platform: str
    numbers: tuple[str, ...]
    words: str
    patience: Mapping[int, timedelta] = field(default_factory=dict)
    unusable: Mapping[int, str] = field(default_factory=dict)
    refused: frozenset[int] = frozenset()

    def judge(self, response: HttpResponse, *, now: datetime) -> Result:
        """What an answer means; one without a number by its status, and none of these is a success."""
        document = chat.document_of(response)
        code = next((document[name] for name in self.numbers if name in document), None)
        if isinstance(code, bool) or not isinstance(code, int) or (code == 0 and not response.is_success):
            result = chat.judge(response, now=now)
            strange = f"{result.reason}, and not as {self.platform} does"
            return Result("transient", strange) if result.kind == "ok" else result
        if code == 0:
            return Result("ok", f"it answered {response.status}")
        said = f"it said {code}: {chat.word_of(document.get(self.words, ''))}"
        if code in self.patience:
            return Result("throttled", said, retry_after=self.patience[code])
        if code in self.unusable:
            return Result("permanent", f"{said} ({self.unusable[code]}); the destination is paused", pause=True)
        return Result("permanent" if code in self.refused else "transient", said)
