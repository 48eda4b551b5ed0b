"""Every error this program raises on purpose, and what each means to a caller.

    ReceiverError
    ├── ConfigError          the configuration cannot be used; carries every mistake found
    ├── EnvelopeError        a body nobody can make sense of (never reaches a caller as a 4xx)
    ├── TokenError           a callback token that does not open the door
    ├── SecretError          a signing secret that cannot sign
    ├── InvalidInput         a request whose input is wrong; names each place
    ├── Unauthorized         no valid API key
    ├── NotFound             no such thing here
    ├── Conflict             the thing is in a state that forbids it
    ├── TooLarge             a body above its cap
    ├── KeyReused            an Idempotency-Key that was used with another request
    ├── KeyBusy              the first request with this Idempotency-Key is still under way
    ├── AnsweredBefore       a repeat: carries the answer that was given
    ├── UpstreamAway         a submission that was surely not taken, and has no answer to pass on
    ├── AnswerUnknown        a submission that may have been taken: not to be repeated
    ├── UpstreamRefused      the upstream said no to a submission
    ├── StoreUnavailable     the store could not commit; nothing was changed
    │   └── StoreUnsure      the store went away in a commit: nobody can tell whether something was
    └── EgressError          a request that got no answer; tells whether it may have been sent

Each class carries `http_status` (what the shell answers) and `code` (stable, part of a problem's `type`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal


class ReceiverError(Exception):
    """Base of everything raised on purpose."""

    http_status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"


class ConfigError(ReceiverError):
    """The configuration cannot be used.

    Attributes:
        problems: one line per mistake, `file:line: key: reason (did you mean …?)`.
    """

    code = "config"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class EnvelopeError(ReceiverError):
    """The body is no envelope, no task object and no form that carries one."""

    http_status = 400
    code = "unreadable-body"


TokenFlaw = Literal["malformed", "forged", "expired"]


class TokenError(ReceiverError):
    """A callback token that does not open the door; `flaw` says why, for the operator only."""

    http_status = 404
    code = "not-found"

    def __init__(self, flaw: TokenFlaw) -> None:
        super().__init__(flaw)
        self.flaw = flaw


class SecretError(ReceiverError):
    """A `whsec_` secret that is no base64 or has no sensible length."""

    code = "secret"


@dataclass(frozen=True)
class Flaw:
    """One mistake in a request: `pointer` (RFC 6901, into the body) or `parameter`, and what is wrong there."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None


class InvalidInput(ReceiverError):
    """The request cannot be understood as it stands."""

    http_status = 422
    code = "invalid-input"

    def __init__(self, detail: str, flaws: list[Flaw] | None = None) -> None:
        super().__init__(detail)
        self.flaws = flaws or []


class Unauthorized(ReceiverError):
    """No API key, or none of ours."""

    http_status = 401
    code = "unauthorized"


class NotFound(ReceiverError):
    """Nothing of that name here."""

    http_status = 404
    code = "not-found"


class Conflict(ReceiverError):
    """The thing exists, and its state forbids what was asked."""

    http_status = 409
    code = "conflict"


class TooLarge(ReceiverError):
    """A body above its cap."""

    http_status = 413
    code = "too-large"


class KeyReused(ReceiverError):
    """An Idempotency-Key that was used with another request."""

    http_status = 422
    code = "idempotency-key-reused"


class KeyBusy(ReceiverError):
    """The first request with this Idempotency-Key is still under way."""

    http_status = 409
    code = "idempotency-key-busy"


class AnsweredBefore(ReceiverError):
    """The request is a repeat: nothing was done, and the first one's answer is given again.

    Attributes:
        task_id: the first one's task.
        status, content_type, body: of its answer; None where none was kept, since the process died before.
    """

    def __init__(
        self,
        task_id: str,
        *,
        status: int | None = None,
        content_type: str | None = None,
        body: bytes | None = None,
    ) -> None:
        super().__init__(f"answered before, with the task {task_id}")
        self.task_id = task_id
        self.status = status
        self.content_type = content_type
        self.body = body or b""


class UpstreamRefused(ReceiverError):
    """The upstream said no to a submission; the task is kept as `rejected`.

    Attributes:
        status: what our caller is answered (contract 4.3).
        upstream_status: what the upstream answered.
        upstream_body: its words, as text.
        task_id: the task that is kept.
    """

    http_status = 422
    code = "upstream-refused"

    def __init__(self, detail: str, *, status: int, upstream_status: int, upstream_body: str, task_id: str) -> None:
        super().__init__(detail)
        self.status = status
        self.upstream_status = upstream_status
        self.upstream_body = upstream_body
        self.task_id = task_id


class UpstreamAway(ReceiverError):
    """A submission that was surely not taken, and has no answer to pass on; the task is kept as `rejected`.

    Attributes:
        task_id: the task that is kept; None for a lookup.
        retry_after: seconds.
    """

    http_status = 503
    code = "upstream-unavailable"

    def __init__(self, detail: str, task_id: str | None, retry_after: float) -> None:
        super().__init__(detail)
        self.task_id = task_id
        self.retry_after = retry_after


class AnswerUnknown(ReceiverError):
    """A submission that may have been taken: a repeat could be paid twice; the task is kept as `ambiguous`."""

    http_status = 504
    code = "submission-ambiguous"

    def __init__(self, detail: str, task_id: str) -> None:
        super().__init__(detail)
        self.task_id = task_id


class StoreUnavailable(ReceiverError):
    """The store could not commit; nothing of this was written.

    Attributes:
        outside: what a caller may hear of it: no host, no user, no name of a database.
    """

    http_status = 503
    code = "store-unavailable"

    def __init__(self, detail: str, *, outside: str = "") -> None:
        super().__init__(detail)
        self.outside = outside or detail


class StoreUnsure(StoreUnavailable):
    """The store went away in the middle of a commit, and nobody can tell (yet) whether it was carried out."""


Stage = Literal["address", "dns", "connect", "tls", "send", "timeout", "reset", "answer"]


class EgressError(ReceiverError):
    """A request that went out and got no usable answer.

    Attributes:
        stage: where it ended: `address` (a private or impossible address, nothing connected), `dns`, `connect`
            and `tls` (nothing was sent); `send`, `timeout`, `reset` and `answer` (something may have been).
        sent: whether the request may have reached the other side.
    """

    http_status = 502
    code = "egress"

    def __init__(self, detail: str, *, stage: Stage, sent: bool) -> None:
        super().__init__(detail)
        self.stage = stage
        self.sent = sent
