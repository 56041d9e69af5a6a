"""Collection: what is charged, when it is tried again, and what a company becomes."""

from datetime import date, timedelta

import pytest
from sqlalchemy import text

from billing.gateways import ChargeResult, GatewayUnavailable
from models import Company, Package
from tests.world import LedgerGateway, World, dates, instant


def test_a_period_that_ended_is_charged_and_rolls_on_from_its_old_end(world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"), price_minor=31_000)
    gateway = LedgerGateway()

    result = world.collect(gateway, at=instant("2026-02-12"))

    assert (result.queued, result.charged, result.declined, result.failed) == (1, 1, 0, 0)
    (payment,) = world.payments(company)
    assert dates([payment]) == [("2026-01-10", "2026-02-10")]
    assert (payment.status, payment.attempt, payment.amount_minor) == (1, 1, 31_000)
    assert str(payment.id) == gateway.requests[0].idempotency_key
    assert payment.attempted_at == instant("2026-02-12")
    current = world.company_package(company)
    assert (current.status, current.start_date, current.end_date) == (1, date(2026, 2, 10), date(2026, 3, 10))
    assert world.jobs() == []


def test_nothing_is_charged_before_the_business_day_of_the_end(world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))

    early = world.collect(LedgerGateway(), at=instant("2026-02-10", hour=0) - timedelta(microseconds=1))
    on_time = world.collect(LedgerGateway(), at=instant("2026-02-10", hour=0))

    assert (early.queued, early.charged) == (0, 0)
    assert (on_time.queued, on_time.charged) == (1, 1)
    assert len(world.payments(company)) == 1


def test_a_period_that_began_off_the_billing_day_costs_its_share(world: World) -> None:
    company = world.company(registered_at=instant("2026-01-10"))
    world.travel(instant("2026-03-15"))
    world.assign(company, world.package(price_minor=31_000))

    world.collect(LedgerGateway(), at=instant("2026-05-10"))

    assert [payment.amount_minor for payment in world.payments(company)] == [26_000, 31_000]
    assert dates(world.payments(company)) == [("2026-03-15", "2026-04-10"), ("2026-04-10", "2026-05-10")]


def test_a_declined_attempt_is_repeated_exactly_one_day_after_it(world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))
    first = instant("2026-02-10", hour=11)
    gateway = LedgerGateway(False, True)

    world.collect(gateway, at=first)
    (job,) = world.jobs()
    too_early = world.collect(gateway, at=first + timedelta(hours=24) - timedelta(microseconds=1))
    in_time = world.collect(gateway, at=first + timedelta(hours=24))

    assert job.next_attempt_at == first + timedelta(hours=24)
    assert (too_early.charged, too_early.declined) == (0, 0)
    assert in_time.charged == 1
    assert [(p.attempt, p.status) for p in world.payments(company)] == [(1, 0), (2, 1)]
    assert world.company_package(company).start_date == date(2026, 2, 10)
    keys = {request.idempotency_key for request in gateway.requests}
    assert len(keys) == 2, "each attempt has a key of its own"


def test_a_package_stays_open_while_a_declined_payment_is_tried_again(world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))

    world.collect(LedgerGateway(False), at=instant("2026-02-10"))

    current = world.company_package(company)
    assert (current.status, current.start_date, current.end_date) == (1, date(2026, 1, 10), date(2026, 2, 10))
    assert company.status == 1


def test_a_third_decline_makes_the_company_passive(world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))
    gateway = LedgerGateway(default=False)

    results = [
        world.collect(gateway, at=instant("2026-02-10") + timedelta(days=days)) for days in (0, 1, 2, 3, 60)
    ]

    assert [(r.declined, r.passive) for r in results] == [(1, 0), (1, 0), (1, 1), (0, 0), (0, 0)]
    assert [(p.attempt, p.status, p.decline_code) for p in world.payments(company)] == [
        (1, 0, "insufficient_funds"),
        (2, 0, "insufficient_funds"),
        (3, 0, "insufficient_funds"),
    ]
    world.session.refresh(company)
    assert (company.status, company.passivated_at) == (0, instant("2026-02-12"))
    assert world.company_package(company).status == 0
    assert world.jobs() == []
    assert len(gateway.requests) == 3


def test_declines_of_different_periods_do_not_add_up(world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))
    gateway = LedgerGateway(False, False, True, False, False, True)

    for day in ("02-10", "02-11", "02-12", "03-10", "03-11", "03-12"):
        world.collect(gateway, at=instant(f"2026-{day}"))

    assert [(p.attempt, p.status) for p in world.payments(company)] == [(1, 0), (2, 0), (3, 1)] * 2
    world.session.refresh(company)
    assert company.status == 1


def test_five_missed_periods_are_collected_in_order_one_at_a_time(world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-31"))
    world.travel(instant("2026-01-31"))
    other = world.company(registered_at=instant("2026-01-31"))
    world.assign(other, world.package())
    gateway = LedgerGateway()

    result = world.collect(gateway, at=instant("2026-07-01"), batch_size=1)

    assert dates(world.payments(other)) == [
        ("2026-01-31", "2026-02-28"),
        ("2026-02-28", "2026-03-31"),
        ("2026-03-31", "2026-04-30"),
        ("2026-04-30", "2026-05-31"),
        ("2026-05-31", "2026-06-30"),
    ]
    sent = [r.description.split(", ")[-1] for r in gateway.requests if r.company_id == other.id]
    assert sent == sorted(sent)
    assert result.charged == len(gateway.requests) == 5 + len(world.payments(company))


def test_a_decline_holds_the_later_periods_back(world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))

    result = world.collect(LedgerGateway(False), at=instant("2026-06-15"))

    assert (result.charged, result.declined) == (0, 1)
    assert dates(world.payments(company)) == [("2026-01-10", "2026-02-10")]


def test_a_price_change_applies_from_the_next_period_on(world: World) -> None:
    company = world.company(registered_at=instant("2026-01-10"))
    package = world.package(price_minor=10_000)
    world.assign(company, package)
    package.price_minor = 20_000
    world.session.commit()

    world.collect(LedgerGateway(), at=instant("2026-02-10"))
    world.collect(LedgerGateway(), at=instant("2026-03-10"))

    assert [payment.amount_minor for payment in world.payments(company)] == [10_000, 20_000]


def test_a_withdrawn_package_goes_on_renewing(world: World) -> None:
    company = world.company(registered_at=instant("2026-01-10"))
    package = world.package()
    world.assign(company, package)
    package.status = 0
    world.session.commit()

    world.collect(LedgerGateway(), at=instant("2026-03-10"))

    assert len(world.payments(company)) == 2
    assert world.company_package(company).status == 1


def test_an_amount_of_nothing_rolls_over_without_gateway_or_payment(world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"), price_minor=0)
    gateway = LedgerGateway()

    result = world.collect(gateway, at=instant("2026-04-10"))

    assert (result.queued, result.free, result.charged) == (3, 3, 0)
    assert gateway.requests == []
    assert world.payments(company) == []
    assert world.company_package(company).start_date == date(2026, 4, 10)


def test_a_clock_that_jumps_back_charges_nothing_again(world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))
    world.collect(LedgerGateway(), at=instant("2026-04-10"))

    back = world.collect(LedgerGateway(), at=instant("2026-02-15"))
    again = world.collect(LedgerGateway(), at=instant("2026-04-10"))

    assert (back.queued, back.charged, again.queued, again.charged) == (0, 0, 0, 0)
    assert len(world.payments(company)) == 3


def test_a_company_that_never_logged_in_is_billed_like_any_other(world: World) -> None:
    company = world.company(registered_at=instant("2026-01-10"), status=0)
    world.assign(company, world.package())

    world.collect(LedgerGateway(), at=instant("2026-02-10"))

    assert [payment.status for payment in world.payments(company)] == [1]


@pytest.mark.parametrize(
    "answer",
    [
        GatewayUnavailable,
        lambda _: 1 / 0,
        lambda _: None,
        lambda _: "charged",
        lambda _: ChargeResult(1, "r"),  # type: ignore[arg-type]
        lambda _: ChargeResult(True, ""),
        lambda _: ChargeResult(True, "r\0"),
        lambda _: ChargeResult(True, "r" * 1000),
        lambda _: ChargeResult(True, "r", 7),  # type: ignore[arg-type]
    ],
    ids=["down", "raises", "none", "text", "truthy", "no reference", "nul", "too long", "code"],
)
def test_an_outage_is_not_a_decline(world: World, answer: object) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))
    other = world.customer(registered_at=instant("2026-01-10"))
    gateway = LedgerGateway(answer)  # type: ignore[arg-type]
    at = instant("2026-02-10")

    result = world.collect(gateway, at=at)
    (job,) = world.jobs()
    repeated = world.collect(gateway, at=at)
    world.end_leases()
    healed = world.collect(gateway, at=at + timedelta(hours=2))

    assert (result.failed, result.charged, result.declined) == (1, 1, 0), "the others go on"
    assert (job.attempt, job.next_attempt_at) == (1, instant("2026-02-10", hour=0)), "its time stays"
    assert (repeated.failed, repeated.charged) == (0, 0), "it rests for a while, in real time"
    assert healed.charged == 1
    unlucky = next(c for c in (company, other) if c.id == gateway.requests[0].company_id)
    (payment,) = world.payments(unlucky)
    assert (payment.attempt, payment.status) == (1, 1)
    assert gateway.requests[0].idempotency_key == gateway.requests[-1].idempotency_key == str(payment.id)


def test_a_job_is_asked_at_most_once_in_a_pass(world: World) -> None:
    for _ in range(5):
        world.customer(registered_at=instant("2026-01-10"))
    gateway = LedgerGateway(default=GatewayUnavailable)

    result = world.collect(gateway, at=instant("2026-02-10"), batch_size=2, lease=timedelta(microseconds=1))

    assert result.failed == 5
    assert len(gateway.requests) == 5


def test_pauses_after_outages_grow_and_leave_business_time_alone(world: World) -> None:
    world.customer(registered_at=instant("2026-01-10"))
    gateway = LedgerGateway(default=GatewayUnavailable)
    pauses = []

    for _ in range(4):
        before = world.vade.clock.read(world.session).real
        world.collect(gateway, at=instant("2026-02-10"))
        (job,) = world.jobs()
        pauses.append((job.leased_until - before).total_seconds())
        world.end_leases()

    assert pauses == sorted(pauses)
    assert pauses[-1] > 4 * pauses[0]
    assert len({request.idempotency_key for request in gateway.requests}) == 1


def test_what_is_charged_is_told_to_those_who_listen(world: World) -> None:
    world.customer(registered_at=instant("2026-01-10"))
    listening = world.company(
        registered_at=instant("2026-01-10"), callback_url="https://a.example/", callback_secret="whsec_eA=="
    )
    world.assign(listening, world.package())
    world.session.execute(text("DELETE FROM callbacks"))

    world.collect(LedgerGateway(), at=instant("2026-02-10"))

    assert world.callbacks() == [
        ("company", "company_package.renewed"),
        ("platform", "company_package.renewed"),
        ("platform", "company_package.renewed"),
        ("company", "payment.succeeded"),
        ("platform", "payment.succeeded"),
        ("platform", "payment.succeeded"),
    ]


def test_a_third_decline_tells_the_decline_and_the_passivation(world: World) -> None:
    world.customer(registered_at=instant("2026-01-10"))
    world.session.execute(text("DELETE FROM callbacks"))

    for days in range(3):
        world.collect(LedgerGateway(False), at=instant("2026-02-10") + timedelta(days=days))

    assert world.callbacks() == [
        ("platform", "company.passivated"),
        ("platform", "payment.declined"),
        ("platform", "payment.declined"),
        ("platform", "payment.declined"),
    ]


def test_nobody_to_tell_means_nothing_is_written(world: World) -> None:
    world.customer(registered_at=instant("2026-01-10"))
    world.session.execute(text("DELETE FROM callbacks"))

    world.collect(LedgerGateway(), at=instant("2026-02-10"), by_platform=False)

    assert world.callbacks() == []


def test_companies_and_packages_are_left_alone_by_an_idle_pass(world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))
    before = world.session.get(Company, company.id), world.session.get(Package, 1)

    result = world.collect(LedgerGateway(), at=instant("2026-01-20"))

    assert (result.queued, result.attempts, result.oldest_job_age_s) == (0, 0, None)
    assert (world.session.get(Company, company.id), world.session.get(Package, 1)) == before


def test_the_same_key_goes_with_the_same_request_though_its_package_was_renamed(world: World) -> None:
    company = world.company(registered_at=instant("2026-01-10"))
    package = world.package()
    world.assign(company, package)
    gateway = LedgerGateway(GatewayUnavailable)

    world.collect(gateway, at=instant("2026-02-10"))
    package.name, package.price_minor = "Renamed", 99
    world.session.commit()
    world.end_leases()
    world.collect(gateway, at=instant("2026-02-11"))

    first, second = gateway.requests
    assert first == second


@pytest.mark.parametrize(
    ("code", "recorded"), [("", None), ("a\tb\0", "a b"), ("x" * 999, "x" * 255), (None, None)]
)
def test_an_odd_decline_code_does_not_keep_an_answer_from_being_recorded(
    world: World, code: str | None, recorded: str | None
) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))

    result = world.collect(
        LedgerGateway(lambda request: ChargeResult(False, request.idempotency_key, code)),
        at=instant("2026-02-10"),
    )

    assert (result.declined, result.failed) == (1, 0)
    assert [payment.decline_code for payment in world.payments(company)] == [recorded]
