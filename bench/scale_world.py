"""What `bench.scale` measures on: one database that grows, in which a few companies at a time become due."""

import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import psycopg

LOADED_AT_ONCE = 100_000
BYTES_PER_COMPANY = 2_600
"""Twice what tables and indexes took when measured; write-ahead log comes on top."""

LOG_BYTES = 4 * 2**30

UNDUE = date(2040, 1, 1)
"""Where the present periods end of those who are not due."""

TABLES = ("payment_jobs", "companies", "company_packages", "company_payments", "callbacks")

# Everyone paid for one period, long ago; billing days are the 1st to the 14th.
_LOAD = (
    """
INSERT INTO companies (id, site_url, name, lastname, company_name, email, status, billing_day, registered_at)
OVERRIDING SYSTEM VALUE
SELECT n, 'https://store-' || n || '.example', 'Ayşe', 'Yılmaz', 'Mağaza ' || n || ' Ltd. Şti.',
    'store-' || n || '@store-' || n || '.example', 1, 1 + n %% 14,
    make_timestamptz(2026, 1, (1 + n %% 14)::int, 9, 0, 0, 'UTC')
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
""",
    """
INSERT INTO logins (email, company_id, password_hash)
SELECT email, id, 'scrypt:32768:8:1$' || md5(email) || '$' || repeat(md5(site_url), 4)
FROM companies WHERE id BETWEEN %(first)s AND %(last)s
""",
    """
INSERT INTO company_packages (company_id, id, package_id, start_date, end_date, price_minor, currency,
    full_days)
OVERRIDING SYSTEM VALUE
SELECT id, id, 1, date '2026-02-01' + (billing_day - 1), %(undue)s, 19900, 'TRY', 6000
FROM companies WHERE id BETWEEN %(first)s AND %(last)s
""",
    """
INSERT INTO company_payments (company_id, id, company_package_id, attempt, status, amount_minor, currency,
    period_start, period_end, reference, attempted_at)
SELECT id, md5('history' || id)::uuid, id, 1, 1, 19900, 'TRY', date '2026-01-01' + (billing_day - 1),
    date '2026-02-01' + (billing_day - 1), repeat(md5(email), 2),
    timestamptz '2026-02-01 00:00+03' + make_interval(days => billing_day - 1, secs => id %% 3600)
FROM companies WHERE id BETWEEN %(first)s AND %(last)s
""",
)

_DUE = """
UPDATE company_packages cp
SET start_date = make_date(%(start)s, %(month)s, c.billing_day),
    end_date = (make_date(%(start)s, %(month)s, c.billing_day) + interval '1 month')::date,
    full_days = (make_date(%(start)s, %(month)s, c.billing_day) + interval '1 month')::date
        - make_date(%(start)s, %(month)s, c.billing_day)
FROM companies c
WHERE c.id = cp.company_id AND cp.company_id %% %(every)s = %(rest)s AND cp.company_id <= %(companies)s
"""

_UNDUE = """
UPDATE company_packages
SET start_date = date '2039-12-01', end_date = %(undue)s, full_days = 31, status = 1
WHERE end_date < %(undue)s
"""

_SIZES = """
SELECT relname, n_dead_tup, pg_table_size(relid), pg_indexes_size(relid), autovacuum_count
FROM pg_stat_user_tables WHERE relname = ANY (%s)
"""


class Size:
    """How a table stands: dead rows, bytes of rows and of indexes, and how often autovacuum came."""

    def __init__(self, dead_rows: int, table_bytes: int, index_bytes: int, autovacuums: int) -> None:
        self.dead_rows, self.autovacuums = dead_rows, autovacuums
        self.table_bytes, self.index_bytes = table_bytes, index_bytes


class ScaleWorld:
    """A database with numbered companies, of whom none is due but those who are made so."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.companies = 0
        self._months = 2
        self.do(
            "INSERT INTO packages (name, period, price_minor, currency)"
            " VALUES ('Profesyonel', 'monthly', 19900, 'TRY')"
        )

    def grow(self, companies: int, loaded: Callable[[int], None]) -> None:
        """Add companies up to a number, with logins, packages and a payment each; tell of each portion."""
        with psycopg.connect(self.url, cursor_factory=psycopg.ClientCursor) as connection:
            # Foreign keys hold by construction; to check them would take half of the time.
            connection.execute("SET session_replication_role = replica")
            connection.execute("SET synchronous_commit = off")
            while self.companies < companies:
                last = min(companies, self.companies + LOADED_AT_ONCE)
                values = {"first": self.companies + 1, "last": last, "undue": UNDUE}
                for statement in _LOAD:
                    connection.execute(statement.encode(), values)
                connection.commit()
                loaded(last - self.companies)
                self.companies = last
        self.settle_down()

    def settle_down(self) -> None:
        """Vacuum, analyze, and write all to the disk."""
        self.do("VACUUM (ANALYZE)")
        self.do("CHECKPOINT")

    def next_day(self) -> datetime:
        """Return another business instant, months after the last: no period is due twice."""
        self._months += 2
        year, month = divmod(self._months, 12)
        return datetime(2026 + year, month + 1, 15, 9, tzinfo=UTC)

    def make_due(self, at: datetime, *, every: int, periods: int) -> None:
        """Let one company in so many have some monthly periods, one or two, ended by an instant."""
        first = at.year * 12 + at.month - 1 - periods
        year, month = divmod(first, 12)
        values = {"start": year, "month": month + 1, "companies": self.companies}
        self.do(_DUE, values | {"every": every, "rest": self._months // 2 % every})

    def make_undue(self) -> None:
        """Let no one be due; and forget what is to be tried again."""
        self.do("DELETE FROM payment_jobs")
        self.do(_UNDUE, {"undue": UNDUE})
        self.settle_down()

    def sizes(self) -> dict[str, Size]:
        """Return how the tables stand."""
        self.do("SELECT pg_stat_force_next_flush()")
        return {row[0]: Size(*row[1:]) for row in self.all(_SIZES, [list(TABLES)])}

    def do(self, statement: str, values: Any = None) -> None:
        """Run a statement."""
        with self.connect() as connection:
            connection.execute(statement.encode(), values)

    def all(self, query: str, values: Any = None) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self.connect() as connection:
            return connection.execute(query.encode(), values).fetchall()

    def connect(self) -> psycopg.Connection[Any]:
        """Return a connection for statements that stand alone."""
        return psycopg.connect(self.url, autocommit=True, cursor_factory=psycopg.ClientCursor)


def room_is_missing(companies: int) -> str | None:
    """Return a sentence where the disk has not the room for so many companies."""
    directory = tempfile.gettempdir()
    wanted, free = companies * BYTES_PER_COMPANY + LOG_BYTES, shutil.disk_usage(directory).free
    if free >= wanted:
        return None
    return (
        f"{companies:,} companies need about {wanted / 2**30:,.0f} GiB in {directory}, and"
        f" {free / 2**30:,.0f} GiB are free: take fewer (--companies, --backlog), or set TMPDIR."
    )
