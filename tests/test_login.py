"""Logging in: the first one activates; passwords are compared slowly and told to nobody; tokens refresh."""

import logging
from datetime import timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from flask_jwt_extended import decode_token
from sqlalchemy import delete, text
from werkzeug.security import check_password_hash, generate_password_hash

from billing import companies
from models import Company, Login
from tests.api import DescribedClient, assert_problem, contents, registration
from tests.conftest import NOW
from tests.world import PASSWORD, World

CHEAP_HASH = generate_password_hash(PASSWORD, "pbkdf2:sha256:1")


def with_password(world: World, **fields: Any) -> Company:
    """A company that can log in with PASSWORD, whose hash costs nothing."""
    company = world.company(**fields)
    login = world.session.get_one(Login, company.email.lower())
    login.password_hash = CHEAP_HASH
    world.session.commit()
    return company


def log_in(client: FlaskClient, company: Company, password: str = PASSWORD) -> Any:
    return client.post("/api/v1/login", json={"email": company.email, "password": password})


def test_the_first_login_activates_once_and_tells_once(client: DescribedClient, world: World) -> None:
    company = with_password(world, status=0)

    answers = [log_in(client, company) for _ in range(3)]

    assert [(answer.status_code, answer.json["status"]) for answer in answers] == [(200, 1)] * 3
    assert set(answers[0].json) == {"status", "token", "refresh_token", "company_id"}
    assert answers[0].json["company_id"] == company.id
    assert world.callbacks() == [("platform", "company.activated")]
    assert '"status":1' in world.session.execute(text("SELECT body FROM callbacks")).scalar_one()


def test_what_was_registered_can_log_in(client: DescribedClient) -> None:
    registered = client.post("/api/v1/register", json=registration()).json

    answer = client.post("/api/v1/login", json={"email": "GUL@cicek.EXAMPLE", "password": PASSWORD})

    assert answer.status_code == 200
    assert (answer.json["status"], answer.json["company_id"]) == (1, registered["company_id"])


@pytest.mark.parametrize("logins", [1, 3])
def test_a_login_leaves_a_company_passive_that_did_not_pay(
    client: DescribedClient, world: World, logins: int
) -> None:
    company = with_password(world, status=0, passivated_at=NOW - timedelta(days=1))

    answers = [log_in(client, company) for _ in range(logins)]

    assert [(answer.status_code, answer.json["status"]) for answer in answers] == [(200, 0)] * logins
    assert world.callbacks() == []
    headers = {"Authorization": f"Bearer {answers[0].json['token']}"}
    assert client.get("/api/v1/companies/me", headers=headers).json["status"] == 0, "it can read"


@pytest.mark.parametrize("password", ["wrong", PASSWORD + " ", PASSWORD.upper(), "x" * 128])
def test_a_wrong_password_changes_nothing(client: DescribedClient, world: World, password: str) -> None:
    company = with_password(world, status=0)
    before = contents(world.session)

    assert_problem(log_in(client, company, password), 401, "invalid-credentials")

    assert contents(world.session) == before


def test_an_unknown_email_is_refused_as_a_wrong_password_is(client: DescribedClient, world: World) -> None:
    company = with_password(world)

    wrong = log_in(client, company, "wrong password")
    unknown = client.post("/api/v1/login", json={"email": "nobody@x.example", "password": PASSWORD})

    assert_problem(unknown, 401, "invalid-credentials")
    assert (unknown.status_code, unknown.data) == (wrong.status_code, wrong.data)


def test_an_unknown_email_takes_as_long_as_a_wrong_password(
    client: DescribedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/api/v1/register", json=registration())
    compared: list[str] = []

    def counted(hash_: str, password: str) -> bool:
        compared.append(hash_)
        return check_password_hash(hash_, password)

    monkeypatch.setattr(companies, "check_password_hash", counted)
    for email in ("gul@cicek.example", "nobody@cicek.example"):
        answer = client.post("/api/v1/login", json={"email": email, "password": "wrong password"})
        assert_problem(answer, 401, "invalid-credentials")

    wrong, unknown = (hash_.split("$") for hash_ in compared)
    assert wrong[0] == unknown[0] == companies.HASH_METHOD, "the costs are the same"
    assert [len(part) for part in wrong] == [len(part) for part in unknown]


def test_no_password_fits_where_there_is_no_login(
    client: DescribedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(companies, "check_password_hash", lambda _hash, _password: True)

    answer = client.post("/api/v1/login", json={"email": "nobody@x.example", "password": PASSWORD})

    assert_problem(answer, 401, "invalid-credentials")


def test_a_login_without_its_company_is_refused(client: DescribedClient, world: World) -> None:
    company = with_password(world)
    world.session.execute(delete(Company).where(Company.id == company.id))
    world.session.commit()

    assert_problem(log_in(client, company), 401, "invalid-credentials")


def test_passwords_and_hashes_are_in_no_log_and_no_answer(
    client: DescribedClient, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    body = registration()

    answers = [
        client.post("/api/v1/register", json=body),
        client.post("/api/v1/register", json=body),
        client.post("/api/v1/register", json=body | {"email": "none"}),
        client.post("/api/v1/login", json={"email": body["email"], "password": PASSWORD}),
        client.post("/api/v1/login", json={"email": body["email"], "password": PASSWORD + "x"}),
        client.post("/api/v1/login", json={"email": body["email"], "password": PASSWORD + "\0"}),
        client.post("/api/v1/login", json={"email": PASSWORD, "password": PASSWORD, PASSWORD[:4]: 1}),
    ]
    hash_ = world.session.get_one(Login, "gul@cicek.example").password_hash
    world.session.execute(text("ALTER TABLE logins RENAME COLUMN password_hash TO lost"))
    world.session.commit()
    answers += [
        client.post("/api/v1/register", json=body | {"email": "another@cicek.example"}),
        client.post("/api/v1/login", json={"email": body["email"], "password": PASSWORD}),
    ]

    assert [answer.status_code for answer in answers] == [201, 409, 422, 200, 401, 422, 422, 500, 500]
    assert "unexpected error" in caplog.text
    for told in (caplog.text, *(answer.text for answer in answers)):
        assert PASSWORD not in told
        assert hash_ not in told
        assert "scrypt:" not in told


def test_a_refresh_token_gives_fresh_tokens(client: DescribedClient, world: World) -> None:
    company = with_password(world)
    first = log_in(client, company).json

    second = client.post(
        "/api/v1/token/refresh", headers={"Authorization": f"Bearer {first['refresh_token']}"}
    )

    assert second.status_code == 200
    assert (second.json["status"], second.json["company_id"]) == (1, company.id)
    assert second.json["token"] != first["token"]
    headers = {"Authorization": f"Bearer {second.json['token']}"}
    assert client.get("/api/v1/companies/me", headers=headers).status_code == 200


def test_an_access_token_lives_an_hour_and_a_refresh_token_thirty_days(
    client: DescribedClient, world: World
) -> None:
    answer = log_in(client, with_password(world)).json

    lives = [
        timedelta(seconds=claims["exp"] - claims["iat"])
        for claims in (decode_token(answer[name]) for name in ("token", "refresh_token"))
    ]

    assert lives == [timedelta(hours=1), timedelta(days=30)]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/companies/me"),
        ("PATCH", "/api/v1/companies/me"),
        ("POST", "/api/v1/company-packages"),
        ("GET", "/api/v1/company-packages/current"),
        ("GET", "/api/v1/company-payments"),
        ("POST", "/api/v1/packages"),
        ("POST", "/api/v1/token/refresh"),
    ],
)
def test_the_tokens_of_a_company_stop_working_when_it_is_gone(
    client: DescribedClient, world: World, method: str, path: str
) -> None:
    company = with_password(world)
    tokens = log_in(client, company).json
    token = tokens["refresh_token" if path.endswith("refresh") else "token"]
    world.session.execute(delete(Login).where(Login.company_id == company.id))
    world.session.execute(delete(Company).where(Company.id == company.id))
    world.session.commit()
    world.session.expunge_all()

    response = client.open(path, method=method, json={}, headers={"Authorization": f"Bearer {token}"})

    assert_problem(response, 401)
