"""Access: every route is closed unless its view says for whom it is open, and only a good token opens it."""

import base64
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import jwt
import pytest
from flask import Flask
from flask_jwt_extended import decode_token
from sqlalchemy import select
from werkzeug.routing import Rule

from billing import operators, sessions
from models import Callback, Company, Role
from tests.api import DescribedClient, assert_problem, contents
from tests.world import CALLBACK_SECRET, World, bearer
from web.access import Access, access_of, takes_body
from web.rights import RIGHTS

LOGOUT = "/api/v1/logout"
"""Answered in the same way where the session has ended already."""

CALLERS = (
    "nobody",
    "company",
    "refresh",  # the company, with its refresh token
    "other",  # another company
    "read",
    "support",
    "admin",
    "revoked",  # an admin's token that was revoked
    "disabled",  # the token of an admin who is disabled
    "ended",  # the company's tokens of a session that has ended
)

# The status of each route's answer to each caller, in the order of CALLERS. What is asked is the company's.
TABLE = """
POST  /api/v1/register                        422 422 422 422 422 422 422 422 422 422
POST  /api/v1/login                           422 422 422 422 422 422 422 422 422 422
POST  /api/v1/token/refresh                   401 401 200 401 401 401 401 401 401 401
POST  /api/v1/logout                          401 204 401 204 403 403 403 401 401 204
POST  /api/v1/password                        401 422 401 422 403 403 403 401 401 401
GET   /api/v1/companies/me                    401 200 401 200 403 403 403 401 401 401
PATCH /api/v1/companies/me                    401 200 401 200 403 403 403 401 401 401
GET   /api/v1/packages                        200 200 200 200 200 200 200 200 200 200
GET   /api/v1/packages/<id>                   200 200 200 200 200 200 200 200 200 200
POST  /api/v1/packages                        401 403 401 403 403 403 422 401 401 401
PATCH /api/v1/packages/<id>                   401 403 401 403 403 403 200 401 401 401
POST  /api/v1/company-packages                401 201 401 403 403 403 409 401 401 401
GET   /api/v1/company-packages/current        401 200 401 200 403 403 403 401 401 401
GET   /api/v1/company-payments                401 200 401 200 200 200 200 401 401 401
GET   /api/v1/callbacks                       401 200 401 200 200 200 200 401 401 401
GET   /api/v1/callbacks/<id>                  401 200 401 404 200 200 200 401 401 401
POST  /api/v1/callbacks/<id>/replay           401 202 401 404 403 202 202 401 401 401
GET   /api/v1/callback-endpoint               401 200 401 404 200 200 200 401 401 401
POST  /api/v1/callback-endpoint/rotate-secret 401 200 401 404 403 403 200 401 401 401
POST  /api/v1/callback-endpoint/ping          401 200 401 404 403 200 200 401 401 401
POST  /api/v1/callback-endpoint/recover       401 422 401 422 403 422 422 401 401 401
POST  /api/v1/callback-endpoint/enable        401 403 401 403 403 200 200 401 401 401
GET   /api/v1/reports/daily                   401 403 401 403 200 200 200 401 401 401
GET   /api/v1/reports/metrics                 401 403 401 403 200 200 200 401 401 401
GET   /healthz                                200 200 200 200 200 200 200 200 200 200
GET   /readyz                                 200 200 200 200 200 200 200 200 200 200
GET   /openapi.json                           200 200 200 200 200 200 200 200 200 200
GET   /docs                                   200 200 200 200 200 200 200 200 200 200
GET   /problems                               200 200 200 200 200 200 200 200 200 200
GET   /problems/<slug>                        200 200 200 200 200 200 200 200 200 200
GET   /docs/assets/<path:name>                200 200 200 200 200 200 200 200 200 200
"""
EXPECTED = {
    (method, path): dict(zip(CALLERS, map(int, statuses), strict=True))
    for method, path, *statuses in map(str.split, TABLE.strip().splitlines())
}


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


def kind_for(who: Access) -> str:
    """Return by which name the token for a route comes."""
    return "refresh_token" if who is Access.REFRESH else "token"


def callers(world: World, company: Company) -> dict[str, dict[str, str]]:
    """The headers of each caller; the company's are of a session each."""
    refreshing, standing, ended = (world.session_tokens(company) for _ in range(3))
    sessions.end(world.session, company.id, int(decode_token(ended["token"])["sid"]))
    revoked, revoked_token = world.operator_token("admin")
    operators.revoke(world.session, revoked, now=world.now)
    operators.add(world.session, "disabled", Role.ADMIN, now=world.now)
    _, disabled_token = world.operator_token("disabled")
    operators.find(world.session, "disabled").disabled_at = world.now
    world.session.commit()
    return {
        "nobody": {},
        "company": bearer(standing["token"]),
        "refresh": bearer(refreshing["refresh_token"]),
        "other": world.token(world.company()),
        **{str(role): world.operator(role) for role in Role},
        "revoked": bearer(revoked_token),
        "disabled": bearer(disabled_token),
        "ended": bearer(ended["token"]),
        "ended, refresh": bearer(ended["refresh_token"]),
    }


def test_every_route_stands_in_the_table(app: Flask) -> None:
    assert {(method, rule.rule) for method, rule in routes(app)} == set(EXPECTED)


@pytest.mark.parametrize(("method", "rule"), EXPECTED, ids=map(" ".join, EXPECTED))
def test_each_caller_gets_what_the_table_says(
    client: DescribedClient, app: Flask, world: World, method: str, rule: str
) -> None:
    company = world.company(callback_url="http://127.0.0.1:1024/", callback_secret=CALLBACK_SECRET)
    package = world.package()
    headers = callers(world, company)
    client.patch("/api/v1/companies/me", headers=headers["company"], json={"name": "Gül"})
    (callback_id,) = world.session.scalars(select(Callback.id).where(Callback.recipient == "company"))
    world.session.commit()
    id_ = callback_id if "callbacks" in rule else package.id
    path = rule.replace("<id>", str(id_)).replace("<path:name>", "css/swagger-ui.css")
    path = path.replace("<slug>", "not-found")
    view = app.view_functions[app.url_map.bind("").match(path, method)[0]]
    body = {"company_id": company.id, "package_id": package.id} if "company-packages" in rule else {}
    if access_of(view) is Access.REFRESH:
        headers["ended"] = headers["ended, refresh"]

    def status(caller: str) -> int:
        sent = {"json": body} if takes_body(view) else {}
        with client.open(path, method=method, headers=headers[caller], **sent) as response:
            return int(response.status_code)

    expected = EXPECTED[method, rule]
    refused = [caller for caller in CALLERS if expected[caller] in {401, 403}]
    before = contents(world.session)
    found = {caller: status(caller) for caller in refused}
    assert contents(world.session) == before
    found |= {caller: status(caller) for caller in CALLERS if caller not in refused}

    assert found == expected


def test_the_rights_of_operators_are_of_routes_that_are_open_to_them(app: Flask) -> None:
    open_to_operators = {
        name
        for name, view in app.view_functions.items()
        if access_of(view) in {Access.OPERATOR, Access.COMPANY_OR_OPERATOR}
    }

    assert set(RIGHTS) == open_to_operators


def test_what_is_in_no_table_is_closed_to_every_operator(
    client: DescribedClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(RIGHTS, "company_payments.list_payments")

    for role in Role:
        assert_problem(client.get("/api/v1/company-payments", headers=world.operator(role)), 403)
    assert client.get("/api/v1/company-payments", headers=world.token(world.company())).status_code == 200


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
    "session missing": lambda app, claims: signed(app, {k: v for k, v in claims.items() if k != "sid"}),
    "session a number": lambda app, claims: signed(app, claims | {"sid": int(claims["sid"])}),
    "session of nobody": lambda app, claims: signed(app, claims | {"sid": str(2**63 - 1)}),
    "session of another": lambda app, claims: signed(app, claims | {"sub": str(int(claims["sub"]) - 1)}),
    "role unknown": lambda app, claims: signed(app, claims | {"role": "root", "sub": "0"}),
}

ENDED = {"session of nobody", "session of another"}
"""Whose session does not stand, as that of a token with which its company logged out already."""


def _with_claims(token: str, claims: dict[str, Any]) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{segment(claims)}.{signature}"


@pytest.mark.parametrize("kind", BAD_TOKENS)
def test_a_token_that_is_not_good_opens_nothing(
    client: DescribedClient, app: Flask, world: World, kind: str
) -> None:
    world.company()
    company = world.company()
    key = app.config["JWT_SECRET_KEY"]
    claims = {
        name: jwt.decode(token, key, algorithms=["HS256"]) for name, token in world.tokens(company).items()
    }

    for method, path, who in closed(app):
        if path == LOGOUT and kind in ENDED:
            continue
        bad = BAD_TOKENS[kind](app, claims[kind_for(who)])
        assert_problem(client.open(path, method=method, headers=bearer(bad), json={}), 401)


def test_an_expired_operators_token_opens_nothing(client: DescribedClient, app: Flask, world: World) -> None:
    _, token = world.operator_token("admin", lifetime=timedelta(seconds=-1))

    for method, path, _ in closed(app):
        assert_problem(client.open(path, method=method, headers=bearer(token), json={}), 401)


# Each makes an operator's token out of the claims of one that is good.
BAD_OPERATORS: dict[str, Forger] = {
    # As versions before these made them.
    "of no row": lambda app, claims: signed(app, claims | {"jti": "5fb8f1a0-7a53-4a8e-9d2b-0a8a3d6ae0ba"}),
    "of nobody's row": lambda app, claims: signed(app, claims | {"jti": str(2**63 - 1)}),
    "of a number": lambda app, claims: signed(app, claims | {"jti": int(claims["jti"])}),
    "of nothing": lambda app, claims: signed(app, {k: v for k, v in claims.items() if k != "jti"}),
    "of another role": lambda app, claims: signed(app, claims | {"role": "admin"}),
}


@pytest.mark.parametrize("kind", BAD_OPERATORS)
def test_an_operators_token_that_is_not_good_opens_nothing(
    client: DescribedClient, app: Flask, world: World, kind: str
) -> None:
    _, token = world.operator_token("admin")
    claims = jwt.decode(token, app.config["JWT_SECRET_KEY"], algorithms=["HS256"])
    bad = BAD_OPERATORS[kind](app, claims)

    for method, path, _ in closed(app):
        assert_problem(client.open(path, method=method, headers=bearer(bad), json={}), 401)


def test_the_token_of_a_company_that_is_gone_opens_nothing(
    client: DescribedClient, app: Flask, world: World
) -> None:
    company = world.company()
    tokens = world.tokens(company)
    world.remove(company)

    for method, path, who in closed(app):
        if path == LOGOUT:
            continue
        response = client.open(path, method=method, headers=bearer(tokens[kind_for(who)]), json={})
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
