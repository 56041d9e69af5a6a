"""A callback endpoint: how it fares, trying it out, and sending again what it missed."""

import itertools
import json
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any

import psycopg
import pytest
from sqlalchemy import insert, text

from billing import callback_endpoints, callback_history, senders
from billing.callbacks import Outbox, message_id
from billing.deliveries import DeliveryResult
from billing.documents import instant_text
from blueprints import callback_endpoint
from cli import make_deliverer
from models import PLATFORM_ID, Callback, Company, db
from tests.api import DescribedClient, assert_problem, contents
from tests.deliveries import make_due
from tests.receivers import Received, Receiver, receiver
from tests.webhooks import assert_described_message
from tests.world import CALLBACK_SECRET, World
from web.webhooks import EVENTS

ENDPOINT = "/api/v1/callback-endpoint"
COMPANY_SECRET = "whsec_" + "Q29tcGFueSBzZWNyZXQgb2YgMzIgYnl0ZXMgb3Igc28="
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
STATUSES = ["pending", "waiting", "held", "delivered", "exhausted"]
NEVER = {"failing_since": None, "paused_until": None, "disabled_at": None, "disabled_reason": None}


@pytest.fixture
def answering() -> Iterator[Receiver]:
    with receiver() as endpoint:
        yield endpoint


def platform_at(world: World, url: str | None, **settings: Any) -> None:
    """Set where the platform's endpoint is, or that there is none."""
    secret = None if url is None else CALLBACK_SECRET
    changes = {"callback_url": url, "callback_secret": secret} | settings
    world.app.extensions["vade"] = replace(
        world.vade,
        settings=world.vade.settings.model_copy(update=changes),
        outbox=Outbox(by_platform=url is not None),
    )


def listener(world: World, url: str) -> Company:
    """A company whose endpoint is there, with a secret of the test's."""
    return world.company(callback_url=url, callback_secret=COMPANY_SECRET)


def tell(world: World, company: Company, number: int = 1) -> None:
    """Let a company change some times."""
    for _ in range(number):
        previous = {"company": {"name": "Çiğdem"}}
        world.vade.outbox.write(world.session, "company.updated", company, now=world.now, previous=previous)
    world.session.commit()


def deliver(world: World) -> DeliveryResult:
    return make_deliverer(world.vade).run_pass()


def fare(world: World, endpoint_id: int, **columns: str) -> None:
    """Let an endpoint stand so; the values are SQL."""
    assignments = ", ".join(f"{name} = {value}" for name, value in columns.items())
    statement = f"UPDATE callback_endpoints SET {assignments} WHERE company_id = {endpoint_id}"
    world.session.execute(text(statement))
    world.session.commit()


DISABLED = {"disabled_at": "now()", "disabled_reason": "'gone'"}
BROKEN = {
    "failures": "7",
    "failing_since": "now() - interval '1 hour'",
    "open_until": "now() + interval '1 hour'",
}


def get(client: DescribedClient, headers: dict[str, str], **query: Any) -> Any:
    response = client.get(ENDPOINT, query_string=query, headers=headers)
    assert response.status_code == 200, response.text
    return response.json


def ping(client: DescribedClient, headers: dict[str, str], **query: Any) -> Any:
    response = client.post(f"{ENDPOINT}/ping", query_string=query, headers=headers)
    assert response.status_code == 200, response.text
    return response.json


def recover(client: DescribedClient, headers: dict[str, str], since: datetime, **query: Any) -> Any:
    return client.post(
        f"{ENDPOINT}/recover", query_string=query, json={"since": instant_text(since)}, headers=headers
    )


# How it fares -----------------------------------------------------------------------------------------------


def test_an_endpoint_in_good_standing_says_so(
    client: DescribedClient, world: World, answering: Receiver
) -> None:
    company = listener(world, answering.url)

    expected = {"company_id": company.id, "url": answering.url, "status": "enabled", "failures": 0, **NEVER}

    assert get(client, world.token(company)) == expected | {"former_secret_expires_at": None}
    tell(world, company)
    assert deliver(world).delivered == 1
    assert get(client, world.token(company)) == expected | {"former_secret_expires_at": None}


def test_an_endpoint_that_fails_says_how_often_since_when_and_when_it_is_tried_again(
    client: DescribedClient, world: World
) -> None:
    platform_at(world, None)
    with receiver(500) as failing:
        company = listener(world, failing.url)
        tell(world, company)
        seen = []
        for _ in range(6):
            deliver(world)
            seen.append(get(client, world.token(company)))
            make_due(world)
        over = get(client, world.token(company))

    assert [state["failures"] for state in seen] == [1, 2, 3, 4, 5, 6]
    assert len({state["failing_since"] for state in seen}) == 1
    assert [state["paused_until"] is None for state in seen] == [True] * 4 + [False] * 2
    began, paused = (datetime.fromisoformat(seen[4][name]) for name in ("failing_since", "paused_until"))
    assert timedelta(seconds=20) <= paused - began < timedelta(seconds=60)
    assert {state["status"] for state in seen} == {"enabled"}
    assert (over["failures"], over["paused_until"]) == (6, None), "the pause is over, the failures are not"


def test_an_endpoint_that_is_gone_is_disabled_and_says_why(client: DescribedClient, world: World) -> None:
    with receiver(410) as gone:
        company = listener(world, gone.url)
        tell(world, company)
        deliver(world)

    state = get(client, world.token(company))

    assert (state["status"], state["disabled_reason"], state["failures"]) == ("disabled", "gone", 1)
    assert state["disabled_at"] >= state["failing_since"]


def test_an_endpoint_that_failed_for_five_days_is_disabled_and_says_why(
    client: DescribedClient, world: World
) -> None:
    with receiver(500) as failing:
        company = listener(world, failing.url)
        fare(world, company.id, failures="9", failing_since="now() - interval '5 days'")
        tell(world, company)
        deliver(world)

    state = get(client, world.token(company))

    assert (state["status"], state["disabled_reason"]) == ("disabled", "failing")
    assert state["failures"] >= 9
    days = datetime.fromisoformat(state["disabled_at"]) - datetime.fromisoformat(state["failing_since"])
    assert timedelta(days=5) <= days < timedelta(days=5, minutes=1)


def test_an_endpoint_says_until_when_a_former_secret_signs(
    client: DescribedClient, world: World, answering: Receiver
) -> None:
    company = listener(world, answering.url)
    headers = world.token(company)

    rotated = client.post(f"{ENDPOINT}/rotate-secret", headers=headers).json

    assert get(client, headers)["former_secret_expires_at"] == rotated["former_secret_expires_at"]
    world.session.execute(text("UPDATE callback_secrets SET expires_at = now() WHERE expires_at IS NOT NULL"))
    world.session.commit()
    assert get(client, headers)["former_secret_expires_at"] is None


EVERY = [
    ("GET", ""),
    ("POST", "/rotate-secret"),
    ("POST", "/ping"),
    ("POST", "/recover"),
    ("POST", "/enable"),
]


def call(client: DescribedClient, method: str, path: str, headers: dict[str, str], **query: Any) -> Any:
    body = {"json": {"since": "2020-01-01T00:00:00Z"}} if path == "/recover" else {}
    return client.open(f"{ENDPOINT}{path}", method=method, query_string=query, headers=headers, **body)


def test_a_company_without_an_endpoint_has_none(client: DescribedClient, world: World) -> None:
    without, former = world.company(), world.company()
    world.listen(former, "https://former.example/")
    world.listen(former, None)
    before = contents(world.session)

    for company, (method, path) in itertools.product((without, former), EVERY):
        if path != "/enable":
            problem = assert_problem(
                call(client, method, path, world.token(company)), 404, "callback-endpoint-missing"
            )
            assert problem["detail"] == "There is no callback endpoint."
        if path != "/rotate-secret":
            response = call(client, method, path, world.operator(), company_id=company.id)
            assert_problem(response, 404, "callback-endpoint-missing")
    unknown = call(client, "GET", "", world.operator(), company_id=2**63 - 1)
    assert_problem(unknown, 404, "callback-endpoint-missing")
    assert contents(world.session) == before


def test_without_callback_url_the_platform_has_no_endpoint_and_is_told_why(
    client: DescribedClient, world: World
) -> None:
    platform_at(world, None)

    for method, path in EVERY:
        response = call(client, method, path, world.operator())
        problem = assert_problem(response, 404, "callback-endpoint-missing")
        assert problem["detail"] == "The platform has no callback endpoint: CALLBACK_URL is not set."


def test_the_platforms_endpoint_is_as_the_settings_have_it(
    client: DescribedClient, world: World, answering: Receiver
) -> None:
    platform_at(world, answering.url)

    first = get(client, world.operator())
    platform_at(world, f"{answering.url}/elsewhere")
    fare(world, PLATFORM_ID, **BROKEN, **DISABLED)
    second = get(client, world.operator())

    assert (first["company_id"], first["url"], first["status"]) == (None, answering.url, "enabled")
    assert second == first | {"url": f"{answering.url}/elsewhere"}, "another URL begins in good standing"


def test_an_operator_sees_any_companys_endpoint_and_a_company_only_its_own(
    client: DescribedClient, world: World
) -> None:
    one, other = (listener(world, f"https://store-{n}.example/callbacks") for n in range(2))

    assert get(client, world.operator(), company_id=one.id) == get(client, world.token(one))
    assert get(client, world.token(one), company_id=one.id)["company_id"] == one.id
    before = contents(world.session)
    for method, path in EVERY:
        if path != "/rotate-secret":
            for company_id in (other.id, 2**63 - 1):
                response = call(client, method, path, world.token(one), company_id=company_id)
                assert_problem(response, 403)
    assert contents(world.session) == before


@pytest.mark.parametrize("company_id", ["0", "-1", "x", "", "1.0", str(2**63), "9" * 30])
def test_a_company_id_that_is_none_is_refused(client: DescribedClient, world: World, company_id: str) -> None:
    for method, path in EVERY:
        if path != "/rotate-secret":
            response = call(client, method, path, world.operator(), company_id=company_id)
            assert_problem(response, 422, pointers=["#/company_id"])


def test_a_secret_is_not_rotated_for_another_than_was_asked_for(
    client: DescribedClient, world: World, answering: Receiver
) -> None:
    company = listener(world, answering.url)
    get(client, world.operator())
    before = contents(world.session)

    for headers in (world.operator(), world.token(company)):
        response = call(client, "POST", "/rotate-secret", headers, company_id=company.id)
        assert_problem(response, 422, pointers=["#/company_id"])

    assert contents(world.session) == before


# Pings ------------------------------------------------------------------------------------------------------


def test_a_ping_is_signed_and_what_came_back_is_answered(client: DescribedClient, world: World) -> None:
    def answer(_: Received, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(202)
        handler.send_header("content-length", "2000")
        handler.end_headers()
        handler.wfile.write("ş".encode() * 1000)

    with receiver(answer) as endpoint:
        company = listener(world, endpoint.url)
        platform_at(world, endpoint.url)
        get(client, world.operator())
        before = contents(world.session)

        its, platforms, asked = (
            ping(client, world.token(company)),
            ping(client, world.operator()),
            ping(client, world.operator(), company_id=company.id),
        )

    for reply in (its, platforms, asked):
        assert 0 <= reply.pop("duration_ms") < 5_000
        assert reply == {
            "succeeded": True,
            "status_code": 202,
            "error": None,
            "answer": "ş" * 512,
            "enabled": True,
        }
    secrets = [COMPANY_SECRET, CALLBACK_SECRET, COMPANY_SECRET]
    messages = [request.verified(secret) for request, secret in zip(endpoint.received, secrets, strict=True)]
    assert [message["data"]["callback_endpoint"] for message in messages] == [
        {"company_id": company_id, "url": endpoint.url} for company_id in (company.id, None, company.id)
    ]
    for request in endpoint.received:
        assert_described_message(request.body.decode())
        assert json.loads(request.body)["type"] == "ping"
        assert json.loads(request.body)["timestamp"] == instant_text(world.now)
    assert len(set(endpoint.ids())) == 3
    after = contents(world.session)
    assert {table for table in after if after[table] != before[table]} <= {"callback_endpoints"}
    assert world.callbacks() == [], "nothing of it is kept"


@pytest.mark.parametrize("status", [301, 400, 410, 500, 503])
def test_a_ping_that_is_answered_badly_says_so_and_changes_nothing(
    client: DescribedClient, world: World, status: int
) -> None:
    def answer(_: Received, handler: BaseHTTPRequestHandler) -> int:
        handler.close_connection = True
        return status

    with receiver(answer) as endpoint:
        company = listener(world, endpoint.url)
        before = contents(world.session)

        reply = ping(client, world.token(company))

        assert (reply["succeeded"], reply["status_code"], reply["error"]) == (False, status, None)
        assert reply["enabled"] is True
        assert contents(world.session) == before
        fare(world, company.id, **DISABLED)
        assert ping(client, world.token(company))["enabled"] is False
        assert get(client, world.token(company))["status"] == "disabled"


def test_a_ping_that_is_not_answered_in_time_says_so(
    client: DescribedClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(senders, "READ_TIMEOUT_S", 0.1)
    over = threading.Event()

    def hang(_: Received, __: BaseHTTPRequestHandler) -> None:
        over.wait(10)

    with receiver(hang) as endpoint:
        company = listener(world, endpoint.url)
        before = contents(world.session)
        reply = ping(client, world.token(company))
        over.set()

    assert reply.pop("duration_ms") >= 100
    assert reply == {
        "succeeded": False,
        "status_code": None,
        "error": "No answer within 0.1 s.",
        "answer": None,
        "enabled": True,
    }
    assert contents(world.session) == before


def test_a_ping_of_an_address_that_may_not_be_sent_to_is_not_sent(
    client: DescribedClient, world: World, answering: Receiver
) -> None:
    company = listener(world, answering.url)
    platform_at(world, answering.url, callback_allow_private=False)

    for headers in (world.token(company), world.operator()):
        reply = ping(client, headers)
        assert (reply["succeeded"], reply["status_code"]) == (False, None)
        assert reply["error"] == "This address is not public."
    assert answering.connections == 0


@pytest.mark.parametrize("standing", [DISABLED, BROKEN, DISABLED | BROKEN, BROKEN | {"open_until": "now()"}])
@pytest.mark.parametrize("by_operator", [True, False])
def test_a_ping_that_succeeds_enables_the_endpoint_and_ends_its_pause(
    client: DescribedClient, world: World, answering: Receiver, standing: dict[str, str], by_operator: bool
) -> None:
    platform_at(world, answering.url)
    company = listener(world, answering.url)
    get(client, world.operator())
    tell(world, company)
    headers, id_ = (world.operator(), PLATFORM_ID) if by_operator else (world.token(company), company.id)
    fare(world, id_, **standing)

    reply = ping(client, headers)

    assert (reply["succeeded"], reply["enabled"]) == (True, True)
    state = get(client, headers)
    assert {name: state[name] for name in NEVER} == NEVER
    assert (state["status"], state["failures"]) == ("enabled", 0)
    assert deliver(world).delivered == 2


def test_what_waited_for_a_pause_goes_out_after_a_ping(
    client: DescribedClient, world: World, answering: Receiver
) -> None:
    platform_at(world, None)
    company = listener(world, answering.url)
    fare(world, company.id, **BROKEN)
    tell(world, company, 3)
    deliver(world)
    assert statuses(world) == {"waiting": 3}

    ping(client, world.token(company))

    assert deliver(world).delivered == 3


def test_a_ping_that_another_url_answered_changes_nothing(client: DescribedClient, world: World) -> None:
    def answer(_: Received, __: BaseHTTPRequestHandler) -> int:
        with world.app.app_context():
            # The company moves while the ping is under way.
            elsewhere = "https://elsewhere.example/"
            callback_endpoints.put(db.session(), company.id, elsewhere, world.vade.keyring, now=world.now)
            fare(world, company.id, **DISABLED)
        return 200

    with receiver(answer) as endpoint:
        company = listener(world, endpoint.url)
        reply = ping(client, world.token(company))

    assert (reply["succeeded"], reply["enabled"]) == (True, False)
    assert get(client, world.token(company))["disabled_reason"] == "gone"


def test_an_endpoint_that_was_taken_away_meanwhile_stays_away(client: DescribedClient, world: World) -> None:
    def answer(_: Received, __: BaseHTTPRequestHandler) -> int:
        with world.app.app_context():
            callback_endpoints.remove(db.session(), company.id)
            db.session.commit()
        return 200

    with receiver(answer) as endpoint:
        company = listener(world, endpoint.url)
        reply = ping(client, world.token(company))

    assert (reply["succeeded"], reply["enabled"]) == (True, False)
    assert_problem(client.get(ENDPOINT, headers=world.token(company)), 404, "callback-endpoint-missing")


def test_no_transaction_is_open_while_a_ping_is_under_way(committed: World, database_url: str) -> None:
    open_: list[tuple[Any, ...]] = []

    def look(_: Received, __: BaseHTTPRequestHandler) -> int:
        with psycopg.connect(database_url, autocommit=True) as connection:
            open_.extend(
                connection.execute(
                    "SELECT state, query FROM pg_stat_activity WHERE xact_start IS NOT NULL"
                    " AND datname = current_database() AND pid <> pg_backend_pid()"
                    " AND backend_type = 'client backend'"
                ).fetchall()
            )
        return 204

    with receiver(look) as endpoint:
        platform_at(committed, endpoint.url, rate_limits=True)
        company = listener(committed, endpoint.url)
        client: Any = committed.app.test_client()
        for headers in (committed.token(company), committed.operator()):
            committed.session.rollback()
            assert ping(client, headers)["succeeded"]

    assert len(endpoint.received) == 2
    assert open_ == []


def test_an_endpoint_is_pinged_ten_times_a_minute_whoever_asks(committed: World) -> None:
    with receiver() as endpoint:
        platform_at(committed, endpoint.url, rate_limits=True)
        one, other = (listener(committed, endpoint.url) for _ in range(2))
        client: Any = committed.app.test_client()
        for n in range(10):
            headers, query = (
                (committed.operator(), {"company_id": one.id}) if n % 2 else (committed.token(one), {})
            )
            ping(client, headers, **query)

        for headers, query in (
            (committed.token(one), {}),
            (committed.operator(), {"company_id": one.id}),
        ):
            refused = client.post(f"{ENDPOINT}/ping", query_string=query, headers=headers)
            assert_problem(refused, 429)
            assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert len(endpoint.received) == 10, "what is refused is not sent"

        assert ping(client, committed.token(other))["succeeded"]
        assert ping(client, committed.operator())["succeeded"], "the platform's is another"
        committed.session.execute(text("UPDATE rate_limits SET expires_at = now()"))
        committed.session.commit()
        assert ping(client, committed.token(one))["succeeded"]


# Recovered --------------------------------------------------------------------------------------------------


def write(
    world: World,
    company_id: int,
    *,
    recipient: str = "company",
    status: str = "held",
    at: datetime = LONG_AGO,
) -> str:
    """Write a message as it is kept, after three attempts; return its id."""
    id_ = message_id(company_id, uuid.uuid4().hex)
    values: dict[str, Any] = {
        "company_id": company_id,
        "id": id_,
        "recipient": recipient,
        "type": "company.updated",
        "status": status,
        "body": json.dumps(EVENTS["company.updated"].message(), ensure_ascii=False),
        "created_at": at,
        "attempts": 3,
        "schedule_step": 3,
        "next_attempt_at": datetime(9999, 1, 1, tzinfo=UTC) if status == "pending" else None,
    }
    world.session.execute(insert(Callback).values(values))
    world.session.commit()
    return str(id_)


def statuses(world: World) -> Counter[str]:
    return Counter(world.session.execute(text("SELECT status FROM callbacks")).scalars())


@pytest.mark.parametrize("whose", ["company", "platform", "company, by an operator"])
def test_exactly_what_failed_of_one_endpoint_since_an_instant_is_recovered(
    client: DescribedClient, world: World, answering: Receiver, whose: str
) -> None:
    platform_at(world, answering.url)
    one, other = (listener(world, answering.url) for _ in range(2))
    get(client, world.operator())
    since = LONG_AGO + timedelta(1)
    instants = {"before": since - timedelta(microseconds=1), "at": since, "after": since + timedelta(1)}
    written = {
        (company.id, recipient, status, when): write(
            world, company.id, recipient=recipient, status=status, at=at
        )
        for company, recipient, status, (when, at) in itertools.product(
            (one, other), ["company", "platform"], STATUSES, instants.items()
        )
    }
    headers, query = {
        "company": (world.token(one), {}),
        "platform": (world.operator(), {}),
        "company, by an operator": (world.operator(), {"company_id": one.id}),
    }[whose]

    response = recover(client, headers, since, **query)

    expected = {
        id_
        for (company_id, recipient, status, when), id_ in written.items()
        if status in {"held", "exhausted"}
        and when != "before"
        and (
            recipient == "platform" if whose == "platform" else (company_id, recipient) == (one.id, "company")
        )
    }
    assert response.json == {"recovered": len(expected), "more": False}
    due = world.session.execute(
        text("SELECT id, attempts, schedule_step FROM callbacks WHERE next_attempt_at <= clock_timestamp()")
    ).all()
    assert {(str(row.id), row.attempts, row.schedule_step) for row in due} == {
        (id_, 3, 0) for id_ in expected
    }
    deliver(world)
    failed = {id_ for (_, _, status, _), id_ in written.items() if status in {"held", "exhausted"}}
    assert failed & set(answering.ids()) == expected
    assert recover(client, headers, since, **query).json == {"recovered": 0, "more": False}


def test_a_recovery_takes_batch_after_batch_and_says_when_there_is_more(
    client: DescribedClient, world: World, answering: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback_history, "BATCH", 2)
    monkeypatch.setattr(callback_endpoint, "MOST_BATCHES", 3)
    company = listener(world, answering.url)
    platform_at(world, None)
    ids = [write(world, company.id, at=LONG_AGO + timedelta(n)) for n in range(15)]

    answers = []
    for recovered in (6, 12, 15):
        answers.append(recover(client, world.token(company), LONG_AGO).json)
        found = world.session.execute(text("SELECT id FROM callbacks WHERE status = 'pending'")).scalars()
        assert {str(id_) for id_ in found} == set(ids[:recovered]), "the oldest first"

    assert answers == [
        {"recovered": 6, "more": True},
        {"recovered": 6, "more": True},
        {"recovered": 3, "more": False},
    ]
    assert deliver(world).delivered == 15


def test_as_many_as_one_request_takes_are_not_more(
    client: DescribedClient, world: World, answering: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback_history, "BATCH", 2)
    monkeypatch.setattr(callback_endpoint, "MOST_BATCHES", 2)
    company = listener(world, answering.url)
    for _ in range(4):
        write(world, company.id)

    answer = recover(client, world.token(company), LONG_AGO)

    assert answer.json == {"recovered": 4, "more": False}


@pytest.mark.parametrize("by_operator", [True, False])
def test_nothing_is_recovered_for_a_disabled_endpoint(
    client: DescribedClient, world: World, answering: Receiver, by_operator: bool
) -> None:
    platform_at(world, answering.url)
    company = listener(world, answering.url)
    get(client, world.operator())
    headers, id_ = (world.operator(), PLATFORM_ID) if by_operator else (world.token(company), company.id)
    write(world, company.id, recipient="platform" if by_operator else "company")
    fare(world, id_, **DISABLED)
    before = contents(world.session)

    assert_problem(recover(client, headers, LONG_AGO), 409, "callback-endpoint-disabled")
    assert contents(world.session) == before


@pytest.mark.parametrize(
    "enable",
    [
        lambda client, world, company: client.post(
            f"{ENDPOINT}/enable", query_string={"company_id": company.id}, headers=world.operator()
        ),
        lambda client, world, company: client.post(f"{ENDPOINT}/ping", headers=world.token(company)),
        lambda client, world, company: client.patch(
            "/api/v1/companies/me", json={"callback_url": company.callback_url}, headers=world.token(company)
        ),
    ],
    ids=["enabled by an operator", "pinged", "set again"],
)
def test_what_was_held_stays_held_until_it_is_recovered(
    client: DescribedClient,
    world: World,
    answering: Receiver,
    enable: Callable[[DescribedClient, World, Company], Any],
) -> None:
    platform_at(world, None)
    company = listener(world, answering.url)
    tell(world, company, 3)
    fare(world, company.id, **DISABLED)
    deliver(world)
    assert (statuses(world), answering.connections) == ({"held": 3}, 0)

    assert enable(client, world, company).status_code == 200

    assert get(client, world.token(company))["status"] == "enabled"
    answering.received.clear()
    deliver(world)
    assert statuses(world) == {"held": 3}
    assert recover(client, world.token(company), LONG_AGO).json == {"recovered": 3, "more": False}
    assert deliver(world).delivered == 3
    assert len(set(answering.ids())) == 3


def test_an_operator_enables_any_endpoint_from_a_clean_start(
    client: DescribedClient, world: World, answering: Receiver
) -> None:
    platform_at(world, answering.url)
    company = listener(world, answering.url)
    get(client, world.operator())

    for id_, query in ((PLATFORM_ID, {}), (company.id, {"company_id": company.id})):
        fare(world, id_, **DISABLED, **BROKEN)
        response = client.post(f"{ENDPOINT}/enable", query_string=query, headers=world.operator())

        assert response.status_code == 200
        assert response.json == get(client, world.operator(), **query)
        assert {name: response.json[name] for name in NEVER} == NEVER
        assert (response.json["status"], response.json["failures"]) == ("enabled", 0)


def test_a_company_may_not_enable_an_endpoint_without_trying_it(
    client: DescribedClient, world: World, answering: Receiver
) -> None:
    company = listener(world, answering.url)
    fare(world, company.id, **DISABLED)

    for query in ({}, {"company_id": company.id}):
        response = client.post(f"{ENDPOINT}/enable", query_string=query, headers=world.token(company))
        assert_problem(response, 403)
    assert get(client, world.token(company))["status"] == "disabled"
