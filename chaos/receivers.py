"""Endpoints for callbacks as a process of their own: ``python -m chaos.receivers PORT LOG SEED``.

Every message is on the log, with its headers, before it is answered; whether it is signed right is for the
audit to say, by code of its own. Some first attempts are refused or answered late, by the seed and the
message's id.
"""

import json
import os
import random
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

from chaos.gateway import Server

REFUSES = 0.03
LATE = 0.05
LATE_S = 0.4


class Handler(BaseHTTPRequestHandler):
    """One connection of a worker; the path says whose endpoint it is."""

    protocol_version = "HTTP/1.1"
    log: int
    seed: str
    seen: ClassVar[Counter[str]] = Counter()
    lock: ClassVar[threading.Lock] = threading.Lock()

    def do_POST(self) -> None:
        """Keep a message, and answer."""
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        id_ = self.headers.get("webhook-id", "")
        with self.lock:
            self.seen[id_] += 1
            first = self.seen[id_] == 1
        chance = random.Random(f"{self.seed}/{id_}").random() if first else 1.0
        status = 500 if chance < REFUSES else 204
        if REFUSES <= chance < REFUSES + LATE:
            time.sleep(LATE_S)
        if status == 204:
            self._keep(
                {
                    "path": self.path,
                    "id": id_,
                    "timestamp": self.headers.get("webhook-timestamp", ""),
                    "signature": self.headers.get("webhook-signature", ""),
                    "body": body,
                    "at": time.time(),
                }
            )
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def _keep(self, line: dict[str, Any]) -> None:
        # One write is one line, whichever thread it is of and whenever the process is killed.
        os.write(self.log, json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def log_message(self, *_: object) -> None:
        """Say nothing: the log tells it all."""


def main() -> None:
    """Receive until killed."""
    port, log, seed = sys.argv[1:]
    Handler.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    Handler.seed = seed
    # Ends the half line that a killed process may have left; it was not answered, so it comes again.
    os.write(Handler.log, b"\n")
    with Server(("127.0.0.1", int(port)), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
