"""How one pass goes through the queue: by its place, and with one batch settled while the next is charged."""

import threading
from datetime import date, timedelta

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from billing import payment_queue
from billing.arrays import texts
from billing.clock import Clock
from billing.collection import PassResult
from billing.gateways import ChargeRequest, ChargeResult
from billing.payment_queue import FIRST_DUE
from models import db
from tests.crowds import crowd
from tests.world import LedgerGateway, World, instant

AT = instant("2026-02-10")


def fill(world: World, number: int) -> None:
    world.session.execute(text(crowd(number)))
    world.session.commit()


def enqueue(session: Session, world: World) -> None:
    payment_queue.enqueue(session, Clock(AT).read(session), zone=world.vade.zone, size=1000)
    session.commit()


def answer(request: ChargeRequest) -> ChargeResult:
    return ChargeResult(succeeded=True, reference=request.idempotency_key)


def test_a_claim_goes_on_where_the_one_before_stopped(world: World) -> None:
    fill(world, 9)
    enqueue(world.session, world)
    moment = Clock(AT).read(world.session)
    after = FIRST_DUE
    claimed = []

    for _ in range(5):
        # Leases that are over at once: without its place each claim would bring the first jobs again.
        jobs, after = payment_queue.claim(
            world.session, moment, size=4, lease=timedelta(), free_since=moment.real, after=after
        )
        claimed.append(sorted(job.company_id for job in jobs))

    ids = sorted({id_ for ids in claimed for id_ in ids})
    assert claimed[:3] == [ids[:4], ids[3:7], ids[6:]], "from its place on, which is its own last job"
    assert len(ids) == 9


def test_what_is_queued_before_the_place_of_a_pass_is_collected_in_it(committed: World) -> None:
    fill(committed, 6)
    engine: Engine = db.engine
    asked = threading.Lock()

    def charge(request: ChargeRequest) -> ChargeResult:
        if asked.acquire(blocking=False):
            with Session(engine) as session:
                session.execute(text(crowd(1, start=date(2026, 1, 3), end=date(2026, 2, 3))))
                enqueue(session, committed)
        return answer(request)

    result = committed.collect(LedgerGateway(default=charge), at=AT, batch_size=3)

    assert (result.charged, result.queued, committed.jobs()) == (7, 6, [])


def test_a_batch_is_settled_while_the_next_one_is_charged(committed: World) -> None:
    fill(committed, 4)
    blocker = db.engine.connect()
    lock = threading.Lock()
    asked: list[str] = []

    def charge(request: ChargeRequest) -> ChargeResult:
        with lock:
            asked.append(request.idempotency_key)
            if len(asked) == 1:
                blocker.execute(text("LOCK TABLE company_payments IN EXCLUSIVE MODE"))
            elif len(asked) == 3:
                # Were the first batch to be settled before, nobody would come here.
                blocker.rollback()
        return answer(request)

    result = committed.collect(LedgerGateway(default=charge), at=AT, batch_size=2)
    blocker.close()

    assert (result.charged, len(asked)) == (4, 4)


def test_what_was_charged_is_settled_and_counted_though_the_next_claim_fails(
    committed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(committed, 4)
    claim = payment_queue.claim
    claims = iter([claim])

    def claim_once(*args: object, **options: object) -> object:
        try:
            return next(claims)(*args, **options)  # type: ignore[arg-type]
        except StopIteration:
            raise RuntimeError("no second claim") from None

    monkeypatch.setattr(payment_queue, "claim", claim_once)
    result = PassResult()
    collector = committed.collector(LedgerGateway(default=answer), at=AT, batch_size=2)

    with pytest.raises(RuntimeError, match="no second claim"):
        collector.run_pass(result)
    collector.pool.close()

    assert result.charged == 2
    assert committed.session.execute(text("SELECT count(*) FROM company_payments")).scalar_one() == 2


def test_a_settlement_that_fails_ends_the_pass_with_its_error(
    committed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(committed, 4)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no settlement")

    monkeypatch.setattr(payment_queue, "settle", fail)

    with pytest.raises(RuntimeError, match="no settlement"):
        committed.collect(LedgerGateway(default=answer), at=AT, batch_size=2)

    assert {job.attempt for job in committed.jobs()} == {1}
    assert len(committed.jobs()) == 4, "all are taken up again under their keys when their leases run out"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("settle")]


def test_progress_is_told_after_each_batch(committed: World) -> None:
    fill(committed, 5)
    told = []
    collector = committed.collector(LedgerGateway(default=answer), at=AT, batch_size=2)

    collector.run_pass(on_batch=lambda result: told.append((result.queued, result.charged)))
    collector.pool.close()

    assert told[-1] == (5, 5)
    assert [charged for _, charged in told if charged] == [2, 4, 5]


@pytest.mark.parametrize(
    "value", ['"', "\\", '\\"', "{a,b}", "NULL", "null", "", " ", "a,b", "ş\t\n", None, "'; DROP TABLE x; --"]
)
def test_a_text_arrives_in_an_array_as_it_is(world: World, value: str | None) -> None:
    query = text("SELECT CAST(:values AS text[])")

    arrived = world.session.execute(query, {"values": texts(["before", value, "after"])}).scalar_one()

    assert arrived == ["before", value, "after"]
