"""Lists: pages of up to a hundred, each with an opaque, signed cursor to the next.

A cursor is a place in the order of its list, and its filters are the request's: rows that arrive between two
pages move none that were there.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

from flask import current_app, request
from itsdangerous import BadData, URLSafeSerializer
from pydantic import Field
from sqlalchemy.orm import Session

from billing import companies
from billing.errors import ForbiddenError, InvalidFieldError
from web.access import caller
from web.schemas import FROM_TEXT, Id, QueryModel

DEFAULT_LIMIT = 20
MAXIMUM_LIMIT = 100

Page = tuple[dict[str, Any], dict[str, str]]
"""An answer with its headers."""


class PageQuery(QueryModel):
    """Which page of a list is wanted."""

    limit: Annotated[int, Field(ge=1, le=MAXIMUM_LIMIT), FROM_TEXT] = Field(
        DEFAULT_LIMIT, description="How many entries a page has at most."
    )
    cursor: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="`next_cursor` of the page before."
    )


class CompanyPageQuery(PageQuery):
    """Which page is wanted of a list that companies see their own part of."""

    company_id: Annotated[Id, FROM_TEXT] | None = Field(
        None, description="For operators: only what is of this company. A company may give its own."
    )


def check_company(session: Session, query: CompanyPageQuery) -> None:
    """Check that a caller may see the entries of the company that it names, if it names one.

    Raises:
        ForbiddenError: when a company names another.
        NotFoundError: when an operator names a company that is not there.
    """
    if query.company_id is None:
        return
    if caller().is_operator:
        companies.find(session, query.company_id)
    elif caller().company_id != query.company_id:
        raise ForbiddenError


def read_cursor(cursor: str, *, of: str) -> Any:
    """Return the place that a cursor of the list ``of`` stands for.

    Raises:
        InvalidFieldError: when the cursor was not made by this list.
    """
    try:
        return _serializer(of).loads(cursor)
    except BadData:
        raise InvalidFieldError("#/cursor", "This is no cursor of this list.") from None


def page(
    rows: Sequence[Any],
    *,
    limit: int,
    of: str,
    document: Callable[[Any], dict[str, Any]],
    place: Callable[[Any], Any],
) -> Page:
    """Return a page of a list from up to ``limit + 1`` rows: the last one only tells that there are more.

    ``Link`` leads to the ``first`` page and to the ``next``, where there is one (RFC 8288).
    """
    shown = rows[:limit]
    cursor = _serializer(of).dumps(place(shown[-1])) if len(rows) > limit else None
    links = [_link("first"), *([_link("next", cursor=cursor)] if cursor is not None else [])]
    document_ = {"data": [document(row) for row in shown], "next_cursor": cursor}
    return document_, {"Link": ", ".join(links)}


def _link(relation: str, **place: str) -> str:
    """Return a link to another page of the list that was asked for: same filters, same limit."""
    asked = {name: value for name, value in request.args.items() if name != "cursor"} | place
    # A reference without a host: which name the caller knows us by is the caller's.
    target = f"{request.path}?{urlencode(asked)}" if asked else request.path
    return f'<{target}>; rel="{relation}"'


def _serializer(of: str) -> URLSafeSerializer:
    return URLSafeSerializer(current_app.config["JWT_SECRET_KEY"], salt=f"cursor/{of}")
