"""`flask seed`: packages and fake companies, for development and demonstrations (DESIGN.md §4)."""

import secrets
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date
from random import Random
from typing import TYPE_CHECKING, Any, cast
from zoneinfo import ZoneInfo

import click
import psycopg
from flask import current_app
from flask.cli import with_appcontext
from psycopg import sql
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from werkzeug.security import generate_password_hash

from billing.companies import email_key
from billing.periods import PackagePeriod, business_date
from billing.transactions import first_line
from config import ConfigError
from fake_companies import FakeCompany, FakeStory, Kind, Names, World, draw_names
from fake_payments import CATALOGUE, CURRENCY, FakeCompanyPackage, FakePayment, OfferedPackage
from models import Status, db
from terminal import progress_bar, told_to_end

if TYPE_CHECKING:
    from web.context import Vade

DEMO_EMAIL = "demo@vade.example"
DEMO_PASSWORD = "vade-demo-2026"  # noqa: S105 - public: the README and `make run` show it

FEW_COMPANIES = 26
"""What a first run without a number makes: the demo company and 25 others."""

MOST_COMPANIES = 5_000_000
"""As many as the design expects (DESIGN.md, "Tables")."""

COMPANIES_PER_TRANSACTION = 2000

WORTH_ANALYZING = 1000
"""After this many new companies the planner's statistics are made anew at once."""

SEED_LOCK = 0x7661646503
"""Key of the advisory lock under which one process at a time adds companies."""

OUTCOMES: dict[int, str] = {Status.ACTIVE: "payments charged", Status.PASSIVE: "payments declined"}

_ADD_PACKAGE = """
INSERT INTO packages (name, period, price_minor, currency) SELECT w.name, w.period, w.price_minor, w.currency
FROM (VALUES (%s, %s, %s::bigint, %s)) AS w(name, period, price_minor, currency)
WHERE NOT EXISTS (
    SELECT FROM packages p WHERE p.name = w.name AND p.period = w.period AND p.currency = w.currency)
"""


@click.command("seed")
@click.option(
    "--companies",
    type=click.IntRange(1, MOST_COMPANIES),
    help="Add this many companies, always. Without it a second run adds nothing.",
)
@click.option("--random-seed", type=int, help="The same number makes the same companies on the same day.")
@with_appcontext
def seed_command(companies: int | None, random_seed: int | None) -> None:
    """Add packages and fake companies, most with a package and many with payments.

    The first of them is the demo company, where it is absent. All share one password. Refused in production.
    """
    vade: Vade = current_app.extensions["vade"]
    if vade.settings.production:
        raise ConfigError("flask seed is refused in production: what it adds is invented.")
    started_s = time.monotonic()
    wanted = FEW_COMPANIES if companies is None else companies
    added: Counter[str] = Counter()
    random_seed = secrets.randbits(32) if random_seed is None else random_seed
    signals: list[int] = []
    with told_to_end(signals.append):
        try:
            with closing(db.engine.raw_connection()) as raw:
                with Session(db.engine) as session:
                    today = business_date(vade.clock.read(session).business, vade.zone)
                connection = cast(psycopg.Connection[Any], raw.driver_connection)
                seeder = Seeder(connection, random_seed, today, vade.zone, added)
                seeder.run(wanted, again=companies is not None, signals=signals)
        except (psycopg.Error, DBAPIError) as error:
            reason = f"The database fails: {first_line(error)}"
            raise click.ClickException(f"{reason}; {added['companies']} companies were added.") from error
    if added:
        Console().print(_table(added, random_seed, time.monotonic() - started_s))
    if signals:
        click.echo(f"Interrupted: {added['companies']} of {wanted} companies were added.")
        raise click.exceptions.Exit(128 + signals[0])
    if not added:
        click.echo("Nothing was added: the demo company is here. For N more: flask seed --companies N")
    click.echo(f"Log in as {DEMO_EMAIL} with the password {DEMO_PASSWORD}, which all seeded companies have.")


@dataclass(slots=True)
class Seeder:
    """Adds companies and counts what it committed.

    A transaction draws from a generator of its own, made of the random seed and the last company's id: a
    second run with the same seed goes on with other companies instead of making the same ones twice.
    """

    connection: psycopg.Connection[Any]
    random_seed: int
    today: date
    zone: ZoneInfo
    added: Counter[str]
    names: Names = field(init=False)
    password_hash: str = field(init=False)

    def __post_init__(self) -> None:
        self.names = draw_names(self.random_seed)
        # Slow on purpose, so that all share one.
        self.password_hash = generate_password_hash(DEMO_PASSWORD)

    def run(self, wanted: int, *, again: bool, signals: Sequence[int]) -> None:
        """Add companies until all that are wanted are there or a signal was heard.

        Unless ``again``, a database that has the demo company stays as it is.
        """
        with progress_bar("Seeding", total=wanted) as progress:
            while (missing := wanted - self.added["companies"]) and not signals:
                if not self._add(min(missing, COMPANIES_PER_TRANSACTION), again=again):
                    return
                progress.update(progress.task_ids[0], completed=self.added["companies"])
        if self.added["companies"] >= WORTH_ANALYZING and not signals:
            with self.connection.transaction():
                self.connection.execute("ANALYZE companies, logins, company_packages, company_payments")

    def _add(self, size: int, *, again: bool) -> bool:
        """Add companies in one transaction, first the demo company if absent; return whether any were."""
        with self.connection.transaction(), self.connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [SEED_LOCK])
            cursor.execute("SELECT FROM logins WHERE email = %s", [DEMO_EMAIL])
            with_demo = cursor.fetchone() is None
            if not with_demo and not again:
                return False
            packages_added, packages = _offer_packages(cursor)
            ((last_id,),) = cursor.execute("SELECT coalesce(max(id), 0) FROM companies").fetchall()
            ids = _new_ids(cursor, "companies", size)
            random = Random(f"{self.random_seed}/{last_id}")  # noqa: S311 - it keeps no secret
            world = World(random, self.names, packages, self.today, self.zone)
            stories = [world.demo_company(ids.pop(0), email=DEMO_EMAIL)] if with_demo else []
            stories += world.companies(ids, first_number=last_id + 1)
            self._write(cursor, stories)
        # An interrupted transaction counts nothing.
        self.added.update(packages=packages_added, companies=len(stories))
        self.added.update(story.kind for story in stories)
        self.added.update(OUTCOMES[row.status] for story in stories for row in story.payments)
        return True

    def _write(self, cursor: psycopg.Cursor[Any], stories: Sequence[FakeStory]) -> None:
        companies = [story.company for story in stories]
        taken = [(s.company.id, s.company_package, s.payments) for s in stories if s.company_package]
        ids = _new_ids(cursor, "company_packages", len(taken))
        _copy(cursor, "companies", FakeCompany._fields, companies)
        _copy(
            cursor,
            "logins",
            ("email", "company_id", "password_hash"),
            ((email_key(company.email), company.id, self.password_hash) for company in companies),
        )
        _copy(
            cursor,
            "company_packages",
            ("company_id", "id", *FakeCompanyPackage._fields),
            ((company_id, id_, *row) for id_, (company_id, row, _) in zip(ids, taken, strict=True)),
        )
        _copy(
            cursor,
            "company_payments",
            ("company_id", "company_package_id", *FakePayment._fields),
            (
                (company_id, id_, *row)
                for id_, (company_id, _, payments) in zip(ids, taken, strict=True)
                for row in payments
            ),
        )


def _offer_packages(cursor: psycopg.Cursor[Any]) -> tuple[int, list[OfferedPackage]]:
    """Add what the catalogue lacks; return how many that were, and the packages to take."""
    cursor.executemany(_ADD_PACKAGE, [(*package, CURRENCY) for package in CATALOGUE])
    added = cursor.rowcount
    cursor.execute(
        "SELECT status, id, name, period, price_minor, currency FROM packages "
        "WHERE name = ANY(%s) AND currency = %s ORDER BY id",
        [[name for name, _, _ in CATALOGUE], CURRENCY],
    )
    packages = [
        (status, OfferedPackage(id_, name, PackagePeriod(period), price_minor, currency))
        for status, id_, name, period, price_minor, currency in cursor
    ]
    # Where all were withdrawn, fake companies took theirs before that.
    return added, [p for status, p in packages if status == Status.ACTIVE] or [p for _, p in packages]


def _new_ids(cursor: psycopg.Cursor[Any], table: str, number: int) -> list[int]:
    """Return ids that no one else will get, in ascending order."""
    cursor.execute(
        "SELECT nextval(pg_get_serial_sequence(%s, 'id')) FROM generate_series(1, %s)", [table, number]
    )
    return sorted(id_ for (id_,) in cursor)


def _copy(
    cursor: psycopg.Cursor[Any], table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), names)) as copy:
        for row in rows:
            copy.write_row(row)


def _table(added: Counter[str], random_seed: int, seconds: float) -> Table:
    table = Table("Added", show_header=True)
    table.add_column(f"in {seconds:.1f} s", justify="right")
    for label in ("packages", "companies", *Kind, *OUTCOMES.values()):
        table.add_row(f"  {label}" if label in set(Kind) else label, f"{added[label]:,}")
    table.add_row("random seed", str(random_seed))
    return table
