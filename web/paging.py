"""Lists: pages of up to a hundred, each with an opaque, signed cursor to the next."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from flask import current_app
from itsdangerous import BadData, URLSafeSerializer
from pydantic import Field

from billing.errors import InvalidFieldError
from web.schemas import FROM_TEXT, QueryModel

DEFAULT_LIMIT = 20
MAXIMUM_LIMIT = 100


class PageQuery(QueryModel):
    """Which page of a list is wanted."""

    limit: Annotated[int, Field(ge=1, le=MAXIMUM_LIMIT), FROM_TEXT] = Field(
        DEFAULT_LIMIT, description="How many entries a page has at most."
    )
    cursor: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="`next_cursor` of the page before."
    )


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
) -> dict[str, Any]:
    """Return a page of a list from up to ``limit + 1`` rows: the last one only tells that there are more."""
    shown = rows[:limit]
    more = len(rows) > limit
    return {
        "data": [document(row) for row in shown],
        "next_cursor": _serializer(of).dumps(place(shown[-1])) if more else None,
    }


def _serializer(of: str) -> URLSafeSerializer:
    return URLSafeSerializer(current_app.config["JWT_SECRET_KEY"], salt=f"cursor/{of}")
