"""Documents: what a settlement writes in SQL is what the API answers in Python, to the letter."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from billing.gateways import ChargeResult
from models import Company
from tests.api import DescribedClient
from tests.world import LedgerGateway, World, instant

ODD = [
    'O\'Neill "and" Söhne',
    "C:\\new\\table \\u0041 \\",
    "👩‍👩‍👧 🫨 🇹🇷",
    "İstanbul ığüşöç Çağrı",
    "first line\nsecond line\ttab",
    "</script>&amp;<!-- {{7*7}} %s :name",
    "\u2028\u00a0\u200d",
]

INSTANTS = [
    datetime(2026, 1, 10, 9, 0, tzinfo=UTC),
    datetime(2026, 1, 10, 9, 0, 0, 1, tzinfo=UTC),
    datetime(2026, 1, 10, 9, 59, 59, 999_999, tzinfo=UTC),
    datetime(2026, 1, 9, 23, 30, 0, 120_000, tzinfo=UTC),
]
"""Without microseconds, with the least and the most, and on another day in Istanbul."""


def odd_customer(world: World, *, registered_at: datetime, name: str) -> Company:
    """A company whose every text is odd, with a package that is too."""
    company = world.company(
        registered_at=registered_at,
        site_url=f"https://shop.example/{name}",
        name=name,
        lastname=name[::-1],
        company_name=name * 2,
        callback_url="https://hooks.example/?a=1&b=\"'\\",
        callback_secret="whsec_eA==",
    )
    package = world.package()
    package.name = name
    world.travel(registered_at)
    world.assign(company, package)
    world.session.execute(text("DELETE FROM callbacks"))
    world.session.commit()
    return company


def messages(world: World, recipient: str) -> dict[str, Any]:
    """The bodies that were written for a recipient, by type; then they are forgotten."""
    rows = world.session.execute(
        text("DELETE FROM callbacks WHERE recipient = :recipient RETURNING type, body"),
        {"recipient": recipient},
    ).all()
    world.session.commit()
    return {row.type: json.loads(row.body) for row in rows}


class Answers:
    """What the API says of a company."""

    def __init__(self, client: DescribedClient, world: World, company: Company) -> None:
        headers = world.token(company)
        self.company = client.get("/api/v1/companies/me", headers=headers).json
        current = client.get("/api/v1/company-packages/current", headers=headers).json
        assert current["company"] == self.company
        self.company_package = current["company_package"]
        self.payment = client.get("/api/v1/company-payments", headers=headers).json["data"][0]


def period(client: DescribedClient, world: World, company: Company) -> dict[str, str]:
    """The present period of what a company has."""
    current = client.get("/api/v1/company-packages/current", headers=world.token(company)).json
    return {name: current["company_package"][name] for name in ("start_date", "end_date")}


def exactly(document: Any) -> str:
    """A document with the order of its members."""
    return json.dumps(document, ensure_ascii=False)


@pytest.mark.parametrize(
    ("registered_at", "name"),
    [(INSTANTS[number % len(INSTANTS)], name) for number, name in enumerate(ODD)],
    ids=["quotes", "backslashes", "emoji", "turkish", "newline", "markup", "space"],
)
def test_a_charge_is_told_as_the_api_answers(
    client: DescribedClient, world: World, registered_at: datetime, name: str
) -> None:
    company = odd_customer(world, registered_at=registered_at, name=name)
    gateway = LedgerGateway(lambda _: ChargeResult(True, "ref \"'\\ ş 🌹", "code \"'\\ ş"))
    former = period(client, world, company)
    # A session's time zone changes nothing.
    world.session.execute(text("SET LOCAL TIME ZONE 'Pacific/Chatham'"))

    world.collect(gateway, at=registered_at + timedelta(days=40))

    told, answers = messages(world, "platform"), Answers(client, world, company)
    assert set(told) == {"payment.succeeded", "company_package.renewed"}
    assert exactly(told["payment.succeeded"]) == exactly(
        {
            "type": "payment.succeeded",
            "timestamp": answers.payment["attempted_at"],
            "data": {
                "company": answers.company,
                "payment": answers.payment,
                "sequence": 2,
                "previous": {},
            },
        }
    )
    assert exactly(told["company_package.renewed"]) == exactly(
        {
            "type": "company_package.renewed",
            "timestamp": answers.payment["attempted_at"],
            "data": {
                "company": answers.company,
                "company_package": answers.company_package,
                "sequence": 3,
                "previous": {"company_package": former},
            },
        }
    )
    assert messages(world, "company") == told, "the company's copy is the same"


@pytest.mark.parametrize("name", ODD[:5], ids=["quotes", "backslashes", "emoji", "turkish", "newline"])
def test_declines_are_told_as_the_api_answers(client: DescribedClient, world: World, name: str) -> None:
    registered_at = instant("2026-01-10")
    company = odd_customer(world, registered_at=registered_at, name=name)

    for attempt in (1, 2, 3):
        at = instant("2026-02-10") + timedelta(days=attempt - 1, microseconds=attempt)
        world.collect(LedgerGateway(False), at=at)
        told, answers = messages(world, "platform"), Answers(client, world, company)
        assert answers.payment["attempt"] == attempt
        assert exactly(told.pop("payment.declined")["data"]) == exactly(
            {
                "company": answers.company,
                "payment": answers.payment,
                "sequence": attempt + 1,
                "previous": {},
            }
        )
        if attempt == 3:
            passivated = told.pop("company.passivated")
            assert exactly(passivated["data"]) == exactly(
                {
                    "company": answers.company,
                    "sequence": 5,
                    "previous": {"company": {"status": 1}},
                }
            )
            assert passivated["timestamp"] == answers.payment["attempted_at"]
            assert answers.company["status"] == answers.company_package["status"] == 0
        assert told == {}


def test_what_the_api_tells_is_what_it_answers(client: DescribedClient, world: World) -> None:
    company = odd_customer(world, registered_at=instant("2026-01-10"), name=ODD[0])
    headers = world.token(company)

    for name in ODD[:5]:
        client.patch(
            "/api/v1/companies/me", json={"company_name": f"x{name}".replace("\t", " ")}, headers=headers
        )
        told = messages(world, "company")
        assert exactly(told["company.updated"]["data"]["company"]) == exactly(
            client.get("/api/v1/companies/me", headers=headers).json
        )


@pytest.mark.parametrize("microsecond", [0, 1, 120_000, 999_999])
def test_an_instant_is_written_to_the_microsecond_in_utc(
    client: DescribedClient, world: World, microsecond: int
) -> None:
    company = world.company(registered_at=datetime(2026, 3, 1, 0, 30, 0, microsecond, tzinfo=UTC))

    shown = client.get("/api/v1/companies/me", headers=world.token(company)).json["registered_at"]

    assert shown == f"2026-03-01T00:30:00.{microsecond:06}Z"
