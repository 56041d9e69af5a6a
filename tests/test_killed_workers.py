"""Workers are killed in the middle of their work, again and again; the gateway's books and ours agree."""

import random
import re
import signal
import time
from contextlib import ExitStack
from datetime import date, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.crowds import crowd
from tests.gateways import Ledger
from tests.processes import Database, Program, until, worker
from tests.world import instant

COMPANIES = 200
FIRST_DAY = date(2026, 5, 11)
"""Four periods have ended by then, from 10 January on."""
DAYS = 3
"""The first one collects what was missed; the others try again what was declined."""
KILLS = 6
BATCH_SIZE = 30

UNDER_WAY = "SELECT count(*) FROM payment_jobs WHERE leased_until > clock_timestamp()"
DUE = "SELECT count(*) FROM payment_jobs WHERE next_attempt_at <= %s"
NOT_QUEUED = """
SELECT count(*) FROM company_packages cp WHERE status = 1 AND end_date <= %s AND NOT EXISTS (
    SELECT FROM payment_jobs j WHERE j.company_id = cp.company_id AND j.company_package_id = cp.id)
"""


def settings(now: datetime, ledger: Path) -> dict[str, str]:
    return {
        "VADE_ENV": "development",
        "VADE_NOW": now.isoformat(),
        "PAYMENT_GATEWAY": "tests.gateways:ForgetfulGateway",
        "LEDGER_DIR": str(ledger),
        "GATEWAY_DELAY_S": "0.04",
        "GATEWAY_TIMEOUT_S": "0.25",
        "GATEWAY_THREADS": "10",
        "BATCH_SIZE": str(BATCH_SIZE),
        "LEASE_S": "1",
        "WORKER_POLL_S": "0.05",
        "CALLBACK_URL": "http://127.0.0.1:1024/",
        "CALLBACK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    }


def nothing_is_due(database: Database, now: datetime) -> bool:
    due: int = database.one(DUE, now)
    return due == 0 and database.one(NOT_QUEUED, now.date()) == 0


def has_started(program: Program) -> bool:
    return "worker started" in program.text()


@pytest.mark.slow
def test_killed_workers_lose_nothing_and_charge_nothing_twice(database_url: str, tmp_path: Path) -> None:
    """Two workers collect three days' dues; again and again one is killed, and another takes its place."""
    database, ledger = Database(database_url), Ledger(tmp_path / "ledger")
    database.do(crowd(COMPANIES))
    chance = random.Random(20260110)
    kills = 0

    for day in range(DAYS):
        now = instant((FIRST_DAY + timedelta(days=day)).isoformat())
        environment = settings(now, tmp_path / "ledger")
        with ExitStack() as running:
            pair = [running.enter_context(worker(database_url, tmp_path, **environment)) for _ in range(2)]
            done, deadline_s = len(ledger.keys()), time.monotonic() + 60
            while not nothing_is_due(database, now):
                assert time.monotonic() < deadline_s, [program.text() for program in pair]
                time.sleep(chance.uniform(0, 0.05))
                # In the middle: both have claimed, and some of it is in the gateway's books.
                under_way = database.one(UNDER_WAY)
                if kills < KILLS and under_way > BATCH_SIZE and len(ledger.keys()) > done + BATCH_SIZE:
                    pair.pop(chance.randrange(2)).kill()
                    kills += 1
                    pair.append(running.enter_context(worker(database_url, tmp_path, **environment)))
                    done = len(ledger.keys())
            for program in pair:
                until(partial(has_started, program), what=program.text)
                program.tell()
            assert [program.ended(within_s=10) for program in pair] == [0, 0]

    assert kills == KILLS
    assert_books_agree(database, ledger, now)


@pytest.mark.slow
def test_a_worker_that_slept_through_its_lease_changes_nothing(database_url: str, tmp_path: Path) -> None:
    database, ledger = Database(database_url), Ledger(tmp_path / "ledger")
    database.do(crowd(12))
    now = instant("2026-02-10")
    environment = settings(now, tmp_path / "ledger") | {
        "PAYMENT_GATEWAY": "tests.gateways:MoodyGateway",
        "GATEWAY_TIMEOUT_S": "60",
        "GATEWAY_DELAY_S": "0.3",
        "CALLBACK_URL": "",
        "CALLBACK_SECRET": "",
    }

    with worker(database_url, tmp_path, **environment) as sleeper:
        until(ledger.keys, what=sleeper.text)
        sleeper.tell(signal.SIGSTOP)
        with worker(database_url, tmp_path, **environment) as other:
            until(partial(nothing_is_due, database, now), what=other.text)
        before = books(database)
        sleeper.tell(signal.SIGCONT)
        line = until(lambda: re.findall("worker: pass queued.*", sleeper.text()), what=sleeper.text)
        sleeper.tell()
        assert sleeper.ended(within_s=10) == 0

    assert "queued=12 charged=0 declined=0 passive=0 failed=0" in line[0], "it wrote nothing of its batch"
    assert books(database) == before
    assert {entry.succeeded for entry in ledger.entries()} == {True, False}
    assert len(ledger.keys()) == 12


def books(database: Database) -> list[Any]:
    """All that a settlement changes, but for leases that are over."""
    return [
        database.all("SELECT * FROM company_payments ORDER BY company_id, id"),
        database.all("SELECT * FROM company_packages ORDER BY company_id, id"),
        database.all(
            "SELECT company_id, period_start, attempt, next_attempt_at, idempotency_key, outages"
            " FROM payment_jobs ORDER BY company_id, period_start"
        ),
    ]


def assert_books_agree(database: Database, ledger: Ledger, now: datetime) -> None:
    entries = ledger.entries()
    paid: list[tuple[Any, ...]] = database.all(
        "SELECT id::text, company_id, amount_minor, currency, status, reference FROM company_payments"
    )
    in_ledger = {
        (e.idempotency_key, e.company_id, e.amount_minor, e.currency, int(e.succeeded), e.answer.reference)
        for e in entries
    }
    assert set(paid) == in_ledger, "to the row: every charge, every decline, and no other"
    assert len(paid) == len(entries) > 2 * COMPANIES

    charged = [entry for entry in entries if entry.succeeded]
    assert len({(entry.company_id, entry.description) for entry in charged}) == len(charged), (
        "the gateway took no one's money twice for a period"
    )
    assert len(charged) < len(entries), "some were declined"
    assert_periods_follow_each_other(database)
    assert_declines_count(database)

    left = database.all("SELECT attempt, next_attempt_at FROM payment_jobs")
    assert all(attempt > 1 and at > now for attempt, at in left), "what is left is to be tried again"
    of_companies = "SELECT type, count(*) FROM callbacks WHERE company_id > 0 GROUP BY type"
    messages = dict(database.all(of_companies))
    passive = database.one("SELECT count(*) FROM companies WHERE status = 0")
    assert messages == {
        "payment.succeeded": len(charged),
        "company_package.renewed": len(charged),
        "payment.declined": len(entries) - len(charged),
    } | ({"company.passivated": passive} if passive else {}), "each message once"


def assert_periods_follow_each_other(database: Database) -> None:
    rows = database.all("""
        SELECT cp.company_id, cp.start_date,
            array_agg(p.period_start ORDER BY p.period_start) FILTER (WHERE p.status = 1),
            array_agg(p.period_end ORDER BY p.period_start) FILTER (WHERE p.status = 1)
        FROM company_packages cp
        LEFT JOIN company_payments p ON p.company_id = cp.company_id AND p.company_package_id = cp.id
        GROUP BY cp.company_id, cp.id""")
    assert len(rows) == COMPANIES
    for company_id, start, starts, ends in rows:
        assert [*(starts or []), start] == [date(2026, 1, 10), *(ends or [])], company_id


def assert_declines_count(database: Database) -> None:
    rows = database.all("""
        SELECT p.company_id, array_agg(p.attempt ORDER BY p.attempt), array_agg(p.status ORDER BY p.attempt),
            array_agg(p.attempted_at ORDER BY p.attempt)
        FROM company_payments p GROUP BY p.company_id, p.period_start""")
    for company_id, attempts, statuses, instants in rows:
        assert attempts == list(range(1, len(attempts) + 1)), company_id
        assert statuses[:-1] == [0] * (len(statuses) - 1), company_id
        for earlier, later in pairwise(instants):
            assert later - earlier == timedelta(days=1), company_id
    thrice = {
        company_id for company_id, attempts, statuses, _ in rows if len(attempts) == 3 and not statuses[-1]
    }
    passive = {id_ for (id_,) in database.all("SELECT id FROM companies WHERE passivated_at IS NOT NULL")}
    assert thrice == passive
