"""`flask billing check`: books that keep the rules pass, each fault is found by its own check."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from click.testing import Result
from flask import Flask
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from billing import parked_jobs, payment_queue
from billing.books import CHECKS, Auditor, Report
from billing.clock import Clock, Moment
from billing.gateways import ChargeRequest, ChargeResult, GatewayUnavailable
from billing.payment_queue import Answer, Outcome
from models import PARKED_UNTIL, Company, db
from tests.conftest import new_database, settings_for
from tests.crowds import crowd
from tests.processes import Database, run, until, worker
from tests.world import LedgerGateway, World, instant
from wsgi import create_app

NOW = instant("2026-05-11", 12)
"""Where the books stand. Periods of the 10th have ended, and been collected, four times."""

PASSES = (
    "2026-02-10",
    "2026-02-11",
    "2026-02-12",
    "2026-02-28",
    "2026-03-05",
    "2026-03-10",
    "2026-03-31",
    "2026-04-10",
    "2026-04-11",
    "2026-04-30",
    "2026-05-10",
    "2026-05-11",
)
LEFT = "SELECT count(*) FROM payment_jobs WHERE next_attempt_at <= %s"
NOT_QUEUED = """
SELECT cp.id FROM company_packages cp WHERE status = 1 AND end_date <= %s AND NOT EXISTS (
    SELECT FROM payment_jobs j WHERE j.company_id = cp.company_id AND j.company_package_id = cp.id)
"""

DECLINED = {
    "lost": {"2026-02-10", "2026-02-11", "2026-02-12"},
    "slow": {"2026-02-10", "2026-02-11"},
    "retrying": {"2026-05-10", "2026-05-11"},
}


FOLLOW = b"""
DELETE FROM report_entries WHERE figure IN ('charged', 'declined');
INSERT INTO report_entries (at, figure, currency, attempt, number, amount_minor)
SELECT attempted_at, CASE status WHEN 1 THEN 'charged' ELSE 'declined' END, currency, attempt, 1, amount_minor
FROM company_payments
"""
"""Lets the figures follow the payments, as they would have."""


class Fault(NamedTuple):
    """A statement that spoils the books, and the checks that must find it: all of these and no other."""

    checks: tuple[str, ...]
    statement: str


FAULTS = {
    "a charge in the middle is gone": Fault(
        ("gap",),
        "DELETE FROM company_payments WHERE company_id = {steady} AND period_start = '2026-02-28'",
    ),
    "the last charge is gone": Fault(
        ("gap",),
        "DELETE FROM company_payments WHERE company_id = {steady} AND period_start = '2026-03-31'",
    ),
    "a declined period rolled over": Fault(
        ("gap",),
        "UPDATE company_payments SET status = 0 WHERE company_id = {steady} AND period_start = '2026-02-28'",
    ),
    "what was written off is forgotten": Fault(
        ("gap",), "UPDATE parked_jobs SET decision = 'released' WHERE company_id = {dropped}"
    ),
    "the present period is charged": Fault(
        ("overlap",),
        "INSERT INTO company_payments SELECT (p).* FROM (SELECT jsonb_populate_record(p, jsonb_build_object("
        "'id', gen_random_uuid(), 'period_start', date '2026-04-30', 'period_end', date '2026-05-31',"
        " 'attempted_at', '2026-06-01 12:00+03')) AS p FROM company_payments p"
        " WHERE company_id = {steady} AND period_start = '2026-03-31') q",
    ),
    "a period is charged twice": Fault(
        ("overlap", "attempt"),
        "ALTER TABLE company_payments DROP CONSTRAINT company_payments_no_day_charged_twice_excl;"
        "UPDATE company_payments SET status = 1 WHERE company_id = {slow} AND period_start = '2026-01-10'"
        " AND attempt = 2",
    ),
    "the present period ends a day early": Fault(
        ("boundary",),
        "UPDATE company_packages SET end_date = end_date - 1 WHERE company_id = {steady}",
    ),
    "the full period has a day more": Fault(
        ("boundary",), "UPDATE company_packages SET full_days = full_days + 1 WHERE company_id = {steady}"
    ),
    "a boundary between two charges is off": Fault(
        ("boundary",),
        "UPDATE company_payments SET period_end = '2026-03-09' WHERE company_id = {slow}"
        " AND period_start = '2026-02-10';"
        "UPDATE company_payments SET period_start = '2026-03-09' WHERE company_id = {slow}"
        " AND period_start = '2026-03-10'",
    ),
    "a year became a month": Fault(
        ("boundary",),
        "UPDATE company_packages SET package_id = (SELECT package_id FROM company_packages"
        " WHERE company_id = {steady}) WHERE company_id = {yearly}",
    ),
    "a job's amount is off": Fault(
        ("amount",), "UPDATE payment_jobs SET amount_minor = amount_minor + 1 WHERE company_id = {retrying}"
    ),
    "a job's currency is off": Fault(
        ("amount",), "UPDATE payment_jobs SET currency = 'EUR' WHERE company_id = {retrying}"
    ),
    "an attempt was for more than the others": Fault(
        ("amount",),
        "UPDATE company_payments SET amount_minor = amount_minor + 1 WHERE company_id = {slow}"
        " AND period_start = '2026-01-10' AND attempt = 1",
    ),
    "the last period's attempts are not its price": Fault(
        ("amount",), "UPDATE company_packages SET price_minor = price_minor + 1 WHERE company_id = {lost}"
    ),
    "a first attempt is gone": Fault(
        ("attempt",),
        "DELETE FROM company_payments WHERE company_id = {slow} AND period_start = '2026-01-10'"
        " AND attempt = 1",
    ),
    "an attempt came a second too early": Fault(
        ("attempt",),
        "UPDATE company_payments SET attempted_at = attempted_at - interval '1 second'"
        " WHERE company_id = {slow} AND period_start = '2026-01-10' AND attempt = 2",
    ),
    "an attempt follows a charge": Fault(
        ("attempt",),
        "INSERT INTO company_payments SELECT (p).* FROM (SELECT jsonb_populate_record(p, jsonb_build_object("
        "'id', gen_random_uuid(), 'attempt', 2, 'status', 0, 'attempted_at', '2026-04-20 12:00+03')) AS p"
        " FROM company_payments p WHERE company_id = {steady} AND period_start = '2026-02-28') q",
    ),
    "a job has lost count": Fault(
        ("attempt",), "UPDATE payment_jobs SET attempt = 2 WHERE company_id = {retrying}"
    ),
    "a job does not wait for its day": Fault(
        ("attempt",),
        "UPDATE payment_jobs SET next_attempt_at = next_attempt_at - interval '1 second'"
        " WHERE company_id = {retrying}",
    ),
    "a period was charged before its end": Fault(
        ("early",),
        "UPDATE company_payments SET attempted_at = '2026-03-30 23:59:59+03' WHERE company_id = {steady}"
        " AND period_start = '2026-02-28'",
    ),
    "a company is passive that always paid": Fault(
        ("passive",), "UPDATE companies SET status = 0, passivated_at = now() WHERE id = {steady}"
    ),
    "a company is passive that never had to pay": Fault(
        ("passive",), "UPDATE companies SET status = 0, passivated_at = now() WHERE id = {bare}"
    ),
    "a package is closed that was always paid": Fault(
        ("passive",), "UPDATE company_packages SET status = 0 WHERE company_id = {steady}"
    ),
    "the third decline is gone": Fault(
        ("passive",), "DELETE FROM company_payments WHERE company_id = {lost} AND attempt = 3"
    ),
    "three declines did not make it passive": Fault(
        ("unpaid",), "UPDATE companies SET passivated_at = NULL WHERE id = {lost}"
    ),
    "a job is gone": Fault(("unqueued",), "DELETE FROM payment_jobs WHERE company_id = {resting}"),
    "the job of a later attempt is gone": Fault(
        ("unqueued",), "DELETE FROM payment_jobs WHERE company_id = {retrying}"
    ),
    "a job came before its period's end": Fault(
        ("stray",),
        "INSERT INTO payment_jobs (company_id, company_package_id, period_start, period_end, amount_minor,"
        " currency, next_attempt_at) SELECT company_id, id, start_date, end_date, price_minor, currency,"
        " end_date::timestamp AT TIME ZONE 'Europe/Istanbul' FROM company_packages"
        " WHERE company_id = {steady}",
    ),
    "the job of a charged period came back": Fault(
        ("stray",),
        "INSERT INTO payment_jobs (company_id, company_package_id, period_start, period_end, attempt,"
        " amount_minor, currency, next_attempt_at) SELECT company_id, company_package_id, period_start,"
        " period_end, 2, amount_minor, currency, attempted_at + interval '24 hours' FROM company_payments"
        " WHERE company_id = {steady} AND period_start = '2026-03-31'",
    ),
    "a lease ran out long ago": Fault(
        ("lease",),
        "UPDATE payment_jobs SET leased_until = now() - interval '61 minutes' WHERE company_id = {resting}",
    ),
    "a worker lives and collects nothing": Fault(
        ("stalled",),
        "UPDATE payment_jobs SET leased_until = '1970-01-01 00:00+00', idempotency_key = NULL"
        " WHERE company_id = {resting};"
        "INSERT INTO worker_heartbeats VALUES ('here:1', now() - interval '1 hour', now())",
    ),
    "a parked job is leased like any other": Fault(
        ("parked",),
        "UPDATE payment_jobs SET leased_until = now() + interval '1 hour' WHERE company_id = {parked}",
    ),
    "a job is parked that nobody is to decide on": Fault(
        ("parked",), "DELETE FROM parked_jobs WHERE company_id = {parked}"
    ),
    "a parked job is gone": Fault(
        ("unqueued", "parked"), "DELETE FROM payment_jobs WHERE company_id = {parked}"
    ),
    "no worker was heard of for a minute": Fault(
        ("heartbeat",),
        "INSERT INTO worker_heartbeats"
        " VALUES ('here:1', now() - interval '1 hour', now() - interval '1 minute')",
    ),
    "a figure is more than was charged": Fault(
        ("figures",),
        "UPDATE report_entries SET amount_minor = amount_minor + 1 WHERE figure = 'charged' AND at = ("
        "SELECT min(at) FROM report_entries WHERE figure = 'charged')",
    ),
    "a figure is gone": Fault(
        ("figures",),
        "DELETE FROM report_entries WHERE figure = 'declined' AND attempt = 3",
    ),
    "a figure is of another day": Fault(
        ("figures",),
        "UPDATE report_entries SET at = at + interval '1 day' WHERE figure = 'declined' AND attempt = 2",
    ),
    "a message lies about": Fault(
        ("callback",),
        "UPDATE callbacks SET next_attempt_at = now() - interval '61 minutes'"
        " WHERE company_id = {steady} AND type = 'company_package.assigned'",
    ),
}


class ByDay(LedgerGateway):
    """Declines whom it is told to on a day, has no answer for some, and charges all others."""

    def __init__(self, declined: set[int], silent: set[int]) -> None:
        super().__init__()
        self._declined, self._silent = declined, silent

    def charge(self, request: ChargeRequest) -> ChargeResult:
        if request.company_id in self._silent:
            raise GatewayUnavailable("down")
        succeeded = request.company_id not in self._declined
        return ChargeResult(succeeded, request.idempotency_key, None if succeeded else "expired_card")


def write_books(world: World) -> dict[str, int]:
    """Let companies of all kinds live through four months; return their ids by name."""
    companies: dict[str, Company] = {}

    def come(name: str, registered: str, taken: str | None = None, **package: Any) -> None:
        world.travel(instant(registered))
        companies[name] = world.company()
        world.travel(instant(taken or registered))
        world.assign(companies[name], world.package(**package))

    come("yearly", "2025-03-05", period="yearly", price_minor=365_000)
    for name in ("lost", "slow", "retrying", "dropped", "parked"):
        come(name, "2026-01-10")
    come("mid", "2026-01-10", "2026-01-20")
    come("free", "2026-01-10", price_minor=0)
    come("resting", "2026-01-11")
    come("steady", "2026-01-31")
    companies["bare"] = world.company()
    for day in PASSES:
        at = instant(day)
        if day in ("2026-03-10", "2026-05-10"):
            park(
                world, companies["dropped" if day == "2026-03-10" else "parked"], at=at, drop=day < "2026-05"
            )
        declined = {companies[name].id for name, days in DECLINED.items() if day in days}
        silent = {companies["resting"].id} if day == "2026-05-11" else set()
        world.collect(ByDay(declined, silent), at=at)
    return {name: company.id for name, company in companies.items()}


def park(world: World, company: Company, *, at: datetime, drop: bool) -> None:
    """Let a company's job fail for a reason of ours until it is parked, and then drop it."""
    zone = world.vade.zone
    with Session(db.engine) as session:
        moment = Moment(at, Clock().read(session).real)
        payment_queue.enqueue(session, moment, zone=zone, size=100)
        jobs, _ = payment_queue.claim(
            session, moment, size=100, lease=timedelta(minutes=1), free_since=moment.real
        )
        answer = Answer(next(job for job in jobs if job.company_id == company.id), Outcome.CHARGED, "ref")
        for _ in range(parked_jobs.PARKED_AFTER):
            parked_jobs.put_aside(session, answer, "out of range", counts=True, real=moment.real)
        if drop:
            (parked,) = parked_jobs.list_open(session, limit=2)
            parked_jobs.drop(session, parked.id, moment=moment, by="ayse", by_platform=True)
        session.execute(
            text("UPDATE payment_jobs SET leased_until = now() WHERE leased_until < :parked_until"),
            {"parked_until": PARKED_UNTIL},
        )
        session.commit()


class Books:
    """A database with books in it, the companies in them by name, and the command on it."""

    def __init__(self, app: Flask, url: str, ids: dict[str, int]) -> None:
        self.app, self.url, self.ids = app, url, ids
        self.database = Database(url)

    def spoil(self, statement: str) -> None:
        """Change what the database itself would not let anyone change."""
        with psycopg.connect(self.url) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(statement.format(**self.ids).encode())
            if "report_entries" not in statement:
                connection.execute(FOLLOW)

    def auditor(self, **options: Any) -> Auditor:
        with self.app.app_context():
            state = self.app.extensions["vade"]
            return Auditor(db.engine, **({"clock": state.clock, "zone": state.zone, "chunk": 4} | options))

    def check(self, *arguments: str) -> Result:
        return self.app.test_cli_runner().invoke(args=["billing", "check", *arguments])

    def digest(self) -> dict[str, Any]:
        """Return what tells any change of any table."""
        tables = self.database.all("SELECT relname FROM pg_stat_user_tables ORDER BY relname")
        return {
            table: self.database.one(f"SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} t")
            for (table,) in tables
        }


def names(report: Report) -> tuple[str, ...]:
    return tuple(finding.check for finding in report.findings)


@pytest.fixture(scope="module")
def written(
    server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, dict[str, int]]]:
    """A database with four months of books, to be copied, and the companies' ids."""
    with new_database(server_url, prefix="vade_books", template=name_of(template)) as url:
        app = create_app(settings_for(url, tmp_path_factory.mktemp("books")))
        with app.app_context():
            ids = write_books(World(app))
            # However long the tests take.
            db.session.execute(
                text("UPDATE payment_jobs SET leased_until = now() + interval '1 hour' WHERE outages > 0")
            )
            db.session.commit()
            db.session.remove()
            db.engine.dispose()
        yield url, ids


@pytest.fixture
def books(server_url: str, written: tuple[str, dict[str, int]], tmp_path: Path) -> Iterator[Books]:
    """A copy of the books, that a test may spoil."""
    template, ids = written
    with new_database(server_url, prefix="vade_books", template=name_of(template)) as url:
        app = create_app(settings_for(url, tmp_path, VADE_NOW=NOW.isoformat()))
        yield Books(app, url, ids)
        with app.app_context():
            db.engine.dispose()


def name_of(url: str) -> str:
    return str(conninfo_to_dict(url)["dbname"])


def test_books_that_keep_the_rules_pass(books: Books) -> None:
    result = books.check("--json")

    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer.pop("seconds") > 0
    assert answer == {
        "checked_at": "2026-05-11T09:00:00.000000Z",
        "companies": 11,
        "company_packages": 10,
        "periods": books.database.one(
            "SELECT count(*) FROM (SELECT DISTINCT company_id, period_start FROM company_payments) p"
        ),
        "attempts": books.database.one("SELECT count(*) FROM company_payments"),
        "charges": books.database.one("SELECT count(*) FROM company_payments WHERE status = 1"),
        "jobs": 3,
        "findings": [],
    }
    assert "All is well" in books.check().stdout


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_found_by_its_own_check_and_no_other(books: Books, what: str) -> None:
    expected, statement = FAULTS[what]

    books.spoil(statement)

    with books.app.app_context():
        report = books.auditor().check()
    assert names(report) == expected, report.findings


def test_every_check_has_a_fault_that_it_finds() -> None:
    assert {check for fault in FAULTS.values() for check in fault.checks} == set(CHECKS)


def test_a_finding_says_what_how_often_and_where(books: Books) -> None:
    books.spoil(FAULTS["the present period ends a day early"].statement)

    result = books.check("--json")
    table = books.check().stdout

    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)["findings"]
    package_id = books.database.one(
        "SELECT id FROM company_packages WHERE company_id = %s", books.ids["steady"]
    )
    assert finding == {
        "check": "boundary",
        "title": CHECKS["boundary"],
        "number": 1,
        "examples": [
            {
                "company_id": books.ids["steady"],
                "company_package_id": package_id,
                "period_start": "2026-04-30",
                "period_end": "2026-05-30",
            }
        ],
    }
    assert "Something is off" in table
    assert f"company {books.ids['steady']}, package {package_id}, from 2026-04-30, to 2026-05-30" in table


def test_many_findings_are_all_counted_and_a_few_shown(books: Books) -> None:
    books.spoil("UPDATE company_payments SET attempted_at = attempted_at - interval '1 year'")

    with books.app.app_context():
        report = books.auditor().check()

    finding = report.found["early"]
    assert finding.number == report.sums["periods"] > 20
    assert len(finding.examples) == 5


def test_a_check_can_be_left_out(books: Books) -> None:
    books.spoil(FAULTS["a period is charged twice"].statement)

    assert books.check("--skip", "attempt").exit_code == 1
    assert books.check("--skip", "attempt", "--skip", "overlap").exit_code == 0


def test_in_production_a_worker_is_expected(books: Books) -> None:
    with books.app.app_context():
        assert names(books.auditor(worker_expected=True).check()) == ("heartbeat",)
        books.database.do("INSERT INTO worker_heartbeats VALUES ('here:1', now(), now())")
        assert names(books.auditor(worker_expected=True).check()) == ()


def test_what_has_just_become_due_is_not_forgotten_yet(books: Books) -> None:
    """A package and a job have their grace, counted from the midnight at which the period ended."""
    books.database.do("DELETE FROM payment_jobs WHERE company_id = %s", books.ids["resting"])
    midnight = instant("2026-05-11", 0)

    with books.app.app_context():
        before = books.auditor(clock=Clock(midnight + timedelta(minutes=4)), skip={"early", "stray"}).check()
        after = books.auditor(clock=Clock(midnight + timedelta(minutes=5))).check()

    assert (names(before), names(after)) == ((), ("unqueued",))


@pytest.mark.parametrize(
    ("now_minor", "then_minor", "found"), [(0, 0, ()), (0, 31_000, ()), (31_000, 31_000, ("gap",))]
)
def test_days_without_a_charge_are_accepted_where_the_package_is_free(
    books: Books, now_minor: int, then_minor: int, found: tuple[str, ...]
) -> None:
    """Whether the period was free cannot be known: the present price decides, of package or period."""
    books.spoil(FAULTS["the last charge is gone"].statement)
    books.spoil(
        f"UPDATE company_packages SET price_minor = {now_minor} WHERE company_id = {{steady}};"
        f"UPDATE packages SET price_minor = {then_minor} WHERE id ="
        " (SELECT package_id FROM company_packages WHERE company_id = {steady})"
    )

    with books.app.app_context():
        assert names(books.auditor().check()) == found


def test_nothing_is_changed_and_nobody_is_kept_waiting(books: Books) -> None:
    """No lock but the one that only DROP and ALTER wait for; and others' row locks are not waited for."""
    modes: set[str] = set()
    read_only: set[str] = set()
    before = books.digest()

    def look(connection: Any, *_: Any) -> None:
        pid = connection.connection.driver_connection.info.backend_pid
        held = books.database.all(
            "SELECT mode FROM pg_locks WHERE pid = %s AND locktype <> 'virtualxid'", pid
        )
        modes.update(mode for (mode,) in held)

    with (
        books.app.app_context(),
        psycopg.connect(books.url) as writer,
        psycopg.connect(books.url, autocommit=True) as other,
    ):
        for table in ("companies", "company_packages", "payment_jobs", "parked_jobs"):
            writer.execute(f"SELECT FROM {table} FOR UPDATE".encode())
        writer.execute("LOCK TABLE company_payments IN SHARE ROW EXCLUSIVE MODE")
        event.listen(db.engine, "after_cursor_execute", look)
        event.listen(
            db.engine,
            "after_cursor_execute",
            lambda connection, *_: read_only.add(
                connection.connection.driver_connection.execute("SHOW transaction_read_only").fetchone()[0]
            ),
        )
        report = books.auditor().check()
        writer.rollback()
        other.execute("VACUUM FULL company_payments")

    assert names(report) == ()
    assert modes == {"AccessShareLock"}
    assert read_only == {"on"}
    assert books.digest() == before


def test_each_chunk_has_a_snapshot_of_its_own(books: Books) -> None:
    """No old snapshot keeps dead rows: between two chunks nothing is open."""
    chunks: list[int] = []

    def none_is_open(report: Report) -> None:
        chunks.append(report.last_id)
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND (backend_xmin IS NOT NULL OR state <> 'idle')"
        )
        assert books.database.one(query) == 0

    with books.app.app_context():
        report = books.auditor(chunk=4).check(on_chunk=none_is_open)

    assert len(chunks) == 3
    assert report.sums["companies"] == 11


def test_control_c_ends_it_with_a_sentence(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inspection.Auditor", partial(Auditor, chunk=4))

    def interrupt(_: Any, __: Any, statement: str, *___: Any) -> None:
        if "period_start > start_date" in statement:
            signal.raise_signal(signal.SIGINT)

    with books.app.app_context():
        event.listen(db.engine, "before_cursor_execute", interrupt)
    result = books.check("--json")

    assert result.exit_code == 130
    assert result.stderr == "Interrupted after 4 companies; nothing was changed.\n"
    assert result.stdout == ""


def test_a_database_that_fails_is_said_in_a_sentence(books: Books) -> None:
    books.database.do("DROP TABLE parked_jobs")

    result = books.check()

    assert result.exit_code == 1
    assert result.stderr == 'Error: The database fails: relation "parked_jobs" does not exist.\n'


def test_an_empty_database_is_well(database_url: str, tmp_path: Path) -> None:
    result = run("flask", "billing", "check", DATABASE_URL=database_url, INSTANCE_DIR=str(tmp_path))

    assert result.returncode == 0, result.stderr
    assert "All is well" in result.stdout


@pytest.mark.slow
def test_seeded_books_pass_before_and_after_a_simulation(database_url: str, tmp_path: Path) -> None:
    settings = {"DATABASE_URL": database_url, "INSTANCE_DIR": str(tmp_path), "VADE_NOW": NOW.isoformat()}

    def flask(*arguments: str) -> str:
        done = run("flask", *arguments, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    flask("seed", "--companies", "200", "--random-seed", "5")
    first = json.loads(flask("billing", "check", "--json"))
    flask("billing", "simulate", "--days", "33")
    second = json.loads(flask("billing", "check", "--json"))

    assert first["charges"] > 300
    assert second["charges"] > first["charges"] + 50
    assert second["jobs"] > 0, "some are tried again on the next day"


@pytest.mark.slow
def test_beside_a_worker_and_clients_it_raises_no_alarm(database_url: str, tmp_path: Path) -> None:
    """The worker collects four missed months of each company one by one; meanwhile others register."""
    database = Database(database_url)
    database.do(crowd(250))
    app = create_app(settings_for(database_url, tmp_path, VADE_NOW=NOW.isoformat()))
    environment = {
        "VADE_ENV": "development",
        "VADE_NOW": NOW.isoformat(),
        "PAYMENT_GATEWAY": "tests.gateways:MoodyGateway",
        "LEDGER_DIR": str(tmp_path / "ledger"),
        "GATEWAY_DELAY_S": "0.05",
        "GATEWAY_THREADS": "4",
        "BATCH_SIZE": "25",
        "CALLBACK_URL": "http://127.0.0.1:1024/",
        "CALLBACK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    }
    stop = threading.Event()
    registered: list[int] = []
    reports: list[Report] = []

    def register() -> None:
        client = app.test_client()
        while not stop.is_set():
            answer = client.post("/api/v1/register", json=registration(len(registered)))
            assert answer.status_code == 201, answer.text
            who = answer.get_json()
            client.post(
                "/api/v1/company-packages",
                json={"company_id": who["company_id"], "package_id": 1},
                headers={"Authorization": f"Bearer {who['token']}"},
            )
            registered.append(who["company_id"])

    clients = threading.Thread(target=register)
    try:
        clients.start()
        with worker(database_url, tmp_path, **environment) as program, app.app_context():
            auditor = Auditor(db.engine, Clock(NOW), app.extensions["vade"].zone, chunk=50)
            until(lambda: not database.all(NOT_QUEUED, "2026-02-10"), what=program.text)
            deadline_s = time.monotonic() + 60
            while not reports or database.one(LEFT, NOW) or database.all(NOT_QUEUED, NOW.date()):
                reports.append(auditor.check())
                assert names(reports[-1]) == (), (reports[-1].findings, program.text())
                assert time.monotonic() < deadline_s, program.text()
    finally:
        stop.set()
        clients.join(10)
        with app.app_context():
            final = Auditor(db.engine, Clock(NOW), app.extensions["vade"].zone).check()
            db.engine.dispose()

    assert final.sums["charges"] > 100
    assert len(registered) > 0
    assert final.sums["companies"] == 250 + len(registered)
    assert len(reports) > 1


def registration(number: int) -> dict[str, str]:
    return {
        "site_url": f"https://new-{number}.example",
        "name": "Ayşe",
        "lastname": "Yılmaz",
        "company_name": "Yeni",
        "email": f"new-{number}@new.example",
        "password": "correct horse battery",
    }
