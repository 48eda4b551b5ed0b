"""A mail server (aiosmtpd), with STARTTLS, TLS and passwords where a test wants them, and a strict reader of mails."""

from __future__ import annotations

import asyncio
import email.policy
import re
import warnings
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import SMTP, AuthResult

from tests.platforms import PATIENCE, Shown

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable
    from email.message import EmailMessage

    from aiosmtpd.smtp import Envelope, LoginPassword, Session

USER, PASSWORD = "renders", "smtp secret: p@ss/wörd"
SENDER, READER = "receiver@studio.example", "team@studio.example"
_LINE = 998


@dataclass
class MailServer:
    """What was mailed, and what is answered.

    Attributes:
        script: replies to the next commands of a kind: `{"RCPT": ["450 4.2.0 greylisted"]}`.
        mails: those that were taken, as they came.
        peers: of each: its envelope's sender and recipients, whether by TLS, and as whom.
        logins: how often a password was tried.
    """

    port: int = 0
    script: dict[str, list[str]] = field(default_factory=dict)
    mails: list[bytes] = field(default_factory=list)
    peers: list[tuple[str, list[str], bool, bool]] = field(default_factory=list)
    logins: int = 0
    hangs: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def keys(self) -> dict[str, Any]:
        """The kind's own keys."""
        return {"smtp_url": f"smtp://127.0.0.1:{self.port}", "from": f"Renders <{SENDER}>", "to": [READER]}

    def destination(self, name: str = "chat", **more: Any) -> dict[str, Any]:
        """An entry of `[[destinations]]`."""
        return {"name": name, "kind": "email", **self.keys(), **more}

    def _scripted(self, command: str) -> str | None:
        planned = self.script.get(command)
        return planned.pop(0) if planned else None

    async def handle_MAIL(  # noqa: N802 -- aiosmtpd's word
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """A sender."""
        if self.hangs:
            await asyncio.Event().wait()
        if (said := self._scripted("MAIL")) is not None:
            return said
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(  # noqa: N802 -- aiosmtpd's word
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """A recipient."""
        if (said := self._scripted("RCPT")) is not None:
            return said
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """The mail."""
        if (said := self._scripted("DATA")) is not None:
            return said
        assert isinstance(envelope.content, bytes)
        self.mails.append(envelope.content)
        assert server.transport is not None
        by_tls = session.ssl is not None or server.transport.get_extra_info("sslcontext") is not None
        sender = str(envelope.mail_from)
        self.peers.append((sender, [str(one) for one in envelope.rcpt_tos], by_tls, bool(session.authenticated)))
        self._changed.set()
        return "250 2.0.0 queued"

    def check_password(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, given: Any
    ) -> AuthResult:
        """The one user there is."""
        self.logins += 1
        login: LoginPassword = given
        good = (login.login, login.password) == (USER.encode(), PASSWORD.encode())
        return AuthResult(success=good, handled=False)

    async def until(self, enough: Callable[[], bool]) -> None:
        """Wait until `enough` holds, looking at every mail."""
        async with asyncio.timeout(PATIENCE):
            while not enough():
                self._changed.clear()
                await self._changed.wait()

    async def seen(self, count: int = 1) -> list[Shown]:
        """What was mailed, once it is so many."""
        await self.until(lambda: len(self.mails) >= count)
        return self.shown

    @property
    def shown(self) -> list[Shown]:
        """Each mail as a reader sees it."""
        return [opened(mail)[1] for mail in self.mails]


@asynccontextmanager
async def mail_server(
    *, starttls: ssl.SSLContext | None = None, tls: ssl.SSLContext | None = None, passwords: bool = False
) -> AsyncIterator[MailServer]:
    """A mail server on a free loopback port, in this loop."""
    made = MailServer()

    def protocol() -> SMTP:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it takes TLS from the start for none
            return made_of()

    def made_of() -> SMTP:
        return SMTP(
            made,
            hostname="mail.studio.example",
            ident="a mail server",
            tls_context=starttls,
            auth_required=passwords,
            auth_require_tls=starttls is not None or not passwords,
            authenticator=made.check_password,
            enable_SMTPUTF8=False,
        )

    listener = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, ssl=tls)
    made.port = listener.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        listener.close()
        await listener.wait_closed()


def opened(mail: bytes) -> tuple[EmailMessage, Shown]:
    """A mail, once it is sure to be well formed; what is read of it is that of both its parts."""
    assert all(len(line) <= _LINE for line in mail.split(b"\r\n")), "a line is too long (RFC 5322, 2.1.1)"
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", mail), "a line ends in half a CRLF"
    assert mail.isascii(), "there are bytes that not every server takes"
    message: EmailMessage = message_from_bytes(mail, policy=email.policy.default)
    for part in message.walk():
        assert not part.defects, part.defects
        assert not any(getattr(value, "defects", ()) for value in part.values())
    for name in ("from", "to", "subject", "date", "message-id", "mime-version", "auto-submitted"):
        assert len(message.get_all(name, [])) == 1, f"{name} stands there {len(message.get_all(name, []))} times"
    assert message["auto-submitted"] == "auto-generated"
    assert re.fullmatch(r"<[A-Za-z0-9_.-]+@[a-z0-9.-]+>", message["message-id"])
    assert message.get_content_type() == "multipart/alternative"
    plain, rich = message.iter_parts()
    assert (plain.get_content_type(), rich.get_content_type()) == ("text/plain", "text/html")
    page = _Page()
    page.feed(rich.get_content())
    page.close()
    assert not page.flaws, page.flaws
    text = "\n".join([str(message["subject"]), plain.get_content(), "".join(page.texts)])
    return message, Shown(text, tuple(page.links), tuple(page.pictures))


class _Page(HTMLParser):
    """HTML without anything that runs, hides or sends."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.flaws: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag opens."""
        named = dict(attrs)
        if tag not in {"html", "head", "meta", "title", "body", "h1", "h2", "p", "a", "img", "br", "div", "span",
                       "table", "tr", "td", "th", "tbody", "strong", "em", "small", "hr", "pre"}:  # fmt: skip
            self.flaws.append(f"<{tag}>")
        if any(name.startswith("on") for name in named):
            self.flaws.append(f"<{tag} on…>")
        if tag == "a":
            self.links.append(named.get("href") or "")
        if tag == "img":
            self.pictures.append(named.get("src") or "")

    def handle_data(self, data: str) -> None:
        """Text."""
        self.texts.append(data)
