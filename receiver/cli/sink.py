"""The demo's sink: plays the application that gets the webhooks, and checks each as its own code would have to.

It knows nothing of the receiver but the secret: the signature is verified by the Standard Webhooks library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from standardwebhooks import Webhook, WebhookVerificationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Arrival:
    """A webhook that arrived.

    Attributes:
        event_id: its `webhook-id`.
        type: the event type it names.
        task_id: the task it is about.
        flaw: why it is not to be trusted; empty where its signature is good.
    """

    event_id: str
    type: str
    task_id: str
    flaw: str


class Sink:
    """An ASGI app that takes webhooks and keeps what it saw.

    Attributes:
        arrivals: in order.
        listener: told of each, if set.
    """

    def __init__(self, secret: str) -> None:
        """`secret`: the `whsec_…` the destination signs with."""
        self._webhook = Webhook(secret)
        self.arrivals: list[Arrival] = []
        self.listener: Callable[[Arrival], None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one request: 204 for a good webhook, 401 for any other; what is no POST (`doctor` knocks) is none."""
        if scope["method"] != "POST":
            await send({"type": "http.response.start", "status": 405, "headers": [(b"allow", b"POST")]})
            await send({"type": "http.response.body", "body": b""})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        arrival = self._read(headers, body)
        self.arrivals.append(arrival)
        if self.listener is not None:
            self.listener(arrival)
        await send({"type": "http.response.start", "status": 401 if arrival.flaw else 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def of(self, event_id: str) -> list[Arrival]:
        """What arrived of one event."""
        return [one for one in self.arrivals if one.event_id == event_id]

    def _read(self, headers: dict[str, str], body: bytes) -> Arrival:
        event_id = headers.get("webhook-id", "")
        try:
            self._webhook.verify(body, headers)
            said: dict[str, Any] = orjson.loads(body)
            return Arrival(event_id, str(said["type"]), str(said["data"]["task_id"]), "")
        except (WebhookVerificationError, ValueError, LookupError, TypeError) as error:
            return Arrival(event_id, "", "", str(error) or type(error).__name__)
