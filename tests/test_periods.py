"""The laws of billing days, periods and proration (`DESIGN.md §2.3`, `§2.4`).

The properties are held against a rule that shares no arithmetic with `billing.periods`: `billing_days` walks
the calendar day by day and writes down each day that is the registration day, or that ends a month too short
for it. A period then goes from one entry of that list to the next, or to the twelfth after it.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.periods import (
    BillingPeriod,
    PackagePeriod,
    billing_date,
    billing_day_of,
    business_date,
    local_midnight,
    open_period,
    prorated,
)

MONTHLY, YEARLY = PackagePeriod.MONTHLY, PackagePeriod.YEARLY
ISTANBUL = ZoneInfo("Europe/Istanbul")
FIRST, LAST = date(1970, 1, 1), date(2100, 12, 31)
ONE_DAY = timedelta(days=1)

# No deadline: the first example with a registration day walks the calendar, the others do not.
law = settings(deadline=None, max_examples=200)
registration_days = st.integers(1, 31)
starts = st.dates(FIRST, LAST)
package_periods = st.sampled_from(PackagePeriod)
prices_minor = st.integers(0, 10**12)
shares = st.integers(1, 366).flatmap(lambda full: st.tuples(st.integers(1, full), st.just(full)))


@cache
def billing_days(registration_day: int) -> list[date]:
    """Every billing day around 1970 to 2100, in order."""
    days = []
    day, until = FIRST - timedelta(days=40), LAST + timedelta(days=800)
    while day < until:
        tomorrow = day + ONE_DAY
        if day.day == registration_day or (day.day < registration_day and tomorrow.day == 1):
            days.append(day)
        day = tomorrow
    return days


def expected_period(start_date: date, registration_day: int, period: PackagePeriod) -> BillingPeriod:
    """The period by counting entries in the list of all billing days."""
    days = billing_days(registration_day)
    last = bisect_right(days, start_date) - 1
    end_date = days[last + {MONTHLY: 1, YEARLY: 12}[period]]
    return BillingPeriod(start_date, end_date, (end_date - days[last]).days)


def chain(start_date: date, registration_day: int, *periods: PackagePeriod) -> list[date]:
    """The boundaries of consecutive periods, the start included."""
    boundaries = [start_date]
    for period in periods:
        boundaries.append(open_period(boundaries[-1], billing_day=registration_day, period=period).end_date)
    return boundaries


def days_of(*texts: str) -> list[date]:
    return [date.fromisoformat(text) for text in texts]


# The contract's table


@pytest.mark.parametrize(
    ("registered", "assigned", "period", "ends", "days", "full_days", "next_end"),
    [
        ("2026-01-10", "2026-01-10", MONTHLY, "2026-02-10", 31, 31, "2026-03-10"),
        ("2026-01-10", "2026-03-15", MONTHLY, "2026-04-10", 26, 31, "2026-05-10"),
        ("2026-01-10", "2026-03-15", YEARLY, "2027-03-10", 360, 365, "2028-03-10"),
        ("2026-01-31", "2026-01-31", MONTHLY, "2026-02-28", 28, 28, "2026-03-31"),
        ("2026-01-31", "2026-02-28", MONTHLY, "2026-03-31", 31, 31, "2026-04-30"),
        ("2024-02-29", "2024-02-29", YEARLY, "2025-02-28", 365, 365, "2026-02-28"),
    ],
)
def test_the_contracts_table_holds(
    *,
    registered: str,
    assigned: str,
    period: PackagePeriod,
    ends: str,
    days: int,
    full_days: int,
    next_end: str,
) -> None:
    registered_at = datetime.combine(date.fromisoformat(registered), time(12), tzinfo=ISTANBUL)
    billing_day = billing_day_of(registered_at, ISTANBUL)

    first = open_period(date.fromisoformat(assigned), billing_day=billing_day, period=period)
    second = open_period(first.end_date, billing_day=billing_day, period=period)

    assert first == BillingPeriod(date.fromisoformat(assigned), date.fromisoformat(ends), full_days)
    assert first.days == days
    assert second.end_date == date.fromisoformat(next_end)
    assert second.days == second.full_days


@pytest.mark.parametrize(
    ("price_minor", "days", "full_days", "amount_minor"),
    [
        (10_000, 26, 31, 8_387),  # 8387.09…
        (100_000, 360, 365, 98_630),  # 98630.13…
        (29_900, 26, 31, 25_077),  # 25077.41…
        (1, 1, 2, 1),  # a half goes up
        (3, 1, 2, 2),  # 1.5 goes up, as it would to even
        (5, 1, 2, 3),  # 2.5 goes up, where to even it would go down
        (1, 1, 3, 0),
        (0, 26, 31, 0),
    ],
)
def test_a_period_begun_off_the_billing_day_costs_its_share_of_the_price(
    *, price_minor: int, days: int, full_days: int, amount_minor: int
) -> None:
    assert prorated(price_minor, days=days, full_days=full_days) == amount_minor


def test_a_boundary_is_counted_from_the_registration_day_never_from_the_last_boundary() -> None:
    boundaries = chain(date(2027, 1, 31), 31, *[MONTHLY] * 24)

    assert boundaries == days_of(
        *("2027-01-31", "2027-02-28", "2027-03-31", "2027-04-30", "2027-05-31", "2027-06-30", "2027-07-31"),
        *("2027-08-31", "2027-09-30", "2027-10-31", "2027-11-30", "2027-12-31"),
        *("2028-01-31", "2028-02-29", "2028-03-31", "2028-04-30", "2028-05-31", "2028-06-30", "2028-07-31"),
        *("2028-08-31", "2028-09-30", "2028-10-31", "2028-11-30", "2028-12-31", "2029-01-31"),
    )


def test_a_company_of_29_february_is_billed_on_the_28th_until_the_next_leap_year() -> None:
    boundaries = chain(date(2024, 2, 29), 29, *[YEARLY] * 4)

    assert boundaries == days_of("2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29")


def test_a_century_that_is_no_leap_year_has_no_29_february() -> None:
    boundaries = chain(date(2096, 2, 29), 29, *[YEARLY] * 8)

    assert boundaries[4] == date(2100, 2, 28)
    assert boundaries[8] == date(2104, 2, 29)


def test_a_company_of_28_february_is_billed_on_the_28th_also_in_a_leap_year() -> None:
    boundaries = chain(date(2027, 2, 28), 28, YEARLY, MONTHLY)

    assert boundaries == days_of("2027-02-28", "2028-02-28", "2028-03-28")


# Laws of periods, against the list of all billing days


@pytest.mark.parametrize("period", PackagePeriod)
@pytest.mark.parametrize("registration_day", range(1, 32))
def test_a_first_period_may_start_on_any_day(registration_day: int, period: PackagePeriod) -> None:
    four_years = [date(2023, 12, 1) + timedelta(days=n) for n in range(4 * 365 + 1 + 31)]

    opened = [open_period(day, billing_day=registration_day, period=period) for day in four_years]

    assert opened == [expected_period(day, registration_day, period) for day in four_years]


@law
@given(starts, registration_days, package_periods)
def test_a_period_ends_one_or_twelve_billing_days_after_the_last_on_or_before_its_start(
    start_date: date, registration_day: int, period: PackagePeriod
) -> None:
    opened = open_period(start_date, billing_day=registration_day, period=period)

    assert opened == expected_period(start_date, registration_day, period)


@law
@given(starts, registration_days, package_periods)
def test_a_period_holds_no_billing_day_but_those_of_its_own_months(
    start_date: date, registration_day: int, period: PackagePeriod
) -> None:
    days = billing_days(registration_day)

    opened = open_period(start_date, billing_day=registration_day, period=period)

    between = days[bisect_right(days, start_date) : bisect_left(days, opened.end_date)]
    assert opened.end_date in days
    assert opened.start_date == start_date < opened.end_date
    assert len(between) == {MONTHLY: 0, YEARLY: 11}[period]
    assert 1 <= opened.days <= opened.full_days


@law
@given(starts, registration_days, package_periods)
def test_a_period_is_full_exactly_when_it_starts_on_a_billing_day(
    start_date: date, registration_day: int, period: PackagePeriod
) -> None:
    on_billing_day = start_date in billing_days(registration_day)

    opened = open_period(start_date, billing_day=registration_day, period=period)

    assert (opened.days == opened.full_days) == on_billing_day


@law
@given(st.dates(FIRST, date(2096, 12, 31)), registration_days, package_periods)
def test_consecutive_periods_leave_out_no_billing_day_and_are_full_after_the_first(
    start_date: date, registration_day: int, period: PackagePeriod
) -> None:
    days = billing_days(registration_day)

    first, *later = pairwise(chain(start_date, registration_day, *[period] * 4))

    step = {MONTHLY: 1, YEARLY: 12}[period]
    assert days.index(first[1]) - (bisect_right(days, start_date) - 1) == step
    for start, end in later:
        opened = open_period(start, billing_day=registration_day, period=period)
        assert (opened.start_date, opened.end_date) == (start, end)
        assert opened.days == opened.full_days
        assert days.index(end) - days.index(start) == step


@law
@given(starts, registration_days, package_periods, st.data())
def test_an_end_depends_on_the_registration_day_and_not_on_where_between_two_billing_days_the_start_was(
    start_date: date, registration_day: int, period: PackagePeriod, data: st.DataObject
) -> None:
    days = billing_days(registration_day)
    here = bisect_right(days, start_date)
    other_start = data.draw(st.dates(days[here - 1], days[here] - ONE_DAY))

    one = open_period(start_date, billing_day=registration_day, period=period)
    other = open_period(other_start, billing_day=registration_day, period=period)

    assert (one.end_date, one.full_days) == (other.end_date, other.full_days)


@law
@given(starts, registration_days, st.lists(package_periods, min_size=1, max_size=10))
def test_an_end_does_not_depend_on_the_way_that_led_to_it(
    start_date: date, registration_day: int, way: list[PackagePeriod]
) -> None:
    in_months = [MONTHLY] * (way.count(MONTHLY) + 12 * way.count(YEARLY))

    end_date = chain(start_date, registration_day, *way)[-1]

    assert chain(start_date, registration_day, *sorted(way))[-1] == end_date
    assert chain(start_date, registration_day, *reversed(way))[-1] == end_date
    assert chain(start_date, registration_day, *in_months)[-1] == end_date


@law
@given(starts, registration_days, package_periods)
def test_a_later_start_never_ends_earlier(
    start_date: date, registration_day: int, period: PackagePeriod
) -> None:
    one = open_period(start_date, billing_day=registration_day, period=period)
    next_day = open_period(start_date + ONE_DAY, billing_day=registration_day, period=period)

    assert one.end_date <= next_day.end_date


# Laws of proration


@law
@given(prices_minor, shares)
def test_an_amount_is_the_exact_share_rounded_half_up(price_minor: int, share: tuple[int, int]) -> None:
    days, full_days = share
    exact = Decimal(price_minor) * days / full_days

    amount_minor = prorated(price_minor, days=days, full_days=full_days)

    assert amount_minor == int(exact.quantize(Decimal(1), ROUND_HALF_UP))
    assert 0 <= amount_minor <= price_minor


@law
@given(st.integers(0, 10**12), st.integers(1, 183))
def test_half_a_minor_unit_is_rounded_up(whole_minor: int, days: int) -> None:
    odd_price_minor = 2 * whole_minor + 1

    amount_minor = prorated(odd_price_minor, days=days, full_days=2 * days)

    assert amount_minor == whole_minor + 1


@law
@given(prices_minor, st.integers(1, 366))
def test_a_full_period_costs_the_price(price_minor: int, full_days: int) -> None:
    assert prorated(price_minor, days=full_days, full_days=full_days) == price_minor


@law
@given(prices_minor, st.integers(1, 366))
def test_a_longer_stay_never_costs_less(price_minor: int, full_days: int) -> None:
    lengths = range(1, full_days + 1)

    amounts_minor = [prorated(price_minor, days=days, full_days=full_days) for days in lengths]

    assert amounts_minor == sorted(amounts_minor)


# Instants and business days


@pytest.mark.parametrize(
    ("instant", "day"),
    [
        (datetime(2026, 1, 9, 20, 59, 59, 999_999, UTC), date(2026, 1, 9)),
        (datetime(2026, 1, 9, 21, 0, tzinfo=UTC), date(2026, 1, 10)),
        (datetime(2026, 1, 10, 0, 30, tzinfo=ISTANBUL), date(2026, 1, 10)),
        (datetime(2026, 1, 9, 16, 0, tzinfo=timezone(timedelta(hours=-5))), date(2026, 1, 10)),
        (datetime(2026, 1, 31, 21, 0, tzinfo=UTC), date(2026, 2, 1)),
    ],
)
def test_a_business_day_begins_at_midnight_of_the_billing_time_zone(instant: datetime, day: date) -> None:
    assert business_date(instant, ISTANBUL) == day
    assert billing_day_of(instant, ISTANBUL) == day.day


def test_every_day_in_istanbul_begins_at_its_local_midnight() -> None:
    days = [FIRST + timedelta(days=n) for n in range((LAST - FIRST).days + 1)]
    just_before = timedelta(microseconds=1)

    midnights = [local_midnight(day, ISTANBUL) for day in days]

    assert all(midnight.tzinfo is UTC for midnight in midnights)
    assert [business_date(midnight, ISTANBUL) for midnight in midnights] == days
    assert [business_date(midnight - just_before, ISTANBUL) for midnight in midnights[1:]] == days[:-1]


@pytest.mark.parametrize(
    ("key", "day", "instant"),
    [
        pytest.param("Europe/Istanbul", "2026-02-10", "2026-02-09T21:00Z", id="plain"),
        pytest.param("Europe/Istanbul", "2015-01-10", "2015-01-09T22:00Z", id="winter-time"),
        pytest.param("Asia/Beirut", "2024-03-31", "2024-03-30T22:00Z", id="skipped-midnight"),
        pytest.param("America/Sao_Paulo", "2018-11-04", "2018-11-04T03:00Z", id="skipped-midnight-west"),
        pytest.param("Antarctica/Vostok", "1994-11-01", "1994-11-01T00:00Z", id="skipped-seven-hours"),
        pytest.param("Pacific/Apia", "2011-12-30", "2011-12-30T10:00Z", id="skipped-day"),
        pytest.param("America/Havana", "2024-11-03", "2024-11-03T05:00Z", id="midnight-twice"),
        pytest.param("America/St_Johns", "2010-11-07", "2010-11-07T03:30Z", id="midnight-twice-one-minute"),
        pytest.param("Antarctica/Casey", "2023-03-09", "2023-03-08T16:00Z", id="midnight-twice-no-dst"),
    ],
)
def test_local_midnight_is_the_instant_postgresql_18_gave(key: str, day: str, instant: str) -> None:
    # Recorded from PostgreSQL 18.4: SELECT date '…'::timestamp AT TIME ZONE '…'.
    assert local_midnight(date.fromisoformat(day), ZoneInfo(key)) == datetime.fromisoformat(instant)


# What is refused


@pytest.mark.parametrize("read", [business_date, billing_day_of])
def test_a_naive_instant_is_refused(read: Callable[[datetime, ZoneInfo], object]) -> None:
    with pytest.raises(ValueError, match="naive"):
        read(datetime(2026, 1, 10, 12), ISTANBUL)  # noqa: DTZ001  naive is the point


@pytest.mark.parametrize(
    ("year", "month", "billing_day", "message"),
    [
        (0, 1, 10, r"year 0 is not within 1\.\.9999"),
        (10_000, 1, 10, r"year 10000 is not within 1\.\.9999"),
        (2026, 0, 10, r"month 0 is not within 1\.\.12"),
        (2026, 13, 10, r"month 13 is not within 1\.\.12"),
        (2026, 1, 0, r"billing day 0 is not within 1\.\.31"),
        (2026, 1, 32, r"billing day 32 is not within 1\.\.31"),
    ],
)
def test_a_date_no_calendar_has_is_refused(*, year: int, month: int, billing_day: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        billing_date(year, month, billing_day)


@pytest.mark.parametrize(
    ("start_date", "period"),
    [(date(1, 1, 9), MONTHLY), (date(9999, 12, 10), MONTHLY), (date(9999, 1, 10), YEARLY)],
)
def test_a_period_that_leaves_the_calendar_is_refused(start_date: date, period: PackagePeriod) -> None:
    with pytest.raises(ValueError, match=r"is not within 1\.\.9999"):
        open_period(start_date, billing_day=10, period=period)


def test_an_instant_that_leaves_the_calendar_is_refused() -> None:
    with pytest.raises(ValueError, match=r"outside the years 1\.\.9999"):
        local_midnight(date.min, ISTANBUL)
    with pytest.raises(ValueError, match=r"outside the years 1\.\.9999"):
        business_date(datetime.max.replace(tzinfo=UTC), ISTANBUL)


@pytest.mark.parametrize(
    ("price_minor", "days", "full_days", "message"),
    [
        (-1, 1, 1, "price_minor -1 is negative"),
        (100, 0, 31, r"days 0 is not within 1\.\.31"),
        (100, -1, 31, r"days -1 is not within 1\.\.31"),
        (100, 32, 31, r"days 32 is not within 1\.\.31"),
        (100, 1, 0, r"days 1 is not within 1\.\.0"),
    ],
)
def test_a_share_of_a_negative_price_or_of_no_part_of_the_period_is_refused(
    *, price_minor: int, days: int, full_days: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prorated(price_minor, days=days, full_days=full_days)


def test_a_package_period_is_stored_by_its_name_and_counts_months() -> None:
    assert [(str(period), period.months) for period in PackagePeriod] == [("monthly", 1), ("yearly", 12)]
