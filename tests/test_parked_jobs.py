"""Parked jobs: what cannot be settled for a reason of ours waits for a decision, and stops nothing else."""

from typing import Any

import pytest
from flask.testing import FlaskCliRunner
from sqlalchemy import text

from billing import parked_jobs, payment_queue
from billing.collection import PassResult
from billing.errors import JobSettledError, NotFoundError
from models import Company, ParkedJob, db
from tests.world import LedgerGateway, World, dates, instant

AT = instant("2026-02-10")


def refuse(world: World, company: Company, *, sqlstate: str = "P0001") -> None:
    """Let the database refuse every payment of a company."""
    world.session.execute(
        text(f"""
        CREATE FUNCTION refuse_{company.id}() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF new.company_id = {company.id} THEN
            RAISE EXCEPTION 'not this one' USING ERRCODE = '{sqlstate}'; END IF;
            RETURN new; END $$;
        CREATE TRIGGER refuse_{company.id} BEFORE INSERT ON company_payments
            FOR EACH ROW EXECUTE FUNCTION refuse_{company.id}()""")
    )
    world.session.commit()


def allow(world: World, company: Company) -> None:
    world.session.execute(text(f"DROP FUNCTION refuse_{company.id} CASCADE"))
    world.session.commit()


def park(world: World, gateway: LedgerGateway) -> list[PassResult]:
    """Run passes, with all pauses over between them, until a job is parked."""
    results: list[PassResult] = []
    while not results or not results[-1].parked:
        assert len(results) < 10
        if results:
            world.end_leases()
        results.append(world.collect(gateway, at=AT))
    return results


def open_jobs(world: World) -> list[parked_jobs.ParkedJob]:
    return list(parked_jobs.list_open(world.session, limit=10))


def command(world: World, *arguments: str) -> Any:
    runner: FlaskCliRunner = world.app.test_cli_runner()
    return runner.invoke(args=["billing", "parked", *arguments])


@pytest.fixture
def poisoned(committed: World) -> Company:
    """A company whose payments are refused."""
    company = committed.customer(registered_at=instant("2026-01-10"))
    refuse(committed, company)
    return company


def test_a_job_that_fails_for_a_reason_of_ours_is_parked_after_some_failures(
    committed: World, poisoned: Company
) -> None:
    other = committed.customer(registered_at=instant("2026-01-10"))
    gateway = LedgerGateway()

    results = park(committed, gateway)

    assert [result.parked for result in results] == [0] * (parked_jobs.PARKED_AFTER - 1) + [1]
    assert [result.failed for result in results] == [1] * parked_jobs.PARKED_AFTER
    assert len(committed.payments(other)) == 1, "it stops nothing else"
    (job,) = open_jobs(committed)
    (request,) = {r.idempotency_key: r for r in gateway.requests if r.company_id == poisoned.id}.values()
    assert (job.company_id, job.attempt, job.amount_minor) == (poisoned.id, 1, 31_000)
    assert (str(job.idempotency_key), job.outcome) == (request.idempotency_key, "charged")
    assert job.reference == gateway.answers[request.idempotency_key].reference
    assert job.error == "not this one"


def test_a_parked_job_is_left_alone_and_never_dropped_by_itself(committed: World, poisoned: Company) -> None:
    gateway = LedgerGateway()
    park(committed, gateway)
    asked = len(gateway.requests)

    later = [
        committed.collect(gateway, at=instant(day)) for day in ("2026-02-11", "2026-06-10", "2027-02-10")
    ]

    assert [(result.queued, result.failed, result.oldest_job_age_s) for result in later] == [(0, 0, None)] * 3
    assert len(gateway.requests) == asked
    assert len(open_jobs(committed)) == 1


def test_a_released_job_is_charged_under_its_key(committed: World, poisoned: Company) -> None:
    gateway = LedgerGateway()
    park(committed, gateway)
    (job,) = open_jobs(committed)
    allow(committed, poisoned)

    answer = command(committed, "release", str(job.id), "--by", "ayse")
    result = committed.collect(gateway, at=AT)

    assert answer.output == "The job is in the queue again.\n"
    assert result.charged == 1
    (payment,) = committed.payments(poisoned)
    assert payment.id == job.idempotency_key
    assert len(gateway.charged) == 1, "its money was taken once"
    assert decision(committed, job) == ("released", "ayse")
    assert open_jobs(committed) == []


def test_a_released_job_that_goes_on_failing_is_parked_anew(committed: World, poisoned: Company) -> None:
    gateway = LedgerGateway()
    park(committed, gateway)
    (first,) = open_jobs(committed)

    command(committed, "release", str(first.id))
    park(committed, gateway)

    (second,) = open_jobs(committed)
    assert second.id != first.id
    assert second.idempotency_key == first.idempotency_key


def test_a_dropped_jobs_period_rolls_over_unpaid(committed: World, poisoned: Company) -> None:
    park(committed, LedgerGateway())
    (job,) = open_jobs(committed)
    committed.travel(AT)

    answer = command(committed, "drop", str(job.id), "--by", "mehmet")

    assert answer.output == "The period is written off.\n"
    assert committed.payments(poisoned) == []
    assert committed.jobs() == []
    assert committed.company_package(poisoned).start_date == job.period_end
    assert decision(committed, job) == ("dropped", "mehmet")
    assert ("platform", "company_package.renewed") in committed.callbacks(), "every change is told"

    allow(committed, poisoned)
    committed.collect(LedgerGateway(), at=instant("2026-03-10"))
    assert dates(committed.payments(poisoned)) == [("2026-02-10", "2026-03-10")], "billing goes on"


def test_what_was_settled_meanwhile_can_only_be_released(committed: World, poisoned: Company) -> None:
    park(committed, LedgerGateway())
    (job,) = open_jobs(committed)
    committed.session.execute(text("DELETE FROM payment_jobs"))
    committed.session.commit()

    dropped = command(committed, "drop", str(job.id))
    released = command(committed, "release", str(job.id))

    assert (dropped.exit_code, released.exit_code) == (1, 0)
    assert "was settled meanwhile: release it" in dropped.output
    assert released.output == "The job was settled meanwhile.\n"
    assert open_jobs(committed) == []


@pytest.mark.parametrize("what", ["release", "drop"])
def test_a_job_is_decided_about_once(committed: World, poisoned: Company, what: str) -> None:
    park(committed, LedgerGateway())
    (job,) = open_jobs(committed)
    committed.travel(AT)

    first, second = (command(committed, what, str(job.id)) for _ in range(2))

    assert (first.exit_code, second.exit_code) == (0, 1)
    assert second.output == f"Error: No job that waits for a decision has the id {job.id}.\n"


def test_unknown_ids_are_refused(world: World) -> None:
    moment = world.vade.clock.read(world.session)

    with pytest.raises(NotFoundError):
        parked_jobs.release(world.session, 7, real=moment.real, by="ayse")
    with pytest.raises(NotFoundError):
        parked_jobs.drop(world.session, 7, moment=moment, by="ayse", by_platform=True)


def test_dropping_a_job_that_another_worker_settled_changes_nothing(
    committed: World, poisoned: Company
) -> None:
    park(committed, LedgerGateway())
    (job,) = open_jobs(committed)
    committed.session.execute(text("UPDATE payment_jobs SET idempotency_key = gen_random_uuid()"))
    committed.session.commit()

    with pytest.raises(JobSettledError):
        parked_jobs.drop(
            committed.session,
            job.id,
            moment=committed.vade.clock.read(committed.session),
            by="ayse",
            by_platform=True,
        )
    committed.session.rollback()

    assert len(committed.jobs()) == 1


def test_the_list_of_parked_jobs_shows_what_is_needed_to_decide(committed: World, poisoned: Company) -> None:
    assert command(committed).output == "No job is parked.\n"
    park(committed, LedgerGateway())

    shown = command(committed).output

    for part in (str(poisoned.id), "2026-01-10", "310.00 TRY", "charged", "not this one"):
        assert part in shown


def test_a_server_in_trouble_parks_nothing(committed: World) -> None:
    company = committed.customer(registered_at=instant("2026-01-10"))
    refuse(committed, company, sqlstate="XX000")
    gateway = LedgerGateway()

    results = []
    for _ in range(parked_jobs.PARKED_AFTER + 2):
        results.append(committed.collect(gateway, at=AT))
        committed.end_leases()

    assert [(result.failed, result.parked) for result in results] == [(1, 0)] * len(results)
    allow(committed, company)
    assert committed.collect(gateway, at=AT).charged == 1
    assert len(gateway.charged) == 1


def test_an_answer_that_our_own_code_cannot_cope_with_is_parked_too(
    committed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = (committed.customer(registered_at=instant("2026-01-10")) for _ in range(2))
    next_period = payment_queue.Job.next_period

    def fail_for_one(job: payment_queue.Job) -> Any:
        if job.company_id == broken.id:
            raise OverflowError("date value out of range")
        return next_period(job)

    monkeypatch.setattr(payment_queue.Job, "next_period", fail_for_one)

    park(committed, LedgerGateway())

    assert len(committed.payments(sound)) == 1
    (job,) = open_jobs(committed)
    assert (job.company_id, job.error) == (broken.id, "OverflowError: date value out of range")


def decision(world: World, job: parked_jobs.ParkedJob) -> tuple[str | None, str | None]:
    """What was decided about a job, and by whom."""
    world.session.rollback()
    row = db.session.get_one(ParkedJob, (job.company_id, job.id), populate_existing=True)
    assert (row.decided_at is None) == (row.decision is None)
    return row.decision, row.decided_by
