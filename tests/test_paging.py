"""Lists: filters, links from page to page, and what rows that arrive meanwhile do to them."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from requests.utils import parse_header_links

from billing.documents import instant_text
from models import Company
from tests.api import DescribedClient, assert_problem
from tests.test_callback_history import write
from tests.test_company_payments import attempt
from tests.world import World

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
PACKAGES, PAYMENTS, CALLBACKS = LISTS = (
    "/api/v1/packages",
    "/api/v1/company-payments",
    "/api/v1/callbacks",
)


def links(response: Any) -> dict[str, str]:
    """The targets of an answer's ``Link``, by relation, as a client of the field reads them."""
    return {link["rel"]: link["url"] for link in parse_header_links(response.headers["Link"])}


def walk(client: DescribedClient, url: str, headers: dict[str, str]) -> Iterator[Any]:
    """All pages of a list, from link to link."""
    for _ in range(50):
        response = client.get(url, headers=headers)
        assert response.status_code == 200, response.text
        yield response
        found = links(response)
        assert ("next" in found) is (response.json["next_cursor"] is not None)
        if "next" not in found:
            return
        url = urljoin(url, found["next"])
    pytest.fail("the list has no end")


def ids(response: Any) -> list[str]:
    return [str(entry["id"]) for entry in response.json["data"]]


def whole(client: DescribedClient, url: str, headers: dict[str, str]) -> list[str]:
    return [id_ for response in walk(client, url, headers) for id_ in ids(response)]


def arrive(world: World, path: str, company: Company, at: datetime) -> str:
    """Let an entry of a list arrive, of some time."""
    if path == PACKAGES:
        return str(world.package().id)
    if path == PAYMENTS:
        return str(attempt(world, company, attempted_at=at).id)
    return write(world, company.id, at=at)


@pytest.mark.parametrize("path", LISTS)
def test_links_lead_through_the_list_and_back_to_its_first_page(
    client: DescribedClient, world: World, path: str
) -> None:
    company = world.customer()
    for number in range(5):
        arrive(world, path, company, LONG_AGO + timedelta(days=number))
    every = whole(client, f"{path}?limit=100", world.operator())
    assert len(every) >= 5

    pages = list(walk(client, f"{path}?limit=2", world.operator()))

    assert [id_ for page in pages for id_ in ids(page)] == every
    for page in pages:
        first = urljoin(path, links(page)["first"])
        assert client.get(first, headers=world.operator()).json == pages[0].json


def test_a_link_keeps_all_filters_and_names_no_host(client: DescribedClient, world: World) -> None:
    company = world.customer()
    for number in range(3):
        attempt(world, company, attempted_at=LONG_AGO + timedelta(days=number))
    # A plus sign is a space where it is not written as %2B.
    query = {"status": 0, "since": "2020-01-01T03:00:00+03:00", "company_id": company.id, "limit": 1}

    response = client.get(
        PAYMENTS, query_string=query, headers=world.operator() | {"Host": "elsewhere.example"}
    )

    for target in links(response).values():
        assert urlsplit(target)[:3] == ("", "", PAYMENTS)
    assert len(whole(client, links(response)["next"], world.operator())) == 2


def test_a_list_that_fits_a_page_links_to_no_next(client: DescribedClient, world: World) -> None:
    world.package()

    assert client.get(PACKAGES).headers["Link"] == f'<{PACKAGES}>; rel="first"'


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("limit", [1, 3])
def test_what_was_there_is_shown_once_whatever_arrives(
    client: DescribedClient, world: World, path: str, limit: int
) -> None:
    companies = [world.customer() for _ in range(2)]
    for number in range(10):
        # Some at the same instant.
        arrive(world, path, companies[number % 2], LONG_AGO + timedelta(days=number // 3))
    stood = whole(client, f"{path}?limit=100", world.operator())

    shown: list[str] = []
    for number, page in enumerate(walk(client, f"{path}?limit={limit}", world.operator())):
        shown += ids(page)
        # New ones, some that come late, and some in the middle of the present page.
        for day in (365 + number, -number - 1, number % 4) if number < 12 else ():
            arrive(world, path, companies[number % 2], LONG_AGO + timedelta(days=day))

    assert [id_ for id_ in shown if id_ in set(stood)] == stood
    assert len(shown) == len(set(shown))


# Filters ----------------------------------------------------------------------------------------------------


def test_packages_by_status(client: DescribedClient, world: World) -> None:
    sold, withdrawn = world.package(), world.package()
    withdrawn.status = 0
    world.session.commit()

    assert whole(client, f"{PACKAGES}?status=1", {}) == [str(sold.id)]
    assert whole(client, f"{PACKAGES}?status=0&limit=1", {}) == [str(withdrawn.id)]
    assert whole(client, PACKAGES, {}) == [str(sold.id), str(withdrawn.id)]


def test_payments_by_company_status_and_time(client: DescribedClient, world: World) -> None:
    companies = [world.customer() for _ in range(2)]
    made = [
        attempt(world, companies[number % 2], attempted_at=LONG_AGO + timedelta(days=number // 2))
        for number in range(8)
    ]
    one = companies[0].id

    def expected(keep: Callable[[Any], bool]) -> list[str]:
        kept = [payment for payment in made if keep(payment)]
        kept.sort(key=lambda payment: (payment.attempted_at, payment.company_id), reverse=True)
        return [str(payment.id) for payment in kept]

    def seen(query: str) -> list[str]:
        return whole(client, f"{PAYMENTS}?limit=2&{query}", world.operator())

    since, until = LONG_AGO + timedelta(days=1), LONG_AGO + timedelta(days=3)
    window = f"since={instant_text(since)}&until={instant_text(until)}"
    assert seen(f"company_id={one}") == expected(lambda p: p.company_id == one)
    assert seen("status=0") == expected(lambda _: True)
    assert seen("status=1") == []
    assert seen(window) == expected(lambda p: since <= p.attempted_at < until)
    assert seen(f"{window}&company_id={one}&status=0") == expected(
        lambda p: p.company_id == one and since <= p.attempted_at < until
    )


def test_callbacks_about_a_company_are_the_platforms_too(client: DescribedClient, world: World) -> None:
    one, other = world.company(), world.company()
    to_company = write(world, one.id, recipient="company", at=LONG_AGO)
    to_platform = write(world, one.id, recipient="platform", at=LONG_AGO + timedelta(days=1))
    write(world, other.id, at=LONG_AGO)

    assert whole(client, f"{CALLBACKS}?company_id={one.id}", world.operator()) == [to_platform, to_company]
    assert whole(client, f"{CALLBACKS}?company_id={one.id}", world.token(one)) == [to_company]


@pytest.mark.parametrize("path", [PAYMENTS, CALLBACKS])
def test_a_company_may_name_itself_and_no_other(client: DescribedClient, world: World, path: str) -> None:
    one, other = world.customer(), world.customer()
    mine = arrive(world, path, one, LONG_AGO)
    arrive(world, path, other, LONG_AGO)

    assert whole(client, f"{path}?company_id={one.id}", world.token(one)) == whole(
        client, path, world.token(one)
    )
    assert mine in whole(client, path, world.token(one))
    assert_problem(client.get(f"{path}?company_id={other.id}", headers=world.token(one)), 403)
    # Whether there is such a company is not told.
    assert_problem(client.get(f"{path}?company_id={other.id + 999}", headers=world.token(one)), 403)
    assert_problem(client.get(f"{path}?company_id={other.id + 999}", headers=world.operator()), 404)


@pytest.mark.parametrize("path", [PAYMENTS, CALLBACKS])
def test_a_cursor_is_a_place_whatever_the_filters(client: DescribedClient, world: World, path: str) -> None:
    one, other = world.customer(), world.customer()
    for number in range(6):
        arrive(world, path, (one, other)[number % 2], LONG_AGO + timedelta(days=number))
    every = whole(client, f"{path}?limit=100", world.operator())
    page = client.get(f"{path}?limit=2", headers=world.operator())

    rest = whole(client, f"{path}?company_id={one.id}&cursor={page.json['next_cursor']}", world.operator())

    of_one = whole(client, f"{path}?company_id={one.id}", world.operator())
    assert rest == [id_ for id_ in every[2:] if id_ in of_one]
    assert rest


@pytest.mark.parametrize(
    ("path", "query", "pointers"),
    [
        (PACKAGES, "status=2", ["#/status"]),
        (PACKAGES, "status=one", ["#/status"]),
        (PACKAGES, "company_id=1", ["#/company_id"]),
        (PAYMENTS, "status=charged&since=yesterday", ["#/status", "#/since"]),
        (PAYMENTS, "until=2020-01-01", ["#/until"]),
        (PAYMENTS, "company_id=0", ["#/company_id"]),
        (PAYMENTS, "company_id=", ["#/company_id"]),
    ],
)
def test_a_filter_that_is_none_is_refused_by_name(
    client: DescribedClient, world: World, path: str, query: str, pointers: list[str]
) -> None:
    response = client.get(f"{path}?{query}", headers=world.operator())

    assert_problem(response, 422, pointers=pointers)
