"""A migration that only adds is applied while workers collect and clients come: no one notices."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from chaos.failover import Witness
from config import PROJECT_DIR
from tests.crowds import crowd
from tests.gateways import Ledger
from tests.processes import Database, api, run, until, worker
from tests.record_queries import newest_revision

COMPANIES = 60

MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "next", "{newest}", None, None


def upgrade() -> None:
    for table in ("companies", "company_packages", "company_payments", "payment_jobs", "callbacks"):
        op.add_column(table, sa.Column("added", sa.Integer(), server_default="0", nullable=False))
    op.create_table("added", sa.Column("id", sa.BigInteger(), primary_key=True))
    with op.get_context().autocommit_block():
        op.create_index("added_idx", "company_payments", ["added"], postgresql_concurrently=True)
"""

WRITTEN = "SELECT id::text, company_id, amount_minor FROM company_payments"


@pytest.mark.slow
def test_workers_and_clients_go_on_while_a_migration_that_adds_is_applied(
    database_url: str, tmp_path: Path
) -> None:
    migrations = tmp_path / "migrations"
    shutil.copytree(PROJECT_DIR / "migrations", migrations)
    (migrations / "versions" / "next.py").write_text(MIGRATION.format(newest=newest_revision()))
    settings = {
        "PAYMENT_GATEWAY": "tests.gateways:SlowGateway",
        "LEDGER_DIR": str(tmp_path / "ledger"),
        "GATEWAY_DELAY_S": "0.1",
        "GATEWAY_THREADS": "4",
        "BATCH_SIZE": "10",
    }
    ledger, database, witness = Ledger(tmp_path / "ledger"), Database(database_url), Witness()
    database.do(crowd(COMPANIES))
    with ExitStack() as running:
        workers = [running.enter_context(worker(database_url, tmp_path, **settings)) for _ in range(2)]
        program, address = running.enter_context(api(database_url, tmp_path))
        clients = running.enter_context(ThreadPoolExecutor(2))
        running.callback(witness.over.set)
        for name in ("one", "other"):
            clients.submit(witness.be_a_client, address, name)
        until(lambda: len(ledger.keys()) > 20 and witness.packages, within_s=60, what=workers[0].text)

        migrated = run(
            "flask",
            "db",
            "upgrade",
            "--directory",
            str(migrations),
            DATABASE_URL=database_url,
            INSTANCE_DIR=str(tmp_path),
        )
        collected, came = len(ledger.keys()), len(witness.packages)

        assert migrated.returncode == 0, migrated.stderr
        assert database.one("SELECT indisvalid FROM pg_index WHERE indexrelid = 'added_idx'::regclass")
        # All may have been collected by now; what comes later is, too.
        database.do(crowd(COMPANIES // 10))
        until(lambda: len(ledger.keys()) > collected, within_s=60, what=workers[0].text)
        until(lambda: len(witness.packages) > came, within_s=60, what=program.text)
        witness.over.set()
        until(lambda: database.one("SELECT count(*) FROM payment_jobs") == 0, within_s=90)
        for each in workers:
            each.tell()
        assert [each.ended(within_s=15) for each in workers] == [0, 0]

    logged = [record for each in (*workers, program) for record in each.records()]
    assert not [record for record in logged if record["level"] in {"ERROR", "CRITICAL"}]
    charged = [(entry.idempotency_key, entry.company_id, entry.amount_minor) for entry in ledger.entries()]
    assert sorted(database.all(WRITTEN)) == sorted(charged)
    assert len({(entry.company_id, entry.description) for entry in ledger.entries()}) == len(charged)
    assert witness.packages <= {id_ for (id_,) in database.all("SELECT company_id FROM company_packages")}
