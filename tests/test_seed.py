"""`flask seed`: what it adds, when it refuses, and that the books it leaves behind are in order."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from flask import Flask
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row, namedtuple_row
from werkzeug.security import check_password_hash

from billing.periods import PackagePeriod, local_midnight, open_period, prorated
from config import PROJECT_DIR
from models import db
from seed import DEMO_EMAIL, DEMO_PASSWORD
from tests.conftest import new_database, settings_for
from wsgi import create_app

ZONE = ZoneInfo("Europe/Istanbul")
TODAY = date(2026, 2, 28)
"""The billing day of all who registered on a 28th, 29th, 30th or 31st: many periods end."""
FIRST_INSTANT = datetime(2026, 2, 27, 21, 0, tzinfo=UTC)
LAST_SECOND = datetime(2026, 2, 28, 20, 59, 59, tzinfo=UTC)


def test_a_first_run_makes_a_world_and_a_second_adds_nothing(database_url: str, tmp_path: Path) -> None:
    first = seed(database_url, tmp_path)
    world = everything(database_url)
    second = seed(database_url, tmp_path)

    assert len(world["packages"]) == 6
    assert {row["period"] for row in world["packages"]} == {"monthly", "yearly"}
    assert len(world["companies"]) == 26
    assert {row["status"] for row in world["company_payments"]} == {0, 1}
    assert "26" in first
    assert DEMO_EMAIL in first
    assert DEMO_PASSWORD in first
    assert second.startswith("Nothing was added")
    assert everything(database_url) == world


def test_an_explicit_number_is_always_added(database_url: str, tmp_path: Path) -> None:
    for total in (40, 80):
        seed(database_url, tmp_path, "--companies", "40", "--random-seed", "1")

        world = everything(database_url)
        assert len(world["companies"]) == len(world["logins"]) == total
        assert len(world["packages"]) == 6
        assert [row["email"] for row in world["logins"]].count(DEMO_EMAIL) == 1
        numbers = [row["email"].rpartition("-")[2] for row in world["companies"]]
        ids = [row["id"] for row in world["company_payments"]]
        assert len(set(numbers)) == len(numbers)
        assert len(set(ids)) == len(ids)


def test_two_seeds_at_once_add_both_their_companies(database_url: str, tmp_path: Path) -> None:
    waiting = (
        "SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
        "WHERE d.datname = current_database() AND NOT l.granted"
    )
    with psycopg.connect(database_url) as connection:
        connection.execute("LOCK TABLE logins")
        both = [start(database_url, tmp_path, "--companies", "40", "--random-seed", "1") for _ in range(2)]
        wait_for(lambda: connection.execute(waiting).rowcount == 2)

    for process in both:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    world = everything(database_url)
    assert len(world["companies"]) == len(world["logins"]) == 80
    assert len(world["packages"]) == 6


def test_the_same_random_seed_makes_the_same_world_all_day_long(
    database_url: str, another_database_url: str, tmp_path: Path
) -> None:
    for url, now in ((database_url, FIRST_INSTANT), (another_database_url, LAST_SECOND)):
        seed(url, tmp_path, "--companies", "60", "--random-seed", "7", now=now)

    worlds = [everything(url) for url in (database_url, another_database_url)]
    for world in worlds:
        assert len({row.pop("password_hash") for row in world["logins"]}) == 1
    assert worlds[0] == worlds[1]


def test_another_random_seed_makes_another_world(
    database_url: str, another_database_url: str, tmp_path: Path
) -> None:
    for url, number in ((database_url, "1"), (another_database_url, "2")):
        seed(url, tmp_path, "--companies", "10", "--random-seed", number)

    assert everything(database_url)["companies"] != everything(another_database_url)["companies"]


def test_production_refuses_it_by_name_and_nothing_changes(database_url: str, tmp_path: Path) -> None:
    process = start(
        database_url, tmp_path, "--companies", "5", VADE_ENV="production", JWT_SECRET_KEY="k" * 40
    )
    output, _ = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "flask seed is refused in production" in output
    assert not any(everything(database_url).values())


def test_a_number_that_is_none_is_refused(database_url: str, tmp_path: Path) -> None:
    for number in ("0", "-1", "5000001", "many", "1.5"):
        seed(database_url, tmp_path, "--companies", number, exit_code=2)

    assert not any(everything(database_url).values())


def test_the_demo_company_can_log_in_and_has_a_history(database_url: str, tmp_path: Path) -> None:
    seed(database_url, tmp_path, "--companies", "1")

    world = everything(database_url)
    (login,), (company,), (taken,) = world["logins"], world["companies"], world["company_packages"]
    assert login["email"] == company["email"] == DEMO_EMAIL
    assert check_password_hash(login["password_hash"], DEMO_PASSWORD)
    assert len(DEMO_PASSWORD) >= 12
    assert company["status"] == taken["status"] == 1
    assert sum(row["status"] for row in world["company_payments"]) > 12


def test_a_price_of_nothing_leaves_no_payments(database_url: str, tmp_path: Path) -> None:
    seed(database_url, tmp_path, "--companies", "1")
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE packages SET price_minor = 0")
    before = everything(database_url)

    seed(database_url, tmp_path, "--companies", "50")

    after = everything(database_url)
    assert after["company_payments"] == before["company_payments"]
    assert not any(row["passivated_at"] for row in after["companies"])


def test_ctrl_c_keeps_what_was_committed_and_says_how_many(database_url: str, tmp_path: Path) -> None:
    process = start(database_url, tmp_path, "--companies", "1000000")
    wait_for(lambda: count(database_url) > 0)

    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)

    assert process.returncode == 130, output
    assert f"Interrupted: {count(database_url)} of 1000000 companies were added." in output
    assert_books_are_in_order(database_url, now=datetime.now(UTC))


def test_a_database_that_fails_gets_a_sentence(server_url: str, tmp_path: Path) -> None:
    with new_database(server_url, prefix="vade_test") as without_schema:
        output = seed(without_schema, tmp_path, exit_code=1)

    assert output == (
        'Error: The database fails: relation "logins" does not exist; 0 companies were added.\n'
    )


@pytest.mark.parametrize("now", [FIRST_INSTANT, LAST_SECOND])
def test_the_books_are_in_order_and_nothing_is_left_to_collect(
    database_url: str, tmp_path: Path, now: datetime
) -> None:
    seed(database_url, tmp_path, "--companies", "500", "--random-seed", "3", now=now)

    world = everything(database_url)
    assert_books_are_in_order(database_url, now=now)
    # The world is one in which each of the rules checked can be broken.
    assert any(row["period_end"] == TODAY for row in world["company_payments"])
    prices = {row["price_minor"] for row in world["packages"]}
    assert {row["amount_minor"] for row in world["company_payments"]} - prices
    assert any(row["passivated_at"] for row in world["companies"])
    assert any(row["status"] == 0 and not row["passivated_at"] for row in world["companies"])
    assert {row["attempt"] for row in world["company_payments"] if row["status"]} == {1, 2, 3}
    assert {row["billing_day"] for row in world["companies"]} == set(range(1, 32))
    with application(database_url, tmp_path, now) as app:
        result = app.test_cli_runner().invoke(args=["billing", "run"])
    assert result.output == "queued 0, charged 0, declined 0, passive 0, failed 0\n"


def assert_books_are_in_order(url: str, *, now: datetime) -> None:
    """Walk each company from the day it took its package to today, by the rules of DESIGN.md §2."""
    with psycopg.connect(url, row_factory=namedtuple_row) as connection:
        companies: list[Any] = connection.execute(
            "SELECT c.*, t.id AS taken_id, t.status AS taken_status, t.start_date, t.end_date, t.full_days, "
            "t.price_minor, t.currency, p.period, p.price_minor AS list_price, p.currency AS list_currency "
            "FROM companies c LEFT JOIN company_packages t ON t.company_id = c.id "
            "LEFT JOIN packages p ON p.id = t.package_id"
        ).fetchall()
        payments: list[Any] = connection.execute(
            "SELECT * FROM company_payments ORDER BY company_id, attempted_at"
        ).fetchall()
        history = {key: list(rows) for key, rows in groupby(payments, lambda row: row.company_id)}
        assert connection.execute("SELECT FROM payment_jobs UNION ALL SELECT FROM callbacks").rowcount == 0
        assert (
            connection.execute(
                "SELECT id, lower(email) FROM companies EXCEPT SELECT company_id, email FROM logins"
            ).fetchall()
            == []
        )
    for company in companies:
        registered_on = company.registered_at.astimezone(ZONE).date()
        assert now - timedelta(days=3 * 366) < company.registered_at < now
        assert company.billing_day == registered_on.day
        attempts = history.get(company.id, [])
        if company.taken_id is None:
            assert not attempts
            assert company.passivated_at is None
            continue
        assert (company.price_minor, company.currency) == (company.list_price, company.list_currency)
        assert (attempts[0].period_start if attempts else company.start_date) >= registered_on
        assert_history_is_right(company, attempts, now=now)


def assert_history_is_right(company: Any, attempts: list[Any], *, now: datetime) -> None:
    assert {row.company_package_id for row in attempts} <= {company.taken_id}
    start_date, paid = attempts[0].period_start if attempts else company.start_date, True
    kind = PackagePeriod(company.period)
    for _, rows in groupby(attempts, lambda row: row.period_start):
        assert paid, "nothing is attempted after a third decline"
        of_period = list(rows)
        period = open_period(start_date, billing_day=company.billing_day, period=kind)
        amount_minor = prorated(company.price_minor, days=period.days, full_days=period.full_days)
        due_at = local_midnight(period.end_date, ZONE)
        for number, row in enumerate(of_period, 1):
            reference = hashlib.sha256(str(row.id).encode()).hexdigest()
            assert (row.period_start, row.period_end) == (period.start_date, period.end_date)
            assert (row.amount_minor, row.currency) == (amount_minor, company.currency)
            assert (row.attempt, row.reference) == (number, reference)
            assert row.status == int(reference[-1], 16) % 2
            assert row.decline_code == (None if row.status else "declined_by_bank")
            assert row.attempted_at - due_at - timedelta(days=number - 1) < timedelta(minutes=5)
            assert due_at <= row.attempted_at <= now
        first = of_period[0].attempted_at
        assert [row.attempted_at - first for row in of_period] == [
            timedelta(days=n) for n in range(len(of_period))
        ]
        outcomes = [row.status for row in of_period]
        assert outcomes in ([1], [0, 1], [0, 0, 1], [0, 0, 0])
        paid = outcomes[-1] == 1
        start_date = period.end_date if paid else period.start_date
    current = open_period(start_date, billing_day=company.billing_day, period=kind)
    assert (company.start_date, company.end_date) == (current.start_date, current.end_date)
    assert company.full_days == current.full_days
    assert company.taken_status == paid
    if paid:
        assert company.end_date > now.astimezone(ZONE).date()
        assert company.passivated_at is None
    else:
        assert company.status == 0
        assert company.passivated_at == attempts[-1].attempted_at


@pytest.fixture
def another_database_url(server_url: str, template: str) -> Iterator[str]:
    name = str(conninfo_to_dict(template)["dbname"])
    with new_database(server_url, prefix="vade_test", template=name) as url:
        yield url


@contextmanager
def application(url: str, instance: Path, now: datetime) -> Iterator[Flask]:
    app = create_app(settings_for(url, instance, VADE_NOW=now.isoformat()))
    try:
        yield app
    finally:
        with app.app_context():
            db.engine.dispose()


def seed(url: str, instance: Path, *arguments: str, now: datetime = FIRST_INSTANT, exit_code: int = 0) -> str:
    """Run the command in this process and return what it said."""
    with application(url, instance, now) as app:
        result = app.test_cli_runner().invoke(args=["seed", *arguments])
    assert result.exit_code == exit_code, result.output
    return result.output


def start(url: str, instance: Path, *arguments: str, **settings: str) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "flask", "--app", "wsgi", "seed", *arguments],
        cwd=PROJECT_DIR,
        env=os.environ | {"DATABASE_URL": url, "INSTANCE_DIR": str(instance)} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def everything(url: str) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every table that the seed fills."""
    tables = ("packages", "companies", "logins", "company_packages", "company_payments")
    with psycopg.connect(url, row_factory=dict_row) as connection:
        return {
            table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2".encode()).fetchall()
            for table in tables
        }


def count(url: str) -> int:
    """Return how many companies there are."""
    with psycopg.connect(url) as connection:
        ((number,),) = connection.execute("SELECT count(*) FROM companies").fetchall()
    return int(number)
