"""The shape of the metrics report."""

import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from web.report_schemas import Number, Total

Rate = Annotated[float, Field(ge=0)]


class CurrencyTotal(Total):
    """So many, and their money in minor units of a currency."""

    currency: str


class RecurringRevenue(BaseModel):
    """What open packages bring each month in one currency."""

    currency: str
    mrr_minor: Number = Field(
        description="Monthly recurring revenue, in minor units: what open packages cost a month, "
        "yearly ones a twelfth."
    )
    monthly_packages: Number = Field(description="How many open packages are monthly.")
    yearly_packages: Number = Field(description="How many open packages are yearly.")


class MonthReport(BaseModel):
    """What was in one calendar month of `BILLING_TIMEZONE`."""

    month: str = Field(json_schema_extra={"pattern": "^[0-9]{4}-[0-9]{2}$"}, description="Such as 2026-11.")
    active_companies: int = Field(description="Companies with an open package when the month began.")
    packages_taken: Number = Field(description="How many packages were taken.")
    companies_lost: Number = Field(description="How many companies were made passive for non-payment.")
    churn_rate: Rate | None = Field(
        description="Companies lost ÷ active companies when the month began, to four digits; "
        "null where there were none."
    )
    first_declines: Number = Field(description="Periods whose first attempt was declined.")
    recovered: Number = Field(description="Periods that were charged after a decline.")
    recovery_rate: Rate | None = Field(
        description="Recovered ÷ (recovered + companies lost), to four digits; null where there were neither."
    )
    collected: list[CurrencyTotal] = Field(description="What was charged, by currency.")


class DueNow(CurrencyTotal):
    """What has fallen due in one currency and is not collected yet."""

    retried: Total = Field(description="How much of it was declined before, and is tried again.")


class ForecastDay(BaseModel):
    """What falls due on one business day, where every company stays and pays."""

    date: datetime.date
    currencies: list[CurrencyTotal]


class MetricsAnswer(BaseModel):
    """How the business does, as of an instant: requests count anew when a report is five minutes old."""

    as_of: datetime.datetime
    date: datetime.date = Field(description="The business day of that instant.")
    companies: Number = Field(description="How many ever registered.")
    active_companies: Number = Field(description="How many have an open package.")
    currencies: list[RecurringRevenue]
    months: list[MonthReport] = Field(description="The last twelve months and the present one, oldest first.")
    due_now: list[DueNow]
    forecast: list[ForecastDay] = Field(description="The next thirty days.")


METRICS_EXAMPLE: dict[str, object] = {
    "as_of": "2026-12-24T09:00:00.000000Z",
    "date": "2026-12-24",
    "companies": 2150,
    "active_companies": 1904,
    "currencies": [
        {"currency": "TRY", "mrr_minor": 63_128_400, "monthly_packages": 1760, "yearly_packages": 144}
    ],
    "months": [
        {
            "month": "2026-11",
            "active_companies": 1841,
            "packages_taken": 97,
            "companies_lost": 34,
            "churn_rate": 0.0185,
            "first_declines": 352,
            "recovered": 318,
            "recovery_rate": 0.9034,
            "collected": [{"currency": "TRY", "number": 1790, "amount_minor": 62_471_000}],
        }
    ],
    "due_now": [
        {
            "currency": "TRY",
            "number": 61,
            "amount_minor": 2_128_900,
            "retried": {"number": 12, "amount_minor": 418_800},
        }
    ],
    "forecast": [
        {
            "date": "2026-12-25",
            "currencies": [{"currency": "TRY", "number": 58, "amount_minor": 2_024_200}],
        }
    ],
}
"""Of the months and days, one each."""
