"""Submissions of callers who speak the upstream's own language (contract 4.2): the request goes on as it came.

Nothing in it is checked, filled in or changed but `callback_url`: the caller's own becomes a destination of this one
task, and ours takes its place where the route has one. Values keep their bytes; a body that is no JSON object goes on
untouched. Such a submission never queues: a refusal, a 429 included, is passed on as it came.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from receiver import ids
from receiver.errors import AnswerUnknown, Flaw, InvalidInput, StoreUnavailable, UpstreamAway
from receiver.ingest.judge import reject
from receiver.records import Task
from receiver.submit.asked import check_callback_url
from receiver.submit.ops import Accept
from receiver.submit.repeats import forget, keep_answer, refuse_known, refuse_repeat
from receiver.upstream import ROUTES
from receiver.upstream.base import NO_CALLBACK, Ambiguous, NotTaken, Refused, Taken
from receiver.upstream.data_uri import abridge
from receiver.wire import HttpRequest

if TYPE_CHECKING:
    from datetime import datetime

    from receiver.store.rates import Paced
    from receiver.submit.repeats import Asked
    from receiver.submit.sending import Sender, Sent
    from receiver.wire import HttpResponse

SLOT_FOR = 10.0
"""Seconds to wait for a free slot (contract 4.2)."""
STORED_FOR = 5.0
"""Seconds beyond `upstream.timeout` that a caller waits for an answer to be stored. Client libraries give up after a
minute and repeat a POST by themselves: before that they must hear that it is not to be repeated."""
AGAIN_FOR = 1.0
"""Seconds after which a caller may come again, where nobody said more."""
_SPACE = " \t\n\r"
_VALUE = json.JSONDecoder()
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True)
class Given:
    """A caller's request.

    Attributes:
        headers: those that go on: `content-type`, and `x-runway-version` where the caller has one.
        query: what stands behind the path, with its question mark; empty for none.
    """

    body: bytes
    headers: dict[str, str]
    query: str = ""


@dataclass(frozen=True)
class Passed:
    """The upstream's answer, and the task it is about."""

    task_id: str
    response: HttpResponse


@dataclass
class Through:
    """Passes submissions on."""

    sender: Sender
    stopping: bool = False

    async def submit(self, route_name: str, given: Given, asked: Asked | None) -> Passed:
        """Send it once; the upstream's own answer.

        Raises:
            InvalidInput: nothing can be sent to its `callback_url`; nothing was stored.
            KeyReused, KeyBusy, AnsweredBefore: its Idempotency-Key is known; nothing was stored.
            UpstreamAway: it was surely not taken, and there is no answer to pass on; the task is kept as `rejected`.
            AnswerUnknown: it may have been taken, and must not be repeated; the task is kept as `ambiguous`.
            StoreUnavailable: nothing was stored and nothing sent.
        """
        sender, now = self.sender, self.sender.clock()
        members = _members(given.body)
        own = self._own_callback(members)
        # A repeat needs no slot; and it must not hear that nothing was taken, when that is only true of itself.
        await refuse_known(sender, asked)
        task = self._task(route_name, given.body, own, now)
        task, paced = await self._stored(task, asked)
        request = partial(self._request, task, given, members)
        # The sending outlives a caller who goes away: its answer is a paid id.
        return await asyncio.shield(self._answered(sender.start(task, request, paced, may_wait=False), task, asked))

    async def _stored(self, task: Task, asked: Asked | None) -> tuple[Task, Paced | None]:
        """Wait for a slot, and for a start of the rate; the task as it is stored with them."""
        sender, loop = self.sender, asyncio.get_running_loop()
        ends = loop.time() + SLOT_FOR
        while True:
            opens = sender.clock() if self.stopping else await sender.gates.slot(task.route, ends - loop.time())
            now = sender.clock()
            if opens is not None:
                reason = "no free slot towards the upstream"
                await sender.store.run(Accept(reject(task, reason, None, now), None))
                raise UpstreamAway(reason, task.id, max((opens - now).total_seconds(), 1.0))
            task = msgspec.structs.replace(task, submit_first_at=now, submit_leased_until=sender.lease(now))
            paced = sender.gates.asked(now)
            sender.gates.begin(task.route)
            try:
                accepted = await sender.accept(Accept(task, None, asked, paced, may_wait=False))
                if accepted.known is not None and asked is not None:
                    await refuse_repeat(sender, accepted.known, asked)
            except BaseException:
                sender.gates.end(task.route)
                raise
            if accepted.paced_until is None:
                return task, paced
            sender.gates.paced_until(accepted.paced_until)
            sender.gates.end(task.route)

    async def _answered(self, sending: asyncio.Task[Sent], task: Task, asked: Asked | None) -> Passed:
        try:
            sent = await asyncio.wait_for(asyncio.shield(sending), self.sender.terms.timeout + STORED_FOR)
        except TimeoutError as error:  # the answer is kept in memory, and stored as soon as the store is back
            raise AnswerUnknown("its answer cannot be stored now; the task will tell", task.id) from error
        except Exception as error:
            # Whatever it was, it may have been sent: the caller must not hear an error that invites a repeat.
            fault = f"a fault of this program ({type(error).__name__}); the log has more"
            raise AnswerUnknown(fault, task.id) from error
        store, response = self.sender.store, sent.response
        match sent.answer:
            case NotTaken() as answer if sent.task.state == "rejected":
                with suppress(StoreUnavailable):
                    await forget(store, asked, task.id)  # the caller may, and should, come again
                if response is None:
                    raise UpstreamAway(answer.reason, task.id, answer.retry_after or AGAIN_FOR)
                return Passed(task.id, response)
            case NotTaken() | Ambiguous() as answer:
                raise AnswerUnknown(answer.reason, task.id)
            case Refused() as answer if sent.task.state != "rejected":
                raise AnswerUnknown(f"{answer.reason}; and yet the upstream has called back", task.id)
            case Taken() | Refused():
                assert response is not None  # noqa: S101 -- only what was not answered has none
                kind = response.headers.get("content-type")
                with suppress(StoreUnavailable):  # it was taken, and paid for: the answer counts more than its copy
                    await keep_answer(store, asked, task.id, response.status, kind, response.body)
                return Passed(task.id, response)

    def _own_callback(self, members: dict[str, msgspec.Raw] | None) -> str | None:
        raw = bytes((members or {}).get("callback_url", b"null"))
        try:
            url: Any = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            url = 0
        if url is None or url == "":
            return None
        if not isinstance(url, str):
            raise InvalidInput("callback_url: text is wanted", [Flaw("text is wanted", pointer="/callback_url")])
        check_callback_url(url, allow_private=self.sender.terms.allow_private_callbacks)
        return url

    def _task(self, route_name: str, body: bytes, own: str | None, now: datetime) -> Task:
        shown = _shown(body)
        prompt = shown.get(ROUTES[route_name].prompt_key)
        return Task(
            id=ids.task_id(int(now.timestamp() * 1000), self.sender.rules.entropy(ids.ENTROPY_BYTES)),
            route=route_name,
            state="submitting",
            created_at=now,
            input_json=orjson.dumps(shown).decode(),
            callback_expires_at=self.sender.callback_expires_at(route_name, now),
            prompt=prompt if isinstance(prompt, str) else None,
            callback_url=own,
        )

    def _request(self, task: Task, given: Given, members: dict[str, msgspec.Raw] | None) -> HttpRequest:
        body = given.body
        if members is not None:
            body = _with_callback(members, body, ROUTES[task.route].takes_callback, self.sender.callback_url(task))
        return HttpRequest("POST", f"/{task.route}{given.query}", given.headers, body)


def _members(body: bytes) -> dict[str, msgspec.Raw] | None:
    """The members of a JSON object, each as its bytes; None for what is none: the upstream will say so."""
    try:
        return _MEMBERS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _patient_members(body)


def _patient_members(body: bytes) -> dict[str, msgspec.Raw] | None:
    """As `_members`, for what only msgspec refuses: half a surrogate pair, as in a text that JavaScript cut."""
    try:
        text = body.decode("utf-8", "surrogateescape").strip(_SPACE)
        if not text.startswith("{") or type(json.loads(text)) is not dict:
            return None
        members: dict[str, msgspec.Raw] = {}
        at = _skip(text, 1)
        while text[at] == '"':
            name, at = _VALUE.raw_decode(text, at)
            began = _skip(text, _skip(text, at) + 1)
            _, at = _VALUE.raw_decode(text, began)
            name.encode()  # one that cannot be written again: all of it goes on as it is
            members[name] = msgspec.Raw(text[began:at].encode("utf-8", "surrogateescape"))
            at = _skip(text, at)
            at = _skip(text, at + 1) if text[at] == "," else at
    except (ValueError, RecursionError, IndexError):
        return None
    return members


def _skip(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


def _with_callback(members: dict[str, msgspec.Raw], body: bytes, takes: bool, ours: str | None) -> bytes:
    """The body with our callback URL in the place of the caller's; without any where the route takes none."""
    if takes:
        return msgspec.json.encode({**members, "callback_url": ours or NO_CALLBACK})
    if "callback_url" not in members:
        return body
    return msgspec.json.encode({name: value for name, value in members.items() if name != "callback_url"})


def _shown(body: bytes) -> dict[str, Any]:
    """What is kept of an input: without callback_url, its data URIs abridged; nothing of what is no JSON object."""
    try:
        whole = orjson.loads(body)
        if not isinstance(whole, dict):
            return {}
        shown: dict[str, Any] = abridge({name: value for name, value in whole.items() if name != "callback_url"})
        orjson.dumps(shown)  # what is nested too deep can be read, and not be written again
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
        return {}
    return shown
