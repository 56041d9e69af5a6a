"""What OpenAPI says of conditions, links and limits: it follows from what a view is marked with and takes."""

from collections.abc import Callable
from inspect import signature
from typing import Any

from web.conditions import is_conditional
from web.idempotency import is_idempotent
from web.paging import PageQuery

HEADERS: dict[str, dict[str, Any]] = {
    "ETag": {
        "description": "The version of what is shown, for `If-None-Match` and `If-Match` (RFC 9110 §8.8.3).",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[A-Za-z0-9_-]{24}"$'},
        "example": '"nWvJ3S4bT1Zq9kL0xY7uRmPe"',
    },
    "Idempotent-Replayed": {
        "description": "It is there where the answer is that of an earlier request under the same key.",
        "schema": {"type": "string", "const": "true"},
        "example": "true",
    },
    "Link": {
        "description": "The `first` page of the list, and the `next` where there is one (RFC 8288).",
        "required": True,
        "schema": {"type": "string"},
        "example": '</api/v1/packages?limit=20>; rel="first", '
        '</api/v1/packages?limit=20&cursor=MQ.EIepH8bESxBqWHXX2FvJOBKKzwY>; rel="next"',
    },
    "Location": {
        "description": "Where the new thing is.",
        "required": True,
        "schema": {"type": "string", "format": "uri-reference"},
        "example": "/api/v1/packages/1",
    },
    "RateLimit": {
        "description": "How many calls are left, `r`, of the limit that is named, for `t` seconds "
        "(draft-ietf-httpapi-ratelimit-headers-10). It is there where the call was counted.",
        "schema": {"type": "string", "pattern": '^"[a-z]+";r=[0-9]+;t=[0-9]+$'},
        "example": '"login";r=9;t=42',
    },
    "RateLimit-Policy": {
        "description": "The limit: so many calls, `q`, in so many seconds, `w`.",
        "schema": {"type": "string", "pattern": '^"[a-z]+";q=[0-9]+;w=[0-9]+$'},
        "example": '"login";q=10;w=60',
    },
}

CONDITIONS = {
    "If-Match": "Only where the version that stands is one of these, or any for `*`; else 412.",
    "If-None-Match": "Only where the version that stands is none of these; else 304, of a PATCH 412.",
}


def say(view: Callable[..., Any], method: str, operation: dict[str, Any]) -> None:
    """Complete an operation by what its view's manners are; answers that are problems are there already."""
    answers = operation["responses"]
    good = [status for status in answers if str(status).startswith("2")]
    if is_conditional(view):
        for status in good:
            _add(answers[status], "ETag")
        if method == "post":
            _add(answers["201"], "Location")
        else:
            operation["parameters"] = [*(operation.get("parameters") or []), *map(_condition, CONDITIONS)]
        if method == "get":
            answers["304"] = {"description": "The caller has this version."}
            _add(answers["304"], "ETag")
    if is_idempotent(view):
        for answer in answers.values():
            _add(answer, "Idempotent-Replayed")
    if _lists(view):
        _add(answers["200"], "Link")
    if "429" in answers:
        for answer in answers.values():
            _add(answer, "RateLimit", "RateLimit-Policy")


def _condition(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": CONDITIONS[name],
        "schema": {"type": "string"},
        "example": HEADERS["ETag"]["example"],
    }


def _add(answer: dict[str, Any], *names: str) -> None:
    answer.setdefault("headers", {}).update(
        {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    )


def _lists(view: Callable[..., Any]) -> bool:
    query = signature(view).parameters.get("query")
    return query is not None and issubclass(query.annotation, PageQuery)
