"""What makes the OpenAPI document a reference: names, texts, headers, links and examples everywhere."""

from typing import Any

from web.examples import add_examples, operations
from web.glossary import describe_members, describe_parameters
from web.languages import LANGUAGES
from web.links import add_links
from web.problems import MEDIA_TYPE

Document = dict[str, Any]

INFO = {
    "contact": {"name": "Whoever runs this server"},
    "license": {"name": "MIT", "identifier": "MIT"},
}
SERVERS = [{"url": "/", "description": "This server."}]
WEBHOOKS = {"name": "Webhooks", "description": "What Vade sends to callback endpoints (Standard Webhooks)."}

HEADERS = {
    "X-Request-Id": {
        "description": "Names the request in logs and callbacks: the caller's own, else a fresh one.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
        "example": "kitapci-2026-12-24-0001",
    },
    "Retry-After": {
        "description": "After how many seconds to try again, where that helps (RFC 9110 §10.2.3).",
        "schema": {"type": "integer", "minimum": 1},
        "example": 5,
    },
    "Content-Language": {
        "description": "In which language the sentences are: what `Accept-Language` prefers, else English.",
        "required": True,
        "schema": {"type": "string", "enum": list(LANGUAGES)},
        "example": "en",
    },
    "Vary": {
        "description": "On which headers of the request the answer depends (RFC 9110 §12.5.5).",
        "required": True,
        "schema": {"type": "string"},
        "example": "Accept-Language",
    },
    "WWW-Authenticate": {
        "description": "How to authenticate (RFC 6750 §3).",
        "required": True,
        "schema": {"type": "string", "const": "Bearer"},
        "example": "Bearer",
    },
}
OF_EVERY_ANSWER = ("X-Request-Id",)
OF_EVERY_PROBLEM = ("Content-Language", "Vary")
OF_PROBLEMS = {
    "401": ("WWW-Authenticate",),
    # Of a key that is in use; other conflicts stay.
    "409": ("Retry-After",),
    "429": ("Retry-After",),
    "503": ("Retry-After",),
}


def complete(document: Document, *, names: dict[tuple[str, str], str]) -> None:
    """Complete an OpenAPI document; ``names`` has what its operations are called, by path and method."""
    document["info"] |= INFO
    document["servers"] = SERVERS
    document["tags"] = [*document.get("tags", []), WEBHOOKS]
    document["components"]["headers"] |= HEADERS
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            operation["operationId"] = names[path, method]
            _add_headers(operation["responses"])
            add_links(operation["operationId"], operation["responses"])
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "query":
                    _say_without_null(parameter)
    for operation in operations(document):
        describe_parameters(operation)
    describe_members(document["components"]["schemas"])
    add_examples(document)


def operation_name(endpoint: str) -> str:
    """Return the name of an operation from its view's: ``companies.get_company`` gives ``getCompany``."""
    first, *others = endpoint.rpartition(".")[2].split("_")
    return first + "".join(word.title() for word in others)


def _add_headers(answers: Document) -> None:
    for status, answer in answers.items():
        names = [*OF_EVERY_ANSWER]
        if MEDIA_TYPE in answer.get("content", {}):
            names += [*OF_EVERY_PROBLEM, *OF_PROBLEMS.get(status, ())]
        headers = answer.setdefault("headers", {})
        for name in names:
            headers.setdefault(name, {"$ref": f"#/components/headers/{name}"})


def _say_without_null(parameter: Document) -> None:
    """A query has no null: a parameter that is not given is left out."""
    schema = parameter["schema"]
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema |= kinds[0]
    if schema.get("default", ...) is None:
        del schema["default"]
