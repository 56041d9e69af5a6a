"""What the database itself refuses, tried with plain SQL; and that migrations go up and down."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import alembic.autogenerate
import alembic.migration
import flask_migrate
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import errors

from config import PROJECT_DIR
from models import Base, db
from tests.conftest import new_database, settings_for
from tests.world import World
from wsgi import create_app

COMPANY = """INSERT INTO companies
(site_url, name, lastname, company_name, email, status, billing_day, registered_at)
VALUES ('https://a.example', 'A', 'B', 'C', 'a@a.example', {status}, {billing_day}, now()) RETURNING id"""
PACKAGE = """INSERT INTO packages (name, period, price_minor, currency, status)
VALUES ('P', '{period}', {price_minor}, '{currency}', {status}) RETURNING id"""
COMPANY_PACKAGE = """INSERT INTO company_packages
(company_id, package_id, status, start_date, end_date, price_minor, currency, full_days)
VALUES ({company}, {package}, {status}, '{start}', '{end}', {price_minor}, 'TRY', 366) RETURNING id"""
PAYMENT = """INSERT INTO company_payments (id, company_id, company_package_id, attempt, status, amount_minor,
currency, period_start, period_end, reference, attempted_at)
VALUES (gen_random_uuid(), {company}, {company_package}, {attempt}, {status}, {amount_minor}, 'TRY',
'{start}', '{end}', 'r', now())"""

Connection = psycopg.Connection[Any]


@pytest.fixture
def sql(shared_url: str) -> Iterator[Connection]:
    """A connection whose every change is rolled back."""
    with psycopg.connect(shared_url) as connection:
        yield connection
        connection.rollback()


class Rows:
    """Writes rows with plain SQL; every default is allowed."""

    def __init__(self, sql: Connection) -> None:
        self.sql = sql

    def _one(self, statement: str) -> int:
        row = self.sql.execute(statement.encode()).fetchone()
        assert row is not None
        return int(row[0])

    def company(self, **fields: Any) -> int:
        return self._one(COMPANY.format(**{"status": 1, "billing_day": 10} | fields))

    def package(self, **fields: Any) -> int:
        defaults = {"period": "monthly", "price_minor": 100, "currency": "TRY", "status": 1}
        return self._one(PACKAGE.format(**defaults | fields))

    def company_package(self, company: int, package: int, **fields: Any) -> int:
        defaults = {"status": 1, "start": "2026-01-10", "end": "2026-02-10", "price_minor": 100}
        return self._one(COMPANY_PACKAGE.format(company=company, package=package, **defaults | fields))

    def payment(self, company: int, company_package: int, **fields: Any) -> None:
        defaults = {
            "attempt": 1,
            "status": 1,
            "amount_minor": 100,
            "start": "2026-01-10",
            "end": "2026-02-10",
        }
        statement = PAYMENT.format(company=company, company_package=company_package, **defaults | fields)
        self.sql.execute(statement.encode())


@pytest.fixture
def rows(sql: Connection) -> Rows:
    return Rows(sql)


@pytest.fixture
def customer(rows: Rows) -> tuple[int, int]:
    """A company and its open company package."""
    company = rows.company()
    return company, rows.company_package(company, rows.package())


def test_a_second_open_package_is_refused(rows: Rows, customer: tuple[int, int]) -> None:
    company, _ = customer

    with pytest.raises(errors.UniqueViolation):
        rows.company_package(company, rows.package(), start="2026-02-10", end="2026-03-10")


def test_a_second_package_after_a_passive_one_is_taken(rows: Rows) -> None:
    company, package = rows.company(), rows.package()

    rows.company_package(company, package, status=0)
    rows.company_package(company, package, status=0)
    rows.company_package(company, package)


def test_the_same_email_in_another_case_is_refused(sql: Connection) -> None:
    sql.execute("INSERT INTO logins (email, company_id, password_hash) VALUES ('a@a.example', 1, 'x')")

    with pytest.raises(errors.CheckViolation), sql.transaction():
        sql.execute("INSERT INTO logins (email, company_id, password_hash) VALUES ('A@a.example', 2, 'x')")
    with pytest.raises(errors.UniqueViolation):
        sql.execute("INSERT INTO logins (email, company_id, password_hash) VALUES ('a@a.example', 2, 'x')")


@pytest.mark.parametrize("status", [-1, 2, 7])
@pytest.mark.parametrize("table", ["companies", "packages", "company_packages", "company_payments"])
def test_a_status_that_does_not_exist_is_refused(
    rows: Rows, customer: tuple[int, int], table: str, status: int
) -> None:
    company, company_package = customer
    write: dict[str, Callable[[], Any]] = {
        "companies": lambda: rows.company(status=status),
        "packages": lambda: rows.package(status=status),
        "company_packages": lambda: rows.company_package(company, rows.package(), status=status),
        "company_payments": lambda: rows.payment(company, company_package, status=status),
    }

    with pytest.raises(errors.CheckViolation):
        write[table]()


@pytest.mark.parametrize(
    "fields",
    [
        {"period": "weekly"},
        {"period": "Monthly"},
        {"price_minor": -1},
        {"price_minor": 10**15 + 1},
        {"currency": "try"},
        {"currency": "TL"},
        {"currency": "TRY\n"},
    ],
)
def test_a_package_that_cannot_be_is_refused(rows: Rows, fields: dict[str, Any]) -> None:
    with pytest.raises(errors.CheckViolation):
        rows.package(**fields)


@pytest.mark.parametrize("fields", [{"end": "2026-01-10"}, {"end": "2026-01-09"}, {"price_minor": -1}])
def test_a_period_that_ends_before_it_starts_is_refused(rows: Rows, fields: dict[str, Any]) -> None:
    company, package = rows.company(), rows.package()

    with pytest.raises(errors.CheckViolation):
        rows.company_package(company, package, **fields)


@pytest.mark.parametrize(
    "fields",
    [{"end": "2026-01-10"}, {"end": "2025-12-31"}, {"amount_minor": -1}, {"amount_minor": 0}, {"attempt": 0}],
)
def test_a_payment_that_cannot_be_is_refused(
    rows: Rows, customer: tuple[int, int], fields: dict[str, Any]
) -> None:
    with pytest.raises(errors.CheckViolation):
        rows.payment(*customer, **fields)


@pytest.mark.parametrize("billing_day", [0, 32])
def test_a_billing_day_that_no_month_has_is_refused(rows: Rows, billing_day: int) -> None:
    with pytest.raises(errors.CheckViolation):
        rows.company(billing_day=billing_day)


def test_a_company_passive_for_non_payment_cannot_be_active(rows: Rows, sql: Connection) -> None:
    company = rows.company()

    with pytest.raises(errors.CheckViolation):
        sql.execute("UPDATE companies SET passivated_at = now() WHERE id = %s", [company])


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-01-10", "2026-02-10"),
        ("2026-01-01", "2026-03-01"),
        ("2026-01-20", "2026-01-21"),
        ("2025-12-20", "2026-01-11"),
        ("2026-02-09", "2026-03-10"),
        ("2026-01-10", "2026-01-11"),
    ],
    ids=["equal", "containing", "contained", "left", "right", "one day"],
)
def test_a_day_is_not_charged_twice(rows: Rows, customer: tuple[int, int], start: str, end: str) -> None:
    rows.payment(*customer)

    with pytest.raises(errors.ExclusionViolation):
        rows.payment(*customer, start=start, end=end, attempt=2)


def test_what_does_not_overlap_is_charged(rows: Rows, customer: tuple[int, int]) -> None:
    company, _ = customer
    other = rows.company_package(company, rows.package(), status=0)

    rows.payment(*customer)
    rows.payment(*customer, start="2026-02-10", end="2026-03-10")
    rows.payment(*customer, start="2025-12-10", end="2026-01-10")
    rows.payment(*customer, start="2027-01-10", end="2028-01-10")
    rows.payment(company, other)
    rows.payment(*customer, attempt=2, status=0)
    rows.payment(*customer, attempt=3, status=0)


def test_the_same_attempt_of_a_period_is_recorded_once(rows: Rows, customer: tuple[int, int]) -> None:
    rows.payment(*customer, status=0)

    with pytest.raises(errors.UniqueViolation):
        rows.payment(*customer, status=0)


periods = st.tuples(
    st.dates(date(1970, 1, 1), date(2100, 1, 1)) | st.dates(date(2026, 1, 1), date(2026, 3, 1)),
    st.integers(1, 366),
)


@given(st.lists(periods, max_size=12))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_exactly_the_charges_that_share_a_day_are_refused(
    rows: Rows, customer: tuple[int, int], drawn: list[tuple[date, int]]
) -> None:
    charged: set[date] = set()
    with rows.sql.transaction(force_rollback=True):
        for attempt, (start, days) in enumerate(drawn, start=1):
            asked = {start + timedelta(days=day) for day in range(days)}
            end = start + timedelta(days=days)
            try:
                with rows.sql.transaction():
                    rows.payment(*customer, start=start, end=end, attempt=attempt)
                refused = False
            except errors.ExclusionViolation:
                refused = True

            assert refused == bool(charged & asked)
            charged |= set() if refused else asked


def test_the_constraint_holds_for_the_largest_ids(rows: Rows, sql: Connection) -> None:
    company, package = rows.company(), rows.package()
    for id_ in (2**40, 2**40 + 1, 2**53 - 1):
        sql.execute(f"ALTER TABLE company_packages ALTER id RESTART WITH {id_}".encode())
        company_package = rows.company_package(company, package, status=0)
        assert company_package == id_
        rows.payment(company, company_package)
        rows.payment(company, company_package, start="2026-02-10", end="2026-03-10")

        with pytest.raises(errors.ExclusionViolation), sql.transaction():
            rows.payment(company, company_package, start="2026-02-09", end="2026-02-11", attempt=2)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE company_payments SET amount_minor = 1",
        "UPDATE company_payments SET status = 0",
        "DELETE FROM company_payments",
        "TRUNCATE company_payments",
    ],
)
def test_a_company_payment_is_never_changed_or_deleted(
    rows: Rows, sql: Connection, customer: tuple[int, int], change: str
) -> None:
    rows.payment(*customer)

    with pytest.raises(errors.RestrictViolation, match="only ever added"):
        sql.execute(change.encode())


def test_a_payment_cannot_refer_to_another_companys_package(rows: Rows, customer: tuple[int, int]) -> None:
    stranger = rows.company()
    _, company_package = customer

    with pytest.raises(errors.ForeignKeyViolation):
        rows.payment(stranger, company_package)


def test_a_company_with_a_history_cannot_be_deleted(
    rows: Rows, sql: Connection, customer: tuple[int, int]
) -> None:
    with pytest.raises(errors.ForeignKeyViolation):
        sql.execute("DELETE FROM companies")


def test_migrations_go_up_and_down_and_leave_nothing(server_url: str, tmp_path: Path) -> None:
    with new_database(server_url, prefix="vade_migrations") as url:
        app = create_app(settings_for(url, tmp_path))
        folder = str(PROJECT_DIR / "migrations")
        with app.app_context():
            flask_migrate.upgrade(folder)
            flask_migrate.downgrade(folder, revision="base")
            with psycopg.connect(url) as connection:
                left = connection.execute(
                    "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace"
                    " WHERE nspname = 'public' AND relname NOT LIKE 'alembic_version%'"
                    " UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
                ).fetchall()
            flask_migrate.upgrade(folder)
            db.engine.dispose()
    assert left == []


def test_the_migrations_make_what_the_models_say(world: World) -> None:
    context = alembic.migration.MigrationContext.configure(
        world.session.connection(), opts={"compare_type": True, "compare_server_default": True}
    )

    assert alembic.autogenerate.compare_metadata(context, Base.metadata) == []


def test_flask_db_check_finds_no_drift(database_url: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wsgi", "db", "check"],
        cwd=PROJECT_DIR,
        env={"DATABASE_URL": database_url, "INSTANCE_DIR": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
