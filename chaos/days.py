"""Billing days and amounts by the contract (DESIGN.md §2), worked out anew: nothing here is the product's."""

import calendar
from datetime import date, datetime, time, timedelta
from fractions import Fraction
from typing import NamedTuple
from zoneinfo import ZoneInfo

ZONE = ZoneInfo("Europe/Istanbul")
DAY = timedelta(days=1)
MONTHS = {"monthly": 1, "yearly": 12}


class Period(NamedTuple):
    """``[start, end)`` and how many days the full period has that its price is for."""

    start: date
    end: date
    full_days: int


def billing_dates(around: date, billing_day: int, months: int) -> tuple[date, date]:
    """Return the last billing day on or before a date, and the one some months after it."""
    index = max(
        month
        for month in range(around.year * 12 + around.month - 3, around.year * 12 + around.month)
        if _in_month(month, billing_day) <= around
    )
    return _in_month(index, billing_day), _in_month(index + months, billing_day)


def period_from(start: date, billing_day: int, period: str) -> Period:
    """Return the period that begins on a date."""
    first, end = billing_dates(start, billing_day, MONTHS[period])
    return Period(start, end, (end - first).days)


def amount_minor(price_minor: int, period: Period) -> int:
    """Return what a period costs: the price by the days used, a half rounded up."""
    exact = Fraction(price_minor * (period.end - period.start).days, period.full_days)
    return int(exact + Fraction(1, 2))


def midnight(day: date) -> datetime:
    """Return when a business day begins."""
    return datetime.combine(day, time(), ZONE)


def business_day(instant: datetime) -> date:
    """Return the day on the calendar of the business."""
    return instant.astimezone(ZONE).date()


def _in_month(index: int, billing_day: int) -> date:
    year, month = index // 12, index % 12 + 1
    return date(year, month, min(billing_day, calendar.monthrange(year, month)[1]))
