"""Connections for callbacks that end in time: a limit on the whole exchange, not on each byte of it.

A socket's own timeout begins anew with every byte, so an endpoint that sends one now and then would hold a
thread for as long as it likes.
"""

import contextlib
import heapq
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPResponse, parse_headers
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
        self.over = False
        self.done = False

    def finish(self) -> None:
        with self._lock:
            self.done = True
            self._watched.clear()

    def watch(self, handle: socket.socket) -> None:
        with self._lock:
            self._watched.append(handle)
            if self.over:
                _end(handle)

    def end(self) -> None:
        with self._lock:
            self.over = not self.done
            for handle in self._watched:
                _end(handle)


class _Watch:
    """One thread that ends every limit whose time is up: a timer for each would cost a thread for each."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._limits: list[tuple[float, int, _Limit]] = []
        self._numbers = itertools.count()
        self._started = False

    def add(self, limit: _Limit, seconds: float) -> None:
        with self._changed:
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="time-limits", daemon=True).start()
            at_s = time.monotonic() + seconds
            first = not self._limits or at_s < self._limits[0][0]
            heapq.heappush(self._limits, (at_s, next(self._numbers), limit))
            if first:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._limits and self._limits[0][2].done:
                    heapq.heappop(self._limits)
                left_s = self._limits[0][0] - time.monotonic() if self._limits else None
                if left_s is None or left_s > 0:
                    self._changed.wait(left_s)
                    continue
                _, _, limit = heapq.heappop(self._limits)
            limit.end()


_watch = _Watch()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[_Limit]:
    """End every connection that this thread makes or uses in the block once some seconds are over.

    What reads from it or writes to it then fails as if the other side had gone, and the limit given is
    ``over``. Looking up a name is not ended by it.
    """
    limit = _Limit()
    _here.limit = limit
    _watch.add(limit, seconds)
    try:
        yield limit
    finally:
        limit.finish()
        _here.limit = None


def _end(handle: socket.socket) -> None:
    with contextlib.suppress(OSError):
        handle.shutdown(socket.SHUT_RDWR)


class _LastWord(HTTPResponse):
    """An answer, after what was said in the meantime (RFC 9110 §15.2): http.client passes over 100 alone."""

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not HTTPStatus.SWITCHING_PROTOCOLS < status < HTTPStatus.OK:
                return version, status, reason
            parse_headers(self.fp)


class TimeLimited:
    """A connection that keeps to the `time_limit` of its thread, also when it is used again."""

    response_class: Any = _LastWord

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
