"""Company packages: take one, and ask what there is."""

from typing import Any

from flask_openapi3 import APIBlueprint

from billing import company_packages
from billing.documents import company_package_document
from billing.errors import ForbiddenError, TokenError
from web.access import Access, caller, company_id, open_to, session_id
from web.context import one_query, transaction, vade
from web.idempotency import idempotent
from web.openapi import problems, tag
from web.schemas import BodyModel, CompanyPackageAnswer, CurrentAnswer, Id

blueprint = APIBlueprint(
    "company_packages",
    __name__,
    url_prefix="/api/v1/company-packages",
    abp_tags=[tag("Company packages", "What a company has.")],
)


class Assignment(BodyModel):
    """Which company takes which package."""

    company_id: Id
    package_id: Id


@blueprint.post(
    "",
    summary="Take a package",
    responses={
        201: CompanyPackageAnswer,
        **problems(s404="No such company", s409="A package is open already, or the company is passive"),
    },
)
@open_to(Access.COMPANY_OR_OPERATOR)
@idempotent()
def assign(body: Assignment) -> tuple[dict[str, Any], int]:
    """Open a package for a company, from today to its next billing day.

    A company may give its own id only.
    """
    if not caller().is_operator and body.company_id != company_id():
        raise ForbiddenError("A company can take a package only for itself.")
    with transaction() as session:
        now = vade().clock.read(session).business
        company_package, package = company_packages.assign(
            session, body.company_id, body.package_id, now=now, zone=vade().zone, outbox=vade().outbox
        )
    return company_package_document(company_package, package), 201


@blueprint.get("/current", summary="Get what my company has", responses={200: CurrentAnswer})
@open_to(Access.COMPANY, finds_session=True)
def get_current() -> dict[str, Any]:
    """Return the company and its open company package, else its latest, else null."""
    with one_query() as session:
        current = company_packages.find_current(session, company_id(), session_id=session_id())
    if current is None:
        raise TokenError
    return current
