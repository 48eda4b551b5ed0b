"""What a move to PostgreSQL costs: `python -m bench.copying postgresql://user@host/postgres [TASKS]`.

It builds an SQLite file of finished tasks, each with its callback, event, delivery and attempt, makes a database on
that server, runs `receiver db copy` from one to the other, and drops the database again.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from msgspec.structs import replace

from bench.harness import machine
from receiver.ids import AttemptId
from receiver.records import Attempt, Inbox
from receiver.store import Store, migrations
from tests.rooms import NOW, Do, a_delivery, a_task, an_event, entropy

if TYPE_CHECKING:
    from receiver.store import Unit

NAME = "receiver_bench_copying"
STEP = 500
DATA = json.dumps({"task_id": "up", "status": "succeeded", "output": [{"url": "https://cdn.example.com/" + "x" * 120}]})


def some(unit: Unit, numbers: range) -> None:
    for nth in numbers:
        one(unit, nth)


def one(unit: Unit, nth: int) -> None:
    task = a_task("succeeded", upstream_id=f"up-{nth}", prompt="a cat that walks over a bridge", msg="success")
    event = replace(an_event(task), data_json=json.dumps({"task_id": task.id, "envelope": DATA * 2}), seq=nth)
    delivery = a_delivery(event, state="delivered", due_at=None, finished_at=NOW, attempt_count=1)
    unit.add_task(task)
    unit.add_event(event)
    unit.add_delivery(delivery)
    raw = (DATA * 2).encode()
    unit.add_inbox(Inbox(f"obs_{nth}", task.id, "callback", NOW, "accepted", "", "application/json", entropy(32), raw))
    request = json.dumps({"url": "https://hooks.example.com/", "headers": {"webhook-id": event.id}})
    response = json.dumps({"status": 200, "headers": {"content-type": "application/json"}, "body": '{"ok":true}'})
    unit.add_attempt(
        Attempt(
            id=AttemptId(f"att_{nth}"),
            delivery_id=delivery.id,
            task_id=task.id,
            number=1,
            started_at=NOW,
            duration_ms=12,
            redelivery=False,
            request_json=request,
            response_json=response,
            error=None,
            result="ok",
            reason="200",
            next_at=None,
        )
    )


async def build(url: str, tasks: int) -> None:
    migrations.upgrade(url)
    store = Store.open(url)
    for first in range(0, tasks, STEP):
        numbers = range(first, min(first + STEP, tasks))
        await store.run(Do(partial(some, numbers=numbers)))
    await store.close()


def copy(folder: Path, server: str, tasks: int) -> None:
    target = f"{server.rpartition('/')[0]}/{NAME}"
    env = os.environ | {"RECEIVER_DATABASE__URL": f"sqlite:///{folder / 'receiver.db'}"}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "receiver", "db", "copy", "--to", target, "--json"],
        env=env,
        capture_output=True,
        check=True,
    )
    took = timedelta(seconds=round(time.perf_counter() - began, 1))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    rows = sum(table["rows"] for table in json.loads(done.stdout)["tables"].values())
    with psycopg.connect(target) as connection:
        [size] = connection.execute("SELECT pg_database_size(current_database())").fetchone() or (0,)
    here = (folder / "receiver.db").stat().st_size
    seconds = took.total_seconds()
    print(machine())
    print(f"{tasks} tasks, {rows} rows: {seconds:.1f} s ({rows / seconds:,.0f} rows/s, CPU {used.ru_utime:.1f} s)")
    print(
        f"SQLite {here / 2**20:.0f} MiB, PostgreSQL {size / 2**20:.0f} MiB, peak RSS {used.ru_maxrss / 2**10:.0f} MiB"
    )


def main(server: str, tasks: int) -> None:
    with tempfile.TemporaryDirectory() as folder, psycopg.connect(server, autocommit=True) as connection:
        asyncio.run(build(f"sqlite:///{folder}/receiver.db", tasks))
        connection.execute(f"DROP DATABASE IF EXISTS {NAME}")
        connection.execute(f"CREATE DATABASE {NAME}")
        try:
            copy(Path(folder), server, tasks)
        finally:
            connection.execute(f"DROP DATABASE {NAME} WITH (FORCE)")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 100_000)
