"""Callback tokens and the signatures of what goes out. Keys come in as lists, oldest first.

A callback token is `<the task id's 26 characters>.<expiry in milliseconds, hex>.<HMAC-SHA256 in base64url>`, made by
itsdangerous with a key derived for this purpose alone. The last key signs, every key verifies.

The law: for a key, a task and an expiry there is exactly one token. base64 has spare bits, so a signature is compared
as the text it must be, never as the bytes it decodes to. The signature is checked before anything in the token is
believed, the expiry included. `read` raises TokenError and nothing else, whatever text it is given.

Outgoing signatures are those of Standard Webhooks 1.0.0, made by its own library, one for each secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from itsdangerous import Signer
from standardwebhooks import Webhook

from receiver.errors import SecretError, TokenError
from receiver.ids import TaskId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from receiver.ids import EventId

_TASK_PREFIX: Final = "tsk_"
_TASK_ID: Final = re.compile(r"tsk_[0-9a-hjkmnp-tv-z]{26}")
_TOKEN: Final = re.compile(r"[0-9a-hjkmnp-tv-z]{26}\.[0-9a-f]{1,12}\.[A-Za-z0-9_-]{43}")
_SALT: Final = "receiver.callback-token"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)

_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))
_BLOCK: Final = 64
"""Bytes of a block of SHA-256."""
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")

_WHSEC: Final = "whsec_"
_SECRET_BYTES: Final = (24, 64)  # Standard Webhooks 1.0.0, "Signature scheme": between 24 and 64 bytes


def mint(keys: Sequence[str], task_id: TaskId, expires_at: datetime) -> str:
    """The callback token of a task, good until `expires_at`: 80-odd characters of [A-Za-z0-9_.-].

    Raises:
        ValueError: there is no key, `task_id` is none of ours, or `expires_at` is naive or before 1970.
    """
    if not keys:
        raise ValueError("no signing key to mint a callback token with")
    if _TASK_ID.fullmatch(task_id) is None:
        raise ValueError(f"{task_id!r} is no task id")
    ms = _milliseconds(expires_at)
    if ms < 0:
        raise ValueError("a callback token cannot expire before 1970")
    value = f"{task_id[len(_TASK_PREFIX) :]}.{ms:x}"
    return f"{value}.{_signer(tuple(keys)).get_signature(value).decode()}"


def read(keys: Sequence[str], token: str, *, now: datetime) -> TaskId:
    """The task a callback token opens the door for.

    Raises:
        TokenError: it is `malformed`, signed by none of the keys (`forged`), or `expired` (at its very moment already).
        ValueError: `now` is naive.
    """
    ms = _milliseconds(now)
    if _TOKEN.fullmatch(token) is None:
        raise TokenError("malformed")
    value, _, signature = token.rpartition(".")
    if not _is_signed(tuple(keys), value, signature):
        raise TokenError("forged")
    task, _, expiry = value.partition(".")
    if ms >= int(expiry, 16):
        raise TokenError("expired")
    return TaskId(_TASK_PREFIX + task)


def sign(secrets: Sequence[str], event_id: EventId, at: datetime, body: bytes) -> str:
    """The `webhook-signature` of an attempt made `at` this moment: `v1,…` once for each secret, oldest first.

    Raises:
        SecretError: a secret cannot sign.
        ValueError: `at` is naive (the library would take it for UTC), or `body` is not UTF-8.
    """
    if at.utcoffset() is None:
        raise _naive(at)
    # The library reads the wall clock of any datetime as UTC, so it is given UTC and nothing else.
    moment = at.astimezone(UTC)
    text = body.decode()
    return " ".join([_webhook(secret).sign(event_id, moment, text) for secret in secrets])


def check_secret(secret: str) -> None:
    """Say whether a secret can sign: `whsec_` and the base64 of 24 to 64 bytes. The words never repeat the secret.

    Raises:
        SecretError: it cannot; the message says why and how to mend it.
    """
    if not secret.startswith(_WHSEC):
        raise SecretError("a webhook secret begins with whsec_")
    text = secret[len(_WHSEC) :]
    if "-" in text or "_" in text:
        # A lenient decoder drops these two silently and signs with another key than the consumer's.
        raise SecretError("what follows whsec_ is base64 with - or _ (the URL-safe kind); + and / are wanted there")
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise SecretError("what follows whsec_ is not base64") from None
    least, most = _SECRET_BYTES
    if not least <= len(key) <= most:
        raise SecretError(f"a webhook secret holds {least} to {most} bytes in base64; this one holds {len(key)}")


def _is_signed(keys: tuple[str, ...], value: str, signature: str) -> bool:
    """Whether some key, the newest first, signs `value` with exactly this text."""
    message, given = value.encode(), signature.encode()
    for inner, outer in _keyed(keys):
        # What Signer.get_signature does, with hashes that have taken in the key: this is on the way of every callback.
        of_message = inner.copy()
        of_message.update(message)
        mac = outer.copy()
        mac.update(of_message.digest())
        text = binascii.b2a_base64(mac.digest(), newline=False).translate(_URL_SAFE, b"=")
        if hmac.compare_digest(text, given):
            return True
    return False


@lru_cache(maxsize=16)
def _keyed(keys: tuple[str, ...]) -> tuple[tuple[hashlib._Hash, hashlib._Hash], ...]:
    """The two hashes of RFC 2104 for each key, the newest first: a copy of `hmac`'s object costs three times theirs.

    A derived key is shorter than a block, so it is not hashed itself.
    """
    blocks = [key.ljust(_BLOCK, b"\0") for key in reversed(_derived_keys(keys))]
    return tuple((hashlib.sha256(block.translate(_INNER)), hashlib.sha256(block.translate(_OUTER))) for block in blocks)


@lru_cache(maxsize=16)
def _derived_keys(keys: tuple[str, ...]) -> tuple[bytes, ...]:
    """The key of this purpose that itsdangerous derives from each key, made once: else every signature costs two."""
    return tuple(
        Signer(key, salt=_SALT, key_derivation="hmac", digest_method=hashlib.sha256).derive_key() for key in keys
    )


@lru_cache(maxsize=16)
def _signer(keys: tuple[str, ...]) -> Signer:
    """The newest key's signer."""
    return Signer(_derived_keys(keys)[-1], salt=_SALT, key_derivation="none", digest_method=hashlib.sha256)


@lru_cache(maxsize=256)
def _webhook(secret: str) -> Webhook:
    check_secret(secret)
    return Webhook(secret)


def _milliseconds(at: datetime) -> int:
    try:
        return (at - _EPOCH) // _MILLISECOND
    except TypeError:
        raise _naive(at) from None


def _naive(at: datetime) -> ValueError:
    return ValueError(f"{at!r} has no time zone: times here are aware")
