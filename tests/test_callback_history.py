"""Callbacks that were sent: seen with every attempt by whom they concern, sent again, removed when old."""

import itertools
import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from sqlalchemy import event, insert, text

from billing import callback_history, senders
from billing.callbacks import Outbox, company_of, message_id
from billing.deliveries import SCHEDULE_S, DeliveryResult
from billing.documents import instant_text
from cli import make_deliverer
from models import Callback, CallbackAttempt, Company, db
from tests.api import DescribedClient, assert_problem, contents
from tests.deliveries import make_due
from tests.receivers import Received, Receiver, receiver
from tests.world import CALLBACK_SECRET, World
from web.webhooks import EVENTS

CALLBACKS = "/api/v1/callbacks"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
STATUSES = ["pending", "waiting", "held", "delivered", "exhausted"]
COMPANY_SECRET = "whsec_" + "Q29tcGFueSBzZWNyZXQgb2YgMzIgYnl0ZXMgb3Igc28="


@pytest.fixture
def endpoint() -> Iterator[Receiver]:
    with receiver() as answering:
        yield answering


def write(
    world: World,
    company_id: int,
    *,
    recipient: str = "company",
    type_: str = "company.updated",
    status: str = "delivered",
    at: datetime = LONG_AGO,
) -> str:
    """Write a message as it is kept, and return its id."""
    id_ = message_id(company_id, uuid.uuid4().hex)
    values: dict[str, Any] = {
        "company_id": company_id,
        "id": id_,
        "recipient": recipient,
        "type": type_,
        "status": status,
        "body": json.dumps(EVENTS[type_].message(), ensure_ascii=False),
        "created_at": at,
        "next_attempt_at": at if status == "pending" else None,
    }
    world.session.execute(insert(Callback).values(values))
    world.session.commit()
    return str(id_)


def tell(world: World, company: Company) -> dict[str, str]:
    """Let a company change; return the ids of the messages about it, by recipient."""
    world.vade.outbox.write(
        world.session, "company.updated", company, now=world.now, previous={"company": {"name": "Çiğdem"}}
    )
    world.session.commit()
    rows = world.session.execute(
        text("SELECT recipient, id FROM callbacks WHERE company_id = :id"), {"id": company.id}
    )
    return {row.recipient: str(row.id) for row in rows}


def platform_at(world: World, url: str | None) -> None:
    """Set where the platform's endpoint is, or that there is none."""
    secret = None if url is None else CALLBACK_SECRET
    settings = world.vade.settings.model_copy(update={"callback_url": url, "callback_secret": secret})
    world.app.extensions["vade"] = replace(
        world.vade, settings=settings, outbox=Outbox(by_platform=url is not None)
    )


def deliver(world: World) -> DeliveryResult:
    """Make one pass as the settings want it."""
    return make_deliverer(world.vade).run_pass()


def disable(world: World, company_id: int) -> None:
    world.session.execute(
        text(
            "UPDATE callback_endpoints SET disabled_at = now(), disabled_reason = 'gone'"
            " WHERE company_id = :id"
        ),
        {"id": company_id},
    )
    world.session.commit()


def get(client: DescribedClient, headers: dict[str, str], **query: Any) -> Any:
    """The answer of the list, and that it is one."""
    response = client.get(CALLBACKS, query_string=query, headers=headers)
    assert response.status_code == 200, response.text
    return response.json


def ids(page: Any) -> list[str]:
    return [callback["id"] for callback in page["data"]]


def pages(client: DescribedClient, headers: dict[str, str], **query: Any) -> Iterator[Any]:
    """All pages of the list, one after the other."""
    for _ in range(50):
        page = get(client, headers, **query)
        yield page
        if page["next_cursor"] is None:
            return
        query["cursor"] = page["next_cursor"]
    pytest.fail("the list has no end")


def row(world: World, id_: str) -> Any:
    """A message as it stands."""
    query = text("SELECT *, now() AS present FROM callbacks WHERE id = :id")
    return world.session.execute(query, {"id": id_}).one()


# Seen -------------------------------------------------------------------------------------------------------


def test_a_company_sees_what_is_for_its_endpoint_and_an_operator_all(
    client: DescribedClient, world: World
) -> None:
    one, other, none = world.company(), world.company(), world.company()
    mine = write(world, one.id)
    its = write(world, other.id)
    copies = [write(world, company.id, recipient="platform") for company in (one, other, none)]
    about_one, about_platform = (
        write(world, id_, recipient="platform", type_="callback_endpoint.disabled") for id_ in (one.id, 0)
    )

    def seen(headers: dict[str, str]) -> set[str]:
        found = ids(get(client, headers))
        assert len(found) == len(set(found))
        return set(found)

    assert seen(world.token(one)) == {mine}
    assert seen(world.token(other)) == {its}
    assert seen(world.token(none)) == set()
    assert seen(world.operator()) == {mine, its, *copies, about_one, about_platform}


def test_a_message_says_whose_change_it_tells(client: DescribedClient, world: World) -> None:
    company = world.company()
    write(world, company.id)
    write(world, 0, recipient="platform", type_="callback_endpoint.disabled", at=LONG_AGO - timedelta(1))

    shown = get(client, world.operator())["data"]

    assert [(callback["company_id"], callback["recipient"]) for callback in shown] == [
        (company.id, "company"),
        (None, "platform"),
    ]
    assert "body" not in shown[0], "shown one at a time only"


def test_the_newest_come_first_and_at_one_instant_the_order_is_that_of_companies(
    client: DescribedClient, world: World
) -> None:
    one, other = world.company(), world.company()
    written = [
        (LONG_AGO + timedelta(microseconds=n % 3), company.id)
        for n, company in enumerate([one, other, one, other, one])
    ]
    expected = sorted(
        ((at, company_id, write(world, company_id, at=at)) for at, company_id in written), reverse=True
    )

    assert ids(get(client, world.operator())) == [id_ for _, _, id_ in expected]


@pytest.mark.parametrize("limit", [1, 3, 4])
@pytest.mark.parametrize("by_operator", [True, False])
def test_pages_have_no_gap_and_no_repeat_while_messages_arrive(
    client: DescribedClient, world: World, limit: int, by_operator: bool
) -> None:
    companies = [world.company() for _ in range(2)]
    # Five at each instant, so that most pages end among equals.
    stood = [
        (LONG_AGO + timedelta(microseconds=n // 5), company.id) for n in range(10) for company in companies
    ]
    kept = sorted(((at, id_, write(world, id_, at=at)) for at, id_ in stood), reverse=True)
    headers = world.operator() if by_operator else world.token(companies[0])

    shown: list[str] = []
    for number, page in enumerate(pages(client, headers, limit=limit)):
        assert len(page["data"]) <= limit
        shown += ids(page)
        for company in companies:
            write(world, company.id, at=LONG_AGO + timedelta(days=1 + number))

    assert shown == [id_ for _, company_id, id_ in kept if by_operator or company_id == companies[0].id]


def test_every_filter_and_all_together_leave_exactly_what_fits(client: DescribedClient, world: World) -> None:
    types = ["company.updated", "payment.declined"]
    instants = [LONG_AGO + timedelta(seconds=n) for n in range(3)]
    one, other = world.company(), world.company()
    written = [
        (company.id, type_, status, at)
        for company, type_, status, at in itertools.product((one, other), types, STATUSES, instants)
    ]
    kept = [
        (*fields, write(world, fields[0], type_=fields[1], status=fields[2], at=fields[3]))
        for fields in written
    ]

    for company, type_, status, since, until in itertools.product(
        (None, one), [None, types[1]], [None, *STATUSES], [None, instants[1]], [None, instants[2]]
    ):
        query: dict[str, Any] = {"type": type_, "status": status}
        query |= {"since": since and instant_text(since), "until": until and instant_text(until)}
        headers = world.operator() if company is None else world.token(company)
        found = get(client, headers, limit=100, **{name: value for name, value in query.items() if value})

        assert sorted(ids(found)) == sorted(
            id_
            for company_id, its_type, its_status, at, id_ in kept
            if (company is None or company_id == company.id)
            and type_ in {None, its_type}
            and status in {None, its_status}
            and (since is None or at >= since)
            and (until is None or at < until)
        ), query


def test_filters_hold_on_every_page(client: DescribedClient, world: World) -> None:
    company = world.company()
    held = {write(world, company.id, status="held", at=LONG_AGO) for _ in range(5)}
    for status in STATUSES:
        write(world, company.id, status=status, at=LONG_AGO)
        write(world, company.id, status=status, at=LONG_AGO + timedelta(1))
    until = instant_text(LONG_AGO + timedelta(microseconds=1))

    found = [
        id_
        for page in pages(client, world.token(company), status="held", until=until, limit=2)
        for id_ in ids(page)
    ]

    assert len(found) == 6
    assert held < set(found)


def test_an_instant_may_be_of_any_offset(client: DescribedClient, world: World) -> None:
    company = world.company()
    id_ = write(world, company.id, at=LONG_AGO)

    for since, expected in {"2020-01-01T05:30:00+05:30": [id_], "2020-01-01T00:00:00-00:01": []}.items():
        assert ids(get(client, world.token(company), since=since)) == expected


def test_since_later_than_until_is_an_empty_list(client: DescribedClient, world: World) -> None:
    company = world.company()
    write(world, company.id)

    page = get(client, world.token(company), since="2021-01-01T00:00:00Z", until="2019-01-01T00:00:00Z")

    assert page == {"data": [], "next_cursor": None}


@pytest.mark.parametrize(
    ("query", "pointers"),
    [
        ("type=company.exploded", ["#/type"]),
        ("type=", ["#/type"]),
        ("type=Company.updated", ["#/type"]),
        ("status=lost", ["#/status"]),
        ("status=", ["#/status"]),
        ("status=DELIVERED", ["#/status"]),
        ("company_id=0", ["#/company_id"]),
        ("recipient=platform", ["#/recipient"]),
        ("type=x&status=y&more=z", ["#/type", "#/status", "#/more"]),
    ],
)
def test_a_filter_that_is_none_is_refused_where_it_stands(
    client: DescribedClient, world: World, query: str, pointers: list[str]
) -> None:
    for headers in (world.operator(), world.token(world.company())):
        assert_problem(client.get(f"{CALLBACKS}?{query}", headers=headers), 422, pointers=pointers)


def test_a_cursor_of_another_list_is_none_of_this(client: DescribedClient, world: World) -> None:
    company = world.company()
    for _ in range(2):
        world.package()
        write(world, company.id)
    packages = client.get("/api/v1/packages", query_string={"limit": 1}).json["next_cursor"]
    callbacks = get(client, world.operator(), limit=1)["next_cursor"]

    for path, cursor in {CALLBACKS: packages, "/api/v1/company-payments": callbacks}.items():
        response = client.get(path, query_string={"cursor": cursor}, headers=world.operator())
        assert_problem(response, 422, pointers=["#/cursor"])


def test_an_operators_cursor_shows_a_company_nothing_of_others(client: DescribedClient, world: World) -> None:
    one, other = world.company(), world.company()
    for number in range(4):
        for company in (one, other):
            write(world, company.id, at=LONG_AGO + timedelta(number))
            write(world, company.id, recipient="platform", at=LONG_AGO + timedelta(number))
    cursor = get(client, world.operator(), limit=8)["next_cursor"]

    rest = get(client, world.token(one), cursor=cursor)

    assert {(callback["company_id"], callback["recipient"]) for callback in rest["data"]} == {
        (one.id, "company")
    }
    assert len(rest["data"]) == 2


def test_every_attempt_is_shown_with_what_came_back(
    client: DescribedClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(senders, "READ_TIMEOUT_S", 0.1)
    replies = iter(
        [
            b"HTTP/1.1 503 No\r\ncontent-length: 13\r\n\r\nba\xc5\x9fka \0 \xff \xc5\x9f",
            None,
            b"HTTP/1.1 204 Yes\r\n\r\n",
        ]
    )

    def answer(_: Received, handler: BaseHTTPRequestHandler) -> None:
        reply = next(replies)
        if reply is not None:
            handler.wfile.write(reply)
        handler.close_connection = True

    with receiver(answer) as endpoint:
        company = world.company(callback_url=endpoint.url, callback_secret=COMPANY_SECRET)
        platform_at(world, None)
        id_ = tell(world, company)["company"]
        for _ in range(3):
            deliver(world)
            make_due(world)

    callback = client.get(f"{CALLBACKS}/{id_}", headers=world.token(company)).json
    attempts = callback["attempts"]
    assert (callback["status"], callback["next_attempt_at"]) == ("delivered", None)
    assert [
        (attempt["number"], attempt["status_code"], attempt["error"], attempt["answer"])
        for attempt in attempts
    ] == [
        (1, 503, None, "başka \ufffd \ufffd ş"),
        (2, None, "The connection failed or was closed before an answer.", None),
        (3, 204, None, ""),
    ]
    assert all(0 <= attempt["duration_ms"] < 5_000 for attempt in attempts)
    times = [datetime.fromisoformat(attempt["attempted_at"]) for attempt in attempts]
    assert times == sorted(times)
    assert [attempt.attempted_at for attempt in world.attempts()] == times
    for headers in (world.token(company), world.operator()):
        (listed,) = (entry for entry in get(client, headers)["data"] if entry["id"] == id_)
        assert listed | {"body": callback["body"]} == callback


def test_attempts_are_those_of_their_message(client: DescribedClient, world: World) -> None:
    company = world.company()
    made = {write(world, company.id): number for number in (0, 1, 3)}
    for id_, number in made.items():
        for attempt in range(number, 0, -1):
            world.session.add(
                CallbackAttempt(
                    company_id=company.id,
                    callback_id=uuid.UUID(id_),
                    number=attempt,
                    attempted_at=LONG_AGO,
                    status_code=500,
                    duration_ms=attempt,
                )
            )
    world.session.commit()

    shown = get(client, world.token(company))["data"]

    assert {entry["id"]: [attempt["number"] for attempt in entry["attempts"]] for entry in shown} == {
        id_: list(range(1, number + 1)) for id_, number in made.items()
    }


def test_a_message_is_shown_with_the_bytes_that_are_signed_and_sent(
    client: DescribedClient, world: World, endpoint: Receiver
) -> None:
    company = world.company(
        name='O\'Neill "ş" 🌹 \\', callback_url=endpoint.url, callback_secret=COMPANY_SECRET
    )
    platform_at(world, endpoint.url)
    sent = tell(world, company)

    deliver(world)

    received = {request.id: request for request in endpoint.received}
    for headers, recipients in (
        (world.token(company), ["company"]),
        (world.operator(), ["company", "platform"]),
    ):
        for recipient in recipients:
            answer = client.get(f"{CALLBACKS}/{sent[recipient]}", headers=headers)
            assert answer.status_code == 200
            assert answer.json["recipient"] == recipient
            assert answer.json["body"].encode() == received[sent[recipient]].body
    assert received[sent["company"]].verified(COMPANY_SECRET)


MANY_COMPANIES = 2**63 - 1


def strangers(world: World, company: Company) -> dict[str, str]:
    """Ids of which a company may see nothing."""
    other = world.company()
    beyond = uuid.UUID(int=uuid.uuid4().int | 1 << 127)
    return {
        "unknown": str(message_id(company.id, "nothing")),
        "of no company": str(message_id(MANY_COMPANIES, "nothing")),
        "random": str(uuid.UUID(int=uuid.uuid4().int & ~(1 << 127))),
        "beyond a bigint": str(beyond),
        "the first beyond": "80000000-0000-0000-0000-000000000000",
        "the last": "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "nil": str(uuid.UUID(int=0)),
        "another's": write(world, other.id),
        "the platform's copy": write(world, company.id, recipient="platform"),
        "about its endpoint": write(
            world, company.id, recipient="platform", type_="callback_endpoint.disabled"
        ),
        "of the platform": write(world, 0, recipient="platform", type_="callback_endpoint.disabled"),
    }


def test_what_is_not_for_a_company_is_not_there(client: DescribedClient, world: World) -> None:
    company = world.company()
    hidden = strangers(world, company)
    before = contents(world.session)

    for what, id_ in hidden.items():
        for method, path in (("GET", id_), ("POST", f"{id_}/replay")):
            response = client.open(f"{CALLBACKS}/{path}", method=method, headers=world.token(company))
            problem = assert_problem(response, 404)
            assert problem["detail"] == "There is no callback with this id.", what
    assert contents(world.session) == before


def test_an_operator_finds_all_there_is_and_nothing_else(client: DescribedClient, world: World) -> None:
    company = world.company()
    for what, id_ in strangers(world, company).items():
        there = what in {"another's", "the platform's copy", "about its endpoint", "of the platform"}

        response = client.get(f"{CALLBACKS}/{id_}", headers=world.operator())

        assert response.status_code == (200 if there else 404), what
    assert_problem(
        client.post(f"{CALLBACKS}/{uuid.UUID(int=2**128 - 1)}/replay", headers=world.operator()), 404
    )


@pytest.mark.parametrize("id_", ["1", "x", "0", "-1", "g" * 32, "%00", "1" * 31, "1" * 5000, "null"])
def test_an_id_that_is_no_uuid_is_refused(client: DescribedClient, world: World, id_: str) -> None:
    for method, path in (("GET", id_), ("POST", f"{id_}/replay")):
        response = client.open(f"{CALLBACKS}/{path}", method=method, headers=world.operator())
        assert_problem(response, 422, pointers=["#/id"])


# Plans ------------------------------------------------------------------------------------------------------

CROWD = """
INSERT INTO callbacks (company_id, id, recipient, type, body, status, next_attempt_at, created_at)
SELECT company_id, (lpad(to_hex(company_id), 16, '0') || left(md5(n::text), 16))::uuid,
    CASE WHEN n % 3 = 0 THEN 'company' ELSE 'platform' END,
    CASE WHEN n % 500 = 0 THEN 'company.passivated' WHEN n % 2 = 0 THEN 'payment.succeeded'
        ELSE 'company_package.renewed' END,
    '{body}', CASE WHEN n % 400 = 0 THEN 'exhausted' WHEN n % 401 = 0 THEN 'held' ELSE 'delivered' END, NULL,
    timestamptz '2025-01-01 00:00Z' + make_interval(secs => n / 7)
FROM (SELECT n, 1000 + n % 200 AS company_id FROM generate_series(1, 20000) AS n) AS numbered
"""
ATTEMPTS = """
INSERT INTO callback_attempts (company_id, callback_id, number, attempted_at, status_code, duration_ms)
SELECT company_id, id, 1, created_at, 204, 7 FROM callbacks
"""


@pytest.fixture
def crowded(world: World) -> Iterator[World]:
    """Twenty thousand messages of two hundred companies, each with an attempt; the planner knows them."""
    body = json.dumps(EVENTS["ping"].message()).replace(":", "\\:")
    world.session.execute(text(CROWD.format(body=body)))
    world.session.execute(text(ATTEMPTS))
    world.session.execute(text("ANALYZE callbacks, callback_attempts"))
    world.session.commit()
    yield world
    world.session.execute(text("TRUNCATE callbacks CASCADE"))
    world.session.commit()


class Plans:
    """The plans of the queries that were asked of messages and attempts."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.asked: list[str] = []
        self._asking = False

    def look(self, _c: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not self._asking and "FROM callback" in statement and "SELECT" in statement:
            self._asking = True
            self.asked.append(statement)
            lines = cursor.connection.execute(f"EXPLAIN (COSTS off) {statement}", parameters).fetchall()
            self.found.append("\n".join(line for (line,) in lines))
            self._asking = False


@pytest.fixture
def plans(world: World) -> Iterator[Plans]:
    seen = Plans()
    connection: Any = db.engine
    event.listen(connection, "before_cursor_execute", seen.look)
    yield seen
    event.remove(connection, "before_cursor_execute", seen.look)


def test_lists_go_by_their_indexes(client: DescribedClient, crowded: World, plans: Plans) -> None:
    company = crowded.company(id=1100)
    lists: list[tuple[str, dict[str, str], dict[str, str]]] = [
        ("callbacks_newest_idx", crowded.operator(), {}),
        ("callbacks_newest_idx", crowded.operator(), {"since": "2025-01-01T00:20:00Z"}),
        ("callbacks_newest_idx", crowded.operator(), {"until": "2025-01-01T00:20:00Z"}),
        ("callbacks_newest_idx", crowded.operator(), {"type": "payment.succeeded"}),
        ("callbacks_newest_of_company_idx", crowded.token(company), {}),
        ("callbacks_newest_of_company_idx", crowded.token(company), {"since": "2025-01-01T00:10:00Z"}),
        ("callbacks_newest_of_company_idx", crowded.token(company), {"type": "payment.succeeded"}),
        ("callbacks_newest_failed_idx", crowded.operator(), {"status": "exhausted"}),
        ("callbacks_newest_failed_idx", crowded.operator(), {"status": "held"}),
        ("callbacks_newest_of_type_idx", crowded.operator(), {"type": "company.passivated"}),
    ]
    for index, headers, query in lists:
        plans.found.clear()
        plans.asked.clear()
        shown = list(itertools.islice(pages(client, headers, limit=5, **query), 2))

        assert [len(page["data"]) for page in shown] == [5, 5], query
        for name in query.keys() & {"type", "status"}:
            assert f"= '{query[name]}'" in plans.asked[0], "or a plan for any value would not see the index"
        first, its_attempts, second, _ = plans.found
        for plan in (first, second):
            assert f"Index Scan Backward using {index} on callbacks" in plan, f"{query}\n{plan}"
            assert "Seq Scan" not in plan
            assert "Sort" not in plan, "it comes in order, and stops at the limit"
        assert "ROW(" in second, "a page begins where the last one ended"
        assert "callback_attempts_pkey" in its_attempts
        assert "Seq Scan" not in its_attempts


def test_one_message_goes_by_its_key(client: DescribedClient, crowded: World, plans: Plans) -> None:
    company = crowded.company(id=1100)
    (id_,) = ids(get(client, crowded.token(company), limit=1))
    plans.found.clear()

    client.get(f"{CALLBACKS}/{id_}", headers=crowded.token(company))

    assert len(plans.found) == 2
    assert "using callbacks_pkey" in plans.found[0]
    assert "using callback_attempts_pkey" in plans.found[1]


# Sent again -------------------------------------------------------------------------------------------------


def stand(world: World, id_: str, status: str) -> None:
    """Let a message stand as after three attempts that failed."""
    world.session.execute(
        text(
            "UPDATE callbacks SET status = :status, attempts = 3, schedule_step = 3,"
            " next_attempt_at = CASE WHEN :status = 'pending' THEN now() + interval '1 hour' END"
            " WHERE id = :id"
        ),
        {"status": status, "id": id_},
    )
    for number in (1, 2, 3):
        world.session.add(
            CallbackAttempt(
                company_id=company_of(uuid.UUID(id_)),
                callback_id=uuid.UUID(id_),
                number=number,
                attempted_at=LONG_AGO,
                status_code=500,
                duration_ms=1,
            )
        )
    world.session.commit()


@pytest.mark.parametrize("recipient", ["company", "platform"])
@pytest.mark.parametrize("status", STATUSES)
def test_a_replayed_message_is_sent_at_once_with_the_id_and_bytes_that_it_had(
    client: DescribedClient, world: World, endpoint: Receiver, status: str, recipient: str
) -> None:
    company = world.company(callback_url=endpoint.url, callback_secret=COMPANY_SECRET)
    platform_at(world, endpoint.url)
    id_ = tell(world, company)[recipient]
    world.session.execute(text("DELETE FROM callbacks WHERE id <> :id"), {"id": id_})
    stand(world, id_, status)
    body = row(world, id_).body
    headers = world.token(company) if recipient == "company" else world.operator()

    response = client.post(f"{CALLBACKS}/{id_}/replay", headers=headers)

    assert response.status_code == 202
    assert response.json == get(client, headers)["data"][0]
    replayed = row(world, id_)
    assert (replayed.status, replayed.attempts, replayed.schedule_step) == ("pending", 3, 0)
    assert replayed.body == body
    assert world.session.execute(
        text("SELECT next_attempt_at <= clock_timestamp() FROM callbacks")
    ).scalar_one()
    assert deliver(world).delivered == 1
    (request,) = endpoint.received
    assert (request.id, request.body) == (id_, body.encode())
    assert request.verified(COMPANY_SECRET if recipient == "company" else CALLBACK_SECRET)
    assert [(attempt.number, attempt.status_code) for attempt in world.attempts()] == [
        (1, 500),
        (2, 500),
        (3, 500),
        (4, 204),
    ]
    assert row(world, id_).status == "delivered"


def test_a_replayed_message_that_fails_has_the_whole_schedule_again(
    client: DescribedClient, world: World
) -> None:
    with receiver(500) as endpoint:
        company = world.company(callback_url=endpoint.url, callback_secret=COMPANY_SECRET)
        platform_at(world, None)
        id_ = tell(world, company)["company"]
        stand(world, id_, "exhausted")
        client.post(f"{CALLBACKS}/{id_}/replay", headers=world.token(company))

        pauses_s = []
        for _ in range(len(SCHEDULE_S) + 1):
            assert row(world, id_).status == "pending"
            result = deliver(world)
            left = row(world, id_)
            if left.next_attempt_at is not None:
                attempted_at = world.attempts()[-1].attempted_at
                pauses_s.append((left.next_attempt_at - attempted_at).total_seconds())
            make_due(world)

    assert (result.failed, result.exhausted) == (0, 1)
    assert all(0.9 * s <= pause_s < 1.1 * s + 5 for s, pause_s in zip(SCHEDULE_S, pauses_s, strict=True))
    assert (left.status, left.attempts) == ("exhausted", 13)
    assert [attempt.number for attempt in world.attempts()] == list(range(1, 14))
    assert len(set(endpoint.ids())) == 1


def test_a_message_can_be_replayed_again_and_again(
    client: DescribedClient, world: World, endpoint: Receiver
) -> None:
    company = world.company(callback_url=endpoint.url, callback_secret=COMPANY_SECRET)
    platform_at(world, None)
    id_ = tell(world, company)["company"]

    for _ in range(3):
        assert client.post(f"{CALLBACKS}/{id_}/replay", headers=world.token(company)).status_code == 202
        deliver(world)

    assert endpoint.ids() == [id_] * 3
    assert [attempt.number for attempt in world.attempts()] == [1, 2, 3]


def test_a_message_whose_endpoint_pauses_goes_out_when_the_pause_is_over(
    client: DescribedClient, world: World, endpoint: Receiver
) -> None:
    company = world.company(callback_url=endpoint.url, callback_secret=COMPANY_SECRET)
    platform_at(world, None)
    id_ = tell(world, company)["company"]
    world.session.execute(
        text(
            "UPDATE callback_endpoints SET failures = 5, failing_since = now(),"
            " open_until = now() + interval '1 hour'"
        )
    )
    world.session.commit()

    client.post(f"{CALLBACKS}/{id_}/replay", headers=world.token(company))
    deliver(world)

    assert (row(world, id_).status, endpoint.ids()) == ("waiting", [])
    make_due(world)
    assert deliver(world).delivered == 1


@pytest.mark.parametrize("recipient", ["company", "platform"])
def test_nothing_is_replayed_to_a_disabled_endpoint(
    client: DescribedClient, world: World, endpoint: Receiver, recipient: str
) -> None:
    company = world.company(callback_url=endpoint.url, callback_secret=COMPANY_SECRET)
    platform_at(world, endpoint.url)
    sent = tell(world, company)
    deliver(world)
    disable(world, company.id if recipient == "company" else 0)
    other = "platform" if recipient == "company" else "company"
    before = contents(world.session)

    response = client.post(f"{CALLBACKS}/{sent[recipient]}/replay", headers=world.operator())

    assert_problem(response, 409, "callback-endpoint-disabled")
    assert contents(world.session) == before
    again = client.post(f"{CALLBACKS}/{sent[other]}/replay", headers=world.operator())
    assert again.status_code == 202, "the other endpoint has nothing to do with it"


def test_nothing_is_replayed_to_an_endpoint_that_was_taken_away(
    client: DescribedClient, world: World, endpoint: Receiver
) -> None:
    company = world.company(callback_url=endpoint.url, callback_secret=COMPANY_SECRET)
    sent = tell(world, company)
    world.listen(company, None)
    before = contents(world.session)

    response = client.post(f"{CALLBACKS}/{sent['company']}/replay", headers=world.token(company))

    assert_problem(response, 404, "callback-endpoint-missing")
    assert contents(world.session) == before


def test_a_company_replays_what_is_its_own_and_an_operator_anything(
    client: DescribedClient, world: World, endpoint: Receiver
) -> None:
    company, stranger = (
        world.company(callback_url=endpoint.url, callback_secret=COMPANY_SECRET),
        world.company(),
    )
    sent = tell(world, company)
    wanted = {
        ("company", "company"): 202,
        ("company", "platform"): 404,
        ("stranger", "company"): 404,
        ("stranger", "platform"): 404,
        ("operator", "company"): 202,
        ("operator", "platform"): 202,
    }
    headers = {
        "company": world.token(company),
        "stranger": world.token(stranger),
        "operator": world.operator(),
    }

    found = {
        (who, recipient): client.post(
            f"{CALLBACKS}/{sent[recipient]}/replay", headers=headers[who]
        ).status_code
        for who, recipient in wanted
    }

    assert found == wanted
    assert_problem(client.post(f"{CALLBACKS}/{sent['company']}/replay"), 401)


@pytest.mark.parametrize(
    "step", [len(SCHEDULE_S) - 1, len(SCHEDULE_S)], ids=["the next in a day", "the last"]
)
def test_a_replay_is_not_lost_while_an_attempt_is_under_way(committed: World, step: int) -> None:
    """It was asked for, and taken, before anybody knew that the attempt fails."""
    world, statuses = committed, iter([500, 204])

    def answer(_: Received, __: BaseHTTPRequestHandler) -> int:
        status = next(statuses)
        if status == 500:
            path = f"{CALLBACKS}/{id_}/replay"
            assert world.app.test_client().post(path, headers=headers).status_code == 202
        return status

    with receiver(answer) as endpoint:
        company = world.company(callback_url=endpoint.url, callback_secret=COMPANY_SECRET)
        platform_at(world, None)
        id_ = tell(world, company)["company"]
        headers = world.token(company)
        world.session.execute(
            text("UPDATE callbacks SET attempts = :step, schedule_step = :step"), {"step": step}
        )
        world.session.commit()
        deliver(world)
        deliver(world)

    assert len(endpoint.received) == 2
    assert row(world, id_).status == "delivered"


# Removed ----------------------------------------------------------------------------------------------------


def remove(world: World, before: datetime) -> int:
    removed = callback_history.remove_old(world.session, before=before)
    world.session.commit()
    return removed


def left(world: World) -> set[str]:
    return {str(id_) for id_ in world.session.execute(text("SELECT id FROM callbacks")).scalars()}


def test_what_is_old_and_done_with_is_removed_with_its_attempts(world: World) -> None:
    company = world.company()
    limit = LONG_AGO + timedelta(30)
    ages = {"old": limit - timedelta(microseconds=1), "young": limit}
    written = {
        (age, status, recipient): write(world, company.id, status=status, recipient=recipient, at=at)
        for (age, at), status, recipient in itertools.product(ages.items(), STATUSES, ["company", "platform"])
    }
    for id_ in written.values():
        world.session.add(
            CallbackAttempt(
                company_id=company.id,
                callback_id=uuid.UUID(id_),
                number=1,
                attempted_at=limit,
                duration_ms=1,
                error="x",
            )
        )
    world.session.commit()

    removed = remove(world, limit)

    kept = {
        id_ for (age, status, _), id_ in written.items() if age == "young" or status in {"pending", "waiting"}
    }
    assert removed == 6
    assert left(world) == kept
    assert {str(attempt.callback_id) for attempt in world.attempts()} == kept


def test_no_more_than_a_batch_is_removed_at_once_the_oldest_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback_history, "BATCH", 3)
    company = world.company()
    written = [write(world, company.id, at=LONG_AGO + timedelta(n)) for n in range(7)]

    removed = []
    for kept in (written[3:], written[6:], [], []):
        removed.append(remove(world, LONG_AGO + timedelta(30)))
        assert left(world) == set(kept)

    assert removed == [3, 3, 1, 0]
