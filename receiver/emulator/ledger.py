"""What happened, counted: the judge's notes on a client. Pure bookkeeping; details are bounded, counts are not."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from receiver.emulator.model import Sent

_KEPT: Final = 500


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that was answered no, with the reason a real upstream would have."""

    route: str
    status: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Warned:
    """A request that was taken, and what a real upstream might not have liked."""

    route: str
    code: str
    detail: str


@dataclass(slots=True)
class Ledger:
    """Counts since the start or the last reset.

    Attributes:
        submissions: requests per create route, whatever became of them.
        created: tasks made, per create route.
        repeated: callback URLs that were paid for more than once.
        lookups: requests per lookup route; `not_found` of them named no task of that key.
        faults: scripted ones that were played, by `submit=…` or `lookup=…`.
        answered: callbacks by the status they were answered with; `unanswered` ones by what went wrong.
    """

    requests: int = 0
    submissions: Counter[str] = field(default_factory=Counter)
    created: Counter[str] = field(default_factory=Counter)
    repeated: list[str] = field(default_factory=list)
    lookups: Counter[str] = field(default_factory=Counter)
    not_found: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    answered: Counter[int] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    warned: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    _refused: deque[Refused] = field(default_factory=lambda: deque(maxlen=_KEPT))
    _warnings: deque[Warned] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def refuse(self, refused: Refused) -> None:
        """Note a refusal."""
        self.refusals[refused.code] += 1
        self._refused.append(refused)

    def warn(self, route: str, warnings: list[tuple[str, str]]) -> None:
        """Note what was odd about a request that was taken."""
        for code, detail in warnings:
            self.warned[code] += 1
            self._warnings.append(Warned(route, code, detail))

    def sent(self, sent: Sent) -> None:
        """Note a callback."""
        self.kinds[sent.kind] += 1
        if sent.status is None:
            self.unanswered[sent.error or ""] += 1
        else:
            self.answered[sent.status] += 1

    def report(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        return {
            "requests": self.requests,
            "submissions": dict(self.submissions),
            "created": dict(self.created),
            "tasks": self.created.total(),
            "repeated": list(self.repeated),
            "lookups": {**self.lookups, "not_found": self.not_found},
            "faults": dict(self.faults),
            "callbacks": {
                "sent": self.kinds.total(),
                "kinds": dict(self.kinds),
                "answered": {str(status): count for status, count in self.answered.items()},
                "unanswered": dict(self.unanswered),
            },
            "refused_count": self.refusals.total(),
            "refusals": dict(self.refusals),
            "refused": [asdict(item) for item in self._refused],
            "warned": dict(self.warned),
            "warnings": [asdict(item) for item in self._warnings],
        }
