"""The pool around the gateway: whatever one call does, the others go on and nobody waits for ever."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from billing.charging import Answer, ChargePool, GatewayHangsError
from billing.gateways import ChargeRequest, ChargeResult, GatewayUnavailable
from tests.processes import Database, until
from tests.world import LedgerGateway, World, instant

TIMEOUT_S = 0.15


class Gateway:
    """A gateway that is a function."""

    def __init__(self, charge: Callable[[ChargeRequest], Any]) -> None:
        self._charge = charge

    def charge(self, request: ChargeRequest) -> ChargeResult:
        answer: ChargeResult = self._charge(request)
        return answer


class ManyGateway(Gateway):
    """A gateway that takes a whole batch at once."""

    def __init__(self, charge_many: Callable[[list[ChargeRequest]], Any]) -> None:
        super().__init__(lambda _: pytest.fail("charge_many is offered, and should be used"))
        self.charge_many = charge_many


class Door:
    """Where calls hang until it is opened; it is opened at the end of each test."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self._opened = threading.Event()

    def pass_through(self, request: ChargeRequest) -> ChargeResult:
        self.inside.append(request.idempotency_key)
        self._opened.wait()
        return charged(request)

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.open()


@pytest.fixture
def make_pool() -> Iterator[Callable[..., ChargePool]]:
    pools: list[ChargePool] = []

    def make(gateway: Gateway, *, threads: int = 4, timeout_s: float = TIMEOUT_S) -> ChargePool:
        pools.append(ChargePool(gateway, threads=threads, timeout_s=timeout_s))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


MakePool = Callable[..., ChargePool]


def request(key: str) -> ChargeRequest:
    return ChargeRequest(key, company_id=1, amount_minor=100, currency="TRY", description="")


def requests(number: int) -> list[ChargeRequest]:
    return [request(f"{n:03}") for n in range(number)]


def charged(request: ChargeRequest) -> ChargeResult:
    return ChargeResult(succeeded=True, reference=f"ref-{request.idempotency_key}")


def outages(answers: dict[str, Answer]) -> list[str]:
    return sorted(key for key, answer in answers.items() if isinstance(answer, GatewayUnavailable))


def serving() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "gateway"}


def test_each_request_gets_its_own_answer(make_pool: MakePool) -> None:
    answers = make_pool(Gateway(charged)).charge(requests(50))

    assert answers == {request.idempotency_key: charged(request) for request in requests(50)}


def test_no_more_calls_are_under_way_than_there_are_threads(make_pool: MakePool) -> None:
    lock, under_way, most = threading.Lock(), 0, 0

    def charge(request: ChargeRequest) -> ChargeResult:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.002)
        with lock:
            under_way -= 1
        return charged(request)

    pool = make_pool(Gateway(charge), threads=3)
    before = serving()

    for _ in range(3):
        pool.charge(requests(20))

    assert most == 3
    assert len(serving() - before) == 3, "the threads are kept from batch to batch"


def test_no_more_threads_are_made_than_there_are_requests(make_pool: MakePool) -> None:
    before = serving()

    make_pool(Gateway(charged), threads=64).charge(requests(2))

    assert len(serving() - before) == 2


def test_threads_end_when_the_pool_is_closed() -> None:
    before = serving()
    pool = ChargePool(Gateway(charged), threads=4, timeout_s=TIMEOUT_S)
    pool.charge(requests(10))

    pool.close()

    until(lambda: not serving() - before)


def test_a_call_that_hangs_costs_its_own_request_the_timeout_and_no_other(
    make_pool: MakePool, door: Door
) -> None:
    def charge(request: ChargeRequest) -> ChargeResult:
        return door.pass_through(request) if request.idempotency_key == "003" else charged(request)

    began_s = time.monotonic()
    answers = make_pool(Gateway(charge)).charge(requests(40))

    assert outages(answers) == ["003"]
    assert len(answers) == 40
    assert TIMEOUT_S <= time.monotonic() - began_s < TIMEOUT_S + 1


def test_threads_that_hang_are_replaced(make_pool: MakePool, door: Door) -> None:
    def charge(request: ChargeRequest) -> ChargeResult:
        return door.pass_through(request) if request.idempotency_key < "002" else charged(request)

    pool = make_pool(Gateway(charge), threads=2)

    answers = pool.charge(requests(20))

    assert outages(answers) == ["000", "001"], "the two that took all threads"
    assert pool.charge([request("x")]) == {"x": charged(request("x"))}
    pool.check()


def test_an_answer_that_comes_after_it_was_given_up_is_ignored(make_pool: MakePool, door: Door) -> None:
    pool = make_pool(Gateway(door.pass_through), threads=1)
    first = pool.charge([request("late")])

    door.open()
    second = pool.charge([request("next")])

    assert outages(first) == ["late"]
    assert second == {"next": charged(request("next"))}
    assert outages(first) == ["late"], "what was given up stays given up"


def test_a_thread_that_comes_back_late_ends(make_pool: MakePool, door: Door) -> None:
    before = serving()
    pool = make_pool(Gateway(door.pass_through), threads=1)
    pool.charge([request("late")])

    door.open()
    pool.charge([request("next")])

    until(lambda: len(serving() - before) == 1)
    pool.check()


def test_whether_an_answer_came_in_time_is_decided_once(make_pool: MakePool) -> None:
    def charge(request: ChargeRequest) -> ChargeResult:
        time.sleep(0.05)
        return charged(request)

    # The timeout is as long as the call, so that it is anyone's race.
    pool = make_pool(Gateway(charge), threads=8, timeout_s=0.05)

    for _ in range(5):
        answers = pool.charge(requests(8))
        assert sorted(answers) == [f"{n:03}" for n in range(8)]
        assert all(isinstance(answer, ChargeResult | GatewayUnavailable) for answer in answers.values())
    # A thread that was counted as given up and as served would be missing, or there twice.
    time_out = make_pool(Gateway(charged), threads=8)
    assert outages(time_out.charge(requests(8))) == []


def test_more_threads_that_hang_than_the_pool_has_end_the_process(make_pool: MakePool, door: Door) -> None:
    pool = make_pool(Gateway(door.pass_through), threads=2, timeout_s=0.1)

    pool.charge(requests(2))
    pool.check()
    answers = pool.charge(requests(40))

    with pytest.raises(GatewayHangsError, match="threads hang"):
        pool.check()
    assert len(outages(answers)) == len(answers) == 2, "no other call is begun: its thread would hang too"
    assert len(door.inside) == 4


def test_threads_that_came_back_do_not_count_as_hanging(make_pool: MakePool, door: Door) -> None:
    pool = make_pool(Gateway(door.pass_through), threads=1, timeout_s=0.05)
    pool.charge(requests(2))

    door.open()

    def forgiven() -> bool:
        try:
            pool.check()
        except GatewayHangsError:
            return False
        return True

    until(forgiven)


def test_after_a_stop_nothing_new_is_begun(make_pool: MakePool) -> None:
    stop, begun = threading.Event(), []

    def charge(request: ChargeRequest) -> ChargeResult:
        begun.append(request.idempotency_key)
        if len(begun) == 4:
            stop.set()
        return charged(request)

    answers = make_pool(Gateway(charge), threads=1).charge(requests(100), stop=stop, stop_timeout_s=5)

    assert begun == ["000", "001", "002", "003"]
    assert sorted(answers) == begun, "what was not sent has no answer"


def test_a_pool_that_is_stopped_beforehand_begins_nothing(make_pool: MakePool) -> None:
    stop = threading.Event()
    stop.set()
    gateway = Gateway(lambda _: pytest.fail("it was not to be called"))

    assert make_pool(gateway).charge(requests(10), stop=stop) == {}


def test_after_a_stop_calls_under_way_are_waited_for(make_pool: MakePool) -> None:
    stop = threading.Event()

    def charge(request: ChargeRequest) -> ChargeResult:
        stop.set()
        time.sleep(0.2)
        return charged(request)

    answers = make_pool(Gateway(charge), threads=2, timeout_s=10).charge(
        requests(10), stop=stop, stop_timeout_s=5
    )

    assert 1 <= len(answers) <= 2
    assert outages(answers) == []


def test_after_a_stop_calls_that_hang_are_waited_for_so_long_and_no_longer(
    make_pool: MakePool, door: Door
) -> None:
    stop = threading.Event()

    def charge(request: ChargeRequest) -> ChargeResult:
        stop.set()
        return door.pass_through(request)

    began_s = time.monotonic()
    answers = make_pool(Gateway(charge), threads=2, timeout_s=60).charge(
        requests(10), stop=stop, stop_timeout_s=0.2
    )

    assert 0.2 <= time.monotonic() - began_s < 5
    assert outages(answers) == sorted(door.inside)


def test_an_error_in_between_begins_nothing_more(make_pool: MakePool, door: Door) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    pool = make_pool(Gateway(door.pass_through), threads=1, timeout_s=60)

    with pytest.raises(RuntimeError, match="no"):
        pool.charge(requests(10), every=fail)

    door.open()
    pool.charge([request("next")])
    assert door.inside in (["000", "next"], ["next"]), "the others were withdrawn"


@pytest.mark.parametrize(
    "misbehave",
    [SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, RecursionError, ZeroDivisionError],
)
def test_whatever_a_gateway_raises_is_an_outage_of_that_attempt(
    make_pool: MakePool, misbehave: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def charge(request: ChargeRequest) -> ChargeResult:
        if request.idempotency_key == "001":
            raise misbehave
        return charged(request)

    pool = make_pool(Gateway(charge), threads=1)

    assert outages(pool.charge(requests(3))) == ["001"]
    assert outages(pool.charge(requests(1))) == [], "the thread serves on"
    assert ["001"] in [getattr(record, "idempotency_keys", None) for record in caplog.records]


def test_a_gateway_that_is_unavailable_says_why(make_pool: MakePool) -> None:
    def charge(request: ChargeRequest) -> ChargeResult:
        raise GatewayUnavailable("down for maintenance")

    (answer,) = make_pool(Gateway(charge)).charge(requests(1)).values()

    assert str(answer) == "down for maintenance"


def test_a_gateway_that_offers_charge_many_gets_the_whole_batch(make_pool: MakePool) -> None:
    batches: list[list[ChargeRequest]] = []

    def charge_many(batch: list[ChargeRequest]) -> list[ChargeResult]:
        batches.append(batch)
        return [charged(request) for request in batch]

    answers = make_pool(ManyGateway(charge_many)).charge(requests(30))

    assert batches == [requests(30)]
    assert outages(answers) == []
    assert answers["017"] == charged(request("017"))


def test_one_call_of_charge_many_carries_a_hundred_requests_at_most(make_pool: MakePool) -> None:
    sizes: list[int] = []

    def charge_many(batch: list[ChargeRequest]) -> list[ChargeResult]:
        sizes.append(len(batch))
        return [charged(request) for request in batch]

    answers = make_pool(ManyGateway(charge_many)).charge(requests(250))

    assert sorted(sizes) == [50, 100, 100]
    assert answers == {request.idempotency_key: charged(request) for request in requests(250)}


def test_a_gateway_that_offers_charge_many_is_not_called_for_nothing(make_pool: MakePool) -> None:
    assert make_pool(ManyGateway(lambda _: pytest.fail("called"))).charge([]) == {}


def test_outages_among_the_answers_of_charge_many_are_those_requests_own(make_pool: MakePool) -> None:
    def charge_many(batch: Sequence[ChargeRequest]) -> list[ChargeResult | GatewayUnavailable]:
        return [GatewayUnavailable("lost") if n % 3 == 0 else charged(r) for n, r in enumerate(batch)]

    answers = make_pool(ManyGateway(charge_many)).charge(requests(7))

    assert outages(answers) == ["000", "003", "006"]
    assert len(answers) == 7


def test_nonsense_among_the_answers_of_charge_many_is_an_outage_of_that_request(
    make_pool: MakePool,
) -> None:
    def charge_many(batch: Sequence[ChargeRequest]) -> list[object]:
        return [None, ChargeResult(succeeded=True, reference=""), *map(charged, batch[2:])]

    assert outages(make_pool(ManyGateway(charge_many)).charge(requests(4))) == ["000", "001"]


def down(_: object) -> Any:
    raise GatewayUnavailable("down")


@pytest.mark.parametrize(
    "answer",
    [
        lambda batch: [charged(r) for r in batch[:-1]],
        lambda batch: [charged(r) for r in (*batch, batch[0])],
        lambda _: [],
        lambda _: None,
        lambda batch: {r.idempotency_key: charged(r) for r in batch},
        lambda batch: (charged(r) for r in batch),
        lambda _: 1 / 0,
        down,
    ],
    ids=["too few", "too many", "empty", "none", "dict", "generator", "raises", "down"],
)
def test_an_answer_of_charge_many_that_fits_no_request_is_an_outage_of_all(
    make_pool: MakePool, answer: Callable[[list[ChargeRequest]], Any]
) -> None:
    pool = make_pool(ManyGateway(answer))

    assert outages(pool.charge(requests(3))) == ["000", "001", "002"]


def test_a_charge_many_that_hangs_is_given_up_and_replaced(make_pool: MakePool, door: Door) -> None:
    calls = 0

    def charge_many(batch: list[ChargeRequest]) -> list[ChargeResult]:
        nonlocal calls
        calls += 1
        if calls == 1:
            door.pass_through(batch[0])
        return [charged(r) for r in batch]

    pool = make_pool(ManyGateway(charge_many))

    assert len(outages(pool.charge(requests(5)))) == 5
    assert outages(pool.charge(requests(5))) == []


def test_no_transaction_is_open_while_the_gateway_is_called(committed: World, database_url: str) -> None:
    committed.customer(registered_at=instant("2026-01-10"))
    committed.session.close()
    database = Database(database_url)
    seen: list[tuple[Any, ...]] = []

    def look(request: ChargeRequest) -> ChargeResult:
        for _ in range(20):
            seen.extend(
                database.all(
                    "SELECT state, xact_start IS NOT NULL, query FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    " AND backend_type = 'client backend'"
                )
            )
        return charged(request)

    result = committed.collect(Gateway(look), at=instant("2026-02-10"))

    assert result.charged == 1
    assert seen, "the worker keeps its connection"
    assert {(state, in_transaction) for state, in_transaction, _ in seen} == {("idle", False)}, seen


def test_leases_are_renewed_while_a_batch_takes_longer_than_they_last(committed: World) -> None:
    for _ in range(4):
        committed.customer(registered_at=instant("2026-01-10"))
    at = instant("2026-02-10")
    lease = timedelta(milliseconds=200)
    other = committed.collector(LedgerGateway(), at=at, lease=lease)
    found: list[int] = []

    def slow(request: ChargeRequest) -> ChargeResult:
        time.sleep(0.7)
        with one_at_a_time:
            found.append(other.run_pass().attempts)
        return charged(request)

    one_at_a_time = threading.Lock()
    result = committed.collect(Gateway(slow), at=at, lease=lease)
    other.pool.close()

    assert result.charged == 4
    assert found == [0] * 4, "another collector finds nothing to claim"


def test_a_lease_that_cannot_be_renewed_costs_nothing(
    committed: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    company = committed.customer(registered_at=instant("2026-01-10"))

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("the database is away")

    monkeypatch.setattr("billing.leases.renew", refuse)

    def slow(request: ChargeRequest) -> ChargeResult:
        time.sleep(0.2)
        return charged(request)

    result = committed.collect(Gateway(slow), at=instant("2026-02-10"), lease=timedelta(milliseconds=100))

    assert result.charged == 1
    assert len(committed.payments(company)) == 1
    assert "leases could not be renewed: the database is away" in caplog.messages


def test_an_outage_is_logged_with_its_job(world: World, caplog: pytest.LogCaptureFixture) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))

    world.collect(LedgerGateway(lambda _: 1 / 0), at=instant("2026-02-10"))

    (job,) = world.jobs()
    (record,) = [record for record in caplog.records if record.name == "billing.settlements"]
    assert record.getMessage() == "the gateway gave no answer: unexpected ZeroDivisionError"
    assert (record.company_id, record.idempotency_key) == (company.id, str(job.idempotency_key))  # type: ignore[attr-defined]


def test_a_gateway_that_hangs_for_ever_ends_the_pass_and_keeps_the_keys(world: World, door: Door) -> None:
    for _ in range(6):
        world.customer(registered_at=instant("2026-01-10"))
    collector = world.collector(
        Gateway(door.pass_through),
        at=instant("2026-02-10"),
        pool=ChargePool(Gateway(door.pass_through), threads=1, timeout_s=0.05),
    )

    with pytest.raises(GatewayHangsError):
        collector.run_pass()

    jobs = world.jobs()
    assert len(jobs) == 6
    assert {str(job.idempotency_key) for job in jobs} >= set(door.inside)
    assert sum(job.outages for job in jobs) == len(door.inside) == 2
    now = world.session.execute(text("SELECT clock_timestamp()")).scalar_one()
    assert sum(job.leased_until <= now for job in jobs) == 4, "what was not sent is released"
