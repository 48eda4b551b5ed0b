"""The guarded way out: the only room that opens a socket outwards.

`Egress` sends a request and gives back an answer, or raises EgressError: within a time, within a number of bytes, never
following a redirect, never through a proxy from the environment, with no cookies and with TLS verified. Where a
destination has no leave for private addresses, every address is vetted before anything is connected (`vet`).
"""

from __future__ import annotations

from receiver.egress.addresses import vet
from receiver.egress.dialing import private_literal
from receiver.egress.way_out import Egress

__all__ = ["Egress", "private_literal", "vet"]
