"""The payment queue: three statements a batch, whatever its size (DESIGN.md, "The payment queue").

1. `enqueue` makes a job of each period that has ended and has none;
2. `claim` leases due jobs and gives each attempt its idempotency key;
3. `settle` writes what the gateway answered, and all that follows from it.

What moves a lease, and nothing else, is in `leases`. Every statement that ends or moves a job is
fenced by the job and its key, so a worker that lost its lease changes nothing. The SQL keeps to what Citus
takes: instants and a nonce come in as parameters.
"""

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum
from functools import lru_cache
from itertools import starmap
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import text
from sqlalchemy.orm import Session

from billing.arrays import array, texts
from billing.callbacks import message_id_sql
from billing.clock import Moment
from billing.documents import (
    company_package_sql,
    company_sql,
    instant_text,
    payment_sql,
    period_sql,
)
from billing.periods import BillingPeriod, PackagePeriod, business_date, open_period
from billing.tracing import current_id
from billing.transactions import prefer_indexes
from models import MAXIMUM_ATTEMPTS, PARKED_UNTIL

RETRY_AFTER = timedelta(hours=24)
"""A declined attempt is repeated exactly one day after it was made (DESIGN.md §2.6)."""

ENQUEUE_LOCK = 0x7661646501
"""Key of the advisory lock under which one process at a time queues a batch."""

PRORATED_SQL = """(2 * cp.price_minor * (cp.end_date - cp.start_date) + cp.full_days) / (2 * cp.full_days)"""
"""`periods.prorated` for a row of ``company_packages``: rounded half up, in integers."""


class Outcome(IntEnum):
    """What became of an attempt; the first two are ``company_payments.status``."""

    DECLINED = 0
    CHARGED = 1
    FREE = 2
    """The period cost nothing: it rolls over with no gateway and no payment row."""


class Job(NamedTuple):
    """One claimed attempt, with all that charging and settling it need."""

    company_id: int
    company_package_id: int
    period_start: date
    period_end: date
    attempt: int
    amount_minor: int
    currency: str
    idempotency_key: str
    """The attempt's UUID."""
    outages: int
    """How often the gateway gave this attempt no answer."""
    billing_day: int
    period: str
    due_at: datetime
    """Since when it has been due, in business time."""

    def next_period(self) -> BillingPeriod:
        """Return the period that follows, counted from the old end (DESIGN.md §2.5)."""
        return _following(self.period_end, self.billing_day, self.period)


@lru_cache(maxsize=4096)
def _following(end_date: date, billing_day: int, period: str) -> BillingPeriod:
    return open_period(end_date, billing_day=billing_day, period=PackagePeriod(period))


JOB_COLUMNS = """j.company_id, j.company_package_id, j.period_start, j.period_end, j.attempt, j.amount_minor,
    j.currency, j.idempotency_key::text, j.outages, c.billing_day, p.period, j.next_attempt_at"""
"""The SQL of a `Job`, of the tables j (job), c (company) and p (package)."""


class Answer(NamedTuple):
    """A job whose outcome is known."""

    job: Job
    outcome: Outcome
    reference: str | None = None
    decline_code: str | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """How many answers of one kind were written, and their money in minor units of ``currency``."""

    outcome: Outcome
    attempt: int
    currency: str
    number: int
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the last batch of `enqueue` stopped, in the order of its index."""

    end_date: date
    company_id: int
    company_package_id: int


FIRST = Cursor(date.min, 0, 0)

DueCursor = tuple[datetime, int]
"""Where the last `claim` stopped, in the order of its index: since when a job has been due, and of whom."""

FIRST_DUE: DueCursor = (datetime.min.replace(tzinfo=UTC), 0)

_ENQUEUE = text(f"""
WITH ended AS (
    SELECT cp.company_id, cp.id, cp.start_date, cp.end_date, cp.currency, {PRORATED_SQL} AS amount_minor
    FROM company_packages cp
    WHERE cp.status = 1 AND cp.end_date <= :today
        AND (cp.end_date, cp.company_id, cp.id) > (:end_date, :company_id, :company_package_id)
        AND NOT EXISTS (
            SELECT FROM payment_jobs j
            WHERE j.company_id = cp.company_id AND j.company_package_id = cp.id
                AND j.period_start = cp.start_date)
    ORDER BY cp.end_date, cp.company_id, cp.id
    LIMIT :size
), queued AS (
    INSERT INTO payment_jobs (company_id, company_package_id, period_start, period_end,
        amount_minor, currency, next_attempt_at)
    SELECT company_id, id, start_date, end_date,
        amount_minor, currency, end_date::timestamp AT TIME ZONE :zone
    FROM ended
    ON CONFLICT DO NOTHING
)
SELECT end_date, company_id, id, count(*) OVER () AS found
FROM ended ORDER BY end_date DESC, company_id DESC, id DESC LIMIT 1
""")  # noqa: S608 - built from constants

_CLAIM = text(f"""
WITH due AS (
    SELECT company_id, company_package_id, period_start FROM payment_jobs
    WHERE next_attempt_at <= :now AND (next_attempt_at, company_id) >= (:due_at, :company_id)
        AND leased_until <= :free_since
    ORDER BY next_attempt_at, company_id
    LIMIT :size
    FOR UPDATE SKIP LOCKED
)
UPDATE payment_jobs j
SET leased_until = :leased_until,
    idempotency_key = COALESCE(j.idempotency_key,
        md5(:nonce || j.company_id || '/' || j.company_package_id || '/' || j.period_start)::uuid)
FROM due, companies c, company_packages cp, packages p
WHERE j.company_id = due.company_id AND j.company_package_id = due.company_package_id
    AND j.period_start = due.period_start
    AND c.id = j.company_id AND cp.company_id = j.company_id AND cp.id = j.company_package_id
    AND p.id = cp.package_id
RETURNING {JOB_COLUMNS}
""")  # noqa: S608 - built from constants

JOBS_SQL = """unnest(CAST(:company_ids AS bigint[]), CAST(:company_package_ids AS bigint[]),
        CAST(:period_starts AS date[]), CAST(:keys AS uuid[])"""
"""The beginning of the SQL of some claimed jobs, a (answer); `job_keys` has the values."""

OF_JOB_SQL = """j.company_id = a.company_id AND j.company_package_id = a.company_package_id
        AND j.period_start = a.period_start AND j.idempotency_key = a.key"""
"""The fence: whether a row j (job) still is such a job, with its key."""

# A closed package is written before its company, the order in which an assignment takes them too, so that
# the two never wait for each other. Nothing but `settled` is joined with anything but a key.
# What a settlement changes of a company is counted and shown by one UPDATE: whoever changed the company a
# moment before is waited for, so that a message with a later sequence never shows an earlier company.
_SETTLE = text(f"""
WITH settled AS (
    DELETE FROM payment_jobs j
    USING {JOBS_SQL}, CAST(:outcomes AS smallint[]), CAST(:references AS text[]),
        CAST(:decline_codes AS text[]), CAST(:next_end_dates AS date[]), CAST(:next_full_days AS smallint[]))
        AS a(company_id, company_package_id, period_start, key, outcome, reference, decline_code,
            next_end_date, next_full_days)
    WHERE {OF_JOB_SQL}
    RETURNING j.*, a.outcome, a.reference, a.decline_code, a.next_end_date, a.next_full_days,
        a.outcome = 0 AND j.attempt >= {MAXIMUM_ATTEMPTS} AS given_up
), paid AS (
    INSERT INTO company_payments (id, company_id, company_package_id, attempt, status, amount_minor,
        currency, period_start, period_end, reference, decline_code, attempted_at)
    SELECT idempotency_key, company_id, company_package_id, attempt, outcome, amount_minor,
        currency, period_start, period_end, reference, decline_code, :attempted_at
    FROM settled WHERE outcome <= 1
), changed AS (
    UPDATE companies c
    SET sequence = c.sequence + CASE WHEN s.outcome = 1 OR s.given_up THEN 2 ELSE 1 END,
        status = CASE WHEN s.given_up THEN 0 ELSE c.status END,
        passivated_at = CASE WHEN s.given_up THEN :attempted_at ELSE c.passivated_at END
    FROM settled s
        LEFT JOIN LATERAL (
            SELECT b.status FROM companies b WHERE s.given_up AND b.id = s.company_id FOR NO KEY UPDATE
        ) before ON true
    WHERE c.id = s.company_id
    RETURNING s.*, c.sequence, c.callback_url IS NOT NULL AS by_company,
        CASE WHEN :by_platform OR c.callback_url IS NOT NULL THEN {company_sql("c")}::text END AS company,
        CASE WHEN before.status = 1 THEN '{{"company":{{"status"\\:1}}}}' ELSE '{{}}' END AS previous
), rolled AS (
    UPDATE company_packages cp
    SET start_date = s.period_end, end_date = s.next_end_date, full_days = s.next_full_days,
        price_minor = p.price_minor, currency = p.currency
    FROM changed s, packages p
    WHERE s.outcome >= 1 AND cp.company_id = s.company_id AND cp.id = s.company_package_id
        AND cp.start_date = s.period_start AND p.id = cp.package_id
    RETURNING s.company_id, s.idempotency_key, s.sequence, s.by_company, s.company,
        CASE WHEN s.company IS NOT NULL THEN {company_package_sql("cp", "p")}::text END AS company_package,
        CASE WHEN s.company IS NOT NULL THEN {period_sql("s.period_start", "s.period_end")}::text END
            AS previous
), retried AS (
    INSERT INTO payment_jobs (company_id, company_package_id, period_start, period_end, attempt,
        amount_minor, currency, next_attempt_at)
    SELECT company_id, company_package_id, period_start, period_end, (attempt + 1)::smallint,
        amount_minor, currency, :next_attempt_at
    FROM settled WHERE outcome = 0 AND NOT given_up
), closed AS (
    UPDATE company_packages cp SET status = 0 FROM settled s
    WHERE s.given_up AND cp.company_id = s.company_id AND cp.id = s.company_package_id
), messages AS MATERIALIZED (
    SELECT company_id, idempotency_key, by_company,
        CASE WHEN outcome = 1 THEN 'payment.succeeded' ELSE 'payment.declined' END AS type,
        '{{"company":' || company || ',"payment":'
            || {payment_sql("s", attempted_at="CAST(:timestamp AS text)")}
            || ',"sequence":' || CASE WHEN outcome = 1 OR given_up THEN sequence - 1 ELSE sequence END
            || ',"previous":{{}}}}' AS data
    FROM changed s WHERE outcome <= 1 AND company IS NOT NULL
    UNION ALL
    SELECT company_id, idempotency_key, by_company, 'company_package.renewed',
        '{{"company":' || company || ',"company_package":' || company_package
            || ',"sequence":' || sequence
            || ',"previous":{{"company_package":' || previous || '}}}}'
    FROM rolled WHERE company IS NOT NULL
    UNION ALL
    SELECT company_id, idempotency_key, by_company, 'company.passivated',
        '{{"company":' || company || ',"sequence":' || sequence || ',"previous":' || previous || '}}'
    FROM changed WHERE given_up AND company IS NOT NULL
), written AS (
    INSERT INTO callbacks (company_id, id, recipient, type, body, created_at, next_attempt_at, request_id)
    SELECT m.company_id, {message_id_sql("m.company_id", "m.idempotency_key || m.type || r.recipient")},
        r.recipient, m.type,
        '{{"type":"' || m.type || '","timestamp":"' || CAST(:timestamp AS text)
            || '","data":' || m.data || '}}',
        :real, :real, :request_id
    FROM messages m, (VALUES ('platform'), ('company')) AS r(recipient)
    WHERE (r.recipient = 'platform' AND :by_platform) OR (r.recipient = 'company' AND m.by_company)
)
SELECT outcome, attempt, currency, count(*) AS number, sum(amount_minor)::bigint AS amount_minor
FROM settled GROUP BY outcome, attempt, currency
""")  # noqa: S608 - built from constants

# One process queues at a time. What it queued may be lost in a crash of the database until the next claim,
# which waits for the disk, and with itself for all that came before: it would only be queued again.
_ALONE = text("SELECT pg_advisory_xact_lock(:key), set_config('synchronous_commit', 'off', true)")

_OLDEST = text("""
SELECT min(next_attempt_at) FROM payment_jobs WHERE next_attempt_at <= :now AND leased_until < :parked_until
""")


def enqueue(
    session: Session, moment: Moment, *, zone: ZoneInfo, size: int, after: Cursor = FIRST
) -> tuple[int, Cursor | None]:
    """Queue up to ``size`` ended periods that have no job, in the order in which they ended.

    Returns how many were found, and where to go on, or None where no more were. A period's job is due
    from 00:00 of its end date in ``zone``.
    """
    session.execute(_ALONE, {"key": ENQUEUE_LOCK})
    prefer_indexes(session)
    last = session.execute(
        _ENQUEUE,
        {"today": business_date(moment.business, zone), "zone": str(zone), "size": size} | asdict(after),
    ).one_or_none()
    if last is None:
        return 0, None
    more = last.found == size
    return last.found, Cursor(last.end_date, last.company_id, last.id) if more else None


def claim(
    session: Session,
    moment: Moment,
    *,
    size: int,
    lease: timedelta,
    free_since: datetime,
    after: DueCursor = FIRST_DUE,
) -> tuple[list[Job], DueCursor]:
    """Lease up to ``size`` due jobs that no one has had since ``free_since`` (real time), oldest first.

    Returns them, and where to go on: so that a pass does not step again and again over what it, or another
    worker, has leased, put aside or deleted before. An attempt that has no idempotency key gets a fresh
    random one; one that was begun keeps its own.
    """
    prefer_indexes(session)
    rows = session.execute(
        _CLAIM,
        {
            "now": moment.business,
            "free_since": free_since,
            "leased_until": moment.real + lease,
            "nonce": secrets.token_hex(16),
            "size": size,
            "due_at": after[0],
            "company_id": after[1],
        },
    )
    jobs = list(starmap(Job, rows.all()))
    return jobs, max(((job.due_at, job.company_id) for job in jobs), default=after)


def settle(
    session: Session, answers: Sequence[Answer], *, attempted_at: datetime, real: datetime, by_platform: bool
) -> list[Settled]:
    """Write what was answered and all that follows, in one statement; return what was written.

    1. The jobs that still carry their key are deleted: the others are no longer ours and change nothing.
    2. Every charge and decline becomes a row of ``company_payments``, made at ``attempted_at``.
    3. A charged or free period rolls over, at the package's present price.
    4. A decline is put back for one day later; the third makes company and company package passive.
    5. The callbacks are written, to the platform where ``by_platform``, and to companies that listen.
    """
    following = [answer.job.next_period() for answer in answers]
    prefer_indexes(session)
    rows = session.execute(
        _SETTLE,
        job_keys([a.job for a in answers])
        | {
            "outcomes": array(int(a.outcome) for a in answers),
            "references": texts(a.reference for a in answers),
            "decline_codes": texts(a.decline_code for a in answers),
            "next_end_dates": array(p.end_date for p in following),
            "next_full_days": array(p.full_days for p in following),
            "attempted_at": attempted_at,
            "next_attempt_at": attempted_at + RETRY_AFTER,
            "timestamp": instant_text(attempted_at),
            "real": real,
            "by_platform": by_platform,
            "request_id": current_id(),
        },
    )
    return [Settled(Outcome(r.outcome), r.attempt, r.currency, r.number, r.amount_minor) for r in rows]


def oldest_due(session: Session, now: datetime) -> datetime | None:
    """Return since when the oldest due job has been due that is not parked, in business time, or None."""
    oldest: datetime | None = session.execute(
        _OLDEST, {"now": now, "parked_until": PARKED_UNTIL}
    ).scalar_one()
    return oldest


def job_keys(jobs: Sequence[Job]) -> dict[str, Any]:
    """Return the values of `JOBS_SQL` for some claimed jobs."""
    return {
        "company_ids": array(job.company_id for job in jobs),
        "company_package_ids": array(job.company_package_id for job in jobs),
        "period_starts": array(job.period_start for job in jobs),
        "keys": array(job.idempotency_key for job in jobs),
    }
