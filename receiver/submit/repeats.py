"""Idempotency-Keys: the same request again gets the same answer, and nothing is submitted twice.

A key is one for all callers and all ways in, as long as its task is kept. It is not bound to an API key: keys are
rotated, and a repeat under the new one must not be paid again; two callers who choose the same key are told so.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from receiver.errors import AnsweredBefore, InvalidInput, KeyBusy, KeyReused
from receiver.store import Reads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from receiver.records import Repeat, Task
    from receiver.store import Store, Unit
    from receiver.submit.sending import Sender

MAX_KEY = 255


@dataclass(frozen=True)
class Asked:
    """An Idempotency-Key and what is asked under it, as digests."""

    key: str
    request: str


def asked_under(key: str | None, what: str, body: bytes) -> Asked | None:
    """The key of a request for `what` with this body; None where it has none.

    Raises:
        InvalidInput: it cannot be a key.
    """
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY or not (key.isascii() and key.isprintable()):
        raise InvalidInput(f"Idempotency-Key: 1 to {MAX_KEY} printable ASCII characters are wanted, not {len(key)}")
    digest = hashlib.blake2b(what.encode() + b"\0" + body, digest_size=32).hexdigest()
    return Asked(hashlib.blake2b(b"key\0" + key.encode(), digest_size=32).hexdigest(), digest)


async def refuse_repeat(sender: Sender, known: Repeat, asked: Asked) -> None:
    """Say what becomes of a request whose key is known.

    Raises:
        KeyReused: it was another request.
        KeyBusy: that one is still under way.
        AnsweredBefore: with the answer that was given, or the task where the process died before it was kept.
    """
    if known.request != asked.request:
        raise KeyReused("this Idempotency-Key was used with another request: take a new key for a new one")
    if known.status is not None:
        raise AnsweredBefore(known.task_id, status=known.status, content_type=known.content_type, body=known.body)
    task: Task | None = await sender.store.read(lambda c: sender.store.tasks.get(c, known.task_id))
    if task is None:
        raise KeyBusy("the first request with this Idempotency-Key is being removed; try again")
    if task.state == "submitting":  # by another process, or by one that died: then it is ambiguous soon
        raise KeyBusy("the first request with this Idempotency-Key is still under way; try again")
    raise AnsweredBefore(known.task_id)


@dataclass(frozen=True)
class Known(Reads):
    """The op that asks for a key; by the writer, so that what was stored before is seen."""

    key: str

    def apply(self, unit: Unit) -> Repeat | None:
        """What is known of it."""
        return unit.repeat(self.key)


async def refuse_known(sender: Sender, asked: Asked | None) -> None:
    """Answer a repeat before it takes a slot, or waits for one: it needs none.

    Raises:
        KeyReused, KeyBusy, AnsweredBefore: see `refuse_repeat`.
        StoreUnavailable: nobody can tell.
    """
    if asked is not None and (known := await sender.store.run(Known(asked.key))) is not None:
        await refuse_repeat(sender, known, asked)


@contextmanager
def holding(held: set[str], asked: Asked | None) -> Iterator[None]:
    """Answer a request under its key; until then, whoever comes with the same key is told to come again.

    Raises:
        KeyBusy: the first request with it is still under way in this process.
    """
    if asked is None:
        yield
        return
    if asked.key in held:
        raise KeyBusy("the first request with this Idempotency-Key is still under way; try again")
    held.add(asked.key)
    try:
        yield
    finally:
        held.discard(asked.key)


@dataclass(frozen=True)
class KeepAnswer(Reads):
    """The op that keeps what a key was answered."""

    key: str
    task_id: str
    status: int
    content_type: str | None
    body: bytes

    def apply(self, unit: Unit) -> None:
        """Stage it; the first answer stays, and a late one is none for the task that has the key now."""
        known = unit.repeat(self.key)
        if known is not None and known.status is None and known.task_id == self.task_id:
            unit.put_repeat(replace(known, status=self.status, content_type=self.content_type, body=self.body))


@dataclass(frozen=True)
class Forget(Reads):
    """The op that forgets a key: what it stood for was surely not taken, and may be asked again."""

    key: str
    task_id: str

    def apply(self, unit: Unit) -> None:
        """Stage it, unless the key stands for another task by now, which may have been taken."""
        known = unit.repeat(self.key)
        if known is not None and known.task_id == self.task_id:
            unit.drop_repeat(self.key)


async def forget(store: Store, asked: Asked | None, task_id: str) -> None:
    """Let a request be made again under its key, where that still stands for this task.

    Raises:
        StoreUnavailable: it could not.
    """
    if asked is not None:
        await store.run(Forget(asked.key, task_id))


async def keep_answer(
    store: Store, asked: Asked | None, task_id: str, status: int, content_type: str | None, body: bytes
) -> None:
    """Keep what a request was answered, where it had a key.

    Raises:
        StoreUnavailable: it could not; the task tells then what became of it.
    """
    if asked is not None:
        await store.run(KeepAnswer(asked.key, task_id, status, content_type, body))
