"""`make scale`: what an attempt costs among ever more companies, and what a day's backlog does to the tables.

One database grows from size to size. At each, the same number of periods is collected a few times, by one
worker, of companies spread over the whole table; then comes one day's backlog, and a queue at rest.
"""

import argparse
import signal
import statistics
import sys
from datetime import datetime

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.children import children, run_all
from bench.scale_queue import backlog, resting
from bench.scale_world import ScaleWorld, room_is_missing
from bench.world import TEMPLATE, Step, database, server

SIZES = (10_000, 100_000, 1_000_000, 5_000_000)
DUE_COMPANIES = 10_000
PERIODS = 2
"""Ended periods of each company that is due: the second is collected where the first was charged."""

ROUNDS = 3
FLAT = 1.3
"""What an attempt may cost at most, beside one at the first size."""

INTERRUPTED = 130


def main() -> None:
    """Measure, and print tables; Ctrl-C ends it and leaves nothing behind."""
    arguments = _arguments()
    most = max(*arguments.companies, arguments.backlog)
    if sentence := room_is_missing(most):
        sys.exit(sentence)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} companies"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    console = Console(width=None if sys.stdout.isatty() else 130)
    try:
        with progress, server() as url, database(url, "vade_scale", template=TEMPLATE) as grown:
            task = progress.add_task("Loading", total=most)

            def step(what: str) -> None:
                progress.update(task, description=what)

            def loaded(companies: int) -> None:
                progress.update(task, advance=companies)

            world = ScaleWorld(grown)
            growth = _growth_table()
            first: float | None = None
            for size in sorted(arguments.companies):
                step(f"Loading up to {size:,} companies")
                world.grow(size, loaded)
                costs, peaks = _rounds(world, step)
                first = first or statistics.median(costs)
                _add_growth(growth, size, costs, peaks, first)
            console.print(growth)
            world.grow(max(arguments.backlog, world.companies), loaded)
            for table in backlog(world, workers=arguments.workers, step=step):
                console.print(table)
            world.make_undue()
            for table in resting(world, jobs=arguments.resting, step=step):
                console.print(table)
    except KeyboardInterrupt:
        print("Interrupted; nothing is left behind.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--companies", type=_sizes, default=list(SIZES), help="sizes, with commas between")
    parser.add_argument("--backlog", type=int, default=0, help="companies of whom a day's share is due")
    parser.add_argument("--resting", type=int, default=1_000_000, help="jobs that rest")
    parser.add_argument("--workers", type=int, default=2, help="of the backlog")
    arguments = parser.parse_args()
    wrong = [size for size in arguments.companies if size < DUE_COMPANIES or size % DUE_COMPANIES]
    if wrong:
        parser.error(f"sizes are multiples of {DUE_COMPANIES}, unlike {wrong[0]}")
    return arguments


def _sizes(value: str) -> list[int]:
    return [int(size) for size in value.split(",")]


def _rounds(world: ScaleWorld, step: Step) -> tuple[list[float], list[float]]:
    """Collect a few times; return seconds per attempt, and the worker's peak memory in MiB."""
    costs, peaks = [], []
    for round_ in range(ROUNDS):
        step(f"{world.companies:,} companies, round {round_ + 1} of {ROUNDS}")
        result = _collect(world, world.next_day())
        costs.append(result["seconds"] / result["attempts"])
        peaks.append(result["peak_kib"] / 1024)
        world.make_undue()
    return costs, peaks


def _collect(world: ScaleWorld, at: datetime) -> dict[str, float]:
    with children(1, "bench.worker", world.url, f"VADE_NOW={at.isoformat()}", "BATCH_SIZE=1000") as started:
        world.make_due(at, every=world.companies // DUE_COMPANIES, periods=PERIODS)
        (result,) = run_all(started)
    if result["failed"] or result["attempts"] <= DUE_COMPANIES:
        raise RuntimeError(f"{DUE_COMPANIES} companies were due: {result}")
    return result


def _growth_table() -> Table:
    table = Table(
        "companies",
        title=f"{DUE_COMPANIES * PERIODS:,} periods of {DUE_COMPANIES:,} companies due, one worker",
    )
    for heading in ("µs per attempt (median; least to most)", f"÷ first (at most {FLAT})", "peak memory"):
        table.add_column(heading, justify="right")
    return table


def _add_growth(table: Table, size: int, costs: list[float], peaks: list[float], first: float) -> None:
    micros = [cost * 1e6 for cost in costs]
    table.add_row(
        f"{size:,}",
        f"{statistics.median(micros):,.0f} ({min(micros):,.0f} to {max(micros):,.0f})",
        f"{statistics.median(costs) / first:.2f}",
        f"{max(peaks):,.0f} MiB",
    )


if __name__ == "__main__":
    main()
