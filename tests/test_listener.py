"""`flask callbacks listen`: what it shows of what really arrives, and how it answers."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from standardwebhooks import Webhook

from config import PROJECT_DIR
from tests.processes import Program, environment, run, started, until
from tests.world import CALLBACK_SECRET
from web.webhooks import EVENTS

pytestmark = pytest.mark.slow

COMMAND = ("-c", "from listener import listen_command; listen_command()")
"""The command without the rest of ``flask``, which takes a second to start."""

OTHER_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
ID = "00000000-0000-001b-5d2e-9c41aa07f3be"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def body(type_: str = "payment.succeeded", **changes: Any) -> bytes:
    return json.dumps(EVENTS[type_].message() | changes, ensure_ascii=False).encode()


@dataclass
class Listener:
    """A listener that runs, and a sender to it."""

    program: Program
    port: int
    secret: str

    def send(
        self,
        message: bytes,
        *,
        id_: str = ID,
        secret: str | None = None,
        sent_at: datetime | None = None,
        **headers: str,
    ) -> int:
        """POST a signed message; return how it was answered."""
        at = sent_at or datetime.now(UTC)
        signature = Webhook(secret or self.secret).sign(id_, at, message.decode(errors="replace"))
        signed = {
            "webhook-id": id_,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": signature,
        }
        signed |= {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.post(
            f"http://127.0.0.1:{self.port}/", message, headers=signed, timeout=10
        ).status_code

    def shown(self) -> str:
        """What was printed once it listened."""
        return self.program.text().partition("make run\n\n")[2]

    def line(self) -> str:
        """The line about the only message."""
        (line,) = [line for line in self.shown().splitlines() if "✓" in line or "✗" in line]
        return line

    def raw(self, *parts: bytes) -> bytes:
        """Send bytes as they are; return all that was answered."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            for part in parts:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := connection.recv(4096):
                answer += chunk
        return answer


@contextmanager
def listening(directory: Path, *options: str, secret: str = "", **settings: str) -> Iterator[Listener]:
    port = free_port()
    log = directory / f"listener-{uuid.uuid4().hex}.log"
    with started(log, *COMMAND, "--port", str(port), *options, **settings) as program:
        until(lambda: "make run\n\n" in program.text(), what=program.text)
        yield Listener(program, port, secret)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    """One listener for all tests that only talk to it."""
    with listening(
        tmp_path_factory.mktemp("listener"), "--secret", CALLBACK_SECRET, secret=CALLBACK_SECRET
    ) as listener:
        yield listener


@pytest.fixture
def listener(shared: Listener) -> Iterator[Listener]:
    """The shared listener with an empty log, which it does not see a traceback in."""
    head = shared.program.text().partition("make run\n\n")[0] + "make run\n\n"
    shared.program.log.write_text(head)
    yield shared
    assert "Traceback" not in shared.program.text()
    assert shared.program.process.poll() is None


def new_id() -> str:
    return str(uuid.uuid4())


def test_a_message_that_is_signed_right_is_shown_and_answered_204(listener: Listener) -> None:
    status = listener.send(body())

    assert status == 204
    assert "payment.succeeded  …aa07f3be  ✓ verified  new  sequence 5" in listener.line()
    assert listener.line()[:8].count(":") == 2
    pretty = json.dumps(EVENTS["payment.succeeded"].message(), ensure_ascii=False, indent=2)
    assert "\n".join(f"  {line}" for line in pretty.splitlines()) in listener.shown()


def test_the_second_of_two_signatures_will_do_as_while_secrets_rotate(listener: Listener) -> None:
    at, message, id_ = datetime.now(UTC), body(), new_id()
    both = " ".join(
        Webhook(secret).sign(id_, at, message.decode()) for secret in (OTHER_SECRET, CALLBACK_SECRET)
    )

    assert listener.send(message, id_=id_, webhook_signature=both) == 204


def test_a_message_that_comes_again_is_called_repeated(listener: Listener) -> None:
    id_ = new_id()

    assert [listener.send(body(), id_=id_) for _ in range(2)] == [204, 204]

    first, second = [line for line in listener.shown().splitlines() if "✓" in line]
    assert "  new  " in first
    assert "  repeated  " in second


def test_a_refused_message_that_comes_again_is_called_repeated_too(listener: Listener) -> None:
    id_ = new_id()

    assert [listener.send(body(), id_=id_, secret=OTHER_SECRET) for _ in range(2)] == [401, 401]

    assert listener.shown().count("  repeated  ") == 1


def test_a_forged_message_does_not_make_the_true_one_a_repetition(listener: Listener) -> None:
    id_ = new_id()

    assert listener.send(body(), id_=id_, secret=OTHER_SECRET) == 401
    assert listener.send(body(), id_=id_) == 204

    assert "✓ verified  new" in listener.shown()


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("No matching signature found", {"secret": OTHER_SECRET}),
        ("Message timestamp too old", {"sent_at": datetime.now(UTC) - timedelta(minutes=6)}),
        ("Message timestamp too new", {"sent_at": datetime.now(UTC) + timedelta(hours=1)}),
        ("Missing required headers", {"webhook_signature": ""}),
        ("Invalid Signature Headers", {"webhook_timestamp": "noon"}),
        ("Malformed webhook-signature", {"webhook_signature": "v1"}),
        ("Malformed webhook-signature", {"webhook_signature": "v1,é"}),
    ],
)
def test_what_is_not_signed_right_is_answered_401_with_the_reason_shown(
    listener: Listener, reason: str, changes: dict[str, Any]
) -> None:
    assert listener.send(body(), id_=new_id(), **changes) == 401

    assert f"✗ {reason}" in listener.line()
    assert '"payment.succeeded"' in listener.shown()


def test_a_body_that_was_altered_on_the_way_is_refused(listener: Listener) -> None:
    at = datetime.now(UTC)
    signature = Webhook(CALLBACK_SECRET).sign(ID, at, body().decode())

    assert listener.send(body("ping"), sent_at=at, webhook_signature=signature) == 401


@pytest.mark.parametrize(
    "garbage",
    [b"", b"no json", b"[1, 2]", b'"text"', b'{"type": 1, "data": []}', b"[" * 50_000, b"\xff\xfe\x00"],
)
def test_garbage_is_shown_as_far_as_it_can_be(listener: Listener, garbage: bytes) -> None:
    status = listener.send(garbage, id_=new_id())

    assert status == (401 if b"\xff" in garbage else 204)
    assert "  ?  " in listener.line()


def test_nothing_that_is_received_steers_the_terminal(listener: Listener) -> None:
    steering = "\x1b]0;title\x07\x9b2J\r\u202e\ud800[bold red]:smile:\n✓ verified"
    message = json.dumps({"type": steering, "data": {"name": steering}})
    raw = json.dumps({"type": "x"}).encode() + b"\x1b[2J\x9b"

    assert listener.send(message.encode()) == 204
    assert listener.send(raw, webhook_id="\x1b[31m") == 401

    shown = listener.shown()
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert r"\x1b]0;title\x07\x9b2J\r\u202e\ud800[bold red]:smile:\n✓ verified  …" in shown
    assert r'"name": "\u001b]0;title\u0007\x9b2J\r\u202e\ud800[bold red]:smile:\n✓ verified"' in shown


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_whatever_is_no_post_is_answered_405(listener: Listener, method: str) -> None:
    answer = requests.request(method, f"http://127.0.0.1:{listener.port}/", timeout=10)

    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"
    assert listener.shown() == ""


def test_a_body_over_64_kib_is_answered_413_and_one_of_64_is_read(listener: Listener) -> None:
    assert listener.send(b" " * (64 * 1024 + 1)) == 413
    assert listener.shown() == ""
    assert listener.send(b" " * (64 * 1024)) == 204


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\n\r\n", b"411"),
        (b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", b"411"),
        (b"POST / HTTP/1.1\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n", b"411"),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
        (b"POST / HTTP/1.1\r\ncontent-length: 10\r\n\r\n{", b""),
        (b"POST / HTTP/1.1\r\ncontent-length: 999999999\r\n\r\n{", b"413"),
        (b"POST / HT", b"400"),
        (b"", b""),
    ],
)
def test_a_broken_sender_is_refused_or_hung_up_on(listener: Listener, sent: bytes, status: bytes) -> None:
    assert status in listener.raw(sent).partition(b"\r\n")[0]

    assert listener.shown() == ""
    assert listener.send(body(), id_=new_id()) == 204


def test_a_sender_that_writes_all_before_it_reads_is_told_too(listener: Listener) -> None:
    # More than the buffers on the way hold.
    answer = listener.raw(b"POST / HTTP/1.1\r\ncontent-length: 1000000\r\n\r\n", b" " * 1_000_000)

    assert answer.startswith(b"HTTP/1.1 413 ")


def test_what_follows_a_refused_request_is_not_taken_for_another(listener: Listener) -> None:
    inner = b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"
    outer = b"PUT / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(inner)

    answer = listener.raw(outer + inner)

    assert answer.startswith(b"HTTP/1.1 405 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert listener.shown() == ""


def test_a_sender_that_resets_the_connection_is_nothing_to_speak_of(listener: Listener) -> None:
    with socket.create_connection(("127.0.0.1", listener.port)) as connection:
        # Closed with nothing to linger for, which is a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.sendall(b"POST / HTTP/1.1\r\ncontent-length: 10\r\n\r\n{")

    assert listener.send(body(), id_=new_id()) == 204
    assert listener.shown().count("✓") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_it_counts_what_came_and_ends_well(tmp_path: Path, number: signal.Signals) -> None:
    with listening(tmp_path, "--secret", CALLBACK_SECRET, secret=CALLBACK_SECRET) as listener:
        for id_ in ("a", "a", "b"):
            listener.send(body(), id_=id_)
        listener.send(body(), secret=OTHER_SECRET)

        listener.program.tell(number)

        assert listener.program.ended(within_s=10) == 0
        assert listener.shown().splitlines()[-1] == "received 4, verified 3, refused 1, repeated 1"


def test_a_fresh_secret_is_shown_in_settings_that_can_be_copied(tmp_path: Path) -> None:
    with listening(tmp_path) as listener:
        (settings,) = [line for line in listener.program.text().splitlines() if "make run" in line]
        url, secret, private = (word.partition("=") for word in settings.removesuffix(" make run").split())

        assert url == ("CALLBACK_URL", "=", f"http://127.0.0.1:{listener.port}/")
        assert private == ("CALLBACK_ALLOW_PRIVATE", "=", "on")
        assert secret[0] == "CALLBACK_SECRET"
        assert listener.send(body(), secret=secret[2]) == 204


def test_a_secret_of_the_environments_is_used_and_not_shown(tmp_path: Path) -> None:
    settings = {"CALLBACK_URL": "https://platform.example/", "CALLBACK_SECRET": CALLBACK_SECRET}
    with listening(tmp_path, secret=CALLBACK_SECRET, **settings) as listener:
        assert listener.send(body()) == 204

        assert 'CALLBACK_SECRET="$CALLBACK_SECRET" ' in listener.program.text()
        assert CALLBACK_SECRET not in listener.program.text()


def test_a_secret_that_is_given_comes_before_the_environments_and_is_not_shown(tmp_path: Path) -> None:
    settings = {"CALLBACK_URL": "https://platform.example/", "CALLBACK_SECRET": CALLBACK_SECRET}
    with listening(tmp_path, "--secret", OTHER_SECRET, secret=OTHER_SECRET, **settings) as listener:
        assert listener.send(body()) == 204

        assert OTHER_SECRET not in listener.program.text()


def test_without_a_terminal_there_is_no_colour(tmp_path: Path) -> None:
    with listening(
        tmp_path, "--secret", CALLBACK_SECRET, FORCE_COLOR="1", secret=CALLBACK_SECRET
    ) as listener:
        listener.send(body())

        assert "\x1b" not in listener.program.text()


def test_a_terminal_is_shown_colours() -> None:
    port = free_port()
    ours, theirs = pty.openpty()
    command = [sys.executable, *COMMAND, "--port", str(port), "--secret", CALLBACK_SECRET]
    with subprocess.Popen(
        command, cwd=PROJECT_DIR, env=environment(TERM="xterm"), stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        read = reader(ours)
        until(lambda: "make run" in read(), what=read)
        listener = Listener(Program(process, Path()), port, CALLBACK_SECRET)
        try:
            assert listener.send(body()) == 204
            until(lambda: "\x1b[32m✓ verified" in read(), what=read)
        finally:
            process.terminate()
        assert process.wait(10) == 0
    os.close(ours)


def reader(descriptor: int) -> Callable[[], str]:
    """Return a function that returns all that a terminal was written up to now."""
    os.set_blocking(descriptor, False)
    found = b""

    def read() -> str:
        nonlocal found
        with suppress(BlockingIOError):
            found += os.read(descriptor, 65_536)
        return found.decode(errors="replace")

    return read


def test_an_output_that_knows_few_letters_is_written_to_all_the_same(tmp_path: Path) -> None:
    with listening(
        tmp_path, "--secret", CALLBACK_SECRET, secret=CALLBACK_SECRET, PYTHONIOENCODING="ascii"
    ) as listener:
        assert listener.send(body()) == 204

        assert "? verified" in listener.shown()


def test_a_port_that_is_taken_is_said_in_a_sentence_and_no_database_is_asked(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])

        done = run(
            *("flask", "callbacks", "listen", "--port", port),
            DATABASE_URL="postgresql://127.0.0.1:1/none",
            INSTANCE_DIR=str(tmp_path),
        )

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"Error: Port {port} of 127.0.0.1 is taken: choose another with --port.\n"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--host", "192.0.2.1"), r"Port \d+ of 192\.0\.2\.1 cannot be listened on: "),
        (("--secret", "swordfish"), "CALLBACK_SECRET: a Standard Webhooks secret is wanted"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(options: tuple[str, str], sentence: str) -> None:
    done = run(*COMMAND, "--port", str(free_port()), *options)

    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert re.match(f"Error: {sentence}", done.stderr)
