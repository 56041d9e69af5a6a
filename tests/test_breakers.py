"""Breakers: when an endpoint is left alone, tried again, and disabled."""

import json
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any
from uuid import UUID

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.orm import Session

from billing import breakers, callback_endpoints
from billing.breakers import FAILING_TOO_LONG, FAILURES, FIRST_PAUSE, LONGEST_PAUSE
from billing.deliveries import DeliveryResult
from billing.delivery_queue import Claimed
from billing.documents import instant_text
from billing.lanes import Lanes
from billing.senders import Endpoint, Outgoing, Reply
from models import PLATFORM_ID, CallbackEndpoint
from tests.deliveries import (
    KEYRING,
    deliver,
    deliverer,
    end_pauses,
    endpoint_of,
    listening,
    make_due,
    messages,
    only,
    own_engine,
    real_now,
    seconds_left,
    statuses,
    together,
    write,
)
from tests.receivers import Received, Receiver, asks, receiver
from tests.world import World

SLACK_S = 5
"""What a test may take between what it measures."""


class Mood:
    """An endpoint's answer, which a test changes."""

    def __init__(self, status: int = 500) -> None:
        self.status = status

    def __call__(self, _: Received, __: BaseHTTPRequestHandler) -> int:
        return self.status


class Case:
    """One endpoint under test, the platform's or a company's."""

    def __init__(self, world: World, endpoint: Receiver, whose: str) -> None:
        self.world, self.endpoint, self.whose = world, endpoint, whose
        self.company = world.company(**listening(endpoint))
        self.id = PLATFORM_ID if whose == "platform" else self.company.id

    def write(self, number: int = 1) -> None:
        write(self.world, self.company, number, recipient=self.whose)

    def deliver(self, **changes: Any) -> tuple[int, int]:
        """Make a pass; return how many requests came of it, and how many succeeded."""
        before = len(self.endpoint.received)
        result = deliver(self.endpoint if self.whose == "platform" else None, **changes)
        return len(self.endpoint.received) - before, result.delivered

    def change(self, **columns: str) -> None:
        """Set columns of the endpoint to SQL expressions."""
        what = ", ".join(f"{column} = {value}" for column, value in columns.items())
        self.world.session.execute(
            text(f"UPDATE callback_endpoints SET {what} WHERE company_id = :id"), {"id": self.id}
        )
        self.world.session.commit()

    def open(self) -> None:
        """Let the endpoint fail five times, one message after the other, and have nothing to send."""
        self.write(FAILURES)
        assert self.deliver() == (FAILURES, 0)
        self.world.session.execute(text("UPDATE callbacks SET status = 'exhausted', next_attempt_at = NULL"))
        self.world.session.commit()

    @property
    def state(self) -> CallbackEndpoint:
        return endpoint_of(self.world, self.id)

    @property
    def pause_s(self) -> float:
        return seconds_left(self.world, self.state.open_until)


def lasts(pause_s: float, longest: timedelta) -> bool:
    """Return whether a pause is as long as it should be, or up to a fifth less, by chance."""
    seconds = longest.total_seconds()
    return 0.8 * seconds - SLACK_S < pause_s <= seconds


BOTH = pytest.mark.parametrize("whose", ["platform", "company"])


# As messages are sent ---------------------------------------------------------------------------------------


@BOTH
def test_five_failures_in_a_row_open_the_breaker(world: World, whose: str) -> None:
    with receiver(Mood()) as endpoint:
        case = Case(world, endpoint, whose)
        before = real_now(world)
        case.write(FAILURES - 1)

        assert case.deliver() == (FAILURES - 1, 0)
        assert (case.state.failures, case.state.open_until) == (FAILURES - 1, None)
        case.write()
        assert case.deliver() == (1, 0)

        assert case.state.failures == FAILURES
        assert lasts(case.pause_s, FIRST_PAUSE)
        assert case.state.failing_since is not None
        assert before <= case.state.failing_since <= real_now(world)
        assert case.state.disabled_at is None


@BOTH
def test_while_it_is_open_nothing_is_sent_and_messages_keep_their_attempts(world: World, whose: str) -> None:
    with receiver(Mood()) as endpoint:
        case = Case(world, endpoint, whose)
        case.open()
        case.write(40)

        for _ in range(3):
            assert case.deliver() == (0, 0)

        waiting = messages(world, type="company.updated", attempts=0)
        assert len(waiting) == 40
        if whose == "company":
            assert {(callback.status, callback.next_attempt_at) for callback in waiting} == {
                ("waiting", None)
            }
            assert case.state.has_waiting
        else:
            assert {callback.status for callback in waiting} == {"pending"}
            free = text("SELECT count(*) FROM callbacks WHERE next_attempt_at <= clock_timestamp()")
            assert world.session.execute(free).scalar_one() == 40, "nobody claimed them"


@BOTH
def test_what_was_claimed_when_the_breaker_opens_is_not_sent(world: World, whose: str) -> None:
    opened = threading.Event()

    def answer(_: Received, __: BaseHTTPRequestHandler) -> int:
        if len(endpoint.received) > FAILURES:
            opened.wait(5)
        return 500

    with receiver(answer) as endpoint:
        case = Case(world, endpoint, whose)
        case.write(100)

        deliverer(endpoint if whose == "platform" else None).run_pass(
            on_record=lambda result: opened.set() if result.failed >= FAILURES else None
        )

        assert len(endpoint.received) == FAILURES + 1, "one was under way"
        untouched = messages(world, attempts=0)
        assert len(untouched) == 100 - FAILURES - 1
        assert {callback.status for callback in untouched} == {"waiting" if whose == "company" else "pending"}
        if whose == "platform":
            free = text("SELECT count(*) FROM callbacks WHERE next_attempt_at <= clock_timestamp()")
            assert world.session.execute(free).scalar_one() == len(untouched), "nobody's lease is on them"
        assert case.state.failures == FAILURES
        assert lasts(case.pause_s, FIRST_PAUSE)


@BOTH
def test_once_the_pause_is_over_one_message_is_tried_and_each_failure_doubles_the_pause(
    world: World, whose: str
) -> None:
    with receiver(Mood()) as endpoint:
        case = Case(world, endpoint, whose)
        case.open()
        case.write(20)
        pause = FIRST_PAUSE

        for failures in range(FAILURES + 1, FAILURES + 11):
            assert case.deliver() == (0, 0), "not before"
            end_pauses(world)
            assert case.deliver() == (1, 0)
            pause = min(2 * pause, LONGEST_PAUSE)
            assert case.state.failures == failures
            assert lasts(case.pause_s, pause)

        assert pause == LONGEST_PAUSE
        assert sum(callback.attempts for callback in messages(world, status="pending")) == 10


@BOTH
def test_a_success_closes_the_breaker_and_the_rest_goes_out(world: World, whose: str) -> None:
    mood = Mood()
    with receiver(mood) as endpoint:
        case = Case(world, endpoint, whose)
        case.open()
        case.write(30)
        case.deliver()
        mood.status = 204
        end_pauses(world)

        assert case.deliver() == (30, 30)

        state = case.state
        assert (state.failures, state.failing_since, state.open_until) == (0, None, None)
        assert statuses(world, status="delivered") == {"delivered": 30}


@BOTH
def test_a_success_in_between_begins_the_count_anew(world: World, whose: str) -> None:
    mood = Mood()
    with receiver(mood) as endpoint:
        case = Case(world, endpoint, whose)
        for _ in range(3):
            mood.status = 500
            case.write(FAILURES - 1)
            assert case.deliver() == (FAILURES - 1, 0)
            mood.status = 204
            case.write()
            assert case.deliver() == (1, 1)
            assert (case.state.failures, case.state.failing_since) == (0, None)


@BOTH
def test_a_message_is_tried_on_its_own_schedule_while_the_breaker_lets_it(world: World, whose: str) -> None:
    """The message that failed waits for its time, and for its endpoint."""
    with receiver(Mood()) as endpoint:
        case = Case(world, endpoint, whose)
        case.write()
        case.deliver()
        first = only(world)
        assert first.next_attempt_at is not None
        end_pauses(world)

        assert case.deliver() == (0, 0), "not before its time"
        make_due(world)
        assert case.deliver() == (1, 0)
        assert (only(world).attempts, only(world).schedule_step) == (2, 2)


@BOTH
def test_a_breaker_that_may_be_tried_waits_for_a_message_to_try(world: World, whose: str) -> None:
    with receiver(Mood()) as endpoint:
        case = Case(world, endpoint, whose)
        case.open()
        end_pauses(world)

        assert case.deliver() == (0, 0), "there is nothing to send"
        case.write()
        assert case.deliver() == (1, 0)


def test_only_so_many_broken_endpoints_are_tried_at_once_and_all_in_the_end(world: World) -> None:
    now, most = 0, 0
    guard = threading.Lock()

    def answer(_: Received, __: BaseHTTPRequestHandler) -> int:
        nonlocal now, most
        with guard:
            now, most = now + 1, max(most, now + 1)
        threading.Event().wait(0.02)
        with guard:
            now -= 1
        return 500

    with receiver(answer) as endpoint:
        cases = [Case(world, endpoint, "company") for _ in range(12)]
        for case in cases:
            case.change(failures="9", failing_since="now()", open_until="now()")
            case.write(3)

        deliver(None)

        assert len(endpoint.received) == 12
        assert most <= 4
        assert {case.state.failures for case in cases} == {10}


# Many at once -----------------------------------------------------------------------------------------------


def answered_in_two_parts(world: World, first: Sequence[Any], later: Sequence[Any]) -> tuple[Case, list[int]]:
    """Send a proven endpoint messages at the same time; some answers come once others are recorded."""
    parties = len(first) + len(later)
    arrived, recorded = threading.Barrier(parties), threading.Event()
    proven = threading.Event()

    def answer(request: Received, handler: BaseHTTPRequestHandler) -> int | None:
        if not proven.is_set():
            return 204
        number = arrived.wait(5)
        if number >= len(first):
            recorded.wait(5)
        said = [*first, *later][number]
        status: int | None = said(request, handler) if callable(said) else said
        return status

    failures: list[int] = []
    with receiver(answer) as endpoint:
        case = Case(world, endpoint, "company")
        sends = deliverer(None)
        case.write()
        assert sends.run_pass().delivered == 1
        proven.set()
        case.write(parties)

        def on_record(result: DeliveryResult) -> None:
            failures.append(case.state.failures)
            if result.delivered + result.failed >= len(first):
                recorded.set()

        sends.run_pass(on_record=on_record)

        assert len(endpoint.received) == 1 + parties
    return case, failures


def test_failures_that_come_at_once_open_the_breaker_once(world: World) -> None:
    case, _ = answered_in_two_parts(world, [500] * FAILURES, [])

    assert case.state.failures == FAILURES
    assert lasts(case.pause_s, FIRST_PAUSE)


def test_failures_under_way_when_the_breaker_opens_are_part_of_the_one_opening(world: World) -> None:
    case, _ = answered_in_two_parts(world, [500] * FAILURES, [500] * 3)

    assert case.state.failures == FAILURES
    assert lasts(case.pause_s, FIRST_PAUSE)


def test_a_failure_under_way_does_not_shorten_the_time_that_was_asked_for(world: World) -> None:
    case, _ = answered_in_two_parts(world, [asks(429, "600")], [500])

    assert case.state.failures == 2
    assert case.pause_s > 590


def test_of_answers_that_ask_for_time_at_once_the_longest_counts(world: World) -> None:
    case, _ = answered_in_two_parts(world, [500, asks(503, "60"), asks(429, "600"), asks(429, "6")], [])

    assert case.pause_s > 590


def test_a_success_at_any_time_closes_the_breaker(world: World) -> None:
    case, failures = answered_in_two_parts(world, [500] * FAILURES, [204])

    assert FAILURES in failures
    assert (case.state.failures, case.state.failing_since, case.state.open_until) == (0, None, None)


def test_an_endpoint_that_is_gone_stays_so_whatever_was_under_way(world: World) -> None:
    case, _ = answered_in_two_parts(world, [410], [204])

    assert case.state.disabled_reason == "gone"


def test_an_endpoint_that_asked_for_a_moment_is_sent_the_rest_in_the_same_pass(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever comes first: that its answer is recorded, or that the thread says so of which it came."""
    recorded, stop = threading.Event(), threading.Event()
    answers = iter([asks(429, "0")])
    done = Lanes.done

    def done_late(lane: Lanes, outgoing: Outgoing, reply: Reply, **how: Any) -> None:
        if not reply.succeeded:
            recorded.wait(5)
        done(lane, outgoing, reply, **how)

    def answer(request: Received, handler: BaseHTTPRequestHandler) -> int | None:
        said = next(answers, None)
        return 204 if said is None else said(request, handler)

    monkeypatch.setattr(Lanes, "done", done_late)
    with receiver(answer) as endpoint, ExitStack() as stack:
        case = Case(world, endpoint, "company")
        case.write(3)
        patience = threading.Timer(2.0, stop.set)
        patience.start()
        stack.callback(patience.cancel)

        result = deliverer(None, stop=stop).run_pass(on_record=lambda _: recorded.set())

        assert (result.delivered, result.failed, stop.is_set()) == (2, 1, False)


def test_an_answer_that_asks_for_time_holds_until_it_is_recorded_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only until another answer of the same endpoint is."""
    proven, noting, asked, third = (threading.Event() for _ in range(4))
    arrived = threading.Barrier(2)
    done, note = Lanes.done, breakers.note

    def done_and_told(lane: Lanes, outgoing: Outgoing, reply: Reply, **how: Any) -> None:
        done(lane, outgoing, reply, **how)
        if reply.retry_after_s is not None:
            asked.set()

    def note_late(session: Session, attempts: Any, **how: Any) -> Any:
        if proven.is_set():
            noting.set()
            asked.wait(5)
            if any(reply.retry_after_s is not None for _, reply in attempts):
                third.wait(0.3)
        return note(session, attempts, **how)

    def answer(request: Received, handler: BaseHTTPRequestHandler) -> int | None:
        if not proven.is_set():
            return 204
        if len(endpoint.received) > 3:
            third.set()
            return 500
        if arrived.wait(5) == 0:
            return 500
        noting.wait(5)
        return asks(429, "600")(request, handler)

    monkeypatch.setattr(Lanes, "done", done_and_told)
    monkeypatch.setattr(breakers, "note", note_late)
    with receiver(answer) as endpoint:
        case = Case(world, endpoint, "company")
        sends = deliverer(None, per_endpoint=2)
        case.write()
        sends.run_pass()
        proven.set()
        case.write(7)

        sends.run_pass()

        assert len(endpoint.received) == 1 + 2
        assert case.pause_s > 590


@BOTH
def test_two_deliverers_try_a_broken_endpoint_with_one_message(committed: World, whose: str) -> None:
    other_has_ended = threading.Event()

    def answer(_: Received, __: BaseHTTPRequestHandler) -> int:
        other_has_ended.wait(3)
        return 500

    with ExitStack() as stack:
        endpoint = stack.enter_context(receiver(answer))
        case = Case(committed, endpoint, whose)
        deliver(endpoint)
        case.change(failures="9", failing_since="now()", open_until="now()")
        case.write(20)
        vade_settings = committed.vade.settings
        engines = [stack.enter_context(own_engine(vade_settings)) for _ in range(2)]
        target = endpoint if whose == "platform" else None

        def run(engine: Any) -> DeliveryResult:
            result = deliver(target, engine=engine)
            other_has_ended.set()
            return result

        results = together([partial(run, engine) for engine in engines])

        assert sorted(result.failed for result in results) == [0, 1]
        assert len(endpoint.received) == 1
    assert case.state.failures == 10


# Disabled ---------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(("minutes", "disabled"), [(1, True), (-1, False)], ids=["five days", "not quite"])
def test_an_endpoint_that_failed_for_five_days_is_disabled(
    world: World, whose: str, minutes: int, disabled: bool
) -> None:
    with receiver(Mood()) as endpoint:
        case = Case(world, endpoint, whose)
        deliver(endpoint)
        case.change(
            failures="40",
            failing_since=f"now() - interval '5 days' - interval '{minutes} minutes'",
            open_until="now()",
        )
        since = case.state.failing_since
        case.write(3)

        assert case.deliver() == (1, 0)

        state = case.state
        assert (state.disabled_reason, state.failing_since) == ("failing" if disabled else None, since)
        told = messages(world, type="callback_endpoint.disabled")
        assert len(told) == (disabled and whose == "platform"), "nobody is told where there is no platform"
        make_due(world)
        end_pauses(world)
        sent, _ = case.deliver()
        assert sent == (0 if disabled else 1)
        if disabled:
            assert statuses(world, type="company.updated") == {"held": 3}


def test_what_waits_for_an_endpoint_is_held_once_it_is_disabled(world: World) -> None:
    with receiver(410) as endpoint:
        case = Case(world, endpoint, "company")
        case.change(failures="9", failing_since="now()", open_until="now()")
        case.write(3)

        assert case.deliver() == (1, 0)
        case.deliver()

        assert case.state.disabled_reason == "gone"
        assert statuses(world) == {"held": 3}


def test_those_disabled_together_are_all_counted_and_told(world: World) -> None:
    world.session.execute(text("INSERT INTO counters VALUES ('callback_endpoints_disabled', 5)"))
    for id_ in (1, 2):
        callback_endpoints.put(world.session, id_, f"http://127.0.0.1:{id_}/", KEYRING, now=real_now(world))
    gone = [(outgoing(f"http://127.0.0.1:{id_}/", company_id=id_), Reply(410)) for id_ in (1, 2)]

    ended = breakers.note(world.session, gone, now=real_now(world))
    total = breakers.tell_disabled(world.session, ended, clock=world.vade.clock, by_platform=True)
    world.session.flush()

    assert total == 7
    told = messages(world, type="callback_endpoint.disabled")
    assert sorted((callback.company_id, callback.recipient) for callback in told) == [
        (1, "platform"),
        (2, "platform"),
    ]


def test_a_success_after_five_days_saves_an_endpoint(world: World) -> None:
    with receiver() as endpoint:
        case = Case(world, endpoint, "company")
        case.change(failures="40", failing_since="now() - interval '6 days'", open_until="now()")
        case.write(3)

        assert case.deliver() == (3, 3)
        assert (case.state.failures, case.state.failing_since, case.state.disabled_at) == (0, None, None)


def test_a_platform_is_told_of_a_company_that_failed_for_five_days(world: World) -> None:
    with receiver() as platform, receiver(Mood()) as endpoint:
        case = Case(world, endpoint, "company")
        case.change(failures="40", failing_since="now() - interval '6 days'", open_until="now()")
        since = case.state.failing_since
        case.write()

        deliver(platform)

        (request,) = platform.received
        told = json.loads(request.body)["data"]["callback_endpoint"]
        assert since is not None
        assert (told["reason"], told["company_id"]) == ("failing", case.id)
        assert told["failing_since"] == instant_text(since)


@pytest.mark.parametrize("way", ["operator", "the same URL", "another URL"])
def test_an_endpoint_that_was_disabled_is_enabled_and_what_was_held_waits_to_be_recovered(
    client: FlaskClient, world: World, way: str
) -> None:
    mood = Mood(410)
    with receiver(mood) as endpoint, receiver() as another:
        case = Case(world, endpoint, "company")
        case.write(3)
        case.deliver()
        make_due(world)
        case.deliver()
        assert statuses(world) == {"held": 3}
        sent = len(endpoint.received)
        mood.status = 204
        operator, company = world.operator(), world.token(case.company)
        whose = f"?company_id={case.id}"
        body = {"since": "2000-01-01T00:00:00Z"}
        recover = f"/api/v1/callback-endpoint/recover{whose}"
        assert client.post(recover, json=body, headers=operator).status_code == 409

        if way == "operator":
            assert (
                client.post(f"/api/v1/callback-endpoint/enable{whose}", headers=operator).status_code == 200
            )
        else:
            url = endpoint.url if way == "the same URL" else another.url
            assert (
                client.patch("/api/v1/companies/me", json={"callback_url": url}, headers=company).status_code
                == 200
            )

        now_at = another if way == "another URL" else endpoint
        state = case.state
        assert (state.url, state.disabled_at, state.disabled_reason) == (now_at.url, None, None)
        assert (state.failures, state.failing_since, state.open_until) == (0, None, None)
        case.deliver()
        assert statuses(world, recipient="company")["held"] == 3
        assert statuses(world, recipient="company")["delivered"] == (way == "another URL"), (
            "the change itself"
        )
        assert len(endpoint.received) == sent

        assert client.post(recover, json=body, headers=operator).get_json()["recovered"] == 3
        case.deliver()

        assert statuses(world, recipient="company")["held"] == 0
        assert len({request.id for request in now_at.received}) >= 3


def test_the_endpoint_that_stands_set_again_ends_a_pause(client: FlaskClient, world: World) -> None:
    mood = Mood()
    with receiver(mood) as endpoint:
        case = Case(world, endpoint, "company")
        case.open()
        case.write(3)
        assert case.deliver() == (0, 0)
        mood.status = 204

        client.patch(
            "/api/v1/companies/me", json={"callback_url": endpoint.url}, headers=world.token(case.company)
        )

        assert case.deliver() == (3, 3), "what waited goes out"


def test_what_waits_for_an_endpoint_that_is_taken_away_is_given_up(world: World) -> None:
    with receiver(Mood()) as endpoint:
        case = Case(world, endpoint, "company")
        case.open()
        case.write(3)
        case.deliver()
        assert statuses(world)["waiting"] == 3
        world.listen(case.company, None)

        result = deliver(None)

        assert (result.exhausted, result.failed) == (3, 0)
        assert statuses(world) == {"exhausted": FAILURES + 3}
        assert len(endpoint.received) == FAILURES


def test_what_waits_for_an_endpoint_that_moved_goes_to_the_new_one(world: World) -> None:
    with receiver(Mood()) as endpoint, receiver() as present:
        case = Case(world, endpoint, "company")
        case.open()
        case.write(3)
        case.deliver()
        world.listen(case.company, present.url)

        assert deliver(None).delivered == 3
        assert (len(endpoint.received), len(present.received)) == (FAILURES, 3)


@pytest.mark.parametrize("status", [204, 410, 500, 429])
def test_what_a_former_url_answers_says_nothing_of_the_present_one(committed: World, status: int) -> None:
    """The company moves while a message is under way."""
    present = "http://127.0.0.1:1/present"

    def answer(request: Received, handler: BaseHTTPRequestHandler) -> int | None:
        with Session(engine) as session:
            now = committed.vade.clock.read(session).real
            callback_endpoints.put(session, case.id, present, KEYRING, now=now)
            session.execute(
                text(
                    "UPDATE callback_endpoints SET failures = 3, failing_since = now() WHERE company_id = :id"
                ),
                {"id": case.id},
            )
            session.commit()
        return asks(429, "600")(request, handler) if status == 429 else status

    with ExitStack() as stack:
        engine = stack.enter_context(own_engine(committed.vade.settings))
        endpoint = stack.enter_context(receiver(answer))
        case = Case(committed, endpoint, "company")
        case.write()

        case.deliver()

        state = case.state
        assert (state.url, state.failures, state.open_until) == (present, 3, None)
        assert state.disabled_at is None
        callback = only(committed)
        assert (callback.status, callback.attempts) == ("delivered" if status == 204 else "pending", 1)


# As a rule --------------------------------------------------------------------------------------------------

START = datetime(2026, 5, 1, tzinfo=UTC)
REPLIES: dict[str, Reply] = {
    "ok": Reply(status_code=204),
    "fails": Reply(status_code=500),
    "silent": Reply(error="No answer within 5 s."),
    "gone": Reply(status_code=410),
    "busy": Reply(status_code=429, retry_after_s=600.0),
    "busy for long": Reply(status_code=503, retry_after_s=1e9),
    "busy for nothing": Reply(status_code=429, retry_after_s=0.0),
}


def outgoing(url: str, *, company_id: int = 1, probe: bool = False) -> Outgoing:
    claimed = Claimed(company_id, UUID(int=1), company_id, "ping", "{}", 0, 0)
    return Outgoing(claimed, Endpoint(url, ()), 0.0, probe=probe)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.lists(st.sampled_from([*REPLIES] + ["fails"] * 8), min_size=1, max_size=8),
            st.integers(0, 2 * 86_400),
            st.sampled_from(["in its time", "in its time", "under way", "to a former URL"]),
        ),
        min_size=1,
        max_size=15,
    )
)
def test_whatever_is_answered_an_endpoints_state_makes_sense(
    world: World, steps: list[tuple[list[str], int, str]]
) -> None:
    """Attempts are recorded one or some at a time: a probe once a pause is over, or what was under way."""
    url = "http://127.0.0.1:1/"
    callback_endpoints.put(world.session, 1, url, KEYRING, now=START)
    now, asked = START, False
    for several, seconds, how in steps:
        before = Standing.of(world)
        now += timedelta(seconds=seconds)
        probe = how == "in its time" and before.open_until is not None
        if probe:
            assert before.open_until is not None
            now = max(now, before.open_until)
        sent = outgoing(f"{url}former" if how == "to a former URL" else url, probe=probe)
        names = several[:1] if probe else several
        replies = [REPLIES[name] for name in names]

        breakers.note(world.session, [(sent, reply) for reply in replies], now=now)

        after = Standing.of(world)
        if how == "to a former URL" or before.disabled is not None:
            assert after == before
            continue
        gone = "gone" in names
        succeeded = any(reply.succeeded for reply in replies) and not gone
        asked = not succeeded and (asked or any(name.startswith("busy") for name in names))
        if succeeded:
            assert after == Standing(0, None, None, None)
            continue
        failing_since = before.failing_since or now
        disabled = "gone" if gone else "failing" if now - failing_since >= FAILING_TOO_LONG else None
        assert (after.failing_since, after.disabled) == (failing_since, disabled)
        if before.failures < FAILURES:
            failed = sum(not reply.succeeded for reply in replies)
            assert after.failures == min(FAILURES, before.failures + failed)
        else:
            assert after.failures == before.failures + probe
        assert_paused_with_reason(before, after, now=now, probe=probe, asked=asked)


@dataclass(frozen=True)
class Standing:
    """How an endpoint fares."""

    failures: int
    failing_since: datetime | None
    open_until: datetime | None
    disabled: str | None

    @classmethod
    def of(cls, world: World) -> "Standing":
        state = endpoint_of(world, 1)
        assert (state.failures == 0) == (state.failing_since is None)
        assert (state.disabled_at is None) == (state.disabled_reason is None)
        return cls(state.failures, state.failing_since, state.open_until, state.disabled_reason)


def assert_paused_with_reason(
    before: Standing, after: Standing, *, now: datetime, probe: bool, asked: bool
) -> None:
    """After a failure: open only with five of them or where it was asked for, and never for too long."""
    if after.disabled is not None:
        return
    if after.open_until is None:
        assert after.failures < FAILURES
        return
    assert after.failures >= FAILURES or asked
    if probe and after.failures >= FAILURES:
        assert after.open_until >= now + 0.8 * FIRST_PAUSE
    if not probe and before.open_until is not None:
        assert after.open_until >= before.open_until, "what was under way shortens no pause"
    longest = timedelta(days=1) if asked else LONGEST_PAUSE
    assert after.open_until <= now + longest
