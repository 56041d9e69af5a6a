"""One run: set up, faults while all is at work, until all has come to rest, and then the audit."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from queue import SimpleQueue
from typing import Any

import psycopg

from chaos import books
from chaos.audit import audit
from chaos.clients import Client, Journal
from chaos.database_faults import DATABASE_FAULTS
from chaos.faults import PROCESS_FAULTS
from chaos.gateway import MOODS
from chaos.lanes import Lane
from chaos.processes import until
from chaos.world import CLOCKS_OFF_H, PLATFORM_SECRET, World

CLIENTS = 3
WAVE_SIZE = 12
WAVE_EVERY_S = 2.0
DRAIN_S = 240.0
DAYS_AFTER = 2
"""How many days pass once the faults are over: who is declined three times is passive by then."""

LOOK_EVERY_S = 0.5

# What waits for a pause longer than any lease waits no more, as if the time had passed. What is parked, under
# a lease without end, stays so and is found.
_SKIP_PAUSES = """
UPDATE payment_jobs SET leased_until = now()
    WHERE leased_until > now() + interval '%(lease_s)s s' AND leased_until < now() + interval '1 day';
UPDATE callbacks SET next_attempt_at = now() WHERE next_attempt_at > now() + interval '1 s';
UPDATE callback_endpoints SET open_until = now() WHERE open_until > now();
"""
_LEFT = """
SELECT (SELECT count(*) FROM payment_jobs WHERE next_attempt_at <= now() OR idempotency_key IS NOT NULL),
    (SELECT count(*) FROM company_packages cp WHERE status = 1
        AND end_date <= (now() AT TIME ZONE 'Europe/Istanbul')::date AND NOT EXISTS (
            SELECT FROM payment_jobs j
            WHERE j.company_package_id = cp.id AND j.period_start = cp.start_date)),
    (SELECT count(*) FROM callbacks WHERE status <> 'delivered'), now()
"""


@dataclass
class Outcome:
    """What a run brought: rows that break a law, by the audit's line, and how much happened."""

    broken: dict[str, list[str]] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    figures: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """What went wrong with the run itself, or with its end."""
    interrupted: bool = False

    def lacking(self) -> list[str]:
        """Return what had to happen for this to be a proof, and did not."""
        if self.interrupted:
            return []
        kinds = [name for name in (*PROCESS_FAULTS, *DATABASE_FAULTS) if not self.faults[name]]
        return kinds + [name for name, number in self.figures.items() if not number]

    @property
    def clean(self) -> bool:
        """Whether no row breaks any law, and the run itself went well."""
        return not any(self.broken.values()) and not self.failures


@dataclass
class Run:
    """One run on a world; ``over`` ends the faults early, ``now`` also the wait for rest."""

    world: World
    seconds: float
    tell: Callable[[str], None]
    over: threading.Event = field(default_factory=threading.Event)
    now: threading.Event = field(default_factory=threading.Event)
    outcome: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        self._journal = Journal(self.world.home / "acknowledged.jsonl")
        self._rested_at: datetime | None = None
        self._chance = random.Random(f"{self.world.seed}/waves")

    def make(self) -> Outcome:
        """Make the run and its audit, also where it was interrupted; stop everything, whatever comes."""
        try:
            self.tell("sets up")
            self.world.set_up()
            self._make_faults()
            self.outcome.interrupted = self.over.is_set()
            self.tell("comes to rest")
            if not self._drain() and not self.now.is_set():
                self.outcome.failures.append("it did not come to rest in time")
            self._audit()
        finally:
            self.world.end()
        return self.outcome

    def _make_faults(self) -> None:
        """Let everything happen at once, until the time is over and every kind of fault has been."""
        wanting: SimpleQueue[int] = SimpleQueue()
        for company_id in self.world.add_wave(WAVE_SIZE):
            wanting.put(company_id)
        clients = [
            Client(self.world, self._journal, number=number, wanting=wanting) for number in range(CLIENTS)
        ]
        lanes = [
            Lane(name, faults, self.world, seconds=self.seconds, over=self.over, tell=self.tell)
            for name, faults in (("processes", PROCESS_FAULTS), ("database", DATABASE_FAULTS))
        ]
        try:
            while any(lane.lives() for lane in lanes):
                for company_id in self.world.add_wave(WAVE_SIZE):
                    wanting.put(company_id)
                self.world.let_a_day_pass(share=self._chance.uniform(0.5, 1.0), within_s=WAVE_EVERY_S)
                until(lambda: not any(lane.lives() for lane in lanes), within_s=WAVE_EVERY_S)
        finally:
            for lane in lanes:
                lane.join()
                self.outcome.faults += lane.tally.hit
                self.outcome.missed += lane.tally.missed
            for client in clients:
                client.end()
            for client in clients:
                client.join()
        for lane in lanes:
            if lane.tally.failure is not None:
                self.outcome.failures.append(repr(lane.tally.failure))

    def _drain(self) -> bool:
        """Come to rest, and again after each of the days that a declined period has left."""
        rested = self._rest()
        for _ in range(DAYS_AFTER):
            if rested and not self.outcome.interrupted:
                self.world.let_a_day_pass()
                rested = self._rest()
        return rested

    def _rest(self) -> bool:
        """Wait, with everything up, until nothing is due or under way; return whether it came to that."""
        deadline = time.monotonic() + DRAIN_S
        lease_s = self.world.sizes.lease_s + 1
        looks = 0
        while time.monotonic() < deadline and not self.now.is_set():
            with suppress(psycopg.Error):
                if looks % 3 == 0:
                    self.world.do(_SKIP_PAUSES % {"lease_s": lease_s})
                *left, self._rested_at = self.world.rows(_LEFT)[0]
                if left == [0, 0, 0]:
                    return True
                self.tell("left: {} jobs, {} periods, {} messages".format(*left))
            looks += 1
            self.now.wait(LOOK_EVERY_S)
        return False

    def _audit(self) -> None:
        """Stop all but the database, and compare the books."""
        for program in (*self.world.workers, self.world.api, *self.world.receivers, self.world.gateway):
            if program.end() is None:
                self.outcome.failures.append(f"{program.name} did not stop when told to")
        with self.world.connect() as connection:
            read = books.read(
                connection,
                now=self._rested_at,
                ledger=self.world.ledger,
                received=self.world.received,
                acknowledged=self._journal.acknowledged,
                misread=self._journal.misread,
                doubted=self._journal.doubted,
                platform_secret=PLATFORM_SECRET,
            )
        self.outcome.broken = audit(read)
        self.outcome.figures = _figures(read, self._journal) | self._by_wrong_clocks(read)

    def _by_wrong_clocks(self, read: books.Books) -> dict[str, int]:
        names = {f"worker-{number}" for number in CLOCKS_OFF_H if number <= self.world.sizes.workers}
        asked = sum(ask.worker in names for ask in read.asks)
        return {"asked by workers with wrong clocks": asked} if names else {}


def _figures(read: books.Books, journal: Journal) -> dict[str, int]:
    """Return how much happened; none of it may be 0 in a run that proves something."""
    moods = Counter(ask.mood for ask in read.asks)
    paid = Counter(row.status for row in read.payments)
    figures: dict[str, Any] = {
        "companies": len(read.companies),
        "calls of the gateway": len(read.asks),
        **{f"gateway: {mood}": moods[mood] for mood in MOODS},
        "periods charged": paid[1],
        "attempts declined": paid[0],
        "companies passive": sum(row.passivated_at is not None for row in read.companies.values()),
        "retries brought forward": len(read.aged),
        "messages": len(read.callbacks),
        "messages received": len(read.received),
        "messages to companies": sum(row.recipient == "company" for row in read.callbacks),
        "acknowledged by the API": len(journal.acknowledged),
        "API answers 2xx": journal.answers["2xx"],
        "API answers lost or 5xx": journal.answers["5xx"] + journal.answers["none"],
    }
    return figures
