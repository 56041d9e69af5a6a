"""The limit: plain set-based SQL that writes the rows of collection, with no queue, lease, key or gateway.

Same tables, constraints, batch size and contents: attempt row, roll-over or retry row, callbacks.
"""

import time
from datetime import datetime
from typing import Any

import psycopg

from bench.world import AS_OF
from billing.callbacks import message_id_sql
from billing.documents import company_package_sql, company_sql, date_sql, instant_sql, period_sql
from billing.payment_queue import PRORATED_SQL

NOW = "CAST(%(now)s AS timestamptz)"

_DECLINE_CODE = "CASE WHEN a.outcome = 0 THEN 'declined_by_bank' END"

_ANSWERED = f"""
WITH batch AS MATERIALIZED (
    SELECT cp.company_id, cp.id AS company_package_id, cp.start_date, cp.end_date, cp.currency, cp.package_id,
        {PRORATED_SQL} AS amount_minor, md5(%(nonce)s || cp.id)::uuid AS id
    FROM company_packages cp
    WHERE cp.status = 1 AND cp.end_date <= %(today)s
        AND (cp.end_date, cp.company_id, cp.id) > (%(end_date)s, %(company_id)s, %(id)s)
    ORDER BY cp.end_date, cp.company_id, cp.id
    LIMIT %(size)s
), hashed AS (
    SELECT *, encode(sha256(id::text::bytea), 'hex') AS reference FROM batch
), answered AS MATERIALIZED (
    SELECT *, CASE WHEN right(reference, 1) IN ('1','3','5','7','9','b','d','f') THEN 1 ELSE 0 END AS outcome
    FROM hashed
"""

_RETRIED = f"""), retried AS (
    INSERT INTO payment_jobs (company_id, company_package_id, period_start, period_end, attempt,
        amount_minor, currency, next_attempt_at)
    SELECT company_id, company_package_id, start_date, end_date, 2, amount_minor, currency,
        {NOW} + interval '24 hours'
    FROM answered WHERE outcome = 0
"""


def writes(answered: str, *, retried: str = _RETRIED) -> str:
    """Return the statement that writes all that follows from what was answered, up to its last SELECT.

    ``answered`` opens a ``WITH`` whose last step, not closed, has that name and the columns company_id,
    company_package_id, start_date, end_date, currency, package_id, amount_minor, id, reference, outcome.
    """
    return f"""{answered}), paid AS (
    INSERT INTO company_payments (id, company_id, company_package_id, attempt, status, amount_minor,
        currency, period_start, period_end, reference, decline_code, attempted_at)
    SELECT id, company_id, company_package_id, 1, outcome, amount_minor, currency, start_date, end_date,
        reference, {_DECLINE_CODE}, {NOW}
    FROM answered a
), rolled AS (
    UPDATE company_packages cp
    SET start_date = a.end_date, end_date = (a.end_date + interval '1 month')::date,
        full_days = (a.end_date + interval '1 month')::date - a.end_date,
        price_minor = p.price_minor, currency = p.currency
    FROM answered a, packages p
    WHERE a.outcome = 1 AND cp.company_id = a.company_id AND cp.id = a.company_package_id
        AND p.id = cp.package_id
    RETURNING cp.company_id, cp.id, {company_package_sql("cp", "p")}::text AS document
{retried}), changed AS (
    UPDATE companies c SET sequence = c.sequence + 1 + a.outcome FROM answered a WHERE c.id = a.company_id
    RETURNING a.*, c.sequence, {company_sql("c")}::text AS company
), told AS MATERIALIZED (
    SELECT a.company_id, a.id, a.outcome, a.sequence, a.company, a.start_date, a.end_date,
        json_build_object('id', a.id, 'company_id', a.company_id,
            'company_package_id', a.company_package_id, 'attempt', 1, 'status', a.outcome,
            'amount_minor', a.amount_minor, 'currency', a.currency,
            'period_start', {date_sql("a.start_date")}, 'period_end', {date_sql("a.end_date")},
            'reference', a.reference, 'decline_code', {_DECLINE_CODE},
            'attempted_at', {instant_sql(NOW)})::text AS payment,
        r.document AS company_package
    FROM changed a LEFT JOIN rolled r ON r.company_id = a.company_id AND r.id = a.company_package_id
), messages AS (
    SELECT company_id, id, CASE WHEN outcome = 1 THEN 'payment.succeeded' ELSE 'payment.declined' END AS type,
        '{{"company":' || company || ',"payment":' || payment
            || ',"sequence":' || sequence - outcome || ',"previous":{{}}}}' AS data
    FROM told
    UNION ALL
    SELECT company_id, id, 'company_package.renewed',
        '{{"company":' || company || ',"company_package":' || company_package
            || ',"sequence":' || sequence || ',"previous":{{"company_package":'
            || {period_sql("start_date", "end_date")} || '}}}}'
    FROM told WHERE outcome = 1
), written AS (
    INSERT INTO callbacks (company_id, id, recipient, type, body, created_at, next_attempt_at)
    SELECT company_id, {message_id_sql("company_id", "id || type || 'platform'")}, 'platform', type,
        '{{"type":"' || type || '","timestamp":"' || {instant_sql(NOW)} || '","data":' || data || '}}',
        {NOW}, {NOW}
    FROM messages
)"""


_BATCH = f"""{writes(_ANSWERED)}
SELECT end_date, company_id, company_package_id, count(*) OVER () FROM answered
ORDER BY end_date DESC, company_id DESC LIMIT 1
"""


def run(url: str, *, batch_size: int) -> tuple[int, float]:
    """Write the rows of everything that is due; return how many attempts, and the seconds."""
    with psycopg.connect(url) as connection:
        started_s = time.perf_counter()
        attempts = write(connection, batch_size=batch_size)
        return attempts, time.perf_counter() - started_s


def write(connection: psycopg.Connection[Any], *, batch_size: int) -> int:
    """Write the rows of everything that is due, a transaction for each batch; return how many attempts."""
    now = datetime.fromisoformat(AS_OF)
    place = {"end_date": datetime(1, 1, 1).date(), "company_id": 0, "id": 0}  # noqa: DTZ001 - a date
    attempts = 0
    while True:
        row = connection.execute(
            _BATCH.encode(),
            {"nonce": "plain", "today": now.date(), "now": now, "size": batch_size} | place,
        ).fetchone()
        connection.commit()
        if row is None:
            return attempts
        place = {"end_date": row[0], "company_id": row[1], "id": row[2]}
        attempts += row[3]
