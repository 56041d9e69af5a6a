"""Company payments: every attempt to collect."""

from datetime import date, datetime
from typing import Any

from flask_openapi3 import APIBlueprint

from billing import company_payments
from billing.company_payments import Place
from billing.documents import payment_document
from web.access import Access, caller, open_to
from web.context import transaction
from web.openapi import tag
from web.paging import PageQuery, page, read_cursor
from web.schemas import PaymentList

LIST = "company-payments"

blueprint = APIBlueprint(
    "company_payments",
    __name__,
    url_prefix="/api/v1/company-payments",
    abp_tags=[tag("Company payments", "Every attempt to collect.")],
)


@blueprint.get("", summary="List attempts to collect", responses={200: PaymentList})
@open_to(Access.COMPANY_OR_OPERATOR)
def list_payments(query: PageQuery) -> dict[str, Any]:
    """Return attempts, newest first: a company sees its own, an operator all."""
    before = _place(read_cursor(query.cursor, of=LIST)) if query.cursor is not None else None
    with transaction() as session:
        rows = company_payments.list_newest(
            session, company_id=caller().company_id, before=before, limit=query.limit + 1
        )
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
