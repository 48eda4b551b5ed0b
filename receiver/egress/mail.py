"""Mail goes out by SMTP (RFC 5321): one connection, one mail; what the server says is given back, and not judged.

Where the server stands is the operator's word, so its address is not vetted: most stand in a private network. TLS is
used wherever it is offered, and its certificate verified; STARTTLS on loopback, where nothing is in between, needs none
that is valid, and `smtps://` needs one everywhere. A password never goes out in the clear, loopback excepted. A
recipient who is put off (4xx) puts off the mail for all, before anything of it was sent: else the others would get it
again and again. One who is refused for good (5xx) does not keep it from the others; the answer's header `refused` names
them.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, unquote, urlsplit

import aiosmtplib

from receiver.egress import dialing, faults
from receiver.errors import EgressError
from receiver.wire import HttpResponse

if TYPE_CHECKING:
    from receiver.errors import Stage
    from receiver.wire import HttpRequest

METHOD: Final = "MAIL"
_GOODBYE: Final = 1.0
"""Seconds for the answer to QUIT: the mail is taken by then, and whatever comes changes nothing."""
_REPLY: Final = 4096
"""Characters of a reply that are kept."""
_SUBMISSION, _SMTP, _SMTPS = 587, 25, 465
_PUT_OFF = range(400, 500)


@dataclass
class _Way:
    """How far it came."""

    stage: Stage = "dns"
    sent: bool = False


async def send(
    request: HttpRequest,
    *,
    tls: ssl.SSLContext,
    timeout: float,  # noqa: ASYNC109 -- for the whole of it
) -> HttpResponse:
    """Send a mail.

    Args:
        request: `smtp://` or `smtps://` with user and password, where there are any; the headers `mail-from` and
            `rcpt-to` (several by commas) are the envelope, the body is the mail.
        tls: the authorities that are trusted.
        timeout: seconds for the whole of it.

    Returns:
        The server's reply that decided: its code as the status, its text as the body.

    Raises:
        EgressError: there was no reply.
    """
    way, parts = _Way(), urlsplit(request.url)
    try:
        async with asyncio.timeout(timeout):
            return await _send(request, parts, tls, way)
    except aiosmtplib.SMTPResponseException as error:
        if not 200 <= error.code < 600:  # noqa: PLR2004 -- what a reply can be (RFC 5321, 4.2.1)
            raise EgressError("the other side does not speak SMTP", stage="send", sent=way.sent) from error
        return _reply(error.code, error.message)
    except TimeoutError as error:
        words = str(faults.told(error, stood=way.stage not in {"dns", "connect"}, within=timeout))
        raise EgressError(words, stage="timeout", sent=way.sent) from error
    except (aiosmtplib.SMTPException, OSError, ValueError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise _told(cause, parts, way) from error


def _told(error: BaseException, parts: SplitResult, way: _Way) -> EgressError:
    host = parts.hostname
    if isinstance(error, socket.gaierror):
        return EgressError(f"{host}: {error.strerror}", stage="dns", sent=False)
    if isinstance(error, OSError):
        words = str(faults.told(error, stood=way.sent, within=0))
        return EgressError(f"{host}: {words}", stage=way.stage, sent=way.sent)
    return EgressError(f"{host}: {str(error)[:200]}", stage="send", sent=way.sent)


async def _send(request: HttpRequest, parts: SplitResult, tls: ssl.SSLContext, way: _Way) -> HttpResponse:
    is_secure, host = parts.scheme == "smtps", parts.hostname or ""
    port = parts.port or (_SMTPS if is_secure else _SUBMISSION if parts.username else _SMTP)
    connection = await _connected(host, port, way)
    here, there = (ip_address(address[0].partition("%")[0]) for address in _ends(connection))
    way.stage = "tls" if is_secure else "reset"
    smtp = aiosmtplib.SMTP(
        hostname=host,
        sock=connection,
        use_tls=is_secure,
        start_tls=False,
        tls_context=tls,
        local_hostname=f"[IPv6:{here}]" if here.version == 6 else f"[{here}]",  # noqa: PLR2004
        timeout=None,
    )
    try:
        await smtp.connect()
        way.stage = "reset"
        await smtp.ehlo()
        if not is_secure:
            await _secure(smtp, tls, way, is_local=there.is_loopback, has_password=parts.password is not None)
        if parts.username is not None:
            await smtp.login(unquote(parts.username), unquote(parts.password or ""))
        return await _mailed(smtp, request, way)
    finally:
        smtp.close()


async def _connected(host: str, port: int, way: _Way) -> socket.socket:
    """A connection to the first address that takes one."""
    found = await dialing.Resolver(vetted=False).resolve(host, port)
    way.stage = "connect"
    failure: OSError = OSError("it has no address")
    for one in found:
        tried = socket.socket(one["family"], socket.SOCK_STREAM)
        tried.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(tried, (one["host"], port))
        except BaseException as error:
            tried.close()
            if not isinstance(error, OSError) or isinstance(error, TimeoutError):
                raise
            failure = error
        else:
            return tried
    raise failure


def _ends(connection: socket.socket) -> tuple[tuple[str, int], tuple[str, int]]:
    return connection.getsockname(), connection.getpeername()


async def _secure(smtp: aiosmtplib.SMTP, tls: ssl.SSLContext, way: _Way, *, is_local: bool, has_password: bool) -> None:
    """STARTTLS where it is offered; without it, no password but on loopback."""
    if smtp.supports_extension("starttls"):
        way.stage = "tls"
        await smtp.starttls(tls_context=_unverified() if is_local else tls)
        way.stage = "reset"
        await smtp.ehlo()
    elif has_password and not is_local:
        raise EgressError("it offers no STARTTLS, and a password is not sent in the clear", stage="send", sent=False)


def _unverified() -> ssl.SSLContext:
    """For a server on this machine: its certificate is seldom one for `localhost`."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _mailed(smtp: aiosmtplib.SMTP, request: HttpRequest, way: _Way) -> HttpResponse:
    await smtp.mail(request.headers["mail-from"])
    recipients = request.headers["rcpt-to"].split(",")
    refused: list[str] = []
    for recipient in recipients:
        try:
            await smtp.rcpt(recipient)
        except aiosmtplib.SMTPRecipientRefused as error:
            if error.code in _PUT_OFF or len(refused) == len(recipients) - 1:
                raise
            refused.append(f"{recipient}: {error.code} {' '.join(error.message.split())[:200]}")
    way.sent = True
    reply = await smtp.data(request.body)
    with suppress(aiosmtplib.SMTPException, OSError):
        async with asyncio.timeout(_GOODBYE):
            await smtp.quit()
    return _reply(reply.code, reply.message, refused="; ".join(refused))


def _reply(code: int, message: str, **headers: str) -> HttpResponse:
    kept = {name: value for name, value in headers.items() if value}
    return HttpResponse(code, kept, message[:_REPLY].encode("utf-8", "replace"))
