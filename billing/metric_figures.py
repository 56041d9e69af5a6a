"""The figures of `metrics`, from the sums that its statement counts; docs/reports.md says what each means."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import date, timedelta

from billing.documents import Document
from billing.periods import PackagePeriod, open_period
from billing.reports import NOTHING, Total
from models import MAXIMUM_ATTEMPTS

DAYS_AHEAD = 30
FULL_MONTHS = 12
"""How many months are told beside the present one."""


def figures(
    opened: Sequence[Document], entries: Sequence[Document], retried: Sequence[Document], today: date
) -> Document:
    """Return the figures of a report from sums of open packages, of entries by month, and of retried jobs."""
    active = sum(group["number"] for group in opened)
    return {
        "companies": sum(entry["number"] for entry in entries if entry["figure"] == "registered"),
        "active_companies": active,
        "currencies": _recurring(opened),
        "months": _months(entries, active, today),
        "due_now": _due_now(opened, retried, today),
        "forecast": _forecast(opened, today),
    }


def _recurring(opened: Iterable[Document]) -> list[Document]:
    """Return what open packages bring each month, by currency."""
    numbers: defaultdict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(PackagePeriod, 0))
    prices: defaultdict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(PackagePeriod, 0))
    for group in opened:
        numbers[group["currency"]][group["period"]] += group["number"]
        prices[group["currency"]][group["period"]] += group["price_minor"]
    return [
        {
            "currency": currency,
            "mrr_minor": monthly_revenue(
                prices[currency][PackagePeriod.MONTHLY], prices[currency][PackagePeriod.YEARLY]
            ),
            "monthly_packages": by_period[PackagePeriod.MONTHLY],
            "yearly_packages": by_period[PackagePeriod.YEARLY],
        }
        for currency, by_period in sorted(numbers.items())
    ]


def monthly_revenue(monthly_minor: int, yearly_minor: int) -> int:
    """Return monthly recurring revenue: the sum of yearly prices is divided once, and rounded half up."""
    months = PackagePeriod.YEARLY.months
    return monthly_minor + (2 * yearly_minor + months) // (2 * months)


def _months(entries: Iterable[Document], active: int, today: date) -> list[Document]:
    """Return each month, oldest first. Who was active when one began follows from who came and went since."""
    sums: defaultdict[date, _Month] = defaultdict(_Month)
    for entry in entries:
        sums[date.fromisoformat(entry["month"])].add(entry)
    present = today.replace(day=1)
    months: list[Document] = []
    # Also what a simulation, or a clock that was set back, left ahead of the present.
    for month in sorted((sums.keys() | set(_last_months(present))), reverse=True):
        active += sums[month].lost - sums[month].taken
        months.append(sums[month].document(month, active))
    first = _last_months(present)[0].strftime("%Y-%m")
    return [month for month in reversed(months) if first <= month["month"] <= today.strftime("%Y-%m")]


def _last_months(present: date) -> list[date]:
    number = present.year * 12 + present.month - 1
    return [date(n // 12, n % 12 + 1, 1) for n in range(number - FULL_MONTHS, number + 1)]


class _Month:
    """What was in a month."""

    def __init__(self) -> None:
        self.taken = self.lost = self.declined = self.recovered = 0
        self.collected: defaultdict[str, Total] = defaultdict(lambda: NOTHING)

    def add(self, entry: Document) -> None:
        number, attempt = entry["number"], entry["attempt"]
        if entry["figure"] == "taken":
            self.taken += number
        elif entry["figure"] == "charged":
            self.collected[entry["currency"]] += Total(number, entry["amount_minor"])
            self.recovered += number if attempt > 1 else 0
        elif entry["figure"] == "declined":
            self.declined += number if attempt == 1 else 0
            self.lost += number if attempt >= MAXIMUM_ATTEMPTS else 0

    def document(self, month: date, active: int) -> Document:
        return {
            "month": month.strftime("%Y-%m"),
            "active_companies": active,
            "packages_taken": self.taken,
            "companies_lost": self.lost,
            "churn_rate": rate(self.lost, active),
            "first_declines": self.declined,
            "recovered": self.recovered,
            "recovery_rate": rate(self.recovered, self.recovered + self.lost),
            "collected": [
                {"currency": currency, "number": total.number, "amount_minor": total.amount_minor}
                for currency, total in sorted(self.collected.items())
            ],
        }


def rate(part: int, whole: int) -> float | None:
    """Return a share, rounded half up to four digits; none of nothing."""
    return None if whole <= 0 else (2 * part * 10_000 + whole) // (2 * whole) / 10_000


def _due_now(opened: Iterable[Document], retried: Iterable[Document], today: date) -> list[Document]:
    """Return what has fallen due and is not collected yet, and how much of it was declined before."""
    due: defaultdict[str, Total] = defaultdict(lambda: NOTHING)
    for day, currency, total in _ends(opened, today):
        if day <= today:
            due[currency] += total
    again = {each["currency"]: Total(each["number"], each["amount_minor"]) for each in retried}
    return [
        {
            "currency": currency,
            "number": due[currency].number,
            "amount_minor": due[currency].amount_minor,
            "retried": {
                "number": again.get(currency, NOTHING).number,
                "amount_minor": again.get(currency, NOTHING).amount_minor,
            },
        }
        for currency in sorted(due)
    ]


def _forecast(opened: Iterable[Document], today: date) -> list[Document]:
    """Return what falls due on each of the days ahead, where every company stays and pays."""
    days: dict[date, defaultdict[str, Total]] = {
        today + timedelta(days=number): defaultdict(lambda: NOTHING) for number in range(1, DAYS_AHEAD + 1)
    }
    for day, currency, total in _ends(opened, today):
        if day in days:
            days[day][currency] += total
    return [
        {
            "date": day.isoformat(),
            "currencies": [
                {"currency": currency, "number": total.number, "amount_minor": total.amount_minor}
                for currency, total in sorted(totals.items())
            ],
        }
        for day, totals in days.items()
    ]


def _ends(opened: Iterable[Document], today: date) -> Iterable[tuple[date, str, Total]]:
    """Yield when periods end up to the last day ahead, and what is due then; of free ones nothing."""
    last = today + timedelta(days=DAYS_AHEAD)
    for group in opened:
        end = date.fromisoformat(group["end_date"])
        total = Total(group["due_number"], group["due_minor"])
        following = Total(group["next_number"], group["next_minor"])
        while end <= last:
            if total.number:
                yield end, group["currency"], total
            if group["billing_day"] is None:
                break
            # The next one is a whole period, at the price that stands then.
            period = PackagePeriod(group["period"])
            end = open_period(end, billing_day=group["billing_day"], period=period).end_date
            total = following
