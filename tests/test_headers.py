"""Headers of every answer, HEAD and OPTIONS on every route, and what other origins' pages may do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from models import Package, db
from tests.api import DescribedClient, assert_problem, registration
from tests.conftest import settings_for
from tests.test_access import routes
from tests.world import World
from web.headers import SHOWN
from wsgi import create_app

ORIGIN = "https://shop.example"
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "geolocation=(), camera=(), microphone=()",
}


def address(rule: str, world: World) -> str:
    """An address of a route at which there is something, where a test can make it."""
    package = world.session.scalars(select(Package)).first() or world.package()
    filled = {
        "/api/v1/packages/<id>": f"/api/v1/packages/{package.id}",
        "/problems/<slug>": "/problems/not-found",
        "/docs/assets/<path:name>": "/docs/assets/css/swagger-ui.css",
    }
    return filled.get(rule, rule.replace("<id>", "00000000-0000-0001-0000-000000000001"))


def test_every_get_answers_head_with_the_same_headers_and_no_body(
    client: DescribedClient, app: Flask, world: World
) -> None:
    callers: list[dict[str, str]] = [{}, world.token(world.company()), world.operator()]
    for method, rule in routes(app):
        if method != "GET":
            continue
        url = address(rule.rule, world)
        for headers in callers:
            get, head = (client.open(url, method=m, headers=headers, buffered=True) for m in ("GET", "HEAD"))
            assert head.status_code == get.status_code, url
            assert head.data == b"", url
            assert settled(head) == settled(get), url


def settled(response: Any) -> dict[str, str]:
    """The headers but those that differ from one request to the next."""
    changing = {"Date", "X-Request-Id"}
    headers = {name: value for name, value in response.headers.items() if name not in changing}
    if "nonce" in headers["Content-Security-Policy"]:
        headers["Content-Security-Policy"] = headers["Content-Security-Policy"].partition("'nonce-")[0]
        del headers["Content-Length"]
    if response.request.path == "/readyz":
        # It tells an age.
        del headers["Content-Length"]
    return headers


def test_every_address_says_which_methods_it_has_without_a_token(
    client: DescribedClient, app: Flask, world: World
) -> None:
    methods: dict[str, set[str]] = {}
    for method, rule in routes(app):
        methods.setdefault(address(rule.rule, world), set()).update({method, "OPTIONS"})

    for url, expected in methods.items():
        response = client.options(url)
        assert response.status_code == 200, url
        assert response.data == b""
        assert response.allow.as_set(preserve_casing=True) == expected | (
            {"HEAD"} if "GET" in expected else set()
        )


def test_a_method_that_an_address_has_not_is_a_problem_that_names_those_it_has(
    client: DescribedClient, app: Flask, world: World
) -> None:
    for url in {address(rule.rule, world) for _, rule in routes(app)}:
        for method in ("DELETE", "TRACE", "BREW"):
            response = client.open(url, method=method)
            assert_problem(response, 405)
            assert "OPTIONS" in response.allow


def test_there_is_nothing_to_say_of_an_address_that_is_none(client: DescribedClient) -> None:
    for method in ("HEAD", "OPTIONS", "BREW"):
        assert client.open("/api/v1/nothing", method=method).status_code == 404


# Security ---------------------------------------------------------------------------------------------------


def test_every_answer_keeps_browsers_from_making_more_of_it(
    client: DescribedClient, app: Flask, world: World
) -> None:
    urls = [address(rule.rule, world) for _, rule in routes(app)]

    for url in [*urls, "/api/v1/nothing"]:
        for response in (client.open(url, method=m, buffered=True) for m in ("GET", "OPTIONS", "DELETE")):
            for name, value in ALWAYS.items():
                assert response.headers.getlist(name) == [value], url
            (policy,) = response.headers.getlist("Content-Security-Policy")
            assert "frame-ancestors 'none'" in policy
            page = response.status_code == 200 and response.mimetype == "text/html" and response.data
            assert page or policy == "default-src 'none'; frame-ancestors 'none'", url
            assert "Strict-Transport-Security" not in response.headers
            assert "Access-Control-Allow-Origin" not in response.headers


def test_nothing_that_is_anyones_own_is_kept_by_caches(client: DescribedClient, world: World) -> None:
    company, operator = world.token(world.company()), world.operator()
    answers = [
        client.post("/api/v1/register", json=registration()),
        client.get("/api/v1/companies/me", headers=company),
        client.get("/api/v1/company-packages/current", headers=company),
        client.get("/api/v1/company-payments", headers=operator),
        client.get("/api/v1/companies/me"),
        client.get("/api/v1/packages"),
        client.get("/healthz"),
    ]

    assert {answer.headers["Cache-Control"] for answer in answers} == {"no-store"}
    package = client.get(f"/api/v1/packages/{world.package().id}")
    assert package.headers["Cache-Control"] == "no-cache"
    assert "max-age" in client.get("/docs/assets/css/swagger-ui.css", buffered=True).headers["Cache-Control"]


@pytest.fixture
def make_client(shared_url: str, tmp_path: Path) -> Iterator[Any]:
    made: list[Flask] = []

    def make(**settings: str) -> FlaskClient:
        made.append(create_app(settings_for(shared_url, tmp_path, **settings)))
        return made[-1].test_client()

    yield make
    for app in made:
        with app.app_context():
            db.engine.dispose()


@pytest.mark.parametrize(
    ("env", "proxies", "scheme", "expected"),
    [
        ("production", "1", "https", True),
        ("production", "1", "http", False),
        ("production", "0", "https", False),  # whoever says so is not believed
        ("development", "1", "https", False),
    ],
)
def test_browsers_are_told_to_stay_with_https_where_they_came_by_it(
    make_client: Any, env: str, proxies: str, scheme: str, expected: bool
) -> None:
    client = make_client(
        VADE_ENV=env, JWT_SECRET_KEY="a secret of more than 32 bytes in all", TRUSTED_PROXIES=proxies
    )

    response = client.get("/healthz", headers={"X-Forwarded-Proto": scheme})

    assert (response.headers.get("Strict-Transport-Security") == "max-age=31536000") is expected


# Other origins ----------------------------------------------------------------------------------------------


def preflight(client: FlaskClient, origin: str, url: str = "/api/v1/packages/1") -> Any:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "authorization, if-match, x-other",
    }
    return client.options(url, headers=headers)


def shared_with(response: Any) -> str | None:
    assert "Access-Control-Allow-Credentials" not in response.headers
    found: list[str] = response.headers.getlist("Access-Control-Allow-Origin")
    assert len(found) <= 1
    return found[0] if found else None


def test_no_other_origin_is_let_in_unless_it_is_named(make_client: Any) -> None:
    client = make_client()

    assert shared_with(preflight(client, ORIGIN)) is None
    assert shared_with(client.get("/api/v1/packages", headers={"Origin": ORIGIN})) is None


def test_named_origins_are_let_in_and_no_others(make_client: Any) -> None:
    client = make_client(CORS_ORIGINS=f"{ORIGIN}, http://localhost:3000,http://[::1]:3000")

    for origin in (ORIGIN, "http://localhost:3000", "http://[::1]:3000"):
        assert shared_with(preflight(client, origin)) == origin
        for url in ("/api/v1/packages", "/api/v1/companies/me", "/api/v1/nothing", "/openapi.json"):
            response = client.get(url, headers={"Origin": origin})
            assert shared_with(response) == origin, url
            shown = response.headers["Access-Control-Expose-Headers"].split(", ")
            assert sorted(shown) == sorted(SHOWN)
    others = ["https://shop.example.evil.example", "http://shop.example", "https://xshop.example"]
    for origin in [*others, f"{ORIGIN}:444", "null", "http://:", "http://localhost:30000"]:
        assert shared_with(preflight(client, origin)) is None, origin
        response = client.get("/api/v1/packages", headers={"Origin": origin})
        assert shared_with(response) is None
        assert response.status_code == 200
        assert "Origin" in response.vary
    assert shared_with(client.get("/api/v1/packages")) is None
    assert "Origin" in client.get("/api/v1/packages").vary


def test_a_preflight_says_what_may_be_sent(make_client: Any) -> None:
    response = preflight(make_client(CORS_ORIGINS=ORIGIN), ORIGIN)

    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Headers"] == "authorization, if-match"
    assert "PATCH" in response.headers["Access-Control-Allow-Methods"]
    assert int(response.headers["Access-Control-Max-Age"]) > 0


def test_a_star_lets_everyone_in_but_not_to_the_pages(make_client: Any) -> None:
    client = make_client(CORS_ORIGINS="*", METRICS_TOKEN="x" * 32)

    assert shared_with(preflight(client, ORIGIN)) == "*"
    assert shared_with(client.get("/api/v1/packages", headers={"Origin": ORIGIN})) == "*"
    assert shared_with(client.get("/docs", headers={"Origin": ORIGIN})) is None
    assert shared_with(client.get("/metrics", headers={"Origin": ORIGIN})) is None
