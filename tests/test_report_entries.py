"""Entries of the reports: written with what they count, and added up without changing a sum."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import flask_migrate
import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from billing.gateways import GatewayUnavailable
from billing.periods import local_midnight
from billing.report_entries import add_up
from billing.reports import read_days
from config import PROJECT_DIR
from models import db
from tests.conftest import new_database, settings_for
from tests.crowds import crowd
from tests.figures import COLUMNS, ISTANBUL, Payer, counted, insert, reported
from tests.world import LedgerGateway, World, instant
from wsgi import create_app

NOW = instant("2026-03-20", hour=12)
FIRST, LAST = date(2026, 1, 1), date(2026, 4, 30)


@pytest.fixture
def payer(world: World) -> Payer:
    """The attempts of a company that registered in January."""
    world.travel(instant("2026-01-10"))
    company_package = world.company_package(world.customer())
    return Payer(company_package.company_id, company_package.id)


def raw(session: Session) -> "psycopg.Connection[Any]":
    connection: psycopg.Connection[Any] = session.connection().connection.driver_connection  # type: ignore[assignment]
    return connection


def entries(session: Session) -> list[tuple[Any, ...]]:
    """What stands there of attempts: instant, figure, attempt, number and amount, in a stable order."""
    columns = "at, figure, attempt, number, amount_minor"
    query = text(f"SELECT {columns} FROM report_entries WHERE attempt > 0 ORDER BY 1, 2, 3")
    return [(row[0].astimezone(UTC), *row[1:]) for row in session.execute(query)]


def number_of_entries(session: Session) -> int:
    return int(session.execute(text("SELECT count(*) FROM report_entries")).scalar_one())


def test_a_statement_writes_an_entry_for_each_kind_of_row(world: World, payer: Payer) -> None:
    quarter = datetime(2026, 2, 10, 9, 15, tzinfo=UTC)
    rows = [
        payer.row(quarter),
        payer.row(quarter + timedelta(minutes=14, seconds=59.999999), amount_minor=7),
        payer.row(quarter + timedelta(minutes=15)),
        payer.row(quarter, status=0),
        payer.row(quarter, attempt=2, amount_minor=3),
        payer.row(quarter, attempt=3, status=0, amount_minor=2),
    ]

    insert(raw(world.session), *rows)

    assert entries(world.session) == [
        (quarter, "charged", 1, 2, 107),
        (quarter, "charged", 2, 1, 3),
        (quarter, "declined", 1, 1, 100),
        (quarter, "declined", 3, 1, 2),
        (quarter + timedelta(minutes=15), "charged", 1, 1, 100),
    ]


def test_copied_rows_are_counted_and_no_rows_are_none(world: World, payer: Payer) -> None:
    rows = [payer.row(NOW + timedelta(minutes=minute)) for minute in (0, 1, 20)]

    with raw(world.session).cursor().copy(f"COPY company_payments ({COLUMNS}) FROM STDIN".encode()) as copy:
        for row in rows:
            copy.write_row(row)
    nothing = f"INSERT INTO company_payments ({COLUMNS}) SELECT {COLUMNS} FROM company_payments WHERE false"
    world.session.execute(text(nothing))
    again = nothing.replace("WHERE false", "ON CONFLICT DO NOTHING")
    world.session.execute(text(again))

    assert [entry[3] for entry in entries(world.session)] == [2, 1]
    assert reported(world.session, FIRST, LAST) == counted(world.session)


def test_what_is_rolled_back_is_not_counted(world: World, payer: Payer) -> None:
    savepoint = world.session.begin_nested()
    insert(raw(world.session), payer.row(NOW))
    savepoint.rollback()

    assert entries(world.session) == []


def test_companies_and_packages_are_counted_on_the_day_of_business_time(world: World) -> None:
    for day, number in (("2026-01-31", 2), ("2026-02-01", 1)):
        for _ in range(number):
            world.travel(instant(day, hour=0))
            world.customer()
    world.company()
    world.session.execute(text(crowd(3, start=date(2026, 2, 5), end=date(2026, 3, 5))))

    days = {day.date: day for day in read_days(world.session, FIRST, LAST, zone=ISTANBUL)}

    assert {day: figures.new_companies for day, figures in days.items() if figures.new_companies} == {
        date(2026, 1, 31): 2,
        date(2026, 2, 1): 2,
        date(2026, 2, 5): 3,
    }
    assert {day: figures.packages_taken for day, figures in days.items() if figures.packages_taken} == {
        date(2026, 1, 31): 2,
        date(2026, 2, 1): 1,
        date(2026, 2, 5): 3,  # these do not say when: their first day counts
    }


def test_an_outage_is_counted_of_what_was_moved_and_of_nothing_else(world: World) -> None:
    world.customer(registered_at=instant("2026-01-10"), price_minor=500)
    world.customer(registered_at=instant("2026-01-10"), price_minor=700, currency="EUR")
    at = instant("2026-02-12", hour=23)

    world.collect(LedgerGateway(GatewayUnavailable, GatewayUnavailable), at=at)
    world.end_leases()
    world.collect(LedgerGateway(GatewayUnavailable), at=at)

    (day,) = read_days(world.session, date(2026, 2, 12), date(2026, 2, 12), zone=ISTANBUL)
    outages = {figures.currency: figures.outages for figures in day.currencies}
    assert sum((total.number for total in outages.values()), 0) == 3
    assert outages["EUR"].amount_minor == 700 * outages["EUR"].number
    assert outages["TRY"].amount_minor == 500 * outages["TRY"].number
    assert sum(figures.attempts.number for figures in day.currencies) == 1


def add_all_up(
    session: Session, *, now: datetime = NOW, zone: ZoneInfo = ISTANBUL, size: int = 10_000
) -> None:
    while add_up(session, now=now, zone=zone, size=size) >= size:
        pass


def test_what_is_over_becomes_one_entry_a_day_and_the_present_one_a_quarter(
    world: World, payer: Payer
) -> None:
    yesterday, today = local_midnight(NOW.date() - timedelta(days=1), ISTANBUL), NOW.replace(hour=0)
    for hour in (0, 1, 23):
        insert(raw(world.session), payer.row(yesterday + timedelta(hours=hour)), payer.row(NOW, status=0))
        insert(raw(world.session), payer.row(NOW + timedelta(days=3)), payer.row(today, attempt=2))
    before = reported(world.session, FIRST, LAST)

    add_all_up(world.session)

    assert entries(world.session) == [
        (yesterday + timedelta(hours=12), "charged", 1, 3, 300),
        (today, "charged", 2, 3, 300),
        (NOW, "declined", 1, 3, 300),
        (NOW + timedelta(days=3), "charged", 1, 3, 300),
    ]
    assert reported(world.session, FIRST, LAST) == before == counted(world.session)
    assert add_up(world.session, now=NOW, zone=ISTANBUL) == 0, "nothing is left to do"


def test_rows_that_come_late_are_right_at_once_before_and_after_adding_up(world: World, payer: Payer) -> None:
    for number, late in enumerate((instant("2026-01-31", hour=23), instant("2026-02-01", hour=0)) * 3):
        insert(raw(world.session), payer.row(late + timedelta(minutes=number)), payer.row(late, status=0))
        assert reported(world.session, FIRST, LAST) == counted(world.session)
        add_all_up(world.session)
        assert reported(world.session, FIRST, LAST) == counted(world.session)

    assert len(entries(world.session)) == 4, "of two days, two figures"


def test_it_is_done_a_few_entries_at_a_time(world: World, payer: Payer) -> None:
    for number in range(10):
        insert(raw(world.session), payer.row(NOW - timedelta(days=number % 3, minutes=number)))
    before = number_of_entries(world.session)

    assert 1 <= add_up(world.session, now=NOW, zone=ISTANBUL, size=3) <= 6
    assert before - 6 <= number_of_entries(world.session) < before
    add_all_up(world.session, size=3)

    assert number_of_entries(world.session) < before
    assert reported(world.session, FIRST, LAST) == counted(world.session)


@pytest.mark.parametrize("zone", ["America/Havana", "Asia/Beirut", "Pacific/Kiritimati", "Etc/GMT+12"])
def test_a_day_that_was_added_up_stays_that_day_in_every_zone(world: World, payer: Payer, zone: str) -> None:
    """Havana's clock shows the first hour of 7 November 2021 twice, Beirut's skips one's in March."""
    for month, day in ((3, 26), (11, 6)):
        start = datetime(2021, month, day, tzinfo=UTC)
        rows = [payer.row(start + timedelta(minutes=30 * number)) for number in range(120)]
        insert(raw(world.session), *rows)
    place = ZoneInfo(zone)

    add_all_up(world.session, zone=place)

    first, last = date(2021, 3, 1), date(2021, 12, 1)
    assert reported(world.session, first, last, zone=place) == {
        key: value for key, value in counted(world.session, zone=place).items() if key[0] < last
    }
    assert len(entries(world.session)) <= 8


def test_in_another_zone_what_was_added_up_stays_of_its_day(world: World, payer: Payer) -> None:
    insert(raw(world.session), payer.row(instant("2026-02-10", hour=1)))
    add_all_up(world.session)
    insert(raw(world.session), payer.row(instant("2026-03-10", hour=1)))

    found = reported(world.session, FIRST, LAST, zone=ZoneInfo("Europe/London"))

    assert {key[0] for key in found if key[2] == "charged"} == {date(2026, 2, 10), date(2026, 3, 9)}


def test_the_sum_never_changes_while_two_add_up_and_rows_arrive(committed: World) -> None:
    committed.travel(instant("2026-01-10"))
    company_package = committed.company_package(committed.customer())
    payer = Payer(company_package.company_id, company_package.id)
    url, over = str(committed.vade.settings.database_url), threading.Event()
    instants = [NOW - timedelta(hours=5 * number) for number in range(12)]
    rows = [payer.row(at, status=number % 2) for number in range(40) for at in instants]
    engine = db.engine

    def add_up_again_and_again() -> int:
        done = 0
        while not over.is_set():
            with Session(engine) as session:
                done += add_up(session, now=NOW, zone=ISTANBUL, size=7)
                session.commit()
        return done

    def arrive() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            for first in range(0, len(rows), 4):
                insert(connection, *rows[first : first + 4])

    def look() -> int:
        looks = 0
        while not over.is_set():
            with Session(engine) as session:
                session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
                assert reported(session, FIRST, LAST) == counted(session)
            looks += 1
        return looks

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(add_up_again_and_again) for _ in range(2)]
        looker = pool.submit(look)
        try:
            pool.submit(arrive).result()
        finally:
            over.set()
        assert looker.result() > 1
        assert all(each.result() for each in workers), "both had something to add up"

    with Session(engine) as session:
        add_all_up(session)
        assert reported(session, FIRST, LAST) == counted(session)
        assert len(entries(session)) < 30


def test_what_was_there_before_the_migration_is_counted_as_if_it_had_come_after(
    server_url: str, tmp_path: Path
) -> None:
    waited_for: list[set[str]] = []

    def look(connection: Any, _: Any, statement: str, *__: Any) -> None:
        """Note what is locked when the payments are counted, and when the companies are."""
        if "INSERT INTO report_entries" in statement and not statement.lstrip().startswith("CREATE"):
            held = connection.connection.driver_connection.execute(
                "SELECT relation::regclass::text FROM pg_locks WHERE pid = pg_backend_pid()"
                " AND relation > 16384 AND mode ~ 'Exclusive' AND relation::regclass::text = ANY(%s)",
                [["companies", "company_packages", "packages", "payment_jobs", "company_payments"]],
            )
            waited_for.append({name for (name,) in held})

    with new_database(server_url, prefix="vade_counted") as url:
        app = create_app(settings_for(url, tmp_path))
        with app.app_context():
            migrations = str(PROJECT_DIR / "migrations")
            flask_migrate.upgrade(migrations, revision="0003")
            with psycopg.connect(url) as connection:
                connection.execute(crowd(5, start=date(2026, 1, 31), end=date(2026, 2, 28)).encode())
                payer = Payer(1, 1)
                before = [payer.row(NOW + timedelta(hours=7 * n), status=n % 2) for n in range(50)]
                insert(connection, *before)
            event.listen(db.engine, "before_cursor_execute", look)
            flask_migrate.upgrade(migrations)
            with psycopg.connect(url) as connection:
                insert(connection, payer.row(NOW), payer.row(NOW, attempt=3, currency="EUR"))
            session = db.session()
            # Of the package with payments, the first period that was paid tells when it was taken.
            taken = "CASE id WHEN 1 THEN timestamptz '1970-01-03 12:00+02' ELSE '2026-01-31 12:00+03' END"
            session.execute(text(f"UPDATE company_packages SET taken_at = {taken}"))
            session.commit()
            expected = counted(session)
            found = reported(session, date(1970, 1, 1), LAST)
            db.session.remove()
            db.engine.dispose()

    assert waited_for[0] == {"company_payments"}, "requests go on while payments are counted"
    assert found == expected
    assert sum(value for key, value in found.items() if key[2:] == ("charged", 1, "number")) == 26
