"""Counting, and the text in which Prometheus reads it (format 0.0.4). Pure: it is told everything, and asks nobody.

Written by hand rather than with prometheus_client: a counter is a number in a dictionary, an increment costs 0.1 us
instead of 1, and the text is forty lines; the client's parser judges it in the tests. No id of a task, no URL and no
word of a stranger ever becomes a label: every label has few values, and all are ours or the configuration's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
FAST: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Seconds: for what happens on this machine."""
SLOW: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0)
"""Seconds: for what others answer."""
SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)

Labels = str | tuple[str, ...]
"""The value of the one label, or of each; "" where there is none."""
Kind = Literal["counter", "gauge"]


class Counter:
    """Numbers that only grow, one for each set of labels."""

    __slots__ = ("help", "labels", "name", "values")
    kind: Final = "counter"

    def __init__(self, name: str, help: str, *labels: str) -> None:  # noqa: A002 -- the format's own word
        """Nothing counted yet."""
        self.name = name
        self.help = help
        self.labels = labels
        self.values: defaultdict[Labels, int] = defaultdict(int)

    def add(self, labels: Labels) -> None:
        """One more."""
        self.values[labels] += 1

    def samples(self) -> Iterator[str]:
        """The lines."""
        return _samples(self.name, self.labels, dict(self.values))


class Histogram:
    """How often something was at most so large, one distribution for each value of its label, if it has one."""

    __slots__ = ("_seen", "bounds", "help", "label", "name")
    kind: Final = "histogram"

    def __init__(self, name: str, help: str, bounds: Sequence[float], label: str | None = None) -> None:  # noqa: A002 -- as above
        """Nothing seen yet; `bounds` ascend."""
        self.name = name
        self.help = help
        self.bounds = tuple(bounds)
        self.label = label
        # How many fell between two bounds, then how many above all, and in the last place their sum.
        self._seen: defaultdict[str, list[float]] = defaultdict(lambda: [0.0] * (len(bounds) + 2))

    def add(self, value: float, label: str = "") -> None:
        """One more; always told from the same thread."""
        seen = self._seen[label]
        seen[bisect_left(self.bounds, value)] += 1
        seen[-1] += value

    def samples(self) -> Iterator[str]:
        """The lines."""
        for label, seen in sorted(self._seen.items()):
            *counts, total = seen
            named = [] if self.label is None else [(self.label, label)]
            upto = 0.0
            for bound, count in zip((*self.bounds, float("inf")), counts, strict=True):
                upto += count
                yield _line(f"{self.name}_bucket", [*named, ("le", _number(bound))], upto)
            yield _line(f"{self.name}_sum", named, total)
            yield _line(f"{self.name}_count", named, upto)


class Reading:
    """What is read somewhere when it is asked for: a gauge, or a counter that somebody else keeps."""

    __slots__ = ("help", "kind", "labels", "name", "values")

    def __init__(self, name: str, help: str, kind: Kind, *labels: str, values: Mapping[Labels, float]) -> None:  # noqa: A002 -- as above
        """`values` by labels."""
        self.name = name
        self.help = help
        self.kind = kind
        self.labels = labels
        self.values = values

    def samples(self) -> Iterator[str]:
        """The lines."""
        return _samples(self.name, self.labels, self.values)


class Metrics:
    """All that is counted in this process, by the rooms themselves."""

    def __init__(self) -> None:
        """Nothing counted yet."""
        self.callbacks = Counter(
            "receiver_callbacks_total", "Callbacks with a good token, by what was made of them.", "verdict"
        )
        self.callback_seconds = Histogram(
            "receiver_callback_duration_seconds", "From a callback's arrival to its commit.", FAST
        )
        self.submissions = Counter(
            "receiver_submissions_total", "Submissions to the upstream, by their answer.", "route", "outcome"
        )
        self.lookups = Counter("receiver_lookups_total", "Lookups at the upstream, by their answer.", "outcome")
        self.events = Counter("receiver_events_total", "Events that were recorded.", "type")
        self.attempts = Counter("receiver_attempts_total", "Attempts to deliver.", "destination", "result")
        self.attempt_seconds = Histogram(
            "receiver_attempt_duration_seconds", "How long attempts took.", SLOW, "destination"
        )
        self.requests = Counter(
            "receiver_http_requests_total",
            "Requests but callbacks, by the path as documented.",
            "method",
            "path",
            "status",
        )
        self.batch_size = Histogram("receiver_store_batch_ops", "Ops that shared a commit.", SIZES)
        self.commit_seconds = Histogram("receiver_store_commit_duration_seconds", "How long commits took.", FAST)
        self.loop_lag = Histogram(
            "receiver_loop_lag_seconds", "How late the event loop was, measured twice a second.", FAST
        )

    def committed(self, ops: int, seconds: float) -> None:
        """A commit; told from the writer's thread."""
        self.batch_size.add(ops)
        self.commit_seconds.add(seconds)

    def attempted(self, destination: str, result: str, duration_ms: int) -> None:
        """An attempt to deliver has ended."""
        self.attempts.add((destination, result))
        self.attempt_seconds.add(duration_ms / 1000, destination)

    def families(self) -> list[Counter | Histogram]:
        """All of them."""
        return list(vars(self).values())


def written(families: Iterable[Counter | Histogram | Reading]) -> str:
    """The text."""
    lines = []
    for family in families:
        lines.append(f"# HELP {family.name} {_escaped(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += family.samples()
    return "\n".join(lines) + "\n"


def _samples(name: str, labels: Sequence[str], values: Mapping[Labels, float]) -> Iterator[str]:
    # In the order of their labels, so that two answers can be compared.
    all_of = {(key,) if isinstance(key, str) else key: value for key, value in values.items()}
    for key, value in sorted(all_of.items()):
        yield _line(name, zip(labels, key, strict=False), value)


def _line(name: str, labels: Iterable[tuple[str, str]], value: float) -> str:
    named = ",".join([f'{label}="{_quoted(text)}"' for label, text in labels])
    return f"{name}{{{named}}} {_number(value)}" if named else f"{name} {_number(value)}"


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', '\\"')
