"""Access: every route is closed unless its view says for whom it is open, and only a good token opens it."""

import base64
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import jwt
import pytest
from flask import Flask
from flask_jwt_extended import create_access_token, create_refresh_token
from sqlalchemy import delete
from werkzeug.routing import Rule

from models import Company
from tests.api import DescribedClient, assert_problem, contents
from tests.world import World
from web.access import Access, access_of, operator_token

PUBLIC = {
    ("POST", "/api/v1/register"),
    ("POST", "/api/v1/login"),
    ("GET", "/api/v1/packages"),
    ("GET", "/api/v1/packages/<id>"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/docs/assets/<path:name>"),
    ("GET", "/problems"),
    ("GET", "/problems/<slug>"),
}
OPERATORS = {
    ("POST", "/api/v1/packages"),
    ("PATCH", "/api/v1/packages/<id>"),
    ("POST", "/api/v1/callback-endpoint/enable"),
    ("GET", "/api/v1/reports/daily"),
}
COMPANIES = {
    ("GET", "/api/v1/companies/me"),
    ("PATCH", "/api/v1/companies/me"),
    ("GET", "/api/v1/company-packages/current"),
    ("POST", "/api/v1/logout"),
    ("POST", "/api/v1/password"),
}
BOTH = {
    ("POST", "/api/v1/company-packages"),
    ("GET", "/api/v1/company-payments"),
    ("GET", "/api/v1/callbacks"),
    ("GET", "/api/v1/callbacks/<id>"),
    ("POST", "/api/v1/callbacks/<id>/replay"),
    ("GET", "/api/v1/callback-endpoint"),
    ("POST", "/api/v1/callback-endpoint/rotate-secret"),
    ("POST", "/api/v1/callback-endpoint/ping"),
    ("POST", "/api/v1/callback-endpoint/recover"),
}
REFRESH = {("POST", "/api/v1/token/refresh")}


def routes(app: Flask) -> Iterator[tuple[str, Rule]]:
    for rule in app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            yield method, rule


def closed(app: Flask) -> Iterator[tuple[str, str, Access]]:
    """The routes that need a token, with an address of each."""
    for method, rule in routes(app):
        who = access_of(app.view_functions[rule.endpoint])
        assert who is not None
        if who is not Access.PUBLIC:
            yield method, rule.rule.replace("<id>", "1"), who


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_every_route_is_open_to_those_the_contract_names(app: Flask) -> None:
    found: dict[Access | None, set[tuple[str, str]]] = {}
    for method, rule in routes(app):
        found.setdefault(access_of(app.view_functions[rule.endpoint]), set()).add((method, rule.rule))

    assert found == {
        Access.PUBLIC: PUBLIC,
        Access.OPERATOR: OPERATORS,
        Access.COMPANY: COMPANIES,
        Access.COMPANY_OR_OPERATOR: BOTH,
        Access.REFRESH: REFRESH,
    }


def test_a_view_that_says_nothing_is_closed(
    client: DescribedClient, app: Flask, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(app.view_functions, "docs.openapi", lambda: "open")

    for headers in ({}, world.operator(), world.token(world.company())):
        assert_problem(client.get("/openapi.json", headers=headers), 403)


def test_no_view_answers_what_is_asked_without_a_token(app: Flask) -> None:
    assert all(rule.provide_automatic_options for rule in app.url_map.iter_rules())  # type: ignore[attr-defined]


def test_without_a_token_nothing_is_looked_at(client: DescribedClient, app: Flask) -> None:
    for method, path, _ in closed(app):
        # Not even a body that would be refused.
        for body in ("{}", "{", "x" * 70_000):
            response = client.open(path, method=method, data=body, content_type="text/plain")
            assert_problem(response, 401)


def test_a_company_may_not_do_what_is_an_operators(client: DescribedClient, app: Flask, world: World) -> None:
    company = world.customer()
    before = contents(world.session)

    for method, path, who in closed(app):
        if who is Access.OPERATOR:
            for body in ("{}", "{", "x" * 70_000):
                response = client.open(path, method=method, headers=world.token(company), data=body)
                assert_problem(response, 403)

    assert contents(world.session) == before


def test_an_operator_is_no_company(client: DescribedClient, app: Flask, world: World) -> None:
    for method, path, who in closed(app):
        response = client.open(path, method=method, headers=world.operator(), json={})
        if who is Access.COMPANY:
            assert_problem(response, 403)
        elif who is Access.REFRESH:
            assert_problem(response, 401)
        else:
            assert response.status_code not in {401, 403}


def segment(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(claims: dict[str, Any], header: Any) -> str:
    return f"{segment(header)}.{segment(claims)}."


def signed(app: Flask, claims: dict[str, Any], *, key: str | None = None, algorithm: str = "HS256") -> str:
    return jwt.encode(claims, key or app.config["JWT_SECRET_KEY"], algorithm=algorithm)


Forger = Callable[[Flask, dict[str, Any]], str]

# Each makes a token out of the claims of one that is good.
BAD_TOKENS: dict[str, Forger] = {
    "expired": lambda app, claims: signed(app, claims | {"exp": claims["iat"] - 1}),
    "not yet": lambda app, claims: signed(app, claims | {"nbf": claims["iat"] + 3600}),
    "another key": lambda app, claims: signed(app, claims, key="k" * 64),
    "no signature": lambda app, claims: signed(app, claims).rpartition(".")[0] + ".",
    "alg none": lambda _, claims: forged(claims, {"alg": "none", "typ": "JWT"}),
    "alg None": lambda _, claims: forged(claims, {"alg": "None"}),
    "alg empty": lambda _, claims: forged(claims, {"alg": ""}),
    "alg a list": lambda _, claims: forged(claims, {"alg": ["HS256"]}),
    "alg missing": lambda _, claims: forged(claims, {"typ": "JWT"}),
    "alg HS512": lambda app, claims: signed(app, claims, algorithm="HS512"),
    "header a list": lambda _, claims: forged(claims, ["HS256"]),
    "header too deep": lambda _, claims: forged(claims, b"[" * 4000),
    "header not UTF-8": lambda _, claims: forged(claims, b'{"alg":"\xff"}'),
    "signature cut": lambda app, claims: signed(app, claims)[:-2],
    "claims changed": lambda app, claims: _with_claims(signed(app, claims), claims | {"sub": "1"}),
    "not base64": lambda app, claims: signed(app, claims).replace(".", ".!", 1),
    "subject a word": lambda app, claims: signed(app, claims | {"sub": "operator"}),
    "subject a number": lambda app, claims: signed(app, claims | {"sub": int(claims["sub"])}),
    "subject negative": lambda app, claims: signed(app, claims | {"sub": "-" + claims["sub"]}),
    "subject signed": lambda app, claims: signed(app, claims | {"sub": "+" + claims["sub"]}),
    "subject padded": lambda app, claims: signed(app, claims | {"sub": "0" + claims["sub"]}),
    "subject spaced": lambda app, claims: signed(app, claims | {"sub": f" {claims['sub']}\n"}),
    "subject in other digits": lambda app, claims: signed(app, claims | {"sub": "١"}),
    "subject beyond 64 bits": lambda app, claims: signed(app, claims | {"sub": str(2**63)}),
    "subject endless": lambda app, claims: signed(app, claims | {"sub": "9" * 5000}),
    "subject empty": lambda app, claims: signed(app, claims | {"sub": ""}),
    "subject null": lambda app, claims: signed(app, claims | {"sub": None}),
    "subject missing": lambda app, claims: signed(app, {k: v for k, v in claims.items() if k != "sub"}),
    "role unknown": lambda app, claims: signed(app, claims | {"role": "root", "sub": "0"}),
}


def _with_claims(token: str, claims: dict[str, Any]) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{segment(claims)}.{signature}"


@pytest.mark.parametrize("kind", BAD_TOKENS)
def test_a_token_that_is_not_good_opens_nothing(
    client: DescribedClient, app: Flask, world: World, kind: str
) -> None:
    company = world.company()
    tokens = {False: create_access_token(str(company.id)), True: create_refresh_token(str(company.id))}
    key = app.config["JWT_SECRET_KEY"]
    claims = {refresh: jwt.decode(token, key, algorithms=["HS256"]) for refresh, token in tokens.items()}

    for method, path, who in closed(app):
        bad = BAD_TOKENS[kind](app, claims[who is Access.REFRESH])
        assert_problem(client.open(path, method=method, headers=bearer(bad), json={}), 401)


def test_an_expired_operators_token_opens_nothing(client: DescribedClient, app: Flask) -> None:
    token = operator_token(timedelta(seconds=-1))

    for method, path, _ in closed(app):
        assert_problem(client.open(path, method=method, headers=bearer(token), json={}), 401)


def test_a_refresh_token_is_no_access_token_nor_the_other_way_round(
    client: DescribedClient, app: Flask, world: World
) -> None:
    company = world.company()

    for method, path, who in closed(app):
        make = create_access_token if who is Access.REFRESH else create_refresh_token
        response = client.open(path, method=method, headers=bearer(make(str(company.id))), json={})
        assert_problem(response, 401)


def test_the_token_of_a_company_that_is_gone_opens_nothing(
    client: DescribedClient, app: Flask, world: World
) -> None:
    company = world.company()
    world.session.execute(delete(Company).where(Company.id == company.id))
    world.session.commit()
    world.session.expunge_all()

    for method, path, who in closed(app):
        make = create_refresh_token if who is Access.REFRESH else create_access_token
        response = client.open(path, method=method, headers=bearer(make(str(company.id))), json={})
        assert_problem(response, 401)


GARBAGE = [
    "",
    "Bearer",
    "Bearer ",
    "Bearer  ",
    "Bearer x",
    "Bearer a.b",
    "Bearer a.b.c.d",
    "Bearer " + "." * 4000,
    "Bearer é",
    "Bearer null",
    "Basic dTpw",
    "Digest x",
    "bearer.",
    "\0",
]


@pytest.mark.parametrize("header", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_opens_nothing(client: DescribedClient, app: Flask, header: str) -> None:
    for method, path, _ in closed(app):
        response = client.open(path, method=method, headers={"Authorization": header}, json={})
        assert_problem(response, 401)


@pytest.mark.parametrize("where", ["query", "cookie", "body", "another header"])
def test_a_token_is_taken_from_its_header_only(client: DescribedClient, world: World, where: str) -> None:
    token = world.token(world.company())["Authorization"].removeprefix("Bearer ")
    if where == "cookie":
        client.set_cookie("access_token_cookie", token)

    response = client.get(
        "/api/v1/companies/me",
        query_string={"jwt": token} if where == "query" else None,
        json={"access_token": token} if where == "body" else None,
        headers={"X-Authorization": f"Bearer {token}"} if where == "another header" else None,
    )

    assert_problem(response, 401)
