"""Sessions: what tokens belong to, how they end, and what a refresh token is good for: once."""

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from flask_jwt_extended import create_access_token
from sqlalchemy import func, select, text
from werkzeug.security import generate_password_hash

from billing import companies, sessions
from billing.errors import CredentialsError
from models import Company, CompanySession, Login
from scheduler import Worker
from tests.api import assert_problem, contents
from tests.conftest import NOW
from tests.test_login import log_in, with_password
from tests.world import PASSWORD, World, bearer

NEW_PASSWORD = "another horse, another battery"


def refresh(client: FlaskClient, tokens: dict[str, str]) -> Any:
    return client.post("/api/v1/token/refresh", headers=bearer(tokens["refresh_token"]))


def log_out(client: FlaskClient, tokens: dict[str, str], **body: bool) -> int:
    answer = client.post("/api/v1/logout", headers=bearer(tokens["token"]), json=body)
    return int(answer.status_code)


def change_password(client: FlaskClient, tokens: dict[str, str], current: str = PASSWORD) -> Any:
    body = {"current_password": current, "new_password": NEW_PASSWORD}
    return client.post("/api/v1/password", headers=bearer(tokens["token"]), json=body)


def stands(client: FlaskClient, tokens: dict[str, str]) -> bool:
    """Whether an access token opens what it should, the one query of `current` included."""
    answers = {
        client.get(f"/api/v1/{path}", headers=bearer(tokens["token"])).status_code
        for path in ("companies/me", "company-packages/current", "company-payments")
    }
    assert answers in ({200}, {401})
    return answers == {200}


def number_of_sessions(world: World) -> int:
    return world.session.scalar(select(func.count()).select_from(CompanySession)) or 0


def test_a_refresh_token_is_good_once_and_the_tokens_go_on(client: FlaskClient, world: World) -> None:
    first = log_in(client, with_password(world)).json

    second = refresh(client, first).json
    third = refresh(client, second).json

    assert len({tokens["refresh_token"] for tokens in (first, second, third)}) == 3
    assert all(stands(client, tokens) for tokens in (first, second, third))


def test_a_refresh_token_that_comes_twice_ends_its_session_only(
    client: FlaskClient, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    company = with_password(world)
    first, other = log_in(client, company).json, log_in(client, company).json
    second = refresh(client, first).json

    with caplog.at_level(logging.WARNING):
        answer = refresh(client, first)

    assert_problem(answer, 401)
    assert not stands(client, first)
    assert not stands(client, second)
    assert_problem(refresh(client, second), 401)
    assert stands(client, other)
    (record,) = [each for each in caplog.records if each.name == "billing.sessions"]
    assert record.company_id == company.id  # type: ignore[attr-defined]


def test_of_two_refreshes_at_once_one_wins(committed: World) -> None:
    company = with_password(committed)
    tokens = log_in(committed.app.test_client(), company).json

    def race(_: int) -> int:
        return int(refresh(committed.app.test_client(), tokens).status_code)

    with ThreadPoolExecutor(2) as threads:
        statuses = sorted(threads.map(race, range(2)))

    assert statuses == [200, 401]
    assert number_of_sessions(committed) == 1, "only World's own"


def test_a_session_that_was_not_refreshed_for_thirty_days_is_over(client: FlaskClient, world: World) -> None:
    tokens = log_in(client, with_password(world)).json
    world.session.execute(text("UPDATE company_sessions SET expires_at = now() - interval '1 second'"))
    world.session.commit()

    assert_problem(refresh(client, tokens), 401)


def test_the_worker_removes_the_sessions_that_are_over(committed: World) -> None:
    client = committed.app.test_client()
    company = with_password(committed)
    log_in(client, company)
    kept = log_in(client, company).json
    oldest = committed.session.scalars(select(CompanySession).order_by(CompanySession.id)).all()[:2]
    for row in oldest:
        row.expires_at -= sessions.LIFETIME + timedelta(minutes=1)
    committed.session.commit()

    worker = Worker(committed.app)
    worker.sweep()
    for end in (worker._told, worker._tell):
        end.close()

    assert number_of_sessions(committed) == 1
    assert stands(client, kept)


def test_logging_out_ends_this_session_and_its_refresh_token(client: FlaskClient, world: World) -> None:
    company = with_password(world)
    tokens, other = log_in(client, company).json, log_in(client, company).json

    assert log_out(client, tokens) == 204

    assert not stands(client, tokens)
    assert_problem(refresh(client, tokens), 401)
    assert stands(client, other)


def test_logging_out_everywhere_ends_all_sessions_of_the_company_and_no_others(
    client: FlaskClient, world: World
) -> None:
    company, bystander = with_password(world), with_password(world)
    mine = [log_in(client, company).json for _ in range(3)]
    theirs = log_in(client, bystander).json

    assert log_out(client, mine[0], all=True) == 204

    assert not any(stands(client, tokens) for tokens in mine)
    assert stands(client, theirs)


@pytest.mark.parametrize("everywhere", [False, True])
def test_logging_out_again_is_no_error_and_changes_nothing(
    client: FlaskClient, world: World, everywhere: bool
) -> None:
    company = with_password(world)
    tokens, other = log_in(client, company).json, log_in(client, company).json
    log_out(client, tokens)
    before = contents(world.session)

    assert log_out(client, tokens, all=everywhere) == 204

    assert contents(world.session) == before
    assert stands(client, other)


def test_a_change_of_password_ends_the_other_sessions(client: FlaskClient, world: World) -> None:
    company = with_password(world)
    tokens, other = log_in(client, company).json, log_in(client, company).json

    assert change_password(client, tokens).status_code == 204

    assert stands(client, tokens)
    assert refresh(client, tokens).status_code == 200
    assert not stands(client, other)
    assert_problem(log_in(client, company), 401, "invalid-credentials")
    assert log_in(client, company, NEW_PASSWORD).status_code == 200


def test_a_wrong_current_password_changes_nothing(client: FlaskClient, world: World) -> None:
    company = with_password(world)
    tokens, other = log_in(client, company).json, log_in(client, company).json
    before = contents(world.session)

    assert_problem(change_password(client, tokens, "not this one"), 401, "invalid-credentials")

    assert contents(world.session) == before
    assert stands(client, other)


def test_a_password_that_is_too_short_is_refused(client: FlaskClient, world: World) -> None:
    tokens = log_in(client, with_password(world)).json

    answer = client.post(
        "/api/v1/password",
        headers=bearer(tokens["token"]),
        json={"current_password": PASSWORD, "new_password": "short"},
    )

    assert_problem(answer, 422, pointers=["#/new_password"])


def test_a_login_whose_password_is_changed_meanwhile_begins_no_session(world: World) -> None:
    company = with_password(world)
    checked = companies.check_login(world.session, email=company.email, password=PASSWORD)
    before = Login(email=checked.email, company_id=checked.company_id, password_hash=checked.password_hash)

    companies.change_password(world.session, company.id, current=PASSWORD, new=NEW_PASSWORD)
    world.session.commit()

    with pytest.raises(CredentialsError):
        companies.log_in(world.session, before, now=NOW, outbox=world.vade.outbox)


def test_of_two_changes_of_the_password_at_once_one_wins(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other's current password is current no more by the time that it would be written."""
    company = with_password(world)
    hashed = generate_password_hash
    others: list[str] = ["the other's new password"]

    def changed_meanwhile(password: str, method: str) -> str:
        if others:
            companies.change_password(world.session, company.id, current=PASSWORD, new=others.pop())
            world.session.commit()
        return hashed(password, method)

    monkeypatch.setattr(companies, "generate_password_hash", changed_meanwhile)
    with pytest.raises(CredentialsError):
        companies.change_password(world.session, company.id, current=PASSWORD, new=NEW_PASSWORD)

    world.session.expire_all()
    companies.check_login(world.session, email=company.email, password="the other's new password")


def test_the_token_of_an_earlier_version_is_refused(client: FlaskClient, world: World) -> None:
    company: Company = world.company()
    with world.app.test_request_context():
        token = create_access_token(str(company.id))

    assert_problem(client.get("/api/v1/companies/me", headers=bearer(token)), 401)
