"""The chat platforms, played as strictly as the real ones are, over real sockets.

A fake takes what its platform takes and refuses what that refuses, in the platform's own words and units; members it
does not know it refuses too, since a misspelt one would silently do nothing. It answers from its `script` first, so a
test can have it throttle, break or vanish, and notes who came back before the time that it had named. Of each message
it keeps what people would see and what it would have set off: links, pictures, pings.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping

PATIENCE = 20.0
"""Seconds before what a test waits for is called broken."""
_TAKEN = 4 * 1024 * 1024


@dataclass(frozen=True)
class Asked:
    """One request as it came; names of headers in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        """Without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True)
class Said:
    """An answer: bytes go out as they are, all else as JSON.

    Attributes:
        wait: seconds for which the platform asks to be left alone with it; `Platform.early` tells who did not.
    """

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    wait: float = 0.0


@dataclass(frozen=True)
class Shown:
    """A message as people see it.

    Attributes:
        text: all that can be read of it, markup taken away.
        links: where it leads, buttons included.
        pictures: what the platform fetches and shows.
        pings: who would be called by it.
    """

    text: str
    links: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    pings: tuple[str, ...] = ()


class Refused(Exception):
    """The platform does not take it, and says so; `why` is for whoever reads the test."""

    def __init__(self, said: Said, why: str) -> None:
        super().__init__(why)
        self.said = said


class Platform:
    """What all fakes share; a member says how it takes a message, and how it is named in a configuration.

    Attributes:
        script: what is answered to the next requests, whatever they are; then they are looked at.
        shown: the messages that were taken.
        refused: why others were not.
        early: by how many seconds somebody came back before the time that was named.
    """

    kind = ""
    path = "/"

    def __init__(self) -> None:
        self.base = ""
        self.script: list[Said] = []
        self.asked: list[Asked] = []
        self.shown: list[Shown] = []
        self.refused: list[str] = []
        self.early: list[float] = []
        self._quiet_until = 0.0
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        """Where messages are posted."""
        return self.base + self.path

    def keys(self) -> dict[str, Any]:
        """The kind's own keys in `[[destinations]]`."""
        return {"url": self.url}

    def destination(self, name: str = "chat", **more: Any) -> dict[str, Any]:
        """An entry of `[[destinations]]`."""
        return {"name": name, "kind": self.kind, **self.keys(), "allow_private": True, "rate": "100/s", **more}

    def take(self, asked: Asked) -> tuple[Said, Shown]:
        """What is answered to a good message, and what is seen of it.

        Raises:
            Refused: it is not good.
        """
        raise NotImplementedError

    def throttled(self, wait: float) -> Said:
        """How the platform says "too many", and for how long."""
        raise NotImplementedError

    async def handle(self, request: web.Request) -> web.Response:
        """Take one request; a HEAD, with which `receiver doctor` only knocks, is none."""
        if request.method == "HEAD":
            return web.Response(status=404)
        headers = {name.lower(): value for name, value in request.headers.items()}
        asked = Asked(request.method, request.path, dict(request.query), headers, await request.read())
        self.asked.append(asked)
        if (ahead := self._quiet_until - time.monotonic()) > 0:
            self.early.append(ahead)
        said = self.answer(asked)
        if said.wait:
            self._quiet_until = time.monotonic() + said.wait
        self._changed.set()
        if isinstance(said.body, bytes):
            return web.Response(status=said.status, body=said.body, headers=dict(said.headers))
        more = {"content-type": "application/json", **said.headers}
        return web.Response(status=said.status, body=json.dumps(said.body).encode(), headers=more)

    def answer(self, asked: Asked) -> Said:
        """What is said to a request: from the script first."""
        if self.script:
            return self.script.pop(0)
        try:
            said, shown = self.take(asked)
        except Refused as refused:
            self.refused.append(str(refused))
            return refused.said
        self.shown.append(shown)
        return said

    async def until(self, enough: Callable[[], bool]) -> None:
        """Wait until `enough` holds, looking at every request."""
        async with asyncio.timeout(PATIENCE):
            while not enough():
                self._changed.clear()
                await self._changed.wait()

    async def seen(self, count: int = 1) -> list[Shown]:
        """What was taken, once it is so many; nothing was refused, and nobody came too early."""
        await self.until(lambda: len(self.shown) >= count or bool(self.refused))
        assert self.refused == []
        assert self.early == []
        return self.shown


P = TypeVar("P", bound="Platform")


@asynccontextmanager
async def served(platform: P) -> AsyncIterator[P]:
    """The platform on a free loopback port."""
    app = web.Application(client_max_size=_TAKEN)
    app.router.add_route("*", "/{path:.*}", platform.handle)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        platform.base = "http://{}:{}".format(*runner.addresses[0])
        yield platform
    finally:
        await runner.cleanup()


# -- what the fakes check ------------------------------------------------------------------------------------------


def document(asked: Asked, said: Said) -> dict[str, Any]:
    """The body: a JSON object, called so by its content type, and real text throughout.

    Raises:
        Refused: with `said`, it is not.
    """
    if asked.method != "POST":
        raise Refused(said, f"{asked.method} instead of POST")
    if asked.content_type != "application/json":
        raise Refused(said, f"the content type is {asked.content_type!r}")
    try:
        found = json.loads(asked.body.decode("utf-8"))
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise Refused(said, f"no JSON: {error}") from error
    if not isinstance(found, dict):
        raise Refused(said, "the JSON is no object")
    return found


@dataclass(frozen=True)
class Checks:
    """The checks of one platform: each refuses with the same answer."""

    said: Callable[[str], Said]

    def that(self, holds: object, why: str) -> None:
        """It must hold.

        Raises:
            Refused: it does not.
        """
        if not holds:
            raise Refused(self.said(why), why)

    def members(self, given: Any, allowed: str, required: str = "", *, where: str = "the message") -> dict[str, Any]:
        """An object that has the required members, and none but those and the allowed (names, by spaces)."""
        self.that(isinstance(given, dict), f"{where} is no object")
        assert isinstance(given, dict)
        must = set(required.split())
        self.that(must <= given.keys(), f"{where} lacks {sorted(must - given.keys())}")
        strange = given.keys() - must - set(allowed.split())
        self.that(not strange, f"{where} has unknown members {sorted(strange)}")
        return given

    def text(
        self,
        given: Any,
        most: int,
        *,
        unit: Callable[[str], int] = len,
        where: str,
        least: int = 1,
    ) -> str:
        """A string of so many units."""
        self.that(isinstance(given, str), f"{where} is no string: {given!r}")
        size = unit(str(given))
        self.that(least <= size <= most, f"{where} has {size}, {least} to {most} are taken")
        return str(given)

    def link(self, given: Any, most: int = 2048, *, where: str, schemes: Collection[str] = ("http", "https")) -> str:
        """An absolute URL of one of these schemes, without spaces."""
        url = self.text(given, most, where=where)
        scheme, colons, rest = url.partition("://")
        good = colons and scheme in schemes and rest and not any(c.isspace() or c in '<>"' for c in url)
        self.that(good, f"{where} is no URL: {url!r}")
        return url

    def one_of(self, given: Any, *allowed: Any, where: str) -> None:
        """One of these values."""
        self.that(given in allowed, f"{where} is {given!r}; one of {allowed} is taken")

    def some(self, given: Any, most: int, *, where: str, least: int = 1) -> list[Any]:
        """A list of so many."""
        self.that(isinstance(given, list), f"{where} is no list")
        self.that(least <= len(given) <= most, f"{where} has {len(given)}, {least} to {most} are taken")
        return list(given)


def utf8(text: str) -> int:
    """Bytes of UTF-8."""
    return len(text.encode())


def utf16(text: str) -> int:
    """Units of UTF-16."""
    return len(text.encode("utf-16-le")) // 2
