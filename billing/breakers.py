"""Circuit breakers: how an endpoint fares, and when it is left alone (DESIGN.md, "Callbacks").

1. Five failed attempts in a row open the breaker for half a minute; so does an answer that asks for time,
   for as long as it asks.
2. Then one message is tried. Each time it fails, the breaker opens for twice as long, up to an hour.
3. A success closes it.
4. An endpoint that is gone (410), or failed for five days in a row, is disabled.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from billing import tracing
from billing.callbacks import PLATFORM, message_body, message_id
from billing.clock import Clock
from billing.documents import instant_text
from billing.senders import GONE, LONGEST_RETRY_AFTER_S, Outgoing, Reply
from models import PLATFORM_ID, Callback, Counter

FAILURES = 5
"""How many failed attempts in a row open the breaker."""

FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(hours=1)
FAILING_TOO_LONG = timedelta(days=5)

DISABLED = "callback_endpoint.disabled"
DISABLED_COUNTER = "callback_endpoints_disabled"

# Failures under way when the breaker opens are one failure, so that only a probe's doubles the pause.
_NOTE = text("""
WITH noted AS (
    SELECT e.company_id, a.*,
        CASE WHEN a.succeeded THEN 0
            WHEN e.failures < :most THEN LEAST(:most, e.failures + a.failed)
            ELSE e.failures + a.probed::integer END AS failures,
        CASE WHEN NOT a.succeeded THEN COALESCE(e.failing_since, :now) END AS failing_since,
        a.gone OR (NOT a.succeeded AND e.failing_since IS NOT NULL AND e.failing_since <= :failing_too_long)
            AS ends
    FROM callback_endpoints e JOIN unnest(CAST(:ids AS bigint[]), CAST(:urls AS text[]),
            CAST(:succeeded AS boolean[]), CAST(:failed AS integer[]), CAST(:gone AS boolean[]),
            CAST(:probed AS boolean[]), CAST(:retry_at AS timestamptz[]), CAST(:jitter AS float8[]))
        AS a(id, url, succeeded, failed, gone, probed, retry_at, jitter)
        ON e.company_id = a.id AND e.url = a.url
    WHERE e.disabled_at IS NULL
        AND (NOT a.succeeded OR a.gone OR e.failures > 0 OR e.open_until IS NOT NULL)
    ORDER BY e.company_id FOR UPDATE OF e
)
UPDATE callback_endpoints e
SET failures = n.failures, failing_since = n.failing_since,
    open_until = CASE WHEN NOT n.succeeded AND NOT n.ends THEN GREATEST(n.retry_at,
        CASE WHEN NOT n.probed THEN e.open_until END,
        CASE WHEN n.failures >= :most AND (n.probed OR e.open_until IS NULL) THEN
            :now + n.jitter * LEAST(:longest, :first * power(2, LEAST(n.failures - :most, 20))) END) END,
    disabled_at = CASE WHEN n.ends THEN :now END,
    disabled_reason = CASE WHEN n.gone THEN 'gone' WHEN n.ends THEN 'failing' END
FROM noted n WHERE e.company_id = n.company_id
RETURNING e.company_id, e.url, e.open_until, e.failing_since, e.disabled_at, e.disabled_reason
""")


@dataclass(slots=True)
class _Tally:
    """What some attempts say of one endpoint."""

    succeeded: bool = False
    failed: int = 0
    gone: bool = False
    probed: bool = False
    retry_after_s: float | None = None

    def add(self, outgoing: Outgoing, reply: Reply) -> None:
        self.probed |= outgoing.probe
        self.succeeded |= reply.succeeded
        self.failed += not reply.succeeded
        self.gone |= reply.status_code == GONE
        if reply.retry_after_s is not None:
            self.retry_after_s = max(self.retry_after_s or 0.0, reply.retry_after_s)


def note(
    session: Session, attempts: Sequence[tuple[Outgoing, Reply]], *, now: datetime
) -> Sequence[Row[Any]]:
    """Write how the endpoints of some attempts fare; return those that changed, as they stand now.

    Attempts that went to another URL than the endpoint has now say nothing of it.
    """
    tallies: dict[tuple[int, str], _Tally] = {}
    for outgoing, reply in attempts:
        tallies.setdefault((outgoing.endpoint_id, outgoing.endpoint.url), _Tally()).add(outgoing, reply)
    values = tallies.values()
    return session.execute(
        _NOTE,
        {
            "ids": [id_ for id_, _ in tallies],
            "urls": [url for _, url in tallies],
            "succeeded": [tally.succeeded and not tally.gone for tally in values],
            "failed": [tally.failed for tally in values],
            "gone": [tally.gone for tally in values],
            "probed": [tally.probed for tally in values],
            "retry_at": [_retry_at(tally.retry_after_s, now) for tally in values],
            "jitter": [random.uniform(0.8, 1) for _ in values],  # noqa: S311 - spreads the load
            "now": now,
            "most": FAILURES,
            "first": FIRST_PAUSE,
            "longest": LONGEST_PAUSE,
            "failing_too_long": now - FAILING_TOO_LONG,
        },
    ).all()


def _retry_at(retry_after_s: float | None, now: datetime) -> datetime | None:
    if retry_after_s is None:
        return None
    return now + timedelta(seconds=min(retry_after_s, LONGEST_RETRY_AFTER_S))


def tell_disabled(session: Session, endpoints: Sequence[Row[Any]], *, clock: Clock, by_platform: bool) -> int:
    """Count endpoints that were disabled, write the platform a message about each; return how many ever were.

    The message is no change of the company: it has no ``sequence``.
    """
    if not endpoints:
        return 0
    now = clock.read(session).business
    for endpoint in endpoints if by_platform else ():
        company_id = endpoint.company_id
        told = {
            "company_id": None if company_id == PLATFORM_ID else company_id,
            "url": endpoint.url,
            "reason": endpoint.disabled_reason,
            "failing_since": instant_text(endpoint.failing_since),
            "disabled_at": instant_text(endpoint.disabled_at),
        }
        session.add(
            Callback(
                company_id=company_id,
                id=message_id(company_id, f"{DISABLED}{endpoint.disabled_at}"),
                recipient=PLATFORM,
                type=DISABLED,
                body=message_body(DISABLED, {"callback_endpoint": told}, now=now),
                request_id=tracing.current_id(),
            )
        )
    counted = insert(Counter).values(name=DISABLED_COUNTER, value=len(endpoints))
    counted = counted.on_conflict_do_update(
        index_elements=["name"], set_={"value": Counter.value + len(endpoints)}
    )
    return session.execute(counted.returning(Counter.value)).scalar_one()
