"""Deliveries in tests: passes over the callbacks, and messages and endpoints as they then stand."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select, text, update

from billing.addresses import AddressPolicy
from billing.callback_endpoints import PlatformEndpoint
from billing.clock import Clock, Moment
from billing.deliveries import Deliverer, DeliveryResult
from billing.keyring import Keyring
from config import Settings
from database import engine_options
from models import PLATFORM_ID, Callback, CallbackEndpoint, Company, db
from tests.receivers import Receiver
from tests.world import CALLBACK_SECRET, ENCRYPTION_KEY, World

KEYRING = Keyring([ENCRYPTION_KEY])
COMPANY_SECRET = "whsec_" + "Q29tcGFueSBzZWNyZXQgb2YgMzIgYnl0ZXMgb3Igc28="
RENAMED = {"company": {"name": "Former"}}

COPIES = """
INSERT INTO callbacks (company_id, id, recipient, type, body)
SELECT company_id, gen_random_uuid(), recipient, type, body
FROM callbacks, generate_series(2, :number) WHERE id = ANY (:ids)
"""


def deliverer(endpoint: Receiver | str | None, **changes: Any) -> Deliverer:
    """Return a deliverer, with the platform's endpoint there or nowhere."""
    url = endpoint.url if isinstance(endpoint, Receiver) else endpoint
    fields: dict[str, Any] = {
        "engine": changes.get("engine") or db.engine,
        "platform": None if url is None else PlatformEndpoint(url, CALLBACK_SECRET),
        "keyring": KEYRING,
        "policy": AddressPolicy(allow_private=True),
    }
    return Deliverer(**(fields | changes))


def deliver(endpoint: Receiver | str | None, **changes: Any) -> DeliveryResult:
    """Make one pass, with the platform's endpoint there or nowhere."""
    return deliverer(endpoint, **changes).run_pass()


@contextmanager
def own_engine(settings: Settings) -> Iterator[Engine]:
    """Connections of one's own, as another process has them."""
    engine = create_engine("postgresql+psycopg://", **engine_options(settings))
    try:
        yield engine
    finally:
        engine.dispose()


def listening(endpoint: Receiver) -> dict[str, Any]:
    return {"callback_url": endpoint.url, "callback_secret": COMPANY_SECRET}


def tell(world: World, **company: Any) -> Company:
    """Write one message to the platform, and one to a company that listens."""
    found = world.company(**company)
    previous = {"company": None}
    world.vade.outbox.write(world.session, "company.registered", found, now=world.now, previous=previous)
    world.session.commit()
    return found


def write(world: World, company: Company, number: int = 1, *, recipient: str | None = None) -> None:
    """Write some messages about a company, to all who listen or to one recipient."""
    known = set(world.session.scalars(select(Callback.id)))
    world.vade.outbox.write(world.session, "company.updated", company, now=world.now, previous=RENAMED)
    world.session.flush()
    for callback in world.session.scalars(select(Callback).where(Callback.id.not_in(known))):
        if recipient not in {None, callback.recipient}:
            world.session.delete(callback)
            world.session.flush()
        elif number > 1:
            world.session.execute(text(COPIES), {"number": number, "ids": [callback.id]})
    world.session.commit()


def messages(world: World, **fields: Any) -> list[Callback]:
    """Return the messages, or those of a recipient, a status or a company, as they stand."""
    query = select(Callback).filter_by(**fields).order_by(Callback.created_at, Callback.attempts.desc())
    return list(world.session.scalars(query.execution_options(populate_existing=True)))


def only(world: World, **fields: Any) -> Callback:
    """Return the only callback, as it stands."""
    (callback,) = messages(world, **fields)
    return callback


def statuses(world: World, **fields: Any) -> Counter[str]:
    """Return how many messages stand how."""
    return Counter(callback.status for callback in messages(world, **fields))


def endpoint_of(world: World, company_id: int = PLATFORM_ID) -> CallbackEndpoint:
    """Return an endpoint, the platform's unless a company's is asked for, as it stands."""
    return world.session.get_one(CallbackEndpoint, company_id, populate_existing=True)


def real_now(world: World) -> datetime:
    return world.vade.clock.read(world.session).real


def seconds_left(world: World, until: datetime | None) -> float:
    """Return how long it is until an instant of real time."""
    assert until is not None
    return (until - real_now(world)).total_seconds()


def make_due(world: World) -> None:
    """Let pauses be over and breakers be tried again, as if real time had passed."""
    world.session.execute(
        update(Callback).where(Callback.status == "pending").values(next_attempt_at=text("now()"))
    )
    end_pauses(world)


def end_pauses(world: World) -> None:
    """Let breakers be tried again; messages keep their own times."""
    world.session.execute(text("UPDATE callback_endpoints SET open_until = now() WHERE open_until > now()"))
    world.session.commit()


def move_clock(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """Let real time be later, as the database tells it."""
    read = Clock.read

    def later(clock: Clock, session: Any) -> Moment:
        moment = read(clock, session)
        return replace(moment, real=moment.real + by)

    monkeypatch.setattr(Clock, "read", later)


def together(passes: Sequence[Callable[[], DeliveryResult]]) -> list[DeliveryResult]:
    """Make some passes at the same time."""
    barrier = threading.Barrier(len(passes))
    results: list[DeliveryResult] = []

    def run(one: Callable[[], DeliveryResult]) -> None:
        barrier.wait(10)
        results.append(one())

    threads = [threading.Thread(target=run, args=[one]) for one in passes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == len(passes)
    return results
