"""`flask callbacks listen`: a receiver that shows what is sent to it, and whether it is signed right."""

import errno
import io
import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, cast

import click
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.text import Text
from standardwebhooks import Webhook, WebhookVerificationError

from billing.callback_endpoints import new_secret
from config import Settings
from terminal import told_to_end

BODY_LIMIT = 64 * 1024
"""The largest body that is read, in bytes: no message comes near it."""

DRAIN_LIMIT = 16 * BODY_LIMIT
"""How much of a larger one is read away, so that its sender comes to read the answer."""

IDLE_TIMEOUT_S = 15
"""A sender that says nothing for so long is hung up on."""


@click.command("listen")
@click.option("--port", type=click.IntRange(1024, 65535), required=True, help="Where to listen.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--secret", help="What messages are signed with; else CALLBACK_SECRET, else a fresh one.")
def listen_command(port: int, host: str, secret: str | None) -> None:
    """Receive callbacks here, verify them, and show them as they come, until Ctrl-C.

    Answers 204 to what is signed right and 401 to all else.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a letter shows a question mark, instead of ending this.
        sys.stdout.reconfigure(errors="replace")
    url = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
    kept = Settings.from_env().callback_secret
    used = secret or kept or new_secret()
    # What Vade would refuse is refused here, in its words.
    Settings.from_env({"CALLBACK_URL": url, "CALLBACK_SECRET": used})
    log = Log(Webhook(used))
    shown = '"<the secret given>"' if secret else '"$CALLBACK_SECRET"' if kept else used
    with _Server(host, port, log) as server, told_to_end(lambda _: _shut_down(server)):
        log.say(f"Listening on {url} until Ctrl-C. To have Vade send here, start it with:\n")
        log.say(f"CALLBACK_URL={url} CALLBACK_SECRET={shown} CALLBACK_ALLOW_PRIVATE=on make run\n")
        server.serve_forever(poll_interval=0.1)
    log.say(log.summary())


@dataclass
class Log:
    """What came, shown as it comes; from any number of threads."""

    webhook: Webhook
    console: Console = field(
        default_factory=lambda: Console(force_terminal=sys.stdout.isatty(), highlight=False, soft_wrap=True)
    )
    counts: Counter[str] = field(default_factory=Counter)
    _seen: set[tuple[str, bool]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, text: str) -> None:
        """Print a line, as it is."""
        with self._lock:
            self.console.print(Text(text))

    def receive(self, body: bytes, headers: dict[str, str]) -> bool:
        """Show a message; return whether its signature is right."""
        refusal = self._refusal(body, headers)
        id_ = headers.get("webhook-id", "")
        with self._lock:
            # What was forged does not make the true one a repetition.
            repeated = (id_, refusal is None) in self._seen
            self._seen.add((id_, refusal is None))
            self.counts["received"] += 1
            self.counts["verified"] += refusal is None
            self.counts["repeated"] += repeated
            self.console.print(_shown(body, id_, refusal=refusal, repeated=repeated))
        return refusal is None

    def summary(self) -> str:
        """Return how many came."""
        received, verified, repeated = (self.counts[name] for name in ("received", "verified", "repeated"))
        return f"received {received}, verified {verified}, refused {received - verified}, repeated {repeated}"

    def _refusal(self, body: bytes, headers: dict[str, str]) -> str | None:
        """Return why a message is not to be believed, or None where it is signed right."""
        try:
            text = body.decode()
        except UnicodeDecodeError:
            return "the body is not UTF-8"
        try:
            self.webhook.verify(text, headers, json_parse=False)
        except WebhookVerificationError as error:
            return str(error)
        except ValueError:
            # A signature without a comma, or that is no base64.
            return "Malformed webhook-signature"
        return None


def _shown(body: bytes, id_: str, *, refusal: str | None, repeated: bool) -> Text:
    """Return how a message is shown: a line about it, and its body below, indented."""
    try:
        message = json.loads(body)
        pretty = json.dumps(message, ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        # Bytes that are no text, text that is no JSON, or JSON that is nested too deep.
        message, pretty = None, body.decode(errors="replace")
    data = message.get("data") if isinstance(message, dict) else None
    sequence = data.get("sequence") if isinstance(data, dict) else None
    type_ = message.get("type") if isinstance(message, dict) else None
    text = Text.assemble(
        (time.strftime("%H:%M:%S"), "dim"),
        "  ",
        (_tame(type_ if isinstance(type_, str) else "?"), "bold cyan"),
        # The first half of an id says only whose it is.
        ("  " + _tame(f"…{id_[-8:]}" if id_ else "without an id"), "dim"),
        "  ",
        ("✓ verified", "green") if refusal is None else (f"✗ {_tame(refusal)}", "bold red"),
        ("  repeated", "yellow") if repeated else "  new",
        f"  sequence {sequence}" if isinstance(sequence, int) else "",
        "\n",
    )
    below = Text("\n".join(f"  {_tame(line)}" for line in pretty.split("\n")) + "\n")
    if refusal is None:
        # Colouring takes long for some texts, so it is for those whose sender is known.
        JSONHighlighter().highlight(below)
    return text.append_text(below)


def _tame(text: str) -> str:
    """Return a line with all that steers a terminal, or does not stand in a line, written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shut_down(server: ThreadingHTTPServer) -> None:
    # It waits for serve_forever, which waits for the signal's handler that calls this.
    threading.Thread(target=server.shutdown, daemon=True).start()


class _Server(ThreadingHTTPServer):
    """Listens at once, or ends with a sentence."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, log: Log) -> None:
        self.log = log
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                reason = f"Port {port} of {host} is taken: choose another with --port."
            else:
                reason = f"Port {port} of {host} cannot be listened on: {error.strerror}."
            raise click.ClickException(reason) from None

    def server_bind(self) -> None:
        # Without the look-up of a name, which http.server makes, and which can take long.
        TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A sender that hung up has heard no answer, and comes again.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers each request at once: 204, or why not."""

    protocol_version = "HTTP/1.1"
    server_version = "Vade"
    timeout = IDLE_TIMEOUT_S

    def parse_request(self) -> bool:
        """Refuse whatever is no POST, of whatever name."""
        if not super().parse_request():
            return False
        if self.command == "POST":
            return True
        self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)
        return False

    def do_POST(self) -> None:
        """Show a message, and answer 204 where it is verified."""
        length = self.headers.get("content-length", "")
        if "transfer-encoding" in self.headers or not re.fullmatch("[0-9]{1,18}", length):
            self._refuse(HTTPStatus.LENGTH_REQUIRED)
            return
        if int(length) > BODY_LIMIT:
            self.rfile.read(min(int(length), DRAIN_LIMIT))
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionResetError("hung up in the middle")
        headers = {name.lower(): value for name, value in self.headers.items()}
        if cast(_Server, self.server).log.receive(body, headers):
            self.send_response(HTTPStatus.NO_CONTENT)
            self.end_headers()
        else:
            self.send_response(HTTPStatus.UNAUTHORIZED)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Say nothing: messages are shown by the log."""

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer, and hang up, since what follows may be the rest of what was refused."""
        self.send_response(status)
        self.send_header("Allow", "POST")
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()
