"""A company sees and changes itself."""

from flask import Response
from flask_openapi3 import APIBlueprint
from pydantic import field_validator

from billing import companies
from billing.addresses import refusal
from billing.documents import company_document
from web.access import Access, company_id, open_to
from web.conditions import conditional, shown, unchanged, versioned
from web.context import transaction, vade
from web.openapi import tag
from web.schemas import LEFT_OUT, BodyModel, ChangedCompanyAnswer, CompanyAnswer, Text, Url

blueprint = APIBlueprint(
    "companies", __name__, url_prefix="/api/v1/companies", abp_tags=[tag("Companies", "The company itself.")]
)


class CompanyChanges(BodyModel):
    """The fields to change; `callback_url` may be null, which ends this company's own callbacks."""

    site_url: Url = LEFT_OUT
    name: Text = LEFT_OUT
    lastname: Text = LEFT_OUT
    company_name: Text = LEFT_OUT
    callback_url: Url | None = LEFT_OUT

    @field_validator("callback_url")
    @classmethod
    def _is_reachable(cls, url: str | None) -> str | None:
        reason = url and refusal(url, vade().address_policy)
        if reason:
            raise ValueError(reason)
        return url


@blueprint.get("/me", summary="Get my company", responses={200: CompanyAnswer})
@open_to(Access.COMPANY)
@conditional
def get_company() -> Response:
    """Return the company whose token it is."""
    with transaction() as session:
        company = companies.find(session, company_id())
    return shown(company_document(company))


@blueprint.patch("/me", summary="Change my company", responses={200: ChangedCompanyAnswer})
@open_to(Access.COMPANY)
@conditional
def change_company(body: CompanyChanges) -> Response:
    """Change any of the fields. A change to what already stands is no change, and sends no callback.

    A new `callback_url` gets a secret of its own, which only this answer shows. Setting the one that stands
    enables it again where it was disabled.
    """
    with transaction() as session:
        moment = vade().clock.read(session)
        changes = body.model_dump(exclude_unset=True)
        company, secret = companies.change(
            session,
            company_id(),
            changes,
            moment=moment,
            outbox=vade().outbox,
            keyring=vade().keyring,
            check=unchanged(company_document),
        )
    return versioned(company_document(company), also={"callback_secret": secret} if secret else None)
