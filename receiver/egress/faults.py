"""What went wrong on the way out, in words and with its stage. Pure: exceptions in, an EgressError out.

`sent` is never guessed from the kind of an exception: it is whether the connection stood (TLS included).
"""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Final

import aiohttp
import httpx

from receiver.errors import EgressError

if TYPE_CHECKING:
    from receiver.errors import Stage

FAILURES: Final = (
    aiohttp.ClientError,
    httpx.HTTPError,
    httpx.InvalidURL,
    OSError,
    ValueError,
    RuntimeError,
    EgressError,
)
"""Everything the libraries let out; TimeoutError is an OSError."""
# What OpenSSL says of a peer that does not speak TLS at all, or the other way round.
_TLS_WORDS: Final = {
    "WRONG_VERSION_NUMBER": "the other side does not speak TLS",
    "UNEXPECTED_EOF_WHILE_READING": "the other side closed it",
}
_WORDS: Final = 200
"""Characters of foreign words that are kept."""


def told(error: Exception, *, stood: bool, within: float) -> EgressError:
    """`error` as an EgressError. `stood`: a connection stood; `within`: the time that was allowed, in seconds."""
    if isinstance(error, EgressError):
        return error
    cause = error.__cause__
    if isinstance(error, httpx.HTTPError) and isinstance(cause, Exception):
        error = cause  # httpx-aiohttp calls several things by the wrong name; the first exception is right
    stage, words = _reading(error, stood=stood, within=within)
    return EgressError(words, stage=stage, sent=stood)


def _reading(error: Exception, *, stood: bool, within: float) -> tuple[Stage, str]:
    stage: Stage
    match error:
        case aiohttp.ClientConnectorDNSError():
            stage, words = "dns", f"{error.host}: {_os_words(error.os_error)}"
        case aiohttp.ClientConnectorCertificateError():
            reason = _tls_words(error.certificate_error)
            stage, words = "tls", f"the certificate of {error.host} is not accepted: {reason}"
        case aiohttp.ClientConnectorSSLError():
            stage, words = "tls", f"{error.host}: {_tls_words(error.os_error)}"
        case aiohttp.ClientConnectorError():
            stage, words = _unconnected(error)
        case TimeoutError():
            stage, words = "timeout", f"{'no answer' if stood else 'no connection'} within {within:g} s"
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError() | httpx.InvalidURL():
            stage, words = "address", getattr(error, "description", None) or "nothing can be connected to this URL"
        case aiohttp.ServerDisconnectedError():
            stage, words = "reset", "the other side closed it without an answer"
        case aiohttp.ClientPayloadError() | aiohttp.ClientConnectionError() | ConnectionError() | ssl.SSLError():
            stage, words = "reset", _broken_words(error)
        case aiohttp.ClientResponseError():
            stage, words = "answer", error.message or "unreadable"
        case _:
            stage, words = "send", str(error) or type(error).__name__
    return stage, _cut(words)


def _unconnected(error: aiohttp.ClientConnectorError) -> tuple[Stage, str]:
    if isinstance(error.os_error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
        # Only what stood can be broken off: the handshake was under way.
        return "tls", f"{error.host}: the other side broke it off"
    return "connect", f"{error.host}:{error.port}: {_os_words(error.os_error)}"


def _os_words(error: BaseException) -> str:
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:  # the loops have words of their own, and differ; gaierror's are below 0
        return os.strerror(number).lower()
    return str(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _broken_words(error: BaseException) -> str:
    """Never the library's own: "Can not write request body for" is followed by the URL, which may hold a secret."""
    if isinstance(error, ssl.SSLError):
        return _tls_words(error)
    if isinstance(error, OSError) and error.errno:
        return _os_words(error)
    return "the other side closed it while the request was sent"


def _tls_words(error: BaseException) -> str:
    words = getattr(error, "verify_message", None)
    if words:
        return str(words)
    reason = str(getattr(error, "reason", None) or str(error))
    return _TLS_WORDS.get(reason, reason.replace("_", " ").lower() if reason.isupper() else reason)


def _cut(words: str) -> str:
    line = " ".join(words.split())
    return line if len(line) <= _WORDS else line[: _WORDS - 1] + "…"
