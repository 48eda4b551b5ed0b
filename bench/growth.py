"""Does a hot statement cost more when there is a history? Each at 0 and at a million finished tasks, by turns.

    python -m bench.growth                                     # SQLite
    python -m bench.growth --engine postgres                   # a server of Debian's, started here, with its fsync
    python -m bench.growth --engine postgres --urls URL URL    # two empty databases of yours

The ops are the program's own, 32 to a transaction as under load, on a connection as the writer's; what is timed is all
that the writer does for them but COMMIT, whose cost is the disk's and is shown apart. Questions are asked as a reader
asks them. The goal is a ratio of at most 1.4.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec.structs import replace

from bench import harness, history, postgres
from bench.report import Measured, at_most, number
from receiver import ids
from receiver.deliver import Attempted, Claim
from receiver.health import Terms
from receiver.ingest import Callback, Rulebook
from receiver.poll import Claim as PollClaim
from receiver.records import Attempt, Task
from receiver.retry import Decision, Result
from receiver.routing import Rule
from receiver.store import Store
from receiver.store.dialect import open_dialect
from receiver.store.unit import Unit
from receiver.submit.ops import Accept, Answered
from receiver.submit.ops import Claim as SubmitClaim
from receiver.submit.ops import Terms as Sending
from receiver.sweep import STEP, Disown, Prune, Rescue
from receiver.upstream.base import Taken

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.run import Run
    from receiver.ids import TaskId

MANY, BATCH, BATCHES, LIMIT = 1_000_000, 32, 30, 1.4
LEASE = timedelta(minutes=5)
TERMS = Sending((), None, LEASE, 30.0, 8, (LEASE,), LEASE)
REQUEST: Final = (
    '{"url":"http://127.0.0.1:34353/hook","headers":{"webhook-id":"evt_01m7zpb41brk5eevnxykqad7sx",'
    '"webhook-timestamp":"1795286208","content-type":"application/json","user-agent":"receiver/0.1.0",'
    '"webhook-signature":"v1,s3EaTaaReez1CGiYG4o9uhaqaXrNNmPC91rzBgnHltk="}}'
)
"""As an attempt keeps it: what retention takes away is as long in both databases."""
Costs = dict[str, list[float]]
"""Microseconds of each thing, one for every time that it was done."""
T = TypeVar("T")
Steps = Generator[None, None, T]
"""What is done step by step, so that two databases can take turns: whatever else the machine does is then in both."""


@dataclass
class Bench:
    """A database, and what is done to it. Everything it adds can be taken away by `history.reset`."""

    url: str
    costs: Costs = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        """Open it as the program does, without its threads."""
        self.store = Store(open_dialect(self.url))
        self.connection = self.store.dialect.connect()
        self.rules = Rulebook(
            rules=[Rule(name) for name in history.NAMES],
            lanes={},
            room=lambda _name: 0,
            entropy=os.urandom,
            draw=random.random,
        )
        self.now = datetime.fromtimestamp(time.time_ns() // 1_000_000 / 1000, UTC)

    def commit(self, what: str, ops: Sequence[Any], each: int | None = None) -> list[Any]:
        """One transaction as the writer makes it; its cost is that of `each` things, or of so many ops."""
        store, connection = self.store, self.connection
        started = time.perf_counter()
        unit = Unit(connection, store._statements)  # noqa: SLF001 -- the writer's own
        for op in ops:
            op.prepare()
        connection.execute(store.dialect.begin)
        unit.read_ahead([i for op in ops for i in op.task_ids], [i for op in ops for i in op.delivery_ids])
        values = [op.apply(unit) for op in ops]
        with store.dialect.pipeline(connection):
            unit.flush()
        flushed = time.perf_counter()
        connection.execute("COMMIT")
        self.costs[what].append((flushed - started) / (each or len(ops)) * 1e6)
        self.costs["COMMIT"].append((time.perf_counter() - flushed) * 1e6)
        return values

    def rehearse(self, ops: Sequence[Any]) -> None:
        """Do it and take it back: what these ops read is then in the system's memory. Reading a disk is the disk's."""
        unit = Unit(self.connection, self.store._statements)  # noqa: SLF001 -- the writer's own
        self.connection.execute(self.store.dialect.begin)
        for op in ops:
            op.apply(unit)
        self.connection.execute("ROLLBACK")

    def ask(self, what: str, question: Callable[[Any], object]) -> None:
        """One question on a reader's connection."""
        with self.store._engine.connect() as connection:  # noqa: SLF001 -- as `Store.read` does
            started = time.perf_counter()
            question(connection)
            self.costs[what].append((time.perf_counter() - started) * 1e6)

    def close(self) -> None:
        """Hang up."""
        self.connection.close()
        self.store._engine.dispose()  # noqa: SLF001 -- as `Store.close` does

    def all(self) -> Steps[None]:
        """The line of data from its beginning to its end; a step for everything that is timed."""
        tasks = yield from self.submissions()
        yield from self.callbacks(tasks)
        yield from self.deliveries()
        yield from self.claims()
        yield from self.questions(tasks[0])
        yield from self.sweeps()

    def task(self, number: int, **over: Any) -> Task:
        """A task as it is stored before its submission is sent: without the upstream's id."""
        task = Task(
            id=ids.task_id(int(self.now.timestamp() * 1000) + number, os.urandom(16)),
            route="runway/pro/video2video",
            state="submitting",
            created_at=self.now,
            input_json='{"video":"https://example.com/in.mp4","prompt":"a cat in the rain"}',
            callback_expires_at=self.now + timedelta(hours=48),
            submit_first_at=self.now,
            submit_leased_until=self.now + LEASE,
        )
        return replace(task, **over)

    def answered(self, task: Task, number: int, at: datetime) -> Answered:
        """The upstream took it. Its ids have no order: another page of their index for each."""
        taken = Taken(f"{random.randrange(2**32):08x}-{number:010d}", None)
        return Answered(task, taken, None, at, TERMS, self.rules)

    def submissions(self) -> Steps[list[Task]]:
        """Stored, and answered some batches later, as they are in life."""
        tasks = [self.task(number) for number in range(BATCH * BATCHES)]
        sent: list[Task] = []
        for some in _batches(tasks):
            self.commit("submission: stored", [Accept(task, None) for task in some])
            yield
        for some in _batches(tasks):
            ops = [self.answered(task, number, self.now) for number, task in enumerate(some, len(sent))]
            sent += [recorded.task for recorded in self.commit("submission: answered", ops)]
            yield
        return sent

    def callbacks(self, tasks: Sequence[Task]) -> Steps[None]:
        """Accepted, with three deliveries each."""
        for some in _batches(tasks):
            ops = []
            for task in some:
                body = harness.callback_body(task.upstream_id or "", 0)
                ops.append(Callback(task.id, body, "application/json", self.now, self.rules))
            self.commit("callback: accepted, 3 deliveries", ops)
            yield

    def deliveries(self) -> Steps[None]:
        """Claimed, tried, and claimed again when there is nothing left."""
        for name in history.NAMES:
            for _ in range(BATCHES):
                claim = Claim(self.store, name, BATCH, self.now, self.now + LEASE)
                leased = self.commit("deliveries: claimed", [claim], BATCH)[0].leased
                assert len(leased) == BATCH, f"{len(leased)} were due"
                yield
                self.commit("delivery: attempt stored", [self.attempted(*one) for one in leased])
                yield
        for _ in range(BATCHES):
            claim = Claim(self.store, history.NAMES[0], BATCH, self.now, self.now + LEASE)
            assert self.commit("deliveries: nothing to claim", [claim])[0].leased == []
            yield

    def attempted(self, delivery: Any, event: Any) -> Attempted:
        """A success."""
        attempt = Attempt(
            id=ids.attempt_id(int(self.now.timestamp() * 1000), os.urandom(16)),
            delivery_id=delivery.id,
            task_id=delivery.task_id,
            number=1,
            started_at=self.now,
            duration_ms=3,
            redelivery=False,
            request_json=REQUEST,
            response_json='{"status":200,"headers":{"content-length":"2"},"body":"ok"}',
            error=None,
            result="ok",
            reason="it answered 200",
            next_at=None,
        )
        decision = Decision("delivered", None, "200")
        return Attempted(delivery, event, attempt, Result("ok", "200"), decision, self.now, Terms(), self.rules)

    def claims(self) -> Steps[None]:
        """What the poller and the queue of submissions take."""
        due = [self.task(number) for number in range(8 * BATCHES)]
        unsent: dict[str, Any] = {"state": "pending", "submit_first_at": None, "submit_leased_until": None}
        waiting = [self.task(number, **unsent, submit_due_at=self.now) for number in range(8 * BATCHES)]
        for some in _batches([*due, *waiting]):
            self.commit("submission: stored", [Accept(task, None) for task in some])
            yield
        long_ago = self.now - timedelta(hours=1)  # so that their lookups are due
        for some in _batches(due):
            ops = [self.answered(task, number, long_ago) for number, task in enumerate(some)]
            self.commit("submission: answered", ops)
            yield
        for _ in range(BATCHES):
            poll = PollClaim(self.store, 8, self.now, self.now + LEASE, self.rules)
            assert len(self.commit("lookups: claimed", [poll], 8)[0][0]) == 8
            submit = SubmitClaim(self.store, "runway/pro/video2video", 8, self.now, self.now + LEASE)
            yield
            assert self.commit("submissions: claimed", [submit], 8)[0][0]
            yield

    def questions(self, task: Task) -> Steps[None]:
        """What the API and the dashboard read, and what a caller's own lookup needs."""
        store, last, upstream_id = self.store, 0, task.upstream_id or ""
        with store._engine.connect() as connection:  # noqa: SLF001 -- as `Store.read` does
            last = connection.exec_driver_sql("SELECT max(seq) FROM events").scalar_one()
        for _ in range(BATCHES):
            self.ask("a page of 100 of the feed", lambda connection: store.events.feed(connection, last - 100, 100))
            self.ask("a page of 50 tasks", lambda connection: store.tasks.listed(connection, limit=50))
            self.ask(
                "a page of 50 of one state",
                lambda connection: store.tasks.listed(connection, states=("succeeded",), limit=50),
            )
            self.ask("a task's timeline", lambda connection: _timeline(store, connection, task.id))
            self.ask(
                "a task by the upstream's id", lambda connection: store.tasks.by_upstream_id(connection, upstream_id)
            )
            yield

    def sweeps(self) -> Steps[None]:
        """A round that finds nothing, and retention where there is much."""
        for _ in range(BATCHES):
            old = self.now - timedelta(days=60)
            ops = [Rescue(self.store, self.now), Disown(self.store, self.now, self.rules), Prune(self.store, old)]
            self.commit("sweep: a round that finds nothing", ops, 1)
            yield
        self.rehearse([Prune(self.store, self.now + LEASE)] * 4)
        self.connection.close()  # what was just written would still be in its memory
        self.connection = self.store.dialect.connect()
        for _ in range(4):
            pruned = self.commit("sweep: a task pruned", [Prune(self.store, self.now + LEASE)], STEP)[0]
            assert pruned.gone == STEP
            yield


def _timeline(store: Store, connection: Any, task_id: TaskId) -> None:
    store.tasks.get(connection, task_id)
    store.events.of_task(connection, task_id)
    store.events.observations_of_task(connection, task_id)
    store.deliveries.of_task(connection, task_id)
    store.deliveries.attempts_of_task(connection, task_id)


def _batches(tasks: Sequence[Task]) -> list[Sequence[Task]]:
    return [tasks[first : first + BATCH] for first in range(0, len(tasks), BATCH)]


def compare(empty: str, full: str, repetitions: int) -> dict[str, tuple[list[float], list[float]]]:
    """The median cost of each thing, for each repetition: at none and with a history, a step of either by turns."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for _ in range(repetitions):
        for url in (empty, full):
            history.reset(url)
        both = Bench(empty), Bench(full)
        for _ in zip(*(bench.all() for bench in both), strict=True):
            pass
        for place, bench in enumerate(both):
            bench.close()
            for what, took in bench.costs.items():
                found.setdefault(what, ([], []))[place].append(statistics.median(took))
    history.reset(full)
    return found


def told(engine: str, found: dict[str, tuple[list[float], list[float]]], count: int) -> Measured:
    """The table, printed; and for the goal table the worst of it."""
    lines = [f"| {engine}, us | with none | with {count:,} finished | ratio (spread) |", "|---|---|---|---|"]
    ratios = {}
    for what, (none, full) in found.items():
        each = ratios[what] = [b / a for a, b in zip(none, full, strict=True)]
        spread = f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"
        lines.append(f"| {what} | {number(statistics.median(none))} | {number(statistics.median(full))} | {spread} |")
    print("\n".join(lines), flush=True)
    hot = {what: each for what, each in ratios.items() if what != "COMMIT"}
    worst = max(hot, key=lambda what: statistics.median(hot[what]))
    middle = statistics.median([statistics.median(each) for each in hot.values()])
    also = f"the worst of {len(hot)}: {worst}; their median {middle:.2f}x"
    words = f"{engine}: hot statements with {count:,} finished tasks of none"
    block = {f"growth, {engine}": "\n".join(lines)}
    return Measured([at_most(words, hot[worst], LIMIT, "x", also)], blocks=block)


async def measure_growth(run: Run) -> Measured:
    """On both engines, as a part of the whole bench."""
    empty, full = f"sqlite:///{run.folder}/empty.db", await run.with_history(MANY)
    assert full is not None
    history.prepare(empty)
    found = told("SQLite", await asyncio.to_thread(compare, empty, full, run.repetitions), run.size(MANY))
    if not postgres.is_there():
        print("  no PostgreSQL here: apt-get install postgresql")
        return found
    with postgres.server([harness.SERVER_CORE]) as server:  # the two backends alike
        empty, full = server.database("none"), server.database("many")
        history.prepare(empty)
        seconds = history.build(full, run.size(MANY), await run.one())
        print(f"  built {run.size(MANY)} finished tasks in PostgreSQL in {seconds:.0f} s", flush=True)
        compared = await asyncio.to_thread(compare, empty, full, run.repetitions)
        found.add(told("PostgreSQL", compared, run.size(MANY)))
    return found


def main() -> None:
    """Alone."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth")
    parser.add_argument("--engine", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--urls", nargs=2, metavar="URL", help="of two empty databases; default: made here")
    parser.add_argument("--tasks", type=int, default=MANY)
    parser.add_argument("--repetitions", type=int, default=3)
    given = parser.parse_args()
    harness.on_load_core()
    one = asyncio.run(history.one())
    with ExitStack() as stack:
        if given.urls:
            empty, full = given.urls
        elif given.engine == "postgres":
            server = stack.enter_context(postgres.server([harness.SERVER_CORE]))
            empty, full = server.database("none"), server.database("many")
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
            empty, full = f"sqlite:///{folder}/none.db", f"sqlite:///{folder}/many.db"
        history.prepare(empty)
        print(f"built {given.tasks:,} finished tasks in {history.build(full, given.tasks, one):.0f} s", flush=True)
        told({"sqlite": "SQLite"}.get(given.engine, "PostgreSQL"), compare(empty, full, given.repetitions), given.tasks)


if __name__ == "__main__":
    main()
