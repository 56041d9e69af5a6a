"""Bad input: a problem document that says which field and why, and nothing stored."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, cast

import pytest

from billing import packages
from config import PROJECT_DIR
from models import MAXIMUM_PRICE_MINOR, Company, Package
from tests.api import DescribedClient, assert_problem, contents, registration
from tests.world import PASSWORD, World

HUGE = "a number of five thousand digits"
"""Stands for it in a body: Python refuses to write one itself."""

KIB = 1024


@dataclass(frozen=True)
class Endpoint:
    """One that takes a body: who calls, and a body that is good."""

    method: str
    path: str
    headers: Callable[[World, Company], dict[str, str]]
    body: Callable[[Company, Package], dict[str, Any]]


def _nobody(_world: World, _company: Company) -> dict[str, str]:
    return {}


def _operator(world: World, _company: Company) -> dict[str, str]:
    return world.operator()


ENDPOINTS = {
    "register": Endpoint("POST", "/api/v1/register", _nobody, lambda _c, _p: registration()),
    "log in": Endpoint(
        "POST", "/api/v1/login", _nobody, lambda c, _p: {"email": c.email, "password": PASSWORD}
    ),
    "change company": Endpoint(
        "PATCH", "/api/v1/companies/me", World.token, lambda _c, _p: {"name": "Özge", "callback_url": None}
    ),
    "create package": Endpoint(
        "POST",
        "/api/v1/packages",
        _operator,
        lambda _c, _p: {"name": "Kurumsal", "period": "monthly", "price_minor": 1, "currency": "TRY"},
    ),
    "change package": Endpoint(
        "PATCH", "/api/v1/packages/{package}", _operator, lambda _c, _p: {"price_minor": 7}
    ),
    "take package": Endpoint(
        "POST",
        "/api/v1/company-packages",
        World.token,
        lambda c, p: {"company_id": c.id, "package_id": p.id},
    ),
    "give package": Endpoint(
        "POST", "/api/v1/company-packages", _operator, lambda c, p: {"company_id": c.id, "package_id": p.id}
    ),
    "recover callbacks": Endpoint(
        "POST",
        "/api/v1/callback-endpoint/recover",
        World.token,
        lambda _c, _p: {"since": "2026-01-10T09:00:00Z"},
    ),
}


class Caller:
    """Calls one endpoint, as one who may."""

    def __init__(self, client: DescribedClient, world: World, name: str) -> None:
        self.endpoint = ENDPOINTS[name]
        self.world = world
        self.company = world.company(name="Gül", status=0)
        self.package = world.package()
        self.body = self.endpoint.body(self.company, self.package)
        self._headers = self.endpoint.headers(world, self.company)
        self._client = client

    def send(self, body: Any) -> Any:
        """Send a value as JSON."""
        return self.send_raw(json.dumps(body).replace(f'"{HUGE}"', "9" * 5000))

    def send_raw(self, data: str | bytes, *, content_type: str | None = "application/json") -> Any:
        """Send a body as it is."""
        path = self.endpoint.path.replace("{package}", str(self.package.id))
        return self._client.open(
            path, method=self.endpoint.method, data=data, headers=self._headers, content_type=content_type
        )

    def with_field(self, field: str, value: Any) -> Any:
        """Send the good body, but for one field."""
        return self.send(self.body | {field: value})


@pytest.fixture
def call(client: DescribedClient, world: World, request: pytest.FixtureRequest) -> Iterator[Caller]:
    """Calls the endpoint that the test is about; nothing may have been stored at the end."""
    caller = Caller(client, world, request.param)
    before = contents(world.session)
    yield caller
    assert contents(world.session) == before


every_endpoint = pytest.mark.parametrize("call", ENDPOINTS, indirect=True)


# Fields -----------------------------------------------------------------------------------------------------

NO_TEXT: list[Any] = [None, True, 7, 1.5, [], ["x"], {}]
CONTROLS = [
    "a\0b",
    "\0",
    "a\x07",
    "a\tb",
    "a\rb",
    "\x1b[31m",
    "a\x7f",
    "a\x85b",
    "a\u202eb",
    "a\u2028b",
    "\ufeffa",
]
HALVES = ["\ud800", "a\udfffb", "\udc00\ud800"]
BAD_TEXT = [*NO_TEXT, "", " ", "\n\t ", "\u00a0", "x" * 201, "🌹" * 201, *CONTROLS, *HALVES]
BAD_EMAIL = [
    *NO_TEXT,
    "",
    "gul",
    "gul@",
    "@gul.example",
    "gul@gul",
    "gul@localhost",
    "gul gul@gul.example",
    "gul@gul..example",
    "gul@-gul.example",
    "gul@gul_.example",
    "gul@gul.example ",
    " gul@gul.example",
    "gul@gul.example\n",
    "gul@@gul.example",
    "gul@gul@gul.example",
    "Gul <gul@gul.example>",
    "mailto:gul@gul.example",
    "a@gul.example,b@gul.example",
    "gul@[127.0.0.1]",
    '"gul gul"@gul.example',
    ".gul@gul.example",
    "gul.@gul.example",
    "gul..gul@gul.example",
    "gul@gul.example\0",
    "gul\0@gul.example",
    "gul@g\u200bul.example",
    "\ud800@gul.example",
    "x" * 65 + "@gul.example",
    "gul@" + "x" * 64 + ".example",
    "gul@" + "gul." * 63 + "example",
]
BAD_URL = [
    *NO_TEXT,
    "",
    "gul",
    "gul.example",
    "www.gul.example/",
    "//gul.example",
    "/gul",
    "ftp://gul.example",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "data:text/html,gul",
    "mailto:gul@gul.example",
    "http:",
    "http://",
    "http:///gul",
    "http:gul.example",
    "http:/gul.example",
    "http:\\\\gul.example",
    "http://gul.example\\@evil.example",
    "http://gul example",
    "http://gul.example/a b",
    " http://gul.example",
    "http://gul.example\n",
    "http://gul.example/\0",
    "http://gul.example/\u202e",
    "http://[::1",
    "http://[gul]",
    "http://gul..example",
    "http://.",
    "http://-gul.example",
    "http://*.example",
    "http://gul,example",
    "http://gul.example:65536",
    "http://gul.example:gul",
    "http://256.256.256.256",
    "http://1.2.3.4.5",
    "http://\ud800.example",
    "https://gul.example/" + "x" * 2048,
]
BAD_NEW_PASSWORD = [
    *NO_TEXT,
    12345678,
    "",
    "7 chars",
    "x" * 129,
    *(f"password{c}" for c in CONTROLS),
    "password\ud800",
]
BAD_PASSWORD = [*NO_TEXT, 12345678, "", "x" * 129, *(f"password{c}" for c in CONTROLS), "password\ud800"]
BAD_ID: list[Any] = [
    None,
    True,
    False,
    1.5,
    1.0,
    "1",
    "",
    0,
    -1,
    2**63,
    2**64,
    10**30,
    1e308,
    HUGE,
    [],
    [1],
    {},
]
BAD_PRICE: list[Any] = [
    None,
    True,
    False,
    1.5,
    1.0,
    "100",
    "",
    -1,
    MAXIMUM_PRICE_MINOR + 1,
    2**63,
    1e3,
    HUGE,
    [],
    {},
]
BAD_PERIOD: list[Any] = [*NO_TEXT, "", "weekly", "Monthly", "monthly ", "monthly\0", "\ud800"]
BAD_CURRENCY: list[Any] = [*NO_TEXT, "", "try", "TL", "TRYY", "TRY\n", " TRY", "ŞŞŞ", "T\0Y", "949", "\ud800"]
BAD_STATUS: list[Any] = [None, True, False, 1.0, 0.5, "1", "", 2, -1, 2**63, HUGE, [], {}]
BAD_INSTANT_TEXT = [
    "",
    "now",
    "yesterday",
    "0",
    "1769990400",
    "2026-02-10",
    "2026-02-10T",
    "2026-02-30T00:00:00Z",
    "2026-02-10T24:00:01Z",
    "2026-02-10T00:00:00",
    "2026-02-10 00:00:00Z",
    "2026-02-10T00:00:00Z ",
    " 2026-02-10T00:00:00Z",
    "2026-02-10T00:00:00+25:00",
    "٢٠٢٦-02-10T00:00:00Z",
    "0001-01-01T00:00:00+03:00",
    "9999-12-31T23:59:59-12:00",
    "-2026-02-10T00:00:00Z",
    "x" * 5000,
]
BAD_INSTANT: list[Any] = [*NO_TEXT, *BAD_INSTANT_TEXT, "\ud800", 1769990400, 1e9, HUGE]

FIELDS = [
    ("register", "site_url", BAD_URL),
    ("register", "name", BAD_TEXT),
    ("register", "lastname", BAD_TEXT),
    ("register", "company_name", BAD_TEXT),
    ("register", "email", BAD_EMAIL),
    ("register", "password", BAD_NEW_PASSWORD),
    ("log in", "email", BAD_EMAIL),
    ("log in", "password", BAD_PASSWORD),
    ("change company", "site_url", BAD_URL),
    ("change company", "name", BAD_TEXT),
    ("change company", "lastname", BAD_TEXT),
    ("change company", "company_name", BAD_TEXT),
    ("change company", "callback_url", [url for url in BAD_URL if url is not None]),
    ("create package", "name", BAD_TEXT),
    ("create package", "period", BAD_PERIOD),
    ("create package", "price_minor", BAD_PRICE),
    ("create package", "currency", BAD_CURRENCY),
    ("change package", "name", BAD_TEXT),
    ("change package", "price_minor", BAD_PRICE),
    ("change package", "status", BAD_STATUS),
    ("take package", "company_id", BAD_ID),
    ("take package", "package_id", BAD_ID),
    ("give package", "company_id", BAD_ID),
    ("give package", "package_id", BAD_ID),
]


@pytest.mark.parametrize(
    ("call", "field", "values"),
    FIELDS,
    ids=[f"{name}, {field}" for name, field, _ in FIELDS],
    indirect=["call"],
)
def test_a_value_that_is_none_of_its_field_is_refused_there(
    call: Caller, field: str, values: Iterable[Any]
) -> None:
    for value in values:
        response = call.with_field(field, value)
        assert_problem(response, 422, pointers=[f"#/{field}"])


def pointers(response: Any) -> list[str]:
    assert response.status_code == 422, response.text
    return [error["pointer"] for error in response.json["errors"]]


@pytest.mark.parametrize("call", ["recover callbacks"], indirect=True)
def test_an_instant_of_a_body_that_is_none_is_refused_there(call: Caller) -> None:
    for value in BAD_INSTANT:
        assert pointers(call.with_field("since", value)) == ["#/since"], value


@pytest.mark.parametrize("name", ["since", "until"])
def test_an_instant_of_a_query_that_is_none_is_refused_there(
    client: DescribedClient, world: World, name: str
) -> None:
    for value in [*BAD_INSTANT_TEXT, "2026-02-10T00:00:00 03:00"]:
        response = client.get("/api/v1/callbacks", query_string={name: value}, headers=world.operator())
        assert pointers(response) == [f"#/{name}"], value


@pytest.mark.parametrize(
    "value",
    [
        "2026-02-10T00:00:00Z\0",
        "2026-W07-2T00:00:00Z",
        "20260210T000000Z",
        "2026-02-10T00Z",
        "2026-02-10T00:00:00,5Z",
        "2026-02-10T00:00:00+00:00:30",
    ],
)
def test_an_instant_that_is_not_of_rfc_3339_is_refused(
    client: DescribedClient, world: World, value: str
) -> None:
    response = client.get("/api/v1/callbacks", query_string={"since": value}, headers=world.operator())

    assert pointers(response) == ["#/since"]


@pytest.mark.parametrize("call", ["recover callbacks"], indirect=True)
def test_an_instant_that_is_none_is_refused_in_a_sentence_that_does_not_repeat_it(
    client: DescribedClient, world: World, call: Caller
) -> None:
    for value in BAD_INSTANT_TEXT:
        query = {"since": value}
        for response in (
            call.with_field("since", value),
            client.get("/api/v1/callbacks", query_string=query, headers=world.operator()),
        ):
            problem = assert_problem(response, 422, pointers=["#/since"])
            assert len(json.dumps(problem)) < 500


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (name, field)
        for name, fields in {
            "register": ["site_url", "name", "lastname", "company_name", "email", "password"],
            "log in": ["email", "password"],
            "create package": ["name", "period", "price_minor", "currency"],
            "take package": ["company_id", "package_id"],
            "give package": ["company_id", "package_id"],
            "recover callbacks": ["since"],
        }.items()
        for field in fields
    ],
    indirect=["call"],
)
def test_a_missing_field_is_named(call: Caller, field: str) -> None:
    response = call.send({name: value for name, value in call.body.items() if name != field})

    problem = assert_problem(response, 422, pointers=[f"#/{field}"])
    assert problem["errors"] == [{"pointer": f"#/{field}", "detail": "This field is missing."}]


@every_endpoint
def test_an_unknown_field_is_named(call: Caller) -> None:
    for field, pointer in (
        ("id", "#/id"),
        ("Name", "#/Name"),
        ("role", "#/role"),
        ("billing_day", "#/billing_day"),
        ("", "#/"),
        ("a/b~c", "#/a~1b~0c"),
        ("ş %", "#/%C5%9F%20%25"),
        ("__proto__", "#/__proto__"),
    ):
        problem = assert_problem(call.with_field(field, 1), 422, pointers=[pointer])
        assert problem["errors"][0]["detail"] == "This field is unknown."
    # What is no Unicode cannot be named in an answer.
    assert_problem(call.with_field("\ud800", 1), 422, pointers=["#"])


@pytest.mark.parametrize("call", ["register", "create package", "take package"], indirect=True)
def test_all_fields_are_named_at_once(call: Caller) -> None:
    response = call.send({"more": 1})

    assert_problem(response, 422, pointers=["#/more", *(f"#/{field}" for field in call.body)])


def test_not_more_than_a_hundred_fields_are_named(client: DescribedClient, world: World) -> None:
    call = Caller(client, world, "change package")

    response = call.send({f"x{number:05}": 1 for number in range(5_000)})

    assert_problem(response, 422, pointers=[f"#/x{number:05}" for number in range(100)])


# Bodies -----------------------------------------------------------------------------------------------------


@every_endpoint
def test_what_is_no_object_is_refused(call: Caller) -> None:
    for data in ("[]", "[{}]", '"{}"', "null", "true", "1", "1.5", '""', json.dumps([call.body])):
        problem = assert_problem(call.send_raw(data), 422, pointers=["#"])
        assert problem["errors"][0]["detail"] == "The body must be a JSON object."


BROKEN: list[str | bytes] = [
    "",
    " ",
    "{",
    "}",
    "{]",
    '{"name"}',
    '{"name":}',
    '{"name":"x",}',
    "{'name':'x'}",
    '{name:"x"}',
    '{"name":"x"} {}',
    '{"name":"\t"}',
    '{"name":"\0"}',
    '{"name":"x"}\0',
    '{"price_minor":NaN}',
    '{"price_minor":Infinity}',
    '{"price_minor":-Infinity}',
    '{"price_minor":01}',
    '{"price_minor":0x1}',
    '{"price_minor":+1}',
    "// none",
    "name=x&lastname=y",
    "<name>x</name>",
    b"\xff\xfe\x00",
    b'{"name":"\xff"}',
    b'{"name":"\xed\xa0\x80"}',
    "[" * 30_000,
    "[" * 30_000 + "]" * 30_000,
    '{"name":' * 6_000 + "1" + "}" * 6_000,
]


@every_endpoint
def test_broken_json_is_a_bad_request(call: Caller) -> None:
    for data in BROKEN:
        assert_problem(call.send_raw(data), 400)


@every_endpoint
def test_a_field_that_is_deeply_nested_is_refused_like_any_other(call: Caller) -> None:
    data = '{"more":' + "[" * 200 + "]" * 200 + "}"

    problem = assert_problem(call.send_raw(data), 422, pointers=[*_missing(call), "#/more"])

    assert "[[" not in json.dumps(problem), "what was sent is not repeated"


def _missing(call: Caller) -> list[str]:
    return [f"#/{field}" for field in call.body] if call.endpoint.method == "POST" else []


NO_JSON = [
    None,
    "",
    "text/plain",
    "text/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/json-patch+json",
    "application/problem+json",
    "application/xml",
    "*/*",
    "json",
]


@every_endpoint
def test_what_is_not_sent_as_json_is_an_unsupported_media_type(call: Caller) -> None:
    for content_type in NO_JSON:
        assert_problem(call.send_raw(json.dumps(call.body), content_type=content_type), 415)


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/json;charset=UTF-8"]
)
def test_a_charset_may_be_said(client: DescribedClient, world: World, content_type: str) -> None:
    call = Caller(client, world, "change company")

    response = call.send_raw('{"name":"Özge"}'.encode(), content_type=content_type)

    assert (response.status_code, response.json["name"]) == (200, "Özge")


@every_endpoint
def test_a_body_over_64_kib_is_too_large(call: Caller) -> None:
    exact = json.dumps({"more": "x" * (64 * KIB - 12)})

    assert len(exact) == 64 * KIB
    assert_problem(call.send_raw(exact), 422, pointers=[*_missing(call), "#/more"])
    for data in (exact + " ", "x" * (64 * KIB + 1), "{" + " " * KIB * KIB + "}"):
        assert_problem(call.send_raw(data), 413)


def test_values_and_passwords_are_not_repeated(client: DescribedClient, world: World) -> None:
    call = Caller(client, world, "register")

    for field in call.body:
        response = call.with_field(field, {"secret": "s3cr3t-value"})
        assert "s3cr3t" not in response.text


# Addresses --------------------------------------------------------------------------------------------------

LISTS = ["/api/v1/packages", "/api/v1/company-payments", "/api/v1/callbacks"]
BAD_LIMIT = [
    "0",
    "-1",
    "101",
    "1000000",
    "9" * 30,
    "9" * 5000,
    "",
    "x",
    "1.5",
    "1e1",
    "0x10",
    "%2B1",
    "%201",
    "1%00",
]


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    ("query", "pointers"),
    [
        *((f"limit={value}", ["#/limit"]) for value in [*BAD_LIMIT, "%D9%A1", "true", "null", "%FF"]),
        ("offset=1", ["#/offset"]),
        ("Limit=1", ["#/Limit"]),
        ("limit=1&colour=1&x=2", ["#/colour", "#/x"]),
        ("limit=0&page=2", ["#/limit", "#/page"]),
        ("=", ["#/"]),
    ],
)
def test_a_page_that_is_none_is_refused(
    client: DescribedClient, world: World, path: str, query: str, pointers: list[str]
) -> None:
    response = client.get(f"{path}?{query}", headers=world.operator())

    assert_problem(response, 422, pointers=pointers)


@pytest.mark.parametrize("path", LISTS)
def test_a_forged_cursor_is_refused(client: DescribedClient, world: World, path: str) -> None:
    for _ in range(2):
        world.package()
    good = client.get("/api/v1/packages", query_string={"limit": 1}).json["next_cursor"]
    payload, _, signature = good.rpartition(".")
    forged = [
        "",
        "x",
        ".",
        "1",
        payload,
        f"{payload}.",
        f".{signature}",
        f"{payload}.{signature[::-1]}",
        f"x{good}",
        f"{good}x",
        good.swapcase(),
        "MQ.c2lnbmF0dXJl",
        "\0",
        "ş",
        "x" * 513,
        "x" * 5000,
    ]
    before = contents(world.session)

    for cursor in forged:
        response = client.get(path, query_string={"cursor": cursor}, headers=world.operator())
        assert_problem(response, 422, pointers=["#/cursor"])

    assert contents(world.session) == before


BAD_PATH_IDS = [
    "0",
    "-1",
    "x",
    "1.5",
    "1e0",
    "true",
    "%00",
    "1%00",
    "1%20",
    "%2B1",
    "%D9%A1",
    "9" * 19,
    "9" * 20,
]


@pytest.mark.parametrize("method", ["GET", "PATCH"])
@pytest.mark.parametrize("id_", [*BAD_PATH_IDS, "9" * 5000, str(2**63)], ids=range(len(BAD_PATH_IDS) + 2))
def test_an_id_that_is_none_is_refused(client: DescribedClient, world: World, method: str, id_: str) -> None:
    path = f"/api/v1/packages/{id_}"

    response = client.open(path, method=method, json={"status": 0}, headers=world.operator())

    assert_problem(response, 422, pointers=["#/id"])


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api",
        "/api/v1",
        "/api/v2/packages",
        "/api/v1/nothing",
        "/api/v1/packages/1/2",
        "/%00",
        "/ş",
        "/admin",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_is_at_any_other_address(client: DescribedClient, path: str, method: str) -> None:
    assert_problem(client.open(path, method=method, json={}), 404)


def test_a_method_that_is_not_offered_is_not_allowed(client: DescribedClient, world: World) -> None:
    offered: dict[str, set[str]] = {}
    for rule in world.app.url_map.iter_rules():
        path = rule.rule.replace("<id>", "1").replace("<path:name>", "css/swagger-ui.css")
        offered.setdefault(path, set()).update(rule.methods or ())
    before = contents(world.session)

    for path, methods in offered.items():
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "BREW"} - methods:
            response = client.open(path, method=method, headers=world.operator(), json={})
            if method == "HEAD":
                assert (response.status_code, response.data) == (405, b"")
            else:
                assert_problem(response, 405)
            assert {name.strip() for name in response.headers["Allow"].split(",")} == methods

    assert contents(world.session) == before


def test_head_is_get_without_a_body(client: DescribedClient, world: World) -> None:
    headers = world.token(world.company())

    for path in (
        "/healthz",
        "/api/v1/packages",
        "/api/v1/companies/me",
        "/api/v1/callbacks",
        "/openapi.json",
        "/docs",
    ):
        got, head = (client.open(path, method=method, headers=headers) for method in ("GET", "HEAD"))
        assert (head.status_code, head.data) == (200, b"")
        assert head.headers["Content-Type"] == got.headers["Content-Type"]
        assert head.headers["Content-Length"] == str(len(got.data))
    assert client.head("/api/v1/companies/me").status_code == 401


def test_options_tell_the_methods_and_nothing_else(client: DescribedClient) -> None:
    response = client.options("/api/v1/companies/me")

    assert (response.status_code, response.data) == (200, b"")
    assert {name.strip() for name in response.headers["Allow"].split(",")} == {
        "GET",
        "HEAD",
        "OPTIONS",
        "PATCH",
    }


def test_an_unexpected_error_tells_nothing_of_itself(
    client: DescribedClient,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    package = world.package()
    before = contents(world.session)

    def fail(*_arguments: Any, **_changes: Any) -> None:
        package.name = "half done"
        world.session.flush()
        raise ZeroDivisionError("the secret inside")

    monkeypatch.setattr(packages, "change", fail)
    response = client.patch(f"/api/v1/packages/{package.id}", json={"status": 0}, headers=world.operator())

    problem = assert_problem(response, 500)
    assert "secret" not in json.dumps(problem)
    assert "ZeroDivisionError: the secret inside" in caplog.text, "the log has it"
    assert contents(world.session) == before


# A real server ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real gunicorn, which no request here makes ask a database."""
    environment = os.environ | {
        "DATABASE_URL": "postgresql://127.0.0.1:1/none",
        "INSTANCE_DIR": str(tmp_path_factory.mktemp("gunicorn")),
        "WEB_CONCURRENCY": "1",
        "RATE_LIMITS": "off",
    }
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        # It is handed over open, so no other process gets the port meanwhile.
        number = listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--bind", f"fd://{number}", "wsgi:create_app()"],
            cwd=PROJECT_DIR,
            env=environment,
            pass_fds=[number],
        )
        try:
            yield cast(int, listener.getsockname()[1])
        finally:
            process.terminate()
            process.wait(timeout=20)


@pytest.fixture
def connection(server: int) -> Iterator[http.client.HTTPConnection]:
    with closing(http.client.HTTPConnection("127.0.0.1", server, timeout=30)) as opened:
        yield opened


JSON = {"Content-Type": "application/json"}


def _answer(connection: http.client.HTTPConnection) -> tuple[int, str | None, dict[str, Any]]:
    response = connection.getresponse()
    return response.status, response.getheader("Content-Type"), json.loads(response.read())


def _chunks(size: int) -> Iterator[bytes]:
    for _ in range(0, size, KIB):
        yield b" " * KIB


def test_a_body_in_chunks_is_read_up_to_the_limit(connection: http.client.HTTPConnection) -> None:
    body = json.dumps({"email": "none", "password": "x"}).encode()

    connection.request("POST", "/api/v1/login", iter([body[:5], body[5:]]), JSON, encode_chunked=True)
    status, content_type, problem = _answer(connection)

    assert (status, content_type) == (422, "application/problem+json")
    assert [error["pointer"] for error in problem["errors"]] == ["#/email"]


@pytest.mark.parametrize("size", [65 * KIB, 1024 * KIB])
def test_a_body_in_chunks_that_is_too_large_is_refused(
    connection: http.client.HTTPConnection, size: int
) -> None:
    # It may answer and close before all of it was sent.
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", "/api/v1/login", _chunks(size), JSON, encode_chunked=True)
    status, content_type, problem = _answer(connection)

    assert (status, content_type) == (413, "application/problem+json")
    assert problem["detail"] == "A body may have 64 KiB at most."


def test_a_body_whose_length_is_too_large_is_refused_unread(server: int) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", server, timeout=30)) as connection:
        connection.putrequest("POST", "/api/v1/register")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(10**12))
        connection.endheaders()
        began = time.monotonic()
        status, content_type, _ = _answer(connection)

    assert (status, content_type) == (413, "application/problem+json")
    assert time.monotonic() - began < 25


def test_what_follows_a_refused_body_is_not_taken_for_a_request(server: int) -> None:
    smuggled = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    body = b" " * (70 * KIB) + smuggled
    head = (
        "POST /api/v1/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )

    with closing(socket.create_connection(("127.0.0.1", server), timeout=30)) as raw:
        answer = b""
        with suppress(ConnectionError):
            raw.sendall(head.encode() + body)
            raw.shutdown(socket.SHUT_WR)
            while part := raw.recv(65536):
                answer += part

    assert answer.count(b"HTTP/1.1 ") <= 1
    assert b'"alive"' not in answer
