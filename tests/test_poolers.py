"""Behind PgBouncer in transaction mode: each transaction may meet another session of the server."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from tests.api import registration
from tests.conftest import new_database
from tests.crowds import crowd
from tests.gateways import Ledger
from tests.poolers import POOL_SIZE, pooled
from tests.processes import JWT_SECRET_KEY, Database, api, run, until, worker
from tests.receivers import receiver
from tests.world import CALLBACK_SECRET, ENCRYPTION_KEY

CUSTOMERS = 24
COMPANIES = 40
"""As many by plain SQL, with some periods each that have ended."""

LEFT = """
SELECT count(*) FROM company_packages cp
LEFT JOIN payment_jobs j ON j.company_id = cp.company_id AND j.company_package_id = cp.id
WHERE cp.status = 1 AND cp.end_date <= (now() AT TIME ZONE 'Europe/Istanbul')::date
    AND (j.company_id IS NULL OR j.next_attempt_at <= now())
"""
SESSIONS = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
UNDELIVERED = (
    "SELECT count(*) FROM callbacks WHERE status <> 'delivered' AND created_at < now() - interval '1 s'"
)
LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"


@pytest.mark.slow
def test_all_works_behind_a_pooler_in_transaction_mode(server_url: str, tmp_path: Path) -> None:
    """Migrations, the seed, the API, two workers and callbacks, all on a few connections that they share."""
    ledger = Ledger(tmp_path / "ledger")
    with ExitStack() as running:
        direct = running.enter_context(new_database(server_url, prefix="vade_pooled"))
        url, log = running.enter_context(pooled(direct, tmp_path))
        platform = running.enter_context(receiver())
        database = Database(direct)
        settings = {
            "DATABASE_URL": url,
            "INSTANCE_DIR": str(tmp_path),
            "JWT_SECRET_KEY": JWT_SECRET_KEY,
            "ENCRYPTION_KEY": ENCRYPTION_KEY,
            "CALLBACK_URL": platform.url,
            "CALLBACK_SECRET": CALLBACK_SECRET,
            "CALLBACK_ALLOW_PRIVATE": "on",
        }

        use_all_connections(url)
        migrate_and_seed(settings)
        assert database.one(LOCKS) == 0
        seeded = [id_ for (id_,) in database.all("SELECT id FROM company_payments")]
        database.do(crowd(COMPANIES))
        collecting = settings | {
            "PAYMENT_GATEWAY": "tests.gateways:SlowGateway",
            "LEDGER_DIR": str(tmp_path / "ledger"),
            "GATEWAY_DELAY_S": "0.001",
            "BATCH_SIZE": "15",
        }
        workers = [running.enter_context(worker(url, tmp_path, **collecting)) for _ in range(2)]
        program, address = running.enter_context(api(url, tmp_path, **settings))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: be_a_customer(address, number), range(CUSTOMERS)))
        until(lambda: database.one(LEFT) == 0, within_s=120, what=workers[0].text)
        until(lambda: database.one(UNDELIVERED) == 0, within_s=120, what=workers[0].text)
        assert_collected_once(database, ledger, seeded)
        shared = database.one(SESSIONS)
        for each in workers:
            each.tell()
        assert [each.ended(within_s=15) for each in workers] == [0, 0]
        assert not [line for each in workers for line in each.records() if line["level"] == "ERROR"]
        assert '"ERROR"' not in program.text()

    assert 1 < shared <= POOL_SIZE
    assert "ERROR" not in log.read_text()


def use_all_connections(url: str) -> None:
    """Let the pooler open all that it may, which then take turns: no two transactions meet the same one."""
    with ExitStack() as open_:
        for _ in range(POOL_SIZE):
            open_.enter_context(psycopg.connect(url)).execute("SELECT 1")


def migrate_and_seed(settings: dict[str, str]) -> None:
    """Two migrate at once, and each thinks that it is alone; then some companies are made up."""
    with ThreadPoolExecutor(2) as pool:
        migrated = list(pool.map(lambda _: run("flask", "db", "upgrade", **settings), range(2)))
    for done in (*migrated, run("flask", "seed", "--companies", "30", **settings)):
        assert done.returncode == 0, done.stderr
    ran = sum(done.stderr.count("Running upgrade  -> 0001") for done in migrated)
    assert ran == 1


def be_a_customer(address: str, number: int) -> None:
    """Come, take a package, and look at it often enough for a driver to prepare what it asks."""
    api = f"{address}/api/v1"
    with requests.Session() as http:
        made = http.post(
            f"{api}/register", json=registration(email=f"store-{number}@pooled.example"), timeout=30
        )
        assert made.status_code == 201, made.text
        http.headers["Authorization"] = f"Bearer {made.json()['token']}"
        packages = http.get(f"{api}/packages", timeout=30).json()["data"]
        wanted = {"company_id": made.json()["company_id"], "package_id": packages[0]["id"]}
        assert http.post(f"{api}/company-packages", json=wanted, timeout=30).status_code == 201
        for look in range(12):
            changed = http.patch(f"{api}/companies/me", json={"name": f"Gül {look}"}, timeout=30)
            current = http.get(f"{api}/company-packages/current", timeout=30)
            assert (changed.status_code, current.status_code) == (200, 200), (changed.text, current.text)


def assert_collected_once(database: Database, ledger: Ledger, seeded: list[Any]) -> None:
    """What the gateway did is what is written, attempt by attempt."""
    rows = database.all(
        "SELECT id::text, company_id, status, amount_minor FROM company_payments WHERE id <> ALL (%s)",
        seeded,
    )
    entries = [(e.idempotency_key, e.company_id, int(e.succeeded), e.amount_minor) for e in ledger.entries()]
    assert sorted(rows) == sorted(entries)
    charged = [entry for entry in ledger.entries() if entry.succeeded]
    assert len({(entry.company_id, entry.description) for entry in charged}) == len(charged) >= 10 * COMPANIES
