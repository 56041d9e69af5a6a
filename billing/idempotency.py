"""Idempotency keys: a request that comes again is answered again, and done once.

After the IETF's draft of the Idempotency-Key header (draft-ietf-httpapi-idempotency-key-header-07).

1. `claim` takes a request under a lease, in a transaction of its own, or tells what became of it.
2. `keep` writes the answer in the transaction of the effect, where the claim still stands: either both are
   there or neither is, whenever the process dies.
3. `release` forgets a request that failed for a reason of ours. One whose process died is free when its lease
   is over.

All instants are real time. What a key and a request are is known only as HMACs.
"""

import json
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from billing.errors import KeyReusedError

KEPT_FOR = timedelta(hours=24)
"""How long an answer is given again; then the key is as good as new."""

LEASE = timedelta(seconds=60)
"""How long a request may take before another one under its key is done instead."""

BATCH = 1000
"""How many keys `sweep` removes at most."""

Answer = dict[str, Any]
"""What is kept of an answer: it holds no secret."""

_CLAIM = text("""
INSERT INTO idempotency_keys AS k (company_id, digest, fingerprint, claim, leased_until, created_at)
VALUES (:company_id, :digest, :fingerprint, :claim, :leased_until, :now)
ON CONFLICT (company_id, digest) DO UPDATE SET fingerprint = excluded.fingerprint, claim = excluded.claim,
    leased_until = excluded.leased_until, answer = NULL, created_at = excluded.created_at
WHERE k.created_at <= :forgotten
    OR (k.answer IS NULL AND k.leased_until <= :now AND k.fingerprint = excluded.fingerprint)
RETURNING k.claim
""")

_FIND = text("""
SELECT fingerprint, answer FROM idempotency_keys WHERE company_id = :company_id AND digest = :digest
""")

_KEEP = text("""
UPDATE idempotency_keys SET answer = CAST(:answer AS jsonb)
WHERE company_id = :company_id AND digest = :digest AND claim = :claim AND answer IS NULL
RETURNING claim
""")

_RELEASE = text("""
DELETE FROM idempotency_keys
WHERE company_id = :company_id AND digest = :digest AND claim = :claim AND answer IS NULL
""")

_SWEEP = text("""
DELETE FROM idempotency_keys k USING (
    SELECT company_id, digest FROM idempotency_keys WHERE created_at <= :forgotten
    ORDER BY created_at LIMIT :size FOR UPDATE SKIP LOCKED
) old WHERE k.company_id = old.company_id AND k.digest = old.digest
""")


@dataclass(frozen=True, slots=True)
class Keyed:
    """A request under a key; ``company_id`` is 0 where no company calls."""

    company_id: int
    digest: bytes
    """Of the caller and the key."""
    fingerprint: bytes
    """Of what is asked."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A request that is ours to do."""

    keyed: Keyed
    id: uuid.UUID


def claim(session: Session, keyed: Keyed, *, now: datetime) -> Claim | Answer | None:
    """Take a request, or return what was answered to it; None while someone else is about it.

    Raises:
        KeyReusedError: when the key stands for another request.
    """
    mine = Claim(keyed, uuid.uuid4())
    values = {"fingerprint": keyed.fingerprint, "now": now, "leased_until": now + LEASE}
    values |= {"forgotten": now - KEPT_FOR}
    if session.execute(_CLAIM, _names(mine) | values).one_or_none() is not None:
        return mine
    found = session.execute(_FIND, {"company_id": keyed.company_id, "digest": keyed.digest}).one_or_none()
    if found is None:
        # Released or swept a moment ago.
        return None
    if found.fingerprint != keyed.fingerprint:
        raise KeyReusedError("#", "This is not the request that the key was first used for.")
    answer: Answer | None = found.answer
    return answer


def keep(session: Session, claim: Claim, answer: Answer) -> bool:
    """Write what is answered; False where the claim is no longer ours, and nothing may be committed."""
    kept = session.execute(_KEEP, _names(claim) | {"answer": json.dumps(answer)}).one_or_none()
    return kept is not None


def release(session: Session, claim: Claim) -> None:
    """Forget a request that was not answered."""
    session.execute(_RELEASE, _names(claim))


def sweep(session: Session, *, now: datetime) -> int:
    """Remove up to `BATCH` keys that are forgotten; return how many."""
    removed: Any = session.execute(_SWEEP, {"forgotten": now - KEPT_FOR, "size": BATCH})
    count: int = removed.rowcount
    return count


def _names(claim: Claim) -> dict[str, Any]:
    return {"company_id": claim.keyed.company_id, "digest": claim.keyed.digest, "claim": claim.id}
