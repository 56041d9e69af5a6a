"""Parked jobs: those that fail for a reason of ours, kept until someone decides (docs/operations.md).

A job whose answer cannot be written is put aside for a while, then tried again under its key; after some
failures it is parked. It stays in the queue under a lease without end, so that its period is neither queued
anew nor charged under another key. All instants are real time, but for ``Moment.business``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from billing import payment_queue
from billing.clock import Moment
from billing.errors import JobSettledError, NotFoundError
from billing.payment_queue import Answer, Job, Outcome
from models import PARKED_UNTIL

PARKED_AFTER = 3
"""How often a settlement must fail for its job to be parked."""

PAUSE = timedelta(minutes=10)
"""How long a job rests before its settlement is tried again."""

ERROR_LENGTH = 1000
"""How much of an error is kept, in characters."""

_PUT_ASIDE = text("""
WITH aside AS (
    UPDATE payment_jobs
    SET failures = failures + :failures,
        leased_until = CASE WHEN failures + :failures >= :most THEN :parked_until
            ELSE CAST(:until AS timestamptz) END
    WHERE company_id = :company_id AND company_package_id = :company_package_id
        AND period_start = :period_start AND idempotency_key = :key AND leased_until < :parked_until
    RETURNING *
)
INSERT INTO parked_jobs (company_id, company_package_id, period_start, period_end, attempt, amount_minor,
    currency, idempotency_key, outcome, reference, error, parked_at)
SELECT company_id, company_package_id, period_start, period_end, attempt, amount_minor,
    currency, idempotency_key, :outcome, :reference, :error, :now
FROM aside WHERE leased_until = :parked_until
""")

_OPEN = text("""
SELECT id, company_id, company_package_id, period_start, period_end, attempt, amount_minor, currency,
    idempotency_key, outcome, reference, error, parked_at
FROM parked_jobs WHERE decision IS NULL ORDER BY parked_at, company_id, id LIMIT :limit
""")

_LOCK_OPEN = text("SELECT * FROM parked_jobs WHERE decision IS NULL AND id = :id FOR UPDATE")

_DECIDE = text("""
UPDATE parked_jobs SET decision = :decision, decided_at = :now, decided_by = :by
WHERE company_id = :company_id AND id = :id
""")

_RELEASE = text("""
UPDATE payment_jobs SET leased_until = :now, failures = 0
WHERE company_id = :company_id AND company_package_id = :company_package_id
    AND period_start = :period_start AND idempotency_key = :key AND leased_until = :parked_until
""")

_JOB = text(f"""
SELECT {payment_queue.JOB_COLUMNS}
FROM payment_jobs j JOIN companies c ON c.id = j.company_id
    JOIN company_packages cp ON cp.company_id = j.company_id AND cp.id = j.company_package_id
    JOIN packages p ON p.id = cp.package_id
WHERE j.company_id = :company_id AND j.company_package_id = :company_package_id
    AND j.period_start = :period_start AND j.idempotency_key = :key AND j.leased_until = :parked_until
FOR UPDATE OF j
""")  # noqa: S608 - built from constants


@dataclass(frozen=True, slots=True)
class ParkedJob:
    """A job that waits for a decision; ``outcome`` and ``reference`` are what the gateway had answered."""

    id: int
    company_id: int
    company_package_id: int
    period_start: date
    period_end: date
    attempt: int
    amount_minor: int
    currency: str
    idempotency_key: UUID
    outcome: str | None
    reference: str | None
    error: str
    parked_at: datetime


def put_aside(session: Session, answer: Answer, error: str, *, counts: bool, real: datetime) -> bool:
    """Let a job rest whose answer cannot be written, or park it; return whether it was parked.

    Only a failure that ``counts`` brings it nearer to that. One that is no longer ours is left alone.
    """
    written: Any = session.execute(
        _PUT_ASIDE,
        _key(answer.job)
        | {
            "failures": int(counts),
            "most": PARKED_AFTER,
            "until": real + PAUSE,
            "outcome": answer.outcome.name.lower(),
            "reference": answer.reference,
            "error": error[:ERROR_LENGTH],
            "now": real,
        },
    )
    return bool(written.rowcount)


def list_open(session: Session, *, limit: int) -> Sequence[ParkedJob]:
    """Return up to ``limit`` jobs that wait for a decision, those parked first at the top."""
    return [ParkedJob(**row._mapping) for row in session.execute(_OPEN, {"limit": limit})]


def release(session: Session, id_: int, *, real: datetime, by: str) -> bool:
    """Give a parked job back to the queue, with its key, and write down who did it.

    Returns False where the job had been settled meanwhile: there was nothing left to do.

    Raises:
        NotFoundError: when no job that waits for a decision has this id.
    """
    parked = _lock_open(session, id_)
    released: Any = session.execute(_RELEASE, _key(parked) | {"now": real})
    _decide(session, parked, "released", real=real, by=by)
    return bool(released.rowcount)


def drop(session: Session, id_: int, *, moment: Moment, by: str, by_platform: bool) -> None:
    """Write off the period of a parked job: it rolls over unpaid, and who did it is written down.

    No attempt is recorded. What the gateway may have charged is to be returned by hand: the parked job
    keeps the key and the reference.

    Raises:
        NotFoundError: when no job that waits for a decision has this id.
        JobSettledError: when the job is no longer in the queue.
    """
    parked = _lock_open(session, id_)
    row = session.execute(_JOB, _key(parked)).one_or_none()
    if row is None:
        raise JobSettledError("The job of %(id)s was settled meanwhile: release it, to close it.", id=id_)
    payment_queue.settle(
        session,
        [Answer(Job(*row), Outcome.FREE)],
        attempted_at=moment.business,
        real=moment.real,
        by_platform=by_platform,
    )
    _decide(session, parked, "dropped", real=moment.real, by=by)


def _lock_open(session: Session, id_: int) -> Any:
    parked = session.execute(_LOCK_OPEN, {"id": id_}).one_or_none()
    if parked is None:
        raise NotFoundError("No job that waits for a decision has the id %(id)s.", id=id_)
    return parked


def _decide(session: Session, parked: Any, decision: str, *, real: datetime, by: str) -> None:
    values = {"company_id": parked.company_id, "id": parked.id, "decision": decision, "now": real, "by": by}
    session.execute(_DECIDE, values)


def _key(job: Any) -> dict[str, Any]:
    return {
        "company_id": job.company_id,
        "company_package_id": job.company_package_id,
        "period_start": job.period_start,
        "key": job.idempotency_key,
        "parked_until": PARKED_UNTIL,
    }
