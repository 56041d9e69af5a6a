"""Company payments: the history of attempts. Rows are only ever added, by the queue."""

from dataclasses import astuple, dataclass, fields
from datetime import date, datetime
from typing import Any

from sqlalchemy import Row, select, tuple_
from sqlalchemy.orm import Session

from models import CompanyPayment

_COLUMNS = CompanyPayment.__table__.c


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page of attempts ended, in the order newest first.

    Periods that were caught up in one pass have one instant: theirs is the order of periods and attempts.
    """

    attempted_at: datetime
    company_id: int
    company_package_id: int
    period_start: date
    attempt: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which attempts are listed: of one company or all, of a status, and of a time.

    ``since`` is included, ``until`` is not; both are business time.
    """

    company_id: int | None = None
    status: int | None = None
    since: datetime | None = None
    until: datetime | None = None


def list_newest(session: Session, wanted: Wanted, *, before: Place | None, limit: int) -> list[Row[Any]]:
    """Return up to ``limit`` attempts older than ``before``, newest first."""
    order = [_COLUMNS[field.name] for field in fields(Place)]
    query = select(*_COLUMNS).order_by(*(column.desc() for column in order)).limit(limit)
    if wanted.company_id is not None:
        query = query.where(_COLUMNS.company_id == wanted.company_id)
    if wanted.status is not None:
        query = query.where(_COLUMNS.status == wanted.status)
    if wanted.since is not None:
        query = query.where(_COLUMNS.attempted_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(_COLUMNS.attempted_at < wanted.until)
    if before is not None:
        query = query.where(tuple_(*order) < astuple(before))
    return list(session.execute(query))
