"""A company sees and changes itself."""

import json
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, text

from models import Callback, Company
from tests.api import DescribedClient, assert_problem, contents
from tests.conftest import NOW
from tests.world import World

ME = "/api/v1/companies/me"
ENDPOINT = "https://hooks.store.example/vade?key=1"


def patch(client: DescribedClient, world: World, company: Company, **changes: Any) -> Any:
    return client.patch(ME, json=changes, headers=world.token(company))


def test_a_company_sees_itself_without_secrets(client: DescribedClient, world: World) -> None:
    company = world.company(callback_url=ENDPOINT, callback_secret="whsec_c2VjcmV0")
    world.company()

    response = client.get(ME, headers=world.token(company))

    assert response.status_code == 200
    assert response.json == {
        "id": company.id,
        "site_url": company.site_url,
        "name": "Ayşe",
        "lastname": "Yılmaz",
        "company_name": company.company_name,
        "email": company.email,
        "status": 1,
        "callback_url": ENDPOINT,
        "registered_at": "2026-01-10T09:00:00.000000Z",
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("site_url", "https://new.example/"),
        ("name", "Özge"),
        ("lastname", "Çelik"),
        ("company_name", "Yeni Mağaza"),
    ],
)
def test_a_change_changes_that_field_only_and_is_told(
    client: DescribedClient, world: World, field: str, value: str
) -> None:
    company = world.company()
    other = world.company()
    before = client.get(ME, headers=world.token(company)).json

    response = patch(client, world, company, **{field: value})

    assert response.status_code == 200
    assert response.json == before | {field: value}
    assert client.get(ME, headers=world.token(company)).json == before | {field: value}
    (callback,) = world.session.scalars(select(Callback))
    assert (callback.company_id, callback.recipient, callback.type) == (
        company.id,
        "platform",
        "company.updated",
    )
    assert json.loads(callback.body)["data"] == {
        "company": before | {field: value},
        "sequence": 1,
        "previous": {"company": {field: before[field]}},
    }
    world.session.refresh(other)
    assert getattr(other, field) != value


def test_all_fields_change_at_once_with_one_message(client: DescribedClient, world: World) -> None:
    company = world.company()
    changes = {"site_url": "http://a.example", "name": "A", "lastname": "B", "company_name": "C"}

    response = patch(client, world, company, **changes)

    assert response.json | changes == response.json
    assert world.callbacks() == [("platform", "company.updated")]


def test_a_change_that_changes_nothing_is_no_change(client: DescribedClient, world: World) -> None:
    company = world.company(callback_url=ENDPOINT, callback_secret="whsec_c2VjcmV0")
    before = contents(world.session)
    shown = client.get(ME, headers=world.token(company)).json

    answers = [
        patch(client, world, company),
        patch(client, world, company, name=" Ayşe "),
        patch(client, world, company, callback_url=ENDPOINT, site_url=company.site_url),
    ]

    assert [(answer.status_code, answer.json) for answer in answers] == [(200, shown)] * 3
    assert contents(world.session) == before


def test_an_endpoint_gets_a_secret_that_is_shown_once(client: DescribedClient, world: World) -> None:
    company = world.company()

    first = patch(client, world, company, callback_url=ENDPOINT)
    same = patch(client, world, company, callback_url=ENDPOINT, name="Özge")

    secret = first.json["callback_secret"]
    assert secret.startswith("whsec_")
    assert len(secret) >= len("whsec_") + 43, "256 bits"
    assert first.json["callback_url"] == ENDPOINT
    assert "callback_secret" not in same.json
    assert "callback_secret" not in client.get(ME, headers=world.token(company)).json
    world.session.refresh(company)
    assert world.secrets(company) == [secret]
    bodies = world.session.scalars(select(Callback.body)).all()
    assert not any(secret in body or "callback_secret" in body for body in bodies)
    assert world.callbacks() == [("company", "company.updated")] * 2 + [("platform", "company.updated")] * 2


def test_another_endpoint_gets_another_secret(client: DescribedClient, world: World) -> None:
    company = world.company()

    secrets = {
        patch(client, world, company, callback_url=url).json["callback_secret"]
        for url in (ENDPOINT, "https://other.example", ENDPOINT)
    }

    assert len(secrets) == 3


def test_no_endpoint_means_no_secret_and_no_messages(client: DescribedClient, world: World) -> None:
    company = world.company()
    patch(client, world, company, callback_url=ENDPOINT)
    world.session.execute(text("DELETE FROM callbacks"))

    response = patch(client, world, company, callback_url=None)

    assert response.json["callback_url"] is None
    assert "callback_secret" not in response.json
    world.session.refresh(company)
    assert company.callback_url is None
    assert world.secrets(company) == []
    assert world.callbacks() == [("platform", "company.updated")]


PRIVATE = [
    "http://localhost/",
    "http://LOCALHOST.:8080",
    "http://shop.localhost",
    "http://127.0.0.1:9000/",
    "http://127.1",
    "http://0x7f.1/",
    "http://2130706433/",
    "http://017700000001",
    "http://１２７.0.0.1/",
    "http://127.0.0.1./",
    "http://0/",
    "http://10.1.2.3",
    "http://172.16.0.1",
    "https://192.168.1.1/",
    "http://169.254.169.254/latest/meta-data",
    "http://100.64.0.1",
    "http://224.0.0.1",
    "http://[::1]/",
    "http://[::]/",
    "http://[fe80::1]/",
    "http://[fd00::1]/",
    "http://[::ffff:10.0.0.1]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
]


@pytest.mark.parametrize("allowed", [False, True])
def test_private_addresses_are_endpoints_only_where_the_settings_allow_them(
    client: DescribedClient, world: World, allowed: bool
) -> None:
    settings = world.vade.settings.model_copy(update={"callback_allow_private": allowed})
    world.app.extensions["vade"] = replace(world.vade, settings=settings)
    company = world.company()
    before = contents(world.session)

    for url in PRIVATE:
        response = patch(client, world, company, callback_url=url)
        if allowed:
            assert response.json["callback_url"] == url
        else:
            problem = assert_problem(response, 422, pointers=["#/callback_url"])
            assert problem["errors"][0]["detail"] == "This address is not public."

    assert allowed or contents(world.session) == before


@pytest.mark.parametrize(
    "url", ["https://hooks.example", "http://8.8.8.8:8080/x", "https://[2606:4700:4700::1111]/", ENDPOINT]
)
def test_public_addresses_are_endpoints(client: DescribedClient, world: World, url: str) -> None:
    settings = world.vade.settings.model_copy(update={"callback_allow_private": False})
    world.app.extensions["vade"] = replace(world.vade, settings=settings)

    response = patch(client, world, world.company(), callback_url=url)

    assert (response.status_code, response.json["callback_url"]) == (200, url)


@pytest.mark.parametrize(
    "url", ["https://me:secret@hooks.example", "https://me@hooks.example", "http://a.example:0"]
)
def test_an_endpoint_carries_no_credentials_and_has_a_port(
    client: DescribedClient, world: World, url: str
) -> None:
    response = patch(client, world, world.company(), callback_url=url)

    assert_problem(response, 422, pointers=["#/callback_url"])


def test_a_company_that_did_not_pay_still_changes_what_it_says_of_itself(
    client: DescribedClient, world: World
) -> None:
    company = world.company(status=0, passivated_at=NOW)

    response = patch(client, world, company, name="Özge")

    assert (response.status_code, response.json["name"], response.json["status"]) == (200, "Özge", 0)


def test_a_change_that_is_refused_in_one_field_changes_none(client: DescribedClient, world: World) -> None:
    company = world.company()
    before = contents(world.session)

    response = patch(
        client, world, company, name="Özge", lastname="", callback_url="ftp://a.example", status=1
    )

    assert_problem(response, 422, pointers=["#/lastname", "#/callback_url", "#/status"])
    assert contents(world.session) == before
