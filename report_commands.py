"""`flask report`: what the reports of the API say, at a terminal or for a spreadsheet."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime

import click
from flask import Flask
from flask.cli import AppGroup
from rich.console import Console, RenderableType
from sqlalchemy.orm import Session

from billing import metrics, reports
from billing.errors import InvalidFieldError
from billing.reports import CurrencyFigures, DayFigures
from metric_tables import metric_tables
from models import MAXIMUM_ATTEMPTS, db
from report_tables import day_tables, days_table
from terminal import in_sentences
from web.context import vade

WIDTH = 120
"""Of a table that is not printed to a terminal."""

TOTALS = ("attempts", "charged", "declined", "recovered", "made_passive", "outages")
COLUMNS = (
    "date",
    "currency",
    *(f"{name}{unit}" for name in TOTALS for unit in ("", "_minor")),
    *(
        f"{name}_{attempt}{unit}"
        for attempt in range(1, MAXIMUM_ATTEMPTS + 1)
        for name in ("charged", "declined")
        for unit in ("", "_minor")
    ),
    "packages_taken",
    "new_companies",
)
"""Of the CSV; amounts are in minor units."""

report = AppGroup("report", help="Reports: what came in, and how the business does.")


def register(app: Flask) -> None:
    """Give ``flask`` these commands."""
    app.cli.add_command(report)


@report.command("daily")
@click.option("--date", "first", type=click.DateTime(["%Y-%m-%d"]), help="The day; default: yesterday.")
@click.option("--to", "last", type=click.DateTime(["%Y-%m-%d"]), help="The last of several days, included.")
@click.option(
    "--format", "format_", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True
)
@in_sentences
def daily_command(first: datetime | None, last: datetime | None, format_: str) -> None:
    """Tell what came in on a business day, or on each of several."""
    with Session(db.engine) as session:
        now = vade().clock.read(session).business
        try:
            days = reports.read_report(session, _day(first), _day(last), now=now, zone=vade().zone)
        except InvalidFieldError as error:
            raise click.UsageError(f"--to: {error.errors[0]['detail']}") from error
    if format_ == "json":
        click.echo(json.dumps({"data": [reports.day_document(day) for day in days]}, ensure_ascii=False))
    elif format_ == "csv":
        click.echo(_csv(days), nl=False)
    else:
        _print(
            lambda width: (
                day_tables(days[0], width=width) if len(days) == 1 else [days_table(days, width=width)]
            )
        )


@report.command("metrics")
@click.option("--format", "format_", type=click.Choice(["table", "json"]), default="table", show_default=True)
@in_sentences
def metrics_command(format_: str) -> None:
    """Tell how the business does: recurring revenue, churn, recovery, and what falls due."""
    waiting = Console(stderr=True).status("Counting open packages ...")
    with waiting, Session(db.engine) as session:
        found = metrics.count(session, vade().clock, vade().zone)
        session.commit()
    if format_ == "json":
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        _print(lambda width: metric_tables(found, width=width))


def _print(tables: Callable[[int], Iterable[RenderableType]]) -> None:
    """Print what ``tables`` makes for a width."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for table in tables(console.width):
        console.print(table)


def _day(instant: datetime | None) -> date | None:
    return None if instant is None else instant.date()


def _csv(days: Sequence[DayFigures]) -> str:
    """Return a line per day and currency, and one per day without a currency for what has none (RFC 4180).

    So each column adds up.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval=0)
    writer.writeheader()
    for day in days:
        writer.writerow({"date": day.date, "currency": "", "new_companies": day.new_companies})
        for figures in day.currencies:
            writer.writerow({"date": day.date, "currency": figures.currency} | _columns(figures))
    return text.getvalue()


def _columns(figures: CurrencyFigures) -> dict[str, int]:
    totals = {name: getattr(figures, name) for name in TOTALS}
    for attempt in range(1, MAXIMUM_ATTEMPTS + 1):
        totals[f"charged_{attempt}"] = figures.charged_by_attempt[attempt]
        totals[f"declined_{attempt}"] = figures.declined_by_attempt[attempt]
    numbers = {name: total.number for name, total in totals.items()}
    amounts = {f"{name}_minor": total.amount_minor for name, total in totals.items()}
    return numbers | amounts | {"packages_taken": figures.packages_taken}
