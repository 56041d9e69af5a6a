"""The figures of reports beside a plain count of rows, in Python."""

import uuid
from collections import Counter
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import psycopg
from sqlalchemy import text
from sqlalchemy.orm import Session

from billing.reports import read_days

ISTANBUL = ZoneInfo("Europe/Istanbul")

Figures = Counter[tuple[date, str, str, int, str]]
"""What was on a day, in a currency, of a kind, at an attempt: its number and its amount."""

COLUMNS = """company_id, id, company_package_id, attempt, status, amount_minor, currency, period_start,
    period_end, reference, attempted_at"""

_PAYMENTS = text("SELECT attempted_at, currency, status, attempt, amount_minor FROM company_payments")
_PACKAGES = text("SELECT taken_at, currency FROM company_packages")
_COMPANIES = text("SELECT registered_at FROM companies")


def reported(session: Session, first: date, last: date, *, zone: ZoneInfo = ISTANBUL) -> Figures:
    """Return what the reports say, without what is zero."""
    found: Figures = Counter()
    for day in read_days(session, first, last, zone=zone):
        found[day.date, "", "registered", 0, "number"] += day.new_companies
        for figures in day.currencies:
            found[day.date, figures.currency, "taken", 0, "number"] += figures.packages_taken
            kinds = {"charged": figures.charged_by_attempt, "declined": figures.declined_by_attempt}
            for kind, by_attempt in kinds.items():
                for attempt, total in by_attempt.items():
                    found[day.date, figures.currency, kind, attempt, "number"] += total.number
                    found[day.date, figures.currency, kind, attempt, "amount"] += total.amount_minor
    return +found


def counted(session: Session, *, zone: ZoneInfo = ISTANBUL) -> Figures:
    """Return the same, counted one by one from the rows."""
    found: Figures = Counter()
    for attempted_at, currency, status, attempt, amount_minor in session.execute(_PAYMENTS):
        kind = "charged" if status == 1 else "declined"
        day = attempted_at.astimezone(zone).date()
        found[day, currency, kind, attempt, "number"] += 1
        found[day, currency, kind, attempt, "amount"] += amount_minor
    for taken_at, currency in session.execute(_PACKAGES):
        found[taken_at.astimezone(zone).date(), currency, "taken", 0, "number"] += 1
    for (registered_at,) in session.execute(_COMPANIES):
        found[registered_at.astimezone(zone).date(), "", "registered", 0, "number"] += 1
    return found


class Payer:
    """Adds attempts of one company package by plain SQL, each of a period of its own."""

    def __init__(self, company_id: int, company_package_id: int) -> None:
        self._of = (company_id, company_package_id)
        self._start = date(1970, 1, 1)

    def row(
        self,
        at: datetime,
        *,
        attempt: int = 1,
        status: int = 1,
        amount_minor: int = 100,
        currency: str = "TRY",
    ) -> tuple[object, ...]:
        """Return the values of one attempt, in the order of COLUMNS."""
        self._start += timedelta(days=2)
        company_id, company_package_id = self._of
        end = self._start + timedelta(days=1)
        of_attempt = (attempt, status, amount_minor, currency, self._start, end, "r", at)
        return (company_id, uuid.uuid4(), company_package_id, *of_attempt)


def insert(connection: psycopg.Connection, *rows: tuple[object, ...]) -> None:
    """Add attempts by one statement."""
    values = ", ".join(f"({', '.join(['%s'] * len(row))})" for row in rows)
    statement = f"INSERT INTO company_payments ({COLUMNS}) VALUES {values}"
    connection.execute(statement.encode(), [value for row in rows for value in row])
