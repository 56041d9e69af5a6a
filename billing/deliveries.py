"""Delivering callbacks: claim what is due, POST it signed, record what came back (DESIGN.md §6).

Delivery is at least once: a worker that dies after a POST leaves the message to be sent again, with the
same id and the same bytes.
"""

import logging
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Row, text
from sqlalchemy.orm import Session

from billing.callbacks import COMPANY, PLATFORM
from billing.clock import Clock
from billing.senders import Attempt, Endpoint, Message, Sender
from billing.transactions import run_in_transaction
from models import CallbackStatus

logger = logging.getLogger(__name__)

SCHEDULE_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds from each failed attempt to the next; after the last one the message is exhausted."""

STOP_TIMEOUT_S = 8.5
"""What messages under way are given once the worker is told to stop: all but a name that is not found."""
THREADS = 16
CLAIM_SIZE = 128
LEASE = timedelta(seconds=120)
"""How long a claimed message is left alone: longer than a whole claim takes at the timeouts' worst."""

_CLAIM = text("""
WITH due AS (
    SELECT company_id, id FROM callbacks WHERE next_attempt_at <= :free_since
    ORDER BY next_attempt_at LIMIT :size FOR UPDATE SKIP LOCKED
)
UPDATE callbacks cb SET next_attempt_at = :leased_until
FROM due LEFT JOIN companies c ON c.id = due.company_id
WHERE cb.company_id = due.company_id AND cb.id = due.id
RETURNING cb.company_id, cb.id, cb.recipient, cb.type, cb.body, cb.attempts, c.callback_url, c.callback_secret
""")

_RECORD = text("""
UPDATE callbacks cb
SET status = a.status, attempts = (cb.attempts + 1)::smallint, next_attempt_at = a.next_attempt_at,
    last_attempt_at = :real, last_status_code = a.status_code, last_error = a.error
FROM unnest(CAST(:company_ids AS bigint[]), CAST(:ids AS uuid[]), CAST(:attempts AS smallint[]),
        CAST(:statuses AS text[]), CAST(:next_attempts AS timestamptz[]), CAST(:status_codes AS smallint[]),
        CAST(:errors AS text[]))
    AS a(company_id, id, attempts, status, next_attempt_at, status_code, error)
WHERE cb.company_id = a.company_id AND cb.id = a.id AND cb.attempts = a.attempts AND cb.status = 'pending'
""")

_RELEASE = text("""
UPDATE callbacks cb SET next_attempt_at = :real
FROM unnest(CAST(:company_ids AS bigint[]), CAST(:ids AS uuid[]), CAST(:attempts AS smallint[]))
    AS a(company_id, id, attempts)
WHERE cb.company_id = a.company_id AND cb.id = a.id AND cb.attempts = a.attempts AND cb.status = 'pending'
""")


@dataclass(slots=True)
class DeliveryResult:
    """What one pass over the due callbacks did."""

    delivered: int = 0
    failed: int = 0
    exhausted: int = 0
    seconds: float = 0.0

    def add(self, status: CallbackStatus) -> None:
        """Count one recorded attempt."""
        self.delivered += status is CallbackStatus.DELIVERED
        self.failed += status is CallbackStatus.PENDING
        self.exhausted += status is CallbackStatus.EXHAUSTED


@dataclass(frozen=True)
class Deliverer:
    """What a delivery needs: the database, the real clock, and the platform's endpoint, if it has one."""

    engine: Engine
    platform: Endpoint | None
    allow_private: bool
    stop: threading.Event = field(default_factory=threading.Event)

    def run_pass(self) -> DeliveryResult:
        """Send every message that is due, each at most once, and return what came of it.

        1. Claim some messages by moving their next attempt behind a lease.
        2. POST them from a few threads, with no transaction open.
        3. Record what came back; until nothing more is due. Once ``stop`` is set, what was not sent is
           released.
        """
        started_s = time.monotonic()
        result = DeliveryResult()
        began = run_in_transaction(self.engine, Clock().read).real
        sender = Sender(allow_private=self.allow_private)
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="callbacks")
        try:
            while not self.stop.is_set() and (claimed := self._claim(began)):
                self._deliver(claimed, sender, pool, result)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        result.seconds = time.monotonic() - started_s
        return result

    def _claim(self, began: datetime) -> tuple[datetime, list[Message]] | None:
        def claim(session: Session) -> tuple[datetime, Sequence[Row[Any]]]:
            real = Clock().read(session).real
            values = {"free_since": began, "leased_until": real + LEASE, "size": CLAIM_SIZE}
            return real, session.execute(_CLAIM, values).all()

        real, rows = run_in_transaction(self.engine, claim)
        messages = []
        for row in rows:
            endpoint = self.platform
            if row.recipient != PLATFORM:
                endpoint = Endpoint(row.callback_url, row.callback_secret) if row.callback_url else None
            messages.append(
                Message(
                    company_id=row.company_id,
                    id=row.id,
                    recipient=row.recipient,
                    type=row.type,
                    body=row.body,
                    attempts=row.attempts,
                    endpoint=endpoint,
                )
            )
        return (real, messages) if messages else None

    def _deliver(
        self,
        claimed: tuple[datetime, list[Message]],
        sender: Sender,
        pool: ThreadPoolExecutor,
        result: DeliveryResult,
    ) -> None:
        real, messages = claimed
        # The machine's own clock may be wrong: time is told from the database's, and from what has passed.
        zero_s = time.monotonic()
        open_: dict[Future[Attempt | None], Message] = {
            pool.submit(self._send, sender, message, real, zero_s): message for message in messages
        }
        give_up_s: float | None = None
        while open_ and (give_up_s is None or time.monotonic() < give_up_s):
            done, _ = wait(open_, timeout=0.5)
            if self.stop.is_set() and give_up_s is None:
                give_up_s = time.monotonic() + STOP_TIMEOUT_S
            attempts = {future: future.result() for future in done}
            self._record([attempt for attempt in attempts.values() if attempt is not None], result)
            self._release([open_[future] for future, attempt in attempts.items() if attempt is None])
            for future in done:
                del open_[future]

    def _send(self, sender: Sender, message: Message, real: datetime, zero_s: float) -> Attempt | None:
        """Send a message, or return None where nothing is to be begun any more."""
        if self.stop.is_set():
            return None
        return sender.send(message, sent_at=real + timedelta(seconds=time.monotonic() - zero_s))

    def _record(self, attempts: Sequence[Attempt], result: DeliveryResult) -> None:
        if not attempts:
            return

        def record(session: Session) -> list[CallbackStatus]:
            real = Clock().read(session).real
            verdicts = [_verdict(attempt, real) for attempt in attempts]
            session.execute(
                _RECORD,
                _keys([attempt.message for attempt in attempts])
                | {
                    "real": real,
                    "statuses": [str(status) for status, _ in verdicts],
                    "next_attempts": [next_attempt_at for _, next_attempt_at in verdicts],
                    "status_codes": [attempt.status_code for attempt in attempts],
                    "errors": [attempt.error for attempt in attempts],
                },
            )
            return [status for status, _ in verdicts]

        for attempt, status in zip(attempts, run_in_transaction(self.engine, record), strict=True):
            result.add(status)
            if status is CallbackStatus.EXHAUSTED:
                logger.error(
                    "a callback is given up",
                    extra={"webhook_id": str(attempt.message.id), "type": attempt.message.type},
                )

    def _release(self, messages: Sequence[Message]) -> None:
        def release(session: Session) -> None:
            session.execute(_RELEASE, _keys(messages) | {"real": Clock().read(session).real})

        if messages:
            run_in_transaction(self.engine, release)


def _verdict(attempt: Attempt, real: datetime) -> tuple[CallbackStatus, datetime | None]:
    """Return what an attempt makes of its message, and when it is tried again."""
    if attempt.succeeded:
        return CallbackStatus.DELIVERED, None
    # A company took its endpoint away; a platform without one is more likely a setting that is missing here.
    unwanted = attempt.message.endpoint is None and attempt.message.recipient == COMPANY
    if unwanted or attempt.message.attempts >= len(SCHEDULE_S):
        return CallbackStatus.EXHAUSTED, None
    jitter = random.uniform(0.9, 1.1)  # noqa: S311 - spreads the load, keeps no secret
    pause = timedelta(seconds=SCHEDULE_S[attempt.message.attempts] * jitter)
    return CallbackStatus.PENDING, real + pause


def _keys(messages: Sequence[Message]) -> dict[str, list[object]]:
    return {
        "company_ids": [message.company_id for message in messages],
        "ids": [message.id for message in messages],
        "attempts": [message.attempts for message in messages],
    }
