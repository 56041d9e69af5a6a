"""Callbacks: what a change tells, how it is signed and sent, and what becomes of it."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select, text, update
from standardwebhooks import WebhookVerificationError

from billing import senders
from billing.addresses import AddressPolicy
from billing.callback_endpoints import PlatformEndpoint
from billing.deliveries import SCHEDULE_S, Deliverer, DeliveryResult
from billing.documents import instant_text
from billing.keyring import Keyring
from cli import make_deliverer
from config import Settings
from models import Callback, Company, db
from tests.processes import Database, until, worker
from tests.receivers import Received, Receiver, receiver
from tests.world import CALLBACK_SECRET, ENCRYPTION_KEY, LedgerGateway, World, instant

KEYRING = Keyring([ENCRYPTION_KEY])
RENAMED = {"company": {"name": "Former"}}
COMPANY_SECRET = "whsec_" + "Q29tcGFueSBzZWNyZXQgb2YgMzIgYnl0ZXMgb3Igc28="
REGISTRATION = {
    "site_url": "https://lale.example",
    "name": "Ayşe",
    "lastname": "Yılmaz",
    "company_name": "Lale Çiçekçilik",
    "email": "ayse@lale.example",
    "password": "correct horse battery",
}


@pytest.fixture
def platform() -> Iterator[Receiver]:
    with receiver() as endpoint:
        yield endpoint


def deliver(endpoint: Receiver | str | None, **changes: Any) -> DeliveryResult:
    """Make one pass, with the platform's endpoint there or nowhere."""
    url = endpoint.url if isinstance(endpoint, Receiver) else endpoint
    fields: dict[str, Any] = {
        "engine": changes.get("engine") or db.engine,
        "platform": None if url is None else PlatformEndpoint(url, CALLBACK_SECRET),
        "keyring": KEYRING,
        "policy": AddressPolicy(allow_private=True),
    }
    return Deliverer(**(fields | changes)).run_pass()


def only(world: World) -> Callback:
    """Return the only callback, as it stands."""
    return world.session.scalars(select(Callback).execution_options(populate_existing=True)).one()


def real_now(world: World) -> datetime:
    return world.vade.clock.read(world.session).real


def make_due(world: World) -> None:
    """Let pauses be over and breakers be tried again, as if real time had passed."""
    world.session.execute(
        update(Callback).where(Callback.status == "pending").values(next_attempt_at=text("now()"))
    )
    world.session.execute(text("UPDATE callback_endpoints SET open_until = now() WHERE open_until > now()"))
    world.session.commit()


def tell(world: World, **company: Any) -> Company:
    """Write one message to the platform, and one to a company that listens."""
    found = world.company(**company)
    previous = {"company": None}
    world.vade.outbox.write(world.session, "company.registered", found, now=world.now, previous=previous)
    world.session.commit()
    return found


def listening(endpoint: Receiver) -> dict[str, str]:
    return {"callback_url": endpoint.url, "callback_secret": COMPANY_SECRET}


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


def test_no_secret_is_told(client: FlaskClient, world: World, platform: Receiver) -> None:
    client.post("/api/v1/register", json=REGISTRATION)
    company = world.session.scalars(select(Company)).one()
    answer = client.patch(
        "/api/v1/companies/me", json={"callback_url": platform.url}, headers=world.token(company)
    )
    secret = answer.get_json()["callback_secret"]

    deliver(platform)

    bodies = [request.body.decode() for request in platform.received]
    assert len(bodies) == 3
    assert not [body for body in bodies if secret in body or "scrypt" in body or "secret" in body]
    shown = json.loads(bodies[0])["data"]["company"]
    assert list(shown) == [
        "id",
        "site_url",
        "name",
        "lastname",
        "company_name",
        "email",
        "status",
        "callback_url",
        "registered_at",
    ]
    assert "Lale Çiçekçilik" in bodies[0], "letters are letters"


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
    monkeypatch.setattr(senders, "SEND_TIMEOUT_S", 0.2)
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

    assert 0.2 <= result.seconds < 5
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
    company = committed.company()
    for _ in range(150):
        committed.vade.outbox.write(
            committed.session, "company.updated", company, now=committed.now, previous=RENAMED
        )
    committed.session.commit()
    engine = db.engine
    results: list[DeliveryResult] = []
    together = threading.Barrier(2)

    def run() -> None:
        together.wait(10)
        results.append(deliver(platform, engine=engine))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert (
        sum(result.delivered for result in results) == len(set(platform.ids())) == len(platform.ids()) == 150
    )


def test_told_to_stop_it_releases_what_was_not_sent(world: World) -> None:
    stop = threading.Event()

    def answer(_: Received, __: BaseHTTPRequestHandler) -> int:
        stop.set()
        return 200

    with receiver(answer) as endpoint:
        company = world.company()
        for _ in range(100):
            world.vade.outbox.write(
                world.session, "company.updated", company, now=world.now, previous=RENAMED
            )
        world.session.commit()

        result = deliver(endpoint, stop=stop)

        assert 0 < result.delivered == len(endpoint.received) < 100
        stop.clear()
        assert deliver(endpoint).delivered == 100 - result.delivered, "at once, not when a lease is over"
        assert len(set(endpoint.ids())) == 100


def test_a_change_that_is_rolled_back_tells_nobody(world: World, client: FlaskClient) -> None:
    client.post("/api/v1/register", json=REGISTRATION)
    assert world.callbacks() == [("platform", "company.registered")]

    again = client.post("/api/v1/register", json=REGISTRATION | {"email": "AYSE@lale.example"})

    assert again.status_code == 409
    assert world.callbacks() == [("platform", "company.registered")]


def told_since(world: World, seen: set[UUID]) -> list[str]:
    """Return the types of the platform's messages that were not there before."""
    rows = world.session.execute(text("SELECT id, type FROM callbacks WHERE recipient = 'platform'")).all()
    types = sorted(row.type for row in rows if row.id not in seen)
    seen |= {row.id for row in rows}
    return types


def test_every_change_writes_exactly_its_messages(client: FlaskClient, world: World) -> None:
    """DESIGN.md §6, the table, line by line."""
    seen: set[UUID] = set()
    world.travel(instant("2026-01-10"))
    package, free = world.package(), world.package(price_minor=0)
    credentials = {name: REGISTRATION[name] for name in ("email", "password")}

    client.post("/api/v1/register", json=REGISTRATION)
    assert told_since(world, seen) == ["company.registered"]
    company = world.session.scalars(select(Company)).one()
    headers = world.token(company)

    client.post("/api/v1/login", json=credentials)
    assert told_since(world, seen) == ["company.activated"]
    client.post("/api/v1/login", json=credentials)
    assert told_since(world, seen) == []

    client.patch("/api/v1/companies/me", json={"name": "Ayşe Nur"}, headers=headers)
    assert told_since(world, seen) == ["company.updated"]
    client.patch("/api/v1/companies/me", json={"name": "Ayşe Nur"}, headers=headers)
    client.patch("/api/v1/companies/me", json={"name": ""}, headers=headers)
    assert told_since(world, seen) == []

    body = {"company_id": company.id, "package_id": package.id}
    assert client.post("/api/v1/company-packages", json=body, headers=headers).status_code == 201
    assert told_since(world, seen) == ["company_package.assigned"]
    assert client.post("/api/v1/company-packages", json=body, headers=headers).status_code == 409
    assert told_since(world, seen) == []

    world.collect(LedgerGateway(), at=instant("2026-02-10"))
    assert told_since(world, seen) == ["company_package.renewed", "payment.succeeded"]

    for day in ("2026-03-10", "2026-03-11"):
        world.collect(LedgerGateway(default=False), at=instant(day))
        assert told_since(world, seen) == ["payment.declined"]
    world.collect(LedgerGateway(default=False), at=instant("2026-03-12"))
    assert told_since(world, seen) == ["company.passivated", "payment.declined"]

    other = world.company(registered_at=instant("2026-01-10"))
    world.assign(other, free)
    told_since(world, seen)
    world.collect(LedgerGateway(), at=instant("2026-02-10"))
    assert told_since(world, seen) == ["company_package.renewed"], "a period that costs nothing"


def bodies(world: World, type_: str) -> list[dict[str, Any]]:
    rows = world.session.execute(
        text("SELECT body FROM callbacks WHERE type = :type AND recipient = 'platform'"), {"type": type_}
    )
    return [json.loads(row.body) for row in rows]


def test_a_payments_messages_show_what_the_api_shows(client: FlaskClient, world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))
    headers = world.token(company)

    def get(path: str) -> Any:
        return client.get(f"/api/v1/{path}", headers=headers).get_json()

    world.collect(LedgerGateway(), at=instant("2026-02-10"))
    (succeeded,), (renewed,) = bodies(world, "payment.succeeded"), bodies(world, "company_package.renewed")
    (payment,) = get("company-payments")["data"]
    current = get("company-packages/current")
    assert succeeded["data"] == {
        "company": current["company"],
        "payment": payment,
        "sequence": 2,
        "previous": {},
    }
    assert renewed["data"] == {
        "company": current["company"],
        "company_package": current["company_package"],
        "sequence": 3,
        "previous": {"company_package": {"start_date": "2026-01-10", "end_date": "2026-02-10"}},
    }
    assert succeeded["timestamp"] == renewed["timestamp"] == "2026-02-10T06:00:00.000000Z"

    for day in ("2026-03-10", "2026-03-11", "2026-03-12"):
        world.collect(LedgerGateway(default=False), at=instant(day))
    declined = bodies(world, "payment.declined")
    (passivated,) = bodies(world, "company.passivated")
    attempts = {payment["id"]: payment for payment in get("company-payments")["data"]}
    assert [attempts[message["data"]["payment"]["id"]] for message in declined] == [
        message["data"]["payment"] for message in declined
    ]
    assert sorted(message["data"]["company"]["status"] for message in declined) == [0, 1, 1]
    assert passivated["data"] == {
        "company": get("companies/me"),
        "sequence": 7,
        "previous": {"company": {"status": 1}},
    }
    assert passivated["data"]["company"]["status"] == 0


@pytest.mark.slow
def test_a_worker_that_dies_before_it_records_sends_the_same_message_again(
    database_url: str, tmp_path: Path
) -> None:
    database = Database(database_url)
    insert = (
        "INSERT INTO callbacks (company_id, id, recipient, type, body)"
        " VALUES (1, gen_random_uuid(), 'platform', 'company.updated', %s)"
    )
    database.do(insert, '{"type":"company.updated","data":{"name":"Ağaç"}}')
    programs: list[Any] = []

    def kill_first(_: Received, __: BaseHTTPRequestHandler) -> int:
        if len(endpoint.received) == 1:
            programs[0].kill()
        return 200

    with receiver(kill_first) as endpoint:
        settings = {
            "CALLBACK_URL": endpoint.url,
            "CALLBACK_SECRET": CALLBACK_SECRET,
            "CALLBACK_ALLOW_PRIVATE": "on",
        }
        with worker(database_url, tmp_path, **settings) as first:
            programs.append(first)
            until(lambda: first.process.poll() is not None, what=first.text)
        assert database.one("SELECT attempts FROM callbacks") == 0, "nothing was recorded"
        assert database.one("SELECT next_attempt_at > now() FROM callbacks"), "it is leased"
        database.do("UPDATE callbacks SET next_attempt_at = now()")
        with worker(database_url, tmp_path, **settings) as second:
            until(lambda: database.one("SELECT status FROM callbacks") == "delivered", what=second.text)

    one, other = endpoint.received
    assert one.id == other.id
    assert one.body == other.body
    assert one.verified(CALLBACK_SECRET)["data"] == {"name": "Ağaç"}


def test_the_platforms_endpoint_is_the_settings(world: World, platform: Receiver) -> None:
    settings = Settings.from_env(
        {"CALLBACK_URL": platform.url, "CALLBACK_SECRET": CALLBACK_SECRET, "CALLBACK_ALLOW_PRIVATE": "on"}
    )
    tell(world)

    assert make_deliverer(replace(world.vade, settings=settings)).run_pass().delivered == 1
