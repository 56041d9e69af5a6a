"""Every error is a problem document (RFC 9457), in one place."""

import logging
import re
from typing import Any
from urllib.parse import quote

from flask import Flask, Response, json
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from werkzeug.exceptions import HTTPException

from billing.errors import InvalidFieldError, KeyBusyError, RateLimitError, VadeError

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

MAXIMUM_ERRORS = 100
"""A body of thousands of unknown fields is not answered with a document ten times as large."""


def problem(status: int, *, slug: str, title: str, detail: str, **members: Any) -> Response:
    """Return a problem document; ``slug`` names its type, ``/problems/<slug>``."""
    document = {"type": f"/problems/{slug}", "title": title, "status": status, "detail": detail, **members}
    response = Response(json.dumps(document), status=status, content_type=MEDIA_TYPE)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def validation_problem(errors: list[dict[str, str]]) -> Response:
    """Return the 422 that lists which fields were refused and why."""
    return problem(
        422,
        slug=InvalidFieldError.slug,
        title=InvalidFieldError.title,
        detail="The request is not valid: see errors.",
        errors=errors,
    )


def from_validation_error(error: ValidationError) -> Response:
    """Return the 422 for a body, path or query that its model refused. Values are never repeated."""
    return validation_problem(
        [
            {"pointer": _pointer(entry["loc"]), "detail": _sentence(entry["type"], entry["msg"])}
            for entry in error.errors(include_url=False, include_input=False)[:MAXIMUM_ERRORS]
        ]
    )


def _pointer(location: tuple[int | str, ...]) -> str:
    """Return a JSON pointer as a URI fragment (RFC 6901 §6)."""
    steps = (quote(str(step).replace("~", "~0").replace("/", "~1"), safe="") for step in location)
    return "#" + "".join(f"/{step}" for step in steps)


_SENTENCES = {
    "missing": "This field is missing.",
    "extra_forbidden": "This field is unknown.",
    "string_unicode": "This is not Unicode text: half a surrogate pair stands alone.",
}


def _sentence(kind: str, message: str) -> str:
    return _SENTENCES.get(kind) or message.removeprefix("Value error, ").rstrip(".") + "."


def handle_errors(app: Flask) -> None:
    """Answer every error of ``app`` with a problem document."""

    @app.errorhandler(VadeError)
    def refused(error: VadeError) -> Response:
        if isinstance(error, InvalidFieldError):
            return problem(422, slug=error.slug, title=error.title, detail=error.detail, errors=error.errors)
        response = problem(error.status, slug=error.slug, title=error.title, detail=error.detail)
        if isinstance(error, (RateLimitError, KeyBusyError)):
            response.headers["Retry-After"] = str(error.retry_after_s)
        return response

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        if isinstance(error.response, Response):
            return error.response
        title = error.name.capitalize()
        detail = "There is nothing at this address." if error.code == 404 else error.description
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower())
        response = problem(error.code or 500, slug=slug, title=title, detail=str(detail or title))
        for name, value in error.get_headers():
            if name.lower() not in {"content-type", "content-length"}:
                response.headers[name] = value
        return response

    @app.errorhandler(OperationalError)
    @app.errorhandler(InterfaceError)
    @app.errorhandler(PoolTimeoutError)
    def database_away(error: DBAPIError | PoolTimeoutError) -> Response:
        cause = getattr(error, "orig", None) or error
        logger.error("the database does not answer: %s", str(cause).splitlines()[0])
        response = problem(
            503,
            slug="database-unavailable",
            title="Service unavailable",
            detail="The database does not answer: try again soon.",
        )
        response.headers["Retry-After"] = "5"
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        logger.error("unexpected error", exc_info=error)
        return problem(
            500,
            slug="internal-error",
            title="Internal server error",
            detail="Something went wrong on our side.",
        )
