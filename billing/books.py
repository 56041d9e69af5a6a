"""The books' audit: whether what is written keeps the rules of DESIGN.md §2, changing nothing.

Some companies at a time, each time in one read-only snapshot: a worker and an API at work raise no alarm, no
lock keeps anyone waiting, and no old snapshot keeps dead rows from being swept.

What the tables do not tell cannot be judged:

- A price is kept for the present period only, in ``company_packages``: its amount is known exactly. Of a
  period that is over, it is known only that all attempts had one amount.
- A period that cost nothing leaves no trace. Days without a charge are therefore accepted where the package
  costs nothing now, and else reported: also where it was free for a while between two paid periods.
- A company package does not say when it was taken: that its very first charges are missing cannot be seen.
- A period written off by decision (``parked_jobs``, dropped) counts as over, without a charge.
- Where days were added up in another time zone, their figures are not those of the present zone's days: they,
  and the days beside them, are not compared.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Engine, Row
from sqlalchemy.orm import Session

from billing import book_queries, simulation
from billing.clock import Clock, Moment
from billing.heartbeats import STALE_AFTER_S
from billing.periods import PackagePeriod, business_date, open_period
from billing.transactions import run_in_transaction
from models import PARKED_UNTIL, PLATFORM_ID

CHECKS = {
    "gap": "Days between two periods of a company package were neither charged nor written off.",
    "overlap": "Periods of a company package overlap, or one was charged more than once.",
    "boundary": "A period does not end, or begin, on the billing day that the rules give.",
    "amount": "An amount is not the price of its period.",
    "attempt": "Attempts are not numbered 1, 2, 3, or not a day apart, or go on after a charge.",
    "early": "An attempt was made before its period had ended.",
    "passive": "A company or its package is passive without three declines of one period.",
    "unpaid": "Three declines of one period did not make company and package passive.",
    "unqueued": "A period has ended, and no payment job stands for it.",
    "stray": "A payment job stands for no ended period of an open company package.",
    "lease": "A lease ran out, its job is due, and nobody takes it up.",
    "stalled": "Jobs are due, a worker lives, and nothing is collected.",
    "parked": "A parked job is not in the queue, or one in the queue is parked without a record.",
    "heartbeat": "No worker has been heard of lately.",
    "callback": "A message is due and nobody sends it.",
    "figures": "The figures of a day are not the count of its payments.",
}
"""Each check's id, and what is wrong where it finds something."""

CHUNK = 2000
"""How many companies one snapshot is for: it lasts for a fraction of a second."""

GRACE = timedelta(minutes=5)
"""How long something that is due may be left before it counts as forgotten."""

LEASES_LATE = timedelta(hours=1)
"""How long a lease may be over: a pass goes through a backlog once, and the next takes up the rest."""

CALLBACKS_LATE = timedelta(hours=1)
"""How long a message that is due may wait: a queue of very many takes its time."""

PAYMENTS = 100_000
"""For so many attempts one snapshot is, or for those of a day, to be compared with the figures of reports."""

MOST_LISTED = 10_000
"""No more forgotten jobs and messages are counted."""

EXAMPLES = 5

_PER_COMPANIES = (
    book_queries.PERIODS,
    book_queries.PACKAGES,
    book_queries.COMPANIES,
    book_queries.JOBS,
    book_queries.PARKED,
)

Example = dict[str, Any]
"""By which keys a finding can be looked up."""


@dataclass(slots=True)
class Finding:
    """What one check found: how many, and the first few."""

    check: str
    number: int = 0
    examples: list[Example] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What is wrong, in a sentence."""
        return CHECKS[self.check]

    def add(self, example: Example, number: int = 1) -> None:
        """Count something that was found."""
        self.number += number
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)


@dataclass(slots=True)
class Report:
    """What was checked, and what was found. ``checked_at`` is the business clock's beginning of it."""

    checked_at: datetime
    seconds: float = 0.0
    sums: Counter[str] = field(default_factory=Counter)
    """How many companies, company packages, periods, attempts, charges and jobs were looked at."""
    found: dict[str, Finding] = field(default_factory=dict)
    last_id: int = 0
    """The last company that was checked."""

    @property
    def findings(self) -> list[Finding]:
        """What is off, in the order of the checks."""
        return [self.found[check] for check in CHECKS if check in self.found]

    def add(self, check: str, example: Example, number: int = 1) -> None:
        """Count something that a check found."""
        self.found.setdefault(check, Finding(check)).add(example, number)


@dataclass(frozen=True)
class Auditor:
    """Checks a database's books. ``worker_expected``: that none was ever seen is a finding too."""

    engine: Engine
    clock: Clock
    zone: ZoneInfo
    grace: timedelta = GRACE
    worker_expected: bool = False
    skip: Collection[str] = ()
    chunk: int = CHUNK

    def last_id(self) -> int:
        """Return the greatest company id, as a measure of how much there is to do."""
        return self._in_snapshot(lambda session: session.execute(book_queries.LAST_ID).scalar_one()) or 0

    def check(
        self,
        *,
        on_chunk: Callable[[Report], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Report:
        """Check everything, or as much as there was time for until ``stopped``.

        1. Company by company, in the order of their ids, a chunk in a snapshot: periods, amounts, attempts,
           jobs.
        2. Then what concerns all: workers and messages.
        3. Then the figures of reports, some days in a snapshot.

        ``on_chunk`` is told how far it is.

        Raises:
            sqlalchemy.exc.DBAPIError: when the database fails.
        """
        started_s = time.monotonic()
        report = Report(self._in_snapshot(self.clock.read).business)
        while not stopped() and self._in_snapshot(lambda session: self._check_chunk(session, report)):
            on_chunk(report)
        if not stopped():
            self._in_snapshot(lambda session: self._check_whole(session, report))
            self._check_figures(report, stopped)
        report.seconds = time.monotonic() - started_s
        return report

    def _in_snapshot(self, work: Callable[[Session], Any]) -> Any:
        def in_snapshot(session: Session) -> Any:
            session.execute(book_queries.SNAPSHOT)
            session.execute(book_queries.SETTINGS)
            return work(session)

        return run_in_transaction(self.engine, in_snapshot)

    def _today(self, session: Session, moment: Moment) -> date:
        """Return the last day whose periods may have been collected: where a simulation stands, if ahead."""
        simulated = session.execute(book_queries.SIMULATED_UNTIL, {"key": simulation.SETTING}).scalar()
        return business_date(max(moment.business, simulated or moment.business), self.zone)

    def _check_chunk(self, session: Session, report: Report) -> bool:
        """Check the next companies; return whether there were any. Nothing is counted where it fails."""
        bounds = {"after": report.last_id, "size": self.chunk}
        found = session.execute(book_queries.NEXT_CHUNK, bounds).one()
        if found.last is None:
            return False
        moment = self.clock.read(session)
        values = self._values(moment) | {
            "after": report.last_id,
            "last": found.last,
            "today": self._today(session, moment),
        }
        boundaries = session.execute(book_queries.BOUNDARIES, values).all()
        rows = [row for query in _PER_COMPANIES for row in session.execute(query, values)]
        jobs = session.execute(book_queries.NUMBER_OF_JOBS, values)
        report.sums.update(companies=found.companies, jobs=jobs.scalar_one())
        for row in boundaries:
            self._judge_boundary(row, report)
        for row in rows:
            self._take(row, report)
        report.last_id = found.last
        return True

    def _check_whole(self, session: Session, report: Report) -> None:
        values = self._values(self.clock.read(session))
        for row in session.execute(book_queries.STALLED, values):
            self._take(row, report)
        stale = session.execute(book_queries.HEARTBEATS, values).all()
        late = session.execute(book_queries.LATE_CALLBACKS, values)
        for row in stale:
            self._add(report, "heartbeat", {"worker": row.worker, "beat_at": row.beat_at.isoformat()})
        if self.worker_expected and session.execute(book_queries.NO_WORKER).scalar_one():
            self._add(report, "heartbeat", {"worker": None})
        for row in late:
            self._add(
                report,
                "callback",
                {"company_id": row.company_id, "id": str(row.id), "recipient": row.recipient},
            )

    def _check_figures(self, report: Report, stopped: Callable[[], bool]) -> None:
        """Compare the figures of each day with its payments; also where there are payments and no figures."""
        for first_day, last_day in self._in_snapshot(self._spans):
            if stopped() or "figures" in self.skip:
                return
            values = {"zone": str(self.zone), "first_day": first_day, "last_day": last_day}

            def compare(session: Session, values: dict[str, Any] = values) -> Sequence[Row[Any]]:
                return session.execute(book_queries.FIGURES, values).all()

            for row in self._in_snapshot(compare):
                self._take(row, report)

    def _spans(self, session: Session) -> list[tuple[date, date]]:
        """Return all of time in spans of days, each with no more payments than a snapshot is for."""
        ends, number = [], 0
        for row in session.execute(book_queries.PAYMENTS_BY_DAY, {"zone": str(self.zone)}):
            number += row.number
            if number >= PAYMENTS:
                ends.append(row.day)
                number = 0
        starts = [book_queries.FIRST_DAY, *(end + timedelta(days=1) for end in ends)]
        return list(zip(starts, [*ends, book_queries.LAST_DAY], strict=True))

    def _judge_boundary(self, row: Row[Any], report: Report) -> None:
        """Compare all periods that are alike with the one that the rules give."""
        of_period = row.kind == "period"
        report.sums.update(
            periods=row.number if of_period else 0,
            company_packages=0 if of_period else row.number,
            charges=row.charges,
            attempts=row.attempts,
        )
        if not _keeps_the_rules(row):
            company_id, company_package_id = row.example
            example = {
                "company_id": company_id,
                "company_package_id": company_package_id,
                "period_start": row.start_date,
                "period_end": row.end_date,
            }
            self._add(report, "boundary", example, row.number)

    def _take(self, row: Row[Any], report: Report) -> None:
        """Count each check that a row is found by."""
        columns = row._mapping
        example = {
            key: value.isoformat() if isinstance(value, date) else value
            for key, value in columns.items()
            if key not in CHECKS
        }
        for check, found in columns.items():
            if check in CHECKS and found:
                self._add(report, str(check), example)

    def _add(self, report: Report, check: str, example: Mapping[str, Any], number: int = 1) -> None:
        if check not in self.skip:
            report.add(check, dict(example), number)

    def _values(self, moment: Moment) -> dict[str, Any]:
        return {
            "zone": str(self.zone),
            "business_grace": moment.business - self.grace,
            "real_grace": moment.real - self.grace,
            "leases_late": moment.real - max(self.grace, LEASES_LATE),
            "parked_until": PARKED_UNTIL,
            "alive_since": moment.real - timedelta(seconds=STALE_AFTER_S),
            "late_since": moment.real - CALLBACKS_LATE,
            "platform": PLATFORM_ID,
            "most": MOST_LISTED,
        }


def _keeps_the_rules(row: Row[Any]) -> bool:
    """Return whether a period is the one that opens on its first day (DESIGN.md §2.3).

    One that another went before begins on a billing day: nothing is left of its full period.
    """
    try:
        start, end = date.fromisoformat(row.start_date), date.fromisoformat(row.end_date)
        period = open_period(start, billing_day=row.billing_day, period=PackagePeriod(row.period))
    except ValueError:
        return False
    return (
        end == period.end_date
        and row.full_days in (None, period.full_days)
        and not (row.rolled and period.days != period.full_days)
    )
