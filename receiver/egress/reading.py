"""How answers are read: by aiohttp, with three laws of our own.

* A status is an answer, whatever comes behind it. Where aiohttp's parser meets an error it forgets the answers of the
  same piece (a 200 with a broken chunk, a 204 with a body), so it is given each head by itself.
* The reader of a body that breaks is told, and does not wait for the rest as long as there is time.
* One request has one answer. What comes behind it ends the connection; aiohttp would keep it as the answer to the next
  request, which then counts as delivered and never was.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler

if TYPE_CHECKING:
    from aiohttp.http import RawResponseMessage
    from aiohttp.streams import StreamReader

_HEAD_ENDS: Final = b"\r\n\r\n"


class Reading(ResponseHandler):
    """The protocol of one connection."""

    _answered = False
    _last = b""

    def set_response_params(self, **params: Any) -> None:
        """A new request: a head is awaited."""
        self._answered, self._last = False, b""
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """What came, as one piece, or as two and more where a head ends within it."""
        while not self._answered and self._parser is not None:
            seen = self._last + data
            found = seen.find(_HEAD_ENDS)
            if found < 0:
                self._last = seen[1 - len(_HEAD_ENDS) :]
                break
            cut = found + len(_HEAD_ENDS) - len(self._last)
            head, data, self._last = data[:cut], data[cut:], b""
            self._read(head)
            if not data or self.exception() is not None:
                return
        self._read(data)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """An answer, as the parser gives it; only the first that is final is one."""
        if self._answered:
            self._hang_up()
            return
        self._answered = data[0].code >= 200 or data[0].code == 101  # noqa: PLR2004 -- all other 1xx are not final
        super().feed_data(data, size)

    def _read(self, data: bytes) -> None:
        if data and self._answered and (self._payload is None or self._payload.is_eof()):
            self._hang_up()
            return
        super().data_received(data)
        broken, payload = self.exception(), self._payload
        if broken is not None and payload is not None and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError(str(broken)))

    def _hang_up(self) -> None:
        self.force_close()
        if self.transport is not None:
            self.transport.close()


class Connector(aiohttp.TCPConnector):
    """A connector whose connections are read so."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._factory = cast("partial[ResponseHandler]", partial(Reading, loop=self._loop))
