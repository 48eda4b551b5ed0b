"""A stateful model of one service on the real writer and a real SQLite file: whatever comes in whatever order.

Hypothesis makes up the world (callbacks, lookups, answers of submissions, cancels, adoptions, dead workers, deliveries
and the passing of time), several at once where they may share a batch; after every step the promise of contract
section 1 is read off the rows. It knows no rule of ingest by itself: only what must never be seen.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from receiver import lifecycle, poll, sweep
from receiver.deliver import Attempted, HandBack, Redeliver, Replayer
from receiver.deliver import Claim as DeliverClaim
from receiver.deliver.ops import Turn
from receiver.deliver.replay import Put, Step
from receiver.errors import Conflict
from receiver.health import Terms as HealthTerms
from receiver.ids import AttemptId, ReplayId
from receiver.ingest import Lane, Wake
from receiver.records import Attempt, Observation, Replay
from receiver.retry import Decision, Result
from receiver.routing import Rule
from receiver.submit.ops import Accept, Adopt, Answered, Cancel, Claim, Terms
from receiver.upstream.base import Ambiguous, NotTaken, Refused, Taken
from tests import databases
from tests.rooms import NOW, PRO, V2V, a_task, callback, entropy, lookup, one_batch, rulebook

if TYPE_CHECKING:
    from collections.abc import Callable

    from receiver.records import Delivery, Event, Task
    from receiver.store import Store
    from receiver.upstream.base import Submission

IDS = ("up-1", "up-2", None)
WORDS = ("0", "1", "2", "3", "CANCELLED", "UNKNOWN", "task_not_exist", "what?")
ENDS = {"2": "failed", "3": "succeeded", "CANCELLED": "cancelled"}
TERMS = Terms(
    signing_keys=("k" * 32,),
    callback_base="https://hooks.example.com",
    callback_ttl=timedelta(hours=48),
    timeout=30.0,
    max_concurrency=8,
    retry=[timedelta(seconds=1), timedelta(seconds=60)],
    deadline=timedelta(hours=6),
)
ANSWERS: list[Submission] = [
    Taken("up-1", None),
    Taken("up-2", None),
    Refused(400, "no", account=False),
    Refused(502, "key", account=True),
    NotTaken("429", None),
    NotTaken("429", 9e5),
    Ambiguous("hang"),
]
RULES = rulebook(
    rules=[
        Rule("all", events=("task.*", "destination.*", "delivery.dead", "task.ambiguous")),
        Rule("ends"),
        Rule("vfx", match=(("metadata.team", ("vfx",)),)),
    ],
    lanes={name: Lane(lease_for=timedelta(seconds=90)) for name in ("all", "ends", "vfx")},
    room=lambda name: 1 if name == "all" else 0,
)
RANK = dict.fromkeys(("pending", "submitting"), 0) | {"ambiguous": 1, "queued": 2, "running": 3}
ENDED = lifecycle.TERMINAL - {"lost"}


def body(upstream_id: str | None, word: str, *, url: bool) -> str:
    """A callback."""
    said: dict[str, Any] = {"status": word, "progress": "40%"}
    if upstream_id is not None:
        said["task_id"] = upstream_id
    if url:
        said["video_url"] = "https://x.example/v.mp4"
    return orjson.dumps(said).decode()


class Service(RuleBasedStateMachine):
    """One service, many workers, a hostile world."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="receiver-model-"))
        self.loop = asyncio.new_event_loop()
        self.store: Store = self.loop.run_until_complete(self._open())
        self.now = NOW
        self.ids: list[Any] = []
        self.sending: list[Task] = []
        self.asking: list[Task] = []
        self.working: list[tuple[Delivery, Event]] = []
        self.told: dict[str, set[str]] = {}
        self.adopted: Counter[str] = Counter()
        self.seen: dict[str, Task] = {}
        self.disk = self.store.dialect.connect()

    async def _open(self) -> Store:
        from receiver.store import Store

        return Store.open(databases.new(self.folder))

    def teardown(self) -> None:
        """Close the file."""
        self.disk.close()
        self.loop.run_until_complete(self.store.close())
        self.loop.close()
        shutil.rmtree(self.folder)

    def run(self, *ops: Any) -> list[Any]:
        """Do ops at the same moment: they share a batch."""

        async def together() -> list[Any]:
            if len(ops) == 1:
                return list(await asyncio.gather(self.store.run(ops[0]), return_exceptions=True))
            async with one_batch(self.store):
                waiting = [self.store.writer.run(op) for op in ops]
            return await asyncio.gather(*waiting, return_exceptions=True)

        done = self.loop.run_until_complete(together())
        for one in done:
            assert not isinstance(one, BaseException) or isinstance(one, Conflict), repr(one)
            for recorded in one[1] if type(one) is tuple and len(one) == 3 else [one]:
                self.working += getattr(getattr(recorded, "born", None), "leased", [])
        return done

    # -- the world -----------------------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        """A task to talk about."""
        self.accept(queued=False, polled=False, vfx=True)

    @rule(queued=st.booleans(), polled=st.booleans(), vfx=st.booleans())
    def accept(self, *, queued: bool, polled: bool, vfx: bool) -> None:
        """A submission comes in."""
        if len(self.ids) >= 3:
            return
        task = a_task(
            "pending" if queued else "submitting",
            created_at=self.now,
            route=V2V if polled else PRO,
            callback_expires_at=None if polled else self.now + timedelta(hours=48),
            submit_due_at=self.now if queued else None,
            submit_leased_until=None if queued else self.now + timedelta(seconds=60),
            submit_first_at=None if queued else self.now,
            deferred=queued,
            metadata_json='{"team":"vfx"}' if vfx else "{}",
        )
        self.run(Accept(task, b"whole"))
        self.ids.append(task.id)
        self.told[task.id] = set()
        if not queued:
            self.sending.append(task)

    @rule(route=st.sampled_from([PRO, V2V]))
    def send(self, route: str) -> None:
        """The queue is looked at."""
        (claimed,) = self.run(Claim(self.store, route, 2, self.now, self.now + timedelta(seconds=60)))
        self.sending += [task for task, _ in claimed.tasks]

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """The upstream answers a submission, perhaps of a sender that was given up."""
        if not self.sending:
            return
        task = data.draw(st.sampled_from(self.sending))
        if data.draw(st.booleans()):
            self.sending.remove(task)
        said = data.draw(st.sampled_from(ANSWERS))
        self.told[task.id].add("rejected")
        self.run(Answered(task, said, None, self.now, TERMS, RULES), *self.others(data))

    @rule(data=st.data())
    def call_back(self, data: st.DataObject) -> None:
        """One or more callbacks at once, in the midst of other things."""
        self.run(*data.draw(st.permutations([self.a_callback(data), *self.others(data)])))

    def a_callback(self, data: st.DataObject) -> Any:
        """Of some task, with some words."""
        task_id = data.draw(st.sampled_from(self.ids))
        word = data.draw(st.sampled_from(WORDS))
        said = body(data.draw(st.sampled_from(IDS)), word, url=data.draw(st.booleans()))
        self.told[task_id].add(ENDS.get(word, ""))
        return callback(task_id, said, self.now, RULES)

    def others(self, data: st.DataObject) -> list[Any]:
        """What happens at the same moment."""
        makers: list[Callable[[st.DataObject], Any]] = [
            self.a_callback,
            self.a_callback,
            lambda _data: sweep.Rescue(self.store, self.now),
            lambda _data: sweep.FreePolls(self.store, self.now),
            lambda _data: sweep.Prune(self.store, self.now - timedelta(days=3)),
        ]
        drawn = data.draw(st.lists(st.sampled_from(makers), max_size=4))
        return [make(data) for make in drawn]

    @rule()
    def ask(self) -> None:
        """The poller claims."""
        claim = poll.Claim(self.store, 2, self.now, self.now + timedelta(seconds=70), RULES)
        ((claimed, gone, _),) = self.run(claim)
        self.asking += claimed
        for recorded in gone:
            self.told[recorded.task.id].add("lost")

    @rule(data=st.data())
    def learn(self, data: st.DataObject) -> None:
        """A lookup ends, perhaps long after its lease."""
        if not self.asking:
            return
        task = data.draw(st.sampled_from(self.asking))
        if data.draw(st.booleans()):
            self.asking.remove(task)
        self.told[task.id].add("lost")
        kind = data.draw(
            st.sampled_from(["missing", "nothing", "away", *sorted(lifecycle.TERMINAL_SEEN), "queued", "running"])
        )
        if kind in {"missing", "nothing", "away"}:
            op = lookup(task, None, self.now, missing=kind == "missing", answered=kind != "away", rules=RULES)
        else:
            url = "https://x.example/v" if kind == "succeeded" and data.draw(st.booleans()) else None
            odd = ("no-url",) if kind == "succeeded" and url is None else ()
            seen = Observation(kind, task.upstream_id, odd, video_url=url)  # type: ignore[arg-type]
            self.told[task.id].add(kind)
            op = lookup(task, seen, self.now, rules=RULES)
        self.run(op, *self.others(data))

    @rule(data=st.data())
    def by_hand(self, data: st.DataObject) -> None:
        """Somebody cancels, adopts or refreshes."""
        task_id = data.draw(st.sampled_from(self.ids))
        what = data.draw(st.sampled_from(["cancel", "adopt", "refresh"]))
        if what == "cancel":
            self.told[task_id].add("cancelled")
            self.run(Cancel(task_id, self.now, RULES), *self.others(data))
        elif what == "adopt":
            self.adopted[task_id] += 1
            self.run(Adopt(task_id, data.draw(st.sampled_from(["up-1", "up-3"])), self.now, RULES))
        else:
            self.run(Wake(task_id, self.now, timedelta(0)))

    @rule(everything=st.booleans())
    def lose_workers(self, *, everything: bool) -> None:
        """Senders, askers and deliverers die: by their leases, or all with the process."""
        # They are taken for dead, and yet may speak again: what they hold is not forgotten here.
        if everything:
            self.run(sweep.Rescue(self.store, self.now, all_of_them=True), sweep.FreePolls(self.store, self.now))
        else:
            self.run(sweep.Rescue(self.store, self.now))
        self.run(sweep.Disown(self.store, self.now, RULES, all_of_them=everything))

    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Somebody claims deliveries; somebody who has some writes what became of one, or gives it back."""
        name = data.draw(st.sampled_from(["all", "ends", "vfx"]))
        before = self.health(name)
        (claimed,) = self.run(DeliverClaim(self.store, name, 2, self.now, self.now + timedelta(seconds=90)))
        unasked = [delivery for delivery, _ in claimed.leased if not delivery.forced]
        if before == "paused":
            assert unasked == []
        elif before == "open":
            assert len(unasked) <= 1
        self.working += claimed.leased
        if not self.working:
            return
        delivery, event = data.draw(st.sampled_from(self.working))
        if data.draw(st.booleans()):
            self.working.remove((delivery, event))
        state = data.draw(st.sampled_from(["delivered", "pending", "dead", "back"]))
        if state == "back":
            self.run(HandBack([delivery], self.now))
            return
        due = self.now + timedelta(seconds=5) if state == "pending" else None
        attempt = Attempt(
            AttemptId("att_" + entropy(8).hex()),
            delivery.id,
            delivery.task_id,
            delivery.attempt_count + 1,
            self.now,
            1,
            False,
            "{}",
            None,
            None,
            "ok",
            "",
            due,
        )
        row = self.disk.execute("SELECT state, lease_token FROM deliveries WHERE id = ?", (delivery.id,)).fetchone()
        results = {"delivered": "ok", "pending": "transient", "dead": "permanent"}
        result = Result(results[state], "as it was", pause=state == "dead" and data.draw(st.booleans()))  # type: ignore[arg-type]
        decision = Decision(state, due, "")  # type: ignore[arg-type]
        (tried,) = self.run(Attempted(delivery, event, attempt, result, decision, self.now, HealthTerms(2), RULES))
        assert tried.held == (row == ("leased", delivery.lease_token))

    def health(self, name: str) -> str:
        """A destination's health, as it is on disk."""
        row = self.disk.execute("SELECT state FROM destinations WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else "active"

    @rule(data=st.data())
    def hold_or_open_again(self, data: st.DataObject) -> None:
        """Somebody pauses or resumes a destination, opens a delivery again, or replays many."""
        what = data.draw(st.sampled_from(["pause", "resume", "redeliver", "replay"]))
        names = ["all", "ends", "vfx"]
        if what in {"pause", "resume"}:
            self.run(Turn(data.draw(st.sampled_from(names)), what == "resume", self.now, RULES))
            return
        rows = self.disk.execute("SELECT id FROM deliveries ORDER BY id").fetchall()
        if what == "redeliver" and rows:
            self.run(Redeliver(data.draw(st.sampled_from(rows))[0], names, self.now))
        elif what == "replay":
            which: Any = data.draw(st.sampled_from(["dead", "delivered", "all"]))
            replay = Replay(ReplayId("rpl_" + entropy(8).hex()), "running", None, which, None, self.now, 0, self.now)
            self.run(Put(replay))
            replayer = Replayer(self.store, names, Any, lambda: self.now, entropy, lambda: None)  # type: ignore[arg-type]
            found = self.loop.run_until_complete(self.store.read(replayer._find))
            if found is not None:
                self.run(Step(found, self.now))

    @rule(seconds=st.sampled_from([0.001, 1, 5, 70, 130, 4000, 90_000]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now += timedelta(seconds=seconds)

    # -- the promise ---------------------------------------------------------------------------------------------------

    def tasks(self) -> dict[str, Task]:
        """All of them, as stored."""
        rows = self.store.tasks.rows
        found = self.disk.execute(f"SELECT {', '.join(column.name for column in rows.columns)} FROM tasks").fetchall()
        return {task.id: task for task in rows.decode(found)}

    @invariant()
    def tasks_keep_to_their_way(self) -> None:
        """What has ended stays ended; nobody goes back; an id is kept; a terminal state was said by somebody."""
        now = self.tasks()
        for task_id, before in self.seen.items():
            task = now.get(task_id)
            if task is None:
                assert before.state in lifecycle.TERMINAL  # retention took it
                self.ids.remove(task_id)
                continue
            if before.state in ENDED:
                assert task.state == before.state
                assert (task.finished_at, task.video_url, task.via) == (
                    before.finished_at,
                    before.video_url,
                    before.via,
                )
            elif before.state == "lost":
                assert task.state == "lost" or task.recovered
            elif task.state not in lifecycle.TERMINAL:
                assert RANK[task.state] >= RANK[before.state], (before.state, task.state)
            if before.upstream_id is not None and not self.adopted[task_id]:
                assert task.upstream_id == before.upstream_id
            if task.state in lifecycle.TERMINAL:
                assert task.state in self.told[task_id], (task.state, self.told[task_id])
        self.seen = now

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """Every open task has something that will move it, and what has ended has nothing."""
        for task in self.tasks().values():
            due = (task.submit_due_at, task.submit_leased_until, task.poll_due_at)
            match task.state:
                case "pending":
                    assert due[0] is not None
                    assert not task.shown  # it would be paid for again
                case "submitting":
                    assert due[1] is not None
                case "ambiguous" | "queued" | "running":
                    assert due[2] is not None
                    assert due[:2] == (None, None)
                case "lost":
                    assert due[:2] == (None, None)
                case _:
                    assert due == (None, None, None)
                    assert task.held_json is None
        left = self.disk.execute("SELECT state FROM payloads JOIN tasks ON id = task_id")
        assert {state for (state,) in left} <= {"pending", "submitting"}

    @invariant()
    def one_terminal_event(self) -> None:
        """Exactly one for what has ended; a second only after `lost`, and then it says `recovered`."""
        told = self.disk.execute("SELECT task_id, type, data_json FROM events ORDER BY id").fetchall()
        for task in self.tasks().values():
            ends = [(kind, orjson.loads(data)) for of, kind, data in told if of == task.id and _is_end(kind)]
            kinds = [kind for kind, _ in ends]
            if task.state not in lifecycle.TERMINAL or (task.state == "rejected" and not task.deferred):
                assert kinds == []
            elif task.recovered:
                assert kinds == ["task.lost", f"task.{task.state}"]
                assert [data["recovered"] for _, data in ends] == [False, True]
            else:
                assert kinds == [f"task.{task.state}"]
                assert ends[0][1]["state"] == task.state

    @invariant()
    def every_event_has_its_deliveries(self) -> None:
        """One for each destination that was chosen, and a skip with its reason for each other."""
        made = Counter(event for (event,) in self.disk.execute("SELECT event_id FROM deliveries"))
        for event, skips in self.disk.execute("SELECT id, skips_json FROM events"):
            assert made.pop(event, 0) + len(orjson.loads(skips)) == 3
        assert not made

    @invariant()
    def the_feed_has_no_gap(self) -> None:
        """Events stand in it in the order of their commits, each with a place of its own."""
        places = [seq for (seq,) in self.disk.execute("SELECT seq FROM events ORDER BY seq")]
        [(last,)] = self.disk.execute("SELECT value FROM counters WHERE name = 'event_seq'")
        assert len(set(places)) == len(places)
        assert (places[-1] if places else 0) <= last
        assert len(places) <= last

    @invariant()
    def attempts_are_counted(self) -> None:
        """A delivery's count is its rows; a lease has an end, and what is pending has a time."""
        tried = Counter(one for (one,) in self.disk.execute("SELECT delivery_id FROM attempts"))
        question = "SELECT id, state, attempt_count, due_at, leased_until, finished_at FROM deliveries"
        for one, state, count, due, lease, finished in self.disk.execute(question):
            assert count == tried[one]
            assert (due is not None) == (state == "pending")
            assert (lease is not None) == (state == "leased")
            assert (finished is not None) == (state in lifecycle.DELIVERY_ENDED)


def _is_end(kind: str) -> bool:
    return kind.removeprefix("task.") in lifecycle.TERMINAL


TestService = pytest.mark.timeout(600)(Service.TestCase)  # a failure is made small before it is told
TestService.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
