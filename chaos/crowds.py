"""Companies by the dozen, written by SQL with what they began with, and days that pass for what waits."""

import random
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any

from psycopg import Connection

from chaos.days import DAY, ZONE, billing_dates, period_from

PACKAGES = (
    (1, "monthly", 19_900, "TRY"),
    (2, "monthly", 31_000, "TRY"),
    (3, "monthly", 7, "EUR"),
    (4, "yearly", 199_900, "TRY"),
    (5, "monthly", 0, "TRY"),
)
TAKEN = (30, 30, 15, 15, 10)
"""How often each package is taken, of a hundred times."""

FIRST_ID = 1_000_000
WAVE_IDS = 1000
ENDPOINTS = 0.25
"""The share of companies that set an endpoint of their own."""

NOT_DUE = 0.15
"""The share of companies whose period ends tomorrow or later: nobody may charge them."""

TABLES = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.begun (company_id bigint, company_package_id bigint PRIMARY KEY, start_date date NOT NULL);
CREATE TABLE chaos.aged (company_id bigint, company_package_id bigint, period_start date, attempt smallint,
    by interval NOT NULL);
"""

_COMPANY = """
INSERT INTO companies (id, site_url, name, lastname, company_name, email, status, billing_day, registered_at)
VALUES (%(id)s, 'https://store.example', 'Ayşe', 'Yılmaz', 'Mağaza ' || %(id)s, %(email)s, 1,
    %(billing_day)s, %(registered_at)s)
"""
_LOGIN = "INSERT INTO logins (email, company_id, password_hash) VALUES (%(email)s, %(id)s, %(password_hash)s)"
_PACKAGE = """
INSERT INTO company_packages (company_id, id, package_id, start_date, end_date, price_minor, currency,
    full_days)
VALUES (%(id)s, %(id)s, %(package_id)s, %(start)s, %(end)s, %(price_minor)s, %(currency)s, %(full_days)s)
"""
_BEGUN = "INSERT INTO chaos.begun VALUES (%(id)s, %(id)s, %(start)s)"

# Only what waits for another day is moved, in one statement with the note of it, which the audit reads.
_AGE = """
WITH aged AS (
    UPDATE payment_jobs j SET next_attempt_at = t.due
    FROM (SELECT company_id, company_package_id, period_start, next_attempt_at AS former,
            clock_timestamp() + random() * %s * interval '1 s' AS due
        FROM payment_jobs WHERE next_attempt_at > now() + interval '1 h' AND random() < %s FOR UPDATE) t
    WHERE j.company_id = t.company_id AND j.company_package_id = t.company_package_id
        AND j.period_start = t.period_start
    RETURNING j.company_id, j.company_package_id, j.period_start, j.attempt, t.former - t.due AS by
)
INSERT INTO chaos.aged SELECT * FROM aged
"""


@dataclass(frozen=True)
class Crowd:
    """Companies that the seed decides; their e-mails are ``<id>@crowd.example``."""

    seed: str
    password_hash: str

    def add(self, connection: "Connection[Any]", wave: int, size: int, today: date) -> list[int]:
        """Write a wave of companies; return those that want an endpoint of their own."""
        chance = random.Random(f"{self.seed}/wave/{wave}")
        rows = [self._company(chance, FIRST_ID + wave * WAVE_IDS + n, today) for n in range(size)]
        with connection.cursor() as cursor:
            for statement in (_COMPANY, _LOGIN, _PACKAGE, _BEGUN):
                cursor.executemany(statement.encode(), rows)
        return [row["id"] for row in rows if row["wants_endpoint"]]

    def _company(self, chance: random.Random, id_: int, today: date) -> dict[str, Any]:
        package_id, period, price_minor, currency = chance.choices(PACKAGES, TAKEN)[0]
        if chance.random() < NOT_DUE:
            # Their period ends tomorrow, or within a month.
            start = billing_dates(today - timedelta(days=chance.choice((0, 0, 9))), (today + DAY).day, 1)[0]
            registered = start
        else:
            start = today - timedelta(days=chance.randint(366, 400) if period == "yearly" else 0)
            start -= timedelta(days=chance.randint(32, 125))
            registered = start - timedelta(days=chance.choice((0, 0, chance.randint(1, 300))))
        opened = period_from(start, registered.day, period)
        return {
            "id": id_,
            "email": f"{id_}@crowd.example",
            "password_hash": self.password_hash,
            "registered_at": datetime.combine(registered, time(chance.randrange(24), 30), ZONE),
            "billing_day": registered.day,
            "package_id": package_id,
            "start": start,
            "end": opened.end,
            "full_days": opened.full_days,
            "price_minor": price_minor,
            "currency": currency,
            "wants_endpoint": chance.random() < ENDPOINTS,
        }


def make_tables(connection: "Connection[Any]") -> None:
    """Make the packages, and the tables that the audit reads."""
    connection.execute(TABLES.encode())
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO packages (id, name, period, price_minor, currency)"
            " VALUES (%s, 'Profesyonel', %s, %s, %s)",
            PACKAGES,
        )


def age_retries(connection: "Connection[Any]", *, share: float, within_s: float) -> int:
    """Let a share of what waits for tomorrow become due within some seconds, and note it."""
    return connection.execute(_AGE.encode(), [within_s, share]).rowcount
