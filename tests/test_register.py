"""Registering: a company comes to be, passive until its first login."""

import json
import unicodedata
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug.security import check_password_hash

from billing import companies
from models import Callback, Company, Login
from tests.api import DescribedClient, assert_problem, contents, registration
from tests.conftest import NOW
from tests.world import PASSWORD, World

REAL_HASH = companies.HASH_METHOD


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords are hashed, but at no cost."""
    monkeypatch.setattr(companies, "HASH_METHOD", "pbkdf2:sha256:1")


def register(client: DescribedClient, **changes: Any) -> Any:
    return client.post("/api/v1/register", json=registration(**changes))


def test_a_registration_makes_a_passive_company_and_answers_with_its_tokens(
    client: DescribedClient, session: Session
) -> None:
    response = register(client)

    assert response.status_code == 201
    assert set(response.json) == {"status", "token", "refresh_token", "company_id"}
    assert response.json["status"] == 0
    company = session.scalars(select(Company)).one()
    assert company.id == response.json["company_id"]
    assert (company.site_url, company.name, company.lastname, company.company_name, company.email) == (
        "https://gül.example/mağaza",
        "Gül",
        "Şahin",
        "Gül Çiçekçilik",
        "Gul@Cicek.example",
    )
    assert (company.status, company.passivated_at, company.callback_url) == (0, None, None)
    assert (company.registered_at, company.billing_day) == (NOW, 10)


def test_the_token_of_a_registration_works_at_once(client: DescribedClient) -> None:
    token = register(client).json["token"]

    response = client.get("/api/v1/companies/me", headers={"Authorization": f"Bearer {token}"})

    assert response.status_code == 200
    assert response.json["email"] == "Gul@Cicek.example"
    assert response.json["registered_at"] == "2026-01-10T09:00:00.000000Z"


def test_the_billing_day_is_that_of_the_business_time_zone(client: DescribedClient, world: World) -> None:
    world.travel(datetime(2026, 1, 30, 22, 30, tzinfo=UTC))

    register(client)

    assert world.session.scalars(select(Company)).one().billing_day == 31


def test_the_password_is_kept_as_a_hash_that_fits_it(
    client: DescribedClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(companies, "HASH_METHOD", REAL_HASH)

    register(client)

    login = session.scalars(select(Login)).one()

    assert login.email == "gul@cicek.example"
    assert login.password_hash.startswith("scrypt:32768:8:1$"), "slow on purpose"
    assert check_password_hash(login.password_hash, PASSWORD)


@pytest.mark.parametrize(
    "again",
    [
        "Gül@Cicek.example",
        "gül@cicek.example",
        "GÜL@CICEK.EXAMPLE",
        unicodedata.normalize("NFD", "gül@cicek.example"),
    ],
    ids=["the same", "lower", "upper", "composed otherwise"],
)
def test_an_email_is_registered_once_in_whatever_case(
    client: DescribedClient, session: Session, again: str
) -> None:
    assert register(client, email="Gül@Cicek.example").status_code == 201
    before = contents(session)

    response = register(client, email=again, name="Other")

    assert_problem(response, 409, "email-taken")
    assert contents(session) == before


def test_the_platform_hears_of_a_registration_and_of_no_secret(
    client: DescribedClient, session: Session
) -> None:
    answer = register(client).json

    (callback,) = session.scalars(select(Callback))

    assert (callback.recipient, callback.type, callback.status) == (
        "platform",
        "company.registered",
        "pending",
    )
    body = json.loads(callback.body)
    shown = client.get("/api/v1/companies/me", headers={"Authorization": f"Bearer {answer['token']}"}).json
    assert body == {
        "type": "company.registered",
        "timestamp": "2026-01-10T09:00:00.000000Z",
        "data": {"company": shown, "sequence": 1, "previous": {"company": None}},
    }
    assert PASSWORD not in callback.body


@pytest.mark.parametrize(
    "password", ["8 chars!", "ş" * 128, "🌹 gül bahçesi 🌹"], ids=["8", "128", "any script"]
)
def test_a_password_has_8_to_128_characters_of_any_script(client: DescribedClient, password: str) -> None:
    assert register(client, password=password).status_code == 201
    logged_in = client.post("/api/v1/login", json={"email": "gul@cicek.example", "password": password})

    assert logged_in.status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        'O\'Neill \\ "Söhne"',
        "İıŞşĞğ",
        "株式会社",
        "👩‍👩‍👧 and 🫨",
        "نمی‌خواهم",
        "a\u00a0b",
        "<script>",
        "x" * 200,
    ],
    ids=["quotes", "turkish", "kanji", "joined and new emoji", "joined script", "no-break", "tag", "200"],
)
def test_a_name_may_be_of_any_script(client: DescribedClient, session: Session, name: str) -> None:
    response = register(client, name=name, company_name=f"  {name}\t")

    assert response.status_code == 201
    company = session.scalars(select(Company)).one()
    assert (company.name, company.company_name) == (name, name), "only the space around it is dropped"
