"""What an application carries beside its configuration, and how a request gets at it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import cast
from zoneinfo import ZoneInfo

from flask import current_app, g
from sqlalchemy.orm import Session

from billing.addresses import AddressPolicy
from billing.callback_endpoints import PlatformEndpoint
from billing.callbacks import Outbox
from billing.clock import Clock
from billing.gateways import Gateway
from billing.keyring import Keyring
from config import Settings
from models import db


@dataclass(frozen=True, slots=True)
class Vade:
    """The settings, and what was made of them: the clock, the gateway, who hears of changes, and keys."""

    settings: Settings
    clock: Clock
    gateway: Gateway
    outbox: Outbox
    keyring: Keyring

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of business days."""
        return self.settings.billing_timezone

    @property
    def platform(self) -> PlatformEndpoint | None:
        """The platform's callback endpoint, where the settings name one."""
        url, secret = self.settings.callback_url, self.settings.callback_secret
        return PlatformEndpoint(url, secret) if url is not None and secret is not None else None

    @property
    def secret_overlap(self) -> timedelta:
        """How long a callback secret signs on after another took its place."""
        return timedelta(seconds=self.settings.callback_secret_overlap_s)

    @property
    def address_policy(self) -> AddressPolicy:
        """Where callbacks may go: in production by https only, to the public internet."""
        private = self.settings.callback_allow_private
        return AddressPolicy(allow_private=private, https_only=self.settings.production and not private)


def vade() -> Vade:
    """Return what the present application carries."""
    return cast(Vade, current_app.extensions["vade"])


@contextmanager
def transaction() -> Iterator[Session]:
    """Give the request's session; commit at the end, or roll back where an error leaves the block.

    Of a request under an idempotency key the last transaction stays open, for the answer to be committed
    with it: what a block left open, the next one commits first.
    """
    session = cast(Session, db.session())
    waits = "commits_with_answer" in g
    try:
        if waits:
            session.commit()
        yield session
        if waits:
            session.flush()
        else:
            session.commit()
    except BaseException:
        session.rollback()
        raise


ALONE = {"isolation_level": "AUTOCOMMIT"}
"""How a statement runs that is all of its transaction."""


@contextmanager
def one_query() -> Iterator[Session]:
    """Give the request's session for one statement that only reads.

    It is a transaction by itself: to begin and to end one would ask the database twice more.
    """
    session = cast(Session, db.session())
    session.connection(execution_options=ALONE)
    try:
        yield session
    finally:
        session.rollback()
