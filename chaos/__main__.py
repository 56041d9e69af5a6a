"""`make chaos`: a seeded run of faults, and the audit of what was left."""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chaos.database_faults import DATABASE_FAULTS
from chaos.faults import PROCESS_FAULTS
from chaos.run import Outcome, Run
from chaos.world import Sizes, World
from terminal import told_to_end

INTERRUPTED = 130
SHOWN = 20
"""How many rows under a line of the audit are listed."""


@click.command()
@click.option(
    "--seconds", type=click.FloatRange(1), default=240, show_default=True, help="How long at least."
)
@click.option("--seed", help="Repeats the plan of a run, and the gateway's behaviour; else one is drawn.")
@click.option("--workers", type=click.IntRange(2, 4), default=3, show_default=True, help="How many workers.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Writes the outcome as JSON.")
@click.option("--keep", type=click.Path(path_type=Path), help="Copies logs and ledger to this directory.")
def main(seconds: float, seed: str | None, workers: int, report: Path | None, keep: Path | None) -> None:
    """Run everything under faults for a while, let it come to rest, and audit the books.

    Exits with 1 where a row breaks a law or too little happened for a proof. Ctrl-C ends the faults, and
    what ran so far is audited; a second one waits for nothing.
    """
    seed = seed or str(random.randrange(10**6))
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    again = f"python -m chaos --seed {seed} --seconds {seconds:g} --workers {workers}"
    console.print(f"Seed {seed}; once more the same: {again}")
    home = Path(tempfile.mkdtemp(prefix="vade-chaos-"))
    started_s = time.monotonic()

    def tell(what: str) -> None:
        console.print(f"[dim]{time.monotonic() - started_s:7.1f} s[/]  {escape(what)}")

    run = Run(World(home, seed, Sizes(workers=workers)), seconds, tell)

    told_s = 0.0

    def hear(_: int) -> None:
        nonlocal told_s
        # Told twice at once is told once: Ctrl-C reaches a whole group, and who is in front tells it again.
        if run.over.is_set() and time.monotonic() > told_s + 1:
            run.now.set()
        told_s = time.monotonic()
        run.over.set()

    try:
        former = signal.signal(signal.SIGHUP, lambda number, _: hear(number))
        with told_to_end(hear):
            outcome = run.make()
        signal.signal(signal.SIGHUP, former)
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    finally:
        if keep is not None:
            _copy(home, keep)
        shutil.rmtree(home, ignore_errors=True)
    if report is not None:
        report.write_text(json.dumps(vars(outcome) | {"lacking": outcome.lacking(), "clean": outcome.clean}))
    _show(outcome, again)
    sys.exit(_status(outcome))


def _status(outcome: Outcome) -> int:
    if not outcome.clean or outcome.lacking():
        return 1
    return INTERRUPTED if outcome.interrupted else 0


def _show(outcome: Outcome, again: str) -> None:
    """Print what happened, the audit, and the rows that break its laws."""
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    happened = Table("what happened", "times", title="Faults, and what went on meanwhile")
    for name in (*PROCESS_FAULTS, *DATABASE_FAULTS):
        number = outcome.faults[name]
        happened.add_row(name, f"{number:,}")
    happened.add_section()
    for name, number in outcome.figures.items():
        happened.add_row(name, f"{number:,}")
    console.print(happened)
    found = Table("audit", "rows", title="Audit")
    for name, rows in outcome.broken.items():
        found.add_row(name, f"[red]{len(rows):,}[/]" if rows else "0")
    console.print(found)
    for name, rows in outcome.broken.items():
        for row in rows[:SHOWN]:
            console.print(f"{name}: {escape(row)}", soft_wrap=True)
        if len(rows) > SHOWN:
            console.print(f"{name}: and {len(rows) - SHOWN:,} more")
    if lacking := outcome.lacking():
        console.print(f"No proof, for this never happened: {', '.join(lacking)}.")
    if outcome.interrupted:
        console.print("Interrupted: what ran so far was audited, and proves less than a whole run.")
    for failure in outcome.failures:
        console.print(f"Failed: {escape(failure)}", soft_wrap=True)
    console.print(f"Once more the same: {again}", soft_wrap=True)


def _copy(home: Path, keep: Path) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    for path in home.iterdir():
        if path.is_file() and os.access(path, os.R_OK) and path.suffix in {".log", ".jsonl", ".1"}:
            shutil.copy(path, keep)


if __name__ == "__main__":
    main()
