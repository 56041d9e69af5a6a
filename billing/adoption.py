"""After a restore: charges that the gateway made and the database no longer knows are taken over.

A backup is older than the last charge. What was collected since is due again in the restored database, and a
fresh key would take the money once more. A job that is given the key of its charge is answered by the gateway
as before, and recorded once.
"""

from collections.abc import Callable, Sequence
from datetime import date, datetime
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from billing import payment_queue
from billing.arrays import array
from billing.clock import Moment
from billing.collection import Collector, PassResult
from billing.payment_queue import FIRST, Cursor, Job
from billing.transactions import prefer_indexes, run_in_transaction
from models import PARKED_UNTIL


class Charge(NamedTuple):
    """Money that the gateway took: its key, and what the request's description names."""

    idempotency_key: UUID
    company_id: int
    company_package_id: int
    period_start: date


class Standing(StrEnum):
    """How a charge stands in the database in the end."""

    RECORDED = "recorded"
    WAITING = "waiting"
    """Its job has its key, but the gateway gave no answer, or it could not be written: the next pass asks."""
    UNKNOWN = "unknown"
    """There is no such company package, or its period was collected under another key."""


_CHARGES = """unnest(CAST(:keys AS uuid[]), CAST(:company_ids AS bigint[]),
    CAST(:company_package_ids AS bigint[]), CAST(:period_starts AS date[]))
    AS a(key, company_id, company_package_id, period_start)"""

_OF_PERIOD = """j.company_id = a.company_id AND j.company_package_id = a.company_package_id
    AND j.period_start = a.period_start"""

_ADOPT = text(f"""
UPDATE payment_jobs j SET idempotency_key = a.key, leased_until = :leased_until
FROM {_CHARGES}, companies c, company_packages cp, packages p
WHERE {_OF_PERIOD} AND j.leased_until < :parked_until
    AND c.id = j.company_id AND cp.company_id = j.company_id AND cp.id = j.company_package_id
    AND p.id = cp.package_id
RETURNING {payment_queue.JOB_COLUMNS}
""")  # noqa: S608 - built from constants

_STANDINGS = text(f"""
SELECT a.key, CASE WHEN p.id IS NOT NULL THEN 'recorded' WHEN j.idempotency_key = a.key THEN 'waiting'
    ELSE 'unknown' END AS standing
FROM {_CHARGES}
    LEFT JOIN company_payments p ON p.company_id = a.company_id AND p.id = a.key AND p.status = 1
    LEFT JOIN payment_jobs j ON {_OF_PERIOD}
""")  # noqa: S608 - built from constants


def adopt(
    collector: Collector,
    charges: Sequence[Charge],
    *,
    on_batch: Callable[[int], None] = lambda _: None,
) -> dict[UUID, Standing]:
    """Collect the periods of some charges under the keys of these charges, and no other period.

    Goes from period to period: the second of a company package is due once the first is recorded. Returns how
    each charge stands; doing it twice is harmless. ``on_batch`` is told how many jobs were asked for. No
    worker may run meanwhile. A period is charged once, so no two charges are of the same one.

    Raises:
        charging.GatewayHangsError, sqlalchemy.exc.DBAPIError: as in a pass.
    """
    asked: set[str] = set()
    again = True
    while again and not collector.stop.is_set():
        _queue_all(collector)
        before = len(asked)
        for part in _parts(charges, collector.batch_size):
            asked |= _collect(collector, [c for c in part if str(c.idempotency_key) not in asked])
            on_batch(len(asked))
        again = len(asked) > before
    standings: dict[UUID, Standing] = {}
    for part in _parts(charges, collector.batch_size):
        standings |= run_in_transaction(collector.engine, partial(_standings, charges=part))
    return standings


def _queue_all(collector: Collector) -> None:
    """Queue every period that has ended, so that each has a job which can be given a key."""
    after: Cursor | None = FIRST
    while after is not None and not collector.stop.is_set():
        after = collector.enqueue(PassResult(), after=after)


def _collect(collector: Collector, charges: Sequence[Charge]) -> set[str]:
    """Give the jobs of some charges their keys and collect them; return the keys."""

    def take(session: Session) -> tuple[Moment, list[Job]]:
        moment = collector.clock.read(session)
        return moment, _take(session, charges, leased_until=moment.real + collector.lease)

    moment, jobs = run_in_transaction(collector.engine, take)
    if jobs:
        replies = collector.batch(jobs).charge(collector.pool, collector.stop)
        collector.settler().write(replies, moment)
        collector.pool.check()
    return {job.idempotency_key for job in jobs}


def _take(session: Session, charges: Sequence[Charge], *, leased_until: datetime) -> list[Job]:
    prefer_indexes(session)
    values = _values(charges) | {"leased_until": leased_until, "parked_until": PARKED_UNTIL}
    return [Job(*row) for row in session.execute(_ADOPT, values)]


def _standings(session: Session, *, charges: Sequence[Charge]) -> dict[UUID, Standing]:
    prefer_indexes(session)
    return {row.key: Standing(row.standing) for row in session.execute(_STANDINGS, _values(charges))}


def _values(charges: Sequence[Charge]) -> dict[str, Any]:
    return {
        "keys": array(charge.idempotency_key for charge in charges),
        "company_ids": array(charge.company_id for charge in charges),
        "company_package_ids": array(charge.company_package_id for charge in charges),
        "period_starts": array(charge.period_start for charge in charges),
    }


def _parts(charges: Sequence[Charge], size: int) -> list[Sequence[Charge]]:
    return [charges[start : start + size] for start in range(0, len(charges), size)]
