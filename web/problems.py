"""Every error is a problem document (RFC 9457), in one place."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from flask import Flask, Response, json
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from werkzeug.exceptions import HTTPException

from billing.errors import InvalidFieldError, KeyBusyError, RateLimitError, VadeError
from sentences import Sentence
from web import languages
from web.problem_types import DATABASE_UNAVAILABLE, INTERNAL_ERROR, ProblemType, of_status
from web.refusals import reason

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

MAXIMUM_ERRORS = 100
"""A body of thousands of unknown fields is not answered with a document ten times as large."""


def problem(status: int, *, slug: str, title: str, detail: str, **members: Any) -> Response:
    """Return a problem document in the caller's language; ``slug`` names its type, ``/problems/<slug>``."""
    language = languages.wanted()
    document = {"type": f"/problems/{slug}", "title": title, "status": status, "detail": detail, **members}
    response = Response(json.dumps(said(document, language)), status=status, content_type=MEDIA_TYPE)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return in_language(response, language)


def said(document: Mapping[str, Any], language: str) -> dict[str, Any]:
    """Return a problem document with its sentences in a language."""
    words: dict[str, Any] = {name: languages.say(document[name], language) for name in ("title", "detail")}
    if "errors" in document:
        words["errors"] = [
            {"pointer": error["pointer"], "detail": _sentence(languages.say(error["detail"], language))}
            for error in document["errors"]
        ]
    return {**document, **words}


def in_language(response: Response, language: str) -> Response:
    """Return an answer that says in which language it is, and that it was chosen by the request."""
    response.content_language.add(language)
    response.vary.add("Accept-Language")
    return response


def typed_problem(type_: ProblemType, *, status: int | None = None, detail: str | None = None) -> Response:
    """Return a problem document of a type, with its usual status and detail unless there are others."""
    return problem(status or type_.status, slug=type_.slug, title=type_.title, detail=detail or type_.detail)


def validation_problem(errors: Sequence[Mapping[str, str]]) -> Response:
    """Return the 422 that lists which fields were refused and why."""
    return problem(
        422,
        slug=InvalidFieldError.slug,
        title=InvalidFieldError.title,
        detail=InvalidFieldError.message(),
        errors=errors,
    )


def from_validation_error(error: ValidationError) -> Response:
    """Return the 422 for a body, path or query that its model refused. Values are never repeated."""
    return validation_problem(
        [
            {"pointer": _pointer(entry["loc"]), "detail": reason(entry)}
            for entry in error.errors(include_url=False, include_input=False)[:MAXIMUM_ERRORS]
        ]
    )


def _pointer(location: tuple[int | str, ...]) -> str:
    """Return a JSON pointer as a URI fragment (RFC 6901 §6)."""
    steps = (quote(str(step).replace("~", "~0").replace("/", "~1"), safe="") for step in location)
    return "#" + "".join(f"/{step}" for step in steps)


def _sentence(text: str) -> str:
    return text.rstrip(".") + "."


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
        response = typed_problem(
            of_status(error.code or 500), status=error.code, detail=_own_description(error)
        )
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
        response = typed_problem(DATABASE_UNAVAILABLE)
        response.headers["Retry-After"] = "5"
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        logger.error("unexpected error", exc_info=error)
        return typed_problem(INTERNAL_ERROR)


def _own_description(error: HTTPException) -> str | None:
    """Return the detail that we raised an error of Werkzeug's with; its own words are of no use here."""
    return error.description if isinstance(error.description, Sentence) else None
