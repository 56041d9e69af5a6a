"""Entries of the reports: what a figure is the sum of, and how the worker adds them up.

Triggers write an entry for each kind of row that a statement adds, at its quarter of an hour (the first
migration that has them says how); outages, which leave no row, are written by the queue. Adding up changes no
sum: whoever reads meanwhile sees the parts, or their sum, and never both.

1. Of a business day that is over, single entries are added to the day's: one for each figure, currency and
   attempt, at its noon, with ``id`` 0. Should ``BILLING_TIMEZONE`` change, they stay of that day, where the
   zones are less than half a day apart.
2. Of the present day, and of days to come that a simulation reached, those of a quarter become one.
"""

from datetime import datetime
from zoneinfo import ZoneInfo

from sqlalchemy import text
from sqlalchemy.orm import Session

from billing.periods import business_date, local_midnight

BATCH = 10_000
"""How many entries one statement adds up at most."""

KINDS = "at, figure, currency, attempt"

QUARTER_SQL = "date_bin('15 minutes', {}, timestamptz '2000-01-01 00:00+00')"
"""The quarter of an hour of an instant: the largest step in which the business days of all zones begin."""

INTO_SQL = "INSERT INTO report_entries (at, figure, currency, attempt, number, amount_minor)"

# Rows that someone else adds up are left to them. Sums are written in the order of their keys, so that of two
# who write the same ones one waits, and never both.
_ADD_UP_DAYS = text(f"""
WITH single AS (
    SELECT {KINDS}, id FROM report_entries
    WHERE id > 0 AND at < :today ORDER BY at LIMIT :size FOR UPDATE SKIP LOCKED
), taken AS (
    DELETE FROM report_entries e USING single s
    WHERE e.at = s.at AND e.figure = s.figure AND e.currency = s.currency AND e.attempt = s.attempt
        AND e.id = s.id
    RETURNING e.*
), added AS (
    INSERT INTO report_entries AS e ({KINDS}, id, number, amount_minor)
    SELECT (date_trunc('day', at AT TIME ZONE :zone) + interval '12 hours') AT TIME ZONE :zone AS noon,
        figure, currency, attempt, 0, sum(number), sum(amount_minor)
    FROM taken GROUP BY noon, figure, currency, attempt ORDER BY noon, figure, currency, attempt
    ON CONFLICT ({KINDS}, id) DO UPDATE
    SET number = e.number + excluded.number, amount_minor = e.amount_minor + excluded.amount_minor
)
SELECT count(*) FROM taken
""")  # noqa: S608 - built from constants

# The newest quarters first: those in which entries arrive.
_ADD_UP_QUARTERS = text(f"""
WITH newest AS (
    SELECT {KINDS}, id FROM report_entries
    WHERE id > 0 AND at >= :today ORDER BY at DESC LIMIT :size FOR UPDATE SKIP LOCKED
), parts AS (
    SELECT *, count(*) OVER (PARTITION BY {KINDS}) AS parts FROM newest
), taken AS (
    DELETE FROM report_entries e USING parts s
    WHERE s.parts > 1 AND e.at = s.at AND e.figure = s.figure AND e.currency = s.currency
        AND e.attempt = s.attempt AND e.id = s.id
    RETURNING e.*
), added AS (
    {INTO_SQL}
    SELECT {KINDS}, sum(number), sum(amount_minor) FROM taken GROUP BY {KINDS}
)
SELECT count(*) FROM taken
""")  # noqa: S608 - built from constants


def add_up(session: Session, *, now: datetime, zone: ZoneInfo, size: int = BATCH) -> int:
    """Add up to ``size`` entries of days that are over, and as many of others, at business time ``now``.

    Returns how many became parts of others: call it again, in another transaction, while they are ``size`` or
    more.
    """
    today = {"today": local_midnight(business_date(now, zone), zone), "size": size}
    days: int = session.execute(_ADD_UP_DAYS, today | {"zone": str(zone)}).scalar_one()
    quarters: int = session.execute(_ADD_UP_QUARTERS, today).scalar_one()
    return days + quarters
