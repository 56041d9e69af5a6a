"""What became of a fake company's package: its periods so far, and the attempts to collect them.

This keeps the business rules of DESIGN.md §2 to the letter, because the books of a seeded database are
audited like any other: periods and amounts are those of `billing.periods`, outcomes those of
`billing.gateways.RandomHashGateway`, and no period that has ended is left uncollected.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from random import Random
from typing import NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from billing.gateways import ChargeRequest, ChargeResult, RandomHashGateway
from billing.payment_queue import RETRY_AFTER
from billing.periods import BillingPeriod, PackagePeriod, local_midnight, open_period, prorated
from models import MAXIMUM_ATTEMPTS, Status

POLL_S = 120
"""A worker claims a job within so many seconds of the moment it is due."""

DECLINES_WEIGHTS = (86, 10, 4)
"""How often a period is charged at once, after one decline, and after two."""


CURRENCY = "TRY"
CATALOGUE = (
    ("Başlangıç", PackagePeriod.MONTHLY, 34_900),
    ("Profesyonel", PackagePeriod.MONTHLY, 89_900),
    ("Kurumsal", PackagePeriod.MONTHLY, 249_900),
    ("Başlangıç Yıllık", PackagePeriod.YEARLY, 349_000),
    ("Profesyonel Yıllık", PackagePeriod.YEARLY, 899_000),
    ("Kurumsal Yıllık", PackagePeriod.YEARLY, 2_499_000),
)
"""Name, period and price in kuruş: a year for the price of ten months."""


class OfferedPackage(NamedTuple):
    """A package that fake companies take."""

    id: int
    name: str
    period: PackagePeriod
    price_minor: int
    currency: str


class FakePayment(NamedTuple):
    """One attempt; the fields are columns of ``company_payments``."""

    id: UUID
    attempt: int
    status: int
    amount_minor: int
    currency: str
    period_start: date
    period_end: date
    reference: str
    decline_code: str | None
    attempted_at: datetime


class FakeCompanyPackage(NamedTuple):
    """What a company took, with its current period; the fields are columns of ``company_packages``."""

    package_id: int
    status: int
    start_date: date
    end_date: date
    price_minor: int
    currency: str
    full_days: int
    taken_at: datetime


@dataclass(frozen=True, slots=True)
class Ledger:
    """Collects for fake companies up to a business day, all from one random generator.

    Nothing depends on the time of day: what was collected today was collected at its first instant.
    """

    random: Random
    today: date
    zone: ZoneInfo

    def collect(
        self, company_id: int, package: OfferedPackage, *, start_date: date, billing_day: int, unpaid: bool
    ) -> tuple[FakeCompanyPackage, list[FakePayment]]:
        """Return a package that was taken on ``start_date``, as it stands today, and its attempts so far.

        1. Every period that has ended since then was charged, some after one or two declines.
        2. Of one that is ``unpaid``, some period was declined three times instead, and was the last; where
           none can have been, it was paid after all.
        """
        taken_at = _midnight(start_date, self.zone)
        ended: list[BillingPeriod] = []
        period = open_period(start_date, billing_day=billing_day, period=package.period)
        while period.end_date <= self.today:
            ended.append(period)
            period = open_period(period.end_date, billing_day=billing_day, period=package.period)
        lost = self._one_to_lose(package, ended) if unpaid else None
        payments: list[FakePayment] = []
        for each in ended:
            if each is lost:
                payments += self._attempts(company_id, package, each, [False] * MAXIMUM_ATTEMPTS)
                return _standing(package, Status.PASSIVE, each, taken_at=taken_at), payments
            declines = min(self.random.choices((0, 1, 2), DECLINES_WEIGHTS)[0], self._room(each) - 1)
            payments += self._attempts(company_id, package, each, [False] * declines + [True])
        return _standing(package, Status.ACTIVE, period, taken_at=taken_at), payments

    def _one_to_lose(self, package: OfferedPackage, ended: Sequence[BillingPeriod]) -> BillingPeriod | None:
        possible = [p for p in ended if self._room(p) >= MAXIMUM_ATTEMPTS and _amount_minor(package, p) > 0]
        return self.random.choice(possible) if possible else None

    def _room(self, period: BillingPeriod) -> int:
        """Return how many attempts, a day apart, an ended period had before today, or today its first."""
        since = _midnight(self.today, self.zone) - _midnight(period.end_date, self.zone)
        return max(1, since // RETRY_AFTER)

    def _attempts(
        self, company_id: int, package: OfferedPackage, period: BillingPeriod, outcomes: Sequence[bool]
    ) -> Iterator[FakePayment]:
        """Yield the attempts to collect a period: from the midnight of its end on, a day apart."""
        amount_minor = _amount_minor(package, period)
        if amount_minor == 0:
            return
        attempted_at = _midnight(period.end_date, self.zone)
        if attempted_at < _midnight(self.today, self.zone):
            attempted_at += timedelta(seconds=POLL_S * self.random.random())
        for attempt, succeeds in enumerate(outcomes, 1):
            key, result = self._charge(company_id, package, amount_minor, succeeds=succeeds)
            yield FakePayment(
                id=key,
                attempt=attempt,
                status=int(result.succeeded),
                amount_minor=amount_minor,
                currency=package.currency,
                period_start=period.start_date,
                period_end=period.end_date,
                reference=result.reference,
                decline_code=result.decline_code,
                attempted_at=attempted_at,
            )
            attempted_at += RETRY_AFTER

    def _charge(
        self, company_id: int, package: OfferedPackage, amount_minor: int, *, succeeds: bool
    ) -> tuple[UUID, ChargeResult]:
        """Draw idempotency keys until the gateway answers one with the outcome that is wanted."""
        while True:
            key = UUID(int=self.random.getrandbits(128), version=4)
            request = ChargeRequest(str(key), company_id, amount_minor, package.currency, package.name)
            result = _GATEWAY.charge(request)
            if result.succeeded is succeeds:
                return key, result


_GATEWAY = RandomHashGateway()


@lru_cache(maxsize=4096)
def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return local_midnight(day, zone)


def _standing(
    package: OfferedPackage, status: Status, period: BillingPeriod, *, taken_at: datetime
) -> FakeCompanyPackage:
    return FakeCompanyPackage(
        package_id=package.id,
        status=status,
        start_date=period.start_date,
        end_date=period.end_date,
        price_minor=package.price_minor,
        currency=package.currency,
        full_days=period.full_days,
        taken_at=taken_at,
    )


def _amount_minor(package: OfferedPackage, period: BillingPeriod) -> int:
    return prorated(package.price_minor, days=period.days, full_days=period.full_days)
