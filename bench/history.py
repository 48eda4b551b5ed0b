"""Finished tasks as the program leaves them, a million in a minute: one is made by the program, and multiplied by SQL.

The one had a callback and three deliveries over real sockets. Its copies have keys, places and times of their own,
spread over the last 25 days, so that retention leaves them alone; all else is the same bytes. Their ids come before any
that is made now, so that what a run has added can be taken away again.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Boolean
from sqlalchemy.schema import CreateIndex

from bench import harness
from bench.load import Sink, closed_loop, listening
from receiver.store import migrations
from receiver.store.dialect import open_dialect
from receiver.store.schema import metadata

DAYS = 25
NAMES = ("one", "two", "three")
TABLES = ("tasks", "inbox", "events", "deliveries", "attempts")
IDS = {"tasks": "tsk", "inbox": "obs", "events": "evt", "deliveries": "dlv", "attempts": "att"}
"""What an id of the table begins with."""
OTHERS = {"task_id": "tsk", "event_id": "evt", "delivery_id": "dlv"}
SINCE = "tsk_01"
"""Ids of copies come before this, what is made in this century comes after it."""
STEP = 50_000

Row = dict[str, Any]


async def one() -> dict[str, list[Row]]:
    """The rows that a task leaves which was called back and delivered to three destinations."""
    async with listening(Sink) as port:
        config = "".join(harness.destination(port, name) for name in NAMES)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "one.db"
            async with harness.receiver(1, config, f"sqlite:///{path}") as served:
                await closed_loop(served.port, iter(served.callbacks), 1)
                ends = time.perf_counter() + 20
                while _delivered(path) < len(NAMES) and time.perf_counter() < ends:
                    await asyncio.sleep(0.05)
            with closing(sqlite3.connect(path)) as connection:
                connection.row_factory = sqlite3.Row
                found = {
                    table: [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY id")]
                    for table in TABLES
                }
    assert [len(rows) for rows in found.values()] == [1, 1, 1, 3, 3], found
    return found


def _delivered(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        count: int = connection.execute("SELECT count(*) FROM deliveries WHERE state = 'delivered'").fetchone()[0]
        return count


def prepare(url: str) -> None:
    """Bring the database at `url` up to date; one that has anything in it is not for measurements."""
    migrations.upgrade(url)
    session = open_dialect(url).connect()
    found = session.execute("SELECT count(*) FROM tasks").fetchone()
    session.close()
    if found != (0,):
        raise SystemExit(f"{url} is not empty: this would delete from it")


def build(url: str, count: int, rows: dict[str, list[Row]]) -> float:
    """Bring the database at `url` up to date and put so many finished tasks into it; the seconds that took."""
    started = time.perf_counter()
    prepare(url)
    dialect = open_dialect(url)
    session = dialect.connect()
    indexes = [index for table in TABLES for index in metadata.tables[table].indexes]
    if dialect.is_shared:
        session.execute("SET statement_timeout = 0")
    else:  # nobody else is here, and what is lost is built again
        session.execute("PRAGMA journal_mode=OFF")
        session.execute("PRAGMA synchronous=OFF")
        session.execute("PRAGMA cache_size=-500000")
    for index in indexes:
        session.execute(f"DROP INDEX {index.name}")
    origin, step = rows["tasks"][0]["created_at"], DAYS * 86_400_000 // max(count, 1)
    began = int(time.time() * 1000) - DAYS * 86_400_000
    for first in range(0, count, STEP):
        numbers = _numbers(first, min(first + STEP, count), is_shared=dialect.is_shared)
        session.execute(dialect.begin)
        for table in TABLES:
            for place, row in enumerate(rows[table]):
                cells, values = _cells(table, row, place, is_shared=dialect.is_shared)
                at = {name: f"{began} + n * {step} + {row[name] - origin}" for name in row if _is_time(name, row)}
                cells.update(at)
                sql = f"INSERT INTO {table} ({', '.join(cells)}) SELECT {', '.join(cells.values())} FROM {numbers}"
                session.execute(sql, [values[name] for name in cells if name in values])
        session.execute("COMMIT")
    for index in indexes:
        session.execute(str(CreateIndex(index).compile(dialect=dialect.core)))
    session.execute(f"UPDATE counters SET value = {count} WHERE name = 'event_seq'")
    # PostgreSQL does that by itself in time; SQLite has no statistics here, as in life.
    session.execute("VACUUM ANALYZE" if dialect.is_shared else "PRAGMA journal_mode=WAL")
    session.close()
    return time.perf_counter() - started


def reset(url: str) -> None:
    """Take away what runs have added."""
    dialect = open_dialect(url)
    session = dialect.connect()
    if dialect.is_shared:
        session.execute("SET statement_timeout = 0")
    for table in (*TABLES, "payloads", "repeats"):
        session.execute(f"DELETE FROM {table} WHERE {'id' if table == 'tasks' else 'task_id'} >= '{SINCE}'")
    session.execute("VACUUM ANALYZE" if dialect.is_shared else "PRAGMA wal_checkpoint(TRUNCATE)")
    session.close()


def _is_time(name: str, row: Row) -> bool:
    return name.endswith("_at") and name != "callback_expires_at" and row[name] is not None


def _cells(table: str, row: Row, place: int, *, is_shared: bool) -> tuple[dict[str, str], Row]:
    """What stands for each column of copy `n` of a row, and the values that are the same in all of them."""
    digits = "lpad(n::text, 10, '0')" if is_shared else "printf('%010d', n)"
    # Keys that must be the same in several tables, and yet are without order in their last characters.
    mixed = "n * 2654435761 %% 4294967296" if is_shared else "n * 2654435761 % 4294967296"
    salt = f"lpad(to_hex({mixed}), 8, '0')" if is_shared else f"printf('%08x', {mixed})"
    cells, values = {}, {}
    for name, value in row.items():
        prefix, which = (
            (IDS[table], place) if name == "id" else (OTHERS.get(name), place if name == "delivery_id" else 0)
        )
        if prefix is not None:
            cells[name] = f"'{prefix}_' || {digits} || {salt} || '0000000{which}'"
        elif name == "upstream_id":  # the upstream's have no order: another page of its index for each
            cells[name] = f"{salt} || '-' || {digits}"
        elif name == "seq":
            cells[name] = "n + 1"
        elif value is not None:
            cells[name] = "%s" if is_shared else "?"
            is_flag = isinstance(metadata.tables[table].c[name].type, Boolean)
            values[name] = bool(value) if is_flag else value
            if _is_time(name, row):
                del values[name]
    return cells, values


def _numbers(first: int, end: int, *, is_shared: bool) -> str:
    if is_shared:
        return f"generate_series({first}::bigint, {end - 1}) AS numbers(n)"
    counted = f"SELECT {first} UNION ALL SELECT n + 1 FROM counted WHERE n < {end - 1}"
    return f"(WITH RECURSIVE counted(n) AS ({counted}) SELECT n FROM counted)"
