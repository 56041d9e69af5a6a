"""One id from a request or a pass to its log lines and callbacks; and the line that each request leaves."""

import io
import json
import logging
import os
import re
import signal
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
import requests
from flask.testing import FlaskClient

import logs
from billing import delivery_lines, tracing
from billing.charging import ChargePool
from billing.delivery_queue import Claimed
from billing.gateways import ChargeRequest
from billing.senders import Endpoint, Outgoing, Reply
from models import CallbackStatus, db
from tests.api import DescribedClient, registration
from tests.conftest import settings_for
from tests.crowds import crowd
from tests.deliveries import deliver, endpoint_of, listening, messages, write
from tests.processes import JWT_SECRET_KEY, Database, api, until, worker
from tests.receivers import receiver
from tests.world import CALLBACK_SECRET, LedgerGateway, World
from wsgi import create_app

FRESH = re.compile(r"[0-9a-f]{32}")
NOBODY_LISTENS = "postgresql://127.0.0.1:1/vade"

# Ids of requests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id_", ["a", "7d5a1f3e-0c6b-4a55-9a2e-1f0c0e0f4c11", "A.b_c-9", "x" * 64])
def test_the_callers_id_is_answered(client: DescribedClient, id_: str) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": id_}).headers.getlist("X-Request-Id") == [id_]


@pytest.mark.parametrize(
    "id_",
    [
        None,
        "",
        "x" * 65,
        "a b",
        "a\tb",
        "é",
        "a,b",
        '{"a":1}',
        "a@b.example",
        "${jndi}",
        "Bearer x",
        "a/b",
        "a%0d",
    ],
)
def test_an_id_that_is_none_is_replaced(client: DescribedClient, id_: str | None) -> None:
    headers = {} if id_ is None else {"X-Request-Id": id_}

    first, second = (client.get("/healthz", headers=headers).headers["X-Request-Id"] for _ in range(2))

    assert FRESH.fullmatch(first)
    assert FRESH.fullmatch(second)
    assert first != second


def test_every_answer_has_an_id(client: DescribedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("billing.packages.find", lambda *_: 1 // 0)
    answers = [
        client.get("/nowhere"),
        client.post("/healthz"),
        client.get("/api/v1/companies/me"),
        client.post("/api/v1/login", data="{", content_type="application/json"),
        client.post("/api/v1/login", data="x", content_type="text/plain"),
        client.post("/api/v1/login", json={}),
        client.post("/api/v1/login", data=b" " * 70_000, content_type="application/json"),
        client.get("/api/v1/packages/1"),
        client.open("/healthz", method="OPTIONS"),
        client.head("/healthz"),
        client.get("/docs"),
    ]

    assert [answer.status_code for answer in answers] == [
        404, 405, 401, 400, 415, 422, 413, 500, 200, 200, 200,
    ]  # fmt: skip
    assert all(FRESH.fullmatch(answer.headers["X-Request-Id"]) for answer in answers)


def test_a_callback_keeps_the_id_of_the_request_that_caused_it(client: DescribedClient, world: World) -> None:
    answer = client.post("/api/v1/register", json=registration(), headers={"X-Request-Id": "from-the-shop"})
    token = answer.json["token"]
    other = client.patch(
        "/api/v1/companies/me", json={"name": "Nar"}, headers={"Authorization": f"Bearer {token}"}
    )

    kept = {row.type: row.request_id for row in messages(world)}

    assert kept == {
        "company.registered": "from-the-shop",
        "company.updated": other.headers["X-Request-Id"],
    }
    assert tracing.current_id() is None, "over with the request"


def test_the_callbacks_of_a_pass_keep_its_id(world: World) -> None:
    world.customer(registered_at=world.now)

    with tracing.traced("pass-1"):
        world.collect(LedgerGateway(), at=world.now + timedelta(days=40))

    kept = {
        callback.type: callback.request_id
        for callback in messages(world)
        if callback.type in {"payment.succeeded", "company_package.renewed"}
    }
    assert kept == {"payment.succeeded": "pass-1", "company_package.renewed": "pass-1"}


# Log lines -------------------------------------------------------------------------------------------------


class Lines:
    """What is logged, as production writes it."""

    def __init__(self) -> None:
        self._stream = io.StringIO()

    def stream(self) -> io.StringIO:
        return self._stream

    def records(self, message: str | None = None) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [record for record in found if message in {None, record["message"]}]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The log of this process, by production's configuration of the handler."""
    found = Lines()
    configuration = logs.configuration(production())
    configuration["handlers"]["stderr"]["stream"] = found.stream()
    root = logging.getLogger()
    former = root.handlers[:], root.level
    logging.config.dictConfig(configuration)
    yield found
    root.handlers[:], root.level = former[0], former[1]


def production(**settings: str) -> Any:
    return settings_for(
        NOBODY_LISTENS, Path("/nowhere"), VADE_ENV="production", JWT_SECRET_KEY=JWT_SECRET_KEY, **settings
    )


def test_a_line_carries_the_id_of_what_it_is_about(lines: Lines) -> None:
    logger = logging.getLogger("somewhere")

    logger.info("outside")
    with tracing.traced("one"):
        logger.info("inside")
        logger.info("another's", extra={"request_id": "two"})

    assert [(line["message"], line.get("request_id")) for line in lines.records()] == [
        ("outside", None),
        ("inside", "one"),
        ("another's", "two"),
    ]


def test_a_line_of_a_gateways_thread_carries_the_id_of_its_pass(lines: Lines) -> None:
    class Broken:
        def charge(self, _: ChargeRequest) -> Any:
            raise ZeroDivisionError

    pool = ChargePool(Broken(), threads=2, timeout_s=5)
    for id_ in ("pass-1", "pass-2"):
        with tracing.traced(id_):
            pool.charge([ChargeRequest("key", 1, 1, "TRY", "x")])
    pool.close()

    told = lines.records("the gateway raised something unexpected")
    assert [line["request_id"] for line in told] == ["pass-1", "pass-2"]


def test_a_delivery_that_fails_is_told_with_what_caused_it(world: World, lines: Lines) -> None:
    with receiver(500) as endpoint:
        company = world.company(**listening(endpoint))
        with tracing.traced("the-request"):
            write(world, company, recipient="company")
        with tracing.traced("pass-1"):
            deliver(None)

    (told,) = lines.records("a callback failed")
    assert told["request_id"] == "the-request"
    assert told["webhook_id"] == str(messages(world)[0].id)
    assert (told["status_code"], told["company_id"]) == (500, company.id)


def test_many_failures_are_told_in_few_lines(lines: Lines) -> None:
    def attempt(number: int) -> tuple[Outgoing, Reply, CallbackStatus]:
        claimed = Claimed(1, UUID(int=number), 1, "ping", "{}", 0, 0, f"request-{number}")
        return Outgoing(claimed, Endpoint("", ()), 0), Reply(500), CallbackStatus.PENDING

    delivery_lines.log_attempts([attempt(number) for number in range(25)])

    told = [line["request_id"] for line in lines.records("a callback failed")]
    assert told == [f"request-{number}" for number in range(10)]
    (rest,) = lines.records("callbacks failed")
    assert rest["failed"] == 25


def test_a_delivery_that_disables_its_endpoint_is_told_with_what_caused_it(
    world: World, lines: Lines
) -> None:
    with receiver(410) as endpoint:
        company = world.company(**listening(endpoint))
        with tracing.traced("the-request"):
            write(world, company, recipient="company")
        with tracing.traced("pass-1"):
            deliver(None)

    assert endpoint_of(world, company.id).disabled_at is not None
    (told,) = lines.records("a callback endpoint is disabled")
    (message,) = messages(world, recipient="company")
    assert (told["request_id"], told["webhook_id"]) == ("the-request", str(message.id))
    assert told["company_id"] == company.id


def test_a_message_that_is_given_up_is_told_with_what_caused_it(world: World, lines: Lines) -> None:
    with receiver(500) as endpoint:
        company = world.company(**listening(endpoint))
        with tracing.traced("the-request"):
            write(world, company, recipient="company")
        (message,) = messages(world)
        message.schedule_step = 9
        world.session.commit()
        deliver(None)

    (told,) = lines.records("a callback is given up")
    assert (told["request_id"], told["webhook_id"]) == ("the-request", str(message.id))


# The access log --------------------------------------------------------------------------------------------


@pytest.fixture
def in_production(database_url: str, tmp_path: Path) -> Iterator[FlaskClient]:
    settings = {"VADE_ENV": "production", "JWT_SECRET_KEY": JWT_SECRET_KEY}
    app = create_app(settings_for(database_url, tmp_path, **settings))
    yield app.test_client()
    with app.app_context():
        db.engine.dispose()


def test_a_request_in_production_leaves_one_line(in_production: FlaskClient, lines: Lines) -> None:
    answer = in_production.get("/api/v1/packages/12?token=secret", headers={"X-Request-Id": "abc"})
    in_production.get("/no/such/secret")
    in_production.post("/api/v1/login", json={"email": "gul@cicek.example", "password": "secret"})

    assert answer.status_code == 404
    told = lines.records()
    assert {
        "time",
        "level",
        "logger",
        "message",
        "method",
        "route",
        "status",
        "duration_ms",
        "request_id",
    } == set(told[0])
    assert [(t["message"], t["method"], t["route"], t["status"]) for t in told] == [
        ("request", "GET", "/api/v1/packages/<id>", 404),
        ("request", "GET", None, 404),
        ("request", "POST", "/api/v1/login", 401),
    ]
    assert told[0]["request_id"] == "abc"
    assert all(0 <= t["duration_ms"] < 60_000 for t in told)
    assert "secret" not in json.dumps(told)


def test_a_request_in_development_leaves_none(client: DescribedClient, lines: Lines) -> None:
    client.get("/api/v1/packages")

    assert lines.records("request") == []


# Real programs ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_that_a_gunicorn_in_production_says_is_json(database_url: str, tmp_path: Path) -> None:
    with api(database_url, tmp_path) as (program, address):
        headers = {"X-Request-Id": "from-outside"}
        answer = requests.post(f"{address}/api/v1/register", json=registration(), headers=headers, timeout=30)
        (killed, *_) = psutil.Process(program.process.pid).children()
        os.kill(killed.pid, signal.SIGKILL)
        until(lambda: "SIGKILL" in program.text(), what=program.text)

    assert answer.status_code == 201
    told = [record for record in program.records() if record.get("request_id") == "from-outside"]
    assert [(record["route"], record["status"]) for record in told] == [("/api/v1/register", 201)]
    assert any(record["logger"] == "gunicorn.error" for record in program.records())


@pytest.mark.slow
def test_each_pass_of_a_worker_has_an_id_that_its_callbacks_keep(database_url: str, tmp_path: Path) -> None:
    database = Database(database_url)
    today: date = database.one("SELECT (now() AT TIME ZONE 'Europe/Istanbul')::date")
    database.do(crowd(2, start=today - timedelta(days=20), end=today))

    with receiver() as platform:
        settings = {
            "PAYMENT_GATEWAY": "tests.gateways:AlwaysCharges",
            "CALLBACK_URL": platform.url,
            "CALLBACK_SECRET": CALLBACK_SECRET,
            "CALLBACK_ALLOW_PRIVATE": "on",
        }
        with worker(database_url, tmp_path, **settings) as program:
            until(lambda: len(program.passes()) >= 3, what=program.text)

    ids = [line["request_id"] for line in program.passes()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"pass-[0-9a-f]{32}", id_) for id_ in ids)
    (kept,) = {row[0] for row in database.all("SELECT request_id FROM callbacks WHERE company_id > 0")}
    (line,) = [line for line in program.passes() if line["charged"]]
    assert kept == line["request_id"]
