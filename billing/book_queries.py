"""What the books' audit asks of some companies at a time, in one snapshot (`billing.books`).

Each query takes a range of company ids and returns the rows that break a law, with a column per check that
says whether that one is broken; all go through keys that ``company_id`` leads.
"""

from datetime import date

from sqlalchemy import text

from billing.payment_queue import PRORATED_SQL, RETRY_AFTER
from models import MAXIMUM_ATTEMPTS

_RETRY_AFTER_SQL = f"make_interval(secs => {RETRY_AFTER.total_seconds():.0f})"


def _within(alias: str, column: str = "company_id") -> str:
    """Return the range of companies, said of every table, so that each goes by its own key however joined."""
    return f"{alias}.{column} > :after AND {alias}.{column} <= :last"


SNAPSHOT = text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
"""All queries of one chunk see the same moment, so that a worker at work raises no alarm."""

SETTINGS = text("""
SELECT set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true),
    set_config('work_mem', '32MB', true), set_config('lock_timeout', '5s', true)
""")
"""By key whatever the statistics say; and who takes a table for itself is not kept waiting behind us."""

SIMULATED_UNTIL = text("SELECT CAST(value->>'instant' AS timestamptz) FROM settings WHERE key = :key")

LAST_ID = text("SELECT max(id) FROM companies")

NEXT_CHUNK = text("""
SELECT max(id) AS last, count(*) AS companies
FROM (SELECT id FROM companies WHERE id > :after ORDER BY id LIMIT :size) chunk
""")

# The days from one boundary to the next, of attempts and of company packages, counted by all that the rules
# ask for. A package's first period may begin on any day; that is the first one with an attempt.
BOUNDARIES = text(f"""
WITH attempted AS (
    SELECT r.company_id, r.company_package_id, r.period_start, r.period_end,
        count(*) FILTER (WHERE r.status = 1) AS charges, count(*) AS attempts
    FROM company_payments r WHERE {_within("r")}
    GROUP BY r.company_id, r.company_package_id, r.period_start, r.period_end
), begun AS (
    SELECT *, min(period_start) OVER (PARTITION BY company_id, company_package_id) AS first_start
    FROM attempted
), standing AS (
    SELECT cp.company_id, cp.id, cp.package_id, c.billing_day, cp.start_date, cp.end_date, cp.full_days,
        EXISTS (
            SELECT FROM company_payments r
            WHERE r.company_id = cp.company_id AND r.company_package_id = cp.id
                AND r.period_start < cp.start_date AND {_within("r")}) AS rolled
    FROM company_packages cp JOIN companies c ON c.id = cp.company_id
    WHERE {_within("cp")} AND {_within("c", "id")}
), every AS (
    SELECT 'period' AS kind, s.billing_day, s.package_id, b.period_start AS start_date,
        b.period_end AS end_date, NULL::smallint AS full_days, b.period_start > b.first_start AS rolled,
        b.charges, b.attempts, b.company_id, b.company_package_id
    FROM begun b JOIN standing s ON s.company_id = b.company_id AND s.id = b.company_package_id
    UNION ALL
    SELECT 'package', billing_day, package_id, start_date, end_date, full_days, rolled, 0, 0, company_id, id
    FROM standing
)
SELECT e.kind, e.billing_day, p.period, to_char(e.start_date, 'YYYY-MM-DD') AS start_date,
    to_char(e.end_date, 'YYYY-MM-DD') AS end_date, e.full_days, e.rolled, count(*) AS number,
    sum(e.charges)::bigint AS charges, sum(e.attempts)::bigint AS attempts,
    min(ARRAY[e.company_id, e.company_package_id]) AS example
FROM every e JOIN packages p ON p.id = e.package_id
GROUP BY e.kind, e.billing_day, p.period, e.start_date, e.end_date, e.full_days, e.rolled
""")  # noqa: S608 - built from constants

# A period is over where it was charged or written off; the next begins where it ended, up to the present one.
PERIODS = text(f"""
WITH spaced AS (
    SELECT r.*, r.attempted_at - lag(r.attempted_at) OVER (
        PARTITION BY r.company_id, r.company_package_id, r.period_start ORDER BY r.attempt) AS pause
    FROM company_payments r WHERE {_within("r")}
), attempted AS (
    SELECT company_id, company_package_id, period_start,
        COALESCE(max(period_end) FILTER (WHERE status = 1), max(period_end)) AS period_end,
        count(*) FILTER (WHERE status = 1) AS charges, count(*) FILTER (WHERE status = 0) AS declines,
        count(*) <> max(attempt) OR max(attempt) > {MAXIMUM_ATTEMPTS}
            OR COALESCE(min(pause) < {_RETRY_AFTER_SQL}, false)
            OR COALESCE(min(attempt) FILTER (WHERE status = 1) < max(attempt), false) AS misnumbered,
        min(attempted_at) < (max(period_end)::timestamp AT TIME ZONE :zone) AS early,
        min(amount_minor) <> max(amount_minor) OR min(currency) <> max(currency) AS varied,
        min(amount_minor) AS amount_minor, min(currency) AS currency
    FROM spaced GROUP BY company_id, company_package_id, period_start
), dropped AS (
    SELECT d.company_id, d.company_package_id, d.period_start, max(d.period_end) AS period_end
    FROM parked_jobs d WHERE {_within("d")} AND d.decision = 'dropped'
    GROUP BY d.company_id, d.company_package_id, d.period_start
), every AS (
    SELECT a.*, EXISTS (
        SELECT FROM parked_jobs d WHERE d.company_id = a.company_id
            AND d.company_package_id = a.company_package_id AND d.period_start = a.period_start
            AND d.decision = 'dropped' AND {_within("d")}) AS dropped
    FROM attempted a
    UNION ALL
    SELECT d.company_id, d.company_package_id, d.period_start, d.period_end, 0, 0, false, false, false,
        NULL, NULL, true
    FROM dropped d
    WHERE NOT EXISTS (
        SELECT FROM company_payments r WHERE r.company_id = d.company_id
            AND r.company_package_id = d.company_package_id AND r.period_start = d.period_start
            AND {_within("r")})
), chained AS (
    SELECT e.*, lag(period_end) OVER package AS former_end, lead(period_start) OVER package IS NULL AS newest
    FROM every e WINDOW package AS (PARTITION BY company_id, company_package_id ORDER BY period_start)
), judged AS (
    SELECT h.*, c.passivated_at, cp.status AS open, cp.start_date, h.charges = 0 AND NOT h.dropped AS unpaid,
        cp.price_minor > 0 AND p.price_minor > 0 AS priced,
        {PRORATED_SQL} AS due_minor, cp.currency AS due_currency
    FROM chained h
        JOIN company_packages cp ON cp.company_id = h.company_id AND cp.id = h.company_package_id
        JOIN companies c ON c.id = cp.company_id
        JOIN packages p ON p.id = cp.package_id
    WHERE {_within("cp")} AND {_within("c", "id")}
), found AS (
    SELECT company_id, company_package_id, period_start,
        COALESCE(priced AND period_start > former_end, false)
            OR (newest AND priced AND NOT unpaid AND period_end < start_date)
            OR (unpaid AND period_start < start_date) AS gap,
        charges > 1 OR COALESCE(period_start < former_end, false) OR period_start > start_date
            OR (NOT unpaid AND period_end > start_date) AS overlap,
        varied OR (period_start = start_date
            AND (amount_minor <> due_minor OR currency <> due_currency)) AS amount,
        misnumbered AS attempt,
        early,
        declines >= {MAXIMUM_ATTEMPTS} AND unpaid AND period_start = start_date
            AND (open = 1 OR passivated_at IS NULL) AS unpaid
    FROM judged
)
SELECT * FROM found WHERE gap OR overlap OR amount OR attempt OR early OR unpaid
ORDER BY company_id, company_package_id, period_start
""")  # noqa: S608 - built from constants

# A period that rolled over may have ended too, and its job comes later in the pass: hence two graces. The
# attempt's is a difference, so that nobody looks for it by time, through all that was attempted lately.
PACKAGES = text(f"""
WITH found AS (
    SELECT cp.company_id, cp.id AS company_package_id, cp.start_date AS period_start,
        CASE WHEN cp.status = 0 OR c.passivated_at IS NOT NULL THEN NOT EXISTS (
            SELECT FROM company_payments r
            WHERE r.company_id = cp.company_id AND r.company_package_id = cp.id
                AND r.period_start = cp.start_date AND r.attempt = {MAXIMUM_ATTEMPTS} AND r.status = 0
                AND {_within("r")})
        ELSE false END AS passive,
        CASE WHEN cp.status = 1 AND (cp.end_date::timestamp AT TIME ZONE :zone) <= :business_grace THEN
            NOT EXISTS (
                SELECT FROM payment_jobs j
                WHERE j.company_id = cp.company_id AND j.company_package_id = cp.id AND {_within("j")})
            AND NOT EXISTS (
                SELECT FROM company_payments r
                WHERE r.company_id = cp.company_id AND r.company_package_id = cp.id
                    AND r.period_end = cp.start_date
                    AND r.attempted_at - CAST(:business_grace AS timestamptz) > interval '0'
                    AND {_within("r")})
            AND NOT EXISTS (
                SELECT FROM parked_jobs d
                WHERE d.company_id = cp.company_id AND d.company_package_id = cp.id
                    AND d.period_end = cp.start_date AND d.decided_at > :real_grace AND {_within("d")})
        ELSE false END AS unqueued
    FROM company_packages cp JOIN companies c ON c.id = cp.company_id
    WHERE {_within("cp")} AND {_within("c", "id")}
)
SELECT * FROM found WHERE passive OR unqueued ORDER BY company_id, company_package_id
""")  # noqa: S608 - built from constants

COMPANIES = text(f"""
SELECT c.id AS company_id, true AS passive
FROM companies c
WHERE {_within("c", "id")} AND c.passivated_at IS NOT NULL
    AND NOT EXISTS (SELECT FROM company_packages cp WHERE cp.company_id = c.id AND {_within("cp")})
ORDER BY c.id
""")  # noqa: S608 - built from constants

JOBS = text(f"""
WITH placed AS (
    SELECT j.*, p.decision IS NULL AND p.company_id IS NOT NULL AS parked, cp.status AS open, cp.start_date,
        cp.end_date, {PRORATED_SQL} AS due_minor, cp.currency AS due_currency, r.attempts, r.last_at
    FROM payment_jobs j
        JOIN company_packages cp ON cp.company_id = j.company_id AND cp.id = j.company_package_id
        LEFT JOIN parked_jobs p ON p.company_id = j.company_id
            AND p.company_package_id = j.company_package_id AND p.period_start = j.period_start
            AND p.decision IS NULL AND {_within("p")}
        CROSS JOIN LATERAL (
            SELECT count(*) AS attempts, max(attempted_at) AS last_at FROM company_payments r
            WHERE r.company_id = j.company_id AND r.company_package_id = j.company_package_id
                AND r.period_start = j.period_start) r
    WHERE {_within("j")} AND {_within("cp")}
), found AS (
    SELECT company_id, company_package_id, period_start,
        open = 0 OR (start_date, end_date) <> (period_start, period_end) OR period_end > :today AS stray,
        (start_date, end_date) = (period_start, period_end)
            AND (amount_minor <> due_minor OR currency <> due_currency) AS amount,
        attempt <> attempts + 1
            OR next_attempt_at <> COALESCE(
                last_at + {_RETRY_AFTER_SQL}, period_end::timestamp AT TIME ZONE :zone) AS attempt,
        idempotency_key IS NOT NULL AND leased_until < :leases_late AND next_attempt_at <= :business_grace
            AS lease,
        parked <> (leased_until = :parked_until) AS parked
    FROM placed
)
SELECT * FROM found WHERE stray OR amount OR attempt OR lease OR parked
ORDER BY company_id, company_package_id, period_start
""")  # noqa: S608 - built from constants

PARKED = text(f"""
SELECT p.company_id, p.company_package_id, p.period_start, true AS parked
FROM parked_jobs p
WHERE {_within("p")} AND p.decision IS NULL AND NOT EXISTS (
    SELECT FROM payment_jobs j
    WHERE j.company_id = p.company_id AND j.company_package_id = p.company_package_id
        AND j.period_start = p.period_start AND {_within("j")})
ORDER BY p.company_id, p.company_package_id, p.period_start
""")  # noqa: S608 - built from constants

NUMBER_OF_JOBS = text(f"SELECT count(*) FROM payment_jobs j WHERE {_within('j')}")  # noqa: S608 - constants

# The rest is asked once, of the whole: due jobs that nobody collects although a worker lives.
STALLED = text("""
SELECT j.company_id, j.company_package_id, j.period_start, true AS stalled
FROM payment_jobs j
WHERE j.next_attempt_at <= :business_grace AND j.leased_until < :real_grace
    AND EXISTS (
        SELECT FROM worker_heartbeats WHERE started_at < :real_grace AND beat_at > :alive_since)
    AND NOT EXISTS (SELECT FROM company_payments r WHERE r.attempted_at > :business_grace)
ORDER BY j.next_attempt_at, j.company_id LIMIT :most
""")

HEARTBEATS = text("""
SELECT worker, beat_at FROM worker_heartbeats
WHERE beat_at <= :alive_since
    AND NOT EXISTS (SELECT FROM worker_heartbeats WHERE beat_at > :alive_since)
ORDER BY beat_at DESC
""")

NO_WORKER = text("SELECT NOT EXISTS (SELECT FROM worker_heartbeats)")

# Messages for a platform that is paused or disabled stay where they are; a company's leave the index.
LATE_CALLBACKS = text("""
SELECT cb.company_id, cb.id, cb.recipient
FROM (VALUES ('platform'), ('company')) AS r(recipient) CROSS JOIN LATERAL (
    SELECT company_id, id, recipient FROM callbacks
    WHERE recipient = r.recipient AND next_attempt_at <= :late_since
    ORDER BY next_attempt_at LIMIT :most) cb
WHERE r.recipient = 'company' OR NOT EXISTS (
    SELECT FROM callback_endpoints
    WHERE company_id = :platform AND (open_until IS NOT NULL OR disabled_at IS NOT NULL))
""")

# The figures of reports, of some days at a time.
FIRST_DAY, LAST_DAY = date(1, 1, 3), date(9999, 12, 29)
"""Between these is whatever can be paid; around them is room for time zones."""

PAYMENTS_BY_DAY = text("""
SELECT (at AT TIME ZONE :zone)::date AS day, sum(number) AS number
FROM report_entries WHERE figure IN ('charged', 'declined') GROUP BY 1 ORDER BY 1
""")


def _of_days(column: str) -> str:
    """Return the range of days, said of an instant so that it goes by index."""
    return f"""{column} >= (CAST(:first_day AS date) - 1)::timestamp AT TIME ZONE 'UTC'
        AND {column} < (CAST(:last_day AS date) + 2)::timestamp AT TIME ZONE 'UTC'
        AND ({column} AT TIME ZONE :zone)::date BETWEEN :first_day AND :last_day"""


# What was added up for a day has the id 0, and stands at the day's noon in the zone that it was added up in.
FIGURES = text(f"""
WITH told AS (
    SELECT (at AT TIME ZONE :zone)::date AS day, figure, currency, attempt,
        sum(number) AS number, sum(amount_minor) AS amount_minor
    FROM report_entries WHERE figure IN ('charged', 'declined') AND {_of_days("at")} GROUP BY 1, 2, 3, 4
), counted AS (
    SELECT (attempted_at AT TIME ZONE :zone)::date AS day,
        CASE WHEN status = 1 THEN 'charged' ELSE 'declined' END AS figure, currency, attempt,
        count(*) AS number, sum(amount_minor) AS amount_minor
    FROM company_payments WHERE {_of_days("attempted_at")} GROUP BY 1, 2, 3, 4
), foreign_days AS (
    SELECT DISTINCT (at AT TIME ZONE :zone)::date AS day FROM report_entries
    WHERE id = 0 AND (at AT TIME ZONE :zone)::time <> time '12:00'
)
SELECT day, figure, currency, attempt AS attempt_number, told.number::bigint AS told,
    counted.number AS counted, true AS figures
FROM told FULL JOIN counted USING (day, figure, currency, attempt)
WHERE (COALESCE(told.number, 0), COALESCE(told.amount_minor, 0))
        <> (COALESCE(counted.number, 0), COALESCE(counted.amount_minor, 0))
    AND NOT EXISTS (
        SELECT FROM foreign_days f WHERE abs(f.day - COALESCE(told.day, counted.day)) <= 1)
ORDER BY day, currency, figure, attempt
""")  # noqa: S608 - built from constants
