"""Real `receiver serve` processes on one PostgreSQL, a balancer in front of them, callers who spread their submissions.

The upstream and the consumer live in the test's process. Every instance signs what it sends with a header of its own,
so that a webhook tells who sent it.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import tomli_w

from receiver.emulator import Emulator, EmulatorOptions, running
from receiver.upstream import ROUTES
from tests import world
from tests.ports import free_port
from tests.victim import Victim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from tests.pg_server import Server

SHORT = """
from datetime import timedelta
import receiver.deliver.lanes, receiver.poll, receiver.submit.sending
receiver.poll.LEASE_MARGIN = receiver.submit.sending.LEASE_MARGIN = timedelta(seconds=5)
receiver.deliver.lanes.Destination.lease_for = property(lambda self: timedelta(seconds=self.timeout + 5))
"""
"""Leases of seven seconds: no setting makes them shorter than half a minute, and this is about what follows."""
NEST = """
import json, os, select, sys
import receiver.app, receiver.cli
from receiver.__main__ import main
hatched = {}
while True:
    if select.select([sys.stdin], [], [], 0.05)[0]:
        line = sys.stdin.buffer.raw.readline()
        if not line:
            break
        told = json.loads(line)
        pid = os.fork()
        if not pid:
            log = os.open(told["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            exec(told["prologue"])
            sys.argv = ["receiver", "serve", "--config", told["config"]]
            main()
            os._exit(0)
        hatched[pid] = told["ended"]
        print(pid, flush=True)
    while hatched and (found := os.waitpid(-1, os.WNOHANG))[0]:
        path = hatched.pop(found[0])
        with open(path + "~", "w") as file:
            file.write(str(os.waitstatus_to_exitcode(found[1])))
        os.rename(path + "~", path)
"""
"""Hatches `receiver serve` with everything imported, any number at once: a cold start costs seconds of a core."""


def shifted(hours: int) -> str:
    """A start in which this machine's clock is wrong by so much, for everything that is written in Python."""
    return f"""
import datetime, time_machine
wrong = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours={hours})
time_machine.travel(wrong, tick=True).start()
"""


class Nest:
    """The process that hatches them."""

    def __init__(self) -> None:
        """Start it."""
        self.process = subprocess.Popen([sys.executable, "-c", NEST], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def hatch(self, **told: str) -> int:
        """One more; its process id."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(orjson.dumps(told) + b"\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> None:
        """End it."""
        self.process.communicate()


@dataclass
class Instance(Victim):
    """One of them; `prologue` runs before it."""

    nest: Nest = field(default_factory=Nest)
    prologue: str = ""

    def spawn(self) -> None:
        """Start it."""
        self._ended.unlink(missing_ok=True)
        log = str(self.config.with_suffix(".log"))
        ended = str(self._ended)
        self._pid = self.nest.hatch(config=str(self.config), log=log, ended=ended, prologue=self.prologue)

    @property
    def _ended(self) -> Path:
        return self.config.with_suffix(".ended")

    def _wait(self) -> int:
        ends = time.monotonic() + 20
        while not self._ended.exists():
            assert time.monotonic() < ends, f"{self.config} did not end"
            threading.Event().wait(0.05)
        self._pid = 0
        return int(self._ended.read_text())


@dataclass
class Fleet:
    """The instances by name, and what is around them.

    Attributes:
        url: the balancer's, which is the public one.
        told: by prompt, the statuses and answers that callers had; a prompt without one was cut off.
        told_by: by prompt, the instance that answered.
    """

    server: Server
    database: str
    upstream: Emulator
    sink: world.Sink
    dice: random.Random
    instances: dict[str, Instance]
    url: str
    told: dict[str, tuple[int, dict[str, str], dict[str, Any]]] = field(default_factory=dict)
    told_by: dict[str, str] = field(default_factory=dict)
    cut_off: list[str] = field(default_factory=list)
    over: bool = False

    def rows(self, question: str) -> list[Any]:
        """Ask the database, beside the instances."""
        return self.server.ask(question, database=self.database)

    async def start(self, names: Sequence[str] = ()) -> None:
        """Start some, or all, and wait until they answer."""
        chosen = [self.instances[name] for name in names or self.instances]
        for one in chosen:
            one.spawn()
        await asyncio.gather(*(one.ready() for one in chosen))

    async def stop(self) -> None:
        """Stop those that run, in good order: each ends well."""
        running = [one for one in self.instances.values() if one.up.is_set()]
        for one in running:
            one.kill(signal.SIGTERM)
        for one in running:
            assert await one.gone() == 0, one.last_words()

    def log(self, name: str, event: str) -> list[dict[str, Any]]:
        """The lines of one kind that an instance wrote."""
        text = self.instances[name].config.with_suffix(".log").read_bytes()
        lines = [orjson.loads(line) for line in text.splitlines() if line.startswith(b"{") and event.encode() in line]
        return [line for line in lines if line["event"] == event]

    # -- callers ---------------------------------------------------------------------------------------------------

    async def call(self, number: int, names: Sequence[str], *, pause: float, ways: Sequence[Any] = ()) -> None:
        """One caller: submits on all routes in turn, to these instances by chance, never the same thing twice."""
        dice = random.Random(f"{self.dice.random()} {number}")
        ways = ways or (self.in_api,)
        count = 0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(40)) as session:
            while not self.over:
                prompt, way = f"clip {number}-{count}", ways[count // len(world.ROUTES) % len(ways)]
                route = world.ROUTES[count % len(world.ROUTES)]
                count += 1
                name = dice.choice(names)
                try:
                    async with way(session, self.instances[name].url, route, prompt) as answer:
                        body = orjson.loads(await answer.read())
                        self.told_by[prompt] = name
                        self.told[prompt] = (answer.status, dict(answer.headers), body)
                except (aiohttp.ClientError, ConnectionError, TimeoutError):
                    self.cut_off.append(prompt)
                await asyncio.sleep(dice.random() * pause)

    def in_api(self, session: aiohttp.ClientSession, base: str, route: str, prompt: str) -> Any:
        """Submit, and wait for the upstream's word."""
        document = {"route": route, "input": world.body_of(route, prompt)}
        return session.post(f"{base}/api/v1/tasks", data=orjson.dumps(document), headers=HEADERS)

    def in_background(self, session: aiohttp.ClientSession, base: str, route: str, prompt: str) -> Any:
        """Submit into the queue."""
        document = {"route": route, "input": world.body_of(route, prompt)}
        headers = {**HEADERS, "prefer": "respond-async"}
        return session.post(f"{base}/api/v1/tasks", data=orjson.dumps(document), headers=headers)

    def drop_in(self, session: aiohttp.ClientSession, base: str, route: str, prompt: str) -> Any:
        """Submit in the upstream's own language."""
        body = ROUTES[route].fill(world.body_of(route, prompt), seed=7)
        return session.post(f"{base}/{route}", data=orjson.dumps(body), headers=HEADERS)

    # -- what became of it -----------------------------------------------------------------------------------------

    async def settled(self) -> bool:
        """Every task has ended, and every delivery."""
        ended = ",".join(f"'{state}'" for state in world.TERMINAL)
        found = await asyncio.to_thread(
            self.rows,
            f"select (select count(*) from tasks where state not in ({ended})),"
            "(select count(*) from deliveries where state in ('pending', 'leased'))",
        )
        return bool(found == [(0, 0)])

    def renders(self) -> Counter[str]:
        """How often each prompt was paid for."""
        return Counter(task.prompt for task in self.upstream.tasks.values())


HEADERS = {"authorization": f"Bearer {world.API_KEY}", "content-type": "application/json"}


@asynccontextmanager
async def balancer(targets: Sequence[str], dice: random.Random) -> AsyncIterator[str]:
    """A door to all of them: each connection goes to one by chance, or to the next where that one is gone."""
    addresses = [(urlsplit(target).hostname, urlsplit(target).port) for target in targets]
    open_: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(65_536):
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_.add(task)
        try:
            for host, port in dice.sample(addresses, len(addresses)):
                with suppress(OSError):
                    theirs, ours = await asyncio.open_connection(host, port)
                    await asyncio.gather(carry(reader, ours), carry(theirs, writer))
                    return
        except asyncio.CancelledError:
            pass
        finally:
            open_.discard(task)
            writer.transport.abort()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        for task in list(open_):
            task.cancel()
        await asyncio.gather(*open_, return_exceptions=True)
        await asyncio.sleep(0)  # what was aborted is closed by the loop's next turn


@asynccontextmanager
async def fleet(
    folder: Path,
    server: Server,
    names: Sequence[str],
    options: EmulatorOptions,
    change: Callable[[dict[str, Any]], None] = lambda _settings: None,
    *,
    prologues: dict[str, str] | None = None,
) -> AsyncIterator[Fleet]:
    """Instances that are not started yet, on a database of their own; `prologues` run before some of them."""
    dice = random.Random(options.seed)
    database = f"fleet_{dice.randrange(10**6)}_{len(names)}"
    server.database(database)
    ports = {name: free_port() for name in names}
    urls = [f"http://127.0.0.1:{port}" for port in ports.values()]
    async with world.sink() as sink, running(options) as upstream, balancer(urls, dice) as url:
        instances, nest = {}, Nest()
        for name, port in ports.items():
            given = world.settings(upstream.base_url, sink.url, port, server.url(database))
            given["server"]["public_url"] = url
            given["destinations"][0]["headers"] = {"X-Instance": name}
            given["logging"]["level"] = "info"
            change(given)
            config = folder / f"{name}.toml"
            config.write_text(tomli_w.dumps(given))
            prologue = (prologues or {}).get(name, "")
            instances[name] = Instance(config, f"http://127.0.0.1:{port}", nest=nest, prologue=prologue)
        try:
            yield Fleet(server, database, upstream.emulator, sink, dice, instances, url)
        finally:
            for one in instances.values():
                one.quell()
            nest.end()
