"""Company packages: take one, and see what a company has."""

from datetime import date, datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import bindparam, exists, select, true
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from billing.callbacks import Outbox
from billing.companies import find as find_company
from billing.companies import is_unique_violation
from billing.documents import Document, company_document, company_package_document
from billing.errors import CompanyPassiveError, InvalidFieldError, PackageOpenError
from billing.periods import PackagePeriod, business_date, open_period
from models import Company, CompanyPackage, CompanySession, Package, Status


class CompanyRow(NamedTuple):
    """The columns of a company that are shown."""

    id: int
    site_url: str
    name: str
    lastname: str
    company_name: str
    email: str
    status: int
    callback_url: str | None
    registered_at: datetime


class CompanyPackageRow(NamedTuple):
    """The columns of a company package that are shown; all None where a company never had one."""

    id: int | None
    company_id: int
    status: int
    start_date: date
    end_date: date


class PackageRow(NamedTuple):
    """The columns of a package that are shown."""

    id: int
    name: str
    period: str
    price_minor: int
    currency: str
    status: int


def assign(
    session: Session, company_id: int, package_id: int, *, now: datetime, zone: ZoneInfo, outbox: Outbox
) -> tuple[CompanyPackage, Package]:
    """Open a package for a company, from today to its next billing day (DESIGN.md §2.2, §2.3).

    Raises:
        NotFoundError: when there is no such company.
        InvalidFieldError: when the package is unknown or withdrawn.
        PackageOpenError: when the company has an open package.
        CompanyPassiveError: when the company is passive for non-payment.
    """
    company = find_company(session, company_id)
    package = session.get(Package, package_id)
    if package is None or package.status != Status.ACTIVE:
        raise InvalidFieldError("#/package_id", "There is no package with this id that can be taken.")
    period = open_period(
        business_date(now, zone), billing_day=company.billing_day, period=PackagePeriod(package.period)
    )
    company_package = CompanyPackage(
        company_id=company_id,
        package_id=package_id,
        status=Status.ACTIVE,
        start_date=period.start_date,
        end_date=period.end_date,
        price_minor=package.price_minor,
        currency=package.currency,
        full_days=period.full_days,
        taken_at=now,
    )
    session.add(company_package)
    try:
        session.flush()
    except IntegrityError as error:
        if is_unique_violation(error):
            raise PackageOpenError from None
        raise
    # Locked after the company package, as a settlement does, and asked again: it may have become passive.
    session.refresh(company, with_for_update={"key_share": True})
    if company.passivated_at is not None:
        raise CompanyPassiveError
    about = {"company_package": company_package_document(company_package, package)}
    previous = {"company_package": None}
    outbox.write(session, "company_package.assigned", company, now=now, about=about, previous=previous)
    return company_package, package


_companies, _company_packages, _packages, _sessions = (
    table.__table__ for table in (Company, CompanyPackage, Package, CompanySession)
)
_latest = (
    select(_company_packages)
    .where(_company_packages.c.company_id == _companies.c.id)
    .order_by(_company_packages.c.status.desc(), _company_packages.c.id.desc())
    .limit(1)
    .lateral("latest")
)
# The call that clients make most: tables, not entities, so that the ORM has no part in it.
_CURRENT = (
    select(
        *(_companies.c[name] for name in CompanyRow._fields),
        *(_latest.c[name] for name in CompanyPackageRow._fields),
        *(_packages.c[name] for name in PackageRow._fields),
    )
    .select_from(
        _companies.outerjoin(_latest, true()).outerjoin(_packages, _packages.c.id == _latest.c.package_id)
    )
    .where(
        _companies.c.id == bindparam("company_id"),
        exists().where(
            _sessions.c.company_id == bindparam("company_id"), _sessions.c.id == bindparam("session_id")
        ),
    )
)


def find_current(session: Session, company_id: int, *, session_id: int) -> Document | None:
    """Return the documents of a company and of what it has, in one query; None where its session ended.

    What it has is its open company package, else the latest, else None.
    """
    values = {"company_id": company_id, "session_id": session_id}
    row = session.connection().execute(_CURRENT, values).one_or_none()
    if row is None:
        return None
    first, second = len(CompanyRow._fields), len(CompanyRow._fields) + len(CompanyPackageRow._fields)
    company_package = CompanyPackageRow(*row[first:second])
    return {
        "company": company_document(CompanyRow(*row[:first])),
        "company_package": None
        if company_package.id is None
        else company_package_document(company_package, PackageRow(*row[second:])),
    }
