"""The figures of reports: sums of entries that are written with what they count."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from billing.reports import CurrencyFigures, DayFigures, Total, read_days
from models import ReportEntry

ISTANBUL = ZoneInfo("Europe/Istanbul")
DAY = date(2026, 1, 10)


def add_entry(session: Session, at: datetime, figure: str, number: int = 1, amount_minor: int = 0) -> None:
    attempt = 1 if figure in {"charged", "declined", "outage"} else 0
    currency = "" if figure == "registered" else "TRY"
    session.add(
        ReportEntry(
            at=at, figure=figure, currency=currency, attempt=attempt, number=number, amount_minor=amount_minor
        )
    )
    session.flush()


def test_days_on_which_nothing_was_are_there_with_zeros(session: Session) -> None:
    days = read_days(session, DAY, DAY + timedelta(days=2), zone=ISTANBUL)

    assert days == [DayFigures(DAY + timedelta(days=number)) for number in range(3)]
    assert (days[0].packages_taken, days[0].companies_lost) == (0, 0)


@pytest.mark.parametrize(
    ("at", "day"),
    [
        (datetime(2026, 1, 9, 20, 45, tzinfo=UTC), date(2026, 1, 9)),
        (datetime(2026, 1, 9, 21, 0, tzinfo=UTC), DAY),
        (datetime(2026, 1, 10, 20, 45, tzinfo=UTC), DAY),
        (datetime(2026, 1, 10, 21, 0, tzinfo=UTC), date(2026, 1, 11)),
    ],
)
def test_an_entry_is_of_its_business_day(session: Session, at: datetime, day: date) -> None:
    add_entry(session, at, "registered", 3)

    days = read_days(session, DAY - timedelta(days=3), DAY + timedelta(days=3), zone=ISTANBUL)

    assert {
        figures.date: figures.new_companies for figures in days if figures != DayFigures(figures.date)
    } == {day: 3}


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12", "America/Havana", "Asia/Beirut"])
def test_each_entry_is_of_one_day_in_every_zone(session: Session, zone: str) -> None:
    """Havana's clock shows the first hour of a day twice, Beirut's skips one's."""
    instant, end = datetime(2021, 3, 26, tzinfo=UTC), datetime(2021, 3, 30, tzinfo=UTC)
    if zone == "America/Havana":
        instant, end = datetime(2021, 11, 6, tzinfo=UTC), datetime(2021, 11, 9, tzinfo=UTC)
    expected: dict[date, int] = {}
    while instant < end:
        add_entry(session, instant, "charged", 1, 5)
        day = instant.astimezone(ZoneInfo(zone)).date()
        expected[day] = expected.get(day, 0) + 5
        instant += timedelta(minutes=15)

    for day, amount_minor in expected.items():
        (figures,) = read_days(session, day, day, zone=ZoneInfo(zone))
        assert figures.currencies[0].charged.amount_minor == amount_minor, day


def test_the_range_may_be_at_the_end_of_time(session: Session) -> None:
    assert len(read_days(session, date(9999, 12, 30), date.max, zone=ISTANBUL)) == 2
    assert len(read_days(session, date.min, date.min, zone=ISTANBUL)) == 1


def test_a_figure_is_the_sum_of_its_entries(session: Session) -> None:
    at = datetime(2026, 1, 10, 9, tzinfo=UTC)
    session.execute(
        text("""
        INSERT INTO report_entries (at, figure, currency, attempt, number, amount_minor)
        SELECT at, figure, currency, attempt, number, amount_minor FROM (VALUES
            (0, 'charged', 'TRY', 1, 2, 20), (15, 'charged', 'TRY', 1, 1, 10), (0, 'charged', 'TRY', 2, 1, 7),
            (0, 'charged', 'TRY', 3, 1, 5), (0, 'declined', 'TRY', 1, 4, 40), (0, 'declined', 'TRY', 3, 3, 9),
            (0, 'outage', 'TRY', 1, 1, 8), (30, 'outage', 'TRY', 2, 2, 3), (0, 'taken', 'TRY', 0, 6, 0),
            (0, 'declined', 'EUR', 3, 1, 99), (0, 'registered', '', 0, 5, 0), (15, 'registered', '', 0, 1, 0)
        ) AS e(minute, figure, currency, attempt, number, amount_minor),
            LATERAL (SELECT CAST(:at AS timestamptz) + make_interval(mins => minute) AS at) AS t
        """),
        {"at": at},
    )

    (day,) = read_days(session, DAY, DAY, zone=ISTANBUL)

    euro, lira = day.currencies
    assert (day.date, day.new_companies, day.packages_taken, day.companies_lost) == (DAY, 6, 6, 4)
    assert lira == CurrencyFigures(
        "TRY",
        charged_by_attempt={1: Total(3, 30), 2: Total(1, 7), 3: Total(1, 5)},
        declined_by_attempt={1: Total(4, 40), 2: Total(), 3: Total(3, 9)},
        outages=Total(3, 11),
        packages_taken=6,
    )
    assert (lira.charged, lira.declined, lira.attempts) == (Total(5, 42), Total(7, 49), Total(12, 91))
    assert (lira.recovered, lira.made_passive) == (Total(2, 12), Total(3, 9))
    assert (euro.currency, euro.attempts, euro.made_passive) == ("EUR", Total(1, 99), Total(1, 99))
