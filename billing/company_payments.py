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


def list_newest(
    session: Session, *, company_id: int | None, before: Place | None, limit: int
) -> list[Row[Any]]:
    """Return up to ``limit`` attempts older than ``before``, newest first, of one company or of all."""
    order = [_COLUMNS[field.name] for field in fields(Place)]
    query = select(*_COLUMNS).order_by(*(column.desc() for column in order)).limit(limit)
    if company_id is not None:
        query = query.where(_COLUMNS.company_id == company_id)
    if before is not None:
        query = query.where(tuple_(*order) < astuple(before))
    return list(session.execute(query))
