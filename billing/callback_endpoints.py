"""Endpoints: where callbacks go, the secrets that sign them, and whether they may be sent anything.

The platform's endpoint comes from the settings and has the ``company_id`` 0; a company sets its own.
All instants are real time.
"""

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from billing.errors import EndpointMissingError, SecretGoneError, TooManySecretsError
from billing.keyring import Keyring
from models import PLATFORM_ID, CallbackEndpoint, CallbackSecret

MOST_SECRETS = 5
"""How many secrets sign at once: each adds a signature to a header whose length receivers limit."""


@dataclass(frozen=True, slots=True)
class PlatformEndpoint:
    """The platform's endpoint, as the settings have it."""

    url: str
    secret: str = field(repr=False)


def new_secret() -> str:
    """Return a fresh Standard Webhooks secret of 32 random bytes."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def find(session: Session, company_id: int) -> CallbackEndpoint:
    """Return an endpoint, or raise `EndpointMissingError`."""
    return _present(session.get(CallbackEndpoint, company_id, populate_existing=True))


def put(session: Session, company_id: int, url: str, keyring: Keyring, *, now: datetime) -> str:
    """Give a company another endpoint, in good standing and with a secret of its own; return the secret.

    What waited for the endpoint before goes to this one.
    """
    secret = new_secret()
    _write(session, company_id, url)
    session.execute(delete(CallbackSecret).where(CallbackSecret.company_id == company_id))
    _add_secret(session, company_id, secret, keyring, now=now)
    return secret


def remove(session: Session, company_id: int) -> None:
    """Take a company's endpoint away, and its secrets. The worker gives up what was still to be sent."""
    _write(session, company_id, None)
    session.execute(delete(CallbackSecret).where(CallbackSecret.company_id == company_id))


def put_platform(
    session: Session, platform: PlatformEndpoint, keyring: Keyring, *, now: datetime, overlap: timedelta
) -> None:
    """Take over the platform's endpoint from the settings, where it is not the one that stands.

    Another URL begins in good standing. Another secret rotates the one that stands; a secret that was
    rotated away does not come back, so the setting may stay as it is after a rotation.
    """
    endpoint = session.get(CallbackEndpoint, PLATFORM_ID, populate_existing=True)
    if endpoint is None or endpoint.url != platform.url:
        _write(session, PLATFORM_ID, platform.url)
    if _knows(session, platform.secret, keyring):
        return
    # Looked at again by one process at a time, so that two that start together do not both add the secret.
    _lock(session, PLATFORM_ID)
    if not _knows(session, platform.secret, keyring):
        _retire(session, PLATFORM_ID, expires_at=now + overlap)
        _add_secret(session, PLATFORM_ID, platform.secret, keyring, now=now)
        _expire_surplus(session, PLATFORM_ID, now=now)


def rotate_secret(
    session: Session, company_id: int, keyring: Keyring, *, now: datetime, overlap: timedelta
) -> tuple[str, datetime]:
    """Give an endpoint a new secret; return it, and until when the one before it signs too.

    Raises:
        EndpointMissingError: when there is no endpoint.
        TooManySecretsError: when too many former secrets still sign.
    """
    _lock(session, company_id)
    if len(_signing(session, company_id, now=now)) >= MOST_SECRETS:
        raise TooManySecretsError
    secret, expires_at = new_secret(), now + overlap
    _retire(session, company_id, expires_at=expires_at)
    if company_id != PLATFORM_ID:
        # The platform's former secrets are kept: the setting may still name one.
        expired = CallbackSecret.expires_at <= now
        session.execute(delete(CallbackSecret).where(CallbackSecret.company_id == company_id, expired))
    _add_secret(session, company_id, secret, keyring, now=now)
    return secret, expires_at


def present_secret_id(session: Session, company_id: int) -> int:
    """Return the id of an endpoint's present secret."""
    present = CallbackSecret.company_id == company_id, CallbackSecret.expires_at.is_(None)
    return session.scalars(select(CallbackSecret.id).where(*present)).one()


def read_secret(session: Session, company_id: int, id_: int, keyring: Keyring) -> str:
    """Return a secret by its id.

    Raises:
        SecretGoneError: when it is not kept any more.
    """
    secret = session.get(CallbackSecret, (company_id, id_))
    if secret is None:
        raise SecretGoneError
    return keyring.decrypt(secret.encrypted)


def read_secrets(session: Session, company_ids: Sequence[int], *, now: datetime) -> dict[int, list[str]]:
    """Return the encrypted secrets that sign for some endpoints now, newest first."""
    rows = session.execute(
        select(CallbackSecret.company_id, CallbackSecret.encrypted)
        .where(CallbackSecret.company_id.in_(company_ids), _signs_at(now))
        .order_by(CallbackSecret.company_id, CallbackSecret.id.desc())
    )
    found: dict[int, list[str]] = {}
    for company_id, encrypted in rows:
        found.setdefault(company_id, []).append(encrypted)
    return found


def former_secret_expires_at(session: Session, company_id: int, *, now: datetime) -> datetime | None:
    """Return until when a former secret still signs, or None where none does."""
    query = select(CallbackSecret.expires_at).where(
        CallbackSecret.company_id == company_id, CallbackSecret.expires_at > now
    )
    return max((instant for instant in session.scalars(query) if instant is not None), default=None)


def enable(session: Session, company_id: int) -> bool:
    """Let an endpoint be sent messages again, from a clean start; return whether it was disabled.

    What was held meanwhile stays held until it is recovered; what waited goes out.
    """
    endpoint = _lock(session, company_id)
    disabled = endpoint.disabled_at is not None
    _write(session, company_id, endpoint.url)
    return disabled


def _write(session: Session, company_id: int, url: str | None) -> None:
    """Write an endpoint in good standing; what waited for it is looked at once more."""
    clean = {
        "url": url,
        "has_waiting": company_id != PLATFORM_ID,
        "failures": 0,
        "failing_since": None,
        "open_until": None,
        "disabled_at": None,
        "disabled_reason": None,
    }
    statement = insert(CallbackEndpoint).values(company_id=company_id, **clean)
    session.execute(statement.on_conflict_do_update(index_elements=["company_id"], set_=clean))


def _lock(session: Session, company_id: int) -> CallbackEndpoint:
    return _present(session.get(CallbackEndpoint, company_id, with_for_update=True, populate_existing=True))


def _present(endpoint: CallbackEndpoint | None) -> CallbackEndpoint:
    if endpoint is None or endpoint.url is None:
        raise EndpointMissingError
    return endpoint


def _retire(session: Session, company_id: int, *, expires_at: datetime) -> None:
    session.execute(
        update(CallbackSecret)
        .where(CallbackSecret.company_id == company_id, CallbackSecret.expires_at.is_(None))
        .values(expires_at=expires_at)
    )


def _knows(session: Session, secret: str, keyring: Keyring) -> bool:
    """Return whether the platform's endpoint has, or once had, a secret."""
    query = select(CallbackSecret.encrypted).where(CallbackSecret.company_id == PLATFORM_ID)
    return secret in keyring.readable(session.scalars(query))


def _signing(session: Session, company_id: int, *, now: datetime) -> Sequence[CallbackSecret]:
    """Return the secrets that sign now, newest first."""
    query = select(CallbackSecret).where(CallbackSecret.company_id == company_id, _signs_at(now))
    return session.scalars(query.order_by(CallbackSecret.id.desc())).all()


def _signs_at(now: datetime) -> ColumnElement[bool]:
    return CallbackSecret.expires_at.is_(None) | (CallbackSecret.expires_at > now)


def _expire_surplus(session: Session, company_id: int, *, now: datetime) -> None:
    """Let the oldest secrets sign no more where there are too many: those of settings changed in a row."""
    for row in _signing(session, company_id, now=now)[MOST_SECRETS:]:
        row.expires_at = now
    session.flush()


def _add_secret(session: Session, company_id: int, secret: str, keyring: Keyring, *, now: datetime) -> None:
    session.add(CallbackSecret(company_id=company_id, encrypted=keyring.encrypt(secret), created_at=now))
    session.flush()
