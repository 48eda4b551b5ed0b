"""A service whose destinations stand behind fault proxies, and what a delivery meets there."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.fault_proxy import Certificates, Proxy, proxies
from tests.world import PRO, Received, World, destination, script, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from tests.fault_cases import Case

WAITS = [timedelta(milliseconds=ms) for ms in (0, 60, 120, 250, 500, 1000)]
JITTER = 0.2
HIDDEN = "hunter2"
"""Stands in every URL, and nowhere else."""
CERTIFICATES = Certificates()


@dataclass(frozen=True)
class Met:
    """What is stored of a delivery that met a fault, and what the receiver got of it."""

    task_id: str
    delivery: dict[str, Any]
    attempts: list[dict[str, Any]]
    received: list[Received]


@asynccontextmanager
async def faulty(folder: Path, cases: Sequence[Case], **more: Any) -> AsyncIterator[tuple[World, dict[str, Proxy]]]:
    """A world with a destination and a proxy for each case; `more` goes to every destination."""
    CERTIFICATES.write(folder / "authority.pem")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))
        async with proxies() as make:
            between: dict[str, Proxy] = {}

            def change(given: dict[str, Any]) -> None:
                url = given["destinations"].pop()["url"]
                for case in cases:
                    between[case.name] = proxy = _proxy(make, url, case)
                    scheme = "https" if case.https else "http"
                    here = f"{scheme}://127.0.0.1:{proxy.port}/hook?key={HIDDEN}"
                    own = {"timeout": case.timeout, "schedule": [wait.total_seconds() for wait in WAITS], **more}
                    given["destinations"].append(destination(case.name, here, jitter=JITTER, **own))

            async with world(folder, change=change) as here:
                yield here, between


def _proxy(make: Callable[..., Proxy], url: str, case: Case) -> Proxy:
    script = [case.fault] if case.fault else []
    proxy = make(url, *script, tls=CERTIFICATES.good if case.https else None)
    if case.door == "open":
        proxy.listen()
    elif case.door == "clogged":
        proxy.clog()
    return proxy


async def meet(here: World, name: str, proxy: Proxy, *, copies: int = 1) -> Met:
    """Let one delivery meet what waits for it there, and then its end; the receiver gets so many copies of it."""
    # The delay, since uvloop's timers may be a millisecond early, and the emulator then says "running" at the end.
    answer = await here.submit(PRO, script(callback_delay=0.005), destinations=[name])
    task_id = answer.json()["id"]

    async def tried() -> list[Any]:
        return await here.timeline(task_id, "attempt")

    async def ended() -> bool:
        return [one["state"] for one in await here.timeline(task_id, "delivery")] in (["delivered"], ["dead"])

    if not proxy.listens:
        await here.eventually(tried)
        proxy.listen()
    await here.sink.until(lambda: len(here.sink.of(task_id)) >= copies)
    await here.eventually(ended)
    [delivery] = await here.timeline(task_id, "delivery")
    return Met(task_id, delivery, await tried(), here.sink.of(task_id))


def at(text: str) -> datetime:
    """A stored time."""
    return datetime.fromisoformat(text)


def end_of(attempt: dict[str, Any]) -> datetime:
    """When an attempt ended."""
    return at(attempt["started_at"]) + timedelta(milliseconds=attempt["duration_ms"])
