"""Heartbeats: when the workers were last seen alive, by the database's clock."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.orm import Session

STALE_AFTER_S = 30.0

_BEAT = text("""
INSERT INTO worker_heartbeats (worker, started_at, beat_at) VALUES (:worker, :started_at, :now)
ON CONFLICT (worker) DO UPDATE SET started_at = excluded.started_at, beat_at = excluded.beat_at
""")
_FORGET_OLD = text(
    "DELETE FROM worker_heartbeats WHERE beat_at < CAST(:now AS timestamptz) - interval '1 day'"
)
_NEWEST = text("""
SELECT beat_at, extract(epoch FROM clock_timestamp() - beat_at)::float8 AS age_s
FROM worker_heartbeats ORDER BY beat_at DESC LIMIT 1
""")


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The newest sign of life of any worker; ``age_s`` is in seconds."""

    beat_at: datetime
    age_s: float

    @property
    def is_stale(self) -> bool:
        """Whether no worker was seen for so long that someone should look."""
        return self.age_s > STALE_AFTER_S


def beat(session: Session, worker: str, *, started_at: datetime, now: datetime) -> None:
    """Say that a worker is alive at ``now`` (real time); forget those not seen for a day.

    A worker that was killed may leave its name to the next one, which says with it when it started.
    """
    session.execute(_BEAT, {"worker": worker, "started_at": started_at, "now": now})
    session.execute(_FORGET_OLD, {"now": now})


def leave(session: Session, worker: str) -> None:
    """Say that a worker ended as it should."""
    session.execute(text("DELETE FROM worker_heartbeats WHERE worker = :worker"), {"worker": worker})


def newest(session: Session) -> Heartbeat | None:
    """Return the newest heartbeat, or None where no worker was ever seen."""
    row = session.execute(_NEWEST).one_or_none()
    return None if row is None else Heartbeat(row.beat_at, row.age_s)
