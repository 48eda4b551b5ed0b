"""The tables: one schema for every engine. Columns bear the names of the fields in `records.py`.

Laws:
* Times are Unix milliseconds (BIGINT), JSON is text: the same bytes on every engine, and nothing to convert on the way.
* What is due stands in a partial index, so its cost does not grow with what is done (performance.md).
* Every row of a task carries its `task_id`, and ids come from no sequence: an engine that shards has its key.
* No foreign keys: all rows of a task are written by the one transaction in `ingest`, and retention takes them in small
  steps; a check on every insert would pay for a mistake that this cannot make.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    literal_column,
    text,
)

metadata = MetaData()


def _id(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, String(40), primary_key=key, nullable=False)


def _time(name: str, *, required: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=not required)


def _count(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=text("0"))


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False, server_default=text("false"))


tasks = Table(
    "tasks",
    metadata,
    _id("id", key=True),
    Column("route", String(80), nullable=False),
    Column("state", String(12), nullable=False),
    _time("created_at", required=True),
    Column("input_json", Text, nullable=False),
    Column("metadata_json", Text, nullable=False),
    Column("only_json", Text),
    _time("callback_expires_at"),
    Column("upstream_id", Text),
    Column("progress", Integer),
    Column("prompt", Text),
    Column("code", BigInteger),
    Column("msg", Text, nullable=False, server_default=text("''")),
    Column("video_url", Text),
    Column("poster", Text),
    Column("last_frame", Text),
    Column("failure", Text),
    Column("failure_code", Text),
    Column("via", String(8)),
    _flag("confirmed"),
    _flag("recovered"),
    _time("submitted_at"),
    _time("finished_at"),
    _flag("deferred"),
    _count("submit_attempts"),
    _time("submit_first_at"),
    _time("submit_due_at"),
    _time("submit_leased_until"),
    Column("held_json", Text),
    _time("poll_due_at"),
    _time("poll_leased_until"),
    _count("poll_count"),
    _time("polled_at"),
    _flag("shown"),
    _count("missing_count"),
    _time("missing_since_at"),
    _count("urlless_count"),
    _count("callbacks"),
    _time("woken_at"),
    Column("callback_url", Text),
)
Index(
    "tasks_poll_due",
    tasks.c.poll_due_at,
    sqlite_where=tasks.c.poll_due_at.is_not(None),
    postgresql_where=tasks.c.poll_due_at.is_not(None),
)
_unsent = tasks.c.submit_due_at.is_not(None)
Index("tasks_submit_due", tasks.c.route, tasks.c.created_at, tasks.c.id, sqlite_where=_unsent, postgresql_where=_unsent)
_sending = tasks.c.submit_leased_until.is_not(None)
Index("tasks_submitting", tasks.c.submit_leased_until, sqlite_where=_sending, postgresql_where=_sending)
Index("tasks_listed", tasks.c.created_at.desc(), tasks.c.id.desc())
Index("tasks_by_state", tasks.c.state, tasks.c.created_at.desc(), tasks.c.id.desc())
PERIOD_BITS = 24
"""Tasks that were made in the same 2**24 milliseconds (4.7 hours) share a part of the index by the upstream's id. These
ids have no order: in one index of them all, every submission would dirty a page of its own, and read it first once they
do not fit into memory. So only the last part is written to, however long the history; who looks for an id asks part by
part. A shift is the same on every engine; of a division some make a fraction."""
period = tasks.c.created_at.bitwise_rshift(literal_column(str(PERIOD_BITS), Integer))
_taken = tasks.c.upstream_id.is_not(None)
Index("tasks_of_upstream", period, tasks.c.upstream_id, sqlite_where=_taken, postgresql_where=_taken)

payloads = Table(
    "payloads",
    metadata,
    _id("task_id", key=True),
    Column("body", LargeBinary, nullable=False),
    comment="the body of an undecided submission, data URIs included; dropped when it is decided",
)

inbox = Table(
    "inbox",
    metadata,
    _id("task_id", key=True),
    _id("id", key=True),
    Column("via", String(8), nullable=False),
    _time("received_at", required=True),
    Column("verdict", String(12), nullable=False),
    Column("detail", Text, nullable=False),
    Column("content_type", Text),
    Column("digest", LargeBinary, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    Column("asked", String(8)),
)

events = Table(
    "events",
    metadata,
    _id("task_id", key=True),
    _id("id", key=True),
    Column("type", String(40), nullable=False),
    _time("created_at", required=True),
    Column("data_json", Text, nullable=False),
    Column("skips_json", Text, nullable=False),
    Column("seq", BigInteger, nullable=False, server_default=text("0")),
)
Index("events_in_order", events.c.seq)
_of_no_task = events.c.task_id == events.c.id
Index("events_of_no_task", events.c.created_at, sqlite_where=_of_no_task, postgresql_where=_of_no_task)

deliveries = Table(
    "deliveries",
    metadata,
    _id("id", key=True),
    _id("event_id"),
    _id("task_id"),
    Column("destination", String(100), nullable=False),
    Column("state", String(12), nullable=False),
    _time("created_at", required=True),
    _time("due_at"),
    _count("attempt_count"),
    _count("budget_from"),
    _count("lease_token"),
    _time("leased_until"),
    _time("finished_at"),
    _flag("retried"),
    _flag("forced"),
    Column("callback_url", Text),
    Column("callback_host", String(255)),
)
_pending = deliveries.c.state == "pending"
_leased = deliveries.c.state == "leased"
_by_hand = _pending & deliveries.c.forced
_undelivered = deliveries.c.state.in_(["dead", "cancelled"])
Index(
    "deliveries_due",
    *(deliveries.c.destination, deliveries.c.retried, deliveries.c.due_at, deliveries.c.callback_host),
    sqlite_where=_pending,
    postgresql_where=_pending,
)
Index("deliveries_forced", deliveries.c.destination, sqlite_where=_by_hand, postgresql_where=_by_hand)
Index(
    "deliveries_undelivered",
    *(deliveries.c.state, deliveries.c.id),
    sqlite_where=_undelivered,
    postgresql_where=_undelivered,
)
Index("deliveries_leased", deliveries.c.leased_until, sqlite_where=_leased, postgresql_where=_leased)
Index("deliveries_by_task", deliveries.c.task_id)

attempts = Table(
    "attempts",
    metadata,
    _id("task_id", key=True),
    _id("delivery_id", key=True),
    Column("number", Integer, primary_key=True, nullable=False, autoincrement=False),
    _id("id"),
    _time("started_at", required=True),
    Column("duration_ms", Integer, nullable=False),
    _flag("redelivery"),
    Column("request_json", Text, nullable=False),
    Column("response_json", Text),
    Column("error", Text),
    Column("result", String(12), nullable=False),
    Column("reason", Text, nullable=False),
    _time("next_at"),
)

refusals = Table(
    "refusals",
    metadata,
    _id("id", key=True),
    _time("at", required=True),
    Column("reason", String(40), nullable=False),
    Column("method", String(10), nullable=False),
    Column("size", Integer, nullable=False),
)

counters = Table(
    "counters",
    metadata,
    Column("name", String(60), primary_key=True, nullable=False),
    Column("value", BigInteger, nullable=False),
)

destinations = Table(
    "destinations",
    metadata,
    Column("name", String(100), primary_key=True, nullable=False),
    Column("state", String(12), nullable=False),
    _count("consecutive_failures"),
    Column("last_error", Text),
    _time("last_error_at"),
    _time("opened_at"),
    _count("opens"),
    _time("next_try_at"),
    Column("probe_id", String(40)),
    _time("probe_until"),
    _flag("announced"),
    Column("reason", Text),
    _time("missing_since_at"),
    _time("held_until"),
    comment="the health of those that ever failed or were paused",
)

rates = Table(
    "rates",
    metadata,
    Column("name", String(100), primary_key=True, nullable=False),
    Column("starts", Text, nullable=False),
    comment="what was started under each rate, by all processes together",
)

replays = Table(
    "replays",
    metadata,
    _id("id", key=True),
    Column("state", String(12), nullable=False),
    Column("destination", String(100)),
    Column("which", String(12), nullable=False),
    _time("since_at"),
    _time("until_at", required=True),
    Column("matched", BigInteger, nullable=False),
    _time("created_at", required=True),
    Column("replayed", BigInteger, nullable=False),
    Column("cursor", String(40), nullable=False),
    _time("finished_at"),
)
_running = replays.c.state == "running"
Index("replays_running", replays.c.id, sqlite_where=_running, postgresql_where=_running)

repeats = Table(
    "repeats",
    metadata,
    Column("id", String(64), primary_key=True, nullable=False),
    _id("task_id"),
    _time("created_at", required=True),
    Column("request", String(64), nullable=False),
    Column("status", Integer),
    Column("content_type", Text),
    Column("body", LargeBinary),
    comment="Idempotency-Keys and what they were answered; they go with their task",
)
Index("repeats_by_task", repeats.c.task_id)

writers = Table(
    "writers",
    metadata,
    Column("id", String(40), primary_key=True, nullable=False),
    Column("batch", BigInteger, nullable=False),
    _time("at", required=True),
    comment="what each writer of a shared database committed last",
)
