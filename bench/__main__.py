"""`make bench`: everything measured in one run, with the machine beside it."""

import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import api, callbacks, plain
from bench.world import TEMPLATE, Figures, Step, count, database, fill, server, spread

DUE = 50_000
ROUNDS = 7
ROUND_DUE = 10_000
BATCH = 1000
MEMORY_DUE = (10_000, 100_000)
API_SECONDS = 2.0


def main() -> None:
    """Measure collection, its limit, memory, the API and callbacks; print a table of figures and ratios."""
    with Progress(console=Console(stderr=True), transient=True) as progress, server() as url:
        total = 2 + 2 * ROUNDS + len(MEMORY_DUE) + ROUNDS + callbacks.STEPS
        task = progress.add_task("Collection", total=total)

        def step(what: str) -> None:
            progress.update(task, advance=1, description=what)

        figures: Figures = [("machine", _machine()), ("PostgreSQL", _postgres(url))]
        rates = {}
        for workers in (1, 2):
            step(f"{workers} worker(s), {DUE:,} due")
            rates[workers] = _collect(url, due=DUE, workers=workers)["rate"]
            figures.append((f"attempts/s, {workers} worker(s), {DUE:,} due", f"{rates[workers]:,.0f}"))
        figures.append(("two workers ÷ one", f"{rates[2] / rates[1]:.2f}"))
        figures += _limit(url, step)
        for due in MEMORY_DUE:
            step(f"memory, {due:,} due")
            peak = _collect(url, due=due, workers=1)["peak_mib"]
            figures.append((f"worker's peak memory, {due:,} due", f"{peak:,.0f} MiB"))
        figures += _api(url, step)
        figures += callbacks.figures(url, step)
    table = Table("figure", "measured", title=f"Vade, {datetime.now().astimezone():%Y-%m-%d %H:%M}")
    for name, value in figures:
        table.add_row(name, value)
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def _collect(url: str, *, due: int, workers: int) -> dict[str, float]:
    """Collect everything due on a fresh database by some worker processes; return rate and peak memory."""
    with database(url, "vade_bench", template=TEMPLATE) as fresh:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.worker", fresh],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"BATCH_SIZE": str(BATCH)},
            )
            for _ in range(workers)
        ]
        for process in processes:
            _line(process)
        fill(fresh, companies=due, due=due)
        for process in processes:
            process.stdin.write("go\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        results: list[dict[str, Any]] = [json.loads(_line(process)) for process in processes]
        for process in processes:
            process.communicate()
        attempts = sum(result["attempts"] for result in results)
        if attempts != due or count(fresh, "SELECT count(*) FROM company_payments") != due:
            raise RuntimeError(f"{attempts} attempts for {due} due periods: {results}")
        return {
            "rate": attempts / max(result["seconds"] for result in results),
            "peak_mib": max(result["peak_kib"] for result in results) / 1024,
        }


def _limit(url: str, step: Step) -> Figures:
    """Measure Vade and plain SQL in turn, and return the median rates and the median of their ratios."""
    ours, plains = [], []
    for round_ in range(ROUNDS):
        step(f"limit, round {round_ + 1}: Vade")
        ours.append(_collect(url, due=ROUND_DUE, workers=1)["rate"])
        step(f"limit, round {round_ + 1}: plain SQL")
        with database(url, "vade_bench", template=TEMPLATE) as fresh:
            fill(fresh, companies=ROUND_DUE, due=ROUND_DUE)
            attempts, seconds = plain.run(fresh, batch_size=BATCH)
            if attempts != ROUND_DUE:
                raise RuntimeError(f"{attempts} attempts for {ROUND_DUE} due periods")
            plains.append(attempts / seconds)
    ratios = [a / b for a, b in zip(ours, plains, strict=True)]
    return [
        (f"attempts/s, one worker, {ROUND_DUE:,} due, median of {ROUNDS}", f"{statistics.median(ours):,.0f}"),
        ("the same rows by plain set-based SQL", f"{statistics.median(plains):,.0f}"),
        ("ratio (median; least to most)", spread(ratios)),
    ]


def _api(url: str, step: Step) -> Figures:
    """Measure ``current`` and ``SELECT 1`` in turn on one running server."""
    with database(url, "vade_bench", template=TEMPLATE) as fresh:
        fill(fresh, companies=10_000, due=10_000)
        headers = {"Authorization": f"Bearer {api.token(fresh, 5000)}"}
        currents, bares, errors = [], [], 0
        slowest: list[float] = []
        with api.serving(fresh) as port:
            for path in ("/select-1", "/api/v1/company-packages/current"):
                api.rate(port, path, seconds=1, headers=headers)
            for round_ in range(ROUNDS):
                step(f"API, round {round_ + 1}")
                bare, _, failed = api.rate(port, "/select-1", seconds=API_SECONDS, headers=headers)
                current, latencies, also_failed = api.rate(
                    port, "/api/v1/company-packages/current", seconds=API_SECONDS, headers=headers
                )
                currents.append(current)
                bares.append(bare)
                slowest += latencies
                errors += failed + also_failed
    slowest.sort()
    ratios = [a / b for a, b in zip(currents, bares, strict=True)]
    return [
        ("requests/s, GET company-packages/current", f"{statistics.median(currents):,.0f}"),
        ("requests/s, bare SELECT 1", f"{statistics.median(bares):,.0f}"),
        ("ratio (median; least to most)", spread(ratios)),
        ("current: p50, p99, errors", f"{_at(slowest, 0.5):.1f} ms, {_at(slowest, 0.99):.1f} ms, {errors}"),
    ]


def _line(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline()  # type: ignore[union-attr]
    if not line:
        raise RuntimeError(f"a worker ended early with status {process.wait()}")
    return line


def _at(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]


def _machine() -> str:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    python = f"Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.machine()}, {python}"


def _postgres(url: str) -> str:
    version = count(url, "SHOW server_version")
    return f"{version}, synchronous_commit {count(url, 'SHOW synchronous_commit')}, on the same machine"


if __name__ == "__main__":
    main()
