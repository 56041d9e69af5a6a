"""Which addresses a callback may go to: checked when an endpoint is saved, and where it really connects."""

import ipaddress
import socket
from typing import ClassVar

from pydantic import HttpUrl
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import NewConnectionError

from billing.connections import TimeLimited, TimeLimitedAdapter

_CARRY_IPV4 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96"))
"""IPv6 networks whose last 32 bits are an IPv4 address: NAT64, and the old IPv4-compatible addresses."""


def refusal(url: str, *, allow_private: bool) -> str | None:
    """Return why a URL cannot be an endpoint, or None where nothing speaks against it.

    A name is not resolved here: what counts is where it leads when a message is sent.
    """
    try:
        # It reads a host as browsers do: 0x7f.1 and full-width １２７.0.0.1 are 127.0.0.1.
        parts = HttpUrl(url)
    except ValueError:
        return "An http or https URL is wanted."
    if parts.port == 0:
        return "There is no port 0."
    if parts.username is not None or parts.password is not None:
        return "The URL must not carry credentials."
    host = (parts.host or "").strip("[]").removesuffix(".")
    try:
        public = is_public(ipaddress.ip_address(host))
    except ValueError:
        public = host != "localhost" and not host.endswith(".localhost")
    return None if public or allow_private else "This address is not public."


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Return whether an address belongs to the public internet, also behind IPv6's ways to write IPv4."""
    inner: ipaddress.IPv4Address | None = None
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and any(address in network for network in _CARRY_IPV4):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.is_global and not address.is_multicast if inner is None else is_public(inner)


class _PublicOnly:
    """Resolves a name once, refuses it if any address is not public, and connects to what it checked."""

    host: str
    port: int
    _dns_host: str

    def _new_conn(self) -> socket.socket:
        try:
            found = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise NewConnectionError(self, "the name cannot be resolved") from error  # type: ignore[arg-type]
        addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
        if not all(is_public(ipaddress.ip_address(address)) for address in addresses):
            raise NewConnectionError(self, "the address is not public")  # type: ignore[arg-type]
        self._dns_host = addresses[0]
        connected: socket.socket = super()._new_conn()  # type: ignore[misc]
        return connected


class _PublicHTTPConnection(_PublicOnly, TimeLimited, HTTPConnection):
    """HTTP to public addresses only."""


class _PublicHTTPSConnection(_PublicOnly, TimeLimited, HTTPSConnection):
    """HTTPS to public addresses only; the certificate is checked for the name, not the address."""


class _PublicHTTPPool(HTTPConnectionPool):
    ConnectionCls = _PublicHTTPConnection


class _PublicHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _PublicHTTPSConnection


class PublicOnlyAdapter(TimeLimitedAdapter):
    """A transport for `requests` that reaches public addresses only, and keeps to its `time_limit`."""

    pools: ClassVar[dict[str, type[HTTPConnectionPool]]] = {
        "http": _PublicHTTPPool,
        "https": _PublicHTTPSPool,
    }
