"""Idempotency keys: a request that comes again is done once, and answered as the first time."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select, text

from billing import idempotency
from billing.idempotency import Claim, Keyed
from models import Company, CompanyPackage, CompanySession, IdempotencyKey, Package, db
from tests import processes
from tests.api import DescribedClient, assert_problem, registration
from tests.test_login import with_password
from tests.world import CALLBACK_SECRET, PASSWORD, World, bearer
from web.idempotency import is_idempotent

KEY = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}
PACKAGE = {"name": "Temel", "period": "monthly", "price_minor": 34900, "currency": "TRY"}


def create(client: Any, world: World, *, key: dict[str, str] = KEY, **changes: Any) -> Any:
    return client.post("/api/v1/packages", headers=world.operator() | key, json=PACKAGE | changes)


def number(world: World, model: type[Any]) -> int:
    return world.session.scalar(select(func.count()).select_from(model)) or 0


def age(world: World, by: timedelta, *, column: str) -> None:
    """Let real time pass for the keys."""
    world.session.execute(text(f"UPDATE idempotency_keys SET {column} = {column} - :by"), {"by": by})
    world.session.commit()


def test_every_post_minds_the_key(app: Flask) -> None:
    posts = [rule.endpoint for rule in app.url_map.iter_rules() if "POST" in (rule.methods or ())]

    assert len(posts) >= 12
    assert [name for name in posts if not is_idempotent(app.view_functions[name])] == []


def test_a_repeated_request_is_done_once_and_answered_as_the_first(
    client: DescribedClient, world: World
) -> None:
    first, second = create(client, world), create(client, world)

    assert (first.status_code, first.data, first.content_type) == (201, second.data, second.content_type)
    assert second.status_code == 201
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert first.headers["X-Request-Id"] != second.headers["X-Request-Id"]
    assert number(world, Package) == 1


def test_without_a_key_a_request_is_done_each_time(client: DescribedClient, world: World) -> None:
    for _ in range(2):
        assert create(client, world, key={}).status_code == 201

    assert number(world, Package) == 2
    assert number(world, IdempotencyKey) == 0


def test_another_order_of_the_members_is_the_same_request(client: DescribedClient, world: World) -> None:
    first = create(client, world)
    again = client.post(
        "/api/v1/packages",
        headers=world.operator() | KEY,
        json=dict(reversed(PACKAGE.items())),
    )

    assert again.json == first.json
    assert number(world, Package) == 1


@pytest.mark.parametrize("spelt", ["a-key", '"a-key"'])
def test_a_key_may_be_quoted_or_bare(client: DescribedClient, world: World, spelt: str) -> None:
    first = create(client, world, key={"Idempotency-Key": "a-key"})

    assert create(client, world, key={"Idempotency-Key": spelt}).json == first.json


@pytest.mark.parametrize("key", ["", '""', "two words", '"open', "x" * 256, "é", 'a"b'])
def test_a_malformed_key_is_refused(client: DescribedClient, world: World, key: str) -> None:
    assert_problem(create(client, world, key={"Idempotency-Key": key}), 400, "idempotency-key-invalid")

    assert number(world, Package) == 0


def test_another_body_under_the_same_key_is_refused(client: DescribedClient, world: World) -> None:
    first = create(client, world)

    other = create(client, world, price_minor=1)

    assert_problem(other, 422, "idempotency-key-reused", pointers=["#"])
    assert number(world, Package) == 1
    assert create(client, world).json == first.json


def test_a_key_is_its_callers_own(client: DescribedClient, world: World) -> None:
    package = world.package()
    companies = [world.company(), world.company()]

    answers = [
        client.post(
            "/api/v1/company-packages",
            headers=world.token(company) | KEY,
            json={"company_id": company.id, "package_id": package.id},
        )
        for company in companies
    ]

    assert [answer.json["company_id"] for answer in answers] == [company.id for company in companies]


def test_a_refusal_is_an_answer_too(client: DescribedClient, world: World) -> None:
    company, package = world.company(), world.package()
    body = {"company_id": company.id, "package_id": package.id}
    world.assign(company, package)

    def take() -> Any:
        return client.post("/api/v1/company-packages", headers=world.token(company) | KEY, json=body)

    first = take()
    world.session.execute(text("DELETE FROM company_packages"))
    world.session.commit()
    second = take()

    assert_problem(first, 409, "package-open")
    assert (second.status_code, second.data) == (409, first.data)
    assert second.headers["Idempotent-Replayed"] == "true"


def test_a_request_that_is_not_valid_leaves_the_key_free(client: DescribedClient, world: World) -> None:
    assert_problem(create(client, world, price_minor=-1), 422, pointers=["#/price_minor"])

    assert create(client, world).status_code == 201


def test_a_failure_of_ours_is_not_an_answer(
    client: DescribedClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = world.operator() | KEY
    with monkeypatch.context() as broken:
        broken.setattr("blueprints.packages.package_document", lambda _: 1 / 0)
        failed = client.post("/api/v1/packages", headers=headers, json=PACKAGE)

    assert_problem(failed, 500)
    assert number(world, Package) == 0, "the effect is undone with the answer"
    answer = create(client, world)
    assert answer.status_code == 201
    assert "Idempotent-Replayed" not in answer.headers


def test_too_many_requests_is_not_an_answer(committed: World) -> None:
    company = with_password(committed)
    object.__setattr__(committed.vade.settings, "rate_limits", True)
    client, body = committed.app.test_client(), {"email": company.email, "password": PASSWORD}
    for _ in range(10):
        client.post("/api/v1/login", json=body | {"password": "wrong"})

    assert_problem(client.post("/api/v1/login", headers=KEY, json=body), 429)
    committed.session.execute(text("DELETE FROM rate_limits"))
    committed.session.commit()

    assert client.post("/api/v1/login", headers=KEY, json=body).status_code == 200


def test_after_a_day_a_key_is_as_good_as_new(client: DescribedClient, world: World) -> None:
    first = create(client, world)
    age(world, idempotency.KEPT_FOR, column="created_at")

    second = create(client, world, price_minor=1)

    assert second.status_code == 201
    assert second.json["id"] != first.json["id"]


def test_old_keys_are_swept(client: DescribedClient, world: World) -> None:
    create(client, world)
    age(world, idempotency.KEPT_FOR, column="created_at")
    create(client, world, key={"Idempotency-Key": "a-fresh-one"})

    assert idempotency.sweep(world.session, now=world.vade.clock.read(world.session).real) == 1
    assert number(world, IdempotencyKey) == 1


# Secrets ----------------------------------------------------------------------------------------------------


def kept(world: World) -> str:
    return "".join(world.session.scalars(text("SELECT k::text FROM idempotency_keys k")))


def test_a_registration_again_is_the_same_company_with_fresh_tokens(
    client: DescribedClient, world: World
) -> None:
    first, second = (client.post("/api/v1/register", headers=KEY, json=registration()).json for _ in range(2))

    assert (second["company_id"], second["status"]) == (first["company_id"], first["status"])
    assert number(world, Company) == number(world, CompanySession) == 1
    for tokens in (first, second):
        assert client.get("/api/v1/companies/me", headers=bearer(tokens["token"])).status_code == 200
    for secret in (PASSWORD, first["token"], first["refresh_token"], "Gul@Cicek"):
        assert secret not in kept(world)


@pytest.mark.parametrize("path", ["login", "token/refresh"])
def test_tokens_again_are_of_a_session_that_stands(client: DescribedClient, world: World, path: str) -> None:
    company = with_password(world)
    login = {"email": company.email, "password": PASSWORD}
    tokens = client.post("/api/v1/login", json=login).json

    def ask() -> Any:
        if path == "login":
            return client.post("/api/v1/login", headers=KEY, json=login)
        return client.post(f"/api/v1/{path}", headers=bearer(tokens["refresh_token"]) | KEY)

    first, second = ask(), ask()
    assert (first.status_code, second.status_code) == (200, 200)
    assert (
        client.post("/api/v1/token/refresh", headers=bearer(second.json["refresh_token"])).status_code == 200
    )
    assert_problem(ask(), 401)
    client.post("/api/v1/logout", headers=bearer(first.json["token"]), json={"all": True})
    assert_problem(ask(), 401)


def test_a_rotated_secret_is_told_again_and_kept_encrypted_only(
    client: DescribedClient, world: World
) -> None:
    company = world.company(callback_url="https://store.example/callbacks", callback_secret=CALLBACK_SECRET)

    def rotate(key: dict[str, str]) -> Any:
        return client.post("/api/v1/callback-endpoint/rotate-secret", headers=world.token(company) | key)

    first, second = rotate(KEY), rotate(KEY)

    assert first.json == second.json
    assert world.secrets(company)[0] == first.json["callback_secret"]
    assert first.json["callback_secret"] not in kept(world)
    world.session.execute(text("DELETE FROM callback_secrets"))
    world.session.commit()
    assert_problem(rotate(KEY), 409, "secret-gone")


def test_logging_out_again_is_answered_again(client: DescribedClient, world: World) -> None:
    company = with_password(world)
    tokens = client.post("/api/v1/login", json={"email": company.email, "password": PASSWORD}).json

    answers = [
        client.post("/api/v1/logout", headers=bearer(tokens["token"]) | KEY, json={}) for _ in range(2)
    ]

    assert [(answer.status_code, answer.data) for answer in answers] == [(204, b"")] * 2


# Two at once ------------------------------------------------------------------------------------------------


def claimed(world: World, *, fingerprint: bytes = b"f") -> Claim | dict[str, Any] | None:
    keyed = Keyed(company_id=0, digest=b"d", fingerprint=fingerprint)
    found = idempotency.claim(world.session, keyed, now=world.vade.clock.read(world.session).real)
    world.session.commit()
    return found


def test_whoever_lost_its_lease_commits_nothing(world: World) -> None:
    first = claimed(world)
    assert isinstance(first, Claim)
    assert claimed(world) is None, "it is under way"

    age(world, idempotency.LEASE, column="leased_until")
    second = claimed(world)

    assert isinstance(second, Claim)
    assert not idempotency.keep(world.session, first, {"status": 200})
    assert idempotency.keep(world.session, second, {"status": 201})
    idempotency.release(world.session, second)
    assert claimed(world) == {"status": 201}


def test_a_request_waits_for_the_answer_of_the_one_under_way(
    committed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = committed.operator() | KEY

    def post(_: int) -> Any:
        return committed.app.test_client().post("/api/v1/packages", headers=headers, json=PACKAGE)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(post, range(8)))

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.data for answer in answers}) == 1
    assert number(committed, Package) == 1


def test_a_request_does_not_wait_for_ever(
    client: DescribedClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(client, world)
    world.session.execute(text("UPDATE idempotency_keys SET answer = NULL"))
    world.session.commit()
    monkeypatch.setattr("web.idempotency.WAIT_S", 0)

    answer = create(client, world)

    assert_problem(answer, 409, "idempotency-key-busy")
    assert int(answer.headers["Retry-After"]) >= 1


# Under fire -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hundred_equal_requests_over_two_processes_have_one_effect_and_one_answer(
    database_url: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        bases = [
            stack.enter_context(processes.api(database_url, tmp_path, WEB_CONCURRENCY="1"))[1]
            for _ in range(2)
        ]

        def register(number_: int) -> Any:
            url = f"{bases[number_ % 2]}/api/v1/register"
            return requests.post(url, headers=KEY, json=registration(), timeout=60)

        with ThreadPoolExecutor(100) as threads:
            answers = list(threads.map(register, range(100)))

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["company_id"] for answer in answers}) == 1
    assert sum("Idempotent-Replayed" in answer.headers for answer in answers) == 99
    with psycopg.connect(database_url) as connection:
        counts = "SELECT (SELECT count(*) FROM companies), (SELECT count(*) FROM company_sessions)"
        assert connection.execute(counts).fetchone() == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("effect", [True, False])
def test_a_process_killed_before_its_answer_left_is_made_up_for(committed: World, *, effect: bool) -> None:
    """Killed after the effect: the answer is there. Killed before it: the lease ends, and it is done."""
    company, package = committed.company(), committed.package()
    headers, body = committed.token(company) | KEY, {"company_id": company.id, "package_id": package.id}
    db.engine.dispose()
    child = os.fork()
    if child == 0:
        try:
            _take_and_die(committed, headers, body, effect=effect)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert number(committed, CompanyPackage) == effect

    if not effect:
        age(committed, idempotency.LEASE, column="leased_until")
    client: Any = committed.app.test_client()
    answer = client.post("/api/v1/company-packages", headers=headers, json=body)

    assert answer.status_code == 201
    assert answer.headers.get("Idempotent-Replayed") == ("true" if effect else None)
    committed.session.rollback()
    assert number(committed, CompanyPackage) == 1
    assert committed.company_package(company).id == answer.json["id"]


def _take_and_die(world: World, headers: dict[str, str], body: dict[str, int], *, effect: bool) -> None:
    """In a child: be killed when the answer is made, just before or just after it is committed."""
    with pytest.MonkeyPatch.context() as patch:
        keep = idempotency.keep

        def die(*arguments: Any) -> bool:
            keep(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
            return True

        if effect:
            world.app.after_request_funcs.setdefault(None, []).append(
                lambda _: os.kill(os.getpid(), signal.SIGKILL)
            )
        else:
            patch.setattr(idempotency, "keep", die)
        FlaskClient(world.app, world.app.response_class).post(
            "/api/v1/company-packages", headers=headers, json=body
        )
