"""The two clocks: business time, which can be fixed, and real time; both are the database's."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class Moment:
    """One reading of both clocks, in UTC (DESIGN.md §1).

    ``business`` decides periods, what is due and when an attempt was made; ``real`` decides leases, pauses
    and callback schedules.
    """

    business: datetime
    real: datetime


@dataclass(frozen=True, slots=True)
class Clock:
    """The database's clock, whose business side stands still at ``fixed`` where that is given."""

    fixed: datetime | None = None

    def read(self, session: Session) -> Moment:
        """Return the present moment. The machine's own clock is never asked: it may be wrong."""
        real = session.execute(text("SELECT clock_timestamp()")).scalar_one().astimezone(UTC)
        return Moment(business=self.fixed or real, real=real)
