"""Which addresses are public: the ranges written out a second time, and every way to embed one address in another."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from receiver.egress import vet

PRIVATE_V4 = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
]
PRIVATE_V6 = [
    "::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/32",
    "2001:2::/48",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "::ffff:0:0:0/96",
]


def inside(network: IPv4Network | IPv6Network) -> st.SearchStrategy[int]:
    """Addresses of a network, its edges first."""
    return st.integers(int(network[0]), int(network[-1]))


PRIVATE_FOUR = st.sampled_from([IPv4Network(one) for one in PRIVATE_V4]).flatmap(inside).map(IPv4Address)
PRIVATE_SIX = st.sampled_from([IPv6Network(one) for one in PRIVATE_V6]).flatmap(inside).map(IPv6Address)
EMBEDDINGS = [
    "::ffff:0:0",
    "64:ff9b::",
    "::",
    "::ffff:0:0:0",
    "64:ff9b:1::",
    "2606:4700::5efe:0:0",
    "2a00::200:5efe:0:0",
]


@given(PRIVATE_FOUR, st.sampled_from(EMBEDDINGS))
def test_every_private_ipv4_address_is_refused_and_so_is_its_every_embedding(four: IPv4Address, prefix: str) -> None:
    """Mapped, translated, compatible, ISATAP, 6to4; in either spelling."""
    assert vet(str(four))
    six = IPv6Address(int(IPv6Address(prefix)) | int(four))
    assert vet(str(six))
    assert vet(six.exploded)
    assert vet(str(IPv6Address((0x2002 << 112) | (int(four) << 80))))


@given(PRIVATE_SIX)
def test_every_private_ipv6_address_is_refused(six: IPv6Address) -> None:
    """Also those that `ipaddress` calls global."""
    assert vet(str(six))


@pytest.mark.parametrize("network", [*PRIVATE_V4, *PRIVATE_V6])
def test_the_edges_of_every_range_are_inside(network: str) -> None:
    """First and last address, and the reason names an address."""
    whole = IPv6Network(network) if ":" in network else IPv4Network(network)
    first, last = whole[0], whole[-1]
    assert str(first) in str(vet(str(first)))
    assert vet(str(last))


@given(st.ip_addresses())
@example(ip_address("192.0.0.9"))
def test_what_is_called_public_is_global_and_unicast(address: IPv4Address | IPv6Address) -> None:
    """Stricter than the standard library, never laxer."""
    if vet(str(address)) is None:
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved or isinstance(address, IPv6Address)


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "168.63.129.15"),
        *("172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "223.255.255.255"),
        *("2606:4700:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888", "2003::1"),
        *("::ffff:8.8.8.8", "::ffff:808:808", "64:ff9b::8.8.8.8"),
    ],
)
def test_public_addresses_pass(address: str) -> None:
    """The neighbours of the ranges too, and what DNS64 makes of a public address."""
    assert vet(address) is None


@pytest.mark.parametrize(
    "text", ["", "127.1", "0x7f.1", "2130706433", "8.8.8.08", "8.8.8.8 ", "[::1]", "localhost", ":"]
)
def test_what_is_no_canonical_address_is_refused(text: str) -> None:
    """Odd spellings are no addresses here; resolvers do not give them."""
    assert vet(text) == f"{text} is no IP address"


@given(st.text() | st.from_regex(r"[0-9a-f:.%]{1,40}", fullmatch=True))
def test_vet_is_total(text: str) -> None:
    """It never raises."""
    reason = vet(text)
    assert reason is None or reason.startswith(text)


def test_an_address_bound_to_an_interface_is_refused() -> None:
    """However public it looks."""
    assert vet("2606:4700::1%eth0") == "2606:4700::1%eth0 is bound to an interface"
