"""What a change tells: its number in the company's row of changes, what was before, and never too much."""

import json
import threading
import uuid
from bisect import bisect_left
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import text
from sqlalchemy.orm import Session

from billing import companies, payment_queue
from billing.callbacks import MAXIMUM_BODY_BYTES, Outbox
from billing.charging import REFERENCE_LENGTH
from billing.clock import Clock
from billing.gateways import ChargeRequest, ChargeResult
from billing.payment_queue import Answer, Outcome
from cli import make_deliverer
from models import MAXIMUM_PRICE_MINOR, Company, Login, db
from tests.api import DescribedClient, assert_problem, registration
from tests.receivers import receiver
from tests.world import PASSWORD, LedgerGateway, World, instant, wait_until_it_waits
from web.schemas import Url

OWN = "https://store.example/callbacks"
THIRD = instant("2026-02-12")
"""When the third attempt of a period that ended on 10 February is due."""


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords that cost nothing: they are not what this is about."""
    monkeypatch.setattr(companies, "generate_password_hash", lambda *_: "x")
    monkeypatch.setattr(companies, "check_password_hash", lambda *_: True)


def heard_by_platform(world: World, heard: bool) -> None:
    """Let there be a CALLBACK_URL, or none."""
    world.app.extensions["vade"] = replace(world.vade, outbox=Outbox(by_platform=heard))


def told(world: World, company_id: int, recipient: str = "platform") -> list[dict[str, Any]]:
    """The messages about changes of a company, by their numbers."""
    rows = world.session.execute(
        text("SELECT body FROM callbacks WHERE company_id = :id AND recipient = :recipient"),
        {"id": company_id, "recipient": recipient},
    )
    messages = [json.loads(row.body) for row in rows]
    return sorted(messages, key=lambda message: int(message["data"]["sequence"]))


def numbers(messages: list[dict[str, Any]]) -> list[int]:
    return [message["data"]["sequence"] for message in messages]


def types(messages: list[dict[str, Any]]) -> list[str]:
    return [message["type"] for message in messages]


class Life:
    """What a company does and what happens to it, through the API and by collection."""

    def __init__(self, client: DescribedClient, world: World) -> None:
        self.client, self.world = client, world
        self.email = f"{uuid.uuid4().hex}@store.example"
        body = registration(email=self.email)
        self.id: int = client.post("/api/v1/register", json=body).json["company_id"]
        with world.app.test_request_context():
            self.headers = world.token(world.session.get_one(Company, self.id))

    def log_in(self) -> None:
        body = {"email": self.email, "password": PASSWORD}
        assert self.client.post("/api/v1/login", json=body).status_code == 200

    def change(self, **fields: Any) -> None:
        answer = self.client.patch("/api/v1/companies/me", json=fields, headers=self.headers)
        assert answer.status_code == 200, answer.text

    def take(self, *, price_minor: int) -> int:
        package = self.world.package(price_minor=price_minor)
        body = {"company_id": self.id, "package_id": package.id}
        answer = self.client.post("/api/v1/company-packages", json=body, headers=self.headers)
        status: int = answer.status_code
        return status

    def due_at(self) -> datetime | None:
        """When something is to be collected next, in business time."""
        found: datetime | None = self.world.session.execute(
            text(
                "SELECT coalesce((SELECT next_attempt_at FROM payment_jobs WHERE company_id = :id),"
                " (SELECT end_date::timestamp AT TIME ZONE 'Europe/Istanbul' FROM company_packages"
                " WHERE company_id = :id AND status = 1))"
            ),
            {"id": self.id},
        ).scalar_one()
        return found

    def collect(self, verdict: bool) -> None:
        """Let the next attempt be charged or declined, when it is due."""
        due_at = self.due_at()
        if due_at is not None:
            self.world.travel(max(due_at, self.world.now))
            self.world.collect(LedgerGateway(verdict, default=True), at=self.world.now)

    def end(self) -> None:
        """Nothing is collected of it any more."""
        self.world.session.execute(text("DELETE FROM payment_jobs"))
        self.world.session.execute(text("UPDATE company_packages SET status = 0"))
        self.world.session.commit()

    def sequence(self) -> int:
        query = text("SELECT sequence FROM companies WHERE id = :id")
        number: int = self.world.session.execute(query, {"id": self.id}).scalar_one()
        return number


# Numbers ----------------------------------------------------------------------------------------------------


STORY: list[tuple[Callable[[Life], object], list[str]]] = [
    (lambda life: life.log_in(), ["company.activated"]),
    (lambda life: life.log_in(), []),
    (lambda life: life.change(name="Özge"), ["company.updated"]),
    (lambda life: life.change(name="Özge"), []),
    (lambda life: life.take(price_minor=0), ["company_package.assigned"]),
    (lambda life: life.take(price_minor=7), []),
    (lambda life: life.collect(True), ["company_package.renewed"]),
    (lambda life: life.change(lastname="Ak", site_url="https://ak.example"), ["company.updated"]),
    (lambda life: life.end(), []),
    (lambda life: life.take(price_minor=31_000), ["company_package.assigned"]),
    (lambda life: life.collect(True), ["payment.succeeded", "company_package.renewed"]),
    (lambda life: life.collect(False), ["payment.declined"]),
    (lambda life: life.collect(True), ["payment.succeeded", "company_package.renewed"]),
    (lambda life: life.collect(False), ["payment.declined"]),
    (lambda life: life.collect(False), ["payment.declined"]),
    (lambda life: life.collect(False), ["payment.declined", "company.passivated"]),
    (lambda life: life.collect(False), []),
    (lambda life: life.take(price_minor=7), []),
    (lambda life: life.log_in(), []),
    (lambda life: life.change(company_name="Ak"), ["company.updated"]),
]


def test_every_change_has_the_next_number_and_what_is_none_has_none(
    client: DescribedClient, world: World
) -> None:
    life = Life(client, world)
    expected = ["company.registered"]
    assert types(told(world, life.id)) == expected

    for step, changes in STORY:
        step(life)
        expected += changes
        messages = told(world, life.id)
        assert types(messages) == expected
        assert numbers(messages) == list(range(1, len(expected) + 1))
        assert life.sequence() == len(expected)


@pytest.mark.parametrize("heard", ["never", "now and then", "by the company, in the end"])
def test_changes_count_whoever_listens(client: DescribedClient, world: World, heard: str) -> None:
    heard_by_platform(world, False)
    life = Life(client, world)
    expected = 1

    for number, (step, changes) in enumerate(STORY):
        if heard == "now and then":
            heard_by_platform(world, number % 3 == 0)
        if heard == "by the company, in the end" and number == 10:
            life.change(callback_url=OWN)
            expected += 1
        step(life)
        expected += len(changes)
        assert life.sequence() == expected

    messages = told(world, life.id)
    own = told(world, life.id, "company")
    if heard == "never":
        assert world.callbacks() == []
    elif heard == "now and then":
        assert numbers(messages) != list(range(1, expected + 1))
        assert len(numbers(messages)) == len(set(numbers(messages)))
    else:
        assert (messages, numbers(own)) == ([], list(range(expected - len(own) + 1, expected + 1)))
        assert len(own) == 11


def test_a_company_that_listens_is_told_the_same_as_the_platform(
    client: DescribedClient, world: World
) -> None:
    life = Life(client, world)
    life.change(callback_url=OWN)

    for step, _ in STORY:
        step(life)

    assert told(world, life.id)[1:] == told(world, life.id, "company")


def test_companies_count_each_for_itself(client: DescribedClient, world: World) -> None:
    lives = [Life(client, world) for _ in range(3)]
    for number, life in enumerate(lives):
        for turn in range(number + 1):
            life.change(name=f"Ad {turn}")
        life.take(price_minor=100)

    world.collect(LedgerGateway(), at=instant("2026-02-10"))

    assert [numbers(told(world, life.id)) for life in lives] == [
        list(range(1, number + 6)) for number in range(3)
    ]


# At once ----------------------------------------------------------------------------------------------------


def assert_told_in_order(world: World, company_id: int) -> list[dict[str, Any]]:
    """No gap, no repeat, and none shows the company as it was before an earlier number."""
    messages = told(world, company_id)
    assert numbers(messages) == list(range(1, len(messages) + 1))
    known: str | None = None
    for message in messages:
        shown = message["data"]["company"]["name"]
        if message["type"] == "company.updated":
            assert known in {None, message["data"]["previous"]["company"]["name"]}
        else:
            assert known in {None, shown}, message
        known = shown
    return messages


def test_changes_and_collection_at_once_leave_no_gap_and_show_nothing_older(committed: World) -> None:
    found = [committed.customer(registered_at=instant("2026-01-10")) for _ in range(2)]
    callers = [(company.id, committed.token(company)) for company in found]
    over = threading.Event()

    def change(n: int) -> int:
        client: Any = committed.app.test_client()
        made = 0
        while not over.is_set() or made < 5:
            _, headers = callers[n % 2]
            answer = client.patch("/api/v1/companies/me", json={"name": f"Ad {n} {made}"}, headers=headers)
            assert answer.status_code == 200
            made += 1
        return made

    with ThreadPoolExecutor(4) as pool:
        changing = [pool.submit(change, n) for n in range(4)]
        try:
            # Two years, a period a settlement, in the midst of the changes; then the end of it.
            committed.collect(LedgerGateway(), at=instant("2028-01-11"))
            for day in ("2028-02-10", "2028-02-11", "2028-02-12"):
                committed.collect(LedgerGateway(default=False), at=instant(day))
        finally:
            over.set()
        changes = sum(future.result(60) for future in changing)

    told_of = [assert_told_in_order(committed, company.id) for company in found]
    assert sum(types(messages).count("company.updated") for messages in told_of) == changes >= 20
    for messages in told_of:
        assert [
            types(messages).count(type_) for type_ in ("payment.succeeded", "company_package.renewed")
        ] == [
            24,
            24,
        ]
        assert types(messages).count("company.passivated") == 1
    switches = sum(
        ("company.updated" in {one, other}) and one != other
        for messages in told_of
        for one, other in zip(types(messages), types(messages)[1:], strict=False)
    )
    assert switches >= 4, "they were made at once"


def settle(world: World, outcome: Outcome, at: datetime) -> Callable[[], None]:
    """Claim what is due; what is returned settles it, in a session of its own."""
    with Session(db.engine) as session:
        moment = Clock(at).read(session)
        payment_queue.enqueue(session, moment, zone=world.vade.zone, size=10)
        jobs, _ = payment_queue.claim(
            session, moment, size=100, lease=timedelta(minutes=1), free_since=moment.real
        )
        session.commit()
    assert jobs
    answers = [Answer(job, outcome, "ref", None if outcome else "insufficient_funds") for job in jobs]

    def write() -> None:
        with Session(engine) as session:
            payment_queue.settle(session, answers, attempted_at=at, real=moment.real, by_platform=True)
            session.commit()

    engine = db.engine
    return write


@pytest.mark.parametrize("commits", [True, False], ids=["committed", "rolled back"])
def test_a_settlement_waits_for_a_change_and_shows_what_came_of_it(committed: World, commits: bool) -> None:
    company = committed.customer(registered_at=instant("2026-01-10"), price_minor=100)
    write = settle(committed, Outcome.CHARGED, instant("2026-02-10"))
    changes = {"name": "Özge"}

    with Session(db.engine) as changing, ThreadPoolExecutor(1) as pool:
        moment = committed.vade.clock.read(changing)
        companies.change(
            changing,
            company.id,
            changes,
            moment=moment,
            outbox=committed.vade.outbox,
            keyring=committed.vade.keyring,
        )
        settling = pool.submit(write)
        wait_until_it_waits(committed, settling)
        (changing.commit if commits else changing.rollback)()
        settling.result(30)

    messages = assert_told_in_order(committed, company.id)
    assert types(messages)[-2:] == ["payment.succeeded", "company_package.renewed"]
    assert types(messages).count("company.updated") == commits
    assert {message["data"]["company"]["name"] for message in messages[-2:]} == {
        "Özge" if commits else "Ayşe"
    }


@pytest.mark.parametrize(
    ("path", "type_"),
    [("company-packages", "company_package.assigned"), ("login", "company.activated")],
)
def test_whatever_waited_for_a_change_has_the_next_number_and_shows_it(
    committed: World, path: str, type_: str
) -> None:
    company = committed.company(status=0)
    headers = committed.token(company)
    body: dict[str, Any] = {"email": company.email, "password": PASSWORD}
    if path == "company-packages":
        body = {"company_id": company.id, "package_id": committed.package().id}
    client: Any = committed.app.test_client()

    with Session(db.engine) as changing, ThreadPoolExecutor(1) as pool:
        companies.change(
            changing,
            company.id,
            {"name": "Özge"},
            moment=committed.vade.clock.read(changing),
            outbox=committed.vade.outbox,
            keyring=committed.vade.keyring,
        )
        waiting = pool.submit(client.post, f"/api/v1/{path}", json=body, headers=headers)
        wait_until_it_waits(committed, waiting)
        changing.commit()
        assert waiting.result(30).status_code in {200, 201}

    messages = assert_told_in_order(committed, company.id)
    assert types(messages) == ["company.updated", type_]
    assert messages[1]["data"]["company"]["name"] == "Özge"


def test_a_change_waits_for_a_settlement_and_shows_what_came_of_it(committed: World) -> None:
    company = committed.customer(registered_at=instant("2026-01-10"), price_minor=100)
    headers = committed.token(company)
    write = settle(committed, Outcome.CHARGED, instant("2026-02-10"))
    engine = db.engine
    settled, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with engine.connect() as connection, connection.begin():
            # The settlement's lock on the company, kept for a moment.
            connection.execute(
                text("SELECT FROM companies WHERE id = :id FOR NO KEY UPDATE"), {"id": company.id}
            )
            settled.set()
            go_on.wait(30)

    with ThreadPoolExecutor(3) as pool:
        holding = pool.submit(hold)
        settled.wait(30)
        settling = pool.submit(write)
        wait_until_it_waits(committed, settling)
        client: Any = committed.app.test_client()
        changing = pool.submit(
            lambda: client.patch("/api/v1/companies/me", json={"name": "Özge"}, headers=headers)
        )
        go_on.set()
        for future in (holding, settling, changing):
            future.result(30)

    messages = assert_told_in_order(committed, company.id)
    assert sorted(types(messages)) == sorted(
        ["company_package.assigned", "payment.succeeded", "company_package.renewed", "company.updated"]
    )


def test_a_third_decline_that_waited_for_the_first_login_tells_that_the_company_was_active(
    committed: World,
) -> None:
    company = committed.company(registered_at=instant("2026-01-10"), status=0)
    committed.assign(company, committed.package())
    for days in (2, 1):
        committed.collect(LedgerGateway(default=False), at=THIRD - timedelta(days=days))
    write = settle(committed, Outcome.DECLINED, THIRD)

    with Session(db.engine) as logging_in, ThreadPoolExecutor(1) as pool:
        login = logging_in.get_one(Login, company.email.lower())
        companies.log_in(logging_in, login, now=THIRD, outbox=committed.vade.outbox)
        settling = pool.submit(write)
        wait_until_it_waits(committed, settling)
        logging_in.commit()
        settling.result(30)

    messages = assert_told_in_order(committed, company.id)
    assert types(messages)[-3:] == ["company.activated", "payment.declined", "company.passivated"]
    assert messages[-1]["data"]["previous"] == {"company": {"status": 1}}


# What was before --------------------------------------------------------------------------------------------


def test_what_was_before_is_told_by_each_type(client: DescribedClient, world: World) -> None:
    life = Life(client, world)
    life.log_in()
    life.change(name="Özge", site_url="https://ozge.example", lastname="Şahin", callback_url=OWN)
    life.change(callback_url="https://elsewhere.example/", name="Gül")
    life.change(callback_url=None)
    life.take(price_minor=100)
    life.collect(True)
    life.collect(False)
    life.collect(False)
    life.collect(False)

    before = [(message["type"], message["data"]["previous"]) for message in told(world, life.id)]

    assert before == [
        ("company.registered", {"company": None}),
        ("company.activated", {"company": {"status": 0}}),
        (
            "company.updated",
            {"company": {"name": "Gül", "site_url": "https://gül.example/mağaza", "callback_url": None}},
        ),
        ("company.updated", {"company": {"callback_url": OWN, "name": "Özge"}}),
        ("company.updated", {"company": {"callback_url": "https://elsewhere.example/"}}),
        ("company_package.assigned", {"company_package": None}),
        ("payment.succeeded", {}),
        (
            "company_package.renewed",
            {"company_package": {"start_date": "2026-01-10", "end_date": "2026-02-10"}},
        ),
        ("payment.declined", {}),
        ("payment.declined", {}),
        ("payment.declined", {}),
        ("company.passivated", {"company": {"status": 1}}),
    ]


def test_a_company_that_never_logged_in_was_passive_before_it_became_passive(
    client: DescribedClient, world: World
) -> None:
    life = Life(client, world)
    life.take(price_minor=100)
    for _ in range(3):
        life.collect(False)

    last = told(world, life.id)[-1]

    assert (last["type"], last["data"]["previous"]) == ("company.passivated", {})
    assert last["data"]["company"]["status"] == 0


NAMES = st.sampled_from(["Gül", "Özge", "A\nB", 'O"\\', "🌹"])
URLS = st.sampled_from([None, OWN, "https://elsewhere.example/?a=1&b='"])
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "name": NAMES,
        "lastname": NAMES,
        "company_name": NAMES,
        "site_url": st.sampled_from(["https://a.example", "https://ş.example/ş"]),
        "callback_url": URLS,
    },
)
STEPS: st.SearchStrategy[tuple[str, dict[str, Any]]] = st.one_of(
    st.tuples(st.just("change"), CHANGES),
    st.tuples(st.just("log_in"), st.just({})),
    st.tuples(st.just("take"), st.fixed_dictionaries({"price_minor": st.sampled_from([0, 31_000])})),
    st.tuples(st.just("collect"), st.fixed_dictionaries({"verdict": st.booleans()})),
    st.tuples(st.just("collect"), st.fixed_dictionaries({"verdict": st.just(False)})),
)


def assert_previous_leads_back(messages: list[dict[str, Any]], company: dict[str, Any]) -> None:
    """From the latest documents, each `previous` gives those of the message before, down to nothing.

    What one settlement changed is shown whole by both of its messages, and told by the second one.
    """
    state: dict[str, Any] = {"company": company}
    shown_by_next: dict[str, Any] = {}
    for message, following in zip(reversed(messages), [None, *reversed(messages)], strict=False):
        data = message["data"]
        settled_with_next = following is not None and following["type"] in {
            "company.passivated",
            "company_package.renewed",
        }
        for name in ("company", "company_package"):
            if name in data:
                # The first one met on the way back is the latest.
                known = state.setdefault(name, data[name])
                if settled_with_next and message["type"].startswith("payment."):
                    known = shown_by_next[name]
                assert data[name] == known, (name, message)
        shown_by_next = {name: dict(value) for name, value in state.items() if value is not None}
        for name, earlier in data["previous"].items():
            if earlier is None:
                state[name] = None
                if name == "company_package":
                    # What it had before that is told by what came before.
                    del state[name]
            else:
                assert all(state[name][field] != value for field, value in earlier.items()), "it changed"
                state[name] = state[name] | earlier
    assert state["company"] is None


@given(st.lists(STEPS, min_size=4, max_size=14))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_before_leads_back_from_the_latest_to_the_first(
    client: DescribedClient, world: World, steps: list[tuple[str, dict[str, Any]]]
) -> None:
    life = Life(client, world)
    try:
        for name, arguments in steps:
            getattr(life, name)(**arguments)
    finally:
        life.end()

    messages = told(world, life.id)
    assert numbers(messages) == list(range(1, life.sequence() + 1))
    company = client.get("/api/v1/companies/me", headers=life.headers).json
    assert_previous_leads_back(messages, company)
    own = told(world, life.id, "company")
    assert [message for message in messages if message["data"]["sequence"] in numbers(own)] == own
    world.session.execute(text("DELETE FROM callbacks"))
    world.session.commit()


# Never too much ---------------------------------------------------------------------------------------------


def longest_url(host: str, letter: str, last: str = "") -> str:
    """A URL of 2,048 characters as it is sent, of one letter as far as it goes."""
    beginning = f"https://{host}/"
    length = len(quote(letter))
    space = 2048 - len(beginning) - len(last)
    return beginning + letter * (space // length) + "x" * (space % length) + last


def answered(answer: ChargeResult, _: ChargeRequest) -> ChargeResult:
    return answer


@pytest.mark.parametrize("letter", ["円", "x"])
def test_the_longest_fields_make_no_message_of_twenty_thousand_bytes(
    client: DescribedClient, world: World, letter: str
) -> None:
    url, other_url = longest_url("a.example", letter, "1"), longest_url("a.example", letter, "2")
    name, other_name = "🌹" * 200, "🌻" * 200
    email = "a" * 64 + "@" + ".".join(["b" * 61] * 3) + ".ex"
    fields = {"site_url": url, "name": name, "lastname": name, "company_name": name}
    session = client.post("/api/v1/register", json=registration(email=email, **fields)).json
    headers = {"Authorization": f"Bearer {session['token']}"}
    for changes in (
        {"callback_url": other_url},
        {"callback_url": url, "site_url": other_url, "lastname": other_name, "name": other_name},
        {"callback_url": other_url, "site_url": url}
        | dict.fromkeys(("lastname", "name", "company_name"), "🌺" * 200),
    ):
        assert client.patch("/api/v1/companies/me", json=changes, headers=headers).status_code == 200
    body = {"name": name, "period": "yearly", "price_minor": MAXIMUM_PRICE_MINOR, "currency": "TRY"}
    package = client.post("/api/v1/packages", json=body, headers=world.operator()).json
    body = {"company_id": session["company_id"], "package_id": package["id"]}
    assert client.post("/api/v1/company-packages", json=body, headers=headers).status_code == 201
    client.post("/api/v1/login", json={"email": email, "password": PASSWORD})
    longest = '"' * REFERENCE_LENGTH if letter == "x" else "🌹" * REFERENCE_LENGTH
    for n, succeeds in enumerate([True, False, False, False]):
        at = instant("2027-01-10" if n == 0 else f"2028-01-{9 + n}", hour=12)
        answer = ChargeResult(succeeds, longest, longest)
        world.collect(LedgerGateway(partial(answered, answer)), at=at)
    with receiver(410) as gone:
        company = world.session.get_one(Company, session["company_id"])
        world.listen(company, longest_url(gone.url.removeprefix("http://"), "x").replace("https", "http"))
        make_deliverer(world.vade).run_pass()

    rows = world.session.execute(
        text("SELECT type, octet_length(body) AS bytes, body FROM callbacks ORDER BY bytes DESC")
    ).all()
    assert {row.type for row in rows} == {
        "company.registered",
        "company.activated",
        "company.updated",
        "company_package.assigned",
        "payment.succeeded",
        "company_package.renewed",
        "payment.declined",
        "company.passivated",
        "callback_endpoint.disabled",
    }
    assert rows[0].bytes < MAXIMUM_BODY_BYTES
    assert rows[0].type == "company.updated"
    assert rows[0].bytes > (13_000 if letter == "x" else 8_000), "the fields were long"
    assert any(longest in json.loads(row.body)["data"].get("payment", {}).values() for row in rows)


@pytest.mark.parametrize("letter", ["円", "🌹", "ş", "x"])
@pytest.mark.parametrize("field", ["site_url", "callback_url"])
def test_a_url_that_is_too_long_as_it_is_sent_is_refused_however_few_letters_it_has(
    client: DescribedClient, world: World, field: str, letter: str
) -> None:
    headers = world.token(world.company())
    longest = longest_url("a.example", letter)

    for url in (longest + "x", longest + letter, "https://a.example/" + letter * 2000):
        if len(quote(url)) > 2048:
            refused = client.patch("/api/v1/companies/me", json={field: url}, headers=headers)
            assert_problem(refused, 422, pointers=[f"#/{field}"])
    assert client.patch("/api/v1/companies/me", json={field: longest}, headers=headers).status_code == 200


def is_url(url: str) -> bool:
    try:
        TypeAdapter(Url).validate_python(url)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    "letter",
    [
        "x",
        "円",
        "ş",
        "|",
        "^",
        "[",
        "%z",
        "?{",
    ],
)
def test_the_longest_url_that_is_taken_can_be_sent_to(
    client: DescribedClient, world: World, letter: str
) -> None:
    with receiver() as endpoint:
        company = world.company()
        headers = world.token(company)
        # As long as is taken: one more is refused.
        number = bisect_left(range(2048), True, key=lambda n: not is_url(f"{endpoint.url}/{letter * n}")) - 1
        changes = {"callback_url": f"{endpoint.url}/{letter * number}"}
        assert number > 100
        assert client.patch("/api/v1/companies/me", json=changes, headers=headers).status_code == 200

        reply = client.post("/api/v1/callback-endpoint/ping", headers=headers).json

    assert (reply["succeeded"], reply["error"]) == (True, None)
