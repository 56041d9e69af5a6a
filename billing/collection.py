"""One pass of collection: enqueue, claim, charge, settle, again and again until nothing is claimable."""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from billing import payment_queue
from billing.batches import Batch, Replies
from billing.charging import ChargePool
from billing.clock import Clock, Moment
from billing.payment_queue import FIRST, Answer, Cursor, Job, Outcome, Settled
from billing.periods import business_date
from billing.transactions import first_line, refuses_a_row, run_in_transaction
from models import MAXIMUM_ATTEMPTS

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 300
REFUSED_PAUSE = timedelta(minutes=10)
"""How long a job rests whose settlement the database refuses: its row is poison, and the others go on."""

OUTAGES_LOGGED = 10
"""How many jobs of a batch are named in the log when the gateway gives them no answer."""


@dataclass(slots=True)
class PassResult:
    """What one pass did. ``failed`` counts attempts without an answer and rows that the database refused."""

    queued: int = 0
    charged: int = 0
    declined: int = 0
    passive: int = 0
    failed: int = 0
    free: int = 0
    seconds: float = 0.0
    oldest_job_age_s: float | None = None
    """How long, in business time, the oldest job that is still due has been due; None where none is."""
    charged_minor: Counter[str] = field(default_factory=Counter)
    """Money collected in minor units, by currency."""

    @property
    def attempts(self) -> int:
        """How many attempts the gateway answered."""
        return self.charged + self.declined

    def add(self, settled: Sequence[Settled]) -> None:
        """Count what a settlement wrote."""
        for part in settled:
            if part.outcome is Outcome.CHARGED:
                self.charged += part.number
                self.charged_minor[part.currency] += part.amount_minor
            elif part.outcome is Outcome.DECLINED:
                self.declined += part.number
                self.passive += part.number if part.attempt >= MAXIMUM_ATTEMPTS else 0
            else:
                self.free += part.number


@dataclass(frozen=True)
class Collector:
    """What a pass needs: the database, the clock, the gateway's pool, and the sizes from the settings."""

    engine: Engine
    clock: Clock
    pool: ChargePool
    zone: ZoneInfo
    batch_size: int
    lease: timedelta
    by_platform: bool
    stop: threading.Event = field(default_factory=threading.Event)
    """Set it, and the pass starts no new charge, settles what was answered and releases the rest."""

    def run_pass(
        self, result: PassResult | None = None, *, on_batch: Callable[[PassResult], None] = lambda _: None
    ) -> PassResult:
        """Collect all that is due and return what was done (DESIGN.md, "The payment queue").

        1. Queue every period that has ended.
        2. Claim a batch, charge it with no transaction open, settle it; until nothing is claimable.
        3. Where a period rolled over and the next has ended too, begin again.

        A job is asked at most once in a pass: what was leased since it began is left alone. ``on_batch`` is
        told the running total, which is kept in ``result``, also where the pass is broken off.

        Raises:
            charging.GatewayHangsError: after a batch in which too many calls hung.
            sqlalchemy.exc.DBAPIError: when the database fails; what was claimed is taken up again, under
                the same keys, when its leases run out.
        """
        started_s = time.monotonic()
        result = PassResult() if result is None else result
        try:
            began = run_in_transaction(self.engine, self.clock.read)
            again = True
            while again and not self.stop.is_set():
                self._enqueue_all(result, on_batch)
                again = self._collect_queued(result, on_batch, free_since=began.real)
            result.oldest_job_age_s = self._oldest_age_s()
        finally:
            result.seconds = time.monotonic() - started_s
        return result

    def _collect_queued(
        self, result: PassResult, on_batch: Callable[[PassResult], None], *, free_since: datetime
    ) -> bool:
        """Collect batch after batch; return whether a period that rolled over has ended once more."""
        ended_again = False
        while not self.stop.is_set() and (claimed := self._claim(free_since=free_since)):
            moment, jobs = claimed
            replies = self._batch(jobs).charge(self.pool, self.stop)
            self._settle(replies.answers, moment, result)
            self._give_back(replies, result)
            today = business_date(moment.business, self.zone)
            rolled = (answer.job for answer in replies.answers if answer.outcome is not Outcome.DECLINED)
            ended_again = ended_again or any(job.next_period().end_date <= today for job in rolled)
            on_batch(result)
            self.pool.check()
        return ended_again

    def _enqueue_all(self, result: PassResult, on_batch: Callable[[PassResult], None]) -> None:
        def enqueue(session: Session) -> tuple[int, Cursor | None]:
            moment = self.clock.read(session)
            return payment_queue.enqueue(session, moment, zone=self.zone, size=self.batch_size, after=after)

        after = FIRST
        while not self.stop.is_set():
            number, last = run_in_transaction(self.engine, enqueue)
            result.queued += number
            on_batch(result)
            if last is None:
                return
            after = last

    def _claim(self, *, free_since: datetime) -> tuple[Moment, list[Job]] | None:
        def claim(session: Session) -> tuple[Moment, list[Job]]:
            moment = self.clock.read(session)
            return moment, payment_queue.claim(
                session, moment, size=self.batch_size, lease=self.lease, free_since=free_since
            )

        moment, jobs = run_in_transaction(self.engine, claim)
        return (moment, jobs) if jobs else None

    def _batch(self, jobs: list[Job]) -> Batch:
        return Batch(jobs, engine=self.engine, clock=self.clock, lease=self.lease)

    def _give_back(self, replies: Replies, result: PassResult) -> None:
        """Let outages rest, and release what was not sent; all keep their keys."""
        if not replies.outages and not replies.unsent:
            return

        def give_back(session: Session) -> None:
            real = self.clock.read(session).real
            payment_queue.rest(session, [(job, _pause(job)) for job in replies.outages], real=real)
            payment_queue.release(session, replies.unsent, real=real)

        run_in_transaction(self.engine, give_back)
        result.failed += len(replies.outages)
        for job, reason in list(replies.outages.items())[:OUTAGES_LOGGED]:
            logger.warning("the gateway gave no answer: %s", reason, extra=_names(job))
        if len(replies.outages) > OUTAGES_LOGGED:
            logger.warning("the gateway gave no answer", extra={"jobs": len(replies.outages)})

    def _settle(self, answers: Sequence[Answer], moment: Moment, result: PassResult) -> None:
        """Settle in one transaction; where the database refuses a row, halve until it stands alone."""
        if not answers:
            return

        def settle(session: Session) -> list[Settled]:
            return payment_queue.settle(
                session,
                answers,
                attempted_at=moment.business,
                real=self.clock.read(session).real,
                by_platform=self.by_platform,
            )

        try:
            result.add(run_in_transaction(self.engine, settle))
        except DBAPIError as refusal:
            if not refuses_a_row(refusal):
                raise
            if len(answers) == 1:
                self._put_aside(answers[0], refusal, result)
                return
            middle = len(answers) // 2
            self._settle(answers[:middle], moment, result)
            self._settle(answers[middle:], moment, result)

    def _put_aside(self, answer: Answer, refusal: DBAPIError, result: PassResult) -> None:
        def put_aside(session: Session) -> None:
            real = self.clock.read(session).real
            payment_queue.rest(session, [(answer.job, REFUSED_PAUSE)], real=real)

        run_in_transaction(self.engine, put_aside)
        result.failed += 1
        logger.error(
            "the database refuses a settlement: %s",
            first_line(refusal),
            extra=_names(answer.job) | {"outcome": answer.outcome.name, "reference": answer.reference},
        )

    def _oldest_age_s(self) -> float | None:
        def oldest_age(session: Session) -> float | None:
            now = self.clock.read(session).business
            oldest = payment_queue.oldest_due(session, now)
            return None if oldest is None else (now - oldest).total_seconds()

        return run_in_transaction(self.engine, oldest_age)


def _names(job: Job) -> dict[str, object]:
    """Return what a log line says of a job."""
    return {
        "company_id": job.company_id,
        "company_package_id": job.company_package_id,
        "period_start": job.period_start.isoformat(),
        "attempt": job.attempt,
        "idempotency_key": job.idempotency_key,
    }


def _pause(job: Job) -> timedelta:
    """Return a short, growing pause: 1 s, 2 s, 4 s … 5 minutes, each give or take a fifth."""
    jitter = random.uniform(0.8, 1.2)  # noqa: S311 - spreads the load, keeps no secret
    return timedelta(seconds=min(2.0 ** min(job.outages, 20), LONGEST_PAUSE_S) * jitter)
