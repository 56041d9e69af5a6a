"""Company packages: taking one, and what a company has."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any

import pytest
from sqlalchemy import event, select, text

from models import BIGINT_MAX, Callback, Company, CompanyPackage, Package, db
from tests.api import DescribedClient, assert_problem, contents
from tests.conftest import NOW
from tests.world import World, instant

COMPANY_PACKAGES = "/api/v1/company-packages"
CURRENT = f"{COMPANY_PACKAGES}/current"


def take(client: DescribedClient, world: World, company: Company, package_id: int, **caller: Any) -> Any:
    body = {"company_id": company.id, "package_id": package_id}
    return client.post(COMPANY_PACKAGES, json=body, headers=caller.get("headers") or world.token(company))


# DESIGN.md §2.3: registered, taken, period, end.
PERIODS = [
    ("2026-01-10", "2026-01-10", "monthly", "2026-02-10"),
    ("2026-01-10", "2026-03-15", "monthly", "2026-04-10"),
    ("2026-01-10", "2026-03-15", "yearly", "2027-03-10"),
    ("2026-01-31", "2026-01-31", "monthly", "2026-02-28"),
    ("2026-01-31", "2026-02-28", "monthly", "2026-03-31"),
    ("2024-02-29", "2024-02-29", "yearly", "2025-02-28"),
]


@pytest.mark.parametrize("case", PERIODS)
def test_a_package_is_open_from_today_to_the_next_billing_day(
    client: DescribedClient, world: World, case: tuple[str, str, str, str]
) -> None:
    registered, taken, period, end = case
    company = world.company(registered_at=instant(registered))
    package = world.package(period=period)
    world.travel(instant(taken))

    response = take(client, world, company, package.id)

    assert response.status_code == 201
    assert response.json == {
        "id": response.json["id"],
        "company_id": company.id,
        "status": 1,
        "start_date": taken,
        "end_date": end,
        "package": {
            "id": package.id,
            "name": "Profesyonel",
            "period": period,
            "price_minor": 31_000,
            "currency": "TRY",
            "status": 1,
        },
    }


def test_today_is_the_day_in_the_business_time_zone(client: DescribedClient, world: World) -> None:
    company = world.company(registered_at=instant("2026-01-10"))
    world.travel(instant("2026-03-15", hour=0))

    response = take(client, world, company, world.package().id)

    assert world.now.day == 14, "in UTC"
    assert response.json["start_date"] == "2026-03-15"


def test_price_currency_and_days_are_copied_when_a_period_opens(
    client: DescribedClient, world: World
) -> None:
    company = world.company(registered_at=instant("2026-01-10"))
    world.travel(instant("2026-03-15"))

    take(client, world, company, world.package(price_minor=777, currency="EUR").id)

    row = world.company_package(company)
    assert (row.price_minor, row.currency, row.full_days) == (777, "EUR", 31)
    assert (row.end_date - row.start_date).days == 26


def test_a_taken_package_is_told(client: DescribedClient, world: World) -> None:
    company = world.company()

    answer = take(client, world, company, world.package().id).json

    (callback,) = world.session.scalars(select(Callback))
    assert (callback.recipient, callback.type) == ("platform", "company_package.assigned")
    shown = client.get("/api/v1/companies/me", headers=world.token(company)).json
    assert json.loads(callback.body)["data"] == {
        "company": shown,
        "company_package": answer,
        "sequence": 1,
        "previous": {"company_package": None},
    }


def test_a_company_that_never_logged_in_may_take_a_package(client: DescribedClient, world: World) -> None:
    company = world.company(status=0)

    assert take(client, world, company, world.package().id).status_code == 201
    world.session.refresh(company)
    assert company.status == 0


def test_an_operator_gives_any_company_a_package(client: DescribedClient, world: World) -> None:
    company = world.company()

    response = take(client, world, company, world.package().id, headers=world.operator())

    assert (response.status_code, response.json["company_id"]) == (201, company.id)


@pytest.mark.parametrize("which", ["another", "nobody's", "the largest"])
def test_a_company_takes_packages_for_itself_only(client: DescribedClient, world: World, which: str) -> None:
    company, other, package = world.company(), world.company(), world.package()
    id_ = {"another": other.id, "nobody's": other.id + 1, "the largest": BIGINT_MAX}[which]
    before = contents(world.session)

    for package_id in (package.id, package.id + 1):
        response = client.post(
            COMPANY_PACKAGES,
            json={"company_id": id_, "package_id": package_id},
            headers=world.token(company),
        )
        assert_problem(response, 403)

    assert contents(world.session) == before


def test_a_company_that_is_not_there_is_not_found_for_an_operator(
    client: DescribedClient, world: World
) -> None:
    package = world.package()
    body = {"company_id": world.company().id + 1, "package_id": package.id}

    assert_problem(client.post(COMPANY_PACKAGES, json=body, headers=world.operator()), 404)


@pytest.mark.parametrize("which", ["unknown", "withdrawn", "the largest"])
def test_a_package_that_is_not_offered_cannot_be_taken(
    client: DescribedClient, world: World, which: str
) -> None:
    company, package = world.company(), world.package()
    package.status = 0
    world.session.commit()
    id_ = {"withdrawn": package.id, "unknown": package.id + 1, "the largest": BIGINT_MAX}[which]
    before = contents(world.session)

    for headers in (world.token(company), world.operator()):
        response = take(client, world, company, id_, headers=headers)
        assert_problem(response, 422, pointers=["#/package_id"])

    assert contents(world.session) == before


def test_a_company_has_one_open_package_at_most(client: DescribedClient, world: World) -> None:
    company, package = world.company(), world.package()
    take(client, world, company, package.id)
    before = contents(world.session)

    for id_ in (package.id, world.package(period="yearly").id):
        assert_problem(take(client, world, company, id_), 409, "package-open")

    after = contents(world.session)
    assert {table for table in after if after[table] != before[table]} == {"packages"}


def test_a_company_that_did_not_pay_can_take_no_package(client: DescribedClient, world: World) -> None:
    company, package = world.company(status=0, passivated_at=NOW), world.package()
    before = contents(world.session)

    for headers in (world.token(company), world.operator()):
        assert_problem(take(client, world, company, package.id, headers=headers), 409, "company-passive")

    assert contents(world.session) == before


def test_a_package_can_be_taken_after_the_former_one_was_closed(
    client: DescribedClient, world: World
) -> None:
    company = world.customer()
    world.company_package(company).status = 0
    world.session.commit()

    response = take(client, world, company, world.package(period="yearly").id)

    assert response.status_code == 201
    assert client.get(CURRENT, headers=world.token(company)).json["company_package"] == response.json


def test_what_a_company_has_is_shown_with_the_company(client: DescribedClient, world: World) -> None:
    company = world.company()
    taken = take(client, world, company, world.package().id).json

    response = client.get(CURRENT, headers=world.token(company))

    assert response.status_code == 200
    assert response.json == {
        "company": client.get("/api/v1/companies/me", headers=world.token(company)).json,
        "company_package": taken,
    }


@contextmanager
def counted_queries() -> Iterator[list[str]]:
    """Give the list of statements that the engine is asked to execute meanwhile."""
    statements: list[str] = []

    def count(*arguments: Any) -> None:
        statements.append(arguments[2])

    event.listen(db.engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        event.remove(db.engine, "before_cursor_execute", count)


def test_what_a_company_has_is_asked_with_one_query(committed: World) -> None:
    client: Any = committed.app.test_client()
    package = committed.package()
    none, one, closed, both = (committed.company() for _ in range(4))
    opened = committed.assign(one, package)
    _closed(committed, closed, package)
    latest = _closed(committed, closed, package)
    standing = committed.assign(both, package)
    _closed(committed, both, package)

    for company, shown in ((none, None), (one, opened), (closed, latest), (both, standing)):
        headers = committed.token(company)
        with counted_queries() as queries:
            response = client.get(CURRENT, headers=headers)
        assert response.status_code == 200
        assert len(queries) == 1, queries
        assert response.json["company"]["id"] == company.id
        current = response.json["company_package"]
        assert (current and (current["id"], current["status"])) == (shown and (shown.id, shown.status))


def _closed(world: World, company: Company, package: Package) -> CompanyPackage:
    """A company package that is open no more."""
    former = CompanyPackage(
        company_id=company.id,
        package_id=package.id,
        status=0,
        start_date=date(2025, 1, 10),
        end_date=date(2025, 2, 10),
        price_minor=1,
        currency="TRY",
        full_days=31,
    )
    world.session.add(former)
    world.session.commit()
    return former


def test_a_company_that_did_not_pay_sees_its_latest_package(client: DescribedClient, world: World) -> None:
    company = world.customer(registered_at=NOW - timedelta(days=40))
    world.session.execute(text("UPDATE company_packages SET status = 0"))
    world.session.execute(text("UPDATE companies SET status = 0, passivated_at = now()"))
    world.session.commit()

    answer = client.get(CURRENT, headers=world.token(company)).json

    assert (answer["company"]["status"], answer["company_package"]["status"]) == (0, 0)


def test_the_call_that_comes_most_is_one_exchange_with_the_database(committed: World) -> None:
    """No transaction around its one query; and the next request has one again."""
    company = committed.customer()
    client, headers = committed.app.test_client(), committed.token(company)
    alone: list[bool] = []

    def note(connection: Any, *_: Any) -> None:
        alone.append(connection.connection.dbapi_connection.autocommit)

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        assert client.get(CURRENT, headers=headers).status_code == 200
        assert alone == [True]
        changed = client.patch("/api/v1/companies/me", json={"name": "Ayşe"}, headers=headers)
        assert changed.status_code == 200
        assert set(alone[1:]) == {False}
    finally:
        event.remove(db.engine, "before_cursor_execute", note)
