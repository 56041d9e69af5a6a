"""The shapes of reports: what their endpoints answer, and what the platform is sent."""

from datetime import date
from typing import Annotated

from pydantic import BaseModel, Field

Number = Annotated[int, Field(ge=0)]


class Total(BaseModel):
    """So many, and their money in minor units."""

    number: Number
    amount_minor: Number


class AttemptTotals(BaseModel):
    """What became of the attempts with one number."""

    attempt: int = Field(ge=1, description="1, 2 or 3: which attempt of its period.")
    charged: Total
    declined: Total


class CurrencyReport(BaseModel):
    """What was in one currency."""

    currency: str
    attempts: Total = Field(description="Attempts that the gateway answered: charged and declined.")
    charged: Total
    declined: Total = Field(description="Each attempt for itself: one amount may be declined three times.")
    by_attempt: list[AttemptTotals]
    recovered: Total = Field(description="Charged after a decline: at the second or third attempt.")
    made_passive: Total = Field(description="Third declines: what their companies did not pay.")
    outages: Total = Field(description="Attempts that got no answer. They count as none, and are repeated.")
    packages_taken: Number


class DayReport(BaseModel):
    """What was on one business day. Only currencies in which something was are listed."""

    date: date
    new_companies: Number = Field(description="How many registered.")
    packages_taken: Number
    companies_lost: Number = Field(description="How many were made passive for non-payment.")
    currencies: list[CurrencyReport]


class DailyReportAnswer(BaseModel):
    """A report a day, oldest first; days without anything are there, with zeros."""

    data: list[DayReport]


TOTALS = ("attempts", "charged", "declined", "recovered", "made_passive", "outages")


def _example() -> dict[str, object]:
    def total(number: int, price_minor: int = 34900) -> dict[str, int]:
        return {"number": number, "amount_minor": number * price_minor}

    numbers = dict(zip(TOTALS, map(total, (120, 98, 22, 9, 2, 1)), strict=True))
    by_attempt = [
        {"attempt": attempt, "charged": total(charged), "declined": total(declined)}
        for attempt, charged, declined in ((1, 89, 14), (2, 6, 6), (3, 3, 2))
    ]
    currency = {"currency": "TRY", **numbers, "by_attempt": by_attempt, "packages_taken": 4}
    day = {"date": "2026-12-23", "new_companies": 5, "packages_taken": 4, "companies_lost": 2}
    order = list(CurrencyReport.model_fields)
    return day | {"currencies": [{name: currency[name] for name in order}]}


DAY_EXAMPLE = _example()
"""One day, in one currency."""
