"""Which addresses are public. Pure: it looks at one address, never at a name.

`ipaddress.is_global` is no such policy: it passes translated, embedded and cloud-internal addresses. What is refused
stands in one table; of IPv6 only 2000::/3 can be public at all (IANA has assigned global unicast nowhere else). An IPv4
address inside an IPv6 one is vetted as what it is.

Sources: IANA special-purpose address registries for IPv4 and IPv6 (RFC 6890 and its updates); RFC 6052 (NAT64).
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

_REFUSED_V4: Final[tuple[tuple[IPv4Network, str], ...]] = tuple(
    (IPv4Network(network), words)
    for network, words in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "a carrier's shared network"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "Azure's host service"),
        ("169.254.0.0/16", "link-local, cloud metadata"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved for protocols"),
        ("192.0.2.0/24", "for documentation"),
        ("192.88.99.0/24", "a 6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "for benchmarks"),
        ("198.51.100.0/24", "for documentation"),
        ("203.0.113.0/24", "for documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_REFUSED_V6: Final[tuple[tuple[IPv6Network, str], ...]] = tuple(
    (IPv6Network(network), words)
    for network, words in (
        ("2001::/23", "reserved for protocols, Teredo"),
        ("2001:db8::/32", "for documentation"),
        ("2002::/16", "6to4"),
        ("3fff::/20", "for documentation"),
        ("::1/128", "loopback"),
        ("::/96", "an old IPv4 embedding"),
        ("64:ff9b:1::/48", "a local NAT64 prefix"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)
_UNICAST: Final = IPv6Network("2000::/3")
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_ISATAP: Final = frozenset({0x00005EFE, 0x02005EFE})  # RFC 5214: the upper half of such an interface id


def vet(address: str) -> str | None:
    """Why nothing may be connected to `address` without leave; None where it is public.

    It reads the canonical spellings alone, those that a resolver gives: `127.1` and `0x7f.1` are refused as no address.
    """
    try:
        reason = _vet_v6(IPv6Address(address)) if ":" in address else _vet_v4(IPv4Address(address))
    except AddressValueError:
        return f"{address} is no IP address"
    return None if reason is None else f"{address} is {reason}"


def _vet_v4(address: IPv4Address) -> str | None:
    for network, words in _REFUSED_V4:
        if address in network:
            return f"{words} ({network})"
    return None


def _vet_v6(address: IPv6Address) -> str | None:
    if address.scope_id is not None:
        return "bound to an interface"
    if address in _MAPPED or address in _NAT64:
        inner = IPv4Address(int(address) & 0xFFFFFFFF)
        reason = _vet_v4(inner)
        return None if reason is None else f"{inner}, {reason}"
    for network, words in _REFUSED_V6:
        if address in network:
            return f"{words} ({network})"
    if address not in _UNICAST:
        return f"outside the public range {_UNICAST}"
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return "an ISATAP embedding"
    return None
