"""Reports over a whole year against a plain count, and the workers that make them around a midnight."""

import json
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.orm import Session

from billing.report_entries import BATCH, add_up
from models import db
from tests.conftest import settings_for
from tests.crowds import crowd
from tests.figures import ISTANBUL, Payer, counted, insert, reported
from tests.processes import Database, Program, until, worker
from tests.receivers import Receiver, receiver
from tests.world import CALLBACK_SECRET, instant
from wsgi import create_app

pytestmark = pytest.mark.slow

START = datetime(2026, 1, 31, 18, 30, tzinfo=UTC)
SPAN = (date(2020, 1, 1), date(2028, 1, 1))


def test_a_seeded_and_simulated_year_is_what_a_plain_count_says(database_url: str, tmp_path: Path) -> None:
    settings = settings_for(database_url, tmp_path, VADE_NOW=START.isoformat())
    app = create_app(settings)
    with app.app_context():
        for command in (["seed", "--companies", "60", "--random-seed", "7"], ["billing", "simulate"]):
            days = ["--days", "365"] if command[0] == "billing" else []
            result = app.test_cli_runner().invoke(args=command + days)
            assert result.exit_code == 0, result.output
        with Session(db.engine) as session:
            expected = counted(session)
            assert reported(session, *SPAN) == expected
            now = START + timedelta(days=200)
            while add_up(session, now=now, zone=ISTANBUL) >= BATCH:
                pass
            session.commit()
            assert reported(session, *SPAN) == expected, "added up, and a part of it not yet over"

            row = session.connection().exec_driver_sql("SELECT company_id, id FROM company_packages").first()
            assert row is not None
            payer = Payer(*row)
            late = [START + timedelta(hours=17 * n) for n in range(60)]
            with psycopg.connect(database_url) as connection:
                insert(
                    connection, *(payer.row(at, attempt=3, amount_minor=n + 1) for n, at in enumerate(late))
                )
            session.rollback()
            assert reported(session, *SPAN) == counted(session) != expected, "also what comes late"
            session.rollback()
        checked = app.test_cli_runner().invoke(args=["billing", "check", "--json"])
        db.engine.dispose()

    found = {finding["check"] for finding in json.loads(checked.stdout)["findings"]}
    assert "figures" not in found
    assert {key[2] for key in expected} == {"charged", "declined", "taken", "registered"}
    assert sum(value for key, value in expected.items() if key[3:] == (3, "number")) > 2, "third attempts too"


def reports(database: Database) -> list[str]:
    """The days of the reports that the platform was written, in their order."""
    bodies = database.all("SELECT body FROM callbacks WHERE type = 'report.daily' ORDER BY created_at")
    return [json.loads(body)["data"]["report"]["date"] for (body,) in bodies]


def test_of_two_workers_at_midnight_one_tells_the_platform_whatever_is_killed(
    database_url: str, tmp_path: Path
) -> None:
    database = Database(database_url)
    database.do(crowd(1, start=date(2026, 1, 5), end=date(2027, 1, 5)))

    with receiver() as platform, ExitStack() as running:

        def start(day: str, minutes: int, *, number: int = 1) -> list[Program]:
            now = instant(day, hour=0) + timedelta(minutes=minutes)
            starting = (worker_at(now, database_url, tmp_path, platform) for _ in range(number))
            return [running.enter_context(each) for each in starting]

        def told() -> list[str]:
            bodies = [json.loads(request.body) for request in platform.received]
            return [body["data"]["report"]["date"] for body in bodies if body["type"] == "report.daily"]

        # Just before it is time: the day before is not over yet for its report.
        before = start("2026-02-10", 9)
        until(lambda: told() == ["2026-02-08"], what=before[0].text)

        # Killed in the middle: the day is noted, and its message waits to be written.
        with psycopg.connect(database_url) as blocker:
            blocker.execute("LOCK TABLE callbacks IN SHARE MODE")
            killed = start("2026-02-10", 10, number=2)
            until(lambda: database.one(WRITING) and database.one(NOTING), what=killed[0].text)
            for each in killed:
                each.kill()
            assert database.one("SELECT count(*) FROM daily_reports WHERE day = '2026-02-09'") == 0
        again = start("2026-02-10", 10, number=2)
        until(lambda: "2026-02-09" in told(), what=again[0].text)

        # Killed after it, and up again: who makes the next day's has looked at this one too.
        for each in again:
            each.kill()
        last = start("2026-02-11", 10)
        until(lambda: "2026-02-10" in told(), what=last[0].text)
        for each in before + last:
            each.tell()
        assert [each.ended(within_s=15) for each in before + last] == [0, 0]

    assert reports(database) == ["2026-02-08", "2026-02-09", "2026-02-10"]
    assert told() == reports(database), "and each came once"


WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND cardinality(pg_blocking_pids(pid)) > 0 AND query LIKE '%%INSERT INTO {}%%'"
)
WRITING, NOTING = WAITING.format("callbacks"), WAITING.format("daily_reports")
"""How many write a message behind the lock, and how many wait for whoever noted the day."""


def worker_at(
    now: datetime, url: str, directory: Path, platform: Receiver
) -> AbstractContextManager[Program]:
    return worker(
        url,
        directory,
        VADE_ENV="development",
        VADE_NOW=now.isoformat(),
        CALLBACK_URL=platform.url,
        CALLBACK_SECRET=CALLBACK_SECRET,
        CALLBACK_ALLOW_PRIVATE="on",
    )
