"""The queue's statements by themselves and against each other: leases, fences, cursors, refusals."""

import threading
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from itertools import product
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from billing import leases, payment_queue
from billing.clock import Clock, Moment
from billing.gateways import ChargeRequest, GatewayUnavailable
from billing.payment_queue import FIRST, PRORATED_SQL, Answer, Job, Outcome
from billing.periods import prorated
from models import MAXIMUM_PRICE_MINOR, CompanyPackage, db
from tests.crowds import crowd
from tests.world import LedgerGateway, World, instant

AT = instant("2026-02-10")
MINUTE = timedelta(minutes=1)


def read(session: Session, at: datetime = AT) -> Moment:
    return Clock(at).read(session)


def enqueue_all(session: Session, world: World, *, at: datetime = AT, size: int = 1000) -> int:
    found, _ = payment_queue.enqueue(session, read(session, at), zone=world.vade.zone, size=size)
    session.commit()
    return found


def outages(session: Session) -> int:
    """How many the reports tell of."""
    query = text("SELECT coalesce(sum(number), 0) FROM report_entries WHERE figure = 'outage'")
    return int(session.execute(query).scalar_one())


def claim(session: Session, *, size: int = 1000, lease: timedelta = MINUTE, at: datetime = AT) -> list[Job]:
    moment = read(session, at)
    jobs, _ = payment_queue.claim(session, moment, size=size, lease=lease, free_since=moment.real)
    session.commit()
    return jobs


def settle(session: Session, answers: Sequence[Answer]) -> int:
    """Settle, and return how many answers were written."""
    settled = payment_queue.settle(
        session, answers, attempted_at=AT, real=read(session).real, by_platform=True
    )
    session.commit()
    return sum(part.number for part in settled)


def charged(job: Job) -> Answer:
    return Answer(job, Outcome.CHARGED, f"ref-{job.company_id}")


def declined(job: Job) -> Answer:
    return Answer(job, Outcome.DECLINED, f"ref-{job.company_id}", "insufficient_funds")


def books(session: Session) -> list[Any]:
    """Return all that a settlement may change, row by row."""
    queries = [
        "SELECT * FROM company_payments ORDER BY company_id, id",
        "SELECT * FROM payment_jobs ORDER BY company_id, period_start",
        "SELECT * FROM company_packages ORDER BY company_id",
        "SELECT id, status, passivated_at FROM companies ORDER BY id",
        "SELECT * FROM callbacks ORDER BY company_id, id",
    ]
    return [session.execute(text(query)).all() for query in queries]


def in_threads(number: int, work: Callable[[int], None]) -> None:
    """Do some work in several threads at once; fail where one of them does."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(number)

    def run(n: int) -> None:
        try:
            barrier.wait()
            work(n)
        except BaseException as error:  # noqa: BLE001 - told to the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=[n]) for n in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors, errors


@pytest.fixture
def job(world: World) -> Job:
    """A job that worker A claimed, and whose lease has run out."""
    world.customer(registered_at=instant("2026-01-10"))
    enqueue_all(world.session, world)
    (job,) = claim(world.session, lease=timedelta())
    return job


def test_two_workers_never_claim_the_same_job(committed: World) -> None:
    committed.session.execute(text(crowd(300)))
    committed.session.commit()
    assert enqueue_all(committed.session, committed) == 300
    engine = db.engine
    claimed: list[list[Job]] = [[] for _ in range(4)]
    together = threading.Barrier(4)

    def work(n: int) -> None:
        with Session(engine) as session:
            for _ in range(12):
                together.wait(30)
                claimed[n] += claim(session, size=7)

    in_threads(4, work)

    jobs = [job for part in claimed for job in part]
    assert len(jobs) == len({job.company_id for job in jobs}) == 300
    assert len({job.idempotency_key for job in jobs}) == 300
    assert all(claimed), "all of them found work"


def test_a_lease_that_ran_out_is_claimed_with_the_key_it_had(world: World, job: Job) -> None:
    (again,) = claim(world.session)

    assert again == job


def test_a_lease_that_stands_is_not_claimed(world: World, job: Job) -> None:
    (again,) = claim(world.session, lease=MINUTE)

    assert again == job
    assert claim(world.session) == []


def test_a_worker_that_lost_its_lease_changes_nothing(world: World, job: Job) -> None:
    (again,) = claim(world.session)
    assert settle(world.session, [charged(again)]) == 1
    before = books(world.session)

    assert settle(world.session, [declined(job)]) == 0
    assert settle(world.session, [charged(job)]) == 0

    assert books(world.session) == before, "no row, no callback"


def test_a_worker_whose_job_was_declined_meanwhile_changes_nothing(world: World, job: Job) -> None:
    (again,) = claim(world.session)
    settle(world.session, [declined(again)])
    before = books(world.session)
    real = read(world.session).real

    assert settle(world.session, [charged(job)]) == 0
    leases.rest(world.session, [(job, MINUTE)], attempted_at=AT, real=real)
    leases.release(world.session, [job], real=real)
    leases.renew(world.session, [job], leased_until=real + MINUTE)

    assert books(world.session) == before
    assert outages(world.session) == 0


def test_a_worker_whose_job_is_at_its_next_attempt_changes_nothing(world: World, job: Job) -> None:
    settle(world.session, [declined(job)])
    (second,) = claim(world.session, at=AT + timedelta(days=1))
    before = books(world.session)

    assert second.idempotency_key != job.idempotency_key
    assert settle(world.session, [charged(job)]) == 0
    leases.release(world.session, [job], real=read(world.session).real)

    assert books(world.session) == before


def test_two_that_settle_the_same_attempt_at_once_write_it_once(committed: World) -> None:
    committed.session.execute(text(crowd(20)))
    committed.session.commit()
    enqueue_all(committed.session, committed)
    jobs = claim(committed.session)
    engine = db.engine
    written = [0] * 4

    def work(n: int) -> None:
        with Session(engine) as session:
            written[n] = settle(session, [charged(job) for job in jobs])

    in_threads(4, work)

    assert sum(written) == 20
    assert committed.session.execute(text("SELECT count(*) FROM company_payments")).scalar_one() == 20
    assert committed.session.execute(text("SELECT count(*) FROM callbacks")).scalar_one() == 40


def test_a_released_job_is_claimable_at_once_and_keeps_its_key(world: World, job: Job) -> None:
    claim(world.session)
    leases.release(world.session, [job], real=read(world.session).real)

    assert claim(world.session) == [job]


def test_a_job_that_rests_keeps_its_key_and_counts_its_outages(world: World, job: Job) -> None:
    real = read(world.session).real
    leases.rest(world.session, [(job, MINUTE)], attempted_at=AT, real=real)

    assert claim(world.session) == []
    (resting,) = world.jobs()
    assert str(resting.idempotency_key) == job.idempotency_key
    assert (resting.leased_until, resting.outages, resting.attempt) == (real + MINUTE, 1, 1)
    assert outages(world.session) == 1
    assert resting.next_attempt_at == instant("2026-02-10", hour=0), "business time is left alone"


def test_a_renewed_lease_lasts_longer(world: World, job: Job) -> None:
    real = read(world.session).real
    leases.renew(world.session, [job], leased_until=real + MINUTE)

    assert claim(world.session) == []


def test_jobs_are_claimed_oldest_first(world: World) -> None:
    world.session.execute(text(crowd(2, start=date(2026, 1, 12), end=date(2026, 2, 12))))
    world.session.execute(text(crowd(2, start=date(2026, 1, 10), end=date(2026, 2, 10))))
    at = instant("2026-03-01")
    enqueue_all(world.session, world, at=at)

    first, second = (claim(world.session, size=2, at=at) for _ in range(2))

    assert {job.period_end for job in first} == {date(2026, 2, 10)}
    assert {job.period_end for job in second} == {date(2026, 2, 12)}


def test_each_attempt_gets_a_fresh_random_key(world: World) -> None:
    world.session.execute(text(crowd(3)))
    enqueue_all(world.session, world)
    first = {job.company_id: job.idempotency_key for job in claim(world.session)}

    world.session.execute(text("UPDATE payment_jobs SET idempotency_key = NULL"))
    world.end_leases()
    second = {job.company_id: job.idempotency_key for job in claim(world.session)}

    assert len({*first.values(), *second.values()}) == 6


def test_periods_are_queued_in_bounded_batches_each_once(world: World) -> None:
    world.session.execute(text(crowd(4)))
    world.session.execute(text(crowd(3, start=date(2026, 1, 1), end=date(2026, 2, 1))))
    moment, zone = read(world.session), world.vade.zone
    sizes, after = [], FIRST

    while True:
        number, last = payment_queue.enqueue(world.session, moment, zone=zone, size=3, after=after)
        sizes.append(number)
        if last is None:
            break
        after = last

    assert sizes == [3, 3, 1]
    assert len(world.jobs()) == 7
    assert {job.next_attempt_at for job in world.jobs()} == {
        instant("2026-02-01", hour=0),
        instant("2026-02-10", hour=0),
    }


def test_queueing_again_adds_nothing(world: World) -> None:
    world.session.execute(text(crowd(5)))

    assert enqueue_all(world.session, world) == 5
    before = books(world.session)

    assert enqueue_all(world.session, world) == 0
    assert books(world.session) == before


def test_a_passive_package_is_not_queued(world: World) -> None:
    world.session.execute(text(crowd(2)))
    world.session.execute(text("UPDATE company_packages SET status = 0"))

    assert enqueue_all(world.session, world) == 0


def test_two_that_queue_at_once_add_each_period_once(committed: World) -> None:
    committed.session.execute(text(crowd(500)))
    committed.session.commit()
    engine, zone = db.engine, committed.vade.zone
    found = [0] * 4

    def work(n: int) -> None:
        after = FIRST
        while True:
            with Session(engine) as session:
                number, last = payment_queue.enqueue(session, read(session), zone=zone, size=23, after=after)
                session.commit()
            found[n] += number
            if last is None:
                return
            after = last

    in_threads(4, work)

    assert sum(found) == len(committed.jobs()) == 500


def test_the_share_of_a_period_is_the_same_in_sql_as_in_python(world: World) -> None:
    prices = [0, 1, 2, 3, 99, 31_000, 129_900, MAXIMUM_PRICE_MINOR - 1, MAXIMUM_PRICE_MINOR]
    lengths = [(days, full) for full in (28, 29, 30, 31, 365, 366) for days in range(1, full + 1)]
    rows = [(price, days, full) for price, (days, full) in product(prices, lengths)]
    query = text(f"""
        SELECT {PRORATED_SQL} FROM (
            SELECT price_minor, date '2026-01-10' AS start_date, date '2026-01-10' + days AS end_date,
                full_days::smallint
            FROM unnest(CAST(:prices AS bigint[]), CAST(:days AS integer[]), CAST(:fulls AS integer[]))
                WITH ORDINALITY AS t(price_minor, days, full_days, n) ORDER BY n
        ) AS cp""")
    columns = dict(zip(("prices", "days", "fulls"), map(list, zip(*rows, strict=True)), strict=True))

    amounts = world.session.execute(query, columns).scalars().all()

    assert amounts == [prorated(price, days=days, full_days=full) for price, days, full in rows]


def test_a_settlement_is_all_or_nothing(world: World) -> None:
    world.session.execute(text(crowd(4)))
    enqueue_all(world.session, world)
    jobs = claim(world.session)
    refuse_charge(world, jobs[2].company_id)
    before = books(world.session)

    with pytest.raises(IntegrityError):
        settle(world.session, [charged(job) for job in jobs])
    world.session.rollback()

    assert books(world.session) == before


def refuse_charge(world: World, company_id: int) -> None:
    """Let the database refuse to charge a company for its period: a day of it was charged already."""
    world.session.execute(
        text("""
            INSERT INTO company_payments (company_id, id, company_package_id, attempt, status, amount_minor,
                currency, period_start, period_end, reference, attempted_at)
            SELECT company_id, gen_random_uuid(), id, 9, 1, 1, 'TRY', end_date - 1, end_date + 5, 'by hand',
                now()
            FROM company_packages WHERE company_id = :id"""),
        {"id": company_id},
    )
    world.session.commit()


@pytest.mark.parametrize("batch_size", [2, 100])
def test_a_settlement_that_is_refused_is_put_aside_alone(
    committed: World, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    companies = [committed.customer(registered_at=instant("2026-01-10")) for _ in range(9)]
    poison = {companies[3].id, companies[8].id}
    for company_id in poison:
        refuse_charge(committed, company_id)
    gateway = LedgerGateway()
    before = read(committed.session).real

    result = committed.collect(gateway, at=AT, batch_size=batch_size)

    assert (result.charged, result.failed) == (7, 2), "the others go on"
    jobs = committed.jobs()
    keys = {request.company_id: request.idempotency_key for request in gateway.requests}
    assert {job.company_id: str(job.idempotency_key) for job in jobs} == {id_: keys[id_] for id_ in poison}
    assert all(before + 9 * MINUTE < job.leased_until < before + 12 * MINUTE for job in jobs)
    assert {job.attempt for job in jobs} == {1}
    refusals = [record for record in caplog.records if "settlement is refused" in record.getMessage()]
    assert {record.company_id for record in refusals} == poison  # type: ignore[attr-defined]
    assert "company_payments_no_day_charged_twice_excl" in refusals[0].getMessage()


def test_what_was_put_aside_is_asked_again_later_with_its_key(committed: World) -> None:
    company = committed.customer(registered_at=instant("2026-01-10"))
    refuse_charge(committed, company.id)
    gateway = LedgerGateway()

    committed.collect(gateway, at=AT)
    at_once = committed.collect(gateway, at=AT)
    committed.end_leases()
    later = committed.collect(gateway, at=AT)

    assert (at_once.failed, later.failed) == (0, 1)
    assert len(gateway.requests) == 2
    assert len(gateway.charged) == 1, "the same key takes money once"


def test_since_when_the_oldest_due_job_is_due(world: World) -> None:
    assert payment_queue.oldest_due(world.session, AT) is None
    world.session.execute(text(crowd(2, start=date(2026, 1, 3), end=date(2026, 2, 3))))
    world.session.execute(text(crowd(2)))
    enqueue_all(world.session, world)

    assert payment_queue.oldest_due(world.session, AT) == instant("2026-02-03", hour=0)
    assert payment_queue.oldest_due(world.session, instant("2026-02-01")) is None


def test_the_oldest_jobs_age_is_told_in_business_time(world: World) -> None:
    world.customer(registered_at=instant("2026-01-10"))

    result = world.collect(LedgerGateway(GatewayUnavailable), at=instant("2026-02-12", hour=6))

    assert result.oldest_job_age_s == timedelta(days=2, hours=6).total_seconds()


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("enqueue", psycopg.errors.LockNotAvailable),
        ("claim", psycopg.errors.SerializationFailure),
        ("settle", psycopg.errors.DeadlockDetected),
        ("settle", psycopg.errors.QueryCanceled),
        ("rest", psycopg.errors.DeadlockDetected),
        ("release", psycopg.errors.DeadlockDetected),
        ("oldest_due", psycopg.errors.SerializationFailure),
    ],
)
def test_a_statement_that_loses_a_race_is_repeated(
    world: World, monkeypatch: pytest.MonkeyPatch, statement: str, error: type[psycopg.Error]
) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))
    world.customer(registered_at=instant("2026-01-10"))
    module = leases if statement in {"rest", "release"} else payment_queue
    real, calls = getattr(module, statement), []

    def unlucky(*args: Any, **kwargs: Any) -> Any:
        calls.append(statement)
        if len(calls) == 1:
            raise OperationalError("", None, error("bad luck"))
        return real(*args, **kwargs)

    monkeypatch.setattr(module, statement, unlucky)

    result = world.collect(LedgerGateway(GatewayUnavailable), at=AT)

    assert (result.queued, result.charged, result.failed) == (2, 1, 1)
    assert len(calls) >= 2
    assert len(world.payments(company)) <= 1


def test_a_statement_that_always_loses_ends_the_pass(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def unlucky(*_: object, **__: object) -> None:
        raise OperationalError("", None, psycopg.errors.DeadlockDetected("bad luck"))

    monkeypatch.setattr(payment_queue, "claim", unlucky)

    with pytest.raises(OperationalError):
        world.collect(LedgerGateway(), at=AT)


def test_two_settlements_that_wait_for_each_other_are_both_written(committed: World) -> None:
    """A real deadlock: each session holds a company that the other's settlement must make passive."""
    committed.session.execute(text(crowd(2)))
    committed.session.commit()
    gateway = LedgerGateway(default=False)
    for days in range(2):
        committed.collect(gateway, at=AT + timedelta(days=days))
    engine: Engine = db.engine
    first, second = sorted(job.company_id for job in committed.jobs())
    collector = committed.collector(gateway, at=AT + timedelta(days=2))
    locked, settling = threading.Event(), threading.Event()

    def hold(_: int) -> None:
        with Session(engine) as session:
            session.execute(text("SET deadlock_timeout = '1min'"))
            session.execute(text("UPDATE companies SET name = 'X' WHERE id = :id"), {"id": second})
            locked.set()
            settling.wait(30)
            # The settlement holds the first company, or waits for the second: take the other one too.
            session.execute(text("UPDATE companies SET name = 'X' WHERE id = :id"), {"id": first})
            session.commit()
            session.execute(text("RESET deadlock_timeout"))
            session.commit()

    real, tries = payment_queue.settle, []

    def settle_slowly(session: Session, *args: Any, **kwargs: Any) -> Any:
        tries.append(True)
        session.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
        session.execute(text("SELECT 1 FROM companies WHERE id = :id FOR UPDATE"), {"id": first})
        settling.set()
        return real(session, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payment_queue, "settle", settle_slowly)
        holder = threading.Thread(target=hold, args=[0])
        holder.start()
        locked.wait(30)
        result = collector.run_pass()
        holder.join(30)

    collector.pool.close()
    assert (result.declined, result.passive, result.failed) == (2, 2, 0)
    assert len(tries) == 2, "the first one was the deadlock's victim"
    assert not holder.is_alive()


def test_a_connection_that_breaks_before_the_commit_costs_nothing(
    committed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    company = committed.customer(registered_at=instant("2026-01-10"))
    real = payment_queue.settle
    broken: list[bool] = []

    def settle_and_break(session: Session, *args: Any, **kwargs: Any) -> Any:
        settled = real(session, *args, **kwargs)
        if not broken:
            broken.append(True)
            pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
            with db.engine.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        return settled

    monkeypatch.setattr(payment_queue, "settle", settle_and_break)

    result = committed.collect(LedgerGateway(), at=AT)

    assert result.charged == 1
    assert len(committed.payments(company)) == 1
    assert len(committed.session.execute(text("SELECT FROM callbacks")).all()) == 3


def test_a_rolled_period_is_never_queued_twice_beside_a_settlement(committed: World) -> None:
    committed.session.execute(text(crowd(60)))
    committed.session.commit()
    at = instant("2026-08-20")
    collectors = [committed.collector(LedgerGateway(), at=at, batch_size=7) for _ in range(3)]
    results = [None] * 3

    def work(n: int) -> None:
        while collectors[n].run_pass().attempts:
            pass

    in_threads(len(results), work)

    for collector in collectors:
        collector.pool.close()
    query = "SELECT array_agg(period_start ORDER BY period_start) FROM company_payments GROUP BY company_id"
    collected = committed.session.scalars(text(query)).all()
    starts = [date(2026, month, 10) for month in range(1, 8)]
    assert collected == [starts] * 60
    assert committed.jobs() == []
    ends = committed.session.scalars(text("SELECT DISTINCT end_date FROM company_packages")).all()
    assert ends == [date(2026, 9, 10)]


def test_the_request_says_what_is_paid_for(world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"), price_minor=129_900)
    gateway = LedgerGateway()

    world.collect(gateway, at=AT)

    (request,) = gateway.requests
    (payment,) = world.payments(company)
    assert request == ChargeRequest(
        idempotency_key=str(payment.id),
        company_id=company.id,
        amount_minor=129_900,
        currency="TRY",
        description=f"Package {payment.company_package_id}, 2026-01-10 to 2026-02-10",
    )
    assert world.session.get(CompanyPackage, (company.id, payment.company_package_id)) is not None


def test_a_settlement_that_a_trigger_refuses_stands_alone_too(committed: World) -> None:
    companies = [committed.customer(registered_at=instant("2026-01-10")) for _ in range(5)]
    committed.session.execute(
        text(f"""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.company_id = {companies[2].id} THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW;
        END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON company_payments FOR EACH ROW EXECUTE FUNCTION refuse();
        """)
    )
    committed.session.commit()

    result = committed.collect(LedgerGateway(), at=instant("2026-02-10"))

    assert (result.charged, result.failed) == (4, 1)
    assert [job.company_id for job in committed.jobs()] == [companies[2].id]


def test_a_session_that_froze_in_a_transaction_gives_its_locks_back(committed: World) -> None:
    timeout = committed.session.scalar(text("SHOW idle_in_transaction_session_timeout"))

    assert timeout == "1min"
