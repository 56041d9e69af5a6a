"""The figures of reports: what came in on each business day, in each currency.

Nothing is counted when a report is asked for. What happens writes entries (`models.ReportEntry`) in its own
transaction, and a figure is the sum of its entries: so a row that comes late is in the figures of its day at
once (docs/adr/0019).
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import text
from sqlalchemy.orm import Session

from billing.documents import Document
from billing.errors import InvalidFieldError
from billing.periods import business_date
from models import MAXIMUM_ATTEMPTS

MOST_DAYS = 366
"""One report is of no more days."""


@dataclass(frozen=True, slots=True)
class Total:
    """So many, and their money in minor units of one currency."""

    number: int = 0
    amount_minor: int = 0

    def __add__(self, other: "Total") -> "Total":
        """Return both together."""
        return Total(self.number + other.number, self.amount_minor + other.amount_minor)


NOTHING = Total()


@dataclass(frozen=True, slots=True)
class CurrencyFigures:
    """What became of attempts in one currency on one day; the mappings go by attempt number, from 1."""

    currency: str
    charged_by_attempt: Mapping[int, Total] = field(default_factory=dict)
    declined_by_attempt: Mapping[int, Total] = field(default_factory=dict)
    outages: Total = NOTHING
    """Attempts that the gateway gave no answer: they count as none, and are made again."""
    packages_taken: int = 0

    @property
    def charged(self) -> Total:
        """What was charged."""
        return sum(self.charged_by_attempt.values(), NOTHING)

    @property
    def declined(self) -> Total:
        """What was declined, each attempt for itself."""
        return sum(self.declined_by_attempt.values(), NOTHING)

    @property
    def attempts(self) -> Total:
        """All attempts that the gateway answered."""
        return self.charged + self.declined

    @property
    def recovered(self) -> Total:
        """What was charged at a later attempt than the first: after a decline."""
        return sum((total for attempt, total in self.charged_by_attempt.items() if attempt > 1), NOTHING)

    @property
    def made_passive(self) -> Total:
        """The last declines of a period: their companies became passive, and the money is lost."""
        last = (t for attempt, t in self.declined_by_attempt.items() if attempt >= MAXIMUM_ATTEMPTS)
        return sum(last, NOTHING)


@dataclass(frozen=True, slots=True)
class DayFigures:
    """The figures of one business day. ``currencies``, in their order, are those in which something was."""

    date: date
    new_companies: int = 0
    currencies: tuple[CurrencyFigures, ...] = ()

    @property
    def packages_taken(self) -> int:
        """How many packages were taken."""
        return sum(figures.packages_taken for figures in self.currencies)

    @property
    def companies_lost(self) -> int:
        """How many companies were made passive for non-payment."""
        return sum(figures.made_passive.number for figures in self.currencies)


# In every zone a day lies within three of UTC's: these are read by index, and the zone decides which entries
# are of the day, also where its midnight comes twice or never.
_READ = text("""
SELECT (at AT TIME ZONE :zone)::date AS day, figure, currency, attempt,
    sum(number)::bigint AS number, sum(amount_minor)::bigint AS amount_minor
FROM report_entries
WHERE at >= (CAST(:first_day AS date) - 1)::timestamp AT TIME ZONE 'UTC'
    AND at < (CAST(:last_day AS date) + 2)::timestamp AT TIME ZONE 'UTC'
    AND (at AT TIME ZONE :zone)::date BETWEEN :first_day AND :last_day
GROUP BY 1, 2, 3, 4
""")


def read_days(session: Session, first_day: date, last_day: date, *, zone: ZoneInfo) -> list[DayFigures]:
    """Return the figures of each business day from ``first_day`` to ``last_day``, both included, in order.

    A day on which nothing was is there with zeros.
    """
    found: dict[date, dict[tuple[str, str, int], Total]] = {}
    values = {"first_day": first_day, "last_day": last_day, "zone": str(zone)}
    for row in session.execute(_READ, values):
        kinds = found.setdefault(row.day, {})
        kinds[row.currency, row.figure, row.attempt] = Total(row.number, row.amount_minor)
    return [_day_figures(day, found.get(day, {})) for day in _days(first_day, last_day)]


def read_report(
    session: Session, first_day: date | None, last_day: date | None, *, now: datetime, zone: ZoneInfo
) -> list[DayFigures]:
    """Return the figures from one day to another, both included; of one where only one is given.

    Where none is, it is the business day before ``now``.

    Raises:
        InvalidFieldError: when ``last_day`` is before ``first_day``, or too long after it.
    """
    yesterday = business_date(now, zone) - timedelta(days=1)
    first = first_day or last_day or yesterday
    last = last_day or first
    if last < first:
        raise InvalidFieldError("#/to", "This is before `from`.")
    if (last - first).days >= MOST_DAYS:
        raise InvalidFieldError("#/to", "A report is of at most %(most)s days.", most=MOST_DAYS)
    return read_days(session, first, last, zone=zone)


def day_document(day: DayFigures) -> Document:
    """Return a day as the API shows it."""
    return {
        "date": day.date.isoformat(),
        "new_companies": day.new_companies,
        "packages_taken": day.packages_taken,
        "companies_lost": day.companies_lost,
        "currencies": [_currency_document(figures) for figures in day.currencies],
    }


def _currency_document(figures: CurrencyFigures) -> Document:
    return {
        "currency": figures.currency,
        "attempts": asdict(figures.attempts),
        "charged": asdict(figures.charged),
        "declined": asdict(figures.declined),
        "by_attempt": [
            {
                "attempt": attempt,
                "charged": asdict(charged),
                "declined": asdict(figures.declined_by_attempt[attempt]),
            }
            for attempt, charged in figures.charged_by_attempt.items()
        ],
        "recovered": asdict(figures.recovered),
        "made_passive": asdict(figures.made_passive),
        "outages": asdict(figures.outages),
        "packages_taken": figures.packages_taken,
    }


def _days(first_day: date, last_day: date) -> Iterator[date]:
    for number in range((last_day - first_day).days + 1):
        yield first_day + timedelta(days=number)


def _day_figures(day: date, totals: Mapping[tuple[str, str, int], Total]) -> DayFigures:
    currencies = sorted({currency for currency, figure, _ in totals if figure != "registered"})
    return DayFigures(
        day,
        new_companies=_sum(totals, "", "registered").number,
        currencies=tuple(_currency_figures(totals, currency) for currency in currencies),
    )


def _currency_figures(totals: Mapping[tuple[str, str, int], Total], currency: str) -> CurrencyFigures:
    # The regular attempts, and whichever else there were.
    attempts = {attempt for of, _, attempt in totals if of == currency and attempt}
    numbers = sorted(attempts.union(range(1, MAXIMUM_ATTEMPTS + 1)))
    charged, declined = (
        {attempt: totals.get((currency, figure, attempt), NOTHING) for attempt in numbers}
        for figure in ("charged", "declined")
    )
    return CurrencyFigures(
        currency,
        charged_by_attempt=charged,
        declined_by_attempt=declined,
        outages=_sum(totals, currency, "outage"),
        packages_taken=_sum(totals, currency, "taken").number,
    )


def _sum(totals: Mapping[tuple[str, str, int], Total], currency: str, figure: str) -> Total:
    return sum((total for key, total in totals.items() if key[:2] == (currency, figure)), NOTHING)
