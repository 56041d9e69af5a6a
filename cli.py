"""The commands: parse, call billing, print."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import click
from flask import Flask
from flask.cli import AppGroup
from rich.console import Console
from rich.table import Table
from sqlalchemy.orm import Session

from billing import callback_endpoints, simulation, tracing
from billing.charging import ChargePool
from billing.clock import Clock
from billing.collection import Collector, PassResult
from billing.deliveries import Deliverer
from billing.documents import instant_text
from config import ConfigError, parse_instant
from listener import listen_command
from models import BIGINT_MAX, PLATFORM_ID, db
from seed import seed_command
from staff import operator
from terminal import ENDING, in_sentences, money, progress_bar, told_to_end
from web.context import Vade, vade

STOP_S = 9.5
"""The longest that a command or the worker takes to end once it is told to, whatever does not answer."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell has it: 128 + SIGINT."""


def register(app: Flask) -> None:
    """Give ``flask`` its commands."""
    for group in (billing, callbacks, operator):
        app.cli.add_command(group)
    app.cli.add_command(seed_command)


def make_collector(
    app_state: Vade, *, clock: Clock | None = None, stop: threading.Event | None = None
) -> Collector:
    """Return a collector as the settings want it."""
    settings = app_state.settings
    return Collector(
        engine=db.engine,
        clock=clock or app_state.clock,
        pool=ChargePool(
            app_state.gateway, threads=settings.gateway_threads, timeout_s=settings.gateway_timeout_s
        ),
        zone=settings.billing_timezone,
        batch_size=settings.batch_size,
        lease=timedelta(seconds=settings.lease_s),
        by_platform=app_state.outbox.by_platform,
        stop=stop or threading.Event(),
    )


def make_deliverer(app_state: Vade, *, stop: threading.Event | None = None) -> Deliverer:
    """Return a deliverer as the settings want it."""
    return Deliverer(
        engine=db.engine,
        platform=app_state.platform,
        keyring=app_state.keyring,
        policy=app_state.address_policy,
        clock=app_state.clock,
        per_endpoint=app_state.settings.callback_concurrency,
        secret_overlap=app_state.secret_overlap,
        stop=stop or threading.Event(),
    )


class Instant(click.ParamType[datetime]):
    """An RFC 3339 instant."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the instant in UTC."""
        if isinstance(value, datetime):
            return value
        try:
            return parse_instant(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


billing = AppGroup("billing", help="Collect what is due, or watch how it would go.")
callbacks = AppGroup("callbacks", help="Deliver callbacks, receive them, and care for their endpoints.")


@billing.command("run")
@click.option("--as-of", type=Instant(), help="Hold the business clock at this instant (RFC 3339).")
@in_sentences
def run_command(as_of: datetime | None) -> None:
    """Collect everything that is due in one whole pass."""
    clock = Clock(as_of) if as_of is not None else vade().clock
    if as_of is not None and vade().settings.production:
        with Session(db.engine) as session:
            if as_of > Clock().read(session).real:
                raise ConfigError(
                    "--as-of later than now is refused in production: no one is charged for days to come."
                )
    with stopped_by_signals() as stop, tracing.traced(tracing.new_id("command-")):
        collector = make_collector(vade(), clock=clock, stop=stop)
        with progress_bar("Collecting", total=None) as progress:
            task = progress.task_ids[0]

            def show(result: PassResult) -> None:
                progress.update(task, completed=result.attempts + result.free, total=result.queued or None)

            result = PassResult()
            try:
                collector.run_pass(result, on_batch=show)
            finally:
                # Told also where the pass is broken off: what was charged stays charged.
                progress.stop()
                click.echo(
                    f"queued {result.queued}, charged {result.charged}, declined {result.declined}, "
                    f"passive {result.passive}, failed {result.failed}"
                )
    if stop.is_set():
        raise click.exceptions.Exit(INTERRUPTED)


@billing.command("simulate")
@click.option("--days", type=click.IntRange(1, 36_500), required=True, help="How many days to go forward.")
@in_sentences
def simulate_command(days: int) -> None:
    """Move business time forward day by day and really collect.

    Goes on from where the last simulation stopped, else from the present. Ctrl-C stops it after the day's
    batch; the next call goes on from there.
    """
    if vade().settings.production:
        raise ConfigError(
            "flask billing simulate is refused in production: no one is charged for days to come."
        )
    finished: list[simulation.Day] = []
    with stopped_by_signals() as stop, tracing.traced(tracing.new_id("command-")):
        collector = make_collector(vade(), stop=stop)
        with progress_bar("Simulating", total=days) as progress:
            try:
                for day in simulation.run(collector, days=days):
                    finished.append(day)
                    progress.update(progress.task_ids[0], advance=1, description=day.date.isoformat())
            finally:
                progress.stop()
                Console(width=None if sys.stdout.isatty() else 120).print(_days_table(finished))
    if stop.is_set():
        completed = sum(day.completed for day in finished)
        click.echo(f"Interrupted after {completed} of {days} days; the next call goes on from there.")
        raise click.exceptions.Exit(INTERRUPTED)


@callbacks.command("deliver")
@in_sentences
def deliver_command() -> None:
    """Send every callback that is due, once."""
    with stopped_by_signals() as stop, tracing.traced(tracing.new_id("command-")):
        result = make_deliverer(vade(), stop=stop).run_pass()
    click.echo(f"delivered {result.delivered}, failed {result.failed}, exhausted {result.exhausted}")
    if stop.is_set():
        raise click.exceptions.Exit(INTERRUPTED)


@callbacks.command("rotate")
@in_sentences
def rotate_command() -> None:
    """Give the platform's endpoint a new secret and print it, once; the present one signs on for a day."""
    with Session(db.engine) as session:
        now = Clock().read(session).real
        put_platform(session, now=now)
        secret, former_expires_at = callback_endpoints.rotate_secret(
            session, PLATFORM_ID, vade().keyring, now=now, overlap=vade().secret_overlap
        )
        session.commit()
    click.echo(secret)
    click.echo(f"The former secret signs until {instant_text(former_expires_at)}.", err=True)


@callbacks.command("enable")
@click.option("--company", type=click.IntRange(1, BIGINT_MAX), help="A company's id; else the platform's.")
@in_sentences
def enable_command(company: int | None) -> None:
    """Enable an endpoint that was disabled: a company's, or else the platform's."""
    with Session(db.engine) as session:
        if company is None:
            put_platform(session, now=Clock().read(session).real)
        disabled = callback_endpoints.enable(session, company or PLATFORM_ID)
        session.commit()
    click.echo("The endpoint is enabled." if disabled else "The endpoint was enabled already.")


def put_platform(session: Session, *, now: datetime) -> None:
    """Take over the platform's endpoint from the settings.

    Raises:
        ConfigError: when they name none.
    """
    platform = vade().platform
    if platform is None:
        raise ConfigError("CALLBACK_URL is not set: the platform has no callback endpoint.")
    callback_endpoints.put_platform(session, platform, vade().keyring, now=now, overlap=vade().secret_overlap)


callbacks.add_command(listen_command)


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Give an event that SIGINT and SIGTERM set, so that work ends in order instead of in the middle."""
    stop = threading.Event()
    deadline = threading.Timer(STOP_S, os._exit, [INTERRUPTED])
    deadline.daemon = True

    def hear(_: int) -> None:
        # Told twice is told once; and setting an event in the middle of setting it would block for ever.
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        stop.set()
        # Whatever does not answer: what is leased is taken up again when the leases run out.
        deadline.start()

    with told_to_end(hear):
        try:
            yield stop
        finally:
            deadline.cancel()


def _days_table(days: list[simulation.Day]) -> Table:
    """Return a row per day and their sum."""
    table = Table(show_footer=True)
    results = [day.result for day in days]
    collected = sum((result.charged_minor for result in results), PassResult().charged_minor)
    columns: list[tuple[str, Any]] = [
        ("queued", lambda result: result.queued),
        ("charged", lambda result: result.charged),
        ("declined", lambda result: result.declined),
        ("passive", lambda result: result.passive),
        ("failed", lambda result: result.failed),
    ]
    table.add_column("date", footer=f"{len(days)} days")
    for name, value in columns:
        table.add_column(name, justify="right", footer=f"{sum(map(value, results)):,}")
    # Sums are never cut, however narrow the terminal.
    table.add_column("money", justify="right", footer=money(collected), overflow="fold", min_width=18)
    for day in days:
        row = [f"{value(day.result):,}" for _, value in columns]
        table.add_row(day.date.isoformat(), *row, money(day.result.charged_minor))
    return table
