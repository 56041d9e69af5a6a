"""One pass of collection: enqueue, claim, charge, settle, again and again until nothing is claimable."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Self
from zoneinfo import ZoneInfo

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from billing import payment_queue
from billing.batches import Batch, Replies
from billing.charging import ChargePool
from billing.clock import Clock, Moment
from billing.payment_queue import FIRST, FIRST_DUE, Cursor, DueCursor, Job, Outcome
from billing.periods import business_date
from billing.settlements import Settlement, Settler
from billing.transactions import run_in_transaction
from models import MAXIMUM_ATTEMPTS

QUEUED_AHEAD = 4
"""How many batches are queued for each one that is claimed: so the whole is soon known, and none waits."""


@dataclass(slots=True)
class PassResult:
    """What one pass did. ``failed`` counts attempts without an answer, and answers that were not written."""

    queued: int = 0
    charged: int = 0
    declined: int = 0
    passive: int = 0
    failed: int = 0
    free: int = 0
    parked: int = 0
    seconds: float = 0.0
    oldest_job_age_s: float | None = None
    """How long, in business time, the oldest job that is still due has been due; None where none is."""
    charged_minor: Counter[str] = field(default_factory=Counter)
    """Money collected in minor units, by currency."""

    @property
    def attempts(self) -> int:
        """How many attempts the gateway answered."""
        return self.charged + self.declined

    def add(self, settlement: Settlement) -> None:
        """Count what came of a batch."""
        self.failed += settlement.failed
        self.parked += settlement.parked
        for part in settlement.settled:
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
    overlap: bool = True
    """Settle a batch while the next one is claimed and charged, on a connection of its own."""

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
                again = self._collect(result, on_batch, free_since=began.real)
            result.oldest_job_age_s = self._oldest_age_s()
        finally:
            result.seconds = time.monotonic() - started_s
        return result

    def _collect(
        self, result: PassResult, on_batch: Callable[[PassResult], None], *, free_since: datetime
    ) -> bool:
        """Collect batch after batch; return whether a period that rolled over has ended once more.

        One batch is settled while the next is claimed and charged.
        """
        with _Settling(self.settler(), result, on_batch) as settling:
            for moment, jobs in self._claimed(result, on_batch, free_since=free_since):
                replies = self.batch(jobs).charge(self.pool, self.stop)
                settling.take(replies, moment)
                if not self.overlap:
                    settling.finish()
                self.pool.check()
        if settling.next_end_date is None:
            return False
        now = run_in_transaction(self.engine, self.clock.read).business
        return settling.next_end_date <= business_date(now, self.zone)

    def _claimed(
        self, result: PassResult, on_batch: Callable[[PassResult], None], *, free_since: datetime
    ) -> Iterator[tuple[Moment, list[Job]]]:
        """Queue what has ended, and give batches of claimed jobs until nothing is claimable.

        Goes through the queue in its order, and then once more for what came before its place meanwhile.
        """
        queued_to: Cursor | None = FIRST
        after = FIRST_DUE
        while not self.stop.is_set():
            for _ in range(QUEUED_AHEAD):
                if queued_to is not None:
                    queued_to = self.enqueue(result, after=queued_to)
                    on_batch(result)
            moment, jobs, last = self._claim(free_since=free_since, after=after)
            if jobs:
                yield moment, jobs
                after = last
            elif after == FIRST_DUE and queued_to is None:
                return
            else:
                after = FIRST_DUE

    def enqueue(self, result: PassResult, *, after: Cursor) -> Cursor | None:
        """Queue one batch of ended periods; return where to go on, or None where no more were."""

        def enqueue(session: Session) -> tuple[int, Cursor | None]:
            moment = self.clock.read(session)
            return payment_queue.enqueue(session, moment, zone=self.zone, size=self.batch_size, after=after)

        number, last = run_in_transaction(self.engine, enqueue)
        result.queued += number
        return last

    def _claim(self, *, free_since: datetime, after: DueCursor) -> tuple[Moment, list[Job], DueCursor]:
        def claim(session: Session) -> tuple[Moment, list[Job], DueCursor]:
            moment = self.clock.read(session)
            jobs, last = payment_queue.claim(
                session, moment, size=self.batch_size, lease=self.lease, free_since=free_since, after=after
            )
            return moment, jobs, last

        return run_in_transaction(self.engine, claim)

    def settler(self) -> Settler:
        """Return what writes what came of batches."""
        return Settler(self.engine, self.clock, by_platform=self.by_platform)

    def batch(self, jobs: list[Job]) -> Batch:
        """Return claimed jobs as a batch that can be charged."""
        return Batch(jobs, engine=self.engine, clock=self.clock, lease=self.lease)

    def _oldest_age_s(self) -> float | None:
        def oldest_age(session: Session) -> float | None:
            now = self.clock.read(session).business
            oldest = payment_queue.oldest_due(session, now)
            return None if oldest is None else (now - oldest).total_seconds()

        return run_in_transaction(self.engine, oldest_age)


class _Settling:
    """Settles batches in their order, in a thread beside the one that charges; none is left behind."""

    def __init__(self, settler: Settler, result: PassResult, on_batch: Callable[[PassResult], None]) -> None:
        self.next_end_date: date | None = None
        """The earliest end of a period that began."""
        self._settler = settler
        self._result = result
        self._on_batch = on_batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="settle")
        self._under_way: Future[Settlement] | None = None

    def take(self, replies: Replies, moment: Moment) -> None:
        """Begin to settle a batch, once the one before is settled."""
        self.finish()
        self._under_way = self._thread.submit(copy_context().run, self._settler.write, replies, moment)

    def finish(self) -> None:
        """Wait for the batch under way, and count it."""
        if self._under_way is None:
            return
        under_way, self._under_way = self._under_way, None
        settlement = under_way.result()
        self._result.add(settlement)
        ends = (settlement.next_end_date, self.next_end_date)
        self.next_end_date = min((end for end in ends if end is not None), default=None)
        self._on_batch(self._result)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # What was charged is settled, whatever ended the pass.
        with self._thread:
            self.finish()
