"""What became of callbacks: seen with every attempt, sent again, and removed when they are old."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, literal, select, text, tuple_
from sqlalchemy.orm import Session

from billing.callbacks import COMPANY, PLATFORM, company_of
from billing.errors import EndpointDisabledError, EndpointMissingError, NotFoundError
from billing.transactions import prefer_indexes
from models import BIGINT_MAX, PLATFORM_ID, Callback, CallbackAttempt, CallbackEndpoint

BATCH = 1000
"""How many messages one transaction recovers or removes."""

_COLUMNS = Callback.__table__.c
_ORDER = (_COLUMNS.created_at, _COLUMNS.company_id, _COLUMNS.id)
# All but the body, which only one message at a time is shown with.
_SHOWN = tuple(column for column in _COLUMNS if column is not _COLUMNS.body)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page of callbacks ended, in the order newest first."""

    created_at: datetime
    company_id: int
    id: UUID


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which callbacks are listed: those for one company's endpoint, those about a company, or all.

    Of these, those of a type, status and time: ``since`` is included, ``until`` is not; both are real time.
    """

    company_id: int | None = None
    about_company_id: int | None = None
    type: str | None = None
    status: str | None = None
    since: datetime | None = None
    until: datetime | None = None


def list_newest(session: Session, wanted: Wanted, *, before: Place | None, limit: int) -> list[Row[Any]]:
    """Return up to ``limit`` callbacks older than ``before``, newest first, without their bodies."""
    query = select(*_SHOWN).order_by(*(column.desc() for column in _ORDER)).limit(limit)
    if wanted.company_id is not None:
        query = _for_company(query, wanted.company_id)
    elif wanted.about_company_id is not None:
        query = query.where(_COLUMNS.company_id == wanted.about_company_id)
    # Type and status are written out, so that the planner sees which partial index has them.
    if wanted.type is not None:
        query = query.where(_COLUMNS.type == literal(wanted.type, literal_execute=True))
    if wanted.status is not None:
        query = query.where(_COLUMNS.status == literal(wanted.status, literal_execute=True))
    if wanted.since is not None:
        query = query.where(_COLUMNS.created_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(_COLUMNS.created_at < wanted.until)
    if before is not None:
        query = query.where(tuple_(*_ORDER) < (before.created_at, before.company_id, before.id))
    return list(session.execute(query))


def list_attempts(session: Session, callbacks: Iterable[Row[Any]]) -> dict[UUID, list[Row[Any]]]:
    """Return the attempts to deliver some callbacks, in their order."""
    attempts = CallbackAttempt.__table__.c
    keys = [(callback.company_id, callback.id) for callback in callbacks]
    found: dict[UUID, list[Row[Any]]] = {id_: [] for _, id_ in keys}
    if keys:
        query = select(*attempts).where(tuple_(attempts.company_id, attempts.callback_id).in_(keys))
        for attempt in session.execute(query.order_by(attempts.number)):
            found[attempt.callback_id].append(attempt)
    return found


def find(session: Session, id_: UUID, *, company_id: int | None) -> Row[Any]:
    """Return a callback with its body: any, or one for a company's own endpoint.

    Raises:
        NotFoundError: when there is none.
    """
    owner = company_of(id_)
    found = None
    if owner <= BIGINT_MAX and company_id in {None, owner}:
        query = select(*_COLUMNS).where(_COLUMNS.company_id == owner, _COLUMNS.id == id_)
        if company_id is not None:
            query = _for_company(query, company_id)
        found = session.execute(query).one_or_none()
    if found is None:
        raise NotFoundError("There is no callback with this id.")
    return found


def replay(session: Session, id_: UUID, *, company_id: int | None, now: datetime) -> Row[Any]:
    """Send a callback once more, and on failure on the whole schedule again; return it as `find` does.

    It has the id and the body that it had.

    Raises:
        NotFoundError: when there is none.
        EndpointMissingError: when its endpoint was taken away.
        EndpointDisabledError: when its endpoint is disabled.
    """
    callback = find(session, id_, company_id=company_id)
    check_enabled(session, PLATFORM_ID if callback.recipient == PLATFORM else callback.company_id)
    session.execute(_REPLAY, {"company_id": callback.company_id, "id": id_, "now": now})
    return find(session, id_, company_id=company_id)


def recover(session: Session, endpoint_id: int, *, since: datetime, now: datetime) -> int:
    """Send again what failed of an endpoint's messages written at ``since`` or later; return how many.

    At most `BATCH`: where as many come back, there may be more.

    Raises:
        EndpointDisabledError: when the endpoint is disabled.
    """
    check_enabled(session, endpoint_id)
    statement = _RECOVER_PLATFORM if endpoint_id == PLATFORM_ID else _RECOVER_COMPANY
    values = {"company_id": endpoint_id, "since": since, "now": now, "size": BATCH}
    recovered: Any = session.execute(statement, values)
    count: int = recovered.rowcount
    return count


def is_any_failed(session: Session, endpoint_id: int, *, since: datetime) -> bool:
    """Return whether `recover` would find anything."""
    statement = _FAILED_PLATFORM if endpoint_id == PLATFORM_ID else _FAILED_COMPANY
    values = {"company_id": endpoint_id, "since": since, "size": 1}
    return session.execute(statement, values).first() is not None


def check_enabled(session: Session, endpoint_id: int) -> None:
    """Raise an error for an endpoint that is disabled, or was taken away.

    The platform's may be new: it is there once the first message is sent to it.
    """
    endpoint = session.get(CallbackEndpoint, endpoint_id, populate_existing=True)
    if endpoint_id != PLATFORM_ID and (endpoint is None or endpoint.url is None):
        raise EndpointMissingError
    if endpoint is not None and endpoint.disabled_at is not None:
        raise EndpointDisabledError


def remove_old(session: Session, *, before: datetime) -> int:
    """Remove up to `BATCH` messages written earlier that are not to be sent any more; return how many."""
    prefer_indexes(session)
    removed: Any = session.execute(_REMOVE_OLD, {"before": before, "size": BATCH})
    count: int = removed.rowcount
    return count


def _for_company(query: Select[Any], company_id: int) -> Select[Any]:
    recipient = literal(COMPANY, literal_execute=True)
    return query.where(_COLUMNS.company_id == company_id, _COLUMNS.recipient == recipient)


_REPLAY = text("""
UPDATE callbacks SET status = 'pending', schedule_step = 0, next_attempt_at = :now
WHERE company_id = :company_id AND id = :id
""")

_FAILED = """
SELECT company_id, id FROM callbacks
WHERE {whose} AND status IN ('exhausted', 'held') AND created_at >= :since ORDER BY created_at LIMIT :size
"""
_RECOVER = """
WITH failed AS ({failed} FOR UPDATE SKIP LOCKED)
UPDATE callbacks cb SET status = 'pending', schedule_step = 0, next_attempt_at = :now
FROM failed WHERE cb.company_id = failed.company_id AND cb.id = failed.id
"""
_OF_PLATFORM = _FAILED.format(whose="recipient = 'platform'")
_OF_COMPANY = _FAILED.format(whose="company_id = :company_id AND recipient = 'company'")
_FAILED_PLATFORM, _FAILED_COMPANY = text(_OF_PLATFORM), text(_OF_COMPANY)
_RECOVER_PLATFORM = text(_RECOVER.format(failed=_OF_PLATFORM))
_RECOVER_COMPANY = text(_RECOVER.format(failed=_OF_COMPANY))

# Its attempts go with it.
_REMOVE_OLD = text("""
WITH old AS (
    SELECT company_id, id FROM callbacks
    WHERE created_at < :before AND status IN ('delivered', 'exhausted', 'held')
    ORDER BY created_at LIMIT :size FOR UPDATE SKIP LOCKED
)
DELETE FROM callbacks cb USING old WHERE cb.company_id = old.company_id AND cb.id = old.id
""")
