"""What commands share at a terminal: sentences for errors, an orderly end, progress and money."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy.exc import OperationalError, ProgrammingError

from billing.charging import GatewayHangsError
from billing.errors import VadeError
from billing.transactions import first_line

P = ParamSpec("P")

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


def in_sentences(command: Callable[P, None]) -> Callable[P, None]:
    """Let a command end with a sentence where the database or the gateway fails it."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (OperationalError, ProgrammingError) as error:
            raise click.ClickException(f"The database fails: {first_line(error)}.") from error
        except VadeError as error:
            raise click.ClickException(error.detail) from error
        except GatewayHangsError as error:
            raise click.ClickException(f"{error}.") from error

    return run


def money(amounts: dict[str, int]) -> str:
    """Return amounts in minor units as text, such as ``1,299.00 TRY``."""
    texts = (f"{minor // 100:,}.{minor % 100:02} {currency}" for currency, minor in sorted(amounts.items()))
    return "\n".join(texts) or "0.00"
