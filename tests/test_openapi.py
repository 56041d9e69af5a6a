"""The API's description is valid, complete and true; its reference loads nothing from elsewhere.

That every answer is as described is checked by the client of all tests: `tests.api.DescribedClient`.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.api import DescribedClient, description, path_of
from web.access import Access, access_of, takes_body

BEARER: Any = [{"bearer": []}]


def operations(app: Flask) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in description(app)["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def routes(app: Flask) -> Iterator[tuple[str, str, Any]]:
    """Every route but those of the description itself, with its view."""
    for rule in app.url_map.iter_rules():
        if not str(rule.endpoint).startswith("docs."):
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
                yield path_of(rule.rule), method, app.view_functions[rule.endpoint]


def test_the_description_is_valid_openapi_3_1(client: DescribedClient) -> None:
    document = client.get("/openapi.json").json

    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"].startswith("3.1.")


def test_the_description_has_no_nulls_but_the_defaults_that_are_null(client: DescribedClient) -> None:
    def nulls(value: Any, path: str = "") -> Iterator[str]:
        if isinstance(value, dict):
            for key, entry in value.items():
                yield from nulls(entry, f"{path}/{key}")
        elif isinstance(value, list):
            for number, entry in enumerate(value):
                yield from nulls(entry, f"{path}/{number}")
        elif value is None:
            yield path

    found = list(nulls(client.get("/openapi.json").json))

    assert all(path.endswith("/default") or "/example/" in path for path in found), found


def test_what_is_described_exists_and_what_exists_is_described(app: Flask) -> None:
    described = {(path, method) for path, method, _ in operations(app)}

    assert described == {(path, method) for path, method, _ in routes(app)}


def test_every_operation_says_what_it_does_and_has_a_name_of_its_own(app: Flask) -> None:
    found = [operation for _, _, operation in operations(app)]

    assert len({operation["operationId"] for operation in found}) == len(found)
    for operation in found:
        assert operation["summary"]
        assert operation["tags"]
        assert len(operation["description"]) > 10
        assert "<" not in operation["description"], "CommonMark, not HTML"


def test_every_operation_says_who_may_call_it_and_how_it_is_refused(app: Flask) -> None:
    views = {(path, method): view for path, method, view in routes(app)}

    for path, method, operation in operations(app):
        view = views[path, method]
        answers = set(operation["responses"])
        public = access_of(view) is Access.PUBLIC
        assert operation["security"] == ([] if public else BEARER)
        assert "500" in answers
        assert public or {"401", "403"} <= answers
        assert takes_body(view) == ("requestBody" in operation)
        assert not takes_body(view) or {"400", "413", "415", "422"} <= answers
        places = {parameter["in"] for parameter in operation.get("parameters", [])}
        assert not {"path", "query"} & places or "422" in answers
        for status, answer in operation["responses"].items():
            if status in {"204", "304"}:
                assert "content" not in answer
                continue
            (media_type,) = answer["content"]
            is_problem = int(status) >= 400 and path != "/readyz"
            assert media_type == (
                "application/problem+json" if is_problem or status == "500" else "application/json"
            )
            assert answer["content"][media_type]["schema"]["$ref"].startswith("#/components/schemas/")


def test_the_limits_of_fields_are_described(app: Flask) -> None:
    schemas = description(app)["components"]["schemas"]
    parameters = {
        (path, parameter["name"]): parameter["schema"]
        for path, _, operation in operations(app)
        for parameter in operation.get("parameters", [])
    }

    limit = parameters["/api/v1/company-payments", "limit"]
    assert (limit["minimum"], limit["maximum"], limit["default"]) == (1, 100, 20)
    assert parameters["/api/v1/packages/{id}", "id"]["maximum"] == 2**63 - 1
    password = schemas["RegisterBody"]["properties"]["password"]
    assert (password["minLength"], password["maxLength"]) == (8, 128)
    for name in ("RegisterBody", "LoginBody", "CompanyChanges", "NewPackage", "PackageChanges", "Assignment"):
        assert schemas[name]["additionalProperties"] is False
    for name in ("CompanyChanges", "PackageChanges"):
        assert "required" not in schemas[name]
        assert all("default" not in field for field in schemas[name]["properties"].values())


def test_nothing_of_the_inside_is_described(client: DescribedClient) -> None:
    document = client.get("/openapi.json").text

    for inside in ("password_hash", "billing_day", "passivated_at", "full_days", "idempotency_key"):
        assert inside not in document


def test_the_reference_loads_files_of_its_own_origin_that_exist(client: DescribedClient) -> None:
    page = client.get("/docs")

    assert page.status_code == 200
    assert page.mimetype == "text/html"
    loaded = re.findall(r'(?:src|href|url)\s*[=:]\s*"([^"]*)"', page.text)
    assert {"/openapi.json", "/docs/assets/css/swagger-ui.css", "/docs/assets/js/swagger-ui-bundle.js"} <= {
        *loaded
    }
    for address in loaded:
        assert address == "data:," or re.match(r"/(?!/)", address), address
        if address.startswith("/"):
            with client.get(address) as file:
                assert file.status_code == 200, address
    assert not re.search(r"https?://|@import|//cdn", page.text)


def test_the_style_of_the_reference_loads_nothing_more(client: DescribedClient) -> None:
    with client.get("/docs/assets/css/swagger-ui.css") as file:
        style = file.text

    loaded = [
        address
        for address in re.findall(r"url\(\s*[\"']?([^\"')]+)", style)
        if not address.startswith("data:")
    ]
    assert loaded == []
    assert "@import" not in style


@pytest.mark.parametrize(
    "name", ["nothing.js", "../swagger.html", "%2e%2e/%2e%2e/__init__.py", "/etc/passwd", "js"]
)
def test_only_the_files_of_the_reference_are_served(client: DescribedClient, name: str) -> None:
    response = client.get(f"/docs/assets/{name}", follow_redirects=True)

    assert response.status_code == 404
    assert json.loads(response.data)["title"] == "Not found"
