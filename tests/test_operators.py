"""Operators: rows with roles, whose tokens are good as long as the rows say so, and their commands."""

from datetime import timedelta

import jwt
import pytest
from sqlalchemy import func, select, text

from billing import operators
from billing.clock import Clock
from billing.documents import instant_text
from models import Operator, OperatorToken, Role
from tests.api import DescribedClient, assert_problem, contents
from tests.test_commands import Flask, flask, rows
from tests.world import World, bearer

__all__ = ["flask"]

PAYMENTS = "/api/v1/company-payments"


def payments(client: DescribedClient, token: str) -> int:
    """How it ends when all payments are read."""
    status: int = client.get(PAYMENTS, headers=bearer(token)).status_code
    return status


def replay(client: DescribedClient, token: str) -> int:
    """How it ends when a message is sent again that there is not."""
    path = "/api/v1/callbacks/00000000-0000-0001-0000-000000000000/replay"
    status: int = client.post(path, headers=bearer(token)).status_code
    return status


def given(world: World) -> list[tuple[str, str, int]]:
    """Name and role of each operator, and how many tokens each was given."""
    query = (
        select(Operator.name, Operator.role, func.count(OperatorToken.id))
        .outerjoin(OperatorToken)
        .group_by(Operator.id)
        .order_by(Operator.id)
    )
    return [(name, role, number) for name, role, number in world.session.execute(query)]


@pytest.mark.parametrize(("arguments", "days"), [([], 30), (["--days", "1"], 1), (["--days", "3650"], 3650)])
def test_a_token_without_a_name_is_for_an_admin_who_is_made_where_missing(
    flask: Flask, world: World, client: DescribedClient, arguments: list[str], days: int
) -> None:
    results = [flask("operator", "token", *arguments) for _ in range(2)]

    assert given(world) == [("admin", "admin", 2)]
    tokens = list(world.session.scalars(select(OperatorToken).order_by(OperatorToken.id)))
    for result, row in zip(results, tokens, strict=True):
        token = result.stdout.removesuffix("\n")
        claims = jwt.decode(token, world.app.config["JWT_SECRET_KEY"], algorithms=["HS256"])
        assert (claims["role"], claims["jti"]) == ("operator", str(row.id))
        assert claims["exp"] - claims["iat"] == days * 86_400
        assert row.expires_at - row.created_at == timedelta(days=days)
        assert result.stderr == f"Token {row.id} of admin (admin), until {instant_text(row.expires_at)}.\n"
        assert payments(client, token) == 200
        assert client.post("/api/v1/packages", headers=bearer(token), json={}).status_code == 422


@pytest.mark.parametrize("days", ["0", "-1", "3651", "1e3"])
def test_a_token_of_no_days_is_refused(flask: Flask, days: str) -> None:
    assert flask("operator", "token", "--days", days).exit_code == 2


@pytest.mark.parametrize("role", Role)
def test_a_token_can_be_for_any_role(flask: Flask, world: World, client: DescribedClient, role: Role) -> None:
    token = flask("operator", "token", "--role", str(role)).stdout.strip()

    assert given(world) == [(role, role, 1)]
    assert payments(client, token) == 200
    assert replay(client, token) == (403 if role is Role.READ else 404)


def test_a_named_operator_has_tokens_of_the_role_that_it_has(
    flask: Flask, world: World, client: DescribedClient
) -> None:
    assert flask("operator", "add", "ayşe@store.example").stdout == (
        "ayşe@store.example is an operator of the role read.\n"
    )
    assert flask("operator", "add", "Mehmet", "--role", "support").exit_code == 0

    tokens = [flask("operator", "token", name).stdout.strip() for name in ("ayşe@store.example", "Mehmet")]

    assert given(world) == [("ayşe@store.example", "read", 1), ("Mehmet", "support", 1)]
    assert [replay(client, token) for token in tokens] == [403, 404]


def test_a_role_holds_from_the_next_request_on(flask: Flask, client: DescribedClient) -> None:
    flask("operator", "add", "ayşe")
    token = flask("operator", "token", "ayşe").stdout.strip()

    found = [replay(client, token)]
    for role in ("support", "admin", "read"):
        assert flask("operator", "role", "ayşe", role).stdout == f"ayşe has the role {role}.\n"
        found.append(replay(client, token))

    assert found == [403, 404, 404, 403]


def test_a_disabled_operator_is_nobody_until_enabled(
    flask: Flask, world: World, client: DescribedClient
) -> None:
    flask("operator", "add", "ayşe")
    token, other = (flask("operator", "token", *name).stdout.strip() for name in (["ayşe"], []))

    assert flask("operator", "disable", "ayşe").stdout == "ayşe is disabled.\n"
    since = operators.find(world.session, "ayşe").disabled_at
    assert flask("operator", "disable", "ayşe").exit_code == 0

    assert operators.find(world.session, "ayşe").disabled_at == since, "since when it was first"
    assert_problem(client.get(PAYMENTS, headers=bearer(token)), 401)
    assert payments(client, other) == 200
    refused = flask("operator", "token", "ayşe")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr == "Error: The operator ayşe is disabled.\n"

    assert flask("operator", "enable", "ayşe").stdout == "ayşe is enabled.\n"
    assert payments(client, token) == 200


def test_a_revoked_token_opens_nothing_more(flask: Flask, world: World, client: DescribedClient) -> None:
    tokens = [flask("operator", "token").stdout.strip() for _ in range(3)]
    other = flask("operator", "token", "--role", "read").stdout.strip()
    ids = list(world.session.scalars(select(OperatorToken.id).order_by(OperatorToken.id)))

    assert flask("operator", "revoke", str(ids[0])).stdout == f"Token {ids[0]} is revoked.\n"
    assert [payments(client, token) for token in (*tokens, other)] == [401, 200, 200, 200]
    before = contents(world.session, but=())
    assert flask("operator", "revoke", str(ids[0])).stdout == f"Token {ids[0]} was revoked already.\n"
    assert contents(world.session, but=()) == before

    assert flask("operator", "revoke", "--all", "admin").stdout == "2 tokens of admin revoked.\n"
    assert [payments(client, token) for token in (*tokens, other)] == [401, 401, 401, 200]
    assert flask("operator", "revoke", "--all", "read").stdout == "1 token of read revoked.\n"
    assert payments(client, other) == 401


def test_operators_and_their_tokens_are_listed_and_no_token_is_shown(flask: Flask, world: World) -> None:
    assert flask("operator", "list").stdout == "There is no operator yet: flask operator add NAME.\n"
    assert flask("operator", "tokens").stdout == "No token was given.\n"
    flask("operator", "add", "ayşe", "--role", "support")
    shown = [flask("operator", "token", *name).stdout.strip() for name in ([], [], [], ["ayşe"])]
    first, second, third, fourth = world.session.scalars(select(OperatorToken.id).order_by(OperatorToken.id))
    flask("operator", "revoke", str(first))
    world.session.execute(
        text("UPDATE operator_tokens SET expires_at = created_at WHERE id = :id"), {"id": second}
    )
    world.session.commit()

    def states(*arguments: str) -> list[tuple[str, str, str]]:
        return [(row[0], row[1], row[4].partition(" since ")[0]) for row in rows(listed(*arguments))[1:]]

    def listed(*arguments: str) -> str:
        told = flask("operator", *arguments).stdout
        assert not any(token in told for token in shown)
        return told

    assert states("tokens") == [
        (str(fourth), "ayşe", "good"),
        (str(third), "admin", "good"),
        (str(second), "admin", "expired"),
        (str(first), "admin", "revoked"),
    ]
    assert states("tokens", "ayşe") == [(str(fourth), "ayşe", "good")]
    assert [(row[0], row[1], row[3], row[4]) for row in rows(listed("list"))[1:]] == [
        ("admin", "admin", "1", "good"),
        ("ayşe", "support", "1", "good"),
    ]

    flask("operator", "disable", "ayşe")

    assert states("tokens", "ayşe") == [(str(fourth), "ayşe", "disabled")]
    (row,) = (row for row in rows(listed("list")) if row[0] == "ayşe")
    assert row[3] == "0"
    assert row[4].startswith("disabled since 20")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["add", "ayşe"], "There is an operator ayşe already."),
        # An ş of two characters.
        (["add", "ays\u0327e"], "There is an operator ays\u0327e already."),
        (["add", ""], "A name is 1 to 64 letters"),
        (["add", "a b"], "A name is 1 to 64 letters"),
        (["add", "-a"], "No such option"),
        (["add", "a" * 65], "A name is 1 to 64 letters"),
        (["add", "a\n"], "A name is 1 to 64 letters"),
        (["add", "mehmet", "--role", "root"], "Invalid value for '--role'"),
        (["role", "ayşe", "root"], "Invalid value for"),
        (["role", "mehmet", "read"], "There is no operator mehmet."),
        (["disable", "mehmet"], "There is no operator mehmet."),
        (["enable", "Ayşe"], "There is no operator Ayşe."),
        (["token", "mehmet"], "There is no operator mehmet."),
        (["token", "ayşe", "--role", "admin"], "The role is the operator's"),
        (["token"], "The operator admin has the role support"),
        (["tokens", "mehmet"], "There is no operator mehmet."),
        (["revoke"], "Say which"),
        (["revoke", "1", "--all", "ayşe"], "Say which"),
        (["revoke", "999999999"], "There is no token with this id."),
        (["revoke", "0"], "Invalid value for"),
        (["revoke", "--all", "mehmet"], "There is no operator mehmet."),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    flask: Flask, world: World, arguments: list[str], told: str
) -> None:
    now = Clock().read(world.session).real
    operators.add(world.session, "ayşe", Role.READ, now=now)
    operators.add(world.session, "admin", Role.SUPPORT, now=now)
    world.session.commit()
    before = contents(world.session, but=())

    result = flask("operator", *arguments)

    assert result.exit_code in {1, 2}
    assert result.stdout == ""
    assert told in result.stderr
    assert contents(world.session, but=()) == before
