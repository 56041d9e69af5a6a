"""Races: what many ask for at once happens once, and a third decline never meets an assignment half way."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug.security import generate_password_hash

from billing import companies, company_packages, payment_queue
from billing.clock import Clock
from billing.payment_queue import Answer, Outcome
from billing.periods import open_period
from models import Company, CompanyPackage, Login, db
from tests.api import assert_problem, registration
from tests.world import PASSWORD, LedgerGateway, World, instant, wait_until_it_waits

TEN = 10
THIRD = instant("2026-02-12")
"""When the third attempt of a period that ended on 10 February is due."""


def at_once(number: int, ask: Callable[[int], Any]) -> list[Any]:
    """Ask from as many threads, and return the answers."""
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(ask, range(number)))


def meeting(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Let all callers of a function come to it before any goes on."""
    barrier = threading.Barrier(number, timeout=30)

    def met(*arguments: Any, **named: Any) -> Any:
        barrier.wait()
        return function(*arguments, **named)

    return met


def post(world: World, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
    return world.app.test_client().post(path, json=body, headers=headers)


def test_of_ten_equal_registrations_one_is_taken(committed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hash_ = generate_password_hash(PASSWORD, "pbkdf2:sha256:1")
    monkeypatch.setattr(companies, "generate_password_hash", meeting(TEN, lambda *_: hash_))
    emails = ["gul@cicek.example", "GUL@CICEK.EXAMPLE"]

    answers = at_once(TEN, lambda n: post(committed, "/api/v1/register", registration(email=emails[n % 2])))

    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 9}
    for answer in answers:
        if answer.status_code == 409:
            assert_problem(answer, 409, "email-taken")
    assert len(committed.session.scalars(select(Company)).all()) == 1
    assert len(committed.session.scalars(select(Login)).all()) == 1
    assert committed.callbacks() == [("platform", "company.registered")]


def test_of_ten_assignments_at_once_one_is_made(committed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    company = committed.company()
    offered = [committed.package(), committed.package(period="yearly")]
    callers = [committed.token(company), committed.operator()]
    monkeypatch.setattr(company_packages, "open_period", meeting(TEN, open_period))

    def take(n: int) -> Any:
        body = {"company_id": company.id, "package_id": offered[n % 2].id}
        return post(committed, "/api/v1/company-packages", body, callers[n // 2 % 2])

    answers = at_once(TEN, take)

    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 9}
    for answer in answers:
        if answer.status_code == 409:
            assert_problem(answer, 409, "package-open")
    assert len(committed.session.scalars(select(CompanyPackage)).all()) == 1
    assert committed.callbacks() == [("platform", "company_package.assigned")]


def test_ten_first_logins_at_once_are_one_activation(
    committed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    company = committed.company(status=0)
    monkeypatch.setattr(companies, "check_password_hash", meeting(TEN, lambda *_: True))
    body = {"email": company.email, "password": PASSWORD}

    answers = at_once(TEN, lambda _: post(committed, "/api/v1/login", body))

    assert [(answer.status_code, answer.json["status"]) for answer in answers] == [(200, 1)] * TEN
    assert committed.callbacks() == [("platform", "company.activated")]


def test_ten_equal_changes_at_once_are_one_change(committed: World) -> None:
    company = committed.company()
    headers = committed.token(company)
    together = meeting(TEN, committed.app.test_client)

    answers = at_once(
        TEN, lambda _: together().patch("/api/v1/companies/me", json={"name": "Özge"}, headers=headers)
    )

    assert [(answer.status_code, answer.json["name"]) for answer in answers] == [(200, "Özge")] * TEN
    assert committed.callbacks() == [("platform", "company.updated")]


def before_third_decline(world: World, *, number: int = 1, status: int = 1) -> list[Company]:
    """Companies whose payments were declined twice."""
    found = [world.company(registered_at=instant("2026-01-10"), status=status) for _ in range(number)]
    package = world.package()
    for company in found:
        world.assign(company, package)
    for days in (2, 1):
        world.collect(LedgerGateway(default=False), at=THIRD - timedelta(days=days))
    world.travel(THIRD)
    return found


def decline(world: World, session: Session) -> None:
    """Claim all that is due and settle it as declined; only the settlement is left to be committed."""
    moment = Clock(THIRD).read(session)
    jobs, _ = payment_queue.claim(
        session, moment, size=100, lease=timedelta(minutes=1), free_since=moment.real
    )
    session.commit()
    assert [job.attempt for job in jobs] == [3] * len(jobs) != []
    answers = [Answer(job, Outcome.DECLINED, "ref", "insufficient_funds") for job in jobs]
    payment_queue.settle(
        session, answers, attempted_at=THIRD, real=moment.real, by_platform=world.vade.outbox.by_platform
    )


@pytest.mark.parametrize(
    ("commits", "slug"),
    [(True, "company-passive"), (False, "package-open")],
    ids=["committed", "rolled back"],
)
def test_an_assignment_waits_for_the_third_decline_that_is_being_settled(
    committed: World, commits: bool, slug: str
) -> None:
    (company,) = before_third_decline(committed)
    body = {"company_id": company.id, "package_id": committed.package().id}
    headers = committed.token(company)

    with Session(db.engine) as settling, ThreadPoolExecutor(1) as pool:
        decline(committed, settling)
        assigning = pool.submit(post, committed, "/api/v1/company-packages", body, headers)
        wait_until_it_waits(committed, assigning)
        (settling.commit if commits else settling.rollback)()
        answer = assigning.result(30)

    assert_problem(answer, 409, slug)
    committed.session.refresh(company)
    assert company.status == (0 if commits else 1)
    assert committed.company_package(company).status == (0 if commits else 1)


@pytest.mark.parametrize("commits", [True, False], ids=["committed", "rolled back"])
def test_a_first_login_waits_for_the_third_decline_and_does_not_undo_it(
    committed: World, commits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (company,) = before_third_decline(committed, status=0)
    monkeypatch.setattr(companies, "check_password_hash", lambda *_: True)
    body = {"email": company.email, "password": PASSWORD}

    with Session(db.engine) as settling, ThreadPoolExecutor(1) as pool:
        decline(committed, settling)
        logging_in = pool.submit(post, committed, "/api/v1/login", body)
        wait_until_it_waits(committed, logging_in)
        (settling.commit if commits else settling.rollback)()
        answer = logging_in.result(30)

    expected = 0 if commits else 1
    assert (answer.status_code, answer.json["status"]) == (200, expected)
    committed.session.refresh(company)
    assert company.status == expected
    assert (("platform", "company.activated") in committed.callbacks()) is not commits


def test_assignments_among_third_declines_leave_no_passive_company_with_an_open_package(
    committed: World,
) -> None:
    unlucky = before_third_decline(committed, number=12)
    package_id = committed.package().id
    headers = committed.operator()
    ids = [company.id for company in unlucky]
    ended = threading.Event()

    def assign(n: int) -> list[Any]:
        client = committed.app.test_client()
        answers = []
        last = False
        while not last:
            # Once more after the end, so that some come after it for sure.
            last = ended.is_set()
            for id_ in ids[n:] + ids[:n]:
                body = {"company_id": id_, "package_id": package_id}
                answers.append(client.post("/api/v1/company-packages", json=body, headers=headers))
        return answers

    with ThreadPoolExecutor(3) as pool:
        assigning = [pool.submit(assign, n) for n in (0, 4, 8)]
        result = committed.collect(LedgerGateway(default=False), at=THIRD, batch_size=5)
        ended.set()
        answers = [answer for future in assigning for answer in future.result(60)]

    assert (result.declined, result.passive, result.failed) == (12, 12, 0)
    slugs = {assert_problem(answer, 409, answer.json["type"][10:])["type"] for answer in answers}
    assert slugs <= {"/problems/package-open", "/problems/company-passive"}
    assert "/problems/company-passive" in slugs
    open_ = select(CompanyPackage.company_id).where(CompanyPackage.status == 1)
    passive = select(Company.id).where(Company.passivated_at.is_not(None))
    assert committed.session.scalars(open_).all() == []
    assert sorted(committed.session.scalars(passive)) == sorted(ids)
