"""The kind `email`: a mail of two parts that say the same, text and HTML, by SMTP (RFC 5321, 5322, 2046).

Its request goes by `MAIL` instead of `POST` and its URL is the server's; egress sends it, and the answer is the
server's reply: 4xx puts it off, 5xx is for good (RFC 5321, 4.2.1). The Message-ID is the same in every attempt, so
that a mailbox can tell a repeat. Pictures are linked, not sent along. No header can be made by what a prompt says: it
is cleaned, on one line, and encoded.
"""

from __future__ import annotations

import hashlib
import html
import re
from datetime import UTC
from email import policy
from email.message import EmailMessage
from email.utils import format_datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from receiver.destinations import chat
from receiver.destinations.base import masked
from receiver.destinations.chat import USER_AGENT, ChatOptions
from receiver.retry import Result
from receiver.wire import HttpRequest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from receiver.destinations.base import Steps
    from receiver.destinations.card import Card
    from receiver.wire import HttpResponse

_ADDRESS: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
_UNFIT: Final = re.compile(r"[\s\x00-\x1f\x7f\\]")
_NO_LOGIN: Final = frozenset({454, 530, 534, 535, 538})
_COLOURS: Final = {"good": "#1a7f37", "bad": "#cf222e", "warning": "#9a6700", "plain": "#0969da"}


def _smtp_url(url: str) -> str:
    if _UNFIT.search(url):
        raise ValueError("a URL has no spaces, control characters or backslashes; write them as %20 and the like")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its words may repeat a password
        raise ValueError("this is no URL: its host or port cannot be read; write / @ : in a password as %2F") from None
    if parts.scheme not in {"smtp", "smtps"} or not parts.hostname:
        raise ValueError("smtp://user:password@host:587 or smtps://… is wanted")
    if parts.path not in {"", "/"} or "?" in url or "#" in url:
        raise ValueError("nothing can follow the port; in a password write / ? # as %2F %3F %23")
    if port == 0:
        raise ValueError("nothing can listen on port 0")
    if not url.isascii():
        raise ValueError("it is not plain ASCII; write other characters of a password by percent, of a name as xn--…")
    return url


def _addresses(text: str) -> tuple[str, ...]:
    """The mailboxes of a header's text, bare.

    Raises:
        ValueError: there is none, or one that not every server takes.
    """
    try:
        header: Any = policy.SMTP.header_factory("to", text)
        found = tuple(str(one.addr_spec) for one in header.addresses)
    except (ValueError, IndexError):  # what it lets out for odd texts
        found = ()
    if not found or header.defects or not all(_ADDRESS.fullmatch(one) for one in found):
        raise ValueError('an address is wanted, "team@example.com" or "The team <team@example.com>", in plain ASCII')
    return found


def _sender(text: str) -> str:
    if len(_addresses(text)) != 1:
        raise ValueError("one address is wanted here")
    return text


def _recipients(given: Any) -> Any:
    return (given,) if isinstance(given, str) else given


def _checked(recipients: tuple[str, ...]) -> tuple[str, ...]:
    for one in recipients:
        _addresses(one)
    return recipients


class EmailOptions(ChatOptions):
    """The keys of kind `email`."""

    # RFC 5322 has no limit that would be met; these are for readers.
    LIMITS: ClassVar[Mapping[str, int]] = {"title": 200, "text": 20_000, "facts": 10, "fact": 1000}

    smtp_url: Annotated[str, AfterValidator(_smtp_url)]
    sender: Annotated[str, AfterValidator(_sender)] = Field(alias="from")
    to: Annotated[
        tuple[str, ...],
        BeforeValidator(_recipients),
        AfterValidator(_checked),
        Field(min_length=1),
        WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}, "minItems": 1}),
    ]


def send(card: Card, options: EmailOptions, *, now: datetime) -> Steps:
    """One mail."""
    recipients = [bare for one in options.to for bare in _addresses(one)]
    [sender] = _addresses(options.sender)
    headers = {"mail-from": sender, "rcpt-to": ",".join(recipients), "user-agent": USER_AGENT}
    body = _mail(card, options, now).as_bytes()
    response = yield HttpRequest("MAIL", options.smtp_url, headers, body)
    return judge(response)


def judge(response: HttpResponse) -> Result:
    """What the server replied."""
    words = chat.word_of(response.body.decode(errors="replace"))
    said = f"it replied {response.status}: {words}"
    if response.is_success:
        refused = response.headers.get("refused")
        return Result("ok", f"{said}; it refused {refused}" if refused else said)
    if response.status in _NO_LOGIN:
        return Result("permanent", f"{said}; check the user and password, the destination is paused", pause=True)
    return Result("permanent" if response.status // 100 == 5 else "transient", said)  # noqa: PLR2004


def _mail(card: Card, options: EmailOptions, now: datetime) -> EmailMessage:
    title, text = options.title_of(card, options.limit("title")), options.text_of(card, options.limit("text"))
    mail = EmailMessage(policy=policy.SMTP)
    # What looks encoded (RFC 2047) would be decoded, here and by every reader, line feeds and all.
    mail["Subject"] = title.replace("=?", "=\uff1f")
    mail["From"], mail["To"] = options.sender, ", ".join(options.to)
    mail["Date"] = format_datetime(now.astimezone(UTC))
    mail["Message-ID"] = message_id = _message_id(card, options, text, now)
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's holiday answers it
    mail["User-Agent"] = USER_AGENT
    facts = options.facts_of(card)
    mail.set_content(_plain(card, title, text, facts), cte="quoted-printable")
    # Quoted-printable has no "=_": no text can hold it.
    mail.make_alternative(boundary=f"=_{hashlib.sha256(message_id.encode()).hexdigest()[:24]}")
    mail.add_alternative(_rich(card, title, text, facts), subtype="html", cte="quoted-printable")
    return mail


def _message_id(card: Card, options: EmailOptions, text: str, now: datetime) -> str:
    """The same for the same event and readers; a summary, which has no id, is named by what it says and when."""
    event = card.values.get("event_id") or f"sum-{int(now.timestamp())}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    readers = hashlib.sha256("\n".join(options.to).encode()).hexdigest()[:8]
    return f"<{event}.{readers}@{_addresses(options.sender)[0].rpartition('@')[2].lower()}>"


def _plain(card: Card, title: str, text: str, facts: list[tuple[str, str]]) -> str:
    table = "\n".join(f"{label}: {value}" for label, value in facts)
    links = "\n".join(f"{label}: {url}" for label, url in card.links)
    return "\n\n".join(part for part in (title, text, table, links) if part) + "\n"


def _rich(card: Card, title: str, text: str, facts: list[tuple[str, str]]) -> str:
    """Tables and inline styles: what mail programs understand."""
    colour = _COLOURS[card.tone]
    parts = [f'<h1 style="font-size:20px;color:{colour}">{html.escape(title)}</h1>']
    if card.poster:
        poster = html.escape(card.poster)
        parts.append(f'<p><img src="{poster}" alt="" width="560" style="max-width:100%;border-radius:6px"></p>')
    if text:
        parts.append(f"<p>{html.escape(text).replace(chr(10), '<br>')}</p>")
    if facts:
        rows = "".join(
            f'<tr><td style="color:#57606a;padding:2px 16px 2px 0">{html.escape(label)}</td>'
            f"<td>{html.escape(value)}</td></tr>"
            for label, value in facts
        )
        parts.append(f'<table style="font-size:14px">{rows}</table>')
    style = f"display:inline-block;padding:8px 16px;border-radius:6px;background:{colour};color:#ffffff"
    buttons = [f'<a href="{html.escape(url)}" style="{style}">{html.escape(label)}</a>' for label, url in card.links]
    parts += [f"<p>{' '.join(buttons)}</p>"] if buttons else []
    page = '<body style="font-family:sans-serif;font-size:15px;max-width:600px">' + "\n".join(parts)
    return f'<html><head><meta charset="utf-8"></head>\n{page}</body></html>\n'


KIND: Final = chat.chat_kind("email", EmailOptions, send, masked=masked, secrets=("smtp_url",))
