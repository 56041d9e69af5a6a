"""Vade beside its peers: the same work for each due period, on the same server, verified row by row."""

import re
import statistics
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from bench import collection, plain, same
from bench.children import Result, children, run_all
from bench.world import AS_OF, TEMPLATE, Step, count, database, fill, spread
from billing.payment_queue import PRORATED_SQL
from config import PROJECT_DIR

PYTHON = PROJECT_DIR / ".venv-peers" / "bin" / "python"
"""The peers' environment: `make peers` makes it."""

DUE = 20_000
LIMIT_S = 20.0
"""A peer that is not done by then is stopped, and its rate is taken: a minute over the rounds."""

ROUNDS = 3
PROCESSES = (1, 2)
WANTED = 10
"""How many times as fast as the best peer Vade is expected to be."""

ANSWERED = f"""
WITH answered AS MATERIALIZED (
    SELECT cp.company_id, cp.id AS company_package_id, cp.start_date, cp.end_date, cp.currency, cp.package_id,
        {PRORATED_SQL} AS amount_minor, CAST(%(key)s AS uuid) AS id, CAST(%(reference)s AS text) AS reference,
        CAST(%(outcome)s AS smallint) AS outcome
    FROM company_packages cp
    WHERE cp.company_id = CAST(%(company_id)s AS bigint) AND cp.id = CAST(%(company_package_id)s AS bigint)
        AND cp.start_date = CAST(%(period_start)s AS date) AND cp.status = 1
"""

# The peers keep the next attempt in their own queue.
COLLECT = f"{plain.writes(ANSWERED, retried='')} SELECT 1"

DUE_PERIODS = f"""SELECT company_id, id, start_date FROM company_packages
WHERE status = 1 AND end_date <= date '{AS_OF[:10]}' ORDER BY end_date, company_id"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A queue, and the settings that did best here, by what a job does.

    ``waiting`` counts the declined periods that wait in its queue for the next day.
    """

    name: str
    module: str
    numbered: bool
    """Whether its driver numbers parameters, as ``$1``."""
    work: dict[str, Any]
    noop: dict[str, Any]
    waiting: str


PEERS = (
    Peer(
        "procrastinate",
        "bench.peers.procrastinate_worker",
        numbered=False,
        work={"concurrency": 8, "delete_jobs": "always"},
        noop={"concurrency": 8, "delete_jobs": "always"},
        waiting="SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo'"
        " AND scheduled_at BETWEEN now() + interval '23 hours' AND now() + interval '24 hours'",
    ),
    Peer(
        "pgqueuer",
        "bench.peers.pgqueuer_worker",
        numbered=True,
        work={"batch_size": 100, "tasks": 200, "pool": 16},
        noop={"batch_size": 500, "tasks": 1000, "pool": 8},
        waiting="SELECT count(*) FROM pgqueuer WHERE status = 'queued'"
        " AND execute_after BETWEEN now() + interval '23 hours' AND now() + interval '24 hours'",
    ),
)

STEPS = ROUNDS * len(PROCESSES) * (1 + len(PEERS)) + len(PEERS) * len(PROCESSES) + 1


@dataclass(frozen=True, slots=True)
class Run:
    """What a peer did: jobs, seconds of working them off, and seconds of enqueueing all that was due."""

    done: int
    seconds: float
    enqueue_s: float

    @property
    def rate(self) -> float:
        """Jobs a second, with the share of enqueueing that falls to them."""
        return self.done / (self.seconds + self.enqueue_s * self.done / DUE)

    @property
    def rate_without_enqueue(self) -> float:
        """Jobs a second once they are enqueued."""
        return self.done / self.seconds


def numbered(statement: str) -> tuple[str, list[str]]:
    """Return a statement with its parameters numbered, and their names in that order."""
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        if found[1] not in names:
            names.append(found[1])
        return f"${names.index(found[1]) + 1}"

    return re.sub(r"%\((\w+)\)s", number, statement), names


def measure(
    url: str, peer: Peer, *, processes: int, noop: bool = False, settings: dict[str, Any] | None = None
) -> Run:
    """Let a peer work off all that is due on a fresh database, and verify what it wrote."""
    statement, names = numbered(COLLECT) if peer.numbered else (COLLECT, [])
    told = {
        "settings": settings or (peer.noop if noop else peer.work),
        "now": AS_OF,
        "limit_s": LIMIT_S,
        "due": DUE_PERIODS,
        "collect": "" if noop else statement,
        "names": names,
    }
    with database(url, "vade_bench", template=TEMPLATE) as fresh:
        told["url"] = fresh
        fill(fresh, companies=DUE, due=DUE)
        _play(peer, told | {"role": "install"})
        [enqueued] = _play(peer, told | {"role": "enqueue"})
        if enqueued["done"] != DUE:
            raise RuntimeError(f"{peer.name} enqueued {enqueued['done']} of {DUE}")
        results = _play(peer, told | {"role": "work"}, processes=processes)
        if not noop:
            _verify(fresh, peer, results)
    done = sum(result["done"] for result in results)
    return Run(done, max(result["seconds"] for result in results), enqueued["seconds"])


def _play(peer: Peer, told: dict[str, Any], *, processes: int = 1) -> list[Result]:
    with children(processes, peer.module, python=str(PYTHON), told=told) as started:
        return run_all(started)


def _verify(url: str, peer: Peer, results: list[Result]) -> None:
    """Raise where what stands in the tables is not what follows from as many attempts."""
    done = sum(result["done_at_end"] for result in results)
    found = {name: count(url, query) for name, query in same.COUNTS.items()} | {
        "waiting": count(url, peer.waiting)
    }
    declined = found["declined"]
    expected = {
        "attempts": done,
        "declined": sum(result["declined_at_end"] for result in results),
        "right": done,
        "rolled": done - declined,
        "messages": 2 * done - declined,
        "sequence": 2 * done - declined,
        "waiting": declined,
    }
    if found != expected:
        raise RuntimeError(f"{peer.name} wrote {found} instead of {expected}")


def tables(url: str, step: Step) -> list[Table]:
    """Measure all in turn; return a table of their rates and ratios.

    Raises:
        SystemExit: when the peers' environment is not there.
    """
    if not PYTHON.exists():
        raise SystemExit("The peers are not installed: make peers.")
    step("peers: the same rows as Vade")
    same.check(url, COLLECT)
    ours: dict[int, list[float]] = {processes: [] for processes in PROCESSES}
    runs: dict[tuple[str, int], list[Run]] = {}
    for round_ in range(ROUNDS):
        for processes in PROCESSES:
            step(f"peers, round {round_ + 1}: Vade, {processes} process(es)")
            ours[processes].append(collection.collect(url, due=DUE, workers=processes)["rate"])
            for peer in PEERS:
                step(f"peers, round {round_ + 1}: {peer.name}, {processes} process(es)")
                run = measure(url, peer, processes=processes)
                runs.setdefault((peer.name, processes), []).append(run)
    idle = {}
    for peer in PEERS:
        for processes in PROCESSES:
            step(f"peers: {peer.name}, jobs that do nothing, {processes} process(es)")
            idle[peer.name, processes] = measure(url, peer, processes=processes, noop=True)
    return [_table(ours, runs, idle)]


def _table(
    ours: dict[int, list[float]], runs: dict[tuple[str, int], list[Run]], idle: dict[tuple[str, int], Run]
) -> Table:
    table = Table(
        "",
        "processes",
        "periods/s",
        "without enqueueing",
        "Vade's best ÷ it",
        title=f"The same work for {DUE:,} due periods, median of {ROUNDS}",
    )
    best = max(statistics.median(rates) for rates in ours.values())
    for processes, rates in ours.items():
        table.add_row("Vade", str(processes), spread(rates, ",.0f"), "", "")
    table.add_section()
    peers_best = 0.0
    for (name, processes), measured in runs.items():
        rates = [run.rate for run in measured]
        peers_best = max(peers_best, statistics.median(rates))
        without = statistics.median(run.rate_without_enqueue for run in measured)
        ratio = f"{best / statistics.median(rates):.1f}"
        table.add_row(name, str(processes), spread(rates, ",.0f"), f"{without:,.0f}", ratio)
    table.add_section()
    for (name, processes), run in idle.items():
        cells = (f"{run.rate:,.0f}", f"{run.rate_without_enqueue:,.0f}", f"{best / run.rate:.1f}")
        table.add_row(f"{name}, jobs that do nothing", str(processes), *cells)
    table.caption = (
        f"Vade's best ÷ the best peer's: {best / peers_best:.1f} (wanted: {WANTED}). Rates include "
        "enqueueing unless said otherwise. Vade's whole work stands beside jobs that do nothing."
        "\nNot compared: oban, whose Python package needs Python 3.12."
    )
    return table
