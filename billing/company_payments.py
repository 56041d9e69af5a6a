"""Company payments: the history of attempts. Rows are only ever added, by the queue."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, select, tuple_
from sqlalchemy.orm import Session

from models import CompanyPayment

_COLUMNS = CompanyPayment.__table__.c


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page of attempts ended, in the order newest first."""

    attempted_at: datetime
    company_id: int
    id: UUID


def list_newest(
    session: Session, *, company_id: int | None, before: Place | None, limit: int
) -> list[Row[Any]]:
    """Return up to ``limit`` attempts older than ``before``, newest first, of one company or of all."""
    order = (_COLUMNS.attempted_at, _COLUMNS.company_id, _COLUMNS.id)
    query = select(*_COLUMNS).order_by(*(column.desc() for column in order)).limit(limit)
    if company_id is not None:
        query = query.where(_COLUMNS.company_id == company_id)
    if before is not None:
        query = query.where(tuple_(*order) < (before.attempted_at, before.company_id, before.id))
    return list(session.execute(query))
