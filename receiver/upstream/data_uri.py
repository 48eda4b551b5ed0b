"""Data URIs in a submission: sent whole, shown abridged (contract 4.3)."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any
from urllib.parse import unquote_to_bytes

LONG_ENOUGH = 256
"""Shorter ones stay as they are: the abridged form would not be shorter."""
MAX_DEPTH = 32


def abridge(value: Any, depth: int = 0) -> Any:
    """`value` with every long data URI replaced by `data:video/mp4;… (N bytes, sha256 …)`.

    The very same object comes back where there is none.
    """
    if isinstance(value, str):
        return _shown(value) if len(value) > LONG_ENOUGH and value[:5].lower() == "data:" else value
    if depth >= MAX_DEPTH:
        return value
    if isinstance(value, dict):
        changed = {key: abridge(member, depth + 1) for key, member in value.items()}
        return value if all(changed[key] is value[key] for key in value) else changed
    if isinstance(value, list):
        items = [abridge(item, depth + 1) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    return value


def _shown(uri: str) -> str:
    head, _, data = uri.partition(",")
    kind = head[5:].partition(";")[0][:100]
    try:
        raw = base64.b64decode(data) if head.lower().endswith(";base64") else unquote_to_bytes(data)
    except (binascii.Error, ValueError):
        raw = data.encode(errors="replace")
    return f"data:{kind};… ({len(raw)} bytes, sha256 {hashlib.sha256(raw).hexdigest()})"
