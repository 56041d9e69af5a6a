"""Company payments: every attempt to collect."""

from datetime import date, datetime
from typing import Annotated, Any

from flask_openapi3 import APIBlueprint
from pydantic import Field

from billing import company_payments
from billing.company_payments import Place, Wanted
from billing.documents import payment_document
from config import Instant
from web.access import Access, caller, open_to
from web.context import transaction
from web.openapi import problems, tag
from web.paging import CompanyPageQuery, Page, check_company, page, read_cursor
from web.schemas import FROM_TEXT, PaymentList, Status

LIST = "company-payments"

blueprint = APIBlueprint(
    "company_payments",
    __name__,
    url_prefix="/api/v1/company-payments",
    abp_tags=[tag("Company payments", "Every attempt to collect.")],
)


class PaymentQuery(CompanyPageQuery):
    """Which attempts are wanted."""

    status: Annotated[Status, FROM_TEXT] | None = Field(
        None, description="Only attempts that ended so: 1 = charged, 0 = declined."
    )
    since: Instant | None = Field(None, description="Only attempts made at this instant or later.")
    until: Instant | None = Field(None, description="Only attempts made before this instant.")


@blueprint.get(
    "",
    summary="List attempts to collect",
    responses={200: PaymentList, **problems(s404="There is no such company")},
)
@open_to(Access.COMPANY_OR_OPERATOR)
def list_payments(query: PaymentQuery) -> Page:
    """Return attempts, newest first: a company sees its own, an operator all."""
    before = _place(read_cursor(query.cursor, of=LIST)) if query.cursor is not None else None
    company_id = caller().company_id or query.company_id
    wanted = Wanted(company_id, query.status, query.since, query.until)
    with transaction() as session:
        check_company(session, query)
        rows = company_payments.list_newest(session, wanted, before=before, limit=query.limit + 1)
    return page(
        rows,
        limit=query.limit,
        of=LIST,
        document=payment_document,
        place=lambda row: [
            row.attempted_at.isoformat(),
            row.company_id,
            row.company_package_id,
            row.period_start.isoformat(),
            row.attempt,
        ],
    )


def _place(cursor: list[Any]) -> Place:
    attempted_at, company_id, company_package_id, period_start, attempt = cursor
    return Place(
        datetime.fromisoformat(attempted_at),
        company_id,
        company_package_id,
        date.fromisoformat(period_start),
        attempt,
    )
