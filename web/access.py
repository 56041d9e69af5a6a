"""Who may call what: every route is closed unless its view says for whom it is open."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar, cast

from flask import Flask, current_app, g, request
from flask_jwt_extended import (
    JWTManager,
    create_access_token,
    create_refresh_token,
    get_jwt,
    verify_jwt_in_request,
)
from flask_jwt_extended.exceptions import JWTExtendedException
from jwt import PyJWTError

from billing import operators, sessions
from billing.errors import ForbiddenError, TokenError
from models import BIGINT_MAX, Role, db
from web.bodies import check_body
from web.rights import may

ACCESS_LIFETIME = timedelta(hours=1)
OPERATOR = "operator"

_ID = re.compile("[1-9][0-9]{0,18}")

View = TypeVar("View", bound=Callable[..., Any])


class Access(StrEnum):
    """For whom a route is open."""

    PUBLIC = "anyone"
    COMPANY = "a company"
    OPERATOR = "an operator"
    COMPANY_OR_OPERATOR = "a company or an operator"
    REFRESH = "a company, with its refresh token"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose token came with the request: a company's of a session, or else an operator's.

    ``generation`` is a refresh token's: how often its session had been refreshed when it was made.
    """

    company_id: int | None = None
    session_id: int | None = None
    generation: int | None = None
    operator_id: int | None = None
    role: Role | None = None

    @property
    def is_operator(self) -> bool:
        """Whether an operator calls."""
        return self.company_id is None


def open_to(who: Access, *, finds_session: bool = False) -> Callable[[View], View]:
    """Open a view to ``who``.

    A company's token stops working when its session has ended, which costs a query; a view that looks for
    the session itself says ``finds_session`` and raises `TokenError` where it is not there.
    """

    def mark(view: View) -> View:
        view.open_to = who  # type: ignore[attr-defined]
        view.finds_session = finds_session  # type: ignore[attr-defined]
        return view

    return mark


def access_of(view: Callable[..., Any]) -> Access | None:
    """Return for whom a view is open, or None where it is closed."""
    return cast(Access | None, getattr(view, "open_to", None))


def takes_body(view: Callable[..., Any]) -> bool:
    """Return whether a view reads a JSON body."""
    return "body" in inspect.signature(view).parameters


def caller() -> Caller:
    """Return who calls; only for views that are not open to anyone."""
    return cast(Caller, g.caller)


def company_id() -> int:
    """Return the id of the company that calls."""
    return cast(int, caller().company_id)


def session_id() -> int:
    """Return the id of the session whose token it is; the company's, as `company_id` is."""
    return cast(int, caller().session_id)


def generation() -> int:
    """Return the generation of the refresh token that came."""
    return cast(int, caller().generation)


def session_tokens(company_id: int, session_id: int, generation: int) -> dict[str, str]:
    """Return a fresh access token and refresh token of a session; nothing is written."""
    subject, claims = str(company_id), {"sid": str(session_id)}
    return {
        "token": create_access_token(subject, additional_claims=claims),
        "refresh_token": create_refresh_token(subject, additional_claims=claims | {"generation": generation}),
    }


def operator_token(id_: int, lifetime: timedelta) -> str:
    """Return the operator's token of a row of ``operator_tokens``, which says what it is good for."""
    # `jti`: what a token is revoked by (RFC 7519 §4.1.7).
    claims = {"role": OPERATOR, "jti": str(id_)}
    token: str = create_access_token(OPERATOR, expires_delta=lifetime, additional_claims=claims)
    return token


def guard(app: Flask) -> None:
    """Check token, rights and media type before any view runs."""
    app.config["JWT_ACCESS_TOKEN_EXPIRES"] = ACCESS_LIFETIME
    app.config["JWT_REFRESH_TOKEN_EXPIRES"] = sessions.LIFETIME
    app.config["JWT_TOKEN_LOCATION"] = ["headers"]
    # Tokens travel in a header, never in a cookie: nothing forges a request with them.
    app.config["JWT_COOKIE_CSRF_PROTECT"] = False
    JWTManager(app)
    readers = {name: takes_body(view) for name, view in app.view_functions.items()}

    @app.before_request
    def check() -> None:
        if request.endpoint is None or request.method == "OPTIONS":
            # No such route, or a question that Flask answers without the view.
            return
        view: Any = current_app.view_functions[request.endpoint]
        who = access_of(view)
        if who is None:
            raise ForbiddenError
        g.caller = None
        if who is not Access.PUBLIC:
            g.caller = _authenticate(who, finds_session=view.finds_session)
        if readers.get(request.endpoint):
            check_body()


def _authenticate(who: Access, *, finds_session: bool) -> Caller:
    try:
        verify_jwt_in_request(refresh=who is Access.REFRESH)
        claims = get_jwt()
    except (JWTExtendedException, PyJWTError, ValueError) as error:
        # ValueError: bytes in the header or the claims that are no text.
        raise TokenError from error
    if claims.get("role") == OPERATOR:
        return _operator(claims, who)
    company = Caller(_id(claims, "sub"), _id(claims, "sid"), _generation(claims, who))
    if not finds_session and not _stands(company):
        raise TokenError
    if who is Access.OPERATOR:
        raise ForbiddenError
    return company


def _operator(claims: dict[str, Any], who: Access) -> Caller:
    rights = operators.find_rights(db.session(), _id(claims, "jti"))
    if rights is None:
        raise TokenError
    if who not in {Access.OPERATOR, Access.COMPANY_OR_OPERATOR} or not may(
        rights.role, str(request.endpoint)
    ):
        raise ForbiddenError
    return Caller(operator_id=rights.operator_id, role=rights.role)


def _stands(company: Caller) -> bool:
    """Return whether the session of a token stands."""
    id_, session_id = cast(int, company.company_id), cast(int, company.session_id)
    return sessions.find_generation(db.session(), id_, session_id) is not None


def _id(claims: dict[str, Any], name: str) -> int:
    # Exactly as `session_tokens` writes it: no sign, no zero in front, no digits of other scripts.
    value = claims.get(name)
    if isinstance(value, str) and _ID.fullmatch(value) and int(value) <= BIGINT_MAX:
        return int(value)
    raise TokenError


def _generation(claims: dict[str, Any], who: Access) -> int | None:
    value = claims.get("generation")
    if who is Access.REFRESH and type(value) is not int:
        raise TokenError
    return value
