"""Backup and restore, and the charges made in between: nothing of them is lost or taken twice."""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskCliRunner
from sqlalchemy import text

from billing.gateways import GatewayUnavailable
from config import PROJECT_DIR
from models import db
from tests.conftest import new_database, settings_for
from tests.processes import environment
from tests.world import LedgerGateway, World, instant
from wsgi import create_app

AT = instant("2026-02-10")
LATER = instant("2026-03-10")


def make(target: str, file: Path, url: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["make", "--no-print-directory", target, f"FILE={file}"],
        cwd=PROJECT_DIR,
        env=environment(DATABASE_URL=url),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def restored(server_url: str, tmp_path: Path) -> Iterator[Callable[[Path], World]]:
    """Restores a backup into a new database."""
    with new_database(server_url, prefix="vade_restored", template="template0") as url:
        app = create_app(settings_for(url, tmp_path))
        context = app.app_context()

        def restore(file: Path) -> World:
            done = make("restore", file, url)
            assert done.returncode == 0, done.stderr
            context.push()
            return World(app)

        yield restore
        db.session.remove()
        db.engine.dispose()
        context.pop()


def statement(gateway: LedgerGateway, path: Path) -> Path:
    """The gateway's list of charges, with a column more than is needed."""
    lines = ["idempotency_key,amount,company_id,description"]
    lines += [
        f'{r.idempotency_key},{r.amount_minor},{r.company_id},"{r.description}"' for r in gateway.charged
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def adopt(world: World, file: Path) -> Any:
    runner: FlaskCliRunner = world.app.test_cli_runner()
    return runner.invoke(args=["billing", "adopt", str(file)])


def money(world: World) -> list[tuple[Any, ...]]:
    query = "SELECT id, company_id, status, period_start, amount_minor FROM company_payments ORDER BY id"
    return [tuple(row) for row in world.session.execute(text(query))]


def test_a_backup_is_restored_to_the_row(
    committed: World, database_url: str, restored: Callable[[Path], World], tmp_path: Path
) -> None:
    for _ in range(3):
        committed.customer(registered_at=instant("2026-01-10"))
    committed.collect(LedgerGateway(False), at=AT)
    tables = committed.session.scalars(
        text("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename")
    ).all()
    contents = {name: rows(committed, name) for name in tables}

    done = make("backup", tmp_path / "vade.dump", database_url)
    world = restored(tmp_path / "vade.dump")

    assert done.returncode == 0, done.stderr
    assert {name: rows(world, name) for name in tables} == contents
    assert contents["company_payments"]
    with pytest.raises(Exception, match="only ever added"):
        world.session.execute(text("DELETE FROM company_payments"))


def rows(world: World, table: str) -> list[str]:
    return sorted(world.session.scalars(text(f"SELECT t::text FROM {table} t")))


def test_a_database_that_has_something_is_not_restored_into(
    committed: World, database_url: str, tmp_path: Path
) -> None:
    committed.customer()
    make("backup", tmp_path / "vade.dump", database_url)
    committed.customer()
    before = rows(committed, "companies")

    done = make("restore", tmp_path / "vade.dump", database_url)

    committed.session.rollback()
    assert done.returncode != 0
    assert "already exists" in done.stderr
    assert rows(committed, "companies") == before


def test_charges_made_after_the_backup_are_recorded_once_and_not_made_again(
    committed: World, database_url: str, restored: Callable[[Path], World], tmp_path: Path
) -> None:
    for _ in range(4):
        committed.customer(registered_at=instant("2026-01-10"))
    gateway = LedgerGateway(True, False, default=True)
    make("backup", tmp_path / "vade.dump", database_url)
    for at in (AT, instant("2026-02-11"), LATER):
        committed.collect(gateway, at=at)
    taken = {request.idempotency_key for request in gateway.charged}
    assert len(taken) == 8, "two periods of each"
    list_ = statement(gateway, tmp_path / "charges.csv")

    world = restored(tmp_path / "vade.dump")
    world.travel(LATER)
    world.app.extensions["vade"] = replace(world.vade, gateway=gateway)
    first = adopt(world, list_)
    again = adopt(world, list_)
    world.collect(gateway, at=LATER)

    assert (first.exit_code, first.stdout) == (0, "recorded 8, waiting 0, unknown 0\n"), first.stderr
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    assert {request.idempotency_key for request in gateway.charged} == taken, "nobody paid again"
    assert {str(id_) for id_, _, status, *_ in money(world) if status} == taken


def test_a_charge_that_the_gateway_does_not_confirm_waits_under_its_key(
    committed: World, tmp_path: Path
) -> None:
    company = committed.customer(registered_at=instant("2026-01-10"))
    committed.travel(AT)
    package = committed.company_package(company)
    key = "3f2b1c5e-0000-4000-8000-000000000001"
    list_ = tmp_path / "charges.csv"
    list_.write_text(
        "idempotency_key,company_id,description\n"
        f'{key},{company.id},"Package {package.id}, 2026-01-10 to 2026-02-10"\n'
    )
    gateway = LedgerGateway(GatewayUnavailable, True)
    committed.app.extensions["vade"] = replace(committed.vade, gateway=gateway)

    first = adopt(committed, list_)
    second = adopt(committed, list_)

    assert (first.exit_code, first.stdout) == (1, "recorded 0, waiting 1, unknown 0\n")
    assert "Adopt the same file again, before any worker starts." in first.stderr
    assert (second.exit_code, second.stdout) == (0, "recorded 1, waiting 0, unknown 0\n")
    assert [request.idempotency_key for request in gateway.requests] == [key, key]


def test_a_charge_that_no_period_waits_for_is_named(committed: World, tmp_path: Path) -> None:
    company = committed.customer(registered_at=instant("2026-01-10"))
    package = committed.company_package(company)
    key = "3f2b1c5e-0000-4000-8000-000000000001"
    list_ = tmp_path / "charges.csv"
    list_.write_text(
        "idempotency_key,company_id,description\n"
        f'{key},{company.id},"Package {package.id}, 2025-12-10 to 2026-01-10"\n'
    )

    told = adopt(committed, list_)

    assert (told.exit_code, told.stdout) == (1, "recorded 0, waiting 0, unknown 1\n")
    assert f"Look at {key}" in told.stderr


def test_nothing_is_adopted_while_a_worker_runs(committed: World, tmp_path: Path) -> None:
    committed.session.execute(text("INSERT INTO worker_heartbeats VALUES ('w', now(), now())"))
    committed.session.commit()
    list_ = tmp_path / "charges.csv"
    list_.write_text("idempotency_key,company_id,description\n")

    told = adopt(committed, list_)

    assert told.exit_code == 1
    assert told.stderr == "Error: A worker is running: stop it first, or wait until it is stale.\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('nokey,1,"Package 1, 2026-01-10 to 2026-02-10"', "Line 3 cannot be read"),
        ('3f2b1c5e-0000-4000-8000-000000000001,x,"Package 1, 2026-01-10 to 2026-02-10"', "Line 3"),
        ("3f2b1c5e-0000-4000-8000-000000000001,1,Something else", "the description is none of Vade's"),
        ("3f2b1c5e-0000-4000-8000-000000000001,1", "Line 3 cannot be read"),
        ('3f2b1c5e-0000-4000-8000-000000000001,1,"Package 1, 2026-02-31 to 2026-02-10"', "Line 3"),
        (
            '3f2b1c5e-0000-4000-8000-000000000001,1,"Package 7, 2026-01-10 to 2026-02-10"',
            "of the same period",
        ),
    ],
)
def test_a_list_that_cannot_be_read_is_refused_whole(
    committed: World, tmp_path: Path, line: str, reason: str
) -> None:
    committed.customer(registered_at=instant("2026-01-10"))
    committed.travel(AT)
    sound = '3f2b1c5e-0000-4000-8000-000000000009,1,"Package 7, 2026-01-10 to 2026-02-10"'
    list_ = tmp_path / "charges.csv"
    list_.write_text(f"idempotency_key,company_id,description\n{sound}\n{line}\n")

    told = adopt(committed, list_)

    assert told.exit_code == 1
    assert reason in told.stderr
    assert committed.jobs() == []
