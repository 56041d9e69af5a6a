"""Leases of claimed jobs: after an outage they rest, are given back, or prolonged (DESIGN.md §2.8).

Fenced by the job and its key, as all that ends or moves a job: a worker that lost its lease changes nothing.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

from billing.payment_queue import JOBS_SQL, OF_JOB_SQL, Job, job_keys
from billing.report_entries import INTO_SQL, QUARTER_SQL
from billing.transactions import prefer_indexes

_MOVED = f"""
    UPDATE payment_jobs j SET leased_until = a.leased_until, outages = j.outages + :outages
    FROM {JOBS_SQL}, CAST(:leased_untils AS timestamptz[]))
        AS a(company_id, company_package_id, period_start, key, leased_until)
    WHERE {OF_JOB_SQL}
"""  # noqa: S608 - built from constants

_MOVE = text(_MOVED)

# No row tells of an outage: its entry for the reports is written with the move, and only of what was moved.
_REST = text(f"""
WITH moved AS ({_MOVED} RETURNING j.currency, j.attempt, j.amount_minor)
{INTO_SQL}
SELECT {QUARTER_SQL.format("CAST(:attempted_at AS timestamptz)")}, 'outage', currency, attempt, count(*),
    sum(amount_minor)
FROM moved GROUP BY currency, attempt
""")  # noqa: S608 - built from constants


def rest(
    session: Session, pauses: Sequence[tuple[Job, timedelta]], *, attempted_at: datetime, real: datetime
) -> None:
    """Let jobs rest after an outage, each for its pause from now in real time, with their keys.

    ``attempted_at`` is the business time of the attempt that the gateway gave no answer.
    """
    if not pauses:
        return
    prefer_indexes(session)
    until = [real + pause for _, pause in pauses]
    session.execute(
        _REST,
        job_keys([job for job, _ in pauses])
        | {"leased_untils": until, "outages": 1, "attempted_at": attempted_at},
    )


def release(session: Session, jobs: Sequence[Job], *, real: datetime) -> None:
    """Give jobs back at once, with their keys: any worker may claim them."""
    _move(session, jobs, real)


def renew(session: Session, jobs: Sequence[Job], *, leased_until: datetime) -> None:
    """Prolong the leases of jobs that are still being charged, to ``leased_until`` in real time."""
    _move(session, jobs, leased_until)


def _move(session: Session, jobs: Sequence[Job], until: datetime) -> None:
    prefer_indexes(session)
    session.execute(_MOVE, job_keys(jobs) | {"leased_untils": [until] * len(jobs), "outages": 0})
