"""One JSON object a line on stdout (contract 6): time, level, event, then ids, then the rest. No secret in any line, ever.

Nothing that is logged is a token, a key or a secret by intent; the last step before the line is written holds that by
force: whatever looks like one, and every value registered with `hide`, is replaced. Everything else that logs in this
process (uvicorn, alembic, asyncio) comes through here too, from WARNING on.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
from typing import IO, TYPE_CHECKING, Any, Final

import orjson
import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

Logger = structlog.typing.FilteringBoundLogger

MASK: Final = "***"
IDS_FIRST: Final = ("task_id", "upstream_id", "event_id", "delivery_id", "destination", "attempt")
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_SHAPES: Final = re.compile(
    rb"(?P<path>/callbacks/)[A-Za-z0-9_.~%-]+"
    rb"|(?P<bearer>[Bb]earer\s+)[^\s\"\\,;]+"
    rb"|(?P<whsec>whsec_)[A-Za-z0-9+/=_-]+"
    rb"|(?P<user>://)[^\s/@\"\\]+@"
)
_MARKS: Final = (b"/callbacks/", b"earer ", b"whsec_", b"@")
_hidden: list[bytes] = []


def hide(*secrets: str | None) -> None:
    """Never let these values into a line, whatever writes it. Shorter than 8 characters they would hide too much."""
    for secret in secrets:
        if secret and len(secret) >= 8:  # noqa: PLR2004 -- see above
            _hidden.append(orjson.dumps(secret)[1:-1])
    _hidden.sort(key=len, reverse=True)


def redact(line: bytes) -> bytes:
    """The line without anything that opens a door."""
    for secret in _hidden:
        if secret in line:
            line = line.replace(secret, MASK.encode())
    for mark in _MARKS:
        if mark in line:
            return _SHAPES.sub(_masked, line)
    return line


def _masked(found: re.Match[bytes]) -> bytes:
    kept = found["path"] or found["bearer"] or found["whsec"] or found["user"]
    return kept + MASK.encode() + (b"@" if found["user"] else b"")


def configure(fmt: str = "json", level: str = "info", stream: IO[bytes] | None = None) -> None:
    """Set the format (`json`, `console`, or `auto`: console on a TTY) and the level, for the whole process."""
    out = stream or sys.stdout.buffer
    is_console = fmt == "console" or (fmt == "auto" and out.isatty())
    structlog.configure(
        processors=[_console if is_console else _json],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.BytesLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_Bridge()]
    root.setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "httpx", "httpcore", "aiohttp", "alembic"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
        logging.getLogger(name).setLevel(logging.WARNING)


def get() -> Logger:
    """The logger of this process."""
    logger: Logger = structlog.get_logger()
    return logger


_second, _prefix = -1, ""


def _timestamp() -> str:
    """`2026-01-31T12:00:00.000Z`; the part that changes once a second is made once a second."""
    global _second, _prefix  # noqa: PLW0603 -- a cache of one
    now = time.time()
    second = int(now)
    if second != _second:
        _prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _second = second
    return f"{_prefix}.{int((now - second) * 1000):03d}Z"


def _json(_logger: Any, method: str, event: MutableMapping[str, Any]) -> bytes:
    line = {"timestamp": _timestamp(), "level": method, "event": event.pop("event", "")}
    for name in IDS_FIRST:
        if name in event:
            line[name] = event.pop(name)
    _unfold(event)
    line.update(event)
    return redact(orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS))


def _console(_logger: Any, method: str, event: MutableMapping[str, Any]) -> bytes:
    _unfold(event)
    name = event.pop("event", "")
    rest = " ".join([f"{key}={value}" for key, value in event.items() if value is not None])
    return redact(f"{_timestamp()[11:19]} {method:<8} {name:<26} {rest}".rstrip().encode("utf-8", "replace"))


def _unfold(event: MutableMapping[str, Any]) -> None:
    """An exception as one text."""
    info = event.pop("exc_info", None)
    if not info:
        return
    error = info if isinstance(info, BaseException) else (info[1] if isinstance(info, tuple) else sys.exc_info()[1])
    if error is not None:
        event["exception"] = "".join(traceback.format_exception(error))


class _Bridge(logging.Handler):
    """What others write through the standard library comes out as one of our lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        level = "error" if record.levelno >= logging.ERROR else "warning"
        more = {"exc_info": record.exc_info} if record.exc_info else {}
        getattr(get(), level)("library.logged", logger=record.name, message=record.getMessage(), **more)
