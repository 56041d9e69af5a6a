"""The daily report: each business day's is made once, some minutes after it, and told to the platform.

Whoever comes first makes it: a row of ``daily_reports`` and the message are one transaction. So it is made
once, however many workers there are, and whatever dies when.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import Engine, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from billing import tracing
from billing.callbacks import PLATFORM, message_body, message_id
from billing.clock import Clock, Moment
from billing.periods import business_date
from billing.reports import DayFigures, day_document, read_days
from billing.transactions import run_in_transaction
from models import PLATFORM_ID, Callback, DailyReport, ReportEntry

DAILY = "report.daily"

AFTER_MIDNIGHT = timedelta(minutes=10)
"""How long after its end a day is reported: what was claimed before midnight is settled by then."""

MOST_MISSED = 31
"""How many days are made up for at most where no worker ran: the latest."""

MOST_CURRENCIES = 16
"""How many a message shows: it stays below 20 KB with the largest figures."""


def make_due(
    engine: Engine,
    clock: Clock,
    *,
    zone: ZoneInfo,
    by_platform: bool,
    stopped: Callable[[], bool] = lambda: False,
) -> list[date]:
    """Make the reports that are due, oldest first, each in a transaction; return the days this one made.

    Raises:
        sqlalchemy.exc.DBAPIError: when the database fails.
    """

    def due(session: Session) -> list[date]:
        return list_due(session, clock.read(session).business, zone=zone)

    made: list[date] = []
    for day in run_in_transaction(engine, due):
        if stopped():
            break

        def make_one(session: Session, day: date = day) -> bool:
            return make(session, day, clock.read(session), zone=zone, by_platform=by_platform)

        if run_in_transaction(engine, make_one):
            made.append(day)
    return made


def list_due(session: Session, now: datetime, *, zone: ZoneInfo) -> list[date]:
    """Return the days that are to be reported at business time ``now``, oldest first.

    Those since the last that was, the latest 31 of them. Where none was, it is the last day that is over,
    unless Vade knows of nothing that early.
    """
    last_over = business_date(now - AFTER_MIDNIGHT, zone) - timedelta(days=1)
    last_made = session.scalar(select(func.max(DailyReport.day)))
    if last_made is None:
        first_at = session.scalar(select(func.min(ReportEntry.at)))
        return [last_over] if first_at is not None and business_date(first_at, zone) <= last_over else []
    missed = min((last_over - last_made).days, MOST_MISSED)
    return [last_over - timedelta(days=ago) for ago in reversed(range(missed))]


def make(session: Session, day: date, moment: Moment, *, zone: ZoneInfo, by_platform: bool) -> bool:
    """Note that a day is reported, and write the platform its message; False where someone did already."""
    noted = insert(DailyReport).values(day=day, made_at=moment.real).on_conflict_do_nothing()
    if session.execute(noted.returning(DailyReport.day)).one_or_none() is None:
        return False
    if by_platform:
        (figures,) = read_days(session, day, day, zone=zone)
        session.add(
            Callback(
                company_id=PLATFORM_ID,
                id=message_id(PLATFORM_ID, f"{DAILY}{day}"),
                recipient=PLATFORM,
                type=DAILY,
                body=_body(figures, now=moment.business),
                request_id=tracing.current_id(),
            )
        )
    return True


def _body(day: DayFigures, *, now: datetime) -> str:
    """Return the message; of very many currencies, it shows those with the most attempts."""
    by_attempts = sorted(day.currencies, key=lambda figures: -figures.attempts.number)
    shown = sorted(by_attempts[:MOST_CURRENCIES], key=lambda figures: figures.currency)
    currencies = day_document(replace(day, currencies=tuple(shown)))["currencies"]
    report = day_document(day) | {"currencies": currencies}
    omitted = len(day.currencies) - len(shown)
    return message_body(DAILY, {"report": report, "omitted_currencies": omitted}, now=now)
