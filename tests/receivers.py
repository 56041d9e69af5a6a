"""Real servers that receive callbacks: those that speak HTTP, and those that do as they like."""

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook


@dataclass(frozen=True, slots=True)
class Received:
    """One request, as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> Any:
        """Return the message, or raise `WebhookVerificationError`."""
        return Webhook(secret).verify(self.body, self.headers)


@dataclass
class Receiver:
    """An endpoint; ``answer`` says, for each request, the status to answer with, or writes it itself."""

    answer: Callable[[Received, BaseHTTPRequestHandler], int | None] = lambda *_: 204
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    url: str = ""

    def ids(self) -> list[str]:
        return [request.id for request in self.received]


@contextmanager
def receiver(
    answer: int | Callable[[Received, BaseHTTPRequestHandler], int | None] = 204,
) -> Iterator[Receiver]:
    """Listen on a free port of this machine until the block ends."""
    endpoint = Receiver(answer if callable(answer) else lambda *_: answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Received(self.path, headers, body)
            endpoint.received.append(request)
            status = endpoint.answer(request, self)
            if status is not None:
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def get_request(self) -> Any:
            endpoint.connections += 1
            return super().get_request()

        def handle_error(self, *_: object) -> None:
            # A sender that hangs up is what some tests are about.
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        endpoint.url = f"http://127.0.0.1:{server.server_port}/callbacks"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()


def asks(status: int, retry_after: str) -> Callable[[Received, BaseHTTPRequestHandler], None]:
    """Answer with a status, and ask to be left alone for a time."""

    def answer(_: Received, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("retry-after", retry_after)
        handler.send_header("content-length", "0")
        handler.end_headers()

    return answer


@dataclass
class Wire(Receiver):
    """An endpoint that does with each connection what it likes; ``over`` is set when the test is."""

    over: threading.Event = field(default_factory=threading.Event)


def read_request(connection: socket.socket) -> None:
    """Read one request with a body whose length it says."""
    with connection.makefile("rb") as file:
        length = 0
        while (line := file.readline()) not in {b"\r\n", b""}:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        file.read(length)


def reset(connection: socket.socket) -> None:
    """Hang up without a farewell: the other side is told that the connection was reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextmanager
def wire(
    behave: Callable[[socket.socket, threading.Event], None], *, tls: ssl.SSLContext | None = None
) -> Iterator[Wire]:
    """Listen on a free port of this machine; each connection is ``behave``'s, in a thread of its own."""
    endpoint = Wire()
    threads: list[threading.Thread] = []
    connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        # A sender that hangs up is what some tests are about.
        with connection, contextlib.suppress(OSError):
            if tls is None:
                behave(connection, endpoint.over)
            else:
                with tls.wrap_socket(connection, server_side=True) as secured:
                    behave(secured, endpoint.over)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                endpoint.connections += 1
                connections.append(connection)
                threads.append(threading.Thread(target=serve, args=[connection], daemon=True))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        endpoint.url = f"http{'s' * (tls is not None)}://127.0.0.1:{server.getsockname()[1]}/"
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield endpoint
        finally:
            endpoint.over.set()
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            accepting.join(10)
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(10)
