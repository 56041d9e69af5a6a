"""Vital signs: what stands in the database that someone should watch, from a few bounded looks at indexes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from billing.breakers import DISABLED_COUNTER
from billing.clock import Clock
from billing.heartbeats import STALE_AFTER_S
from billing.transactions import prefer_indexes
from models import PARKED_UNTIL, PLATFORM_ID

MOST_COUNTED = 10_000
"""Nothing is counted further: it costs as much with millions of rows, and says "a lot" all the same."""

LIMIT_MS = 2000
"""The longest that one query may take."""

_LIMIT = text("SELECT set_config('statement_timeout', :limit, true)")

# Parked jobs are stepped over: they are few.
_JOBS = text("""
SELECT count(*) AS due,
    count(*) FILTER (WHERE leased_until > :real AND leased_until < :parked_until) AS leased,
    count(*) FILTER (WHERE leased_until <= :real AND idempotency_key IS NOT NULL) AS lease_expired,
    GREATEST(0, (SELECT reltuples FROM pg_class WHERE oid = 'payment_jobs'::regclass))::float8 AS estimate,
    (SELECT extract(epoch FROM :business - next_attempt_at) FROM payment_jobs
        WHERE next_attempt_at <= :business AND leased_until < :parked_until
        ORDER BY next_attempt_at LIMIT 1)::float8 AS oldest_age_s
FROM (
    SELECT leased_until, idempotency_key FROM payment_jobs WHERE next_attempt_at <= :business
    ORDER BY next_attempt_at, company_id LIMIT :most
) j
""")

_PARKED = text("""
SELECT count(*) FROM (SELECT 1 FROM parked_jobs WHERE decision IS NULL LIMIT :most) p
""")

_DUE_CALLBACKS = text("""
SELECT count(*) AS due, extract(epoch FROM :real - min(next_attempt_at))::float8 AS oldest_age_s
FROM (VALUES ('platform'), ('company')) AS r(recipient) CROSS JOIN LATERAL (
    SELECT next_attempt_at FROM callbacks WHERE recipient = r.recipient AND next_attempt_at <= :real
    ORDER BY next_attempt_at LIMIT :most) c
""")

# Each status by its own partial index; the newest failed ones, exhausted and held, share one.
_CALLBACKS = text("""
SELECT 'pending' AS status, count(*) AS number FROM (
    SELECT 1 FROM callbacks WHERE next_attempt_at IS NOT NULL LIMIT :most) p
UNION ALL
SELECT 'waiting', count(*) FROM (SELECT 1 FROM callbacks WHERE status = 'waiting' LIMIT :most) w
UNION ALL
SELECT status, count(*) FROM (
    SELECT status FROM callbacks WHERE status IN ('exhausted', 'held') ORDER BY created_at DESC LIMIT :most) f
GROUP BY status
""")

_ENDPOINTS = text("""
SELECT CASE WHEN company_id = :platform THEN 'platform' ELSE 'company' END AS recipient,
    count(*) FILTER (WHERE disabled_at IS NULL) AS open, count(disabled_at) AS disabled
FROM (
    SELECT company_id, disabled_at FROM callback_endpoints
    WHERE open_until IS NOT NULL OR disabled_at IS NOT NULL LIMIT :most
) e GROUP BY 1
""")

_DISABLED_EVER = text("SELECT value FROM counters WHERE name = :name")

_WORKERS = text("""
SELECT count(*) FILTER (WHERE age_s <= :stale_after_s) AS alive, min(age_s) AS newest_age_s
FROM (SELECT extract(epoch FROM :real - beat_at)::float8 AS age_s FROM worker_heartbeats) h
""")


@dataclass(frozen=True, slots=True)
class Vitals:
    """What one look found. Ages are in seconds; counts stop at `MOST_COUNTED`.

    ``jobs_due`` includes parked ones; ``oldest_job_age_s``, in business time, is of those that are not.
    A lease has expired where a job was begun, is due, and is nobody's now. An age is 0 where nothing is
    due; ``heartbeat_age_s`` is None where no worker was seen for a day.
    """

    jobs_due: int
    jobs_leased: int
    jobs_lease_expired: int
    jobs_estimate: float
    oldest_job_age_s: float
    jobs_parked: int
    callbacks: Mapping[str, int]
    """By status: pending, waiting, exhausted, held."""
    callbacks_due: int
    oldest_callback_age_s: float
    breakers_open: Mapping[str, int]
    """By recipient: platform, company."""
    endpoints_disabled: Mapping[str, int]
    endpoints_disabled_ever: int
    workers_alive: int
    heartbeat_age_s: float | None


def look(session: Session, clock: Clock) -> Vitals:
    """Return what stands in the database now, changing nothing.

    Raises:
        sqlalchemy.exc.DBAPIError: when the database does not answer, or not in time.
    """
    session.execute(_LIMIT, {"limit": str(LIMIT_MS)})
    prefer_indexes(session)
    moment = clock.read(session)
    bounds: dict[str, Any] = {"most": MOST_COUNTED, "real": moment.real, "parked_until": PARKED_UNTIL}
    jobs = session.execute(_JOBS, bounds | {"business": moment.business}).one()
    due_callbacks = session.execute(_DUE_CALLBACKS, bounds).one()
    callbacks: dict[str, int] = {row.status: row.number for row in session.execute(_CALLBACKS, bounds)}
    endpoints = session.execute(_ENDPOINTS, bounds | {"platform": PLATFORM_ID}).all()
    workers = session.execute(_WORKERS, bounds | {"stale_after_s": STALE_AFTER_S}).one()
    return Vitals(
        jobs_due=jobs.due,
        jobs_leased=jobs.leased,
        jobs_lease_expired=jobs.lease_expired,
        jobs_estimate=jobs.estimate,
        oldest_job_age_s=jobs.oldest_age_s or 0.0,
        jobs_parked=session.execute(_PARKED, bounds).scalar_one(),
        callbacks={"pending": 0, "waiting": 0, "exhausted": 0, "held": 0} | callbacks,
        callbacks_due=due_callbacks.due,
        oldest_callback_age_s=due_callbacks.oldest_age_s or 0.0,
        breakers_open={"platform": 0, "company": 0} | {row.recipient: row.open for row in endpoints},
        endpoints_disabled={"platform": 0, "company": 0} | {row.recipient: row.disabled for row in endpoints},
        endpoints_disabled_ever=session.execute(_DISABLED_EVER, {"name": DISABLED_COUNTER}).scalar() or 0,
        workers_alive=workers.alive,
        heartbeat_age_s=workers.newest_age_s,
    )
