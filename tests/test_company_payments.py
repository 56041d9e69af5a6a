"""Company payments: every attempt, newest first, page by page."""

import uuid
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from models import Company, CompanyPayment
from tests.api import DescribedClient, assert_problem
from tests.world import LedgerGateway, World, instant

PAYMENTS = "/api/v1/company-payments"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def attempt(world: World, company: Company, *, attempted_at: datetime) -> CompanyPayment:
    """A declined attempt to collect some period of its own."""
    company_package = world.company_package(company)
    number = len(world.payments(company))
    payment = CompanyPayment(
        company_id=company.id,
        id=uuid.uuid4(),
        company_package_id=company_package.id,
        attempt=1,
        status=0,
        amount_minor=100,
        currency="TRY",
        period_start=date(2000, 1, 1) + timedelta(days=number),
        period_end=date(2000, 1, 2) + timedelta(days=number),
        reference="r",
        decline_code=None,
        attempted_at=attempted_at,
    )
    world.session.add(payment)
    world.session.commit()
    return payment


def ids(page: Any) -> list[str]:
    return [payment["id"] for payment in page["data"]]


def pages(client: DescribedClient, headers: dict[str, str], limit: int) -> Any:
    """All pages of the list, one after the other."""
    query: dict[str, Any] = {"limit": limit}
    for _ in range(50):
        response = client.get(PAYMENTS, query_string=query, headers=headers)
        assert response.status_code == 200
        yield response.json
        if response.json["next_cursor"] is None:
            return
        query["cursor"] = response.json["next_cursor"]
    pytest.fail("the list has no end")


def test_an_attempt_is_shown_whole(client: DescribedClient, world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"), price_minor=31_000)
    gateway = LedgerGateway(False, True)
    world.collect(gateway, at=instant("2026-02-10"))
    world.collect(gateway, at=instant("2026-02-11"))

    answer = client.get(PAYMENTS, headers=world.token(company)).json

    first, second = gateway.requests
    common = {
        "company_id": company.id,
        "company_package_id": world.company_package(company).id,
        "amount_minor": 31_000,
        "currency": "TRY",
        "period_start": "2026-01-10",
        "period_end": "2026-02-10",
    }
    assert answer["next_cursor"] is None
    assert answer["data"] == [
        common
        | {
            "id": second.idempotency_key,
            "attempt": 2,
            "status": 1,
            "reference": gateway.answers[second.idempotency_key].reference,
            "decline_code": None,
            "attempted_at": "2026-02-11T06:00:00.000000Z",
        },
        common
        | {
            "id": first.idempotency_key,
            "attempt": 1,
            "status": 0,
            "reference": gateway.answers[first.idempotency_key].reference,
            "decline_code": "insufficient_funds",
            "attempted_at": "2026-02-10T06:00:00.000000Z",
        },
    ]


def test_a_company_sees_its_own_attempts_and_an_operator_all(client: DescribedClient, world: World) -> None:
    one, other, none = world.customer(), world.customer(), world.customer()
    first = attempt(world, one, attempted_at=LONG_AGO)
    second = attempt(world, other, attempted_at=LONG_AGO + timedelta(days=1))
    third = attempt(world, one, attempted_at=LONG_AGO + timedelta(days=2))

    def seen(headers: dict[str, str]) -> list[str]:
        return ids(client.get(PAYMENTS, headers=headers).json)

    assert seen(world.token(one)) == [str(third.id), str(first.id)]
    assert seen(world.token(other)) == [str(second.id)]
    assert seen(world.token(none)) == []
    assert seen(world.operator()) == [str(third.id), str(second.id), str(first.id)]


@pytest.mark.parametrize("limit", [1, 3, 4])
def test_pages_have_no_gap_and_no_repeat_while_rows_arrive(
    client: DescribedClient, world: World, limit: int
) -> None:
    companies = [world.customer() for _ in range(2)]
    # Many at the same instant: theirs is the order of companies, then of periods.
    instants = [LONG_AGO + timedelta(microseconds=n // 5) for n in range(10)]
    stood = [attempt(world, companies[n % 2], attempted_at=at) for n, at in enumerate(instants)]
    stood.sort(
        key=lambda payment: (payment.attempted_at, payment.company_id, payment.period_start), reverse=True
    )

    shown: list[str] = []
    for number, page in enumerate(pages(client, world.operator(), limit)):
        shown += ids(page)
        attempt(world, companies[0], attempted_at=LONG_AGO + timedelta(days=1 + number))

    assert shown == [str(payment.id) for payment in stood]


def test_the_pages_of_a_company_are_its_own(client: DescribedClient, world: World) -> None:
    companies = [world.customer() for _ in range(2)]
    stood = [attempt(world, companies[n % 2], attempted_at=LONG_AGO) for n in range(10)]

    shown = [id_ for page in pages(client, world.token(companies[0]), 2) for id_ in ids(page)]

    mine = [payment.id for payment in stood if payment.company_id == companies[0].id]
    assert shown == [str(id_) for id_ in reversed(mine)]


def test_an_operators_cursor_shows_a_company_nothing_of_others(client: DescribedClient, world: World) -> None:
    companies = [world.customer() for _ in range(2)]
    for number in range(6):
        attempt(world, companies[number % 2], attempted_at=LONG_AGO + timedelta(days=number))
    page = client.get(PAYMENTS, query_string={"limit": 2}, headers=world.operator()).json

    rest = client.get(
        PAYMENTS, query_string={"cursor": page["next_cursor"]}, headers=world.token(companies[0])
    ).json

    assert {payment["company_id"] for payment in rest["data"]} == {companies[0].id}
    assert len(rest["data"]) == 2


def test_a_cursor_of_another_list_is_none_of_this(client: DescribedClient, world: World) -> None:
    for _ in range(2):
        world.package()
    cursor = client.get("/api/v1/packages", query_string={"limit": 1}).json["next_cursor"]

    response = client.get(PAYMENTS, query_string={"cursor": cursor}, headers=world.operator())

    assert_problem(response, 422, pointers=["#/cursor"])


def test_periods_that_were_caught_up_at_one_instant_are_listed_in_their_order(
    client: DescribedClient, world: World
) -> None:
    company = world.customer(registered_at=instant("2026-01-31"))
    world.collect(LedgerGateway(), at=instant("2027-03-01"))
    periods: list[str] = []
    url: str | None = "/api/v1/company-payments?limit=5"

    while url is not None:
        body = client.get(url, headers=world.token(company)).get_json()
        periods += [payment["period_start"] for payment in body["data"]]
        cursor = body["next_cursor"]
        url = cursor and f"/api/v1/company-payments?limit=5&cursor={cursor}"

    assert len(periods) == len(set(periods)) > 10
    assert periods == sorted(periods, reverse=True)
