"""Sessions: what a company's tokens belong to, from a login until it ends. In real time."""

import logging
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.orm import Session

from models import Company, CompanySession

logger = logging.getLogger(__name__)

LIFETIME = timedelta(days=30)
"""How long a session stands without a refresh."""

BATCH = 1000
"""How many sessions `sweep` removes at most."""

_SWEEP = text("""
DELETE FROM company_sessions s USING (
    SELECT company_id, id FROM company_sessions WHERE expires_at <= :now
    ORDER BY expires_at LIMIT :size FOR UPDATE SKIP LOCKED
) over WHERE s.company_id = over.company_id AND s.id = over.id
""")


def begin(session: Session, company_id: int, *, now: datetime) -> int:
    """Begin a session of a company, of generation 0; return its id."""
    return session.execute(
        insert(CompanySession)
        .values(company_id=company_id, created_at=now, expires_at=now + LIFETIME)
        .returning(CompanySession.id)
    ).scalar_one()


def find_generation(session: Session, company_id: int, id_: int) -> int | None:
    """Return how often a session was refreshed; None where it has ended."""
    return session.scalar(
        select(CompanySession.generation).where(
            CompanySession.company_id == company_id, CompanySession.id == id_
        )
    )


class Refreshed(NamedTuple):
    """A session after a refresh, and the status of its company."""

    generation: int
    status: int


def refresh(
    session: Session, company_id: int, id_: int, *, generation: int, now: datetime
) -> Refreshed | None:
    """Prolong a session of this generation, and count it up; None where there is none.

    The refresh token of an earlier generation was used already: by now a thief or the company holds a later
    one, and nobody can tell who is who. The session ends (RFC 9700 §4.14.2), which the caller has to commit.
    """
    refreshed = session.execute(
        update(CompanySession)
        .where(
            CompanySession.company_id == company_id,
            CompanySession.id == id_,
            CompanySession.generation == generation,
            CompanySession.expires_at > now,
            Company.id == CompanySession.company_id,
        )
        .values(generation=CompanySession.generation + 1, expires_at=now + LIFETIME)
        .returning(CompanySession.generation, Company.status)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if refreshed is not None:
        return Refreshed(*refreshed)
    if _end_used(session, company_id, id_, generation=generation):
        logger.warning(
            "a refresh token came twice: its session has ended",
            extra={"company_id": company_id, "session_id": id_},
        )
    return None


def end(session: Session, company_id: int, id_: int) -> bool:
    """End a session; return whether it stood."""
    return _delete(session, CompanySession.company_id == company_id, CompanySession.id == id_)


def end_all(session: Session, company_id: int) -> None:
    """End all sessions of a company."""
    _delete(session, CompanySession.company_id == company_id)


def end_others(session: Session, company_id: int, id_: int) -> None:
    """End all sessions of a company but one."""
    _delete(session, CompanySession.company_id == company_id, CompanySession.id != id_)


def _end_used(session: Session, company_id: int, id_: int, *, generation: int) -> bool:
    """End a session that has another generation; return whether there was one."""
    return _delete(
        session,
        CompanySession.company_id == company_id,
        CompanySession.id == id_,
        CompanySession.generation != generation,
    )


def sweep(session: Session, *, now: datetime) -> int:
    """Remove up to `BATCH` sessions that are over; return how many."""
    removed: Any = session.execute(_SWEEP, {"now": now, "size": BATCH})
    count: int = removed.rowcount
    return count


def _delete(session: Session, *which: Any) -> bool:
    deleted: Any = session.execute(
        delete(CompanySession).where(*which).execution_options(synchronize_session=False)
    )
    return bool(deleted.rowcount)
