"""Packages: anyone sees what is sold, an operator decides it."""

from typing import Any

import pytest

from models import MAXIMUM_PRICE_MINOR, Package
from tests.api import DescribedClient, assert_problem, contents
from tests.world import World

PACKAGES = "/api/v1/packages"
NEW = {"name": "Başlangıç", "period": "yearly", "price_minor": 299_900, "currency": "TRY"}


def test_anyone_sees_the_packages_by_id_the_withdrawn_ones_too(client: DescribedClient, world: World) -> None:
    first = world.package(price_minor=31_000)
    second = world.package(period="yearly", price_minor=0, currency="EUR")
    second.status = 0
    world.session.commit()

    response = client.get(PACKAGES)

    assert response.status_code == 200
    assert response.json == {
        "data": [
            {
                "id": first.id,
                "name": "Profesyonel",
                "period": "monthly",
                "price_minor": 31_000,
                "currency": "TRY",
                "status": 1,
            },
            {
                "id": second.id,
                "name": "Profesyonel",
                "period": "yearly",
                "price_minor": 0,
                "currency": "EUR",
                "status": 0,
            },
        ],
        "next_cursor": None,
    }
    assert client.get(f"{PACKAGES}/{second.id}").json == response.json["data"][1]


def test_no_packages_are_an_empty_list(client: DescribedClient) -> None:
    assert client.get(PACKAGES).json == {"data": [], "next_cursor": None}


def test_a_list_shows_twenty_where_no_limit_is_given(client: DescribedClient, world: World) -> None:
    packages = [world.package() for _ in range(21)]

    page = client.get(PACKAGES).json
    rest = client.get(PACKAGES, query_string={"cursor": page["next_cursor"]}).json
    whole = client.get(PACKAGES, query_string={"limit": 100}).json

    assert [package["id"] for package in page["data"]] == [package.id for package in packages[:20]]
    assert rest["data"] == whole["data"][20:]
    assert (len(whole["data"]), rest["next_cursor"], whole["next_cursor"]) == (21, None, None)


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_the_pages_of_a_list_show_all_in_order(client: DescribedClient, world: World, limit: int) -> None:
    packages = [world.package() for _ in range(6)]
    shown: list[int] = []
    query: dict[str, Any] = {"limit": limit}

    for _ in range(10):
        page = client.get(PACKAGES, query_string=query).json
        shown += [package["id"] for package in page["data"]]
        assert 0 < len(page["data"]) <= limit
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]

    assert shown == [package.id for package in packages]


def test_an_operator_offers_a_package(client: DescribedClient, world: World) -> None:
    response = client.post(PACKAGES, json=NEW, headers=world.operator())

    assert response.status_code == 201
    assert response.json == NEW | {"id": response.json["id"], "status": 1}
    assert client.get(f"{PACKAGES}/{response.json['id']}").json == response.json


@pytest.mark.parametrize("price_minor", [0, 1, MAXIMUM_PRICE_MINOR])
def test_a_price_is_anything_from_nothing_to_the_largest(
    client: DescribedClient, world: World, price_minor: int
) -> None:
    response = client.post(PACKAGES, json=NEW | {"price_minor": price_minor}, headers=world.operator())

    assert (response.status_code, response.json["price_minor"]) == (201, price_minor)


@pytest.mark.parametrize("change", [{"name": "Kurumsal"}, {"price_minor": 1}, {"status": 0}, {}])
def test_an_operator_changes_that_field_only(
    client: DescribedClient, world: World, change: dict[str, Any]
) -> None:
    package = world.package()
    other = world.package()
    before = client.get(f"{PACKAGES}/{package.id}").json
    others = client.get(f"{PACKAGES}/{other.id}").json

    response = client.patch(f"{PACKAGES}/{package.id}", json=change, headers=world.operator())

    assert (response.status_code, response.json) == (200, before | change)
    assert client.get(f"{PACKAGES}/{package.id}").json == before | change
    assert client.get(f"{PACKAGES}/{other.id}").json == others
    assert world.callbacks() == []


def test_a_new_price_leaves_the_open_period_alone(client: DescribedClient, world: World) -> None:
    company = world.customer(price_minor=31_000)
    package_id = world.company_package(company).package_id

    client.patch(f"{PACKAGES}/{package_id}", json={"price_minor": 99_000}, headers=world.operator())

    assert world.company_package(company).price_minor == 31_000


@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_an_unknown_package_is_not_found(client: DescribedClient, world: World, method: str) -> None:
    path = f"{PACKAGES}/{world.package().id + 1}"

    response = client.open(path, method=method, json={"status": 0}, headers=world.operator())

    assert_problem(response, 404)


@pytest.mark.parametrize("field", ["period", "currency", "id"])
def test_what_a_package_is_never_changes(client: DescribedClient, world: World, field: str) -> None:
    package = world.package()
    before = contents(world.session)
    value = {"period": "yearly", "currency": "EUR", "id": 7}[field]

    response = client.patch(f"{PACKAGES}/{package.id}", json={field: value}, headers=world.operator())

    assert_problem(response, 422, pointers=[f"#/{field}"])
    assert contents(world.session) == before
    assert world.session.get_one(Package, package.id).period == "monthly"
