"""Delivering callbacks: claim what is due, POST it signed, record what came back (DESIGN.md §6).

Delivery is at least once: a worker that dies after a POST leaves the message to be sent again, with the
same id and the same bytes.
"""

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy import Engine, Row, select
from sqlalchemy.orm import Session

from billing import breakers, callback_endpoints, delivery_lines, delivery_queue, tracing
from billing.addresses import AddressPolicy
from billing.callback_endpoints import PlatformEndpoint
from billing.clock import Clock
from billing.delivery_queue import LEASE, PROBE_LEASE, Claim, Claimed
from billing.keyring import Keyring
from billing.lanes import Lanes
from billing.senders import GONE, LONGEST_RETRY_AFTER_S, SEND_TIMEOUT_S, Endpoint, Outgoing, Reply, Sender
from billing.transactions import run_in_transaction
from models import PLATFORM_ID, CallbackEndpoint, CallbackStatus

SCHEDULE_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds from each failed attempt to the next; after the last one the message is exhausted."""

STOP_TIMEOUT_S = 8.5
"""What messages under way are given once the worker is told to stop: all but a name that is not found."""

THREADS = 32
CLAIM_SIZE = 256
"""How many messages are claimed at once, from all endpoints: what the threads send within the lease."""

PROBES = 4
"""How many broken endpoints are tried again at once."""

EMPTY_LOOK_PAUSE_S = 0.25
"""How long a pass that waits for slow endpoints looks for nothing more, once it found nothing."""

_Look = Callable[[Session, datetime], list[Claim]]
_Attempt = tuple[Outgoing, Reply, datetime]


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
        self.failed += status in {CallbackStatus.PENDING, CallbackStatus.HELD}
        self.exhausted += status is CallbackStatus.EXHAUSTED

    def since(self, earlier: "DeliveryResult") -> "DeliveryResult":
        """Return what came after an earlier copy of this running total."""
        return DeliveryResult(
            delivered=self.delivered - earlier.delivered,
            failed=self.failed - earlier.failed,
            exhausted=self.exhausted - earlier.exhausted,
        )


@dataclass(frozen=True)
class Deliverer:
    """What a delivery needs: the database, the platform's endpoint if it has one, and what may be sent."""

    engine: Engine
    platform: PlatformEndpoint | None
    keyring: Keyring
    policy: AddressPolicy
    clock: Clock = field(default_factory=Clock)
    per_endpoint: int = 8
    """How many messages are sent to one endpoint at once."""
    secret_overlap: timedelta = timedelta(days=1)
    stop: threading.Event = field(default_factory=threading.Event)
    _proven: "OrderedDict[int, None]" = field(default_factory=OrderedDict)

    def run_pass(
        self, *, rolling: bool = False, on_record: Callable[[DeliveryResult], None] = lambda _: None
    ) -> DeliveryResult:
        """Send every message that is due, each at most once, and return what came of it.

        1. Claim some messages by moving their next attempt behind a lease.
        2. POST them from a few threads, with no transaction open.
        3. Record what came back, and how the endpoints fare; until nothing more is due. Once ``stop`` is
           set, what was not sent is released.

        A ``rolling`` pass also takes what becomes due while it runs: an endpoint that hangs delays nothing.
        ``on_record`` is told the running total.
        """
        return _Pass(self, rolling=rolling, on_record=on_record).run()


class _Pass:
    """One pass: its threads, what they are given, and what they bring back."""

    def __init__(
        self, deliverer: Deliverer, *, rolling: bool, on_record: Callable[[DeliveryResult], None]
    ) -> None:
        self._deliverer = deliverer
        self._engine = deliverer.engine
        self._rolling = rolling
        self._on_record = on_record
        self._result = DeliveryResult()
        self._sender = Sender(deliverer.policy, per_endpoint=deliverer.per_endpoint)
        self._lanes = Lanes(threads=THREADS, per_endpoint=deliverer.per_endpoint, proven=deliverer._proven)
        self._attempts: SimpleQueue[_Attempt] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        # Endpoints that are being tried again, and until when that is waited for.
        self._probes: dict[int, float] = {}
        self._next_look_s: dict[_Look, float] = {}
        self._set_clock(self._begin())
        self._began = self._now()

    def run(self) -> DeliveryResult:
        """Make the pass."""
        started_s = time.monotonic()
        try:
            while not self._deliverer.stop.is_set():
                idle = self._lanes.idle() and self._attempts.empty()
                claimed = self._claim_companies_if(idle) + self._claim_platform_if(idle)
                if idle and not claimed:
                    break
                self._record(self._finished(wait_s=0.0 if claimed else 0.1))
            self._stop()
        finally:
            self._lanes.close()
            self._sender.close()
        self._result.seconds = time.monotonic() - started_s
        return self._result

    def _begin(self) -> datetime:
        """Return the present, once the platform's endpoint is as the settings have it."""

        def begin(session: Session) -> datetime:
            now = Clock().read(session).real
            if self._deliverer.platform is not None:
                callback_endpoints.put_platform(
                    session,
                    self._deliverer.platform,
                    self._deliverer.keyring,
                    now=now,
                    overlap=self._deliverer.secret_overlap,
                )
            return now

        return run_in_transaction(self._engine, begin)

    def _set_clock(self, now: datetime) -> None:
        # The machine's own clock may be wrong: time is told from the database's, and from what has passed.
        self._clock = (now, time.monotonic())

    def _now(self) -> datetime:
        real, zero_s = self._clock
        return real + timedelta(seconds=time.monotonic() - zero_s)

    def _claim_companies_if(self, idle: bool) -> int:
        if idle or self._lanes.hungry():
            return self._look(self._claim_companies, forced=idle)
        return 0

    def _claim_platform_if(self, idle: bool) -> int:
        if self._deliverer.platform is not None and (idle or self._lanes.wants(PLATFORM_ID)):
            return self._look(self._claim_platform, forced=idle)
        return 0

    def _look(self, claim: _Look, *, forced: bool) -> int:
        """Claim what can be sent now, and give it to the threads; return how many messages moved.

        Where the last look found nothing, the next one is a moment later, unless ``forced``.
        """
        if not forced and time.monotonic() < self._next_look_s.get(claim, 0.0):
            return 0

        def look(session: Session) -> tuple[datetime, list[Claim], dict[int, Endpoint]]:
            now = Clock().read(session).real
            claims = claim(session, now)
            ids = {message.endpoint_id for claim in claims for message in claim.messages}
            return now, claims, self._endpoints(session, ids, now=now)

        until_s = time.monotonic() + LEASE.total_seconds() - 2 * SEND_TIMEOUT_S
        now, claims, endpoints = run_in_transaction(self._engine, look)
        self._set_clock(now)
        self._result.exhausted += sum(claim.exhausted for claim in claims)
        messages = [message for claim in claims for message in claim.messages]
        if messages:
            self._start_threads()
            self._lanes.add(
                [
                    Outgoing(m, endpoints[m.endpoint_id], until_s, probe=m.endpoint_id in self._probes)
                    for m in messages
                ]
            )
        moved = len(messages) + sum(claim.moved for claim in claims)
        self._next_look_s[claim] = 0.0 if moved else time.monotonic() + EMPTY_LOOK_PAUSE_S
        return moved

    def _claim_companies(self, session: Session, now: datetime) -> list[Claim]:
        room, rooms = self._lanes.rooms()
        due = delivery_queue.claim_companies(
            session, now=now, free_since=self._free_since(now), size=CLAIM_SIZE, room=room, rooms=rooms
        )
        for message in due.messages:
            rooms[message.endpoint_id] = rooms.get(message.endpoint_id, room) - 1
        rooms = {id_: left if self._lanes.wants(id_) else 0 for id_, left in rooms.items()}
        waiting = delivery_queue.claim_waiting(
            session,
            now=now,
            size=CLAIM_SIZE - len(due.messages),
            room=room,
            rooms=rooms,
            probes=self._probes_left(),
        )
        return [due, waiting]

    def _claim_platform(self, session: Session, now: datetime) -> list[Claim]:
        size, probe = self._lanes.room(PLATFORM_ID), self._probes_left() > 0
        claim = delivery_queue.claim_platform(
            session, now=now, free_since=self._free_since(now), size=size, probe=probe
        )
        return [claim]

    def _free_since(self, now: datetime) -> datetime:
        return now if self._rolling else self._began

    def _probes_left(self) -> int:
        now_s = time.monotonic()
        return max(0, PROBES - sum(until_s > now_s for until_s in self._probes.values()))

    def _endpoints(self, session: Session, ids: set[int], *, now: datetime) -> dict[int, Endpoint]:
        if not ids:
            return {}
        rows = session.execute(
            select(CallbackEndpoint.company_id, CallbackEndpoint.url, CallbackEndpoint.open_until).where(
                CallbackEndpoint.company_id.in_(ids)
            )
        ).all()
        until_s = time.monotonic() + PROBE_LEASE.total_seconds()
        self._probes |= {row.company_id: until_s for row in rows if row.open_until is not None}
        encrypted = callback_endpoints.read_secrets(session, list(ids), now=now)
        readable = self._deliverer.keyring.readable
        return {
            row.company_id: Endpoint(row.url, tuple(readable(encrypted.get(row.company_id, ()))))
            for row in rows
        }

    def _start_threads(self) -> None:
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._send_all, name=f"callbacks-{number}", daemon=True)
                for number in range(THREADS)
            ]
            for thread in self._threads:
                thread.start()

    def _send_all(self) -> None:
        """Send one message after another, until there are no more."""
        while (taken := self._lanes.take()) is not None:
            outgoing, was_proven = taken
            reply = Reply()
            try:
                # What waited longer than its lease is someone else's by now.
                if time.monotonic() < outgoing.until_s:
                    message, sent_at = outgoing.message, self._now()
                    with tracing.traced(message.request_id):
                        reply = self._sender.send(
                            outgoing.endpoint, message.id, message.body, sent_at=sent_at
                        )
                    # Before it can be recorded, which resumes the endpoint.
                    if reply.wants_no_more:
                        self._lanes.stop(outgoing.endpoint_id)
                    self._attempts.put((outgoing, reply, sent_at))
            finally:
                self._lanes.done(outgoing, reply, was_proven=was_proven)

    def _finished(self, *, wait_s: float) -> list[_Attempt]:
        """Return the attempts that are finished, after waiting for the first."""
        finished = []
        try:
            finished.append(self._attempts.get(timeout=wait_s) if wait_s else self._attempts.get_nowait())
            while True:
                finished.append(self._attempts.get_nowait())
        except Empty:
            return finished

    def _record(self, attempts: Sequence[_Attempt]) -> None:
        """Write what came back, and take back what is not to be sent to a broken endpoint now."""
        if not attempts:
            return

        def record(session: Session) -> tuple[list[CallbackStatus], Sequence[Row[Any]], int]:
            now = self._now()
            changed = breakers.note(session, [(outgoing, reply) for outgoing, reply, _ in attempts], now=now)
            disabled = {row.company_id for row in changed if row.disabled_at is not None}
            verdicts = [
                _verdict(outgoing.message, reply, now, disabled=outgoing.endpoint_id in disabled)
                for outgoing, reply, _ in attempts
            ]
            delivery_queue.record(
                session,
                [outgoing.message for outgoing, _, _ in attempts],
                statuses=[str(status) for status, _ in verdicts],
                next_attempts=[next_attempt_at for _, next_attempt_at in verdicts],
                attempted_ats=[sent_at for _, _, sent_at in attempts],
                status_codes=[reply.status_code for _, reply, _ in attempts],
                durations_ms=[reply.duration_ms for _, reply, _ in attempts],
                errors=[reply.error for _, reply, _ in attempts],
                answers=[reply.answer for _, reply, _ in attempts],
            )
            ended = [row for row in changed if row.disabled_at is not None]
            total = breakers.tell_disabled(
                session, ended, clock=self._deliverer.clock, by_platform=self._deliverer.platform is not None
            )
            return [status for status, _ in verdicts], changed, total

        statuses, changed, disabled_total = run_in_transaction(self._engine, record)
        judged = [
            (outgoing, reply, status) for (outgoing, reply, _), status in zip(attempts, statuses, strict=True)
        ]
        for outgoing, _, status in judged:
            self._probes.pop(outgoing.endpoint_id, None)
            self._result.add(status)
        delivery_lines.log_attempts(judged)
        for row in changed:
            if row.disabled_at is not None:
                delivery_lines.log_disabled(row, judged, total=disabled_total)
                self._put_back(self._lanes.drop(row.company_id), "held")
            elif row.open_until is not None:
                self._put_back(self._lanes.drop(row.company_id), "waiting")
        for outgoing, reply, _ in attempts:
            if reply.wants_no_more:
                self._lanes.resume(outgoing.endpoint_id)
        self._on_record(self._result)

    def _stop(self) -> None:
        """Give back what was not begun, and record what is under way as long as there is time."""
        self._put_back(self._lanes.drop(), "pending")
        self._lanes.close()
        give_up_s = time.monotonic() + STOP_TIMEOUT_S
        while not (self._lanes.idle() and self._attempts.empty()) and time.monotonic() < give_up_s:
            self._record(self._finished(wait_s=0.1))

    def _put_back(self, dropped: Sequence[Outgoing], status: str) -> None:
        if not dropped:
            return
        messages = [outgoing.message for outgoing in dropped]
        # The platform's messages wait where they are: in the index of what is due, which only they are in.
        statuses = [
            "pending" if message.endpoint_id == PLATFORM_ID and status == "waiting" else status
            for message in messages
        ]

        def put_back(session: Session) -> None:
            delivery_queue.put_back(session, messages, statuses, now=Clock().read(session).real)

        run_in_transaction(self._engine, put_back)


def _verdict(
    message: Claimed, reply: Reply, now: datetime, *, disabled: bool
) -> tuple[CallbackStatus, datetime | None]:
    """Return what an attempt makes of its message, and when it is tried again."""
    if reply.succeeded:
        return CallbackStatus.DELIVERED, None
    if reply.status_code == GONE and disabled:
        return CallbackStatus.HELD, None
    if message.schedule_step >= len(SCHEDULE_S):
        return CallbackStatus.EXHAUSTED, None
    jitter = random.uniform(0.9, 1.1)  # noqa: S311 - spreads the load, keeps no secret
    pause_s = SCHEDULE_S[message.schedule_step] * jitter
    if reply.retry_after_s is not None:
        pause_s = max(pause_s, min(reply.retry_after_s, LONGEST_RETRY_AFTER_S))
    return CallbackStatus.PENDING, now + timedelta(seconds=pause_s)
