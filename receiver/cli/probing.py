"""What `receiver doctor` asks of others, by the way the service itself goes: through egress.

A lookup of a task that nobody has (free), a callback with a token that nobody minted (refused), the service's own word
on its state and its destinations', and a HEAD at each destination's root: it is resolved, vetted, connected to and
greeted by TLS as for a delivery, and no event is sent.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import orjson

from receiver.cli.clock import now
from receiver.cli.options import service_url
from receiver.errors import EgressError

if TYPE_CHECKING:
    from receiver.config import Config, Destination
    from receiver.egress import Egress
    from receiver.wire import HttpResponse

State = Literal["ok", "note", "wrong"]

ASK_FOR: Final = 10.0
"""Seconds for each answer."""
NOBODYS: Final = "00000000-0000-4000-8000-000000000000"
"""The id of a task that no upstream has."""
SKEW: Final = timedelta(seconds=30)
"""From here on a clock is wrong: consumers take signatures that are five minutes off, and no more."""
_READ: Final = "docs/operate.md tells what each reason means, and what to do."
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, THROTTLED, BROKEN = 401, 403, 404, 429, 500


@dataclass(frozen=True)
class Finding:
    """What was found at one place; `mend` says what to do, "" where there is nothing to do."""

    name: str
    state: State
    detail: str
    mend: str = ""


async def probe(settings: Config) -> list[Finding]:
    """All that is asked of others, at once; told in a fixed order."""
    from receiver.egress import Egress

    headers = {"x-runway-version": settings.upstream.runway_version}
    if settings.upstream.api_key is not None:
        headers["authorization"] = f"Bearer {settings.upstream.api_key}"
    egress = Egress(base_url=settings.upstream.base_url, headers=headers)
    try:
        async with asyncio.TaskGroup() as group:
            upstream = group.create_task(_upstream(settings, egress))
            service = group.create_task(_service(settings, egress))
            public = group.create_task(_public_url(settings, egress))
            health = group.create_task(_health(settings, egress))
            destinations = [group.create_task(_destination(one, egress)) for one in settings.destinations]
    finally:
        await egress.aclose()
    found = [
        *upstream.result(),
        service.result(),
        public.result(),
        *(_held(one.result(), health.result()) for one in destinations),
    ]
    if not destinations:
        mend = "Add [[destinations]] to the config: where the results go."
        found.append(Finding("destinations", "note", "there are none: events are only in the feed", mend))
    return found


async def _upstream(settings: Config, egress: Egress) -> list[Finding]:
    """The key and the clock, from one lookup of a task that is nobody's: it is free, and changes nothing."""
    from receiver.upstream.base import task_request

    began = now()
    try:
        answer = await egress.ask(task_request(NOBODYS), timeout=ASK_FOR)
    except EgressError as error:
        base = settings.upstream.base_url
        words = f"{base} gave no answer: {_stage(error)}"
        return [
            Finding("upstream", "wrong", words, "Check upstream.base_url, and the network of this machine."),
            Finding("clock", "note", "not checked: the upstream gave no answer"),
        ]
    return [_key(settings, answer), _clock(answer, began + (now() - began) / 2)]


def _key(settings: Config, answer: HttpResponse) -> Finding:
    base, status = settings.upstream.base_url, answer.status
    if settings.upstream.api_key is None:
        return Finding("upstream", "note", f"{base} answers; the key was not tried, since there is none")
    if status in {UNAUTHORIZED, FORBIDDEN}:
        mend = "Set upstream.api_key (or $COMETAPI_API_KEY) to a key that is good there."
        return Finding("upstream", "wrong", f"{base} answers, and refuses the key ({status})", mend)
    if status == THROTTLED or status >= BROKEN:
        return Finding("upstream", "note", f"{base} answers {status}, so the key was not tried", "Try again later.")
    if not _is_json(answer.body):
        mend = "Check upstream.base_url: is it the API's own address, without a path?"
        return Finding("upstream", "wrong", f"{base} answers {status}, and not as the API does", mend)
    return Finding("upstream", "ok", f"{base} answers and takes the key")


def _is_json(body: bytes) -> bool:
    try:
        return isinstance(orjson.loads(body), dict)
    except orjson.JSONDecodeError:
        return False


def _clock(answer: HttpResponse, at: datetime) -> Finding:
    """This machine's clock against the answer's `Date` (whole seconds, RFC 9110 6.6.1)."""
    try:
        theirs = parsedate_to_datetime(answer.headers.get("date", ""))
        theirs = theirs if theirs.tzinfo else theirs.replace(tzinfo=UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return Finding("clock", "note", "not checked: the upstream's answer has no usable Date")
    ahead = (at - theirs).total_seconds()
    if abs(ahead) <= SKEW.total_seconds():
        return Finding("clock", "ok", f"{abs(ahead):.0f} s from the upstream's")
    side = "ahead of" if ahead > 0 else "behind"
    words = f"{abs(ahead):.0f} s {side} the upstream's: signatures and callback URLs are dated by it"
    return Finding("clock", "wrong", words, "Set it by NTP: timedatectl set-ntp true")


async def _service(settings: Config, egress: Egress) -> Finding:
    """What the service says of itself, where it runs on this machine."""
    from receiver.wire import HttpRequest

    where = service_url(settings)
    try:
        answer = await egress.deliver(HttpRequest("GET", f"{where}/readyz"), timeout=ASK_FOR, allow_private=True)
        reasons = orjson.loads(answer.body)["reasons"]
    except EgressError as error:
        return Finding("service", "note", f"nothing answers at {where} ({_stage(error)})", "Start it: receiver serve")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        mend = "Stop what runs there, or choose another server.port."
        return Finding("service", "wrong", f"{where} answers, and not as a receiver does", mend)
    if reasons:
        return Finding("service", "wrong", f"{where} is not ready: {'; '.join(map(str, reasons))}", _READ)
    return Finding("service", "ok", f"{where} is ready")


async def _public_url(settings: Config, egress: Egress) -> Finding:
    """Whether a callback would reach our door: a token that nobody minted must be refused as only we refuse it."""
    from receiver.wire import HttpRequest

    name, base = "public URL", settings.server.public_url
    if base is None:
        mend = "Set server.public_url to where the upstream reaches this program, and callbacks come at once."
        return Finding(name, "note", "server.public_url is not set: every task is polled", mend)
    request, private = HttpRequest("GET", f"{base}/callbacks/x", {"user-agent": "receiver-doctor"}), ""
    try:
        try:
            answer = await egress.deliver(request, timeout=ASK_FOR, allow_private=False)
        except EgressError as error:
            if error.stage != "address":
                raise
            private = str(error)
            answer = await egress.deliver(request, timeout=ASK_FOR, allow_private=True)
    except EgressError as error:
        words = f"{base} cannot be reached from here: {_stage(error)}"
        return Finding(name, "wrong", words, "Is `receiver serve` up, and does what stands in front pass it on?")
    if answer.status != NOT_FOUND or not _is_our_refusal(answer.body):
        leads = answer.headers.get("location", "")[:200]
        words = f"{base} answers {answer.status}{f', to {leads}' if leads else ''}, and not as the callback door does"
        mend = "Have what stands in front pass /callbacks/ on as it is, or set server.public_url to where it leads."
        return Finding(name, "wrong", words, mend)
    return _reached(settings, base, private)


def _reached(settings: Config, base: str, private: str) -> Finding:
    """It is reached from here; whether the upstream can reach it, too, is told by where it leads."""
    from receiver.egress import private_literal

    name, upstream = "public URL", urlsplit(settings.upstream.base_url).hostname or ""
    is_played = upstream == "localhost" or private_literal(upstream) is not None
    if private and not is_played:
        words = f"{base} answers here, but the upstream cannot reach it: {private}"
        mend = "Set it to an address that the whole net reaches, or unset it: then every task is polled."
        return Finding(name, "wrong", words, mend)
    if not base.startswith("https:") and not is_played:
        mend = "Put TLS in front: on plain http the callback tokens can be read on their way."
        return Finding(name, "note", f"{base} answers as it should, without TLS", mend)
    return Finding(name, "ok", f"{base} answers as it should")


def _is_our_refusal(body: bytes) -> bool:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(document, dict) and document.get("type") == "/docs/problems/not-found"


async def _destination(given: Destination, egress: Egress) -> Finding:
    """Resolve it, vet its addresses, connect, shake hands by TLS; no event is sent, and its own path is not asked."""
    from receiver.wire import HttpRequest

    name = f"destination {given.name}"
    url = getattr(given.options, "url", getattr(given.options, "api_base", ""))
    parts = urlsplit(str(url))
    if parts.scheme not in {"http", "https"}:  # a mail server, or an apprise URL
        return Finding(name, "note", f"not checked; to send a sample: receiver destinations test {given.name}")
    root = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/"
    try:
        await egress.deliver(
            HttpRequest("HEAD", root, {"user-agent": "receiver-doctor"}),
            timeout=ASK_FOR,
            allow_private=given.allow_private,
        )
    except EgressError as error:
        return Finding(name, "wrong", f"{root} cannot be reached: {_stage(error)}", _mend(error, given.name))
    if given.kind == "webhook" and not getattr(given.options, "secrets", ()):
        mend = f"Add `secrets` to it: {given.name} cannot tell our webhooks from a stranger's."
        return Finding(name, "note", f"{root} can be reached; what goes there is unsigned", mend)
    return Finding(name, "ok", f"{root} can be reached; to send a sample: receiver destinations test {given.name}")


async def _health(settings: Config, egress: Egress) -> dict[str, Any]:
    """How the running service finds each destination, by the findings' names; nothing where it cannot be asked."""
    from receiver.wire import HttpRequest

    key = os.environ.get("RECEIVER_API_KEY") or next(reversed(settings.security.api_keys), None)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    request = HttpRequest("GET", f"{service_url(settings)}/api/v1/destinations", headers)
    try:
        answer = await egress.deliver(request, timeout=ASK_FOR, allow_private=True)
        return {f"destination {one['name']}": one for one in orjson.loads(answer.body)["data"]}
    except (EgressError, orjson.JSONDecodeError, KeyError, TypeError):
        return {}


def _held(finding: Finding, health: dict[str, Any]) -> Finding:
    """What can be reached, and is sent nothing all the same."""
    one = health.get(finding.name, {})
    if finding.state == "wrong" or one.get("state") not in {"paused", "open"}:
        return finding
    why = str(one.get("reason") or one.get("last_error") or "by hand")
    if one["state"] == "open":
        words, mend = "it failed too often in a row, and is only probed", "Mend it; what waits goes out by itself."
    else:
        words, mend = "it is paused", f"When it is mended: receiver destinations resume {one['name']}"
    return Finding(finding.name, "note", f"{words}: {why}", mend)


def _mend(error: EgressError, name: str) -> str:
    return {
        "address": f"If it is yours, give {name} leave: allow_private = true. Else its URL is wrong.",
        "dns": f"Check the name in the url of {name}.",
        "tls": "Mend its certificate: it must be in date, for this name, from an authority that this machine trusts.",
    }.get(error.stage, "Is it up, and may this machine connect to it?")


def _stage(error: EgressError) -> str:
    from receiver import retry

    return retry.from_error(error).reason
