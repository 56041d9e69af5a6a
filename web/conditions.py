"""Conditional requests (RFC 9110 §13): the version of what is shown, and changes to that version only."""

import base64
import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

from flask import Response, json, jsonify, request
from werkzeug.datastructures import ETags

from billing.documents import Document
from billing.errors import PreconditionFailedError

T = TypeVar("T")
View = TypeVar("View", bound=Callable[..., Any])


def conditional(view: View) -> View:
    """Tell that what a view shows has versions, so that OpenAPI says so."""
    view.is_conditional = True  # type: ignore[attr-defined]
    return view


def is_conditional(view: Callable[..., Any]) -> bool:
    """Return whether what a view shows has versions."""
    return getattr(view, "is_conditional", False)


def entity_tag(document: Document) -> str:
    """Return the version of a document, without the quotes of an ``ETag``: equal for equal documents."""
    text = json.dumps(document, sort_keys=True)
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:18]).decode()


def versioned(document: Document, *, also: Document | None = None, status: int = 200) -> Response:
    """Return an answer with a strong ``ETag``, of ``document`` without what only this answer has ``also``."""
    response = jsonify(document | (also or {}))
    response.status_code = status
    response.set_etag(entity_tag(document))
    return response


def shown(document: Document, *, public: bool = False) -> Response:
    """Return what a GET answers: the document with its version, or 304 where the caller has that one.

    Caches may keep what is ``public``, to ask whether it still stands.

    Raises:
        PreconditionFailedError: when ``If-Match`` wants another version.
    """
    _check_match(document)
    response = versioned(document)
    if public:
        response.headers["Cache-Control"] = "no-cache"
    if _names(request.if_none_match, document):
        # Werkzeug's own `make_conditional` takes `If-Match: *` for one that is not met.
        response.status_code = 304
        response.set_data(b"")
    return response


def unchanged(of: Callable[[T], Document]) -> Callable[[T], None]:
    """Return what checks, once a row is locked, that it is the version that ``If-Match`` names.

    ``of`` makes the document of a row. The check raises `PreconditionFailedError`.
    """

    def check(row: T) -> None:
        document = of(row)
        _check_match(document)
        if _names(request.if_none_match, document):
            raise PreconditionFailedError

    return check


def _check_match(document: Document) -> None:
    """A header that names no version, or none that can be read, is met by none."""
    if "If-Match" not in request.headers:
        return
    wanted: ETags = request.if_match
    # Compared strongly (§8.8.3.2): a weak tag is no version.
    if not (wanted.star_tag or wanted.is_strong(entity_tag(document))):
        raise PreconditionFailedError


def _names(tags: ETags, document: Any) -> bool:
    return tags.star_tag or tags.contains_weak(entity_tag(document))
