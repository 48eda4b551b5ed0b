"""Two thousand hostile URLs from one seed: every way we know to write, wrap, resolve to or be sent to what is private.

Pure but for the seed: no socket, no clock. A URL says which trick it is, and whether it is known to lead home once
there is leave for it, so that a test of the gate has its converse. Sources of the ranges: the IANA registries of
special-purpose addresses, written out here a second time, and the clouds' own pages for their metadata services.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SEED = 4
QUOTAS = {"spelled": 640, "embedded": 460, "wrapped": 350, "named": 200, "rebinding": 150, "redirected": 200}
"""How many of each family; two thousand in all."""
HOME_V4 = ("127.0.0.1", "0.0.0.0")
HOME_V6 = ("::1", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0")
"""Addresses at which a listener on this machine's loopback answers."""
METADATA = (
    "169.254.169.254", "169.254.170.2", "169.254.169.253", "168.63.129.16", "100.100.100.200", "192.0.0.192",
    "255.255.255.255", "10.0.0.1", "127.0.0.53", "192.168.1.1",
)  # fmt: skip
PRIVATE_V4 = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4",
)  # fmt: skip
PRIVATE_V6 = (
    "::/96", "64:ff9b:1::/48", "100::/64", "2001::/32", "2001:2::/48", "2001:10::/28", "2001:20::/28",
    "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
)  # fmt: skip
METADATA_V6 = ("fd00:ec2::254", "fd20:ce::254", "ff02::1", "fe80::1", "fec0::1", "2001::1", "64:ff9b:1::a9fe:a9fe")
_EMBEDDED = tuple(IPv4Address(four) for four in ("127.0.0.1", "169.254.169.254", "10.0.0.1"))
"""Of these, every embedding is there."""
STATUSES = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class Hostile:
    """One URL.

    Attributes:
        trick: what is odd about it.
        home: with leave it is known to reach a listener of this machine.
        must: chance may not leave it out.
        location: where the server behind it redirects to.
        status: the redirect's.
    """

    url: str
    trick: str
    home: bool = False
    must: bool = False
    location: str = ""
    status: int = 200


@dataclass(frozen=True)
class Herd:
    """The URLs by family, and what the resolver says of the names in them."""

    urls: dict[str, list[Hostile]]
    names: dict[str, Sequence[Sequence[str]]] = field(default_factory=dict)

    @property
    def every(self) -> list[Hostile]:
        """All of them."""
        return [one for family in self.urls.values() for one in family]


def herd(ports: Sequence[int], public: Sequence[str], seed: int = SEED) -> Herd:
    """The same two thousand for the same arguments; every range is there in its plainest spelling.

    Args:
        ports: where this machine listens on loopback.
        public: the only public addresses there are.
        seed: of the dice.
    """
    dice = random.Random(seed)
    names: dict[str, Sequence[Sequence[str]]] = dict(_KNOWN_NAMES)
    fours = [*HOME_V4, *METADATA, *_some(map(IPv4Network, PRIVATE_V4), dice)]
    sixes = [*HOME_V6, *METADATA_V6, *_some(map(IPv6Network, PRIVATE_V6), dice)]
    spelled = [host for four in fours for host in spellings_v4(IPv4Address(four))]
    inside = [str(six) for four in fours for six in embeddings(IPv4Address(four))]
    told = [str(six) for four in (*HOME_V4, *METADATA) for six in embeddings(IPv4Address(four))]
    embedded = [host for six in [*sixes, *told] for host in spellings_v6(IPv6Address(six))]
    private = [*fours, *sixes, *inside]
    bare = {*fours, *(f"[{six}]" for six in [*sixes, *(str(one) for four in _EMBEDDED for one in embeddings(four))])}
    population = {
        "spelled": [_plain(host, dice.choice(ports), dice, must=host[0] in bare) for host in spelled],
        "embedded": [_plain(host, dice.choice(ports), dice, must=host[0] in bare) for host in embedded],
        "wrapped": list(_wrapped(ports, dice)),
        "named": list(_named(names, private, public, ports, dice)),
        "rebinding": list(_rebinding(names, private, public, ports, dice)),
        "redirected": list(_redirected(names, private, public, ports, dice)),
    }
    return Herd({family: _chosen(population[family], count, dice) for family, count in QUOTAS.items()}, names)


def _chosen(population: Sequence[Hostile], count: int, dice: random.Random) -> list[Hostile]:
    """So many different ones: those that must be there or lead home, one of every trick, then chance."""
    unique = list({one.url: one for one in population}.values())
    first = {one.trick: one for one in reversed(unique)}
    must = list({one.url: one for one in [*first.values(), *(o for o in unique if o.must or o.home)]}.values())
    taken = {one.url for one in must}
    rest = [one for one in unique if one.url not in taken]
    return must + dice.sample(rest, count - len(must))


def _some(networks: Iterable[IPv4Network] | Iterable[IPv6Network], dice: random.Random) -> list[str]:
    """Of each network its edges, and one inside."""
    found = []
    for network in networks:
        inside = network[dice.randrange(network.num_addresses)]
        found += [str(network[0]), str(network[-1]), str(inside)]
    return found


# -- spellings ---------------------------------------------------------------------------------------------------------

Host = tuple[str, str, bool]
"""How it is written, the trick, and whether a listener at home is reached by it."""


def spellings_v4(four: IPv4Address) -> Iterator[Host]:
    """One IPv4 address as resolvers, libraries and people read it, and as some parser might."""
    home = str(four) in HOME_V4
    number, octets = int(four), four.packed
    a, b, c, d = octets
    dotted = str(four)
    yield dotted, "dotted", home
    yield f"0x{number:08x}", "one hex number", home
    yield f"0X{number:08X}", "one hex number, upper case", home
    yield ".".join(f"0x{one:x}" for one in octets), "hex octets", home
    yield f"0x{a:x}.{b}.0{c:o}.{d}", "mixed octets", home
    yield f"0x{a:x}.{number & 0xFFFFFF}", "hex, short", home
    yield _digits(dotted, 0xFF10), "full-width digits", home
    yield _digits(dotted, 0x1D7CE), "bold digits", home
    yield "".join("⓪①②③④⑤⑥⑦⑧⑨"[int(one)] if one.isdigit() else one for one in dotted), "circled digits", home
    yield "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(one)] if one.isdigit() else one for one in dotted), "superscript digits", home
    yield dotted.replace(".", "\u3002"), "ideographic dots", home
    yield dotted.replace(".", "\uff0e"), "full-width dots", home
    yield dotted.replace(".", "\uff61"), "half-width dots", home
    # Whether the stack takes these or not is its business: none of them may get through.
    yield f"{dotted}.", "trailing dot", False
    yield f"{dotted}\u3002", "trailing ideographic dot", False
    yield str(number), "one decimal number", False
    yield f"0{number:o}", "one octal number", False
    yield ".".join(f"0{one:o}" for one in octets), "octal octets", False
    yield ".".join(f"0000{one:o}" for one in octets), "octal octets, many zeros", False
    yield f"{a}.{number & 0xFFFFFF}", "two parts", False
    yield f"{a}.{b}.{number & 0xFFFF}", "three parts", False
    yield ".".join(f"{one:03}" for one in octets), "padded octets", False
    yield str(number + 2**32), "a number that wraps", False
    yield f"0x1{number:08x}", "a hex number that wraps", False
    yield f"{a + 256}.{b}.{c}.{d}", "an octet that wraps", False
    yield f"-{2**32 - number}", "a negative number", False
    yield _digits(dotted, 0x0660), "Arabic-Indic digits", False
    yield _digits(dotted, 0x0966), "Devanagari digits", False
    yield "".join(f"%{ord(one):02x}" for one in dotted), "percent-encoded", False
    yield dotted.replace(".", "%2e"), "percent-encoded dots", False
    yield dotted.replace(".", "%E3%80%82"), "percent-encoded ideographic dots", False
    yield f"{dotted}%00", "a percent-encoded NUL", False
    yield f"{dotted}%00.good.example", "a percent-encoded NUL, then a name", False
    yield f"{dotted}\u00ad", "soft hyphen", False
    yield dotted.replace(".", ".\u200b", 1), "zero-width space", False
    yield dotted.replace(".", ".\u2060", 1), "word joiner", False
    yield f"[{dotted}]", "in brackets", False
    yield f"{dotted}/24", "a network", False
    yield f"{dotted}:", "an empty port", False


def _digits(text: str, zero: int) -> str:
    return "".join(chr(zero + int(one)) if one.isdigit() else one for one in text)


def embeddings(four: IPv4Address) -> Iterator[IPv6Address]:
    """Every IPv6 address that some router, tunnel or kernel takes for this IPv4 address."""
    number = int(four)
    for prefix in (
        "::ffff:0:0", "::", "::ffff:0:0:0", "64:ff9b::", "64:ff9b:1::", "64:ff9b:1:ffff::", "2001:db8::5efe:0:0",
        "fe80::5efe:0:0", "2a00:1450::5efe:0:0", "2606:2800::200:5efe:0:0",
    ):  # fmt: skip
        yield IPv6Address(int(IPv6Address(prefix)) | number)
    yield IPv6Address((0x2002 << 112) | (number << 80))  # 6to4
    yield IPv6Address((0x20010000 << 96) | (number << 64) | (number ^ 0xFFFFFFFF))  # Teredo, server and client
    # RFC 6052 with a /48 prefix: the address is split around the byte that stays zero.
    yield IPv6Address((0x0064FF9B0001 << 80) | ((number >> 16) << 64) | ((number & 0xFFFF) << 40))


def spellings_v6(six: IPv6Address) -> Iterator[Host]:
    """One IPv6 address in its forms, with zones, and in brackets that are not quite right."""
    home = six in {IPv6Address(one) for one in HOME_V6}
    short, long = six.compressed, six.exploded
    dotted = f"{':'.join(long.split(':')[:6])}:{IPv4Address(int(six) & 0xFFFFFFFF)}"
    yield f"[{short}]", "IPv6", home
    yield f"[{long}]", "IPv6, written out", home
    yield f"[{long.upper()}]", "IPv6, upper case", home
    yield f"[{dotted}]", "IPv6 with a dotted end", home
    yield f"[{short}%25lo]", "IPv6 with a zone", False
    yield f"[{short}%lo]", "IPv6 with a bare zone", False
    yield f"[{short}%251]", "IPv6 with a numbered zone", False
    yield f"[{short}].", "IPv6 with a trailing dot", False
    yield short, "IPv6 without brackets", False
    yield f"[{_digits(short, 0xFF10)}]", "IPv6 in full-width digits", False
    yield f"[v1.{short}]", "an IP of the future", False
    yield f"%5B{short}%5D", "IPv6 in percent-encoded brackets", False
    yield f"[{short}]good.example", "IPv6, then a name", False
    yield f"good.example[{short}]", "a name, then IPv6", False
    yield f"[[{short}]]", "IPv6 in two brackets", False


# -- families ----------------------------------------------------------------------------------------------------------


def _plain(host: Host, port: int, dice: random.Random, *, must: bool) -> Hostile:
    text, trick, home = host
    scheme = dice.choice(["http", "http", "http", "HTTP", "hTTp"])
    where = "" if not home and dice.random() < 0.1 else f":{port}"
    return Hostile(f"{scheme}://{text}{where}{dice.choice(['', '/', '/hook', '/a/../b?c=d'])}", trick, home, must)


_WRAPS = (
    "http://good.example@{h}/", "http://good.example:80@{h}/", "http://good.example%40{h}/", "http://a@b@{h}/",
    "http://good.example:pass%40word@{h}/hook", "http://{h}#@good.example/", "http://{h}#good.example",
    "http://{h}?@good.example/", "http://{h}\\@good.example/", "http://good.example\\@{h}/", "http:\\\\{h}\\hook",
    "http:/\\{h}/", "http:///{h}/", "http:/{h}/", "http:{h}/", "//{h}/", "{h}/", "http://{h};@good.example/",
    "http://good.example;@{h}/", "http://{h};good.example/", "http://good.example%2f@{h}/", "http://{h}\t/hook",
    "ht\ntp://{h}/", "http://\r\n{h}/", " http://{h}/", "http://{h} /", "\x00http://{h}/", "http://{h}\x00.good.example/",
    "http://{h}/\r\nHost: good.example", "http://good.example/\r\n\r\nGET http://{h}/", "http://{h}%0d%0aX:%20y/",
    "http://{h}%20.good.example/", "http://{h}%09/", "http://{h}:80/", "http://{h}:/", "http://[good.example]@{h}/",
    "http://[::1]@{h}/", "http://{h}\u2044@good.example/", "http://{h}\uff0fgood.example/", "http://{h}\uff03@good.example/",
    "http://good.example\uff20{h}/", "http://good.example\ufe6b{h}/", "http://{h}\u2100good.example/", "url:http://{h}/",
    "jar:http://{h}!/", "file://{h}/etc/passwd", "gopher://{h}/_x", "dict://{h}/", "ftp://{h}/", "ws://{h}/", "tcp://{h}",
    "unix://{h}/var/run/docker.sock", "http+unix://{h}/", "https://{h}/", "HTTPS://{h}/hook", "javascript://{h}/%0a",
    "http://{h}/@good.example", "http://good.example.@{h}/", "http://{h}&@good.example/", "http://good.example&@{h}#@x/",
    "http://good.example /@{h}/", "http://good.example:@{h}/", "http://:@{h}/", "http://@{h}/", "http://@@{h}/",
    "http://{h}@{h}/", "http://%00@{h}/", "http://{h}|good.example/", "http://{h}^/", "http://<{h}>/", "http://'{h}'/",
    "http://{h},good.example/", "http://good.example,{h}/", "http://{{{h}}}/", "http://{h}\u202e/", "\ufeffhttp://{h}/",
    "http://${{{h}}}/", "http://{h}/%2e%2e/", "http://{h}/?url=http://good.example/", "http://0/{h}/", "http://0.{h}/",
    "http://good.example:\uff18\uff10@{h}/", "http://{h}\ud800/", "http:// {h}/", "http://{h}\u3000/", "http://+{h}/",
)  # fmt: skip


def _wrapped(ports: Sequence[int], dice: random.Random) -> Iterator[Hostile]:
    """A private host in a URL that is to be misread."""
    for wrap in _WRAPS:
        for host in ("127.0.0.1", "[::1]", "localhost", "169.254.169.254", "[::ffff:127.0.0.1]", "0x7f000001"):
            port = dice.choice(ports)
            spelled = wrap.format(h=f"{host}:{port}")
            yield Hostile(spelled, f"wrapped as {wrap.encode('unicode_escape').decode()}")


_KNOWN_NAMES: dict[str, Sequence[Sequence[str]]] = {
    "localhost": [["127.0.0.1", "::1"]],
    "localhost.localdomain": [["127.0.0.1"]],
    "ip6-localhost": [["::1"]],
    "foo.localhost": [["127.0.0.1"]],
    "127.0.0.1.nip.io": [["127.0.0.1"]],
    "7f000001.nip.io": [["127.0.0.1"]],
    "localtest.me": [["127.0.0.1"]],
    "xn--bcher-kva.example": [["127.0.0.1"]],
    "metadata.google.internal": [["169.254.169.254"]],
    "metadata": [["169.254.169.254"]],
    "kubernetes.default.svc": [["10.96.0.1"]],
    "host.docker.internal": [["172.17.0.1"]],
    "instance-data.ec2.internal": [["169.254.169.254"]],
    "a_b.example": [["127.0.0.1"]],
    "good.example": [["93.184.215.14"]],
}
_ODD_NAMES = (
    "LOCALHOST", "LocalHost", "localhost.", "localhost..", ".localhost", "local\u00adhost", "localhost\u3002",
    # full-width, in circles, bold
    *("".join(chr(first + ord(one) - ord("a")) for one in "localhost") for first in (0xFF41, 0x24D0, 0x1D41A)),
    "%6c%6f%63%61%6c%68%6f%73%74", "localhost%00", "localhost%2f", "bücher.example", "BÜCHER.example", "ﬁ.example",
    "ß.example", "xn--", "xn--a", "xn--localhost-", "lo\u200dcalhost", "l\u043ecalhost", "localhosT\u0307",
    "-", "_", "a..b", "127.0.0.1\u3002nip\u3002io", "a" * 64 + ".example", "a." * 127 + "example", "*",
)  # fmt: skip


def _named(
    names: dict[str, Sequence[Sequence[str]]],
    private: Sequence[str],
    public: Sequence[str],
    ports: Sequence[int],
    dice: random.Random,
) -> Iterator[Hostile]:
    """Names that resolve to something private: alone, among others, as AAAA only, at the end of a long list."""
    for name, [answer] in _KNOWN_NAMES.items():
        if name != "good.example":
            home = set(answer) <= {*HOME_V4, *HOME_V6}
            yield Hostile(f"http://{name}:{dice.choice(ports)}/", f"the name {name}", home)
    for name in _ODD_NAMES:
        yield Hostile(f"http://{name}:{dice.choice(ports)}/", f"an odd name, {name[:20]!r}")
    sixes = [one for one in private if ":" in one]
    for number in range(160):
        many = [dice.choice(public) for _ in range(dice.choice([1, 2, 60]))]
        one = dice.choice(private)
        trick, answer = dice.choice(
            [
                ("one private address", [one]),
                ("private addresses alone", dice.sample(private, 5)),
                ("AAAA only", [dice.choice(sixes)]),
                ("mapped AAAA only", [f"::ffff:{dice.choice(METADATA)}"]),
                ("first of many", [one, *many]),
                ("last of many", [*many, one]),
                ("amid many", [*many, one, *many]),
                ("home", [dice.choice([*HOME_V4, *HOME_V6])]),
            ]
        )
        name = f"n{number}.inside.example"
        names[name] = [answer]
        yield Hostile(f"http://{name}:{dice.choice(ports)}/", f"a name with {trick}", trick == "home")


def _rebinding(
    names: dict[str, Sequence[Sequence[str]]],
    private: Sequence[str],
    public: Sequence[str],
    ports: Sequence[int],
    dice: random.Random,
) -> Iterator[Hostile]:
    """Names that answer otherwise every time they are asked."""
    for number in range(QUOTAS["rebinding"]):
        good, more = [dice.choice(public)], dice.sample(list(public), 2)
        bad = [dice.choice([*HOME_V4, *HOME_V6]) if number % 2 else dice.choice(private)]
        trick, answers = dice.choice(
            [
                ("public, then private", [good, bad]),
                ("private, then public", [bad, good]),
                ("public twice, then private", [good, more, bad]),
                ("public, then both", [more, [*good, *bad], bad]),
                ("private in turn with many", [[*more, *more, *bad], good]),
            ]
        )
        name = f"r{number}.rebinding.example"
        names[name] = answers
        yield Hostile(f"http://{name}:{dice.choice([*ports, 80, 443])}/hook", f"rebinding: {trick}")


def _redirected(
    names: dict[str, Sequence[Sequence[str]]],
    private: Sequence[str],
    public: Sequence[str],
    ports: Sequence[int],
    dice: random.Random,
) -> Iterator[Hostile]:
    """A public server that sends us home: to a literal address, a name, by a relative or protocol-relative Location."""
    hosts = ["127.0.0.1", "[::1]", "localhost", "0x7f000001", "127.1", "2130706433", "0.0.0.0", "[::ffff:127.0.0.1]"]
    hosts += [f"[{one}]" if ":" in one else one for one in dice.sample(private, 20)]
    for number in range(QUOTAS["redirected"]):
        names[f"open{number}.example"] = [[dice.choice(public)]]
        place = f"{dice.choice(hosts)}:{dice.choice(ports)}/inside"
        trick, location = dice.choice(
            [
                ("absolute", f"http://{place}"),
                ("to https", f"https://{place}"),
                ("protocol-relative", f"//{place}"),
                ("with backslashes", f"\\\\{place}"),
                ("relative", f"/r/{number}/again"),
                ("relative, with userinfo", f"@{place}"),
                ("to another scheme", f"gopher://{place}"),
                ("by userinfo", f"http://open{number}.example@{place}"),
            ]
        )
        status = STATUSES[number % len(STATUSES)]
        url = f"http://open{number}.example/r/{number}"
        yield Hostile(url, f"{status}, {trick}", location=location, status=status)
