"""Calls to the API: a client that holds every answer to the description, and what a problem must be."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from openapi_schema_validator import OAS31Validator, oas31_format_checker
from sqlalchemy import text
from sqlalchemy.orm import Session
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse

from models import Base
from tests.world import PASSWORD
from web.languages import LANGUAGES
from web.openapi import describe
from web.problem_types import problem_types

SLUGS = {
    400: "bad-request",
    401: "invalid-token",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    413: "request-entity-too-large",
    415: "unsupported-media-type",
    422: "validation-error",
    429: "too-many-requests",
    500: "internal-error",
}


class DescribedClient(FlaskClient):
    """A client whose every call fails where the answer is not as the OpenAPI document says."""

    # `Any` because an answer's `json` may be None to the type checker.
    def open(self, *args: Any, **kwargs: Any) -> Any:
        response = super().open(*args, **kwargs)
        assert_described(self.application, response)
        return response

    def get(self, *args: Any, **kwargs: Any) -> Any:
        return super().get(*args, **kwargs)

    def post(self, *args: Any, **kwargs: Any) -> Any:
        return super().post(*args, **kwargs)

    def patch(self, *args: Any, **kwargs: Any) -> Any:
        return super().patch(*args, **kwargs)


def assert_described(app: Flask, response: TestResponse) -> None:
    """Status, headers, media type and body are among the answers that are described for the operation."""
    request = response.request
    if request.method in {"HEAD", "OPTIONS"}:
        return
    try:
        rule, _ = app.url_map.bind("").match(request.path, request.method, return_rule=True)
    except HTTPException:
        return
    if str(rule.endpoint).startswith("docs."):
        return
    operation = description(app)["paths"][path_of(rule.rule)][request.method.lower()]
    answers = operation["responses"]
    assert str(response.status_code) in answers, f"{request} answers {response.status_code}: {response.text}"
    _assert_headers(app, response, answers[str(response.status_code)].get("headers", {}))
    content = answers[str(response.status_code)].get("content")
    if content is None:
        assert response.data == b""
        return
    assert response.mimetype in content
    name = content[response.mimetype]["schema"]["$ref"].rpartition("/")[2]
    _validator(name, json.dumps(description(app)["components"])).validate(response.json)


def _assert_headers(app: Flask, response: TestResponse, described: dict[str, Any]) -> None:
    """Headers that are described for some answers come with these, and with no others."""
    known = description(app)["components"]["headers"]
    assert {name for name in known if name in response.headers} <= described.keys()
    for name in described:
        if known[name].get("required") or name in response.headers:
            schema = known[name]["schema"]
            text_ = response.headers[name]
            value = int(text_) if schema["type"] == "integer" else text_
            OAS31Validator(schema, format_checker=oas31_format_checker).validate(value)


def description(app: Flask) -> dict[str, Any]:
    """Return the OpenAPI document of an application."""
    with app.app_context():
        return describe()


def path_of(rule: str) -> str:
    """Return a route as OpenAPI writes it."""
    return rule.replace("<", "{").replace(">", "}")


@cache
def _validator(name: str, components: str) -> OAS31Validator:
    schema = {"$ref": f"#/components/schemas/{name}", "components": _closed(json.loads(components))}
    return OAS31Validator(schema, format_checker=oas31_format_checker)


def _closed(schema: Any) -> Any:
    """An answer has no member that is not described: it might be a secret."""
    if isinstance(schema, list):
        return [_closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(entry) for key, entry in schema.items()}
    if isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


def assert_problem(
    response: TestResponse, status: int, slug: str | None = None, *, pointers: Sequence[str] = ()
) -> dict[str, Any]:
    """The answer is a problem document (RFC 9457) that is complete and tells nothing of our insides."""
    assert response.status_code == status, response.text
    assert response.content_type == "application/problem+json"
    document: dict[str, Any] = json.loads(response.data)
    members = {"type", "title", "status", "detail"}
    assert set(document) == (members | {"errors"} if status == 422 else members)
    assert document["type"] == f"/problems/{slug or SLUGS[status]}"
    assert document["type"] in {type_.uri for type_ in problem_types().values()}, "it leads to no page"
    assert document["status"] == status
    assert response.headers["Content-Language"] in LANGUAGES
    assert "accept-language" in response.vary
    assert _is_sentence(document["detail"])
    assert document["title"] == document["title"].capitalize() != ""
    for inside in ("Traceback", "psycopg", "sqlalchemy", "pydantic", PASSWORD):
        assert inside not in response.text
    if status == 401:
        assert response.headers["WWW-Authenticate"] == "Bearer"
    if status == 405:
        assert response.headers["Allow"]
    if status in {429, 503}:
        assert int(response.headers["Retry-After"]) >= 1
    if status == 422:
        assert sorted({error["pointer"] for error in document["errors"]}) == sorted(pointers)
        assert all(_is_sentence(error["detail"]) for error in document["errors"])
    return document


def _is_sentence(text: str) -> bool:
    return text[0].isupper() and text.endswith(".") and not text.endswith("..")


def registration(**changes: Any) -> dict[str, Any]:
    """What a store sends when it registers."""
    return {
        "site_url": "https://gül.example/mağaza",
        "name": "Gül",
        "lastname": "Şahin",
        "company_name": "Gül Çiçekçilik",
        "email": "Gul@Cicek.example",
        "password": PASSWORD,
    } | changes


OPERATORS = ("operators", "operator_tokens")
"""What no request writes, and `World.operator` does."""


def contents(session: Session, *, but: Sequence[str] = OPERATORS) -> dict[str, str]:
    """A digest of each table: what a rejected request leaves as it was."""
    return {
        table: session.execute(
            text(
                f"SELECT md5(coalesce(string_agg(t::text, chr(10) ORDER BY t::text), '')) FROM \"{table}\" t"
            )
        ).scalar_one()
        for table in Base.metadata.tables
        if table not in but
    }
