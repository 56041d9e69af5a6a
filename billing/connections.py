"""Connections for callbacks that end in time: a limit on the whole exchange, not on each byte of it.

A socket's own timeout begins anew with every byte, so an endpoint that sends one now and then would hold a
thread for as long as it likes.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

_here = threading.local()


class _Limit:
    """Ends the connections that are watched, and those still to come, once time is up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: list[socket.socket] = []
        self._over = False

    def watch(self, handle: socket.socket) -> None:
        with self._lock:
            self._watched.append(handle)
            if self._over:
                _end(handle)

    def end(self) -> None:
        with self._lock:
            self._over = True
            for handle in self._watched:
                _end(handle)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End every connection that this thread makes in the block once some seconds are over.

    What reads from it or writes to it then fails as if the other side had gone. Looking up a name is not
    ended by it.
    """
    limit = _Limit()
    timer = threading.Timer(seconds, limit.end)
    timer.daemon = True
    _here.limit = limit
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _here.limit = None


def _end(handle: socket.socket) -> None:
    with contextlib.suppress(OSError):
        handle.shutdown(socket.SHUT_RDWR)


class TimeLimited:
    """A connection that keeps to the `time_limit` of its thread, also when it is used again."""

    _handle: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        connected: socket.socket = super()._new_conn()  # type: ignore[misc]
        # A handle of our own: TLS takes the socket over, and a number that is free is soon another's.
        self._handle = connected.dup()
        self._watch()
        return connected

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request."""
        self._watch()
        super().request(*args, **kwargs)  # type: ignore[misc]

    def close(self) -> None:
        """Close the connection."""
        super().close()  # type: ignore[misc]
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _watch(self) -> None:
        limit: _Limit | None = getattr(_here, "limit", None)
        if limit is not None and self._handle is not None:
            limit.watch(self._handle)


class _HTTPTimeLimited(TimeLimited, HTTPConnection):
    """HTTP in time."""


class _HTTPSTimeLimited(TimeLimited, HTTPSConnection):
    """HTTPS in time."""


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPTimeLimited


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSTimeLimited


class TimeLimitedAdapter(HTTPAdapter):
    """A transport for `requests` that keeps to `time_limit`."""

    pools: ClassVar[dict[str, type[HTTPConnectionPool]]] = {"http": _HTTPPool, "https": _HTTPSPool}

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools of connections that keep to it."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self.pools
