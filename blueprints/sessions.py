"""Sessions: register, log in, refresh a token, log out, change the password."""

from typing import Any

from flask_openapi3 import APIBlueprint
from pydantic import Field

from billing import companies, sessions
from billing.companies import Registration
from billing.errors import TokenError
from web import limits
from web.access import Access, company_id, generation, open_to, session_id, session_tokens
from web.context import transaction, vade
from web.idempotency import idempotent, keep_instead
from web.openapi import Responses, problems, tag
from web.schemas import BodyModel, Email, GivenPassword, NewPassword, SessionAnswer, Text, Url

blueprint = APIBlueprint(
    "sessions",
    __name__,
    url_prefix="/api/v1",
    abp_tags=[tag("Sessions", "Register, log in, refresh a token, log out, change the password.")],
)


class RegisterBody(BodyModel):
    """What a store says of itself when it registers."""

    site_url: Url
    name: Text
    lastname: Text
    company_name: Text
    email: Email
    password: NewPassword


class LoginBody(BodyModel):
    """The e-mail, in any case, and the password."""

    email: Email
    password: GivenPassword


class LogoutBody(BodyModel):
    """Which sessions end."""

    all: bool = Field(False, description="Whether every session of the company ends, not only this one.")


class PasswordBody(BodyModel):
    """The password that stands, and the one that takes its place."""

    current_password: GivenPassword
    new_password: NewPassword


NO_CONTENT: Responses = {204: None}


def _answer(company_id: int, session_id: int, generation: int = 0, *, status: int) -> dict[str, Any]:
    kept = {"company_id": company_id, "session_id": session_id, "generation": generation, "status": status}
    keep_instead(kept)
    return _tokens(**kept)


def _tokens(company_id: int, session_id: int, generation: int, status: int) -> dict[str, Any]:
    return {"status": status, **session_tokens(company_id, session_id, generation), "company_id": company_id}


def _again(kept: dict[str, Any]) -> dict[str, Any]:
    """Return fresh tokens of the same session, unless it has ended or gone on meanwhile."""
    with transaction() as session:
        stands = sessions.find_generation(session, kept["company_id"], kept["session_id"])
    if stands != kept["generation"]:
        raise TokenError
    return _tokens(**kept)


@blueprint.post(
    "/register",
    summary="Register",
    responses={201: SessionAnswer, **problems(s409="E-mail taken", s429="Too many registrations")},
)
@open_to(Access.PUBLIC)
@idempotent(_again)
def register(body: RegisterBody) -> tuple[dict[str, Any], int]:
    """Create a company with status 0; its first login activates it.

    The day of registration is its billing day.
    """
    limits.count_registration()
    registration = Registration(**body.model_dump())
    with transaction() as session:
        moment = vade().clock.read(session)
        session.commit()
        company = companies.register(
            session, registration, now=moment.business, zone=vade().zone, outbox=vade().outbox
        )
        session_id = sessions.begin(session, company.id, now=moment.real)
    return _answer(company.id, session_id, status=company.status), 201


@blueprint.post(
    "/login",
    summary="Log in",
    responses={200: SessionAnswer, **problems(s401="Wrong e-mail or password", s429="Too many logins")},
)
@open_to(Access.PUBLIC)
@idempotent(_again)
def log_in(body: LoginBody) -> dict[str, Any]:
    """Return tokens for an e-mail and its password; the first login activates the company."""
    limits.count_login(body.email)
    with transaction() as session:
        login = companies.check_login(session, email=body.email, password=body.password)
        moment = vade().clock.read(session)
        company = companies.log_in(session, login, now=moment.business, outbox=vade().outbox)
        session_id = sessions.begin(session, company.id, now=moment.real)
    return _answer(company.id, session_id, status=company.status)


@blueprint.post("/token/refresh", summary="Refresh a token", responses={200: SessionAnswer})
@open_to(Access.REFRESH, finds_session=True)
@idempotent(_again, of_session=True)
def refresh() -> dict[str, Any]:
    """Return fresh tokens for a refresh token, sent as Bearer, which is used up by that.

    One that comes a second time ends its session, with all tokens of it.
    """
    with transaction() as session:
        now = vade().clock.read(session).real
        refreshed = sessions.refresh(session, company_id(), session_id(), generation=generation(), now=now)
    if refreshed is None:
        raise TokenError
    return _answer(company_id(), session_id(), refreshed.generation, status=refreshed.status)


@blueprint.post("/logout", summary="Log out", responses=NO_CONTENT)
@open_to(Access.COMPANY, finds_session=True)
@idempotent(of_session=True)
def log_out(body: LogoutBody) -> tuple[str, int]:
    """End the session of the token, or with `all` every session of the company.

    Once it has ended, this is answered in the same way and changes nothing (RFC 7009 §2.2).
    """
    with transaction() as session:
        if sessions.end(session, company_id(), session_id()) and body.all:
            sessions.end_all(session, company_id())
    return "", 204


@blueprint.post(
    "/password",
    summary="Change the password",
    responses={**NO_CONTENT, **problems(s401="Wrong password, or invalid token", s429="Too many logins")},
)
@open_to(Access.COMPANY)
@idempotent()
def change_password(body: PasswordBody) -> tuple[str, int]:
    """Change the password, and end every session but this one.

    It counts as a login: the limit is the same.
    """
    with transaction() as session:
        email = companies.find(session, company_id()).email
    limits.count_login(email)
    with transaction() as session:
        companies.change_password(session, company_id(), current=body.current_password, new=body.new_password)
        sessions.end_others(session, company_id(), session_id())
    return "", 204
