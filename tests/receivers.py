"""Real HTTP servers that receive callbacks."""

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
