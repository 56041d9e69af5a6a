"""`python -m bench [SECTION …]`: everything measured in one run, or some of it, and on what machine."""

import argparse
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import callbacks, collection, load, profile, slow
from bench.peers import compare
from bench.world import Figures, Step, count, server

INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell has it: 128 + SIGINT."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the benchmark that can be run alone."""

    tables: Callable[[str, Step], list[Table]]
    steps: int
    about: str


def _callbacks(url: str, step: Step) -> list[Table]:
    return [_table("Callbacks", callbacks.figures(url, step))]


SECTIONS = {
    "collection": Section(collection.tables, collection.STEPS, "1, 2 and 4 workers; memory"),
    "limit": Section(collection.limit_tables, collection.LIMIT_STEPS, "beside plain SQL"),
    "peers": Section(compare.tables, compare.STEPS, "beside procrastinate and pgqueuer"),
    "slow": Section(slow.tables, slow.STEPS, "a gateway that takes its time"),
    "api": Section(load.tables, load.STEPS, "under load, alone and beside a worker"),
    "callbacks": Section(_callbacks, callbacks.STEPS, "quick, hanging and dead receivers"),
    "profile": Section(profile.tables, profile.STEPS, "what lies between Vade and plain SQL"),
}

DEFAULT = [name for name in SECTIONS if name != "profile"]


def main() -> None:
    """Measure the sections that are asked for, and print each as soon as it is there."""
    about = "; ".join(f"{name}: {section.about}" for name, section in SECTIONS.items())
    parser = argparse.ArgumentParser("python -m bench", description=f"Sections: {about}.")
    parser.add_argument("section", nargs="*", choices=[[], *SECTIONS], help="default: all but profile")
    wanted = parser.parse_args().section or DEFAULT
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress, server() as url:
            task = progress.add_task("", total=sum(SECTIONS[name].steps for name in wanted))
            console.print(_table(f"Vade, {datetime.now().astimezone():%Y-%m-%d %H:%M}", _surroundings(url)))
            for name in wanted:
                for table in SECTIONS[name].tables(
                    url, lambda what: progress.update(task, advance=1, description=what)
                ):
                    console.print(table)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _table(title: str, figures: Figures) -> Table:
    table = Table("figure", "measured", title=title)
    for name, value in figures:
        table.add_row(name, value)
    return table


def _surroundings(url: str) -> Figures:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    python = f"Python {platform.python_version()}"
    durable = f"synchronous_commit {count(url, 'SHOW synchronous_commit')}"
    return [
        ("machine", f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.machine()}, {python}"),
        ("PostgreSQL", f"{count(url, 'SHOW server_version')}, {durable}, on the same machine"),
    ]


if __name__ == "__main__":
    main()
