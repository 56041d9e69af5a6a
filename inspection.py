"""`flask billing check`: whether the books keep the rules (DESIGN.md §4)."""

import json
from datetime import timedelta

import click
from flask.cli import with_appcontext
from rich.console import Console
from rich.table import Table

from billing.books import CHECKS, GRACE, Auditor, Example, Report
from billing.documents import instant_text
from models import db
from terminal import in_sentences, progress_bar, told_to_end
from web.context import vade

SOMETHING_IS_OFF = 1
"""Exit status where a check found something."""

SUMS = ("companies", "company_packages", "periods", "attempts", "charges", "jobs")
WORDS = {
    "company_id": "company",
    "company_package_id": "package",
    "period_start": "from",
    "period_end": "to",
    "beat_at": "last heard of at",
}
WIDTH = 160
"""Of a table that is not printed to a terminal."""


@click.command("check")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
@click.option(
    "--grace-s",
    type=click.IntRange(0, 31_536_000),
    default=int(GRACE.total_seconds()),
    show_default=True,
    help="How long what is due may wait before it counts as forgotten, in seconds.",
)
@click.option("--skip", multiple=True, type=click.Choice(list(CHECKS)), help="Leave a check out; repeatable.")
@with_appcontext
@in_sentences
def check_command(as_json: bool, grace_s: int, skip: tuple[str, ...]) -> None:
    """Check whether the books keep the rules; change nothing.

    Safe beside workers and the API. The exit status is 1 where something is off.
    """
    auditor = Auditor(
        engine=db.engine,
        clock=vade().clock,
        zone=vade().zone,
        grace=timedelta(seconds=grace_s),
        worker_expected=vade().settings.production,
        skip=skip,
    )
    signals: list[int] = []
    with told_to_end(signals.append):
        report = _check(auditor, signals)
    if signals:
        checked = report.sums["companies"]
        click.echo(f"Interrupted after {checked:,} companies; nothing was changed.", err=True)
        raise click.exceptions.Exit(128 + signals[0])
    if as_json:
        click.echo(json.dumps(_document(report)))
    else:
        _print(report)
    if report.findings:
        raise click.exceptions.Exit(SOMETHING_IS_OFF)


def _check(auditor: Auditor, signals: list[int]) -> Report:
    with progress_bar("Checking, by company id", total=auditor.last_id()) as progress:

        def show(report: Report) -> None:
            progress.update(progress.task_ids[0], completed=report.last_id)

        return auditor.check(on_chunk=show, stopped=lambda: bool(signals))


def _document(report: Report) -> dict[str, object]:
    return {
        "checked_at": instant_text(report.checked_at),
        **{name: report.sums[name] for name in SUMS},
        "seconds": round(report.seconds, 3),
        "findings": [
            {
                "check": finding.check,
                "title": finding.title,
                "number": finding.number,
                "examples": finding.examples,
            }
            for finding in report.findings
        ],
    }


def _print(report: Report) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    if report.findings:
        found = Table("check", "what is wrong", title="Something is off")
        found.add_column("number", justify="right")
        found.add_column("for example", overflow="fold")
        for finding in report.findings:
            examples = "\n".join(map(_words, finding.examples))
            found.add_row(finding.check, finding.title, f"{finding.number:,}", examples)
        console.print(found)
    checked = Table("checked", title=None if report.findings else "All is well")
    checked.add_column(f"in {report.seconds:.1f} s", justify="right")
    for name in SUMS:
        checked.add_row(name.replace("_", " "), f"{report.sums[name]:,}")
    console.print(checked)


def _words(example: Example) -> str:
    """Return an example in a line: ``company 17, package 20, from 2026-02-10``."""
    return ", ".join(f"{WORDS.get(key, key)} {value}" for key, value in example.items())
