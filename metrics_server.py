"""The worker's metrics over HTTP: ``GET /metrics`` on a port of its own, and nothing else."""

import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from web.exposition import CONTENT_TYPE, may_read

IDLE_S = 10
"""How long a connection that says nothing is kept."""


def serve_metrics(render: Callable[[], bytes], *, host: str, port: int, token: str | None) -> int:
    """Answer in threads that end with the process; return the port, which the system chooses for 0.

    Raises:
        OSError: when the port cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = IDLE_S
        server_version = "Vade"
        sys_version = ""

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self._answer(HTTPStatus.NOT_FOUND, b"")
            elif not may_read(self.headers["Authorization"], token=token):
                self._answer(HTTPStatus.UNAUTHORIZED, b"")
            else:
                self._answer(HTTPStatus.OK, render())

        def _answer(self, status: HTTPStatus, body: bytes) -> None:
            self.send_response(status)
            if status is HTTPStatus.UNAUTHORIZED:
                self.send_header("WWW-Authenticate", "Bearer")
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            # Who asks, and for what, is no business of the worker's log.
            pass

    class Server(ThreadingHTTPServer):
        address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            # A caller that hung up.
            pass

    server = Server((host, port), Handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server.server_port
