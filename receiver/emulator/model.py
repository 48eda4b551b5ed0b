"""A task as the emulated upstream keeps it, and a `View` of it at one moment, which every shape is written from."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from receiver.emulator.script import Script
    from receiver.emulator.vocabulary import Outcome

Route = Literal["runway/pro/video2video", "runwayml/v1/video_to_video", "runwayml/v1/image_to_video"]
PRO: Final[Route] = "runway/pro/video2video"
VIDEO_TO_VIDEO: Final[Route] = "runwayml/v1/video_to_video"
IMAGE_TO_VIDEO: Final[Route] = "runwayml/v1/image_to_video"
ROUTES: Final[tuple[Route, ...]] = (PRO, VIDEO_TO_VIDEO, IMAGE_TO_VIDEO)

Phase = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
_ENDS: Final[Mapping[Outcome, Phase]] = {
    "succeed": "succeeded",
    "fail": "failed",
    "cancel": "cancelled",
    "never": "running",
}
_ABRIDGED: Final = 2048
QUEUED_PART: Final = 0.2
"""The part of a render that it spends queued."""


@dataclass(frozen=True, slots=True)
class View:
    """What there is to say of a task at one moment.

    Attributes:
        progress: 0 to 100.
        reason: for a failure or a cancellation.
        created_at, started_at, finished_at: Unix seconds, 0 for not yet.
    """

    id: str
    number: int
    route: Route
    phase: Phase
    progress: int
    prompt: str
    video_url: str | None
    poster: str | None
    last_frame: str | None
    reason: str | None
    created_at: float
    started_at: float
    finished_at: float

    @property
    def has_ended(self) -> bool:
        """The phase is a terminal one."""
        return self.phase in ENDED


@dataclass(frozen=True, slots=True)
class Sent:
    """One callback that was sent: its kind and shape, and the status it was answered with, or what went wrong."""

    kind: str
    shape: str
    status: int | None
    error: str | None


@dataclass(slots=True, eq=False)
class Task:
    """One generation.

    Attributes:
        number: counted from 1.
        key: the bearer key that made it; to others it does not exist.
        received: the request body, long strings abridged.
        created_at: Unix seconds.
        born_at: the same moment on the monotonic clock.
        finish_at: when the render ends, on the monotonic clock; None for never.
        seed: of this task's own dice.
        lookups: all; `faulted`, `missing`, `urlless`: those that were answered so.
        ended: set when the render was ended by hand.
        shown: set when a lookup has shown the end.
    """

    id: str
    number: int
    route: Route
    key: str
    prompt: str
    callback_url: str | None
    received: dict[str, Any]
    script: Script
    asset_base: str
    created_at: float
    born_at: float
    seed: int
    outcome: Outcome
    reason: str
    finish_at: float | None
    lookups: int = 0
    faulted: int = 0
    missing: int = 0
    urlless: int = 0
    callbacks: list[Sent] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    shown: asyncio.Event = field(default_factory=asyncio.Event)
    _dice: random.Random | None = None

    @property
    def dice(self) -> random.Random:
        """This task's own, so that tasks do not disturb one another's luck; made when first thrown."""
        if self._dice is None:
            self._dice = dice(self.seed)
        return self._dice

    def has_ended(self, now: float) -> bool:
        """Whether the render is over at `now` (monotonic)."""
        return self.finish_at is not None and now >= self.finish_at

    def view(
        self, now: float, *, phase: Phase | None = None, with_url: bool = True, task_id: str | None = None
    ) -> View:
        """The task at `now` (monotonic), or as if it were in `phase`, without a URL, or under another's id."""
        if phase is None:
            phase, progress = self._at(now)
        else:
            progress = {"queued": 0, "running": 50}.get(phase, 100)
        over_for = 0.0 if self.finish_at is None else self.finish_at - self.born_at
        ended = phase in ENDED
        has_url = with_url and phase == "succeeded"
        stem = f"{self.asset_base}/attachments/video/runway/{self.seed:016x}"
        return View(
            id=task_id or self.id,
            number=self.number,
            route=self.route,
            phase=phase,
            progress=progress,
            prompt=self.prompt,
            video_url=f"{stem}.mp4" if has_url else None,
            poster=f"{stem}-poster.png" if has_url else None,
            last_frame=f"{stem}-last.png" if has_url else None,
            reason=self.reason if phase in {"failed", "cancelled"} else None,
            created_at=self.created_at,
            started_at=0.0 if phase == "queued" else self.created_at + over_for * QUEUED_PART,
            finished_at=self.created_at + over_for if ended else 0.0,
        )

    def _at(self, now: float) -> tuple[Phase, int]:
        if self.finish_at is None:
            return "running", 50
        if now >= self.finish_at:
            return _ENDS[self.outcome], 100
        done = (now - self.born_at) / (self.finish_at - self.born_at)
        return ("queued" if done < QUEUED_PART else "running"), int(done * 100)

    def end(self, now: float, *, outcome: Outcome | None = None, reason: str | None = None) -> None:
        """End the render now (monotonic), whatever its script said."""
        if outcome is not None:
            self.outcome = outcome
        elif self.outcome == "never":
            self.outcome = "succeed"
        self.reason = reason or self.reason
        self.finish_at = now
        self.ended.set()

    @property
    def end_phase(self) -> Phase:
        """What this task ends as."""
        return _ENDS[self.outcome]

    def pick(self, name: str, names: Sequence[str], turn: int) -> str:
        """A shape by its name; `random` throws this task's dice, `cycle` takes them in turn, begun by its number."""
        if name == "random":
            return self.dice.choice(names)
        if name == "cycle":
            return names[(self.number + turn) % len(names)]
        return name


def dice(seed: int) -> random.Random:
    """Repeatable luck."""
    return random.Random(seed)  # noqa: S311 -- the play must be repeatable, nothing is secret here


def abridged(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request's body without the bulk of its data URIs."""
    return {
        name: f"{value[:64]}… ({len(value)} characters)" if isinstance(value, str) and len(value) > _ABRIDGED else value
        for name, value in body.items()
    }
