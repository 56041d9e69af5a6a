"""The commands for when something is off: parked jobs, and charges that a restored database does not know."""

import csv
import getpass
import re
import sys
from collections import Counter
from datetime import date
from typing import TextIO
from uuid import UUID

import click
from flask import Flask
from flask.cli import AppGroup, with_appcontext
from rich.console import Console
from rich.table import Table
from sqlalchemy.orm import Session

from billing import adoption, heartbeats, parked_jobs, tracing
from billing.adoption import Charge, Standing
from billing.clock import Clock
from billing.documents import instant_text
from cli import INTERRUPTED, billing, make_collector, stopped_by_signals
from inspection import check_command
from models import BIGINT_MAX, db
from terminal import in_sentences, money, progress_bar
from web.context import vade

CHARGED_PERIOD = re.compile(r"Package ([0-9]+), ([0-9-]+) to [0-9-]+")
"""What a request's description names: the company package and its period."""


def register(_: Flask) -> None:
    """Add these to ``flask billing``."""
    for command in (parked, adopt_command, check_command):
        billing.add_command(command)


@click.group("parked", cls=AppGroup, invoke_without_command=True)
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="How many.")
@click.pass_context
@with_appcontext
@in_sentences
def parked(context: click.Context, limit: int) -> None:
    """List the jobs that failed again and again for a reason of ours, or decide what becomes of one."""
    if context.invoked_subcommand is not None:
        return
    with Session(db.engine) as session:
        jobs = parked_jobs.list_open(session, limit=limit)
    if not jobs:
        click.echo("No job is parked.")
        return
    table = Table("id", "company", "period", "attempt", "amount", "gateway", "since", "error")
    for job in jobs:
        table.add_row(
            str(job.id),
            str(job.company_id),
            f"{job.period_start} to {job.period_end}",
            str(job.attempt),
            money({job.currency: job.amount_minor}),
            "\n".join(filter(None, (job.outcome, job.reference))),
            instant_text(job.parked_at),
            job.error,
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


BY = click.option("--by", default=getpass.getuser, help="Who decides; else the user of the system.")


@parked.command("release")
@click.argument("id", type=click.IntRange(1, BIGINT_MAX))
@BY
@in_sentences
def release_command(id: int, by: str) -> None:  # noqa: A002 - the argument's name
    """Give a parked job back to the queue: it is tried again at once, under the same key."""
    with Session(db.engine) as session:
        released = parked_jobs.release(session, id, real=Clock().read(session).real, by=by)
        session.commit()
    click.echo("The job is in the queue again." if released else "The job was settled meanwhile.")


@parked.command("drop")
@click.argument("id", type=click.IntRange(1, BIGINT_MAX))
@BY
@in_sentences
def drop_command(id: int, by: str) -> None:  # noqa: A002 - the argument's name
    """Write off the period of a parked job: it rolls over unpaid, and no attempt is recorded.

    What the gateway may have charged for it is to be returned by hand.
    """
    with Session(db.engine) as session:
        by_platform = vade().outbox.by_platform
        parked_jobs.drop(session, id, moment=vade().clock.read(session), by=by, by_platform=by_platform)
        session.commit()
    click.echo("The period is written off.")


@click.command("adopt")
@click.argument("file", type=click.File())
@with_appcontext
@in_sentences
def adopt_command(file: TextIO) -> None:
    """Give back their keys to the charges that a restored database does not know.

    FILE is a CSV with a header and the columns idempotency_key, company_id and description, as the gateway
    got them: one line a charge since the backup. Stop the workers first, and start them after it.
    """
    charges = _read_charges(file)
    with Session(db.engine) as session:
        heartbeat = heartbeats.newest(session)
    if heartbeat is not None and not heartbeat.is_stale:
        raise click.ClickException("A worker is running: stop it first, or wait until it is stale.")
    with (
        stopped_by_signals() as stop,
        tracing.traced(tracing.new_id("command-")),
        progress_bar("Adopting", total=len(charges)) as progress,
    ):
        standings = adoption.adopt(
            make_collector(vade(), stop=stop),
            charges,
            on_batch=lambda number: progress.update(progress.task_ids[0], completed=number),
        )
    numbers = Counter(standings.values())
    click.echo(", ".join(f"{standing} {numbers[standing]}" for standing in Standing))
    for key in (key for key, standing in standings.items() if standing is Standing.UNKNOWN):
        click.echo(f"Look at {key}: no period waits for it. Its money may have to be returned.", err=True)
    if numbers[Standing.WAITING]:
        click.echo("Adopt the same file again, before any worker starts.", err=True)
    if numbers[Standing.WAITING] or numbers[Standing.UNKNOWN]:
        raise click.exceptions.Exit(INTERRUPTED if stop.is_set() else 1)


def _read_charges(file: TextIO) -> list[Charge]:
    """Return the charges of a gateway's list, or refuse it whole.

    Raises:
        click.ClickException: when a line cannot be read, or two are of the same period.
    """
    charges: dict[tuple[int, int, date], Charge] = {}
    for number, row in enumerate(csv.DictReader(file), start=2):
        try:
            found = CHARGED_PERIOD.fullmatch(row["description"])
            if found is None:
                raise ValueError("the description is none of Vade's")  # noqa: TRY301 - told with its line
            key, company_id = UUID(row["idempotency_key"]), int(row["company_id"])
            charge = Charge(key, company_id, int(found[1]), date.fromisoformat(found[2]))
        except (KeyError, TypeError, ValueError) as error:
            raise click.ClickException(f"Line {number} cannot be read: {error}.") from error
        former = charges.setdefault(charge[1:], charge)
        if former.idempotency_key != key:
            raise click.ClickException(f"Line {number}: {former.idempotency_key} is of the same period.")
    return list(charges.values())
