"""The queue of callbacks: which are to be sent now, and what becomes of them (DESIGN.md, "Callbacks").

A message is claimed by moving its next attempt behind a lease; no transaction is open while it is sent. What
an endpoint is not to be sent for now leaves the index of due messages, so that no number of messages for dead
endpoints stands before those for live ones: it is ``waiting`` until the endpoint's breaker lets one through,
or ``held`` where the endpoint is disabled. All instants are real time.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from billing.transactions import prefer_indexes
from models import PLATFORM_ID

LEASE = timedelta(seconds=150)
"""How long a claimed message is left alone: longer than all that is claimed with it takes at the worst."""

PROBE_LEASE = timedelta(seconds=30)
"""How long the one message that tries a broken endpoint again is waited for before another one is tried."""

SCAN_SIZE = 1000
"""How many due messages one claim looks at, to find some whose endpoints may be sent to."""

READY_ENDPOINTS = 32
"""How many endpoints with waiting messages one claim serves."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message that is ours to send, until the lease is over; ``endpoint_id`` 0 is the platform's.

    ``request_id`` names the request or pass that caused it.
    """

    company_id: int
    id: UUID
    endpoint_id: int
    type: str
    body: str
    attempts: int
    schedule_step: int
    request_id: str | None = None


@dataclass(slots=True)
class Claim:
    """What one look at the queue brought: messages to send, how many were moved, how many given up."""

    messages: list[Claimed]
    moved: int = 0
    exhausted: int = 0


_RETURNING = """
    cb.company_id, cb.id, cb.recipient, cb.type, cb.body, cb.attempts, cb.schedule_step, cb.request_id"""

_DUE_PLATFORM = """
WITH due AS (
    SELECT company_id, id FROM callbacks WHERE recipient = 'platform' AND next_attempt_at <= :free_since
    ORDER BY next_attempt_at LIMIT :size FOR UPDATE SKIP LOCKED
)
"""

_CLAIM_PLATFORM = text(f"""
{_DUE_PLATFORM}UPDATE callbacks cb SET next_attempt_at = :leased_until FROM due
WHERE cb.company_id = due.company_id AND cb.id = due.id
RETURNING {_RETURNING}
""")  # noqa: S608 - built from constants

_PLATFORM = text("SELECT disabled_at, open_until FROM callback_endpoints WHERE company_id = :id")
_LOCK_PLATFORM = text("""
SELECT 1 FROM callback_endpoints WHERE company_id = :id AND open_until <= :now FOR UPDATE SKIP LOCKED
""")
_PROBE_PLATFORM = text("UPDATE callback_endpoints SET open_until = :until WHERE company_id = :id")

_HOLD_PLATFORM = text(f"""
{_DUE_PLATFORM}UPDATE callbacks cb SET status = 'held', next_attempt_at = NULL FROM due
WHERE cb.company_id = due.company_id AND cb.id = due.id
""")  # noqa: S608 - built from constants

# One look at due messages: leased are those whose endpoint may be sent to and has room, :size at most; what
# no endpoint can take now leaves the index; the rest stays as it is.
_CLAIM_COMPANIES = text("""
WITH due AS (
    SELECT company_id, id, next_attempt_at FROM callbacks
    WHERE recipient = 'company' AND next_attempt_at <= :free_since
    ORDER BY next_attempt_at LIMIT :scan FOR UPDATE SKIP LOCKED
), judged AS (
    SELECT d.company_id, d.id, d.next_attempt_at,
        CASE WHEN e.url IS NULL THEN 'exhausted'
            WHEN e.disabled_at IS NOT NULL THEN 'held'
            WHEN e.open_until IS NOT NULL THEN 'waiting'
            WHEN row_number() OVER (PARTITION BY d.company_id ORDER BY d.next_attempt_at)
                > COALESCE(r.room, :room) THEN 'waiting'
            ELSE 'pending' END AS status
    FROM due d LEFT JOIN callback_endpoints e ON e.company_id = d.company_id
        LEFT JOIN unnest(CAST(:known_ids AS bigint[]), CAST(:rooms AS integer[])) AS r(company_id, room)
            ON r.company_id = d.company_id
), placed AS (
    SELECT *, row_number() OVER (PARTITION BY status ORDER BY next_attempt_at) AS place FROM judged
), flagged AS (
    UPDATE callback_endpoints e SET has_waiting = true
    FROM (SELECT DISTINCT company_id FROM judged WHERE status = 'waiting') w
    WHERE e.company_id = w.company_id
)
UPDATE callbacks cb
SET status = p.status, next_attempt_at = CASE WHEN p.status = 'pending' THEN :leased_until END
FROM placed p
WHERE cb.company_id = p.company_id AND cb.id = p.id AND (p.status <> 'pending' OR p.place <= :size)
RETURNING cb.company_id, cb.id, cb.recipient, cb.type, cb.attempts, cb.schedule_step, cb.request_id,
    cb.status, CASE WHEN cb.status = 'pending' THEN cb.body END AS body
""")

# Locked before what waits is looked for, in a statement of its own: whoever lets a message wait touches the
# endpoint too, so nothing that waits is overlooked and then forgotten.
_LOCK_READY = text("""
SELECT company_id, open_until IS NOT NULL AS open,
    CASE WHEN url IS NULL THEN 'exhausted' WHEN disabled_at IS NOT NULL THEN 'held' ELSE 'pending' END
        AS status
FROM callback_endpoints
WHERE has_waiting AND (open_until IS NULL OR open_until <= :now) AND company_id <> ALL (:full_ids)
    AND (:room > 0 OR company_id = ANY (:known_ids)) AND (:probes > 0 OR open_until IS NULL)
ORDER BY open_until NULLS FIRST LIMIT :limit FOR UPDATE SKIP LOCKED
""")

_CLAIM_WAITING = text(f"""
WITH taken AS (
    SELECT r.company_id, m.id, r.status
    FROM unnest(CAST(:ids AS bigint[]), CAST(:rooms AS integer[]), CAST(:statuses AS text[]))
            AS r(company_id, room, status)
        CROSS JOIN LATERAL (
            SELECT id FROM callbacks WHERE company_id = r.company_id AND status = 'waiting'
            ORDER BY created_at LIMIT r.room FOR UPDATE SKIP LOCKED) m
)
UPDATE callbacks cb
SET status = t.status, next_attempt_at = CASE WHEN t.status = 'pending' THEN :leased_until END
FROM taken t WHERE cb.company_id = t.company_id AND cb.id = t.id
RETURNING {_RETURNING}, cb.status
""")  # noqa: S608 - built from constants

_SERVED = text("""
UPDATE callback_endpoints e
SET has_waiting = r.more, open_until = CASE WHEN r.probed THEN :probe_until ELSE e.open_until END
FROM unnest(CAST(:ids AS bigint[]), CAST(:more AS boolean[]), CAST(:probed AS boolean[]))
    AS r(company_id, more, probed)
WHERE e.company_id = r.company_id
""")

_MESSAGES = """
    unnest(CAST(:company_ids AS bigint[]), CAST(:ids AS uuid[]), CAST(:attempts AS smallint[])"""
_OF_MESSAGE = """
    cb.company_id = a.company_id AND cb.id = a.id AND cb.attempts = a.attempts AND cb.status = 'pending'"""

# A message that was replayed while it was under way goes out again, unless it has just arrived.
_NOT_REPLAYED = "cb.schedule_step = a.step OR a.status = 'delivered'"

_RECORD = text(f"""
WITH recorded AS (
    UPDATE callbacks cb
    SET attempts = (cb.attempts + 1)::smallint,
        status = CASE WHEN {_NOT_REPLAYED} THEN a.status ELSE cb.status END,
        next_attempt_at = CASE WHEN {_NOT_REPLAYED} THEN a.next_attempt_at ELSE cb.next_attempt_at END,
        schedule_step = CASE WHEN {_NOT_REPLAYED} THEN (a.step + 1)::smallint ELSE cb.schedule_step END
    FROM {_MESSAGES}, CAST(:statuses AS text[]), CAST(:next_attempts AS timestamptz[]),
            CAST(:attempted_ats AS timestamptz[]), CAST(:status_codes AS smallint[]),
            CAST(:durations_ms AS integer[]), CAST(:errors AS text[]), CAST(:answers AS text[]),
            CAST(:steps AS smallint[]))
        AS a(company_id, id, attempts, status, next_attempt_at, attempted_at, status_code, duration_ms, error,
            answer, step)
    WHERE {_OF_MESSAGE}
    RETURNING cb.company_id, cb.id, cb.attempts AS number, a.attempted_at, a.status_code, a.duration_ms,
        a.error, a.answer
)
INSERT INTO callback_attempts (company_id, callback_id, number, attempted_at, status_code, duration_ms, error,
    answer)
SELECT * FROM recorded
""")  # noqa: S608 - built from constants

_PUT_BACK = text(f"""
WITH back AS (
    UPDATE callbacks cb
    SET status = a.status, next_attempt_at = CASE WHEN a.status = 'pending' THEN :now END
    FROM {_MESSAGES}, CAST(:statuses AS text[])) AS a(company_id, id, attempts, status)
    WHERE {_OF_MESSAGE}
    RETURNING cb.company_id, cb.status
)
UPDATE callback_endpoints e SET has_waiting = true
FROM (SELECT DISTINCT company_id FROM back WHERE status = 'waiting') w
WHERE e.company_id = w.company_id
""")  # noqa: S608 - built from constants


def claim_platform(session: Session, *, now: datetime, free_since: datetime, size: int, probe: bool) -> Claim:
    """Lease up to ``size`` of the platform's messages that are due since ``free_since``.

    None while its breaker is open; then one, where ``probe``. Where it is disabled, they are held.
    """
    prefer_indexes(session)
    endpoint = session.execute(_PLATFORM, {"id": PLATFORM_ID}).one()
    if endpoint.disabled_at is not None:
        held: Any = session.execute(_HOLD_PLATFORM, {"free_since": free_since, "size": SCAN_SIZE})
        return Claim([], moved=held.rowcount)
    if endpoint.open_until is not None:
        # Only who has the lock tries it.
        free = probe and session.execute(_LOCK_PLATFORM, {"id": PLATFORM_ID, "now": now}).one_or_none()
        size = min(size, int(bool(free)))
    if size <= 0:
        return Claim([])
    values = {"free_since": free_since, "size": size, "leased_until": now + LEASE}
    claim = _sorted_out(session.execute(_CLAIM_PLATFORM, values).all())
    if claim.messages and endpoint.open_until is not None:
        session.execute(_PROBE_PLATFORM, {"id": PLATFORM_ID, "until": now + PROBE_LEASE})
    return claim


def claim_companies(
    session: Session,
    *,
    now: datetime,
    free_since: datetime,
    size: int,
    room: int,
    rooms: Mapping[int, int],
) -> Claim:
    """Lease up to ``size`` of the companies' due messages, and put aside what no endpoint can take now.

    An endpoint takes as many as it has in ``rooms``, or else ``room``.
    """
    values = {
        "free_since": free_since,
        "leased_until": now + LEASE,
        "scan": SCAN_SIZE,
        "size": size,
        "room": room,
        "known_ids": list(rooms),
        "rooms": list(rooms.values()),
    }
    prefer_indexes(session)
    return _sorted_out(session.execute(_CLAIM_COMPANIES, values).all())


def claim_waiting(
    session: Session, *, now: datetime, size: int, room: int, rooms: Mapping[int, int], probes: int
) -> Claim:
    """Lease what waits for endpoints that may be sent to again, at most ``size``, oldest first.

    An endpoint whose breaker was open gets one message to try it, ``probes`` of them at once; what waits
    for a disabled one is held, and for one that is gone, given up.
    """
    prefer_indexes(session)
    values = {
        "now": now,
        "full_ids": [id_ for id_, left in rooms.items() if left <= 0],
        "known_ids": list(rooms),
        "room": room,
        "limit": READY_ENDPOINTS,
        "probes": probes,
    }
    ready: dict[int, Any] = {}
    wanted: dict[int, int] = {}
    for endpoint in session.execute(_LOCK_READY, values):
        id_ = endpoint.company_id
        if endpoint.status != "pending":
            wanted[id_] = SCAN_SIZE
        elif endpoint.open:
            wanted[id_] = int(probes > 0)
            probes -= 1
        else:
            wanted[id_] = min(size, rooms.get(id_, room))
            size -= wanted[id_]
        if wanted[id_] > 0:
            ready[id_] = endpoint
    if not ready:
        return Claim([])
    rows = session.execute(
        _CLAIM_WAITING,
        {
            "ids": list(ready),
            "rooms": [wanted[id_] for id_ in ready],
            "statuses": [endpoint.status for endpoint in ready.values()],
            "leased_until": now + LEASE,
        },
    ).all()
    taken = Counter(row.company_id for row in rows)
    session.execute(
        _SERVED,
        {
            "ids": list(ready),
            "more": [taken[id_] == wanted[id_] for id_ in ready],
            "probed": [endpoint.open and taken[id_] > 0 for id_, endpoint in ready.items()],
            "probe_until": now + PROBE_LEASE,
        },
    )
    return _sorted_out(rows)


def _sorted_out(rows: Sequence[Row[Any]]) -> Claim:
    claim = Claim([])
    for row in rows:
        status = getattr(row, "status", "pending")
        if status == "pending":
            endpoint_id = PLATFORM_ID if row.recipient == "platform" else row.company_id
            claim.messages.append(
                Claimed(
                    row.company_id,
                    row.id,
                    endpoint_id,
                    row.type,
                    row.body,
                    row.attempts,
                    row.schedule_step,
                    row.request_id,
                )
            )
        claim.moved += status != "pending"
        claim.exhausted += status == "exhausted"
    return claim


def record(session: Session, messages: Sequence[Claimed], **columns: list[Any]) -> None:
    """Write what came of some messages, and their attempts; what is no longer ours is left alone.

    ``columns`` has a value a message for each of statuses, next_attempts, attempted_ats, status_codes,
    durations_ms, errors and answers.
    """
    prefer_indexes(session)
    steps = [message.schedule_step for message in messages]
    session.execute(_RECORD, _keys(messages) | columns | {"steps": steps})


def put_back(
    session: Session, messages: Sequence[Claimed], statuses: Collection[str], *, now: datetime
) -> None:
    """Give back messages that were not sent, each with its status; a pending one is due at once."""
    session.execute(_PUT_BACK, _keys(messages) | {"statuses": list(statuses), "now": now})


def _keys(messages: Sequence[Claimed]) -> dict[str, Any]:
    return {
        "company_ids": [message.company_id for message in messages],
        "ids": [message.id for message in messages],
        "attempts": [message.attempts for message in messages],
    }
