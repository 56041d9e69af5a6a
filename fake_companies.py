"""Fake companies of every kind: a believable world of Turkish shops, made without a database."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from random import Random
from typing import NamedTuple
from zoneinfo import ZoneInfo

from billing.periods import PackagePeriod, billing_day_of, business_date
from fake_payments import FakeCompanyPackage, FakePayment, Ledger, OfferedPackage
from models import Status

OLDEST_DAYS = 3 * 365
"""How long ago, in days, the first companies registered."""

DEMO_DAYS = 400
"""How long ago the demo company registered: long enough for more than a year of payments."""

UNPAID_DAYS = 70
"""Who took a monthly package so long ago had a period that ended long enough ago for three declines."""

MONTHLY_SHARE = 0.6
"""How many want to pay by the month; the others take any package."""

NAMES_DRAWN = 3000
"""Names are drawn from Faker once and then combined: one at a time they would take most of the run."""

TRADES = (
    *("Ayakkabı", "Bahçe", "Bebek", "Bilişim", "Butik", "Çanta", "Çiçek", "Deri", "Elektronik", "Ev", "Gıda"),
    *(
        "Giyim",
        "Gözlük",
        "Halı",
        "Hediye",
        "Hırdavat",
        "Kahve",
        "Kırtasiye",
        "Kitap",
        "Kozmetik",
        "Kuruyemiş",
    ),
    *("Mobilya", "Mutfak", "Oyuncak", "Parfüm", "Saat", "Seramik", "Spor", "Takı", "Tekstil", "Züccaciye"),
)

LEGAL_FORMS = ("A.Ş.", "Ltd. Şti.", "Tic. Ltd. Şti.", "San. ve Tic. A.Ş.")

_TO_ASCII = str.maketrans("çğıöşüâîûÇĞİÖŞÜÂÎÛ", "cgiosuaiuCGIOSUAIU")


class Kind(StrEnum):
    """What has become of a company."""

    SUBSCRIBED = "with an open package"
    UNPAID = "passive for non-payment"
    WITHOUT_PACKAGE = "without a package"
    NEVER_LOGGED_IN = "never logged in"


_MOST = [Kind.SUBSCRIBED] * 4
KINDS = [
    *[*_MOST, Kind.WITHOUT_PACKAGE, *_MOST, Kind.UNPAID],
    *[*_MOST, Kind.NEVER_LOGGED_IN, *_MOST, Kind.WITHOUT_PACKAGE],
    *[*_MOST, Kind.NEVER_LOGGED_IN],
]
"""Dealt out in turn, so that 25 companies have some of each kind."""


class FakeCompany(NamedTuple):
    """A company; the fields are columns of ``companies``."""

    id: int
    site_url: str
    name: str
    lastname: str
    company_name: str
    email: str
    status: int
    billing_day: int
    registered_at: datetime
    passivated_at: datetime | None


class FakeStory(NamedTuple):
    """A company, the package it took, if any, and the attempts to collect for it."""

    company: FakeCompany
    company_package: FakeCompanyPackage | None = None
    payments: Sequence[FakePayment] = ()

    @property
    def kind(self) -> Kind:
        """What has become of the company."""
        if self.company_package is None:
            return Kind.WITHOUT_PACKAGE if self.company.status else Kind.NEVER_LOGGED_IN
        return Kind.SUBSCRIBED if self.company_package.status else Kind.UNPAID


class Names(NamedTuple):
    """Turkish first and last names."""

    first: Sequence[str]
    last: Sequence[str]


def draw_names(random_seed: int) -> Names:
    """Return names to combine, the same for the same seed."""
    # Imported where it is used: it is slow to load, and every command and server imports this module.
    from faker import Faker  # noqa: PLC0415

    faker = Faker("tr_TR")
    faker.seed_instance(random_seed)
    return Names(
        first=_spelt(faker.first_name() for _ in range(NAMES_DRAWN)),
        last=_spelt(faker.last_name() for _ in range(NAMES_DRAWN)),
    )


@dataclass(frozen=True, slots=True)
class World:
    """Makes fake companies as of a business day, all from one random generator."""

    random: Random
    names: Names
    packages: Sequence[OfferedPackage]
    today: date
    zone: ZoneInfo

    def companies(self, ids: Sequence[int], *, first_number: int) -> Iterator[FakeStory]:
        """Yield a company for each id, older ones first. Its running number makes its e-mail unique."""
        kinds = [KINDS[i % len(KINDS)] for i in range(len(ids))]
        self.random.shuffle(kinds)
        ages = sorted((1 + int(OLDEST_DAYS * self.random.random() ** 1.5) for _ in ids), reverse=True)
        for number, (company_id, kind, age) in enumerate(zip(ids, kinds, ages, strict=True), first_number):
            yield self._company(company_id, number, kind, age)

    def demo_company(self, company_id: int, *, email: str) -> FakeStory:
        """Return the company that visitors log in as: active, with a monthly package since it registered."""
        company = self._register(
            company_id,
            DEMO_DAYS,
            name="Deniz",
            lastname="Yılmaz",
            company_name="Vade Demo Ticaret A.Ş.",
            email=email,
            status=Status.ACTIVE,
        )
        return self._take(company, self.random.choice(self._monthly()), DEMO_DAYS)

    def _company(self, company_id: int, number: int, kind: Kind, age: int) -> FakeStory:
        random = self.random
        name, lastname = random.choice(self.names.first), random.choice(self.names.last)
        trade, legal_form = random.choice(TRADES), random.choice(LEGAL_FORMS)
        if kind is Kind.UNPAID:
            age = max(age, UNPAID_DAYS)
        company = self._register(
            company_id,
            age,
            name=name,
            lastname=lastname,
            company_name=f"{lastname} {trade} {legal_form}",
            email=f"{_ascii(name)}.{_ascii(lastname)}@{_ascii(lastname)}-{_ascii(trade)}-{number}.example",
            status=Status.PASSIVE if kind is Kind.NEVER_LOGGED_IN else Status.ACTIVE,
        )
        if kind is Kind.UNPAID:
            return self._take(
                company, random.choice(self._monthly()), random.randint(UNPAID_DAYS, age), unpaid=True
            )
        if kind is Kind.SUBSCRIBED:
            # Some when they registered, more since then, and most of these not long ago.
            at_once = random.random() < 0.4
            days = max(0, age - random.randrange(4)) if at_once else int((age + 1) * random.random() ** 2)
            offered = self._monthly() if random.random() < MONTHLY_SHARE else self.packages
            return self._take(company, random.choice(offered), days)
        return FakeStory(company)

    def _register(
        self,
        company_id: int,
        age: int,
        *,
        name: str,
        lastname: str,
        company_name: str,
        email: str,
        status: int,
    ) -> FakeCompany:
        """Return a company that registered ``age`` days ago; its site is its e-mail's domain."""
        # In waking hours, when no clock anywhere is put forward or back.
        second = self.random.randrange(8 * 3600, 23 * 3600)
        registered_at = datetime.combine(
            self.today - timedelta(days=age), time(second // 3600, second // 60 % 60, second % 60), self.zone
        ).astimezone(UTC)
        return FakeCompany(
            id=company_id,
            site_url=f"https://{email.partition('@')[2]}",
            name=name,
            lastname=lastname,
            company_name=company_name,
            email=email,
            status=status,
            billing_day=billing_day_of(registered_at, self.zone),
            registered_at=registered_at,
            passivated_at=None,
        )

    def _take(
        self, company: FakeCompany, package: OfferedPackage, days: int, *, unpaid: bool = False
    ) -> FakeStory:
        """Return a company that took a package ``days`` ago, and how it stands today."""
        company_package, payments = Ledger(self.random, self.today, self.zone).collect(
            company.id,
            package,
            # The later of two that are one, but in a zone that once skipped a day.
            start_date=max(
                self.today - timedelta(days=days), business_date(company.registered_at, self.zone)
            ),
            billing_day=company.billing_day,
            unpaid=unpaid,
        )
        if company_package.status == Status.PASSIVE:
            company = company._replace(status=Status.PASSIVE, passivated_at=payments[-1].attempted_at)
        return FakeStory(company, company_package, payments)

    def _monthly(self) -> Sequence[OfferedPackage]:
        return [p for p in self.packages if p.period is PackagePeriod.MONTHLY] or self.packages


def _spelt(names: Iterable[str]) -> list[str]:
    """Return the names without those of Faker's that carry signs no name has."""
    return [name for name in names if name.isalpha()]


def _ascii(name: str) -> str:
    """Return a name as it stands in an address."""
    return name.translate(_TO_ASCII).lower()
