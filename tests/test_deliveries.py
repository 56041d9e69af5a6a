"""Deliveries: how callbacks are signed and sent, whatever receives them, and what becomes of them."""

import contextlib
import email.utils
import gzip
import itertools
import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import requests
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, event, text, update
from standardwebhooks import Webhook, WebhookVerificationError

from billing import breakers, callback_endpoints, delivery_queue, senders
from billing.addresses import AddressPolicy
from billing.callback_endpoints import MOST_SECRETS, PlatformEndpoint, new_secret
from billing.deliveries import SCHEDULE_S, THREADS
from billing.delivery_queue import SCAN_SIZE
from billing.documents import instant_text
from billing.keyring import Keyring
from cli import make_deliverer
from config import Settings
from models import PLATFORM_ID, CallbackSecret, Company, db
from tests.conftest import settings_for
from tests.deliveries import (
    COMPANY_SECRET,
    KEYRING,
    deliver,
    deliverer,
    end_pauses,
    endpoint_of,
    listening,
    make_due,
    messages,
    move_clock,
    only,
    own_engine,
    real_now,
    seconds_left,
    statuses,
    tell,
    together,
    write,
)
from tests.processes import Database, until, worker
from tests.receivers import Received, Receiver, asks, read_request, receiver, reset, wire
from tests.test_addresses import Certificate
from tests.world import CALLBACK_SECRET, World, instant


@pytest.fixture
def platform() -> Iterator[Receiver]:
    with receiver() as endpoint:
        yield endpoint


def test_a_message_is_signed_and_says_what_happened(world: World, platform: Receiver) -> None:
    company = tell(world)

    result = deliver(platform)

    assert (result.delivered, result.failed, result.exhausted) == (1, 0, 0)
    (request,) = platform.received
    message = request.verified(CALLBACK_SECRET)
    assert (message["type"], message["timestamp"]) == ("company.registered", instant_text(world.now))
    assert message["data"]["company"]["id"] == company.id
    assert request.headers["content-type"] == "application/json"
    assert UUID(request.id) == only(world).id


@pytest.mark.parametrize("secret", [COMPANY_SECRET, "whsec_" + "A" * 32])
def test_another_secret_does_not_verify(world: World, platform: Receiver, secret: str) -> None:
    tell(world)
    deliver(platform)

    with pytest.raises(WebhookVerificationError):
        platform.received[0].verified(secret)


def test_the_body_tells_business_time_and_the_header_real_time(world: World, platform: Receiver) -> None:
    world.travel(instant("2031-05-06"))
    tell(world)
    before = real_now(world)

    deliver(platform)

    (request,) = platform.received
    assert json.loads(request.body)["timestamp"] == "2031-05-06T06:00:00.000000Z"
    sent_at = int(request.headers["webhook-timestamp"])
    assert int(before.timestamp()) <= sent_at <= real_now(world).timestamp()


def test_platform_and_company_get_copies_signed_by_their_own_secrets(
    world: World, platform: Receiver
) -> None:
    with receiver() as own:
        tell(world, **listening(own))

        result = deliver(platform)

        assert result.delivered == 2
        (to_platform,), (to_company,) = platform.received, own.received
        assert to_platform.verified(CALLBACK_SECRET) == to_company.verified(COMPANY_SECRET)
        assert to_platform.id != to_company.id
        with pytest.raises(WebhookVerificationError):
            to_company.verified(CALLBACK_SECRET)


def test_the_secret_shown_on_a_patch_verifies_the_copies(
    client: FlaskClient, world: World, platform: Receiver
) -> None:
    company = world.company()
    headers = world.token(company)
    with receiver() as own:
        answer = client.patch("/api/v1/companies/me", json={"callback_url": own.url}, headers=headers)
        deliver(platform)

        (request,) = own.received
        assert request.verified(answer.get_json()["callback_secret"])["type"] == "company.updated"


def test_a_message_is_sent_to_the_endpoint_that_stands_when_it_is_sent(
    world: World, platform: Receiver
) -> None:
    with receiver() as former, receiver() as present:
        company = tell(world, **listening(former))
        world.listen(company, present.url)

        deliver(platform)

        assert (len(former.received), len(present.received)) == (0, 1)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_a_success(world: World, status: int) -> None:
    with receiver(status) as endpoint:
        tell(world)

        result = deliver(endpoint)
        again = deliver(endpoint)

        assert (result.delivered, again.delivered, len(endpoint.received)) == (1, 0, 1)
        callback = only(world)
        assert (callback.status, callback.attempts, callback.next_attempt_at) == ("delivered", 1, None)
        (attempt,) = world.attempts()
        assert (attempt.status_code, attempt.error, attempt.number) == (status, None, 1)


@pytest.mark.parametrize("status", [300, 304, 400, 401, 404, 429, 500, 503])
def test_any_other_status_is_tried_again(world: World, status: int) -> None:
    with receiver(status) as endpoint:
        tell(world)
        before = real_now(world)

        result = deliver(endpoint)

        assert (result.delivered, result.failed, result.exhausted) == (0, 1, 0)
        callback = only(world)
        assert (callback.status, callback.attempts) == ("pending", 1)
        assert [attempt.status_code for attempt in world.attempts()] == [status]
        assert callback.next_attempt_at is not None
        pause_s = (callback.next_attempt_at - before).total_seconds()
        assert SCHEDULE_S[0] * 0.9 <= pause_s < SCHEDULE_S[0] * 1.1 + 5


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_is_no_success(world: World, status: int) -> None:
    with receiver() as elsewhere:

        def redirect(_: Received, handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("location", elsewhere.url)
            handler.send_header("content-length", "0")
            handler.end_headers()

        with receiver(redirect) as endpoint:
            tell(world)

            result = deliver(endpoint)

            assert (result.failed, len(endpoint.received)) == (1, 1)
            assert elsewhere.connections == 0
            assert [attempt.status_code for attempt in world.attempts()] == [status]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/",
        "http://no-such-host.invalid/",
        "https://127.0.0.1:{port}/",
        "http://[::1",
        "x:",
    ],
)
def test_an_endpoint_that_cannot_be_reached_is_tried_again(world: World, url: str) -> None:
    tell(world)

    result = deliver(url.format(port=free_port()))

    callback = only(world)
    assert (result.failed, callback.status, callback.attempts) == (1, "pending", 1)
    (attempt,) = world.attempts()
    assert attempt.status_code is None
    assert attempt.error


def test_an_endpoint_that_does_not_answer_in_time_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(senders, "READ_TIMEOUT_S", 0.1)
    waiting = threading.Event()

    def hang(_: Received, __: BaseHTTPRequestHandler) -> None:
        waiting.wait(10)

    with receiver(hang) as endpoint:
        tell(world)
        result = deliver(endpoint)
        waiting.set()

    (attempt,) = world.attempts()
    assert (result.failed, attempt.error) == (1, "No answer within 0.1 s.")


@pytest.mark.parametrize(
    ("beginning", "status"),
    [(b"HTTP/1.1 ", "pending"), (b"HTTP/1.1 200 OK\r\nx: ", "delivered")],
    ids=["before it says how it went", "after that"],
)
def test_an_endpoint_that_answers_a_byte_at_a_time_is_cut_off(
    world: World, monkeypatch: pytest.MonkeyPatch, beginning: bytes, status: str
) -> None:
    monkeypatch.setattr(senders, "SEND_TIMEOUT_S", 0.5)
    over = threading.Event()

    def drip(_: Received, handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(beginning)
        while not over.wait(0.02):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    with receiver(drip) as endpoint:
        tell(world)
        result = deliver(endpoint)
        over.set()

    assert 0.5 <= result.seconds < 5
    assert only(world).status == status


def test_an_endpoint_that_shakes_hands_a_byte_at_a_time_is_cut_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(senders, "SEND_TIMEOUT_S", 0.2)
    over = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"\x16\x03\x03\x40\x00")
            while not over.wait(0.02):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=[server])
        thread.start()
        tell(world)
        result = deliver(f"https://127.0.0.1:{server.getsockname()[1]}/")
        over.set()
        thread.join(10)

    assert 0.2 <= result.seconds < 5
    assert only(world).status == "pending"


def test_retries_follow_the_schedule_and_are_the_same_message_each_time(world: World) -> None:
    with receiver(500) as endpoint:
        tell(world)
        pauses_s = []

        for attempt in range(1, len(SCHEDULE_S) + 1):
            before = real_now(world)
            assert deliver(endpoint).failed == 1
            assert deliver(endpoint).failed == 0, "not before its time"
            callback = only(world)
            assert (callback.attempts, callback.status) == (attempt, "pending")
            assert callback.next_attempt_at is not None
            pauses_s.append((callback.next_attempt_at - before).total_seconds())
            make_due(world)
        last = deliver(endpoint)
        make_due(world)
        after_that = deliver(endpoint)

        assert all(0.9 * s <= pause_s < 1.1 * s + 5 for s, pause_s in zip(SCHEDULE_S, pauses_s, strict=True))
        assert pauses_s == sorted(pauses_s)
        assert (last.exhausted, after_that.failed, after_that.exhausted) == (1, 0, 0)
        callback = only(world)
        assert (callback.status, callback.next_attempt_at) == ("exhausted", None)
        assert len(endpoint.received) == len(SCHEDULE_S) + 1 == 10
        assert len(set(endpoint.ids())) == 1
        assert len({request.body for request in endpoint.received}) == 1


def test_a_message_that_fails_and_then_succeeds_is_delivered(world: World) -> None:
    statuses = iter([500, 200])
    with receiver(lambda *_: next(statuses)) as endpoint:
        tell(world)
        deliver(endpoint)
        make_due(world)

        assert deliver(endpoint).delivered == 1
        assert (only(world).status, only(world).attempts) == ("delivered", 2)


def test_a_message_whose_endpoint_was_removed_is_given_up(world: World, platform: Receiver) -> None:
    with receiver() as own:
        company = tell(world, **listening(own))
        world.listen(company, None)

        result = deliver(platform)

        assert (result.delivered, result.exhausted) == (1, 1)
        assert own.connections == 0
    statuses = world.session.execute(text("SELECT recipient, status FROM callbacks ORDER BY 1")).all()
    assert [tuple(row) for row in statuses] == [("company", "exhausted"), ("platform", "delivered")]


def test_messages_for_a_platform_whose_endpoint_is_not_set_wait_for_the_setting(
    world: World, platform: Receiver
) -> None:
    tell(world)

    nowhere = deliver(None)

    assert (nowhere.delivered, nowhere.failed, only(world).attempts) == (0, 0, 0)
    assert deliver(platform).delivered == 1


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433"]
)
def test_a_private_address_is_refused_where_it_would_be_connected_to(
    world: World, platform: Receiver, host: str
) -> None:
    tell(world)

    result = deliver(platform.url.replace("127.0.0.1", host), policy=AddressPolicy())

    assert result.failed == 1
    assert platform.connections == 0, "no packet reached it"


def test_a_name_that_leads_to_a_private_address_is_refused(
    world: World, platform: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that leads to a public address too: which one is taken would be up to luck."""
    port = int(platform.url.rpartition(":")[2].partition("/")[0])

    def resolve(*_: Any, **__: Any) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("8.8.8.8", "127.0.0.1")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    tell(world)

    result = deliver(f"http://rebinding.example:{port}/", policy=AddressPolicy())

    assert result.failed == 1
    assert platform.connections == 0


def test_proxies_of_the_environment_are_not_for_callbacks(
    world: World, platform: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/callbacks"))
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        tell(world)

        assert deliver(platform).delivered == 1
        assert proxy.connections == 0
        assert "authorization" not in platform.received[0].headers


def test_one_message_that_cannot_be_signed_does_not_stop_the_others(
    world: World, platform: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    with receiver() as own:
        tell(world, callback_url=own.url, callback_secret="whsec_")

        result = deliver(platform)

        assert (result.delivered, result.failed, own.connections) == (1, 1, 0)


def test_two_deliverers_send_each_message_once(committed: World, platform: Receiver) -> None:
    write(committed, committed.company(), 150)
    engine = db.engine

    results = together([lambda: deliver(platform, engine=engine)] * 2)

    assert (
        sum(result.delivered for result in results) == len(set(platform.ids())) == len(platform.ids()) == 150
    )


def test_told_to_stop_it_records_what_is_under_way_and_releases_the_rest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, released = threading.Event(), threading.Event()
    put_back = delivery_queue.put_back

    def put_back_and_tell(*args: Any, **kwargs: Any) -> None:
        put_back(*args, **kwargs)
        released.set()

    def answer(_: Received, __: BaseHTTPRequestHandler) -> int:
        if not released.is_set():
            stop.set()
            released.wait(5)
        return 200

    monkeypatch.setattr(delivery_queue, "put_back", put_back_and_tell)
    with receiver(answer) as endpoint:
        write(world, world.company(), 100)

        result = deliver(endpoint, stop=stop)

        assert (result.delivered, len(endpoint.received)) == (1, 1)
        stop.clear()
        assert deliver(endpoint).delivered == 99, "at once, not when a lease is over"
        assert len(set(endpoint.ids())) == 100


# Whatever answers ------------------------------------------------------------------------------------------

BROKEN_OFF = "The connection failed or was closed before an answer."
READ_S, SEND_S = 0.4, 0.6
"""How long is waited for an endpoint that does not answer, or does not come to an end, instead of seconds."""
NO_WORD, TOO_LONG = f"No answer within {READ_S:g} s.", f"No answer within {SEND_S:g} s."
NO_TLS = "TLS failed: the certificate or the handshake is not valid."
BOMB = gzip.compress(bytes(50_000_000))


Behaviour = Callable[[socket.socket, threading.Event], None]


def says(answer: bytes, *, then: Callable[[socket.socket], None] = lambda _: None) -> Behaviour:
    """Read a request and answer these bytes, and then hang up, or reset."""

    def behave(connection: socket.socket, _: threading.Event) -> None:
        read_request(connection)
        connection.sendall(answer)
        then(connection)

    return behave


def hangs(beginning: bytes = b"") -> Behaviour:
    """Read a request, begin an answer, and say nothing more."""

    def behave(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(beginning)
        over.wait(10)

    return behave


def drips(beginning: bytes) -> Behaviour:
    """Read a request, begin an answer, and go on with a byte now and then."""

    def behave(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(beginning)
        while not over.wait(0.02):
            connection.sendall(b"x")

    return behave


def never_ends(beginning: bytes, more: bytes) -> Behaviour:
    """Read a request, begin an answer, and go on as long as anyone listens."""

    def behave(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(beginning)
        while not over.is_set():
            connection.sendall(more)

    return behave


def hangs_up(_: socket.socket, __: threading.Event) -> None:
    """Read nothing and say nothing."""


def ok(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """Return a whole answer."""
    return b"\r\n".join([b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *headers, b"", body])


@dataclass(frozen=True)
class Answer:
    """How an endpoint behaves, and what is made of that: a status code, or else an error.

    Where only a time limit ends it, that one is shortened.
    """

    behave: Behaviour
    status_code: int | None = None
    error: str | None = None
    answer: str | None = None
    read_s: float | None = None
    send_s: float | None = None


def replaced(start: bytes) -> str:
    return start.decode("utf-8", "replace").replace("\0", "\ufffd")


ENDLESS = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    "204": Answer(says(b"HTTP/1.1 204 No Content\r\n\r\n"), 204, answer=""),
    "200 with a body": Answer(says(ok("Teşekkürler".encode())), 200, answer="Teşekkürler"),
    "200 of HTTP/1.0": Answer(says(b"HTTP/1.0 200 OK\r\n\r\nthanks"), 200, answer="thanks"),
    "200 in chunks": Answer(
        says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\ntha\r\n3\r\nnks\r\n0\r\n\r\n"),
        200,
        answer="thanks",
    ),
    "299": Answer(says(ok(b"", status=b"299 Odd")), 299, answer=""),
    "as much as is kept": Answer(says(ok(b"a" * 1024)), 200, answer="a" * 1024),
    "more than is kept": Answer(says(ok(b"a" * 1023 + b"bc")), 200, answer="a" * 1023 + "b"),
    "a letter cut in two": Answer(says(ok(b"a" * 1023 + "ş".encode())), 200, answer="a" * 1023 + "\ufffd"),
    "no UTF-8": Answer(says(ok(b"\xff\xfe ok \xc3")), 200, answer="\ufffd\ufffd ok \ufffd"),
    "NUL": Answer(says(ok(b"a\0b\0")), 200, answer="a\ufffdb\ufffd"),
    "500": Answer(says(ok(b"<h1>Oh</h1>", status=b"500 Oh")), 500, answer="<h1>Oh</h1>"),
    "500 with NUL": Answer(says(ok(b"\0", status=b"500 Oh")), 500, answer="\ufffd"),
    "999": Answer(says(ok(b"", status=b"999 Odd")), 999, answer=""),
    "a status of four digits": Answer(says(ok(b"", status=b"2000 OK")), error=BROKEN_OFF),
    "a redirect to loopback": Answer(
        says(ok(b"", b"location: http://127.0.0.1:1/", status=b"302 Found")), 302, answer=""
    ),
    "a redirect to nowhere": Answer(
        says(ok(b"", b"location: http://[::1", status=b"307 Odd")), 307, answer=""
    ),
    "100, then 200": Answer(says(b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"ok")), 200, answer="ok"),
    "only 100": Answer(says(b"HTTP/1.1 100 Continue\r\n\r\n"), error=BROKEN_OFF),
    "a hang before the answer": Answer(hangs(), error=NO_WORD, read_s=READ_S),
    "a hang after 100": Answer(hangs(b"HTTP/1.1 100 Continue\r\n\r\n"), error=NO_WORD, read_s=READ_S),
    "a hang in the status": Answer(hangs(b"HTTP/1.1 2"), error=NO_WORD, read_s=READ_S),
    "a hang in the headers": Answer(hangs(ENDLESS + b"x: "), error=NO_WORD, read_s=READ_S),
    "a hang in the body": Answer(
        hangs(ENDLESS + b"content-length: 9\r\n\r\nabc"), 200, answer="abc", read_s=READ_S
    ),
    "a drip before the status": Answer(drips(b""), error=TOO_LONG, send_s=SEND_S),
    "a drip in the status": Answer(drips(b"HTTP/1.1 "), error=TOO_LONG, send_s=SEND_S),
    "a drip in the headers": Answer(drips(ENDLESS + b"x: "), 200, answer="", send_s=SEND_S),
    "a drip in the body": Answer(
        drips(ENDLESS + b"content-length: 9999\r\n\r\n"), 200, answer="x…", send_s=SEND_S
    ),
    "a drip in a failure's body": Answer(
        drips(b"HTTP/1.1 500 Oh\r\ncontent-length: 9999\r\n\r\n"), 500, answer="x…", send_s=SEND_S
    ),
    "10 GB": Answer(
        never_ends(ENDLESS + b"content-length: 10000000000\r\n\r\n", b"ab" * 4096), 200, answer="ab" * 512
    ),
    "endless chunks": Answer(
        never_ends(ENDLESS + b"transfer-encoding: chunked\r\n\r\n", b"1000\r\n" + b"a" * 4096 + b"\r\n"),
        200,
        answer="a" * 1024,
    ),
    "an endless line": Answer(never_ends(ENDLESS + b"x: ", b"a" * 4096), error=BROKEN_OFF),
    "endless headers": Answer(never_ends(ENDLESS, b"x: a\r\n" * 99), error=BROKEN_OFF),
    "a gzip bomb": Answer(says(ok(BOMB, b"content-encoding: gzip")), 200, answer=replaced(BOMB[:1024])),
    "no gzip, though it says so": Answer(says(ok(b"plain", b"content-encoding: gzip")), 200, answer="plain"),
    "100 KB of headers in a line": Answer(
        says(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000 + b"\r\n\r\n"), error=BROKEN_OFF
    ),
    "100 KB of headers in a few lines": Answer(
        says(ok(b"ok", *[b"x: " + b"a" * 10_000] * 10)), 200, answer="ok"
    ),
    "100 KB of headers in many lines": Answer(
        says(ok(b"ok", *[b"x: " + b"a" * 500] * 200)), error=BROKEN_OFF
    ),
    "a length that is none": Answer(says(ENDLESS + b"content-length: many\r\n\r\nok"), 200, answer="ok"),
    "a negative length": Answer(says(ENDLESS + b"content-length: -1\r\n\r\nok"), 200, answer="ok"),
    "chunks that are none": Answer(
        says(ENDLESS + b"transfer-encoding: chunked\r\n\r\nmany\r\n"), 200, answer=""
    ),
    "no HTTP": Answer(says(b"SSH-2.0-OpenSSH_9.6\r\n"), error=BROKEN_OFF),
    "HTTP of another kind": Answer(says(b"RTSP/1.0 200 OK\r\n\r\n"), error=BROKEN_OFF),
    "nonsense": Answer(says(b"\0\xff\r\n\r\n"), error=BROKEN_OFF),
    "hung up on": Answer(hangs_up, error=BROKEN_OFF),
    "hung up on once it was read": Answer(says(b""), error=BROKEN_OFF),
    "hung up in the status": Answer(says(b"HTTP/1.1 2"), error=BROKEN_OFF),
    "a reset before the status": Answer(says(b"", then=reset), error=BROKEN_OFF),
    "a reset in the headers": Answer(says(ENDLESS + b"x: ", then=reset), error=BROKEN_OFF),
    "a reset in the body": Answer(
        says(ENDLESS + b"content-length: 9\r\n\r\nxxx", then=reset), 200, answer="x…"
    ),
}
"""A status that was read says all that Vade wants to know, also where the rest of the answer breaks off."""


@pytest.mark.parametrize("name", ANSWERS)
def test_whatever_answers_the_outcome_is_decided(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = ANSWERS[name]
    monkeypatch.setattr(senders, "READ_TIMEOUT_S", expected.read_s or senders.READ_TIMEOUT_S)
    monkeypatch.setattr(senders, "SEND_TIMEOUT_S", expected.send_s or senders.SEND_TIMEOUT_S)
    succeeds = expected.status_code is not None and 200 <= expected.status_code < 300
    with wire(expected.behave) as endpoint:
        tell(world)

        result = deliver(endpoint)

        assert endpoint.connections == 1
    callback, state, (attempt,) = only(world), endpoint_of(world), world.attempts()
    assert (result.delivered, result.failed, result.exhausted) == (succeeds, not succeeds, 0)
    assert (callback.status, callback.attempts) == ("delivered" if succeeds else "pending", 1)
    assert (callback.next_attempt_at is None) == succeeds
    assert (attempt.number, attempt.status_code, attempt.error) == (1, expected.status_code, expected.error)
    if expected.answer == "x…":
        assert attempt.answer is not None
        assert set(attempt.answer) <= {"x"}, "what had come by then, as far as it could be read"
    else:
        assert attempt.answer == expected.answer
    at_least_s = expected.read_s or expected.send_s or 0.0
    assert at_least_s <= attempt.duration_ms / 1000 < at_least_s + 3
    assert (state.failures, state.failing_since is None) == (not succeeds, succeeds)
    assert (state.open_until, state.disabled_at) == (None, None)


@pytest.mark.parametrize("status", [b"102 Processing", b"103 Early Hints\r\nlink: </a>; rel=preload"])
def test_an_answer_that_is_not_the_last_word_is_waited_out(world: World, status: bytes) -> None:
    """RFC 9110 §15.2: a client must be able to read one or more 1xx before the final answer."""
    with wire(says(b"HTTP/1.1 " + status + b"\r\n\r\n" + ok(b"ok"))) as endpoint:
        tell(world)

        assert deliver(endpoint).delivered == 1


def test_an_endpoint_that_accepts_no_connection_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(senders, "CONNECT_TIMEOUT_S", 0.2)
    tell(world)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # what the kernel takes in for a server that accepts nothing
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())

        result = deliver(f"http://127.0.0.1:{server.getsockname()[1]}/")

    (attempt,) = world.attempts()
    assert (result.failed, attempt.status_code, attempt.error) == (1, None, "No connection within 0.2 s.")


@pytest.mark.parametrize("name", ["10 GB", "endless chunks"])
def test_of_an_endless_answer_little_is_read_and_its_connection_is_not_kept(world: World, name: str) -> None:
    cut_off = threading.Event()
    sent = 0

    def behave(connection: socket.socket, over: threading.Event) -> None:
        nonlocal sent
        more = b"1000\r\n" + b"a" * 4096 + b"\r\n"
        read_request(connection)
        length = b"content-length: 10000000000" if name == "10 GB" else b"transfer-encoding: chunked"
        connection.sendall(ENDLESS + length + b"\r\n\r\n")
        try:
            while not over.is_set():
                connection.sendall(more)
                sent += len(more)
        except OSError:
            cut_off.set()

    with wire(behave) as endpoint:
        write(world, world.company(), 3)

        result = deliver(endpoint)

        assert (result.delivered, endpoint.connections) == (3, 3)
        assert cut_off.wait(5), "while the endpoint would go on"
        # What the kernel holds for both sides: megabytes at the most, of an answer that has no end.
        assert sent < 100_000_000
    assert result.seconds < 3
    assert {len(attempt.answer or "") for attempt in world.attempts()} == {senders.ANSWER_BYTES}


def test_a_connection_is_kept_where_the_answer_was_short(world: World) -> None:
    with receiver() as endpoint:
        write(world, world.company(), 10)

        assert deliver(endpoint, per_endpoint=1).delivered == 10

        assert endpoint.connections == 1


@pytest.mark.parametrize("of_our_own", [True, False], ids=["self-signed", "no TLS at all"])
def test_a_server_that_cannot_prove_its_name_is_sent_nothing(
    world: World, tmp_path: Path, of_our_own: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Certificate.made_for("localhost", tmp_path).path)
    read = threading.Event()

    def behave(connection: socket.socket, _: threading.Event) -> None:
        if connection.recv(1) and of_our_own:
            read.set()
        connection.sendall(ok(b"ok"))

    with wire(behave, tls=context if of_our_own else None) as endpoint:
        tell(world)

        result = deliver(endpoint.url.replace("http://", "https://").replace("127.0.0.1", "localhost"))

    (attempt,) = world.attempts()
    assert (result.failed, only(world).status) == (1, "pending")
    assert (attempt.status_code, attempt.error, attempt.answer) == (None, NO_TLS, None)
    assert not read.is_set(), "not a byte of the message"


# Endpoints that ask for time, or for nothing more -----------------------------------------------------------


DAY_S = 86_400


def date_in(seconds: float) -> str:
    return email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("status", "retry_after", "pause_s"),
    [
        pytest.param(429, "600", 600, id="429"),
        pytest.param(503, "600", 600, id="503"),
        pytest.param(429, " 600 ", 600, id="with spaces"),
        pytest.param(429, "6", 6, id="short"),
        pytest.param(429, "in 600 s", 600, id="a date"),
        pytest.param(503, "in 7200 s", 7200, id="a date with 503"),
        pytest.param(429, "43200", DAY_S // 2, id="half a day"),
        pytest.param(429, "86401", DAY_S, id="more than a day"),
        pytest.param(429, "9" * 30, DAY_S, id="huge"),
        pytest.param(429, "in 90000 s", DAY_S, id="a far date"),
        pytest.param(429, "Fri, 31 Dec 9999 23:59:59 GMT", DAY_S, id="the last date"),
    ],
)
def test_an_endpoint_that_asks_for_time_is_given_it_up_to_a_day(
    world: World, status: int, retry_after: str, pause_s: float
) -> None:
    if retry_after.startswith("in "):
        retry_after = date_in(float(retry_after.split()[1]))
    with receiver(asks(status, retry_after)) as endpoint:
        tell(world)

        result = deliver(endpoint)

        state, callback = endpoint_of(world), only(world)
        assert (result.failed, state.failures, callback.attempts) == (1, 1, 1)
        assert pause_s - 5 < seconds_left(world, state.open_until) <= pause_s + 5
        assert pause_s - 5 < seconds_left(world, callback.next_attempt_at) <= pause_s + 5
        assert callback.next_attempt_at is not None
        write(world, world.company())
        assert deliver(endpoint).failed == 0
        assert len(endpoint.received) == 1


@pytest.mark.parametrize(
    ("status", "retry_after"),
    [
        (500, "600"),
        (502, "600"),
        (301, "600"),
        (404, "600"),
        (429, "-600"),
        (429, "-1"),
        (429, "0"),
        (503, "0"),
        (429, ""),
        (429, "soon"),
        (429, "1e9"),
        (429, "600.5"),
        (429, "0x258"),
        (429, "600, 700"),
        (429, "٦٠٠"),
        (429, "9" * 5000),
        (429, "Fri, 31 Feb 2026 25:61:61 GMT"),
        (429, "Fri, 31 Dec 99999 23:59:59 GMT"),
        (429, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (429, "Fri, 31 Dec 1999 23:59:59 GMT"),
        (503, "nan"),
        (503, "inf"),
    ],
)
def test_what_asks_for_no_time_is_tried_again_as_ever(world: World, status: int, retry_after: str) -> None:
    def answer(_: Received, handler: BaseHTTPRequestHandler) -> None:
        head = f"HTTP/1.1 {status} Oh\r\nretry-after: {retry_after}\r\ncontent-length: 0\r\n\r\n"
        handler.wfile.write(head.encode())

    with receiver(answer) as endpoint:
        company = world.company(**listening(endpoint))
        write(world, company, recipient="company")

        assert deliver(None).failed == 1

        state, callback, (attempt,) = endpoint_of(world, company.id), only(world), world.attempts()
        assert (attempt.status_code, attempt.error) == (status, None)
        assert state.open_until is None or seconds_left(world, state.open_until) <= 0
        assert 0 < seconds_left(world, callback.next_attempt_at) <= SCHEDULE_S[0] * 1.1


@settings(deadline=None, max_examples=150)
@given(
    st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=40)
    | st.from_regex(r"[A-Z][a-z]{2}, -?\d{1,9} [A-Z][a-z]{2} -?\d{1,12} \d{1,9}:\d{1,9}(:\d+)? .{0,9}")
    | st.integers().map(str)
)
def test_whatever_stands_for_a_time_is_a_time_or_none(retry_after: str) -> None:
    response = requests.Response()
    response.status_code = 429
    response.headers["retry-after"] = retry_after

    seconds = senders._retry_after_s(response)

    assert seconds is None or seconds >= 0


@pytest.mark.parametrize("whose", ["platform", "company"])
def test_while_an_endpoint_is_given_time_its_other_messages_wait_and_use_no_attempts(
    world: World, whose: str
) -> None:
    rested = threading.Event()

    def answer(request: Received, handler: BaseHTTPRequestHandler) -> int | None:
        return 204 if rested.is_set() else asks(429, "600")(request, handler)

    with receiver(answer) as endpoint:
        company = world.company(**listening(endpoint))
        write(world, company, 100, recipient=whose)
        target = endpoint if whose == "platform" else None

        first = deliver(target)

        sent = len(endpoint.received)
        assert (first.failed, first.delivered) == (sent, 0)
        assert sent < 100, "what was under way, at the most what was claimed"
        others = [callback for callback in messages(world) if callback.attempts == 0]
        assert len(others) == 100 - sent
        assert {callback.status for callback in others} == {"pending" if whose == "platform" else "waiting"}
        state = endpoint_of(world, PLATFORM_ID if whose == "platform" else company.id)
        assert 595 < seconds_left(world, state.open_until) <= 600
        deliver(target)
        assert len(endpoint.received) == sent

        rested.set()
        end_pauses(world)
        last = deliver(target)

        assert (last.delivered, last.failed, len(endpoint.received)) == (100 - sent, 0, 100)
        assert statuses(world) == {"delivered": 100 - sent, "pending": sent}, "which have times of their own"
        state = endpoint_of(world, PLATFORM_ID if whose == "platform" else company.id)
        assert (state.failures, state.open_until) == (0, None)


def test_an_endpoint_that_is_gone_is_disabled_at_once(
    world: World, platform: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    with receiver(410) as own:
        company = tell(world, **listening(own))
        before = real_now(world)

        result = deliver(platform)

        assert (result.failed, result.delivered, len(own.received)) == (1, 2, 1)
    callback = only(world, recipient="company")
    assert (callback.status, callback.attempts, callback.next_attempt_at) == ("held", 1, None)
    state = endpoint_of(world, company.id)
    assert (state.disabled_reason, state.url) == ("gone", own.url)
    assert state.disabled_at is not None
    assert state.failing_since is not None
    assert before <= state.disabled_at <= real_now(world)
    registered, message = (request.verified(CALLBACK_SECRET) for request in platform.received)
    assert (registered["type"], message["type"]) == ("company.registered", "callback_endpoint.disabled")
    assert message["data"] == {
        "callback_endpoint": {
            "company_id": company.id,
            "url": own.url,
            "reason": "gone",
            "failing_since": instant_text(state.failing_since),
            "disabled_at": instant_text(state.disabled_at),
        }
    }, "in the same pass"
    assert counted(world) == 1
    (record,) = [entry for entry in caplog.records if entry.message == "a callback endpoint is disabled"]
    assert record.levelno == logging.ERROR
    told = {name: record.__dict__[name] for name in ("company_id", "reason")}
    assert told == {"company_id": company.id, "reason": "gone"}
    assert record.__dict__["callback_endpoints_disabled_total"] == 1


@pytest.mark.parametrize("whose", ["platform", "company"])
def test_what_is_for_an_endpoint_that_is_gone_is_held(world: World, whose: str) -> None:
    with receiver(410) as endpoint:
        company = world.company(**listening(endpoint))
        write(world, company, 100, recipient=whose)
        target = endpoint if whose == "platform" else None

        deliver(target)
        sent = len(endpoint.received)
        write(world, company, 2, recipient=whose)
        make_due(world)
        last = deliver(target)

        assert len(endpoint.received) == sent < 100, "what was under way, at the most what was claimed"
    assert (last.delivered, last.failed, last.exhausted) == (0, 0, 0)
    assert statuses(world, type="company.updated") == {"held": 102}
    assert sum(callback.attempts for callback in messages(world)) == sent
    assert counted(world) == 1


@pytest.mark.parametrize("answer", [410, asks(429, "600"), asks(503, "600")], ids=["410", "429", "503"])
def test_an_endpoint_that_wants_nothing_for_now_is_sent_nothing_more(
    world: World, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    """However long it takes to record that."""
    second = threading.Event()
    note = breakers.note

    def note_late(*args: Any, **kwargs: Any) -> Any:
        second.wait(0.3)
        return note(*args, **kwargs)

    def receive(request: Received, handler: BaseHTTPRequestHandler) -> int | None:
        if len(endpoint.received) > 1:
            second.set()
        status: int | None = answer(request, handler) if callable(answer) else answer
        return status

    monkeypatch.setattr(breakers, "note", note_late)
    with receiver(receive) as endpoint:
        write(world, world.company(**listening(endpoint)), 5, recipient="company")

        deliver(None)

        assert len(endpoint.received) == 1


def counted(world: World) -> int | None:
    """Return how many endpoints were ever disabled."""
    count: int | None = world.session.execute(
        text("SELECT value FROM counters WHERE name = 'callback_endpoints_disabled'")
    ).scalar_one_or_none()
    return count


def test_a_platform_that_is_gone_is_told_once_it_recovers(world: World) -> None:
    with receiver(410) as endpoint:
        tell(world)
        deliver(endpoint)
        make_due(world)
        deliver(endpoint)

        assert len(endpoint.received) == 1
    told = only(world, type="callback_endpoint.disabled")
    assert (told.status, told.attempts) == ("held", 0)
    assert json.loads(told.body)["data"]["callback_endpoint"]["company_id"] is None
    assert endpoint_of(world).disabled_reason == "gone"
    assert counted(world) == 1


def test_without_a_platform_a_company_that_is_gone_is_counted_and_nobody_is_told(world: World) -> None:
    with receiver(410) as own:
        for _ in range(2):
            write(world, world.company(**listening(own)), recipient="company")

        deliver(None)

    assert statuses(world) == {"held": 2}
    assert messages(world, type="callback_endpoint.disabled") == []
    assert counted(world) == 2


# Signatures -------------------------------------------------------------------------------------------------


def signatures(request: Received) -> list[str]:
    return request.headers["webhook-signature"].split(" ")


def signature_by(secret: str, request: Received) -> str:
    """Return what a secret makes of a request, by the library of Standard Webhooks."""
    at = instant("1970-01-01", hour=3) + timedelta(seconds=int(request.headers["webhook-timestamp"]))
    signed: str = Webhook(secret).sign(request.id, at, request.body.decode())
    return signed


def expire_former_secrets(world: World) -> None:
    now = text("now()")
    world.session.execute(
        update(CallbackSecret).where(CallbackSecret.expires_at.is_not(None)).values(expires_at=now)
    )
    world.session.commit()


def rotate(world: World, company_id: int = PLATFORM_ID) -> str:
    secret, _ = callback_endpoints.rotate_secret(
        world.session, company_id, KEYRING, now=real_now(world), overlap=timedelta(days=1)
    )
    world.session.commit()
    return secret


def test_each_attempt_tells_its_own_time_and_the_messages_id(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiver(500) as endpoint:
        tell(world)
        for _ in range(3):
            assert deliver(endpoint).failed == 1
            make_due(world)
            move_clock(monkeypatch, timedelta(seconds=60))

    stamps = [int(request.headers["webhook-timestamp"]) for request in endpoint.received]
    assert stamps == [int(attempt.attempted_at.timestamp()) for attempt in world.attempts()]
    assert [0 <= later - earlier - 60 < 5 for earlier, later in itertools.pairwise(stamps)] == [True, True]
    assert {request.id for request in endpoint.received} == {str(only(world).id)}
    assert len({request.headers["webhook-signature"] for request in endpoint.received}) == 3
    for request in endpoint.received:
        assert signatures(request) == [signature_by(CALLBACK_SECRET, request)]


def test_in_a_pass_that_takes_long_each_attempt_tells_its_own_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_: Received, __: BaseHTTPRequestHandler) -> int:
        if len(endpoint.received) == 1:
            move_clock(monkeypatch, timedelta(seconds=60))
        return 204

    with receiver(answer) as endpoint:
        write(world, world.company(), 60)

        assert deliver(endpoint).delivered == 60

    stamps = [int(request.headers["webhook-timestamp"]) for request in endpoint.received]
    assert 60 <= max(stamps) - stamps[0] < 90


@pytest.mark.parametrize("whose", ["platform", "company"])
def test_during_a_rotation_both_secrets_sign_the_newest_first(world: World, whose: str) -> None:
    with receiver() as endpoint:
        company = world.company(**listening(endpoint))
        target, id_ = (endpoint, PLATFORM_ID) if whose == "platform" else (None, company.id)
        deliver(target)
        former = CALLBACK_SECRET if whose == "platform" else COMPANY_SECRET
        new = rotate(world, id_)

        write(world, company, recipient=whose)
        deliver(target)
        expire_former_secrets(world)
        write(world, company, recipient=whose)
        deliver(target)

    during, after = endpoint.received
    assert signatures(during) == [signature_by(new, during), signature_by(former, during)]
    assert during.verified(new) == during.verified(former)
    assert signatures(after) == [signature_by(new, after)]
    with pytest.raises(WebhookVerificationError):
        after.verified(former)


def test_no_more_secrets_sign_than_a_receiver_takes_however_often_the_setting_changes(world: World) -> None:
    secrets = [new_secret() for _ in range(MOST_SECRETS + 2)]
    with receiver() as endpoint:
        for secret in secrets:
            deliver(None, platform=PlatformEndpoint(endpoint.url, secret))
        tell(world)

        deliver(None, platform=PlatformEndpoint(endpoint.url, secrets[-1]))

    (request,) = endpoint.received
    newest_first = list(reversed(secrets))[:MOST_SECRETS]
    assert signatures(request) == [signature_by(secret, request) for secret in newest_first]


def test_another_secret_in_the_settings_rotates_with_an_overlap(world: World) -> None:
    new = new_secret()
    company = world.company()
    with receiver() as endpoint:
        changed = PlatformEndpoint(endpoint.url, new)
        for platform in (PlatformEndpoint(endpoint.url, CALLBACK_SECRET), changed, changed):
            write(world, company)
            assert deliver(None, platform=platform).delivered == 1
        state = callback_endpoints.former_secret_expires_at(world.session, PLATFORM_ID, now=real_now(world))
        assert 86_390 < seconds_left(world, state) <= 86_400
        expire_former_secrets(world)
        write(world, company)
        deliver(None, platform=changed)

    before, during, still, after = endpoint.received
    assert signatures(before) == [signature_by(CALLBACK_SECRET, before)]
    for request in (during, still):
        assert signatures(request) == [signature_by(new, request), signature_by(CALLBACK_SECRET, request)]
    assert signatures(after) == [signature_by(new, after)]


def test_a_secret_of_the_settings_that_was_rotated_away_does_not_come_back(world: World) -> None:
    company = world.company()
    with receiver() as endpoint:
        deliver(endpoint)
        new = rotate(world)
        expire_former_secrets(world)
        for _ in range(2):
            write(world, company)
            deliver(endpoint)

    for request in endpoint.received:
        assert signatures(request) == [signature_by(new, request)]
    assert len(endpoint.received) == 2


OTHER_KEYRING = Keyring(["another key that is long enough too: 32 bytes"])
UNREADABLE = "The endpoint's secret cannot be decrypted."


def test_a_secret_that_cannot_be_read_is_a_failed_attempt_and_stops_no_one_else(
    world: World, platform: Receiver
) -> None:
    with receiver() as own:
        company = tell(world, **listening(own))

        result = deliver(platform, keyring=OTHER_KEYRING)

        assert (result.delivered, result.failed, own.connections) == (1, 1, 0)
        platform.received[0].verified(CALLBACK_SECRET)
        failed = only(world, recipient="company")
        assert (failed.status, failed.attempts) == ("pending", 1)
        (attempt,) = [attempt for attempt in world.attempts() if attempt.callback_id == failed.id]
        assert (attempt.status_code, attempt.error, attempt.answer) == (None, UNREADABLE, None)
        assert endpoint_of(world, company.id).failures == 1
        make_due(world)

        assert deliver(platform).delivered == 1, "once the key is back"
        own.received[0].verified(COMPANY_SECRET)


def test_a_platform_whose_secret_cannot_be_read_takes_the_settings(world: World, platform: Receiver) -> None:
    deliver(platform)
    tell(world)

    assert deliver(platform, keyring=OTHER_KEYRING).delivered == 1

    (request,) = platform.received
    assert signatures(request) == [signature_by(CALLBACK_SECRET, request)]


def test_one_secret_of_two_that_can_be_read_signs_alone(world: World) -> None:
    with receiver() as own:
        company = tell(world, **listening(own))
        new = new_secret()
        rotate(world, company.id)
        world.session.execute(
            update(CallbackSecret)
            .where(CallbackSecret.company_id == company.id, CallbackSecret.expires_at.is_(None))
            .values(encrypted=OTHER_KEYRING.encrypt(new))
        )
        world.session.commit()

        assert deliver(None).delivered == 1

    (request,) = own.received
    assert signatures(request) == [signature_by(COMPANY_SECRET, request)]


def test_another_url_in_the_settings_begins_in_good_standing(world: World, platform: Receiver) -> None:
    with receiver(410) as former:
        write(world, world.company(), 3)
        deliver(former)
        make_due(world)
        deliver(former)
    world.session.execute(
        text("UPDATE callback_endpoints SET open_until = now() + interval '1 hour', failures = 9")
    )
    world.session.commit()
    write(world, world.company(), 4)

    result = deliver(platform)

    state = endpoint_of(world)
    assert (state.url, state.failures, state.failing_since, state.open_until) == (platform.url, 0, None, None)
    assert (state.disabled_at, state.disabled_reason) == (None, None)
    assert result.delivered == len(platform.received) == 4
    assert statuses(world)["held"] == 3 + 1, "until they are recovered"


def test_the_same_url_in_the_settings_changes_nothing(world: World, platform: Receiver) -> None:
    deliver(platform)
    world.session.execute(
        text(
            "UPDATE callback_endpoints SET failures = 9, failing_since = now(),"
            " open_until = now() + interval '1 hour'"
        )
    )
    world.session.commit()
    tell(world)

    deliver(platform)

    assert platform.received == []
    assert endpoint_of(world).failures == 9


# Endpoints do not wait for each other -----------------------------------------------------------------------


@dataclass
class Crowded:
    """An endpoint's answers, and how many of them were under way at once."""

    seconds: float = 0.0
    now: int = 0
    most: int = 0
    guard: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, _: Received, __: BaseHTTPRequestHandler) -> int:
        with self.guard:
            self.now += 1
            self.most = max(self.most, self.now)
        if self.seconds:
            threading.Event().wait(self.seconds)
        with self.guard:
            self.now -= 1
        return 204


class Hanging:
    """Endpoints that hang until they are let go, and what they had received by then."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.let_go = threading.Event()
        stack.callback(self.let_go.set)
        self.endpoint = stack.enter_context(receiver(self._hang))

    def _hang(self, _: Received, __: BaseHTTPRequestHandler) -> int:
        self.let_go.wait(30)
        return 204


def due_first(world: World, *companies: Company) -> None:
    """Let the messages of some companies stand before all others."""
    world.session.execute(
        text(
            "UPDATE callbacks SET next_attempt_at = next_attempt_at - interval '1 hour'"
            " WHERE company_id = ANY (:ids)"
        ),
        {"ids": [company.id for company in companies]},
    )
    world.session.commit()


@pytest.mark.parametrize("rolling", [True, False], ids=["rolling", "plain"])
@pytest.mark.parametrize("quick", ["company", "platform"])
def test_an_endpoint_that_hangs_delays_no_other(world: World, quick: str, rolling: bool) -> None:
    with contextlib.ExitStack() as stack:
        hanging = Hanging(stack)
        slow = world.company(callback_url=hanging.endpoint.url, callback_secret=COMPANY_SECRET)
        seen: list[int] = []

        def answer(_: Received, __: BaseHTTPRequestHandler) -> int:
            if len(endpoint.received) == 100:
                seen.append(len(hanging.endpoint.received))
                hanging.let_go.set()
            return 204

        endpoint = stack.enter_context(receiver(answer))
        other = world.company(**listening(endpoint))
        write(world, slow, 100, recipient="company")
        write(world, other, 100, recipient=quick)
        due_first(world, slow)

        result = deliverer(endpoint if quick == "platform" else None).run_pass(rolling=rolling)

        assert seen == [1], "all of them while the first one for the slow endpoint was under way"
        assert (result.delivered, result.failed) == (200, 0)
        assert len(set(endpoint.ids())) == len(set(hanging.endpoint.ids())) == 100


def test_no_endpoint_is_sent_more_at_once_than_is_allowed(world: World) -> None:
    answers = [Crowded(seconds=0.02) for _ in range(3)]
    with contextlib.ExitStack() as stack:
        endpoints = [stack.enter_context(receiver(answer)) for answer in answers]
        for endpoint in endpoints[1:]:
            write(world, world.company(**listening(endpoint)), 60)

        result = deliver(endpoints[0], per_endpoint=4)

        assert result.delivered == 240
        assert [answer.most for answer in answers] == [4, 4, 4]


def test_an_unproven_endpoint_is_sent_one_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("billing.lanes.SOON_S", 0.0)
    answer = Crowded(seconds=0.002)
    with receiver(answer) as endpoint:
        write(world, world.company(**listening(endpoint)), 20, recipient="company")

        assert deliver(None).delivered == 20
        assert answer.most == 1


def test_many_endpoints_that_hang_leave_threads_for_a_proven_one(world: World) -> None:
    with contextlib.ExitStack() as stack:
        hanging = Hanging(stack)
        seen: list[int] = []

        def answer(_: Received, __: BaseHTTPRequestHandler) -> int:
            if len(endpoint.received) == 51:
                seen.append(len(hanging.endpoint.received))
                hanging.let_go.set()
            return 204

        endpoint = stack.enter_context(receiver(answer))
        proven = world.company(**listening(endpoint))
        write(world, proven, recipient="company")
        sends = deliverer(None)
        assert sends.run_pass().delivered == 1
        slow = [
            world.company(callback_url=hanging.endpoint.url, callback_secret=COMPANY_SECRET)
            for _ in range(40)
        ]
        for company in slow:
            write(world, company, 12, recipient="company")
        write(world, proven, 50, recipient="company")
        due_first(world, *slow)
        # Where they are not delivered meanwhile, the test is not to take until everything timed out.
        patience = threading.Timer(2.0, hanging.let_go.set)
        patience.start()
        stack.callback(patience.cancel)

        result = sends.run_pass()

        assert seen
        assert seen[0] <= THREADS * 3 // 4, "of the slow ones, those that were under way"
        assert result.delivered == 40 * 12 + 50


def test_more_messages_than_an_endpoint_has_room_for_are_all_delivered_in_one_pass(world: World) -> None:
    with receiver() as own:
        company = world.company(**listening(own))
        write(world, company, 300, recipient="company")

        result = deliver(None)

        assert (result.delivered, result.failed) == (300, 0)
        assert len(own.received) == len(set(own.ids())) == 300
    assert statuses(world) == {"delivered": 300}
    assert not endpoint_of(world, company.id).has_waiting
    assert len(world.attempts()) == 300


def test_a_slow_endpoints_surplus_is_delivered_in_the_same_pass(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays unproven: it has room for few, and the rest waits until there is room again."""
    monkeypatch.setattr("billing.lanes.SOON_S", 0.0)
    with receiver() as own:
        write(world, world.company(**listening(own)), 60, recipient="company")

        assert deliver(None).delivered == len(set(own.ids())) == len(own.received) == 60


def test_three_deliverers_send_each_message_once(committed: World, platform: Receiver) -> None:
    with contextlib.ExitStack() as stack:
        endpoints = [stack.enter_context(receiver()) for _ in range(6)]
        for endpoint in endpoints:
            write(committed, committed.company(**listening(endpoint)), 50)
        vade = committed.vade
        engines = [stack.enter_context(own_engine(vade.settings)) for _ in range(3)]
        results = together([partial(deliver, platform, engine=engine) for engine in engines])

        assert sum(result.delivered for result in results) == 600
        assert sum(result.failed + result.exhausted for result in results) == 0
        for endpoint, number in ((platform, 300), *((endpoint, 50) for endpoint in endpoints)):
            assert len(endpoint.received) == len(set(endpoint.ids())) == number
    assert statuses(committed) == {"delivered": 600}
    assert {callback.attempts for callback in messages(committed)} == {1}
    assert len(committed.attempts()) == 600


# The queue goes by its indexes ------------------------------------------------------------------------------

DEAD, ROWS = 20, 20_000
CROWD = f"""
INSERT INTO callback_endpoints (company_id, url, failures, failing_since, open_until, has_waiting)
SELECT n, 'http://127.0.0.1:1/', 9, now() - interval '1 day', now() + interval '1 hour', true
FROM generate_series(1, {DEAD}) n;
INSERT INTO callbacks (company_id, id, recipient, type, body, status, next_attempt_at, created_at)
SELECT 1 + n %% {DEAD}, gen_random_uuid(), 'company', 'company.updated', '{{}}', 'waiting', NULL,
    now() - n * interval '1 second'
FROM generate_series(1, {ROWS}) n;
INSERT INTO callbacks (company_id, id, recipient, type, body, status, next_attempt_at)
SELECT 1 + n %% {DEAD}, gen_random_uuid(), 'platform', 'company.updated', '{{}}', 'delivered', NULL
FROM generate_series(1, {ROWS}) n;
INSERT INTO callbacks (company_id, id, recipient, type, body, next_attempt_at)
SELECT 1 + n %% {DEAD}, gen_random_uuid(), r, 'company.updated', '{{}}', now() + interval '2 hours'
FROM generate_series(1, 2000) n, unnest(ARRAY['platform', 'company']) r;
"""
DUE = """
INSERT INTO callback_endpoints (company_id, url, has_waiting)
SELECT n, %(url)s, true FROM generate_series(100, 104) n;
INSERT INTO callback_secrets (company_id, encrypted, created_at)
SELECT n, %(secret)s, now() FROM generate_series(100, 104) n;
INSERT INTO callbacks (company_id, id, recipient, type, body, status, next_attempt_at)
SELECT 100 + n %% 5, gen_random_uuid(), r, 'company.updated', '{}',
    CASE WHEN r = 'company' AND n %% 2 = 0 THEN 'waiting' ELSE 'pending' END,
    CASE WHEN r = 'platform' OR n %% 2 = 1 THEN now() END
FROM generate_series(1, 100) n, unnest(ARRAY['platform', 'company']) r;
"""


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give every node of a plan."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


@contextlib.contextmanager
def explained(engine: Engine) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Note how each statement about callbacks is really executed, as it comes."""
    plans: list[tuple[str, dict[str, Any]]] = []

    def explain(connection: Connection, _: Any, statement: str, parameters: Any, __: Any, ___: bool) -> None:
        if "callbacks" not in statement:
            return
        raw = connection.connection.cursor()
        raw.execute("SAVEPOINT before")
        raw.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        ((found,),) = raw.fetchall()
        raw.execute("ROLLBACK TO SAVEPOINT before")
        plans.append((statement, found[0]["Plan"]))

    event.listen(engine, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        event.remove(engine, "before_cursor_execute", explain)


@pytest.mark.slow
@pytest.mark.parametrize("analyzed", [True, False], ids=["statistics", "no statistics"])
def test_no_number_of_messages_for_dead_endpoints_slows_the_live_ones(
    database_url: str, tmp_path: Path, analyzed: bool
) -> None:
    """Each statement of a pass, as PostgreSQL carries it out: by index, and no more rows than it claims."""
    database = Database(database_url)
    database.do("ALTER TABLE callbacks SET (autovacuum_enabled = off)")
    database.do(CROWD)
    with receiver() as endpoint, own_engine(settings_for(database_url, tmp_path)) as engine:
        url, secret = endpoint.url, KEYRING.encrypt(COMPANY_SECRET)
        with psycopg.connect(database_url, autocommit=True) as connection:
            for statement in DUE.strip().split(";\n"):
                connection.execute(statement.encode(), {"url": url, "secret": secret})
        if analyzed:
            database.do("ANALYZE")
        with explained(engine) as plans:
            result = deliver(endpoint, engine=engine)

        assert (result.delivered, result.failed) == (200, 0)
        assert len(endpoint.received) == 200
    assert database.all(
        "SELECT status, count(*) FROM callbacks WHERE company_id < 100 GROUP BY 1 ORDER BY 1"
    ) == [("delivered", ROWS), ("pending", 4000), ("waiting", ROWS)]
    claims = [plan for plan in plans if "SKIP LOCKED" in plan[0]]
    assert {index_of(plan) for _, plan in claims} == {"callbacks_due_idx", "callbacks_waiting_idx"}
    for statement, plan in plans:
        for node in nodes(plan):
            told = f"{node}\n{statement}"
            if node.get("Relation Name") == "callbacks" and node["Node Type"] != "ModifyTable":
                assert node["Node Type"] in {"Index Scan", "Index Only Scan"}, told
                assert node.get("Rows Removed by Filter", 0) <= SCAN_SIZE, told
            rows = node["Actual Rows"] * node["Actual Loops"]
            assert rows <= SCAN_SIZE, told


def index_of(plan: dict[str, Any]) -> str:
    """Return the index by which what is claimed is found."""
    (name,) = {
        node["Index Name"]
        for node in nodes(plan)
        if node.get("Index Name", "").startswith("callbacks_") and node["Index Name"] != "callbacks_pkey"
    }
    return str(name)


# Workers that end in the midst of it ------------------------------------------------------------------------


def platform_settings(endpoint: Receiver, **settings: str) -> dict[str, str]:
    return {
        "CALLBACK_URL": endpoint.url,
        "CALLBACK_SECRET": CALLBACK_SECRET,
        "CALLBACK_ALLOW_PRIVATE": "on",
    } | settings


INSERT = """
INSERT INTO callbacks (company_id, id, recipient, type, body)
SELECT 1, gen_random_uuid(), 'platform', 'company.updated',
    '{"type":"company.updated","data":{"name":"Ağaç"}}'
FROM generate_series(1, %s)
"""


@pytest.mark.slow
def test_a_worker_that_dies_before_it_records_sends_the_same_message_again(
    database_url: str, tmp_path: Path
) -> None:
    database = Database(database_url)
    database.do(INSERT, 1)
    programs: list[Any] = []

    def kill_first(_: Received, __: BaseHTTPRequestHandler) -> int:
        if len(endpoint.received) == 1:
            programs[0].kill()
        return 200

    with receiver(kill_first) as endpoint:
        with worker(database_url, tmp_path, **platform_settings(endpoint)) as first:
            programs.append(first)
            until(lambda: first.process.poll() is not None, what=first.text)
        assert database.one("SELECT attempts FROM callbacks") == 0, "nothing was recorded"
        assert database.one("SELECT next_attempt_at > now() FROM callbacks"), "it is leased"
        database.do("UPDATE callbacks SET next_attempt_at = now()")
        with worker(database_url, tmp_path, **platform_settings(endpoint)) as second:
            until(lambda: database.one("SELECT status FROM callbacks") == "delivered", what=second.text)

    one, other = endpoint.received
    assert one.id == other.id
    assert one.body == other.body
    assert one.verified(CALLBACK_SECRET)["data"] == {"name": "Ağaç"}


@pytest.mark.slow
def test_a_worker_told_to_stop_records_what_is_under_way_and_releases_the_rest_at_once(
    database_url: str, tmp_path: Path
) -> None:
    """The endpoint answers late, after the worker was told; what was queued behind that is free at once."""
    database = Database(database_url)
    database.do(INSERT, 10)
    came, told = threading.Event(), threading.Event()

    def answer_late(_: Received, __: BaseHTTPRequestHandler) -> int:
        came.set()
        told.wait(10)
        return 200

    with receiver(answer_late) as endpoint:
        with worker(database_url, tmp_path, **platform_settings(endpoint)) as first:
            assert came.wait(30), first.text()
            assert database.one("SELECT count(*) FROM callbacks WHERE next_attempt_at > now()") == 10, (
                "leased"
            )
            first.tell()
            free = "SELECT count(*) FROM callbacks WHERE status = 'pending' AND next_attempt_at <= now()"
            until(lambda: database.one(free) == 9, within_s=5, what=first.text)
            assert first.process.poll() is None, "one is still under way"
            told.set()
            assert first.ended(within_s=10) == 0
            assert "cut off" not in first.text()

        assert len(endpoint.received) == 1
        assert database.all("SELECT number, status_code, error FROM callback_attempts") == [(1, 200, None)]
        assert database.all("SELECT status, count(*) FROM callbacks GROUP BY 1 ORDER BY 1") == [
            ("delivered", 1),
            ("pending", 9),
        ]
        with worker(database_url, tmp_path, **platform_settings(endpoint)) as second:
            waiting = "SELECT count(*) FROM callbacks WHERE status <> 'delivered'"
            until(lambda: database.one(waiting) == 0, within_s=20, what=second.text)
        assert len(endpoint.received) == len(set(endpoint.ids())) == 10


def test_the_platforms_endpoint_is_the_settings(world: World, platform: Receiver) -> None:
    settings = Settings.from_env(platform_settings(platform))
    tell(world)

    assert make_deliverer(replace(world.vade, settings=settings)).run_pass().delivered == 1
