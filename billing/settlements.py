"""What becomes of a batch that was put to the gateway: answers are settled, the rest goes back."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from billing import leases, parked_jobs, payment_queue
from billing.batches import Replies
from billing.clock import Clock, Moment
from billing.payment_queue import Answer, Job, Outcome, Settled
from billing.transactions import first_line, is_servers_own, refuses_a_row, run_in_transaction

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 300

OUTAGES_LOGGED = 10
"""How many jobs of a batch are named in the log when the gateway gives them no answer."""

OURS = (ArithmeticError, LookupError, TypeError, ValueError)
"""What our own code raises where it cannot cope with an answer or a job."""


@dataclass(slots=True)
class Settlement:
    """What was written of a batch. ``failed`` counts outages and answers that could not be written."""

    settled: list[Settled] = field(default_factory=list)
    failed: int = 0
    parked: int = 0
    next_end_date: date | None = None
    """The earliest end of a period that began."""

    def add(self, answers: Sequence[Answer], settled: Sequence[Settled]) -> None:
        """Count answers that were settled together."""
        self.settled += settled
        ends = [a.job.next_period().end_date for a in answers if a.outcome is not Outcome.DECLINED]
        if self.next_end_date is not None:
            ends.append(self.next_end_date)
        self.next_end_date = min(ends, default=None)


@dataclass(frozen=True)
class Settler:
    """Writes what came of batches, each in a transaction of its own."""

    engine: Engine
    clock: Clock
    by_platform: bool

    def write(self, replies: Replies, moment: Moment) -> Settlement:
        """Settle what was answered, let outages rest, and release what was not sent.

        Where an answer cannot be written, its job is put aside, and the others go on.

        Raises:
            sqlalchemy.exc.DBAPIError: when the database fails.
        """
        settlement = Settlement()
        self._settle(replies.answers, moment, settlement)
        self._give_back(replies, moment, settlement)
        return settlement

    def _settle(self, answers: Sequence[Answer], moment: Moment, settlement: Settlement) -> None:
        """Settle in one transaction; where that is refused, halve until what is refused stands alone."""
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
            settlement.add(answers, run_in_transaction(self.engine, settle))
        except (DBAPIError, *OURS) as error:
            if isinstance(error, DBAPIError) and not refuses_a_row(error):
                raise
            if len(answers) == 1:
                self._put_aside(answers[0], error, settlement)
                return
            middle = len(answers) // 2
            self._settle(answers[:middle], moment, settlement)
            self._settle(answers[middle:], moment, settlement)

    def _put_aside(self, answer: Answer, error: Exception, settlement: Settlement) -> None:
        reason = (
            f"{type(error).__name__}: {first_line(error)}" if isinstance(error, OURS) else first_line(error)
        )

        def put_aside(session: Session) -> bool:
            real = self.clock.read(session).real
            # What ails the server ails all jobs alike: they wait for it, and no one has to release them.
            counts = not is_servers_own(error)
            return parked_jobs.put_aside(session, answer, reason, counts=counts, real=real)

        parked = run_in_transaction(self.engine, put_aside)
        settlement.failed += 1
        settlement.parked += parked
        logger.error(
            "a settlement is refused%s: %s",
            ", the job is parked" if parked else "",
            reason,
            extra=_names(answer.job) | {"outcome": answer.outcome.name, "reference": answer.reference},
        )

    def _give_back(self, replies: Replies, moment: Moment, settlement: Settlement) -> None:
        """Let outages rest, and release what was not sent; all keep their keys."""
        if not replies.outages and not replies.unsent:
            return

        def give_back(session: Session) -> None:
            real = self.clock.read(session).real
            pauses = [(job, _pause(job)) for job in replies.outages]
            leases.rest(session, pauses, attempted_at=moment.business, real=real)
            leases.release(session, replies.unsent, real=real)

        run_in_transaction(self.engine, give_back)
        settlement.failed += len(replies.outages)
        for job, reason in list(replies.outages.items())[:OUTAGES_LOGGED]:
            logger.warning("the gateway gave no answer: %s", reason, extra=_names(job))
        if len(replies.outages) > OUTAGES_LOGGED:
            logger.warning("the gateway gave no answer", extra={"jobs": len(replies.outages)})


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
