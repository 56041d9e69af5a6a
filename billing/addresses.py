"""Which addresses a callback may go to: judged by the URL, and again by the address really connected to."""

import functools
import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Any, ClassVar

import requests
from pydantic import HttpUrl
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import NewConnectionError

from billing.connections import TimeLimited, TimeLimitedAdapter
from sentences import Sentence

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

NOT_PUBLIC = Sentence("This address is not public.")

_WRITTEN_OUT = re.compile(r"(https?)://([^/?#]+).*", re.IGNORECASE)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")

_PRIVATE_SUFFIXES = tuple(
    f".{name}"
    for name in (
        *("localhost", "localdomain", "local", "internal", "home.arpa"),
        *("corp", "home", "intranet", "lan", "private"),
    )
)
"""Names that lead into a network of one's own: RFC 6761, 6762, 8375, ICANN's `internal`, and common habit."""

_PUBLIC_PORTS = frozenset({80, 443})
_FIRST_FREE_PORT = 1024

_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""All of IPv6 that is given out to the internet; what is outside is local, reserved or multicast."""

_CARRY_IPV4 = (ipaddress.ip_network("::ffff:0:0/96"), ipaddress.ip_network("64:ff9b::/96"))
"""IPv4-mapped, and NAT64, by which a host without IPv4 reaches it: as public as the IPv4 address inside."""

_ISATAP = frozenset({0x0000_5EFE, 0x0200_5EFE})
"""What stands before the IPv4 address in the last 64 bits of an ISATAP address (RFC 5214 §6.1)."""

# Written out, since what Python's `is_global` knows of these registries differs from one patch release to the
# next: https://www.iana.org/assignments/iana-ipv4-special-registry (and ipv6).
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network; 0.0.0.0 is this machine
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by a carrier's customers
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's metadata, in the midst of public addresses
        "169.254.0.0/16",  # link-local, and most clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocols, and Oracle's metadata
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved; the last one is broadcast
        "2001::/23",  # protocols: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address inside, and nobody's endpoint any more (RFC 7526)
        "3fff::/20",  # documentation
    )
)


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """What an endpoint may be: private and loopback addresses too, or URLs with https alone."""

    allow_private: bool = False
    https_only: bool = False


class RefusedAddressError(requests.RequestException):
    """An address is none that may be sent to: the text says why, and nothing of where a name led."""


class _NotPublicError(Exception):
    """Says so across urllib3, which would take an OSError, as those of `requests` are, for a lost line."""


def as_sent(url: str) -> str:
    """Return a URL as a request has it: its name in IDNA's letters, and %-codes for others than ASCII's.

    Raises:
        ValueError: when nothing can be sent to it.
    """
    return requests.Request("POST", url).prepare().url or url


@functools.lru_cache(maxsize=4096)
def refusal(url: str, policy: AddressPolicy) -> str | None:
    """Return why a URL cannot be an endpoint, in a sentence for whoever wrote it, or None.

    A name is not resolved here: what counts is where it leads when a message is sent.
    """
    written = _WRITTEN_OUT.fullmatch(url)
    try:
        # It reads a host as browsers do: 0x7f.1 and full-width １２７.0.0.1 are 127.0.0.1. It also passes
        # over what a sender may not: spaces, control characters and backslashes.
        parts = HttpUrl(url) if written and url.isprintable() and not set(url) & {" ", "\\"} else None
    except ValueError:
        parts = None
    if written is None or parts is None or parts.host is None or parts.port is None:
        return Sentence("An http or https URL is wanted.")
    scheme, authority = written.groups()
    if policy.https_only and scheme.lower() != "https":
        return Sentence("An https URL is wanted.")
    if "@" in authority:
        return Sentence("The URL must not carry credentials.")
    host = parts.host.strip("[]").removesuffix(".")
    if "%" in authority or not (_NAME.fullmatch(host) or ":" in host):
        return Sentence("The host is neither a name nor an address.")
    if not (parts.port in _PUBLIC_PORTS or parts.port >= _FIRST_FREE_PORT):
        return Sentence("The port must be 80, 443, or %(least)s or above.", least=_FIRST_FREE_PORT)
    return None if policy.allow_private or _may_be_public(host) else NOT_PUBLIC


def is_public(address: IPAddress) -> bool:
    """Return whether an address belongs to the public internet, also behind IPv6's ways to write IPv4."""
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in network for network in _CARRY_IPV4):
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
        if address not in _GLOBAL_UNICAST or (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
            return False
    return not any(address in network for network in _NOT_PUBLIC)


def _may_be_public(host: str) -> bool:
    try:
        return is_public(ipaddress.ip_address(host))
    except ValueError:
        # A name without a dot is one of the machine's own or its network's.
        return "." in host and not f".{host}".endswith(_PRIVATE_SUFFIXES)


class _Checked:
    """Resolves a name once, refuses it if any address is not public, and connects to what it checked."""

    host: str
    port: int
    _dns_host: str

    def __init__(self, *args: Any, policy: AddressPolicy, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._policy = policy

    def _new_conn(self) -> socket.socket:
        name = self._dns_host
        failure = NewConnectionError(self, "the name leads nowhere")  # type: ignore[arg-type]
        try:
            for address in self._resolve(name):
                self._dns_host = address
                try:
                    connected: socket.socket = super()._new_conn()  # type: ignore[misc]
                except NewConnectionError as error:
                    failure = error
                else:
                    return connected
        finally:
            # The certificate and the Host header are the name's, and a connection made anew resolves it anew.
            self._dns_host = name
        raise failure

    def _resolve(self, name: str) -> list[str]:
        """Return the first address of IPv6 and of IPv4, as far as there are any, in the system's order.

        No more than these: the name's owner says how many there are, and each may cost time.
        """
        try:
            found = socket.getaddrinfo(name, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise NewConnectionError(self, "the name cannot be resolved") from error  # type: ignore[arg-type]
        addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
        # One that is not public refuses them all: which one is taken would be up to luck.
        if not (self._policy.allow_private or all(map(is_public, addresses))):
            raise _NotPublicError
        firsts: dict[int, str] = {}
        for address in addresses:
            firsts.setdefault(address.version, str(address))
        return list(firsts.values())


class _CheckedHTTPConnection(_Checked, TimeLimited, HTTPConnection):
    """HTTP to checked addresses."""


class _CheckedHTTPSConnection(_Checked, TimeLimited, HTTPSConnection):
    """HTTPS to checked addresses; the certificate is checked for the name, not the address."""


class _CheckedHTTPPool(HTTPConnectionPool):
    ConnectionCls = _CheckedHTTPConnection


class _CheckedHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _CheckedHTTPSConnection


class CheckedAdapter(TimeLimitedAdapter):
    """A transport for `requests` that sends only where its policy allows, and keeps to its `time_limit`.

    Each connection resolves its name itself. One that is kept alive was checked when it was made, and urllib3
    uses it again only for the same scheme, name and port.

    Raises:
        RefusedAddressError: from `send`, so from `session.post`, before anything is connected to.
    """

    pools: ClassVar[dict[str, type[HTTPConnectionPool]]] = {
        "http": _CheckedHTTPPool,
        "https": _CheckedHTTPSPool,
    }

    def __init__(self, policy: AddressPolicy, **kwargs: Any) -> None:
        self._policy = policy
        super().__init__(**kwargs)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools, whose connections know the policy."""
        super().init_poolmanager(*args, **kwargs)
        # What a pool does not know itself it hands to its connections.
        self.poolmanager.pool_classes_by_scheme = {
            scheme: functools.partial(pool, policy=self._policy) for scheme, pool in self.pools.items()
        }

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request, never through a proxy: that would resolve the name itself, unchecked."""
        reason = refusal(request.url or "", self._policy)
        if reason is not None:
            raise RefusedAddressError(reason, request=request)
        try:
            return super().send(request, *args, **kwargs | {"proxies": None})
        except _NotPublicError:
            raise RefusedAddressError(NOT_PUBLIC, request=request) from None
