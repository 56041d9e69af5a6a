"""Register, log in, refresh a token."""

from typing import Any

from flask_openapi3 import APIBlueprint

from billing import companies
from billing.companies import Registration
from models import Company
from web import limits
from web.access import Access, company_id, company_tokens, open_to
from web.context import transaction, vade
from web.openapi import problems, tag
from web.schemas import BodyModel, Email, GivenPassword, NewPassword, SessionAnswer, Text, Url

blueprint = APIBlueprint(
    "sessions",
    __name__,
    url_prefix="/api/v1",
    abp_tags=[tag("Sessions", "Register, log in, refresh a token.")],
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


@blueprint.post(
    "/register",
    summary="Register",
    responses={201: SessionAnswer, **problems(s409="E-mail taken", s429="Too many registrations")},
)
@open_to(Access.PUBLIC)
def register(body: RegisterBody) -> tuple[dict[str, Any], int]:
    """Create a company with status 0; its first login activates it.

    The day of registration is its billing day.
    """
    limits.count_registration()
    registration = Registration(**body.model_dump())
    with transaction() as session:
        now = vade().clock.read(session).business
        session.commit()
        company = companies.register(session, registration, now=now, zone=vade().zone, outbox=vade().outbox)
    return _session(company), 201


@blueprint.post(
    "/login",
    summary="Log in",
    responses={200: SessionAnswer, **problems(s401="Wrong e-mail or password", s429="Too many logins")},
)
@open_to(Access.PUBLIC)
def log_in(body: LoginBody) -> dict[str, Any]:
    """Return tokens for an e-mail and its password; the first login activates the company."""
    limits.count_login(body.email)
    with transaction() as session:
        id_ = companies.check_login(session, email=body.email, password=body.password)
        now = vade().clock.read(session).business
        company = companies.log_in(session, id_, now=now, outbox=vade().outbox)
    return _session(company)


@blueprint.post("/token/refresh", summary="Refresh a token", responses={200: SessionAnswer})
@open_to(Access.REFRESH)
def refresh() -> dict[str, Any]:
    """Return fresh tokens for a refresh token, sent as Bearer."""
    with transaction() as session:
        company = companies.find(session, company_id())
    return _session(company)


def _session(company: Company) -> dict[str, Any]:
    return {"status": company.status, **company_tokens(company.id), "company_id": company.id}
