"""Callbacks go where they may: judged by the URL, and by the address that is really connected to.

No packet leaves: names are answered from a table, and what is connected to is written down and refused,
unless a test leads it to a server of its own.
"""

import contextlib
import ipaddress
import itertools
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from billing import addresses
from billing.addresses import (
    NOT_PUBLIC,
    AddressPolicy,
    CheckedAdapter,
    RefusedAddressError,
    is_public,
    refusal,
)
from billing.connections import time_limit
from tests.receivers import Receiver, receiver

PUBLIC = AddressPolicy()
PRIVATE_TOO = AddressPolicy(allow_private=True)
HTTPS_ONLY = AddressPolicy(https_only=True)

PRIVATE = {
    "loopback": "http://127.0.0.1/",
    "loopback's last": "http://127.255.255.254/",
    "this machine": "http://0.0.0.0:8080/",
    "this network": "http://0.1.2.3/",
    "private 10": "http://10.1.2.3/",
    "private 172": "http://172.31.255.255/",
    "private 192": "https://192.168.1.1/",
    "link-local": "http://169.254.0.1/",
    "carrier": "http://100.64.0.1/",
    "carrier's last": "http://100.127.255.255/",
    "protocols": "http://192.0.0.8/",
    "documentation 1": "http://192.0.2.1/",
    "documentation 2": "http://198.51.100.1/",
    "documentation 3": "http://203.0.113.1/",
    "benchmark": "http://198.18.0.1/",
    "6to4 relay": "http://192.88.99.1/",
    "multicast": "http://224.0.0.251/",
    "multicast's last": "http://239.255.255.255/",
    "reserved": "http://240.0.0.1/",
    "broadcast": "http://255.255.255.255/",
    "metadata of most clouds": "http://169.254.169.254/latest/meta-data/",
    "metadata of containers": "http://169.254.170.2/v2/credentials",
    "metadata of Alibaba": "http://100.100.100.200/",
    "metadata of Azure": "http://168.63.129.16/",
    "metadata of Oracle": "http://192.0.0.192/opc/",
    "metadata of EC2 by IPv6": "http://[fd00:ec2::254]/",
    "metadata, mapped": "http://[::ffff:169.254.169.254]/",
    "metadata in hex": "http://0xa9fea9fe/",
    "decimal": "http://2130706433/",
    "octal": "http://0177.0.0.1/",
    "octal whole": "http://017700000001/",
    "octal with zeros": "http://0000177.0.0.01/",
    "hex": "http://0x7f.1/",
    "hex whole": "http://0x7f000001/",
    "hex parts": "http://0x7f.0x0.0x0.0x1/",
    "capital hex": "http://0X7F.0X0.0X0.0X1/",
    "two parts": "http://127.1/",
    "three parts": "http://10.1.515/",
    "zero": "http://0/",
    "full-width digits": "http://１２７.0.0.1/",
    "circled digits": "http://①②⑦.⓪.⓪.①/",
    "superscript digits": "http://¹²⁷.0.0.1/",
    "ideographic full stops": "http://127。0。0。1/",
    "half-width full stops": "http://127｡0｡0｡1/",
    "trailing dot": "http://127.0.0.1./",
    "decimal, trailing dot": "http://2130706433./",
    "IPv6 loopback": "http://[::1]/",
    "IPv6 loopback at length": "http://[0000:0000:0000:0000:0000:0000:0000:0001]:8443/",
    "IPv6 unspecified": "http://[::]/",
    "IPv6 link-local": "http://[fe80::1]/",
    "IPv6 link-local's last": "http://[febf::1]/",
    "IPv6 site-local": "http://[fec0::1]/",
    "IPv6 unique local": "http://[fd00::1]/",
    "IPv6 unique local fc": "http://[fc00::1]/",
    "IPv6 multicast": "http://[ff02::1]/",
    "IPv6 documentation": "http://[2001:db8::1]/",
    "IPv6 documentation, new": "http://[3fff::1]/",
    "IPv6 benchmark": "http://[2001:2::1]/",
    "IPv6 discard": "http://[100::1]/",
    "IPv6 ORCHID": "http://[2001:20::1]/",
    "IPv6 segment routing": "http://[5f00::1]/",
    "IPv6 never given out": "http://[4000::1]/",
    "IPv4-mapped": "http://[::ffff:127.0.0.1]/",
    "IPv4-mapped in hex": "http://[::ffff:7f00:1]/",
    "IPv4-mapped carrier": "http://[::ffff:100.64.0.1]/",
    "IPv4-translated": "http://[::ffff:0:127.0.0.1]/",
    "IPv4-compatible": "http://[::127.0.0.1]/",
    "IPv4-compatible, private": "http://[::10.0.0.1]/",
    "6to4": "http://[2002:7f00:1::]/",
    "6to4, private": "http://[2002:c0a8:101::1]/",
    "Teredo": "http://[2001:0:7f00:1::80ff:fffe]/",
    "NAT64": "http://[64:ff9b::7f00:1]/",
    "NAT64, metadata": "http://[64:ff9b::169.254.169.254]/",
    "NAT64, local use": "http://[64:ff9b:1::7f00:1]/",
    "NAT64, local use, public inside": "http://[64:ff9b:1::808:808]/",
    "ISATAP": "http://[2606:4700::5efe:127.0.0.1]/",
    "ISATAP, universal bit": "http://[2606:4700::200:5efe:10.0.0.1]/",
    "localhost": "http://localhost/",
    "LOCALHOST": "https://LOCALHOST:8443/",
    "localhost, trailing dot": "http://localhost.:8080/",
    "full-width localhost": "http://ｌocalhost/",
    "below localhost": "http://shop.localhost/",
    "below localhost, ideographic": "http://shop。localhost/",
    "localdomain": "http://localhost.localdomain/",
    "metadata of Google": "http://metadata.google.internal/computeMetadata/v1/",
    "metadata of Google, trailing dot": "http://METADATA.google.internal./",
    "internal": "http://vault.internal/",
    "mDNS": "http://printer.local/",
    "cluster": "http://api.default.svc.cluster.local/",
    "home": "http://router.home.arpa/",
    "home itself": "http://home.arpa/",
    "lan": "http://nas.lan/",
    "a name without a dot": "http://metadata/",
}
"""URLs that lead, or may lead, into a network of one's own; none says anything else that is wrong."""

NO_ENDPOINT = {
    "no scheme": "hooks.example/",
    "ftp": "ftp://hooks.example/",
    "file": "file:///etc/passwd",
    "gopher": "gopher://hooks.example:80/_x",
    "javascript": "javascript:alert(1)",
    "one slash": "http:/hooks.example/",
    "no slashes": "http:hooks.example",
    "three slashes": "http:///127.0.0.1/",
    "no host": "http://",
    "no host but a path": "http:///path",
    "no host but a port": "http://:80/",
    "two dots": "http://hooks..example/",
    "two trailing dots": "http://127.0.0.1../",
    "five parts": "http://127.0.0.1.1/",
    "too large a number": "http://4294967296/",
    "a star": "http://*.example/",
    "a comma": "http://hooks,example/",
    "too long a label": f"http://{'a' * 64}.example/",
    "too long": f"http://hooks.example/{'a' * 3000}",
    "percent-encoded address": "http://%31%32%37.0.0.1/",
    "percent-encoded name": "http://%6cocalhost/",
    "percent-encoded dot": "http://127%2e0%2e0%2e1/",
    "percent-encoded nothing": "http://127.0.0.1%00.hooks.example/",
    "percent-encoded at": "http://hooks.example%40127.0.0.1/",
    "zone": "http://[fe80::1%eth0]/",
    "zone, encoded": "http://[fe80::1%25eth0]/",
    "zone of loopback": "http://[::1%25lo]/",
    "brackets around IPv4": "http://[127.0.0.1]/",
    "open bracket": "http://[::1/",
    "a future address": "http://[v1.127]/",
    "credentials": "http://me:secret@hooks.example/",
    "a user": "http://me@hooks.example/",
    "an empty user": "http://@hooks.example/",
    "an empty password": "http://:@hooks.example/",
    "two at-signs": "http://hooks.example@8.8.8.8@127.0.0.1/",
    "a port behind a user": "http://hooks.example:80@127.0.0.1/",
    "backslash": "http://hooks.example\\@127.0.0.1/",
    "backslash in the path": "http://hooks.example/\\127.0.0.1",
    "backslashes for slashes": "http:\\\\127.0.0.1\\",
    "space before": " http://hooks.example/",
    "space behind": "http://hooks.example/ ",
    "space in the host": "http://hooks .example/",
    "no-break space": "http://hooks.example\u00a0/",
    "tab": "http://127.0.\t0.1/",
    "new line": "http://hooks.example/\n",
    "a header in the path": "http://hooks.example/\r\nx-injected: 1",
    "a header in the host": "http://hooks.example\r\nx-injected: 1/",
    "null": "http://hooks.example\x00.127.0.0.1/",
    "soft hyphen": "http://local\u00adhost/",
    "zero width": "http://127.0.0.1\u200b/",
    "turned around": "http://hooks.example/\u202egpj",
    "lone surrogate": "http://hooks.example/\ud800",
    "port 0": "http://hooks.example:0/",
    "port of SSH": "http://hooks.example:22/",
    "port of mail": "https://hooks.example:25/",
    "port of files": "http://8.8.8.8:445/",
    "a port with zeros": "http://hooks.example:00025/",
    "the last closed port": "http://hooks.example:1023/",
    "port too large": "http://hooks.example:65536/",
    "port below 0": "http://hooks.example:-80/",
    "port in full-width digits": "http://hooks.example:２２/",
}
"""URLs that are no endpoint, wherever they lead."""

HOSTILE = PRIVATE | NO_ENDPOINT

MENDED = [
    *("an empty user", "backslash", "backslash in the path", "space before", "space behind", "new line"),
    *("a header in the path", "turned around", "lone surrogate", "port 0"),
]
"""What `requests` writes plainly before it is judged anew: a path encoded, an empty part left out."""

UNMENDED = {id_: url for id_, url in HOSTILE.items() if id_ not in MENDED}

GOOD = {
    "IPv4": ("http://8.8.8.8/", ("8.8.8.8", 80)),
    "IPv4, decimal": ("http://134744072/", ("8.8.8.8", 80)),
    "beside private 172": ("http://172.32.0.1/", ("172.32.0.1", 80)),
    "beside carriers": ("http://100.128.0.1/", ("100.128.0.1", 80)),
    "IPv6": ("https://[2606:4700:4700::1111]/", ("2606:4700:4700::1111", 443)),
    "name": ("http://hooks.example/", ("93.184.215.14", 80)),
    "name, https": ("https://hooks.example/vade?key=1", ("93.184.215.14", 443)),
    "capital": ("HTTPS://Hooks.Example/", ("93.184.215.14", 443)),
    "port 80, https": ("https://hooks.example:80/", ("93.184.215.14", 80)),
    "port 443": ("https://hooks.example:443/", ("93.184.215.14", 443)),
    "port 1024": ("http://hooks.example:1024/", ("93.184.215.14", 1024)),
    "port 8443": ("https://hooks.example:8443/", ("93.184.215.14", 8443)),
    "port 65535": ("https://hooks.example:65535/", ("93.184.215.14", 65535)),
    "trailing dot": ("https://hooks.example./", ("93.184.215.14", 443)),
    "IDNA": ("https://kitapçı.example/yeni/ödeme", ("93.184.215.15", 443)),
    "IDNA written out": ("https://xn--kitap-2ra23c.example/", ("93.184.215.15", 443)),
    "underscore": ("https://hooks_1.example/", ("93.184.215.16", 443)),
    "name of IPv6": ("https://six.example/", ("2606:4700:4700::1001", 443)),
    "name by NAT64": ("https://nat64.example/", ("64:ff9b::808:808", 443)),
    "at-sign in the path": ("https://hooks.example/@me?a=b@c", ("93.184.215.14", 443)),
}
"""URLs that may be endpoints, and what is connected to for them."""

NAMES = {
    "hooks.example": ["93.184.215.14"],
    "hooks.example.": ["93.184.215.14"],
    "xn--kitap-2ra23c.example": ["93.184.215.15"],
    "hooks_1.example": ["93.184.215.16"],
    "six.example": ["2606:4700:4700::1001"],
    "nat64.example": ["64:ff9b::808:808"],
}

LEADS_INSIDE = {
    "loopback": ["127.0.0.1"],
    "private": ["10.0.0.5"],
    "metadata": ["169.254.169.254"],
    "carrier": ["100.64.0.1"],
    "unspecified": ["0.0.0.0"],
    "multicast": ["224.0.0.1"],
    "IPv6 loopback": ["::1"],
    "IPv6 link-local with its zone": ["fe80::1%2"],
    "unique local": ["fd00::1"],
    "IPv4-mapped": ["::ffff:127.0.0.1"],
    "NAT64": ["64:ff9b::a00:1"],
    "public, then private": ["93.184.215.14", "10.0.0.5"],
    "private, then public": ["10.0.0.5", "93.184.215.14"],
    "public by IPv4, private by IPv6": ["93.184.215.14", "fd00::1"],
    "private among many": ["93.184.215.14", "93.184.215.15", "2606:4700:4700::1001", "127.0.0.1"],
}
"""What a name that looks public answers."""


@dataclass
class Wire:
    """What would leave this machine: names are answered from a table, connections are written down."""

    names: dict[str, Iterator[list[str]]] = field(default_factory=dict)
    routes: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)
    """Where a connection really goes; what is not in it is refused as by a machine where nobody listens."""

    lookups: list[str] = field(default_factory=list)
    connected: list[tuple[str, int]] = field(default_factory=list)

    def lead(self, name: str, *answers: list[str]) -> None:
        """Let a name answer so, one answer a lookup; the last one stays."""
        self.names[name] = itertools.chain(answers, itertools.repeat(answers[-1]))


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire()
    resolve, connect = socket.getaddrinfo, socket.socket.connect

    def getaddrinfo(host: str, port: int, family: int = 0, type: int = 0, *_: Any, **__: Any) -> Any:  # noqa: A002
        with contextlib.suppress(socket.gaierror):
            # It asks nobody: what is an address in the eyes of the system is one.
            return resolve(host, port, family, type, 0, socket.AI_NUMERICHOST)
        wire.lookups.append(host)
        if host not in wire.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        numeric = [resolve(address, port, family, type) for address in next(wire.names[host])]
        return list(itertools.chain.from_iterable(numeric))

    def observed(self: socket.socket, address: Any) -> None:
        wire.connected.append(address[:2])
        if address[:2] not in wire.routes:
            raise ConnectionRefusedError("nothing leaves in a test")
        connect(self, wire.routes[address[:2]])

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", observed)
    for name, answer in NAMES.items():
        wire.lead(name, answer)
    return wire


@contextlib.contextmanager
def session_of(policy: AddressPolicy) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        adapter = CheckedAdapter(policy)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        yield session


def post(url: str, policy: AddressPolicy = PUBLIC, **options: Any) -> requests.Response:
    with session_of(policy) as session:
        return session.post(url, data=b"{}", timeout=5, **options)


def port_of(endpoint: Receiver) -> int:
    return int(endpoint.url.rpartition(":")[2].partition("/")[0])


# By the URL -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_address_is_refused_when_it_is_saved(wire: Wire, url: str) -> None:
    reason = refusal(url, PUBLIC)

    assert reason is not None
    assert reason.endswith(".")
    assert wire.lookups == [], "nothing is resolved"


@pytest.mark.parametrize("url", UNMENDED.values(), ids=UNMENDED)
def test_a_hostile_address_is_refused_when_a_message_is_sent(wire: Wire, url: str) -> None:
    with pytest.raises((requests.RequestException, UnicodeError)):
        post(url)

    assert wire.connected == []


@pytest.mark.parametrize("id_", MENDED)
def test_what_requests_mends_goes_to_the_public_host_that_it_names(wire: Wire, id_: str) -> None:
    with pytest.raises((requests.RequestException, UnicodeError)):
        post(HOSTILE[id_])

    assert wire.connected == [("93.184.215.14", 80)]


@pytest.mark.parametrize("url", PRIVATE.values(), ids=PRIVATE)
def test_a_connection_refuses_what_the_url_hid(wire: Wire, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """The second check stands by itself: how the system reads an address is what counts."""
    monkeypatch.setattr(addresses, "refusal", lambda *_: None)

    with pytest.raises(requests.RequestException):
        post(url)

    assert wire.connected == []


@pytest.mark.parametrize("url", PRIVATE.values(), ids=PRIVATE)
def test_private_addresses_are_refused_for_being_private_and_nothing_else(url: str) -> None:
    assert refusal(url, PUBLIC) == NOT_PUBLIC
    assert refusal(url, PRIVATE_TOO) is None


@pytest.mark.parametrize("url", NO_ENDPOINT.values(), ids=NO_ENDPOINT)
def test_what_is_no_endpoint_is_none_in_development_either(url: str) -> None:
    assert refusal(url, PRIVATE_TOO) == refusal(url, PUBLIC) != NOT_PUBLIC


@pytest.mark.parametrize(("url", "address"), GOOD.values(), ids=GOOD)
def test_a_good_address_is_connected_to_exactly_as_checked(
    wire: Wire, url: str, address: tuple[str, int]
) -> None:
    assert refusal(url, PUBLIC) is None
    assert refusal(url, HTTPS_ONLY) == (
        None if url.lower().startswith("https") else "An https URL is wanted."
    )
    with pytest.raises(requests.ConnectionError):
        post(url)

    assert wire.connected == [address]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://hooks.example/", "An http or https URL is wanted."),
        ("https://me:secret@hooks.example/", "The URL must not carry credentials."),
        ("https://hooks.example:22/", "The port must be 80, 443, or 1024 or above."),
        ("https://%6cocalhost/", "The host is neither a name nor an address."),
        ("https://10.0.0.1/", "This address is not public."),
    ],
)
def test_a_refusal_says_what_is_wrong(url: str, reason: str) -> None:
    assert refusal(url, PUBLIC) == reason


def test_where_https_is_wanted_http_is_not_sent(wire: Wire) -> None:
    with pytest.raises(RefusedAddressError, match=r"^An https URL is wanted\.$"):
        post("http://hooks.example/", HTTPS_ONLY)

    assert (wire.lookups, wire.connected) == ([], [])


# Every notation ---------------------------------------------------------------------------------------------

FULL_WIDTH = str.maketrans("0123456789", "０１２３４５６７８９")


def notations(address: ipaddress.IPv4Address) -> dict[str, str]:
    number, octets = int(address), address.packed
    return {
        "dotted": str(address),
        "trailing dot": f"{address}.",
        "decimal": str(number),
        "hex": hex(number),
        "octal": f"0{number:o}",
        "octal parts": ".".join(f"0{octet:o}" for octet in octets),
        "hex parts": ".".join(map(hex, octets)),
        "two parts": f"{octets[0]}.{number & 0xFFFFFF}",
        "three parts": f"{octets[0]}.{octets[1]}.{number & 0xFFFF}",
        "full-width": str(address).translate(FULL_WIDTH),
        "ideographic": str(address).replace(".", "。"),
        "mapped": f"[::ffff:{address}]",
        "mapped in hex": f"[::ffff:{number >> 16:x}:{number & 0xFFFF:x}]",
        "NAT64": f"[64:ff9b::{address}]",
    }


PRIVATE_NETWORKS = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
    *("192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4"),
]


@given(st.sampled_from(PRIVATE_NETWORKS).flatmap(lambda network: st.ip_addresses(v=4, network=network)))
def test_a_private_address_is_refused_in_every_notation(address: ipaddress.IPv4Address) -> None:
    accepted = [how for how, host in notations(address).items() if not refusal(f"http://{host}/", PUBLIC)]

    assert accepted == []


KEPT = [ipaddress.ip_network(n) for n in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24")]


@given(
    st.ip_addresses(v=4).filter(
        lambda a: a.is_global and not a.is_multicast and not any(a in n for n in KEPT)
    )
)
def test_a_public_address_is_accepted_in_every_notation(address: ipaddress.IPv4Address) -> None:
    refused = [how for how, host in notations(address).items() if refusal(f"http://{host}/", PUBLIC)]

    assert refused == []


@given(st.ip_addresses())
def test_nothing_is_public_that_python_knows_to_be_none(address: addresses.IPAddress) -> None:
    inner = getattr(address, "ipv4_mapped", None) or address

    assert not is_public(address) or (inner.is_global and not inner.is_multicast)


# By the address connected to --------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", LEADS_INSIDE.values(), ids=LEADS_INSIDE)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_name_that_leads_inside_is_refused_and_not_told_where(
    wire: Wire, scheme: str, answer: list[str]
) -> None:
    wire.lead("trap.example", answer)
    assert refusal(f"{scheme}://trap.example/", PUBLIC) is None

    with pytest.raises(RefusedAddressError) as refused:
        post(f"{scheme}://trap.example/")

    assert str(refused.value) == "This address is not public."
    assert refused.value.__cause__ is None
    assert (wire.lookups, wire.connected) == (["trap.example"], [])


def test_a_name_is_resolved_once_a_connection_and_that_answer_is_connected_to(wire: Wire) -> None:
    wire.lead("turning.example", ["93.184.215.14"], ["127.0.0.1"])

    with session_of(PUBLIC) as session:
        with pytest.raises(requests.ConnectionError):
            session.post("http://turning.example/", timeout=5)
        assert (wire.lookups, wire.connected) == (["turning.example"], [("93.184.215.14", 80)])
        with pytest.raises(RefusedAddressError):
            session.post("http://turning.example/", timeout=5)

    assert wire.lookups == ["turning.example"] * 2
    assert wire.connected == [("93.184.215.14", 80)]


def test_each_connection_goes_where_its_own_lookup_led(wire: Wire) -> None:
    answers = [f"93.184.215.{last}" for last in range(1, 6)]
    wire.lead("turning.example", *([answer] for answer in answers))

    with session_of(PUBLIC) as session:
        for _ in answers:
            with pytest.raises(requests.ConnectionError):
                session.post("https://turning.example/", timeout=5)

    assert wire.lookups == ["turning.example"] * len(answers)
    assert wire.connected == [(answer, 443) for answer in answers]


def test_where_one_kind_of_address_is_out_of_reach_the_other_is_tried(wire: Wire) -> None:
    """One of each kind, and no more: a name with a thousand addresses holds nobody up."""
    many = [f"93.184.215.{last}" for last in range(1, 100)]
    wire.lead("both.example", ["2606:4700:4700::1001", "2606:4700:4700::1002", *many])

    with receiver() as endpoint:
        wire.routes["93.184.215.1", 80] = ("127.0.0.1", port_of(endpoint))
        response = post("http://both.example/")

    assert response.status_code == 204
    assert wire.connected == [("2606:4700:4700::1001", 80), ("93.184.215.1", 80)]


@pytest.mark.parametrize("answers", [[], [[]]], ids=["unknown", "empty"])
def test_a_name_that_leads_nowhere_is_no_refusal(wire: Wire, answers: list[list[str]]) -> None:
    """It may lead somewhere later."""
    if answers:
        wire.lead("nowhere.example", *answers)

    with pytest.raises(requests.ConnectionError) as failure:
        post("http://nowhere.example/")

    assert not isinstance(failure.value, RefusedAddressError)
    assert wire.connected == []


def test_a_connection_kept_alive_is_used_again_only_for_its_own_name(wire: Wire) -> None:
    with receiver() as endpoint, session_of(PUBLIC) as session:
        for name in ("one.example", "two.example"):
            wire.lead(name, ["93.184.215.14"], ["127.0.0.1"])
        wire.routes["93.184.215.14", 80] = ("127.0.0.1", port_of(endpoint))

        for name in ("one.example", "one.example", "two.example", "two.example"):
            session.post(f"http://{name}/", data=b"{}", timeout=5)

        assert endpoint.connections == 2
        assert wire.lookups == ["one.example", "two.example"]
        assert [request.headers["host"] for request in endpoint.received] == [
            *("one.example", "one.example", "two.example", "two.example")
        ]


def test_a_connection_that_has_gone_is_checked_anew(wire: Wire) -> None:
    def hang_up(_: Any, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(204)
        handler.send_header("connection", "close")
        handler.end_headers()

    wire.lead("turning.example", ["93.184.215.14"], ["127.0.0.1"])
    with receiver(hang_up) as endpoint, session_of(PUBLIC) as session:
        wire.routes["93.184.215.14", 80] = ("127.0.0.1", port_of(endpoint))
        wire.routes["127.0.0.1", 80] = ("127.0.0.1", port_of(endpoint))
        session.post("http://turning.example/", data=b"{}", timeout=5)

        with pytest.raises(RefusedAddressError):
            session.post("http://turning.example/", data=b"{}", timeout=5)

        assert len(endpoint.received) == 1


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:8080/", "http://2130706433:8080/", "http://trap.example:8080/"]
)
def test_a_redirect_leads_no_further_than_a_message(wire: Wire, target: str) -> None:
    """The sender follows none; whoever did would not come inside."""

    def elsewhere(_: Any, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(307)
        handler.send_header("location", target)
        handler.send_header("content-length", "0")
        handler.end_headers()

    wire.lead("trap.example", ["10.0.0.5"])
    with receiver(elsewhere) as endpoint:
        wire.routes["93.184.215.14", 80] = ("127.0.0.1", port_of(endpoint))
        with pytest.raises(RefusedAddressError):
            post("http://hooks.example/")

    assert wire.connected == [("93.184.215.14", 80)]


@pytest.mark.parametrize("trusted", [False, True])
def test_no_proxy_is_asked(wire: Wire, monkeypatch: pytest.MonkeyPatch, trusted: bool) -> None:
    """Neither the environment's nor a given one, even where a session would believe them."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://93.184.215.99:3128")

    with session_of(PUBLIC) as session:
        session.trust_env = trusted
        for url in ("http://hooks.example/", "https://hooks.example/"):
            with pytest.raises(requests.ConnectionError):
                session.post(url, timeout=5, proxies={"https": "http://93.184.215.98:3128"})

    assert wire.connected == [("93.184.215.14", 80), ("93.184.215.14", 443)]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "[::ffff:127.0.0.1]", "inside.example"])
def test_private_addresses_are_sent_to_where_the_policy_allows_them(wire: Wire, host: str) -> None:
    for name in ("localhost", "inside.example"):
        wire.lead(name, ["127.0.0.1"])
    with receiver() as endpoint:
        port = port_of(endpoint)
        for address in ("127.0.0.1", "::ffff:127.0.0.1"):
            wire.routes[address, port] = (address, port)

        assert post(f"http://{host}:{port}/callbacks", PRIVATE_TOO).status_code == 204
        with pytest.raises(RefusedAddressError):
            post(f"http://{host}:{port}/callbacks")

        assert len(endpoint.received) == endpoint.connections == 1


@pytest.mark.parametrize("policy", [PUBLIC, PRIVATE_TOO], ids=["public", "private too"])
def test_a_checked_connection_ends_in_time(wire: Wire, policy: AddressPolicy) -> None:
    over = threading.Event()

    def hold(*_: Any) -> int:
        over.wait(10)
        return 204

    with receiver(hold) as endpoint:
        wire.routes["93.184.215.14", 80] = ("127.0.0.1", port_of(endpoint))
        with pytest.raises(requests.RequestException), time_limit(0.1):
            post("http://hooks.example/", policy)
        over.set()


# TLS --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate and its key, in one file: it verifies where that file is what is trusted."""

    path: Path

    @classmethod
    def made_for(cls, name: str, directory: Path) -> "Certificate":
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        path = directory / f"{name}.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return cls(path)


@dataclass
class Secure:
    """An HTTPS server, the names that clients asked it for by SNI, and the hosts of their requests."""

    certificate: Certificate
    port: int = 0
    asked_for: list[str | None] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Secure]:
    """A server of `hooks.example`."""
    secure = Secure(Certificate.made_for("hooks.example", tmp_path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(secure.certificate.path)
    context.sni_callback = lambda _, name, __: secure.asked_for.append(name)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            secure.hosts.append(self.headers["host"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        secure.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield secure
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("policy", "address"), [(PUBLIC, "93.184.215.14"), (PRIVATE_TOO, "127.0.0.1")], ids=["public", "loopback"]
)
@pytest.mark.parametrize("dot", ["", "."])
def test_a_certificate_is_checked_for_the_name_and_not_the_address(
    wire: Wire, secure: Secure, policy: AddressPolicy, address: str, dot: str
) -> None:
    wire.lead(f"hooks.example{dot}", [address])
    wire.routes[address, secure.port] = ("127.0.0.1", secure.port)

    response = post(f"https://hooks.example{dot}:{secure.port}/", policy, verify=str(secure.certificate.path))

    assert response.status_code == 204
    assert wire.connected == [(address, secure.port)]
    assert secure.asked_for == ["hooks.example"]
    assert secure.hosts == [f"hooks.example:{secure.port}"]


def test_a_certificate_that_nobody_vouches_for_is_refused(wire: Wire, secure: Secure) -> None:
    wire.lead("hooks.example", ["127.0.0.1"])
    wire.routes["127.0.0.1", secure.port] = ("127.0.0.1", secure.port)

    with pytest.raises(requests.exceptions.SSLError):
        post(f"https://hooks.example:{secure.port}/", PRIVATE_TOO)

    assert secure.hosts == []


def test_a_certificate_of_another_name_is_refused(wire: Wire, secure: Secure) -> None:
    wire.lead("other.example", ["93.184.215.14"])
    wire.routes["93.184.215.14", secure.port] = ("127.0.0.1", secure.port)

    with pytest.raises(requests.exceptions.SSLError, match="Hostname mismatch"):
        post(f"https://other.example:{secure.port}/", verify=str(secure.certificate.path))

    assert secure.hosts == []


# What is sent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["Vade\r\nx-injected: 1", "Vade\nx-injected: 1", "Vade\rx-injected: 1", "\x0bV"]
)
def test_a_header_cannot_carry_another(wire: Wire, value: str) -> None:
    with pytest.raises(requests.exceptions.InvalidHeader):
        post("http://hooks.example/", headers={"user-agent": value})
    with pytest.raises(requests.exceptions.InvalidHeader):
        post("http://hooks.example/", headers={value: "Vade"})

    assert wire.connected == []


@pytest.mark.parametrize(
    "part", ["/a\r\nx-injected: 1\r\n", "/?a=\r\nx-injected: 1", "/ HTTP/1.1\r\nx-injected: 1"]
)
def test_a_path_cannot_carry_a_header(wire: Wire, part: str) -> None:
    assert refusal(f"http://hooks.example{part}", PRIVATE_TOO) is not None
    with receiver() as endpoint:
        wire.routes["93.184.215.14", 80] = ("127.0.0.1", port_of(endpoint))

        post(f"http://hooks.example{part}")

    (request,) = endpoint.received
    assert "x-injected" not in request.headers
    assert "%0D%0A" in request.path
