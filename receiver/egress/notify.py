"""The way out through apprise (extra `apprise`): a library that blocks, in a thread of its own, for a limited time.

It opens its own sockets: nothing of egress's care (vetted addresses, capped answers, no redirects) holds here. A thread
that hangs past its time is left behind, and so many at most.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Final

from receiver.egress import dialing
from receiver.errors import EgressError
from receiver.wire import HttpResponse

if TYPE_CHECKING:
    from receiver.wire import HttpRequest

METHOD: Final = "NOTIFY"
_MOST: Final = 16
_TAKEN, _NOT_TAKEN = 200, 500
_threads: Final = threading.BoundedSemaphore(_MOST)


async def send(request: HttpRequest, *, timeout: float) -> HttpResponse:  # noqa: ASYNC109 -- for the whole of it
    """Hand a notification to apprise.

    Args:
        request: an apprise URL; the headers `title` and `type`; the body is the text.
        timeout: seconds for the whole of it.

    Returns:
        200 where apprise says that it was taken, else 500.

    Raises:
        EgressError: apprise is not there, or took too long.
    """
    try:
        async with asyncio.timeout(timeout):
            taken = await dialing.in_thread(lambda: _notify(request), name="apprise")
    except TimeoutError as error:
        raise EgressError(f"apprise took longer than {timeout:g} s", stage="timeout", sent=True) from error
    return HttpResponse(_TAKEN if taken else _NOT_TAKEN)


def _notify(request: HttpRequest) -> bool:
    # In the thread itself, which gives the place back: one that cannot even be started has taken none.
    if not _threads.acquire(blocking=False):
        raise EgressError(f"{_MOST} notifications hang in apprise already", stage="timeout", sent=False)
    try:
        try:
            import apprise
        except ImportError:
            raise EgressError("the extra `apprise` is not installed", stage="send", sent=False) from None
        logging.getLogger("apprise").disabled = True  # its words have URLs in them
        sender = apprise.Apprise()
        return sender.add(request.url) and bool(
            sender.notify(
                body=request.body.decode(),
                title=request.headers["title"],
                notify_type=request.headers["type"],
                body_format=apprise.NotifyFormat.TEXT,
            )
        )
    finally:
        _threads.release()
