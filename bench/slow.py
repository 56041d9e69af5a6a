"""A slow gateway: how near the worker comes to threads ÷ latency, and what of the database it holds."""

import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from rich.table import Table

from bench.children import children, run_all
from bench.gateways import LATENCY_S
from bench.world import TEMPLATE, Step, count, database, fill, spread

THREADS = 64
DUE = 3000
BATCH = 1000
ROUNDS = 3
STEPS = ROUNDS
SAMPLE_S = 0.005
LONG = "200 milliseconds"
"""A transaction that is open for longer waits for the gateway: its answers take longer than that."""

_SESSIONS = f"""
SELECT count(*), count(*) FILTER (WHERE xact_start < clock_timestamp() - interval '{LONG}'),
    count(*) FILTER (WHERE state LIKE 'idle in transaction%'
        AND state_change < clock_timestamp() - interval '50 milliseconds'),
    count(*) FILTER (WHERE state LIKE 'idle in transaction%'),
    coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)) * 1000, 0)::float8
FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'vade'
"""


@dataclass(slots=True)
class Sessions:
    """What was seen of the worker's sessions."""

    samples: int = 0
    most: int = 0
    """The most connections at once."""
    long: int = 0
    """Samples with a transaction open for longer than `LONG`."""
    waiting: int = 0
    """Samples with a transaction in which nothing has run for 50 ms: one that waits for something else."""
    between: int = 0
    """Samples that met a transaction between two of its statements."""
    longest_ms: float = 0.0
    """The longest that a transaction was seen open."""


@contextmanager
def watched(url: str) -> Iterator[Sessions]:
    """Look at the worker's sessions every few milliseconds, from a connection of its own."""
    seen = Sessions()
    stop = threading.Event()

    def watch() -> None:
        with psycopg.connect(url, autocommit=True, application_name="bench") as connection:
            while not stop.wait(SAMPLE_S):
                row = connection.execute(_SESSIONS.encode()).fetchone()
                assert row is not None
                seen.samples += 1
                seen.most = max(seen.most, row[0])
                seen.long += row[1] > 0
                seen.waiting += row[2] > 0
                seen.between += row[3] > 0
                seen.longest_ms = max(seen.longest_ms, row[4])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def tables(url: str, step: Step) -> list[Table]:
    """Measure, and return a table."""
    rates, seen = [], []
    for round_ in range(ROUNDS):
        step(f"slow gateway, round {round_ + 1}: {DUE:,} due, {LATENCY_S * 1000:.0f} ms an answer")
        rate, sessions = _measure(url)
        rates.append(rate)
        seen.append(sessions)
    ceiling = THREADS / LATENCY_S
    title = f"A gateway that takes {LATENCY_S * 1000:.0f} ms an answer, {THREADS} threads, {DUE:,} due"
    table = Table("", "measured", "wanted", title=f"{title}, median of {ROUNDS}")
    table.add_row("attempts/s", spread(rates, ",.1f"), "")
    table.add_row("÷ threads ÷ latency", spread([rate / ceiling for rate in rates]), "≥ 0.90")
    table.add_row(f"samples of its sessions, every {SAMPLE_S * 1000:.0f} ms", _sum(seen, "samples"), "")
    table.add_row(f"with a transaction open for over {LONG}", _sum(seen, "long"), "0")
    table.add_row("with one in which nothing ran for 50 ms", _sum(seen, "waiting"), "0")
    table.add_row("with one between two statements", _sum(seen, "between"), "")
    longest = statistics.median(sessions.longest_ms for sessions in seen)
    table.add_row("longest transaction seen", f"{longest:,.0f} ms", "")
    table.add_row("most connections at once", str(max(sessions.most for sessions in seen)), "bounded")
    return [table]


def _measure(url: str) -> tuple[float, Sessions]:
    settings = (
        "PAYMENT_GATEWAY=bench.gateways:SlowGateway",
        f"GATEWAY_THREADS={THREADS}",
        f"BATCH_SIZE={BATCH}",
    )
    with (
        database(url, "vade_bench", template=TEMPLATE) as fresh,
        children(1, "bench.worker", fresh, *settings) as started,
    ):
        fill(fresh, companies=DUE, due=DUE)
        with watched(fresh) as seen:
            [result] = run_all(started)
        if result["attempts"] != DUE or count(fresh, "SELECT count(*) FROM company_payments") != DUE:
            raise RuntimeError(f"{result} for {DUE} due periods")
        return DUE / result["seconds"], seen


def _sum(seen: list[Sessions], name: str) -> str:
    return f"{sum(getattr(sessions, name) for sessions in seen):,}"
