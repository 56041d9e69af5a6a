"""How the business does: recurring revenue, companies won and lost, what was recovered, what falls due.

What each figure means is written in docs/reports.md. One statement counts all of a report, so that its
figures are of one moment. It reads every open company package, and of payments only the sums that reports
are made of. The report is kept, and requests count anew once it is `KEPT_FOR` old.
"""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import text
from sqlalchemy.orm import Session

from billing import simulation
from billing.clock import Clock, Moment
from billing.documents import Document, instant_text
from billing.metric_figures import DAYS_AHEAD, figures
from billing.payment_queue import PRORATED_SQL
from billing.periods import business_date
from models import Setting

KEPT_FOR = timedelta(minutes=5)
"""How long a report answers requests before one of them counts again, in real time."""

SETTING = "metrics"
"""The key in ``settings`` under which the last report is kept."""

METRICS_LOCK = 0x7661646505
"""Key of the advisory lock under which one process at a time counts."""

SHORTEST_MONTH = timedelta(days=28)
"""No period ends sooner after the one before it."""

# Whether another period ends within the days ahead is asked only where it may: by the billing day, which only
# the company knows. All that ends after them is one group.
_COUNT = text(f"""
WITH open_packages AS (
    SELECT cp.currency, p.period, LEAST(cp.end_date, CAST(:beyond AS date)) AS end_date, c.billing_day,
        cp.price_minor, {PRORATED_SQL} AS amount_minor, p.price_minor AS next_price_minor
    FROM company_packages cp
    JOIN packages p ON p.id = cp.package_id
    LEFT JOIN companies c ON c.id = cp.company_id AND cp.end_date <= :again
    WHERE cp.status = 1
), opened AS (
    SELECT currency, period, end_date, billing_day, count(*) AS number, sum(price_minor) AS price_minor,
        count(*) FILTER (WHERE amount_minor > 0) AS due_number, sum(amount_minor) AS due_minor,
        count(*) FILTER (WHERE next_price_minor > 0) AS next_number, sum(next_price_minor) AS next_minor
    FROM open_packages GROUP BY currency, period, end_date, billing_day
), entries AS (
    SELECT date_trunc('month', at AT TIME ZONE :zone)::date AS month, figure, currency, attempt,
        sum(number) AS number, sum(amount_minor) AS amount_minor
    FROM report_entries GROUP BY 1, figure, currency, attempt
), retried AS (
    SELECT currency, count(*) AS number, sum(amount_minor) AS amount_minor
    FROM payment_jobs WHERE attempt > 1 GROUP BY currency
)
SELECT (SELECT coalesce(json_agg(o), '[]') FROM opened o) AS opened,
    (SELECT coalesce(json_agg(e), '[]') FROM entries e) AS entries,
    (SELECT coalesce(json_agg(r), '[]') FROM retried r) AS retried
""")  # noqa: S608 - built from constants

_LOCK = text("SELECT pg_advisory_xact_lock(:key)")
_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(:key)")

# As text: JSON in the database does not keep the order of members.
_KEEP = text("""
INSERT INTO settings (key, value) VALUES (:key, jsonb_build_object('counted_at', CAST(:counted_at AS text),
    'zone', CAST(:zone AS text), 'document', CAST(:document AS text)))
ON CONFLICT (key) DO UPDATE SET value = excluded.value
""")


def read(session: Session, clock: Clock, zone: ZoneInfo) -> Document:
    """Return the report that is kept, or count a new one where that is old, or of another zone or day.

    One process counts at a time. While it does, the others go on with the report that is kept, and wait where
    there is none. The caller commits.
    """
    moment = _moment(session, clock)
    kept = _kept(session, moment, zone)
    if kept.is_good:
        return kept.document
    if not session.execute(_TRY_LOCK, {"key": METRICS_LOCK}).scalar_one():
        if kept.document:
            return kept.document
        session.execute(_LOCK, {"key": METRICS_LOCK})
    # Another process may have counted until a moment ago.
    kept = _kept(session, moment, zone)
    return kept.document if kept.is_good else count(session, clock, zone)


def count(session: Session, clock: Clock, zone: ZoneInfo) -> Document:
    """Count a new report, keep it for requests, and return it. The caller commits."""
    session.execute(_LOCK, {"key": METRICS_LOCK})
    moment = _moment(session, clock)
    today = business_date(moment.business, zone)
    last = today + timedelta(days=DAYS_AHEAD)
    values = {"zone": str(zone), "again": last - SHORTEST_MONTH, "beyond": last + timedelta(days=1)}
    row = session.execute(_COUNT, values).one()
    document = {"as_of": instant_text(moment.business), "date": today.isoformat()}
    document |= figures(row.opened, row.entries, row.retried, today)
    kept = {
        "counted_at": instant_text(moment.real),
        "zone": str(zone),
        "document": json.dumps(document),
    }
    session.execute(_KEEP, {"key": SETTING} | kept)
    return document


@dataclass(frozen=True, slots=True)
class _Kept:
    document: Document
    is_good: bool


def _moment(session: Session, clock: Clock) -> Moment:
    """Return the present, or where a simulation stands if that is ahead."""
    moment = clock.read(session)
    return Moment(max(moment.business, simulation.stands(session) or moment.business), moment.real)


def _kept(session: Session, moment: Moment, zone: ZoneInfo) -> _Kept:
    setting = session.get(Setting, SETTING, populate_existing=True)
    if setting is None:
        return _Kept({}, is_good=False)
    document: Document = json.loads(setting.value["document"])
    age = moment.real - datetime.fromisoformat(setting.value["counted_at"])
    is_of = (setting.value["zone"], document["date"])
    now = (str(zone), business_date(moment.business, zone).isoformat())
    return _Kept(document, is_good=age < KEPT_FOR and is_of == now)
