"""The metrics report: against plain counts, and its forecast against what then really falls due."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text
from sqlalchemy.orm import Session

from billing import metrics
from billing.clock import Clock
from billing.gateways import ChargeRequest, ChargeResult
from billing.metric_figures import monthly_revenue, rate
from billing.metrics import METRICS_LOCK
from billing.report_entries import BATCH, add_up
from models import Role, db
from tests.api import DescribedClient
from tests.figures import ISTANBUL, counted
from tests.processes import until
from tests.test_company_payments import attempt
from tests.test_conditions import waiting
from tests.world import LedgerGateway, World, instant

METRICS = "/api/v1/reports/metrics"


def report(session: Session, at: datetime) -> Any:
    found = metrics.count(session, Clock(at), ISTANBUL)
    session.commit()
    return found


# Figures ----------------------------------------------------------------------------------------------------


def test_an_empty_database_has_nothing_and_all_months_and_days(session: Session) -> None:
    found = report(session, instant("2026-03-10"))

    assert (found["companies"], found["active_companies"], found["date"]) == (0, 0, "2026-03-10")
    assert found["currencies"] == found["due_now"] == []
    assert [month["month"] for month in found["months"]] == [
        *(f"2025-{month:02}" for month in range(3, 13)),
        *("2026-01", "2026-02", "2026-03"),
    ]
    assert {month["churn_rate"] for month in found["months"]} == {None}
    assert {month["recovery_rate"] for month in found["months"]} == {None}
    days = [date(2026, 3, 10) + timedelta(days=number) for number in range(1, 31)]
    assert found["forecast"] == [{"date": day.isoformat(), "currencies": []} for day in days]


@pytest.mark.parametrize(
    ("monthly", "yearly", "expected"),
    [(0, 0, 0), (100, 0, 100), (0, 12, 1), (0, 5, 0), (0, 6, 1), (0, 17, 1), (0, 18, 2), (7, 1200, 107)],
)
def test_a_year_counts_for_a_twelfth_rounded_half_up(monthly: int, yearly: int, expected: int) -> None:
    assert monthly_revenue(monthly, yearly) == expected


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        (0, 0, None),
        (1, 0, None),
        (0, 3, 0.0),
        (1, 3, 0.3333),
        (2, 3, 0.6667),
        (3, 3, 1.0),
        (1, 20_000, 0.0001),
    ],
)
def test_a_rate_has_four_digits(part: int, whole: int, expected: float | None) -> None:
    assert rate(part, whole) == expected


def test_yearly_prices_are_added_before_they_are_divided(world: World) -> None:
    for _ in range(3):
        world.customer(period="yearly", price_minor=10, registered_at=instant("2026-01-10"))
    world.customer(price_minor=500, registered_at=instant("2026-01-10"))
    world.customer(price_minor=700, currency="EUR", registered_at=instant("2026-01-10"))
    world.customer(price_minor=0, registered_at=instant("2026-01-10"))

    found = report(world.session, instant("2026-01-15"))

    assert found["currencies"] == [
        {"currency": "EUR", "mrr_minor": 700, "monthly_packages": 1, "yearly_packages": 0},
        # 30 ÷ 12 is 2.5; each 10 ÷ 12 for itself would give 1 three times.
        {"currency": "TRY", "mrr_minor": 503, "monthly_packages": 2, "yearly_packages": 3},
    ]
    assert (found["companies"], found["active_companies"]) == (6, 6)


def paying(*prices_minor: int) -> LedgerGateway:
    """A gateway that charges these amounts and declines all others."""

    def answer(request: ChargeRequest) -> ChargeResult:
        return ChargeResult(request.amount_minor in prices_minor, f"ref {request.idempotency_key}", None)

    return LedgerGateway(default=answer)


def test_a_month_tells_who_came_went_and_came_back(world: World) -> None:
    registered = instant("2025-12-10")
    world.travel(registered)
    for price_minor in (101, 102, 103):
        world.customer(registered_at=registered, price_minor=price_minor)
    world.company(registered_at=registered)
    for day, charged in {10: (103,), 11: (102,), 12: ()}.items():
        world.collect(paying(*charged), at=instant(f"2026-01-{day}"))

    found = report(world.session, instant("2026-02-05"))

    december, january, february = found["months"][-3:]
    assert (december["month"], december["active_companies"], december["packages_taken"]) == ("2025-12", 0, 3)
    assert january == {
        "month": "2026-01",
        "active_companies": 3,
        "packages_taken": 0,
        "companies_lost": 1,
        "churn_rate": 0.3333,
        "first_declines": 2,
        "recovered": 1,
        "recovery_rate": 0.5,
        "collected": [{"currency": "TRY", "number": 2, "amount_minor": 205}],
    }
    assert (february["active_companies"], february["churn_rate"], february["collected"]) == (2, 0.0, [])
    assert (found["companies"], found["active_companies"]) == (4, 2)


def test_what_is_tried_again_is_due_now(world: World) -> None:
    for day, price_minor in ((10, 101), (10, 102), (11, 103)):
        world.travel(instant(f"2026-01-{day}"))
        world.customer(registered_at=world.now, price_minor=price_minor)
    world.collect(paying(102), at=instant("2026-02-10"))

    found = report(world.session, instant("2026-02-11", 0))

    assert found["due_now"] == [
        {
            "currency": "TRY",
            "number": 2,
            "amount_minor": 204,
            "retried": {"number": 1, "amount_minor": 101},
        }
    ]


@pytest.mark.parametrize(
    ("hour", "month"), [(0, "2026-03"), (23, "2026-03"), (-1, "2026-02")], ids=["first", "last", "before"]
)
def test_a_month_begins_at_midnight_in_the_zone(world: World, hour: int, month: str) -> None:
    company = world.customer(registered_at=instant("2026-01-15"))
    attempt(world, company, attempted_at=instant("2026-03-01", hour))

    found = report(world.session, instant("2026-03-20"))

    assert [each["month"] for each in found["months"] if each["first_declines"]] == [month]


def test_what_comes_late_is_in_its_month(world: World) -> None:
    company = world.customer(registered_at=instant("2025-10-15"))
    before = report(world.session, instant("2026-03-20"))
    attempt(world, company, attempted_at=instant("2025-11-20"))

    after = report(world.session, instant("2026-03-20"))

    numbers = {month["month"]: month["first_declines"] for month in after["months"]}
    assert numbers == {month["month"]: 0 for month in before["months"]} | {"2025-11": 1}


@pytest.mark.parametrize("today", ["2026-01-31", "2026-02-27", "2026-02-28", "2026-03-01", "2026-07-02"])
def test_what_was_foreseen_falls_due(world: World, today: str) -> None:
    """The days ahead are lived through, with a bank that charges all."""
    first = date.fromisoformat(today)
    for days, period, price_minor in (
        *((number, "monthly", 1000 + number) for number in range(33)),
        (3, "yearly", 12_000),
        (1, "monthly", 0),
        (364, "yearly", 24_000),
        (365, "yearly", 48_000),
        (40, "monthly", 77),  # a period that ended while no worker ran
    ):
        world.travel(instant((first - timedelta(days=days)).isoformat()))
        world.customer(
            registered_at=world.now,
            period=period,
            price_minor=price_minor,
            currency="EUR" if days % 5 == 0 else "TRY",
        )
    found = report(world.session, instant(today))
    foreseen: Counter[tuple[str, str, str]] = Counter()
    for total in found["due_now"]:
        foreseen[today, total["currency"], "number"] += total["number"]
        foreseen[today, total["currency"], "amount"] += total["amount_minor"]
    for day in found["forecast"]:
        for total in day["currencies"]:
            foreseen[day["date"], total["currency"], "number"] += total["number"]
            foreseen[day["date"], total["currency"], "amount"] += total["amount_minor"]

    for number in range(31):
        world.collect(LedgerGateway(), at=instant((first + timedelta(days=number)).isoformat()))

    came: Counter[tuple[str, str, str]] = Counter()
    for (day, currency, kind, _, unit), value in counted(world.session).items():
        if kind == "charged":
            came[day.isoformat(), currency, unit] += value
    assert came == foreseen
    assert len(foreseen) > 60


# Kept -------------------------------------------------------------------------------------------------------


def get(client: FlaskClient, world: World) -> Any:
    response = client.get(METRICS, headers=world.operator(Role.READ))
    assert response.status_code == 200, response.text
    return response.json


def age(world: World, seconds: int) -> None:
    """Let the report that is kept be so much older."""
    statement = """
        UPDATE settings SET value = value || jsonb_build_object('counted_at',
            to_char(clock_timestamp() - make_interval(secs => :seconds), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
        WHERE key = 'metrics'
    """
    world.session.execute(text("SET LOCAL TimeZone = 'UTC'"))
    world.session.execute(text(statement), {"seconds": seconds})
    world.session.commit()


def test_requests_count_anew_after_five_minutes(client: DescribedClient, world: World) -> None:
    first = get(client, world)
    world.customer()
    again = get(client, world)
    age(world, 295)
    still = get(client, world)
    age(world, 305)
    anew = get(client, world)

    assert first == again == still
    assert (first["active_companies"], anew["active_companies"]) == (0, 1)


def test_a_report_of_another_day_or_zone_is_not_answered(client: DescribedClient, world: World) -> None:
    get(client, world)
    world.customer()
    world.travel(world.now + timedelta(days=1))
    assert get(client, world)["active_companies"] == 1
    world.customer()
    settings = world.vade.settings.model_copy(update={"billing_timezone": ZoneInfo("Asia/Tokyo")})
    world.app.extensions["vade"] = replace(world.vade, settings=settings)
    assert get(client, world)["active_companies"] == 2


def test_a_request_that_meets_another_one_counting_does_not_wait(committed: World) -> None:
    client, operator = committed.app.test_client(), committed.operator()
    first = client.get(METRICS, headers=operator).json
    age(committed, 3600)
    committed.customer()

    with db.engine.begin() as counting:
        counting.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": METRICS_LOCK})
        met = client.get(METRICS, headers=operator).json

    assert met == first
    assert cast(Any, client.get(METRICS, headers=operator).json)["active_companies"] == 1


def test_of_two_first_requests_one_counts_and_both_answer(committed: World) -> None:
    operator = committed.operator()
    committed.customer()

    def ask() -> Any:
        return committed.app.test_client().get(METRICS, headers=operator).json

    with ThreadPoolExecutor(2) as threads, db.engine.connect() as counting:
        counting.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": METRICS_LOCK})
        futures = [threads.submit(ask) for _ in range(2)]
        until(lambda: waiting() == 2, what="two that wait")
        counting.rollback()
        answers = [future.result(30) for future in futures]

    assert answers[0] == answers[1]
    assert answers[0]["active_companies"] == 1


def test_the_command_counts_afresh_and_requests_answer_that(client: DescribedClient, world: World) -> None:
    get(client, world)
    world.customer(price_minor=31_000)

    result = world.app.test_cli_runner().invoke(args=["report", "metrics", "--format", "json"])
    table = world.app.test_cli_runner().invoke(args=["report", "metrics"])

    assert json.loads(result.stdout)["active_companies"] == 1
    assert get(client, world)["currencies"][0]["mrr_minor"] == 31_000
    assert "310.00 TRY" in table.stdout
    assert "next 30 days" in table.stdout


# A whole world ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_seeded_and_simulated_year_adds_up_by_months(committed: World) -> None:
    for command in ("seed --companies 60 --random-seed 7", "billing simulate --days 200"):
        result = committed.app.test_cli_runner().invoke(args=command.split())
        assert result.exit_code == 0, result.output
    with Session(db.engine) as session:
        rows = counted(session)
        found = report(session, committed.now)
        # Whatever is added up meanwhile.
        while add_up(session, now=committed.now + timedelta(days=150), zone=ISTANBUL) >= BATCH:
            pass
        assert report(session, committed.now) == found
        open_packages = session.execute(
            text(
                "SELECT cp.currency, cp.price_minor, p.period FROM company_packages cp"
                " JOIN packages p ON p.id = cp.package_id WHERE cp.status = 1"
            )
        ).all()

    def of_month(month: str, kind: str, attempts: set[int], unit: str = "number") -> int:
        return sum(
            value
            for (day, _, what, attempt, of), value in rows.items()
            if (what, of) == (kind, unit) and attempt in attempts and day.strftime("%Y-%m") == month
        )

    def before(month: str, kind: str, attempt: int) -> int:
        return sum(
            value
            for (day, _, what, number, of), value in rows.items()
            if (what, number, of) == (kind, attempt, "number") and day.strftime("%Y-%m") < month
        )

    assert found["active_companies"] == len(open_packages) > 10
    assert len(found["months"]) == 13
    for month in found["months"]:
        name = month["month"]
        assert month["active_companies"] == before(name, "taken", 0) - before(name, "declined", 3)
        assert month["packages_taken"] == of_month(name, "taken", {0})
        assert month["companies_lost"] == of_month(name, "declined", {3})
        assert month["first_declines"] == of_month(name, "declined", {1})
        assert month["recovered"] == of_month(name, "charged", {2, 3})
        assert sum(total["amount_minor"] for total in month["collected"]) == of_month(
            name, "charged", {1, 2, 3}, "amount"
        )
    assert sum(month["companies_lost"] for month in found["months"]) > 5
    for currency in found["currencies"]:
        mine = [each for each in open_packages if each.currency == currency["currency"]]
        yearly = sum(each.price_minor for each in mine if each.period == "yearly")
        monthly = sum(each.price_minor for each in mine if each.period == "monthly")
        assert abs(currency["mrr_minor"] - monthly - yearly / 12) <= 0.5
