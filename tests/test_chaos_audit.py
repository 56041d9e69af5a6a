"""The audit of `make chaos` finds nothing in books that are right, and each corruption on its line."""

import ast
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from standardwebhooks import Webhook

import chaos
from billing.clock import Clock
from billing.gateways import ChargeRequest, ChargeResult
from chaos import books
from chaos.audit import LINES, audit
from chaos.crowds import Crowd, age_retries, make_tables
from chaos.gateway import Ledger
from models import db
from tests.api import registration
from tests.conftest import new_database, settings_for
from tests.world import CALLBACK_SECRET, PASSWORD_HASH, World
from wsgi import create_app

SEED = "5"
COMPANIES = 60
ENDPOINT = "http://127.0.0.1:1024"
JSON = dict[str, Any]


class LedgerOfTheRun:
    """The run's gateway without the wire, which keeps its books all the same."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def charge(self, request: ChargeRequest) -> ChargeResult:
        asked = {
            "company_id": request.company_id,
            "amount_minor": request.amount_minor,
            "currency": request.currency,
            "description": request.description,
        }
        self._ledger.ask(request.idempotency_key, asked, "worker-1")
        entry = self._ledger.enter(request.idempotency_key, asked)
        return ChargeResult(entry["succeeded"], entry["reference"], None if entry["succeeded"] else "no")


@dataclass
class Clean:
    """Where books that are right lie: a database, and lines of JSON."""

    url: str
    ledger: list[JSON]
    received: list[JSON]
    acknowledged: list[JSON]
    now: datetime


@pytest.fixture(scope="module")
def clean(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clean]:
    """A crowd collected for three days, two stores that came by the API, and every message received."""
    directory = tmp_path_factory.mktemp("chaos")
    name = psycopg.conninfo.conninfo_to_dict(template)["dbname"]
    with new_database(server_url, prefix="vade_chaos", template=str(name)) as url:
        app = create_app(settings_for(url, directory))
        app.extensions["vade"] = replace(app.extensions["vade"], clock=Clock())
        with app.app_context():
            world = World(app)
            acknowledged = live(world, url, directory / "ledger")
            now = world.now
            db.session.remove()
            db.engine.dispose()
        ledger = [json.loads(line) for line in (directory / "ledger").read_text().splitlines()]
        yield Clean(url, ledger, deliver(url, acknowledged), acknowledged, now)


def live(world: World, url: str, ledger: Path) -> list[JSON]:
    """Let things happen, and return what the API acknowledged."""
    with psycopg.connect(url, autocommit=True) as connection:
        make_tables(connection)
        (today,) = connection.execute("SELECT (now() AT TIME ZONE 'Europe/Istanbul')::date").fetchone() or ()
        wanting = Crowd(SEED, password_hash=PASSWORD_HASH).add(connection, 1, COMPANIES, today)
        acknowledged = [fact for n in range(2) for fact in registered(world, n)]
        acknowledged += [listening(world, company_id) for company_id in wanting]
        gateway = LedgerOfTheRun(Ledger(ledger, SEED))
        for day in range(3):
            assert day == 0 or age_retries(connection, share=1, within_s=0), "some were declined"
            collector = world.collector(gateway, clock=Clock())
            collector.run_pass()
            collector.pool.close()
    return acknowledged


def registered(world: World, number: int) -> list[JSON]:
    client: Any = world.app.test_client()
    email = f"store-{number}@store.example"
    company_id = client.post("/api/v1/register", json=registration(email=email)).json["company_id"]
    login = {"email": email, "password": registration()["password"]}
    token = client.post("/api/v1/login", json=login).json["token"]
    headers = {"Authorization": f"Bearer {token}"}
    body = {"company_id": company_id, "package_id": 1}
    taken = client.post("/api/v1/company-packages", json=body, headers=headers).json
    assert client.patch("/api/v1/companies/me", json={"name": "Ayla"}, headers=headers).status_code == 200
    return [
        {"kind": "registered", "company_id": company_id, "email": email},
        {"kind": "logged in", "company_id": company_id},
        {"kind": "took", "company_id": company_id, "company_package_id": taken["id"], "package_id": 1}
        | {name: taken[name] for name in ("start_date", "end_date")},
        {"kind": "changed", "company_id": company_id, "field": "name", "value": "Ayla"},
    ]


def listening(world: World, company_id: int) -> JSON:
    company = world.session.execute(
        db.text("SELECT id FROM companies WHERE id = :id"), {"id": company_id}
    ).one()
    url = f"{ENDPOINT}/{company_id}/1"
    client: Any = world.app.test_client()
    answer = client.patch(
        "/api/v1/companies/me",
        json={"callback_url": url},
        headers=world.token(company),  # type: ignore[arg-type]
    )
    return {
        "kind": "changed",
        "company_id": company_id,
        "field": "callback_url",
        "value": url,
        "secret": answer.json["callback_secret"],
    }


def deliver(url: str, acknowledged: list[JSON]) -> list[JSON]:
    """Return every message of the outbox as it would have been received, the outbox told so."""
    secrets = {fact["company_id"]: fact["secret"] for fact in acknowledged if "secret" in fact}
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute("SELECT company_id, id::text, recipient, body FROM callbacks").fetchall()
        connection.execute("UPDATE callbacks SET status = 'delivered', next_attempt_at = NULL")
    return [
        message(row_id, body)
        | (
            signed(CALLBACK_SECRET, "/platform", row_id, body)
            if recipient == "platform"
            else signed(secrets[company_id], f"/{company_id}/1", row_id, body)
        )
        for company_id, row_id, recipient, body in rows
    ]


def message(id_: str, body: str) -> JSON:
    return {"id": id_, "body": body, "at": time.time()}


def signed(secret: str, path: str, id_: str, body: str) -> JSON:
    at = datetime.now(UTC)
    return {
        "path": path,
        "timestamp": str(int(at.timestamp())),
        "signature": Webhook(secret).sign(id_, at, body),
    }


@dataclass
class Corrupted:
    """Books that a test spoils: the tables in a transaction that is rolled back, the rest as copies."""

    connection: "psycopg.Connection[Any]"
    ledger: list[JSON]
    received: list[JSON]
    acknowledged: list[JSON]
    directory: Path
    now: datetime
    misread: list[str] = field(default_factory=list)

    def do(self, statement: str, *values: object) -> None:
        assert self.connection.execute(statement.encode(), values).rowcount == 1, "one row is spoilt"

    def change(self, statement: str) -> None:
        self.connection.execute(statement.encode())

    def one(self, query: str) -> Any:
        """Return the first column of some row that fits."""
        row = self.connection.execute(f"{query} LIMIT 1".encode()).fetchone()
        assert row is not None, "there is something to spoil"
        return row[0]

    def entry(self, key: str, kind: str = "entered") -> JSON:
        return next(line for line in self.ledger if line["key"] == key and line["kind"] == kind)

    def told(self, type_: str, *, path: str = "/platform") -> JSON:
        """Return some received message of a type."""
        return next(
            line
            for line in self.received
            if json.loads(line["body"])["type"] == type_ and line["path"].startswith(path)
        )

    def audited(self) -> dict[str, list[str]]:
        ledger, received = self.directory / "ledger", self.directory / "received"
        for path, lines in ((ledger, self.ledger), (received, self.received)):
            path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        read = books.read(
            self.connection,
            now=self.now,
            ledger=ledger,
            received=[received],
            acknowledged=self.acknowledged,
            misread=self.misread,
            doubted=set(),
            platform_secret=CALLBACK_SECRET,
        )
        return {line: rows for line, rows in audit(read).items() if rows}


@pytest.fixture
def corrupted(clean: Clean, tmp_path: Path) -> Iterator[Corrupted]:
    with closing(psycopg.connect(clean.url)) as connection:
        # The tables are to be spoilt beyond what the database itself would let through.
        connection.execute("ALTER TABLE company_payments DISABLE TRIGGER company_payments_only_ever_added")
        for constraint in ("no_day_charged_twice_excl", "pkey", "attempt_of_period_key"):
            connection.execute(
                f"ALTER TABLE company_payments DROP CONSTRAINT company_payments_{constraint}".encode()
            )
        yield Corrupted(
            connection,
            [dict(line) for line in clean.ledger],
            [dict(line) for line in clean.received],
            [dict(fact) for fact in clean.acknowledged],
            tmp_path,
            clean.now,
        )
        connection.rollback()


CHARGED_AT_ONCE = """
SELECT id::text FROM company_payments p WHERE status = 1 AND attempt = 1 AND EXISTS (
    SELECT FROM company_payments b WHERE b.company_package_id = p.company_package_id AND b.status = 1
        AND b.period_end = p.period_start)
ORDER BY id
"""
"""A payment whose period followed another one that was charged."""

WAITING = "SELECT company_package_id FROM payment_jobs ORDER BY 1"
"""What the third day declined, to be tried again on the fourth."""
NOT_DUE = """
SELECT cp.id FROM company_packages cp JOIN companies c ON c.id = cp.company_id
WHERE cp.status = 1 AND c.status = 1 AND end_date > now() + interval '2 days' AND cp.id >= 1000000 ORDER BY 1
"""


def a_payment_is_gone(spoilt: Corrupted) -> None:
    spoilt.do("DELETE FROM company_payments WHERE id = %s", spoilt.one(CHARGED_AT_ONCE))


def a_change_is_gone(spoilt: Corrupted) -> None:
    spoilt.do("UPDATE companies SET name = 'Ayşe' WHERE id = %s", spoilt.acknowledged[0]["company_id"])


def a_company_package_is_gone(spoilt: Corrupted) -> None:
    took = next(fact for fact in spoilt.acknowledged if fact["kind"] == "took")
    spoilt.do("DELETE FROM company_packages WHERE id = %s", took["company_package_id"])


def a_registration_is_gone(spoilt: Corrupted) -> None:
    spoilt.acknowledged.append({"kind": "registered", "company_id": 7, "email": "nobody@store.example"})


def a_read_disagreed(spoilt: Corrupted) -> None:
    spoilt.misread.append("company 1 does not see what it took")


def the_ledger_knows_nothing_of_it(spoilt: Corrupted) -> None:
    spoilt.ledger.remove(spoilt.entry(spoilt.one(CHARGED_AT_ONCE)))


def a_charge_is_a_decline_in_the_ledger(spoilt: Corrupted) -> None:
    spoilt.entry(spoilt.one(CHARGED_AT_ONCE))["succeeded"] = False


def charged_under_another_key(spoilt: Corrupted) -> None:
    spoilt.ledger.append(spoilt.entry(spoilt.one(CHARGED_AT_ONCE)) | {"key": str(uuid.uuid4())})


def two_rows_of_one_period(spoilt: Corrupted) -> None:
    spoilt.do(
        "INSERT INTO company_payments SELECT * FROM company_payments WHERE id = %s",
        spoilt.one(CHARGED_AT_ONCE),
    )


def a_period_begins_a_day_sooner(spoilt: Corrupted) -> None:
    spoilt.do(
        "UPDATE company_payments SET period_start = period_start - 1 WHERE id = %s",
        spoilt.one(CHARGED_AT_ONCE),
    )


def the_ledger_has_a_day_more(spoilt: Corrupted) -> None:
    entry = spoilt.entry(spoilt.one(CHARGED_AT_ONCE))
    start = date.fromisoformat(entry["description"].split(" ")[-3])
    entry["description"] = entry["description"].replace(str(start), str(start - timedelta(days=1)))


def asked_for_another_amount(spoilt: Corrupted) -> None:
    ask = spoilt.entry(spoilt.one(CHARGED_AT_ONCE), "asked")
    spoilt.ledger.append(ask | {"amount_minor": ask["amount_minor"] + 1})


def a_payment_of_another_amount(spoilt: Corrupted) -> None:
    spoilt.do(
        "UPDATE company_payments SET amount_minor = amount_minor + 1 WHERE id = %s",
        spoilt.one(CHARGED_AT_ONCE),
    )


def the_gateway_took_a_minor_unit_more(spoilt: Corrupted) -> None:
    spoilt.entry(spoilt.one(CHARGED_AT_ONCE))["amount_minor"] += 1


def a_day_is_left_out(spoilt: Corrupted) -> None:
    spoilt.do("UPDATE company_packages SET start_date = start_date + 1 WHERE id = %s", spoilt.one(NOT_DUE))


def a_period_ends_a_day_later(spoilt: Corrupted) -> None:
    spoilt.do(
        "UPDATE company_packages SET end_date = end_date + 1, full_days = full_days + 1 WHERE id = %s",
        spoilt.one(NOT_DUE),
    )


def rolled_over_for_nothing(spoilt: Corrupted) -> None:
    key = spoilt.one(CHARGED_AT_ONCE)
    spoilt.ledger.remove(spoilt.entry(key))
    spoilt.do("DELETE FROM company_payments WHERE id = %s", key)


def asked_an_hour_too_soon(spoilt: Corrupted) -> None:
    key = spoilt.one(CHARGED_AT_ONCE)
    due = spoilt.one(
        "SELECT period_end::timestamp AT TIME ZONE 'Europe/Istanbul' FROM company_payments"
        f" WHERE id = '{key}'"
    )
    spoilt.entry(key, "asked")["at"] = due.timestamp() - 3600


def tried_again_the_same_day(spoilt: Corrupted) -> None:
    spoilt.do(
        "DELETE FROM chaos.aged a WHERE (company_package_id, period_start, attempt) = ("
        " SELECT company_package_id, period_start, attempt FROM company_payments WHERE attempt = 2 LIMIT 1)"
    )


def an_attempt_is_counted_twice(spoilt: Corrupted) -> None:
    spoilt.do("UPDATE company_payments SET attempt = 2 WHERE id = %s", spoilt.one(CHARGED_AT_ONCE))


def passive_for_nothing(spoilt: Corrupted) -> None:
    id_ = spoilt.one(NOT_DUE)
    spoilt.do("UPDATE companies SET status = 0, passivated_at = now() WHERE id = %s", id_)


def active_after_three_declines(spoilt: Corrupted) -> None:
    id_ = spoilt.one("SELECT id FROM companies WHERE passivated_at IS NOT NULL ORDER BY id")
    spoilt.do("UPDATE companies SET status = 1, passivated_at = NULL WHERE id = %s", id_)


def not_activated(spoilt: Corrupted) -> None:
    spoilt.do("UPDATE companies SET status = 0 WHERE id = %s", spoilt.acknowledged[0]["company_id"])


def closed_for_nothing(spoilt: Corrupted) -> None:
    spoilt.do("UPDATE company_packages SET status = 0 WHERE id = %s", spoilt.one(NOT_DUE))


def a_job_is_gone(spoilt: Corrupted) -> None:
    spoilt.do("DELETE FROM payment_jobs WHERE company_package_id = %s", spoilt.one(WAITING))


def a_job_lies_about(spoilt: Corrupted) -> None:
    spoilt.do(
        "UPDATE payment_jobs SET next_attempt_at = now() - interval '1 h' WHERE company_package_id = %s",
        spoilt.one(WAITING),
    )


def a_lease_is_overdue(spoilt: Corrupted) -> None:
    spoilt.do(
        "UPDATE payment_jobs SET idempotency_key = gen_random_uuid(), leased_until = now() - interval '1 h'"
        " WHERE company_package_id = %s",
        spoilt.one(WAITING),
    )


def a_job_of_a_later_day(spoilt: Corrupted) -> None:
    spoilt.do(
        "UPDATE payment_jobs SET next_attempt_at = next_attempt_at + interval '1 h'"
        " WHERE company_package_id = %s",
        spoilt.one(WAITING),
    )


def a_job_of_another_attempt(spoilt: Corrupted) -> None:
    spoilt.do(
        "UPDATE payment_jobs SET attempt = 5 - attempt WHERE company_package_id = %s", spoilt.one(WAITING)
    )


def a_job_of_nothing(spoilt: Corrupted) -> None:
    spoilt.do(
        "INSERT INTO payment_jobs (company_id, company_package_id, period_start, period_end, amount_minor,"
        " currency, next_attempt_at) SELECT company_id, id, start_date - 3000, start_date, 1, 'TRY',"
        " now() + interval '1 h' FROM company_packages WHERE id = %s",
        spoilt.one(NOT_DUE),
    )


def a_message_never_came(spoilt: Corrupted) -> None:
    spoilt.received.remove(spoilt.told("payment.succeeded"))


def a_number_was_left_out(spoilt: Corrupted) -> None:
    spoilt.do("UPDATE companies SET sequence = sequence + 1 WHERE id = %s", spoilt.one(NOT_DUE))


def an_acknowledged_change_was_not_told(spoilt: Corrupted) -> None:
    changed = next(fact for fact in spoilt.acknowledged if fact.get("field") == "name")
    # Undone since, so that it is there to be seen, but was not told when it was made.
    spoilt.acknowledged.insert(0, changed | {"value": "Lale"})


def a_copy_never_came(spoilt: Corrupted) -> None:
    spoilt.received.remove(spoilt.told("payment.succeeded", path="/1"))


def a_message_is_still_to_be_sent(spoilt: Corrupted) -> None:
    spoilt.do(
        "UPDATE callbacks SET status = 'pending', next_attempt_at = now() WHERE id = %s",
        spoilt.one("SELECT id FROM callbacks ORDER BY id"),
    )


def a_signature_is_anothers(spoilt: Corrupted) -> None:
    line = spoilt.told("payment.succeeded")
    line["signature"] = spoilt.told("payment.declined")["signature"]


def a_copy_is_signed_for_the_platform(spoilt: Corrupted) -> None:
    line = spoilt.told("payment.succeeded", path="/1")
    line |= signed(CALLBACK_SECRET, line["path"], line["id"], line["body"])


def a_message_is_hours_old(spoilt: Corrupted) -> None:
    spoilt.told("payment.succeeded")["at"] += 3600


def the_outbox_says_something_else(spoilt: Corrupted) -> None:
    spoilt.do("UPDATE callbacks SET body = '{}' WHERE id = %s", spoilt.told("payment.succeeded")["id"])


CORRUPTIONS: dict[Callable[[Corrupted], None], str] = {
    a_payment_is_gone: "lost: answered by the gateway, and no payment",
    a_change_is_gone: "lost: acknowledged by the API, and not there",
    a_company_package_is_gone: "lost: acknowledged by the API, and not there",
    a_registration_is_gone: "lost: acknowledged by the API, and not there",
    a_read_disagreed: "lost: acknowledged by the API, and not there",
    the_ledger_knows_nothing_of_it: "a payment that the ledger does not have",
    a_charge_is_a_decline_in_the_ledger: "a payment that the ledger does not have",
    charged_under_another_key: "doubled: a period charged twice",
    two_rows_of_one_period: "doubled: a period charged twice",
    a_period_begins_a_day_sooner: "a day of a company charged twice",
    the_ledger_has_a_day_more: "a day of a company charged twice",
    asked_for_another_amount: "one key with two requests",
    a_payment_of_another_amount: "amount wrong",
    the_gateway_took_a_minor_unit_more: "amount wrong",
    a_day_is_left_out: "period wrong, or rolled over for nothing",
    a_period_ends_a_day_later: "period wrong, or rolled over for nothing",
    rolled_over_for_nothing: "period wrong, or rolled over for nothing",
    asked_an_hour_too_soon: "charged early",
    tried_again_the_same_day: "charged early",
    an_attempt_is_counted_twice: "attempts counted wrong",
    passive_for_nothing: "status wrong",
    active_after_three_declines: "status wrong",
    not_activated: "status wrong",
    closed_for_nothing: "status wrong",
    a_job_is_gone: "stuck: due without a job",
    a_job_lies_about: "stuck: job due, and not taken",
    a_lease_is_overdue: "stuck: lease overdue, or still under way",
    a_job_of_a_later_day: "job wrong",
    a_job_of_another_attempt: "job wrong",
    a_job_of_nothing: "job wrong",
    a_message_never_came: "callback missing: platform",
    a_number_was_left_out: "callback missing: platform",
    an_acknowledged_change_was_not_told: "callback missing: platform",
    a_copy_never_came: "callback missing: company",
    a_message_is_still_to_be_sent: "callback not delivered",
    a_signature_is_anothers: "callback falsified",
    a_copy_is_signed_for_the_platform: "callback falsified",
    a_message_is_hours_old: "callback falsified",
    the_outbox_says_something_else: "callback falsified",
}


def test_books_that_are_right_break_no_law(corrupted: Corrupted) -> None:
    assert corrupted.audited() == {}


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda corrupt: corrupt.__name__)
def test_each_corruption_is_found_on_its_line(
    corrupted: Corrupted, corrupt: Callable[[Corrupted], None]
) -> None:
    corrupt(corrupted)

    found = corrupted.audited()

    assert list(found) == [CORRUPTIONS[corrupt]], found


def test_every_line_has_a_corruption() -> None:
    assert set(CORRUPTIONS.values()) == set(LINES)


def test_the_audit_shares_no_code_with_the_product() -> None:
    own, pending = set[str](), ["chaos.audit"]
    while pending:
        name = pending.pop()
        own.add(name)
        path = Path(next(iter(chaos.__path__))) / f"{name.partition('.')[2]}.py"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                imported = {f"chaos.{alias.name}" for alias in node.names} if module == "chaos" else {module}
            else:
                continue
            pending += [other for other in imported if other.startswith("chaos.") and other not in own]
            own |= imported

    ours = {path.stem for path in Path(next(iter(chaos.__path__))).parent.glob("*.py")}
    ours |= {path.parent.name for path in Path(next(iter(chaos.__path__))).parent.glob("*/__init__.py")}
    assert {name.partition(".")[0] for name in own} & ours == {"chaos"}
    assert "chaos.books" in own
