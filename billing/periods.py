"""Billing days, periods and proration: what is due, from which day to which, and for how much.

Pure calendar and integer arithmetic: no clock, no database. Every boundary is computed from the day of month
on which the company registered, never from the boundary before it, so that a short month shortens one period
and not all that follow. The rules are those of `DESIGN.md §2.3` and `§2.4`.
"""

import calendar
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, UTC, date, datetime, time
from enum import StrEnum
from functools import lru_cache
from zoneinfo import ZoneInfo


class PackagePeriod(StrEnum):
    """How often a package is paid for."""

    MONTHLY = "monthly"
    YEARLY = "yearly"

    @property
    def months(self) -> int:
        """The number of months from one boundary to the next."""
        return 12 if self is PackagePeriod.YEARLY else 1


@dataclass(frozen=True, slots=True)
class BillingPeriod:
    """A half-open period `[start_date, end_date)`, and the length of the full period its price is for.

    `full_days` counts from the last billing day on or before `start_date`; it is more than `days` where the
    period began off the billing day, and equal to it everywhere else.
    """

    start_date: date
    end_date: date
    full_days: int

    @property
    def days(self) -> int:
        """The number of days in the period."""
        return (self.end_date - self.start_date).days


def billing_day_of(registered_at: datetime, zone: ZoneInfo) -> int:
    """Return the day of month, 1 to 31, on which a company registered in `zone` (`DESIGN.md §2.3`).

    It is not clamped here: the 31st is the 31st, and `billing_date` fits it to each month. A naive
    `registered_at` raises `ValueError`.
    """
    return business_date(registered_at, zone).day


def billing_date(year: int, month: int, billing_day: int) -> date:
    """Return the billing day of one month: `billing_day`, or the month's last day where it has no such day.

    Raises `ValueError` for a year outside 1..9999, a month outside 1..12 or a billing day outside 1..31.
    """
    for name, value, least, most in (
        ("year", year, MINYEAR, MAXYEAR),
        ("month", month, 1, 12),
        ("billing day", billing_day, 1, 31),
    ):
        if not least <= value <= most:
            message = f"{name} {value} is not within {least}..{most}"
            raise ValueError(message)
    _, last_day = calendar.monthrange(year, month)
    return date(year, month, min(billing_day, last_day))


def open_period(start_date: date, *, billing_day: int, period: PackagePeriod) -> BillingPeriod:
    """Return the period that opens on `start_date`, at assignment or at roll-over (`DESIGN.md §2.3`).

    1. Find the last billing day on or before `start_date`: this month's, or else the month before's.
    2. The period ends on the billing day of the month 1 or 12 months after that one.
    3. The full period, which the price is for, is the time between the two.

    Raises `ValueError` for a billing day outside 1..31, and where the full period leaves the years 1..9999.
    """
    return _open_period(start_date, billing_day, period.months)


# The queue asks for each row of a batch, and a batch has few distinct questions. The cache stands behind the
# public function because `lru_cache` hides from mypy what its function takes.
@lru_cache(maxsize=4096)
def _open_period(start_date: date, billing_day: int, months: int) -> BillingPeriod:
    full_start = billing_date(start_date.year, start_date.month, billing_day)
    if full_start > start_date:
        full_start = _billing_date_months_after(full_start, -1, billing_day)
    end_date = _billing_date_months_after(full_start, months, billing_day)
    return BillingPeriod(start_date, end_date, full_days=(end_date - full_start).days)


def _billing_date_months_after(day: date, months: int, billing_day: int) -> date:
    year, month_index = divmod(day.year * 12 + day.month - 1 + months, 12)
    return billing_date(year, month_index + 1, billing_day)


def prorated(price_minor: int, *, days: int, full_days: int) -> int:
    """Return `price_minor * days / full_days` in minor units, rounded half up (`DESIGN.md §2.4`).

    In integers throughout: a float would round a half down now and then. Raises `ValueError` for a negative
    price, and unless `1 <= days <= full_days`.
    """
    if price_minor < 0:
        message = f"price_minor {price_minor} is negative"
        raise ValueError(message)
    if not 1 <= days <= full_days:
        message = f"days {days} is not within 1..{full_days}, the days of the full period"
        raise ValueError(message)
    return (2 * price_minor * days + full_days) // (2 * full_days)


def local_midnight(day: date, zone: ZoneInfo) -> datetime:
    """Return 00:00 of `day` in `zone` as an instant in UTC, the one PostgreSQL calls by that name.

    Equal to `day::timestamp AT TIME ZONE zone`. Where the clock skips midnight, PostgreSQL takes the offset
    from before the change, and where midnight comes twice the offset from after it (its manual, B.2): the
    later of two instants in both cases. Two things can part them: another release of the time zone data, and
    the names `CET`, `EET`, `MET` and `WET`, which are zones here but fixed offsets after `AT TIME ZONE`.
    Raises `ValueError` where the instant is outside the years 1..9999.
    """
    midnight = datetime.combine(day, time.min, tzinfo=zone)
    try:
        return max(midnight.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
    except OverflowError as error:
        message = f"midnight of {day} in {zone} is outside the years 1..9999"
        raise ValueError(message) from error


def business_date(instant: datetime, zone: ZoneInfo) -> date:
    """Return the day that the calendar in `zone` shows at `instant`.

    Raises `ValueError` for a naive `instant`, and where that day is outside the years 1..9999.
    """
    if instant.utcoffset() is None:
        message = f"{instant!r} is naive: an instant needs its zone"
        raise ValueError(message)
    try:
        return instant.astimezone(zone).date()
    except OverflowError as error:
        message = f"{instant} in {zone} is outside the years 1..9999"
        raise ValueError(message) from error
