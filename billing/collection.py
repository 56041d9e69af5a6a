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
from billing.charging import ChargePool
from billing.clock import Clock, Moment
from billing.gateways import ChargeRequest, ChargeResult
from billing.payment_queue import FIRST, Answer, Cursor, Job, Outcome, Settled
from billing.periods import business_date
from models import MAXIMUM_ATTEMPTS

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 300
REFUSED_PAUSE = timedelta(minutes=10)
"""How long a job rests whose settlement the database refuses: its row is poison, and the others go on."""

STOP_TIMEOUT_S = 6.0
"""What calls under way are given once the worker is told to stop; settling follows within the ten seconds."""

TRANSIENT = frozenset({"40001", "40P01", "55P03", "57014"})
"""SQLSTATEs after which the same statement may well succeed: serialization, deadlock, lock or time out."""

REFUSED = frozenset({"22", "23"})
"""SQLSTATE classes with which the database refuses a row: its data, or a constraint."""

SETTLE_TRIES = 5


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

    def run_pass(self, *, on_batch: Callable[[PassResult], None] = lambda _: None) -> PassResult:
        """Collect all that is due and return what was done (DESIGN.md, "The payment queue").

        1. Queue every period that has ended.
        2. Claim a batch, charge it with no transaction open, settle it; until nothing is claimable.
        3. Where a period rolled over and the next has ended too, begin again.

        A job is asked at most once in a pass: what was leased since it began is left alone. ``on_batch`` is
        told the running total. Raises `charging.GatewayHangsError` after a batch in which too many calls
        hung.
        """
        started_s = time.monotonic()
        result = PassResult()
        began = self._read()
        again = True
        while again and not self.stop.is_set():
            again = False
            self._enqueue_all(result, on_batch)
            while not self.stop.is_set() and (claimed := self._claim(free_since=began.real)):
                moment, jobs = claimed
                answers = self._charge(jobs, result)
                self._settle(answers, moment, result)
                today = business_date(moment.business, self.zone)
                again = again or any(a.outcome and a.job.next_period().end_date <= today for a in answers)
                on_batch(result)
                self.pool.check()
        result.seconds = time.monotonic() - started_s
        result.oldest_job_age_s = self._oldest_age_s()
        return result

    def _read(self) -> Moment:
        with Session(self.engine) as session:
            return self.clock.read(session)

    def _enqueue_all(self, result: PassResult, on_batch: Callable[[PassResult], None]) -> None:
        after: Cursor | None = FIRST
        while after is not None and not self.stop.is_set():
            with Session(self.engine) as session:
                moment = self.clock.read(session)
                number, after = payment_queue.enqueue(
                    session, moment, zone=self.zone, size=self.batch_size, after=after
                )
                session.commit()
            result.queued += number
            on_batch(result)

    def _claim(self, *, free_since: datetime) -> tuple[Moment, list[Job]] | None:
        with Session(self.engine) as session:
            moment = self.clock.read(session)
            jobs = payment_queue.claim(
                session, moment, size=self.batch_size, lease=self.lease, free_since=free_since
            )
            session.commit()
        return (moment, jobs) if jobs else None

    def _charge(self, jobs: list[Job], result: PassResult) -> list[Answer]:
        """Return what the gateway answered; let outages rest, and release what was not sent."""
        payable = [job for job in jobs if job.amount_minor > 0]
        replies = self.pool.charge(
            [_request(job) for job in payable],
            stop=self.stop,
            stop_timeout_s=STOP_TIMEOUT_S,
            every=_Renewal(self, jobs),
        )
        answers = [Answer(job, Outcome.FREE) for job in jobs if job.amount_minor == 0]
        outages: list[Job] = []
        unsent: list[Job] = []
        reason = ""
        for job in payable:
            reply = replies.get(str(job.idempotency_key))
            if reply is None:
                unsent.append(job)
            elif isinstance(reply, ChargeResult):
                outcome = Outcome.CHARGED if reply.succeeded else Outcome.DECLINED
                answers.append(Answer(job, outcome, reply.reference, reply.decline_code))
            else:
                outages.append(job)
                reason = reason or str(reply)
        if outages or unsent:
            with Session(self.engine) as session:
                real = self.clock.read(session).real
                payment_queue.rest(session, [(job, _pause(job)) for job in outages], real=real)
                payment_queue.release(session, unsent, real=real)
                session.commit()
        if outages:
            result.failed += len(outages)
            logger.warning("the gateway gave no answer", extra={"jobs": len(outages), "reason": reason})
        return answers

    def _settle(self, answers: Sequence[Answer], moment: Moment, result: PassResult) -> None:
        """Settle in one transaction; where the database refuses a row, halve until it stands alone."""
        if not answers:
            return
        for try_ in range(1, SETTLE_TRIES + 1):
            try:
                with Session(self.engine) as session:
                    settled = payment_queue.settle(
                        session,
                        answers,
                        attempted_at=moment.business,
                        real=self.clock.read(session).real,
                        by_platform=self.by_platform,
                    )
                    session.commit()
            except DBAPIError as error:
                sqlstate = getattr(error.orig, "sqlstate", None) or ""
                if sqlstate in TRANSIENT and try_ < SETTLE_TRIES:
                    time.sleep(random.uniform(0, 0.05 * try_))  # noqa: S311 - jitter, no secret
                    continue
                if sqlstate[:2] not in REFUSED:
                    raise
                refusal = error
                break
            else:
                result.add(settled)
                return
        if len(answers) == 1:
            self._put_aside(answers[0], refusal, result)
            return
        middle = len(answers) // 2
        self._settle(answers[:middle], moment, result)
        self._settle(answers[middle:], moment, result)

    def _put_aside(self, answer: Answer, refusal: DBAPIError, result: PassResult) -> None:
        result.failed += 1
        with Session(self.engine) as session:
            real = self.clock.read(session).real
            payment_queue.rest(session, [(answer.job, REFUSED_PAUSE)], real=real)
            session.commit()
        logger.error(
            "the database refuses a settlement: %s",
            str(refusal.orig).splitlines()[0],
            extra={
                "company_id": answer.job.company_id,
                "company_package_id": answer.job.company_package_id,
                "period_start": answer.job.period_start.isoformat(),
                "idempotency_key": str(answer.job.idempotency_key),
                "outcome": answer.outcome.name,
                "reference": answer.reference,
            },
        )

    def _oldest_age_s(self) -> float | None:
        with Session(self.engine) as session:
            now = self.clock.read(session).business
            oldest = payment_queue.oldest_due(session, now)
        return None if oldest is None else (now - oldest).total_seconds()


class _Renewal:
    """Prolongs the leases of a batch while it is being charged, a few times a lease."""

    def __init__(self, collector: Collector, jobs: list[Job]) -> None:
        self._collector = collector
        self._jobs = jobs
        self._interval_s = collector.lease.total_seconds() / 3
        self._due_s = time.monotonic() + self._interval_s

    def __call__(self) -> None:
        if time.monotonic() < self._due_s:
            return
        self._due_s = time.monotonic() + self._interval_s
        try:
            with Session(self._collector.engine) as session:
                until = self._collector.clock.read(session).real + self._collector.lease
                payment_queue.renew(session, self._jobs, leased_until=until)
                session.commit()
        except DBAPIError as error:
            # The batch goes on: should its leases run out, the fence and the keys keep it harmless.
            logger.warning("leases could not be renewed: %s", str(error.orig).splitlines()[0])


def _request(job: Job) -> ChargeRequest:
    return ChargeRequest(
        idempotency_key=str(job.idempotency_key),
        company_id=job.company_id,
        amount_minor=job.amount_minor,
        currency=job.currency,
        description=f"{job.package_name}, {job.period_start} to {job.period_end}",
    )


def _pause(job: Job) -> timedelta:
    """Return a short, growing pause: 1 s, 2 s, 4 s … 5 minutes, each give or take a fifth."""
    jitter = random.uniform(0.8, 1.2)  # noqa: S311 - spreads the load, keeps no secret
    return timedelta(seconds=min(2.0 ** min(job.outages, 20), LONGEST_PAUSE_S) * jitter)
