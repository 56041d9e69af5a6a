"""The plan of every hot query, kept: which index each table is found by, and where rows are sorted.

The product's own functions run on a database of some size; each statement is explained as it is about to run,
in its own transaction with what that has set.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import psycopg
import pytest
from flask import Flask
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from billing import callback_history, company_packages, company_payments, delivery_queue, leases
from billing import payment_queue as queue
from billing.books import Auditor
from billing.callback_history import Wanted
from billing.clock import Clock, Moment
from billing.payment_queue import Answer, Job, Outcome
from models import Login, db
from tests.conftest import new_database, settings_for
from tests.world import instant
from wsgi import create_app

NOW = instant("2026-05-11", 12)
SOON = datetime(2100, 1, 1, tzinfo=UTC)
"""Real time after all that is due, and before no lease."""

PLACE = company_payments.Place(instant("2026-04-10", 1), 7, 7, date(2026, 3, 10), 1)
"""Where a page of payments ended, in the middle."""

FILL = """
SET session_replication_role = replica;
INSERT INTO packages (name, period, price_minor, currency)
SELECT 'Paket ' || n, 'monthly', 31000, 'TRY' FROM generate_series(1, 20) AS n;
INSERT INTO companies (site_url, name, lastname, company_name, email, status, billing_day, registered_at,
    callback_url)
SELECT 'https://store-' || n || '.example', 'Ayşe', 'Yılmaz', 'Mağaza ' || n,
    'store-' || n || '@store.example', 1, 10, '2026-01-10 12:00+03',
    CASE WHEN n <= 10000 THEN 'https://store-' || n || '.example/callbacks' END
FROM generate_series(1, 20000) AS n;
INSERT INTO logins SELECT email, id, 'x' FROM companies;
INSERT INTO company_sessions (company_id, created_at, expires_at)
SELECT id, now(), timestamptz '2026-05-01' + make_interval(mins => id::int) FROM companies ORDER BY id;
INSERT INTO company_packages (company_id, package_id, start_date, end_date, price_minor, currency, full_days)
SELECT id, 1 + id % 20, date '2026-04-10' + CASE WHEN id % 5 = 0 THEN 0 ELSE 30 END,
    date '2026-05-10' + CASE WHEN id % 5 = 0 THEN 0 ELSE 31 END, 31000, 'TRY', 31 FROM companies;
INSERT INTO company_payments (company_id, id, company_package_id, attempt, status, amount_minor, currency,
    period_start, period_end, reference, attempted_at)
SELECT c.id, md5(c.id || '/' || m)::uuid, cp.id, 1, 1, 31000, 'TRY',
    date '2026-01-10' + interval '1 month' * m, date '2026-02-10' + interval '1 month' * m, 'ref',
    timestamptz '2026-02-10 00:00+03' + interval '1 month' * m + make_interval(secs => c.id)
FROM companies c JOIN company_packages cp ON cp.company_id = c.id, generate_series(0, 2) AS m;
INSERT INTO payment_jobs (company_id, company_package_id, period_start, period_end, amount_minor, currency,
    next_attempt_at, leased_until, idempotency_key)
SELECT company_id, id, start_date, end_date, 31000, 'TRY', timestamptz '2026-05-10 00:00+03',
    CASE WHEN id % 10 = 0 THEN timestamptz '2100-01-02' ELSE timestamptz '1970-01-01' END,
    CASE WHEN id % 10 = 0 THEN md5('job' || id)::uuid END
FROM company_packages WHERE id % 5 = 0 AND id % 15 > 0;
INSERT INTO parked_jobs (company_id, company_package_id, period_start, period_end, attempt, amount_minor,
    currency, idempotency_key, error, parked_at, decision, decided_at, decided_by)
SELECT company_id, id, '2026-01-10', '2026-02-10', 1, 31000, 'TRY', md5('parked' || id)::uuid, 'out of range',
    now(), 'released', now(), 'ayse'
FROM company_packages WHERE id % 20 = 0;
INSERT INTO callback_endpoints (company_id, url, has_waiting)
SELECT id, callback_url, id % 10 = 0 FROM companies WHERE callback_url IS NOT NULL;
INSERT INTO callback_endpoints (company_id, url) VALUES (0, 'https://platform.example');
INSERT INTO callbacks (company_id, id, recipient, type, body, status, created_at, next_attempt_at)
SELECT c.id, (lpad(to_hex(c.id), 16, '0') || left(md5(c.id || '/' || n), 16))::uuid,
    CASE WHEN n <= 3 THEN 'platform' ELSE 'company' END,
    (ARRAY['payment.succeeded', 'company_package.renewed', 'company.updated', 'payment.declined'])[1 + n % 4],
    '{}', s.status, timestamptz '2026-01-10' + make_interval(mins => (c.id * 6 + n)::int),
    CASE WHEN s.status = 'pending' THEN timestamptz '2026-05-01' + make_interval(secs => c.id) END
FROM companies c, generate_series(1, 6) AS n, LATERAL (SELECT CASE
    WHEN n = 1 AND c.id % 4 = 0 THEN 'pending'
    WHEN n >= 4 AND c.id % 10 = 0 THEN 'waiting'
    WHEN n = 4 AND c.id % 10 = 1 THEN 'pending'
    WHEN n = 5 AND c.id % 10 = 1 THEN 'held'
    ELSE 'delivered' END AS status) s
WHERE n <= 3 OR c.callback_url IS NOT NULL;
INSERT INTO callback_attempts (company_id, callback_id, number, attempted_at, status_code, duration_ms)
SELECT company_id, id, 1, created_at, 200, 5 FROM callbacks WHERE status = 'delivered';
-- The statistics stay as they are at first.
DO $$ DECLARE name text; BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
        EXECUTE format('ALTER TABLE %I SET (autovacuum_enabled = off)', name);
    END LOOP;
END $$;
"""

SMALL = {"packages", "callback_secrets", "worker_heartbeats", "settings"}
"""Tables of a few rows, which may be read as a whole."""


class Plan(NamedTuple):
    """The indexes that a query goes by, and how often it sorts rows; None: as the planner likes."""

    indexes: frozenset[str]
    sorts: int | None = 0


def by(*indexes: str, sorts: int | None = 0) -> Plan:
    return Plan(frozenset(indexes), sorts)


EXPECTED = {
    # The last of a batch is told.
    "enqueue": by("company_packages_due_idx", "payment_jobs_pkey", sorts=1),
    "claim": by(
        "payment_jobs_due_idx",
        "payment_jobs_pkey",
        "companies_pkey",
        "company_packages_pkey",
        "packages_pkey",
    ),
    "settle": by("payment_jobs_pkey", "companies_pkey", "company_packages_pkey", "packages_pkey"),
    "move": by("payment_jobs_pkey"),
    "oldest": by("payment_jobs_due_idx"),
    "claim_platform": by("callbacks_due_idx", "callbacks_pkey", "callback_endpoints_pkey"),
    # A batch by endpoint, and by what is to become of it.
    "claim_companies": by("callbacks_due_idx", "callbacks_pkey", "callback_endpoints_pkey", sorts=2),
    "claim_waiting": by(
        "callback_endpoints_waiting_idx",
        "callback_endpoints_pkey",
        "callbacks_waiting_idx",
        "callbacks_pkey",
    ),
    "record": by("callbacks_pkey"),
    "put_back": by("callbacks_pkey", "callback_endpoints_pkey"),
    "remove_old": by("callbacks_newest_idx", "callbacks_pkey"),
    # What one company has had.
    "current": by("companies_pkey", "company_packages_pkey", "company_sessions_pkey", sorts=None),
    "login": by("logins_pkey"),
    "payments of all": by("company_payments_newest_idx"),
    "payments of all, next page": by("company_payments_newest_idx"),
    # What there is of one company may well be sorted.
    "payments of one": by("company_payments_attempt_of_period_key", sorts=None),
    "payments of one, since": by("company_payments_attempt_of_period_key", sorts=None),
    "payments of a time": by("company_payments_newest_idx"),
    "callbacks of all": by("callbacks_newest_idx"),
    "callbacks of one": by("callbacks_newest_of_company_idx", sorts=None),
    "callbacks about one": by("callbacks_pkey", sorts=None),
    "callbacks that failed": by("callbacks_newest_failed_idx"),
    "callbacks of a rare type": by("callbacks_newest_of_type_idx"),
    # As much as a chunk holds is sorted, and never more.
    "books, a chunk": by(
        "companies_pkey",
        "company_packages_pkey",
        "packages_pkey",
        "company_payments_attempt_of_period_key",
        "payment_jobs_pkey",
        "parked_jobs_pkey",
        "parked_jobs_one_open_per_job_key",
        "settings_pkey",
        sorts=None,
    ),
    "books, the whole": by(
        "payment_jobs_due_idx",
        "company_payments_newest_idx",
        "callbacks_due_idx",
        "callback_endpoints_troubled_idx",
        "report_entries_pkey",
        sorts=None,
    ),
}

EITHER = {"books, a chunk": frozenset({"payment_jobs_due_idx"})}
"""Indexes that may be taken or not: to count a chunk's jobs, that of a few thousand is as good."""

SECONDARY = (
    ("enqueue", "company_packages_due_idx"),
    ("claim", "payment_jobs_due_idx"),
    ("oldest", "payment_jobs_due_idx"),
    ("claim_platform", "callbacks_due_idx"),
    ("claim_companies", "callbacks_due_idx"),
    ("claim_waiting", "callbacks_waiting_idx"),
    ("claim_waiting", "callback_endpoints_waiting_idx"),
    ("payments of all", "company_payments_newest_idx"),
    ("callbacks of all", "callbacks_newest_idx"),
    ("callbacks of one", "callbacks_newest_of_company_idx"),
    ("callbacks that failed", "callbacks_newest_failed_idx"),
    ("callbacks of a rare type", "callbacks_newest_of_type_idx"),
)
"""Queries, and what they would miss."""


@dataclass
class Recorder:
    """The plans of all that runs while it listens."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    on: bool = False

    def hear(self, _: Any, cursor: psycopg.Cursor[Any], statement: str, values: Any, *__: Any) -> None:
        if not self.on or statement.startswith("SET"):
            return
        with psycopg.Cursor(cursor.connection) as own:
            row = own.execute(f"EXPLAIN (FORMAT JSON) {statement}".encode(), values).fetchone()
        assert row is not None
        self._add(row[0][0]["Plan"])

    def _add(self, node: dict[str, Any]) -> None:
        self.nodes.append(node)
        for child in node.get("Plans", ()):
            self._add(child)

    def plan(self) -> Plan:
        indexes = {node["Index Name"] for node in self.nodes if "Index Name" in node}
        return Plan(frozenset(indexes), sum("Sort" in node["Node Type"] for node in self.nodes))

    def read_as_a_whole(self) -> set[str]:
        scans = (node for node in self.nodes if node["Node Type"] == "Seq Scan")
        return {node["Relation Name"] for node in scans} - SMALL


class Looks:
    """Runs a query of the product's and records its plan; nothing is kept."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.recorder = Recorder()
        self.zone = app.extensions["vade"].zone
        self.moment = Moment(NOW, SOON)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        self.recorder.on = True
        try:
            yield
        finally:
            self.recorder.on = False

    def jobs(self, session: Session) -> list[Job]:
        jobs, _ = queue.claim(
            session, self.moment, size=200, lease=timedelta(minutes=1), free_since=SOON - timedelta(days=1)
        )
        assert len(jobs) == 200
        return jobs

    def messages(self, session: Session) -> list[delivery_queue.Claimed]:
        claim = delivery_queue.claim_platform(session, now=SOON, free_since=SOON, size=200, probe=True)
        assert len(claim.messages) == 200
        return claim.messages

    def enqueue(self, session: Session) -> None:
        with self.recorded():
            number, _ = queue.enqueue(session, self.moment, zone=self.zone, size=200)
        assert number == 200

    def claim(self, session: Session) -> None:
        with self.recorded():
            self.jobs(session)

    def settle(self, session: Session) -> None:
        jobs = self.jobs(session)
        answers = [Answer(job, Outcome(job.company_id // 10 % 2), "ref") for job in jobs]
        with self.recorded():
            settled = queue.settle(session, answers, attempted_at=NOW, real=SOON, by_platform=True)
        assert {part.outcome for part in settled} == {Outcome.CHARGED, Outcome.DECLINED}

    def move(self, session: Session) -> None:
        jobs = self.jobs(session)
        with self.recorded():
            leases.release(session, jobs, real=SOON)

    def oldest(self, session: Session) -> None:
        with self.recorded():
            assert queue.oldest_due(session, NOW) is not None

    def claim_platform(self, session: Session) -> None:
        with self.recorded():
            self.messages(session)

    def claim_companies(self, session: Session) -> None:
        with self.recorded():
            claim = delivery_queue.claim_companies(
                session, now=SOON, free_since=SOON, size=100, room=1, rooms={1: 1}
            )
        assert claim.messages

    def claim_waiting(self, session: Session) -> None:
        with self.recorded():
            claim = delivery_queue.claim_waiting(session, now=SOON, size=100, room=2, rooms={1: 1}, probes=4)
        assert claim.messages

    def record(self, session: Session) -> None:
        messages = self.messages(session)
        one = len(messages) * [1]
        with self.recorded():
            delivery_queue.record(
                session,
                messages,
                statuses=["delivered" for _ in one],
                next_attempts=[None for _ in one],
                attempted_ats=[SOON for _ in one],
                status_codes=[200 for _ in one],
                durations_ms=one,
                errors=[None for _ in one],
                answers=[None for _ in one],
            )

    def put_back(self, session: Session) -> None:
        messages = self.messages(session)
        with self.recorded():
            delivery_queue.put_back(session, messages, ["pending"] * len(messages), now=SOON)

    def remove_old(self, session: Session) -> None:
        with self.recorded():
            assert callback_history.remove_old(session, before=SOON)

    def current(self, session: Session) -> None:
        with self.recorded():
            assert company_packages.find_current(session, 777, session_id=777)

    def login(self, session: Session) -> None:
        with self.recorded():
            assert session.get(Login, "store-777@store.example")

    def payments(self, session: Session, before: company_payments.Place | None = None, **wanted: Any) -> None:
        with self.recorded():
            assert company_payments.list_newest(
                session, company_payments.Wanted(**wanted), before=before, limit=20
            )

    def callbacks(self, session: Session, **wanted: Any) -> None:
        with self.recorded():
            assert callback_history.list_newest(session, Wanted(**wanted), before=None, limit=20)

    def check(self, _: Session) -> None:
        """Of the books: on connections of its own."""
        with self.recorded():
            Auditor(db.engine, Clock(NOW), self.zone, chunk=2000).check(
                stopped=iter([False, False, True, True]).__next__
            )

    def check_whole(self, _: Session) -> None:
        with self.recorded():
            Auditor(db.engine, Clock(NOW), self.zone).check(stopped=iter([True, False, False]).__next__)


LOOKS: dict[str, Callable[[Looks, Session], None]] = {
    "enqueue": Looks.enqueue,
    "claim": Looks.claim,
    "settle": Looks.settle,
    "move": Looks.move,
    "oldest": Looks.oldest,
    "claim_platform": Looks.claim_platform,
    "claim_companies": Looks.claim_companies,
    "claim_waiting": Looks.claim_waiting,
    "record": Looks.record,
    "put_back": Looks.put_back,
    "remove_old": Looks.remove_old,
    "current": Looks.current,
    "login": Looks.login,
    "payments of all": Looks.payments,
    "payments of all, next page": lambda looks, session: looks.payments(session, before=PLACE),
    "payments of one": lambda looks, session: looks.payments(session, company_id=777),
    "payments of one, since": lambda looks, session: looks.payments(
        session, company_id=777, status=1, since=instant("2026-02-01"), until=instant("2026-05-01")
    ),
    "payments of a time": lambda looks, session: looks.payments(
        session, status=1, since=instant("2026-03-10", 1), until=instant("2026-03-10", 3)
    ),
    "callbacks of all": Looks.callbacks,
    "callbacks of one": lambda looks, session: looks.callbacks(session, company_id=777),
    "callbacks about one": lambda looks, session: looks.callbacks(session, about_company_id=777),
    "callbacks that failed": lambda looks, session: looks.callbacks(session, status="held"),
    "callbacks of a rare type": lambda looks, session: looks.callbacks(session, type="company.updated"),
    "books, a chunk": Looks.check,
    "books, the whole": Looks.check_whole,
}


@pytest.fixture(scope="module")
def looks(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Looks]:
    name = str(conninfo_to_dict(template)["dbname"])
    with new_database(server_url, prefix="vade_plans", template=name) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(FILL.encode())
            connection.execute("VACUUM (ANALYZE)")
        app = create_app(settings_for(url, tmp_path_factory.mktemp("plans")))
        with app.app_context():
            found = Looks(app)
            event.listen(db.engine, "before_cursor_execute", found.recorder.hear)
            yield found
            db.engine.dispose()


def look(looks: Looks, name: str, *, without: str | None = None) -> Recorder:
    """Return what was recorded of a query, of a database without some index."""
    looks.recorder.nodes.clear()
    with Session(db.engine) as session:
        if without is not None:
            session.execute(text(f"DROP INDEX {without}"))
        LOOKS[name](looks, session)
        session.rollback()
    return looks.recorder


def is_as_expected(found: Recorder, name: str) -> bool:
    expected, plan = EXPECTED[name], found.plan()
    return (
        not found.read_as_a_whole()
        and plan.indexes - EITHER.get(name, frozenset()) == expected.indexes
        and expected.sorts in {None, plan.sorts}
    )


@pytest.mark.parametrize("name", LOOKS)
def test_a_hot_query_goes_by_its_indexes(looks: Looks, name: str) -> None:
    found = look(looks, name)

    assert is_as_expected(found, name), (found.plan(), found.read_as_a_whole())


@pytest.mark.parametrize(("name", "index"), SECONDARY)
def test_an_index_that_is_gone_is_missed(looks: Looks, name: str, index: str) -> None:
    assert not is_as_expected(look(looks, name, without=index), name)
