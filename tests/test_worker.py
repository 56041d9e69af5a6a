"""The worker as a process: what it logs, how it ends, and what it survives."""

import ast
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient

import postgres_server
from config import PROJECT_DIR
from models import db
from tests.conftest import settings_for
from tests.crowds import crowd
from tests.gateways import Ledger
from tests.processes import Database, run, until, worker
from tests.world import CALLBACK_SECRET
from wsgi import create_app

pytestmark = pytest.mark.slow

ALWAYS = "tests.gateways:AlwaysCharges"
SLOW = "tests.gateways:SlowGateway"
HANGING = "tests.gateways:HangingGateway"


@pytest.fixture
def database(database_url: str) -> Database:
    return Database(database_url)


@pytest.fixture
def api(database_url: str, tmp_path: Path) -> Iterator[FlaskClient]:
    """The API beside the worker, on the same database."""
    app = create_app(settings_for(database_url, tmp_path))
    yield app.test_client()
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def add_due(database: Database, number: int) -> None:
    """Add companies of which one period has ended: today, by the database's clock."""
    today: date = database.one("SELECT (now() AT TIME ZONE 'Europe/Istanbul')::date")
    database.do(crowd(number, start=today - timedelta(days=20), end=today))


def slow(tmp_path: Path, delay_s: float, **settings: str) -> dict[str, str]:
    return {
        "PAYMENT_GATEWAY": SLOW,
        "LEDGER_DIR": str(tmp_path / "ledger"),
        "GATEWAY_DELAY_S": str(delay_s),
        "GATEWAY_THREADS": "4",
    } | settings


def payments(database: Database) -> int:
    return int(database.one("SELECT count(*) FROM company_payments"))


def beats(database: Database) -> int:
    return int(database.one("SELECT count(*) FROM worker_heartbeats"))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://platform.example/", "An https URL is wanted."),
        ("https://10.0.0.1/", "This address is not public."),
        ("https://platform.example/", None),
    ],
)
def test_an_endpoint_of_the_settings_that_nothing_can_be_sent_to_is_told_at_start(
    database_url: str, tmp_path: Path, url: str, told: str | None
) -> None:
    settings = {"CALLBACK_URL": url, "CALLBACK_SECRET": CALLBACK_SECRET}

    with worker(database_url, tmp_path, **settings) as program:
        until(program.passes, what=program.text)
        program.tell()
        assert program.ended(within_s=10) == 0

    expected = [] if told is None else [f"nothing can be sent to CALLBACK_URL: {told}"]
    assert [
        record["message"] for record in program.records() if "CALLBACK_URL" in record["message"]
    ] == expected


def test_a_pass_logs_one_line_with_its_figures(database: Database, database_url: str, tmp_path: Path) -> None:
    add_due(database, 3)

    with worker(database_url, tmp_path, PAYMENT_GATEWAY=ALWAYS) as program:
        until(lambda: len(program.passes()) >= 3, what=program.text)
        program.tell()
        assert program.ended(within_s=10) == 0

    first, *others = program.passes()
    figures = {"queued": 3, "charged": 3, "declined": 0, "passive": 0, "failed": 0, "oldest_job_age_s": None}
    assert {name: first[name] for name in figures} == figures
    assert 0 < first["seconds"] < 10
    assert {(line["queued"], line["charged"]) for line in others} == {(0, 0)}, "idle passes too"
    assert payments(database) == 3
    written = datetime.fromisoformat(first["time"])
    assert written.utcoffset() == timedelta(0)
    assert abs(written - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.slow
def test_the_line_tells_the_age_of_the_oldest_job(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    add_due(database, 2)

    with worker(
        database_url, tmp_path, PAYMENT_GATEWAY=HANGING, GATEWAY_TIMEOUT_S="0.2", GATEWAY_THREADS="50"
    ) as program:
        (line, *_) = until(program.passes, what=program.text)

    midnight = database.one("SELECT min(next_attempt_at) FROM payment_jobs")
    age_s = (database.one("SELECT clock_timestamp()") - midnight).total_seconds()
    assert (line["queued"], line["failed"], line["charged"]) == (2, 2, 0)
    assert age_s - 60 < line["oldest_job_age_s"] < age_s


@pytest.mark.slow
def test_a_development_worker_logs_plain_lines_and_idle_passes_once_a_minute(
    database_url: str, tmp_path: Path
) -> None:
    with worker(database_url, tmp_path, VADE_ENV="development", WORKER_POLL_S="0.05") as program:
        until(lambda: "worker: pass queued=0 charged=0" in program.text(), what=program.text)
        until(lambda: Database(database_url).one("SELECT count(*) FROM worker_heartbeats"))
        program.tell()
        assert program.ended(within_s=10) == 0

    assert program.text().count("worker: pass") == 1


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param([signal.SIGTERM], id="SIGTERM", marks=pytest.mark.slow),
        pytest.param(
            [signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT], id="Ctrl-C again and again"
        ),
    ],
)
def test_told_to_stop_it_settles_what_was_answered_and_releases_the_rest(
    database: Database, database_url: str, tmp_path: Path, ledger: Ledger, signals: list[int]
) -> None:
    add_due(database, 40)

    with worker(database_url, tmp_path, **slow(tmp_path, 0.4)) as program:
        until(lambda: len(ledger.keys()) >= 4, what=program.text)
        for number in signals:
            program.tell(number)
            time.sleep(0.05)  # apart, as a terminal and supervisord send them
        told_s = time.monotonic()
        status = program.ended(within_s=10)

    assert status == 0
    assert time.monotonic() - told_s < 5, "what is under way takes less than a second"
    entries = {entry.idempotency_key for entry in ledger.entries()}
    assert 4 <= len(entries) < 40, "it was in the middle"
    settled = database.all("SELECT id::text FROM company_payments WHERE status = 1")
    assert {key for (key,) in settled} == entries, "what was answered is settled"
    (left, keyed, free) = database.all(
        "SELECT count(*), count(idempotency_key), count(*) FILTER (WHERE leased_until <= clock_timestamp())"
        " FROM payment_jobs"
    )[0]
    assert left == keyed == free == 40 - len(entries), "the rest is released with its keys"
    assert beats(database) == 0, "it said farewell"
    assert program.passes()[-1]["charged"] == len(entries)
    assert program.passes()[-1]["failed"] == 0


def test_it_hears_a_signal_that_another_thread_takes(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    """Linux gives a process's signal to whichever thread it likes."""
    add_due(database, 1)

    with worker(database_url, tmp_path, PAYMENT_GATEWAY="tests.gateways:StoppingGateway") as program:
        assert program.ended(within_s=10) == 0

    assert payments(database) == 1


@pytest.mark.slow
def test_what_a_stopped_worker_left_the_next_one_takes_up_with_its_keys(
    database: Database, database_url: str, tmp_path: Path, ledger: Ledger
) -> None:
    add_due(database, 12)
    with worker(database_url, tmp_path, **slow(tmp_path, 0.3)) as first:
        until(lambda: len(ledger.keys()) >= 2, what=first.text)
        first.tell()
        first.ended(within_s=10)
    left = {key for (key,) in database.all("SELECT idempotency_key::text FROM payment_jobs")}

    with worker(database_url, tmp_path, **slow(tmp_path, 0)) as second:
        until(lambda: payments(database) == 12, what=second.text)

    paid = {key for (key,) in database.all("SELECT id::text FROM company_payments")}
    assert left < paid == ledger.keys()


@pytest.mark.slow
def test_told_to_stop_it_waits_for_a_call_that_hangs_no_longer_than_it_may(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    add_due(database, 3)

    with worker(database_url, tmp_path, PAYMENT_GATEWAY=HANGING, GATEWAY_TIMEOUT_S="60") as program:
        until(lambda: program.text().count("called") == 3, what=program.text)
        program.tell()
        assert program.ended(within_s=10) == 0

    jobs = database.all("SELECT outages, leased_until < now() + interval '5s' FROM payment_jobs")
    assert jobs == [(1, True)] * 3, "they rest as after any outage"
    assert beats(database) == 0


@pytest.mark.slow
def test_told_to_stop_it_ends_in_time_though_the_database_hangs(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    with (
        worker(database_url, tmp_path, PAYMENT_GATEWAY=ALWAYS) as program,
        psycopg.connect(database_url) as holder,
    ):
        until(lambda: beats(database), what=program.text)
        holder.execute("LOCK TABLE payment_jobs IN ACCESS EXCLUSIVE MODE")
        until(
            lambda: database.one(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ),
            what=program.text,
        )
        program.tell()
        status = program.ended(within_s=10)

    assert status == 1, "not as it should"
    assert "cut off" in program.text()


@pytest.mark.slow
def test_a_gateway_that_hangs_beyond_the_bound_ends_the_process(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    add_due(database, 20)

    with worker(
        database_url, tmp_path, PAYMENT_GATEWAY=HANGING, GATEWAY_TIMEOUT_S="0.2", GATEWAY_THREADS="2"
    ) as program:
        assert program.ended(within_s=20) == 3

    assert any(record["level"] == "CRITICAL" for record in program.records())
    (jobs, keys, asked) = database.all(
        "SELECT count(*), count(idempotency_key), sum(outages) FROM payment_jobs"
    )[0]
    assert (jobs, keys) == (20, 20), "nothing is lost"
    assert 2 < asked <= 6, "it did not wait for each of them"
    assert beats(database) == 0
    assert program.passes()[-1]["failed"] >= 1, "the pass is told as far as it came"


def test_its_heartbeat_is_seen_by_readyz_until_it_leaves(
    api: FlaskClient, database_url: str, tmp_path: Path
) -> None:
    def told() -> dict[str, Any]:
        worker: dict[str, Any] = api.get("/readyz").get_json()["worker"]
        return worker

    assert told()["status"] == "unseen"
    with worker(database_url, tmp_path) as program:
        until(lambda: told()["status"] == "beating", what=program.text)
        assert told()["age_s"] < 10
        program.tell()
        program.ended(within_s=10)
    assert told()["status"] == "unseen"


OLD_CALLBACKS = """
INSERT INTO callbacks (company_id, id, recipient, type, body, status, next_attempt_at, created_at)
SELECT 7, gen_random_uuid(), CASE WHEN mod(n, 2) = 0 THEN 'platform' ELSE 'company' END, 'company.updated',
    age, status, CASE WHEN status = 'pending' THEN 'infinity'::timestamptz END, now() - age::interval
FROM unnest(ARRAY['pending', 'waiting', 'held', 'delivered', 'exhausted']) AS status,
    (VALUES ('49 hours', 800), ('47 hours', 2)) AS ages(age, number), generate_series(1, number) AS n
"""
ATTEMPTS = """
INSERT INTO callback_attempts (company_id, callback_id, number, attempted_at, status_code, duration_ms)
SELECT company_id, id, 1, now(), 500, 7 FROM callbacks
"""
COUNTED = """
CREATE TABLE removals (transaction xid8, number bigint);
CREATE FUNCTION count_removals() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO removals SELECT pg_current_xact_id(), count(*) FROM gone; RETURN NULL; END $$;
CREATE TRIGGER count_removals AFTER DELETE ON callbacks REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION count_removals()
"""


def test_it_removes_old_callbacks_that_are_done_with_a_few_at_a_time(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    database.do(OLD_CALLBACKS)
    database.do(ATTEMPTS)
    database.do(COUNTED)
    old = "SELECT count(*) FROM callbacks WHERE body = '49 hours'"

    with worker(database_url, tmp_path, CALLBACK_RETENTION_DAYS="2") as program:
        until(lambda: "old callbacks removed" in program.text(), what=program.text)
        program.tell()
        assert program.ended(within_s=10) == 0

    (line,) = (record for record in program.records() if record["message"] == "old callbacks removed")
    assert line["removed"] == 2400
    assert database.one(old) == 1600, "what is still to be sent stays"
    kept = "SELECT body, status, count(*) FROM callbacks GROUP BY 1, 2 ORDER BY 1, 2"
    young = ["delivered", "exhausted", "held", "pending", "waiting"]
    assert database.all(kept) == [
        *(("47 hours", status, 2) for status in young),
        *(("49 hours", status, 800) for status in ("pending", "waiting")),
    ]
    assert database.one("SELECT count(*) FROM callback_attempts") == 1610, "attempts go with their messages"
    removals = database.all("SELECT sum(number)::int FROM removals GROUP BY transaction ORDER BY 1")
    assert [number for (number,) in removals if number] == [400, 1000, 1000]


def charged_so_far(ledger: Ledger, number: int) -> bool:
    return len(ledger.keys()) >= number


def cut_connections(database: Database) -> None:
    database.do(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


@pytest.mark.slow
def test_it_survives_its_connections_being_cut(
    database: Database, database_url: str, tmp_path: Path, ledger: Ledger
) -> None:
    add_due(database, 24)

    with worker(database_url, tmp_path, **slow(tmp_path, 0.1, LEASE_S="1")) as program:
        for number in (3, 10, 17):
            until(partial(charged_so_far, ledger, number), what=program.text)
            cut_connections(database)
        until(lambda: payments(database) == 24, what=program.text)
        add_due(database, 1)
        cut_connections(database)
        until(lambda: payments(database) == 25, what=program.text)
        program.tell()
        assert program.ended(within_s=10) == 0

    assert len(ledger.keys()) == 25, "nobody was charged twice"


@contextmanager
def server(home: Path, log: Path) -> Iterator[str]:
    """Run a PostgreSQL of the test's own, and give its URL; it is stopped, for all who use it, at the end."""
    options = postgres_server.prepare(home)
    with log.open("ab") as file:
        command = postgres_server.as_owner(home, "postgres", "-D", str(home / "postgres"), *options)
        process = subprocess.Popen(command, cwd="/", stdout=file, stderr=file)
    try:
        url = until(lambda: postgres_server.address(home), within_s=60, what=log.read_text)
        assert url is not None
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


@pytest.mark.slow
def test_it_survives_the_database_server_going_away_and_coming_back(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    home, log = tmp_path_factory.mktemp("server"), tmp_path / "server.log"
    with server(home, log) as url:
        assert run("flask", "db", "upgrade", DATABASE_URL=url).returncode == 0
        add_due(Database(url), 1)

    with worker(url, tmp_path, PAYMENT_GATEWAY=ALWAYS) as program:
        until(lambda: "does not answer yet" in program.text(), what=program.text)
        with server(home, log):
            until(lambda: payments(Database(url)) == 1, what=program.text)
        until(lambda: "the pass was broken off" in program.text(), what=program.text)
        with server(home, log):
            add_due(Database(url), 1)
            until(lambda: payments(Database(url)) == 2, what=program.text)
            program.tell()
            assert program.ended(within_s=10) == 0


def calls_of_the_wall_clock(path: Path) -> list[str]:
    """Return where a file asks the machine what time it is."""
    asked = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.time", "time.time_ns"}
    return [
        f"{path.name}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in asked
    ]


def test_the_machines_own_clock_decides_nothing_in_billing() -> None:
    files = [
        *(PROJECT_DIR / "billing").glob("*.py"),
        PROJECT_DIR / "cli.py",
        *(PROJECT_DIR / "blueprints").glob("*.py"),
    ]

    assert [call for path in files for call in calls_of_the_wall_clock(path)] == []


def test_the_worker_asks_the_machines_clock_only_when_to_begin_polling() -> None:
    assert len(calls_of_the_wall_clock(PROJECT_DIR / "scheduler.py")) == 1
