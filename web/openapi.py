"""The API's description: OpenAPI 3.1 from the routes, completed with access and problem types."""

from http import HTTPStatus
from inspect import signature
from typing import Any

from flask import Flask, current_app
from flask_openapi3 import Info, OpenAPI, Tag
from flask_openapi3.models import Schema
from pydantic import BaseModel

from billing.errors import JobSettledError, OperatorError
from models import Role
from web import manners
from web.access import Access, access_of, takes_body
from web.bodies import StrictJSON
from web.conditions import is_conditional
from web.idempotency import is_idempotent
from web.problem_types import problem_types
from web.problems import MEDIA_TYPE, from_validation_error
from web.reference import complete, operation_name
from web.rights import RIGHTS
from web.schemas import Problem, ValidationProblem
from web.webhooks import message_schemas, webhooks

VERSION = "0.1.0"
BEARER = "bearer"

DESCRIPTION = """Subscription billing: companies register, take a package, and are billed when a period ends.

Money is an integer in minor units. Dates are `YYYY-MM-DD`, instants RFC 3339 in UTC. Get a token from
*Register* or *Log in* and send it as `Authorization: Bearer …`. Every error is a problem document (RFC 9457),
in Turkish where `Accept-Language` prefers it.
"""

REASONS = {
    400: "Malformed JSON, or a malformed header",
    401: "Missing, expired or invalid token",
    403: "Not this caller's",
    409: "A request with this Idempotency-Key is under way",
    412: "It is another version: see If-Match",
    413: "The body is over 64 KiB",
    415: "The body is not application/json",
    422: "A field is refused: see errors",
    500: "Something went wrong on our side",
    503: "The database does not answer",
}

OF_COMMANDS = {JobSettledError.slug, OperatorError.slug}
"""Types of problem that only commands come upon."""

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Makes it safe to send the request again: within 24 hours the same key with the same "
    "request is done once, and answered as the first time, with `Idempotent-Replayed: true`.",
    # A string of RFC 9651 §3.3.3, or bare.
    "schema": {"type": "string", "pattern": r'^("([ !#-\[\]-~]|\\["\\]){1,255}"|[!#-~]{1,255})$'},
    "example": "8e03978e-40d5-43dd-bc93-6894a57f9324",
}


def make_api(name: str) -> OpenAPI:
    """Return the Flask application that describes itself."""
    app = OpenAPI(
        name,
        info=Info(title="Vade", version=VERSION, description=DESCRIPTION),
        security_schemes={BEARER: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        validation_error_model=ValidationProblem,
        validation_error_callback=from_validation_error,
        doc_ui=False,
        static_folder=None,
    )
    app.json = StrictJSON(app)
    # The routes of blueprints come with their own models; the errors are the same everywhere.
    app.components_schemas["Problem"] = _schema(Problem)
    return app


Responses = dict[str | int | HTTPStatus, type[BaseModel] | dict[Any, Any] | None]


def tag(name: str, description: str) -> Tag:
    """Return a heading of the reference."""
    return Tag(name=name, description=description)


def problems(**titles: str) -> Responses:
    """Return the descriptions of problem answers: ``problems(s409="E-mail taken")``."""
    return {name.removeprefix("s"): problem_answer(title) for name, title in titles.items()}


def problem_answer(description: str, *, model: type[Problem] = Problem) -> dict[str, Any]:
    """Return how an answer that is a problem document is described."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"description": description, "content": {MEDIA_TYPE: {"schema": reference}}}


def describe() -> dict[str, Any]:
    """Return the OpenAPI document of the present application; it never changes while it runs."""
    app = current_app
    document: dict[str, Any] | None = app.extensions.get("vade-openapi")
    if document is None:
        document = _complete(app, app.api_doc)  # type: ignore[attr-defined]
        app.extensions["vade-openapi"] = document
    return document


def _complete(app: Flask, document: dict[str, Any]) -> dict[str, Any]:
    """Add to each operation who may call it and which problems it can answer with."""
    endpoints = {
        (rule.rule.replace("<", "{").replace(">", "}"), method.lower()): rule.endpoint
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            endpoint = endpoints[path, method]
            view = app.view_functions[endpoint]
            who = access_of(view)
            answers = operation["responses"]
            # The library writes the lines of a docstring as HTML; descriptions are CommonMark.
            text = operation["description"].replace("<br/>", "\n")
            statuses = [500, 503]
            if who is Access.PUBLIC:
                operation["security"] = []
            else:
                operation["security"] = [{BEARER: []}]
                text += f"\n\nFor {who}{_role(endpoint)}."
                statuses += [401, 403]
            operation["description"] = text
            if takes_body(view):
                statuses += [400, 413, 415]
            if is_idempotent(view):
                operation["parameters"] = [*(operation.get("parameters") or []), IDEMPOTENCY_KEY]
                statuses += [400, 409]
            if is_conditional(view) and method != "post":
                statuses.append(412)
            for status in statuses:
                answers.setdefault(str(status), problem_answer(REASONS[status]))
            # Also a view that takes no parameter says so of each that comes.
            if is_idempotent(view) or {"body", "path", "query"} & signature(view).parameters.keys():
                answers["422"] = problem_answer(REASONS[422], model=ValidationProblem)
            else:
                answers.pop("422", None)
            manners.say(view, method, operation)
            operation["responses"] = dict(sorted(answers.items()))
    document["info"]["description"] += _list_of_problems()
    document["webhooks"] = webhooks()
    document["components"]["headers"] = manners.HEADERS
    document["components"]["schemas"] = message_schemas() | document["components"].get("schemas", {})
    complete(document, names={place: operation_name(endpoint) for place, endpoint in endpoints.items()})
    described: dict[str, Any] = _without_nulls(document)
    return described


def _list_of_problems() -> str:
    types = (t for t in problem_types().values() if t.slug not in OF_COMMANDS)
    rows = (f"| {t.status} | [{t.title}]({t.uri}) | `{t.slug}` |" for t in types)
    head = "Its `type` leads to a page that says what it means and what to do."
    table = ["| status | problem | type |", "|---|---|---|", *rows]
    # Folded, so that what can be called stays in sight.
    fold = ["<details><summary>All types</summary>", "", *table, "", "</details>"]
    return "\n".join(["", head, "", *fold, ""])


def _role(endpoint: str) -> str:
    """Return which role an operator needs to call it; empty where it is not open to operators."""
    if endpoint not in RIGHTS:
        return ""
    return (
        f" with the role `{RIGHTS[endpoint]}`{'' if RIGHTS[endpoint] is Role.ADMIN else ' or a higher one'}"
    )


def _without_nulls(value: Any) -> Any:
    """Drop the nulls of unset members, which OpenAPI does not allow; defaults and examples stay."""
    if isinstance(value, dict):
        return {
            key: entry if key in {"default", "example"} else _without_nulls(entry)
            for key, entry in value.items()
            if entry is not None or key in {"default", "example"}
        }
    if isinstance(value, list):
        return [_without_nulls(entry) for entry in value]
    return value


def _schema(model: type[Problem]) -> Any:
    return Schema(**model.model_json_schema())
