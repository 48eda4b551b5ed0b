"""Loads over raw asyncio protocols, a closed loop and an open one: one core outruns one core of any server here."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


@dataclass
class Tally:
    """What a load saw. Latencies are seconds."""

    ok: int = 0
    other: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.ok / self.seconds

    def percentile(self, share: float) -> float:
        """A latency, in milliseconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


class _Client(asyncio.Protocol):
    """One connection: sends the next request when the answer to the last is whole."""

    def __init__(self, requests: Iterator[bytes], tally: Tally, done: asyncio.Future[None]) -> None:
        self._requests = requests
        self._tally = tally
        self._done = done
        self._buffer = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._next()

    def _next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        mark = head.find(b"content-length:")
        length = int(head[mark + 15 :].split(b"\r\n", 1)[0]) if mark >= 0 else 0
        if len(self._buffer) < end + 4 + length:
            return
        self._tally.latencies.append(time.perf_counter() - self._sent)
        if self._buffer[9:12] == b"200":
            self._tally.ok += 1
        else:
            self._tally.other += 1
        self._buffer = self._buffer[end + 4 + length :]
        self._next()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)


async def closed_loop(port: int, requests: Iterator[bytes], connections: int) -> Tally:
    """Send all requests over so many connections, each one at a time."""
    loop = asyncio.get_running_loop()
    tally = Tally()
    ends = [loop.create_future() for _ in range(connections)]
    started = time.perf_counter()
    for end in ends:
        await loop.create_connection(lambda end=end: _Client(requests, tally, end), "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.gather(*ends)
    tally.seconds = time.perf_counter() - started
    return tally


@dataclass
class Schedule:
    """What an open loop did, by number of request: when each was due to be sent, and when its answer was read."""

    due: list[float] = field(default_factory=list)
    answered: dict[int, float] = field(default_factory=dict)
    other: int = 0


class _Caller(asyncio.Protocol):
    """One connection of an open loop: idle, or waiting for the answer to one request."""

    def __init__(self, schedule: Schedule, idle: list[_Caller]) -> None:
        self._schedule, self._idle = schedule, idle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, number: int, request: bytes) -> None:
        self._number, self._buffer = number, b""
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not _is_whole(self._buffer):
            return
        self._schedule.answered[self._number] = time.perf_counter()
        self._schedule.other += self._buffer[9:12] != b"200"
        self._idle.append(self)

    def connection_lost(self, _error: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)


async def open_loop(port: int, requests: list[bytes], rate: float) -> Schedule:
    """Send so many a second, each at its time whether the ones before were answered or not, and wait for the last."""
    loop = asyncio.get_running_loop()
    schedule, idle, opening = Schedule(), list[_Caller](), set[asyncio.Task[None]]()

    async def on_a_new_one(number: int, request: bytes) -> None:
        _, caller = await loop.create_connection(lambda: _Caller(schedule, idle), "127.0.0.1", port)
        caller.ask(number, request)

    began = time.perf_counter() + 0.1
    for number, request in enumerate(requests):
        due = began + number / rate
        schedule.due.append(due)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if idle:
            idle.pop().ask(number, request)
        else:
            opening.add(asyncio.create_task(on_a_new_one(number, request)))
    ends = time.perf_counter() + 30
    while len(schedule.answered) < len(requests) and time.perf_counter() < ends:
        await asyncio.sleep(0.01)
    await asyncio.gather(*opening)
    for caller in list(idle):
        caller.transport.close()
    return schedule


def _is_whole(buffer: bytes) -> bool:
    """Whether the message in it, a request or an answer, is there to the end."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = buffer[:end].lower()
    mark = head.find(b"content-length:")
    length = int(head[mark + 15 :].split(b"\r\n", 1)[0]) if mark >= 0 else 0
    return len(buffer) >= end + 4 + length


class Consumer(asyncio.Protocol):
    """A destination that shows each request to `take` and answers with these bytes, or never."""

    def __init__(self, answer: bytes | None, take: Callable[[bytes], None]) -> None:
        self._answer, self._take = answer, take
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not _is_whole(self._buffer):
            return
        self._take(self._buffer)
        self._buffer = b""
        if self._answer is not None:
            self._transport.write(self._answer)


@contextlib.asynccontextmanager
async def listening(protocol: Callable[[], asyncio.Protocol]) -> AsyncIterator[int]:
    """A port of this process where it answers."""
    listener = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()


class Sink(asyncio.Protocol):
    """The least consumer there can be: answers 200 to every request and counts it."""

    count = 0
    last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            mark = head.find(b"content-length:")
            length = int(head[mark + 15 :].split(b"\r\n", 1)[0]) if mark >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            Sink.count += 1
            Sink.last = time.perf_counter()
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
