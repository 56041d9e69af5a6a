"""A simulation: business time moves forward day by day, and what falls due is really collected."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from billing.clock import Clock
from billing.collection import Collector, PassResult
from billing.documents import instant_text
from billing.periods import business_date
from models import Setting

SETTING = "simulated_until"
DAY = timedelta(hours=24)

_REMEMBER = text("""
INSERT INTO settings (key, value) VALUES (:key, jsonb_build_object('instant', CAST(:instant AS text)))
ON CONFLICT (key) DO UPDATE SET value = excluded.value
""")


@dataclass(frozen=True, slots=True)
class Day:
    """One simulated day and what its pass did; where that was stopped, the day is to be repeated."""

    date: date
    result: PassResult
    completed: bool


def run(collector: Collector, *, days: int) -> Iterator[Day]:
    """Simulate some days after the present, or after the last simulated day; yield each as it is done.

    Where it stands is kept in the database with each day, so it goes on after an interruption. A day that
    is stopped half-way is the last one: what it collected stays collected, and the next call repeats it.
    Raises `charging.GatewayHangsError` as `Collector.run_pass` does.
    """
    with Session(collector.engine) as session:
        now = collector.clock.read(session).business
        instant = max(now, stands(session) or now)
    for _ in range(days):
        instant += DAY
        result = replace(collector, clock=Clock(instant)).run_pass()
        completed = not collector.stop.is_set()
        if completed:
            with Session(collector.engine) as session:
                session.execute(_REMEMBER, {"key": SETTING, "instant": instant_text(instant)})
                session.commit()
        yield Day(business_date(instant, collector.zone), result, completed)
        if not completed:
            return


def stands(session: Session) -> datetime | None:
    """Return the business time that a simulation has reached, or None where there was none."""
    value = session.scalar(select(Setting.value).where(Setting.key == SETTING))
    return None if value is None else datetime.fromisoformat(value["instant"]).astimezone(UTC)
