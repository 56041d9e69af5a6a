"""Reports: what came in, by business day, and how the business does."""

import re
from datetime import date
from typing import Annotated, Any

from flask_openapi3 import APIBlueprint
from pydantic import BeforeValidator, Field

from billing import metrics, reports
from web.access import Access, open_to
from web.context import transaction, vade
from web.metric_schemas import MetricsAnswer
from web.openapi import tag
from web.report_schemas import DailyReportAnswer
from web.schemas import QueryModel

blueprint = APIBlueprint(
    "reports",
    __name__,
    url_prefix="/api/v1/reports",
    abp_tags=[tag("Reports", "What came in, and how the business does.")],
)


def _date(value: object) -> object:
    # pydantic takes numbers and instants too.
    if not (isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value)):
        raise ValueError("A date such as 2026-01-31 is wanted")
    return value


Day = Annotated[date, BeforeValidator(_date)]


class DailyReportQuery(QueryModel):
    """Of which business days. With one of the two it is that day; with none, yesterday."""

    from_: Day | None = Field(None, alias="from", description="The first day.")
    to: Day | None = Field(
        None, description=f"The last day, included; at most {reports.MOST_DAYS} days are reported."
    )


@blueprint.get("/daily", summary="Get the daily report", responses={200: DailyReportAnswer})
@open_to(Access.OPERATOR)
def daily(query: DailyReportQuery) -> dict[str, Any]:
    """Return what came in on each business day, by currency: attempts, charges, declines, what they led to.

    Business days are those of `BILLING_TIMEZONE`. Figures are right at once, also of the present day, and of
    past days when something comes late.
    """
    with transaction() as session:
        now = vade().clock.read(session).business
        days = reports.read_report(session, query.from_, query.to, now=now, zone=vade().zone)
    return {"data": [reports.day_document(day) for day in days]}


@blueprint.get("/metrics", summary="Get the metrics", responses={200: MetricsAnswer})
@open_to(Access.OPERATOR)
def metrics_report() -> dict[str, Any]:
    """Return recurring revenue, active companies, churn and recovery by month, and what falls due.

    They are counted anew when the last ones are five minutes old: `as_of` says when.
    """
    with transaction() as session:
        return metrics.read(session, vade().clock, vade().zone)
