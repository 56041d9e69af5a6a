"""Lanes: which claimed message is sent next, so that no endpoint takes the threads of the others."""

import random
import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable
from operator import itemgetter
from types import SimpleNamespace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing import lanes
from billing.delivery_queue import Claimed
from billing.lanes import PROVEN_ROOM, ROOM, SOON_S, UNPROVEN_KEPT, Lanes
from billing.senders import Endpoint, Outgoing, Reply

THREADS, PER_ENDPOINT = 8, 3
FOR_UNPROVEN = 6
"""Two of eight threads are the proven endpoints'."""


class NothingToDoError(Exception):
    """A thread would wait."""


class Impatient(threading.Condition):
    """Says so where it should wait."""

    def wait(self, _: float | None = None) -> bool:
        raise NothingToDoError


def make(
    *,
    proven: Iterable[int] = (),
    threads: int = THREADS,
    per_endpoint: int = PER_ENDPOINT,
    patient: bool = False,
) -> Lanes:
    """Return lanes whose `take` raises `NothingToDoError` instead of waiting, unless they are ``patient``."""
    known = proven if isinstance(proven, OrderedDict) else OrderedDict((id_, None) for id_ in proven)
    with pytest.MonkeyPatch.context() as patch:
        if not patient:
            patch.setattr(lanes, "threading", SimpleNamespace(Condition=Impatient))
        return Lanes(threads=threads, per_endpoint=per_endpoint, proven=known)


def messages(endpoint_id: int, number: int, *, first: int = 0) -> list[Outgoing]:
    return [
        Outgoing(
            Claimed(endpoint_id, UUID(int=(endpoint_id << 32) + place), endpoint_id, "ping", "{}", 0, 0),
            Endpoint(f"https://store-{endpoint_id}.example/", ("whsec_",)),
            until_s=0.0,
        )
        for place in range(first, first + number)
    ]


def take_all(lane: Lanes) -> list[tuple[Outgoing, bool]]:
    """Take as many threads would take at once, until the next one would wait."""
    taken = []
    try:
        while (one := lane.take()) is not None:
            taken.append(one)
    except NothingToDoError:
        pass
    return taken


def ids(taken: list[tuple[Outgoing, bool]]) -> list[int]:
    return [message.endpoint_id for message, _ in taken]


def end(lane: Lanes, taken: tuple[Outgoing, bool], *, succeeded: bool = True, seconds: float = 0.1) -> None:
    message, was_proven = taken
    lane.done(message, Reply(204 if succeeded else 500, duration_s=seconds), was_proven=was_proven)


def test_an_unproven_endpoint_is_sent_one_message_at_a_time() -> None:
    lane = make()
    sent = messages(1, 5)
    lane.add(sent)

    (first,) = take_all(lane)
    assert first == (sent[0], False)

    end(lane, first, seconds=SOON_S + 0.1)
    assert take_all(lane) == [(sent[1], False)], "slow: still one"


def test_a_good_answer_that_comes_soon_proves_an_endpoint() -> None:
    lane = make()
    lane.add(messages(1, 9))
    (first,) = take_all(lane)

    end(lane, first, seconds=SOON_S)

    assert [was_proven for _, was_proven in take_all(lane)] == [True] * PER_ENDPOINT


@pytest.mark.parametrize(
    ("succeeded", "seconds"), [(False, 0.1), (True, SOON_S + 0.01)], ids=["failed", "slow"]
)
def test_an_endpoint_is_proven_no_longer_once_it_fails_or_is_slow(succeeded: bool, seconds: float) -> None:
    lane = make(proven=(1,))
    lane.add(messages(1, 9))
    taken = take_all(lane)
    assert len(taken) == PER_ENDPOINT

    end(lane, taken[0], succeeded=succeeded, seconds=seconds)
    assert take_all(lane) == [], "two are still under way"
    end(lane, taken[1], succeeded=succeeded, seconds=seconds)
    assert take_all(lane) == []
    end(lane, taken[2], succeeded=succeeded, seconds=seconds)

    assert [was_proven for _, was_proven in take_all(lane)] == [False]


def test_what_is_proven_is_remembered_from_one_pass_to_the_next() -> None:
    proven: OrderedDict[int, None] = OrderedDict()
    before = make(proven=proven)
    before.add(messages(1, 1))
    end(before, take_all(before)[0])

    after = make(proven=proven)
    after.add(messages(1, 9))

    assert len(take_all(after)) == PER_ENDPOINT


def test_only_so_many_proven_endpoints_are_remembered_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "PROVEN_KEPT", 2)
    lane = make()
    for id_ in (1, 2, 1, 3):
        lane.add(messages(id_, 1))
        end(lane, take_all(lane)[0])

    assert [id_ for id_ in (1, 2, 3) if lane.room(id_) == PROVEN_ROOM] == [1, 3]


def test_endpoints_take_turns() -> None:
    lane = make(proven=(1, 2, 3))
    for id_, number in ((1, 9), (2, 2), (3, 9)):
        lane.add(messages(id_, number))

    taken = take_all(lane)

    assert ids(taken) == [1, 2, 3, 1, 2, 3, 1, 3]
    order = [message.message.id.int & 0xFFFF for message, _ in taken if message.endpoint_id == 1]
    assert order == [0, 1, 2], "each endpoint's in their order"


def test_a_newcomer_does_not_wait_for_those_who_have_much() -> None:
    lane = make(proven=(1,))
    lane.add(messages(1, 100))
    take_all(lane)
    lane.add(messages(2, 1))

    assert ids(take_all(lane)) == [2]


def test_some_threads_are_kept_for_proven_endpoints() -> None:
    lane = make(proven=(100,))
    for id_ in range(1, 21):
        lane.add(messages(id_, 5))

    hanging = take_all(lane)
    assert len(hanging) == len(set(ids(hanging))) == FOR_UNPROVEN

    lane.add(messages(100, 9))
    assert ids(take_all(lane)) == [100] * PER_ENDPOINT


def test_a_thread_that_an_unproven_endpoint_leaves_is_the_next_ones() -> None:
    lane = make()
    for id_ in range(1, 9):
        lane.add(messages(id_, 1))
    taken = take_all(lane)
    assert ids(taken) == [1, 2, 3, 4, 5, 6]

    end(lane, taken[3], succeeded=False)
    assert ids(take_all(lane)) == [7]
    end(lane, taken[0])
    assert ids(take_all(lane)) == [8]


def test_an_endpoint_that_stood_the_test_counts_among_the_unproven_until_it_is_done() -> None:
    """Who was taken as unproven is counted off as unproven, whatever became of it meanwhile."""
    lane = make(threads=4, per_endpoint=1)
    for id_ in range(1, 9):
        lane.add(messages(id_, 2))
    for _ in range(6):
        taken = take_all(lane)
        assert sum(not was_proven for _, was_proven in taken) <= 3
        for one in taken:
            end(lane, one)

    assert lane.idle()


def test_drop_takes_back_what_one_endpoint_has_queued_and_not_what_is_under_way() -> None:
    lane = make(proven=(1, 2))
    mine, others = messages(1, 5), messages(2, 2)
    lane.add(mine)
    lane.add(others)
    first = lane.take()
    assert first == (mine[0], True)

    assert lane.drop(1) == mine[1:]
    assert lane.drop(1) == lane.drop(3) == []
    assert ids(take_all(lane)) == [2, 2]
    assert not lane.idle()


def test_drop_takes_back_all() -> None:
    lane = make()
    lane.add(messages(1, 2))
    lane.add(messages(2, 2))
    (one, other) = take_all(lane)

    assert sorted(message.endpoint_id for message in lane.drop()) == [1, 2]
    assert lane.drop() == []
    assert not lane.idle(), "two are under way"
    end(lane, one)
    end(lane, other)
    assert lane.idle()


def test_room_is_what_is_not_yet_queued() -> None:
    lane = make(proven=(2,))
    assert (lane.room(1), lane.room(2)) == (ROOM, PROVEN_ROOM)
    assert lane.rooms() == (ROOM, {})

    lane.add(messages(1, ROOM - 2))
    lane.add(messages(2, PROVEN_ROOM // 2 + 1))
    assert (lane.room(1), lane.room(2)) == (2, PROVEN_ROOM // 2 - 1)
    assert lane.rooms() == (ROOM, {1: 2, 2: PROVEN_ROOM // 2 - 1})
    assert not lane.wants(1)
    assert not lane.wants(2)

    taken = take_all(lane)
    assert ids(taken) == [1, 2, 2, 2]
    assert (lane.room(1), lane.room(2)) == (3, PROVEN_ROOM // 2 + 2)
    assert lane.wants(2)
    lane.drop()
    assert lane.rooms() == (ROOM, {1: ROOM, 2: PROVEN_ROOM}), "they have messages under way"


def test_room_is_never_less_than_none() -> None:
    lane = make(proven=(1,))
    lane.add(messages(1, ROOM + 5))
    end(lane, take_all(lane)[0], succeeded=False)

    assert lane.room(1) == 0
    assert lane.rooms() == (ROOM, {1: 0})


def test_it_is_hungry_until_there_is_something_for_every_thread() -> None:
    lane = make(proven=(1, 2, 3))
    assert lane.hungry()

    lane.add(messages(1, 100))
    assert lane.hungry(), "three at once are all that one endpoint takes"
    lane.add(messages(2, 100))
    lane.add(messages(3, 1))
    assert lane.hungry()
    lane.add(messages(3, 1, first=1))
    assert not lane.hungry()
    take_all(lane)
    assert not lane.hungry(), "they are busy"


def test_it_is_hungry_while_all_that_is_queued_has_to_wait_for_an_endpoint() -> None:
    lane = make()
    lane.add(messages(1, 100))
    take_all(lane)

    assert lane.hungry()


def test_it_is_hungry_while_the_threads_kept_for_proven_endpoints_have_nothing() -> None:
    lane = make(proven=(100,))
    for id_ in range(1, 21):
        lane.add(messages(id_, 5))
    assert len(take_all(lane)) == FOR_UNPROVEN

    assert lane.hungry()


def test_where_many_wait_that_are_not_proven_only_proven_ones_are_let_through() -> None:
    lane = make(proven=(100, 101))
    lane.add(messages(100, 6))
    for id_ in range(1, UNPROVEN_KEPT // 4 + 1):
        lane.add(messages(id_, 4))

    assert lane.rooms() == (
        0,
        dict.fromkeys(range(1, UNPROVEN_KEPT // 4 + 1), 0) | {100: PROVEN_ROOM - 6, 101: PROVEN_ROOM},
    )

    lane.drop(1)
    room, rooms = lane.rooms()
    assert (room, rooms[2], rooms[100]) == (ROOM, ROOM - 4, PROVEN_ROOM - 6)


def test_an_endpoint_that_is_stopped_is_given_nothing_until_it_is_resumed() -> None:
    lane = make(proven=(1,))
    lane.add(messages(1, 9))
    lane.add(messages(2, 1))
    taken = take_all(lane)

    lane.stop(1)
    for one in taken:
        end(lane, one)
    assert take_all(lane) == []
    assert lane.hungry(), "there is nothing for the threads"
    assert not lane.idle()

    lane.resume(1)
    assert ids(take_all(lane)) == [1] * PER_ENDPOINT


def test_an_endpoint_that_is_stopped_twice_is_to_be_resumed_twice() -> None:
    """Two of its answers asked for that, and one of them is recorded."""
    lane = make()
    lane.add(messages(1, 1))
    lane.stop(1)
    lane.stop(1)

    lane.resume(1)
    assert take_all(lane) == []
    lane.resume(1)
    assert ids(take_all(lane)) == [1]


def test_threads_that_wait_are_woken_once_an_endpoint_is_resumed() -> None:
    lane = make(patient=True)
    lane.stop(1)
    lane.add(messages(1, 1))
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.append(lane.take()))
    thread.start()

    lane.resume(1)

    thread.join(10)
    lane.close()
    assert len(taken) == 1
    assert taken[0] is not None


def test_once_closed_it_gives_nothing() -> None:
    lane = make()
    lane.add(messages(1, 5))

    lane.close()

    assert lane.take() is None
    assert len(lane.drop()) == 5, "what is queued can still be taken back"


@settings(max_examples=150, deadline=None)
@given(
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 8), st.integers(1, 6)),
            st.tuples(st.just("take"), st.just(0), st.just(0)),
            st.tuples(st.just("done"), st.integers(0, 7), st.integers(0, 2)),
            st.tuples(st.just("drop"), st.integers(1, 8), st.just(0)),
        ),
        max_size=80,
    )
)
def test_whatever_happens_no_message_is_lost_or_given_twice_and_no_limit_is_passed(
    moves: list[tuple[str, int, int]],
) -> None:
    lane = make()
    added: defaultdict[int, int] = defaultdict(int)
    given_out: list[Outgoing] = []
    dropped: list[Outgoing] = []
    under_way: list[tuple[Outgoing, bool]] = []

    def take() -> None:
        for message, was_proven in take_all(lane):
            under_way.append((message, was_proven))
            given_out.append(message)
            same = [proven for other, proven in under_way if other.endpoint_id == message.endpoint_id]
            assert len(same) <= (PER_ENDPOINT if was_proven else 1)
        assert sum(not was_proven for _, was_proven in under_way) <= FOR_UNPROVEN

    for move, number, more in moves:
        if move == "add":
            lane.add(messages(number, more, first=added[number]))
            added[number] += more
        elif move == "take":
            take()
        elif move == "drop":
            dropped += lane.drop(number)
        elif under_way:
            one = under_way.pop(number % len(under_way))
            end(lane, one, succeeded=more > 0, seconds=2.0 if more == 1 else 0.1)
    while not lane.idle():
        take()
        while under_way:
            end(lane, under_way.pop())

    everything = given_out + dropped
    assert len(everything) == len({message.message.id for message in everything}) == sum(added.values())
    order = [(message.endpoint_id, message.message.id) for message in given_out]
    assert sorted(order, key=itemgetter(0)) == sorted(order), (
        "each endpoint's in the order in which they came"
    )


def test_threads_that_wait_are_woken_for_new_messages_and_at_the_end() -> None:
    lane = make(proven=(1,), per_endpoint=THREADS, patient=True)
    came = threading.Barrier(THREADS + 1)
    ended: list[object] = []

    def run() -> None:
        taken = lane.take()
        assert taken is not None
        came.wait(10)
        end(lane, taken)
        ended.append(lane.take())

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    lane.add(messages(1, THREADS))
    came.wait(10)
    lane.close()
    for thread in threads:
        thread.join(10)

    assert ended == [None] * THREADS


def test_threads_that_wait_are_woken_once_an_endpoint_is_proven() -> None:
    lane = make(patient=True)
    proven, together = threading.Event(), threading.Barrier(PER_ENDPOINT + 1)

    def run() -> None:
        while (taken := lane.take()) is not None:
            if proven.is_set():
                together.wait(10)
            proven.set()
            end(lane, taken)

    threads = [threading.Thread(target=run) for _ in range(PER_ENDPOINT)]
    for thread in threads:
        thread.start()
    lane.add(messages(1, 1 + PER_ENDPOINT))

    together.wait(10)

    lane.close()
    for thread in threads:
        thread.join(10)
    assert lane.idle()


@pytest.mark.parametrize("seed", range(5))
def test_threads_leave_nothing_behind(seed: int) -> None:
    """No wake-up is lost: where there is something to take, someone takes it."""
    lane = make(patient=True)
    chance = random.Random(seed)
    verdicts = [(chance.random() < 0.6, chance.choice([0.1, 0.1, 2.0])) for _ in range(1000)]
    sent: list[Outgoing] = []
    most: Counter[int] = Counter()
    busy: Counter[int] = Counter()
    guard = threading.Lock()
    empty = threading.Event()
    total = 15 * 20

    def run() -> None:
        while (taken := lane.take()) is not None:
            id_ = taken[0].endpoint_id
            with guard:
                busy[id_] += 1
                most[id_] = max(most[id_], busy[id_])
            with guard:
                busy[id_] -= 1
                sent.append(taken[0])
                succeeded, seconds = verdicts[len(sent)]
            end(lane, taken, succeeded=succeeded, seconds=seconds)
            if len(sent) == total:
                empty.set()

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for place in range(15):
        for id_ in range(1, 21):
            lane.add(messages(id_, 1, first=place))
    assert empty.wait(10), f"{len(sent)} of {total}"
    lane.close()
    for thread in threads:
        thread.join(10)

    assert len({message.message.id for message in sent}) == total
    assert max(most.values()) <= PER_ENDPOINT
