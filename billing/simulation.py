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
    """One simulated day and what its pass did."""

    date: date
    result: PassResult


def run(collector: Collector, *, days: int) -> Iterator[Day]:
    """Simulate some days after the present, or after the last simulated day; yield each as it is done.

    Where it stands is kept in the database with each day, so it goes on after an interruption. A day that
    was interrupted is not yielded and is repeated; what it collected stays collected.
    """
    with Session(collector.engine) as session:
        now = collector.clock.read(session).business
        instant = max(now, _stands(session) or now)
    for _ in range(days):
        instant += DAY
        result = replace(collector, clock=Clock(instant)).run_pass()
        if collector.stop.is_set():
            return
        with Session(collector.engine) as session:
            session.execute(_REMEMBER, {"key": SETTING, "instant": instant_text(instant)})
            session.commit()
        yield Day(business_date(instant, collector.zone), result)


def _stands(session: Session) -> datetime | None:
    value = session.scalar(select(Setting.value).where(Setting.key == SETTING))
    return None if value is None else datetime.fromisoformat(value["instant"]).astimezone(UTC)
