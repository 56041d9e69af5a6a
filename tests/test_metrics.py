"""Metrics: what is counted, what stands in the database, and who may read it."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import create_engine, text, update
from sqlalchemy.exc import OperationalError

import metrics_directory
from billing import vitals
from billing.clock import Clock
from models import Callback, CallbackEndpoint, Counter, PaymentJob, WorkerHeartbeat, db
from tests.api import assert_problem
from tests.conftest import settings_for
from tests.crowds import crowd
from tests.deliveries import listening, real_now, write
from tests.metrics import METRICS_TOKEN, Figures, bearer, scrape
from tests.processes import Database, Program, api, until, worker
from tests.receivers import receiver
from tests.world import CALLBACK_SECRET, LedgerGateway, World
from web import exposition
from wsgi import create_app

NOBODY_LISTENS = "postgresql://127.0.0.1:1/vade"

# Who may read --------------------------------------------------------------------------------------------


def application(url: str, directory: Path, **settings: str) -> Flask:
    return create_app(settings_for(url, directory, **({"METRICS_TOKEN": METRICS_TOKEN} | settings)))


@contextmanager
def client_of(app: Flask) -> Iterator[FlaskClient]:
    yield app.test_client()
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def metered(database_url: str, tmp_path: Path) -> Iterator[FlaskClient]:
    with client_of(application(database_url, tmp_path)) as client:
        yield client


def figures(client: FlaskClient) -> Figures:
    answer = client.get("/metrics", headers=bearer())
    assert answer.status_code == 200
    return Figures(answer.text)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {METRICS_TOKEN}",
        f"Bearer {METRICS_TOKEN[:-1]}",
        f"Bearer {METRICS_TOKEN}x",
        f"Bearer {METRICS_TOKEN.upper()}",
        METRICS_TOKEN,
        "Bearer ğ",
    ],
)
def test_without_the_token_the_api_tells_nothing(metered: FlaskClient, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode().decode("latin-1")}

    answer = metered.get("/metrics", headers=headers)

    assert_problem(answer, 401)
    assert "vade_" not in answer.text


def test_with_the_token_it_does(metered: FlaskClient) -> None:
    answer = metered.get("/metrics", headers=bearer())

    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain; version=0.0.4")
    assert Figures(answer.text)("vade_database_up") == 1


def test_where_no_token_is_set_there_are_no_metrics(client: FlaskClient) -> None:
    assert_problem(client.get("/metrics", headers=bearer()), 404)


# Requests --------------------------------------------------------------------------------------------------


def test_requests_are_counted_by_method_route_and_status(metered: FlaskClient) -> None:
    def counts(of: Figures) -> list[float]:
        requests_ = "vade_http_requests_total"
        return [
            of(requests_, method="GET", route="/api/v1/packages/<id>", status="404") or 0,
            of(requests_, method="GET", route="/healthz", status="200") or 0,
            of(requests_, method="GET", route="none", status="404") or 0,
            of(requests_, method="other", route="none", status="405") or 0,
            of(requests_, method="POST", route="/api/v1/login", status="400") or 0,
            of("vade_http_request_duration_seconds_count", method="GET", route="/api/v1/packages/<id>") or 0,
        ]

    before = counts(figures(metered))

    for number in range(3):
        metered.get(f"/api/v1/packages/{number + 1}")
        metered.get(f"/nowhere/{number}")
        metered.open(f"/healthz?number={number}")
    for method in ("INVENTED", "PROPFIND"):
        metered.open("/healthz", method=method)
    metered.post("/api/v1/login", data="{", content_type="application/json")

    after = figures(metered)
    assert [now - then for now, then in zip(counts(after), before, strict=True)] == [3, 3, 3, 2, 1, 3]
    assert after("vade_http_requests_in_progress") == 1, "this one"
    routes = after.labels("vade_http_requests_total", "route")
    assert routes <= {rule.rule for rule in metered.application.url_map.iter_rules()} | {"none"}


def test_an_error_that_leaves_the_application_counts_as_500(
    metered: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    def errors() -> float:
        return figures(metered).total("vade_http_requests_total", method="PUT", status="500")

    before = errors()
    metered.application.config["PROPAGATE_EXCEPTIONS"] = True
    with monkeypatch.context() as patched:
        patched.setattr(metered.application, "full_dispatch_request", fail)
        with pytest.raises(ZeroDivisionError):
            metered.put("/healthz")

    assert errors() == before + 1
    assert figures(metered)("vade_http_requests_in_progress") == 1, "the scrape itself"


# What stands in the database -------------------------------------------------------------------------------


def look(world: World) -> vitals.Vitals:
    world.session.commit()
    found = vitals.look(world.session, world.vade.clock)
    world.session.rollback()
    return found


def test_an_empty_database_has_nothing_to_tell(world: World) -> None:
    found = look(world)

    assert found == vitals.Vitals(
        jobs_due=0,
        jobs_leased=0,
        jobs_lease_expired=0,
        jobs_estimate=found.jobs_estimate,
        oldest_job_age_s=0,
        jobs_parked=0,
        callbacks={"pending": 0, "waiting": 0, "held": 0, "exhausted": 0},
        callbacks_due=0,
        oldest_callback_age_s=0,
        breakers_open={"platform": 0, "company": 0},
        endpoints_disabled={"platform": 0, "company": 0},
        endpoints_disabled_ever=0,
        workers_alive=0,
        heartbeat_age_s=None,
    )


def test_jobs_are_told_by_how_they_stand(world: World) -> None:
    now, real = world.now, real_now(world)
    hour, never = timedelta(hours=1), datetime.max.replace(tzinfo=UTC)
    past = datetime(1970, 1, 1, tzinfo=UTC)
    for due_at, leased_until, key in (
        (now + hour, past, None),  # not due yet
        (now - hour, past, None),
        (now - 2 * hour, real + hour, uuid4()),  # some worker's
        (now - 3 * hour, real - hour, uuid4()),  # a worker died
        (now - 4 * hour, never, uuid4()),  # parked
    ):
        company = world.customer()
        package = world.session.execute(
            text("SELECT id, start_date, end_date FROM company_packages WHERE company_id = :id"),
            {"id": company.id},
        ).one()
        world.session.add(
            PaymentJob(
                company_id=company.id,
                company_package_id=package.id,
                period_start=package.start_date,
                period_end=package.end_date,
                amount_minor=1,
                currency="TRY",
                next_attempt_at=due_at,
                leased_until=leased_until,
                idempotency_key=key,
            )
        )
    world.session.execute(
        text("UPDATE payment_jobs SET leased_until = 'infinity' WHERE leased_until > '9000-01-01'")
    )

    found = look(world)

    assert (found.jobs_due, found.jobs_leased, found.jobs_lease_expired) == (4, 1, 1)
    assert found.oldest_job_age_s == 3 * 3600, "a parked job is not waited for"


def test_a_parked_job_is_told_until_it_is_decided(world: World) -> None:
    world.customer()
    world.session.execute(text(PARKED))

    assert look(world).jobs_parked == 1

    world.session.execute(
        text("UPDATE parked_jobs SET decision = 'dropped', decided_at = now(), decided_by = 'x'")
    )
    assert look(world).jobs_parked == 0


PARKED = """
INSERT INTO parked_jobs (company_id, company_package_id, period_start, period_end, attempt, amount_minor,
    currency, idempotency_key, error, parked_at)
SELECT company_id, id, start_date, end_date, 1, 1, 'TRY', gen_random_uuid(), 'an error', now()
FROM company_packages
"""


def test_callbacks_and_endpoints_are_told_by_how_they_stand(world: World) -> None:
    real = real_now(world)
    with receiver() as endpoint:
        company = world.company(**listening(endpoint))
    write(world, company, 3, recipient="company")
    write(world, company, 5, recipient="platform")
    ids = [row.id for row in world.session.query(Callback).filter_by(recipient="platform")]
    for id_, status in zip(ids, ("waiting", "held", "exhausted", "exhausted"), strict=False):
        world.session.execute(
            update(Callback).where(Callback.id == id_).values(status=status, next_attempt_at=None)
        )
    pending = update(Callback).where(Callback.status == "pending")
    world.session.execute(pending.values(next_attempt_at=real + timedelta(hours=1)))
    first = update(Callback).where(Callback.recipient == "company", Callback.id == _one(world))
    world.session.execute(first.values(next_attempt_at=real - timedelta(hours=1)))
    world.session.add(CallbackEndpoint(company_id=0, url=endpoint.url, open_until=real))
    own = update(CallbackEndpoint).where(CallbackEndpoint.company_id == company.id)
    world.session.execute(own.values(disabled_at=real, disabled_reason="gone"))
    world.session.add(Counter(name="callback_endpoints_disabled", value=7))

    found = look(world)

    assert found.callbacks == {"pending": 4, "waiting": 1, "held": 1, "exhausted": 2}
    assert found.callbacks_due == 1
    assert 3600 <= found.oldest_callback_age_s < 3700
    assert found.breakers_open == {"platform": 1, "company": 0}
    assert found.endpoints_disabled == {"platform": 0, "company": 1}
    assert found.endpoints_disabled_ever == 7


def _one(world: World) -> Any:
    return world.session.query(Callback).filter_by(recipient="company", status="pending").first().id  # type: ignore[union-attr]


def test_workers_are_told_by_their_heartbeats(world: World) -> None:
    real = real_now(world)
    for name, age_s in (("a", 5), ("b", 20), ("c", 4000)):
        at = real - timedelta(seconds=age_s)
        world.session.add(WorkerHeartbeat(worker=name, started_at=at, beat_at=at))

    found = look(world)

    assert found.workers_alive == 2
    assert found.heartbeat_age_s is not None
    assert 5 <= found.heartbeat_age_s < 15


def test_counting_stops_where_it_is_a_lot(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "MOST_COUNTED", 3)
    world.session.execute(text(crowd(5)))
    world.collect(LedgerGateway(), at=datetime(2026, 2, 10, tzinfo=UTC))
    world.session.execute(text("UPDATE callbacks SET status = 'exhausted', next_attempt_at = NULL"))

    assert look(world).callbacks["exhausted"] == 3


def test_a_look_waits_for_no_lock_and_no_slow_query(
    committed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vitals, "LIMIT_MS", 100)
    client = application(committed.vade.settings.database_url or "", committed.vade.settings.instance_dir)

    with db.engine.begin() as held:
        held.execute(text("LOCK TABLE payment_jobs IN ACCESS EXCLUSIVE MODE"))
        with client_of(client) as metered:
            assert figures(metered)("vade_database_up") == 0


def test_two_scrapes_in_a_row_cost_the_database_one_look(metered: FlaskClient, database_url: str) -> None:
    first = figures(metered)
    Database(database_url).do("INSERT INTO worker_heartbeats VALUES ('w', now(), now())")

    second = figures(metered)

    assert (first("vade_workers_alive"), second("vade_workers_alive")) == (0, 0)
    assert first("vade_database_look_seconds") == second("vade_database_look_seconds")


def test_without_the_database_the_rest_is_told(tmp_path: Path) -> None:
    with client_of(application(NOBODY_LISTENS, tmp_path)) as client:
        assert client.get("/api/v1/packages").status_code == 503

        found = figures(client)

    assert found("vade_database_up") == 0
    assert found("vade_http_requests_total", route="/api/v1/packages", status="503")
    assert found("vade_queue_due_jobs") is None, "nothing is made up"


@pytest.mark.slow
def test_a_database_that_says_nothing_is_down(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"postgresql://127.0.0.1:{mute.getsockname()[1]}/vade"
        with client_of(application(url, tmp_path)) as client:
            assert figures(client)("vade_database_up") == 0


def test_who_asks_waits_a_while_for_one_look_and_begins_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "WAIT_S", 0.05)
    looks: list[bool] = []
    answer, over = threading.Event(), threading.Event()

    def connect() -> None:
        looks.append(True)
        answer.wait(30)
        over.set()
        raise OperationalError("SELECT 1", {}, Exception("it does not answer"))

    watch = exposition.Watch(create_engine("postgresql+psycopg://", creator=connect), Clock())
    found = [watch.read()[0] for _ in range(3)]

    assert found == [None] * 3
    assert not over.is_set(), "nobody waited for its end"
    assert len(looks) == 1

    answer.set()
    assert over.wait(30)
    # What it found is known for some seconds; then another look is begun.
    until(lambda: watch._looking is None)
    watch.read()
    assert len(looks) == 1
    monkeypatch.setattr(exposition, "KEPT_S", 0.0)
    watch.read()
    until(lambda: len(looks) == 2)


# gunicorn --------------------------------------------------------------------------------------------------

METERED = {"METRICS_TOKEN": METRICS_TOKEN, "WEB_CONCURRENCY": "2"}


def workers_of(program: Program) -> set[int]:
    return {child.pid for child in psutil.Process(program.process.pid).children()}


def directory_of(program: Program) -> Path:
    """The directory in which the processes of a gunicorn count."""
    files = [Path(file.path) for file in psutil.Process(program.process.pid).open_files()]
    return next(file.parent for file in files if file.parent.name.startswith("vade-metrics-"))


def requested(found: Figures) -> float | None:
    return found("vade_http_requests_total", route="/healthz", status="200")


def ask_until_both_answered(program: Program, address: str) -> int:
    """Ask until two workers have counted; return how often."""
    asked = 0

    def both() -> bool:
        nonlocal asked
        assert requests.get(f"{address}/healthz", timeout=30).status_code == 200
        asked += 1
        return len(list(directory_of(program).glob("counter_*.db"))) >= 2

    until(both, what=program.text)
    return asked


@pytest.mark.slow
def test_the_counts_of_all_workers_add_up_and_outlive_them(database_url: str, tmp_path: Path) -> None:
    with api(database_url, tmp_path, **METERED) as (program, address):
        asked = 1 + ask_until_both_answered(program, address)
        assert requested(scrape(address)) == asked

        begun = workers_of(program)
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as unfinished:
            # A request whose body never comes: a worker is answering it when both are killed.
            unfinished.sendall(
                b"POST /api/v1/register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 10\r\n\r\n"
            )
            until(lambda: scrape(address)("vade_http_requests_in_progress") == 2, what=program.text)
            for pid in begun:
                os.kill(pid, signal.SIGKILL)
            until(lambda: len(workers_of(program) - begun) == 2, what=program.text)

        assert requests.get(f"{address}/healthz", timeout=30).status_code == 200
        found = scrape(address)
        assert requested(found) == asked + 1
        assert found("vade_http_requests_in_progress") == 1, "what the killed were doing is forgotten"
        assert found("vade_database_up") == 1


@pytest.mark.slow
def test_a_gunicorn_leaves_nothing_behind_and_nobody_elses(database_url: str, tmp_path: Path) -> None:
    with api(database_url, tmp_path, **METERED) as (killed, _):
        left = directory_of(killed)
        orphans = [psutil.Process(pid) for pid in workers_of(killed)]
        killed.kill()
    psutil.wait_procs(orphans, timeout=30)
    assert left.is_dir(), "nobody was there to remove it"

    with api(database_url, tmp_path, **METERED) as (first, address):
        assert not left.exists(), "the next one does"
        own = directory_of(first)
        with api(database_url, tmp_path, **METERED) as (second, _):
            assert own.is_dir(), "what is in use stays"
            other = directory_of(second)
            second.tell()
            assert second.ended(within_s=30) == 0
            assert not other.exists()
        assert scrape(address)("vade_http_requests_in_progress") == 1
        first.tell()
        assert first.ended(within_s=30) == 0
        assert not own.exists()


@pytest.mark.slow
def test_a_gunicorn_that_is_asked_for_no_metrics_makes_no_files(database_url: str, tmp_path: Path) -> None:
    foreign = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "no-such-directory")}

    with api(database_url, tmp_path, **foreign) as (_, address):
        assert requests.get(f"{address}/metrics", headers=bearer(), timeout=30).status_code == 404
        assert list(metrics_directory.HOME.glob(f"{metrics_directory.prefix(tmp_path)}*")) == []
    with api(database_url, tmp_path, **METERED):
        assert list(metrics_directory.HOME.glob(f"{metrics_directory.prefix(tmp_path)}*")), (
            "they would be seen"
        )


# The worker ------------------------------------------------------------------------------------------------


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    return number


def add_due(database: Database, number: int) -> None:
    today: date = database.one("SELECT (now() AT TIME ZONE 'Europe/Istanbul')::date")
    database.do(crowd(number, start=today - timedelta(days=20), end=today))


@pytest.mark.slow
def test_a_worker_tells_what_it_does(database_url: str, tmp_path: Path, port: int) -> None:
    database = Database(database_url)
    add_due(database, 3)
    # Yesterday's report was sent, and today's is not due: what is delivered is of the companies.
    database.do(
        "INSERT INTO daily_reports SELECT current_date - 2 + n, now() FROM generate_series(0, 2) AS n"
    )
    address = f"http://127.0.0.1:{port}"

    with receiver() as platform:
        settings = {
            "PAYMENT_GATEWAY": "tests.gateways:AlwaysCharges",
            "CALLBACK_URL": platform.url,
            "CALLBACK_SECRET": CALLBACK_SECRET,
            "CALLBACK_ALLOW_PRIVATE": "on",
            "METRICS_PORT": str(port),
        }
        with worker(database_url, tmp_path, **settings) as program:
            until(program.passes, what=program.text)

            def delivered() -> list[Figures]:
                found = scrape(address, token=None)
                number = found("vade_callback_deliveries_total", outcome="delivered")
                return [found] if number == 6 else []

            (found,) = until(delivered, what=program.text)
            database.do(PARKED)
            until(lambda: scrape(address, token=None)("vade_parked_jobs") == 3, what=program.text)

    assert {
        "charged": found("vade_payment_attempts_total", outcome="charged"),
        "declined": found("vade_payment_attempts_total", outcome="declined"),
        "failed": found("vade_payment_attempts_total", outcome="failed"),
        "queued": found("vade_periods_total", event="queued"),
        "money": found("vade_collected_minor_units_total", currency="TRY"),
        "calls": found("vade_gateway_call_duration_seconds_count", outcome="answered"),
        "timeouts": found("vade_gateway_call_duration_seconds_count", outcome="timeout"),
        "workers": found("vade_workers_alive"),
        "due": found("vade_queue_due_jobs"),
    } == {
        "charged": 3,
        "declined": 0,
        "failed": 0,
        "queued": 3,
        "money": database.one("SELECT sum(amount_minor)::bigint FROM company_payments"),
        "calls": 3,
        "timeouts": 0,
        "workers": 1,
        "due": 0,
    }
    assert (found("vade_passes_total", outcome="done") or 0) >= 1
    assert (found("process_resident_memory_bytes") or 0) > 2**20


@pytest.mark.slow
def test_a_worker_tells_of_a_gateway_that_does_not_answer(
    database_url: str, tmp_path: Path, port: int
) -> None:
    add_due(Database(database_url), 2)
    settings = {
        "PAYMENT_GATEWAY": "tests.gateways:HangingGateway",
        "GATEWAY_TIMEOUT_S": "0.2",
        "GATEWAY_THREADS": "50",
        "METRICS_PORT": str(port),
    }

    with worker(database_url, tmp_path, **settings) as program:
        until(program.passes, what=program.text)
        found = scrape(f"http://127.0.0.1:{port}", token=None)

    assert (found("vade_gateway_call_duration_seconds_count", outcome="timeout") or 0) >= 2
    assert (found("vade_payment_attempts_total", outcome="failed") or 0) >= 2
    assert found("vade_payment_attempts_total", outcome="charged") == 0
    assert found("vade_gateway_call_duration_seconds_bucket", outcome="timeout", le="0.1") == 0


@pytest.mark.slow
def test_a_worker_with_a_token_asks_for_it(database_url: str, tmp_path: Path, port: int) -> None:
    address = f"http://127.0.0.1:{port}"
    with worker(database_url, tmp_path, METRICS_PORT=str(port), METRICS_TOKEN=METRICS_TOKEN) as program:
        until(program.passes, what=program.text)

        answers = {
            "none": requests.get(f"{address}/metrics", timeout=30),
            "wrong": requests.get(f"{address}/metrics", headers=bearer("x" * 32), timeout=30),
            "elsewhere": requests.get(f"{address}/api/v1/packages", headers=bearer(), timeout=30),
            "post": requests.post(f"{address}/metrics", headers=bearer(), timeout=30),
        }
        found = scrape(address)
        program.tell()
        assert program.ended(within_s=15) == 0

    assert {name: answer.status_code for name, answer in answers.items()} == {
        "none": 401,
        "wrong": 401,
        "elsewhere": 404,
        "post": 501,
    }
    assert answers["none"].headers["WWW-Authenticate"] == "Bearer"
    assert "vade_" not in "".join(answer.text for answer in answers.values())
    assert found("vade_database_up") == 1


@pytest.mark.slow
def test_a_worker_whose_metrics_cannot_be_served_collects_all_the_same(
    database_url: str, tmp_path: Path
) -> None:
    database = Database(database_url)
    add_due(database, 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with worker(database_url, tmp_path, METRICS_PORT=port) as program:
            until(lambda: database.one("SELECT count(*) FROM company_payments"), what=program.text)

    (told,) = [line for line in program.records() if line["level"] == "ERROR"]
    assert f"METRICS_PORT {port} cannot be had" in told["message"]


@pytest.mark.slow
def test_a_worker_without_its_database_tells_so(tmp_path: Path, port: int) -> None:
    with worker(NOBODY_LISTENS, tmp_path, METRICS_PORT=str(port)) as program:
        until(program.passes, what=program.text)
        found = scrape(f"http://127.0.0.1:{port}", token=None)

    assert found("vade_database_up") == 0
    assert (found("vade_passes_total", outcome="broken_off") or 0) >= 1
    assert found("vade_passes_total", outcome="done") == 0
