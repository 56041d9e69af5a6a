"""A payment gateway over HTTP with books of its own: ``python -m chaos.gateway PORT LEDGER SEED TIMEOUT_S``.

It charges and declines, hangs, answers late, loses answers after charging, and answers twice. What it does
with an attempt is decided by the seed, the company, the period and the how many-th key of that period it is.
The same key has its first answer again, also after the gateway was killed: the ledger is on the disk before
the answer is on the wire.
"""

import contextlib
import hashlib
import json
import os
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MOODS = {
    "prompt": 58,
    "late": 12,
    "hangs": 5,
    "refuses": 5,
    "loses the answer": 8,
    "answers too late": 5,
    "answers twice": 7,
}
"""How often, of a hundred first and second calls; from the third call on it answers at once."""

MOODY_CALLS = 2
DECLINES = 0.25
BROKE = 0.1
"""The share of companies that are declined always."""

FIELDS = ("company_id", "amount_minor", "currency", "description")


class Ledger:
    """The books, one JSON object a line: ``asked`` for each call, ``entered`` once for each key."""

    def __init__(self, path: Path, seed: str) -> None:
        self._seed = seed
        self._lock = threading.Lock()
        self._entries: dict[str, dict[str, Any]] = {}
        self._asked: Counter[str] = Counter()
        self._keys: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._read(path)

    def ask(self, key: str, request: dict[str, Any], worker: str) -> str:
        """Note a call, and return the mood that it meets."""
        with self._lock:
            number = self._know(key, request)
            self._asked[key] += 1
            calls = self._asked[key]
            chance = self._chance("mood", request, number, calls)
            mood = chance.choices([*MOODS], [*MOODS.values()])[0] if calls <= MOODY_CALLS else "prompt"
            self._write(
                {"kind": "asked", "key": key, "at": time.time(), "worker": worker, "mood": mood} | request
            )
            return mood

    def enter(self, key: str, request: dict[str, Any]) -> dict[str, Any]:
        """Charge or decline, once for a key, and return the entry that stands."""
        with self._lock:
            if key in self._entries:
                return self._entries[key]
            broke = random.Random(f"{self._seed}/broke/{request['company_id']}").random() < BROKE
            chance = self._chance("fate", request, self._know(key, request), 1)
            entry = {
                "kind": "entered",
                "key": key,
                "succeeded": not broke and chance.random() >= DECLINES,
                "reference": hashlib.sha256(f"{self._seed}/{key}".encode()).hexdigest()[:24],
                "at": time.time(),
            } | request
            self._write(entry)
            os.fsync(self._file)
            self._entries[key] = entry
            return entry

    def _know(self, key: str, request: dict[str, Any]) -> int:
        """Return the how many-th key of its period this is."""
        keys = self._keys[request["company_id"], request["description"]]
        if key not in keys:
            keys.append(key)
        return keys.index(key)

    def _chance(self, what: str, request: dict[str, Any], *numbers: int) -> random.Random:
        return random.Random(
            f"{self._seed}/{what}/{request['company_id']}/{request['description']}/{numbers}"
        )

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def _read(self, path: Path) -> None:
        """Take the books up where a killed process left them; half a line is none."""
        whole = path.read_bytes().rpartition(b"\n")
        os.ftruncate(self._file, len(whole[0]) + len(whole[1]))
        for text in whole[0].splitlines():
            line = json.loads(text)
            self._know(line["key"], line)
            if line["kind"] == "asked":
                self._asked[line["key"]] += 1
            else:
                self._entries[line["key"]] = line


class Handler(BaseHTTPRequestHandler):
    """One connection of a worker; ``POST`` to any path is a charge."""

    protocol_version = "HTTP/1.1"
    ledger: Ledger
    timeout_s: float

    def do_POST(self) -> None:
        """Do with a charge as the mood is."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        key, request = self.headers["idempotency-key"], {name: body[name] for name in FIELDS}
        mood = self.ledger.ask(key, request, self.headers.get("x-worker", ""))
        if mood == "hangs":
            time.sleep(1.5 * self.timeout_s)
            self.close_connection = True
        elif mood == "refuses":
            self._answer(503, {"error": "come again"})
        else:
            if mood == "late":
                time.sleep(0.4 * self.timeout_s)
            entry = self.ledger.enter(key, request)
            if mood == "answers too late":
                time.sleep(1.5 * self.timeout_s)
            if mood == "loses the answer":
                self.close_connection = True
                return
            for _ in range(2 if mood == "answers twice" else 1):
                self._answer(200, entry)

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: the ledger tells it all."""


class Server(ThreadingHTTPServer):
    """Many connections at once; one that breaks off is no news."""

    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        """Say nothing of a caller that has gone."""


def main() -> None:
    """Serve until killed."""
    port, ledger, seed, timeout_s = sys.argv[1:]
    Handler.ledger, Handler.timeout_s = Ledger(Path(ledger), seed), float(timeout_s)
    with Server(("127.0.0.1", int(port)), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
