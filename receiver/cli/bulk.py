"""`receiver submit --from`: many tasks at once, each exactly once, however often and whenever it is run again.

Every line goes with its idempotency key, so whatever was cut off is simply sent again. What the service cannot take now
(429, 503, nobody there) is waited for, by all senders together; what it refuses is told with its line, and the others
go on.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from receiver.cli import output
from receiver.cli.signals import stopped
from receiver.client import ApiProblem, Unreachable, is_away

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from receiver.cli.jobs import Job, JobFile
    from receiver.client import Answer, AsyncClient, Question
    from receiver.errors import ReceiverError

PATIENCE_FOR: Final = 60.0
"""Seconds for which a service that is away is waited for; one that says `Retry-After` to a 429 is not away."""
WAITS: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds between tries where the service names none; the last repeats."""
LINE_EVERY: Final = 1.0
"""Seconds between lines of progress where there is no terminal."""
INTERRUPTED: Final = 130
_CONFLICT, _TOO_MANY = 409, 429
_FOR_ALL: Final = frozenset({"unauthorized", "forbidden", "not-built"})
"""Problems that every line would have."""


@dataclass
class Sending:
    """How far it is.

    Attributes:
        patience: seconds; see `PATIENCE_FOR`.
        taken: by line, the task's id and whether this was a repeat.
        refused: by line, what the service said.
        problem: what ended it before its time.
    """

    client: AsyncClient
    source: JobFile
    show: Callable[[Sending], None]
    patience: float = PATIENCE_FOR
    taken: dict[int, tuple[str, bool]] = field(default_factory=dict)
    refused: dict[int, ApiProblem] = field(default_factory=dict)
    problem: ReceiverError | None = None
    waits: str = ""
    _jobs: Iterator[Job] = field(init=False)
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _not_before: float = 0.0
    _away_since: float | None = None
    _misses: int = 0

    def __post_init__(self) -> None:
        """All senders take from one list."""
        self._jobs = iter(self.source.jobs)

    @property
    def total(self) -> int:
        """Lines with a job."""
        return len(self.source.jobs)

    @property
    def repeated(self) -> int:
        """How many were submitted by an earlier run."""
        return sum(again for _, again in self.taken.values())

    @property
    def left(self) -> int:
        """How many are not decided."""
        return self.total - len(self.taken) - len(self.refused)

    async def run(self, senders: int) -> None:
        """Send them all, in the order of the file, so many at once."""
        await asyncio.gather(*(self._sender() for _ in range(min(senders, self.total))))

    def end(self, problem: ReceiverError | None = None) -> None:
        """Take no further line; what is under way is finished."""
        self._ended.set()
        self.problem = self.problem or problem

    async def _sender(self) -> None:
        for job in self._jobs:
            question = self.source.question(job)
            while await self._may_send() and not await self._try(job, question):
                pass
            if self._ended.is_set():
                return

    async def _may_send(self) -> bool:
        """Wait until sending is allowed; False where the end came first."""
        while (wait := self._not_before - time.monotonic()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._ended.wait()
            if self._ended.is_set():
                return False
        return not self._ended.is_set()

    async def _try(self, job: Job, question: Question) -> bool:
        """Send one line; whether it is decided."""
        try:
            answer = await self.client.send(question)
        except (Unreachable, ApiProblem) as error:
            return self._failed(job, error)
        self._took(job, answer)
        return True

    def _took(self, job: Job, answer: Answer) -> None:
        self._away_since, self._misses, self.waits = None, 0, ""
        again = answer.headers.get("idempotency-replayed", "").lower() == "true"
        self.taken[job.line] = (str(answer.document["id"]), again)
        self.show(self)

    def _failed(self, job: Job, error: Unreachable | ApiProblem) -> bool:
        """Whether the line is decided by it."""
        problem = error if isinstance(error, ApiProblem) else None
        if problem is not None and problem.kind in _FOR_ALL:
            self.end(problem)
            return False
        if problem is not None and not is_away(problem) and problem.status != _CONFLICT:
            self.refused[job.line] = problem
            output.say(f"{self.source.name}:{job.line}: {_reason(problem)}", style="red", console=output.err())
            self.show(self)
            return True
        now = time.monotonic()
        asked = problem.retry_after if problem is not None else None
        if problem is not None and problem.status == _TOO_MANY and asked is not None:
            self._away_since = None
        else:
            self._away_since = self._away_since or now
            if now - self._away_since >= self.patience:
                self.end(error)
                return False
        if self._not_before <= now:  # else another sender has said so already
            self._misses += 1
            wait = WAITS[min(self._misses, len(WAITS)) - 1] if asked is None else max(asked, WAITS[0])
            self._not_before = now + wait
            self.waits = f"waiting {wait:g} s: {error}"
            self.show(self)
        return False


def _reason(problem: ApiProblem) -> str:
    flaws = [f"{flaw.get('pointer') or flaw.get('parameter')}: {flaw.get('detail')}" for flaw in _flaws(problem)]
    return f"refused ({problem.status}): {'; '.join(flaws) or problem}"


def _flaws(problem: ApiProblem) -> list[dict[str, Any]]:
    flaws = problem.problem.get("errors")
    return [flaw for flaw in flaws if isinstance(flaw, dict)] if isinstance(flaws, list) else []


# -- the command -----------------------------------------------------------------------------------------------------


def submit_all(client: AsyncClient, source: JobFile, *, senders: int, json: bool) -> int:
    """Submit what a checked file says, show how it goes, and sum up; the exit code.

    Raises:
        Unreachable, ApiProblem: the service is not there, does not know the key, or went away.
    """
    interrupted, sending = asyncio.run(_all(client, source, senders, quiet=json))
    _sum_up(sending, json=json)
    if sending.problem is not None:
        sending.problem.add_note(_HOW_ON.format(left=sending.left))
        raise sending.problem
    if interrupted:
        output.hint(_HOW_ON.format(left=sending.left))
        return INTERRUPTED
    return output.FAILED if sending.refused else output.DONE


_HOW_ON: Final = "{left} are left. Run the same command again: what was submitted is not submitted twice."


async def _all(client: AsyncClient, source: JobFile, senders: int, *, quiet: bool) -> tuple[bool, Sending]:
    async with client, stopped() as flag:
        await client.page(limit=1)  # who is not there, or does not know us, says so before the first line
        with _shown(source, quiet=quiet) as show:
            sending = Sending(client, source, show)
            run = asyncio.create_task(sending.run(senders))
            stop = asyncio.create_task(flag.wait())
            await asyncio.wait({run, stop}, return_when=asyncio.FIRST_COMPLETED)
            sending.end()
            stop.cancel()
            await run
    return flag.is_set(), sending


def _sum_up(sending: Sending, *, json: bool) -> None:
    taken, refused = sending.taken, sending.refused
    if json:
        output.document(
            {
                "file": sending.source.name,
                "lines": sending.total,
                "submitted": len(taken) - sending.repeated,
                "repeated": sending.repeated,
                "refused": len(refused),
                "left": sending.left,
                "tasks": [
                    {"line": line, "id": task_id, "repeated": again} for line, (task_id, again) in sorted(taken.items())
                ],
                "problems": [
                    {"line": line, "status": error.status, "kind": error.kind, "detail": _reason(error)}
                    for line, error in sorted(refused.items())
                ],
            }
        )
        return
    parts = [f"{len(taken) - sending.repeated} submitted"]
    parts += [f"{sending.repeated} had been submitted before"] if sending.repeated else []
    parts += [f"{len(refused)} refused"] if refused else []
    parts += [f"{sending.left} left"] if sending.left else []
    output.say(f"{sending.source.name}: ", ", ".join(parts), f" (of {sending.total})")
    if any(error.kind == "idempotency-key-reused" for error in refused.values()):
        output.hint(
            "Lines that were submitted before with other words around them (ROUTE, --metadata, --destination, "
            "--callback-url) are refused: say the same as then, or make all of them new by --batch NAME"
        )
    if len(taken) > sending.repeated:
        output.hint("They are queued, and sent as the upstream takes them: receiver tasks list --state pending")
    elif sending.repeated and not refused and not sending.left:
        output.hint("To submit the same jobs once more, and pay for them again, give them a name: --batch NAME")


@contextmanager
def _shown(source: JobFile, *, quiet: bool) -> Iterator[Callable[[Sending], None]]:
    """How progress is shown: a bar on a terminal, a line now and then elsewhere."""
    console = output.err() if quiet else output.out()
    if not console.is_terminal:
        yield _lines(quiet=quiet)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    words = TextColumn("{task.description}", markup=False)
    with Progress(*columns, words, console=output.err(), transient=True) as drawn:
        bar = drawn.add_task("", total=len(source.jobs))

        def show(now: Sending) -> None:
            drawn.update(bar, completed=now.total - now.left, description=output.clean(output.short(now.waits)))

        yield show


def _lines(*, quiet: bool) -> Callable[[Sending], None]:
    began = time.monotonic()
    said_at, said = began, ""

    def show(now: Sending) -> None:
        nonlocal said_at, said
        at, words = time.monotonic(), f"{now.total - now.left} of {now.total}"
        words += f"; {now.waits}" if now.waits else ""
        if now.left and words != said and (now.waits or at - said_at >= LINE_EVERY):
            said_at, said = at, words
            output.say(f"{at - began:7.1f} s  {words}", console=output.err() if quiet else None)

    return show
