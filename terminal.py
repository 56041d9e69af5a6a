"""What long commands share at a terminal: to hear that they are to end, and to show how far they are."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ENDING = (signal.SIGINT, signal.SIGTERM)
"""The signals that ask a command to end."""


@contextmanager
def told_to_end(hear: Callable[[int], None]) -> Iterator[None]:
    """Give SIGINT and SIGTERM to ``hear`` in the block, so that work ends in order, not in the middle."""
    former = {number: signal.signal(number, lambda number, _: hear(number)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def progress_bar(description: str, *, total: int | None) -> Progress:
    """Return a progress bar with one task, on standard error; nothing where that is no terminal."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    progress.add_task(description, total=total)
    return progress
