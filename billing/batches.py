"""A batch of claimed jobs put to the gateway: leased as long as it takes, with no transaction open."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from billing import leases
from billing.charging import ChargePool
from billing.clock import Clock
from billing.gateways import ChargeRequest, ChargeResult
from billing.payment_queue import Answer, Job, Outcome
from billing.transactions import first_line, run_in_transaction

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 6.0
"""What calls under way are given once the worker is told to stop; settling follows within the ten seconds."""


@dataclass(slots=True)
class Replies:
    """What became of a batch: answered, without an answer and why, and not sent at all."""

    answers: list[Answer]
    outages: dict[Job, str] = field(default_factory=dict)
    unsent: list[Job] = field(default_factory=list)


class Batch:
    """Jobs that were claimed together; ``lease`` is how long they are ours unless it is renewed."""

    def __init__(self, jobs: Sequence[Job], *, engine: Engine, clock: Clock, lease: timedelta) -> None:
        self._jobs = jobs
        self._engine = engine
        self._clock = clock
        self._lease = lease
        self._renew_every_s = lease.total_seconds() / 3
        self._renew_at_s = time.monotonic() + self._renew_every_s

    def charge(self, pool: ChargePool, stop: threading.Event) -> Replies:
        """Return what the gateway made of each job; one that costs nothing is answered without it."""
        payable = [job for job in self._jobs if job.amount_minor > 0]
        answers = pool.charge(
            [_request(job) for job in payable],
            stop=stop,
            stop_timeout_s=STOP_TIMEOUT_S,
            every=self._renew_in_time,
        )
        replies = Replies([Answer(job, Outcome.FREE) for job in self._jobs if job.amount_minor == 0])
        for job in payable:
            answer = answers.get(job.idempotency_key)
            if answer is None:
                replies.unsent.append(job)
            elif isinstance(answer, ChargeResult):
                outcome = Outcome.CHARGED if answer.succeeded else Outcome.DECLINED
                replies.answers.append(Answer(job, outcome, answer.reference, answer.decline_code))
            else:
                replies.outages[job] = str(answer)
        return replies

    def _renew_in_time(self) -> None:
        if time.monotonic() < self._renew_at_s:
            return
        self._renew_at_s = time.monotonic() + self._renew_every_s
        try:
            run_in_transaction(self._engine, self._renew)
        except Exception as error:  # noqa: BLE001 - whatever keeps the database away
            # The batch goes on: should its leases run out, the fence and the keys keep it harmless.
            logger.warning("leases could not be renewed: %s", first_line(error))

    def _renew(self, session: Session) -> None:
        until = self._clock.read(session).real + self._lease
        leases.renew(session, self._jobs, leased_until=until)


def _request(job: Job) -> ChargeRequest:
    return ChargeRequest(
        idempotency_key=job.idempotency_key,
        company_id=job.company_id,
        amount_minor=job.amount_minor,
        currency=job.currency,
        # Nothing that can change between two calls: the same key goes with the same request, to the letter.
        description=f"Package {job.company_package_id}, {job.period_start} to {job.period_end}",
    )
