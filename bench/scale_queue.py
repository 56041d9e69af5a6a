"""The whole backlog of a day, and claims from a queue in which very many jobs rest."""

import statistics
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from rich.table import Table
from sqlalchemy.orm import Session

from bench.children import children, run_all
from bench.scale_world import ScaleWorld, Size
from bench.world import Step, make_app
from billing import payment_queue
from billing.clock import Clock, Moment
from models import db

DAYS = 28
"""Billing days are assumed to be spread evenly over a month of so many days."""

AUTOVACUUM_S = 180
"""Autovacuum looks at each database once a minute, and then takes its time."""

CLAIM = 1000
CLAIMS = 5

_REST = """
INSERT INTO payment_jobs (company_id, company_package_id, period_start, period_end, amount_minor, currency,
    next_attempt_at, leased_until, idempotency_key, outages)
SELECT id, id, date '2026-03-01', date '2026-04-01', 19900, 'TRY',
    timestamptz '2026-04-01 00:00+03' + make_interval(secs => CASE WHEN id > %(resting)s THEN 1 ELSE 0 END),
    CASE WHEN id > %(resting)s THEN timestamptz '1970-01-01 00:00+00' ELSE now() + interval '1 day' END,
    CASE WHEN id > %(resting)s THEN NULL ELSE md5('rest' || id)::uuid END, 0
FROM generate_series(1, %(jobs)s) AS id
"""
_REST_AGAIN = """
UPDATE payment_jobs SET leased_until = leased_until + interval '5 minutes' WHERE leased_until > now()
"""
_DUE = "SELECT count(*) FROM company_packages WHERE status = 1 AND end_date <= %s"


def backlog(world: ScaleWorld, *, workers: int, step: Step) -> list[Table]:
    """Collect one day's due periods to the end; tell what became of the tables."""
    at = world.next_day()
    step(f"backlog of {world.companies // DAYS:,}: before")
    stages = {"before": world.sizes()}
    with children(
        workers, "bench.worker", world.url, f"VADE_NOW={at.isoformat()}", "BATCH_SIZE=1000"
    ) as started:
        world.make_due(at, every=DAYS, periods=1)
        due = world.all(_DUE, [at.date()])[0][0]
        step(f"backlog: {due:,} due, {workers} worker(s)")
        results = run_all(started)
    stages["after"] = world.sizes()
    attempts = sum(result["attempts"] for result in results)
    if attempts != due:
        raise RuntimeError(f"{attempts} attempts for {due} due periods: {results}")
    step("backlog: autovacuum")
    _await_autovacuum(world, stages["before"]["payment_jobs"].autovacuums)
    stages["after autovacuum"] = world.sizes()
    seconds = max(result["seconds"] for result in results)
    peak_mib = max(result["peak_kib"] for result in results) / 1024
    title = (
        f"A day's backlog: {due:,} periods of {world.companies:,} companies (one in {DAYS}), {workers}"
        f" worker(s): {seconds:,.0f} s, {attempts / seconds:,.0f} attempts/s, {peak_mib:,.0f} MiB at most"
    )
    return [_table(title, stages)]


def _await_autovacuum(world: ScaleWorld, before: int) -> None:
    """Wait until autovacuum was at the queue, for as long as that takes at most."""
    deadline_s = time.monotonic() + AUTOVACUUM_S
    while time.monotonic() < deadline_s and world.sizes()["payment_jobs"].autovacuums == before:
        time.sleep(1)


def _table(title: str, stages: dict[str, dict[str, Size]]) -> Table:
    table = Table("table", "", *stages, title=title)
    figures: list[tuple[str, Callable[[Size], str]]] = [
        ("dead rows", lambda size: f"{size.dead_rows:,}"),
        ("rows, MiB", lambda size: f"{size.table_bytes / 2**20:,.0f}"),
        ("indexes, MiB", lambda size: f"{size.index_bytes / 2**20:,.0f}"),
        ("autovacuum runs", lambda size: f"{size.autovacuums:,}"),
    ]
    for name in stages["before"]:
        for number, (label, value) in enumerate(figures):
            values = [value(stage[name]) for stage in stages.values()]
            table.add_row("" if number else name, label, *values, end_section=number == len(figures) - 1)
    return table


def resting(world: ScaleWorld, *, jobs: int, step: Step) -> list[Table]:
    """Measure claims while very many jobs rest because the gateway is down, and an old snapshot is open."""
    jobs = min(jobs, world.companies - CLAIM)
    at = world.next_day()
    step(f"{jobs:,} jobs rest")
    world.do("DELETE FROM payment_jobs")
    world.do(_REST, {"resting": jobs, "jobs": jobs + CLAIM})
    world.settle_down()
    title = f"Claims of {CLAIM // 2:,} behind {jobs:,} that rest"
    table = Table("", "first claim of a pass", "the next", title=title)
    app = make_app(world.url, VADE_NOW=at.isoformat())
    with app.app_context():
        try:
            table.add_row("at rest, vacuumed", *_claims(at))
            with world.connect() as old:
                old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                old.execute("SELECT count(*) FROM packages")
                for times in (1, 2):
                    step(f"{jobs:,} jobs tried again, {times}, beside an old snapshot")
                    world.do(_REST_AGAIN)
                    table.add_row(f"all tried again {times} ×, old snapshot open", *_claims(at))
                old.execute("ROLLBACK")
            step("the snapshot ends")
            world.do("VACUUM payment_jobs")
            table.add_row("snapshot closed, vacuumed", *_claims(at))
        finally:
            db.engine.dispose()
    return [table]


def _claims(at: datetime) -> tuple[str, str]:
    """Return what a claim costs, and what the next one of the same pass, each the median of some."""
    firsts: list[float] = []
    nexts: list[float] = []
    for _ in range(CLAIMS):
        with Session(db.engine) as session:
            moment = Moment(at, Clock().read(session).real)
            after: Any = None
            for seconds in (firsts, nexts):
                options = {} if after is None else {"after": after}
                started_s = time.perf_counter()
                jobs, after = payment_queue.claim(
                    session,
                    moment,
                    size=CLAIM // 2,
                    lease=timedelta(minutes=1),
                    free_since=moment.real,
                    **options,
                )
                seconds.append(time.perf_counter() - started_s)
                if len(jobs) != CLAIM // 2:
                    raise RuntimeError(f"{len(jobs)} claimed instead of {CLAIM // 2}")
            # Claimed again in the next round.
            session.rollback()
    first, following = (f"{statistics.median(seconds) * 1000:,.1f} ms" for seconds in (firsts, nexts))
    return first, following
